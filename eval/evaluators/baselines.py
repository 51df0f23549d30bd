"""What do other ways to keep a picture in few bytes give? FAISS quantisers, and the nearest concept alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.evaluators.worth import Worth
from training.errors import SparsightError

CENTROIDS = 256  # of an 8-bit product quantiser: it cannot be trained on fewer rows
FACTORIES = ("SQ8", "SQ4", "PQ32", "PQ16", "PQ8", "OPQ16,PQ16", "OPQ32,PQ32")
NEAREST_BYTES = 3  # a 16-bit concept id and an 8-bit weight


@dataclass(frozen=True, kw_only=True)
class Baseline(Worth):
    """What one baseline is worth; bytes_per_image: of its codes, without its codebooks."""

    name: str
    bytes_per_image: float


@dataclass(frozen=True)
class LeftOut:
    """A baseline that could not be measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Baselines:
    found: list[Baseline]
    left_out: list[LeftOut]


def judge_baselines(
    X: np.ndarray,
    train: np.ndarray,
    D: np.ndarray,
    judge: Callable[[np.ndarray], Worth],
    seed: int = 0,
    factories: Sequence[str] = FACTORIES,
) -> Baselines:
    """Judges X (n, d) as each baseline gives it back; those that X or `train` do not allow are left out.

    train (k, d): the rows that the quantisers learn from; D (m, d): the concepts; factories: FAISS descriptions.
    Raises `SparsightError` where FAISS cannot train one.
    """
    d = X.shape[1]
    found, left_out = [Baseline(name="float32", bytes_per_image=4 * d, **vars(judge(X)))], []
    for factory in factories:
        if reason := unfit(factory, d, len(train)):
            left_out.append(LeftOut(factory, reason))
            continue
        R, size = quantised(X, train, factory, seed)
        found.append(Baseline(name=factory, bytes_per_image=size, **vars(judge(R))))
    # Matching pursuit with one atom: a space trained on labels must be measured against it.
    nearest = judge(D[(X @ D.T).argmax(1)])
    found.append(Baseline(name="nearest concept alone", bytes_per_image=NEAREST_BYTES, **vars(nearest)))
    return Baselines(found, left_out)


def unfit(factory: str, d: int, rows: int) -> str | None:
    """Why a product quantiser cannot be trained on so many rows of d dimensions; None where it can.

    >>> unfit("PQ16", d=100, rows=1000)
    '16 parts do not divide 100 dimensions'
    """
    parts = int(factory.rpartition("PQ")[2]) if "PQ" in factory else 1
    if d % parts:
        return f"{parts} parts do not divide {d} dimensions"
    if parts > 1 and rows < CENTROIDS:
        return f"{rows} pictures to train on, {CENTROIDS} are needed"
    return None


def quantised(X: np.ndarray, train: np.ndarray, factory: str, seed: int) -> tuple[np.ndarray, int]:
    """X (n, d) coded and decoded by a FAISS quantiser trained on `train` (k, d); returns it and the bytes a row.

    Raises `SparsightError` where FAISS cannot train it.
    """
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
    try:
        with _one_thread(faiss):
            index.train(train)
    except (RuntimeError, AssertionError) as e:
        raise SparsightError(f"FAISS cannot train {factory}: {e}") from e
    codes = index.sa_encode(X)
    return index.sa_decode(codes), int(codes.shape[1])


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
        transform = faiss.downcast_VectorTransform(index.chain.at(0))
        return [faiss.downcast_index(index.index), transform]
    return [faiss.downcast_index(index)]
