"""Encoding in batches, so that memory stays bounded whatever a caller hands in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def in_batches(
    encode: Callable[[Any], np.ndarray], items: Sequence[Any] | np.ndarray, size: int, dim: int
) -> np.ndarray:
    """Encodes n items, `size` at a time; returns (n, dim) float32, of no items (0, dim).

    encode: takes a slice of the items, returns (b, dim) float32.
    """
    parts = [encode(items[start : start + size]) for start in range(0, len(items), size)]
    return np.concatenate(parts) if parts else np.zeros((0, dim), np.float32)
