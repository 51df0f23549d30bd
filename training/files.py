"""Writing a file so that it appears whole or not at all; checksums; paths as text."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file; under its final name it is whole from the first moment, or is not there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as f:
            f.write(data)
        publish(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def publish(partial: Path, path: Path) -> None:
    """Gives a finished file its final name. Once this returns, a loss of power can no longer undo it."""
    with partial.open("rb+") as f:
        os.fsync(f.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder outlive a loss of power."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def path_text(path: str | os.PathLike[str]) -> str:
    """A path as valid text, the form in which an index holds it; bytes that are not UTF-8 appear as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256, in hex, over the SHA-256 of each part; where one part ends and the next begins counts, too."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(hashlib.sha256(part).digest())
    return sha.hexdigest()
