"""The two towers of an encoder that `sparsight train` trains, and its folder.

An encoder is a folder: `config.json` (settings), `model.safetensors` (weights), `tokenizer.json`, and
`concepts.json` (what its captions named, each with its class).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import EncoderConfig
from training.encoders.files import CONCEPTS, CONFIG, NOTES, TOKENIZER, WEIGHTS
from training.encoders.text_tower import TextTower, tokenize, wrap_tokenizer
from training.errors import SparsightError
from training.files import write_whole


class DualEncoder(nn.Module):
    """The two towers and the contrastive temperature."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig, tokenizer, *, pretrained: bool = False):
        import timm

        import training.encoders.image_tower  # noqa: F401  (registers conv32)

        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.image = timm.create_model(config.image_tower, pretrained=pretrained, num_classes=config.dim)
        self.text = TextTower(len(tokenizer), config.dim, width=config.text_width, layers=config.text_layers)
        self.log_scale = nn.Parameter(torch.tensor(float(np.log(10.0))))
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.log_scale.device

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 or [0, 255] float pictures (b, 3, h, w) → the tower's input."""
        return ((pixels.float() / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def embed_images(self, x: Tensor) -> Tensor:
        """Normalised pictures (b, 3, h, w) → unit rows (b, d)."""
        return F.normalize(self.image(x).float(), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts → unit rows (b, d)."""
        return F.normalize(self.text(**tokenize(self.tokenizer, list(texts), self.device)).float(), dim=1)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 512) -> np.ndarray:
        """Texts → unit rows (n, d), an array."""
        parts = [self.embed_texts(texts[i : i + batch_size]).cpu() for i in range(0, len(texts), batch_size)]
        return torch.cat(parts).numpy().astype(np.float32) if parts else np.zeros((0, self.config.dim), np.float32)


def load_model(folder: Path) -> DualEncoder:
    """Rebuilds the towers of an encoder folder on the CPU; checks every tensor's presence and values."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    missing = [f for f in (CONFIG, WEIGHTS, TOKENIZER) if not (folder / f).is_file()]
    if missing:
        raise SparsightError(f"no encoder in {folder}: {', '.join(missing)} missing; name a folder written by train")
    try:
        config = EncoderConfig(**_tuples(json.loads((folder / CONFIG).read_text())))
        tokenizer = wrap_tokenizer(Tokenizer.from_file(str(folder / TOKENIZER)))
        weights = load_file(folder / WEIGHTS)
        model = DualEncoder(config, tokenizer)
        model.load_state_dict(weights)
    except (SafetensorError, TypeError, ValueError, RuntimeError, OSError) as e:
        raise SparsightError(f"damaged encoder in {folder}: {str(e).splitlines()[0]}") from e
    except Exception as e:  # tokenizers raises bare Exception
        raise SparsightError(f"damaged encoder in {folder}: {str(e).splitlines()[0]}") from e
    bad = [k for k, v in weights.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise SparsightError(f"damaged encoder in {folder}: tensor {bad[0]} has values that are not finite")
    return model


def save_model(model: DualEncoder, folder: Path, concepts: dict[str, str], notes: dict) -> None:
    """Writes an encoder folder; each file appears whole or not at all, the config last."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    # Matrices and filters in half precision, half the bytes; load_model returns them to float32.
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    state = {k: v.half() if v.is_floating_point() and v.ndim > 1 else v for k, v in state.items()}
    write_whole(folder / WEIGHTS, save(state))
    write_whole(folder / TOKENIZER, model.tokenizer.backend_tokenizer.to_str().encode())
    write_whole(folder / CONCEPTS, json.dumps(concepts, indent=1).encode())
    write_whole(folder / NOTES, json.dumps(notes, indent=2).encode())
    write_whole(folder / CONFIG, json.dumps(asdict(model.config), indent=2).encode())


def _tuples(settings: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
