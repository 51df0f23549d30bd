"""Crutches: what a class is told apart by although it should not matter.

Marks come from the pixels (`marks.py`). Of the concepts one is a crutch where the class's pictures have it much more
often than others, or are given the class for it, while its meaning is not the class's: it belongs to another class, or,
where concepts belong to none, is not among those nearest to the class's text. How much a class leans on a concept is
exact: the concept is taken out of all codes, w → w′, and each picture is given its class anew by (w′ D)·V. V are the
classes' texts, or, where these tell the classes apart worse, the classes as ridge regression on w D finds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from eval.audit.marks import CHECKED, Box, Covered, Encode, cover, find_mark
from eval.audit.subject import Shown, Subject
from training.errors import SparsightError

FEWEST = 12  # pictures of a class
NEAR = 0.05  # of the concepts, those nearest to a class's text mean the class
OFTEN, LOST = 0.15, 0.01  # a concept is a crutch from this much more often, or from this loss of accuracy on
LEANS = 3  # concepts that are told of each class
SHOWN = 24  # pictures with and without it, and changed ones, that a finding names
BLOCK = 1 << 14


@dataclass(frozen=True)
class Crutch:
    """What a class is told apart by.

    what: `mark` or `concept`; name: the concept; box: the mark's place; share, others: of the class's pictures, and of
    others, that have it; accuracy, without: of the class by its concepts, as it is and without this one; changed:
    pictures that are then given another class; having, lacking: pictures of the class with and without it; strangers:
    pictures of other classes that have it; covered: what covering a mark does; unconfirmed: why that is not known.
    """

    what: str
    label: str
    name: str | None
    box: Box | None
    score: float
    share: float
    others: float
    accuracy: float | None
    without: float | None
    changed: list[Shown]
    having: list[Shown]
    lacking: list[Shown]
    strangers: list[Shown]
    covered: Covered | None
    unconfirmed: str | None


@dataclass(frozen=True)
class Lean:
    """A concept that a class hangs on: the share of the class's pictures that have it, the accuracy that it loses
    without it, and whether the concept means the class."""

    name: str
    share: float
    loss: float
    means_it: bool


@dataclass(frozen=True)
class Leaning:
    """A class of n pictures, its accuracy by concepts, and what it leans on, the most first."""

    label: str
    n: int
    accuracy: float
    by: str
    concepts: list[Lean]


class Decisions:
    """The classes that the labelled pictures of an index are given by their codes, with and without each concept.

    rows (k,): their places; y (k,): their classes; V (c, d): the classes' vectors; by: where these come from.
    """

    def __init__(self, subject: Subject):
        self.rows = np.flatnonzero(subject.labels >= 0)
        self.y, self.W, self.D = subject.labels[self.rows], subject.W[self.rows], subject.D
        self.c = len(subject.classes)
        ways = {"text": subject.T, "labels": self._fitted()}
        right = {by: float((self._scores(V).argmax(1) == self.y).mean()) for by, V in ways.items()}
        self.by = max(right, key=lambda by: right[by])
        self.V = ways[self.by]

    def _fitted(self) -> np.ndarray:
        """V (c, d): ridge regression of the classes on w D."""
        R = self.W @ self.D
        Y = np.zeros((len(R), self.c), np.float32)
        Y[np.arange(len(R)), self.y] = 1
        return np.linalg.solve(R.T @ R + np.eye(R.shape[1]), R.T @ (Y - Y.mean(0))).T

    def _scores(self, V: np.ndarray) -> np.ndarray:
        return self.W @ (self.D @ V.T)

    @cached_property
    def columns(self) -> sparse.csc_matrix:
        """The codes, by concept."""
        return self.W.tocsc()

    @cached_property
    def given(self) -> np.ndarray:
        """(k,) the class that each picture is given."""
        return self._scores(self.V).argmax(1)

    @cached_property
    def changes(self) -> sparse.csc_matrix:
        """(k, m): by a picture's concept, 1 + the class that it is given without it, where that is another one."""
        of_class, S = self.D @ self.V.T, self._scores(self.V)
        entries = self.W.tocoo()
        now = np.zeros(entries.nnz, np.int32)
        for start in range(0, entries.nnz, BLOCK):
            i, j, w = (a[start : start + BLOCK] for a in (entries.row, entries.col, entries.data))
            best = (S[i] - w[:, None] * of_class[j]).argmax(1)
            now[start : start + BLOCK] = np.where(best == self.given[i], 0, best + 1)
        kept = now > 0
        return sparse.csc_matrix((now[kept], (entries.row[kept], entries.col[kept])), shape=self.W.shape)

    def losses(self) -> np.ndarray:
        """(c, m): of each class's accuracy, what it loses when a concept is taken out of all codes."""
        found = self.changes.tocoo()
        own, after = self.y[found.row], found.data - 1
        change = (self.given[found.row] == own).astype(int) - (after == own)
        lost = np.zeros((self.c, self.W.shape[1]))
        np.add.at(lost, (own, found.col), change)
        return lost / np.maximum(np.bincount(self.y, minlength=self.c), 1)[:, None]


def find_crutches(subject: Subject, encode: Encode | None = None, seed: int = 0) -> tuple[list[Crutch], list[Leaning]]:
    """The crutches of all classes, the strongest first, and what each class leans on.

    encode: uint8 pictures → embeddings, to confirm marks; without it they are told unconfirmed. Raises `SparsightError`
    where fewer than two classes have FEWEST pictures.
    """
    counts = np.bincount(subject.labels[subject.labels >= 0], minlength=len(subject.classes))
    judged = np.flatnonzero(counts >= FEWEST)
    if len(judged) < 2:
        raise SparsightError(
            f"{len(judged)} class(es) have {FEWEST} pictures or more: two are needed to tell what one leans on"
        )
    decisions = Decisions(subject)
    own = meaning(subject)
    losses = decisions.losses()
    has = _has(decisions.W)
    shares = np.stack([np.asarray(has[decisions.y == k].mean(0)).ravel() for k in range(decisions.c)])
    seen, rgb = subject.labelled_pixels()
    found = [c for k in judged if (c := _mark(subject, seen, rgb, int(k), encode, seed)) is not None]
    leaning = []
    for k in judged.tolist():
        others = np.asarray(has[decisions.y != k].mean(0)).ravel()
        found += [
            _concept(subject, decisions, k, j, shares[k, j], others[j], losses[k, j])
            for j in _crutches_of(shares[k], others, losses[k], own[k], int(counts[k]))
        ]
        leaning.append(_leaning(subject, decisions, k, shares[k], losses[k], own[k]))
    return sorted(found, key=lambda crutch: -crutch.score), leaning


def meaning(subject: Subject) -> np.ndarray:
    """(c, m) bool: which concepts mean each class."""
    c, m = len(subject.classes), len(subject.concepts)
    if (subject.parents >= 0).any():
        return subject.parents == np.arange(c)[:, None]
    S, few = subject.T @ subject.D.T, max(1, round(NEAR * m))
    least = np.partition(S, m - few, axis=1)[:, m - few]
    return least[:, None] <= S


def _has(W: sparse.csr_matrix) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.ones(W.nnz, np.float32), W.indices, W.indptr), shape=W.shape)


def _crutches_of(shares: np.ndarray, others: np.ndarray, losses: np.ndarray, own: np.ndarray, n: int) -> list[int]:
    """The concepts that are crutches of a class of n pictures, chance allowed for."""
    chance = 2 * np.sqrt(np.maximum(shares * (1 - shares), 1 / n) / n)
    often = shares - others - chance >= OFTEN
    lost = (losses - 2 * np.sqrt(np.maximum(losses, 0) / n) > 0) & (losses >= LOST)
    return np.flatnonzero((often | lost) & ~own).tolist()


def _concept(
    subject: Subject, decisions: Decisions, k: int, j: int, share: float, others: float, loss: float
) -> Crutch:
    rows, mine = decisions.rows, decisions.y == k
    with_it = np.zeros(len(rows), bool)
    with_it[decisions.columns[:, j].indices] = True
    changed = np.zeros(len(rows), bool)
    changed[decisions.changes[:, j].indices] = True
    accuracy = float((decisions.given[mine] == k).mean())
    return Crutch(
        what="concept",
        label=subject.classes[k],
        name=subject.names[j],
        box=None,
        score=float(max(share - others, loss)),
        share=float(share),
        others=float(others),
        accuracy=accuracy,
        without=accuracy - float(loss),
        changed=_some(subject, rows[changed & mine]),
        having=_some(subject, rows[with_it & mine]),
        lacking=_some(subject, rows[~with_it & mine]),
        strangers=_some(subject, rows[with_it & ~mine]),
        covered=None,
        unconfirmed=None,
    )


def _mark(
    subject: Subject, places: np.ndarray, rgb: np.ndarray, k: int, encode: Encode | None, seed: int
) -> Crutch | None:
    mine = subject.labels[places] == k
    mark = find_mark(rgb, mine, seed)
    if mark is None:
        return None
    drawn = np.random.default_rng(seed).permutation(places[mark.has & mine])[:CHECKED]
    covered: Covered | None = None
    unconfirmed: str | None = "no encoder was given"
    if encode is not None and len(drawn):
        try:
            covered = cover(subject.pictures_of(drawn), drawn, mark.box, subject.X, subject.labels == k, encode)
            unconfirmed = None
        except SparsightError as e:
            unconfirmed = str(e)
    return Crutch(
        what="mark",
        label=subject.classes[k],
        name=None,
        box=mark.box,
        score=mark.excess,
        share=float(mark.has[mine].mean()),
        others=float(mark.has[~mine].mean()),
        accuracy=None,
        without=None,
        changed=[],
        having=_some(subject, places[mark.has & mine]),
        lacking=_some(subject, places[~mark.has & mine]),
        strangers=_some(subject, places[mark.has & ~mine]),
        covered=covered,
        unconfirmed=unconfirmed,
    )


def _some(subject: Subject, places: np.ndarray) -> list[Shown]:
    return [subject.shown(int(i)) for i in places[:SHOWN]]


def _leaning(
    subject: Subject, decisions: Decisions, k: int, shares: np.ndarray, losses: np.ndarray, own: np.ndarray
) -> Leaning:
    order = np.lexsort((-shares, -losses))[:LEANS]
    mine = decisions.y == k
    return Leaning(
        label=subject.classes[k],
        n=int(mine.sum()),
        accuracy=float((decisions.given[mine] == k).mean()),
        by=decisions.by,
        concepts=[Lean(subject.names[j], float(shares[j]), float(losses[j]), bool(own[j])) for j in order],
    )
