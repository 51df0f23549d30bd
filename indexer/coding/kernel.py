"""The coder's inner loop on a CPU, compiled by numba: principal pivoting on each row's working set.

`min_{w ≥ 0} ½ wᵀG w − (q − λ)ᵀ w` over a working set P, where G is the atoms' Gram block and q = D_P x. The
state is a support S, the inverse H = G_SS⁻¹ and w_S = H (q_S − λ) ≥ 0. The atom j with the largest gradient
q_j − λ − G_jS w_S is driven up; w_S moves by −H G_Sj for every unit of w_j, so that the support's own gradients
stay 0. Atoms that reach 0 on the way leave, and j enters when its own gradient reaches 0 (Dantzig's and van de
Panne's simplex for quadratic programs). Each round lowers the objective; the last one is exact. Rows of G are
computed when an atom is first driven. An atom that depends on the support is never entered, only exchanged.

The functions release the GIL and take arrays by index: a view made in a loop costs more than the loop.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_FAST = {"reassoc", "contract", "arcp", "nsz"}  # sums may be reordered; infinities and NaN keep their meaning
_compiled = njit(cache=True, nogil=True, fastmath=_FAST)
_BLOCK = 64  # correlations looked at together
_DEPENDENT = 1e-6  # of an atom's squared norm: what must lie outside the support's span
_NOISE = 5e-8  # of λ_max: float32 inner products are no better than that


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


@_compiled
def _correlate(D, P, p, A, i, out, o):
    """out[o, :p] = the atoms P[:p] of D times row i of A, four at a time."""
    d, whole = D.shape[1], p // 4 * 4
    for a in range(0, whole, 4):
        j0, j1, j2, j3 = P[a], P[a + 1], P[a + 2], P[a + 3]
        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for t in range(d):
            v = A[i, t]
            s0 += D[j0, t] * v
            s1 += D[j1, t] * v
            s2 += D[j2, t] * v
            s3 += D[j3, t] * v
        out[o, a], out[o, a + 1], out[o, a + 2], out[o, a + 3] = s0, s1, s2, s3
    for a in range(whole, p):
        s0 = np.float32(0)
        for t in range(d):
            s0 += D[P[a], t] * A[i, t]
        out[o, a] = s0


@_compiled
def _enter(j, level, S, w, k, H, u, kappa):
    """Borders H by atom j, whose H G_Sj is u and whose Schur complement is kappa."""
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


@_compiled
def _leave(i, S, w, k, H):
    """Takes the i-th atom out of the support; the last one moves to its place."""
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


@_compiled
def _direction(j, G, S, k, H, c, u):
    """u = H G_Sj and the Schur complement of atom j."""
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


@_compiled
def _fill(j, G, have, D, P, p):
    """Row j of the working set's Gram block, once."""
    if not have[j]:
        _correlate(D, P, p, D, P[j], G, j)
        have[j] = True


@_compiled
def _settle(lam, q, p, G, have, D, P, S, w, k, H, g, c, u):
    """The exact minimum at λ = lam over the working set's p atoms, from any support; returns its size."""
    lazy = len(have) > 0
    eps = max(1e-7 * lam, _NOISE * _largest(q, p))
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
        k = _leave(lowest, S, w, k, H)
    for _ in range(20 * (len(S) + 10)):
        for a in range(p):
            g[a] = q[a] - lam
        for s in range(k):
            row, ws = S[s], w[s]
            for a in range(p):
                g[a] -= ws * G[row, a]
        best = _largest(g, p)
        if not best > eps:
            break
        j = 0
        while j < p - 1 and g[j] != best:
            j += 1
        if lazy:
            _fill(j, G, have, D, P, p)
        slope, level = best, 0.0
        while True:
            kappa = _direction(j, G, S, k, H, c, u)
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
                k = _enter(j, level, S, w, k, H, u, kappa)
                break
            slope -= step * kappa
            k = _leave(out, S, w, k, H)
    return k


@_compiled
def _settle_limited(lam, limit, q, p, G, have, D, P, S, w, k, H, g, c, u):
    """As `_settle`, at the smallest penalty ≥ lam with at most `limit` atoms (0: any number); size, penalty."""
    if limit == 0:
        return _settle(lam, q, p, G, have, D, P, S, w, k, H, g, c, u), lam
    low, high = lam, max(lam, _largest(q, p))
    touched = False
    for _ in range(24):
        middle = np.sqrt(low * high)
        k = _settle(middle, q, p, G, have, D, P, S, w, k, H, g, c, u)
        if k <= limit:
            high = middle
        else:
            low, touched = middle, True
    if not touched:
        k = _settle(lam, q, p, G, have, D, P, S, w, k, H, g, c, u)
        if k <= limit:
            return k, lam
    k = _settle(high, q, p, G, have, D, P, S, w, k, H, g, c, u)
    while k > limit:
        high *= 1.0 + 1e-4
        k = _settle(high, q, p, G, have, D, P, S, w, k, H, g, c, u)
    return k, high


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


@_compiled
def solve_by_gram(Q, G, D, X, l1, ids, weights, count, gap, used, limit):
    """Codes the rows of Q (b, m) over all atoms by their Gram matrix G (m, m).

    Reads each row's support from ids, weights (b, kmax), count (b,), where it starts, and leaves there what it
    ends with; gap (b,) and used (b,), the penalty of each code, are written.
    """
    m, d = G.shape[0], X.shape[1]
    kmax = ids.shape[1]
    q, g, r = np.empty(m), np.empty(m), np.empty(d)
    S, w, c, u = np.empty(kmax, np.int64), np.empty(kmax), np.empty(kmax), np.empty(kmax)
    H = np.empty((kmax, kmax))
    have, P = np.empty(0, np.bool_), np.empty(0, np.int64)
    for i in range(len(Q)):
        for a in range(m):
            q[a] = Q[i, a]
        largest = _largest(q, m)
        k = 0
        lam = l1[i]
        if lam < largest:
            for s in range(count[i]):
                kappa = _direction(ids[i, s], G, S, k, H, c, u)
                if kappa > _DEPENDENT * G[ids[i, s], ids[i, s]]:
                    k = _enter(ids[i, s], 0.0, S, w, k, H, u, kappa)
            k, lam = _settle_limited(lam, limit, q, m, G, have, D, P, S, w, k, H, g, c, u)
        _residual(X, i, D, S, w, k, r)
        for a in range(k):  # one step of refinement: Q and G are float32, the residual is not
            total = -lam
            for t in range(d):
                total += r[t] * D[S[a], t]
            c[a] = total
        for a in range(k):
            for b in range(k):
                w[a] += H[a, b] * c[b]
        for a in range(m):
            g[a] = Q[i, a]
        n, weight = 0, 0.0
        for s in range(k):
            ws = np.float32(w[s])
            if ws > 0:
                row = S[s]
                ids[i, n], weights[i, n] = row, ws
                S[n], w[n] = row, ws
                n += 1
                weight += float(ws)
                for a in range(m):
                    g[a] -= ws * G[row, a]
        _residual(X, i, D, S, w, n, r)
        xr, rr = 0.0, 0.0
        for t in range(d):
            xr += r[t] * X[i, t]
            rr += r[t] * r[t]
        count[i], used[i] = n, lam
        gap[i] = _relative_gap(xr, rr, weight, _largest(g, m), lam)


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
        _correlate(D, found, n, X, i, exact, 0)
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


@_compiled
def solve_active_set(C, low, sure, rows, X, D, base, R, ids, weights, count, gap, used, checked, tol, size, limit):
    """Certifies codes by their residuals' correlations with all atoms; solves anew those that fail.

    C (b, m): correlations of the residuals R of `rows`, as integers that sort as they do (the bits of a positive
    float), rounded; low, sure (b,): an atom below `low` has a correlation ≤ λ, one above `sure` has one > λ.
    Between the two the correlation is computed exactly. Where the gap is ≤ tol the row is left as it is;
    otherwise the atoms above `low` join its support in a working set of about `size`, and its code and residual
    are made anew at the penalty base (b,), or the smallest above it that leaves at most `limit` atoms.
    checked: whether C belongs to the codes, so that they can be certified by it; gap is ∞ where a code is new.
    """
    m, d, kmax = C.shape[1], D.shape[1], ids.shape[1]
    pmax = min(m, 2 * kmax + size)
    q, g = np.empty(pmax), np.empty(pmax)
    S, w, c, u = np.empty(kmax, np.int64), np.empty(kmax), np.empty(kmax), np.empty(kmax)
    H = np.empty((kmax, kmax))
    G, have = np.empty((pmax, pmax), np.float32), np.empty(pmax, np.bool_)
    P, found, violators = np.empty(pmax, np.int64), np.empty(m, np.int64), np.empty(m, np.int64)
    mine, exact = np.zeros(m, np.bool_), np.empty((1, m), np.float32)
    r = np.empty(d)
    for i in range(len(C)):
        row = rows[i]
        lam, k = used[row], count[row]
        n = _collect(C, i, low[i], found)
        bad = 0
        if checked:
            c_max = np.float64(lam)
            sure_of_it = False
            for a in range(n):
                sure_of_it |= C[i, found[a]] > sure[i]
            if not sure_of_it:
                _correlate(D, found, n, R, row, exact, 0)
                for a in range(n):
                    c_max = max(c_max, np.float64(exact[0, a]))
                    if exact[0, a] > lam * (1 + 1e-6):
                        violators[bad] = found[a]
                        bad += 1
                xr, rr, weight = 0.0, 0.0, 0.0
                for t in range(d):
                    xr += np.float64(X[row, t]) * np.float64(R[row, t])
                    rr += np.float64(R[row, t]) * np.float64(R[row, t])
                for s in range(k):
                    weight += np.float64(weights[row, s])
                gap[row] = _relative_gap(xr, rr, weight, c_max, lam)
                if gap[row] <= tol:
                    continue
        # The working set: the support, then the violators, then the strongest of what came close.
        p = 0
        for s in range(k):
            P[p] = ids[row, s]
            mine[P[p]] = True
            p += 1
        room = min(pmax, k + size)
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
        for a in range(_strongest(C, i, found, kept, room - p)):
            P[p] = found[a]
            p += 1
        _correlate(D, P, p, X, row, exact, 0)
        for a in range(p):
            mine[P[a]], have[a], q[a] = False, False, exact[0, a]
        warm, k = k, 0
        for s in range(warm):
            _fill(s, G, have, D, P, p)
            kappa = _direction(s, G, S, k, H, c, u)
            if kappa > _DEPENDENT * G[s, s]:
                k = _enter(s, 0.0, S, w, k, H, u, kappa)
        k, lam = _settle_limited(base[row], limit, q, p, G, have, D, P, S, w, k, H, g, c, u)
        n = 0
        for s in range(k):
            ws = np.float32(w[s])
            if ws > 0:
                j = P[S[s]]
                ids[row, n], weights[row, n] = j, ws
                S[n], w[n] = j, ws
                n += 1
        _residual(X, row, D, S, w, n, r)
        for t in range(d):
            R[row, t] = r[t]
        count[row], used[row], gap[row] = n, lam, np.inf


@_compiled
def pack(ids, weights, count, starts, indices, data):
    """Writes each row's code to its place in CSR arrays, atoms ascending."""
    for i in range(len(count)):
        at = starts[i]
        for s in range(count[i]):
            j, v = ids[i, s], weights[i, s]
            t = at + s
            while t > at and indices[t - 1] > j:
                indices[t], data[t] = indices[t - 1], data[t - 1]
                t -= 1
            indices[t], data[t] = j, v
