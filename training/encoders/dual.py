"""The two towers of an encoder that `sparsight train` trains, and how they are read and written.

An encoder is a folder of `config.json` (its settings), `model.safetensors` (its weights), `tokenizer.json`,
`words.json` (the lexicon of its text tower, where it has one), `concepts.json` (the concepts of its captions, each with
its class) and `training.json` (how it was trained).
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
from training.encoders.batches import in_batches
from training.encoders.files import CONCEPTS, CONFIG, NOTES, TOKENIZER, WEIGHTS
from training.encoders.text_tower import TextTower, tokenize
from training.encoders.tokens import TowerTokenizer
from training.errors import SparsightError
from training.files import write_whole

BATCH = 512  # texts in one pass


class DualEncoder(nn.Module):
    """A tower for pictures and one for texts, into one space of d dimensions, and the contrastive temperature.

    tokenizer: of the text tower. pretrained: load the image tower's weights from timm.
    log_scale: the logarithm of the inverse temperature, which multiplies the cosines in the loss.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig, tokenizer: TowerTokenizer, *, pretrained: bool = False):
        import timm

        import training.encoders.image_tower  # noqa: F401  (registers its towers with timm)

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
        """Where the weights lie."""
        return self.log_scale.device

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pictures (b, 3, h, w) in 0 … 255, of any type → the image tower's input, about 0 and of deviation 1."""
        return ((pixels.float() / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def embed_images(self, x: Tensor) -> Tensor:
        """Normalised pictures (b, 3, h, w) → float32 unit rows (b, d)."""
        return F.normalize(self.image(x).float(), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts, all in one batch → float32 unit rows (b, d)."""
        return F.normalize(self.text(**tokenize(self.tokenizer, list(texts), self.device)).float(), dim=1)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts, any number of them → float32 unit rows (n, d), as an array."""
        return in_batches(lambda batch: self.embed_texts(batch).cpu().numpy(), texts, BATCH, self.config.dim)


def load_model(folder: Path) -> DualEncoder:
    """Rebuilds an encoder from its folder, on the CPU.

    Raises `SparsightError` where a file or a tensor is missing, has another shape, or has values that are not finite.
    """
    from safetensors.torch import load_file

    missing = [f for f in (CONFIG, WEIGHTS, TOKENIZER) if not (folder / f).is_file()]
    if missing:
        raise SparsightError(f"no encoder in {folder}: {', '.join(missing)} missing; name a folder written by train")
    try:
        config = EncoderConfig(**_tuples(json.loads((folder / CONFIG).read_text())))
        tokenizer = TowerTokenizer.read(folder)
        weights = load_file(folder / WEIGHTS)
        model = DualEncoder(config, tokenizer)
        model.load_state_dict(weights)
    except Exception as e:  # of safetensors, torch, timm or json; tokenizers raises a bare Exception
        raise SparsightError(f"damaged encoder in {folder}: {str(e).splitlines()[0]}") from e
    bad = [k for k, v in weights.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise SparsightError(f"damaged encoder in {folder}: tensor {bad[0]} has values that are not finite")
    return model


def save_model(model: DualEncoder, folder: Path, concepts: dict[str, str], notes: dict) -> None:
    """Writes an encoder folder. Each file appears whole or not at all; the configuration is the last one.

    concepts: those of the captions, each with its class. notes: how the encoder was trained.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    # Matrices and filters are stored in half precision, in half the bytes; load_model makes float32 of them again.
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    state = {k: v.half() if v.is_floating_point() and v.ndim > 1 else v for k, v in state.items()}
    write_whole(folder / WEIGHTS, save(state))
    model.tokenizer.write(folder)
    write_whole(folder / CONCEPTS, json.dumps(concepts, indent=1).encode())
    write_whole(folder / NOTES, json.dumps(notes, indent=2).encode())
    write_whole(folder / CONFIG, json.dumps(asdict(model.config), indent=2).encode())


def _tuples(settings: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
