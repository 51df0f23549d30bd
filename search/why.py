"""`sparsight explain` and `edit`: why a picture is found, and what would change if it held other concepts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from search.source import Source, source_options
from search.spelling import given_weight
from training.commands import Command, json_option, k_option
from training.errors import CallError
from training.terminal import bar_table, printable, table

if TYPE_CHECKING:
    from search.answers import Edit, EditState, Explanation

NEIGHBOURS = 4  # that are named in a line


@click.command(cls=Command)
@click.argument("picture", metavar="PICTURE")
@click.option(
    "--for",
    "text",
    default=None,
    help="Explain the hit for this text.  [default: the picture's class; in an index without classes, itself]",
)
@k_option
@source_options
@json_option
def explain(picture: str, text: str | None, k: int, source: Source, as_json: bool) -> None:
    """Shows a picture's concepts, and what each adds to its score for a text; and why it is none of the -k best."""
    with source.open() as index:
        explanation = index.explain(picture, text, k)
    click.echo(json.dumps(explanation.to_dict()) if as_json else _explanation_text(explanation))


@click.command(cls=Command)
@click.argument("picture", metavar="[PICTURE]", required=False)
@click.option("--without", multiple=True, metavar="CONCEPT", help="Take a concept out; may be repeated.")
@click.option("--with", "with_", multiple=True, metavar="CONCEPT=WEIGHT", help="Give a concept a weight; repeatable.")
@click.option("--for", "text", help="Tell the rank for this text as well.")
@click.option("--class", "label", help="In place of a PICTURE: the concepts that a class hangs on.")
@k_option
@source_options
@json_option
def edit(
    picture: str | None,
    without: tuple[str, ...],
    with_: tuple[str, ...],
    text: str | None,
    label: str | None,
    k: int,
    source: Source,
    as_json: bool,
) -> None:
    """Shows what PICTURE would be taken for without some of its concepts, or with others.

    Its classes, its neighbours and its rank for a text are computed anew from the changed code; nothing is written.
    With --class, the -k concepts without which most of its pictures would be given another class.
    """
    if (picture is None) == (label is None):
        raise CallError("give either a PICTURE or --class")
    if picture is not None and not without and not with_:
        raise CallError("nothing is changed: give --without CONCEPT or --with CONCEPT=WEIGHT")
    if label is not None and (without or with_ or text is not None):
        raise CallError("--class stands alone: --without, --with and --for are for a PICTURE")
    weights = dict(map(given_weight, with_))
    if len(weights) < len(with_):
        raise CallError("--with names a concept twice: give it one weight")
    with source.open() as index:
        if picture is None:
            _print_flips(index.flips(str(label), k), as_json)
            return
        change = index.edit(picture, without=without, with_=weights, text=text)
    click.echo(json.dumps(change.to_dict()) if as_json else _change_text(change, text))


def _print_flips(flips: list[tuple[str, int]], as_json: bool) -> None:
    if as_json:
        for name, pictures in flips:
            click.echo(json.dumps({"concept": name, "pictures": pictures}))
    elif flips:
        most = flips[0][1]
        click.echo(
            bar_table([[name, str(n)] for name, n in flips], [n / most for _, n in flips], ["concept", "pictures"], 1)
        )
    else:
        click.echo("no concept alone decides the class of any of its pictures", err=True)


def _explanation_text(e: Explanation) -> str:
    label = f", labelled {e.label}" if e.label else ""
    known = "" if e.familiarity is None else ": it is ".join([f"familiarity {e.familiarity:.3f}", *e.notes])
    holders = "the concepts and the residual hold" if e.rest else "the concepts hold"
    held = "" if e.cosine is None else f"{holders} the picture's embedding to a cosine of {e.cosine:.3f}"
    lines = [
        printable(f"{e.target}{label}, for {e.text!r}:"),
        ("" if e.dense_score is None else f"dense score {e.dense_score:.3f}; ")
        + f"sparse {e.sparse_score:.3f}, the sum of the contributions",
        *filter(None, ["; ".join(filter(None, [held, known]))]),
        *map(printable, e.in_words()),
    ]
    rows = [[c.name, f"{c.weight:.3f}", f"{c.contribution:+.3f}"] for c in e.concepts]
    header = ["concept", "weight", "contribution"]
    if e.ranks_without:
        rows = [[*row, f"{rank:,}"] for row, (_, rank) in zip(rows, e.ranks_without, strict=True)]
        header.append("rank without it")
    adds = [c.contribution for c in e.concepts]
    if e.rest:
        rows.append(["the rest (residual)", "", f"{e.rest:+.3f}", ""][: len(header)])
        adds.append(e.rest)
    most = max(map(abs, adds), default=0) or 1.0
    shares = [part / most for part in adds]
    lines.append(bar_table(rows, shares, header, 2) if rows else "no concept of the dictionary fits")
    return "\n".join(lines)


def _change_text(change: Edit, text: str | None) -> str:
    before, after = dict(change.before.scores), change.after.scores
    lines = []
    if text is not None:
        lines.append(printable(f"sparse rank for {text!r}: {change.before.rank:,} before, {change.after.rank:,} after"))
    if after:
        rows = [[name, f"{before[name]:.3f}", f"{score:.3f}"] for name, score in after]
        lines.append(table(rows, ["class", "before", "after"]))
    lines += [
        f"neighbours {name}: {_named(state)}" for name, state in (("before", change.before), ("after", change.after))
    ]
    return "\n".join(lines)


def _named(state: EditState) -> str:
    near = [f"{hit.id} {hit.label or hit.path}" for hit in state.neighbours[:NEIGHBOURS]]
    return printable(", ".join(near)) if near else "none, since no concept is left"
