"""How sure is a mean over pictures? 95 % intervals by the bootstrap (Efron 1979), of means and of paired
differences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 1000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A mean, and its 95 % interval."""

    value: float
    ci95: Interval


@lru_cache(maxsize=4)
def resampled(n: int, seed: int = 0) -> np.ndarray:
    """How often each of n rows is drawn in each of RESAMPLES draws of n with replacement: (RESAMPLES, n) float32."""
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(RESAMPLES)]).astype(np.float32)


def means_ci95(values: np.ndarray, seed: int = 0) -> list[Interval]:
    """The interval of the mean of each column of `values` (n, c), all by the same draws.

    Of paired differences it is the interval of a paired comparison.

    >>> [(low, high)] = means_ci95(np.ones((50, 1)))
    >>> low, high
    (1.0, 1.0)
    """
    n = len(values)
    draws = resampled(n, seed) @ np.asarray(values, np.float32) / n  # (RESAMPLES, c)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """The mean of `values` (n,) and its interval.

    >>> estimate(np.array([1.0, 1.0, 1.0])).value
    1.0
    """
    return Estimate(float(np.mean(values)), means_ci95(np.asarray(values)[:, None], seed)[0])
