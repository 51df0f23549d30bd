"""`sparsight split`, and `sparsight index --like`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from training.commands import Command, FilePath, index_option
from training.errors import CallError
from training.files import shown_path
from training.terminal import counted

if TYPE_CHECKING:
    from indexer.update import Added

TAKEN = {  # options of `index` that --like settles: parameter → how it is spelled
    "dictionary": "--dictionary",
    "templates": "--template",
    "l1": "--l1",
    "concepts": "--concepts",
    "merge": "--merge",
    "absolute": "--absolute",
    "refit": "--refit",
    "residual": "--residual",
    "no_vectors": "--no-vectors",
    "bundled": "--bundled",
}

like_option = click.option(
    "--like",
    type=FilePath(file_okay=False),
    metavar="INDEX",
    help="Take encoder, dictionary, penalty and all else from that index, or the first of its shards, so that both "
    "can be searched as one.",
)


@click.command(cls=Command)
@click.option("--into", type=FilePath(file_okay=False), required=True, help="New folder for the shards.")
@click.option("--pictures", type=click.IntRange(1), required=True, help="How many pictures a shard is to have.")
@index_option
def split(into: Path, pictures: int, index_dir: Path) -> None:
    """Cuts an index into shards, which are searched as one: `--index INTO`.

    Every picture keeps its id. The index stays as it is; nothing is encoded anew.
    """
    from indexer.shards import split_index

    made = split_index(index_dir, into, pictures)
    click.echo(f"{shown_path(into)}: {counted(len(made), 'shard')}, {made[0].name} to {made[-1].name}")


def index_as(ctx: click.Context, like: Path) -> Added:
    """What `index --like` does. Raises `CallError` for options that contradict it."""
    asked = ctx.params
    if asked["path"] is None:
        raise CallError("--like needs a PATH, a folder of pictures")
    if asked["engine"] == "ray":
        raise CallError("--like builds in this process: leave out --engine ray")
    given = (name for name in TAKEN if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE)
    if name := next(given, None):
        raise CallError(f"{TAKEN[name]} is that of the index which --like names: leave one of them out")
    from indexer.pictures import check_patterns
    from indexer.shards import index_like
    from indexer.store import DATABASE, Store
    from indexer.store.database import shards_in
    from training.device import pick_device
    from training.encoders import open_encoder

    patterns, chosen = check_patterns(asked["exclude"]), pick_device(asked["device"])
    if not (like / DATABASE).is_file():
        like = next(iter(shards_in(like)), like)
    with Store(like) as store:
        source = asked["encoder"] or store.meta.encoder_source
    encoder = open_encoder(source, chosen)
    click.echo(f"encoder {encoder.name} on {chosen}, index {shown_path(asked['index_dir'])}", err=True)
    return index_like(
        asked["index_dir"],
        asked["path"],
        like,
        encoder,
        labels=asked["labels"] is not None,
        exclude=patterns,
        **{
            name: asked[name]
            for name in ("dense", "recall")
            if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        },
    )
