"""What a report is about: the pictures of one split, the labelled ones where there are any, read from the store
once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from eval.evaluators import Picture
from indexer.store import Concept, IndexMeta, Store
from training.errors import SparsightError

ALL, UNLABELLED = "all labelled", "all"  # in place of a split's name
MOST_JUDGED = 20_000  # pictures: to compare each with all others costs their square
MOST_OUTSIDE = 20_000  # pictures that baselines learn from
ENOUGH = 10_000  # pictures outside the split from which the baselines are trained on those


@dataclass(frozen=True, kw_only=True)
class Subject:
    """n pictures of one split, and the index that they stand in.

    X (n, d) embeddings; W (n, m) codes over D (m, d); T (c, d) the classes; labels (n,) class ids, None where fewer
    than two are known; gap (n,) of each code. outside (k, d): the embeddings of the index's other pictures. W_all: the
    codes of all of its pictures. disk: bytes by file and table.
    """

    meta: IndexMeta
    split: str
    X: np.ndarray
    W: sparse.csr_matrix
    D: np.ndarray
    T: np.ndarray
    labels: np.ndarray | None
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
        """What baselines learn from (k, d): the pictures outside the split where they are enough."""
        return self.outside if len(self.outside) >= ENOUGH else self.X


def read_subject(store: Store, split: str | None = None, seed: int = 0, most: int = MOST_JUDGED) -> Subject:
    """Reads the labelled pictures of a split: without one, of the split "test", or all where it holds none.

    Where fewer than two are labelled it reads them all, without labels. Of more than `most` pictures so many are drawn
    at random, and of the others at most MOST_OUTSIDE, so that a report takes no more memory over a larger index. Raises
    `SparsightError` where there are fewer than two pictures.
    """
    known = store.classes()
    classes = list(known.names)
    split, chosen, labelled = judged(store, classes, split)
    if len(chosen) < 2:
        of_split = "" if split == UNLABELLED else f" of the split {split!r}"
        raise SparsightError(
            f"{store.folder} holds {len(chosen)} picture(s){of_split}, too few for a report; name another with "
            "--split, or `sparsight add` pictures"
        )
    others = np.setdiff1d(np.arange(len(store)), chosen)
    chosen, others = drawn(chosen, most, seed), drawn(others, MOST_OUTSIDE, seed)
    W_all = store.codes()
    mine = store.images(store.image_ids[chosen].tolist())
    return Subject(
        meta=store.meta,
        split=split,
        X=store.embeddings(chosen),
        W=W_all[chosen],
        D=store.dictionary(),
        T=known.T,
        labels=np.array([classes.index(str(row.label)) for row in mine]) if labelled else None,
        gap=np.array([row.gap or 0.0 for row in mine]),
        classes=classes,
        concepts=store.concepts(),
        pictures=[Picture(row.image_id, row.path, row.label, row.term) for row in mine],
        outside=store.embeddings(others),
        W_all=W_all,
        disk=store.disk_bytes(),
    )


def judged(store: Store, classes: Sequence[str], split: str | None) -> tuple[str, np.ndarray, bool]:
    """The split to judge by, the places (k,) of its pictures whose label is one of the classes, and True; where these
    are fewer than two, the places of all of its pictures, and False."""
    places = "SELECT row_number() OVER (ORDER BY image_id) - 1 AS place, split, label FROM images"
    found = store.columns(
        "SELECT place, coalesce(split = ?, false) AS mine, "
        f"coalesce(label IN (SELECT unnest(?::VARCHAR[])), false) AS known FROM ({places}) ORDER BY place",
        [split or "test", list(classes)],
    )
    place, mine, known = found["place"].astype(np.int64), found["mine"].astype(bool), found["known"].astype(bool)
    choices = [(split or "test", mine & known, True), (split or "test", mine, False)]
    if split is None:
        choices = [choices[0], (ALL, known, True), (UNLABELLED, np.ones(len(place), bool), False)]
    name, chosen, labelled = next((choice for choice in choices if choice[1].sum() >= 2), choices[-1])
    return name, place[chosen], labelled


def drawn(places: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of some places, drawn at random, in their order."""
    if len(places) <= most:
        return places
    return np.sort(np.random.default_rng(seed).choice(places, most, replace=False))
