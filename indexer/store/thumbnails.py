"""The thumbnails of an index: one file of JPEGs beside the database, to which some are only ever added.

`images` holds where each begins, its size and its checksum; a removed picture's stays in the file until that is
written anew under another name.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from indexer.store.vectors import open_plain
from training.files import publish, sync


class Place(NamedTuple):
    """Where a thumbnail lies: its first byte, its bytes, their CRC-32."""

    start: int
    size: int
    crc: int


class Thumbnails:
    """The thumbnails' file of an index, read where it is asked for.

    path; size: its bytes that count; check: without, a file that is shorter is read as far as it goes. Raises OSError
    where the file cannot be opened, ValueError where it is shorter than it should be.
    """

    def __init__(self, path: Path, size: int, *, check: bool = True):
        self._file = open_plain(path)
        held = os.fstat(self._file).st_size
        self.path, self.size = path, min(size, held)
        if check and held < size:
            os.close(self._file)
            raise ValueError(f"{path.name} has {held} bytes, {size} were written")

    def close(self) -> None:
        os.close(self._file)

    def read(self, place: Place) -> bytes | None:
        """The JPEG at a place; None where it is not the one that was written."""
        if not 0 <= place.start <= place.start + place.size <= self.size:
            return None
        data = os.pread(self._file, place.size, place.start)
        return data if zlib.crc32(data) == place.crc and len(data) == place.size else None


class Places(NamedTuple):
    """The places of n thumbnails as arrays (n,): start int64 (−1 where there is none), size int32, crc uint32."""

    start: np.ndarray
    size: np.ndarray
    crc: np.ndarray

    @classmethod
    def none(cls, n: int) -> Places:
        return cls(np.full(n, -1, np.int64), np.zeros(n, np.int32), np.zeros(n, np.uint32))

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of `images` that they are; see `CASTS`."""
        return {"thumbnail_start": self.start, "thumbnail_bytes": self.size, "thumbnail_crc": self.crc}


CASTS = {  # where there is no thumbnail the columns are NULL
    name: f"CASE WHEN thumbnail_start >= 0 THEN {name} END"
    for name in ("thumbnail_start", "thumbnail_bytes", "thumbnail_crc")
}


def write_thumbnails(path: Path, thumbnails: Iterable[bytes | None], n: int) -> tuple[int, Places]:
    """Writes n thumbnails as a new file that appears whole or not at all; returns its size and the places."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("wb") as f:
        size, places = _append(f, 0, thumbnails, n)
    publish(partial, path)
    return size, places


def append_thumbnails(path: Path, size: int, thumbnails: Iterable[bytes | None], n: int) -> tuple[int, Places]:
    """Adds n thumbnails behind the first `size` bytes, over what a writer that died has left there."""
    with path.open("r+b") as f:
        f.truncate(size)
        f.seek(size)
        total, places = _append(f, size, thumbnails, n)
        f.flush()
        sync(f.fileno())
    return total, places


def _append(f: BinaryIO, at: int, thumbnails: Iterable[bytes | None], n: int) -> tuple[int, Places]:
    places = Places.none(n)
    for i, jpeg in enumerate(thumbnails):
        if jpeg is not None:
            places.start[i], places.size[i], places.crc[i] = at, len(jpeg), zlib.crc32(jpeg)
            f.write(jpeg)
            at += len(jpeg)
    return at, places
