"""Principal pivoting and nonnegative least squares for batches of small problems, in torch on any device."""

from __future__ import annotations

import torch
from torch import Tensor


def precise(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def pivot(G: Tensor, q: Tensor, l1: Tensor) -> Tensor:
    """min_{w ≥ 0} ½ wᵀG w − (q − l1)ᵀ w, exactly, for a batch: G (r, s, s), q (r, s), l1 (r,) → w (r, s).

    The steps of `indexer.coding.kernels` on whole tableaux: T is G swept on the support (Goodnight 1979), so that
    its column j is how all else moves when w_j grows, and v holds the weights inside the support, the gradients
    outside it.
    """
    T, rows, s = G.to(precise(G.device)).clone(), torch.arange(len(G), device=G.device), G.shape[1]
    q, lam, diagonal = q.to(T), l1.to(T), T.diagonal(dim1=1, dim2=2).clone()
    v, inside, blocked = q - lam[:, None], torch.zeros_like(q, dtype=torch.bool), torch.zeros_like(q, dtype=torch.bool)
    eps = torch.maximum(1e-7 * lam, 5e-8 * q.amax(1))
    driver, level = torch.full_like(rows, -1), torch.zeros_like(lam)
    for _ in range(20 * (s + 10)):
        best, j = v.masked_fill(inside | blocked, -torch.inf).max(1)
        driver = torch.where((driver < 0) & (best > eps), j, driver)
        live = driver >= 0
        if not live.any():
            break
        j = driver.clamp_min(0)
        column, kappa, slope = T[rows, :, j], T[rows, j, j], v[rows, j].clamp_min(0)
        free = torch.where(kappa > 1e-6 * diagonal[rows, j], slope / kappa, torch.inf)
        ratio = torch.where(inside & (column > 1e-12), v / column.clamp_min(1e-12), torch.inf)
        block, out = ratio.min(1)
        stuck = live & torch.isinf(free) & torch.isinf(block)  # depends on the support and takes no atom's place
        blocked[rows, j] |= stuck
        move, enters = live & ~stuck, free <= block
        step = torch.where(move, torch.minimum(free, block), 0.0)
        v -= step[:, None] * column
        level += step
        at = torch.where(enters, j, out)
        T = torch.where(move[:, None, None], _swept(T, rows, at), T)
        v[rows, at] = torch.where(move, torch.where(enters, level, 0.0), v[rows, at])
        inside[rows, at] ^= move
        done = stuck | (move & enters)
        driver, level = driver.masked_fill(done, -1), level.masked_fill(done, 0.0)
    return torch.where(inside, v, 0.0).clamp_min(0).to(G.dtype)


def _swept(T: Tensor, rows: Tensor, k: Tensor) -> Tensor:
    """T (r, s, s) swept on entry k (r,) of each row, or unswept where it was swept before."""
    column, row, pivot_ = T[rows, :, k], T[rows, k], T[rows, k, k][:, None]
    T = T - (column / pivot_)[:, :, None] * row[:, None, :]
    T[rows, k], T[rows, :, k] = row / pivot_, -column / pivot_
    T[rows, k, k] = 1 / pivot_[:, 0]
    return T


def nonnegative(G: Tensor, q: Tensor, used: Tensor) -> Tensor:
    """min_{w ≥ 0} ½ wᵀG w − qᵀ w over the `used` places, for a batch: G (r, k, k), q (r, k) → w (r, k), 0 elsewhere.

    By block principal pivoting (Kim & Park 2011): a least-squares solution by Cholesky, then all places with a
    negative weight are exchanged for all with a positive gradient, until there are none; what this does not settle
    in a few rounds is left to `pivot`.
    """
    w, q, inside, rows = torch.zeros_like(q), q * used, used.clone(), torch.arange(len(q), device=q.device)
    fewest, tries = torch.full_like(rows, q.shape[1] + 1), torch.full_like(rows, 3)
    while len(rows):
        chosen = inside[rows]
        solution, dependent = _least_squares(G[rows], q[rows], chosen)
        gradient = q[rows] - torch.einsum("rkl,rl->rk", G[rows], solution)
        wrong = torch.where(chosen, solution <= 0, (gradient > 1e-7 * q[rows].amax(1, keepdim=True)) & used[rows])
        count = wrong.sum(1)
        tries = torch.where(count < fewest, 3, tries - 1).masked_fill(dependent, 0)
        fewest = torch.minimum(fewest, count)
        stuck, solved = tries == 0, (count == 0) & ~dependent
        w[rows] = solution
        if stuck.any():
            left = rows[stuck]
            block = G[left] * (used[left][:, :, None] & used[left][:, None, :])
            w[left] = pivot(block, q[left], torch.zeros_like(q[left, 0]))
        inside[rows] ^= wrong
        open_ = ~stuck & ~solved
        rows, fewest, tries = rows[open_], fewest[open_], tries[open_]
    return w.clamp_min(0)


def _least_squares(G: Tensor, q: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The unconstrained minimum over the chosen places, 0 elsewhere; and the rows (r,) whose places are dependent."""
    eye = torch.eye(q.shape[1], dtype=G.dtype, device=G.device)
    G = torch.where(chosen[:, :, None] & chosen[:, None, :], G, eye)
    L, failed = torch.linalg.cholesky_ex(G)
    left = L.diagonal(dim1=1, dim2=2).square()
    dependent = (failed > 0) | ~(left > 1e-6 * G.diagonal(dim1=1, dim2=2)).all(1)
    w = torch.cholesky_solve((q * chosen)[:, :, None], torch.where(dependent[:, None, None], eye, L))[:, :, 0]
    return w, dependent
