"""What a report is about: the labelled pictures of one split, read from the store once, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from eval.evaluators import Picture
from indexer.store import Concept, ImageRow, IndexMeta, Store
from training.errors import SparsightError

ALL = "all labelled"  # in place of a split's name
ENOUGH = 10_000  # pictures outside the split from which the quantisers are trained on those


@dataclass(frozen=True, kw_only=True)
class Subject:
    """n labelled pictures of one split, and the index that they stand in.

    X (n, d) embeddings; W (n, m) codes over D (m, d); T (c, d) the classes; labels (n,) class ids; gap (n,) of each
    code. outside (k, d): the embeddings of the index's other pictures. W_all: the codes of all of its pictures. disk:
    bytes by file and table.
    """

    meta: IndexMeta
    split: str
    X: np.ndarray
    W: sparse.csr_matrix
    D: np.ndarray
    T: np.ndarray
    labels: np.ndarray
    gap: np.ndarray
    classes: list[str]
    concepts: list[Concept]
    pictures: list[Picture]
    outside: np.ndarray
    W_all: sparse.csr_matrix
    disk: dict[str, int]

    @property
    def names(self) -> list[str]:
        """The concepts' names, by id."""
        return [concept.name for concept in self.concepts]

    @cached_property
    def terms(self) -> np.ndarray | None:
        """The search term of each picture as a number (n,), one of its own where it is not known; None without any."""
        known = [picture.term for picture in self.pictures]
        if all(term is None for term in known):
            return None
        ids = {term: i for i, term in enumerate(dict.fromkeys(known)) if term is not None}
        return np.array([-1 - i if term is None else ids[term] for i, term in enumerate(known)])

    @property
    def wanted(self) -> np.ndarray:
        """The concept that names each picture's term (n,), −1 where none does."""
        ids = {name: c.id for c in self.concepts for name in (c.name, *c.aliases)}
        return np.array([-1 if p.term is None else ids.get(p.term, -1) for p in self.pictures])

    @property
    def parents(self) -> np.ndarray:
        """The class of each concept (m,), −1 where it has none."""
        return np.array([self.classes.index(c.parent) if c.parent in self.classes else -1 for c in self.concepts])

    @property
    def train(self) -> np.ndarray:
        """What quantisers learn from (k, d): the pictures outside the split where they are enough."""
        return self.outside if len(self.outside) >= ENOUGH else self.X


def read_subject(store: Store, split: str | None = None) -> Subject:
    """Reads the labelled pictures of a split: without one, of the split "test", or all where it holds none.

    Raises `SparsightError` where there are fewer than two.
    """
    rows, known = store.images(), store.classes()
    classes = list(known.names)
    split, chosen = judged(rows, classes, split)
    if len(chosen) < 2:
        of_split = "" if split == ALL else f" of the split {split!r}"
        raise SparsightError(
            f"{store.folder} holds {len(chosen)} labelled picture(s){of_split}, too few for a report; class folders "
            "give labels: `sparsight index PATH --labels folders`"
        )
    X_all, W_all = store.embeddings(), store.codes()
    mine = [rows[i] for i in chosen]
    return Subject(
        meta=store.meta,
        split=split,
        X=X_all[chosen],
        W=W_all[chosen],
        D=store.dictionary(),
        T=known.T,
        labels=np.array([classes.index(str(row.label)) for row in mine]),
        gap=np.array([row.gap or 0.0 for row in mine]),
        classes=classes,
        concepts=store.concepts(),
        pictures=[Picture(row.image_id, row.path, row.label, row.term) for row in mine],
        outside=X_all[np.setdiff1d(np.arange(len(rows)), chosen)],
        W_all=W_all,
        disk=store.disk_bytes(),
    )


def judged(rows: Sequence[ImageRow], classes: Sequence[str], split: str | None) -> tuple[str, np.ndarray]:
    """The split to judge by, and the places of its pictures whose label is one of the classes."""
    labelled = np.array([i for i, row in enumerate(rows) if row.label in classes], np.int64)
    of_split = np.array([i for i in labelled if rows[i].split == (split or "test")], np.int64)
    return (split or "test", of_split) if split or len(of_split) else (ALL, labelled)
