"""`sparsight audit`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eval.audit import PARTS
from training.commands import Command, FilePath, device_option, index_option, json_option, seed_option
from training.errors import SparsightError
from training.files import shown_path
from training.terminal import counted, printable

if TYPE_CHECKING:
    import numpy as np

    from eval.audit.run import Audit
    from eval.audit.subject import Shown


@click.command("audit", cls=Command)
@click.option("--out", type=FilePath(), default="audit", show_default=True, help="Folder of the page and the findings.")
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="One part; may be repeated.  [default: all]")
@click.option(
    "--most", type=click.IntRange(1, 1000), default=24, show_default=True, help="Findings of a kind on the page."
)
@click.option("--encoder", "encoder_name", help="Encoder: folder or hub name.  [default: the index's own]")
@index_option
@device_option
@seed_option
@json_option
def audit(
    out: Path,
    only: tuple[str, ...],
    most: int,
    encoder_name: str | None,
    index_dir: Path,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Finds what may be wrong with the pictures of an index, and shows why.

    Label errors, near-duplicates and leaks between splits, outliers, and crutches: what a class is told apart by
    although it should not matter. Writes one page, and the findings as JSON lines.
    """
    from eval.audit.files import write_audit
    from eval.audit.run import audit as look
    from search.index import Index

    try:
        out.mkdir(parents=True, exist_ok=True)  # findings that cannot be written are not looked for
    except OSError as e:
        raise SparsightError(f"cannot write the audit to {out}: {e.strerror}; choose another --out") from e
    with Index(index_dir, encoder=encoder_name, device=device) as opened:

        def encode(pictures: Sequence[np.ndarray]) -> np.ndarray:
            return opened.encoder.encode_images(list(pictures))

        found = look(
            opened.store, only or PARTS, encode=encode, seed=seed, told=lambda part: click.echo(f"{part} ...", err=True)
        )
        write_audit(out, found, opened.store, most)
    for left in found.left_out:
        click.echo(f"{left.part}: {printable(left.reason)}", err=True)
    if as_json:
        for finding in found.findings():
            click.echo(json.dumps(finding))
    else:
        click.echo(summary(found))
    click.echo(f"wrote {shown_path(out / 'index.html')} and {shown_path(out / 'findings.jsonl')}", err=True)


def summary(found: Audit) -> str:
    """What was found, a line for each part."""
    lines = []
    if "labels" in found.seconds:
        first = "; first " + _named(found.labels[0].picture) if found.labels else ""
        lines.append(f"labels      {counted(found.disputed, 'label')} to which the evidence gives 5 % or less{first}")
    if "duplicates" in found.seconds:
        leaks, pictures = sum(g.leak for g in found.duplicates), sum(len(g.pictures) for g in found.duplicates)
        lines.append(
            f"duplicates  {counted(len(found.duplicates), 'group')} of {counted(pictures, 'picture')}, "
            f"{leaks} across splits"
        )
    if "outliers" in found.seconds:
        first = "; first " + _named(found.outliers[0].picture) if found.outliers else ""
        lines.append(f"outliers    {counted(len(found.outliers), 'picture')} that lie furthest out{first}")
    if "crutches" in found.seconds:
        many = f"{len(found.crutches)} crutch" + ("" if len(found.crutches) == 1 else "es")
        lines.append(f"crutches    {many}{_first_crutch(found)}")
    return "\n".join(lines)


def _named(picture: Shown) -> str:
    return printable(f"{picture.path} ({picture.label})" if picture.label else picture.path)


def _first_crutch(found: Audit) -> str:
    if not found.crutches:
        return ""
    first = found.crutches[0]
    thing = "a mark" if first.name is None else f"“{first.name}”"
    return printable(f"; first {thing} in {first.share:.0%} of {first.label}, {first.others:.0%} of others")
