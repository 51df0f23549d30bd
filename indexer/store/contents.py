"""The parts that an index is made of, as arrays: what a build hands to the writer, and what changes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import sparse

from indexer.residual import Coded, Quantiser
from indexer.store.meta import IndexMeta
from indexer.store.vectors import RowSource
from training.encoders import Means

if TYPE_CHECKING:
    from indexer.coding import Dictionary


class ImageRow(NamedTuple):
    """A row of `images`: what is known of one picture. None stands where something is not known."""

    image_id: int
    path: str
    split: str | None = None
    label: str | None = None
    term: str | None = None
    content_hash: str | None = None
    file_bytes: int | None = None
    file_changed: int | None = None
    l1: float | None = None
    gap: float | None = None


class Concept(NamedTuple):
    """A row of `concepts`: parent is the class that it belongs to; images how many pictures it helps to make up."""

    id: int
    name: str
    aliases: tuple[str, ...]
    parent: str | None
    images: int


class Skip(NamedTuple):
    """A file that was not taken, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Described:
    """What is known of n pictures beside their embeddings, as lists that are n long.

    paths; splits, labels, terms, hashes (SHA-256, hexadecimal), sizes (bytes), changed (ns since 1970) of the files:
    None where not known, and an empty list where that holds for all; thumbnails: JPEG bytes, None where there is none.
    """

    paths: Sequence[str]
    splits: Sequence[str | None] = ()
    labels: Sequence[str | None] = ()
    terms: Sequence[str | None] = ()
    hashes: Sequence[str | None] = ()
    sizes: Sequence[int | None] = ()
    changed: Sequence[int | None] = ()
    thumbnails: Iterable[bytes | None] = ()

    @classmethod
    def of_rows(cls, rows: Sequence[ImageRow], thumbnails: Iterable[bytes | None]) -> Described:
        """What rows of `images` say of their pictures, whose thumbnails these are."""
        return cls(
            paths=[row.path for row in rows],
            splits=[row.split for row in rows],
            labels=[row.label for row in rows],
            terms=[row.term for row in rows],
            hashes=[row.content_hash for row in rows],
            sizes=[row.file_bytes for row in rows],
            changed=[row.file_changed for row in rows],
            thumbnails=thumbnails,
        )

    def columns(self) -> dict[str, Sequence]:
        """The columns of `images` that they are."""
        nothing = [None] * len(self.paths)
        return {
            "path": self.paths,
            "split": self.splits or nothing,
            "label": self.labels or nothing,
            "term": self.terms or nothing,
            "content_hash": self.hashes or nothing,
            "file_bytes": self.sizes or nothing,
            "file_changed": self.changed or nothing,
        }


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """n pictures: X (n, d) unit rows, W (n, m) CSR codes, l1 and gap (n,) of the codes, and what is known of them.

    residuals: what W D leaves of X, coded; None in an index without. X may have no columns where no vectors are kept.
    """

    X: RowSource
    W: sparse.csr_matrix
    l1: np.ndarray
    gap: np.ndarray
    described: Described
    residuals: Coded | None = None

    def __len__(self) -> int:
        return len(self.X)


@dataclass(frozen=True)
class Classes:
    """Class names, and T (c, d): their embeddings, unit rows."""

    names: Sequence[str]
    T: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that an index holds.

    ids (n,) ascending: the pictures' where they are not 0 … n − 1. The counts and the files' names in `meta` are the
    writer's to fill in, but for next_id, which may be larger than the largest id asks for. means: what was subtracted
    from the embeddings of each modality, if anything. quantiser: of the residuals, if there are any.
    """

    meta: IndexMeta
    pictures: Pictures
    dictionary: Dictionary
    classes: Classes
    means: Means | None = None
    skipped: Sequence[Skip] = ()
    ids: np.ndarray | None = None
    quantiser: Quantiser | None = None


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Where a picture's file lies now, and what follows from that."""

    path: str
    split: str | None
    label: str | None


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is to be done to an index, all of it at once.

    removed: ids · added: pictures, coded against the index's dictionary · moved: id → its new place · seen: id → bytes
    and time of change of a file that was read and holds what it held · skipped: what was not taken, in place of what
    was said of these paths before · classes: those to add · exclude: its patterns from now on, or None.
    """

    removed: Sequence[int] = ()
    added: Pictures | None = None
    moved: Mapping[int, Moved] = field(default_factory=dict)
    seen: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    skipped: Sequence[Skip] = ()
    classes: Classes | None = None
    exclude: tuple[str, ...] | None = None

    @property
    def is_empty(self) -> bool:
        added = self.added is not None and len(self.added)
        parts = (self.removed, added, self.moved, self.seen, self.skipped, self.classes, self.exclude is not None)
        return not any(parts)
