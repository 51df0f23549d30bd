"""The l1 coder: every embedding as a few weighted concepts, with a certificate.

Solves, for each row x, `min_{w ≥ 0} ½‖x − wD‖² + λ‖w‖₁`, batched in torch, one code path for every device:

1. one GEMM `X Dᵀ` finds the atoms that can matter and each row's λ_max = max(D x);
2. coordinate descent on the Gram block of each row's working set (its strongest atoms);
3. one GEMM checks the optimality conditions over all atoms; violators join the working set; again from 2;
4. the duality gap, computed from the same correlations, certifies each code.

A code is done when its relative gap is ≤ `tol`, not when a loop ended. The screening by a working set is that
of celer (Massias et al. 2018); the dual point is the residual scaled into the feasible set (as there, eq. 7).
No n × m result is ever formed; memory is bounded by `batch_size` × m.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from indexer.config import CoderConfig
from training.errors import SparsightError


class Codes(NamedTuple):
    """W (n, m) CSR, sorted indices, weights > 0 · gap (n,) relative duality gap of each code · l1 (n,) its λ."""

    W: sparse.csr_matrix
    gap: np.ndarray
    l1: np.ndarray


def encode_sparse(
    X: np.ndarray,
    D: np.ndarray,
    config: CoderConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Codes:
    """Codes the rows of X (n, d) against the unit rows of D (m, d), to a certified duality gap.

    The relative gap is (primal − dual) / primal; primal is at most ½‖x‖². A zero row has a zero code.
    progress: called with the number of rows done after each batch.
    Raises `SparsightError` for wrong shapes, values that are not finite, a negative penalty, and a code that
    does not reach `tol` within `max_rounds`.
    """
    config = config or CoderConfig()
    X, D = np.ascontiguousarray(X, np.float32), np.ascontiguousarray(D, np.float32)
    if X.ndim != 2 or D.ndim != 2 or X.shape[1] != D.shape[1] or not len(D):
        raise SparsightError(f"cannot code X {X.shape} against D {D.shape}: expected (n, d) and (m, d), m > 0")
    for name, A in (("X", X), ("D", D)):
        bad = np.flatnonzero(~np.isfinite(A).all(1))
        if len(bad):
            raise SparsightError(f"cannot code: row {bad[0]} of {name} has values that are not finite")
    if not (np.isfinite(config.l1) and config.l1 > 0):
        raise SparsightError(f"cannot code with l1 = {config.l1}: it must be a number above 0")
    solver = _Solver(torch.as_tensor(D, device=device), config)
    parts = []
    for start in range(0, len(X), config.batch_size):
        parts.append(solver.solve(torch.as_tensor(X[start : start + config.batch_size], device=device)))
        if progress:
            progress(len(parts[-1][3]))
    rows = [p[0] for p in parts]
    counts = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    index_type = np.int32 if indptr[-1] < 2**31 else np.int64
    indices = np.concatenate([p[1] for p in parts]) if parts else np.zeros(0)
    data = np.concatenate([p[2] for p in parts]) if parts else np.zeros(0)
    W = sparse.csr_matrix(
        (data.astype(np.float32), indices.astype(index_type), indptr.astype(index_type)), shape=(len(X), len(D))
    )
    gap, l1 = (np.concatenate([p[i] for p in parts]) if parts else np.zeros(0, np.float32) for i in (3, 4))
    if len(gap) and not gap.max() <= config.tol:
        raise SparsightError(
            f"{int((gap > config.tol).sum())} of {len(gap)} codes stayed above a relative gap of {config.tol:g} "
            f"(worst {gap.max():.1e}); raise tol, or l1"
        )
    return Codes(W, gap, l1)


class _Solver:
    """A dictionary on a device, and the working-set iteration for batches of rows."""

    def __init__(self, D: Tensor, config: CoderConfig):
        self.D, self.config = D, config
        self.size = min(config.working_set, len(D))

    def solve(self, X: Tensor) -> tuple[np.ndarray, ...]:
        """One batch X (b, d) → counts (b,), indices, weights, gap (b,), l1 (b,) as numpy."""
        config = self.config
        Q = X @ self.D.T  # (b, m)
        l1_max = Q.amax(1)
        l1 = config.l1 * l1_max if config.relative else torch.full_like(l1_max, config.l1)
        empty = (l1_max <= 0) | (l1 >= l1_max)
        l1 = torch.where(l1_max > 0, l1, torch.ones_like(l1))
        S = Q.topk(self.size, dim=1).indices  # (b, s) the working sets
        W = torch.zeros(S.shape, dtype=X.dtype, device=X.device)
        gap = torch.where(empty, 0.0, torch.inf)
        left = torch.nonzero(~empty).squeeze(1)
        final_S, final_W = S.clone(), W.clone()
        S, W = S[left], W[left]
        for _ in range(config.max_rounds):
            if not len(left):
                break
            A = self.D[S]  # (r, s, d)
            x = X[left]
            W = _descend(A, x, l1[left], W, config.sweeps)
            residual = x - torch.einsum("rs,rsd->rd", W, A)
            C = residual @ self.D.T  # (r, m) correlations with every atom
            g = _relative_gap(x, residual, W, C.amax(1), l1[left])
            gap[left] = g
            if S.shape[1] > final_S.shape[1]:
                more = S.shape[1] - final_S.shape[1]
                final_S = torch.nn.functional.pad(final_S, (0, more))
                final_W = torch.nn.functional.pad(final_W, (0, more))
            final_S[left, : S.shape[1]], final_W[left, : S.shape[1]] = S, W
            open_ = g > config.tol
            if not open_.any():
                break
            left, S, W, C = left[open_], S[open_], W[open_], C[open_]
            S, W = self._grow(S, W, C, l1[left])
        return _to_rows(final_S, final_W, gap, l1)

    def _grow(self, S: Tensor, W: Tensor, C: Tensor, l1: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the strongest violators outside each working set, in place of idle members where there are some."""
        outside = C.scatter(1, S, -torch.inf)
        take = min(self.size, S.shape[1], len(self.D) - S.shape[1])
        worst = outside.amax(1)
        if take <= 0 or not (worst > l1 * (1 + 1e-6)).any():
            return S, W
        values, new = outside.topk(take, dim=1)
        room = int((W > 0).sum(1).max()) + take
        order = W.argsort(dim=1, descending=True, stable=True)[:, : max(self.size, room) - take]
        S, W = S.gather(1, order), W.gather(1, order)
        return torch.cat([S, new], 1), torch.cat([W, torch.zeros_like(values)], 1)


def _descend(A: Tensor, x: Tensor, l1: Tensor, W: Tensor, sweeps: int) -> Tensor:
    """Cyclic coordinate descent on each row's own block: A (r, s, d), x (r, d), l1 (r,), W (r, s) → W."""
    G = A @ A.mT  # (r, s, s)
    b = torch.einsum("rsd,rd->rs", A, x) - l1[:, None]
    norms = G.diagonal(dim1=1, dim2=2)
    inverse = torch.where(norms > 0, 1 / norms.clamp_min(1e-30), 0.0)
    # Column-major copies: the sweep touches one coordinate of all rows at a time.
    G, W, inverse = G.permute(1, 2, 0).contiguous(), W.T.contiguous(), inverse.T.contiguous()  # (s, s, r), (s, r)
    gradient = b.T - torch.einsum("str,tr->sr", G, W)  # (s, r): −∂/∂w
    gradient = gradient.contiguous()
    for _ in range(sweeps):
        largest = torch.zeros((), device=W.device)
        for j in range(len(W)):
            step = (W[j] + gradient[j] * inverse[j]).clamp_min(0) - W[j]
            W[j] += step
            gradient -= G[j] * step
            largest = torch.maximum(largest, step.abs().max())
        if largest < 1e-7:
            break
    return W.T.contiguous()


def _relative_gap(x: Tensor, residual: Tensor, W: Tensor, c_max: Tensor, l1: Tensor) -> Tensor:
    """(primal − dual) / primal of each row, at the dual point θ = s · residual.

    s is the best scale that keeps max(D θ) ≤ λ. In float64: the gap is a small difference of larger numbers.
    """
    x, residual, W, l1 = x.double(), residual.double(), W.double(), l1.double()
    rr, xr = residual.square().sum(1), (x * residual).sum(1)
    primal = 0.5 * rr + l1 * W.sum(1)
    feasible = torch.where(c_max > 0, l1 / c_max.double().clamp_min(1e-30), torch.inf)
    s = torch.minimum(xr / rr.clamp_min(1e-30), feasible)
    dual = s * xr - 0.5 * s * s * rr  # ½‖x‖² − ½‖x − θ‖²
    return ((primal - dual) / primal.clamp_min(1e-30)).clamp_min(0).to(torch.float32)


def _to_rows(S: Tensor, W: Tensor, gap: Tensor, l1: Tensor) -> tuple[np.ndarray, ...]:
    order = S.argsort(dim=1)
    ids, weights = S.gather(1, order).cpu().numpy(), W.gather(1, order).cpu().numpy()
    keep = weights > 0
    return keep.sum(1), ids[keep], weights[keep], gap.cpu().numpy(), l1.cpu().numpy()
