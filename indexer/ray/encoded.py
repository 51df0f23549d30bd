"""Slices that were encoded: a file for each, named by what it was made of, and what they hold together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from indexer.config import THUMBNAIL
from indexer.encode import FilesRead
from indexer.pictures import Picture
from indexer.ray.sources import Slice
from indexer.store import Skip
from indexer.store.journal import PREPARED, Batch, read_batch, write_batch
from training.encoders import Encoder
from training.errors import SparsightError
from training.files import path_text

FOLDER = "encoded"


def encoded_path(folder: Path, part: Slice, encoder: Encoder) -> Path:
    """The file of a slice, as an encoder encodes it."""
    made_by = str((encoder.image_size, THUMBNAIL, PREPARED))
    return folder / FOLDER / f"{part.key(encoder.fingerprint, made_by)}.batch"


def write_encoded(
    path: Path, taken: Sequence[tuple[Picture, str | None]], X: np.ndarray, skipped: Sequence[tuple[str, str]]
) -> None:
    """Writes a slice's pictures, each with its label, their embeddings X (b, d), and what was not taken."""
    known = [(path_text(p.path), p.size, p.changed, label) for p, label in taken]
    pictures = [p for p, _ in taken]
    notes = {"taken": json.dumps(known), "skipped": json.dumps(list(skipped))}
    write_batch(path, [p.content_hash for p in pictures], X, [p.thumbnail for p in pictures], **notes)


def read_encoded(path: Path) -> Batch | None:
    """A slice's file; None where it is missing, or is not as it was written."""
    try:
        return read_batch(path)
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


@dataclass
class Encoded:
    """All slices together: what was read, and where each picture lies: its slice's file and its row in that."""

    paths: Sequence[Path]
    read: FilesRead = field(default_factory=FilesRead)
    labels: dict[str, str | None] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def gathered(cls, paths: Sequence[Path]) -> Encoded:
        """Reads every slice's file. Raises `SparsightError` for one that cannot be read."""
        found = cls(paths)
        for number, path in enumerate(paths):
            batch = needed(path)
            found.read.skipped += [Skip(*pair) for pair in json.loads(batch.notes["skipped"])]
            known = json.loads(batch.notes["taken"])
            for row, (content_hash, (name, size, changed, label)) in enumerate(zip(batch.hashes, known, strict=True)):
                if found.read.take(Picture(name, content_hash, size, changed)):
                    found.places[name] = number, row
                    if label is not None:
                        found.labels[name] = label
        return found

    def rows(self, names: Sequence[str]) -> EncodedRows:
        """The embeddings of some pictures."""
        places = np.array([self.places[name] for name in names], np.int32).reshape(-1, 2)
        return EncodedRows(self.paths, places)


class EncodedRows:
    """X (n, d): embeddings as they were encoded, read a slice's file at a time. places (n, 2): file, row."""

    def __init__(self, paths: Sequence[Path], places: np.ndarray):
        self._paths, self.places = paths, places
        self._open: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.take(np.arange(len(self))[rows])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Some rows (k, d), ascending."""
        places = self.places[rows]
        pieces = [self._of(number)[places[places[:, 0] == number, 1]] for number in np.unique(places[:, 0]).tolist()]
        return np.concatenate(pieces)

    def pieces(self, start: int, stop: int) -> tuple[tuple[Path, tuple[int, ...]], ...]:
        """The files that hold a range of rows, and which of each file's rows they are."""
        places = self.places[start:stop]
        numbers = np.unique(places[:, 0]).tolist()
        return tuple((self._paths[i], tuple(places[places[:, 0] == i, 1].tolist())) for i in numbers)

    def _of(self, number: int) -> np.ndarray:
        if self._open is None or self._open[0] != number:
            self._open = number, needed(self._paths[number]).tensors["X"]
        return self._open[1]


def needed(path: Path) -> Batch:
    """A slice's file, which must be there and sound."""
    batch = read_encoded(path)
    if batch is None:
        raise SparsightError(f"{path} is damaged or gone: run it again, and that shard is made anew")
    return batch
