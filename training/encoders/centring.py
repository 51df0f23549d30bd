"""Closing the modality gap of a CLIP-like space: each modality is centred on its own mean.

Pictures and texts of such a space lie in two narrow cones apart from each other, so that no sum of texts with
non-negative weights comes near a picture. SpLiCE (Bhalla et al. 2024, https://arxiv.org/abs/2402.10376, section 4)
subtracts from either its mean and normalises again. Here the means are those of what is indexed: the pictures' and
the dictionary's. The price: what all pictures share is no longer seen, and the mean of a handful of pictures is
made of their content as much as of the gap; then centring tells them apart rather than names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from training.encoders.protocol import Encoder, TextEncoder

SPREAD = 1e-6  # mean squared distance from the mean below which rows count as one and the same


@dataclass(frozen=True)
class Means:
    """image (d,), text (d,): what is subtracted from the embeddings of either modality."""

    image: np.ndarray
    text: np.ndarray


def mean_of(A: np.ndarray) -> np.ndarray:
    """The mean (d,) of unit rows A (n, d); zero where they do not differ (none, one, or copies of one)."""
    if not len(A):
        return np.zeros(A.shape[1], np.float32)
    mean = A.mean(0, dtype=np.float64)
    spread = 1 - mean @ mean  # of unit rows
    return (mean if spread > SPREAD else np.zeros_like(mean)).astype(np.float32)


def centre(A: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Unit rows A (n, d) → normalise(A − mean); a row that is the mean itself keeps its own direction."""
    Z = A - mean
    norms = np.linalg.norm(Z, axis=1, keepdims=True)
    tiny = np.float32(SPREAD)
    return np.where(norms > tiny, Z / np.maximum(norms, tiny), A).astype(np.float32)


class CentredTextEncoder:
    """A text encoder whose embeddings are centred on the texts' mean; a concept after its prompts were averaged."""

    has_modality_gap = False

    def __init__(self, encoder: TextEncoder, means: Means):
        self._texts, self._means = encoder, means
        self.name, self.fingerprint, self.known_from = encoder.name, encoder.fingerprint, encoder.known_from

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (n, d)."""
        return centre(self._texts.encode_texts(texts), self._means.text)

    def encode_concepts(self, concepts: Sequence[str], templates: Sequence[str] | None = None) -> np.ndarray:
        """Concepts → (m, d)."""
        return centre(self._texts.encode_concepts(concepts, templates), self._means.text)


class CentredEncoder(CentredTextEncoder):
    """An encoder whose embeddings are centred, pictures and texts each on their own mean."""

    def __init__(self, encoder: Encoder, means: Means):
        super().__init__(encoder, means)
        self._encoder = encoder
        self.source, self.trained_on, self.dim = encoder.source, encoder.trained_on, encoder.dim
        self.image_size, self.templates = encoder.image_size, encoder.templates
        self.concepts: Mapping[str, str] = encoder.concepts

    @property
    def device(self) -> torch.device:
        return self._encoder.device

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pictures (n, s, s, 3) → X (n, d)."""
        return centre(self._encoder.encode_images(pixels), self._means.image)
