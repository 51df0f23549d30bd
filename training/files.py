"""Files that appear whole or not at all, checksums, and paths as text."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that no half of it ever stands under its final name."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as f:
            f.write(data)
        publish(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def publish(partial: Path, path: Path) -> None:
    """Gives a whole file its final name; when this returns, a loss of power takes neither the data nor the name."""
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
    """A path as valid text: bytes that are no UTF-8 appear as \\xNN. What an index holds, prints and looks up."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 over the SHA-256 of each part: the parts' borders count."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(hashlib.sha256(part).digest())
    return sha.hexdigest()
