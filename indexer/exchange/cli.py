"""`sparsight sql`, `export` and `import`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from indexer.milvus import Address, shown_place, store_option
from training.commands import Command, FilePath, index_option, json_option
from training.errors import CallError
from training.terminal import table

CELL = 60  # characters of a cell in the table; its last column is cut at the terminal's edge alone


@click.command(cls=Command)
@click.argument("query", required=False)
@click.option(
    "--limit",
    type=click.IntRange(1, sys.maxsize),
    default=None,
    help="Print so many rows.  [default: 100; with --json, all]",
)
@index_option
@json_option
def sql(query: str | None, limit: int | None, index_dir: Path, as_json: bool) -> None:
    """Answers one SQL QUERY (`-` or none: read from stdin) on the index; it can read nothing else and change nothing.

    `SHOW TABLES` lists the tables and `DESCRIBE images` their columns. With --json bytes are base64, and numbers that
    are not finite are text.
    """
    from itertools import islice

    from indexer.exchange.sql import Query

    if query in (None, "-"):
        query = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    most = limit or (None if as_json else 100)
    with Query(index_dir, query) as answer:
        rows = answer.json_lines() if as_json else answer.texts()
        shown = islice(rows, most)
        if as_json:
            for line in shown:
                click.echo(line)
        else:
            cells = [["NULL" if v is None else v for v in row] for row in shown]
            cells = [[*map(_cut, row[:-1]), row[-1]] for row in cells]
            click.echo(table(cells, answer.columns))
        if next(rows, None) is not None:
            click.echo(
                f"note: these are the first {most} rows; there are more (--limit N, or --json for all)", err=True
            )


def _cut(text: str) -> str:
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


@click.command(cls=Command)
@click.argument("out", metavar="DIR", type=FilePath())
@click.option(
    "--format", type=click.Choice(["parquet", "jsonl"]), default="parquet", show_default=True, help="Of the files."
)
@click.option("--tables", help="Comma-separated names of some tables, as codes,concepts.  [default: all]")
@index_option
def export(out: Path, format: str, tables: str | None, index_dir: Path) -> None:
    """Writes the index as plain files to the new folder DIR, one file a table; `sparsight import` reads them."""
    from indexer.exchange.export import export_index
    from indexer.exchange.tables import EVERY

    names = None if tables is None else list(dict.fromkeys(t.strip() for t in tables.split(",")))
    if unknown := [name for name in names or () if name not in EVERY]:
        raise CallError(f"--tables: no table {unknown[0]!r}; there are {', '.join(EVERY)}")
    rows = export_index(index_dir, out, format, names)
    for name, count in rows.items():
        click.echo(f"{out / name}.{format}: {count} rows")


@click.command("import", cls=Command)
@click.argument("source", metavar="DIR", type=FilePath())
@store_option
@index_option
def import_(source: Path, index_dir: Path | Address) -> None:
    """Builds an index from DIR, an export or an index of an earlier format, once everything in it is checked.

    The folder of --index, or the place of --store, must hold none. Without a table of codes embeddings are coded anew.
    """
    from indexer.exchange.importing import import_index

    meta = import_index(index_dir, source)
    click.echo(f"{shown_place(index_dir)}: {meta.n} pictures, {meta.m} concepts, {meta.nnz} codes")
