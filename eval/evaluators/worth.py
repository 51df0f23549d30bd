"""What is a representation worth? The same figures for codes, for every penalty, and for every baseline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from eval.evaluators.accuracy import predicted
from eval.evaluators.memory import compact_bytes, compacted
from eval.evaluators.retrieval import neighbours, precision, recall


@dataclass(frozen=True, kw_only=True)
class Worth:
    """Figures of one representation A (n, d) of the same pictures.

    cosine_mean: of each row with its embedding. class_precision, term_precision: P@10 of the nearest other pictures,
    by class and by search term (None where no term is known). recall_of_dense: recall@10 of dense neighbours.
    """

    accuracy: float
    cosine_mean: float
    class_precision: float
    recall_of_dense: float
    term_precision: float | None = None


@dataclass(frozen=True)
class Judge:
    """Judges representations of the pictures with embeddings X (n, d), given classes T (c, d) and labels (n,).

    terms (n,): the search term of each picture as a number, or None.
    """

    X: np.ndarray
    T: np.ndarray
    labels: np.ndarray
    terms: np.ndarray | None = None
    k: int = 10

    @cached_property
    def dense_neighbours(self) -> np.ndarray:
        """(n, k)."""
        return neighbours(self.X, self.k)

    def __call__(self, A: np.ndarray) -> Worth:
        """What A (n, d) is worth in place of X.

        >>> X = np.eye(3, dtype=np.float32)
        >>> Judge(X, T=X, labels=np.array([0, 1, 1]))(X).accuracy
        0.6666666666666666
        """
        found = neighbours(A, self.k)
        return Worth(
            accuracy=float((predicted(A, self.T) == self.labels).mean()),
            cosine_mean=float(row_cosines(self.X, A).mean()),
            class_precision=precision(found, self.labels),
            recall_of_dense=recall(found, self.dense_neighbours),
            term_precision=None if self.terms is None else precision(found, self.terms),
        )


@dataclass(frozen=True, kw_only=True)
class Compact(Worth):
    """The index's codes as the compact layout gives them back."""

    bytes_per_image: float


def judge_compact(W: sparse.csr_matrix, D: np.ndarray, judge: Judge) -> Compact:
    """Judges codes W (n, m) over D (m, d) after the compact layout has rounded their weights."""
    worth = judge(reconstruct(compacted(W), D))
    return Compact(bytes_per_image=compact_bytes(W) / W.shape[0], **vars(worth))


def reconstruct(W: sparse.csr_matrix, D: np.ndarray) -> np.ndarray:
    """W D (n, d) float32."""
    return np.asarray(W @ D, np.float32)


def row_cosines(X: np.ndarray, R: np.ndarray) -> np.ndarray:
    """cos(x_i, r_i) (n,); 0 where a row is zero.

    >>> row_cosines(np.eye(2), np.array([[3.0, 0.0], [0.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    norms = np.linalg.norm(X, axis=1) * np.linalg.norm(R, axis=1)
    return (X * R).sum(1) / np.maximum(norms, 1e-12)
