"""What do the concepts leave out? The share of a picture's score for its own class that no concept holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from eval.evaluators.intervals import Estimate, resampled
from eval.evaluators.judge import reconstruct


@dataclass(frozen=True)
class OfClass:
    """Shares (x − wD)·t / x·t of a class. codes: by the index's codes. cone: by the nearest point of the concepts'
    cone."""

    name: str
    n: int
    codes: Estimate
    cone: Estimate


@dataclass(frozen=True)
class Outside:
    """The shares over all pictures, and for each class."""

    codes: Estimate
    cone: Estimate
    classes: list[OfClass]


def left_out(
    X: np.ndarray,
    W: sparse.csr_matrix,
    cone: sparse.csr_matrix,
    D: np.ndarray,
    T: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    seed: int = 0,
) -> Outside:
    """X (n, d) embeddings, W (n, m) the index's codes over D (m, d), cone (n, m) codes at next to no penalty; T (c, d)
    the classes, labels (n,) those of the pictures."""
    own = T[labels]
    whole = (X * own).sum(1)
    rests = [whole - (reconstruct(codes, D) * own).sum(1) for codes in (W, cone)]

    def shares(rows: np.ndarray) -> tuple[Estimate, Estimate]:
        codes, nearest = (ratio(rest[rows], whole[rows], seed) for rest in rests)
        return codes, nearest

    return Outside(
        *shares(np.arange(len(X))),
        [
            OfClass(name, len(rows), *shares(rows))
            for c, name in enumerate(classes)
            if len(rows := np.flatnonzero(labels == c))
        ],
    )


def ratio(part: np.ndarray, whole: np.ndarray, seed: int = 0) -> Estimate:
    """Σ part / Σ whole of arrays (n,), with a bootstrap interval.

    >>> ratio(np.array([1.0, 1.0]), np.array([2.0, 2.0])).value
    0.5
    """
    counts = resampled(len(part), seed)
    low, high = np.quantile((counts @ part) / (counts @ whole), (0.025, 0.975))
    return Estimate(float(part.sum() / whole.sum()), (float(low), float(high)))
