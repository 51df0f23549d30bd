"""How many bytes do the codes take, and how many the embeddings?

Two sizes of the same codes W are told apart everywhere. The *compact layout* has 16-bit concept ids, 8-bit weights and
an 8-bit count a picture: 3 bytes a concept + 1. This is what "bytes a picture" means. *CSR* is what the reference
result counts: scipy's arrays with int32 indices, int32 indptr and float32 weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Share:
    """n pictures: their embeddings in float32, their codes in CSR, and the codes' share of the embeddings' bytes."""

    n: int
    dense_bytes: int
    sparse_csr_bytes: int
    ratio: float


@dataclass(frozen=True)
class Memory:
    """Bytes of the judged pictures in each layout, of the dictionary, and of the whole index; disk: by file and table.

    ratio: sparse_csr_bytes / dense_bytes, as the reference result defines it. …_per_image: of one judged picture.
    """

    dense_bytes: int
    sparse_csr_bytes: int
    ratio: float
    sparse_compact_bytes: int
    dictionary_bytes: int
    dense_bytes_per_image: float
    sparse_csr_bytes_per_image: float
    sparse_compact_bytes_per_image: float
    whole_index: Share
    disk: dict[str, int]


def memory_of(W: sparse.csr_matrix, D: np.ndarray, W_all: sparse.csr_matrix, disk: dict[str, int]) -> Memory:
    """W (n, m): the codes of the judged pictures; W_all: those of the whole index; D (m, d)."""
    judged, whole = share(W, D.shape[1]), share(W_all, D.shape[1])
    return Memory(
        dense_bytes=judged.dense_bytes,
        sparse_csr_bytes=judged.sparse_csr_bytes,
        ratio=judged.ratio,
        sparse_compact_bytes=compact_bytes(W),
        dictionary_bytes=4 * D.size,
        dense_bytes_per_image=judged.dense_bytes / judged.n,
        sparse_csr_bytes_per_image=judged.sparse_csr_bytes / judged.n,
        sparse_compact_bytes_per_image=compact_bytes(W) / judged.n,
        whole_index=whole,
        disk=disk,
    )


def share(W: sparse.csr_matrix, d: int) -> Share:
    """The bytes of codes W (n, m) beside those of float32 embeddings (n, d)."""
    n = W.shape[0]
    return Share(n, 4 * n * d, csr_bytes(W), csr_bytes(W) / (4 * n * d))


def csr_bytes(W: sparse.csr_matrix) -> int:
    """Bytes of scipy's CSR arrays as the reference result counts them: int32 indices and indptr, float32 weights.

    >>> csr_bytes(sparse.csr_matrix(np.array([[0, 0.5], [0.2, 0.1]])))
    36
    """
    return 4 * W.nnz + 4 * W.nnz + 4 * (W.shape[0] + 1)


def compact_bytes(W: sparse.csr_matrix) -> int:
    """Bytes of the same codes in the compact layout: for each weight a concept and a byte, for each picture a count.

    A concept's number takes the bytes that m concepts need, but two at least; a count those of the longest code.

    >>> compact_bytes(sparse.csr_matrix(np.array([[0, 0.5], [0.2, 0.1]])))
    11
    """
    longest = int(np.diff(W.indptr).max(initial=0))
    return (max(2, _bytes_of(W.shape[1] - 1)) + 1) * W.nnz + _bytes_of(longest) * W.shape[0]


def _bytes_of(number: int) -> int:
    return max(1, -(-int(number).bit_length() // 8))


def compacted(W: sparse.csr_matrix) -> sparse.csr_matrix:
    """What the compact layout gives back: weights rounded to multiples of max(W) / 255, none to 0.

    >>> compacted(sparse.csr_matrix(np.array([[0.0001, 2.55]], np.float32))).toarray().round(4)
    array([[0.01, 2.55]], dtype=float32)
    """
    step = W.data.max(initial=0.0) / 255 or 1.0
    data = np.maximum(np.rint(W.data / step), 1) * step
    return sparse.csr_matrix((data.astype(np.float32), W.indices, W.indptr), shape=W.shape)
