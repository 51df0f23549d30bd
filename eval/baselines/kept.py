"""What every baseline is given, and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import sparse

from eval.evaluators import compact_bytes, compacted, reconstruct

T = TypeVar("T")


@dataclass(frozen=True)
class Material:
    """X (n, d): the embeddings to keep; train (k, d): the rows to learn from; D (m, d): the concepts."""

    X: np.ndarray
    train: np.ndarray
    D: np.ndarray
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Kept:
    """X (n, d) as a baseline gives it back, as A (n, d), and what that costs.

    bytes_per_image: of the codes alone; table_bytes: of what all pictures share (codebooks, rotations, atoms).
    concepts: how many a picture has, where it is kept as such. latent (n, l): codes by whose inner products neighbours
    are found; without it by A. train_seconds, code_seconds: to learn, and to code all of X.
    """

    A: np.ndarray
    bytes_per_image: float
    table_bytes: int
    concepts: float | None = None
    latent: np.ndarray | None = None
    train_seconds: float = 0.0
    code_seconds: float = 0.0


class Way(NamedTuple):
    """A baseline: its name, its family, what it does, and a reason where it cannot be done."""

    name: str
    family: str
    make: Callable[[Material], Kept]
    unfit: Callable[[Material], str | None] = lambda _: None


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` gives, and the seconds that it took."""
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def kept_codes(W: sparse.csr_matrix, D: np.ndarray, code_seconds: float) -> Kept:
    """Codes W (n, m) over D (m, d) in the same compact layout as our own."""
    n = W.shape[0]
    return Kept(
        A=reconstruct(compacted(W), D),
        bytes_per_image=compact_bytes(W) / n,
        table_bytes=4 * D.size,
        concepts=W.nnz / n,
        code_seconds=code_seconds,
    )
