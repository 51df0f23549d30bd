"""The thumbnails of an index as small square pictures, and what tells near-duplicates among them.

The *spectrum* of a picture is the size of its Fourier coefficients, of each colour, under a window that fades out the
edges. A shift of a few pixels hardly changes it, and a mirrored picture's is the same with its rows in reverse.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image

from indexer.store import Store

SIDE = 32  # pixels a side; larger thumbnails are shrunk, others made square
LOW = 7  # frequencies of each axis that a spectrum holds, from 0 on
AT_ONCE = 4096  # pictures


class Pixels(NamedTuple):
    """The pictures that have a thumbnail which can be read: ids (k,) int64, and RGB (k, SIDE, SIDE, 3) uint8."""

    ids: np.ndarray
    rgb: np.ndarray


def read_pixels(store: Store) -> Pixels:
    """Reads every thumbnail; those that are damaged are left out."""
    ids: list[int] = []
    parts: list[np.ndarray] = []
    every = store.every_thumbnail()
    with ThreadPoolExecutor() as pool:
        while part := list(islice(every, AT_ONCE)):
            read = [(i, p) for i, p in zip((i for i, _ in part), pool.map(_square, (t for _, t in part)), strict=True)]
            ids += [i for i, p in read if p is not None]
            parts += [p[None] for _, p in read if p is not None]
    rgb = np.concatenate(parts) if parts else np.zeros((0, SIDE, SIDE, 3), np.uint8)
    return Pixels(np.array(ids, np.int64), rgb)


def _square(jpeg: bytes | None) -> np.ndarray | None:
    try:
        return None if jpeg is None else decoded(jpeg, SIDE)
    except OSError:
        return None


def decoded(jpeg: bytes, side: int | None = None) -> np.ndarray:
    """A thumbnail as uint8 (h, w, 3), or square with so many pixels a side; raises OSError where it is no JPEG."""
    picture = Image.open(io.BytesIO(jpeg), formats=("JPEG",)).convert("RGB")
    if side is not None and picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BOX if min(picture.size) > side else None)
    return np.asarray(picture)


def grey(rgb: np.ndarray) -> np.ndarray:
    """uint8 (…, 3) → brightness (…,) float32 from 0 to 1."""
    return rgb @ (np.array([0.299, 0.587, 0.114], np.float32) / 255)


def smooth(x: np.ndarray, times: int = 1) -> np.ndarray:
    """x (k, h, w) under a binomial kernel of five pixels, so many times; edges are continued."""
    for _ in range(times):
        for axis in (1, 2):
            padded = np.pad(x, [(2, 2) if a == axis else (0, 0) for a in range(3)], mode="edge")
            a, b, c, d, e = (np.take(padded, range(i, i + x.shape[axis]), axis) for i in range(5))
            x = (a + e + 4 * (b + d) + 6 * c) / 16
    return x


def spectra(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (k, SIDE, SIDE, 3) → the spectra of the pictures and of their mirror images, unit rows (k, 3 · 13 · 7)."""
    window = np.hanning(SIDE + 2)[1:-1].astype(np.float32)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(rgb), AT_ONCE):
        x = rgb[start : start + AT_ONCE].transpose(0, 3, 1, 2).astype(np.float32) / 255
        x = (x - x.mean((2, 3), keepdims=True)) * window * window[:, None]
        F = np.sqrt(np.abs(np.fft.rfft2(x)))  # the root: else one coefficient outweighs the others
        up = np.concatenate([F[:, :, -LOW + 1 :, :LOW], F[:, :, :LOW, :LOW]], 2)
        found.append((unit_rows(up), unit_rows(up[:, :, ::-1])))
    if not found:
        return (np.zeros((0, 1), np.float32),) * 2
    own, mirrored = zip(*found, strict=True)
    return np.concatenate(own), np.concatenate(mirrored)


def unit_rows(x: np.ndarray) -> np.ndarray:
    """(k, …) → unit rows (k, d) float32."""
    rows = x.reshape(len(x), -1).astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
