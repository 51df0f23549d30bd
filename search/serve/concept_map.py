"""The dictionary as a map: its atoms on their two principal axes, as SVG draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from indexer.store import Concept

MOST = 400  # concepts drawn, the most frequent: more would not be told apart, and make a page of many kB
NAMED = 40
WIDTH, HEIGHT, EDGE = 1000, 620, 30
COLOURS = 10


class Dot(NamedTuple):
    """A concept on the map; named: whether its name is written beside it."""

    name: str
    x: float
    y: float
    r: float
    colour: int
    images: int
    named: bool


class Map(NamedTuple):
    """The dots, and of each colour what it stands for."""

    dots: list[Dot]
    legend: list[str]
    share: float  # of the variance that the two axes hold


def concept_map(D: np.ndarray, concepts: Sequence[Concept]) -> Map:
    """Atoms D (m, d) on their two principal axes (PCA), the most frequent drawn above the others."""
    chosen = sorted((c for c in concepts if c.images), key=lambda c: -c.images)[:MOST]
    if len(chosen) < 3:
        return Map([], [], 0.0)
    A = D - D.mean(0)
    values, vectors = np.linalg.eigh(A.T @ A)
    share = float(values[-2:].sum() / max(values.sum(), 1e-12))
    places = A[[c.id for c in chosen]] @ vectors[:, [-1, -2]]  # (k, 2)
    low, high = places.min(0), places.max(0)
    places = (places - low) / np.maximum(high - low, 1e-12)
    parents = list(dict.fromkeys(c.parent for c in chosen if c.parent))[:COLOURS]
    most = chosen[0].images
    dots, written = [], list[tuple[float, float]]()
    for concept, (u, v) in zip(chosen, places.tolist(), strict=True):
        x, y = EDGE + u * (WIDTH - 4 * EDGE), EDGE + v * (HEIGHT - 2 * EDGE)
        named = len(written) < NAMED and not any(abs(x - a) < 95 and abs(y - b) < 17 for a, b in written)
        if named:
            written.append((x, y))
        colour = parents.index(concept.parent) if concept.parent in parents else COLOURS
        r = 3 + 8 * (concept.images / most) ** 0.5
        dots.append(Dot(concept.name, round(x), round(y), round(r, 1), colour, concept.images, named))
    return Map(dots[::-1], parents, share)
