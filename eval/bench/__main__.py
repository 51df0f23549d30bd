"""`python -m eval.bench`, which `make bench` calls: times the project beside its baselines on this machine.

Each benchmark is a module with `run(options) -> Section`. A figure is a median over paired runs: in each repetition
all ways take their turn. Prints tables, and writes them to bench/results.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from eval.bench import (
    audit,
    coder,
    dense,
    encoders,
    familiarity,
    objective,
    page,
    pictures,
    pipeline,
    planning,
    residual,
    scale,
    search,
    shards,
)
from eval.bench.common import Options, Section, table, versions
from eval.machine import hardware

SECTIONS: dict[str, Callable[[Options], Section]] = {
    "coder": coder.run,
    "search": search.run,
    "dense": dense.run,
    "scale": scale.run,
    "planning": planning.run,
    "pipeline": pipeline.run,
    "page": page.run,
    "objective": objective.run,
    "pictures": pictures.run,
    "encoders": encoders.run,
    "familiarity": familiarity.run,
    "audit": audit.run,
    "residual": residual.run,
    "shards": shards.run,
}
LONG = ("objective", "residual")  # they train encoders, or encode pictures: with --full or by the name alone


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--full", is_flag=True, help="The whole sweeps (n to 10⁶, K to 10⁵); without it each is capped.")
@click.option("--only", type=click.Choice(list(SECTIONS)), help="One section; the others stay as they are.")
@click.option("--device", default="cpu", show_default=True, help="cuda or mps: also time the coder there.")
@click.option("--encoder", default=None, help="Encoder folder for the real embeddings.  [default: the bundled one]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench"), show_default=True)
def main(full: bool, only: str | None, device: str, encoder: str | None, out: Path) -> None:
    """Times the coder and the searches beside their baselines on this machine."""
    out.mkdir(parents=True, exist_ok=True)
    options = Options(out, full, device, encoder)
    path = out / "results.json"
    results: dict[str, object] = json.loads(path.read_text()) if only and path.is_file() else {}
    results |= {"hardware": hardware(), "versions": versions(), "full": full}
    click.echo(f"{results['hardware']}\n", err=True)
    for name in [only] if only else [name for name in SECTIONS if full or name not in LONG]:
        section = SECTIONS[name](options)
        results[name] = asdict(section)
        click.echo(_section_text(section))
    path.with_suffix(".tmp").write_text(json.dumps(results, indent=1, default=float) + "\n")
    path.with_suffix(".tmp").replace(path)
    click.echo(f"wrote {path}", err=True)


def _section_text(section: Section) -> str:
    parts = [f"## {title}\n{table(rows)}\n" for title, rows in section.tables.items()]
    parts += section.notes
    if section.claims:
        parts.append(f"\n## claims\n{table(section.claims)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
