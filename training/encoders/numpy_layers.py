"""The layers of a transformer in plain numpy, for the text towers that answer a query without torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def layer_norm(h: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Each row of h (…, width) about 0 and of deviation 1, then scaled and moved."""
    h = h - h.mean(-1, keepdims=True)
    h = h / np.sqrt(h.var(-1, keepdims=True) + eps)
    return h * weight + bias


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, *, is_causal: bool = False) -> np.ndarray:
    """Multi-head attention without its projections: three of (…, t, width) → (…, t, width).

    is_causal: a token attends to itself and to those before it.
    """
    q, k, v = (a.reshape(*a.shape[:-1], heads, -1).swapaxes(-2, -3) for a in (q, k, v))  # (…, heads, t, width / heads)
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if is_causal:
        scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (scores / scores.sum(-1, keepdims=True)) @ v
    mixed = mixed.swapaxes(-2, -3)
    return mixed.reshape(*mixed.shape[:-2], -1)


def gelu(x: np.ndarray) -> np.ndarray:
    """x Φ(x), Φ being the normal distribution function."""
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    """The form of `gelu` by tanh."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def quick_gelu(x: np.ndarray) -> np.ndarray:
    """The form of `gelu` by a sigmoid, with which OpenAI's CLIP was trained."""
    return x * 0.5 * (1 + np.tanh(0.851 * x))


# By the names that a configuration of transformers gives them.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": gelu,
    "gelu_new": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "quick_gelu": quick_gelu,
}


def _erf(x: np.ndarray) -> np.ndarray:
    """The error function to 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26): to import scipy's takes longer than a query."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.sign(x) * (1 - series * np.exp(-x * x))
