"""Rivals at few bytes: FAISS quantisers of the same embeddings, and the nearest concept alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.errors import SparsightError

CENTROIDS = 256  # of an 8-bit product quantiser: it cannot be trained on fewer rows
FACTORIES = ("SQ8", "SQ4", "PQ32", "PQ16", "PQ8", "OPQ16,PQ16", "OPQ32,PQ32")


def quantised(X: np.ndarray, train: np.ndarray, factory: str, seed: int) -> tuple[np.ndarray, int]:
    """X (n, d) coded and decoded by a FAISS quantiser trained on `train`; returns it and the bytes a row."""
    import faiss

    index = faiss.index_factory(X.shape[1], factory)
    for part in _parts(faiss, index):
        if isinstance(part, faiss.OPQMatrix):
            trainer = faiss.ProductQuantizer(part.d_out, part.M, 8)
            trainer.cp.min_points_per_centroid = 1  # or every clustering warns of few rows
            part.pq = trainer
        elif getattr(part, "pq", None) is not None:
            part.pq.cp.seed = seed
            part.pq.cp.min_points_per_centroid = 1
            part.do_polysemous_training = False  # it renumbers centroids: slow, and nothing that is measured changes
    index.train(train)
    codes = index.sa_encode(X)
    return index.sa_decode(codes), int(codes.shape[1])


def baselines(
    X: np.ndarray, train: np.ndarray, D: np.ndarray, judge: Callable[[np.ndarray], dict[str, float]], seed: int
) -> tuple[list[dict], list[dict]]:
    """What `judge` says of X (n, d) as each baseline gives it back: name, bytes_per_image, and judge's figures.

    Beside it the baselines that cannot be trained on so few rows, or do not divide d: name, reason.
    """
    left_out = []
    found = [{"name": "float32", "bytes_per_image": 4 * X.shape[1], **judge(X)}]
    for factory in FACTORIES:
        parts = int(factory.rpartition("PQ")[2]) if "PQ" in factory else 1
        if X.shape[1] % parts:
            left_out.append({"name": factory, "reason": f"{parts} parts do not divide {X.shape[1]} dimensions"})
            continue
        if parts > 1 and len(train) < CENTROIDS:
            left_out.append({"name": factory, "reason": f"{len(train)} pictures to train on, {CENTROIDS} are needed"})
            continue
        try:
            R, size = quantised(X, train, factory, seed)
        except (RuntimeError, AssertionError) as e:
            raise SparsightError(f"FAISS cannot train {factory}: {e}") from e
        found.append({"name": factory, "bytes_per_image": size, **judge(R)})
    # Matching pursuit with one atom: the baseline that a space trained on labels must be measured against.
    nearest = D[(X @ D.T).argmax(1)]
    found.append({"name": "nearest concept alone", "bytes_per_image": 3, **judge(nearest)})
    return found, left_out


def _parts(faiss, index) -> list:
    if isinstance(index, faiss.IndexPreTransform):
        transform = faiss.downcast_VectorTransform(index.chain.at(0))
        return [faiss.downcast_index(index.index), transform]
    return [faiss.downcast_index(index)]
