"""What of the report needs the encoder, or pictures: open words, corrupted pictures, and pictures that change a
little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import sparse

from eval.evaluators import (
    CHANGES,
    STABLE_ON,
    Corruptions,
    OpenWords,
    Stability,
    judge_corrupted,
    judge_open_words,
    judge_stability,
    reconstruct,
)
from eval.parts import Parts, fingerprint
from eval.subject import Subject
from indexer.coding import encode_sparse
from training.data.cifar10 import CLASSES, Pictures
from training.encoders import Encoder
from training.terminal import progress


@dataclass(frozen=True, kw_only=True)
class OnPictures:
    """None where the encoder or the pictures are missing."""

    corruptions: Corruptions | None = None
    stability: Stability | None = None


def judge_words(s: Subject, encoder: Encoder | None, parts: Parts) -> OpenWords | None:
    """The figures on open words; None where the classes are not those that the queries were written for."""
    if encoder is None or s.labels is None or s.classes != list(CLASSES):
        return None
    groups = np.array(s.classes)[s.labels]
    work = partial(judge_open_words, encoder.encode_texts, s.X, reconstruct(s.W, s.D), s.D, groups)
    return parts.get("open words", OpenWords, work, s.meta.encoder_fingerprint, s.X, s.W, s.D, groups)


def judge_pictures(
    s: Subject, encoder: Encoder | None, pictures: Pictures | None, seed: int, device: str, parts: Parts
) -> OnPictures:
    """The figures on corrupted pictures, and on some that change a little, coded as the index's are."""
    if encoder is None or pictures is None or s.labels is None:
        return OnPictures()
    few = pictures.pixels[:STABLE_ON]
    known = fingerprint(s.meta.encoder_fingerprint, s.D, s.T, s.meta.coder, pictures.pixels, pictures.labels, seed)

    def code(X: np.ndarray) -> sparse.csr_matrix:
        return encode_sparse(X, s.D, s.meta.coder, device=device).W

    def corrupted() -> Corruptions:
        with progress("corrupted", len(pictures.pixels)) as step:
            encode = ticking(encoder.encode_images, step)
            return judge_corrupted(
                pictures.pixels, pictures.labels, encode, lambda X: reconstruct(code(X), s.D), s.T, seed
            )

    def changed() -> Stability:
        with progress("changed", len(few) * (len(CHANGES) + 1)) as step:
            return judge_stability(few, ticking(encoder.encode_images, step), code, s.D, seed)

    return OnPictures(
        corruptions=parts.get("corrupted pictures", Corruptions, corrupted, known),
        stability=parts.get("changed pictures", Stability, changed, known),
    )


def ticking(
    encode: Callable[[np.ndarray], np.ndarray], step: Callable[[int], object]
) -> Callable[[np.ndarray], np.ndarray]:
    """The same function of pictures, which also moves a progress bar on."""

    def called(pixels: np.ndarray) -> np.ndarray:
        found = encode(pixels)
        step(len(pixels))
        return found

    return called
