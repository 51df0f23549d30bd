"""The coder's solver in torch, on any device; on a CPU too for a handful of rows, which need not wait for numba.

The rounds are those of the active-set way (`indexer.coding.cpu`), in float32 and for a whole batch at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from indexer.coding.codes import Part, penalties
from indexer.coding.pivoting import pivot
from indexer.coding.prepared import PreparedDictionary
from indexer.coding.refit import refit_batch
from indexer.config import CoderConfig

WORKING_SET = 32  # atoms that may join a row's support in one round
MAX_ROUNDS = 100
MAX_BATCH, MAX_BATCH_CPU = 1 << 16, 1024


class TorchSolver:
    """Solves batches of rows at each of the penalties l1s."""

    def __init__(self, atoms: PreparedDictionary, l1s: list[float], config: CoderConfig, memory: int):
        self.atoms, self.l1s, self.config, self.memory, self.steps = atoms, l1s, config, memory, range(0)

    def prepare(self, step: int) -> None:
        """Nothing: there are no steps."""

    def batch_size(self, memory: int) -> int:
        """Rows whose correlations, residuals, tableaux and their atoms fit in `memory` bytes."""
        m, d = self.atoms.D.shape
        s = min(m, 2 * WORKING_SET)
        row = 12 * m + 12 * d + s * (32 * s + 4 * d)
        return int(np.clip(memory // row, 1, MAX_BATCH_CPU if self.atoms.D.device.type == "cpu" else MAX_BATCH))

    def __call__(self, X: Tensor, size: int) -> list[Part]:
        """X (b, d) → its codes at each penalty."""
        D, b = self.atoms.D, len(X)
        C_all = X @ D.T  # (b, m)
        l1_max = C_all.amax(1).clamp_min(0)
        P, W = torch.zeros(b, 1, dtype=torch.int64, device=D.device), torch.zeros(b, 1, device=D.device)  # (b, s)
        R, parts = X.clone(), []
        for l1 in self.l1s:
            lam = penalties(l1, self.config.relative, l1_max.double().cpu().numpy())
            base = torch.as_tensor(lam).to(D)
            empty = base >= l1_max
            gap = torch.where(empty, 0.0, torch.inf)
            W[empty], R[empty] = 0, X[empty]
            rows, checked = torch.nonzero(~empty)[:, 0], False
            C = C_all[rows]
            for _ in range(MAX_ROUNDS):
                if checked:
                    gap[rows] = _relative_gap(X[rows], R[rows], W[rows], C.amax(1), base[rows])
                    open_ = ~(gap[rows] <= self.config.tol)
                    rows, C = rows[open_], C[open_]
                if not len(rows):
                    break
                size = min(len(D.T) + WORKING_SET, len(D), int((W[rows] > 0).sum(1).max()) + WORKING_SET)
                p, w = P[rows], W[rows]
                own = torch.where(w > 0, torch.inf, -torch.inf)  # of the padding, nothing
                S = C.scatter_reduce(1, p, own, "amax").topk(size, 1).indices
                A, x = D[S], X[rows]
                G, q = A @ A.mT, torch.einsum("rsd,rd->rs", A, x)
                w = pivot(G, q, base[rows])
                P, W = _widened(P, size), _widened(W, size)
                P[rows], W[rows] = torch.nn.functional.pad(S, (0, P.shape[1] - size)), 0
                W[rows, :size] = w
                R[rows] = x - torch.einsum("rs,rsd->rd", w, A)
                C, checked = R[rows] @ D.T, True
                if len(rows) == b:
                    C_all = C
            parts.append(_part(P, refit_batch(self.atoms, X, P, W, self.memory) if self.config.refit else W, gap, base))
        return parts


def _widened(A: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(A, (0, max(0, size - A.shape[1])))


def _relative_gap(x: Tensor, r: Tensor, w: Tensor, c_max: Tensor, l1: Tensor) -> Tensor:
    """(primal − dual) / primal of each row, at the dual point θ = s · r; s is the best scale with max(D θ) ≤ λ.

    In float64 where the device has it: the gap is a small difference of larger numbers.
    """
    if x.device.type != "mps":
        x, r, w, c_max, l1 = x.double(), r.double(), w.double(), c_max.double(), l1.double()
    rr, xr = r.square().sum(1), (x * r).sum(1)
    primal = 0.5 * rr + l1 * w.sum(1)
    feasible = torch.where(c_max > 0, l1 / c_max.clamp_min(1e-30), torch.inf)
    s = torch.minimum(torch.where(rr > 0, xr / rr.clamp_min(1e-30), 1.0), feasible)
    dual = s * xr - 0.5 * s * s * rr  # ½‖x‖² − ½‖x − θ‖²
    return torch.where(primal > 0, (primal - dual) / primal.clamp_min(1e-30), 0.0).clamp_min(0).to(torch.float32)


def _part(P: Tensor, W: Tensor, gap: Tensor, l1: Tensor) -> Part:
    order = torch.where(W > 0, P, torch.iinfo(P.dtype).max).argsort(dim=1)
    ids, weights = P.gather(1, order).cpu().numpy(), W.gather(1, order).cpu().numpy()
    used = weights > 0
    return Part(used.sum(1), ids[used].astype(np.int32), weights[used], gap.cpu().numpy(), l1.cpu().numpy())
