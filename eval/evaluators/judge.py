"""What is a representation worth? The same figures for codes, for every penalty, and for every baseline.

Every representation is judged by unit rows. With the lengths that quantisers give back their neighbours are much worse
than they need be (OPQ16 of the bundled embeddings: a recall@10 of 0.70 in place of 0.87). Codes of very few concepts do
better with their own lengths, as the index searches them, and longer ones worse; so these stand beside, not among them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import sparse

from eval.evaluators.accuracy import predicted, wilson
from eval.evaluators.intervals import Interval, means_ci95
from eval.evaluators.retrieval import agreeing, largest, neighbours, shared

METRICS = ("accuracy", "class_precision", "term_precision", "recall_of_dense", "text_precision")


@dataclass(frozen=True, kw_only=True)
class Worth:
    """Figures of one representation A (n, d) of the same pictures; None where it takes labels or terms that there are
    not.

    cosine_mean: of each row with its embedding. recall_of_dense: recall@10 of dense neighbours. accuracy: of the class.
    class_precision, term_precision: P@10 of the nearest other pictures, by class and by search term. text_precision:
    P@10 of text queries. ci95: the 95 % interval of each, by name: Wilson's for the accuracy, else by the bootstrap
    over the queries.
    """

    cosine_mean: float
    recall_of_dense: float
    accuracy: float | None = None
    class_precision: float | None = None
    term_precision: float | None = None
    text_precision: float | None = None
    ci95: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Hits:
    """How right a representation is, query by query: shares by the names of METRICS, as far as they can be known.

    cosines (n,): of each row with its embedding; each of `of` (n,) or, for text_precision, (q,).
    """

    cosines: np.ndarray
    of: dict[str, np.ndarray]


@dataclass(frozen=True)
class Texts:
    """Text queries: vectors (q, d), and the group that each asks for (q,); groups (n,): those of the pictures.

    kind: what the texts are, "terms" or "classes".
    """

    kind: str
    vectors: np.ndarray
    wanted: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Judge:
    """Judges representations of the pictures with embeddings X (n, d).

    T (c, d) and labels (n,): the classes, or None where no label is known. terms (n,): the search term of each picture
    as a number, or None. texts: queries by text, or None. seed: of the intervals.
    """

    X: np.ndarray
    T: np.ndarray | None = None
    labels: np.ndarray | None = None
    terms: np.ndarray | None = None
    texts: Texts | None = None
    k: int = 10
    seed: int = 0

    @cached_property
    def dense_neighbours(self) -> np.ndarray:
        """(n, k)."""
        return neighbours(self.X, self.k)

    def __call__(self, A: np.ndarray) -> Worth:
        """What A (n, d) is worth in place of X.

        >>> X = np.eye(3, dtype=np.float32)
        >>> Judge(X, T=X, labels=np.array([0, 1, 1]))(X).accuracy
        0.6666666666666666
        """
        return self.worth(self.hits(A))

    def hits(self, A: np.ndarray, latent: np.ndarray | None = None, *, lengths: bool = False) -> Hits:
        """How right A (n, d) is for each query. latent (n, l): by whose inner products neighbours are found; A without
        it. lengths: whether the rows keep their own."""
        A = A if lengths else unit(A)
        found = neighbours(A if latent is None else unit(latent), self.k)
        of = {"recall_of_dense": shared(found, self.dense_neighbours)}
        if self.labels is not None and self.T is not None:
            of["accuracy"] = (predicted(A, self.T) == self.labels).astype(np.float32)
            of["class_precision"] = agreeing(found, self.labels)
        if self.terms is not None:
            of["term_precision"] = agreeing(found, self.terms)
        if self.texts is not None:
            of["text_precision"] = query_precision(
                self.texts.vectors @ A.T, self.texts.groups, self.texts.wanted, self.k
            ).astype(np.float32)
        return Hits(row_cosines(self.X, A).astype(np.float32), of)

    def worth(self, hits: Hits) -> Worth:
        """The means of hits, and their intervals."""
        means = {name: float(values.mean(dtype=np.float64)) for name, values in hits.of.items()}
        ci95: dict[str, Interval] = {}
        for n in {len(values) for values in hits.of.values()}:
            names = [name for name, values in hits.of.items() if len(values) == n and name != "accuracy"]
            if names:
                columns = np.stack([hits.of[name] for name in names], axis=1)
                ci95 |= dict(zip(names, means_ci95(columns, self.seed), strict=True))
        if "accuracy" in hits.of:
            ci95["accuracy"] = wilson(int(hits.of["accuracy"].sum()), len(hits.of["accuracy"]))
        return Worth(cosine_mean=float(hits.cosines.mean(dtype=np.float64)), ci95=ci95, **means)


def query_precision(scores: np.ndarray, groups: np.ndarray, wanted: np.ndarray, k: int = 10) -> np.ndarray:
    """P@k (q,) of each query: the share of its k best pictures that are of the wanted group.

    scores (q, n); groups (n,): each picture's; wanted (q,): each query's. Of equal scores the earlier picture counts.

    >>> query_precision(np.array([[0.9, 0.1, 0.8]]), np.array(["cat", "cat", "dog"]), np.array(["cat"]), k=2)
    array([0.5])
    """
    top = largest(scores, min(k, scores.shape[1]))
    return (groups[top] == wanted[:, None]).mean(1)


def reconstruct(W: sparse.csr_matrix, D: np.ndarray) -> np.ndarray:
    """W D (n, d) float32."""
    return np.asarray(W @ D, np.float32)


def unit(A: np.ndarray) -> np.ndarray:
    """The rows of A (n, d) at length 1, float32; zero rows stay.

    >>> unit(np.array([[3.0, 0.0], [0.0, 0.0]])).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    lengths = np.linalg.norm(A, axis=1, keepdims=True)
    return (A / np.maximum(lengths, 1e-12)).astype(np.float32)


def row_cosines(X: np.ndarray, R: np.ndarray) -> np.ndarray:
    """cos(x_i, r_i) (n,); 0 where a row is zero.

    >>> row_cosines(np.eye(2), np.array([[3.0, 0.0], [0.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    norms = np.linalg.norm(X, axis=1) * np.linalg.norm(R, axis=1)
    return (X * R).sum(1) / np.maximum(norms, 1e-12)
