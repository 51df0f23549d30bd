"""The l1 coder beside SPAMS, scikit-learn, FISTA and ADMM, at the same λ; what refitting adds; and how it scales.

Every way codes the same rows over the same dictionary. Gaps are computed here, in float64 from scratch, alike for
all. The yardstick is one GEMM X Dᵀ in float32: nothing that looks at every atom once can be faster, but for
lower precision. Rates are rows a second; a baseline that is too slow for all rows codes fewer. The processor's time
stands beside the clock's: on a machine that others use too it is the one to trust.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from eval.bench.coder_baselines import (
    GEMM,
    OURS,
    TOL,
    Iterative,
    Way,
    gemm,
    ours,
    relative_gaps,
    scikit_learn,
    spams_lasso,
)
from eval.bench.coder_data import (
    Problem,
    bundled_problems,
    clip_dictionary,
    clip_problems,
    mixtures,
    synthetic,
    synthetic_problem,
)
from eval.bench.coder_scaling import plot_scaling, scaling
from indexer.coding import choose_l1, encode_sparse
from indexer.config import CoderConfig, IndexConfig
from training.errors import SparsightError

if TYPE_CHECKING:
    from eval.bench.common import Options, Section

PAUSE = 0.2  # seconds, in which the threads of the way before stop waiting for more work, and leave the cores


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
            time.sleep(PAUSE)
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
        small = "bundled" in name
        spams = 3.0 if "CLIP" in name else 1.5 if small else 2.5
        bars = {"SPAMS lasso, 2 threads": spams}
        if "CLIP" not in name:
            bars["scikit-learn lasso_cd"] = 30.0 if small else 100.0
        for way, bar in bars.items():
            if way in times:
                found.append(_claim(f"{name}: × {way}", f"≥ {bar:g}", times[way], times[way] >= bar))
        if not small and "40 concepts" not in name:
            found.append(_claim(f"{name}: time / {GEMM}", "≤ 4", 1 / times[GEMM], 1 / times[GEMM] <= 4))
        gap = next(float(str(r["gap_max"])) for r in rows if r["problem"] == name and r["way"] == OURS)
        found.append(_claim(f"{name}: relative gap", f"≤ {TOL:g}", gap, gap <= TOL * 1.01))
    return found


def _claim(claim: str, bar: str, measured: float, met: bool) -> dict[str, object]:
    return {"claim": claim, "bar": bar, "measured": measured, "met": "yes" if met else "NO"}


def refitting() -> tuple[list[dict[str, object]], list[str]]:
    """What refitting adds to the time of coding, at relative penalties; and what was left out.

    The first row is what `make index` calls: the index's own settings over the bundled embeddings.
    """
    bundled = bundled_problems(None)[0]
    asked = [("bundled, as `make index`", bundled.X, bundled.D, IndexConfig().coder.l1, "auto")]
    absent = []
    try:
        D = clip_dictionary()
        X = mixtures(D, 10_000)
        for concepts in (2, 3.4, 12, 49):
            l1 = choose_l1(X, D, concepts, CoderConfig())
            asked += [(f"CLIP, {concepts:g} concepts", X, D, l1, "auto")]
            asked += [(f"CLIP, {concepts:g} concepts", X[:1000], D, l1, "torch")]
    except SparsightError as e:
        absent.append(str(e))
    return [_refitting(*problem) for problem in asked], absent


def _refitting(name: str, X: np.ndarray, D: np.ndarray, l1: float, solver: str) -> dict[str, object]:
    seconds: dict[bool, list[float]] = {False: [], True: []}
    processor: dict[bool, list[float]] = {False: [], True: []}
    W: sparse.csr_matrix | None = None
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if solver == "torch" else threads)  # its threads' waiting would count as work
    for repetition in range(3 if solver == "torch" else 6):  # the first warms up
        for refit in seconds:
            start, start_cpu = time.perf_counter(), time.process_time()
            W = encode_sparse(X, D, CoderConfig(l1=l1, refit=refit), solver=solver).W
            if repetition:
                seconds[refit].append(time.perf_counter() - start)
                processor[refit].append(time.process_time() - start_cpu)
    torch.set_num_threads(threads)
    assert W is not None
    added = np.array(processor[True]) / np.array(processor[False]) - 1
    return {
        "problem": name,
        "solver": solver,
        "n": len(X),
        "l1": l1,
        "concepts": W.nnz / len(X),
        "seconds": float(np.median(seconds[False])),
        "with_refit": float(np.median(seconds[True])),
        "cpu": float(np.median(processor[False])),
        "cpu_with_refit": float(np.median(processor[True])),
        "added": float(np.median(added)),
    }


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
        problems += [(p, 7, 2000, 20.0) for p in bundled_problems(options.encoder)]
    except SparsightError as e:
        section.notes.append(f"no embeddings of the encoder: {e}")
        problems.append((synthetic_problem(10_000, 406, 256, 4), 7, 2000, 20.0))
    try:
        problems += [(p, 5, 100, 20.0) for p in clip_problems()]
    except SparsightError as e:
        section.notes.append(str(e))
    for problem, repetitions, slow_rows, limit_s in problems:
        print(f"coder: {problem.name}", file=sys.stderr)
        found = beside_baselines(problem, repetitions + 4 * options.full, slow_rows, limit_s)
        print(table(found), file=sys.stderr)
        rows += found
        queries.append(one_query(problem))
    section.tables["the coder beside its baselines (times: ours is so many times faster)"] = rows
    section.tables["one query"] = list(queries)
    section.claims = claims(rows)
    refitted, absent = refitting()
    section.tables["refitting (seconds without and with it; added: of the processor's time)"] = refitted
    for r in refitted:
        added = float(str(r["added"]))
        claim = f"{r['problem']}, {r['solver']}: refitting adds"
        section.claims.append(_claim(claim, "≤ 1/3", added, added <= 1 / 3))
    section.notes += [f"refitting: {a}" for a in absent]
    if options.device != "cpu":
        section.tables[f"the coder on {options.device}"] = on_device(options.device, options.full)
    grown = scaling(options.full)
    section.tables["scaling (peak_MB: above X and D, the codes included)"] = grown
    plot_scaling(grown, options.out / "coder-scaling.png")
    return section
