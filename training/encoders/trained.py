"""An encoder that `sparsight train` trained, ready to use; the bundled one is such an encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from training.data.captions import TEMPLATES, embed_concepts
from training.device import fast_bf16
from training.encoders.batches import in_batches
from training.encoders.dual import DualEncoder, load_model
from training.encoders.files import BUNDLED, CONCEPTS, trained_fingerprint
from training.encoders.square import as_picture, square
from training.errors import SparsightError

BATCH = 240  # pictures whose views are made at once
PASS = 96  # views in one pass of a processor: with more, a layer's activations leave its cache (measured: 14 % slower)


class TrainedEncoder:
    """An `Encoder` that `sparsight train` wrote.

    fingerprint: over its files. source: "bundled" or its folder. concepts: of its captions, each with its class.
    """

    batch = BATCH
    templates = TEMPLATES
    has_modality_gap = False  # its pictures are taught to lie among their own concepts

    def __init__(self, model: DualEncoder, fingerprint: str, source: str, concepts: dict[str, str]):
        self.model = model.eval().requires_grad_(False)
        self.fingerprint, self.source, self.concepts = fingerprint, source, concepts
        self.name = model.config.name
        self.trained_on = model.config.trained_on
        self.dim = model.config.dim
        self.known_from = model.config.known_from
        self.image_size = model.config.image_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    def prepare(self, picture: Image) -> np.ndarray:
        """A picture → (s, s, 3) uint8, s being `image_size`: its centre square, for it was trained on squares."""
        return square(picture, self.image_size)

    def encode_images(self, pictures: Sequence[Image] | Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Pictures of any shapes, prepared or not → X (n, d) float32 unit rows.

        A row is the mean over views of the picture, mirrored and shifted as the encoder's settings ask for. These are
        the views of airbench (https://arxiv.org/abs/2404.00498). Most pictures need only two of six: the others are
        taken where those leave the class in doubt (`EncoderConfig.sure_from`).
        """
        return in_batches(lambda batch: self._encode_batch(self._squares(batch)), pictures, BATCH, self.dim)

    def _squares(self, pictures: Sequence[Image] | Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Pictures → (b, s, s, 3) uint8, those that are such squares as they are."""
        shape = (self.image_size, self.image_size, 3)
        if isinstance(pictures, np.ndarray) and pictures.shape[1:] == shape:
            return pictures
        prepared = lambda p: isinstance(p, np.ndarray) and p.shape == shape  # noqa: E731
        return np.stack([np.asarray(p) if prepared(p) else self.prepare(as_picture(p)) for p in pictures])

    @torch.inference_mode()
    def _encode_batch(self, squares: np.ndarray) -> np.ndarray:
        config = self.model.config
        pixels = np.ascontiguousarray(squares)  # (b, s, s, 3)
        x = self.model.normalise(torch.as_tensor(pixels).permute(0, 3, 1, 2).to(self.device))
        if not config.shift_average:
            views = [(1.0, x), (1.0, x.flip(3))] if config.flip_average else [(1.0, x)]
            return _rows(self._seen(views))
        down, up = _shifted(x)
        if not config.flip_average:
            return _rows(self._seen([(1.0, x), (0.5, up), (0.5, down)]))
        z = self._seen([(0.5, down), (0.5, up.flip(3))])
        rest = self._doubtful(z)
        if rest.any():
            x, down, up = x[rest], down[rest], up[rest]
            z[rest] += self._seen([(1.0, x), (1.0, x.flip(3)), (0.5, up), (0.5, down.flip(3))])
        return _rows(z)

    def _seen(self, views: Sequence[tuple[float, Tensor]]) -> Tensor:
        """The weighted sum (b, d) of the embeddings of views, each (b, 3, s, s)."""
        every = torch.cat([view for _, view in views])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bf16(self.device)):
            parts = every.split(PASS if self.device.type == "cpu" else len(every))
            z = torch.cat([self.model.embed_images(part) for part in parts])
        weights = torch.tensor([weight for weight, _ in views], device=z.device)
        return torch.einsum("v,vbd->bd", weights, z.view(len(views), -1, z.shape[1]).float())

    def _doubtful(self, z: Tensor) -> Tensor:
        """Which embeddings (b, d) lie between two classes, (b,) bool: all where the encoder was given no bar."""
        bar = self.model.config.sure_from
        if not bar or len(self._classes) < 2:
            return torch.ones(len(z), dtype=torch.bool, device=z.device)
        first, second = (F.normalize(z, dim=1) @ self._classes.T).topk(2, dim=1).values.T
        return first - second < bar

    @cached_property
    def _classes(self) -> Tensor:
        """The directions (c, d) of the classes of its captions."""
        return torch.as_tensor(self.encode_concepts([*dict.fromkeys(self.concepts.values())]), device=self.device)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (n, d) float32 unit rows."""
        self.model.tokenizer.warn(texts)
        return self.model.encode_texts(texts)

    def left_out(self, text: str) -> str:
        """The end of a text that the tower does not read."""
        return self.model.tokenizer.left_out(text)

    def encode_concepts(self, concepts: Sequence[str], templates: Sequence[str] | None = None) -> np.ndarray:
        """Concepts → (m, d) float32 unit rows, each the normalised mean of its prompts' embeddings."""
        return embed_concepts(self.encode_texts, concepts, templates or self.templates)


def _shifted(x: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (b, 3, s, s) shifted by a pixel, their border mirrored: down and right, and up and left."""
    padded, side = F.pad(x, (1,) * 4, mode="reflect"), x.shape[-1]
    return padded[..., :side, :side], padded[..., 2:, 2:]


def _rows(z: Tensor) -> np.ndarray:
    return F.normalize(z, dim=1).cpu().numpy().astype(np.float32)


def open_trained_encoder(folder: Path, device: torch.device) -> TrainedEncoder:
    """Loads an encoder from a folder that `sparsight train` wrote, such as that of the bundled one.

    Raises `SparsightError` with the path and the reason where it is missing or damaged.
    """
    model = load_model(folder).to(device).to(memory_format=torch.channels_last)
    try:
        concepts = json.loads((folder / CONCEPTS).read_text()) if (folder / CONCEPTS).is_file() else {}
    except ValueError as e:
        raise SparsightError(f"damaged encoder in {folder}: {CONCEPTS} is not JSON ({e})") from e
    source = "bundled" if folder == BUNDLED else str(folder)
    return TrainedEncoder(model, trained_fingerprint(folder), source, concepts)
