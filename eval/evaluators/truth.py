"""Are the concepts true? Each against the search term in the pictures' file names: precision and recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from eval.evaluators.accuracy import wilson
from eval.evaluators.concepts import SYNONYMS
from eval.evaluators.intervals import Estimate, Interval, estimate

ENOUGH = 10  # pictures of a term from which its concept counts in the means over concepts


@dataclass(frozen=True)
class Rate:
    """A share of so many cases, and its 95 % interval (Wilson)."""

    value: float
    ci95: Interval
    of: int


@dataclass(frozen=True)
class OfConcept:
    """One concept. pictures: found under its name; active: in whose code it stands.

    precision: the share of the active that were found under its name; recall: the share of those found under its name
    in which it is active. With synonyms: under its name or one that means nearly the same; in which it or such a one is
    active. Precision is None where it is active nowhere.
    """

    name: str
    pictures: int
    active: int
    precision: float | None
    recall: float
    precision_synonyms: float | None
    recall_synonyms: float


@dataclass(frozen=True)
class Truth:
    """Over pictures: the share of active concepts that name their picture's term (precision), and of pictures whose
    term is active (recall). Over concepts: the means over those with at least ENOUGH pictures. by_concept: all of them,
    those with most pictures first. concepts: how many these means are over; random_precision: what concepts that were
    dealt out at random, as often, would have.
    """

    precision: Rate
    recall: Rate
    precision_synonyms: Rate
    recall_synonyms: Rate
    random_precision: float
    concepts: int
    mean_precision: Estimate
    mean_recall: Estimate
    mean_precision_synonyms: Estimate
    mean_recall_synonyms: Estimate
    by_concept: list[OfConcept]


def concept_truth(
    W: sparse.csr_matrix, D: np.ndarray, wanted: np.ndarray, names: Sequence[str], seed: int = 0
) -> Truth | None:
    """W (n, m): codes over D (m, d). wanted (n,): the concept that names each picture's term, −1 where none does.

    Pictures without such a concept take no part. None where fewer than two concepts have ENOUGH pictures.
    """
    known = np.flatnonzero(wanted >= 0)
    if (np.bincount(wanted[known], minlength=len(D)) >= ENOUGH).sum() < 2:
        return None
    active = (W[known] > 0).astype(np.int64).tocsr()
    same = sparse.csr_matrix((D @ D.T >= SYNONYMS).astype(np.int64))
    of_term = sparse.csr_matrix(
        (np.ones(len(known), np.int64), (np.arange(len(known)), wanted[known])), shape=active.shape
    )
    near_term, near_active = (of_term @ same).sign(), (active @ same).sign()
    pictures, actives = _columns(of_term), _columns(active)
    exact, loose = _columns(active.multiply(of_term)), _columns(active.multiply(near_term))
    loosely_found = _columns(near_active.multiply(of_term))
    order = [j for j in np.argsort(-pictures, kind="stable") if pictures[j]]
    by_concept = [
        OfConcept(
            name=names[j],
            pictures=int(pictures[j]),
            active=int(actives[j]),
            precision=float(exact[j] / actives[j]) if actives[j] else None,
            recall=float(exact[j] / pictures[j]),
            precision_synonyms=float(loose[j] / actives[j]) if actives[j] else None,
            recall_synonyms=float(loosely_found[j] / pictures[j]),
        )
        for j in order
    ]
    enough = [c for c in by_concept if c.pictures >= ENOUGH]
    shares = pictures / len(known)
    return Truth(
        precision=rate(exact.sum(), actives.sum()),
        recall=rate(exact.sum(), len(known)),
        precision_synonyms=rate(loose.sum(), actives.sum()),
        recall_synonyms=rate(loosely_found.sum(), len(known)),
        random_precision=float(shares @ actives / max(actives.sum(), 1)),
        concepts=len(enough),
        mean_precision=estimate(np.array([c.precision or 0.0 for c in enough]), seed),
        mean_recall=estimate(np.array([c.recall for c in enough]), seed),
        mean_precision_synonyms=estimate(np.array([c.precision_synonyms or 0.0 for c in enough]), seed),
        mean_recall_synonyms=estimate(np.array([c.recall_synonyms for c in enough]), seed),
        by_concept=by_concept,
    )


def rate(hits: int, of: int) -> Rate:
    """A share with its interval; of nothing it is 0, and unknown.

    >>> rate(3, 4).value
    0.75
    """
    return Rate(float(hits) / of, wilson(int(hits), int(of)), int(of)) if of else Rate(0.0, (0.0, 1.0), 0)


def _columns(matrix: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(matrix.sum(0)).ravel()
