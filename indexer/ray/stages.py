"""The stages of a build: what a worker does with a slice of pictures, or with a shard of them.

Each is a class whose object holds what takes long to open. They call what the build in one process calls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from indexer.pictures import Picture, Skipped, quiet_pillow, read_pictures
from indexer.pictures.files import PictureError
from indexer.pictures.folders import open_file
from indexer.ray.cluster import Done
from indexer.ray.encoded import write_encoded
from indexer.ray.shards import Shard, ShardMaker, receipt_path
from indexer.ray.sources import FILES, TAR, Slice, naming
from indexer.ray.tables import Cell, cells_of
from indexer.ray.tries import begin, ended
from training.encoders import Encoder, open_encoder
from training.errors import SparsightError
from training.files import path_text

THREADS = 2  # that read, in a worker: one waits for the drive, one decodes


class Named(NamedTuple):
    """A slice, and the file that is made of it."""

    part: Slice
    path: Path


class Read:
    """Slices of one group of rows, or one slice → each with its pictures, prepared for the tower, and their labels."""

    def __init__(self, source: str, fingerprint: str):
        self._encoder = opened(source, "cpu", fingerprint)

    def __call__(self, parts: list[Named]) -> Iterator[tuple[Named, list[Picture | Skipped], list[str | None]]]:
        kept = iter(_cells([named.part for named in parts]))
        for named in parts:
            begin(named.path, "read", _told(named.part))
            part, cells = named.part, next(kept)
            cell_of = dict(zip(part.paths, cells, strict=True))

            def give(path: str, part: Slice = part, cell_of: dict[str, Cell] = cell_of) -> tuple[bytes, int | None]:
                return _bytes_of(cell_of[path], part, path)

            encoder = self._encoder
            with quiet_pillow():
                opened_by = None if part.kind == FILES else give
                ahead = len(part.paths)
                pictures = list(
                    read_pictures(
                        part.paths, encoder.prepare, encoder.image_size, ahead=ahead, workers=THREADS, opened=opened_by
                    )
                )
            yield named, pictures, [cell.label for cell in cells]


def opened(source: str, device: str, fingerprint: str) -> Encoder:
    """The encoder, on the machine of a worker. Raises `SparsightError` where that machine has another one."""
    encoder = open_encoder(source, device)
    if encoder.fingerprint != fingerprint:
        raise SparsightError(
            f"the encoder {source} is another one on {os.uname().nodename}: all machines need the same"
        )
    return encoder


def _cells(parts: list[Slice]) -> Iterator[list[Cell]]:
    """What each slice's shard says of its pictures; tables are read in one pass."""
    first = parts[0]
    if first.kind in (FILES, TAR):
        for part in parts:
            labels = part.labels or (None,) * len(part.paths)
            yield [Cell(None, None, label) for label in labels]
        return
    ranges = [range(part.places[0][0], part.places[-1][0] + 1) for part in parts]
    with naming(first.file):
        yield from cells_of(first.kind, Path(first.file), first.group, first.column, ranges)


def _bytes_of(cell: Cell, part: Slice, path: str) -> tuple[bytes, int | None]:
    """A picture's bytes from the shard that holds it, or from the file that a row names."""
    if part.kind == TAR:
        start, size = part.places[part.paths.index(path)]
        with naming(part.file), open(part.file, "rb") as f:
            f.seek(start)
            data = f.read(size)
            if len(data) < size:
                raise ValueError("it ends within a picture")
    elif cell.data is not None:
        data = cell.data
    elif cell.path:
        return open_file(os.path.join(os.path.dirname(part.file), cell.path))
    else:
        raise PictureError("its row holds no picture")
    if not data:
        raise PictureError("it is empty")
    return data, None


class Encode:
    """A slice's pictures → a file of their embeddings and thumbnails, and of all that is known of them."""

    def __init__(self, source: str, fingerprint: str, device: str):
        self._encoder = opened(source, device, fingerprint)

    def __call__(self, read: tuple[Named, list[Picture | Skipped], list[str | None]]) -> Iterator[Done]:
        named, pictures, labels = read
        begin(named.path, "encode", _told(named.part))
        taken = [(p, label) for p, label in zip(pictures, labels, strict=True) if isinstance(p, Picture)]
        X = self._encoder.encode_images([p.prepared for p, _ in taken])
        skipped = [(path_text(p.path), p.reason) for p in pictures if isinstance(p, Skipped)]
        write_encoded(named.path, taken, X, skipped)
        ended(named.path)
        yield Done(len(pictures))


class Code:
    """A shard of pictures, encoded → its files."""

    def __init__(self, maker: ShardMaker):
        self._maker = maker

    def __call__(self, shard: Shard) -> Iterator[Done]:
        path = receipt_path(self._maker.folder, shard.number)
        begin(path, "code", f"shard {shard.number}")
        note = self._maker.make(shard)
        ended(path)
        yield Done(shard.pictures, note=note)


def _told(part: Slice) -> str:
    """A slice in words."""
    return f"{part.paths[0]} … {part.paths[-1].rpartition('/')[2]}" if len(part.paths) > 1 else part.paths[0]
