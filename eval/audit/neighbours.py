"""The nearest other pictures of every picture, by inner product, without comparing each with all."""

from __future__ import annotations

import numpy as np

EXACT = 20_000  # rows up to which each is compared with all: seconds
PROBED = 12  # lists of the index that are looked into


def nearest(X: np.ndarray, k: int, Q: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of X (n, d) with the largest inner product with each query of Q (n, d), but for the one at its place.

    Q: X itself without it. Returns cosines (n, k) float32 and places (n, k) int64, best first; −1 where there are
    fewer. Above EXACT rows they are found in an inverted file of FAISS, whose cost grows as n √n.
    """
    import faiss

    n, d = X.shape
    X = np.ascontiguousarray(X, np.float32)
    Q = X if Q is None else np.ascontiguousarray(Q, np.float32)
    index: faiss.Index = faiss.IndexFlatIP(d)
    if n > EXACT:
        lists = int(2 * np.sqrt(n))
        index = faiss.IndexIVFFlat(index, d, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(X[:: max(1, n // (40 * lists))])
        index.nprobe = PROBED
    index.add(X)
    scores, places = index.search(Q, min(k + 1, n))
    others = places != np.arange(n)[:, None]
    others[others.all(1), -1] = False  # the picture itself was not found: the last one goes
    scores, places = (a[others].reshape(n, -1) for a in (scores, places))
    return scores.astype(np.float32), places.astype(np.int64)
