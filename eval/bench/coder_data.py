"""What the benchmark of the coder codes: synthetic rows, the bundled embeddings, mixtures of real CLIP embeddings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer.coding import choose_l1, encode_sparse
from indexer.config import CoderConfig
from training.errors import SparsightError

CLIP = "clip-vit-b32-lvis.npy"  # text embeddings of LVIS' 1,203 names by CLIP ViT-B/32, in the data root


@dataclass(frozen=True)
class Problem:
    """X (n, d) to be coded over D (m, d) at the penalty l1, absolute."""

    name: str
    X: np.ndarray
    D: np.ndarray
    l1: float


def synthetic(
    n: int, m: int, d: int, concepts: int, seed: int = 0, noise: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """X (n, d), D (m, d): atoms in families of about 20 (cosine 0.5), rows of `concepts` atoms each and noise."""
    rng = np.random.default_rng(seed)
    families = _unit(rng.standard_normal((max(1, m // 20), d), np.float32))
    D = _unit(families[rng.integers(0, len(families), m)] + _unit(rng.standard_normal((m, d), np.float32)))
    X = np.empty((n, d), np.float32)
    for start in range(0, n, 10_000):
        x = X[start : start + 10_000]
        weights = rng.random((len(x), concepts), np.float32) + 0.3
        signal = _unit(np.einsum("nk,nkd->nd", weights, D[rng.integers(0, m, weights.shape)]))
        x[:] = _unit(signal + 0.6 * _unit(rng.standard_normal(x.shape, np.float32)))
    return X, D


def _unit(A: np.ndarray) -> np.ndarray:
    return A / np.linalg.norm(A, axis=1, keepdims=True)


def synthetic_problem(n: int, m: int, d: int, concepts: int) -> Problem:
    """A synthetic problem at the penalty that gives about so many concepts a row."""
    X, D = synthetic(n, m, d, concepts)
    l1 = choose_l1(X, D, concepts, CoderConfig(relative=False))
    return Problem(f"{d} × {m:,}, {concepts} concepts", X, D, l1)


def bundled_problems(encoder_name: str | None) -> list[Problem]:
    """The shipped encoder's test embeddings and terms, at the index's own sparsity and a denser one."""
    from indexer.coding import make_dictionary
    from training.encoders import load_test_embeddings, open_encoder

    encoder = open_encoder(encoder_name or "bundled")
    X, D = load_test_embeddings(encoder).X, make_dictionary("terms", encoder).D
    X, D = np.ascontiguousarray(X, np.float32), np.ascontiguousarray(D, np.float32)
    problems = []
    for relative in (CoderConfig.l1, 0.3):
        concepts = encode_sparse(X, D, CoderConfig(l1=relative)).W.nnz / len(X)
        l1 = choose_l1(X, D, concepts, CoderConfig(relative=False))
        problems.append(Problem(f"{D.shape[1]} × {len(D)}, bundled, {concepts:.1f} concepts", X, D, l1))
    return problems


def clip_dictionary() -> np.ndarray:
    """D (m, d): CLIP's embeddings of LVIS' names, centred and normalised; real dictionaries are coherent, as it is.

    Raises `SparsightError` where the data root lacks the file.
    """
    path = Path(os.environ.get("SPARSIGHT_DATA", "data")) / CLIP
    if not path.is_file():
        raise SparsightError(f"no CLIP dictionary: {path} is missing")
    E = _unit(np.load(path).astype(np.float32))
    return np.ascontiguousarray(_unit(E - E.mean(0)))


def mixtures(D: np.ndarray, n: int, seed: int = 0, noise: float = 1.2) -> np.ndarray:
    """X (n, d): three atoms of D a row, with weights between 0.3 and 1.3, and noise `noise` times as long."""
    rng = np.random.default_rng(seed)
    weights = rng.random((n, 3), np.float32) + 0.3
    signal = _unit(np.einsum("nk,nkd->nd", weights, D[rng.integers(0, len(D), weights.shape)]))
    return _unit(signal + noise * _unit(rng.standard_normal(signal.shape, np.float32)))


def clip_problems(concepts: tuple[float, ...] = (2, 7, 12, 40), n: int = 10_000) -> list[Problem]:
    """Mixtures over the CLIP dictionary, at the penalties that give about so many concepts a row."""
    D = clip_dictionary()
    X, problems = mixtures(D, n), []
    for k in concepts:
        l1 = choose_l1(X, D, k, CoderConfig(relative=False))
        problems.append(Problem(f"{D.shape[1]} × {len(D):,}, CLIP, {k:g} concepts", X, D, l1))
    return problems
