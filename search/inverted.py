"""The query engine over the packed postings: concept scores in, the k best pictures out, exactly.

A query is a score s_j for each concept; a picture's score is Σ_j w_ij s_j. Notable decisions:

- Totals are whole numbers: what a step of weight is worth, s_j · step, is rounded to a multiple of a fraction of the
  largest one (2⁻³⁶ for a few concepts, 2⁻²⁶ for ten thousand). So a total does not depend on the order of its sum:
  every way to an answer gives the same bits, ties are ties, and they go to the lower id.
- Only what can change the k best is read: MaxScore (Turtle & Flood 1995) over tiers of lists and windows of ids. No
  array is as long as the index; the cost is that of the postings read. A query that scores most concepts, as a text
  does, can leave little out: it is answered picture by picture, from rows that the first such query makes.
- A cold process answers in numpy. Once it has been asked for as many postings as the loading of numba's
  kernels is worth, they are loaded; they give the same answers.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import sparse

from indexer.store.postings import TIERS, WEIGHT_BITS, Postings
from search.engine import top_k

PATIENCE = 3_000_000  # postings that numpy reads in about the time that it takes to load the kernels
WINDOW = 2**14  # ids that are summed at a time: the sums stay in the cache
MANY, MOST = 200, 0.5  # queries of more tiers that hold more than half the postings are answered picture by picture
SHARE = 0.4  # of the k-th best total, for what the tiers not read through may add; more of it means more looking up
BATCH = 2**24  # postings that a batch of queries may touch at a time: bounds its memory


class Found(NamedTuple):
    """ids (k,) int64, best first, ties by id; scores (k,) float64; read: the postings that were read for them."""

    ids: np.ndarray
    scores: np.ndarray
    read: int


class Inverted:
    """Answers queries over one index's packed postings.

    patience: the postings read in numpy before numba is loaded; ids (n,) ascending: the pictures that there are,
    without it all of those below postings.n.
    """

    def __init__(self, postings: Postings, patience: int = PATIENCE, ids: np.ndarray | None = None):
        self.postings = postings
        self._ids = np.arange(postings.n) if ids is None else ids
        self._patience = patience

    def search(self, s: np.ndarray, k: int, *, trust: float = 1.0) -> Found:
        """The min(k, n) pictures with the largest W s for concept scores s (m,), of either sign.

        trust: 1 is exact; below it, only this part of what unread postings might add to a picture is reckoned with:
        faster, what is found has its exact score, some of the best may be missed.
        Pictures that no scored concept touches have a score of 0, and stand above those below it.
        Raises ValueError for scores that are not (m,) finite numbers, and for damaged postings.
        """
        p = self.postings
        k = min(k, len(self._ids))
        tiers, units, scale = quantise_query(s, p)
        self._patience -= int(p.sizes[tiers].sum())
        if self._patience < 0 and k and (units > 0).any():
            if len(tiers) > MANY and p.sizes[tiers].sum() > MOST * p.sizes.sum():
                ids, totals, read = self._scan(tiers, units, k)
            else:
                ids, totals, read = _max_score(p, tiers, units, k, trust)
            if len(ids) == k:  # else too few have a score above 0, and the others count too
                best = np.lexsort((ids, -totals))
                return Found(ids[best], totals[best] * scale, read)
        row, ids, codes = p.lists(tiers)
        touched, at = np.unique(ids, return_inverse=True)
        totals = np.bincount(at, codes * units[row].astype(np.float64), len(touched))
        touched, totals = _best(touched, totals, k, self._ids)
        return Found(touched, totals * scale, len(ids))

    def search_many(self, S: np.ndarray | sparse.spmatrix, k: int) -> tuple[np.ndarray, np.ndarray]:
        """A batch of queries S (q, m), dense or sparse, as one sparse product: ids (q, k) and scores (q, k).

        The answers are those of `search`, k being at most n. Memory: the index as a scipy matrix, and BATCH results.
        """
        p = self.postings
        k, S = min(k, len(self._ids)), sparse.csr_matrix(S)
        queries = [quantise_query(row.toarray()[0], p) for row in S]
        ids, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
        touched = np.cumsum([p.sizes[tiers].sum() for tiers, _, _ in queries])
        for part in np.split(np.arange(len(queries)), np.flatnonzero(np.diff(touched // BATCH)) + 1):
            rows = np.repeat(np.arange(len(part)), [len(queries[i][0]) for i in part])
            tiers, units = (np.concatenate([queries[i][x] for i in part] or [[]]) for x in (0, 1))
            U = sparse.csr_matrix((units.astype(np.float64), (rows, tiers)), shape=(len(part), len(p.concept)))
            totals = U @ self._codes
            for r, i in enumerate(part):
                row = totals[r]
                ids[i], best = _best(row.indices, row.data, k, self._ids)
                scores[i] = best * queries[i][2]
        return ids, scores

    @cached_property
    def _codes(self) -> sparse.csr_matrix:
        """lift + code (t, n), by tier."""
        p = self.postings
        _, ids, codes = p.lists(np.arange(len(p.concept)))
        indptr = np.concatenate([[0], np.cumsum(p.sizes)])
        return sparse.csr_matrix((codes.astype(np.float64), ids, indptr), shape=(len(p.concept), p.n))

    def _scan(self, tiers: np.ndarray, units: np.ndarray, k: int) -> tuple:
        from search.kernels import scan

        every = np.zeros(self.postings.m, np.int64)
        every[self.postings.concept[tiers]] = units  # a concept's tiers have one step
        return scan(every, *self._rows, k)

    @cached_property
    def _rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The postings by picture, for queries that score most concepts: 6 bytes a posting, made when first needed."""
        from search.kernels import by_picture

        p = self.postings
        starts, concepts, weights = by_picture(p.concept, p.start, p.lift, p.bits, _packed(p), p.n)
        if not len(starts):
            raise ValueError("a block does not hold what its header says")
        return starts, concepts, weights


def quantise_query(s: np.ndarray, p: Postings) -> tuple[np.ndarray, np.ndarray, float]:
    """What one step of each tier is worth, as whole numbers: tiers (t,) int64, units (t,) int64, scale.

    w_ij s_j ≈ (lift + code)_ij · units · scale; no total of a picture passes 2⁵³. Tiers without a score are left out.
    """
    s = np.asarray(s, np.float64)
    if s.shape != (p.m,) or not np.isfinite(s).all():
        raise ValueError(f"expected {p.m} finite concept scores, got an array {s.shape}")
    tiers = np.flatnonzero(s[p.concept])
    worth = s[p.concept[tiers]] * p.step[tiers]
    bits = 53 - WEIGHT_BITS - len(tiers).bit_length()
    scale = float(np.ldexp(1.0, int(np.frexp(np.abs(worth).max(initial=0.0))[1]) - bits))
    units = np.rint(worth / scale).astype(np.int64)
    return tiers[units != 0], units[units != 0], scale


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


def _max_score(p: Postings, tiers: np.ndarray, units: np.ndarray, k: int, trust: float) -> tuple:
    """Lays the tiers out for the kernel: ids and totals in no order, and the number of postings read."""
    from search.kernels import max_score

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
    order = np.lexsort((-np.arange(positive), price[:positive]))
    begin, end = p.start[tiers], p.start[tiers + 1]
    layout = (begin, end, sizes, units, p.lift[tiers].astype(np.int64), p.bits[tiers].astype(np.int64))
    return max_score(*layout, margins, weaker, order, _packed(p), p.n, k, WINDOW, SHARE, float(trust))


def _packed(p: Postings) -> tuple[np.ndarray, ...]:
    return p.first, p.last, p.count, p.width, p.offset, p.words
