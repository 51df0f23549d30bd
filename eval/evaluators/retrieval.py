"""Picture → picture retrieval within one set: is what is found right, and is it what the dense index finds?"""

from __future__ import annotations

import numpy as np

WIDTH = 64  # scores of which only the largest is looked at when a row's threshold is sought


def neighbours(
    A: np.ndarray, k: int = 10, block: int = 1000, *, queries: np.ndarray | None = None, every: int = 1
) -> np.ndarray:
    """For each row of A (n, d) the ids (n, k) of the k other rows with the largest inner product, best first.

    queries (n, d): other vectors of the same pictures, which ask in place of the rows of A. every: each how-manieth row
    asks. Ties go to the lower id. Memory: block × n scores. With fewer than k other rows k is their number.

    >>> neighbours(np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]]), k=1).tolist()
    [[1], [2], [1]]
    """
    Q, k, asking = A if queries is None else queries, min(k, len(A) - 1), range(0, len(A), every)
    found = np.empty((len(asking), k), np.int64)
    for start in range(0, len(asking), block):
        rows = np.array(asking[start : start + block])
        scores = Q[rows[0] : rows[-1] + 1 : every] @ A.T
        scores[np.arange(len(rows)), rows] = -np.inf
        found[start : start + block] = largest(scores, k)
    return found


def largest(scores: np.ndarray, k: int) -> np.ndarray:
    """The places (b, k) of each row's k largest scores (b, n), largest first, ties to the lower place.

    The k-th largest of the maxima of groups of columns is a bound that at least k scores reach. Only those that reach
    it are sorted.

    >>> largest(np.array([[0.3, 0.9, 0.1, 0.9]]), 2).tolist()
    [[1, 3]]
    """
    b, n = scores.shape
    width = min(max(n // (8 * max(k, 1)), 1), WIDTH)
    tops = scores[:, : n // width * width].reshape(b, -1, width).max(2)
    bound = np.partition(tops, tops.shape[1] - k, axis=1)[:, tops.shape[1] - k, None] if k else np.full((b, 1), np.inf)
    rows, places = np.nonzero(scores >= bound)
    order = np.lexsort((places, -scores[rows, places], rows))
    starts = np.searchsorted(rows, np.arange(b))
    return places[order[starts[:, None] + np.arange(k)]]


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """The mean of `shared`."""
    return float(shared(found, wanted).mean(dtype=np.float64))


def agreeing(found: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """P@k (n,) float32: the share of each row's found pictures (n, k) that are of its own group (n,), a class or a
    term.

    >>> agreeing(np.array([[1], [0], [1]]), np.array([7, 7, 5])).tolist()
    [1.0, 1.0, 0.0]
    """
    return (groups[found] == groups[:, None]).mean(1, dtype=np.float32)


def shared(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """recall@k (n,) float32: the share of the ids in each row of `wanted` (n, k) that stand in the same row of `found`.

    >>> shared(np.array([[1, 2], [0, 2]]), np.array([[2, 1], [2, 3]])).tolist()
    [1.0, 0.5]
    """
    return (wanted[:, :, None] == found[:, None, :]).any(2).mean(1, dtype=np.float32)
