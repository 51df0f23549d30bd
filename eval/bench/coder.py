"""The l1 coder beside SPAMS, scikit-learn, FISTA and ADMM, at the same λ; and how it scales.

Every way codes the same rows over the same dictionary. Gaps are computed here, in float64 from scratch, alike for
all. The yardstick is one GEMM X Dᵀ in float32: nothing that looks at every atom once can be faster, but for
lower precision. Rates are rows a second; a baseline that is too slow for all rows codes fewer. The processor's time
stands beside the clock's: on a machine that others use too it is the one to trust.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from indexer.coding import choose_l1, encode_sparse
from indexer.config import CoderConfig
from training.errors import SparsightError

if TYPE_CHECKING:
    from eval.bench.common import Options, Section

TOL = 1e-4
OUR_TOL = 5e-6  # what SPAMS reaches in float32: ours must be no worse
OURS, GEMM = "sparsight", "one GEMM X Dᵀ, float32"
Way = Callable[[np.ndarray, np.ndarray, float], object]


@dataclass(frozen=True)
class Problem:
    """X (n, d) to be coded over D (m, d) at the penalty l1, absolute."""

    name: str
    X: np.ndarray
    D: np.ndarray
    l1: float


def synthetic(
    n: int, m: int, d: int, concepts: int, seed: int = 0, noise: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
    """X (n, d), D (m, d): atoms in families of about 20 (cosine 0.5), rows of `concepts` atoms each and noise."""
    rng = np.random.default_rng(seed)
    families = _unit(rng.standard_normal((max(1, m // 20), d), np.float32))
    D = _unit(families[rng.integers(0, len(families), m)] + _unit(rng.standard_normal((m, d), np.float32)))
    X = np.empty((n, d), np.float32)
    for start in range(0, n, 10_000):
        x = X[start : start + 10_000]
        weights = rng.random((len(x), concepts), np.float32) + 0.3
        signal = _unit(np.einsum("nk,nkd->nd", weights, D[rng.integers(0, m, weights.shape)]))
        x[:] = _unit(signal + 0.6 * _unit(rng.standard_normal(x.shape, np.float32)))
    return X, D


def _unit(A: np.ndarray) -> np.ndarray:
    return A / np.linalg.norm(A, axis=1, keepdims=True)


def synthetic_problem(n: int, m: int, d: int, concepts: int) -> Problem:
    """A synthetic problem at the penalty that gives about so many concepts a row."""
    X, D = synthetic(n, m, d, concepts)
    l1 = choose_l1(X, D, concepts, CoderConfig(relative=False))
    return Problem(f"{d} × {m:,}, {concepts} concepts", X, D, l1)


def real_problems(encoder_name: str | None) -> list[Problem]:
    """The shipped encoder's test embeddings and terms, at the index's own sparsity and a denser one."""
    from indexer.coding import make_dictionary
    from training.encoders import load_test_embeddings, open_encoder

    encoder = open_encoder(encoder_name or "bundled")
    X, D = load_test_embeddings(encoder).X, make_dictionary("terms", encoder).D
    X, D = np.ascontiguousarray(X, np.float32), np.ascontiguousarray(D, np.float32)
    problems = []
    for relative in (CoderConfig.l1, 0.3):
        concepts = encode_sparse(X, D, CoderConfig(l1=relative)).W.nnz / len(X)
        l1 = choose_l1(X, D, concepts, CoderConfig(relative=False))
        problems.append(Problem(f"{D.shape[1]} × {len(D)}, real, {concepts:.1f} concepts", X, D, l1))
    return problems


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


def beside_baselines(problem: Problem, repetitions: int, slow_rows: int, limit_s: float) -> list[dict[str, object]]:
    """Rates of every way on one problem, medians of paired runs; `times`: how many times ours is faster."""
    X, D, l1 = problem.X, problem.D, problem.l1
    few, few64, D64 = np.ascontiguousarray(X[:slow_rows]), X[:slow_rows].astype(np.float64), D.astype(np.float64)
    gram = D64 @ D64.T
    ways: dict[str, tuple[int, Way]] = {OURS: (len(X), ours), GEMM: (len(X), gemm)}
    absent = []
    try:
        import spams  # noqa: F401

        ways["SPAMS lasso, 2 threads"] = (len(X), spams_lasso)
    except ImportError:
        absent.append("SPAMS lasso (spams-bin is not installed)")
    try:
        import sklearn  # noqa: F401

        ways["scikit-learn lasso_cd"] = (len(few), lambda x, d, lam: scikit_learn(few64, D64, lam, gram))
    except ImportError:
        absent.append("scikit-learn (not installed)")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    codes: dict[str, object] = {}
    for repetition in range(repetitions + 1):  # the first warms up
        for name, (rows, way) in ways.items():
            if repetition == 0 and name.startswith("scikit"):
                continue
            x = few if rows < len(X) else X
            start, start_cpu = time.perf_counter(), time.process_time()
            codes[name] = way(x, D, l1)
            if repetition:
                seconds[name].append((time.perf_counter() - start) / rows)
                processor[name].append((time.process_time() - start_cpu) / rows)
    found = []
    for name in ways:
        row = _row(problem, name, np.array(seconds[name]), seconds[OURS], codes[name])
        found.append({**row, "cpu_us_per_row": 1e6 * float(np.median(processor[name]))})
    iterative = Iterative(D, limit_s)
    for name, solve in (("FISTA", iterative.fista), ("ADMM as in SpLiCE", iterative.admm)):
        W = solve(few[:500], l1)
        row = _row(problem, name, np.array([iterative.seconds / len(few[:500])]), seconds[OURS], W)
        found.append({**row, "note": f"{iterative.iterations} iterations, one run"})
    return found + [{"problem": problem.name, "way": name} for name in absent]


def _row(problem: Problem, name: str, seconds: np.ndarray, our_seconds: list[float], W: Any) -> dict[str, object]:
    row: dict[str, object] = {
        "problem": problem.name,
        "way": name,
        "rows_per_s": 1 / float(np.median(seconds)),
        "spread": f"{1 / seconds.max():,.0f} … {1 / seconds.min():,.0f}",
        "times": float(np.median(seconds / np.array(our_seconds[: len(seconds)]))),
    }
    if W is None:
        return row
    W = sparse.csr_matrix(W)
    checked = slice(0, 1000)
    gaps = relative_gaps(problem.X[: W.shape[0]][checked], problem.D, W[checked], problem.l1)
    return {**row, "nnz": W.nnz / W.shape[0], "gap_max": float(gaps.max()), "gap_median": float(np.median(gaps))}


def claims(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The bars of the coder against the rows of `beside_baselines`."""
    found = []
    for name in dict.fromkeys(str(r["problem"]) for r in rows):
        times = {str(r["way"]): float(str(r["times"])) for r in rows if r["problem"] == name and "times" in r}
        small = "real" in name
        bars = {"SPAMS lasso, 2 threads": 1.5 if small else 2.5, "scikit-learn lasso_cd": 30.0 if small else 100.0}
        for way, bar in bars.items():
            if way in times:
                found.append(_claim(f"{name}: × {way}", f"≥ {bar:g}", times[way], times[way] >= bar))
        if not small:
            found.append(_claim(f"{name}: time / {GEMM}", "≤ 4", 1 / times[GEMM], 1 / times[GEMM] <= 4))
        gap = next(float(str(r["gap_max"])) for r in rows if r["problem"] == name and r["way"] == OURS)
        found.append(_claim(f"{name}: relative gap", f"≤ {TOL:g}", gap, gap <= TOL * 1.01))
    return found


def _claim(claim: str, bar: str, measured: float, met: bool) -> dict[str, object]:
    return {"claim": claim, "bar": bar, "measured": measured, "met": "yes" if met else "NO"}


def one_query(problem: Problem) -> dict[str, object]:
    """The time to code a single row, warm."""
    times = []
    for i in range(12):
        start = time.perf_counter()
        ours(problem.X[i : i + 1], problem.D, problem.l1)
        times.append(time.perf_counter() - start)
    return {"problem": problem.name, "ms": 1e3 * float(np.median(times[2:])), "worst_ms": 1e3 * max(times[2:])}


def on_device(device: str, full: bool) -> list[dict[str, object]]:
    """The coder on an accelerator, 512 × 10,000, beside one float32 GEMM there (TF32 off); X lies on the device."""
    torch.backends.cuda.matmul.allow_tf32 = False
    n = 1_000_000 if full else 100_000
    X, D = synthetic(n, 10_000, 512, 5)
    l1 = choose_l1(X, D, 5, CoderConfig(relative=False))
    x, d = torch.as_tensor(X, device=device), torch.as_tensor(D, device=device)
    wait = torch.cuda.synchronize if device.startswith("cuda") else torch.mps.synchronize

    def multiply() -> None:
        for start in range(0, n, 1 << 15):
            x[start : start + (1 << 15)] @ d.T

    def code() -> object:
        return encode_sparse(x, D, CoderConfig(l1=l1, relative=False), device=device).W

    seconds: dict[str, list[float]] = {OURS: [], GEMM: []}
    W: object = None
    for repetition in range(4):
        for name, way in ((OURS, code), (GEMM, multiply)):
            wait()
            start = time.perf_counter()
            result = way()
            wait()
            W = result if name == OURS else W
            if repetition:
                seconds[name].append((time.perf_counter() - start) / n)
    problem = Problem(f"{n:,} rows, 512 × 10,000, {device}", X, D, l1)
    return [_row(problem, name, np.array(s), seconds[OURS], W if name == OURS else None) for name, s in seconds.items()]


def scaling(full: bool) -> list[dict[str, object]]:
    """Time and peak memory against n, K and the concepts a row, each point in a process of its own."""
    points = [("n", n, 2000, 256, 5) for n in ([10**4, 10**5] + [10**6] * full)]
    points += [("K", 10_000 if m < 10**5 else 3000 + 7000 * full, m, 512, 5) for m in (10**2, 10**3, 10**4, 10**5)]
    points += [("concepts", 10_000 if full else 4000, 10_000, 512, k) for k in (2, 5, 10, 20, 50)]
    rows = []
    for axis, n, m, d, concepts in points:
        print(f"scaling: n {n:,}, K {m:,}, {concepts} concepts", file=sys.stderr)
        command = [sys.executable, "-m", "eval.bench.coder", *map(str, (n, m, d, concepts))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SparsightError(f"{' '.join(command[1:])} failed: {done.stderr.strip().splitlines()[-1]}")
        rows.append({"axis": axis, "n": n, "K": m, "d": d, **json.loads(done.stdout)})
    return rows


def point(n: int, m: int, d: int, concepts: int) -> dict[str, object]:
    """One point of `scaling`: seconds, and the peak of memory above what X and D take."""
    X, D = synthetic(n, m, d, concepts)
    l1 = choose_l1(X, D, concepts, CoderConfig(relative=False), sample=500)
    ours(X[:200], D, l1)
    before = _reset_peak()
    start = time.perf_counter()
    codes = encode_sparse(X, D, CoderConfig(l1=l1, relative=False, tol=TOL))
    seconds = time.perf_counter() - start
    peak = None if before is None else _memory("VmHWM") - before
    return {
        "concepts": codes.W.nnz / n,
        "seconds": seconds,
        "rows_per_s": n / seconds,
        "peak_MB": peak,
        "codes_MB": (8 * codes.W.nnz + 12 * n) / 1e6,
        "gap_max": float(codes.gap.max()),
    }


def _memory(name: str) -> float:
    """A line of this process' memory in MB, as Linux states it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(name))


def _reset_peak() -> float | None:
    """Sets the peak of memory to what is in use, and returns that; None where the system can't."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is taken now
        Path("/proc/self/clear_refs").write_text("5")
        return _memory("VmRSS")
    except (OSError, AttributeError):
        return None


def plot_scaling(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for column, (axis, key) in zip(axes.T, (("n", "n"), ("K", "K"), ("concepts", "concepts")), strict=True):
        chosen = [r for r in rows if r["axis"] == axis]
        x = [float(str(r[key])) for r in chosen]
        for ax, y, label in zip(column, ("rows_per_s", "peak_MB"), ("rows / s", "peak memory, MB"), strict=True):
            values = [float(str(r[y] or "nan")) for r in chosen]
            ax.loglog(x, values, "o-")
            ax.set_xticks(x, [f"{v:,.0f}" for v in x], minor=False)
            ax.minorticks_off()
            ax.set_ylim(10 ** np.floor(np.log10(np.nanmin(values))), 10 ** np.ceil(np.log10(np.nanmax(values))))
            ax.set_xlabel({"n": "rows n", "K": "atoms K", "concepts": "concepts a row"}[axis])
            ax.set_ylabel(label)
            ax.grid(True, alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run(options: Options) -> Section:
    from eval.bench.common import Section, table

    section = Section()
    rows: list[dict[str, object]] = []
    queries = []
    problems = [
        (synthetic_problem(10_000, 10_000, 512, 5), 3, 48, 20.0),
        (synthetic_problem(10_000, 10_000, 512, 20), 3, 32, 20.0),
    ]
    try:
        problems += [(p, 7, 2000, 20.0) for p in real_problems(options.encoder)]
    except SparsightError as e:
        section.notes.append(f"no real embeddings: {e}")
        problems.append((synthetic_problem(10_000, 406, 256, 4), 7, 2000, 20.0))
    for problem, repetitions, slow_rows, limit_s in problems:
        print(f"coder: {problem.name}", file=sys.stderr)
        found = beside_baselines(problem, repetitions + 4 * options.full, slow_rows, limit_s)
        print(table(found), file=sys.stderr)
        rows += found
        queries.append(one_query(problem))
    section.tables["the coder beside its baselines (times: ours is so many times faster)"] = rows
    section.tables["one query"] = list(queries)
    section.claims = claims(rows)
    if options.device != "cpu":
        section.tables[f"the coder on {options.device}"] = on_device(options.device, options.full)
    grown = scaling(options.full)
    section.tables["scaling (peak_MB: above X and D, the codes included)"] = grown
    plot_scaling(grown, options.out / "coder-scaling.png")
    return section


if __name__ == "__main__":
    print(json.dumps(point(*map(int, sys.argv[1:5]))))
