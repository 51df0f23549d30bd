"""Is our code better or worse than a baseline of the same size, and is that more than chance?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.evaluators.intervals import Interval, means_ci95
from eval.evaluators.judge import METRICS, Hits


@dataclass(frozen=True)
class Difference:
    """Of one figure, ours less the baseline's, on the same queries. better: 1 or −1 where the interval leaves out 0."""

    metric: str
    value: float
    ci95: Interval
    better: int


@dataclass(frozen=True)
class Comparison:
    """Our code made to the size of a baseline, beside it. bytes_per_image: the baseline's, which ours does not
    exceed."""

    baseline: str
    code: str
    bytes_per_image: float
    differences: list[Difference]


def compare(ours: Hits, theirs: Hits, seed: int = 0) -> list[Difference]:
    """Every figure that both have, with the bootstrap interval of the paired difference."""
    found = []
    for metric in METRICS:
        if metric in ours.of and metric in theirs.of:
            values = ours.of[metric] - theirs.of[metric]
            (ci95,) = means_ci95(values[:, None], seed)
            better = 1 if ci95[0] > 0 else -1 if ci95[1] < 0 else 0
            found.append(Difference(metric, float(values.mean(dtype=np.float64)), ci95, better))
    return found


def fitting(sizes: Sequence[float], room: float) -> int | None:
    """The place of the largest of `sizes` that is not above `room`; None where all are.

    >>> fitting([7.9, 15.2], 8), fitting([7.9], 3)
    (0, None)
    """
    within = [i for i, size in enumerate(sizes) if size <= room]
    return max(within, key=lambda i: sizes[i]) if within else None
