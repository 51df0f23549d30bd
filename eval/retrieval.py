"""Picture → picture retrieval within one set: is what is found right, and is it what the dense index finds?"""

from __future__ import annotations

import numpy as np


def neighbours(A: np.ndarray, k: int = 10, block: int = 1000) -> np.ndarray:
    """For each row of A (n, d) the ids (n, k) of the k other rows with the largest inner product, best first.

    Ties go to the lower id. Memory: block × n scores.
    """
    n = len(A)
    k = min(k, n - 1)
    found = np.empty((n, k), np.int64)
    for start in range(0, n, block):
        scores = A[start : start + block] @ A.T
        rows = np.arange(len(scores))
        scores[rows, start + rows] = -np.inf
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        top.sort(axis=1)
        order = np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable")
        found[start : start + block] = np.take_along_axis(top, order, 1)
    return found


def precision(found: np.ndarray, groups: np.ndarray) -> float:
    """Mean share of each row's found pictures (n, k) that are of its own group (n,), a class or a term."""
    return float((groups[found] == groups[:, None]).mean())


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Mean share of the ids in each row of a (n, k) that stand in the same row of b (n, k) too."""
    return float(
        np.mean([len(np.intersect1d(x, y, assume_unique=True)) for x, y in zip(a, b, strict=True)]) / a.shape[1]
    )


def retrieval(A: np.ndarray, labels: np.ndarray, terms: np.ndarray | None, dense: np.ndarray) -> dict[str, float]:
    """The figures of one representation A (n, d) beside the dense neighbours (n, k); terms (n,) where known."""
    found = neighbours(A, dense.shape[1])
    figures = {"class_precision": precision(found, labels), "overlap_with_dense": overlap(found, dense)}
    return figures if terms is None else {**figures, "term_precision": precision(found, terms)}
