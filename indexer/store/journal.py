"""What a build or an addition has encoded but not committed yet: batches that outlive a crash, found by content.

Each batch is one file in `.pending`, written whole: safetensors (embeddings, thumbnails), then a SHA-256 of it all.
A batch of another encoder, or one that is damaged, counts for nothing. The files go when the index holds
their pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from indexer.config import THUMBNAIL
from training.encoders import Encoder
from training.errors import SparsightError
from training.files import digest, write_whole

FOLDER = ".pending"
PREPARED = 2  # how encoders get their pictures: another number where that changes


class Journal:
    """The encoded pictures of an index folder whose lock the caller holds. Embeddings are held, thumbnails are not."""

    def __init__(self, folder: Path, encoder: Encoder):
        self.folder = folder / FOLDER
        self._key = digest([encoder.fingerprint.encode(), str((encoder.image_size, THUMBNAIL, PREPARED)).encode()])[:16]
        self._batches: list[Path] = []
        self._X: list[np.ndarray] = []
        self._at: dict[str, tuple[int, int]] = {}  # content hash → batch, row
        self._open: tuple[int, Batch] | None = None
        for path in (p for p in pending(folder) if p.name.startswith(f"{self._key}-")):
            try:
                self._take(path, *read_batch(path)[:2])
            except (OSError, ValueError, KeyError, SafetensorError):
                path.unlink(missing_ok=True)

    def __contains__(self, content_hash: object) -> bool:
        return content_hash in self._at

    def add(self, hashes: Sequence[str], X: np.ndarray, thumbnails: Sequence[bytes]) -> None:
        """Keeps a batch: when this returns, it outlives a crash. X (b, d); thumbnails JPEG bytes."""
        number = 1 + max((int(p.stem.rsplit("-", 1)[1]) for p in self._batches), default=-1)
        path = self.folder / f"{self._key}-{number:08d}.batch"
        try:
            self.folder.mkdir(exist_ok=True)
            batch = write_batch(path, hashes, X, thumbnails)
        except OSError as e:
            reason = e.strerror or str(e)
            raise SparsightError(f"cannot write to {self.folder}: {reason}; the index is unchanged") from e
        self._take(path, *batch[:2])

    def vectors(self, hashes: Sequence[str]) -> np.ndarray:
        """X (n, d) of pictures that it holds."""
        places = [self._at[h] for h in hashes]
        d = self._X[0].shape[1] if self._X else 0
        return np.stack([self._X[batch][row] for batch, row in places]) if places else np.zeros((0, d), np.float32)

    def thumbnails(self, hashes: Sequence[str]) -> Sequence[bytes]:
        """JPEG bytes of pictures that it holds, read as they are asked for."""
        return _Thumbnails(self, hashes)

    def clear(self) -> None:
        """Forgets its batches: they are committed. Another encoder's stay.

        A file that cannot be removed does no harm: the next journal finds it, and clears it.
        """
        for path in self._batches:
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):  # it is not empty, or not there
            self.folder.rmdir()
        self._batches, self._X, self._at, self._open = [], [], {}, None

    def thumbnail(self, content_hash: str) -> bytes:
        batch, row = self._at[content_hash]
        if self._open is None or self._open[0] != batch:
            self._open = batch, read_batch(self._batches[batch])
        return self._open[1].thumbnail(row)

    def _take(self, path: Path, hashes: list[str], tensors: dict[str, np.ndarray]) -> None:
        for row, content_hash in enumerate(hashes):
            self._at[content_hash] = len(self._batches), row
        self._batches.append(path)
        self._X.append(tensors["X"])


class _Thumbnails(Sequence[bytes]):
    def __init__(self, journal: Journal, hashes: Sequence[str]):
        self._journal, self._hashes = journal, hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def __getitem__(self, i: Any) -> Any:
        return self._journal.thumbnail(self._hashes[i])


class Batch(NamedTuple):
    """Encoded pictures: content hashes (b,) · tensors: X (b, d), and the thumbnails end to end · further notes."""

    hashes: list[str]
    tensors: dict[str, np.ndarray]
    notes: dict[str, str]

    def thumbnail(self, row: int) -> bytes:
        """The JPEG bytes of a picture's thumbnail."""
        ends = self.tensors["ends"]
        return self.tensors["thumbnails"][int(ends[row - 1]) if row else 0 : int(ends[row])].tobytes()


def write_batch(path: Path, hashes: Sequence[str], X: np.ndarray, thumbnails: Sequence[bytes], **notes: str) -> Batch:
    """Writes a batch as a file that is whole or not there. X (b, d); thumbnails JPEG bytes; notes: kept with it."""
    tensors: dict[str, np.ndarray] = {
        "X": np.ascontiguousarray(X, np.float32),
        "thumbnails": np.frombuffer(b"".join(thumbnails), np.uint8),
        "ends": np.cumsum([len(t) for t in thumbnails], dtype=np.int64),
    }
    data = save(tensors, {"hashes": json.dumps(list(hashes)), **notes})
    write_whole(path, data + hashlib.sha256(data).digest())
    return Batch(list(hashes), tensors, notes)


def read_batch(path: Path) -> Batch:
    """A batch as it was written; raises ValueError where it is damaged."""
    data = path.read_bytes()
    body = data[:-32]
    if hashlib.sha256(body).digest() != data[-32:]:
        raise ValueError(f"{path} is damaged")
    tensors = load(body)
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    notes = dict(header["__metadata__"])
    hashes = list(json.loads(notes.pop("hashes")))
    if not len(hashes) == len(tensors["X"]) == len(tensors["ends"]):
        raise ValueError(f"{path}: its parts differ in length")
    return Batch(hashes, tensors, notes)


def pending(folder: Path) -> list[Path]:
    """The batches of an index folder that no commit has taken."""
    return sorted(path for path in (folder / FOLDER).glob("*.batch") if path.is_file())
