"""The SHA-256 of large files, remembered beside what the system tells of them, as git does for its own files.

A model's fingerprint is over all of its weights, and a text query reads a part of them: hashing the rest each time
would take longer than the query. What is remembered lies in the user's cache folder, and nothing depends on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from training.files import write_whole

LARGE = 16 << 20  # bytes: a smaller file is hashed each time, in a few hundredths of a second
SETTLED = 2.0  # seconds after its last change from which a further change shows in a file's times, on any file system


def cache_folder() -> Path:
    """Where what can be computed again is kept for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "sparsight"


def sha256_of(path: Path) -> bytes:
    """The SHA-256 of a file; of a large one as it was computed before, where nothing says that the file has changed.

    Raises OSError where the file cannot be read.
    """
    state = _state(path)
    if state["bytes"] < LARGE:
        return _hash(path)
    real = os.path.realpath(path)
    note = cache_folder() / f"{hashlib.sha256(os.fsencode(real)).hexdigest()}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        held = json.loads(note.read_text(encoding="utf-8"))
        found = bytes.fromhex(held.pop("sha256"))
        if held == state and len(found) == hashlib.sha256().digest_size:
            return found
    began = time.time()
    found = _hash(path)
    changed = max(state["modified"], state["changed"]) / 1e9
    if changed + SETTLED < began and _state(path) == state:
        with suppress(OSError):  # a folder that cannot be written: the file is hashed again next time
            note.parent.mkdir(parents=True, exist_ok=True)
            write_whole(note, json.dumps(state | {"sha256": found.hex()}).encode())
    return found


def _state(path: Path) -> dict[str, int]:
    """What changes with a file. `changed` does even where somebody sets the time of the last modification back."""
    told = path.stat()
    return {
        "bytes": told.st_size,
        "modified": told.st_mtime_ns,
        "changed": told.st_ctime_ns,
        "place": told.st_ino,
        "drive": told.st_dev,
    }


def _hash(path: Path) -> bytes:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").digest()
