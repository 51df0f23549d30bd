"""Rivals at few bytes: FAISS quantisers of the same embeddings, and the nearest concept alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.errors import SparsightError

FACTORIES = ("SQ8", "SQ4", "PQ32", "PQ16", "PQ8", "OPQ16,PQ16", "OPQ32,PQ32")


def quantised(X: np.ndarray, train: np.ndarray, factory: str, seed: int) -> tuple[np.ndarray, int]:
    """X (n, d) coded and decoded by a FAISS quantiser trained on `train`; returns it and the bytes a row."""
    import faiss

    index = faiss.index_factory(X.shape[1], factory)
    for part in _parts(faiss, index):
        if getattr(part, "pq", None) is not None:
            part.pq.cp.seed = seed
            part.pq.cp.min_points_per_centroid = 1
    index.train(train)
    codes = index.sa_encode(X)
    return index.sa_decode(codes), int(codes.shape[1])


def rivals(
    X: np.ndarray, train: np.ndarray, D: np.ndarray, judge: Callable[[np.ndarray], dict[str, float]], seed: int
) -> list[dict]:
    """What `judge` says of X (n, d) as each rival gives it back: name, bytes_per_image, and judge's figures."""
    found = [{"name": "float32", "bytes_per_image": 4 * X.shape[1], **judge(X)}]
    for factory in FACTORIES:
        try:
            R, size = quantised(X, train, factory, seed)
        except (RuntimeError, AssertionError) as e:  # a dimension that the quantiser cannot divide
            if X.shape[1] % 32 == 0:
                raise SparsightError(f"FAISS cannot train {factory}: {e}") from e
            continue
        found.append({"name": factory, "bytes_per_image": size, **judge(R)})
    # Matching pursuit with one atom: the baseline that a space trained on labels must be measured against.
    nearest = D[(X @ D.T).argmax(1)]
    found.append({"name": "nearest concept alone", "bytes_per_image": 3, **judge(nearest)})
    return found


def _parts(faiss, index) -> list:
    if isinstance(index, faiss.IndexPreTransform):
        transform = faiss.downcast_VectorTransform(index.chain.at(0))
        return [faiss.downcast_index(index.index), transform]
    return [faiss.downcast_index(index)]
