"""What are the index's codes like: how right, how small, how close to the embeddings, how well solved?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from eval.evaluators.accuracy import accuracy_of
from eval.evaluators.intervals import Interval
from eval.evaluators.judge import Judge, Worth, reconstruct, row_cosines
from eval.evaluators.memory import compact_bytes, compacted
from indexer.config import CoderConfig


@dataclass(frozen=True, kw_only=True)
class Compact(Worth):
    """The index's codes as the compact layout gives them back."""

    bytes_per_image: float


@dataclass(frozen=True, kw_only=True)
class CodeFigures:
    """accuracy, ci95: of the class by the code, None without labels. l1: the penalty, l1_relative: whether as a
    fraction of λ_max.

    nnz_mean, nnz_max: concepts a picture. empty: codes without any. cosine_mean: of x and w D. max_relative_gap: the
    largest duality gap of a code, before least squares. compact: what the compact layout gives back, judged by unit
    rows as every baseline is; searched: the same as the index searches it, where the length of w D, how much of the
    picture the concepts hold, counts too.
    """

    accuracy: float | None = None
    ci95: Interval | None = None
    l1: float
    l1_relative: bool
    nnz_mean: float
    nnz_max: int
    empty: int
    cosine_mean: float
    max_relative_gap: float
    compact: Compact
    searched: Worth


def code_figures(
    X: np.ndarray,
    W: sparse.csr_matrix,
    D: np.ndarray,
    right: np.ndarray | None,
    gap: np.ndarray,
    coder: CoderConfig,
    judge: Judge,
) -> CodeFigures:
    """X (n, d) embeddings, W (n, m) their codes over D (m, d); right (n,) bool, or None; gap (n,) of each code."""
    counts = np.diff(W.indptr)
    R, size = reconstruct(compacted(W), D), compact_bytes(W) / W.shape[0]
    return CodeFigures(
        **({} if right is None else vars(accuracy_of(right))),
        l1=coder.l1,
        l1_relative=coder.relative,
        nnz_mean=float(counts.mean()),
        nnz_max=int(counts.max()),
        empty=int((counts == 0).sum()),
        cosine_mean=float(row_cosines(X, reconstruct(W, D)).mean()),
        max_relative_gap=float(gap.max()),
        compact=Compact(bytes_per_image=size, **vars(judge(R))),
        searched=judge.worth(judge.hits(R, lengths=True)),
    )
