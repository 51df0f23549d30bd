"""A folder of pictures: which files are taken, how they are read, and what their folders say of them.

Every file with a picture's suffix, at any depth, in the order of their paths; what it holds is decided by its
content. Hidden files and folders are passed over, and so are those that nobody means (`passed.py`); links to folders
are not followed (so that no loop and nothing outside can be reached). What cannot be read is returned with its reason.
Files are read and decoded by threads
(Pillow releases the GIL) a bounded way ahead of the encoder: no more than `ahead` pictures are in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL.Image import Image

from indexer.config import THUMBNAIL
from indexer.pictures.files import PictureError, decode, read_file, shrunk
from indexer.pictures.passed import Excluded, Skipped, apple_double, nobody_means, suffixes, unread
from training.errors import SparsightError
from training.files import path_text

SPLITS = {"train", "test", "val", "valid", "validation"}
FRESH = 2_000_000_000  # nanoseconds: the coarsest clock of a file system, FAT's
WORKERS = min(8, os.cpu_count() or 1)

A = TypeVar("A")
B = TypeVar("B")


class Picture(NamedTuple):
    """A picture as read: SHA-256 of the file's bytes, their number, the file's time of change (`stamp`) · what the
    encoder takes of it, None where that was not needed · a small JPEG to show, of the whole picture."""

    path: str
    content_hash: str
    size: int
    changed: int | None
    prepared: Any = None
    thumbnail: bytes = b""


def find_pictures(root: Path, excluded: Excluded | None = None) -> tuple[list[str], list[Skipped]]:
    """The picture files below a folder as absolute paths, sorted, and what was not taken or could not be entered.

    The folder itself is taken whatever its name, unless it is `excluded`. Raises `SparsightError` where it is missing,
    no folder, or unreadable.
    """
    top = os.path.realpath(root)  # so that pictures have the same paths, whatever link led here
    excluded = excluded or Excluded(top)
    if reason := excluded.reason(top, top):
        return [], [Skipped(top, reason)]
    found: list[str] = []
    skipped: list[Skipped] = []
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if reason := _left_out(entry, is_folder, excluded, top):
                        skipped.append(Skipped(entry.path, reason))
                    elif entry.name.startswith("."):
                        continue
                    elif is_folder:
                        folders.append(entry.path)
                    elif entry.name.lower().endswith(suffixes()):
                        found.append(entry.path)
        except OSError as e:
            if folder == top:
                raise SparsightError(f"cannot index {path_text(root)}: {e.strerror}; give a folder of pictures") from e
            skipped.append(Skipped(folder, e.strerror or str(e)))
    return sorted(found, key=os.fsencode), sorted(skipped, key=lambda s: os.fsencode(s.path))


def _left_out(entry: os.DirEntry[str], is_folder: bool, excluded: Excluded, top: str) -> str | None:
    """Why a file or folder is not taken, where that is to be told: hidden ones and other kinds of files are not."""
    if is_folder:
        known = nobody_means(entry.path)
        return known or (None if entry.name.startswith(".") else excluded.reason(entry.path, top))
    if entry.name.startswith("."):
        return apple_double(entry.name)
    if entry.is_symlink() and os.path.isdir(entry.path):
        return "it is a link to a folder"
    if not entry.name.lower().endswith(suffixes()):
        reason = unread(entry.name)
        return reason and (excluded.reason(entry.path, top) or reason)
    return excluded.reason(entry.path, top)


def read_pictures(
    paths: Iterable[str],
    prepare: Callable[[Image], Any],
    size: int,
    *,
    ahead: int,
    workers: int = WORKERS,
    known: Callable[[str], bool] = lambda content_hash: False,
    opened: Callable[[str], tuple[bytes, int | None]] | None = None,
) -> Iterator[Picture | Skipped]:
    """Reads files, in their order, as pictures; at most `ahead` are read before their turn.

    prepare: what to keep of a picture, decoded so that its shorter side has at least twice `size` pixels.
    known: tells by a content hash which pictures need not be decoded. opened: gives the bytes that a path stands for
    and their time of change, where the paths are not those of files; it raises `PictureError` for what it cannot give.
    """
    from training.device import single_threads

    def read(path: str) -> Picture | Skipped:
        try:
            data, changed = (opened or open_file)(path)
            content_hash = hashlib.sha256(data).hexdigest()
            if known(content_hash):
                return Picture(path, content_hash, len(data), changed)
            image = decode(data, 2 * max(size, THUMBNAIL))
            return Picture(path, content_hash, len(data), changed, prepare(image), shrunk(image))
        except PictureError as e:
            return Skipped(path, str(e))

    with single_threads() as begin:
        yield from in_order(read, paths, workers=workers, ahead=ahead, begin=begin)


def hash_files(paths: Iterable[str]) -> Iterator[tuple[str, tuple[str, int, int | None] | str]]:
    """Each path with its content hash, size and time of change, or with the reason why it cannot be read."""

    def read(path: str) -> tuple[str, tuple[str, int, int | None] | str]:
        try:
            data, changed = open_file(path)
        except PictureError as e:
            return path, str(e)
        return path, (hashlib.sha256(data).hexdigest(), len(data), changed)

    return in_order(read, paths, workers=WORKERS, ahead=WORKERS)


def open_file(path: str) -> tuple[bytes, int | None]:
    """A file's bytes and its time of change (`stamp`)."""
    changed = stamp(path)
    return read_file(path), changed


def stamp(path: str) -> int | None:
    """A file's time of change (ns since 1970), taken before it is read: what changes after that changes the time too.

    None where the change is so recent that another one might fall into the same tick of the file system's clock.
    """
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError:
        return None
    return changed if time.time_ns() - changed > FRESH else None


def in_order(
    do: Callable[[A], B],
    items: Iterable[A],
    *,
    workers: int,
    ahead: int,
    begin: Callable[[], None] | None = None,
) -> Iterator[B]:
    """do(item) for each item, by threads; results in the items' order, at most `ahead` begun before their turn.

    begin: what each thread does first.
    """
    waiting: deque[Future[B]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=begin)
    try:
        for item in items:
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(do, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def folder_labels(
    paths: Sequence[str], root: Path | str, depth: int | None = None
) -> tuple[list[str | None], list[str | None]]:
    """(splits, labels) that folders give: of `root/tabby_cat/…/1.jpg` the label is "tabby cat".

    Where all folders of the first level are named as splits are (train, test, val), they are these, and those of
    the second level the labels. A picture above the class folders has no label. depth: 0 or 1, the folders above
    those that are labels, where other pictures have settled it.
    """
    top = os.path.realpath(root)  # so that pictures have the same paths, whatever link led here
    folders = [os.path.relpath(p, top).split(os.sep)[:-1] for p in paths]
    if depth is None:
        first = {f[0] for f in folders if f}
        depth = 1 if first and first <= SPLITS else 0
    splits = [f[0] if depth and f and f[0] in SPLITS else None for f in folders]
    return splits, [_spoken(f[depth]) if len(f) > depth else None for f in folders]


def _spoken(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", path_text(name))).strip() or path_text(name)
