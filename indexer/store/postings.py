"""Packed postings: for each concept the pictures that it helps to make up, with their weights.

A weight is a whole multiple of a step, so its error is at most half a step (weights under half a step become one: no
posting is lost). A concept's step is 1/4096, or where a weight is 2 or more the power of two from which the largest has
at most 8191. So a weight is rounded alike in every index that holds it, whole or one shard of it, and packing what was
unpacked changes nothing. A long list is split into tiers by weight (its strongest 5 %, the next 25 %, the rest), so
that a query can leave the weak ones unread, and the narrow range of a tier's weights takes fewer bits. Within a tier
ids ascend.

A posting is one bit field: the gap to the picture before it, then its weight in steps less the tier's least
(lift). A tier is cut into blocks of at most 128 postings; the fields of a block have one width, that of its largest
gap, and lie end to end, the lowest bit first, in 32-bit words. The first id of a block stands in its header, so that a
block is read by itself. This is the layout in memory and in the store alike; a plain SQL view decodes it too
(`indexer.store.schema`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

BLOCK = 128
WEIGHT_BITS = 13
TOP = 2**WEIGHT_BITS - 1  # no weight has more steps; 8 bits would change 1–4 % of the ten best hits
STEP = 2.0**-12  # of weights below 2: those of unit rows by unit atoms seldom pass 1
MAX_GAP = 2 ** (32 - WEIGHT_BITS) - 1  # a larger gap starts a new block, so that no field is wider than 32 bits
TIERS = (0.05, 0.30)  # the strongest shares of a list that end a tier …
SPLIT = 1024  # … where it has at least as many postings
CHUNK = 2**22  # postings packed or unpacked at a time: bounds the memory of the intermediate arrays


@dataclass(frozen=True)
class Postings:
    """The packed lists of m concepts over pictures 0 … n − 1, in t tiers of b blocks.

    concept (t,) int32: whose each tier is, ascending, strongest tier first; step (t,) float32, lift (t,) uint16, bits
    (t,) uint8: its weights are (lift + code) · step, a code having so many bits; start (t + 1,) int64: it has the
    blocks start[j] … start[j+1] − 1; first, last (b,) int32: the ids a block begins and ends with; count, width (b,)
    uint8: its postings, and the bits of a field; words (w + 1,) uint32, the last one padding.
    """

    n: int
    m: int
    concept: np.ndarray
    step: np.ndarray
    lift: np.ndarray
    bits: np.ndarray
    start: np.ndarray
    first: np.ndarray
    last: np.ndarray
    count: np.ndarray
    width: np.ndarray
    words: np.ndarray

    @classmethod
    def from_blocks(cls, n: int, m: int, columns: dict[str, np.ndarray], words: np.ndarray) -> Postings:
        """From the columns of the table `posting_blocks`, ordered by concept, tier and first id, and its words.

        Raises ValueError where the blocks contradict each other.
        """
        concept, tier, step, lift, bits, first, last, count, width = (np.asarray(column) for column in columns.values())
        changes = (np.diff(concept, prepend=-1) != 0) | (np.diff(tier.astype(np.int32), prepend=-1) != 0)
        starts = np.flatnonzero(changes)
        of_tier = {"concept": concept[starts], "step": step[starts], "lift": lift[starts], "bits": bits[starts]}
        bounds, padded = np.append(starts, len(concept)), np.append(words, np.zeros(1, np.uint32))
        found = cls(n=n, m=m, **of_tier, start=bounds, first=first, last=last, count=count, width=width, words=padded)
        blocks = np.diff(found.start)
        pairs = ((step, found.step), (lift, found.lift), (bits, found.bits))
        if any((each != np.repeat(tier_s, blocks)).any() for each, tier_s in pairs):
            raise ValueError("a tier's blocks disagree")
        found.check()
        return found

    def block_columns(self) -> dict[str, np.ndarray | list]:
        """The columns of the table `posting_blocks`."""
        blocks = np.diff(self.start)
        tiers = np.arange(len(self.concept)) - np.searchsorted(self.concept, self.concept)
        return {
            "concept_id": np.repeat(self.concept, blocks),
            "tier": np.repeat(tiers.astype(np.uint8), blocks),
            "step": np.repeat(self.step, blocks),
            "lift": np.repeat(self.lift, blocks),
            "bits": np.repeat(self.bits, blocks),
            "first": self.first,
            "last": self.last,
            "count": self.count,
            "width": self.width,
            "words": [w.tolist() for w in np.split(self.words[:-1], self.offset[1:-1])],  # DuckDB 1.4: arrays are text
        }

    @cached_property
    def offset(self) -> np.ndarray:
        """(b + 1,) int64: the word that each block begins at."""
        return _starts((self.count.astype(np.int64) * self.width + 31) // 32)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(t,) int64: the postings of each tier."""
        return np.diff(_starts(self.count)[self.start])

    @cached_property
    def images(self) -> np.ndarray:
        """(m,) int64: the postings of each concept."""
        return np.bincount(self.concept, self.sizes, self.m).astype(np.int64)

    @cached_property
    def limit(self) -> np.ndarray:
        """(t,) int64: no weight of a tier has more steps; what the stronger one begins with bounds it too."""
        limit = np.minimum(self.lift + (1 << self.bits.astype(np.int64)) - 1, TOP)
        weaker = np.flatnonzero(self.concept[1:] == self.concept[:-1]) + 1
        limit[weaker] = np.minimum(limit[weaker], self.lift[weaker - 1])
        return limit

    @property
    def nbytes(self) -> int:
        """Bytes held in memory, headers and all."""
        tiers = (self.concept, self.step, self.lift, self.bits, self.start, self.sizes)
        blocks = (self.first, self.last, self.count, self.width, self.offset)
        return sum(a.nbytes for a in (*tiers, *blocks, self.words))

    def check(self) -> None:
        """Raises ValueError where the headers contradict each other or the words; the kernels rely on this."""
        t, b = len(self.concept), len(self.first)
        starts = self.start
        if (
            len(self.step) != t
            or len(self.lift) != t
            or len(self.bits) != t
            or len(starts) != t + 1
            or any(len(a) != b for a in (self.last, self.count, self.width))
            or starts[0] != 0
            or starts[-1] != b
            or (np.diff(starts) < 1).any()
            or (np.diff(self.concept) < 0).any()
            or (t and not 0 <= self.concept[0] <= self.concept[-1] < self.m)
        ):
            raise ValueError("their blocks do not add up")
        bits = np.repeat(self.bits, np.diff(starts))
        if (
            ((self.count < 1) | (self.count > BLOCK)).any()
            or ((self.width < np.maximum(bits, 1)) | (self.width > 32)).any()
            or ((self.bits > WEIGHT_BITS) | (self.lift > TOP)).any()
        ):
            raise ValueError("a block has an impossible size")
        if len(self.words) != self.offset[-1] + 1:
            raise ValueError("their words do not add up")
        follows = np.ones(b, bool)
        follows[starts[:-1]] = False  # the blocks that have one of the same tier before them
        if (
            (self.last - self.first.astype(np.int64) < self.count.astype(np.int64) - 1).any()
            or (self.first[1:] <= self.last[:-1])[follows[1:]].any()
            or (b and not 0 <= self.first.min() <= self.last.max() < self.n)
        ):
            raise ValueError("their ids are out of order or out of range")
        if (np.diff(self.step)[np.diff(self.concept) == 0] != 0).any():
            raise ValueError("a concept has two steps")
        if not (np.isfinite(self.step) & (self.step > 0)).all():
            raise ValueError("a weight is not a positive number")

    def unpack(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64 and lift + code int64 of the postings of some blocks (their indices), one after the other.

        Raises ValueError for a block that does not end at its `last`, or has a weight of 0.
        """
        count, width = self.count[blocks].astype(np.int64), self.width[blocks].astype(np.int64)
        begin = _starts(count)
        row = np.repeat(np.arange(len(blocks)), count)
        bit = (self.offset[blocks] * 32 - begin[:-1] * width)[row] + np.arange(begin[-1]) * width[row]
        word = bit >> 5
        pair = self.words[word].astype(np.uint64) | self.words[word + 1].astype(np.uint64) << np.uint64(32)
        field = (pair >> (bit & 31).astype(np.uint64)).astype(np.int64) & ((1 << width) - 1)[row]
        tier = np.searchsorted(self.start, blocks, side="right") - 1
        bits, lift = self.bits[tier].astype(np.int64), self.lift[tier].astype(np.int64)
        codes, run = (field & ((1 << bits) - 1)[row]) + lift[row], np.cumsum(field >> bits[row])
        ids = run + (self.first[blocks] - run[begin[:-1]])[row]
        if (ids[begin[1:] - 1] != self.last[blocks]).any() or (codes == 0).any():
            raise ValueError("a block does not hold what its header says")
        return ids, codes

    def lists(self, tiers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row, id, lift + code) of every posting of some tiers, row being the position in `tiers`."""
        ids, codes = self.unpack(self._blocks(tiers))
        return np.repeat(np.arange(len(tiers)), self.sizes[tiers]), ids, codes

    def rows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(id, concept, weight) of every posting of some pictures, ordered by id, then concept.

        Reads at most one block of each tier for each picture, whatever n.
        """
        wanted = np.unique(np.asarray(ids, np.int64))
        t = len(self.concept)
        tier = np.repeat(np.arange(t), np.diff(self.start))
        asked = np.arange(t)[:, None] << 32 | wanted
        at = np.searchsorted(tier << 32 | self.first, asked.ravel(), side="right") - 1
        held = (at >= 0) & (tier[at] == np.repeat(np.arange(t), len(wanted))) if len(tier) else np.zeros(0, bool)
        blocks = np.unique(at[held])
        found, codes = self.unpack(blocks)
        tiers = np.repeat(tier[blocks], self.count[blocks])
        keep = np.isin(found, wanted)
        found, codes, tiers = found[keep], codes[keep], tiers[keep]
        order = np.lexsort((tiers, found))
        return found[order], self.concept[tiers][order], (codes.astype(np.float32) * self.step[tiers])[order]

    def between(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(id, concept, weight) of every posting of the pictures low … high − 1, tier by tier."""
        tier = np.repeat(np.arange(len(self.concept)), np.diff(self.start))
        blocks = np.flatnonzero((self.last >= low) & (self.first < high))
        found = [(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))]
        for some in np.split(blocks, range(CHUNK // BLOCK, len(blocks), CHUNK // BLOCK)):
            ids, codes = self.unpack(some)
            keep, of = (ids >= low) & (ids < high), np.repeat(tier[some], self.count[some])
            found.append((ids[keep], self.concept[of][keep], (codes.astype(np.float32) * self.step[of])[keep]))
        ids, concepts, weights = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return ids, concepts, weights

    def _blocks(self, tiers: np.ndarray) -> np.ndarray:
        counts = np.diff(self.start)[tiers]
        return np.repeat(self.start[tiers] - _starts(counts)[:-1], counts) + np.arange(counts.sum())

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """indptr (m + 1,), ids int32, weights float32: a CSC matrix (n, m), the ids of a column tier by tier."""
        position, steps = _starts(self.count), np.repeat(self.step, np.diff(self.start))
        ids, weights = np.empty(position[-1], np.int32), np.empty(position[-1], np.float32)
        for a, b in _chunks(position):
            part, codes = self.unpack(np.arange(a, b))
            at = slice(position[a], position[b])
            ids[at] = part
            weights[at] = codes.astype(np.float32) * np.repeat(steps[a:b], self.count[a:b])
        return _starts(self.images), ids, weights


def pack_codes(W: sparse.csr_matrix, ids: np.ndarray, n: int) -> Postings:
    """Packs codes W (k, m) of the pictures ids (k,), ascending, all below n; raises ValueError as `pack` does."""
    columns = W.tocsc()
    columns.sort_indices()
    return pack(columns.indptr, ids[columns.indices], columns.data.astype(np.float32), n)


def pack(indptr: np.ndarray, ids: np.ndarray, weights: np.ndarray, n: int) -> Postings:
    """Packs the arrays of a CSC matrix (n, m): each column's ids ascending, weights > 0.

    Raises ValueError for ids that are out of order or range, and for weights that are not positive numbers.
    """
    indptr = np.asarray(indptr, np.int64)
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError("a weight is not a positive number")
    parts = [_pack(indptr[a : b + 1], ids, weights, a) for a, b in _chunks(indptr)]
    concept, step, lift, bits, blocks, first, last, count, width, words = map(np.concatenate, zip(*parts, strict=True))
    packed = Postings(
        n=n,
        m=len(indptr) - 1,
        concept=concept,
        step=step,
        lift=lift,
        bits=bits,
        start=_starts(blocks),
        first=first,
        last=last,
        count=count,
        width=width,
        words=np.append(words, np.zeros(1, np.uint32)),
    )
    packed.check()
    return packed


def _pack(indptr: np.ndarray, ids: np.ndarray, weights: np.ndarray, lowest: int) -> tuple[np.ndarray, ...]:
    """Concept, step, lift, bits and number of blocks of each tier, the four headers of each block, and the words.

    indptr: of the columns to pack, the first of which is concept `lowest`.
    """
    if indptr[0] == indptr[-1]:
        return tuple(np.zeros(0, t) for t in "ifHBliiBBI")
    weights, ids, counts = (
        weights[indptr[0] : indptr[-1]],
        ids[indptr[0] : indptr[-1]].astype(np.int64),
        np.diff(indptr),
    )
    owner = np.repeat(np.arange(len(counts)), counts)
    step = np.zeros(len(counts), np.float32)
    largest = np.maximum.reduceat(weights, (indptr[:-1] - indptr[0])[counts > 0])
    fraction, exponent = np.frexp(largest / np.float32(TOP))
    step[counts > 0] = np.ldexp(np.float32(1), exponent - (fraction == 0.5))
    step = np.maximum(step, np.float32(STEP))
    codes = np.clip(np.rint(weights / step[owner]), 1, TOP).astype(np.int64)
    tier = owner * (len(TIERS) + 1) + _tiers(owner, weights, counts)
    order = np.argsort(tier, kind="stable")
    tier, ids, codes = tier[order], ids[order], codes[order]
    starts = np.flatnonzero(np.diff(tier, prepend=-1))
    sizes = np.diff(starts, append=len(ids))
    lift = np.minimum.reduceat(codes, starts)
    bits = _bit_length(np.maximum.reduceat(codes, starts) - lift)

    gaps, index = np.diff(ids, prepend=0), np.arange(len(ids))
    opens = np.zeros(len(ids), bool)  # the postings that begin a block
    opens[starts] = True
    if (gaps[~opens] < 1).any():
        raise ValueError("their ids are out of order")
    opens |= gaps > MAX_GAP
    opens |= (index - np.maximum.accumulate(np.where(opens, index, 0))) % BLOCK == 0
    gaps[opens] = 0
    begin = np.flatnonzero(opens)
    count = np.diff(begin, append=len(ids))
    bits_of = bits[np.searchsorted(starts, begin, side="right") - 1]
    width = np.maximum(_bit_length(np.maximum.reduceat(gaps, begin)) + bits_of, 1)

    offset = _starts((count * width + 31) // 32)
    row = np.repeat(np.arange(len(begin)), count)
    bit = (offset[:-1] * 32 - begin * width)[row] + index * width[row]
    word = bit >> 5
    field = (gaps << bits_of[row] | codes - np.repeat(lift, sizes)).astype(np.uint64) << (bit & 31).astype(np.uint64)
    # Fields that begin in the same word: their low halves make up that word, the last one's high half the next.
    runs = np.flatnonzero(np.diff(word, prepend=-1))
    halves = np.bitwise_or.reduceat(field, runs)
    words = np.zeros(offset[-1] + 1, np.uint32)
    words[word[runs]] = halves.astype(np.uint32)
    words[word[runs] + 1] |= (halves >> np.uint64(32)).astype(np.uint32)
    return (
        (owner[order][starts] + lowest).astype(np.int32),
        step[owner[order][starts]],
        lift.astype(np.uint16),
        bits.astype(np.uint8),
        np.diff(np.searchsorted(begin, starts), append=len(begin)),
        ids[begin].astype(np.int32),
        ids[begin + count - 1].astype(np.int32),
        count.astype(np.uint8),
        width.astype(np.uint8),
        words[:-1],
    )


def _tiers(owner: np.ndarray, weights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which tier each posting is of: 0 for the strongest of its list."""
    order = np.lexsort((-weights, owner))
    share = np.empty(len(weights))
    share[order] = (np.arange(len(weights)) - (np.cumsum(sizes) - sizes)[owner[order]]) / sizes[owner[order]]
    return np.where(sizes[owner] < SPLIT, 0, np.searchsorted(TIERS, share, side="right"))


def _bit_length(numbers: np.ndarray) -> np.ndarray:
    return np.frexp(numbers.astype(np.float64))[1].astype(np.int64)


def _starts(counts: np.ndarray) -> np.ndarray:
    """Exclusive running sum with the total at its end: (b,) → (b + 1,) int64."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _chunks(position: np.ndarray) -> list[tuple[int, int]]:
    """Cuts b items with running sums `position` (b + 1,) into ranges of about CHUNK each."""
    cuts = np.searchsorted(position, np.arange(CHUNK, position[-1], CHUNK), side="left")
    edges = np.unique(np.concatenate([[0], cuts, [len(position) - 1]]))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)) or [(0, 0)]
