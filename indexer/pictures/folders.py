"""A folder of pictures: which files are taken, how they are read, and what their folders say of them.

Every file with a picture's suffix, at any depth, in the order of their paths; what it holds is decided by its
content. Hidden files and folders are passed over, links to folders are not followed (so that no loop and nothing
outside can be reached). What cannot be read is returned with its reason. Files are read and decoded by threads
(Pillow releases the GIL) a bounded way ahead of the encoder: no more than `ahead` pictures are in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from indexer.pictures.files import THUMBNAIL, PictureError, decode, read_file, shrunk, square
from training.errors import SparsightError
from training.files import path_text

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp")
SPLITS = {"train", "test", "val", "valid", "validation"}
WORKERS = min(8, os.cpu_count() or 1)

A = TypeVar("A")
B = TypeVar("B")


class Skipped(NamedTuple):
    """A file or folder that was not taken, and why."""

    path: str
    reason: str


class Picture(NamedTuple):
    """A picture as read: SHA-256 of the file's bytes · pixels (s, s, 3) uint8, None where they were not needed · a
    small JPEG to show."""

    path: str
    content_hash: str
    pixels: np.ndarray | None = None
    thumbnail: bytes = b""


def find_pictures(root: Path) -> tuple[list[str], list[Skipped]]:
    """The picture files below a folder as absolute paths, sorted, and what could not be entered.

    Raises `SparsightError` where the folder itself is missing, no folder, or unreadable.
    """
    top = os.path.abspath(root)
    found: list[str] = []
    skipped: list[Skipped] = []
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_symlink() and os.path.isdir(entry.path):
                        skipped.append(Skipped(entry.path, "it is a link to a folder"))
                    elif entry.name.lower().endswith(SUFFIXES):
                        found.append(entry.path)
        except OSError as e:
            if folder == top:
                raise SparsightError(f"cannot index {path_text(root)}: {e.strerror}; give a folder of pictures") from e
            skipped.append(Skipped(folder, e.strerror or str(e)))
    return sorted(found, key=os.fsencode), skipped


def read_pictures(
    paths: Iterable[str],
    size: int,
    *,
    ahead: int,
    workers: int = WORKERS,
    known: Callable[[str], bool] = lambda content_hash: False,
) -> Iterator[Picture | Skipped]:
    """Reads files, in their order, as pictures of `size` pixels a side; at most `ahead` are read before their turn.

    known: tells by a content hash which pictures need not be decoded.
    """

    def read(path: str) -> Picture | Skipped:
        try:
            data = read_file(path)
            content_hash = hashlib.sha256(data).hexdigest()
            if known(content_hash):
                return Picture(path, content_hash)
            image = decode(data, 2 * max(size, THUMBNAIL))
            return Picture(path, content_hash, square(image, size), shrunk(image))
        except PictureError as e:
            return Skipped(path, str(e))

    return in_order(read, paths, workers=workers, ahead=ahead)


def in_order(do: Callable[[A], B], items: Iterable[A], *, workers: int, ahead: int) -> Iterator[B]:
    """do(item) for each item, by threads; results in the items' order, at most `ahead` begun before their turn."""
    waiting: deque[Future[B]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(do, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def folder_labels(paths: Sequence[str], root: Path | str) -> tuple[list[str | None], list[str | None]]:
    """(splits, labels) that folders give: of `root/tabby_cat/…/1.jpg` the label is "tabby cat".

    Where all folders of the first level are named as splits are (train, test, val), they are these, and those of
    the second level the labels. A picture above the class folders has no label.
    """
    top = os.path.abspath(root)
    folders = [os.path.relpath(p, top).split(os.sep)[:-1] for p in paths]
    first = {f[0] for f in folders if f}
    depth = 1 if first and first <= SPLITS else 0
    splits = [f[0] if depth and f else None for f in folders]
    return splits, [_spoken(f[depth]) if len(f) > depth else None for f in folders]


def _spoken(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", path_text(name))).strip() or path_text(name)
