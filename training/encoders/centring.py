"""Closes the modality gap of a CLIP-like space: pictures and texts are each centred on their own mean.

Pictures and texts of such a space lie in two narrow cones apart from each other, so that no sum of texts with
non-negative weights comes near a picture. SpLiCE (Bhalla et al. 2024, https://arxiv.org/abs/2402.10376, section 4)
subtracts its mean from each of the two and normalises again. Here the means are those of what is indexed: of its
pictures, and of its dictionary.

This has a price. What all pictures share can no longer be seen. And the mean of a handful of pictures holds their
content as much as the gap, so that centring then shows how they differ rather than what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from training.encoders.protocol import Encoder, Prepared, TextEncoder

BLOCK = 1 << 13  # rows that are added up at a time
SPREAD = 1e-6  # the mean squared distance from their mean below which rows count as equal


@dataclass(frozen=True)
class Means:
    """What is subtracted from the embeddings of pictures, image (d,), and from those of texts, text (d,)."""

    image: np.ndarray
    text: np.ndarray


def same_means(a: Means | None, b: Means | None) -> bool:
    """Whether two spaces are centred alike; None: it is not centred."""
    if a is None or b is None:
        return a is b
    return np.array_equal(a.image, b.image) and np.array_equal(a.text, b.text)


class Rows(Protocol):
    """Rows that can be read by slices: an array, or something larger than memory."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


def mean_of(A: Rows) -> np.ndarray:
    """The mean (d,) of unit rows A (n, d), added up by blocks; zero where there are none, or where they are equal."""
    total = np.zeros(A[:1].shape[1], np.float64)
    for start in range(0, len(A), BLOCK):
        total += A[start : start + BLOCK].sum(0, dtype=np.float64)
    mean = total / max(len(A), 1)
    spread = 1 - mean @ mean  # of unit rows
    return (mean if spread > SPREAD else np.zeros_like(mean)).astype(np.float32)


def centre(A: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Unit rows A (n, d) → normalise(A − mean), float32; a row that is equal to the mean (d,) stays as it is."""
    Z = A - mean
    norms = np.linalg.norm(Z, axis=1, keepdims=True)
    tiny = np.float32(SPREAD)
    return np.where(norms > tiny, Z / np.maximum(norms, tiny), A).astype(np.float32)


class CentredRows:
    """Rows (n, d) of which each is centred when it is read."""

    def __init__(self, rows: Rows, mean: np.ndarray):
        self._rows, self._mean = rows, mean

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return centre(self._rows[rows], self._mean)


class CentredTextEncoder:
    """A `TextEncoder` whose embeddings are centred on the texts' mean; a concept's, once its prompts are averaged."""

    def __init__(self, encoder: TextEncoder, means: Means):
        self._texts, self._means = encoder, means
        self.name, self.fingerprint, self.known_from = encoder.name, encoder.fingerprint, encoder.known_from

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (n, d) float32 unit rows, centred."""
        return centre(self._texts.encode_texts(texts), self._means.text)

    def left_out(self, text: str) -> str:
        """The end of a text that the tower does not read."""
        return self._texts.left_out(text)

    def encode_concepts(self, concepts: Sequence[str], templates: Sequence[str] | None = None) -> np.ndarray:
        """Concepts → (m, d) float32 unit rows, centred."""
        return centre(self._texts.encode_concepts(concepts, templates), self._means.text)


class CentredEncoder(CentredTextEncoder):
    """An `Encoder` whose embeddings are centred, pictures and texts each on their own mean."""

    has_modality_gap = False  # it is closed

    def __init__(self, encoder: Encoder, means: Means):
        super().__init__(encoder, means)
        self._encoder = encoder
        self.source, self.trained_on, self.dim = encoder.source, encoder.trained_on, encoder.dim
        self.image_size, self.batch, self.templates = encoder.image_size, encoder.batch, encoder.templates
        self.concepts: Mapping[str, str] = encoder.concepts

    @property
    def device(self) -> torch.device:
        return self._encoder.device

    def prepare(self, picture: Image) -> Prepared:
        """A picture → what the tower takes of it."""
        return self._encoder.prepare(picture)

    def encode_images(self, pictures: Sequence[Image] | Sequence[Prepared] | np.ndarray) -> np.ndarray:
        """Pictures → X (n, d) float32 unit rows, centred."""
        return centre(self._encoder.encode_images(pictures), self._means.image)
