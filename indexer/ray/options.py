"""The options of a build on Ray; light, so that `--help` can show them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from training.commands import FilePath
from training.errors import CallError


@dataclass(frozen=True)
class RayOptions:
    """address: of a cluster; a local one is started without. shards: the folder in which they are kept; without it they
    are in the index's folder, and go when it is whole. column: of the pictures in tables, where there is a choice.
    gpus: whether the cluster's are used, if it has any."""

    address: str = ""
    shards: Path | None = None
    column: str = ""
    gpus: bool = True


def ray_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command is given `on_ray`, a `RayOptions`, or None for a build in this process."""

    @click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="What builds: this process, or Ray Data (extra `ray`); then PATH may also hold tar shards of webdataset, "
        "Parquet files or a Hugging Face data set.",
    )
    @click.option("--address", help="With --engine ray: of a running cluster.  [default: one is started here]")
    @click.option(
        "--shards",
        type=FilePath(),
        metavar="DIR",
        help="With --engine ray: keep the shards in DIR, an export that `import` reads; finished ones are not made "
        "again.  [default: in the index's folder, until it is whole]",
    )
    @click.option("--column", help="With --engine ray: the column of pictures, where a table has several.")
    @functools.wraps(command)
    def with_options(engine: str, address: str | None, shards: Path | None, column: str | None, **rest: Any) -> Any:
        given = {"--address": address, "--shards": shards, "--column": column}
        if engine != "ray":
            if names := [name for name, value in given.items() if value is not None]:
                raise CallError(f"{names[0]} needs --engine ray")
            return command(on_ray=None, **rest)
        if rest.get("path") is None:
            raise CallError("--engine ray needs a PATH: a folder of pictures, or of shards")
        return command(on_ray=RayOptions(address or "", shards, column or "", gpus=rest.get("device") != "cpu"), **rest)

    return with_options
