"""CLIP, SigLIP and SigLIP 2 through transformers: a local folder, or a model of the Hugging Face hub.

Only safetensors are read and no code of a model's makers is ever run. What is downloaded is what the fingerprint
is taken over: configuration, tokenizer, image processor and weights. A model that the cache holds is not asked for
again, so that an index goes on answering without a network and with the very model that it was built with.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.captions import CLIP_TEMPLATES, embed_concepts
from training.centring import Means, centre
from training.device import fast_bf16
from training.errors import SparsightError
from training.files import CONFIG, digest, has_setting

FAMILIES = ("clip", "siglip", "siglip2")  # model_type; most of SigLIP 2's models say siglip
IMAGE_PROCESSOR = ("preprocessor_config.json", "processor_config.json")  # either
VOCABULARY = ("tokenizer.json", "merges.txt", "spiece.model", "tokenizer.model")  # any
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
FILES = (
    CONFIG,
    *IMAGE_PROCESSOR,
    *VOCABULARY,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *WEIGHTS,
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Models whose main branch holds a pickle alone: the commit of the hub's own conversion to safetensors.
CONVERTED = {"openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef"}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # org/name or org/name@revision
BATCH = 64


class HubEncoder:
    """A CLIP-like model of transformers, used as `training.encoder.Encoder` is: arrays in, unit float32 rows out.

    name, source: the hub's name for it, or its folder's; an index opens it again by its source. concepts: none, for
    nobody has listed its captions. templates: CLIP's usual prompt. means: see `centred`.
    """

    concepts: dict[str, str] = {}  # noqa: RUF012 (never written to)
    known_from = 0.0  # no cosine is known below which a text means little to it
    templates = CLIP_TEMPLATES

    def __init__(self, model: Any, tokenizer: Any, processor: Any, *, name: str, source: str, fingerprint: str):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.processor = tokenizer, processor
        self.name, self.source, self.fingerprint = name, source, fingerprint
        self.trained_on = f"pictures and texts that the model card of {name} names"
        self.means: Means | None = None
        vision = model.config.vision_config
        # SigLIP 2's NaFlex models take so many patches of any arrangement: here a square of them.
        self.image_size = getattr(vision, "image_size", 0) or vision.patch_size * int(processor.max_num_patches**0.5)
        self.dim = self.encode_texts(["a photo"]).shape[1]

    @property
    def device(self) -> torch.device:
        return self.model.device

    def centred(self, means: Means) -> HubEncoder:
        """The same encoder, its embeddings centred on the means of their modality (`centring.py`)."""
        other = copy.copy(self)
        other.means = means
        return other

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
        X = np.concatenate(parts)
        return X if self.means is None else centre(X, self.means.image)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (n, d)."""
        Z = self._embed_texts(texts)
        return Z if self.means is None else centre(Z, self.means.text)

    def encode_concepts(self, concepts: Sequence[str], templates: Sequence[str] = CLIP_TEMPLATES) -> np.ndarray:
        """Concepts → (m, d): each the normalised mean of its prompts' embeddings, centred after that."""
        D = embed_concepts(self._embed_texts, concepts, templates)
        return D if self.means is None else centre(D, self.means.text)

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> np.ndarray:
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


def is_hub_name(name: str) -> bool:
    """True for org/name, org/name@revision."""
    return HUB_NAME.fullmatch(name) is not None


def is_hub_folder(folder: Path) -> bool:
    """True where a folder's configuration is that of a transformers model."""
    return has_setting(folder, "model_type")


def fetch(name: str) -> Path:
    """The folder of a hub's model (org/name, org/name@revision) in the local cache, downloaded where it is not there.

    Raises `SparsightError` naming the model, the cache and the way out.
    """
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    repo, _, revision = name.partition("@")
    revision = revision or CONVERTED.get(repo, "main")

    def snapshot(cached: bool) -> Path:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES), local_files_only=cached))

    with suppress(Exception):  # whatever is wrong with the cache: ask the hub
        folder = snapshot(cached=True)
        if _lacks(folder) is None:
            return folder
    try:
        # Without a network this fails at once, where the download would try again and again.
        HfApi(endpoint=constants.ENDPOINT).model_info(repo, revision=revision, timeout=10)
        return snapshot(cached=False)
    except Exception as e:  # of huggingface_hub, its HTTP client, or the disk
        closed = isinstance(e, errors.RepositoryNotFoundError)
        reason = "it has no such model, or none that is open to you" if closed else _reason(e)
        raise SparsightError(
            f"no encoder {name}: there is no such folder, the cache {constants.HF_HUB_CACHE} does not hold the whole "
            f"of that model, and it cannot be had from {constants.ENDPOINT} ({reason}); name a folder, or download the "
            "model where there is a network (the variable HF_HOME names the cache)"
        ) from e


def open_hub_encoder(folder: Path, device: torch.device, *, name: str, source: str) -> HubEncoder:
    """Loads a model's folder; raises `SparsightError` naming it and what is wrong with it."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    where = source if source == str(folder) else f"{source} ({folder})"
    if not is_hub_folder(folder):
        raise SparsightError(f"no encoder in {where}: its {CONFIG} names no model_type of transformers")
    family = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_type"]
    if family not in FAMILIES:
        raise SparsightError(f"{where} holds a model of type {family}; encoders are of type {', '.join(FAMILIES)}")
    if lacking := _lacks(folder):
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


def fingerprint_of(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that decide a model's output."""
    files = sorted({f for pattern in FILES for f in folder.glob(pattern)})
    return digest(part for f in files for part in (f.name.encode(), _sha256(f)))


def _sha256(path: Path) -> bytes:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").digest()


def _unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features.float(), dim=1).cpu().numpy()


def _precision(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if fast_bf16(device) else torch.float16


def _has_weights(folder: Path) -> bool:
    """True where every file of the weights is there: one, or all parts that the index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    try:
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return False
    return all((folder / part).is_file() for part in parts)


def _lacks(folder: Path) -> str | None:
    """What a model's folder has too little of, or None. (A tokenizer without a vocabulary loads, and knows nothing.)"""
    if not _has_weights(folder):
        pickles = sorted(f.name for pattern in PICKLES for f in folder.glob(pattern))
        held = f"{pickles[0]} is a pickle, which could run any code" if pickles else "there are none"
        return (
            f"its weights must be whole safetensors, and {held}; name a revision that has them (ORG/NAME@REVISION), "
            "or convert it"
        )
    for files in (IMAGE_PROCESSOR, VOCABULARY):
        if not any((folder / f).is_file() for f in files):
            return f"{' or '.join(files)} is missing"
    return None


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """Whatever transformers, tokenizers and safetensors raise over a folder's contents becomes one line."""
    try:
        yield
    except Exception as e:
        raise SparsightError(f"damaged encoder in {where}: {_reason(e)}") from e


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


def _reason(e: BaseException) -> str:
    return textwrap.shorten(str(e), 300) or type(e).__name__
