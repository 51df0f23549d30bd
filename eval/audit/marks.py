"""Marks: what most pictures of one class show at the same place, and few others: a watermark, a frame, a logo.

A dictionary need not have a word for it, so the thumbnails themselves are looked at. A pixel is part of a mark where
pictures of the class have the same colour, or the same step of brightness, much more often than the others have. To
confirm it the mark is covered, and the picture encoded again: the class's share among its neighbours falls then, more
than where as much is covered elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from eval.audit.pixels import SIDE, grey, smooth

FEWEST = 12  # pictures of a class, and of the others
COLOUR = 20  # of 255: two colours that differ by no more, in any channel, are one
STEP = 0.03  # of 1: difference of brightness from what is around
MORE = 0.3  # by how much more often than others a class must show it, as a share, chance allowed for
MOST = 0.5  # share of the class's pictures that must
HELD = 0.6  # share of a mark's pixels by which a picture has it
SPOT = 3  # pixels of the smallest mark
CHECKED = 48  # pictures that are covered and encoded again
VOTERS = 15

SAMPLE = 2000  # pictures of a class, and of the others, that a mark is looked for in
AT_ONCE = 4096  # pictures

Encode = Callable[[Sequence[np.ndarray]], np.ndarray]
Shows = Callable[[np.ndarray], np.ndarray]  # pictures (k, SIDE, SIDE, 3) → where each shows it (k, SIDE, SIDE)


class Box(NamedTuple):
    """A part of a picture, in shares of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Mark:
    """What a class's pictures share at one place. has (n,): which pictures of all have it; excess: by how much more
    often the class shows its pixels than others."""

    box: Box
    has: np.ndarray
    excess: float


def find_mark(rgb: np.ndarray, of_class: np.ndarray, seed: int = 0) -> Mark | None:
    """The mark of the pictures `of_class` (n,) bool among all, rgb (n, SIDE, SIDE, 3); None where there is none.

    It is looked for in a sample, and then in all pictures.
    """
    rng = np.random.default_rng(seed)
    ours, others = (rng.permutation(np.flatnonzero(of))[:SAMPLE] for of in (of_class, ~of_class))
    if min(len(ours), len(others)) < FEWEST:
        return None
    best: tuple[float, np.ndarray, Shows] | None = None
    for shows in (_same_colour(rgb[ours]), _same_step(rgb[ours])):
        inside, outside = shows(rgb[ours]).mean(0), shows(rgb[others]).mean(0)
        spread = (inside * (1 - inside) + 0.25 / len(ours)) / len(ours) + outside * (1 - outside) / len(others)
        part = (inside - outside - 3 * np.sqrt(spread) >= MORE) & (inside >= MOST)
        regions, count = ndimage.label(part)
        sizes = ndimage.sum_labels(part, regions, range(1, count + 1))
        if count and sizes.max() >= SPOT:
            region = regions == 1 + int(sizes.argmax())
            excess = float((inside - outside)[region].mean())
            if best is None or excess > best[0]:
                best = excess, region, shows
    if best is None:
        return None
    excess, region, shows = best
    parts = [rgb[i : i + AT_ONCE] for i in range(0, len(rgb), AT_ONCE)]
    return Mark(_box(region), np.concatenate([shows(p)[:, region].mean(1) >= HELD for p in parts]), excess)


def _same_colour(rgb: np.ndarray) -> Shows:
    """Where pictures have the colour that is the median of these there."""
    usual = np.median(rgb, axis=0).astype(np.int16)
    return lambda p: (np.abs(p.astype(np.int16) - usual) <= COLOUR).all(-1)


def _same_step(rgb: np.ndarray) -> Shows:
    """Where pictures are darker, or brighter, than what is around, as most of these are there."""

    def step(p: np.ndarray) -> np.ndarray:
        g = grey(p)
        return g - smooth(g, 2)

    sign = np.sign(np.median(step(rgb), axis=0))
    return lambda p: step(p) * sign >= STEP


def _box(region: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    low = [max(0, int(v[0]) - 1) / SIDE for v in (columns, rows)]
    high = [min(SIDE, int(v[-1]) + 2) / SIDE for v in (columns, rows)]
    return Box(*low, *high)


class Covered(NamedTuple):
    """The share of a class among pictures' nearest others: as they are · with the mark covered · with as much covered
    at another place; n pictures."""

    before: float
    after: float
    elsewhere: float
    n: int


def cover(
    pictures: Sequence[np.ndarray], rows: np.ndarray, box: Box, X: np.ndarray, of_class: np.ndarray, encode: Encode
) -> Covered:
    """Covers a mark in some pictures, and encodes them again.

    pictures: uint8 (h, w, 3), of the rows of X (n, d) named; of_class (n,): which rows are of the class.
    """
    other = Box(1 - box.right, 1 - box.bottom, 1 - box.left, 1 - box.top)
    if (
        abs(other.left - box.left) < (box.right - box.left) / 2
        and abs(other.top - box.top) < (box.bottom - box.top) / 2
    ):
        other = Box(0, 0, box.right - box.left, box.bottom - box.top)  # it lies in the middle
    shares = []
    for version in (pictures, [filled(p, box) for p in pictures], [filled(p, other) for p in pictures]):
        S = encode(version) @ X.T
        S[np.arange(len(rows)), rows] = -np.inf
        near = np.argpartition(-S, VOTERS, axis=1)[:, :VOTERS] if S.shape[1] > VOTERS else np.argsort(-S, axis=1)
        shares.append(float(of_class[near].mean()))
    before, after, elsewhere = shares
    return Covered(before, after, elsewhere, len(rows))


def filled(picture: np.ndarray, box: Box) -> np.ndarray:
    """A picture (h, w, 3) whose part in a box has the median colour of what is around it."""
    height, width = picture.shape[:2]
    left, right = int(box.left * width), max(int(box.left * width) + 1, round(box.right * width))
    top, bottom = int(box.top * height), max(int(box.top * height) + 1, round(box.bottom * height))
    edge = max(1, round(0.06 * max(height, width)))
    around = np.ones(picture.shape[:2], bool)
    around[top:bottom, left:right] = False
    near = np.zeros_like(around)
    near[max(0, top - edge) : bottom + edge, max(0, left - edge) : right + edge] = True
    ring = picture[around & near]
    result = picture.copy()
    if len(ring):
        result[top:bottom, left:right] = np.median(ring, axis=0)
    return result
