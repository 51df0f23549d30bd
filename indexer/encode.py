"""From pictures to embeddings: what neither the journal nor the index holds is encoded, and kept in the journal."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np

from indexer.pictures import Picture, Skipped, quiet_pillow, read_pictures, thumbnail
from indexer.store import Journal, Skip
from training.encoders import Encoder
from training.files import path_text
from training.terminal import progress


class Seen(NamedTuple):
    """What a file was found to hold: the SHA-256 of its bytes, their number, and its time of change (ns since 1970),
    None where the file is so new that a later change might leave that time as it is."""

    content_hash: str
    size: int
    changed: int | None


@dataclass
class FilesRead:
    """seen: what each path, as text, holds, in their order · skipped: what was not taken."""

    seen: dict[str, Seen] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)

    def take(self, p: Picture | Skipped) -> bool:
        """Notes what a file holds; False for one that is not taken."""
        path = path_text(p.path)
        if isinstance(p, Skipped):
            self.skipped.append(Skip(path, p.reason))
        elif path in self.seen:  # a name that is no UTF-8 beside one that spells it out as \xNN
            self.skipped.append(Skip(path, "another picture's path reads the same"))
        else:
            self.seen[path] = Seen(p.content_hash, p.size, p.changed)
            return True
        return False


def encode_files(
    paths: Sequence[str],
    encoder: Encoder,
    journal: Journal,
    batch_size: int,
    indexed: Container[str] = frozenset(),
) -> FilesRead:
    """Reads picture files; pictures that neither the journal nor the index (its content hashes) holds are encoded.

    They are prepared for the tower as they are read, so that no more of them is in memory than two batches of what it
    takes, whatever their sizes.
    """
    found, batch_size = FilesRead(), min(batch_size, encoder.batch)
    with progress("encode", len(paths)) as step, quiet_pillow():
        held = lambda content_hash: content_hash in journal or content_hash in indexed  # noqa: E731
        read = read_pictures(paths, encoder.prepare, encoder.image_size, ahead=batch_size, known=held)
        counted = _counted(read, step)
        while batch := list(islice(counted, batch_size)):
            new = _new_pictures(batch, found, journal)
            if new:
                X = encoder.encode_images([p.prepared for p in new.values()])
                journal.add(list(new), X, [p.thumbnail for p in new.values()])
    return found


def _counted(read: Iterable[Picture | Skipped], step: Callable[[int], object]) -> Iterator[Picture | Skipped]:
    """Counts each file as it is read, which takes most of the time: a batch of large pictures takes half a minute."""
    for p in read:
        step(1)
        yield p


def _new_pictures(batch: Sequence[Picture | Skipped], found: FilesRead, journal: Journal) -> dict[str, Picture]:
    """Notes what a batch of files holds; returns the pictures that are to be encoded, by content."""
    new: dict[str, Picture] = {}
    for p in batch:
        if found.take(p) and isinstance(p, Picture) and p.prepared is not None and p.content_hash not in journal:
            new[p.content_hash] = p
    return new


def encode_pixels(
    pixels: np.ndarray, hashes: Sequence[str], encoder: Encoder, journal: Journal, batch_size: int
) -> None:
    """Encodes pictures (n, h, w, 3) uint8 that are in memory, where the journal does not hold them."""
    with progress("encode", len(hashes)) as step:
        for start in range(0, len(hashes), batch_size):
            rows = range(start, min(start + batch_size, len(hashes)))
            new = {hashes[i]: i for i in rows if hashes[i] not in journal}
            if new:
                part = pixels[list(new.values())]
                journal.add(list(new), encoder.encode_images(part), [thumbnail(p) for p in part])
            step(len(rows))
