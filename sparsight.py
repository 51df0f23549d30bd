"""Finds and explains pictures by concept.

    import sparsight

    with sparsight.open("index") as index:
        for hit in index.search("a fire engine", k=3):
            print(hit.score, hit.path, [concept.name for concept in hit.concepts])

This module is the public door, and holds the root command, `main`. It is light: what a name stands for is imported when
the name is first used, and a command when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from training.signals import run_program

if TYPE_CHECKING:
    import click

    from indexer.coding import SparseCoder
    from search.index import Index
    from training.encoders import open_encoder
    from training.errors import CallError, SparsightError

    __version__: str
    main: click.Group

__all__ = ["CallError", "Index", "SparseCoder", "SparsightError", "__version__", "main", "open", "open_encoder"]

NAMES = {  # public name → the module that defines it
    "CallError": "training.errors",
    "SparsightError": "training.errors",
    "Index": "search.index",
    "SparseCoder": "indexer.coding",
    "open_encoder": "training.encoders",
}


def open(
    folder: Path | str | Sequence[Path | str] = "index", *, encoder: str | None = None, device: str = "auto"
) -> Index:
    """Opens the index in a folder, to search and to change it; close it after use, or use it in a `with` statement.

    Several folders, or a folder of folders, are shards: they are searched as one index; `milvus:URI` is one in Milvus.
    encoder: the encoder that it was built with, where that lies elsewhere now. device: where torch computes, `auto`,
    `cpu`, `cuda` or `mps`. Raises `SparsightError` where the folder holds no index, or a damaged one, or shards do not
    fit together.
    """
    from search.index import Index

    return Index(folder, encoder=encoder, device=device)


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("sparsight")
    elif name == "main":
        value = _root_command()
    elif name in NAMES:
        value = getattr(import_module(NAMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


COMMANDS = {  # name → the module and the attribute that is the command, and what the list of commands says of it
    "index": ("indexer.cli", "index", "Encodes pictures and builds both indexes."),
    "add": ("indexer.cli", "add", "Adds new and changed pictures to an index."),
    "remove": ("indexer.cli", "remove", "Removes pictures from an index, never their files."),
    "split": ("indexer.cli", "split", "Cuts an index into shards, which are searched as one."),
    "compact": ("indexer.cli", "compact", "Gives back the room that removed pictures take."),
    "doctor": ("indexer.cli", "doctor", "Checks all of an index, and repairs it."),
    "search": ("search.cli", "search", "Finds pictures by a text, a picture, or concepts."),
    "classify": ("search.cli", "classify", "Zero-shot classification of pictures."),
    "concepts": ("search.cli", "concepts", "Lists concepts, and shows the pictures that hold one."),
    "explain": ("search.why", "explain", "Shows what each concept adds to a picture's score."),
    "edit": ("search.why", "edit", "Shows what a picture would be with other concepts."),
    "serve": ("search.serve.command", "serve", "Serves a page to search an index, and a REST interface."),
    "sql": ("indexer.exchange.cli", "sql", "Answers one SQL query on an index."),
    "export": ("indexer.exchange.cli", "export", "Writes an index as plain files."),
    "import": ("indexer.exchange.cli", "import_", "Builds an index from files that `export` wrote."),
    "train": ("training.cli", "train", "Trains an encoder on CIFAR-10's captions."),
    "audit": ("eval.audit.cli", "audit", "Finds label errors, duplicates, outliers and crutches."),
    "eval": ("eval.cli", "evaluate", "Writes the report: dense against sparse."),
}


def _root_command() -> click.Group:
    import click

    from training.commands import LazyGroup

    @click.group(cls=LazyGroup, lazy=COMMANDS)
    @click.version_option(package_name="sparsight", message="%(version)s")
    def main() -> None:
        """Finds and explains pictures by concept."""

    return main


def run() -> None:
    """The program `sparsight`."""
    run_program("sparsight", "main")


if __name__ == "__main__":
    run()
