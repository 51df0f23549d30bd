"""Changes in place: each is one transaction, which the dense index follows; and removal."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from indexer.store.dense import build_dense, cached_dense, save_dense
from indexer.store.lock import writing
from indexer.store.store import Change, Store, change_store
from training.errors import CallError, SparsightError
from training.files import path_text


def remove_pictures(folder: Path, targets: Sequence[str], *, missing: bool = False) -> list[tuple[int, str]]:
    """Removes pictures by id, by path, by the folder above them, or all whose file is gone; returns ids and paths.

    Raises `CallError` for a target that names no picture; then nothing is removed.
    """
    Store(folder).close()
    with writing(folder, "remove"), Store(folder) as store:
        known = store.known_files()
        path_of = {image_id: path for path, (image_id, _) in known.items()}
        chosen: dict[int, str] = {}
        for target in targets:
            ids = _named(target, known, path_of)
            if not ids:
                raise CallError(f"{target} names no picture of {folder}: give an id, a path or a folder of pictures")
            chosen |= {i: path_of[i] for i in ids}
        if missing:
            chosen |= _missing(folder, path_of)
        if chosen:
            commit(folder, store, Change(removed=sorted(chosen)))
    return sorted(chosen.items())


def commit(folder: Path, store: Store, change: Change) -> None:
    """Changes the database, then the dense index beside it: that is grown, or made anew where pictures are removed."""
    factory = store.meta["dense_factory"]
    grown: list = []

    def build(X: np.ndarray) -> None:  # before the change: a factory may find too few pictures left to train on
        index = None if change.removed else cached_dense(store)
        if index is None:
            index = build_dense(X, factory)
        elif change.added is not None and len(change.added.X):
            index.add(np.ascontiguousarray(change.added.X, np.float32))
        grown.append(index)

    change_store(folder, change, build)
    with Store(folder) as now, suppress(SparsightError):  # a cache: it is made anew where it is missing
        save_dense(folder, grown[0], now.meta["dense_key"])


def _named(target: str, known: dict[str, tuple[int, str | None]], path_of: dict[int, str]) -> list[int]:
    if target.isascii() and target.isdigit():
        return [int(target)] if int(target) in path_of else []
    for path in dict.fromkeys((path_text(target), path_text(os.path.abspath(target)))):
        if path in known:
            return [known[path][0]]
        if below := [i for i, p in path_of.items() if p.startswith(path.rstrip(os.sep) + os.sep)]:
            return below
    return []


def _missing(folder: Path, path_of: dict[int, str]) -> dict[int, str]:
    files = {i: p for i, p in path_of.items() if os.path.isabs(p)}
    if not files:
        raise CallError(f"--missing: the pictures of {folder} were not indexed from files")
    gone = {i: p for i, p in files.items() if not file_exists(p)}
    if len(gone) == len(files):
        raise SparsightError(
            f"--missing: none of the {len(files)} files is there, {path_text(min(files.values()))} for one; is their "
            "drive mounted? To empty the index, remove their folder by its name"
        )
    return gone


def file_exists(path: str) -> bool:
    """Whether a path of the index, written as `path_text` does, is there on disk (a link that leads nowhere is not)."""
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda m: bytes([int(m[1], 16)]), os.fsencode(path))
    return os.path.exists(path) or os.path.exists(raw)
