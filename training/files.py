"""Writing a file so that it appears whole or not at all; checksums; paths as people and as indexes write them."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from training.terminal import printable

# What network and shared drives answer that know no such promise. A full or a broken disk answers otherwise.
NO_SYNC = {
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS),
    *(errno.EBADF, errno.EPERM, errno.EACCES, errno.EISDIR),
}


def full_path(path: str | os.PathLike[str]) -> Path:
    """A path as a person gives it, made absolute, `~` and `~user` being home folders. Links stay as they are.

    Every path is taken through here before its first use, so that it names one place, whatever reads it.
    """
    return Path(os.path.abspath(os.path.expanduser(path)))


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


def write_output(path: Path, data: bytes) -> None:
    """Writes a file that a person names: through a link, into a device or a pipe as it is, else as `write_whole`."""
    real = Path(os.path.realpath(path))
    if not real.exists() or real.is_file():
        write_whole(real, data)
    else:
        with real.open("wb") as f:
            f.write(data)


def publish(partial: Path, path: Path) -> None:
    """Gives a finished file its final name. Once this returns, a loss of power can no longer undo it."""
    with partial.open("rb+") as f:
        sync(f.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder outlive a loss of power."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as e:
        if e.errno in NO_SYNC:  # a folder that may be written but not listed
            return
        raise
    try:
        sync(handle)
    finally:
        os.close(handle)


def sync(handle: int) -> None:
    """Makes what was written outlive a loss of power, on a drive that promises so. Raises OSError where it failed."""
    try:
        os.fsync(handle)
    except OSError as e:
        if e.errno not in NO_SYNC:
            raise


def real_place(path: str | os.PathLike[str]) -> Path:
    """Where a file really lies: its own name in its folder, whatever links lead there."""
    return Path(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def shown_path(path: Path) -> str:
    """A full path as messages name it, on one line: from the working folder where it lies there."""
    try:
        return printable(str(path.relative_to(Path.cwd())))
    except (ValueError, OSError):
        return printable(str(path))


def path_text(path: str | os.PathLike[str]) -> str:
    """A path as valid text, the form in which an index holds it; bytes that are not UTF-8 appear as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256, in hex, over the SHA-256 of each part; where one part ends and the next begins counts, too."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(hashlib.sha256(part).digest())
    return sha.hexdigest()
