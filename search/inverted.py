"""The query engine over the packed postings: concept scores in, the k best pictures out, exactly.

A query is a score s_j for each concept; a picture's score is Σ_j w_ij s_j. Notable decisions:

- Totals are whole numbers: what a step of weight is worth, s_j · step, is rounded to a multiple of a fraction of the
  largest one (2⁻³⁶ for a few concepts, 2⁻²⁶ for ten thousand). So a total does not depend on the order of its sum:
  every way to an answer gives the same bits, ties are ties, and they go to the lower id. The fraction follows from s
  and the coarsest step, so that scores of shards are those of the whole.
- Only what can change the k best is read: MaxScore (Turtle & Flood 1995) over tiers of lists and windows of ids. The
  cost is that of the postings read: for a few concepts no array is as long as the index.
- A query that scores most concepts, as a text does, can leave little out. It is answered picture by picture, from
  rows that the first such query makes.
- A new process answers in numpy. Once its queries have read as many postings as numpy reads in the time that loading
  numba's kernels takes, the kernels are loaded. They give the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import sparse

from indexer.store.postings import STEP, TIERS, WEIGHT_BITS, Postings
from search.ranking import top_k

if TYPE_CHECKING:
    from search import kernels

PATIENCE = 3_000_000  # postings that numpy reads in about the time that it takes to load the kernels
MANY, MOST = 200, 0.5  # queries of more tiers that hold more than half the postings are answered picture by picture
TOUCHED = 0.1  # postings a picture from which a sum for every picture is quicker than sorting the postings
BATCH = 2**24  # postings that a batch of queries may touch at a time: bounds its memory


class Found(NamedTuple):
    """ids (k,) int64, best first, ties by id; scores (k,) float64; read: the postings that were read for them."""

    ids: np.ndarray
    scores: np.ndarray
    read: int


class QuantisedQuery(NamedTuple):
    """tiers (t,) int64: those with a score; units (t,) int64: what one step of their weights is worth, in `scale`s."""

    tiers: np.ndarray
    units: np.ndarray
    scale: float


class Inverted:
    """Answers queries over one index's packed postings.

    patience: how many postings are read in numpy before numba is loaded.
    ids (n,): the pictures that there are, ascending; without it all of those below postings.n.
    """

    def __init__(self, postings: Postings, patience: int = PATIENCE, ids: np.ndarray | None = None):
        self.postings = postings
        self._ids = np.arange(postings.n) if ids is None else ids
        self._patience = patience

    def search(self, s: np.ndarray, k: int, coarsest: float | None = None) -> Found:
        """The min(k, n) pictures with the largest W s for concept scores s (m,), of either sign.

        Pictures that no scored concept touches have a score of 0, and stand above those below it. coarsest: the
        largest step of all postings whose answers are put together; None: of these.
        Raises ValueError for scores that are not (m,) finite numbers, and for damaged postings.
        """
        p = self.postings
        k = min(k, len(self._ids))
        tiers, units, scale = quantise_query(s, p, coarsest)
        touched = int(p.sizes[tiers].sum())
        self._patience -= touched
        if self._patience < 0 and k and (units > 0).any():
            most = len(tiers) > MANY and touched > MOST * p.sizes.sum()
            ids, totals, read = self._scan(tiers, units, k) if most else _max_score(p, tiers, units, k)
            if len(ids) == k:  # else too few have a score above 0, and the others count too
                best = np.lexsort((ids, -totals))
                return Found(ids[best], totals[best] * scale, read)
        row, ids, codes = p.lists(tiers)
        worth = codes * units[row].astype(np.float64)
        if len(ids) > p.n * TOUCHED:
            every = np.bincount(ids, worth, p.n)
            found = np.flatnonzero(every)
            sums = every[found]
        else:
            found, at = np.unique(ids, return_inverse=True)
            sums = np.bincount(at, worth, len(found))
        found, sums = _best(found, sums, k, self._ids)
        return Found(found, sums * scale, len(ids))

    def search_many(self, S: np.ndarray | sparse.spmatrix, k: int) -> tuple[np.ndarray, np.ndarray]:
        """A batch of queries S (q, m), dense or sparse, as one sparse product: ids (q, k) and scores (q, k).

        The answers are those of `search`, k being at most n. Memory: the index as a scipy matrix, and BATCH results.
        """
        p = self.postings
        k, S = min(k, len(self._ids)), sparse.csr_matrix(S)
        queries = [quantise_query(row.toarray()[0], p) for row in S]
        ids, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
        touched = np.cumsum([p.sizes[q.tiers].sum() for q in queries])
        for part in np.split(np.arange(len(queries)), np.flatnonzero(np.diff(touched // BATCH)) + 1):
            if not len(part):  # there are no queries
                continue
            totals = self._products([queries[i] for i in part])
            for i, row in zip(part, totals, strict=True):
                ids[i], sums = _best(row.indices, row.data, k, self._ids)
                scores[i] = sums * queries[i].scale
        return ids, scores

    def _products(self, queries: list[QuantisedQuery]) -> sparse.csr_matrix:
        """The totals (q, n) of some queries."""
        rows = np.repeat(np.arange(len(queries)), [len(q.tiers) for q in queries])
        tiers, units = (np.concatenate([q[field] for q in queries]) for field in (0, 1))
        shape = (len(queries), len(self.postings.concept))
        return sparse.csr_matrix((units.astype(np.float64), (rows, tiers)), shape=shape) @ self._codes

    @cached_property
    def _codes(self) -> sparse.csr_matrix:
        """lift + code (t, n), by tier."""
        p = self.postings
        _, ids, codes = p.lists(np.arange(len(p.concept)))
        indptr = np.concatenate([[0], np.cumsum(p.sizes)])
        return sparse.csr_matrix((codes.astype(np.float64), ids, indptr), shape=(len(p.concept), p.n))

    def codes_of(self, ids: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """The concept ids, ascending, and the weights of some pictures, where a query has made the rows by picture."""
        if "_rows" not in self.__dict__:
            return None
        rows = self._rows
        spans = [slice(rows.starts[i], rows.starts[i + 1]) for i in ids]
        return [(rows.concepts[at], rows.weights[at] * self._steps[rows.concepts[at]]) for at in spans]

    @cached_property
    def _steps(self) -> np.ndarray:
        """(m,) float32: the step of each concept's weights."""
        steps = np.zeros(self.postings.m, np.float32)
        steps[self.postings.concept] = self.postings.step
        return steps

    def _scan(self, tiers: np.ndarray, units: np.ndarray, k: int) -> kernels.Totals:
        """Answers a query picture by picture."""
        from search.kernels import scan

        every = np.zeros(self.postings.m, np.int64)
        every[self.postings.concept[tiers]] = units  # all tiers of a concept have the same step
        return scan(every, self._rows, k)

    @cached_property
    def _rows(self) -> kernels.Rows:
        """The postings by picture, for queries that score most concepts: 6 bytes a posting, made when first needed."""
        from search.kernels import by_picture

        p = self.postings
        rows = by_picture(_packed(p), p.concept, p.start, p.lift, p.bits, p.n)
        if not len(rows.starts):
            raise ValueError("a block does not hold what its header says")
        return rows


def quantise_query(s: np.ndarray, p: Postings, coarsest: float | None = None) -> QuantisedQuery:
    """Turns concept scores s (m,) into whole numbers: w_ij s_j ≈ (lift + code)_ij · units · scale.

    No total of a picture passes 2⁵³. Tiers without a score, or with one that rounds to 0, are left out. coarsest: no
    step is larger; None: the largest. The scale depends on it and on s alone.
    Raises ValueError for scores that are not (m,) finite numbers.
    """
    s = np.asarray(s, np.float64)
    if s.shape != (p.m,) or not np.isfinite(s).all():
        raise ValueError(f"expected {p.m} finite concept scores, got an array {s.shape}")
    tiers = np.flatnonzero(s[p.concept])
    steps = p.step[tiers].astype(np.float64)
    bits = 53 - WEIGHT_BITS - int(np.count_nonzero(s)).bit_length()  # a picture has a concept once
    most = np.abs(s).max(initial=0.0) * (p.step.max(initial=STEP) if coarsest is None else coarsest)
    scale = float(np.ldexp(1.0, int(np.frexp(most)[1]) - bits))
    units = (np.rint(s[p.concept[tiers]] * STEP / scale) * (steps / STEP)).astype(np.int64)
    return QuantisedQuery(tiers[units != 0], units[units != 0], scale)


def _best(touched: np.ndarray, totals: np.ndarray, k: int, every: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k best of the pictures `every` (n,), of which `touched` have these totals and the others 0."""
    keep = totals > 0
    if keep.sum() < k:  # those with a total of 0 come next, the lowest ids of them, then those below
        keep = totals != 0
        low = every[: k + int(keep.sum())]
        blank = np.setdiff1d(low, touched[keep], assume_unique=True)[:k]
        touched, totals = np.append(touched[keep], blank), np.append(totals[keep], np.zeros(len(blank)))
    else:
        touched, totals = touched[keep], totals[keep]
    best = top_k(totals, k, touched)
    return touched[best], totals[best]


def _max_score(p: Postings, tiers: np.ndarray, units: np.ndarray, k: int) -> kernels.Totals:
    """Lays the tiers out for the kernel, and runs it."""
    from search.kernels import Tiers, max_score

    limits = np.maximum(units, 0) * p.limit[tiers]
    opens = np.diff(p.concept[tiers], prepend=-1) != 0
    strongest = limits[opens][np.cumsum(opens) - 1]
    by_limit = np.lexsort((tiers, -strongest, units < 0))  # whole concepts, those that can add most first
    tiers, units, limits = tiers[by_limit], units[by_limit], limits[by_limit]
    sizes, concept = p.sizes[tiers], p.concept[tiers]
    has_weaker = np.append(concept[1:] == concept[:-1], False) & (units > 0)
    weaker = np.where(has_weaker, np.arange(1, len(tiers) + 1), -1)
    margins = limits - np.where(has_weaker, limits[weaker], 0)
    price = margins / sizes  # do without those first that save most postings for what they can add
    for _ in TIERS:  # a weaker tier before its stronger
        price = np.where(has_weaker, np.maximum(price, price[weaker]), price)
    positive = int((units > 0).sum())
    layout = Tiers(
        begin=p.start[tiers],
        end=p.start[tiers + 1],
        size=sizes,
        unit=units,
        lift=p.lift[tiers].astype(np.int64),
        bits=p.bits[tiers].astype(np.int64),
        margin=margins,
        weaker=weaker,
        order=np.lexsort((-np.arange(positive), price[:positive])),
    )
    return max_score(_packed(p), layout, p.n, k)


def _packed(p: Postings) -> kernels.Packed:
    from search.kernels import Packed

    return Packed(p.first, p.last, p.count, p.width, p.offset, p.words)
