"""How likely each class is for each picture, by evidence that the picture's own label is no part of.

Four scores of every picture and class, of which none needs the others:
- *text*: x·t of the class's prompts;
- *concepts*: the picture's concepts that belong to the class, log Σ exp(SHARP x·d) over them;
- *neighbours*: the labels of the nearest other pictures;
- *linear*: ridge regression of the labels on the embeddings, with the picture left out, in closed form:
  (ŷ − h y) / (1 − h), h being the picture's leverage.

Their weighted sum goes through a softmax. The weights are those under which the labels are most likely when a share of
them is drawn at random: so a few wrong labels, however sure the scores are against them, do not blunt it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from eval.audit.neighbours import nearest

SHARP = 20.0  # of the softmax over a class's concepts
VOTERS = 15  # neighbours
RIDGE = 1.0
FITTED = 20_000  # pictures that the weights are found by, at most


@dataclass(frozen=True)
class Evidence:
    """For n pictures and c classes: P (n, c) the probabilities, by evidence without the picture's own label; votes
    (n, c) of the nearest VOTERS others; weights: of each score, by name."""

    P: np.ndarray
    votes: np.ndarray
    weights: dict[str, float]


def weigh(X: np.ndarray, y: np.ndarray, T: np.ndarray, D: np.ndarray, parents: np.ndarray, seed: int = 0) -> Evidence:
    """The evidence on n labelled pictures: X (n, d), their classes y (n,), T (c, d); D (m, d) and the class of each
    concept (m,), −1 for none."""
    n, c = len(X), len(T)
    votes = neighbour_votes(X, y, c)
    scores = {
        "text": X @ T.T,
        "neighbours": np.log((votes + 1 / c) / (votes.sum(1, keepdims=True) + 1)),
        "linear": left_out_ridge(X, y, c),
    }
    if all((parents == j).any() for j in range(c)):
        of_class = [X @ D[parents == j].T for j in range(c)]
        scores["concepts"] = np.stack([logsumexp(SHARP * s, axis=1) / SHARP for s in of_class], 1)
    stacked = np.stack([s - s.mean(1, keepdims=True) for s in scores.values()]).astype(np.float64)
    drawn = np.arange(n) if n <= FITTED else np.random.default_rng(seed).choice(n, FITTED, replace=False)
    weights = fit_weights(stacked[:, drawn], y[drawn])
    P = np.exp(log_softmax(np.tensordot(weights, stacked, 1), axis=1))
    return Evidence(P, votes, dict(zip(scores, weights.tolist(), strict=True)))


def neighbour_votes(X: np.ndarray, y: np.ndarray, c: int) -> np.ndarray:
    """(n, c): how many of the VOTERS nearest others have each class."""
    _, places = nearest(X, VOTERS)
    votes = np.zeros((len(X), c), np.float32)
    for column in places.T:
        found = column >= 0
        votes[np.flatnonzero(found), y[column[found]]] += 1
    return votes


def left_out_ridge(X: np.ndarray, y: np.ndarray, c: int) -> np.ndarray:
    """(n, c): ridge regression of the classes on X (n, d) and a constant, each row predicted from all others."""
    X1 = np.column_stack([X, np.ones(len(X), X.dtype)]).astype(np.float64)
    Y = np.zeros((len(X), c))
    Y[np.arange(len(X)), y] = 1
    G = np.linalg.solve(X1.T @ X1 + RIDGE * np.eye(X1.shape[1]), X1.T).T  # (n, d + 1)
    leverage = np.einsum("ij,ij->i", X1, G)[:, None]
    return (X1 @ (G.T @ Y) - leverage * Y) / (1 - leverage)


def fit_weights(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The weights (f,) of scores (f, n, c) under which labels y (n,) are most likely, where a share of the labels is
    drawn at random from the other classes; that share is found as well."""
    f, n, c = scores.shape
    own = np.arange(n)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        noise = 1 / (1 + np.exp(-theta[-1]))
        P = np.exp(log_softmax(np.tensordot(theta[:-1], scores, 1), axis=1))
        p = P[own, y]
        likely = (1 - noise) * p + noise * (1 - p) / (c - 1)
        slope = (1 - noise - noise / (c - 1)) * p / likely  # of log likely by log p
        expected = np.einsum("nc,fnc->fn", P, scores)
        by_weight = (slope * (scores[:, own, y] - expected)).mean(1)
        by_noise = (noise * (1 - noise) * ((1 - p) / (c - 1) - p) / likely).mean()
        return -float(np.log(likely).mean()), -np.append(by_weight, by_noise)

    spread = scores.std((1, 2))
    start = np.append(3 / np.maximum(spread, 1e-6) / f, -3.5)
    scale = np.append(1 / np.maximum(spread, 1e-6), 1.0)  # all of one size, for the solver's sake

    def scaled(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = loss(z * scale)
        return value, slope * scale

    bounds = [(0.0, None)] * f + [(-9.0, 0.0)]
    return (minimize(scaled, start / scale, jac=True, method="L-BFGS-B", bounds=bounds).x * scale)[:-1]
