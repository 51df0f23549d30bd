"""What are the index's codes like: how right, how small, how close to the embeddings, how well solved?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from eval.evaluators.accuracy import accuracy_of
from eval.evaluators.worth import Compact, row_cosines
from indexer.config import CoderConfig


@dataclass(frozen=True)
class CodeFigures:
    """accuracy, ci95: of the class by the code. l1: the penalty, l1_relative: whether as a fraction of λ_max.

    nnz_mean, nnz_max: concepts a picture. empty: codes without any. cosine_mean: of x and w D. max_relative_gap: the
    largest duality gap of a code, before least squares. compact: what the compact layout gives back.
    """

    accuracy: float
    ci95: tuple[float, float]
    l1: float
    l1_relative: bool
    nnz_mean: float
    nnz_max: int
    empty: int
    cosine_mean: float
    max_relative_gap: float
    compact: Compact


def code_figures(
    X: np.ndarray,
    R: np.ndarray,
    W: sparse.csr_matrix,
    right: np.ndarray,
    gap: np.ndarray,
    coder: CoderConfig,
    compact: Compact,
) -> CodeFigures:
    """X (n, d) embeddings, W (n, m) their codes, R = W D (n, d); right (n,) bool; gap (n,) of each code."""
    counts = np.diff(W.indptr)
    return CodeFigures(
        **vars(accuracy_of(right)),
        l1=coder.l1,
        l1_relative=coder.relative,
        nnz_mean=float(counts.mean()),
        nnz_max=int(counts.max()),
        empty=int((counts == 0).sum()),
        cosine_mean=float(row_cosines(X, R).mean()),
        max_relative_gap=float(gap.max()),
        compact=compact,
    )
