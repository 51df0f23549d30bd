"""The compiled loops of `search.inverted`; importing this imports numba, which a single small query never does."""

from __future__ import annotations

import numpy as np
from numba import njit

PROBE = 64  # what one look into a tier costs, in postings read in sequence
NO_ID = np.iinfo(np.int64).max


@njit(cache=True, nogil=True)
def max_score(begin, end, size, unit, lift, bits, margin, weaker, order, packed, n, k, window, share, trust):
    """The k pictures with the largest totals Σ (lift + code) · unit above 0, over t tiers; ties go to the lower id.

    begin, end, size (t,): each tier's blocks and postings; unit (t,) int64: what one step is worth, the positive ones
    first; lift, bits (t,) int64; margin (t,): how much more a tier can add than the next weaker one of its concept, 0
    where unit is negative; weaker (t,): that tier, or −1; order: the positive tiers in the order in which to try to
    do without them, a weaker one before its stronger; packed: first, last, count, width, offset, words.

    MaxScore over windows of ids: tiers which together add less than the k-th best total so far bring in no picture
    by themselves. Those which add less than `share` of it are not read through, only looked into for the pictures
    which the others bring in, while those can still reach that total, were they given `trust` of what is possible.
    Returns ids and totals in no order, and the number of postings read.
    """
    t, positive = len(begin), len(order)
    first = packed[0]
    block, place, before, ahead = begin.copy(), np.zeros(t, np.int64), np.empty(t, np.int64), np.empty(t, np.int64)
    for j in range(t):
        before[j] = ahead[j] = first[begin[j]]
    cursors = (block, place, before, ahead, end)
    ids, totals, held = np.empty(k, np.int64), np.empty(k, np.int64), 0
    essential = np.ones(t, np.bool_)
    sums, touched = np.zeros(window, np.int64), np.empty(window, np.int64)
    bar, known, rest, read, done = np.int64(1), np.int64(0), np.int64(0), 0, np.int64(0)
    while True:
        if known != bar:
            known, rest = bar, np.int64(0)
            for j in order:
                essential[j] = trust * (rest + margin[j]) >= share * bar or (weaker[j] >= 0 and essential[weaker[j]])
                if not essential[j]:
                    rest += margin[j]
        start = NO_ID
        for j in range(positive):
            if essential[j] and ahead[j] < start:
                start = ahead[j]
        if start >= n:
            break
        start = max(done, start - start % window)
        done = stop = min(start + window, n)

        found = 0
        for j in range(positive):
            if essential[j] and ahead[j] < stop:
                found, steps = _read(
                    packed, cursors, j, start, stop, lift[j], bits[j], unit[j], sums, touched, found, True
                )
                read += steps
        left, hope, streamed = _keep(sums, touched, found, bar - trust * rest), rest, False
        for j in range(t):
            if left == 0:
                break
            if j < positive and essential[j]:
                continue
            hope -= margin[j]
            if ahead[j] < stop:
                if left * PROBE > size[j] * window // n + PROBE:
                    streamed = True
                    read += _read(packed, cursors, j, start, stop, lift[j], bits[j], unit[j], sums, touched, 0, False)[
                        1
                    ]
                else:
                    for c in range(left):
                        code, steps = _probe(packed, block[j], end[j], bits[j], start + touched[c])
                        if code >= 0:
                            sums[touched[c]] += (lift[j] + code) * unit[j]
                        read += steps
            left = _keep(sums, touched, left, bar - trust * hope)
        for c in range(left):
            if sums[touched[c]] > 0:
                held = _offer(ids, totals, held, start + touched[c], sums[touched[c]])
        if held == k:
            bar = max(bar, totals[0])
        if streamed:
            sums[:] = 0
        else:
            for c in range(found):
                sums[touched[c]] = 0
    return ids[:held], totals[:held], read


@njit(cache=True, nogil=True)
def scan(units, starts, concepts, weights, k):
    """The same from the rows of `by_picture`, for queries that score most concepts; units: of every concept."""
    ids, totals, held, bar = np.empty(k, np.int64), np.empty(k, np.int64), 0, np.int64(1)
    for i in range(len(starts) - 1):
        total = np.int64(0)
        for e in range(starts[i], starts[i + 1]):
            total += np.int64(weights[e]) * units[concepts[e]]
        if total >= bar:
            held = _offer(ids, totals, held, i, total)
            if held == k:
                bar = totals[0] + 1  # ids ascend: one that equals the k-th best comes after it
    return ids[:held], totals[:held], len(concepts)


@njit(cache=True, nogil=True)
def by_picture(concept, start, lift, bits, packed, n):
    """The postings by picture: starts (n + 1,), and the concept and the weight in steps of each entry.

    starts is empty where a block does not hold what its header says.
    """
    first, last, count, width, offset, words = packed
    starts, size = np.zeros(n + 1, np.int64), 0
    for b in range(len(first)):
        size += count[b]
    concepts, weights = np.empty(size, np.uint32), np.empty(size, np.uint16)
    for fill in (False, True):  # counts the entries of each row, then fills them in
        for j in range(len(lift)):
            shift, low = np.int64(bits[j]), (np.int64(1) << np.int64(bits[j])) - 1
            for b in range(start[j], start[j + 1]):
                wide, at = np.int64(width[b]), np.int64(first[b])
                mask, bit = (np.int64(1) << wide) - 1, offset[b] * 32
                for _ in range(count[b]):
                    field = _field(words, bit, mask)
                    at += field >> shift
                    if at > last[b]:
                        return starts[:0], concepts, weights
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
    return starts, concepts, weights


@njit(cache=True, nogil=True, inline="always")
def _field(words, bit, mask):
    pair = np.uint64(words[bit >> 5]) | np.uint64(words[(bit >> 5) + 1]) << np.uint64(32)
    return np.int64(pair >> np.uint64(bit & 31)) & mask


@njit(cache=True, nogil=True)
def _read(packed, cursors, j, start, stop, lift, bits, worth, sums, touched, found, note):
    """Moves tier j on to `stop`, adding what its postings from `start` on are worth; notes slots that were empty."""
    first, last, count, width, offset, words = packed
    block, place, before, ahead, end = cursors
    b, i, at, read, low = block[j], place[j], before[j], 0, (np.int64(1) << bits) - 1
    while b < end[j] and first[b] < stop:
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
                    sums[at - start] += (lift + (field & low)) * worth
                bit += wide
                i += 1
            read += i - began
            if i < here:
                block[j], place[j], before[j], ahead[j] = b, i, at, following
                return found, read
        b, i = b + 1, 0
        if b < end[j]:
            at = np.int64(first[b])
    block[j], place[j], before[j] = b, i, at
    ahead[j] = at if b < end[j] else NO_ID
    return found, read


@njit(cache=True, nogil=True)
def _probe(packed, low, high, bits, wanted):
    """The code of picture `wanted` in the blocks low … high − 1 of a tier, −1 where it is not in it."""
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


@njit(cache=True, nogil=True)
def _keep(sums, touched, left, least):
    """Moves the slots with a sum of at least `least` to the front of the first `left`; returns how many."""
    kept = 0
    for c in range(left):
        if sums[touched[c]] >= least:
            touched[kept], touched[c] = touched[c], touched[kept]
            kept += 1
    return kept


@njit(cache=True, nogil=True, inline="always")
def _worse(total, at, other_total, other_at):
    return total < other_total or (total == other_total and at > other_at)


@njit(cache=True, nogil=True, inline="always")
def _offer(ids, totals, held, at, total):
    """Puts a picture into a heap of the best, where it is one of them; returns how many it holds."""
    if held < len(ids):
        _rise(ids, totals, held, at, total)
        return held + 1
    if _worse(totals[0], ids[0], total, at):
        _sink(ids, totals, held, at, total)
    return held


@njit(cache=True, nogil=True)
def _rise(ids, totals, i, at, total):
    """Puts a picture into the free place i of a heap whose root is the worst."""
    while i > 0:
        parent = (i - 1) >> 1
        if not _worse(total, at, totals[parent], ids[parent]):
            break
        ids[i], totals[i] = ids[parent], totals[parent]
        i = parent
    ids[i], totals[i] = at, total


@njit(cache=True, nogil=True)
def _sink(ids, totals, held, at, total):
    """Puts a picture in the place of a heap's root."""
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
