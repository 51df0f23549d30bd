"""The l1 coder: every embedding as a few weighted concepts, with a certificate.

Solves, for each row x, `min_{w ≥ 0} ½‖x − wD‖² + λ‖w‖₁`, in batches, by one of three solvers.

| solver | where | how |
| --- | --- | --- |
| `gram` | many rows, up to a few thousand atoms, on a CPU | D Dᵀ is held; all correlations follow from X Dᵀ |
| `active_set` | many rows, more atoms, on a CPU | residuals are multiplied with all atoms again until certified |
| `torch` | other devices, and a handful of rows | as `active_set`, a batch at a time |

Decisions:
- Every thread takes whole batches, its GEMM included: no barriers, and the codes do not depend on the threads.
- On a CPU that multiplies bfloat16 natively its GEMM is twice as fast, with AMX six times. There it screens, and the
  certificate rests on float32 (`indexer.coding.prepared`).
- No n × m result is ever formed; the memory beside X, D and the codes is bounded by `memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from numbers import Real
from typing import Protocol, TypeVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from indexer.coding.codes import Codes, Part, join
from indexer.coding.prepared import PreparedDictionary, multiplies_bfloat16
from indexer.config import CoderConfig
from training.device import single_threads
from training.encoders.centring import Rows
from training.errors import DataError

SOLVERS = ("auto", "gram", "active_set", "torch")
FEW_ROWS = 64  # up to so many rows torch does what numba's import would not repay
GRAM_BYTES = 32 << 20  # a Gram matrix up to this size stays near the processor
MEMORY = 128 << 20
SMALL, LARGE = 1e-12, 1e12  # the largest value of rows that float32 is safe for
BAND = 32  # powers of two within which rows of extreme size are coded together
PATH_FLOOR = 1e-3  # of λ_max: the smallest penalty tried for a number of concepts


T = TypeVar("T")


class Solver(Protocol):
    """Codes batches of rows at each penalty of a path.

    Before the first batch `prepare` is called with each of `steps`, from several threads at once.
    """

    steps: range

    def prepare(self, step: int) -> None: ...

    def batch_size(self, memory: int) -> int:
        """How many rows may be given at once, for so many bytes."""
        ...

    def __call__(self, X: Tensor, size: int) -> list[Part]:
        """X (b, d), on the solver's device → a part for each penalty; size: the most rows of any batch."""
        ...


def encode_sparse(
    X: np.ndarray | Tensor,
    D: np.ndarray,
    config: CoderConfig | None = None,
    *,
    solver: str = "auto",
    screening: bool | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Codes:
    """Codes the rows of X (n, d) over the atoms of D (m, d), to a certified duality gap.

    The relative gap is (primal − dual) / primal; primal is at most ½‖x‖². A row that correlates with no atom, a
    zero row among them, has an empty code and gap 0; so has one with λ ≥ λ_max. Of equal atoms one is used; a
    zero atom never is.
    solver: one of SOLVERS; `auto` takes the fastest. screening: whether the CPU's solvers multiply in bfloat16 first;
    None: where the CPU does so natively. progress: called with the number of rows done after each batch.
    Raises `DataError` for wrong shapes, values that are not finite, a penalty that is not positive, and a
    code that does not reach `tol`.
    """
    config = config or CoderConfig()
    codes = encode_path(X, D, [config.l1], config, solver=solver, screening=screening, device=device, progress=progress)
    return codes[0]


def encode_path(
    X: np.ndarray | Tensor,
    D: np.ndarray,
    l1s: Sequence[float],
    config: CoderConfig | None = None,
    *,
    solver: str = "auto",
    screening: bool | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> list[Codes]:
    """As `encode_sparse`, at each penalty of l1s (in place of config.l1) in one pass over X with warm starts."""
    config = config or CoderConfig()
    X, D = X if isinstance(X, Tensor) else np.asarray(X), np.ascontiguousarray(D, np.float32)
    _check(X, D, l1s)
    n, device = len(X), torch.device(device)
    memory = _memory(config, device)
    if solver == "auto":
        solver = _fastest(n, len(D), device, memory)
    threads = 1 if solver == "torch" else torch.get_num_threads()
    solve = _make_solver(solver, screening, torch.as_tensor(D, device=device), list(l1s), config, memory)
    size = solve.batch_size(memory // threads)
    batches = max(1, -(-n // size))
    size = max(1, -(-n // (-(-batches // threads) * threads)))  # every thread gets as many rows

    for _ in _in_threads(solve.prepare, solve.steps, threads):
        pass

    extreme: dict[int, float] = {}

    def solve_from(start: int) -> list[Part]:
        x, apart = _batch(X, start, start + size, device)
        extreme.update(apart)
        return solve(x, size)

    parts: list[list[Part]] = []
    for part in _in_threads(solve_from, range(0, n, size), threads):
        parts.append(part)
        if progress:
            progress(len(part[0].gap))
    codes = [join([p[i] for p in parts], len(D)) for i in range(len(l1s))]
    if extreme:
        codes = _with_extreme(codes, extreme, X, D, l1s, config)
    for c in codes:
        if not (c.gap <= config.tol).all():
            bad = ~(c.gap <= config.tol)
            raise DataError(
                f"{bad.sum()} of {n} codes stayed above a relative gap of {config.tol:g} "
                f"(worst {c.gap[bad].max():.1e}); raise tol, or l1"
            )
    return codes


def choose_l1(
    X: Rows,
    D: np.ndarray,
    concepts: float,
    config: CoderConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    sample: int = 1000,
) -> float:
    """The penalty, in config's sense, at which rows of X have about so many concepts on average.

    Bisects on at most `sample` evenly spaced rows. Raises `DataError` for a target that no penalty reaches.
    """
    config = replace(config or CoderConfig(), refit=False, tol=1e-2)
    X = np.asarray(X[:: -(-len(X) // sample)], np.float32)  # the only rows that are read
    top = 1.0 if config.relative else float((X @ np.asarray(D, np.float32).T).max())
    if not concepts > 0 or not top > 0:
        raise DataError(f"no penalty gives {concepts:g} concepts a row: ask for more than 0")
    low, high = PATH_FLOOR * top, top * (1 - 1e-6)
    count = 0.0
    for _ in range(14):
        middle = float(np.sqrt(low * high))
        count = encode_sparse(X, D, replace(config, l1=middle), device=device).W.nnz / len(X)
        if abs(count - concepts) <= 0.005 * concepts:
            return middle
        low, high = (middle, high) if count > concepts else (low, middle)
    if abs(count - concepts) > 0.1 * concepts:
        raise DataError(f"no penalty gives {concepts:g} concepts a row; the nearest gives {count:.3g}")
    return high


def _check(X: np.ndarray | Tensor, D: np.ndarray, l1s: Sequence[float]) -> None:
    if X.ndim != 2 or D.ndim != 2 or X.shape[1] != D.shape[1] or not len(D):
        raise DataError(f"cannot code X {tuple(X.shape)} against D {D.shape}: expected (n, d) and (m, d), m > 0")
    bad = np.flatnonzero(~np.isfinite(D).all(1))
    if len(bad):
        raise DataError(f"cannot code: row {bad[0]} of D has values that are not finite")
    for l1 in l1s:
        if not (isinstance(l1, Real) and np.isfinite(float(l1)) and l1 > 0):
            raise DataError(f"cannot code with l1 = {l1}: it must be a number above 0")


def _fastest(n: int, m: int, device: torch.device, memory: int) -> str:
    """The solver for n rows and m atoms."""
    if device.type != "cpu" or n <= FEW_ROWS:
        return "torch"
    return "gram" if 4 * m**2 <= min(GRAM_BYTES, memory // 4) and m <= 4 * n else "active_set"


def _make_solver(
    solver: str, screening: bool | None, D: Tensor, l1s: list[float], config: CoderConfig, memory: int
) -> Solver:
    if solver == "torch":
        from indexer.coding.torch_solver import TorchSolver

        return TorchSolver(PreparedDictionary(D), l1s, config, memory)
    if solver not in SOLVERS or D.device.type != "cpu":
        raise DataError(
            f"no solver {solver!r} on {D.device}: it is one of {', '.join(SOLVERS)}, on other devices torch"
        )
    from indexer.coding.cpu import CpuSolver  # imports numba

    screens = multiplies_bfloat16(D.device) if screening is None else screening
    return CpuSolver(PreparedDictionary(D, screens), l1s, config, gram=solver == "gram")


def _in_threads(work: Callable[[int], T], items: range, threads: int) -> Iterator[T]:
    """work(item) for every item, in order, one item a thread; torch's own threads are off in them."""
    if threads == 1 or len(items) < 2:
        yield from map(work, items)
        return
    with single_threads() as begin:
        pool = ThreadPoolExecutor(threads, initializer=begin)
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)


def _memory(config: CoderConfig, device: torch.device) -> int:
    if config.memory is not None:
        return config.memory
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else MEMORY


def _batch(X: np.ndarray | Tensor, start: int, end: int, device: torch.device) -> tuple[Tensor, dict[int, float]]:
    """Rows start … end of X in float32 on the device, which must be finite, and the sizes of those too small or too
    large for it, by row; they are zero in the batch."""
    with np.errstate(over="ignore"):
        x = X[start:end].float() if isinstance(X, Tensor) else torch.from_numpy(np.array(X[start:end], np.float32))
    x = x.to(device).contiguous()
    sums = x.sum(1).abs()
    extreme: dict[int, float] = {}
    odd = torch.nonzero(~((sums > SMALL) & (sums < LARGE)))[:, 0]  # or one that cancels: looked at only then
    for at in odd.tolist():
        size = float(np.abs(_float64(X, [start + at])).max(initial=0.0))
        if not np.isfinite(size):
            raise DataError(f"cannot code: row {start + at} of X has values that are not finite")
        if size and not SMALL < size < LARGE:
            extreme[start + at], x[at] = size, 0
    return x, extreme


def _float64(X: np.ndarray | Tensor, rows: list[int]) -> np.ndarray:
    return (X[rows].double().cpu().numpy() if isinstance(X, Tensor) else np.asarray(X[rows])).astype(np.float64)


def _with_extreme(
    codes: list[Codes],
    extreme: dict[int, float],
    X: np.ndarray | Tensor,
    D: np.ndarray,
    l1s: Sequence[float],
    config: CoderConfig,
) -> list[Codes]:
    """Codes with those of rows of extreme size put in, in float64.

    Such rows are coded at a power of two of their size: w and λ scale with x, the relative gap stays as it is.
    """
    bands: dict[int, list[int]] = {}
    for row in sorted(extreme):
        bands.setdefault(BAND * round(np.log2(extreme[row]) / BAND), []).append(row)
    for exponent, rows in bands.items():
        scaled = np.ldexp(_float64(X, rows), -exponent)
        penalties = [l1 if config.relative else float(np.clip(np.ldexp(l1, -exponent), 1e-30, 1e30)) for l1 in l1s]
        for i, found in enumerate(encode_path(scaled, D, penalties, config)):
            W = sparse.lil_matrix(codes[i].W.shape, dtype=np.float64)
            W[rows] = found.W.astype(np.float64)
            gap, l1 = codes[i].gap.copy(), codes[i].l1.astype(np.float64)
            gap[rows] = found.gap
            l1[rows] = np.ldexp(found.l1.astype(np.float64), exponent) if config.relative else l1s[i]
            W = W.tocsr()
            W.data = np.ldexp(W.data, exponent)
            codes[i] = Codes((codes[i].W + W).tocsr(), gap, l1)
    return codes
