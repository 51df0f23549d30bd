"""How the coder's time and memory grow with the rows, the atoms and the concepts a row."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from eval.bench.coder_baselines import TOL, ours
from eval.bench.coder_data import synthetic
from indexer.coding import choose_l1, encode_sparse
from indexer.config import CoderConfig
from training.errors import SparsightError


def scaling(full: bool) -> list[dict[str, object]]:
    """Time and peak memory against n, K and the concepts a row, each point in a process of its own."""
    points = [("n", n, 2000, 256, 5) for n in ([10**4, 10**5] + [10**6] * full)]
    points += [("K", 10_000 if m < 10**5 else 3000 + 7000 * full, m, 512, 5) for m in (10**2, 10**3, 10**4, 10**5)]
    points += [("concepts", 10_000 if full else 4000, 10_000, 512, k) for k in (2, 5, 10, 20, 50)]
    rows = []
    for axis, n, m, d, concepts in points:
        print(f"scaling: n {n:,}, K {m:,}, {concepts} concepts", file=sys.stderr)
        command = [sys.executable, "-m", "eval.bench.coder_scaling", *map(str, (n, m, d, concepts))]
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


if __name__ == "__main__":
    print(json.dumps(point(*map(int, sys.argv[1:5]))))
