"""What every encoder can be asked, whoever trained it: arrays in, unit float32 rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch


class TextEncoder(Protocol):
    """The half of an encoder that reads texts.

    name: what an index and a report call it. fingerprint: a SHA-256 over the files that decide its output; an index
    is not searched with another. known_from: the cosine with the nearest concept below which a text means little to
    it; 0 where no such cosine is known.
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def known_from(self) -> float: ...

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (n, d)."""
        ...

    def encode_concepts(self, concepts: Sequence[str], templates: Sequence[str] | None = None) -> np.ndarray:
        """Concepts → (m, d): each the normalised mean of its prompts' embeddings (the encoder's own prompts without
        `templates`)."""
        ...


class Encoder(TextEncoder, Protocol):
    """Pictures and texts in one space of unit vectors.

    source: what `open_encoder` opens it by again. trained_on: the data it learned from, in words. dim: d.
    image_size: pixels a side of what `encode_images` takes. templates: its own prompts, each with a {}.
    concepts: what its training captions named → the class of each; empty where nobody listed them.
    has_modality_gap: whether its pictures and its texts lie in two cones apart, so that an index must centre both
    (`training.encoders.centring`) before it codes pictures by concepts.
    """

    @property
    def source(self) -> str: ...
    @property
    def trained_on(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def templates(self) -> tuple[str, ...]: ...
    @property
    def concepts(self) -> Mapping[str, str]: ...
    @property
    def has_modality_gap(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pictures (n, s, s, 3) → X (n, d), in batches of the encoder's own choice."""
        ...
