"""How right are both sides on corrupted pictures? Four kinds at five severities, made on the fly.

Kinds and strengths are those of CIFAR-10-C (Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from eval.evaluators.accuracy import Accuracy, accuracy_of, predicted

NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation, of the range 0 … 1
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)  # standard deviation of the Gaussian, pixels
JPEG = (80, 65, 58, 50, 40)  # quality
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # factor
SEVERITIES = 5


def noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    return _to_uint8(pixels / 255 + rng.normal(0, NOISE[severity], pixels.shape))


def blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    sigma = BLUR[severity]
    return _to_uint8(ndimage.gaussian_filter(pixels / 255.0, (0, sigma, sigma, 0)))


def jpeg(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    return compressed(pixels, JPEG[severity])


def compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    """uint8 pictures (n, h, w, 3) as JPEG of a quality gives them back."""
    out = np.empty_like(pixels)
    for i, picture in enumerate(pixels):
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "JPEG", quality=quality)
        out[i] = np.asarray(Image.open(data))
    return out


def contrast(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    x = pixels / 255
    mean = x.mean((1, 2), keepdims=True)
    return _to_uint8((x - mean) * CONTRAST[severity] + mean)


KINDS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "jpeg": jpeg,
    "contrast": contrast,
}
CASES = tuple((kind, severity) for kind in KINDS for severity in range(1, SEVERITIES + 1))


def corrupt(pixels: np.ndarray, kind: str, severity: int, seed: int = 0) -> np.ndarray:
    """uint8 pictures (n, h, w, 3) under one of KINDS at severity 0 … 4; the same seed gives the same pictures."""
    return KINDS[kind](pixels, severity, np.random.default_rng((seed, severity)))


@dataclass(frozen=True)
class Case:
    """Accuracy by the embeddings and by their codes of n pictures under one corruption, at severity 1 … 5."""

    kind: str
    severity: int
    n: int
    dense: float
    sparse: float


@dataclass(frozen=True)
class Kind:
    """The same over all severities of one kind, with Wilson's 95 % intervals."""

    kind: str
    n: int
    dense: Accuracy
    sparse: Accuracy


@dataclass(frozen=True)
class Corruptions:
    """n: pictures, each corrupted once."""

    n: int
    kinds: list[Kind]
    rows: list[Case]


def judge_corrupted(
    pixels: np.ndarray,
    labels: np.ndarray,
    encode: Callable[[np.ndarray], np.ndarray],
    recode: Callable[[np.ndarray], np.ndarray],
    T: np.ndarray,
    seed: int = 0,
) -> Corruptions:
    """Dense and sparse accuracy for each of CASES, among which the pictures are shared out.

    pixels (n, h, w, 3) uint8, at least one for each case, labels (n,). encode: pictures → X. recode: X → what its codes
    give back. T (c, d). Each picture is encoded once: different pictures tell more than the same ones again.
    """
    cases, rows = np.arange(len(pixels)) % len(CASES), []
    right = np.empty((2, len(pixels)), bool)
    for i, (kind, severity) in enumerate(CASES):
        mine = np.flatnonzero(cases == i)
        X = encode(corrupt(pixels[mine], kind, severity - 1, seed))
        right[:, mine] = [predicted(A, T) == labels[mine] for A in (X, recode(X))]
        rows.append(Case(kind, severity, len(mine), *(float(share) for share in right[:, mine].mean(1))))
    kinds = []
    for kind in KINDS:
        of_kind = np.isin(cases, [i for i, case in enumerate(CASES) if case[0] == kind])
        kinds.append(Kind(kind, int(of_kind.sum()), *(accuracy_of(side[of_kind]) for side in right)))
    return Corruptions(len(pixels), kinds, rows)


def _to_uint8(x: np.ndarray) -> np.ndarray:
    return (np.clip(x, 0, 1) * 255).round().astype(np.uint8)
