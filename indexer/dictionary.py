"""The concept dictionary: names, and one unit atom each.

Three sources: `terms` (what the encoder's training captions hold: for the bundled one CIFAR-10's classes and
search terms), `classes` (CIFAR-10's ten), or a text file with a word or phrase a line. Concepts whose atoms
nearly coincide could not be told apart by any code: the later one becomes an alias of the earlier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.cifar10 import CLASSES
from training.encoder import AnyEncoder
from training.errors import SparsightError

SAME = 0.999  # cosine from which two atoms are one


@dataclass(frozen=True)
class Dictionary:
    """names, aliases, parents (m; a parent is the class a concept belongs to, or None) · D (m, d) unit rows."""

    names: list[str]
    aliases: list[list[str]]
    parents: list[str | None]
    D: np.ndarray
    source: str

    @property
    def fingerprint(self) -> str:
        sha = hashlib.sha256("\0".join(self.names).encode())
        sha.update(np.ascontiguousarray(self.D, np.float32).tobytes())
        return sha.hexdigest()


def make_dictionary(source: str, encoder: AnyEncoder, templates: Sequence[str] | None = None) -> Dictionary:
    """Builds the dictionary of a source in an encoder's space; `auto` takes the source that suits the encoder.

    Concepts that nearly coincide are still apart: see `merge_same`.
    """
    if source == "auto":
        source = "terms" if encoder.concepts else "classes"
    if source == "terms":
        if not encoder.concepts:
            raise SparsightError(f"encoder {encoder.name} holds no terms; give --dictionary FILE, a word a line")
        parents: dict[str, str | None] = dict(encoder.concepts)
    elif source == "classes":
        parents = {c: c for c in CLASSES}
    else:
        parents = dict.fromkeys(read_words(Path(source)))
    names = list(parents)
    D = encoder.encode_concepts(names, templates or encoder.templates)
    return Dictionary(names, [[] for _ in names], list(parents.values()), D, source)


def read_words(path: Path) -> list[str]:
    """Reads a vocabulary: a word or phrase a line; empty lines, `#` comments and repetitions are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not UTF-8 text"
        raise SparsightError(f"--dictionary {path}: {reason}; it is terms, classes or a text file") from e
    words = [" ".join(line.split()) for line in lines]
    words = list(dict.fromkeys(w for w in words if w and not w.startswith("#")))
    if len(words) < 2:
        raise SparsightError(f"--dictionary {path} holds {len(words)} concept(s); at least 2 are needed, one a line")
    return words


def merge_same(dictionary: Dictionary, threshold: float = SAME) -> Dictionary:
    """Makes each concept whose atom has a cosine ≥ threshold with an earlier one an alias of that."""
    D = dictionary.D
    kept: list[int] = []
    aliases: dict[int, list[str]] = {}
    for i, atom in enumerate(D):
        cosines = D[kept] @ atom if kept else np.zeros(0)
        if len(cosines) and cosines.max() >= threshold:
            aliases[kept[int(cosines.argmax())]].append(dictionary.names[i])
        else:
            kept.append(i)
            aliases[i] = list(dictionary.aliases[i])
    return Dictionary(
        [dictionary.names[i] for i in kept],
        [aliases[i] for i in kept],
        [dictionary.parents[i] for i in kept],
        D[kept],
        dictionary.source,
    )
