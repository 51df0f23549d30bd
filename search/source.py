"""What the commands that ask are asked of: an index, its encoder, a device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from indexer.milvus import Address, store_option
from training.commands import device_option, shards_option

if TYPE_CHECKING:
    from search.index import Index


@dataclass(frozen=True)
class Source:
    """What to ask: an index in a folder, shards in several, or one in Milvus; its encoder where that lies elsewhere;
    and where torch computes."""

    folders: tuple[Path, ...] | Address
    encoder: str | None
    device: str

    def open(self) -> Index:
        from search.index import Index

        if self.device != "auto":
            from training.device import pick_device

            pick_device(self.device)  # refuses a device that is not there before anything is read
        return Index(self.folders, encoder=self.encoder, device=self.device)


def source_options(command: Callable) -> Callable:
    """--encoder, --index, --store and --device, which the command takes as one `source`."""

    @click.option("--encoder", help="Encoder: folder or hub name.  [default: the index's own]")
    @shards_option
    @store_option
    @device_option
    @functools.wraps(command)
    def taken(
        *args: object, index_dirs: tuple[Path, ...] | Address, encoder: str | None, device: str, **rest: object
    ) -> object:
        return command(*args, source=Source(index_dirs, encoder, device), **rest)

    return taken
