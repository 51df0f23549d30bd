"""Do the concepts carry the decision? Deletion and insertion curves (Petsiuk et al. 2018), against random order.

Deletion takes concepts out of the *embedding*, x − Σ w_j d_j, and asks how often the class stays what it was; so it
asks whether the encoder's own decision hangs on what the code names. Insertion builds the code up, concept by concept,
and asks how often it gives the embedding's class. In both the concepts that add most to that class come first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from eval.evaluators.intervals import Estimate, estimate

STEPS = 8
MOST = 2000  # pictures
ORDERS = 5  # at random, of which the mean is taken


@dataclass(frozen=True)
class Curve:
    """Shares of pictures that keep, or have, the embedding's class after 0, 1, 2, … concepts."""

    ordered: list[Estimate]
    random: list[Estimate]


@dataclass(frozen=True)
class Faithfulness:
    """n: pictures; nnz_mean: concepts in their codes; steps: how many concepts were taken out, or put in."""

    n: int
    nnz_mean: float
    steps: list[int]
    deletion: Curve
    insertion: Curve


def faithfulness(X: np.ndarray, W: sparse.csr_matrix, D: np.ndarray, T: np.ndarray, seed: int = 0) -> Faithfulness:
    """X (n, d) embeddings, W (n, m) codes over D (m, d), T (c, d) classes; at most MOST pictures, drawn at random."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(X))[:MOST])
    X, W = X[rows], W[rows]
    scores = X @ T.T  # (n, c)
    given = scores.argmax(1)
    parts = _parts(W, D @ T.T)  # (n, k, c): what each concept adds to each class; 0 where a code is shorter
    own = np.take_along_axis(parts, given[:, None, None], axis=2)[:, :, 0]
    places = np.arange(parts.shape[1])[None] < np.diff(W.indptr)[:, None]
    ordered = np.argsort(-np.where(places, own, -np.inf), axis=1, kind="stable")
    at_random = [np.argsort(np.where(places, rng.random(places.shape), 2), axis=1) for _ in range(ORDERS)]

    def curve(start: np.ndarray, sign: int) -> Curve:
        def kept(order: np.ndarray) -> np.ndarray:
            """(n, STEPS + 1): whether the class is the embedding's."""
            moved = np.take_along_axis(parts, order[:, :STEPS, None], axis=1).cumsum(1)
            now = np.concatenate([start[:, None], start[:, None] + sign * moved], axis=1)
            return (now.argmax(2) == given[:, None]) & ((sign < 0) | now.any(2))

        by_chance = np.mean([kept(order) for order in at_random], axis=0)
        return Curve(
            [estimate(column, seed) for column in kept(ordered).T.astype(np.float32)],
            [estimate(column, seed) for column in by_chance.T],
        )

    steps = list(range(min(STEPS, parts.shape[1]) + 1))
    return Faithfulness(len(X), W.nnz / len(X), steps, curve(scores, -1), curve(np.zeros_like(scores), 1))


def _parts(W: sparse.csr_matrix, G: np.ndarray) -> np.ndarray:
    """(n, k, c): w_j G_j for the concepts of each code, k of them in the longest; G (m, c)."""
    counts = np.diff(W.indptr)
    found = np.zeros((len(counts), max(int(counts.max(initial=0)), 1), G.shape[1]), np.float32)
    rows = np.repeat(np.arange(len(counts)), counts)
    found[rows, np.arange(W.nnz) - W.indptr[rows]] = W.data[:, None] * G[W.indices]
    return found
