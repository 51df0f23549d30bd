"""Hits that are unlike each other: by maximal marginal relevance, one of a label, or one of near-duplicates."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from search.engine import Engine

NEAR = 0.95  # cosine from which two pictures may be near-duplicates
ALIKE = 0.06  # root mean square difference of their grey thumbnails, of 1, up to which they are
SMALL = 16  # pixels a side of these


def diversified(X: np.ndarray, scores: np.ndarray, diverse: float, k: int) -> list[int]:
    """Places of k rows, chosen one by one: each has the largest (1 − diverse) score − diverse · (its largest cosine
    with those before it); maximal marginal relevance (Carbonell & Goldstein 1998). X (n, d) unit rows; scores (n,)."""
    chosen: list[int] = []
    closest = np.zeros(len(X))
    left = np.ones(len(X), bool)
    while len(chosen) < min(k, len(X)):
        worth = np.where(left, (1 - diverse) * scores - diverse * closest, -np.inf)
        best = int(worth.argmax())
        chosen.append(best)
        left[best] = False
        closest = np.maximum(closest, X @ X[best]) if len(chosen) > 1 else X @ X[best]
    return chosen


def grouped(engine: Engine, ids: Sequence[int], by: str, k: int) -> tuple[list[int], dict[int, list[int]]]:
    """Places of at most k of some pictures, one of each group, the first; and the ids of the others that it stands for.

    by: `label`, pictures without one being groups of their own; or `near`, near-duplicates: of a cosine of NEAR at the
    least, and, where both have thumbnails, of the same pixels but for little, mirrored ones among them.
    """
    places: list[int] = []
    others: dict[int, list[int]] = {}
    first_of = _same_label(engine, ids) if by == "label" else _near(engine, ids)
    for at, i in enumerate(ids):
        if (first := first_of(at, places)) is not None:
            others.setdefault(ids[first], []).append(i)
        elif len(places) < k:
            places.append(at)
    return places, others


FirstOf = Callable[[int, list[int]], int | None]  # a place, those that were kept → the one that it is like


def _same_label(engine: Engine, ids: Sequence[int]) -> FirstOf:
    labels = [row.label for row in engine.images(ids)]
    firsts: dict[str, int] = {}

    def first_of(at: int, kept: list[int]) -> int | None:
        label = labels[at]
        first = None if label is None else firsts.setdefault(label, at)
        return first if first in kept else None

    return first_of


def _near(engine: Engine, ids: Sequence[int]) -> FirstOf:
    X = engine.vectors_of(list(ids))
    thumbnails = engine.thumbnails(ids)
    is_exact = engine.meta.keeps_vectors

    @cache
    def grey(i: int) -> np.ndarray | None:
        return _grey(thumbnails[i]) if i in thumbnails else None

    def first_of(at: int, kept: list[int]) -> int | None:
        cosines = X[kept] @ X[at]
        for place, cosine in zip(np.array(kept)[cosines >= NEAR].tolist(), cosines[cosines >= NEAR], strict=True):
            a, b = grey(ids[place]), grey(ids[at])
            if a is None or b is None:
                is_same = is_exact and bool(cosine > 1 - 1e-4)  # of codes, many are equal
            else:
                is_same = min(_difference(a, b), _difference(a, b[:, ::-1])) <= ALIKE
            if is_same:
                return int(place)
        return None

    return first_of


def _grey(jpeg: bytes) -> np.ndarray | None:
    try:
        picture = Image.open(io.BytesIO(jpeg), formats=("JPEG",)).convert("L").resize((SMALL, SMALL))
    except OSError:
        return None
    grey = np.asarray(picture, np.float64) / 255
    return (grey - grey.mean()) / max(float(grey.std()), 0.05) / 4  # brightness and contrast apart


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(a - b).mean()))
