"""--store: in place of the folder --index, an index in Milvus."""

from __future__ import annotations

import functools
from collections.abc import Callable

import click
from click.core import ParameterSource

from indexer.milvus.address import parse_address
from training.errors import CallError


def store_option(command: Callable) -> Callable:
    """--store, whose address the command takes in place of its `index_dir` or `index_dirs`. It stands below --index."""

    @click.option(
        "--store",
        metavar="milvus:URI",
        help="In place of --index: an index in Milvus, as milvus:http://host:19530, or milvus:FOLDER through "
        "milvus-lite; with #NAME behind it one of several. A token stands in SPARSIGHT_MILVUS_TOKEN.",
    )
    @functools.wraps(command)
    def taken(*args: object, store: str | None, **rest: object) -> object:
        if store is not None:
            name = "index_dirs" if "index_dirs" in rest else "index_dir"
            if click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise CallError("--index and --store both say where the index is: give one of them")
            rest[name] = parse_address(store)
        return command(*args, **rest)

    return taken
