"""What does the penalty λ buy? Codes along a path of penalties, and codes made to the size of each baseline."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from eval.evaluators.judge import Hits, Judge, Worth, reconstruct
from eval.evaluators.memory import compact_bytes, compacted, csr_bytes
from indexer.coding import Codes, encode_path, encode_sparse
from indexer.config import CoderConfig

SWEEP = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.08, 0.05)
MATCHED = 64  # bytes a picture of a baseline up to which codes are made to its size
STEPS = 1000  # the penalties that `match_sizes` chooses from are multiples of 1 / STEPS


@dataclass(frozen=True, kw_only=True)
class Point(Worth):
    """Codes at one penalty, as the compact layout gives them back.

    l1: as a fraction of each picture's λ_max. nnz_mean: concepts a picture. bytes_per_image: in the compact layout;
    csr_bytes_per_image: in CSR. max_relative_gap: the largest duality gap of a code, before least squares.
    code_seconds: that coding all pictures took; None where the penalties shared one path.
    """

    name: str
    l1: float
    nnz_mean: float
    bytes_per_image: float
    csr_bytes_per_image: float
    max_relative_gap: float
    code_seconds: float | None = None


@dataclass(frozen=True)
class Points:
    """Points, and the hits that each is the mean of."""

    found: list[Point]
    hits: list[Hits]


def sweep_penalties(
    X: np.ndarray,
    D: np.ndarray,
    judge: Judge,
    coder: CoderConfig,
    device: str = "cpu",
    penalties: Sequence[float] = SWEEP,
) -> Points:
    """Codes X (n, d) over D (m, d) at each relative penalty and judges what the codes give back.

    The penalties fall, so that each code starts from the one before.
    """
    path = encode_path(X, D, penalties, replace(coder, relative=True), device=device)
    each = [judged(f"sparse, l1 {l1:g}", l1, codes, D, judge) for l1, codes in zip(penalties, path, strict=True)]
    return Points([point for point, _ in each], [hits for _, hits in each])


def match_sizes(
    X: np.ndarray,
    D: np.ndarray,
    judge: Judge,
    coder: CoderConfig,
    sizes: Iterable[float],
    device: str = "cpu",
) -> Points:
    """Codes X (n, d) over D (m, d) to each of `sizes`, bytes a picture, that is not above MATCHED.

    For each size it takes the smallest relative penalty, in steps of 1 / STEPS, whose codes keep within it in the
    compact layout, and judges what that layout gives back. No label takes part in the choice. A size in which even
    the largest penalty does not fit is left out.
    """
    relative = replace(coder, relative=True)

    @cache
    def plain_bytes(step: int) -> int:
        """Of the l1 codes as they are; the sizes share what was counted."""
        return compact_bytes(encode_sparse(X, D, replace(relative, l1=step / STEPS, refit=False), device=device).W)

    def coded(step: int) -> tuple[Codes, float]:
        start = time.perf_counter()
        codes = encode_sparse(X, D, replace(relative, l1=step / STEPS), device=device)
        return codes, time.perf_counter() - start

    points = Points([], [])
    for size in sorted({s for s in sizes if s <= MATCHED}):
        room = size * len(X)
        step = bisect_left(range(STEPS), True, lo=1, key=lambda k: plain_bytes(k) <= room)
        if step == STEPS:
            continue
        codes, seconds = coded(step)
        # Least squares drops a few concepts, so that the next smaller penalty may fit as well.
        while coder.refit and step > 1 and compact_bytes((smaller := coded(step - 1))[0].W) <= room:
            step, (codes, seconds) = step - 1, smaller
        point, hits = judged(f"sparse within {size:g} bytes", step / STEPS, codes, D, judge)
        points.found.append(replace(point, code_seconds=seconds))
        points.hits.append(hits)
    return points


def judged(name: str, l1: float, codes: Codes, D: np.ndarray, judge: Judge) -> tuple[Point, Hits]:
    """The figures of codes that were made at the relative penalty l1, in the compact layout."""
    W, n = codes.W, codes.W.shape[0]
    hits = judge.hits(reconstruct(compacted(W), D))
    point = Point(
        name=name,
        l1=l1,
        nnz_mean=W.nnz / n,
        bytes_per_image=compact_bytes(W) / n,
        csr_bytes_per_image=csr_bytes(W) / n,
        max_relative_gap=float(codes.gap.max()),
        **vars(judge.worth(hits)),
    )
    return point, hits
