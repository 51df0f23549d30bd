"""The ways to code that the benchmark of the coder compares, and the gap that all are judged by."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse

from indexer.coding import encode_sparse
from indexer.config import CoderConfig

TOL = 1e-4
OUR_TOL = 5e-6  # what SPAMS reaches in float32: ours must be no worse
OURS, GEMM = "sparsight", "one GEMM X Dᵀ, float32"
Way = Callable[[np.ndarray, np.ndarray, float], object]


def relative_gaps(X: np.ndarray, D: np.ndarray, W: Any, l1: float) -> np.ndarray:
    """(primal − dual) / primal (n,) of codes W (n, m), in float64, at the residual scaled to be feasible."""
    X, D, W = X.astype(np.float64), D.astype(np.float64), sparse.csr_matrix(W).astype(np.float64)
    R = X - W @ D
    rr, xr = (R**2).sum(1), (X * R).sum(1)
    primal = 0.5 * rr + l1 * np.asarray(W.sum(1))[:, 0]
    c_max = (R @ D.T).max(1)
    s = np.minimum(np.divide(xr, rr, out=np.ones_like(rr), where=rr > 0), l1 / np.maximum(c_max, 1e-30))
    return np.maximum(primal - (s * xr - 0.5 * s * s * rr), 0) / np.maximum(primal, 1e-30)


def gemm(X: np.ndarray, D: np.ndarray, l1: float) -> None:
    """X Dᵀ and nothing else, by batches into one buffer, so that it pays for no pages."""
    x, d = torch.from_numpy(X), torch.from_numpy(D).T
    out = torch.empty(min(2048, len(X)), len(D))
    for start in range(0, len(X), 2048):
        torch.mm(x[start : start + 2048], d, out=out[: len(x[start : start + 2048])])


def ours(X: np.ndarray, D: np.ndarray, l1: float) -> sparse.csr_matrix:
    return encode_sparse(X, D, CoderConfig(l1=l1, relative=False, tol=OUR_TOL)).W


def spams_lasso(X: np.ndarray, D: np.ndarray, l1: float) -> sparse.csr_matrix:
    """SPAMS' LARS, in float32 and its own memory layout (made beforehand, not timed)."""
    import spams

    A = spams.lasso(X.T, D=D.T, lambda1=l1, mode=2, pos=True, numThreads=torch.get_num_threads())
    return A.T.tocsr()


def scikit_learn(X: np.ndarray, D: np.ndarray, l1: float, gram: np.ndarray) -> np.ndarray:
    """sparse_encode by coordinate descent, its Gram matrix given; in float64, as in float32 it does not converge."""
    from sklearn.decomposition import sparse_encode

    return sparse_encode(X, D, gram=gram, algorithm="lasso_cd", alpha=l1, positive=True, check_input=False)


class Iterative:
    """FISTA (Beck & Teboulle 2009) and ADMM as SpLiCE runs it, on a whole batch until every gap is ≤ TOL.

    ADMM's iterates are those of its m × m system, computed through the d × d one (Woodbury), which is cheaper.
    The checks of the gap, every tenth iteration, are not timed.
    """

    def __init__(self, D: np.ndarray, limit_s: float):
        self.D = torch.from_numpy(D)
        self.limit_s = limit_s
        covariance = self.D.T @ self.D
        self.lipschitz = float(torch.linalg.eigvalsh(covariance.double())[-1])
        self.rho = 2.5  # SpLiCE's 5, for ½‖·‖² in place of ‖·‖²
        self.inner = torch.linalg.inv(covariance.double() + self.rho * torch.eye(len(covariance))).float()
        self.seconds, self.iterations = 0.0, 0

    def _run(self, step: Callable[[], torch.Tensor], X: np.ndarray, l1: float) -> np.ndarray:
        self.seconds, self.iterations = 0.0, 0
        while True:
            start = time.perf_counter()
            for _ in range(10):
                w = step()
            self.seconds += time.perf_counter() - start
            self.iterations += 10
            W = w.numpy()
            if relative_gaps(X, self.D.numpy(), W, l1).max() <= TOL or self.seconds > self.limit_s:
                return W

    def fista(self, X: np.ndarray, l1: float) -> np.ndarray:
        x, D, step_size = torch.from_numpy(X), self.D, 1 / self.lipschitz
        w = y = torch.zeros(len(X), len(D))
        t = 1.0

        def step() -> torch.Tensor:
            nonlocal w, y, t
            new = (y + step_size * ((x - y @ D) @ D.T - l1)).clamp_min_(0)
            t_new = (1 + (1 + 4 * t * t) ** 0.5) / 2
            y = new + ((t - 1) / t_new) * (new - w)
            w, t = new, t_new
            return w

        return self._run(step, X, l1)

    def admm(self, X: np.ndarray, l1: float) -> np.ndarray:
        D, rho = self.D, self.rho
        q = torch.from_numpy(X) @ D.T
        z, u = torch.zeros_like(q), torch.zeros_like(q)

        def step() -> torch.Tensor:
            nonlocal z, u
            b = q + rho * (z - u)
            w = (b - ((b @ D) @ self.inner) @ D.T) / rho
            z = (w + u - l1 / rho).clamp_min_(0)
            u = u + w - z
            return z

        return self._run(step, X, l1)
