"""Does a code stay when a picture changes a little? Shifts, mirror images, light, noise and JPEG, made on the fly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from eval.evaluators.concepts import strongest
from eval.evaluators.corruptions import compressed
from eval.evaluators.intervals import Estimate, estimate
from eval.evaluators.judge import reconstruct, row_cosines

STABLE_ON = 150  # pictures, each of which is encoded once for every change

CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "mirrored": lambda pixels, _: pixels[:, :, ::-1],
    "shifted by a pixel": lambda pixels, _: np.roll(np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge"), 1, 2)[
        :, 1:-1, 1:-1
    ],
    "5 % lighter": lambda pixels, _: np.clip(pixels * 1.05, 0, 255).round().astype(np.uint8),
    "noise of 2 in 255": lambda pixels, rng: (
        np.clip(pixels + rng.normal(0, 2, pixels.shape), 0, 255).round().astype(np.uint8)
    ),
    "JPEG, quality 90": lambda pixels, _: compressed(pixels, 90),
}


@dataclass(frozen=True)
class Stable:
    """One change. Means over pictures of: cosine_dense, of the embeddings before and after; cosine_sparse, of what
    their codes give back; common, the share of concepts that both codes have among those that either has; same_top:
    whether the strongest concept is the same.
    """

    change: str
    cosine_dense: Estimate
    cosine_sparse: Estimate
    common: Estimate
    same_top: Estimate


@dataclass(frozen=True)
class Stability:
    """n: pictures."""

    n: int
    changes: list[Stable]


def judge_stability(
    pixels: np.ndarray,
    encode: Callable[[np.ndarray], np.ndarray],
    code: Callable[[np.ndarray], sparse.csr_matrix],
    D: np.ndarray,
    seed: int = 0,
) -> Stability:
    """pixels (n, h, w, 3) uint8. encode: pictures → X (n, d); code: X → W (n, m) over D (m, d)."""
    X = encode(pixels)
    W, changes = code(X), []
    for name, change in CHANGES.items():
        after = encode(np.ascontiguousarray(change(pixels, np.random.default_rng(seed))))
        changed = code(after)
        both = (W.sign().multiply(changed.sign())).sum(1)
        either = (W + changed).sign().sum(1)
        measured = (
            row_cosines(X, after),
            row_cosines(reconstruct(W, D), reconstruct(changed, D)),
            np.asarray(both / np.maximum(either, 1)).ravel(),
            (strongest(W) == strongest(changed)).astype(np.float32),
        )
        changes.append(Stable(name, *(estimate(values, seed) for values in measured)))
    return Stability(len(pixels), changes)
