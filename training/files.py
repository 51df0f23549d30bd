"""Files that appear whole or not at all, checksums, and the names of an encoder's files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

# An encoder's folder; the one that ships with the package.
BUNDLED = Path(__file__).parent / "weights"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"


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
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def folder_of(name: str) -> Path:
    """The folder of an encoder by its name: `bundled`, or the folder itself."""
    return BUNDLED if name == "bundled" else Path(name).absolute()


def has_setting(folder: Path, key: str) -> bool:
    """True where a folder's configuration is readable and holds a key: it tells whose encoder the folder holds."""
    try:
        return key in json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def path_text(path: str | os.PathLike[str]) -> str:
    """A path as valid text: bytes that are no UTF-8 appear as \\xNN. What an index holds, prints and looks up."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Text for one line of a terminal: newlines, escape sequences and the like appear as Python writes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def fingerprint_of(folder: Path) -> str:
    """SHA-256 over the files that decide an encoder's output."""
    return digest((folder / f).read_bytes() for f in (CONFIG, TOKENIZER, WEIGHTS))


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 over the SHA-256 of each part: the parts' borders count."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(hashlib.sha256(part).digest())
    return sha.hexdigest()
