"""Refitting in torch: nonnegative least squares on each row's support, for a whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from indexer.coding.pivoting import nonnegative, precise
from indexer.coding.prepared import PreparedDictionary


def refit_batch(atoms: PreparedDictionary, X: Tensor, P: Tensor, W: Tensor, memory: int) -> Tensor:
    """The nonnegative least-squares weights of the atoms P (b, s) where W (b, s) > 0, for the rows X (b, d).

    Rows are taken by the size of their supports, so that none is padded much. memory: bytes; half of them may hold the
    atoms' Gram matrix, where the supports' own are not less work.
    """
    sizes, d, refitted = (W > 0).sum(1), atoms.D.shape[1], torch.zeros_like(W)
    first = (W > 0).to(torch.int8).argsort(dim=1, descending=True, stable=True)  # the places in use come first
    order = sizes.argsort()
    ends = torch.unique_consecutive((sizes[order] + 3) // 4, return_counts=True)[1].cumsum(0).tolist()
    exact = precise(X.device)
    m, pairs = len(atoms.D), int(sizes.square().sum())
    held = atoms.exact_G if 8 * m**2 <= memory // 2 and pairs > m**2 // 2 else None
    for start, end in zip([0, *ends], ends, strict=False):
        k = int(sizes[order[end - 1]])
        if k == 0:
            continue
        step = max(1, memory // (16 * k * (d + 4 * k)))
        for at in range(start, end, step):
            rows = order[at : min(at + step, end)]
            places = first[rows, :k]
            used, p = W[rows].gather(1, places) > 0, P[rows].gather(1, places)
            A = atoms.D[p].to(exact)  # (r, k, d)
            G = A @ A.mT if held is None else held[p[:, :, None], p[:, None, :]]
            w = nonnegative(G, torch.einsum("rkd,rd->rk", A, X[rows].to(exact)), used)
            refitted[rows[:, None], places] = w.float()
    return refitted
