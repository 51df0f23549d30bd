"""`sparsight search`, `classify`, `concepts` and `explain`."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from training.commands import Command, FilePath, Group, device_option, index_option, json_option, k_option
from training.errors import CallError, SparsightError
from training.files import shown_path
from training.terminal import printable, table

if TYPE_CHECKING:
    from search.answers import Explanation, Hit, Mode
    from search.index import Index


@dataclass(frozen=True)
class Source:
    """What to ask: the index in a folder, its encoder where that lies elsewhere now, and where torch computes."""

    folder: Path
    encoder: str | None
    device: str

    def open(self) -> Index:
        from search.index import Index

        if self.device != "auto":
            from training.device import pick_device

            pick_device(self.device)  # refuses a device that is not there before anything is read
        return Index(self.folder, encoder=self.encoder, device=self.device)


@dataclass(frozen=True)
class Output:
    """How hits are shown: as JSON, on a contact sheet, as pictures in the terminal (None: where it can)."""

    as_json: bool
    sheet: Path | None
    pictures: bool | None


mode_option = click.option(
    "--mode", type=click.Choice(["sparse", "dense"]), default="sparse", show_default=True, help="Which index answers."
)


def source_options(command: Callable) -> Callable:
    """--encoder, --index and --device, which the command takes as one `source`."""

    @click.option("--encoder", help="Encoder: folder or hub name.  [default: the index's own]")
    @index_option
    @device_option
    @functools.wraps(command)
    def taken(*args: object, index_dir: Path, encoder: str | None, device: str, **rest: object) -> object:
        return command(*args, source=Source(index_dir, encoder, device), **rest)

    return taken


def output_options(command: Callable) -> Callable:
    """--sheet, --pictures and --json, which the command takes as one `output`."""

    @click.option("--sheet", type=FilePath(dir_okay=False), help="Write the hits as a contact sheet PNG.")
    @click.option(
        "--pictures/--no-pictures", default=None, help="Show pictures in the terminal.  [default: where it can]"
    )
    @json_option
    @functools.wraps(command)
    def taken(*args: object, as_json: bool, sheet: Path | None, pictures: bool | None, **rest: object) -> object:
        return command(*args, output=Output(as_json, sheet, pictures), **rest)

    return taken


@click.command(cls=Command)
@click.argument("text", required=False)
@click.option("--picture", help="Search by a picture: a file, or an id or path in the index.")
@click.option("--concept", "concepts", multiple=True, help="Search by a concept's name; may be repeated.")
@mode_option
@k_option
@click.option("--out", type=FilePath(dir_okay=False), help="Write the hits to a .parquet or .jsonl.")
@source_options
@output_options
def search(
    text: str | None,
    picture: str | None,
    concepts: tuple[str, ...],
    mode: Mode,
    k: int,
    out: Path | None,
    source: Source,
    output: Output,
) -> None:
    """Finds pictures by TEXT, by a picture (--picture), or by concepts (--concept)."""
    if (text is not None) + (picture is not None) + bool(concepts) != 1:
        raise CallError("search by one thing: a TEXT, --picture FILE, or --concept NAME")
    if k < 1:
        raise CallError(f"k is {k}: it must be at least 1")
    if out and out.suffix not in (".parquet", ".jsonl"):
        raise CallError(f"--out {shown_path(out)}: its name must end in .parquet or .jsonl")
    with source.open() as index:
        if text is not None:
            t = index.embed_text(text)
            if far := index.far_from_all(t):
                click.echo(f"note: {text!r} is near no concept here (nearest: {far[0]}, cosine {far[1]:.2f})", err=True)
            hits = index.search_vector(t, k, mode)
        else:
            hits = index.search(picture=picture, concepts=concepts or None, k=k, mode=mode)
        _print_hits(index, hits, output)
    if out:
        from indexer.exchange.hits import write_hits

        write_hits(out, [hit.to_dict() for hit in hits])
        click.echo(f"wrote {shown_path(out)}", err=True)


@click.command(cls=Command)
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
@click.option("--classes", help="Comma-separated class names.  [default: the index's]")
@mode_option
@source_options
@json_option
def classify(pictures: tuple[str, ...], classes: str | None, mode: Mode, source: Source, as_json: bool) -> None:
    """Zero-shot classification of pictures: files, or ids or paths in the index."""
    from search.show import concepts_line

    names = None if classes is None else _class_names(classes)
    rows = []
    with source.open() as index:
        for picture in pictures:
            result = index.classify(picture, names, mode=mode)
            if as_json:
                click.echo(json.dumps({"target": picture, **result.to_dict()}))
            scores = ", ".join(f"{name} {score:.3f}" for name, score in result.scores[:3])
            rows.append([picture, result.label, scores, concepts_line(result.concepts)])
    if not as_json:
        click.echo(table(rows, ["picture", "class", "scores", "concepts (what each adds to the score)"]))


@click.command(cls=Command)
@click.argument("name", required=False)
@click.option("--near", is_flag=True, help="List the concepts nearest to NAME, which may be any word.")
@k_option
@source_options
@output_options
def concepts(name: str | None, near: bool, k: int, source: Source, output: Output) -> None:
    """Lists the concepts; with NAME, shows the pictures that it helps to make up, strongest first."""
    if near and name is None:
        raise CallError("--near needs a word")
    with source.open() as index:
        if name is None:
            ordered = sorted(index.concepts(), key=lambda c: (-c.images, c.name))
            records = [
                {"name": c.name, "images": c.images, "class": c.parent, "aliases": list(c.aliases)} for c in ordered
            ]
            _print_records(records, output.as_json)
        elif near:
            found = index.near_concepts(name, k)
            _print_records([{"name": n, "cosine": round(cosine, 4)} for n, cosine in found], output.as_json)
        else:
            _print_hits(index, index.search(concepts=name, k=k), output)


@click.command(cls=Command)
@click.argument("picture", metavar="PICTURE")
@click.option(
    "--for",
    "text",
    default=None,
    help="Explain the hit for this text.  [default: the picture's class; in an index without classes, itself]",
)
@source_options
@json_option
def explain(picture: str, text: str | None, source: Source, as_json: bool) -> None:
    """Shows a picture's concepts, and what each adds to its score for a text."""
    with source.open() as index:
        explanation = index.explain(picture, text)
    click.echo(json.dumps(explanation.to_dict()) if as_json else _explanation_text(explanation))


@click.group(cls=Group)
def queries() -> None:
    """Asks both indexes: searches, classes, concepts and explanations."""


for command in (search, classify, concepts, explain):
    queries.add_command(command)


def _class_names(text: str) -> list[str]:
    names = [" ".join(name.split()) for name in text.split(",")]
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise CallError(f"--classes {text!r}: give at least two different names, separated by commas")
    return names


def _print_hits(index: Index, hits: list[Hit], output: Output) -> None:
    from search.show import hits_table, terminal_pictures, terminal_shows_pictures

    if output.as_json:
        for hit in hits:
            click.echo(json.dumps(hit.to_dict()))
    elif hits:
        click.echo(hits_table(hits))
    else:
        click.echo("no picture holds that concept", err=True)
    as_pictures = output.pictures
    if as_pictures is None:
        as_pictures = terminal_shows_pictures(sys.stdout) and not output.as_json
    if not hits or not (output.sheet or as_pictures):
        return
    thumbnails = index.store.thumbnails([hit.id for hit in hits])
    shown = [hit for hit in hits if hit.id in thumbnails]
    if output.sheet:
        if not shown:
            raise SparsightError(f"{index.store.folder} holds no thumbnails: build it from the pictures themselves")
        _write_sheet(output.sheet, shown, thumbnails)
    if as_pictures and shown:
        click.echo(terminal_pictures([thumbnails[hit.id] for hit in shown]))


def _write_sheet(path: Path, hits: list[Hit], thumbnails: dict[int, bytes]) -> None:
    from search.show import write_sheet

    captions = [f"{hit.rank}. {hit.label or hit.path} {hit.score:.2f}" for hit in hits]
    write_sheet(path, [thumbnails[hit.id] for hit in hits], captions)
    click.echo(f"wrote {shown_path(path)}", err=True)


def _print_records(records: list[dict], as_json: bool) -> None:
    if as_json:
        for record in records:
            click.echo(json.dumps(record))
    elif records:
        rows = [[", ".join(v) if isinstance(v, list) else str(v) for v in record.values()] for record in records]
        click.echo(table(rows, list(records[0])))


def _explanation_text(e: Explanation) -> str:
    label = f", labelled {e.label}" if e.label else ""
    lines = [
        printable(f"{e.target}{label}, for {e.text!r}:"),
        f"dense score {e.dense_score:.3f}; sparse {e.sparse_score:.3f}, the sum of the contributions",
        f"the concepts hold the picture's embedding to a cosine of {e.cosine:.3f}",
    ]
    rows = [[c.name, f"{c.weight:.3f}", f"{c.contribution:+.3f}"] for c in e.concepts]
    lines.append(table(rows, ["concept", "weight", "contribution"]) if rows else "no concept of the dictionary fits")
    return "\n".join(lines)
