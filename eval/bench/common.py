"""`make bench`: times the project beside its baselines on this machine; writes bench/results.json and prints tables.

Each benchmark is a module with `run(options) -> Section`; a section is rows of figures, the claims they are held
against, and perhaps plots. A figure is a median over paired runs: in each repetition all ways take their turn.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from eval.bench import coder as bench_coder
from eval.bench import search as bench_search

SECTIONS: dict[str, Callable[[Options], Section]] = {"coder": bench_coder.run, "search": bench_search.run}
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
    """full: the whole sweeps, minutes to hours; else each capped. device: where to time what runs on an accelerator."""

    out: Path
    full: bool = False
    device: str = "cpu"
    encoder: str | None = None


@dataclass
class Section:
    """Tables of rows (equal keys within a table), and claims: {claim, bar, measured, met}."""

    tables: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    claims: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def hardware() -> dict[str, object]:
    """What the figures were measured on."""
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    found: dict[str, object] = {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": bool(torch.cpu._is_avx512_bf16_supported()),
        "amx": bool(torch.cpu._is_amx_tile_supported()),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def table(rows: list[dict[str, object]]) -> str:
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


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--full", is_flag=True, help="The whole sweeps (n to 10⁶, K to 10⁵); without it each is capped.")
@click.option("--only", type=click.Choice(list(SECTIONS)), help="One section.")
@click.option("--device", default="cpu", show_default=True, help="cuda or mps: also time the coder there.")
@click.option("--encoder", default=None, help="Encoder folder for the real embeddings.  [default: the bundled one]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench"), show_default=True)
def main(full: bool, only: str | None, device: str, encoder: str | None, out: Path) -> None:
    """Times the coder and the searches beside their baselines on this machine."""
    out.mkdir(parents=True, exist_ok=True)
    options = Options(out, full, device, encoder)
    results: dict[str, object] = {"hardware": hardware(), "versions": versions(), "full": full}
    click.echo(f"{results['hardware']}\n", err=True)
    for name in [only] if only else SECTIONS:
        section = SECTIONS[name](options)
        results[name] = asdict(section)
        for title, rows in section.tables.items():
            click.echo(f"## {title}\n{table(rows)}\n")
        for note in section.notes:
            click.echo(note)
        if section.claims:
            click.echo(f"\n## claims\n{table(section.claims)}\n")
    path = out / "results.json"
    path.with_suffix(".tmp").write_text(json.dumps(results, indent=1, default=float) + "\n")
    path.with_suffix(".tmp").replace(path)
    click.echo(f"wrote {path}", err=True)


if __name__ == "__main__":
    sys.exit(main())
