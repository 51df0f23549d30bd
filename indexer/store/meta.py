"""What an index says of itself: the table `meta`, parsed and checked once.

The table holds text by key, so that anyone can read it with SQL; in Python it is one frozen value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from indexer.config import CoderConfig
from indexer.residual import SYNTAX
from indexer.store.schema import FORMAT
from training.encoders import TextEncoder
from training.errors import CallError, SparsightError

MOST = 2**31  # ids are 32-bit


class MetaError(ValueError):
    """A key of `meta` is missing, or does not hold what it should; the message names it."""


@dataclass(frozen=True, kw_only=True)
class IndexMeta:
    """The facts about an index that its arrays do not tell.

    generation: how often it was written or changed. n, d, m, nnz: pictures, dimensions, concepts, postings.
    next_id: the id that the next picture is to get. vectors_file, vector_rows: the file of embeddings, and how many
    rows of it count (n of them are of pictures, the others of removed ones); vector_block: rows with one checksum.
    thumbnails_file, thumbnail_bytes: the same of the thumbnails. dataset: the name of what was indexed; root: the
    folder of its pictures, "" where it has none; embedded: whether its embeddings were made from the pictures or came
    with the encoder; labels: "folders" where the folders' names are the labels; exclude: patterns of the files and
    folders that are left out. encoder_…, trained_on: the encoder.
    dictionary, dictionary_fingerprint: where the concepts came from, and a SHA-256 over them. templates: the prompts
    of a concept. coder: the settings of the codes. dense_factory: the dense index, as FAISS describes it; dense_recall:
    the share of the k best that it is to find. residual: what is kept of an embedding beside its concepts, as FAISS
    describes product quantisers, "" for nothing; residual_fingerprint: a SHA-256 over the quantiser. keeps_vectors:
    whether the embeddings themselves are kept; the rows of the vectors' file are of no numbers where they are not.
    """

    generation: int = 0
    n: int = 0
    d: int
    m: int = 0
    nnz: int = 0
    next_id: int = 0
    vectors_file: str = ""
    vector_rows: int = 0
    vector_block: int = 1
    thumbnails_file: str = ""
    thumbnail_bytes: int = 0
    dataset: str
    root: str = ""
    embedded: str
    labels: str = ""
    encoder_name: str
    encoder_source: str
    encoder_fingerprint: str
    trained_on: str
    dictionary: str
    dictionary_fingerprint: str
    templates: tuple[str, ...]
    coder: CoderConfig
    dense_factory: str = "Flat"
    exclude: tuple[str, ...] = ()
    dense_recall: float = 0.95
    residual: str = ""
    residual_fingerprint: str = ""
    keeps_vectors: bool = True

    @property
    def width(self) -> int:
        """Numbers in a row of the vectors' file."""
        return self.d if self.keeps_vectors else 0

    def need_vectors(self, folder: Path | str) -> None:
        """Raises `CallError` where the index keeps no embeddings, for what cannot do without them; folder: its name."""
        if not self.keeps_vectors:
            raise CallError(
                f"this needs exact embeddings, and {folder} keeps none (it was built with --no-vectors): search in "
                "mode sparse, or build the index anew without --no-vectors"
            )

    def refuse_another(self, encoder: TextEncoder, folder: Path | str) -> None:
        """Raises `SparsightError` with both names where an encoder is not the one that the index was built with."""
        if encoder.fingerprint != self.encoder_fingerprint:
            raise SparsightError(
                f"{folder} was built with encoder {self.encoder_name} ({self.encoder_fingerprint[:12]}), not with "
                f"{encoder.name} ({encoder.fingerprint[:12]}); name that one with --encoder, or rebuild the index"
            )

    @property
    def version(self) -> str:
        """A short text that is another for every generation and every rebuild: addresses of thumbnails carry it."""
        counts, files = (self.generation, self.n, self.next_id), (self.vectors_file, self.thumbnails_file)
        return hashlib.sha256(repr((*counts, *files, self.dictionary_fingerprint)).encode()).hexdigest()[:12]

    @property
    def dead(self) -> int:
        """Rows of the vectors' file that are of removed pictures."""
        return self.vector_rows - self.n

    def rows(self) -> dict[str, str]:
        """Key and text of each row of the table."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {"format": FORMAT, "coder": asdict(self.coder), "l1": self.coder.l1}
        return {key: v if isinstance(v, str) else json.dumps(v) for key, v in values.items()}


COUNTS = (  # whole numbers; those that an export leaves out follow from the other tables
    "generation", "n", "d", "m", "nnz", "next_id", "vector_rows", "vector_block", "thumbnail_bytes",
)  # fmt: skip
FILES = ("vectors_file", "thumbnails_file")
LATER = (  # what the first indexes of this format do not say
    "exclude", "dense_recall", "residual", "residual_fingerprint", "keeps_vectors",
)  # fmt: skip
DERIVED = ("format", "generation", "nnz", "l1", "vector_rows", "vector_block", "thumbnail_bytes", *FILES)


def parse_meta(rows: Mapping[str, str], *, without: tuple[str, ...] = ()) -> IndexMeta:
    """Parses the rows of a table `meta`; `without`: keys that may be missing and then have their default.

    Raises `MetaError` for the first key that is missing or wrong.
    """
    values: dict[str, Any] = {}
    for field in fields(IndexMeta):
        key = field.name
        if key not in rows:
            if key in without:
                continue
            raise MetaError(f"it has no {key}")
        values[key] = _PARSERS.get(key, _text)(key, rows[key])
    return IndexMeta(**values)


def _text(key: str, text: str) -> str:
    return text


def count_of(text: str | None) -> int | None:
    """A whole number that an index can have; None for anything else."""
    if text is None or not (text.isascii() and text.isdecimal() and len(text) <= 18):
        return None
    return int(text)


def _count(key: str, text: str) -> int:
    number = count_of(text)
    if number is None or (number >= MOST and key != "thumbnail_bytes"):
        raise MetaError(f"its {key} is {text[:40]!r}, no whole number that an index can have")
    return number


def _file(key: str, text: str) -> str:
    if text in ("", ".", "..") or set(text) & set("/\\\0"):
        raise MetaError(f"its {key} is {text[:40]!r}, no name of a file in its folder")
    return text


def _json(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise MetaError(f"its {key} is {text[:40]!r}") from e


def _texts(key: str, text: str) -> tuple[str, ...]:
    found = _json(key, text)
    if not isinstance(found, list) or not all(isinstance(part, str) for part in found):
        raise MetaError(f"its {key} are no list of texts")
    return tuple(found)


def parse_coder(key: str, text: str) -> CoderConfig:
    """The coder's settings from JSON; raises `MetaError` for any that the coder does not have."""
    found, defaults = _json(key, text), asdict(CoderConfig())
    if isinstance(found, dict):
        found.pop("max_concepts", None)  # earlier versions wrote it, always null
    if not isinstance(found, dict) or not set(found) <= set(defaults):
        raise MetaError("it names no settings of the coder")
    for name, value in found.items():
        if not isinstance(value, int | float | (type(None) if defaults[name] is None else int)):
            raise MetaError(f"its coder's {name} is {value!r}")
    return CoderConfig(**found)


def _share(key: str, text: str) -> float:
    number = _json(key, text)
    if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number <= 1:
        raise MetaError(f"its {key} is {text[:40]!r}, no number above 0 and up to 1")
    return float(number)


def _flag(key: str, text: str) -> bool:
    if not isinstance(found := _json(key, text), bool):
        raise MetaError(f"its {key} is {text[:40]!r}, neither true nor false")
    return found


def _description(key: str, text: str) -> str:
    if text and not SYNTAX.fullmatch(text):
        raise MetaError(f"its {key} is {text[:40]!r}, no product quantiser")
    return text


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    **dict.fromkeys(COUNTS, _count),
    **dict.fromkeys(FILES, _file),
    "templates": _texts,
    "exclude": _texts,
    "coder": parse_coder,
    "dense_recall": _share,
    "residual": _description,
    "keeps_vectors": _flag,
}
