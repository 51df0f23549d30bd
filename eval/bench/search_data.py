"""Pictures, queries and the clock for the benchmark of the searches.

n pictures of 8 concepts each out of 10,000, used as often as words are (Zipf); weights are exponential. A query is five
concepts with scores between 0.2 and 1, drawn either as often as they are used ("frequent": long lists) or all alike
("any"); or all 10,000 with scores of either sign, as a text gives them ("all").
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from scipy import sparse

from eval.bench.common import Row
from eval.evaluators import recall
from search.ranking import top_k

M, CONCEPTS, DIM, TERMS, K = 10_000, 8, 256, 5, 10
KINDS = ("frequent", "any", "all")
RECALL = f"recall@{K}"
Search = Callable[[np.ndarray], tuple[np.ndarray, int]]  # scores (M,) → ids (K,), postings read (−1: unknown)
T = TypeVar("T")


@dataclass(frozen=True)
class Way:
    """A way to search: its name, what answers one query, and figures to print beside its times.

    takes_all: whether it answers queries that score all concepts; others are not made for these, or take seconds.
    """

    name: str
    search: Search
    figures: Row = field(default_factory=dict)
    takes_all: bool = False


class Problem:
    """Codes W (n, M) CSR, queries S (q, M) of each kind, and the K best of the float32 product W s for each query."""

    def __init__(self, n: int, queries: int, seed: int):
        self.n = n
        self.W = step(f"{n:,} pictures", lambda: synthetic_codes(n, seed))
        self.queries = {kind: synthetic_queries(queries, seed + 1, kind) for kind in KINDS}

    @cached_property
    def columns(self) -> sparse.csc_matrix:
        """W by concept."""
        return by_concept(self.W)

    @cached_property
    def exact(self) -> dict[str, np.ndarray]:
        """Ids (q, K) of the best, by kind of query."""
        return {kind: np.array([top_k(self.W @ s, K) for s in S]) for kind, S in self.queries.items()}

    def time(self, way: Way) -> list[Row]:
        """A row for each kind of query that a way answers."""
        kinds = KINDS if way.takes_all else KINDS[:2]
        return [
            {"name": way.name, "queries": kind, "n": self.n}
            | timed(way.search, self.queries[kind], self.exact[kind])
            | way.figures
            for kind in kinds
        ]


def synthetic_codes(n: int, seed: int) -> sparse.csr_matrix:
    """W (n, M) CSR with CONCEPTS different concepts a row, concept r drawn in proportion to 1 / (r + 1)."""
    rng, share = np.random.default_rng(seed), _zipf()
    concepts = np.searchsorted(share, rng.random((n, CONCEPTS))).astype(np.int32)
    left = np.arange(n)
    while len(left):  # draw again what a row has drawn twice
        rows = concepts[left]
        again = np.zeros(rows.shape, bool)
        for a in range(1, CONCEPTS):
            again[:, a] = (rows[:, :a] == rows[:, a : a + 1]).any(1)
        rows[again] = np.searchsorted(share, rng.random(int(again.sum())))
        concepts[left] = rows
        left = left[again.any(1)]
    weights = (rng.exponential(0.15, concepts.shape) + 0.02).astype(np.float32)
    indptr = np.arange(n + 1, dtype=np.int64) * CONCEPTS
    return sparse.csr_matrix((weights.ravel(), concepts.ravel(), indptr), shape=(n, M))


def synthetic_queries(count: int, seed: int, kind: str) -> np.ndarray:
    """S (count, M) with TERMS scores a row; for the kind "all" D t, a text's."""
    rng = np.random.default_rng(seed)
    if kind == "all":
        D = rng.normal(size=(M, DIM)).astype(np.float32)
        D /= np.linalg.norm(D, axis=1, keepdims=True)
        t = D[rng.integers(0, M, count)] + 0.5 * D[rng.integers(0, M, count)]
        return t / np.linalg.norm(t, axis=1, keepdims=True) @ D.T
    chance = np.diff(_zipf(), prepend=0.0) if kind == "frequent" else np.full(M, 1 / M)
    S = np.zeros((count, M), np.float32)
    for row in S:
        row[rng.choice(M, TERMS, replace=False, p=chance)] = rng.uniform(0.2, 1, TERMS)
    return S


def timed(search: Search, S: np.ndarray, exact: np.ndarray | None) -> Row:
    """Median, 10th and 90th percentile of the times of single queries S (q, M), in ms, after one that warms up.

    With `exact` (q, K), the ids to be found, also their recall.
    """
    search(S[0])
    times, found, read = [], [], []
    for s in S:
        start = time.perf_counter()
        ids, postings = search(s)
        times.append((time.perf_counter() - start) * 1e3)
        found.append(ids)
        read.append(postings)
    low, median, high = np.percentile(times, (10, 50, 90))
    row: Row = {"median_ms": median, "p10_ms": low, "p90_ms": high, "read": float(np.median(read))}
    return row if exact is None else row | {RECALL: recall(np.array(found), exact)}


def by_concept(W: sparse.csr_matrix) -> sparse.csc_matrix:
    """W by concept, the ids of each in ascending order."""
    columns = W.tocsc()
    columns.sort_indices()
    return columns


def filled(ids: list[int]) -> np.ndarray:
    """K ids, the missing ones −1, −2 …: some ways do not return pictures with a score of 0."""
    return np.array(ids + [-1 - i for i in range(K - len(ids))])


def step(what: str, work: Callable[[], T]) -> T:
    """Does some work, and tells how long it took."""
    start = time.perf_counter()
    result = work()
    print(f"{what}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return result


def _zipf() -> np.ndarray:
    """(M,): the running sum of the concepts' shares, 1 / (r + 1) of each."""
    share = np.cumsum(1 / np.arange(1, M + 1))
    return share / share[-1]
