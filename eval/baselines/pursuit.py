"""Other ways to choose a few concepts of the same dictionary, each a few lines of numpy, and SpLiCE's procedure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import sparse

from eval.baselines.kept import Kept, Material, kept_codes, timed
from eval.evaluators import compacted, unit
from indexer.coding import choose_l1, encode_sparse
from indexer.config import CoderConfig

NEAREST_BYTES = 3  # a 16-bit concept id and an 8-bit weight
BLOCK = 1000  # rows at once
SPLICE_L1 = 0.25  # of the paper's examples, in ½‖x − wD‖² + λ‖w‖₁


def nearest_concept(material: Material) -> Kept:
    """The nearest concept alone: matching pursuit with one atom. A space trained on labels is measured against it."""
    top, seconds = timed(lambda: (material.X @ material.D.T).argmax(1))
    return Kept(
        A=material.D[top],
        bytes_per_image=NEAREST_BYTES,
        table_bytes=4 * material.D.size,
        concepts=1,
        code_seconds=seconds,
    )


def matching_pursuit(material: Material, k: int) -> Kept:
    """Orthogonal matching pursuit with k atoms (Pati et al. 1993), nonnegative: the atom that correlates most with
    what is left, then least squares over all that are chosen, k times."""

    def coded(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rest = X
        chosen = np.empty((len(X), 0), np.int64)
        weights = np.empty((len(X), 0), np.float32)
        for _ in range(k):
            scores = rest @ material.D.T
            np.put_along_axis(scores, chosen, -np.inf, axis=1)
            chosen = np.column_stack([chosen, scores.argmax(1)])
            weights = least_squares(X, material.D[chosen])
            rest = X - np.einsum("bk,bkd->bd", weights, material.D[chosen])
        return chosen, weights

    W, seconds = timed(lambda: _in_blocks(coded, material))
    return kept_codes(W, material.D, seconds)


def thresholding(material: Material, k: int) -> Kept:
    """The k atoms that correlate most with each picture, weighed by least squares."""

    def coded(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = X @ material.D.T
        chosen = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        return chosen, least_squares(X, material.D[chosen])

    W, seconds = timed(lambda: _in_blocks(coded, material))
    return kept_codes(W, material.D, seconds)


def splice(material: Material, concepts: float | None = None) -> Kept:
    """SpLiCE (Bhalla et al. 2024): pictures and concepts less their means, nonnegative lasso, the mean added again.

    With its own λ, or with the one that gives so many concepts a picture. No least squares afterwards. Its solver is
    ADMM; ours solves the same problem, so that the time is not its own.
    """
    mean, X = material.train.mean(0), material.X
    centred, D = unit(X - mean), unit(material.D - material.D.mean(0))
    config = CoderConfig(l1=SPLICE_L1, relative=False)

    def learn() -> CoderConfig:
        if concepts is None:
            return config
        return replace(config, l1=choose_l1(unit(material.train - mean), D, concepts, config))

    config, train_seconds = timed(learn)
    codes, seconds = timed(lambda: encode_sparse(centred, D, config))
    kept = kept_codes(codes.W, D, seconds)
    A = unit(unit(np.asarray(compacted(codes.W) @ D)) + mean)
    return replace(kept, A=A, table_bytes=kept.table_bytes + 8 * X.shape[1], train_seconds=train_seconds)


def least_squares(X: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """The weights (b, k) of each row's own atoms (b, k, d) that come nearest to X (b, d); negative ones become 0.

    >>> least_squares(np.array([[3.0, 4.0]]), np.eye(2)[None]).round(3).tolist()
    [[3.0, 4.0]]
    """
    G = atoms @ atoms.transpose(0, 2, 1) + 1e-6 * np.eye(atoms.shape[1], dtype=atoms.dtype)
    q = np.einsum("bkd,bd->bk", atoms, X)
    return np.maximum(np.linalg.solve(G, q[..., None])[..., 0], 0)


def _in_blocks(coded: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], material: Material) -> sparse.csr_matrix:
    """Codes (n, m) of all rows, from the chosen atoms and weights (b, k) of a block at a time."""
    n, blocks = len(material.X), []
    for start in range(0, n, BLOCK):
        chosen, weights = coded(material.X[start : start + BLOCK])
        rows = np.repeat(np.arange(len(chosen)), chosen.shape[1])
        shape = (len(chosen), len(material.D))
        blocks.append(sparse.csr_matrix((weights.ravel().astype(np.float32), (rows, chosen.ravel())), shape=shape))
    W = sparse.vstack(blocks).tocsr()
    W.eliminate_zeros()
    return W
