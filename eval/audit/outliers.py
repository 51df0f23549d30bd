"""Outliers: pictures that lie far from all others, and that no concept describes.

Figures, each of which is larger the further out a picture lies: its mean cosine distance to its nearest others; the
share of its embedding that its concepts leave out, ‖x − w D‖; how far it is from the nearest concept at all, 1 −
λ_max, where λ_max = max_j x·d_j; and, where it is known, how unlike the pictures that the encoder knows it is. Each
becomes a normal score by its rank among the pictures judged, and their mean orders the pictures. What an encoder was
trained on lies closer together, and is ranked by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from eval.audit.neighbours import nearest
from eval.audit.subject import Shown, Subject
from indexer.store.familiarity import index_familiarity
from search.answers import ConceptWeight
from training.errors import SparsightError

NEAREST = 10
LISTED = 0.02  # of the pictures, the first of which are findings
FEWEST = 20  # pictures among which one can lie far out
BLOCK = 1 << 14  # rows at a time


@dataclass(frozen=True)
class Outlier:
    """A picture that lies far out.

    rarity: the share of the pictures that lie as far out or further; distance: 1 − its mean cosine with its nearest
    others; residual: ‖x − w D‖; nearest_concept, cosine: the one that it is least far from; concepts: those of its
    code; familiarity: the share of known pictures that lie as far out, None where too few are known; learnt: whether
    the encoder was trained on it.
    """

    picture: Shown
    rarity: float
    distance: float
    residual: float
    nearest_concept: str
    cosine: float
    concepts: list[ConceptWeight]
    familiarity: float | None
    learnt: bool


@dataclass(frozen=True)
class Apart:
    """For n pictures (n,): mean distance to the nearest others, ‖x − w D‖, the nearest concept and its cosine, and the
    share of known pictures that lie as far out."""

    distance: np.ndarray
    residual: np.ndarray
    concept: np.ndarray
    cosine: np.ndarray
    familiarity: np.ndarray | None


def find_outliers(subject: Subject) -> list[Outlier]:
    """The pictures that lie furthest out, the furthest first. Raises `SparsightError` where there are too few."""
    if len(subject) < FEWEST:
        raise SparsightError(
            f"there are {len(subject)} pictures: at least {FEWEST} are needed to tell what lies far out"
        )
    apart = measure(subject)
    found = []
    for learnt in (False, True):
        rows = np.flatnonzero(subject.learnt == learnt)
        if len(rows) < FEWEST:
            continue
        figures = [apart.distance[rows], apart.residual[rows], 1 - apart.cosine[rows]]
        if apart.familiarity is not None:
            figures.append(1 - apart.familiarity[rows])
        score = far_out(figures)
        order = np.argsort(-score, kind="stable")[: max(FEWEST, round(LISTED * len(rows)))]
        found += [_finding(subject, apart, int(rows[i]), (k + 1) / len(rows), learnt) for k, i in enumerate(order)]
    return found


def far_out(figures: list[np.ndarray]) -> np.ndarray:
    """The mean (n,) of the normal scores of some figures (n,), by their ranks."""
    n = len(figures[0])
    return np.mean([ndtri((rankdata(figure) - 0.5) / n) for figure in figures], axis=0)


def measure(subject: Subject) -> Apart:
    """How far each picture is from its nearest others, from what its concepts say, and from any concept."""
    n = len(subject)
    cosines, _ = nearest(subject.X, min(NEAREST, n - 1))
    residual, concept, cosine, familiarity = np.zeros(n), np.zeros(n, np.int64), np.zeros(n), np.zeros(n)
    known = index_familiarity(subject.store)
    for start in range(0, n, BLOCK):
        x = subject.X[start : start + BLOCK]
        rows = slice(start, start + len(x))
        residual[rows] = np.linalg.norm(x - subject.W[rows] @ subject.D, axis=1)
        C = x @ subject.D.T
        concept[rows] = C.argmax(1)
        cosine[rows] = C.max(1)
        if known is not None:
            familiarity[rows] = known.share(x, subject.ids[rows])
    return Apart(1 - cosines.mean(1), residual, concept, cosine, None if known is None else familiarity)


def _finding(subject: Subject, apart: Apart, place: int, rarity: float, learnt: bool) -> Outlier:
    t = subject.X[place]
    return Outlier(
        picture=subject.shown(place),
        rarity=rarity,
        distance=float(apart.distance[place]),
        residual=float(apart.residual[place]),
        nearest_concept=subject.names[apart.concept[place]],
        cosine=float(apart.cosine[place]),
        concepts=subject.parts(place, t),
        familiarity=None if apart.familiarity is None else float(apart.familiarity[place]),
        learnt=learnt,
    )
