"""Finds and explains pictures by concept.

    import sparsight

    with sparsight.open("index") as index:
        for hit in index.search("a fire engine", k=3):
            print(hit.score, hit.path, [concept.name for concept in hit.concepts])

This module is the public door, and holds the root command. It is light: what a name stands for is imported when the
name is first used, and a command when it is called.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from training.commands import Group
from training.errors import CallError, SparsightError

if TYPE_CHECKING:
    from indexer.coding import SparseCoder
    from search.index import Index
    from training.encoders import open_encoder

    __version__: str

__all__ = ["CallError", "Index", "SparseCoder", "SparsightError", "__version__", "main", "open", "open_encoder"]

NAMES = {  # public name → the module that defines it
    "Index": "search.index",
    "SparseCoder": "indexer.coding",
    "open_encoder": "training.encoders",
}


def open(folder: Path | str = "index", *, encoder: str | None = None, device: str = "auto") -> Index:
    """Opens the index in a folder, to search and to change it; close it after use, or use it in a `with` statement.

    encoder: the encoder that it was built with, where that lies elsewhere now. device: where torch computes, `auto`,
    `cpu`, `cuda` or `mps`. Raises `SparsightError` where the folder holds no index, or a damaged one.
    """
    from search.index import Index

    return Index(folder, encoder=encoder, device=device)


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("sparsight")
    elif name in NAMES:
        value = getattr(import_module(NAMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class Lazy(NamedTuple):
    """Where a command is, and what the list of commands says of it."""

    module: str
    attribute: str
    help: str


class LazyGroup(Group):
    """A group that imports a command when it is called or asked for its own help, not to list it."""

    def __init__(self, *args: Any, lazy: dict[str, Lazy], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.lazy:
            return None
        return getattr(import_module(self.lazy[name].module), self.lazy[name].attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.lazy.items()])


COMMANDS = {
    "index": Lazy("indexer.cli", "index", "Encodes pictures and builds both indexes."),
    "add": Lazy("indexer.cli", "add", "Adds new and changed pictures to an index."),
    "remove": Lazy("indexer.cli", "remove", "Removes pictures from an index, never their files."),
    "compact": Lazy("indexer.cli", "compact", "Gives back the room that removed pictures take."),
    "doctor": Lazy("indexer.cli", "doctor", "Checks all of an index, and repairs it."),
    "search": Lazy("search.cli", "search", "Finds pictures by a text, a picture, or concepts."),
    "classify": Lazy("search.cli", "classify", "Zero-shot classification of pictures."),
    "concepts": Lazy("search.cli", "concepts", "Lists concepts, and shows the pictures that hold one."),
    "explain": Lazy("search.cli", "explain", "Shows what each concept adds to a picture's score."),
    "sql": Lazy("indexer.exchange.cli", "sql", "Answers one SQL query on an index."),
    "export": Lazy("indexer.exchange.cli", "export", "Writes an index as plain files."),
    "import": Lazy("indexer.exchange.cli", "import_", "Builds an index from files that `export` wrote."),
    "train": Lazy("training.cli", "train", "Trains an encoder on CIFAR-10's captions."),
    "eval": Lazy("eval.cli", "evaluate", "Writes the report: dense against sparse."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
@click.version_option(package_name="sparsight", message="%(version)s")
def main() -> None:
    """Finds and explains pictures by concept."""


if __name__ == "__main__":
    main()
