"""What an embedding holds beside its concepts, in a few bytes: a product quantiser of the residual r = x − w D.

A description is FAISS's: `PQ16` cuts the residual's d numbers into 16 parts and keeps for each the nearest of 256
centroids, a byte; `OPQ24_240,PQ24` turns it onto 240 axes first, which are learnt so that little is lost (Ge et al.,
"Optimized Product Quantization", 2014). Notable decisions:

- A quantiser is two plain arrays: axes A (p, d) with orthonormal rows, and centroids C (M, K, p / M). What a code gives
  back is Σ_m C[m, code_m] A_m, so its inner product with a query is a sum of M table entries: a search adds up bytes.
- FAISS is not needed, neither to search nor to learn: an OPQ that takes it minutes is learnt here in seconds, as the
  paper has it: axes by principal components of equal products of variances, then a step of k-means and a
  rotation (Procrustes) in turns.
- What stands for the picture is x̂ = (w D + r̂) / ‖w D + r̂‖. One over that norm is the picture's `scale`: it follows from
  the code, and is kept so that a search need not decode every picture.

Light: neither torch nor FAISS is imported.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import sparse

from training.encoders.centring import Rows
from training.errors import CallError

SYNTAX = re.compile(r"(?:(?:(OPQ)(\d+)(?:_(\d+))?|(PCA)(\d+)),)?PQ(\d+)(?:x(\d+))?(?:np)?")
MOST_BITS = 8  # a part's code is a byte at the most
LEARN = 20_000  # rows that a quantiser is learnt from, at the most
TURNS, SETTLE = 24, 8  # rounds of k-means, each but the last few followed by a rotation where axes are learnt
BLOCK = 1 << 13  # rows that are coded at a time
EXAMPLE = "as FAISS describes product quantisers: PQ16, PQ16x4, OPQ16,PQ16, OPQ24_240,PQ24 or PCA64,PQ16"


class Shape(NamedTuple):
    """What a description asks for: parts, bits of a part's code, axes, and how these are found: OPQ, PCA or ""."""

    parts: int
    bits: int
    axes: int
    how: str

    @property
    def size(self) -> int:
        """Bytes of a code."""
        return -(-self.parts * self.bits // 8)


def read_description(text: str, d: int, n: int | None = None) -> Shape:
    """What a description means for residuals of d numbers, of which there are n.

    Raises `CallError` where it means nothing, or cannot be.
    """
    found = SYNTAX.fullmatch(text)
    if found is None or any(len(number or "") > 5 for number in found.groups()):
        raise CallError(f"--residual {text[:60]!r}: give a description {EXAMPLE}")
    opq, opq_parts, opq_axes, pca, pca_axes, parts, bits = found.groups()
    shape = Shape(int(parts), int(bits or 8), int(opq_axes or pca_axes or d), opq or pca or "")
    if not 1 <= shape.bits <= MOST_BITS:
        raise CallError(f"--residual {text!r}: a part is kept in 1 to {MOST_BITS} bits, not {shape.bits}")
    if not 1 <= shape.axes <= d:
        raise CallError(f"--residual {text!r}: {shape.axes} axes, but embeddings have {d}")
    if opq_parts and int(opq_parts) != shape.parts:
        raise CallError(f"--residual {text!r}: OPQ turns for {opq_parts} parts, PQ cuts into {shape.parts}")
    if not shape.parts or shape.axes % shape.parts:
        nearest = shape.axes // max(shape.parts, 1) * shape.parts
        hint = f"OPQ{shape.parts}_{nearest},PQ{shape.parts}" if nearest else EXAMPLE
        raise CallError(f"--residual {text!r}: {shape.parts} parts do not divide {shape.axes} axes; try {hint}")
    if n is not None and n < 2**shape.bits:
        hint = f"PQ{shape.parts}x4 needs 16" if shape.bits > 4 else "leave --residual out"
        raise CallError(f"--residual {text!r} needs at least {2**shape.bits} pictures, and there are {n}; {hint}")
    return shape


@dataclass(frozen=True)
class Quantiser:
    """A (p, d) orthonormal rows; C (M, K, p / M), K a power of two: float32. Raises ValueError for arrays that are not.

    >>> q = Quantiser(np.eye(2, dtype=np.float32), np.float32([[[-1], [1]], [[-2], [2]]]))
    >>> q.decode(q.encode(np.float32([[0.9, -3.0]]))).tolist()
    [[1.0, -2.0]]
    """

    A: np.ndarray
    C: np.ndarray

    def __post_init__(self) -> None:
        A, C = self.A, self.C
        if A.ndim != 2 or C.ndim != 3 or len(A) > A.shape[1] or C.shape[0] * C.shape[2] != len(A):
            raise ValueError(f"axes {A.shape} and centroids {C.shape} do not fit")
        if not 1 <= self.bits <= MOST_BITS or 2**self.bits != C.shape[1]:
            raise ValueError(f"{C.shape[1]} centroids a part")
        if not np.isfinite(C).all() or not np.abs(A @ A.T - np.eye(len(A))).max(initial=0) < 1e-3:
            raise ValueError("its axes are not orthonormal, or a centroid is not finite")

    @property
    def bits(self) -> int:
        """Of a part's code."""
        return int(self.C.shape[1]).bit_length() - 1

    @property
    def size(self) -> int:
        """Bytes of a code."""
        return -(-len(self.C) * self.bits // 8)

    @property
    def bytes(self) -> int:
        """Of the two arrays."""
        return int(self.A.nbytes + self.C.nbytes)

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 over both arrays."""
        sha = hashlib.sha256(f"{self.A.shape} {self.C.shape}\0".encode())
        for array in (self.A, self.C):
            sha.update(np.ascontiguousarray(array, "<f4").tobytes())
        return sha.hexdigest()

    def encode(self, R: np.ndarray) -> np.ndarray:
        """The codes (n, size) uint8 of residuals R (n, d)."""
        return self.packed(_nearest(np.asarray(R, np.float32) @ self.A.T, self.C))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The residuals (n, d) float32 that codes (n, size) stand for."""
        return _centroids_of(self.unpacked(codes), self.C) @ self.A

    def packed(self, places: np.ndarray) -> np.ndarray:
        """Centroids (n, M), one a part, as codes (n, size): their bits end to end, the lowest first."""
        if self.bits == 8:
            return np.ascontiguousarray(places, np.uint8)
        bits = (places[:, :, None] >> np.arange(self.bits, dtype=np.uint8)) & 1
        return np.packbits(bits.reshape(len(places), -1), axis=1, bitorder="little")

    def unpacked(self, codes: np.ndarray) -> np.ndarray:
        """Codes (n, size) as centroids (n, M) uint8, one a part."""
        if self.bits == 8:
            return codes
        parts = len(self.C)
        bits = np.unpackbits(codes, axis=1, count=parts * self.bits, bitorder="little")
        weights = (1 << np.arange(self.bits)).astype(np.uint8)
        return (bits.reshape(len(codes), parts, self.bits) * weights).sum(2, dtype=np.uint8)

    def tables(self, t: np.ndarray) -> np.ndarray:
        """(M, K): what each centroid adds to the inner product of a residual with t (d,)."""
        return np.einsum("mkp,mp->mk", self.C, (self.A @ t).reshape(len(self.C), -1))


class Coded(NamedTuple):
    """Residuals of n pictures: codes (n, size) uint8, and scales (n,) float32, 1 / ‖w D + r̂‖ (0 where that is 0)."""

    codes: np.ndarray
    scales: np.ndarray


def learn_quantiser(X: Rows, W: sparse.csr_matrix, D: np.ndarray, description: str, seed: int = 0) -> Quantiser:
    """A quantiser for what W D (n, d) leaves of X (n, d), learnt from at most LEARN rows.

    Raises `CallError` for a description that means nothing, or asks for more rows.
    """
    n, d = len(X), D.shape[1]
    shape = read_description(description, d, n)
    if n <= LEARN:
        return fit_quantiser(X[:] - W @ D, shape, seed)
    rows = learnt_from(n, seed)
    blocks = np.split(rows, np.flatnonzero(np.diff(rows // BLOCK)) + 1)
    chosen = [X[int(b[0]) : int(b[-1]) + 1][b - b[0]] - W[b] @ D for b in blocks]
    return fit_quantiser(np.concatenate(chosen), shape, seed)


def learnt_from(n: int, seed: int = 0) -> np.ndarray:
    """The rows, ascending, of which a quantiser of n pictures is learnt."""
    return np.sort(np.random.default_rng(seed).choice(n, LEARN, replace=False)) if n > LEARN else np.arange(n)


def make_residuals(
    X: Rows, W: sparse.csr_matrix, D: np.ndarray, description: str
) -> tuple[Quantiser | None, Coded | None]:
    """A quantiser learnt from what W D (n, d) leaves of X (n, d), and that coded; nothing where none is described."""
    if not description:
        return None, None
    quantiser = learn_quantiser(X, W, D, description)
    return quantiser, code_residuals(X, W, D, quantiser)


def code_residuals(X: Rows, W: sparse.csr_matrix, D: np.ndarray, quantiser: Quantiser) -> Coded:
    """Codes what W D (n, d) leaves of X (n, d), and measures x̂."""
    parts = [Coded(np.zeros((0, quantiser.size), np.uint8), np.zeros(0, np.float32))]
    for start in range(0, len(X), BLOCK):
        held = W[start : start + BLOCK] @ D
        codes = quantiser.encode(X[start : start + BLOCK] - held)
        parts.append(Coded(codes, scales_of(held + quantiser.decode(codes))))
    return Coded(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def scales_of(V: np.ndarray) -> np.ndarray:
    """(n,) float32: one over the norm of each row of V (n, d), 0 for a row of zeros."""
    norms = np.linalg.norm(V, axis=1)
    return np.divide(1, norms, out=np.zeros(len(V), np.float32), where=norms > 1e-12)


def fit_quantiser(R: np.ndarray, shape: Shape, seed: int = 0) -> Quantiser:
    """Learns axes and centroids from residuals R (n, d), n at least 2^bits."""
    R, rng = np.ascontiguousarray(R, np.float32), np.random.default_rng(seed)
    A = _first_axes(R, shape)
    Y = R @ A.T
    first = rng.choice(len(Y), 2**shape.bits, replace=False)
    C = np.ascontiguousarray(Y[first].reshape(len(first), shape.parts, -1).transpose(1, 0, 2))
    for turn in range(TURNS + SETTLE):
        places = _nearest(Y, C)
        C = _means(Y, places, C)
        if shape.how == "OPQ" and turn < TURNS:
            U, _, V = np.linalg.svd(_centroids_of(places, C).T @ R, full_matrices=False)
            A = (U @ V).astype(np.float32)  # of all orthonormal axes those that lose least, the codes being as they are
            Y = R @ A.T
    return Quantiser(A, C)


def _first_axes(R: np.ndarray, shape: Shape) -> np.ndarray:
    if not shape.how:
        return np.eye(R.shape[1], dtype=np.float32)
    return balanced_axes(R, shape.parts if shape.how == "OPQ" else 1, shape.axes)


def balanced_axes(R: np.ndarray, parts: int, p: int) -> np.ndarray:
    """Orthonormal axes (p, d) of the p directions along which R (n, d) is largest: its principal axes in these, so
    ordered that `parts` equal blocks have variances of about the same product.

    Each axis in turn, that of the largest variance first, goes to the block whose product is smallest. A product grows
    by a factor above 1 alone, so variances are counted in units of the smallest.

    >>> R = np.random.default_rng(0).normal(size=(500, 4)) * [0.8, 0.4, 0.2, 0.1]
    >>> np.abs(balanced_axes(R, 2, 4)).argmax(1).tolist()
    [0, 3, 1, 2]
    """
    kept = np.linalg.eigh((R.T @ R).astype(np.float64))[1][:, ::-1][:, :p]  # (d, p)
    variances, turned = np.linalg.eigh(np.atleast_2d(np.cov(R @ kept, rowvar=False)))
    order = np.argsort(-variances, kind="stable")
    logs = np.log(np.maximum(variances[order], 1e-12))
    blocks: list[list[int]] = [[] for _ in range(parts)]
    sums, room = np.zeros(parts), p // parts
    for axis, log in zip(order.tolist(), logs - logs.min(), strict=True):
        block = min((b for b in range(parts) if len(blocks[b]) < room), key=lambda b: sums[b])
        blocks[block].append(axis)
        sums[block] += log
    return np.ascontiguousarray((kept @ turned[:, np.concatenate(blocks)]).T, np.float32)


def _parts(Y: np.ndarray, C: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each part of the rows Y (n, p): (n, p / M)."""
    width = C.shape[2]
    for m in range(len(C)):
        yield m, Y[:, m * width : (m + 1) * width]


def _nearest(Y: np.ndarray, C: np.ndarray) -> np.ndarray:
    """(n, M) uint8: the centroid nearest to each part of the rows Y (n, p)."""
    places, half = np.empty((len(Y), len(C)), np.uint8), 0.5 * np.square(C).sum(2)
    for start in range(0, len(Y), BLOCK):
        for m, part in _parts(Y[start : start + BLOCK], C):
            places[start : start + BLOCK, m] = (part @ C[m].T - half[m]).argmax(1)
    return places


def _centroids_of(places: np.ndarray, C: np.ndarray) -> np.ndarray:
    """Rows (n, p) that are made of centroids."""
    Y = np.empty((len(places), C.shape[0] * C.shape[2]), np.float32)
    for m, part in _parts(Y, C):
        part[:] = C[m][places[:, m]]
    return Y


def _means(Y: np.ndarray, places: np.ndarray, C: np.ndarray) -> np.ndarray:
    """The mean of the rows that each centroid stands for; one that stands for none moves beside one that stands for
    the most."""
    means, n = C.copy(), len(Y)
    for m, part in _parts(Y, C):
        counts = np.bincount(places[:, m], minlength=C.shape[1])
        chosen = sparse.csr_matrix((np.ones(n, np.float32), (places[:, m], np.arange(n))), shape=(C.shape[1], n))
        used = counts > 0
        means[m][used] = (chosen @ part)[used] / counts[used, None]
        for empty in np.flatnonzero(~used):
            most = int(counts.argmax())
            means[m][empty] = means[m][most] * np.float32(1 + 1e-3)
            counts[most] //= 2
    return means
