"""The l1 coder: every embedding as a few weighted concepts, with a certificate.

Solves, for each row x, `min_{w ≥ 0} ½‖x − wD‖² + λ‖w‖₁`. Rounds over a batch, until every row is done:

1. one GEMM gives the residuals' correlations with all atoms (at first the residual is x itself);
2. a row is done when its relative duality gap is ≤ `tol`: the dual point is the residual, scaled into the
   feasible set (Massias et al. 2018, celer, eq. 7), and the GEMM shows that no atom was overlooked;
3. else the atoms that correlate by more than λ join its support in a working set, which principal pivoting
   solves exactly (`indexer.coding.kernel` on a CPU, `pivot` below elsewhere). Two rounds are the rule.

Decisions:
- On a CPU that multiplies bfloat16 natively the GEMM is done in it, six times as fast with AMX. It only screens: its
  error is bounded row by row (the rounding of x and of D by norm, the sum's by d), and every correlation that
  is not below λ by more than that is computed again in float32. The certificate does not rest on bfloat16.
- A dictionary whose Gram matrix fits a core's cache (`GRAM_BYTES`) needs no working set and no second GEMM: all
  its correlations follow from the Gram matrix.
- Every thread takes whole batches, its GEMM included: no barriers, and the codes do not depend on the threads.
- A handful of rows takes the torch way on a CPU too: a query need not wait for numba's import.
- No n × m result is ever formed; the memory beside X, D and the codes is bounded by `memory`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from inspect import signature
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from indexer.config import CoderConfig
from training.errors import SparsightError

GRAM_BYTES = 4 << 20  # a Gram matrix up to this size is worth its m² floats
WORKING_SET = 32  # atoms that may join a row's support in one round, in torch
WORKING_SET_CPU = 64  # the same in the CPU kernel, which pays only for those that it drives
FEW_ROWS = 64  # below it torch does what numba's import would not repay
MAX_ROUNDS = 100
MEMORY = 128 << 20
MAX_BATCH = 1024  # on a CPU: more would only leave the cache
PATH_FLOOR = 1e-3  # of λ_max: the smallest penalty tried for a target


class Codes(NamedTuple):
    """W (n, m) CSR, sorted indices, weights > 0 · gap (n,) relative duality gap of each code · l1 (n,) its λ."""

    W: sparse.csr_matrix
    gap: np.ndarray
    l1: np.ndarray


class SparseCoder:
    """Codes rows over a dictionary; a scikit-learn transformer in its manners, without scikit-learn.

    dictionary: D (m, d). l1: λ, or where `relative` the fraction of each row's own λ_max = max(D x).
    tol: the relative duality gap that every code must reach. max_concepts: rows with more get a larger λ, the
    smallest that leaves so many. refit: the weights of each support by nonnegative least squares, without the
    shrinkage; `gap` stays that of the l1 code. target_concepts: `fit` chooses l1 so that rows of X have that many
    concepts on average; target_bytes: the same in compact bytes a row (3 a concept + 1). memory: bytes beside X,
    D and the codes (None: 128 MiB, on a GPU a quarter of what is free).
    Learned by `fit`, with a target: l1_, the penalty in use.

    >>> W = SparseCoder(np.eye(3), l1=0.5).fit_transform(np.array([[1.0, 0.8, 0.1]]))
    >>> W.toarray().round(2)
    array([[0.5, 0.3, 0. ]], dtype=float32)
    """

    def __init__(
        self,
        dictionary: np.ndarray,
        l1: float = CoderConfig.l1,
        *,
        relative: bool = CoderConfig.relative,
        tol: float = CoderConfig.tol,
        max_concepts: int | None = CoderConfig.max_concepts,
        refit: bool = CoderConfig.refit,
        target_concepts: float | None = None,
        target_bytes: float | None = None,
        memory: int | None = CoderConfig.memory,
        device: str = "cpu",
    ):
        self.dictionary, self.l1, self.relative, self.tol = dictionary, l1, relative, tol
        self.max_concepts, self.refit = max_concepts, refit
        self.target_concepts, self.target_bytes = target_concepts, target_bytes
        self.memory, self.device = memory, device

    def get_params(self, deep: bool = True) -> dict[str, object]:
        return {name: getattr(self, name) for name in signature(type(self)).parameters}

    def set_params(self, **params: object) -> SparseCoder:
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(f"SparseCoder has no parameter {name!r}; it has {', '.join(self.get_params())}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        shown = (f"{k}={v!r}" for k, v in self.get_params().items() if k != "dictionary")
        return f"SparseCoder(D {np.shape(self.dictionary)}, {', '.join(shown)})"

    def __sklearn_tags__(self):
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags("transformer", TargetTags(required=False), TransformerTags(), None, None, requires_fit=False)

    def fit(self, X: np.ndarray | None = None, y: object = None) -> SparseCoder:
        """Learns nothing, but where a target is set: then l1_, from X."""
        target = self._target()
        if target is not None:
            if X is None or not len(X):
                raise SparsightError("a target for the codes needs rows to choose l1 by: fit(X)")
            self.l1_ = choose_l1(X, self.dictionary, target, self._config(self.l1), device=self.device)
        return self

    def encode(self, X: np.ndarray, progress: Callable[[int], object] | None = None) -> Codes:
        """The codes of X (n, d), each with its gap and λ; see `encode_sparse`."""
        return encode_sparse(X, self.dictionary, self._config(self._l1()), device=self.device, progress=progress)

    def path(self, X: np.ndarray, l1s: Sequence[float]) -> list[Codes]:
        """The codes of X at each penalty of l1s, in that order; each starts from the one before, so let them fall."""
        return encode_path(X, self.dictionary, l1s, self._config(self.l1), device=self.device)

    def transform(self, X: np.ndarray) -> sparse.csr_matrix:
        """The codes alone, W (n, m) CSR."""
        return self.encode(X).W

    def fit_transform(self, X: np.ndarray, y: object = None) -> sparse.csr_matrix:
        return self.fit(X).transform(X)

    def inverse_transform(self, W: sparse.csr_matrix) -> np.ndarray:
        """W D (n, d)."""
        return np.asarray(W @ np.asarray(self.dictionary, np.float32), np.float32)

    def _target(self) -> float | None:
        """Concepts a row, on average."""
        if self.target_bytes is None:
            return self.target_concepts
        if self.target_concepts is not None:
            raise SparsightError("target_concepts and target_bytes exclude each other: set one")
        return (self.target_bytes - 1) / 3

    def _l1(self) -> float:
        if self._target() is None:
            return self.l1
        if not hasattr(self, "l1_"):
            raise SparsightError("this coder has a target and no penalty yet: fit(X) chooses it")
        return self.l1_

    def _config(self, l1: float) -> CoderConfig:
        return CoderConfig(l1, self.relative, self.tol, self.max_concepts, self.refit, self.memory)


def encode_sparse(
    X: np.ndarray | Tensor,
    D: np.ndarray,
    config: CoderConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Codes:
    """Codes the rows of X (n, d) over the atoms of D (m, d), to a certified duality gap.

    The relative gap is (primal − dual) / primal; primal is at most ½‖x‖². A row that correlates with no atom, a
    zero row among them, has an empty code and gap 0; so has one with λ ≥ λ_max. Of equal atoms one is used; a
    zero atom never is. progress: called with the number of rows done after each batch.
    Raises `SparsightError` for wrong shapes, values that are not finite, a penalty that is not positive, and a
    code that does not reach `tol`.
    """
    config = config or CoderConfig()
    return encode_path(X, D, [config.l1], config, device=device, progress=progress)[0]


def encode_path(
    X: np.ndarray | Tensor,
    D: np.ndarray,
    l1s: Sequence[float],
    config: CoderConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> list[Codes]:
    """As `encode_sparse`, at each penalty of l1s (in place of config.l1) in one pass over X with warm starts."""
    config = config or CoderConfig()
    X, D = X if isinstance(X, Tensor) else np.asarray(X), np.ascontiguousarray(D, np.float32)
    _check(X, D, l1s, config)
    n, device = len(X), torch.device(device)
    numba = device.type == "cpu" and n > FEW_ROWS
    threads = torch.get_num_threads() if numba else 1
    atoms = PreparedDictionary(torch.as_tensor(D, device=device))
    size = _batch_size(atoms, _memory(config, device) // threads, numba, len(l1s))
    batches = max(1, -(-n // size))
    size = max(1, -(-n // (-(-batches // threads) * threads)))  # every thread gets as many rows
    spaces = threading.local() if numba else None
    solve = partial(_solve_batch, X, atoms, list(l1s), config, spaces, size)
    starts = range(0, n, size)
    parts: list[list[_Part]] = []
    for part in _in_threads(solve, starts, threads) if threads > 1 and n > size else map(solve, starts):
        parts.append(part)
        if progress:
            progress(len(part[0].gap))
    codes = [_join([p[i] for p in parts], len(D)) for i in range(len(l1s))]
    for c in codes:
        if not (c.gap <= config.tol).all():
            bad = ~(c.gap <= config.tol)
            raise SparsightError(
                f"{bad.sum()} of {n} codes stayed above a relative gap of {config.tol:g} "
                f"(worst {c.gap[bad].max():.1e}); raise tol, or l1"
            )
    if config.refit:
        codes = [c._replace(W=refit(X, D, c.W, device=device)) for c in codes]
    return codes


def choose_l1(
    X: np.ndarray,
    D: np.ndarray,
    concepts: float,
    config: CoderConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    sample: int = 1000,
) -> float:
    """The penalty, in config's sense, at which rows of X have about so many concepts on average.

    Bisects on at most `sample` evenly spaced rows. Raises `SparsightError` for a target that no penalty reaches.
    """
    config = replace(config or CoderConfig(), refit=False, max_concepts=None, tol=1e-2)
    X = np.asarray(X[:: -(-len(X) // sample)], np.float32)
    top = 1.0 if config.relative else float((X @ np.asarray(D, np.float32).T).max())
    if not concepts > 0 or not top > 0:
        raise SparsightError(f"no penalty gives {concepts:g} concepts a row: ask for more than 0")
    low, high = PATH_FLOOR * top, top * (1 - 1e-6)
    count = 0.0
    for _ in range(14):
        middle = float(np.sqrt(low * high))
        count = encode_sparse(X, D, replace(config, l1=middle), device=device).W.nnz / len(X)
        if abs(count - concepts) <= 0.005 * concepts:
            return middle
        low, high = (middle, high) if count > concepts else (low, middle)
    if abs(count - concepts) > 0.1 * concepts:
        raise SparsightError(f"no penalty gives {concepts:g} concepts a row; the nearest gives {count:.3g}")
    return high


def refit(
    X: np.ndarray | Tensor, D: np.ndarray, W: sparse.csr_matrix, *, device: torch.device | str = "cpu"
) -> sparse.csr_matrix:
    """The nonnegative least-squares weights on each row's support: W (n, m) without the penalty's shrinkage."""
    W = W.copy()
    atoms = torch.as_tensor(np.asarray(D, np.float32), device=device)
    counts = np.diff(W.indptr)
    size = max(1, (64 << 20) // (4 * (int(counts.max(initial=0)) + 1) * (atoms.shape[1] + 1)))
    for start in range(0, len(counts), size):
        rows = slice(start, start + size)
        span = slice(W.indptr[start], W.indptr[min(start + size, len(counts))])
        used = np.arange(counts[rows].max(initial=0)) < counts[rows, None]
        P = np.zeros(used.shape, np.int64)
        P[used] = W.indices[span]
        if not P.size:
            continue
        x = _rows(X, rows).to(device)
        A = atoms[torch.as_tensor(P, device=device)] * torch.as_tensor(used, device=device)[:, :, None]
        w = pivot(A @ A.mT, torch.einsum("rsd,rd->rs", A, x), torch.zeros(len(x), device=device))
        W.data[span] = w.cpu().numpy()[used]
    W.eliminate_zeros()
    return W


def _rows(X: np.ndarray | Tensor, rows: slice) -> Tensor:
    return X[rows].float() if isinstance(X, Tensor) else torch.from_numpy(np.array(X[rows], np.float32))


def _check(X: np.ndarray | Tensor, D: np.ndarray, l1s: Sequence[float], config: CoderConfig) -> None:
    if X.ndim != 2 or D.ndim != 2 or X.shape[1] != D.shape[1] or not len(D):
        raise SparsightError(f"cannot code X {tuple(X.shape)} against D {D.shape}: expected (n, d) and (m, d), m > 0")
    bad = np.flatnonzero(~np.isfinite(D).all(1))
    if len(bad):
        raise SparsightError(f"cannot code: row {bad[0]} of D has values that are not finite")
    for l1 in l1s:
        if not (np.isfinite(l1) and l1 > 0):
            raise SparsightError(f"cannot code with l1 = {l1}: it must be a number above 0")
    if config.max_concepts is not None and config.max_concepts < 1:
        raise SparsightError(f"cannot code with max_concepts = {config.max_concepts}: it must be at least 1")


class _Part(NamedTuple):
    """One batch at one penalty: counts (b,), indices and data of its codes in row order, gap (b,), l1 (b,)."""

    counts: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    gap: np.ndarray
    l1: np.ndarray


def _join(parts: list[_Part], m: int) -> Codes:
    """Batches → Codes, without a second copy of more than one array at a time."""
    empty = _Part(*(np.zeros(0, t) for t in (np.int64, np.int32, np.float32, np.float32, np.float32)))
    counts, indices, data, gap, l1 = (np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True))
    indptr = np.concatenate([[0], np.cumsum(counts)])
    kind = np.int32 if indptr[-1] < 2**31 else np.int64
    W = sparse.csr_matrix((data, indices.astype(kind, copy=False), indptr.astype(kind)), shape=(len(counts), m))
    return Codes(W, gap, l1)


def _in_threads(solve: Callable[[int], list[_Part]], starts: range, threads: int) -> Iterator[list[_Part]]:
    """solve(start) for every start, in order, one batch a thread; torch's own threads are off in them."""
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(solve, starts)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _memory(config: CoderConfig, device: torch.device) -> int:
    if config.memory is not None:
        return config.memory
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else MEMORY


def _batch_size(atoms: PreparedDictionary, memory: int, numba: bool, penalties: int) -> int:
    """Rows whose correlations, residuals and codes fit in `memory` bytes."""
    m, d = atoms.D.shape
    if numba:
        row = m * (2 if atoms.screens and not atoms.small else 4) * (1 if penalties == 1 else 2)
        row += 14 * d + 8 * min(m, d)
    else:
        s = min(m, 2 * WORKING_SET)
        row = 12 * m + 12 * d + s * (32 * s + 4 * d)  # correlations, rows, tableaux and their atoms
    return int(np.clip(memory // row, 1, MAX_BATCH if atoms.D.device.type == "cpu" else 1 << 16))


def _solve_batch(
    X: np.ndarray | Tensor,
    atoms: PreparedDictionary,
    l1s: list[float],
    config: CoderConfig,
    spaces: threading.local | None,
    size: int,
    start: int,
) -> list[_Part]:
    """Rows start … start + size; spaces: this thread's workspace, or None for the torch way."""
    x = _rows(X, slice(start, start + size)).to(atoms.D.device).contiguous()
    bad = torch.nonzero(~torch.isfinite(x.sum(1)))[:, 0]  # or a sum that overflows: looked at only then
    bad = bad[~torch.isfinite(x[bad]).all(1)]
    if len(bad):
        raise SparsightError(f"cannot code: row {start + int(bad[0])} of X has values that are not finite")
    if spaces is None:
        return _solve_torch(atoms, x, l1s, config)
    if not hasattr(spaces, "mine"):
        spaces.mine = _Workspace(size, atoms)
    return (_solve_gram if atoms.small else _solve_sets)(atoms, x.numpy(), l1s, config, spaces.mine)


@dataclass(frozen=True)
class PreparedDictionary:
    """A dictionary D (m, d) on its device, and what is derived from it once."""

    D: Tensor

    @property
    def small(self) -> bool:
        return 4 * len(self.D) ** 2 <= GRAM_BYTES

    @cached_property
    def G(self) -> np.ndarray:
        return (self.D @ self.D.T).numpy()

    @cached_property
    def screens(self) -> bool:
        """Whether the CPU multiplies bfloat16 natively."""
        return self.D.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()

    @cached_property
    def columns(self) -> Tensor:
        """Dᵀ (d, m) in bfloat16, as the screening GEMM likes it best."""
        return self.D.bfloat16().T.contiguous()

    @cached_property
    def error(self) -> float:
        """max_j ‖d_j − bfloat16(d_j)‖."""
        return max(float((part - part.bfloat16().float()).norm(dim=1).max()) for part in self.D.split(4096))

    @cached_property
    def norm(self) -> float:
        return float(self.D.norm(dim=1).max())

    def correlate(self, R: np.ndarray, out: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """R Dᵀ (b, m) as integers that sort alike, in `out`, and a bound (b,) on what rounding did to a row of it.

        The bound does not count the rounding of the result itself: that keeps order, and so does `_keys`.
        """
        r, d = torch.from_numpy(R), R.shape[1]
        norm = r.norm(dim=1)
        slack = d * 2.0**-23 * 1.01 * self.norm * norm  # of d products and sums in float32
        if not self.screens:
            C = torch.mm(r, self.D.T, out=out[: len(r)])
            return C.view(torch.int32).numpy(), slack.numpy()
        rough = r.bfloat16()
        C = torch.mm(rough, self.columns, out=out[: len(r)])
        bound = self.error * norm + 1.004 * self.norm * (r - rough.float()).norm(dim=1) + slack
        return C.view(torch.int16).numpy(), bound.numpy()

    def keys(self, values: np.ndarray) -> np.ndarray:
        """Thresholds (b,) → the integers that `correlate` would make of them, or the next below; all pass one ≤ 0."""
        bits = np.where(values > 0, values, 0).astype(np.float32).view(np.int32)
        if self.screens:
            return np.where(values > 0, bits >> 16, -(2**15)).astype(np.int16)
        return np.where(values > 0, bits, -(2**31)).astype(np.int32)

    def values(self, keys: np.ndarray) -> np.ndarray:
        return (keys.astype(np.int32) << 16 if self.screens else keys).view(np.float32)


class _Workspace:
    """What a thread needs for batches of up to b rows, made once: the first touch of a page costs more than its use.

    ids, weights (b, kmax), of which count (b,) are in use: the codes while they are made; their gap and l1 (b,).
    """

    def __init__(self, b: int, atoms: PreparedDictionary):
        m, d = atoms.D.shape
        kmax, kind = min(m, d), torch.bfloat16 if atoms.screens and not atoms.small else torch.float32
        self.ids, self.weights = np.empty((b, kmax), np.int32), np.empty((b, kmax), np.float32)
        self.count, self.gap, self.l1 = np.zeros(b, np.int64), np.empty(b), np.empty(b)
        self.C = torch.empty(b, m, dtype=kind)

    @cached_property
    def spare(self) -> Tensor:
        return torch.empty_like(self.C)

    def part(self, b: int) -> _Part:
        """The codes of the first b rows, as they are now."""
        from indexer.coding.kernel import pack

        count = self.count[:b].copy()
        ends = np.cumsum(count)
        indices, data = np.empty(ends[-1], np.int32), np.empty(ends[-1], np.float32)
        pack(self.ids, self.weights, count, ends - count, indices, data)
        return _Part(count, indices, data, self.gap[:b].astype(np.float32), self.l1[:b].astype(np.float32))


def _penalties(l1: float, relative: bool, l1_max: np.ndarray) -> np.ndarray:
    """λ (b,) in float64; 1 where no atom correlates and any would do."""
    return np.where(l1_max > 0, np.float64(np.float32(l1)) * l1_max if relative else np.float32(l1), 1.0)


def _solve_gram(
    atoms: PreparedDictionary, X: np.ndarray, l1s: list[float], config: CoderConfig, space: _Workspace
) -> list[_Part]:
    """A batch over a small dictionary: all correlations from the Gram matrix."""
    from indexer.coding.kernel import solve_by_gram

    b = len(X)
    Q = torch.mm(torch.from_numpy(X), atoms.D.T, out=space.C[:b]).numpy()
    l1_max, parts = Q.max(1).astype(np.float64), []
    space.count[:] = 0
    for l1 in l1s:
        base = _penalties(l1, config.relative, l1_max)
        solve_by_gram(
            Q,
            atoms.G,
            atoms.D.numpy(),
            X,
            base,
            space.ids,
            space.weights,
            space.count,
            space.gap,
            space.l1,
            config.max_concepts or 0,
        )
        parts.append(space.part(b))
    return parts


def _solve_sets(
    atoms: PreparedDictionary, X: np.ndarray, l1s: list[float], config: CoderConfig, space: _Workspace
) -> list[_Part]:
    """A batch over a large dictionary: screen by GEMM, solve on working sets, certify by GEMM."""
    from indexer.coding.kernel import highest, solve_active_set, strongest_correlation

    b, D, R = len(X), atoms.D.numpy(), X.copy()
    count, gap, lam = space.count[:b], space.gap[:b], space.l1[:b]
    spare = space.C if len(l1s) == 1 else space.spare  # a path goes on from the whole batch's correlations

    C, bound = atoms.correlate(R, space.C)
    top = np.empty(b, C.dtype)
    highest(C, top)
    low = atoms.keys(atoms.values(top) * (1 - 2**-7) - 2 * bound)
    low[bound == 0] = np.iinfo(C.dtype).max  # zero rows
    l1_max = np.empty(b)
    strongest_correlation(C, low, X, D, l1_max)

    C_all, bound_all, parts = C, bound, []
    count[:] = 0
    for l1 in l1s:
        base = _penalties(l1, config.relative, l1_max)
        empty = base >= l1_max
        lam[:], gap[:] = base, np.where(empty, 0, np.inf)
        count[empty], R[empty] = 0, X[empty]
        rows, checked = np.flatnonzero(~empty), False
        C, bound = (C_all, bound_all) if len(rows) == b else (C_all[rows], bound_all[rows])
        for _ in range(MAX_ROUNDS):
            low, sure = atoms.keys(lam[rows] - bound), atoms.keys(1.001 * lam[rows] + 2 * bound)
            solve_active_set(
                C, low, sure, rows, X, D, base, R, space.ids, space.weights, count, gap, lam,
                checked, config.tol, WORKING_SET_CPU, config.max_concepts or 0,
            )  # fmt: skip
            rows, checked = np.flatnonzero(~(gap <= config.tol)), True
            if not len(rows):
                break
            whole = len(rows) == b
            C, bound = atoms.correlate(R if whole else R[rows], space.C if whole else spare)
            if whole:
                C_all, bound_all = C, bound
        parts.append(space.part(b))
    return parts


def _solve_torch(atoms: PreparedDictionary, X: Tensor, l1s: list[float], config: CoderConfig) -> list[_Part]:
    """A batch in torch, on any device: X (b, d)."""
    D, b = atoms.D, len(X)
    C_all = X @ D.T  # (b, m)
    l1_max = C_all.amax(1).clamp_min(0)
    P, W = torch.zeros(b, 1, dtype=torch.int64, device=D.device), torch.zeros(b, 1, device=D.device)  # (b, s)
    R, parts = X.clone(), []
    for l1 in l1s:
        base = torch.as_tensor(_penalties(l1, config.relative, l1_max.double().cpu().numpy())).to(D)
        empty = base >= l1_max
        used, gap = base.clone(), torch.where(empty, 0.0, torch.inf)
        W[empty], R[empty] = 0, X[empty]
        rows, checked = torch.nonzero(~empty)[:, 0], False
        C = C_all[rows]
        for _ in range(MAX_ROUNDS):
            if checked:
                gap[rows] = _relative_gap(X[rows], R[rows], W[rows], C.amax(1), used[rows])
                open_ = ~(gap[rows] <= config.tol)
                rows, C = rows[open_], C[open_]
            if not len(rows):
                break
            size = min(len(D.T) + WORKING_SET, len(D), int((W[rows] > 0).sum(1).max()) + WORKING_SET)
            p, w = P[rows], W[rows]
            own = torch.where(w > 0, torch.inf, -torch.inf)  # of the padding, nothing
            S = C.scatter_reduce(1, p, own, "amax").topk(size, 1).indices
            A, x = D[S], X[rows]
            G, q = A @ A.mT, torch.einsum("rsd,rd->rs", A, x)
            w, used[rows] = _pivot_limited(G, q, base[rows], config.max_concepts)
            P, W = _widened(P, size), _widened(W, size)
            P[rows], W[rows] = torch.nn.functional.pad(S, (0, P.shape[1] - size)), 0
            W[rows, :size] = w
            R[rows] = x - torch.einsum("rs,rsd->rd", w, A)
            C, checked = R[rows] @ D.T, True
            if len(rows) == b:
                C_all = C
        parts.append(_part(P, W, gap, used))
    return parts


def _widened(A: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(A, (0, max(0, size - A.shape[1])))


def _pivot_limited(G: Tensor, q: Tensor, l1: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    """As `pivot`, each row at the smallest penalty ≥ l1 (r,) that leaves at most `limit` atoms; and that penalty."""
    w = pivot(G, q, l1)
    if limit is None:
        return w, l1
    over = (w > 0).sum(1) > limit
    low, high = l1[over], q[over].amax(1)
    for _ in range(24):
        middle = (low * high).sqrt()
        fits = (pivot(G[over], q[over], middle) > 0).sum(1) <= limit
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    l1 = l1.clone()
    l1[over] = high
    w[over] = pivot(G[over], q[over], high)
    return w, l1


def pivot(G: Tensor, q: Tensor, l1: Tensor) -> Tensor:
    """min_{w ≥ 0} ½ wᵀG w − (q − l1)ᵀ w, exactly, for a batch: G (r, s, s), q (r, s), l1 (r,) → w (r, s).

    The steps of `indexer.coding.kernel` on whole tableaux: T is G swept on the support (Goodnight 1979), so that
    its column j is how all else moves when w_j grows, and v holds the weights inside the support, the gradients
    outside it.
    """
    exact = torch.float32 if G.device.type == "mps" else torch.float64
    T, rows, s = G.to(exact).clone(), torch.arange(len(G), device=G.device), G.shape[1]
    q, lam, diagonal = q.to(exact), l1.to(exact), T.diagonal(dim1=1, dim2=2).clone()
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


def _part(P: Tensor, W: Tensor, gap: Tensor, l1: Tensor) -> _Part:
    order = torch.where(W > 0, P, torch.iinfo(P.dtype).max).argsort(dim=1)
    ids, weights = P.gather(1, order).cpu().numpy(), W.gather(1, order).cpu().numpy()
    used = weights > 0
    return _Part(used.sum(1), ids[used].astype(np.int32), weights[used], gap.cpu().numpy(), l1.cpu().numpy())
