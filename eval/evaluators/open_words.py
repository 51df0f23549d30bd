"""Do both indexes understand words that no caption held, and do they tell them from words that mean nothing here?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eval.evaluators.intervals import Interval, means_ci95
from eval.evaluators.judge import query_precision
from eval.evaluators.queries import DEVELOPMENT, NOTHING_DEVELOPMENT, NOTHING_UNSEEN, UNSEEN


@dataclass(frozen=True)
class WordsFound:
    """The figures of one list of queries.

    queries, nothing: how many queries, and how many meaningless words. precision_dense, precision_sparse: mean P@10.
    known_queries_median, known_nothing_median: a text's *known* score is its cosine with the nearest concept.
    separation: the probability that a query's known score is above a meaningless word's (the area under the ROC curve).
    missed: the queries of which more than half of the ten dense hits are wrong. ci95: bootstrap intervals over queries,
    of the sparse precision less the dense one in `difference`.
    """

    queries: int
    precision_dense: float
    precision_sparse: float
    ci95: dict[str, Interval]
    nothing: int
    known_queries_median: float
    known_nothing_median: float
    separation: float
    missed: list[str]


@dataclass(frozen=True)
class OpenWords:
    """development: queries by which training choices were made; unseen: queries that none was made by."""

    development: WordsFound
    unseen: WordsFound


def judge_open_words(
    embed: Callable[[Sequence[str]], np.ndarray], X: np.ndarray, R: np.ndarray, D: np.ndarray, groups: np.ndarray
) -> OpenWords:
    """Asks both lists of `eval.evaluators.queries`.

    embed: texts → (q, d). X (n, d): embeddings; R (n, d): what their codes give back; D (m, d): the concepts;
    groups (n,): the class name of each picture.
    """
    return OpenWords(
        development=words_found(embed, X, R, D, groups, DEVELOPMENT, NOTHING_DEVELOPMENT),
        unseen=words_found(embed, X, R, D, groups, UNSEEN, NOTHING_UNSEEN),
    )


def words_found(
    embed: Callable[[Sequence[str]], np.ndarray],
    X: np.ndarray,
    R: np.ndarray,
    D: np.ndarray,
    groups: np.ndarray,
    queries: Sequence[tuple[str, str]],
    nothing: Sequence[str],
) -> WordsFound:
    """Asks queries, (text, class) each, and compares them with words that mean nothing; arrays as above."""
    Q, Z = embed([query for query, _ in queries]), embed(nothing)
    wanted = np.array([name for _, name in queries])
    known, unknown = (Q @ D.T).max(1), (Z @ D.T).max(1)
    dense, sparse = (query_precision(Q @ A.T, groups, wanted) for A in (X, R))
    return WordsFound(
        queries=len(queries),
        precision_dense=float(dense.mean()),
        precision_sparse=float(sparse.mean()),
        ci95=dict(
            zip(
                ("precision_dense", "precision_sparse", "difference"),
                means_ci95(np.stack([dense, sparse, sparse - dense], axis=1)),
                strict=True,
            )
        ),
        nothing=len(nothing),
        known_queries_median=float(np.median(known)),
        known_nothing_median=float(np.median(unknown)),
        separation=float((known[:, None] > unknown[None]).mean()),
        missed=[query for (query, _), share in zip(queries, dense, strict=True) if share < 0.5],
    )
