"""What every encoder can be asked, whatever its kind. `open_encoder` gives an `Encoder` of any kind by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Prepared = Any  # what an encoder makes of one picture before its tower sees it: each kind has its own


@runtime_checkable
class TextEncoder(Protocol):
    """The half of an encoder that reads texts.

    name:        what an index and a report call it.
    fingerprint: a SHA-256 over the files that decide its output. An index refuses to be searched with another one.
    known_from:  the cosine between a text and its nearest concept below which the text means little to the encoder;
                 0 where no such cosine is known.
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def known_from(self) -> float: ...

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (n, d) float32 unit rows.

        Any number of texts may be given, none as well; of a text that is too long the end is left out,
        and a `CutTextWarning` says so.
        """
        ...

    def left_out(self, text: str) -> str:
        """The end of a text that the tower does not read, "" where it reads all of it."""
        ...

    def encode_concepts(self, concepts: Sequence[str], templates: Sequence[str] | None = None) -> np.ndarray:
        """Concepts → (m, d) float32 unit rows, each the normalised mean of the embeddings of a concept's prompts.

        templates: of the prompts, each with one {} for the concept; the encoder's own where None.
        """
        ...


@runtime_checkable
class Encoder(TextEncoder, Protocol):
    """Puts pictures and texts into one space of unit vectors.

    source:           the name by which `open_encoder` opens it again.
    trained_on:       the data that it learned from, in words.
    dim:              d, the dimensions of the space.
    image_size:       pixels a side of what its tower sees. A picture may be decoded at a fraction of its size, as long
                      as its shorter side keeps twice that.
    batch:            pictures in one pass. Who prepares pictures ahead of the tower holds no more than two passes.
    templates:        its own prompts, each with one {} for a concept.
    concepts:         the concepts of its training captions, each with the class it belongs to; empty where unknown.
    has_modality_gap: whether its pictures and its texts lie in two cones apart. An index must then centre both before
                      it codes pictures by concepts (`training.encoders.centring`).
    device:           where torch computes.
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
    def batch(self) -> int: ...
    @property
    def templates(self) -> tuple[str, ...]: ...
    @property
    def concepts(self) -> Mapping[str, str]: ...
    @property
    def has_modality_gap(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...

    def prepare(self, picture: Image) -> Prepared:
        """A picture in RGB, of any shape → what the tower takes of it, of a size that does not depend on the picture's.

        This is the model's own preprocessing. Several threads may call it at once.
        """
        ...

    def encode_images(self, pictures: Sequence[Image] | Sequence[Prepared] | np.ndarray) -> np.ndarray:
        """Pictures → X (n, d) float32 unit rows.

        pictures: any number of them, prepared, or of any shapes: of Pillow's or as uint8 RGB (h, w, 3), in a list or in
        one array (n, h, w, 3). The encoder makes batches that fit into memory.
        """
        ...
