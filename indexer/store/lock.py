"""One writer at a time: the lock of an index folder, who holds it, and what a writer that died has left.

The lock is the operating system's, on `.lock`: it ends with its process, however that ends. Readers take none.
"""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock, Timeout

from indexer.store.database import DATABASE, refuse_unreadable_path, shards_in
from indexer.store.writer import DATA_FILES, current_meta, unused_files
from training.errors import SparsightError
from training.files import write_whole

LOCK, HOLDER = ".lock", ".holder.json"
# Files in the making: of `training.files.write_whole`, of the store, and of its journal.
PARTS = (".*.part", ".*.part.*", ".pending/.*.part")


@contextmanager
def writing(folder: Path, command: str) -> Iterator[None]:
    """Holds the lock of an index folder, which is made where it is missing; clears what a dead writer left.

    Raises `SparsightError` where another process holds it (which, and since when), where the folder cannot be written,
    or is one of shards.
    """
    refuse_unreadable_path(folder)
    if command != "split" and not (folder / DATABASE).is_file() and shards_in(folder):
        raise SparsightError(  # an index there would hide them
            f"{folder} is a folder of shards: name a new folder in it for one more, as --index {folder / 'NAME'}"
        )
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(action="ignore"):  # where a drive knows no locks, a file that is there is one
            lock.acquire()
    except Timeout as e:
        raise SparsightError(f"{folder} is being changed by {_holder(folder)}; wait until it has ended") from e
    except OSError as e:
        reason = e.strerror or str(e)
        raise SparsightError(f"cannot write an index to {folder}: {reason}; choose another --index") from e
    try:
        for left in _parts(folder):
            left.unlink(missing_ok=True)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"command": command, "process": os.getpid(), "host": socket.gethostname(), "since": now}
        write_whole(folder / HOLDER, json.dumps(holder).encode())  # whatever stood there: a pipe would be waited for
        yield
    except (OSError, SparsightError) as e:
        if not folder.is_dir():
            raise SparsightError(f"{folder} was deleted while it was being changed; build the index anew") from e
        if isinstance(e, SparsightError):
            raise
        raise SparsightError(f"cannot write to {folder}: {e.strerror or e}; the index is unchanged") from e
    finally:
        with suppress(OSError):  # the folder may have become read-only meanwhile
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def leftovers(folder: Path) -> list[Path]:
    """The files in the making, and data files that the index does not name, that no living writer can be working on,
    the lock being held. Whoever writes next removes them."""
    meta = current_meta(folder)
    return sorted(_parts(folder) | set(unused_files(folder, meta) if meta else ()))


def _parts(folder: Path) -> set[Path]:
    return {path for pattern in PARTS for path in folder.glob(pattern) if not path.is_dir()}


def is_data_file(name: str) -> bool:
    """Whether a file is named as the files beside the database are."""
    return any(fnmatch(name, pattern) for pattern in DATA_FILES)


def writer(folder: Path) -> str | None:
    """Who is changing an index folder; None where nobody is. Where it cannot be asked for, the holder's note counts."""
    if not (folder / LOCK).exists():
        return None
    try:
        with FileLock(folder / LOCK, timeout=0):
            return None
    except Timeout:
        return _holder(folder)
    except OSError:
        return _holder(folder) if (folder / HOLDER).exists() else None


def _holder(folder: Path) -> str:
    try:
        if not (folder / HOLDER).is_file():
            return "another process"
        h = json.loads((folder / HOLDER).read_text())
        return f"`sparsight {h['command']}` (process {h['process']} on {h['host']}, since {h['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
