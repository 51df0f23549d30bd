"""Figures from arrays: accuracy and its interval, paired comparison, bytes, what the concepts name. No files here."""

from __future__ import annotations

import numpy as np
from scipy import sparse, stats


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, 1927)."""
    interval = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test that two classifiers err equally often; a, b (n,) bool: correct."""
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def csr_bytes(W: sparse.csr_matrix) -> int:
    """Bytes of scipy's CSR arrays as the reference result counts them: int32 indices and indptr, float32 data."""
    return 4 * W.nnz + 4 * W.nnz + 4 * (W.shape[0] + 1)


def compact_bytes(W: sparse.csr_matrix) -> int:
    """The same codes with 16-bit concept ids, 8-bit weights and an 8-bit count a picture."""
    return 3 * W.nnz + W.shape[0]


def compacted(W: sparse.csr_matrix) -> sparse.csr_matrix:
    """What that compact layout gives back: weights rounded to multiples of max(W) / 255, none to 0."""
    step = W.data.max(initial=0.0) / 255 or 1.0
    data = np.maximum(np.rint(W.data / step), 1) * step
    return sparse.csr_matrix((data.astype(np.float32), W.indices, W.indptr), shape=W.shape)


def reconstruct(W: sparse.csr_matrix, D: np.ndarray) -> np.ndarray:
    """W D (n, d)."""
    return np.asarray(W @ D, np.float32)


def row_cosines(X: np.ndarray, R: np.ndarray) -> np.ndarray:
    """cos(x_i, r_i) (n,); 0 where a row is zero."""
    norms = np.linalg.norm(X, axis=1) * np.linalg.norm(R, axis=1)
    return (X * R).sum(1) / np.maximum(norms, 1e-12)


def strongest(W: sparse.csr_matrix) -> np.ndarray:
    """The concept of largest weight in each row (n,), -1 where a row is empty; the lowest id of equals."""
    top = np.full(W.shape[0], -1, np.int64)
    rows = np.repeat(np.arange(W.shape[0]), np.diff(W.indptr))
    order = np.lexsort((W.indices, -W.data, rows))
    first = np.flatnonzero(np.diff(W.indptr) > 0)
    top[first] = W.indices[order[W.indptr[first]]]
    return top
