"""A CLIP, SigLIP or SigLIP 2 of transformers as an encoder.

Only safetensors are read, and code that comes with a model is never run. `training.encoders.hub_files` finds the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, Resampling, new

from training.device import fast_bf16
from training.encoders.batches import in_batches
from training.encoders.files import CONFIG
from training.encoders.hub_files import check_folder, hub_fingerprint, in_words, named_damage
from training.encoders.hub_text import HubTextEncoder, quiet
from training.encoders.square import as_picture
from training.errors import SparsightError

BATCH = 64  # pictures in one pass
LONGEST = 16  # times the shorter side: of a longer picture the middle is taken, where its ends would be cropped anyway


class HubEncoder(HubTextEncoder):
    """An `Encoder` that is a CLIP-like model of transformers, both towers computed by torch.

    model, tokenizer, processor: as transformers loads them. name: the hub's name for the model, or that of its folder.
    source: the hub's name, or the folder's path. fingerprint: over its files.
    """

    concepts: dict[str, str] = {}  # noqa: RUF012 (never written to); nobody has listed what its captions name
    batch = BATCH
    has_modality_gap = True

    def __init__(self, model: Any, tokenizer: Any, processor: Any, *, name: str, source: str, fingerprint: str):
        self.model = model.eval().requires_grad_(False)
        self.processor, self.source = processor, source
        super().__init__(
            self._embed_tokens,
            tokenizer,
            family=model.config.model_type,
            most_tokens=int(model.config.text_config.max_position_embeddings),
            name=name,
            fingerprint=fingerprint,
        )
        self.trained_on = f"pictures and texts that the model card of {name} names"
        self.image_size = _side(model.config.vision_config, processor)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def prepare(self, picture: Image) -> dict[str, torch.Tensor]:
        """A picture → the image tower's input, (1, …) each: squashed, cropped, or in patches of the picture's own
        shape, as the model's image processor does.

        The processor is told which axis of a tensor is the colours': it would guess.
        """
        given = scaled(reachable(picture, self.processor), self.processor)
        axis = {"input_data_format": "channels_first"} if isinstance(given, torch.Tensor) else {}
        return dict(self.processor(images=[given], return_tensors="pt", **axis))

    def encode_images(self, pictures: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Pictures of any shapes, prepared or not → X (n, d) float32 unit rows."""
        return in_batches(self._encode_image_batch, pictures, BATCH, self.dim)

    @torch.inference_mode()
    def _encode_image_batch(self, pictures: Sequence[Any] | np.ndarray) -> np.ndarray:
        prepared = [p if isinstance(p, dict) else self.prepare(as_picture(p)) for p in pictures]
        inputs = {key: torch.cat([p[key] for p in prepared]).to(self.device) for key in prepared[0]}
        inputs = {key: v.to(self.model.dtype) if v.is_floating_point() else v for key, v in inputs.items()}
        return _unit_rows(self.model.get_image_features(**inputs).pooler_output)

    @torch.inference_mode()
    def _embed_tokens(self, tokens: dict[str, np.ndarray]) -> np.ndarray:
        inputs = {part: torch.from_numpy(ids).to(self.device) for part, ids in tokens.items()}
        return _unit_rows(self.model.get_text_features(**inputs).pooler_output)


def open_hub_encoder(folder: Path, device: torch.device, *, name: str, source: str) -> HubEncoder:
    """Loads an encoder from the folder of a transformers model.

    name, source: as in `HubEncoder`. Raises `SparsightError` with the folder and what is wrong with it.
    """
    where = in_words(folder, source)
    check_folder(folder, where)
    with quiet(), named_damage(where):
        model, tokenizer, processor, info = _load(folder, device)
    _check_tensors(model, info, where)
    with quiet(), named_damage(where):
        fingerprint = hub_fingerprint(folder)
        encoder = HubEncoder(model.to(device), tokenizer, processor, name=name, source=source, fingerprint=fingerprint)
        # Encoding a text and pictures of two shapes shows whether the files fit together.
        prepared = [encoder.prepare(new("RGB", (encoder.image_size * w, encoder.image_size))) for w in (1, 2)]
        if len({tuple(v.shape for v in p.values()) for p in prepared}) > 1:
            raise ValueError("its image processor gives each picture a size of its own, but its tower takes one size")
        X = encoder.encode_images(prepared)
        if X.shape[1] != encoder.dim:
            raise ValueError(f"pictures have {X.shape[1]} dimensions, texts {encoder.dim}")
    return encoder


def _load(folder: Path, device: torch.device) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The model, the tokenizer, the image processor, and what transformers tells of the weights it loaded."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    processor = AutoImageProcessor.from_pretrained(folder, **options)
    model, info = AutoModel.from_pretrained(
        folder,
        config=config,
        dtype=_precision(device),
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are refused by `_check_tensors`, which names them
        output_loading_info=True,
        **options,
    )
    return model, tokenizer, processor, info


def _check_tensors(model: Any, info: dict[str, Any], where: str) -> None:
    """Raises `SparsightError` where a tensor is missing, has another shape, or has values that are not finite."""
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


def _side(vision: Any, processor: Any) -> int:
    """Pixels a side of what the image tower sees, or of what its processor crops that from, where that is more."""
    patches = getattr(processor, "max_num_patches", 0)  # of a NaFlex model of SigLIP 2: so many, in any arrangement
    sizes = [getattr(vision, "image_size", None), int(patches**0.5) * vision.patch_size]
    size = getattr(processor, "size", None) or {}
    sizes += [size[key] for key in ("shortest_edge", "height", "width") if key in size]
    return max(int(s) for s in sizes if s)


def reachable(picture: Image, processor: Any) -> Image:
    """A picture without what lies further from its centre than the processor's crop can reach.

    Without this a picture of 10000 × 1 pixels, whose shorter side is scaled up before the crop, would take gigabytes.
    """
    size = getattr(processor, "size", None) or {}
    if "shortest_edge" not in size or "longest_edge" in size:
        return picture
    width, height = picture.size
    longest = LONGEST * min(width, height)
    x, y = (max(0, (side - longest) // 2) for side in (width, height))
    return picture.crop((x, y, width - x, height - y)) if x or y else picture


def scaled(picture: Image, processor: Any) -> Image | torch.Tensor:
    """A picture in the size, (3, h, w) uint8, to which a processor scales it before all else; as it is where that
    depends on more than its shape.

    The processor would do the same, bit by bit, but copies the whole picture several times before, which takes longer
    than the scaling.
    """
    from torchvision.transforms.v2.functional import InterpolationMode, resize

    modes: dict[Any, InterpolationMode] = {
        Resampling.BICUBIC: InterpolationMode.BICUBIC,
        Resampling.BILINEAR: InterpolationMode.BILINEAR,
    }
    mode = modes.get(getattr(processor, "resample", None))
    size = getattr(processor, "size", None) or {}
    resizes = getattr(processor, "do_resize", False) and getattr(processor, "backend", None) == "torchvision"
    if mode is None or not resizes or picture.mode != "RGB":
        return picture
    if "shortest_edge" in size and "longest_edge" not in size:
        shape = [int(size["shortest_edge"] * side / min(picture.size)) for side in picture.size[::-1]]
    elif "height" in size and "width" in size:
        shape = [size["height"], size["width"]]
    else:
        return picture
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return resize(pixels, shape, interpolation=mode, antialias=True)


def _unit_rows(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features.float(), dim=1).cpu().numpy()


def _precision(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if fast_bf16(device) else torch.float16
