"""`sparsight search`, `classify`, `concepts` and `explain`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from training.commands import Command, Group, device_option, index_option, json_option, k_option
from training.errors import CallError, SparsightError
from training.terminal import printable

if TYPE_CHECKING:
    from search.engine import Hit, Mode, Searcher

mode_option = click.option(
    "--mode", type=click.Choice(["sparse", "dense"]), default="sparse", show_default=True, help="Which index answers."
)
encoder_option = click.option(
    "--encoder", default=None, help="Encoder: folder or hub name.  [default: the index's own]"
)


@click.command(cls=Command)
@click.argument("text", required=False)
@click.option("--picture", help="Search by a picture: a file, or an id or path in the index.")
@click.option("--concept", "names", multiple=True, help="Search by a concept's name; may be repeated.")
@mode_option
@k_option
@click.option("--sheet", type=click.Path(path_type=Path, dir_okay=False), help="Write the hits as a contact sheet PNG.")
@click.option("--pictures/--no-pictures", default=None, help="Show pictures in the terminal.  [default: where it can]")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the hits to a .parquet or .jsonl.")
@encoder_option
@index_option
@device_option
@json_option
def search(
    text: str | None,
    picture: str | None,
    names: tuple[str, ...],
    mode: Mode,
    k: int,
    sheet: Path | None,
    pictures: bool | None,
    out: Path | None,
    encoder: str | None,
    index_dir: Path,
    device: str,
    as_json: bool,
) -> None:
    """Finds pictures by TEXT, by a picture (--picture), or by concepts (--concept)."""
    if (text is not None) + (picture is not None) + bool(names) != 1:
        raise CallError("search by one thing: a TEXT, --picture FILE, or --concept NAME")
    if k < 1:
        raise CallError(f"k is {k}: it must be at least 1")
    if out and out.suffix not in (".parquet", ".jsonl"):
        raise CallError(f"--out {out}: its name must end in .parquet or .jsonl")
    with _open(index_dir, encoder, device) as searcher:
        if text is not None:
            t = searcher.embed_text(text)
            if far := searcher.far_from_all(t):
                click.echo(f"note: {text!r} is near no concept here (nearest: {far[0]}, cosine {far[1]:.2f})", err=True)
            hits = searcher.search_vector(t, k, mode)
        elif picture is not None:
            hits = searcher.search_picture(picture, k, mode)
        else:
            hits = searcher.search_concepts(list(names), k, mode)
        _print_hits(searcher, hits, as_json, sheet, pictures)
        if out:
            from indexer.exchange.hits import write_hits

            write_hits(out, [hit.to_dict() for hit in hits])
            click.echo(f"wrote {out}", err=True)


@click.command(cls=Command)
@click.argument("targets", nargs=-1, required=True, metavar="PICTURE...")
@click.option("--classes", help="Comma-separated class names.  [default: the index's]")
@mode_option
@encoder_option
@index_option
@device_option
@json_option
def classify(
    targets: tuple[str, ...],
    classes: str | None,
    mode: Mode,
    encoder: str | None,
    index_dir: Path,
    device: str,
    as_json: bool,
) -> None:
    """Zero-shot classification of pictures: files, or ids or paths in the index."""
    names = None
    if classes is not None:
        names = [" ".join(c.split()) for c in classes.split(",")]
        if len(names) < 2 or not all(names) or len(set(names)) < len(names):
            raise CallError(f"--classes {classes!r}: give at least two different names, separated by commas")
    from search.show import concepts_line, table

    with _open(index_dir, encoder, device) as searcher:
        rows = []
        for target in targets:
            result = searcher.classify(target, names, mode)
            if as_json:
                click.echo(json.dumps({"target": target, **_plain(result)}))
            scores = ", ".join(f"{name} {score:.3f}" for name, score in result.scores[:3])
            rows.append([target, result.label, scores, concepts_line(result.concepts)])
        if not as_json:
            click.echo(table(rows, ["picture", "class", "scores", "concepts (what each adds to the score)"]))


@click.command(cls=Command)
@click.argument("name", required=False)
@click.option("--near", is_flag=True, help="List the concepts nearest to NAME, which may be any word.")
@k_option
@click.option("--sheet", type=click.Path(path_type=Path, dir_okay=False), help="Write the pictures as a contact sheet.")
@click.option("--pictures/--no-pictures", default=None, help="Show pictures in the terminal.  [default: where it can]")
@encoder_option
@index_option
@device_option
@json_option
def concepts(
    name: str | None,
    near: bool,
    k: int,
    sheet: Path | None,
    pictures: bool | None,
    encoder: str | None,
    index_dir: Path,
    device: str,
    as_json: bool,
) -> None:
    """Lists the concepts; with NAME, shows the pictures that it helps to make up, strongest first."""
    if near and name is None:
        raise CallError("--near needs a word")
    with _open(index_dir, encoder, device) as searcher:
        if name is not None and not near:
            _print_hits(searcher, searcher.search_concepts([name], k), as_json, sheet, pictures)
            return
        if near:
            found = searcher.near_concepts(str(name), k)
            records = [{"name": n, "cosine": round(c, 4)} for n, c in found]
        else:
            ordered = sorted(searcher.concepts, key=lambda c: (-c.images, c.name))
            records = [
                {"name": c.name, "images": c.images, "class": c.parent, "aliases": list(c.aliases)} for c in ordered
            ]
        _print_records(records, as_json)


@click.command(cls=Command)
@click.argument("target", metavar="PICTURE")
@click.option(
    "--for",
    "text",
    default=None,
    help="Explain the hit for this text.  [default: the picture's class; in an index without classes, itself]",
)
@encoder_option
@index_option
@device_option
@json_option
def explain(target: str, text: str | None, encoder: str | None, index_dir: Path, device: str, as_json: bool) -> None:
    """Shows a picture's concepts, and what each adds to its score for a text."""
    from search.show import table

    with _open(index_dir, encoder, device) as searcher:
        e = searcher.explain(target, text)
        if as_json:
            click.echo(json.dumps(_plain(e)))
            return
        label = f", labelled {e.label}" if e.label else ""
        click.echo(printable(f"{e.target}{label}, for {e.text!r}:"))
        click.echo(f"dense score {e.dense_score:.3f}; sparse {e.sparse_score:.3f}, the sum of the contributions")
        click.echo(f"the concepts hold the picture's embedding to a cosine of {e.cosine:.3f}")
        rows = [[c.name, f"{c.weight:.3f}", f"{c.contribution:+.3f}"] for c in e.concepts]
        click.echo(table(rows, ["concept", "weight", "contribution"]) if rows else "no concept of the dictionary fits")


@click.group(cls=Group)
def queries() -> None:
    """Queries against both indexes."""


for command in (search, classify, concepts, explain):
    queries.add_command(command)


def _open(index_dir: Path, encoder: str | None, device: str) -> Searcher:
    from search.engine import Searcher

    if device != "auto":
        from training.device import pick_device

        pick_device(device)  # refuse a device that is not there before anything is read
    return Searcher(index_dir, encoder, device)


def _print_hits(searcher: Searcher, hits: list[Hit], as_json: bool, sheet: Path | None, pictures: bool | None) -> None:
    from search.show import hits_table, terminal_pictures, terminal_shows_pictures, write_sheet

    if as_json:
        for hit in hits:
            click.echo(json.dumps(hit.to_dict()))
    elif hits:
        click.echo(hits_table(hits))
    else:
        click.echo("no picture holds that concept", err=True)
    if pictures is None:
        pictures = terminal_shows_pictures(sys.stdout) and not as_json
    if not hits or not (sheet or pictures):
        return
    found = searcher.store.thumbnails([h.id for h in hits])
    shown = [h for h in hits if h.id in found]
    if sheet:
        if not shown:
            raise SparsightError(f"{searcher.store.folder} holds no thumbnails: build it from the pictures themselves")
        write_sheet(
            sheet, [found[h.id] for h in shown], [f"{h.rank}. {h.label or h.path} {h.score:.2f}" for h in shown]
        )
        click.echo(f"wrote {sheet}", err=True)
    if pictures and shown:
        click.echo(terminal_pictures([found[h.id] for h in shown]))


def _print_records(records: list[dict], as_json: bool) -> None:
    from search.show import table

    if as_json:
        for record in records:
            click.echo(json.dumps(record))
    elif records:
        rows = [[", ".join(v) if isinstance(v, list) else str(v) for v in r.values()] for r in records]
        click.echo(table(rows, list(records[0])))


def _plain(value: object) -> dict:
    from dataclasses import asdict

    return asdict(value)  # type: ignore[call-overload]
