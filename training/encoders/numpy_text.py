"""The text tower in plain numpy, so that a command answers a text query in a fraction of a second.

To import torch, timm and transformers takes seconds; to run so small a tower takes a millisecond. A text query
therefore reads the tower's weights itself. The transformers model (`training.encoders.text_tower`) remains the
reference, and a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.config import HEAD_WIDTH
from training.data.captions import TEMPLATES, embed_concepts
from training.encoders.files import CONFIG, WEIGHTS, trained_fingerprint
from training.encoders.numpy_layers import attention, gelu, layer_norm
from training.encoders.tokens import TowerTokenizer
from training.errors import SparsightError

LAYER_NORM_EPS = 1e-12  # BERT's


class NumpyTextEncoder:
    """A `TextEncoder`: the text tower of an encoder that `sparsight train` wrote, computed by numpy.

    Raises `SparsightError` where the folder holds no whole text tower.
    """

    def __init__(self, folder: Path):
        from safetensors import SafetensorError, safe_open

        try:
            config = json.loads((folder / CONFIG).read_text())
            self.name, self.known_from = config["name"], config.get("known_from", 0.0)
            self.tokenizer = TowerTokenizer.read(folder)
            with safe_open(folder / WEIGHTS, "np") as f:
                text = [k for k in f.keys() if k.startswith("text.")]  # noqa: SIM118 (not a dict)
                self.weights = {k.removeprefix("text."): f.get_tensor(k).astype(np.float32) for k in text}
            self.fingerprint = trained_fingerprint(folder)
            self.dim = len(self.weights["projection.weight"])
            self.layers = 1 + max(int(k.split(".")[3]) for k in self.weights if ".layer." in k)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as e:
            raise SparsightError(f"no whole text tower in {folder}: {e}") from e

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (n, d) float32 unit rows."""
        self.tokenizer.warn(texts)
        rows = [self._embed(np.array(ids, np.int64)) for ids in self.tokenizer.ids(texts)]
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    def left_out(self, text: str) -> str:
        """The end of a text that the tower does not read."""
        return self.tokenizer.left_out(text)

    def encode_concepts(self, concepts: Sequence[str], templates: Sequence[str] | None = None) -> np.ndarray:
        """Concepts → (m, d) float32 unit rows, each the normalised mean of its prompts' embeddings."""
        return embed_concepts(self.encode_texts, concepts, templates or TEMPLATES)

    def _embed(self, ids: np.ndarray) -> np.ndarray:
        """The ids (t,) of one text's tokens → its unit row (d,)."""
        if not len(ids):  # of a text of spaces
            return np.zeros(self.dim, np.float32)
        w = self.weights
        embeddings = "bert.embeddings."
        h = (
            w[embeddings + "word_embeddings.weight"][ids]
            + w[embeddings + "position_embeddings.weight"][: len(ids)]
            + w[embeddings + "token_type_embeddings.weight"][0]
        )  # (t, width)
        h = self._norm(h, embeddings + "LayerNorm")
        for i in range(self.layers):
            layer = f"bert.encoder.layer.{i}."
            h = self._norm(h + self._attend(h, layer + "attention."), layer + "attention.output.LayerNorm")
            inner = gelu(self._linear(h, layer + "intermediate.dense"))
            h = self._norm(h + self._linear(inner, layer + "output.dense"), layer + "output.LayerNorm")
        z = w["projection.weight"] @ h.mean(0)
        return (z / max(float(np.linalg.norm(z)), 1e-12)).astype(np.float32)

    def _attend(self, h: np.ndarray, name: str) -> np.ndarray:
        """Multi-head self-attention, its output projection included: (t, width) → (t, width)."""
        heads = max(1, h.shape[1] // HEAD_WIDTH)
        q, k, v = (self._linear(h, f"{name}self.{part}") for part in ("query", "key", "value"))
        return self._linear(attention(q, k, v, heads), name + "output.dense")

    def _linear(self, h: np.ndarray, name: str) -> np.ndarray:
        return h @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def _norm(self, h: np.ndarray, name: str) -> np.ndarray:
        return layer_norm(h, self.weights[name + ".weight"], self.weights[name + ".bias"], LAYER_NORM_EPS)
