"""`sparsight eval`, and the one command that joins those of every package."""

from __future__ import annotations

import json
from pathlib import Path

import click

from indexer.cli import index
from search.cli import queries
from training.cli import Command, Group, device_option, index_option, json_option, seed_option, train


@click.command("eval", cls=Command)
@click.option("--out", type=click.Path(path_type=Path), default="report", show_default=True, help="Report folder.")
@click.option("--split", default="test", show_default=True, help="Which pictures to judge by.")
@click.option("--examples", type=click.IntRange(0), default=8, show_default=True, help="Right and wrong ones, each.")
@index_option
@device_option
@seed_option
@json_option
def evaluate(out: Path, split: str, examples: int, index_dir: Path, device: str, seed: int, as_json: bool) -> None:
    """Writes the report: accuracy, the λ sweep, memory, rivals, examples; dense against sparse."""
    from eval.evaluate import evaluate as measure
    from eval.report import summary, write_report
    from indexer.store import Store
    from training.device import pick_device

    chosen = str(pick_device(device))
    with Store(index_dir) as store:
        report = measure(store, split=split, device=chosen, seed=seed, examples=examples)
        ids = [e["id"] for kind in report["concepts"]["examples"].values() for e in kind]
        write_report(out, report, store.thumbnails(ids))
    click.echo(json.dumps(report) if as_json else summary(report))
    click.echo(f"wrote {out / 'report.json'} and {out / 'index.html'}", err=True)


@click.group(cls=Group)
@click.version_option(package_name="sparsight", message="%(version)s")
def main() -> None:
    """Finds and explains pictures by concept."""


for command in (train, index, *queries.commands.values(), evaluate):
    main.add_command(command)
