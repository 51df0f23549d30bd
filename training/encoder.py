"""Encoders: pictures and words into one space of unit vectors, whoever trained it.

An encoder is a folder: `config.json` (settings), `model.safetensors` (weights), `tokenizer.json`, and
`concepts.json` (what its captions named, each with its class). `load_encoder` opens the bundled one, a
folder that `sparsight train` wrote, or a CLIP or SigLIP of transformers (`hub.py`). The fingerprint is a
SHA-256 over the first three: an index names it, and is not searched with another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.captions import TEMPLATES, embed_concepts
from training.config import EncoderConfig
from training.device import fast_bf16
from training.errors import SparsightError
from training.files import BUNDLED, CONFIG, TOKENIZER, WEIGHTS, fingerprint_of, folder_of, write_whole
from training.hub import HubEncoder, fetch, is_hub_folder, is_hub_name, open_hub_encoder
from training.text_tower import TextTower, tokenize, wrap_tokenizer

CONCEPTS, TEST_EMBEDDINGS, NOTES = "concepts.json", "cifar10-test.safetensors", "training.json"


class DualEncoder(nn.Module):
    """The two towers and the contrastive temperature."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig, tokenizer, *, pretrained: bool = False):
        import timm

        import training.image_tower  # noqa: F401  (registers conv32)

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

    def encode_concepts(self, concepts: Sequence[str], templates: Sequence[str] = TEMPLATES) -> np.ndarray:
        """Concepts → (m, d): each the normalised mean of its prompts' embeddings."""
        return embed_concepts(self.encode_texts, concepts, templates)


class Encoder:
    """A loaded encoder, ready to use: arrays in, unit float32 rows out.

    name, fingerprint, trained_on: what an index and a report say of it. source: "bundled" or its folder.
    concepts: what its captions named → the class of each. dim: d. image_size: pixels a side. templates: its prompts.
    known_from: the cosine with the nearest concept below which a text means little to it.
    """

    templates = TEMPLATES

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

    @torch.inference_mode()
    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pictures (n, s, s, 3) → X (n, d): the mean over the views that the encoder's settings ask for (those
        of airbench, https://arxiv.org/abs/2404.00498)."""
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

    def encode_concepts(self, concepts: Sequence[str], templates: Sequence[str] = TEMPLATES) -> np.ndarray:
        """Concepts → (m, d): each the normalised mean of its prompts' embeddings."""
        return self.model.encode_concepts(concepts, templates)


AnyEncoder = Encoder | HubEncoder


def load_encoder(name: str = "bundled", device: torch.device | str = "cpu") -> AnyEncoder:
    """Loads the bundled encoder, one from a folder, or a model of the Hugging Face hub (org/name, org/name@revision).

    Raises `SparsightError` with the path and the reason.
    """
    folder = folder_of(name)
    if is_hub_folder(folder):
        return open_hub_encoder(folder, torch.device(device), name=folder.name, source=str(folder))
    if is_hub_name(name) and not folder.exists():
        return open_hub_encoder(fetch(name), torch.device(device), name=name, source=name)
    model = load_model(folder).to(torch.device(device)).to(memory_format=torch.channels_last)
    source = "bundled" if folder == BUNDLED else str(folder)
    try:
        concepts = json.loads((folder / CONCEPTS).read_text()) if (folder / CONCEPTS).is_file() else {}
    except ValueError as e:
        raise SparsightError(f"damaged encoder in {folder}: {CONCEPTS} is not JSON ({e})") from e
    return Encoder(model, fingerprint_of(folder), source, concepts)


@dataclass(frozen=True)
class SplitEmbeddings:
    """CIFAR-10's test split as an encoder sees it: X (n, d) · labels (n,) · terms (n,) ids in its concepts or -1."""

    X: np.ndarray
    labels: np.ndarray
    terms: np.ndarray


def load_test_embeddings(encoder: AnyEncoder) -> SplitEmbeddings:
    """Opens the embeddings that ship beside an encoder's weights."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if isinstance(encoder, HubEncoder):
        raise SparsightError(f"no embeddings of pictures come with {encoder.name}: it needs the pictures (--data)")
    path = folder_of(encoder.source) / TEST_EMBEDDINGS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as e:
        raise SparsightError(f"no embeddings of CIFAR-10's test pictures at {path}: {e}") from e
    X = tensors["X"].astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return SplitEmbeddings(X, tensors["labels"].astype(np.int64), tensors["terms"].astype(np.int64))


def save_test_embeddings(folder: Path, X: np.ndarray, labels: np.ndarray, terms: np.ndarray) -> None:
    """Half precision is enough: it changes a cosine by less than 1e-3."""
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {
        "X": X.astype(np.float16),
        "labels": labels.astype(np.uint8),
        "terms": terms.astype(np.int16),
    }
    write_whole(folder / TEST_EMBEDDINGS, save(tensors))


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
