"""`sparsight search`, `classify` and `concepts`; and the group of these and of `search.why`."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from search.query import GROUPINGS, QUERY_MODES, Query, Term
from search.source import Source, source_options
from search.spelling import from_stdin, picture, unwanted, weighed
from search.why import edit, explain
from training.commands import Command, FilePath, Group, json_option, k_option
from training.errors import CallError, SparsightError
from training.files import shown_path
from training.terminal import counted, printable, table

if TYPE_CHECKING:
    import numpy as np

    from search.answers import Answer, Hit, Mode
    from search.index import Index


@dataclass(frozen=True)
class Output:
    """How hits are shown: as JSON, on a contact sheet, as pictures in the terminal (None: where it can)."""

    as_json: bool
    sheet: Path | None
    pictures: bool | None


mode_option = click.option(
    "--mode", type=click.Choice(["sparse", "dense"]), default="sparse", show_default=True, help="Which index answers."
)


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


def query_options(command: Callable) -> Callable:
    """What a query is made of, which the command takes as `asked` (`Asked`)."""

    @click.argument("text", required=False)
    @click.option("--not", "unlike", multiple=True, help="Count against: a text, or a picture's id or file.")
    @click.option("--like", "--picture", "like", multiple=True, help="Search by a picture: a file, an id or a path.")
    @click.option("--concept", "concepts", multiple=True, help="Search by a concept's name.")
    @click.option("--require", multiple=True, help="Only pictures that hold this concept.")
    @click.option("--forbid", multiple=True, help="Only pictures that do not hold this concept.")
    @click.option("--label", "labels", multiple=True, help="Only pictures with one of these labels.")
    @click.option("--split", "splits", multiple=True, help="Only pictures of one of these splits.")
    @click.option("--path", "path_pattern", help="Only pictures whose path is like this pattern; * is anything.")
    @click.option("--where", help="Only pictures for which this SQL condition on `images` holds.")
    @click.option("--mode", type=click.Choice(QUERY_MODES), help="Which index answers.  [default: hybrid]")
    @click.option("--fuse", is_flag=True, help="Order by the ranks in both indexes.")
    @click.option("--diverse", type=float, default=0.0, help="From 0 to below 1: the more unlike those before.")
    @click.option("--group-by", type=click.Choice(GROUPINGS), help="One hit a label, or of near-duplicates.")
    @click.option("--all", "everything", is_flag=True, help="Also what an unrelated text would find as well.")
    @k_option
    @functools.wraps(command)
    def taken(
        *args: object,
        text: str | None,
        unlike: tuple[str, ...],
        like: tuple[str, ...],
        concepts: tuple[str, ...],
        path_pattern: str | None,
        everything: bool,
        k: int,
        **rest: Any,
    ) -> object:
        rules = {name: rest.pop(name) for name in RULES}
        terms = Asked(text, unlike, like, concepts, {**rules, "path": path_pattern, "all": everything, "k": k})
        return command(*args, asked=terms, **rest)

    return taken


RULES = ("require", "forbid", "labels", "splits", "where", "mode", "fuse", "diverse", "group_by")


@dataclass(frozen=True)
class Asked:
    """A query as the command line spells it; rules: the other fields of a `Query`."""

    text: str | None
    unlike: tuple[str, ...]
    like: tuple[str, ...]
    concepts: tuple[str, ...]
    rules: dict[str, Any]

    def check(self) -> None:
        """Raises `CallError` for what makes no sense, before anything is read."""
        Query(tuple(self._terms(lambda text: weighed("text", text, -1))), **self.rules)

    def query(self, index: Index) -> tuple[Query, dict[Term, np.ndarray]]:
        """The query, and the vectors of its texts and of what was read from the standard input."""
        terms, vectors = from_stdin(index, self._terms(functools.partial(unwanted, index)))
        vectors |= {term: index.embed_text(term.value) for term in terms if term.kind == "text"}
        return Query(tuple(terms), **self.rules), vectors

    def _terms(self, unlike: Callable[[str], Term]) -> list[Term]:
        terms = [weighed("text", self.text)] if self.text is not None else []
        terms += [picture(named) for named in self.like]
        terms += [weighed("concept", concept) for concept in self.concepts]
        return terms + [unlike(text) for text in self.unlike]


@click.command(cls=Command)
@query_options
@click.option("--out", type=FilePath(dir_okay=False), help="Write the hits to a .parquet or .jsonl.")
@source_options
@output_options
def search(asked: Asked, out: Path | None, source: Source, output: Output) -> None:
    """Finds pictures by TEXT, by pictures (--like) and by concepts (--concept), and by what they are not (--not).

    Each may have a weight behind it, as --like 17=2 or --concept red=0.5; `-` is read from the standard input. --like,
    --not, --concept, --require, --forbid, --label and --split may be repeated.
    """
    asked.check()
    if out and out.suffix not in (".parquet", ".jsonl"):
        raise CallError(f"--out {shown_path(out)}: its name must end in .parquet or .jsonl")
    with source.open() as index:
        query, vectors = asked.query(index)
        answer = index.answer(query, vectors)
        for term in query.terms:
            if term.kind == "text" and term.weight > 0 and (far := index.far_from_all(vectors[term])):
                nearest = f"(nearest: {far[0]}, cosine {far[1]:.2f})"
                click.echo(f"note: {term.value!r} is near no concept here {nearest}", err=True)
        _print_answer(index, answer, output)
    if out:
        from indexer.exchange.hits import write_hits

        write_hits(out, [hit.to_dict() for hit in answer.hits])
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
            else:
                for note in result.notes:
                    click.echo(printable(f"note: {picture} is {note}"), err=True)
            scores = ", ".join(f"{name} {score:.3f}" for name, score in result.scores[:3])
            familiarity = "" if result.familiarity is None else f"{result.familiarity:.3f}"
            rows.append([picture, result.label, familiarity, scores, concepts_line(result.concepts)])
    if not as_json:
        click.echo(table(rows, ["picture", "class", "familiarity", "scores", "concepts (what each adds to the score)"]))


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
            hits = index.search(concepts=name, k=k).hits
            _print_hits(index, hits, output)
            if 0 < len(hits) < k:
                click.echo(
                    f"note: {counted(len(hits), 'hit')}, {k} were asked for: no other picture holds it", err=True
                )


@click.group(cls=Group)
def queries() -> None:
    """Asks both indexes: searches, classes, concepts, explanations and changes."""


for command in (search, classify, concepts, explain, edit):
    queries.add_command(command)


def _class_names(text: str) -> list[str]:
    names = [" ".join(name.split()) for name in text.split(",")]
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise CallError(f"--classes {text!r}: give at least two different names, separated by commas")
    return names


def _print_answer(index: Index, answer: Answer, output: Output) -> None:
    _print_hits(index, answer.hits, output, answer)
    for note in answer.notes:
        click.echo(f"note: {note}", err=True)
    if answer.left_out:
        what = "nothing here matches" if not answer.hits else f"{answer.left_out} more do not match"
        click.echo(f"{what}: unrelated texts find as good ones (--all shows them)", err=True)
    if not output.as_json and not all(hit.matches for hit in answer.hits):
        click.echo("note: those marked ? do not match: unrelated texts find as good ones", err=True)
    if not answer.left_out and 0 < len(answer.hits) < answer.query.k:
        click.echo(
            f"note: {counted(len(answer.hits), 'hit')}, {answer.query.k} were asked for: there are no more", err=True
        )


def _print_hits(index: Index, hits: list[Hit], output: Output, answer: Answer | None = None) -> None:
    from search.show import hits_table, terminal_pictures, terminal_shows_pictures

    if output.as_json:
        for hit in hits:
            click.echo(json.dumps(hit.to_dict()))
    elif hits:
        click.echo(hits_table(hits))
    elif answer is None or not answer.left_out:
        what = "no picture holds that concept" if answer is None or not answer.query.filters() else "no picture is left"
        click.echo(what, err=True)
    as_pictures = output.pictures
    if as_pictures is None:
        as_pictures = terminal_shows_pictures(sys.stdout) and not output.as_json
    if not hits or not (output.sheet or as_pictures):
        return
    thumbnails = index.engine.thumbnails([hit.id for hit in hits])
    shown = [hit for hit in hits if hit.id in thumbnails]
    if output.sheet:
        if not shown:
            raise SparsightError(f"{index.engine.name} holds no thumbnails: build it from the pictures themselves")
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
