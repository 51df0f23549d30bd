"""An encoder that `sparsight train` trained, ready to use; the bundled one is such an encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from training.data.captions import TEMPLATES, embed_concepts
from training.device import fast_bf16
from training.encoders.dual import DualEncoder, load_model
from training.encoders.files import BUNDLED, CONCEPTS, fingerprint_of
from training.errors import SparsightError

BATCH = 500  # pictures in one pass: its activations stay within about 1 GB


class TrainedEncoder:
    """A loaded encoder, ready to use: arrays in, unit float32 rows out.

    name, fingerprint, trained_on: what an index and a report say of it. source: "bundled" or its folder.
    concepts: what its captions named → the class of each. dim: d. image_size: pixels a side. templates: its prompts.
    known_from: the cosine with the nearest concept below which a text means little to it.
    """

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

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pictures (n, s, s, 3) → X (n, d): the mean over the views that the encoder's settings ask for (those
        of airbench, https://arxiv.org/abs/2404.00498)."""
        parts = [self._encode_batch(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    @torch.inference_mode()
    def _encode_batch(self, pixels: np.ndarray) -> np.ndarray:
        config, device = self.model.config, self.model.device
        x = self.model.normalise(torch.as_tensor(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).to(device))
        views = [(1.0, x)]
        if config.shift_average:
            padded, side = F.pad(x, (1,) * 4, mode="reflect"), x.shape[-1]
            views += [(0.5, padded[..., i : i + side, i : i + side]) for i in (0, 2)]
        if config.flip_average:
            views += [(weight, view.flip(3)) for weight, view in views]
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_bf16(device)):
            z = torch.stack([weight * self.model.embed_images(view) for weight, view in views]).sum(0)
        return F.normalize(z, dim=1).cpu().numpy().astype(np.float32)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (n, d)."""
        return self.model.encode_texts(texts)

    def encode_concepts(self, concepts: Sequence[str], templates: Sequence[str] | None = None) -> np.ndarray:
        """Concepts → (m, d): each the normalised mean of its prompts' embeddings."""
        return embed_concepts(self.encode_texts, concepts, templates or self.templates)


def open_trained_encoder(folder: Path, device: torch.device) -> TrainedEncoder:
    """Loads the bundled encoder, or one from a folder that `sparsight train` wrote.

    Raises `SparsightError` with the path and the reason.
    """
    model = load_model(folder).to(device).to(memory_format=torch.channels_last)
    try:
        concepts = json.loads((folder / CONCEPTS).read_text()) if (folder / CONCEPTS).is_file() else {}
    except ValueError as e:
        raise SparsightError(f"damaged encoder in {folder}: {CONCEPTS} is not JSON ({e})") from e
    source = "bundled" if folder == BUNDLED else str(folder)
    return TrainedEncoder(model, fingerprint_of(folder), source, concepts)
