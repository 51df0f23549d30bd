"""The k best of some scores, always in the same order."""

from __future__ import annotations

import numpy as np


def top_k(scores: np.ndarray, k: int, ids: np.ndarray | None = None) -> np.ndarray:
    """Places (min(k, n),) of the largest scores (n,), largest first.

    Equal scores are ordered by `ids` (n,), or by their place without it.
    """
    k = min(k, len(scores))
    if k == 0:
        return np.zeros(0, np.int64)
    kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= kth)
    ties = candidates if ids is None else ids[candidates]
    return candidates[np.lexsort((ties, -scores[candidates]))][:k]
