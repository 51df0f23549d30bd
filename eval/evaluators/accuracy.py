"""How often is the class right, how sure is that, and do two classifiers differ?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Accuracy:
    """accuracy: the share that is right; ci95: its 95 % interval (Wilson)."""

    accuracy: float
    ci95: tuple[float, float]


def accuracy_of(right: np.ndarray) -> Accuracy:
    """right (n,) bool: whether each picture's class was found.

    >>> accuracy_of(np.array([True, True, True, False])).accuracy
    0.75
    """
    return Accuracy(float(right.mean()), wilson(int(right.sum()), len(right)))


@dataclass(frozen=True)
class Confusion:
    """How often pictures of each class (a row) are given each class (a column): counts, in the order of `classes`."""

    classes: list[str]
    dense: list[list[int]]
    sparse: list[list[int]]


def confusion(labels: np.ndarray, dense: np.ndarray, by_codes: np.ndarray, classes: Sequence[str]) -> Confusion:
    """labels (n,): the true classes, by number; dense, by_codes (n,): those that each side gives.

    >>> confusion(np.array([0, 1, 1]), np.array([0, 1, 0]), np.array([0, 1, 1]), ["cat", "dog"]).dense
    [[1, 0], [1, 1]]
    """

    def counted(given: np.ndarray) -> list[list[int]]:
        c = len(classes)
        return np.bincount(labels * c + given, minlength=c * c).reshape(c, c).tolist()

    return Confusion(list(classes), counted(dense), counted(by_codes))


def predicted(A: np.ndarray, T: np.ndarray) -> np.ndarray:
    """The class (n,) whose embedding in T (c, d) has the largest inner product with each row of A (n, d)."""
    return (A @ T.T).argmax(1)


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, 1927).

    >>> low, high = wilson(81, 263)
    >>> round(low, 4), round(high, 4)
    (0.2553, 0.3662)
    """
    interval = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test that two classifiers err equally often (Q. McNemar, 1947).

    a, b (n,) bool: whether each classifier is right about each picture.

    >>> mcnemar(np.array([True, True, True, False]), np.array([False, False, True, False]))
    0.5
    """
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)
