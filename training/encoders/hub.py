"""A CLIP, SigLIP or SigLIP 2 of transformers as an encoder.

Only safetensors are read and no code of a model's makers is ever run. `training.encoders.hub_files` finds the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.data.captions import CLIP_TEMPLATES, embed_concepts
from training.device import fast_bf16
from training.encoders.files import CONFIG
from training.encoders.hub_files import FAMILIES, fingerprint_of, is_hub_folder, lacking_files, reason_of
from training.errors import SparsightError

BATCH = 64


class HubEncoder:
    """A CLIP-like model of transformers, used as any `Encoder` is: arrays in, unit float32 rows out.

    name, source: the hub's name for it, or its folder's; an index opens it again by its source. concepts: none, for
    nobody has listed its captions. templates: CLIP's usual prompt.
    """

    concepts: dict[str, str] = {}  # noqa: RUF012 (never written to)
    known_from = 0.0  # no cosine is known below which a text means little to it
    templates = CLIP_TEMPLATES
    has_modality_gap = True

    def __init__(self, model: Any, tokenizer: Any, processor: Any, *, name: str, source: str, fingerprint: str):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.processor = tokenizer, processor
        self.name, self.source, self.fingerprint = name, source, fingerprint
        self.trained_on = f"pictures and texts that the model card of {name} names"
        vision = model.config.vision_config
        # SigLIP 2's NaFlex models take so many patches of any arrangement: here a square of them.
        self.image_size = getattr(vision, "image_size", 0) or vision.patch_size * int(processor.max_num_patches**0.5)
        self.dim = self.encode_texts(["a photo"]).shape[1]

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.inference_mode()
    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pictures (n, s, s, 3) → X (n, d); resized and normalised as the model's image processor says."""
        if not len(pixels):
            return np.zeros((0, self.dim), np.float32)
        parts = []
        for i in range(0, len(pixels), BATCH):
            batch = torch.tensor(pixels[i : i + BATCH]).permute(0, 3, 1, 2)
            inputs = self.processor(
                images=list(batch.to(self.device)), input_data_format="channels_first", return_tensors="pt"
            ).to(self.device, self.model.dtype)
            parts.append(_unit(self.model.get_image_features(**inputs).pooler_output))
        return np.concatenate(parts)

    def encode_concepts(self, concepts: Sequence[str], templates: Sequence[str] | None = None) -> np.ndarray:
        """Concepts → (m, d): each the normalised mean of its prompts' embeddings."""
        return embed_concepts(self.encode_texts, concepts, templates or self.templates)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (n, d)."""
        if not len(texts):
            return np.zeros((0, self.dim), np.float32)
        config, parts = self.model.config, []
        length = config.text_config.max_position_embeddings
        for i in range(0, len(texts), BATCH):
            # Every family was trained on lower case; not every tokenizer sees to it.
            batch = [t.lower() for t in texts[i : i + BATCH]]
            if config.model_type == "clip":
                tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=length, return_tensors="pt")
                inputs = {k: tokens[k].to(self.device) for k in ("input_ids", "attention_mask")}
            else:  # trained on texts filled up to full length on the right, the filling attended to
                tokens = self.tokenizer(
                    batch,
                    padding="max_length",
                    padding_side="right",
                    truncation=True,
                    max_length=length,
                    return_tensors="pt",
                )
                inputs = {"input_ids": tokens["input_ids"].to(self.device)}
            parts.append(_unit(self.model.get_text_features(**inputs).pooler_output))
        return np.concatenate(parts)


def open_hub_encoder(folder: Path, device: torch.device, *, name: str, source: str) -> HubEncoder:
    """Loads a model's folder; raises `SparsightError` naming it and what is wrong with it."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    where = source if source == str(folder) else f"{source} ({folder})"
    if not is_hub_folder(folder):
        raise SparsightError(f"no encoder in {where}: its {CONFIG} names no model_type of transformers")
    family = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"]
    if family not in FAMILIES:
        raise SparsightError(f"{where} holds a model of type {family}; encoders are of type {', '.join(FAMILIES)}")
    if lacking := lacking_files(folder):
        raise SparsightError(f"no encoder in {where}: {lacking}")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _quiet(), _damage(where):
        config = AutoConfig.from_pretrained(folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        processor = AutoImageProcessor.from_pretrained(folder, **options)
        model, info = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=_precision(device),
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # and refuse them here, by name
            output_loading_info=True,
            **options,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise SparsightError(f"damaged encoder in {where}: tensor {missing[0]}{more} missing")
    for key, found, wanted in info["mismatched_keys"]:
        shapes = f"the shape {tuple(found)}, where {CONFIG} asks for {tuple(wanted)}"
        raise SparsightError(f"damaged encoder in {where}: tensor {key} has {shapes}")
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise SparsightError(f"damaged encoder in {where}: tensor {key} has values that are not finite")
    with _quiet(), _damage(where):  # a picture and a text are tried: do the files fit together?
        encoder = HubEncoder(
            model.to(device), tokenizer, processor, name=name, source=source, fingerprint=fingerprint_of(folder)
        )
        X = encoder.encode_images(np.zeros((1, encoder.image_size, encoder.image_size, 3), np.uint8))
        if X.shape[1] != encoder.dim:
            raise ValueError(f"pictures have {X.shape[1]} dimensions, texts {encoder.dim}")
    return encoder


def _unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features.float(), dim=1).cpu().numpy()


def _precision(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if fast_bf16(device) else torch.float16


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """Whatever transformers, tokenizers and safetensors raise over a folder's contents becomes one line."""
    try:
        yield
    except Exception as e:
        raise SparsightError(f"damaged encoder in {where}: {reason_of(e)}") from e


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' own progress bars and load reports are left out: what is wrong is said in one line."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
