"""`sparsight eval`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from training.commands import Command, FilePath, data_option, device_option, index_option, json_option, seed_option
from training.errors import SparsightError
from training.files import shown_path

if TYPE_CHECKING:
    from training.data.cifar10 import Pictures

PARTS = ".parts"  # folder in the report's, where measured parts are kept


@click.command("eval", cls=Command)
@click.option("--out", type=FilePath(), default="report", show_default=True, help="Report folder.")
@click.option("--split", default=None, help="Which pictures to judge by.  [default: test, or all where none is]")
@click.option("--quick", is_flag=True, help="2,000 pictures, fewer penalties and baselines, no corrupted pictures.")
@click.option("--again", is_flag=True, help="Measure all parts anew, also those that have not changed.")
@click.option("--examples", type=click.IntRange(0), default=8, show_default=True, help="Right and wrong ones, each.")
@click.option(
    "--corrupted",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Test pictures of CIFAR-10 to corrupt, each once; 0 for none.",
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
    quick: bool,
    again: bool,
    examples: int,
    corrupted: int,
    encoder_name: str | None,
    index_dir: Path,
    data_dir: Path,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Writes the report: what the sparse index costs and gives, beside the dense one and other ways to use few bytes.

    What was measured before and has not changed is kept, so that a stopped report goes on where it ended.
    """
    from eval.evaluate import Settings
    from eval.evaluate import evaluate as measure
    from eval.parts import Parts
    from eval.report import Thumbnails, summary, to_dict, write_report
    from search.index import Index
    from training.device import pick_device

    settings = Settings(
        split=split, device=str(pick_device(device)), seed=seed, examples=examples, quick=quick, command=command()
    )
    try:
        out.mkdir(parents=True, exist_ok=True)  # a report that cannot be written is not begun
    except OSError as e:
        raise SparsightError(f"cannot write the report to {out}: {e.strerror}; choose another --out") from e
    with Index(index_dir, encoder=encoder_name, device=settings.device) as opened:
        store, encoder, pictures = opened.store, None, None
        try:
            encoder = opened.encoder
        except SparsightError as e:
            click.echo(f"left out, for want of the encoder: {e}", err=True)
        try:
            pictures = _test_pictures(data_dir) if store.meta.dataset == "CIFAR-10" else None
        except SparsightError as e:
            click.echo(f"left out, for want of the pictures: {e}", err=True)
        chosen = None if pictures is None or quick else _some(pictures, corrupted, seed)
        parts = Parts(out / PARTS, _tell, again=again)
        report = measure(store, settings, encoder=encoder, pictures=chosen, parts=parts)
        if not report.dataset.labelled:
            click.echo(
                "note: fewer than two pictures are labelled, so that the report tells memory, closeness and concepts "
                "alone; class folders give labels: `sparsight index PATH --labels folders`",
                err=True,
            )
        write_report(out, report, Thumbnails(store, pictures))
    click.echo(json.dumps(to_dict(report)) if as_json else summary(report))
    click.echo(f"wrote {shown_path(out / 'report.json')} and {shown_path(out / 'index.html')}", err=True)


def command() -> str:
    """The command line as it was given, without the folders of the program."""
    return shlex.join(["sparsight", *(["eval"] if "eval" not in sys.argv[1:] else []), *sys.argv[1:]])


def _tell(part: str, seconds: float | None) -> None:
    click.echo(f"{part:<40} " + ("as measured before" if seconds is None else f"{seconds:6.1f} s"), err=True)


def _test_pictures(root: Path) -> Pictures:
    """The pictures of CIFAR-10's test split."""
    from training.data.cifar10 import load_cifar10

    return load_cifar10(root, ("test",), download=False)


def _some(pictures: Pictures, n: int, seed: int) -> Pictures | None:
    """n of the pictures, drawn at random; None for fewer than every corruption needs one of."""
    import numpy as np

    from eval.evaluators import CASES

    if n < len(CASES):
        return None
    return pictures.take(np.sort(np.random.default_rng(seed).permutation(len(pictures))[:n]))
