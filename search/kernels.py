"""The compiled loops of `search.inverted`; importing this imports numba, which a single small query never does.

What travels together is a named tuple, which numba takes as it is. Totals are whole numbers (see `quantise_query`).
No function here checks an index: `Postings.check` has made sure that every block lies where its header says.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from training.compiled import compiled

WINDOW = 2**14  # ids that are summed at a time: the sums stay in the processor's cache
SHARE = 0.4  # of the k-th best total: what the tiers not read through may add; more of it means more looking up
PROBE = 64  # what one look into a tier costs, in postings read in sequence
NO_ID = np.iinfo(np.int64).max


class Packed(NamedTuple):
    """The blocks of an index, as `indexer.store.postings.Postings` describes them; b blocks, w words and one more."""

    first: np.ndarray  # (b,) int32: the lowest id of a block
    last: np.ndarray  # (b,) int32: its highest
    postings: np.ndarray  # (b,) uint8: how many it holds
    width: np.ndarray  # (b,) uint8: bits of each
    offset: np.ndarray  # (b + 1,) int64: the word at which it begins
    words: np.ndarray  # (w + 1,) uint32


class Tiers(NamedTuple):
    """The t tiers that a query scores, all arrays int64; those with a positive unit come first."""

    begin: np.ndarray  # (t,): a tier has the blocks begin … end − 1
    end: np.ndarray  # (t,)
    size: np.ndarray  # (t,): its postings
    unit: np.ndarray  # (t,): what one step of weight adds to a picture's total
    lift: np.ndarray  # (t,): a posting's weight is lift + code steps
    bits: np.ndarray  # (t,): the bits of a code
    margin: np.ndarray  # (t,): how much more it can add than the next weaker tier of its concept; 0 for unit < 0
    weaker: np.ndarray  # (t,): that weaker tier, −1 where there is none
    order: np.ndarray  # (p,): the p positive tiers as they are to be done without, a weaker one before its stronger


class Rows(NamedTuple):
    """The codes of n pictures, row by row: picture i has the entries starts[i] … starts[i + 1] − 1."""

    starts: np.ndarray  # (n + 1,) int64
    concepts: np.ndarray  # (nnz,) uint32
    weights: np.ndarray  # (nnz,) uint16, in steps


class Cursors(NamedTuple):
    """How far each of t tiers has been read, all arrays int64."""

    block: np.ndarray  # (t,): the block that holds the next posting
    place: np.ndarray  # (t,): its place in that block
    before: np.ndarray  # (t,): the id of the posting before it, or the block's first
    ahead: np.ndarray  # (t,): no posting that is left has a lower id; NO_ID at the end


class Window(NamedTuple):
    """Totals of WINDOW pictures, and which of them have been touched."""

    sums: np.ndarray  # (WINDOW,) int64, by id − start of the window
    touched: np.ndarray  # (WINDOW,) int64: the slots in use, in no order


class Best(NamedTuple):
    """A heap of the best pictures found so far; the worst of them is its root."""

    ids: np.ndarray  # (k,) int64
    totals: np.ndarray  # (k,) int64


class Totals(NamedTuple):
    """ids (≤ k,) and totals (≤ k,) int64 of the best pictures, in no order, and the number of postings read."""

    ids: np.ndarray
    totals: np.ndarray
    read: int


@compiled()
def max_score(packed, tiers, n, k):
    """Finds the k pictures below n with the largest totals Σ (lift + code) · unit above 0; ties go to the lower id.

    MaxScore (Turtle & Flood 1995) over windows of ids: tiers that together add less than the k-th best total so far
    bring in no picture by themselves. Those that together add less than SHARE of it are not read through. They are
    looked into for the pictures that the other tiers bring in, while these can still reach that total.
    Returns `Totals`, with fewer than k pictures where fewer have a total above 0.
    """
    t = len(tiers.begin)
    cursors = _cursors(packed, tiers)
    window = Window(np.zeros(WINDOW, np.int64), np.empty(WINDOW, np.int64))
    best, held = Best(np.empty(k, np.int64), np.empty(k, np.int64)), 0
    essential = np.zeros(t, np.bool_)  # the tiers to be read through
    bar, known, rest, read, done = np.int64(1), np.int64(0), np.int64(0), 0, np.int64(0)
    while True:
        if known != bar:
            known, rest = bar, _choose(tiers, essential, bar)
        start = _next_id(cursors.ahead, essential)
        if start >= n:
            break
        start = max(done, start - start % WINDOW)
        done = stop = min(start + WINDOW, n)
        found = 0
        for j in range(len(tiers.order)):
            if essential[j] and cursors.ahead[j] < stop:
                found, steps = _read(packed, tiers, cursors, window, j, start, stop, found, True)
                read += steps
        left, hope, streamed = _keep(window, found, bar - rest), rest, False
        for j in range(t):
            if left == 0:
                break
            if essential[j]:
                continue
            hope -= tiers.margin[j]
            if cursors.ahead[j] < stop:
                if left * PROBE > tiers.size[j] * WINDOW // n + PROBE:
                    streamed = True  # more looks than postings: read it after all, which touches other slots too
                    read += _read(packed, tiers, cursors, window, j, start, stop, 0, False)[1]
                else:
                    read += _look_up(packed, tiers, cursors, window, j, start, left)
            left = _keep(window, left, bar - hope)
        held = _offer_all(best, held, window, left, start)
        if held == k:
            bar = max(bar, best.totals[0])
        _clear(window, found, streamed)
    return Totals(best.ids[:held], best.totals[:held], read)


@compiled()
def scan(units, rows, k):
    """Finds the same as `max_score` picture by picture, for queries that score most concepts.

    units (m,) int64: what one step of each concept's weight adds; rows: `Rows`. Returns `Totals`.
    """
    starts, concepts, weights = rows
    best, held, bar = Best(np.empty(k, np.int64), np.empty(k, np.int64)), 0, np.int64(1)
    for i in range(len(starts) - 1):
        total = np.int64(0)
        for e in range(starts[i], starts[i + 1]):
            total += np.int64(weights[e]) * units[concepts[e]]
        if total >= bar:
            held = _offer(best, held, i, total)
            if held == k:
                bar = best.totals[0] + 1  # ids ascend: one that equals the k-th best comes after it
    return Totals(best.ids[:held], best.totals[:held], len(concepts))


@compiled()
def by_picture(packed, concept, start, lift, bits, n):
    """Turns lists into rows; concept, start, lift and bits are those of `Postings`, n the number of pictures.

    Returns `Rows`, without any starts where a block does not hold what its header says.
    """
    starts, size = np.zeros(n + 1, np.int64), 0
    for b in range(len(packed.first)):
        size += packed.postings[b]
    concepts, weights = np.empty(size, np.uint32), np.empty(size, np.uint16)
    for fill in (False, True):  # counts the entries of each row, then fills them in
        for j in range(len(lift)):
            shift, low = np.int64(bits[j]), (np.int64(1) << np.int64(bits[j])) - 1
            for b in range(start[j], start[j + 1]):
                wide, at = np.int64(packed.width[b]), np.int64(packed.first[b])
                mask, bit = (np.int64(1) << wide) - 1, packed.offset[b] * 32
                for _ in range(packed.postings[b]):
                    field = _field(packed.words, bit, mask)
                    at += field >> shift
                    if at > packed.last[b]:
                        return Rows(starts[:0], concepts, weights)
                    if fill:
                        concepts[starts[at]], weights[starts[at]] = concept[j], lift[j] + (field & low)
                    starts[at] += 1
                    bit += wide
        if not fill:
            total = 0
            for i in range(n + 1):
                starts[i], total = total, total + starts[i]
    for i in range(n, 0, -1):  # filling has moved each start on to the next one's
        starts[i] = starts[i - 1]
    starts[0] = 0
    return Rows(starts, concepts, weights)


@compiled()
def _cursors(packed, tiers):
    """`Cursors` at the first posting of each tier."""
    first = packed.first[tiers.begin].astype(np.int64)
    return Cursors(tiers.begin.copy(), np.zeros(len(first), np.int64), first, first.copy())


@compiled()
def _choose(tiers, essential, bar):
    """Marks in `essential` (t,) the tiers to be read through; returns the most that the other positive ones can add."""
    rest = np.int64(0)
    for j in tiers.order:
        weaker = tiers.weaker[j]
        essential[j] = rest + tiers.margin[j] >= SHARE * bar or (weaker >= 0 and essential[weaker])
        if not essential[j]:
            rest += tiers.margin[j]
    return rest


@compiled()
def _next_id(ahead, essential):
    """No posting left in the essential tiers has a lower id; NO_ID where none is left."""
    lowest = NO_ID
    for j in range(len(ahead)):
        if essential[j] and ahead[j] < lowest:
            lowest = ahead[j]
    return lowest


@compiled(inline="always")
def _field(words, bit, mask):
    """The field that begins at a bit of `words`: gap << bits of a code | code."""
    pair = np.uint64(words[bit >> 5]) | np.uint64(words[(bit >> 5) + 1]) << np.uint64(32)
    return np.int64(pair >> np.uint64(bit & 31)) & mask


@compiled()
def _read(packed, tiers, cursors, window, j, start, stop, found, note):
    """Moves tier j on to the id `stop`, and adds what its postings from the id `start` on are worth.

    found: the number of slots touched so far. note: whether to add those that were empty to them.
    Returns the number of slots touched, and of postings read.
    """
    first, last, count, width, offset, words = packed
    sums, touched = window
    lift, bits, unit, end = tiers.lift[j], tiers.bits[j], tiers.unit[j], tiers.end[j]
    b, i, at = cursors.block[j], cursors.place[j], cursors.before[j]
    read, low = 0, (np.int64(1) << bits) - 1
    while b < end and first[b] < stop:
        if last[b] >= start:
            wide, here = np.int64(width[b]), np.int64(count[b])
            mask, bit, began = (np.int64(1) << wide) - 1, offset[b] * 32 + i * wide, i
            while i < here:
                field = _field(words, bit, mask)
                following = at + (field >> bits)
                if following >= stop:
                    break
                at = following
                if at >= start:
                    if note and sums[at - start] == 0:
                        touched[found] = at - start
                        found += 1
                    sums[at - start] += (lift + (field & low)) * unit
                bit += wide
                i += 1
            read += i - began
            if i < here:
                cursors.block[j], cursors.place[j], cursors.before[j], cursors.ahead[j] = b, i, at, following
                return found, read
        b, i = b + 1, 0
        if b < end:
            at = np.int64(first[b])
    cursors.block[j], cursors.place[j], cursors.before[j] = b, i, at
    cursors.ahead[j] = at if b < end else NO_ID
    return found, read


@compiled()
def _look_up(packed, tiers, cursors, window, j, start, left):
    """Adds what tier j adds to the first `left` slots touched, by looking each up; returns the postings read."""
    sums, touched = window
    block, end, lift, bits, unit = cursors.block[j], tiers.end[j], tiers.lift[j], tiers.bits[j], tiers.unit[j]
    read = 0
    for c in range(left):
        code, steps = _probe(packed, block, end, bits, start + touched[c])
        if code >= 0:
            sums[touched[c]] += (lift + code) * unit
        read += steps
    return read


@compiled()
def _probe(packed, low, high, bits, wanted):
    """The code of picture `wanted` in the blocks low … high − 1 of a tier, −1 where it is not in it.

    Returns it with the number of postings read.
    """
    first, last, count, width, offset, words = packed
    top = high
    while low < top:
        middle = (low + top) >> 1
        if last[middle] < wanted:
            low = middle + 1
        else:
            top = middle
    if low == high or first[low] > wanted:
        return np.int64(-1), 0
    wide = np.int64(width[low])
    mask, bit, at = (np.int64(1) << wide) - 1, offset[low] * 32, np.int64(first[low])
    for i in range(count[low]):
        field = _field(words, bit, mask)
        at += field >> bits
        if at >= wanted:
            return (field & ((np.int64(1) << bits) - 1) if at == wanted else np.int64(-1)), i + 1
        bit += wide
    return np.int64(-1), np.int64(count[low])


@compiled()
def _keep(window, left, least):
    """Moves the slots with a sum of at least `least` to the front of the first `left`; returns how many they are."""
    sums, touched = window
    kept = 0
    for c in range(left):
        if sums[touched[c]] >= least:
            touched[kept], touched[c] = touched[c], touched[kept]
            kept += 1
    return kept


@compiled()
def _offer_all(best, held, window, left, start):
    """Offers the first `left` slots touched that have a sum above 0 to the heap; returns how many it holds."""
    sums, touched = window
    for c in range(left):
        if sums[touched[c]] > 0:
            held = _offer(best, held, start + touched[c], sums[touched[c]])
    return held


@compiled()
def _clear(window, found, whole):
    """Sets the first `found` slots touched to zero, or all slots where others were touched too."""
    sums, touched = window
    if whole:
        sums[:] = 0
    else:
        for c in range(found):
            sums[touched[c]] = 0


@compiled(inline="always")
def _worse(total, at, other_total, other_at):
    """Whether a picture comes after another: a lower total, or the same and a higher id."""
    return total < other_total or (total == other_total and at > other_at)


@compiled(inline="always")
def _offer(best, held, at, total):
    """Puts picture `at` into the heap of `held` pictures where it is one of the best; returns how many it holds."""
    if held < len(best.ids):
        _rise(best.ids, best.totals, held, at, total)
        return held + 1
    if _worse(best.totals[0], best.ids[0], total, at):
        _sink(best.ids, best.totals, held, at, total)
    return held


@compiled()
def _rise(ids, totals, i, at, total):
    """Puts a picture into the free place i of a heap, and moves it towards the root while it is worse."""
    while i > 0:
        parent = (i - 1) >> 1
        if not _worse(total, at, totals[parent], ids[parent]):
            break
        ids[i], totals[i] = ids[parent], totals[parent]
        i = parent
    ids[i], totals[i] = at, total


@compiled()
def _sink(ids, totals, held, at, total):
    """Puts a picture in the place of a heap's root, and moves it away from there while it is better."""
    i = 0
    while True:
        child = 2 * i + 1
        if child >= held:
            break
        if child + 1 < held and _worse(totals[child + 1], ids[child + 1], totals[child], ids[child]):
            child += 1
        if not _worse(totals[child], ids[child], total, at):
            break
        ids[i], totals[i] = ids[child], totals[child]
        i = child
    ids[i], totals[i] = at, total
