"""The texts of a CLIP, SigLIP or SigLIP 2 of transformers: their tokens, and the text tower in plain numpy.

To import torch and transformers' models takes longer than a person waits for an answer. A text query therefore reads
the text tower alone, and of its vocabulary the rows of its own words. The tokenizer is transformers' own: those classes
need no torch. The model of transformers (`training.encoders.hub`) remains the reference, and a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.data.captions import CLIP_TEMPLATES, embed_concepts
from training.encoders.batches import in_batches
from training.encoders.cut import left_out_of, warn_of_cut
from training.encoders.files import CONFIG
from training.encoders.hub_files import check_folder, hub_fingerprint, in_words, named_damage, weight_files
from training.encoders.numpy_layers import ACTIVATIONS, attention, layer_norm
from training.encoders.tensors import Tensors

BATCH = 64  # texts in one pass
TOKENIZERS = {  # which class reads a family's texts, by the class that a folder names (None: it names none)
    "clip": {None: "CLIPTokenizer", "CLIPTokenizer": "CLIPTokenizer"},
    "siglip": {
        None: "SiglipTokenizer",
        "SiglipTokenizer": "SiglipTokenizer",
        "Siglip2Tokenizer": "Siglip2Tokenizer",
        "GemmaTokenizer": "GemmaTokenizer",
    },
    "siglip2": {None: "Siglip2Tokenizer", "Siglip2Tokenizer": "Siglip2Tokenizer", "GemmaTokenizer": "Siglip2Tokenizer"},
}
# What transformers assumes of a text tower whose configuration does not say it.
SIGLIP = {
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "max_position_embeddings": 64,
    "eos_token_id": 49407,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {
        "num_attention_heads": 8,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    },
    "siglip": SIGLIP,
    "siglip2": SIGLIP,
}


class Unreadable(Exception):
    """A model whose texts the numpy tower cannot read, though transformers may."""


class HubTextEncoder:
    """A `TextEncoder` that is the text tower of a CLIP-like model.

    embed: tokens, as `tokens` gives them → (b, d) float32 unit rows. tokenizer: as transformers loads it.
    family: one of `FAMILIES`. most_tokens: that the tower reads. name, fingerprint: as `TextEncoder` tells.
    """

    known_from = 0.0  # no cosine is known below which a text means little to it
    templates = CLIP_TEMPLATES

    def __init__(
        self,
        embed: Callable[[dict[str, np.ndarray]], np.ndarray],
        tokenizer: Any,
        *,
        family: str,
        most_tokens: int,
        name: str,
        fingerprint: str,
    ):
        self._embed, self.tokenizer, self._family, self._most_tokens = embed, tokenizer, family, most_tokens
        self.name, self.fingerprint = name, fingerprint
        self.dim = self._encode_batch(["a photo"]).shape[1]  # which shows whether the files fit together, too

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (n, d) float32 unit rows."""
        warn_of_cut(texts, self.left_out, self._most_tokens)
        return in_batches(self._encode_batch, texts, BATCH, self.dim)

    def left_out(self, text: str) -> str:
        """The end of a text that the tower does not read, in the small letters in which it is read."""
        return left_out_of(text.lower(), self.tokenizer, self._most_tokens)

    def encode_concepts(self, concepts: Sequence[str], templates: Sequence[str] | None = None) -> np.ndarray:
        """Concepts → (m, d) float32 unit rows, each the normalised mean of its prompts' embeddings."""
        return embed_concepts(self.encode_texts, concepts, templates or self.templates)

    def _encode_batch(self, texts: Sequence[str]) -> np.ndarray:
        return self._embed(self.tokens(texts))

    def tokens(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The text tower's input, (b, t) each, padded as the model's family was trained."""
        lower = [t.lower() for t in texts]  # every family was trained on lower case, and not every tokenizer makes it
        # SigLIP was trained on texts padded to full length, and attends to the padding.
        is_clip = self._family == "clip"
        padding, parts = (True, ["input_ids", "attention_mask"]) if is_clip else ("max_length", ["input_ids"])
        found = self.tokenizer(
            lower, padding=padding, padding_side="right", truncation=True, max_length=self._most_tokens
        )
        return {part: np.array(found[part], np.int64) for part in parts}


class _Settings(NamedTuple):
    heads: int
    activation: Callable[[np.ndarray], np.ndarray]
    eps: float
    most_tokens: int
    eos: int  # the token whose place holds a text of a CLIP


class NumpyTextTower:
    """The text tower of a CLIP-like model, read from its files and computed in float32.

    Raises KeyError or ValueError where a tensor is missing or damaged.
    """

    def __init__(self, tensors: Tensors, settings: _Settings, family: str):
        self.settings, self.is_clip = settings, family == "clip"
        tower = "text_model."
        self.vocabulary = tensors.rows(tower + "embeddings.token_embedding.weight")
        self.places = tensors.read(tower + "embeddings.position_embedding.weight")  # (most tokens, width)
        layer = tower + "encoder.layers."
        held = [name for name in tensors.places if name.startswith(layer)]
        self.layers = [
            {name.removeprefix(start): tensors.read(name) for name in held if name.startswith(start)}
            for start in (f"{layer}{i}." for i in range(len({name.split(".")[3] for name in held})))
        ]
        self.last = {part: tensors.read(f"{tower}final_layer_norm.{part}") for part in ("weight", "bias")}
        if self.is_clip:
            self.head = {"weight": tensors.read("text_projection.weight")}
        else:
            self.head = {part: tensors.read(f"{tower}head.{part}") for part in ("weight", "bias")}

    def __call__(self, tokens: dict[str, np.ndarray]) -> np.ndarray:
        """The ids of tokens (b, t) → unit rows (b, d). What pads a CLIP's text comes after its end, which sees none."""
        ids = tokens["input_ids"]
        h = self.vocabulary[ids] + self.places[: ids.shape[1]]  # (b, t, width)
        for layer in self.layers:
            h = h + self._attend(self._norm(h, layer, "layer_norm1."), layer)
            inner = self.settings.activation(_linear(self._norm(h, layer, "layer_norm2."), layer, "mlp.fc1."))
            h = h + _linear(inner, layer, "mlp.fc2.")
        z = _linear(self._norm(h[np.arange(len(ids)), self._end(ids)], self.last), self.head)
        return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)

    def _end(self, ids: np.ndarray) -> np.ndarray:
        """Where each text's embedding stands: (b, t) → (b,)."""
        if not self.is_clip:
            return np.full(len(ids), -1)
        # Configurations of before 2023 name token 2, which is wrong; the end is then the token of the highest number.
        return ids.argmax(1) if self.settings.eos == 2 else (ids == self.settings.eos).argmax(1)

    def _attend(self, h: np.ndarray, layer: dict[str, np.ndarray]) -> np.ndarray:
        q, k, v = (_linear(h, layer, f"self_attn.{part}_proj.") for part in "qkv")
        mixed = attention(q, k, v, self.settings.heads, is_causal=self.is_clip)
        return _linear(mixed, layer, "self_attn.out_proj.")

    def _norm(self, h: np.ndarray, layer: dict[str, np.ndarray], name: str = "") -> np.ndarray:
        return layer_norm(h, layer[name + "weight"], layer[name + "bias"], self.settings.eps)


def _linear(h: np.ndarray, layer: dict[str, np.ndarray], name: str = "") -> np.ndarray:
    z = h.reshape(-1, h.shape[-1]) @ layer[name + "weight"].T  # one product: of (b, t, width) numpy would make b
    z = z.reshape(*h.shape[:-1], -1)
    return z + layer[name + "bias"] if name + "bias" in layer else z


def open_hub_text_encoder(folder: Path, *, name: str, source: str) -> HubTextEncoder:
    """Loads the text tower of a transformers model from its folder, without torch.

    name, source: as in `HubEncoder`.
    Raises `Unreadable` for what transformers alone can read, or nobody.
    """
    where = in_words(folder, source)
    family = check_folder(folder, where)
    with ThreadPoolExecutor(1) as pool, _readable(), quiet():
        fingerprint = pool.submit(hub_fingerprint, folder)  # hashing holds no lock of Python's
        settings = _settings(folder, family)
        tokenizer = _open_tokenizer(folder, family)
        tower = NumpyTextTower(Tensors(weight_files(folder)), settings, family)

        def embed(tokens: dict[str, np.ndarray]) -> np.ndarray:
            with named_damage(where):
                return tower(tokens)

        return HubTextEncoder(
            embed,
            tokenizer,
            family=family,
            most_tokens=settings.most_tokens,
            name=name,
            fingerprint=fingerprint.result(),
        )


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except Exception as e:  # of transformers, tokenizers, safetensors or ours; the whole model is asked then
        raise Unreadable(str(e)) from e


def _settings(folder: Path, family: str) -> _Settings:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    # Early files of CLIP hold a second form of the settings, which transformers puts before the first.
    told = config.get("text_config_dict") or config.get("text_config") or {}
    found = DEFAULTS[family] | told
    if not isinstance(found["eos_token_id"], int):
        raise Unreadable("more than one token ends a text")
    return _Settings(
        heads=found["num_attention_heads"],
        activation=ACTIVATIONS[found["hidden_act"]],
        eps=found["layer_norm_eps"],
        most_tokens=found["max_position_embeddings"],
        eos=found["eos_token_id"],
    )


def _open_tokenizer(folder: Path, family: str) -> Any:
    """The tokenizer that AutoTokenizer would open: that one imports torch, the classes themselves do not."""
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "auto_map" in told:
        raise Unreadable("its tokenizer comes with code")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    named = told.get("tokenizer_class") or config.get("tokenizer_class")
    found = TOKENIZERS[family][named.removesuffix("Fast") if named else None]
    import transformers

    return getattr(transformers, found).from_pretrained(folder, local_files_only=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' own progress bars and load reports; what is wrong is told in one line."""
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
