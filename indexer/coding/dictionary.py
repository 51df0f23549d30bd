"""The concept dictionary: names, and one unit atom each.

Four sources: `terms` (what the encoder's training captions hold: for the bundled one CIFAR-10's classes and
search terms), `classes` (those of the index), `nouns` (ten thousand English ones, for encoders of broad training),
or a text file with a word or phrase a line. Concepts whose atoms nearly coincide could not be told apart by any
code: the later one becomes an alias of the earlier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from indexer.config import SAME
from training.data.captions import fill
from training.data.cifar10 import CLASSES
from training.encoders import Encoder, same_when_cut
from training.errors import SparsightError
from training.files import full_path

KINDS = "it is terms, classes, nouns or a text file"
NOUNS = "nouns: WordNet 3.0, ImageNet-12k of timm"
PERSON_FILE = ("n09482", "n114")  # WordNet's noun.person: the names of its synsets lie between
PEOPLE = ("man", "woman", "boy", "girl", "baby", "child", "crowd", "face", "athlete", "bride", "chef", "cyclist",
          "dancer", "doctor", "farmer", "firefighter", "fisherman", "musician", "nurse", "police officer", "sailor",
          "scuba diver", "skier", "soldier", "surfer", "swimmer", "teacher", "waiter", "worker")  # fmt: skip
INSULTS = {"ass", "bitch", "old squaw", "rape"}  # donkey, dog, duck and plant, but who would read them so?


@dataclass(frozen=True)
class Dictionary:
    """names, aliases, parents (m; a parent is the class a concept belongs to, or None) · D (m, d) unit rows."""

    names: list[str]
    aliases: list[list[str]]
    parents: list[str | None]
    D: np.ndarray
    source: str

    def take(self, ids: np.ndarray) -> Dictionary:
        """The dictionary of some rows (k,) int."""
        return Dictionary(
            [self.names[i] for i in ids],
            [self.aliases[i] for i in ids],
            [self.parents[i] for i in ids],
            self.D[ids],
            self.source,
        )

    @property
    def fingerprint(self) -> str:
        sha = hashlib.sha256("\0".join(self.names).encode())
        sha.update(np.ascontiguousarray(self.D, np.float32).tobytes())
        return sha.hexdigest()


def make_dictionary(
    source: str, encoder: Encoder, classes: Sequence[str] = CLASSES, templates: Sequence[str] | None = None
) -> Dictionary:
    """Builds the dictionary of a source in an encoder's space, from prompts (the encoder's own without some).

    Concepts that nearly coincide are still apart: see `merge_same`. A `CutTextWarning` names those too long for
    the encoder, and those that only differ in what it does not read.
    """
    source, parents = concepts_of(source, encoder, classes)
    names, templates = list(parents), templates or encoder.templates
    D = encoder.encode_concepts(names, templates)
    same_when_cut(names, lambda name: [fill(t, name) for t in templates], encoder.left_out)
    return Dictionary(names, [[] for _ in names], list(parents.values()), D, source)


def meaningful(dictionary: Dictionary, encoder: Encoder) -> Dictionary:
    """The concepts that mean something to an encoder: those with a cosine of at least `known_from` with one of its own.

    All of them where the encoder tells no such cosine. The others would stand in codes for what no picture shows.
    """
    if not (encoder.known_from and encoder.concepts):
        return dictionary
    known = encoder.encode_concepts(list(encoder.concepts))
    return dictionary.take(np.flatnonzero((dictionary.D @ known.T).max(1) >= encoder.known_from))


def concepts_of(
    source: str, encoder: Encoder, classes: Sequence[str] = CLASSES, note: Callable[[str], object] | None = None
) -> tuple[str, dict[str, str | None]]:
    """What an index is to call a source, and its concepts with the class of each, or None.

    `auto` is `terms` where the encoder holds some, else `nouns`. note: told of what is passed over in a file.
    Raises `SparsightError` where the source gives no dictionary.
    """
    if source == "auto":
        source = "terms" if encoder.concepts else "nouns"
    if source == "terms":
        if not encoder.concepts:
            raise SparsightError(f"encoder {encoder.name} holds no terms; give --dictionary nouns, or a file of words")
        return source, dict(encoder.concepts)
    if source == "classes":
        if len(classes) < 2:
            raise SparsightError(f"--dictionary classes: the index has {len(classes)} class(es), at least 2 are needed")
        return source, {c: c for c in classes}
    if source == "nouns":
        return NOUNS, dict.fromkeys(read_nouns())
    return source, dict.fromkeys(read_words(full_path(source), note))


def read_words(path: Path, note: Callable[[str], object] | None = None) -> list[str]:
    """Reads a vocabulary: a word or phrase a line, `#` before a comment.

    Empty lines and repetitions, whatever their case, are passed over; `note` is told how many.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as e:
        reason = (e.strerror or str(e)) if isinstance(e, OSError) else "it is not UTF-8 text"
        raise SparsightError(f"--dictionary {path}: {reason}; {KINDS}") from e
    if "\0" in text:
        raise SparsightError(f"--dictionary {path}: it is not text; {KINDS}")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    words = [w for w in lines if w and not w.startswith("#")]
    unique = _unique(words)
    blanks, repeated = lines.count(""), len(words) - len(unique)
    if note and (blanks or repeated):
        note(f"{path}: passed over {blanks} blank line(s) and {repeated} repetition(s)")
    if len(unique) < 2:
        raise SparsightError(f"--dictionary {path} holds {len(unique)} concept(s); at least 2 are needed, one a line")
    return unique


def read_nouns() -> list[str]:
    """About ten thousand English nouns for things that can be seen, each once.

    They are the first lemmas of the WordNet 3.0 synsets (WordNet licence) that timm lists as ImageNet-12k. Of
    ImageNet's 2,832 synsets for people most are judgements, some slurs, few can be seen (Yang et al. 2020,
    https://arxiv.org/abs/1912.07726): WordNet's whole file of them is left out for the words of PEOPLE.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet12k")
    nouns = list(PEOPLE)
    for synset, lemmas in info.label_descriptions(as_dict=True).items():  # type: ignore[union-attr]
        if not PERSON_FILE[0] <= synset < PERSON_FILE[1]:
            nouns.append(lemmas.split(",")[0].strip())
    return [noun for noun in _unique(nouns) if noun not in INSULTS]


def merge_same(dictionary: Dictionary, threshold: float = SAME, block: int = 1024) -> Dictionary:
    """Makes each concept whose atom has a cosine ≥ threshold with an earlier one an alias of that.

    Memory: block × m cosines.
    """
    D = dictionary.D
    kept = np.ones(len(D), bool)
    aliases = [list(a) for a in dictionary.aliases]
    for start in range(0, len(D), block):
        cosines = D[start : start + block] @ D[: start + block].T
        near = np.tril(cosines >= threshold, start - 1)  # with earlier atoms only
        for i in np.flatnonzero(near.any(1)):
            earlier = np.flatnonzero(near[i] & kept[: near.shape[1]])
            if len(earlier):
                kept[start + i] = False
                aliases[earlier[cosines[i, earlier].argmax()]].append(dictionary.names[start + i])
    return replace(dictionary, aliases=aliases).take(np.flatnonzero(kept))


def _unique(words: Iterable[str]) -> list[str]:
    """Each word once, whatever its case, as it is first written."""
    first: dict[str, str] = {}
    for word in words:
        first.setdefault(word.casefold(), word)
    return list(first.values())
