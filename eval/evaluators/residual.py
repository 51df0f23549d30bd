"""What do concepts with a product-quantised residual keep of the embeddings, for how many bytes, beside OPQ alone?

Every method is judged alike: what its code gives back is normalised, and recall@10 of dense neighbours is measured with
both sides coded, and with the query's exact embedding. Bytes are a picture's alone: its concepts in the compact layout
(`compact_bytes`) and the residual's code; the tables that are shared by all pictures stand beside, under a name of
their own. Codebooks are learnt from pictures that are not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from eval.evaluators.accuracy import predicted
from eval.evaluators.memory import compact_bytes, compacted
from eval.evaluators.retrieval import neighbours, recall
from indexer.coding import encode_sparse
from indexer.config import CoderConfig
from indexer.residual import code_residuals, fit_quantiser, learn_quantiser, read_description, scales_of

K = 10


@dataclass(frozen=True)
class Judged:
    """Pictures with the embeddings X (n, d), judged by classes T (c, d) and labels (n,); train (k, d): embeddings of
    other pictures, to learn codebooks from. every: each how-manieth picture asks for its neighbours among all."""

    X: np.ndarray
    train: np.ndarray
    T: np.ndarray
    labels: np.ndarray
    every: int = 1

    @cached_property
    def dense_neighbours(self) -> np.ndarray:
        """(q, K) of the pictures that ask."""
        return neighbours(self.X, K, every=self.every)

    def figures(self, R: np.ndarray) -> dict[str, float]:
        """What R (n, d), which is normalised here, is worth in place of X."""
        R = np.asarray(R * scales_of(R)[:, None], np.float32)
        return {
            "accuracy": float((predicted(R, self.T) == self.labels).mean()),
            "cosine": float((self.X * R).sum(1).mean()),
            "recall_both_coded": recall(neighbours(R, K, every=self.every), self.dense_neighbours),
            "recall_query_exact": recall(neighbours(R, K, queries=self.X, every=self.every), self.dense_neighbours),
        }


def judge_residual(
    judged: Judged, D: np.ndarray, *, l1: float, description: str, refit: bool = True, seed: int = 0
) -> dict[str, Any]:
    """The figures of codes over D (m, d) at a relative penalty with a residual of a FAISS description ("": none).

    Keys: name, description, l1, seed, bytes_per_image, concepts_mean, codebook_bytes (shared by all pictures, as the
    dictionary is), accuracy, cosine, recall_both_coded, recall_query_exact. The seed turns all embeddings before
    anything is learnt and starts the centroids, so that seeds differ in whatever is learnt.
    """
    W, W_train = (codes_at(A, D, l1, refit) for A in (judged.X, judged.train if description else judged.X[:0]))
    return judge_codes(judged, D, W, W_train, l1=l1, description=description, seed=seed)


def codes_at(X: np.ndarray, D: np.ndarray, l1: float, refit: bool = True) -> sparse.csr_matrix:
    """Codes (n, m) of X (n, d) at a relative penalty, as the compact layout gives them back."""
    if not len(X):
        return sparse.csr_matrix((0, len(D)), dtype=np.float32)
    return compacted(encode_sparse(X, D, CoderConfig(l1=l1, refit=refit)).W)


def judge_codes(
    judged: Judged,
    D: np.ndarray,
    W: sparse.csr_matrix,
    W_train: sparse.csr_matrix,
    *,
    l1: float,
    description: str,
    seed: int = 0,
) -> dict[str, Any]:
    """As `judge_residual`, for codes W (n, m) and W_train (k, m) that were made already."""
    R, size, tables = W @ D, 0, 0
    if description:
        turn = turned(D.shape[1], seed)
        quantiser = learn_quantiser(judged.train @ turn, W_train, D @ turn, description, seed)
        coded = code_residuals(judged.X @ turn, W, D @ turn, quantiser)
        R = R + quantiser.decode(coded.codes) @ turn.T
        size, tables = quantiser.size, quantiser.bytes
    return {
        "name": f"concepts {l1:g}" + (f" + {description}" if description else ""),
        "description": description,
        "l1": l1,
        "seed": seed,
        "bytes_per_image": compact_bytes(W) / W.shape[0] + size,
        "concepts_mean": W.nnz / W.shape[0],
        "codebook_bytes": tables,
        **judged.figures(R),
    }


def judge_quantiser(judged: Judged, description: str, seed: int = 0) -> dict[str, Any]:
    """The figures of a product quantiser of the embeddings themselves; keys as those of `judge_residual`."""
    turn = turned(judged.X.shape[1], seed)
    shape = read_description(description, len(turn), len(judged.train))
    quantiser = fit_quantiser(judged.train @ turn, shape, seed)
    return {
        "name": description,
        "description": description,
        "l1": None,
        "seed": seed,
        "bytes_per_image": float(quantiser.size),
        "concepts_mean": 0.0,
        "codebook_bytes": quantiser.bytes,
        **judged.figures(quantiser.decode(quantiser.encode(judged.X @ turn)) @ turn.T),
    }


def over_seeds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of rows that differ in their seeds, and for each figure a 95 % interval of that mean over seeds (by
    Student's t), as `low` and `high`.

    >>> found = over_seeds([{"name": "a", "accuracy": 0.9}, {"name": "a", "accuracy": 0.8}])
    >>> round(found["accuracy"], 3), round(found["low"]["accuracy"], 3)
    (0.85, 0.215)
    """
    from scipy.stats import t

    found: dict[str, Any] = {**rows[0], "seeds": len(rows), "low": {}, "high": {}}
    found.pop("seed", None)
    for key in ("accuracy", "cosine", "recall_both_coded", "recall_query_exact"):
        if key not in rows[0]:
            continue
        values = np.array([row[key] for row in rows])
        half = float(t.ppf(0.975, len(rows) - 1) * values.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else 0.0
        mean = float(values.mean())
        found |= {key: mean}
        found["low"][key], found["high"][key] = mean - half, mean + half
    return found


def best_at(rows: Iterable[dict[str, Any]], most_bytes: float, key: str = "recall_both_coded") -> dict[str, Any] | None:
    """Of rows of at most so many bytes a picture the one that keeps most neighbours; None where there is none."""
    return max((row for row in rows if row["bytes_per_image"] <= most_bytes), key=lambda row: row[key], default=None)


def turned(d: int, seed: int) -> np.ndarray:
    """A rotation (d, d), another for each seed; the identity for 0."""
    if not seed:
        return np.eye(d, dtype=np.float32)
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0].astype(np.float32)
