"""Quantisers of FAISS, and one bit a dimension.

The rotation of OPQ is the parametric one (Ge et al. 2013): the principal components, shared out as those of our own
residuals are. On the bundled embeddings OPQ16 so reaches a recall@10 of 0.87, and four or sixteen of FAISS's rounds on
top of it change nothing; from FAISS's own start, a random rotation, it reaches 0.81 after fifty rounds. It is the
stronger baseline, and the cheaper.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from eval.baselines.kept import Kept, Material, timed
from indexer.residual import balanced_axes
from training.errors import SparsightError

CENTROIDS = 256  # of an 8-bit product quantiser: it cannot be trained on fewer rows


def unfit(factory: str, d: int, rows: int) -> str | None:
    """Why a quantiser cannot be trained on so many rows of d dimensions; None where it can.

    >>> unfit("PQ16", d=100, rows=1000)
    '16 parts do not divide 100 dimensions'
    """
    parts = int(factory.rpartition("PQ")[2]) if "PQ" in factory else 1
    if d % parts:
        return f"{parts} parts do not divide {d} dimensions"
    if parts > 1 and rows < CENTROIDS:
        return f"{rows} pictures to train on, {CENTROIDS} are needed"
    if factory.startswith("PCA") and (needed := int(factory[3:].partition(",")[0])) > min(d, rows):
        return f"{needed} components, there are {min(d, rows)}"
    return None


def quantised(material: Material, factory: str, *, own_start: bool = False) -> Kept:
    """X coded and decoded by a FAISS quantiser that was trained on `train`.

    factory: its description. own_start: FAISS begins an OPQ as it does by itself, at a random rotation. Raises
    `SparsightError` where FAISS cannot train it.
    """
    import faiss

    index = faiss.index_factory(material.X.shape[1], factory)
    parts = _parts(faiss, index)
    for part in parts:
        if isinstance(part, faiss.OPQMatrix):
            _prepare_rotation(faiss, part, None if own_start else material.train)
        elif getattr(part, "pq", None) is not None:
            part.pq.cp.seed = material.seed
            part.pq.cp.min_points_per_centroid = 1
            part.do_polysemous_training = False  # it renumbers centroids: slow, and nothing that is measured changes
    try:
        with _one_thread(faiss):
            _, train_seconds = timed(lambda: index.train(material.train))
    except (RuntimeError, AssertionError) as e:
        raise SparsightError(f"FAISS cannot train {factory}: {e}") from e
    codes, code_seconds = timed(lambda: index.sa_encode(material.X))
    return Kept(
        A=index.sa_decode(codes),
        bytes_per_image=int(codes.shape[1]),
        table_bytes=4 * sum(_floats(part) for part in parts),
        train_seconds=train_seconds,
        code_seconds=code_seconds,
    )


def one_bit(material: Material) -> Kept:
    """The sign of each dimension about its mean, given back as the mean distance on that side of it."""
    d = material.X.shape[1]

    def learn() -> tuple[np.ndarray, np.ndarray]:
        mean = material.train.mean(0)
        return mean, np.abs(material.train - mean).mean(0)

    (mean, scale), train_seconds = timed(learn)
    bits, code_seconds = timed(lambda: np.packbits(mean < material.X, axis=1))
    signs = np.unpackbits(bits, axis=1, count=d).astype(np.float32) * 2 - 1
    return Kept(
        A=mean + signs * scale,
        bytes_per_image=bits.shape[1],
        table_bytes=8 * d,
        train_seconds=train_seconds,
        code_seconds=code_seconds,
    )


def _prepare_rotation(faiss: Any, rotation: Any, train: np.ndarray | None) -> None:
    """Lets a rotation learn from few rows, and start from the components of `train`, where it can."""
    quantiser = faiss.ProductQuantizer(rotation.d_out, rotation.M, 8)
    quantiser.cp.min_points_per_centroid = 1  # or every clustering warns of few rows
    rotation.pq = quantiser
    if train is not None and rotation.d_in == rotation.d_out:
        rotation.niter = 0
        faiss.copy_array_to_vector(balanced_axes(train, rotation.M, rotation.d_out).ravel(), rotation.A)


@contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    """Training clusters in many short steps. Where other work has the cores, threads that wait for each other after
    each of them take ten times as long as one alone; and the codebooks do not depend on the number of cores."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _parts(faiss: Any, index: Any) -> list[Any]:
    if isinstance(index, faiss.IndexPreTransform):
        transforms = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
        return [faiss.downcast_index(index.index), *transforms]
    return [faiss.downcast_index(index)]


def _floats(part: Any) -> int:
    """The numbers that a trained part holds beside the codes."""
    held = [getattr(part, name, None) for name in ("A", "b", "center")]
    held += [part.pq.centroids] if getattr(part, "pq", None) is not None and not hasattr(part, "A") else []
    held += [part.sq.trained] if hasattr(part, "sq") else []
    return sum(int(each.size()) for each in held if each is not None)
