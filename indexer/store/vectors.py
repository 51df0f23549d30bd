"""The embeddings of an index: one file of float32 rows beside the database, to which rows are only ever added.

The database records how many rows count and a checksum for every block of them; what lies beyond is not there. So a
change writes what it adds, a reader goes on with the rows that it knows, and a removed picture's row stays until the
file is written anew under another name. The file is the flat dense index as well: it is mapped into memory and
searched in blocks. A block is checked when it is first read: a CRC-32 finds any single damaged byte, and costs a
quarter of what a SHA-256 does.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from training.encoders.centring import Rows as RowSource
from training.files import publish, sync

BLOCK_BYTES = 1 << 18  # of a block, about
CLOSE = 4  # rows that lie within so many times their number are read with those between them
SCAN_ROWS = 1 << 15  # rows that are read at a time where all are


class DamagedVectors(ValueError):
    """A block of the vectors' file is not the one that was written."""


def open_plain(path: Path) -> int:
    """A handle to read a file by; raises OSError where it is no plain file: a pipe would be waited for."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return handle


def block_rows(d: int) -> int:
    """RowSource of d dimensions that have one checksum."""
    return max(1, BLOCK_BYTES // (4 * max(d, 1)))


class Vectors:
    """The rows of an index's vectors' file that count, read where they are asked for.

    path; count rows of d dimensions; block: rows with one checksum; crcs (ceil(count / block),): the checksums.
    Raises OSError where the file cannot be opened, `DamagedVectors` where it is shorter than it should be.
    """

    def __init__(self, path: Path, count: int, d: int, block: int, crcs: np.ndarray, *, check: bool = True):
        self.path, self.count, self.d, self.block = path, count, d, block
        self._crcs = crcs
        self._file = open_plain(path)
        try:
            size = os.fstat(self._file).st_size
            if size < 4 * count * d:
                raise DamagedVectors(f"{path.name} has {size} bytes, {4 * count * d} were written")
            if len(crcs) != -(-count // block):
                raise DamagedVectors(f"{path.name} has {len(crcs)} checksums for {count} rows")
            self._rows = self._mapped()
        except BaseException:
            os.close(self._file)
            raise
        self._checked = np.full(len(crcs), not check)

    def _mapped(self) -> np.ndarray:
        if not self.count or not self.d:
            return np.zeros((self.count, self.d), np.float32)
        with os.fdopen(os.dup(self._file), "rb") as f:
            try:
                return np.memmap(f, np.dtype("<f4"), "r", shape=(self.count, self.d))
            except OSError as e:
                if e.errno not in (errno.ENODEV, errno.EINVAL, errno.ENOTSUP, errno.EACCES):
                    raise
            f.seek(0)  # some shared drives map no files: all is read into memory
            return np.fromfile(f, "<f4", self.count * self.d).reshape(self.count, self.d)

    def close(self) -> None:
        """Closes the file; rows that were read stay valid."""
        os.close(self._file)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> np.ndarray:
        """RowSource a … b − 1 as a view of the file, their blocks checked."""
        start, stop, _ = rows.indices(self.count)
        self._check(np.arange(start // self.block, -(-stop // self.block)))
        return self._rows[start:stop]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """A copy of some rows (k,), in the order asked for.

        Rows that lie close together, in their order, are read without mapping them, so that to read all of a large file
        piece by piece does not fill the process's memory.
        """
        self._check(np.unique(rows // self.block))
        if self.d and len(rows) and (np.diff(rows) > 0).all() and rows[-1] - rows[0] < CLOSE * len(rows):
            start, stop = int(rows[0]), int(rows[-1]) + 1
            return np.frombuffer(self._bytes(start, stop), "<f4").reshape(-1, self.d)[rows - start]
        return np.array(self._rows[rows])

    def scan(self, size: int = SCAN_ROWS) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of the whole file, piece by piece."""
        for start in range(0, self.count, size):
            yield start, self[start : start + size]

    def blocks(self) -> Iterator[tuple[int, np.ndarray | None]]:
        """The number of each block and its rows, read anew and without mapping them, so that no more than one is in
        memory; None in place of rows that are not as they were written."""
        for block in range(len(self._crcs)):
            start = block * self.block
            stop = min(start + self.block, self.count)
            data = self._bytes(start, stop)
            sound = zlib.crc32(data) == self._crcs[block]
            rows = np.frombuffer(data, "<f4").reshape(stop - start, self.d) if sound else None
            yield block, rows

    def damaged_blocks(self) -> list[int]:
        """The blocks that are not as they were written; reads the whole file."""
        return [block for block, rows in self.blocks() if rows is None]

    def checksums(self, count: int) -> np.ndarray:
        """The checksums (b,) uint32 that the file had when it held its first `count` rows."""
        crcs = self._crcs[: -(-count // self.block)].copy()
        if count % self.block:
            start = count - count % self.block
            self._check(np.array([start // self.block]))
            crcs[-1] = zlib.crc32(self._bytes(start, count))
        return crcs

    def _bytes(self, start: int, stop: int) -> bytes:
        """RowSource as the file holds them, read without mapping them: checking must not fill a process's memory."""
        size = 4 * self.d
        return os.pread(self._file, (stop - start) * size, start * size)

    def _check(self, blocks: np.ndarray) -> None:
        new = blocks[~self._checked[blocks]]
        if not len(new):
            return
        found = [self._crc(b) for b in new.tolist()] if len(new) < 64 else list(_pool().map(self._crc, new.tolist()))
        bad = new[np.array(found, np.uint32) != self._crcs[new]]
        if len(bad):
            first = int(bad[0]) * self.block
            raise DamagedVectors(f"rows {first} … {min(first + self.block, self.count) - 1} of {self.path.name}")
        self._checked[new] = True

    def _crc(self, block: int) -> int:
        return zlib.crc32(self._bytes(block * self.block, min((block + 1) * self.block, self.count)))


class Gathered:
    """Some rows of a vectors' file as rows of their own, read when they are asked for."""

    def __init__(self, vectors: Vectors, rows: np.ndarray):
        self._vectors, self._rows = vectors, rows

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._rows), self._vectors.d

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._vectors.take(self._rows[rows])


def kept_rows(X: RowSource, width: int) -> RowSource:
    """The rows as the vectors' file has them: X (n, width), or n rows of no numbers where it keeps none."""
    return X if width else np.zeros((len(X), 0), np.float32)


def _pool() -> ThreadPoolExecutor:
    global _threads
    if _threads is None:
        _threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "checksums")
    return _threads


_threads: ThreadPoolExecutor | None = None


def write_vectors(path: Path, X: RowSource, d: int, block: int) -> tuple[int, np.ndarray]:
    """Writes rows as a new file that appears whole or not at all; returns their number and their checksums."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("wb") as f:
        count, crcs = _append(f, X, d, block, 0, b"")
    publish(partial, path)
    return count, crcs


def append_vectors(vectors: Vectors, X: RowSource) -> tuple[int, np.ndarray]:
    """Adds rows behind those that count, over whatever a writer that died has left there; returns the new number of
    rows and all their checksums. Nobody sees the rows before the database counts them."""
    d, block, count = vectors.d, vectors.block, vectors.count
    start = count - count % block  # of the block that is not full
    tail = vectors._bytes(start, count)
    vectors.checksums(count)  # raises where the block that is to grow is damaged
    with vectors.path.open("r+b") as f:
        f.truncate(4 * count * d)
        f.seek(4 * count * d)
        total, crcs = _append(f, X, d, block, count, tail)
        f.flush()
        sync(f.fileno())
    return total, np.concatenate([vectors._crcs[: count // block], crcs])


def _append(f: BinaryIO, X: RowSource, d: int, block: int, count: int, tail: bytes) -> tuple[int, np.ndarray]:
    """Writes rows; returns how many there are now and the checksums from the block on that `tail` begins."""
    crcs: list[int] = []
    crc, held, at = zlib.crc32(tail), count % block, 0
    while at < len(X):
        step = min(block - held, len(X) - at)
        rows = np.ascontiguousarray(X[at : at + step], "<f4")
        if rows.shape != (step, d):
            raise ValueError(f"expected rows of {d} dimensions, got an array {rows.shape}")
        data = rows.tobytes()
        f.write(data)
        crc, held, at = zlib.crc32(data, crc), held + step, at + step
        if held == block:
            crcs.append(crc)
            crc, held = 0, 0
    if held:
        crcs.append(crc)
    return count + at, np.array(crcs, np.uint32)
