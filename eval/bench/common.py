"""What the benchmarks share: their options, the section that each gives, the machine, and tables as text."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

Row = dict[str, object]  # a line of a table: what each column holds
PACKAGES = [
    "sparsight",
    "numpy",
    "scipy",
    "torch",
    "numba",
    "scikit-learn",
    "spams-bin",
    "faiss-cpu",
    "duckdb",
    "milvus-lite",
]


@dataclass(frozen=True)
class Options:
    """What to time, and where the plots go.

    full: sweep to the largest sizes, which takes hours. device: where else to time the coder, `cuda` or `mps`.
    encoder: whose embeddings to take as real ones; the bundled one's without it.
    """

    out: Path
    full: bool = False
    device: str = "cpu"
    encoder: str | None = None


@dataclass
class Section:
    """What one benchmark found: tables of rows, and claims, each {claim, bar, measured, met}."""

    tables: dict[str, list[Row]] = field(default_factory=dict)
    claims: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def versions() -> dict[str, str]:
    """The versions of this project and of what it is timed beside."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def at_most(held: Sequence[tuple[str, float, object]]) -> list[Row]:
    """Claims from what is claimed, its bar, and what was measured, which may be no more than that."""
    return [{"claim": c, "bar": bar, "measured": found, "met": float(str(found)) <= bar} for c, bar, found in held]


def memory(key: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at the most since `forget_peak`."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Lets the peak of memory begin anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def cpu_seconds() -> float:
    """Seconds that this process and its children have had of the processors."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as aligned text; figures to four digits."""
    keys = list(dict.fromkeys(k for row in rows for k in row))
    cells = [keys] + [[_shown(row.get(k)) for k in keys] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)
