"""The coder's inner loops on a CPU, compiled by numba: principal pivoting on each row's working set.

`min_{w ≥ 0} ½ wᵀG w − (q − λ)ᵀ w` over a working set P, where G is the atoms' Gram block and q = D_P x. The
state is a support S, the inverse H = G_SS⁻¹ and w_S = H (q_S − λ) ≥ 0. The atom j with the largest gradient
q_j − λ − G_jS w_S is driven up; w_S moves by −H G_Sj for every unit of w_j, so that the support's own gradients
stay 0. Atoms that reach 0 on the way leave, and j enters when its own gradient reaches 0 (Dantzig's and van de
Panne's simplex for quadratic programs). Each round lowers the objective; the last one is exact. An atom that
depends on the support is never entered, only exchanged. With λ = 0 the same steps are nonnegative least squares.

Correlations may come rounded (screening, `PreparedDictionary`). Then an atom's upper bound stands for its
correlation until it is the next to be driven, and only then is it computed in float32.

The functions release the GIL and take arrays by index: a view made in a loop costs more than the loop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from training.compiled import compiled

_FAST = {"reassoc", "contract", "arcp", "nsz"}  # sums may be reordered; infinities and NaN keep their meaning
_compiled = compiled(fastmath=_FAST)
_inlined = compiled(fastmath=_FAST, forceinline=True)  # a call with named tuples costs more
_BLOCK = 64  # correlations looked at together
_DEPENDENT = 1e-6  # of an atom's squared norm: what must lie outside the support's span
_NOISE = 5e-8  # of λ_max: float32 inner products are no better than that
_CERTIFIED = 1e-6  # of ‖x‖ / λ: a gap below it needs residuals in float64
_ROUNDS = 100
_FIRST_ROOM, _ROOM = 16, 64  # atoms that join a working set at first, and at most


class Problem(NamedTuple):
    """A batch: X (b, d), D (m, d) · G = D Dᵀ (m, m), or (0, 0) where it is not held. All float32."""

    X: np.ndarray
    D: np.ndarray
    G: np.ndarray


class Correlations(NamedTuple):
    """Correlations of b vectors with all atoms, rounded.

    bits (b, m): floats as int32, or bfloat16 as int16; shift: the bits that they lack of a float32.
    slack (b,), rounding: the correlation c of row i is true up to slack[i] + rounding · |c|.
    """

    bits: np.ndarray
    shift: int
    slack: np.ndarray
    rounding: float


class Peaks(NamedTuple):
    """Of each row of X (b,): its largest correlation, λ_max, with the atom that has it, and ‖x‖²."""

    value: np.ndarray
    atom: np.ndarray
    square: np.ndarray


class Rows(NamedTuple):
    """The codes of b rows while they are made: ids, weights (b, kmax), of which sizes (b,) are used; gap, l1 (b,)."""

    ids: np.ndarray
    weights: np.ndarray
    sizes: np.ndarray
    gap: np.ndarray
    l1: np.ndarray


class WorkingSet(NamedTuple):
    """Atoms P (p,) with their correlations q and gradients g.

    exact: whether q is a correlation, or an upper bound of one. G (p, p): their Gram block, of which the rows in
    `have` are filled.
    """

    P: np.ndarray
    q: np.ndarray
    g: np.ndarray
    exact: np.ndarray
    G: np.ndarray
    have: np.ndarray


class Support(NamedTuple):
    """Places S (k,) in a working set, weights w, the inverse H (k, k) of their Gram block; c, u: room for a column."""

    S: np.ndarray
    w: np.ndarray
    H: np.ndarray
    c: np.ndarray
    u: np.ndarray


class Scratch(NamedTuple):
    """Room for one row: its correlations with all atoms, `row` (the same bytes as `bits`) and what is `left` of them.

    found (m,): places in them; ids, w (k,): a support's atoms and weights; r (d,): a residual.
    """

    bits: np.ndarray
    row: np.ndarray
    left: np.ndarray
    found: np.ndarray
    ids: np.ndarray
    w: np.ndarray
    r: np.ndarray


@_compiled
def _scratch(m, d, kmax):
    bits = np.empty(m, np.int32)
    return Scratch(
        bits,
        bits.view(np.float32),
        np.empty(m, np.float32),
        np.empty(m, np.int64),
        np.empty(kmax, np.int64),
        np.empty(kmax, np.float32),
        np.empty(d),
    )


@_compiled
def _working_set(size):
    columns = 16 * ((size + 15) // 16 | 1)  # an odd number of cache lines, or all rows would share few of its sets
    return WorkingSet(
        np.empty(size, np.int64),
        np.empty(size),
        np.empty(size),
        np.empty(size, np.bool_),
        np.empty((size, columns), np.float32),
        np.empty(size, np.bool_),
    )


@_compiled
def _support(size):
    columns = 8 * ((size + 7) // 8 | 1)
    return Support(np.empty(size, np.int64), np.empty(size), np.empty((size, columns)), np.empty(size), np.empty(size))


@_compiled
def _largest(a, n):
    """max(a[:n]); in eight lanes by hand, for LLVM makes a chain of it."""
    b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = a[0]
    whole = n // 8 * 8
    for i in range(0, whole, 8):
        b0 = a[i] if a[i] > b0 else b0
        b1 = a[i + 1] if a[i + 1] > b1 else b1
        b2 = a[i + 2] if a[i + 2] > b2 else b2
        b3 = a[i + 3] if a[i + 3] > b3 else b3
        b4 = a[i + 4] if a[i + 4] > b4 else b4
        b5 = a[i + 5] if a[i + 5] > b5 else b5
        b6 = a[i + 6] if a[i + 6] > b6 else b6
        b7 = a[i + 7] if a[i + 7] > b7 else b7
    for i in range(whole, n):
        b0 = a[i] if a[i] > b0 else b0
    return max(max(max(b0, b1), max(b2, b3)), max(max(b4, b5), max(b6, b7)))


@_inlined
def _place(a, n, value):
    """The first place of `value`, which is in a[:n]."""
    j = 0
    while j < n - 1 and a[j] != value:
        j += 1
    return j


@_inlined
def _dot(D, j, A, i):
    """Atom j times row i of A, in float32."""
    total = np.float32(0)
    for t in range(D.shape[1]):
        total += D[j, t] * A[i, t]
    return total


@_compiled
def _correlate(D, P, start, end, A, i, out, o):
    """out[o, start:end] = the atoms P[start:end] of D times row i of A, four at a time."""
    d, whole = D.shape[1], start + (end - start) // 4 * 4
    for a in range(start, whole, 4):
        j0, j1, j2, j3 = P[a], P[a + 1], P[a + 2], P[a + 3]
        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for t in range(d):
            v = A[i, t]
            s0 += D[j0, t] * v
            s1 += D[j1, t] * v
            s2 += D[j2, t] * v
            s3 += D[j3, t] * v
        out[o, a], out[o, a + 1], out[o, a + 2], out[o, a + 3] = s0, s1, s2, s3
    for a in range(whole, end):
        out[o, a] = _dot(D, P[a], A, i)


@_inlined
def _columns(j, start, end, problem, work):
    """Fills some columns of row j of the working set's Gram block."""
    if len(problem.G):
        row = work.P[j]
        for a in range(start, end):
            work.G[j, a] = problem.G[row, work.P[a]]
    else:
        _correlate(problem.D, work.P, start, end, problem.D, work.P[j], work.G, j)


@_inlined
def _fill(j, problem, work, p):
    """Row j of the working set's Gram block, where it is not there yet."""
    if not work.have[j]:
        _columns(j, 0, p, problem, work)
        work.have[j] = True


@_inlined
def _enter(j, level, support, k, kappa):
    """Borders H by atom j, whose H G_Sj is u and whose Schur complement is kappa."""
    S, w, H, _, u = support
    for a in range(k):
        ua = u[a] / kappa
        for b in range(k):
            H[a, b] += ua * u[b]
        H[a, k] = -ua
        H[k, a] = -ua
    H[k, k] = 1.0 / kappa
    S[k] = j
    w[k] = level
    return k + 1


@_inlined
def _leave(i, support, k):
    """Takes the i-th atom out of the support; the last one moves to its place."""
    S, w, H = support.S, support.w, support.H
    k -= 1
    pivot = H[i, i]
    for a in range(k + 1):
        if a != i:
            f = H[a, i] / pivot
            for b in range(k + 1):
                if b != i:
                    H[a, b] -= f * H[i, b]
    if i != k:
        for a in range(k):
            H[a, i] = H[a, k]
        for b in range(k):
            H[i, b] = H[k, b]
        H[i, i] = H[k, k]
        S[i], w[i] = S[k], w[k]
    return k


@_inlined
def _direction(j, G, support, k):
    """u = H G_Sj and the Schur complement of atom j."""
    S, _, H, c, u = support
    kappa = np.float64(G[j, j])
    for a in range(k):
        c[a] = G[j, S[a]]
    for a in range(k):
        total = 0.0
        for b in range(k):
            total += H[a, b] * c[b]
        u[a] = total
        kappa -= total * c[a]
    return kappa


@_inlined
def _subtract(G, chosen, w, k, out, n):
    """out[:n] −= Σ_s w_s G[chosen_s, :n] over k rows, four at a time."""
    whole = k // 4 * 4
    for s in range(0, whole, 4):
        r0, r1, r2, r3 = chosen[s], chosen[s + 1], chosen[s + 2], chosen[s + 3]
        w0, w1, w2, w3 = w[s], w[s + 1], w[s + 2], w[s + 3]
        for a in range(n):
            out[a] -= w0 * G[r0, a] + w1 * G[r1, a] + w2 * G[r2, a] + w3 * G[r3, a]
    for s in range(whole, k):
        r0, w0 = chosen[s], w[s]
        for a in range(n):
            out[a] -= w0 * G[r0, a]


@_inlined
def _gradients(lam, work, p, support, k):
    for a in range(p):
        work.g[a] = work.q[a] - lam
    _subtract(work.G, support.S, support.w, k, work.g, p)


@_inlined
def _next(eps, problem, i, work, p):
    """The atom to be driven, whose gradient is the largest and above eps; −1: there is none."""
    while True:
        best = _largest(work.g, p)
        if not best > eps:
            return -1
        j = _place(work.g, p, best)
        if work.exact[j]:
            return j
        exact = np.float64(_dot(problem.D, work.P[j], problem.X, i))
        work.g[j] += exact - work.q[j]
        work.q[j], work.exact[j] = exact, True


@_compiled
def _settle(lam, eps, problem, i, work, p, support, k):
    """The exact minimum at λ = lam for row i over the working set's p atoms, from any support; returns its size."""
    S, w, H, _, u = support
    q, G = work.q, work.G
    while k > 0:
        lowest = 0
        for a in range(k):
            total = 0.0
            for b in range(k):
                total += H[a, b] * (q[S[b]] - lam)
            w[a] = total
            if total < w[lowest]:
                lowest = a
        if w[lowest] > 0:
            break
        k = _leave(lowest, support, k)
    for _ in range(20 * (len(S) + 10)):
        _gradients(lam, work, p, support, k)
        j = _next(eps, problem, i, work, p)
        if j < 0:
            break
        _fill(j, problem, work, p)
        slope, level = work.g[j], 0.0
        while True:
            kappa = _direction(j, G, support, k)
            block, out = np.inf, -1
            for a in range(k):
                if u[a] > 1e-12 and w[a] < block * u[a]:
                    block, out = w[a] / u[a], a
            free = kappa > _DEPENDENT * G[j, j] and k < len(S)
            step = max(slope, 0.0) / kappa if free else np.inf
            if step == np.inf and out < 0:
                q[j] = -np.inf  # depends on the support and takes no atom's place: only rounding drove it
                break
            whole = step <= block
            step = min(step, block)
            level += step
            for a in range(k):
                w[a] -= step * u[a]
            if whole:
                k = _enter(j, level, support, k, kappa)
                break
            slope -= step * kappa
            k = _leave(out, support, k)
    return k


@_compiled
def _enter_first(k, problem, work, p, support):
    """Enters the first k atoms of the working set, but for those that depend on others; returns how many."""
    G, size = work.G, 0
    for s in range(k):
        _columns(s, 0, s + 1, problem, work)
        for a in range(s):
            G[a, s] = G[s, a]
        kappa = _direction(s, G, support, size)
        if kappa > _DEPENDENT * G[s, s]:
            size = _enter(s, 0.0, support, size, kappa)
    for s in range(k):
        _columns(s, k, p, problem, work)
        work.have[s] = True
    return size


@_compiled
def _relative_gap(xr, rr, weight, c_max, lam):
    """(primal − dual) / primal at the dual point s·r, s the best scale with max(D θ) ≤ λ."""
    primal = 0.5 * rr + lam * weight
    if primal <= 0:
        return 0.0
    s = xr / rr if rr > 0 else 1.0
    if c_max > 0:
        s = min(s, lam / c_max)
    return max(0.0, (primal - (s * xr - 0.5 * s * s * rr)) / primal)


@_compiled
def _residual(X, i, D, S, w, k, r):
    """r = x − wD of row i of X, in float64."""
    for t in range(len(r)):
        r[t] = X[i, t]
    for s in range(k):
        j, ws = S[s], w[s]
        for t in range(len(r)):
            r[t] -= ws * D[j, t]


# The way by the Gram matrix: all correlations follow from those of x.


@_inlined
def _widen(rough, i, bits):
    """Row i of rough correlations as the bits of float32."""
    for j in range(len(bits)):
        bits[j] = np.int32(rough.bits[i, j]) << rough.shift


@_inlined
def _above(a, limit):
    """How many of a are above the limit."""
    n, whole = 0, len(a) // _BLOCK * _BLOCK
    for start in range(0, whole, _BLOCK):
        for j in range(_BLOCK):
            n += a[start + j] > limit
    for j in range(whole, len(a)):
        n += a[j] > limit
    return n


@_compiled
def _places_above(a, limit, found):
    """Writes the places of a that are above the limit; returns how many."""
    n, whole = 0, len(a) // _BLOCK * _BLOCK
    for start in range(0, whole, _BLOCK):
        hits = 0
        for j in range(_BLOCK):
            hits += a[start + j] > limit
        if hits:
            for j in range(start, start + _BLOCK):
                found[n] = j
                n += a[j] > limit
    for j in range(whole, len(a)):
        if a[j] > limit:
            found[n] = j
            n += 1
    return n


@_inlined
def _find_peak(problem, rough, i, scratch, peaks):
    D, X, row, found = problem.D, problem.X, scratch.row, scratch.found
    top = _largest(row, len(row))
    error = rough.slack[i] + rough.rounding * abs(top)
    if error == 0:
        peaks.value[i], peaks.atom[i] = max(top, 0.0), _place(row, len(row), top)
    else:
        best, atom = 0.0, 0
        for a in range(_places_above(row, np.float32(top - 2.01 * error), found)):
            exact = np.float64(_dot(D, found[a], X, i))
            if exact > best:
                best, atom = exact, found[a]
        peaks.value[i], peaks.atom[i] = best, atom
    peaks.square[i] = _dot(X, i, X, i)


@_inlined
def _upper(row, rough, i):
    """Makes rough correlations upper bounds of the true ones."""
    slack, rounding = np.float32(rough.slack[i]), np.float32(rough.rounding)
    if slack > 0:
        for j in range(len(row)):
            row[j] += slack + rounding * abs(row[j])


@_inlined
def _single(row, G, j, w, limit):
    """Whether no row − w G_j is above the limit: then the code that gives atom j the weight w is optimal."""
    whole = len(row) // _BLOCK * _BLOCK
    for start in range(0, whole, _BLOCK):
        hits = 0
        for a in range(start, start + _BLOCK):
            hits += row[a] - w * G[j, a] > limit
        if hits:
            return False
    hits = 0
    for a in range(whole, len(row)):
        hits += row[a] - w * G[j, a] > limit
    return hits == 0


@_inlined
def _threshold(left, limit, room):
    """A limit that at most `room` of `left` are above, and about so many where more are above the one given."""
    if _above(left, limit) <= room:
        return limit
    low, high = limit, _largest(left, len(left))
    for _ in range(10):
        middle = (low + high) / np.float32(2)
        above = _above(left, middle)
        if above > room:
            low = middle
        else:
            high = middle
            if 4 * above > 3 * room:
                break
    return high


@_inlined
def _join(row, found, n, work, p, exact):
    """Takes n atoms into the working set; in `row` they are marked by −∞. Gram rows that it has grow."""
    for a in range(n):
        work.P[p + a], work.q[p + a], work.exact[p + a], work.have[p + a] = found[a], row[found[a]], exact, False
        row[found[a]] = -np.inf
    return p + n


@_inlined
def _lengthen(problem, work, old, p):
    """Fills the new columns of the Gram rows that the working set has."""
    for s in range(old):
        if work.have[s]:
            _columns(s, old, p, problem, work)


@_compiled
def _only_support(row, problem, work, p, support, k):
    """Gives back all of a full working set but the support; returns its new size."""
    for a in range(p):
        row[work.P[a]] = work.q[a]
    for s in range(k):
        support.c[s] = work.P[support.S[s]]
        support.u[s] = work.q[support.S[s]]
    for s in range(k):
        work.P[s], work.q[s], work.exact[s] = np.int64(support.c[s]), support.u[s], True
        row[work.P[s]] = -np.inf
        support.S[s], work.have[s] = s, False
    for s in range(k):
        _fill(s, problem, work, k)
    return k


@_compiled
def _refine(lam, problem, i, work, support, k, ids, r):
    """One step of iterative refinement: q and G are float32, the residual is not. ids (k,): room."""
    S, w, H, c, _ = support
    for a in range(k):
        ids[a] = work.P[S[a]]
    _residual(problem.X, i, problem.D, ids, w, k, r)
    for a in range(k):
        total = -lam
        for t in range(len(r)):
            total += r[t] * problem.D[ids[a], t]
        c[a] = total
    for a in range(k):
        for b in range(k):
            w[a] += H[a, b] * c[b]


@_inlined
def _solve_row(lam, eps, problem, i, exact, scratch, work, p, support, k):
    """Grows the working set of row i until no atom outside it violates; returns the support's size.

    exact: whether scratch.row are correlations, or upper bounds.
    """
    row, left, found, ids, w = scratch.row, scratch.left, scratch.found, scratch.ids, scratch.w
    room = _FIRST_ROOM
    for _ in range(_ROUNDS):
        for a in range(len(row)):
            left[a] = row[a]
        for s in range(k):
            ids[s], w[s] = work.P[support.S[s]], support.w[s]
        _subtract(problem.G, ids, w, k, left, len(row))
        limit = _threshold(left, np.float32(lam + eps), room)
        n = _places_above(left, limit, found)
        if n == 0:
            break
        if p + n > len(work.P):
            p = _only_support(row, problem, work, p, support, k)
        old, p = p, _join(row, found, n, work, p, exact)
        _lengthen(problem, work, old, p)
        k = _settle(lam, eps, problem, i, work, p, support, k)
        room = min(2 * room, _ROOM)
    return k


@_inlined
def _finish(lam, eps, tol, problem, i, square, scratch, work, support, k, rows):
    """Writes row i's code and its gap; takes atoms without a weight out of the support, and returns its size."""
    S, w, ids, r = support.S, support.w, scratch.ids, scratch.r
    precise = tol < _CERTIFIED * np.sqrt(square) / lam
    if precise:
        _refine(lam, problem, i, work, support, k, ids, r)
    s = 0
    while s < k:
        if np.float32(w[s]) > 0:
            s += 1
        else:
            k = _leave(s, support, k)
    weight, xr, rr, c_max = 0.0, square, square, lam + eps
    for s in range(k):
        ids[s] = work.P[S[s]]
        rows.ids[i, s], rows.weights[i, s] = ids[s], w[s]
        c = work.q[S[s]]
        xr -= w[s] * c
        rr -= w[s] * c
        for t in range(k):
            c -= w[t] * work.G[S[s], S[t]]
        rr -= w[s] * c
        c_max = max(c_max, c)
        weight += w[s]
    if precise:
        _residual(problem.X, i, problem.D, ids, w, k, r)
        xr, rr = 0.0, 0.0
        for t in range(len(r)):
            xr += r[t] * problem.X[i, t]
            rr += r[t] * r[t]
    rows.sizes[i], rows.gap[i] = k, _relative_gap(xr, rr, weight, c_max, lam)
    return k


@_compiled
def _refit(problem, i, work, support, k, rows, ids, r):
    """Gives the code of row i the weights of nonnegative least squares on its support.

    work: the support alone; support: the places 0 … k − 1 of it in some order, but for dependent ones, with their H.
    """
    p, w = rows.sizes[i], support.w
    if p == 0:
        return
    k = _settle(0.0, _NOISE * _largest(work.q, p), problem, i, work, p, support, k)
    _refine(0.0, problem, i, work, support, k, ids, r)
    n = 0
    for s in range(k):
        if np.float32(w[s]) > 0:
            rows.ids[i, n], rows.weights[i, n] = ids[s], w[s]
            n += 1
    rows.sizes[i] = n


@_inlined
def _only(work, support, k, own):
    """Copies a working set's support, which is all of the working set `own` then."""
    S = support.S
    for s in range(k):
        own.P[s], own.q[s], own.exact[s], own.have[s] = work.P[S[s]], work.q[S[s]], True, True
        for t in range(k):
            own.G[s, t] = work.G[S[s], S[t]]
    for s in range(k):
        S[s] = s


@_compiled
def solve_by_gram(problem, rough, first, l1, relative, tol, refit, peaks, rows):
    """Codes the rows of problem.X over all atoms by their Gram matrix.

    rough: the correlations of X. first: whether `peaks` is still to be found; else each row starts from its code
    in `rows`, which is replaced. l1, relative: as in `CoderConfig`. tol: what precision the gap is needed in.
    refit: whether the weights are those of least squares in the end.
    A row whose code is a single atom j takes one pass: w = q_j − λ, as long as all q − w G_j ≤ λ.
    """
    D, X, G = problem.D, problem.X, problem.G
    m, kmax = len(D), rows.ids.shape[1]
    scratch, work, support = _scratch(m, X.shape[1], kmax), _working_set(min(m, kmax + 3 * _ROOM)), _support(kmax)
    row, found, own = scratch.row, scratch.found, _working_set(kmax if refit else 1)
    for i in range(len(X)):
        _widen(rough, i, scratch.bits)
        if first:
            _find_peak(problem, rough, i, scratch, peaks)
        top, atom = peaks.value[i], peaks.atom[i]
        lam = (l1 * top if relative else l1) if top > 0 else 1.0
        eps = max(1e-7 * lam, _NOISE * top)
        rows.l1[i] = lam
        warm = 0 if first else rows.sizes[i]
        if lam >= top:
            rows.sizes[i], rows.gap[i] = 0, 0.0
            continue
        _upper(row, rough, i)
        if warm == 0:
            found[0], row[atom] = atom, top
            p = _join(row, found, 1, work, 0, True)
            k = _enter_first(1, problem, work, p, support)
            support.w[0] = (top - lam) * support.H[0, 0]
            open_ = not _single(row, G, atom, np.float32(support.w[0]), np.float32(lam + eps))
        else:
            for s in range(warm):
                found[s] = rows.ids[i, s]
                row[found[s]] = _dot(D, found[s], X, i)
            p = _join(row, found, warm, work, 0, True)
            k = _enter_first(warm, problem, work, p, support)
            k, open_ = _settle(lam, eps, problem, i, work, p, support, k), True
        if open_:
            k = _solve_row(lam, eps, problem, i, rough.slack[i] == 0, scratch, work, p, support, k)
        k = _finish(lam, eps, tol, problem, i, peaks.square[i], scratch, work, support, k, rows)
        if refit and k == 1:
            rows.weights[i, 0] = work.q[support.S[0]] * support.H[0, 0]
        elif refit:
            _only(work, support, k, own)
            _refit(problem, i, own, support, k, rows, scratch.ids, scratch.r)


# The way by working sets, without the Gram matrix: a product with all atoms screens, and another one certifies.


@_compiled
def _collect(C, i, low, out):
    """Columns of row i of C that are ≥ low; returns how many."""
    m, n = C.shape[1], 0
    whole = m // _BLOCK * _BLOCK
    for start in range(0, whole, _BLOCK):
        hits = 0
        for j in range(_BLOCK):
            hits += C[i, start + j] >= low
        if hits:
            for j in range(start, start + _BLOCK):
                out[n] = j
                n += C[i, j] >= low
    for j in range(whole, m):
        if C[i, j] >= low:
            out[n] = j
            n += 1
    return n


@_compiled
def _strongest(C, i, found, n, room):
    """Keeps of the n columns in `found` at most `room`, none weaker than one left out; returns how many."""
    if n <= room:
        return n
    low, high = int(C[i, found[0]]), int(C[i, found[0]])
    for a in range(n):
        low, high = min(low, int(C[i, found[a]])), max(high, int(C[i, found[a]]))
    high += 1
    while high - low > 1:  # more than room are ≥ low, at most room are ≥ high
        middle = (low + high) >> 1
        above = 0
        for a in range(n):
            above += C[i, found[a]] >= middle
        if above > room:
            low = middle
        else:
            high = middle
    kept = 0
    for a in range(n):
        if C[i, found[a]] >= high:
            found[kept] = found[a]
            kept += 1
    for a in range(n):  # ties fill what is left, by their index
        if kept == room:
            break
        if C[i, found[a]] == low:
            found[kept] = found[a]
            kept += 1
    return kept


@_compiled
def strongest_correlation(C, low, X, D, out):
    """out (b,) = max(D x), exact in float32, of rows of X whose rough correlations are C (`solve_active_set`)."""
    found, exact = np.empty(C.shape[1], np.int64), np.empty((1, C.shape[1]), np.float32)
    for i in range(len(C)):
        n = _collect(C, i, low[i], found)
        _correlate(D, found, 0, n, X, i, exact, 0)
        out[i] = 0.0
        for a in range(n):
            out[i] = max(out[i], exact[0, a])


@_compiled
def highest(C, out):
    """out (b,) = the largest of each row of C (b, m)."""
    for i in range(len(C)):
        top = C[i, 0]
        for j in range(C.shape[1]):
            top = max(top, C[i, j])
        out[i] = top


class Screened(NamedTuple):
    """What a product with all atoms says of the residuals of some `rows` (r,) of a batch.

    C (r, m): their correlations, rounded, as integers that sort as they do (the bits of a positive float).
    low, sure (r,): an atom below `low` has a correlation ≤ λ, one above `sure` has one > λ.
    """

    rows: np.ndarray
    C: np.ndarray
    low: np.ndarray
    sure: np.ndarray


@_compiled
def _certify(i, screened, problem, R, rows, tol, found, n, exact, violators):
    """The gap of a code by what its residual leaves; returns the number of violators, or −1 where it is done.

    found (n,): the atoms that may correlate by more than λ.
    """
    row = screened.rows[i]
    lam = rows.l1[row]
    for a in range(n):
        if screened.C[i, found[a]] > screened.sure[i]:
            return 0  # a violator for certain: no need to know the gap
    c_max, bad = np.float64(lam), 0
    _correlate(problem.D, found, 0, n, R, row, exact, 0)
    for a in range(n):
        c_max = max(c_max, np.float64(exact[0, a]))
        if exact[0, a] > lam * (1 + 1e-6):
            violators[bad] = found[a]
            bad += 1
    xr, rr, weight = 0.0, 0.0, 0.0
    for t in range(R.shape[1]):
        xr += np.float64(problem.X[row, t]) * np.float64(R[row, t])
        rr += np.float64(R[row, t]) * np.float64(R[row, t])
    for s in range(rows.sizes[row]):
        weight += np.float64(rows.weights[row, s])
    rows.gap[row] = _relative_gap(xr, rr, weight, c_max, lam)
    return -1 if rows.gap[row] <= tol else bad


@_compiled
def _choose(i, screened, rows, room, found, n, violators, bad, mine, P):
    """The working set: the support, then the violators, then the strongest of what came close; returns its size."""
    row, p = screened.rows[i], 0
    for s in range(rows.sizes[row]):
        P[p] = rows.ids[row, s]
        mine[P[p]] = True
        p += 1
    for a in range(bad):
        if p < room and not mine[violators[a]]:
            P[p] = violators[a]
            mine[P[p]] = True
            p += 1
    kept = 0
    for a in range(n):
        if not mine[found[a]]:
            found[kept] = found[a]
            kept += 1
    for a in range(_strongest(screened.C, i, found, kept, room - p)):
        P[p] = found[a]
        p += 1
    for a in range(p):
        mine[P[a]] = False
    return p


@_compiled
def solve_active_set(screened, problem, R, base, rows, checked, tol, size):
    """Certifies codes by their residuals' correlations with all atoms; solves anew those that fail.

    R (b, d): the residuals of the batch; base (b,): its penalties. What `screened` leaves open is computed exactly.
    Where the gap is ≤ tol the row is left as it is; otherwise the atoms above `low` join its support in a working
    set of about `size`, and its code and residual are made anew.
    checked: whether C belongs to the codes, so that they can be certified by it; gap is ∞ where a code is new.
    """
    X, D, m, kmax = problem.X, problem.D, len(problem.D), rows.ids.shape[1]
    work, support = _working_set(min(m, 2 * kmax + size)), _support(kmax)
    found, violators = np.empty(m, np.int64), np.empty(m, np.int64)
    mine, exact = np.zeros(m, np.bool_), np.empty((1, m), np.float32)
    used, r = np.empty(kmax, np.int64), np.empty(X.shape[1])
    for i in range(len(screened.C)):
        row, bad = screened.rows[i], 0
        n = _collect(screened.C, i, screened.low[i], found)
        if checked:
            bad = _certify(i, screened, problem, R, rows, tol, found, n, exact, violators)
            if bad < 0:
                continue
        warm, lam = rows.sizes[row], base[row]
        room = min(len(work.P), warm + size)
        p = _choose(i, screened, rows, room, found, n, violators, bad, mine, work.P)
        _correlate(D, work.P, 0, p, X, row, exact, 0)
        for a in range(p):
            work.have[a], work.exact[a], work.q[a] = False, True, exact[0, a]
        eps = max(1e-7 * lam, _NOISE * _largest(work.q, p))
        k = _enter_first(warm, problem, work, p, support)
        k = _settle(lam, eps, problem, row, work, p, support, k)
        n = 0
        for s in range(k):
            ws = np.float32(support.w[s])
            if ws > 0:
                used[n] = work.P[support.S[s]]
                rows.ids[row, n], rows.weights[row, n], support.w[n] = used[n], ws, ws
                n += 1
        _residual(X, row, D, used, support.w, n, r)
        for t in range(len(r)):
            R[row, t] = r[t]
        rows.sizes[row], rows.l1[row], rows.gap[row] = n, lam, np.inf


@_compiled
def refit_rows(problem, rows):
    """Gives the codes in `rows` the weights of nonnegative least squares on their supports; zeros leave them."""
    kmax = rows.ids.shape[1]
    work, support = _working_set(kmax), _support(kmax)
    exact, ids, r = np.empty((1, kmax), np.float32), np.empty(kmax, np.int64), np.empty(problem.X.shape[1])
    for i in range(len(rows.sizes)):
        k = rows.sizes[i]
        for s in range(k):
            work.P[s] = rows.ids[i, s]
        _correlate(problem.D, work.P, 0, k, problem.X, i, exact, 0)
        for s in range(k):
            work.q[s], work.exact[s], work.have[s] = exact[0, s], True, False
        size = _enter_first(k, problem, work, k, support)
        _refit(problem, i, work, support, size, rows, ids, r)


@_compiled
def pack(rows, count, starts, indices, data):
    """Writes each row's code to its place in CSR arrays, atoms ascending."""
    ids, weights = rows.ids, rows.weights
    for i in range(len(count)):
        at = starts[i]
        for s in range(count[i]):
            j, v = ids[i, s], weights[i, s]
            t = at + s
            while t > at and indices[t - 1] > j:
                indices[t], data[t] = indices[t - 1], data[t - 1]
                t -= 1
            indices[t], data[t] = j, v
