"""Codes, and the batches that they are made of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse


class Codes(NamedTuple):
    """W (n, m) CSR, sorted indices, weights > 0 · gap (n,) relative duality gap of each code · l1 (n,) its λ."""

    W: sparse.csr_matrix
    gap: np.ndarray
    l1: np.ndarray


class Part(NamedTuple):
    """One batch at one penalty: counts (b,), indices and data of its codes in row order, gap (b,), l1 (b,)."""

    counts: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    gap: np.ndarray
    l1: np.ndarray


def join(parts: list[Part], m: int) -> Codes:
    """Batches → Codes over m atoms, without a second copy of more than one array at a time."""
    empty = Part(*(np.zeros(0, t) for t in (np.int64, np.int32, np.float32, np.float32, np.float32)))
    counts, indices, data, gap, l1 = (np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    kind = np.int32 if indptr[-1] < 2**31 else np.int64
    W = sparse.csr_matrix((data, indices.astype(kind, copy=False), indptr.astype(kind)), shape=(len(counts), m))
    return Codes(W, gap, l1)


def penalties(l1: float, relative: bool, l1_max: np.ndarray) -> np.ndarray:
    """λ (b,) in float64 of rows whose largest correlations are l1_max; 1 where no atom correlates and any would do."""
    with np.errstate(over="ignore"):
        return np.where(l1_max > 0, np.float64(np.float32(l1)) * l1_max if relative else np.float32(l1), 1.0)
