"""`sparsight eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from training.commands import Command, FilePath, data_option, device_option, index_option, json_option, seed_option
from training.errors import SparsightError
from training.files import shown_path

if TYPE_CHECKING:
    from training.data.cifar10 import Pictures


@click.command("eval", cls=Command)
@click.option("--out", type=FilePath(), default="report", show_default=True, help="Report folder.")
@click.option("--split", default=None, help="Which pictures to judge by.  [default: test, or all where none is]")
@click.option("--examples", type=click.IntRange(0), default=8, show_default=True, help="Right and wrong ones, each.")
@click.option(
    "--corrupted",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Test pictures of CIFAR-10 to judge under corruption; 0 for none.",
)
@click.option("--encoder", "encoder_name", help="Encoder: folder or hub name.  [default: the index's own]")
@index_option
@data_option
@device_option
@seed_option
@json_option
def evaluate(
    out: Path,
    split: str | None,
    examples: int,
    corrupted: int,
    encoder_name: str | None,
    index_dir: Path,
    data_dir: Path,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Writes the report: accuracy, the λ sweep, memory, baselines, open words, corruptions; dense against sparse."""
    from eval.evaluate import evaluate as measure
    from eval.report import summary, write_report
    from search.index import Index
    from training.device import pick_device

    chosen = str(pick_device(device))
    try:
        out.mkdir(parents=True, exist_ok=True)  # a report that cannot be written is not begun
    except OSError as e:
        raise SparsightError(f"cannot write the report to {out}: {e.strerror}; choose another --out") from e
    with Index(index_dir, encoder=encoder_name, device=chosen) as opened:
        store = opened.store
        encoder, pictures = None, None
        try:
            encoder = opened.encoder
            pictures = _test_pictures(data_dir, corrupted, seed) if store.meta.dataset == "CIFAR-10" else None
        except SparsightError as e:
            missing = "encoder" if encoder is None else "pictures"
            click.echo(f"left out, for want of the {missing}: {e}", err=True)
        report = measure(
            store, split=split, device=chosen, seed=seed, examples=examples, encoder=encoder, pictures=pictures
        )
        ids = [example.id for example in (*report.examples.correct, *report.examples.wrong)]
        write_report(out, report, store.thumbnails(ids))
    click.echo(json.dumps(report.to_dict()) if as_json else summary(report))
    click.echo(f"wrote {shown_path(out / 'report.json')} and {shown_path(out / 'index.html')}", err=True)


def _test_pictures(root: Path, n: int, seed: int) -> Pictures | None:
    """n pictures of CIFAR-10's test split, drawn at random."""
    import numpy as np

    from training.data.cifar10 import load_cifar10

    if not n:
        return None
    pictures = load_cifar10(root, ("test",), download=False)
    return pictures.take(np.sort(np.random.default_rng(seed).permutation(len(pictures))[:n]))
