"""The coder's solvers on a CPU: batches through numba's kernels, one batch a thread.

Gram: the dictionary's Gram matrix is held, and all correlations follow from those of x: one GEMM, and each row is
solved and certified at once.

Active set: rounds over a batch, until every row is done.

1. One GEMM gives the residuals' correlations with all atoms (at first the residual is x itself).
2. A row is done when its relative duality gap is ≤ `tol`: the dual point is the residual, scaled into the
   feasible set (Massias et al. 2018, celer, eq. 7), and the GEMM shows that no atom was overlooked.
3. Else the atoms that correlate by more than λ join its support in a working set, which principal pivoting
   solves exactly. Two rounds are the rule.

Where the CPU multiplies bfloat16 natively, the GEMM is done in it, and screens only (`PreparedDictionary`).
"""

from __future__ import annotations

import threading
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from indexer.coding.codes import Part, penalties
from indexer.coding.kernels import (
    Correlations,
    Peaks,
    Problem,
    Rows,
    Screened,
    highest,
    pack,
    refit_rows,
    solve_active_set,
    solve_by_gram,
    strongest_correlation,
)
from indexer.coding.prepared import BLOCK, PreparedDictionary
from indexer.config import CoderConfig

WORKING_SET = 64  # atoms that may join a row's support in one round
MAX_ROUNDS = 100
MAX_BATCH = 1024  # more would only leave the cache


class CpuSolver:
    """Solves batches of rows at each of the penalties l1s; may be called from several threads at once."""

    def __init__(self, atoms: PreparedDictionary, l1s: list[float], config: CoderConfig, *, gram: bool):
        self.atoms, self.l1s, self.config, self.gram = atoms, l1s, config, gram
        m = len(atoms.D)
        self.G = np.empty((m, m) if gram else (0, 0), np.float32)
        self.steps = range(0, len(self.G) or 1, BLOCK)
        self._threads = threading.local()

    def batch_size(self, memory: int) -> int:
        """Rows whose correlations, residuals and codes fit in `memory` bytes."""
        m, d = self.atoms.D.shape
        row = m * self.atoms.kind.itemsize * (1 if self.gram or len(self.l1s) == 1 else 2) + 14 * d + 8 * min(m, d)
        return int(np.clip(memory // row, 1, MAX_BATCH))

    def prepare(self, step: int) -> None:
        """What all batches need of the dictionary; each of `steps` once, in any thread."""
        if self.gram:
            self.atoms.gram(step, self.G)
        if step == 0 and self.atoms.screens:
            _ = self.atoms.columns, self.atoms.error, self.atoms.norm

    def __call__(self, X: Tensor, size: int) -> list[Part]:
        """X (b, d), b ≤ size → its codes at each penalty."""
        if not hasattr(self._threads, "space"):
            self._threads.space = _Workspace(size, self.atoms)
        solve = self._by_gram if self.gram else self._by_active_set
        return solve(X.numpy(), self._threads.space)

    def _by_gram(self, X: np.ndarray, space: _Workspace) -> list[Part]:
        problem = Problem(X, self.atoms.D.numpy(), self.G)
        bits, bound = self.atoms.correlate(X, space.C)
        bound = bound if self.atoms.screens else np.zeros_like(bound)
        rough = Correlations(bits, 16 if self.atoms.screens else 0, bound, self.atoms.rounding)
        rows, parts = space.rows(len(X)), []
        for at, l1 in enumerate(self.l1s):
            lam, config = float(np.float32(l1)), self.config
            solve_by_gram(problem, rough, at == 0, lam, config.relative, config.tol, config.refit, space.peaks, rows)
            parts.append(space.part(rows))
        return parts

    def _by_active_set(self, X: np.ndarray, space: _Workspace) -> list[Part]:
        b, R, atoms, config = len(X), X.copy(), self.atoms, self.config
        problem, rows = Problem(X, atoms.D.numpy(), self.G), space.rows(b)
        spare = space.C if len(self.l1s) == 1 else space.spare  # a path goes on from the whole batch's correlations

        C, bound = atoms.correlate(R, space.C)
        l1_max = self._peaks(C, bound, problem)
        C_all, bound_all, parts = C, bound, []
        rows.sizes[:] = 0
        for l1 in self.l1s:
            base = penalties(l1, config.relative, l1_max)
            empty = base >= l1_max
            rows.l1[:], rows.gap[:] = base, np.where(empty, 0, np.inf)
            rows.sizes[empty], R[empty] = 0, X[empty]
            open_, checked = np.flatnonzero(~empty), False
            C, bound = (C_all, bound_all) if len(open_) == b else (C_all[open_], bound_all[open_])
            for _ in range(MAX_ROUNDS):
                lam = base[open_]
                low, sure = atoms.keys(lam - bound), atoms.keys(1.001 * lam + 2 * bound)
                screened = Screened(open_, C, low, sure)
                solve_active_set(screened, problem, R, base, rows, checked, config.tol, WORKING_SET)
                open_, checked = np.flatnonzero(~(rows.gap <= config.tol)), True
                if not len(open_):
                    break
                whole = len(open_) == b
                C, bound = atoms.correlate(R if whole else R[open_], space.C if whole else spare)
                if whole:
                    C_all, bound_all = C, bound
            if config.refit:  # in place: a path goes on from the supports all the same
                refit_rows(problem, rows)
            parts.append(space.part(rows))
        return parts

    def _peaks(self, C: np.ndarray, bound: np.ndarray, problem: Problem) -> np.ndarray:
        """max(D x) (b,), exact, by what the correlations C may hide."""
        top, found = np.empty(len(C), C.dtype), np.empty(len(C))
        highest(C, top)
        low = self.atoms.keys(self.atoms.values(top) * (1 - 2**-7) - 2 * bound)
        low[bound == 0] = np.iinfo(C.dtype).max  # zero rows
        strongest_correlation(C, low, problem.X, problem.D, found)
        return found


class _Workspace:
    """What a thread needs for batches of up to b rows, made once: the first touch of a page costs more than its use."""

    def __init__(self, b: int, atoms: PreparedDictionary):
        m, d = atoms.D.shape
        kmax = min(m, d)
        self._rows = Rows(
            np.empty((b, kmax), np.int32),
            np.empty((b, kmax), np.float32),
            np.zeros(b, np.int64),
            np.empty(b),
            np.empty(b),
        )
        self.peaks = Peaks(np.empty(b), np.empty(b, np.int64), np.empty(b))
        self.C = torch.empty(b, m, dtype=atoms.kind)

    @cached_property
    def spare(self) -> Tensor:
        return torch.empty_like(self.C)

    def rows(self, b: int) -> Rows:
        """Room for the codes of b rows."""
        return Rows(*(array[:b] for array in self._rows))

    def part(self, rows: Rows) -> Part:
        """The codes as they are now."""
        count = rows.sizes.copy()
        ends = np.cumsum(count)
        indices, data = np.empty(ends[-1], np.int32), np.empty(ends[-1], np.float32)
        pack(rows, count, ends - count, indices, data)
        return Part(count, indices, data, rows.gap.astype(np.float32), rows.l1.astype(np.float32))
