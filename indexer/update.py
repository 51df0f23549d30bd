"""Changes in place: every one opens the index once, plans, and commits what follows from the plan.

`add` takes what is new or changed below some paths, `remove` leaves out what is named or gone, `compact` gives back
the room of what was removed. A commit is `indexer.store.change_store`: all of it or nothing.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from indexer.build import describe_files
from indexer.coding import encode_sparse
from indexer.config import IndexConfig
from indexer.encode import FilesRead, Seen, encode_files
from indexer.milvus.address import Address
from indexer.milvus.held import HeldMilvus, held_milvus, work_folder
from indexer.milvus.measures import keep_measures
from indexer.pictures import Excluded, Skipped, find_pictures, folder_labels, hash_files
from indexer.plan import Plan, plan_addition
from indexer.residual import code_residuals
from indexer.store import Change, Classes, Journal, Moved, Pictures, Skip, compact_store
from indexer.store.held import Held, HeldFolder, held_folder, measure_folder
from indexer.store.naming import existing_file
from training.encoders import Encoder, centre
from training.encoders.centring import CentredEncoder
from training.errors import CallError, SparsightError
from training.files import path_text, real_place
from training.terminal import progress

MOST_MISSING = 0.1  # of an index's files: if more are gone, it is asked whether a drive is missing


def changing(place: Path | Address, command: str) -> AbstractContextManager[Held]:
    """The index at a place, opened once for a change, while nobody else changes it."""
    if isinstance(place, Address):
        return held_milvus(place, command)
    return held_folder(place, command)


def opened(place: Path | Address) -> AbstractContextManager[Held]:
    """The index at a place, to be read."""
    return HeldMilvus(place) if isinstance(place, Address) else HeldFolder(place)


@dataclass(frozen=True)
class Added:
    """What an addition did, or would do: the plan, the ids of what it added (none where nothing was done), what it
    skipped, and the pictures there are now."""

    plan: Plan
    skipped: Sequence[Skip]
    n: int
    ids: Sequence[int] = field(default_factory=list)


def add_pictures(
    place: Path | Address,
    paths: Sequence[Path],
    encoder: Encoder,
    *,
    batch_size: int = IndexConfig.batch_size,
    verify: bool = False,
    exclude: Sequence[str] = (),
) -> Added:
    """Adds what the index does not hold of picture files, and of those below folders.

    encoder: the index's, not centred. Where a file's content has changed, its picture is replaced (by one with an id of
    its own); where a picture's file has moved, its path is. A file of the size and time of change that the index knows
    is not read again; verify: it is. exclude: patterns of what is left out from now on, beside those that the index
    has; what it holds already stays. Pictures are coded as the index's are, against its dictionary. An index with
    folder labels takes those of pictures below its root. Stopped, an addition goes on from the batches that it had
    encoded. Raises `SparsightError` where a path is missing, or the encoder another.
    """
    with changing(place, "add") as store:
        store.meta.refuse_another(encoder, store.name)
        excluded = _excluded(store, exclude)
        found, skipped = _find(paths, excluded)
        unchanged, unread = _stamped(store, found, verify)
        journal = Journal(work_folder(place) if isinstance(place, Address) else place, encoder)
        indexed = store.contents() if unread else frozenset()
        read = encode_files(unread, encoder, journal, batch_size, indexed)
        plan = _plan(store, unchanged | read.seen)
        skipped += read.skipped
        change = _change(store, plan, read, skipped, journal, encoder)
        if excluded.patterns != store.meta.exclude:
            change = replace(change, exclude=excluded.patterns)
        if change.is_empty:
            journal.clear()
            return Added(plan, skipped, len(store))
        first = store.meta.next_id
        meta = store.change(change)
        means = store.means()
        _measure(place, encoder if means is None else CentredEncoder(encoder, means))
        journal.clear()
    return Added(plan, skipped, meta.n, list(range(first, meta.next_id)))


def _measure(place: Path | Address, encoder: Encoder) -> None:
    """Where an index has grown much, what scores mean in it, and what is familiar to it, is measured anew.

    encoder: centred as the index is."""
    if isinstance(place, Address):
        with HeldMilvus(place) as store:
            keep_measures(store, encoder.encode_texts, encoder.source)
    else:
        measure_folder(place, encoder.encode_texts, encoder.source)


def plan_add(
    place: Path | Address, paths: Sequence[Path], *, verify: bool = False, exclude: Sequence[str] = ()
) -> Added:
    """What `add_pictures` would do; changes nothing. Files are read, but not decoded: some may turn out to be no
    pictures."""
    with opened(place) as store:
        found, skipped = _find(paths, _excluded(store, exclude))
        unchanged, unread = _stamped(store, found, verify)
        read = FilesRead()
        with progress("read", len(unread)) as step:
            for path, seen in hash_files(unread):
                if isinstance(seen, str):
                    read.skipped.append(Skip(path_text(path), seen))
                else:
                    read.seen[path_text(path)] = Seen(*seen)
                step(1)
        return Added(_plan(store, unchanged | read.seen), skipped + read.skipped, len(store))


def _excluded(store: Held, more: Sequence[str]) -> Excluded:
    """What an index leaves out, and what it is to leave out beside that."""
    return Excluded(store.meta.root, tuple(dict.fromkeys((*store.meta.exclude, *more))))


def _find(paths: Sequence[Path], excluded: Excluded) -> tuple[list[str], list[Skip]]:
    """The picture files of some paths, absolute, and what is left out or could not be entered."""
    found: dict[str, None] = {}
    left: list[Skipped] = []
    for given in paths:
        path = existing_file(str(given))
        if path is None:
            raise SparsightError(f"{path_text(given)} does not exist: give picture files or folders")
        if path.is_dir():
            below, passed = find_pictures(path, excluded)
            found |= dict.fromkeys(below)
            left += passed
            continue
        file = str(real_place(path))
        if reason := excluded.reason(file, file):
            left.append(Skipped(file, reason))
        else:
            found[file] = None
    return list(found), [Skip(path_text(s.path), s.reason) for s in left]


def _stamped(store: Held, paths: Sequence[str], verify: bool) -> tuple[dict[str, Seen], list[str]]:
    """What the files hold that have the size and time of change that the index knows; and the paths of the others."""
    texts = {path: path_text(path) for path in paths}
    known = {} if verify else store.images_at(texts.values())
    unchanged: dict[str, Seen] = {}
    unread = []
    for path, text in texts.items():
        row = known.get(text)
        if row is not None and row.content_hash and row.file_changed is not None:
            try:
                status = os.stat(path)
            except OSError:
                status = None
            if status and (status.st_size, status.st_mtime_ns) == (row.file_bytes, row.file_changed):
                unchanged[text] = Seen(row.content_hash, status.st_size, status.st_mtime_ns)
                continue
        unread.append(path)
    return unchanged, unread


def _plan(store: Held, seen: dict[str, Seen]) -> Plan:
    hashes = {path: s.content_hash for path, s in seen.items()}
    rows = store.images_holding(set(hashes.values())) + list(store.images_at(seen).values())
    known = {row.path: (row.image_id, row.content_hash) for row in sorted(rows)}
    return plan_addition(known, hashes, file_exists)


def _change(
    store: Held, plan: Plan, read: FilesRead, skipped: Sequence[Skip], journal: Journal, encoder: Encoder
) -> Change:
    """What follows from a plan: the new pictures coded, and every other row that is to change."""
    paths, hashes = [path for path, _ in plan.added], [h for _, h in plan.added]
    X = journal.vectors(hashes) if hashes else np.zeros((0, store.meta.d), np.float32)
    means = store.means()
    if means is not None:
        X, encoder = centre(X, means.image), CentredEncoder(encoder, means)
    places = _folder_labels(store, [*paths, *plan.moved.values()])
    added = None
    if hashes:
        with progress("code", len(X)) as step:
            codes = encode_sparse(X, store.dictionary(), store.meta.coder, device=encoder.device, progress=step)
        described = describe_files(paths, read, journal, None)
        described = replace(described, splits=[places[p][0] for p in paths], labels=[places[p][1] for p in paths])
        quantiser = store.quantiser()
        residuals = code_residuals(X, codes.W, store.dictionary(), quantiser) if quantiser else None
        added = Pictures(X=X, W=codes.W, l1=codes.l1, gap=codes.gap, described=described, residuals=residuals)
    held = set(store.skipped()) if skipped else set()
    return Change(
        removed=plan.removed,
        added=added,
        moved={i: Moved(path=path, split=places[path][0], label=places[path][1]) for i, path in plan.moved.items()},
        seen=_stamps(store, plan, read),
        skipped=[] if set(skipped) <= held else skipped,
        classes=_new_classes(store, {label for _, label in places.values()}, encoder),
    )


def _stamps(store: Held, plan: Plan, read: FilesRead) -> dict[int, tuple[int, int]]:
    """Size and time of change of files that were read and whose pictures the index holds already."""
    known = store.images_at(path for path in plan.unchanged if path in read.seen)
    ids = {row.image_id: path for path, row in known.items()} | plan.moved
    found = {i: read.seen[path] for i, path in ids.items() if path in read.seen}
    return {i: (s.size, s.changed) for i, s in found.items() if s.changed is not None}


def _folder_labels(store: Held, paths: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
    """Split and label of each path, where the index takes them from the folders below its root."""
    root = store.meta.root
    if store.meta.labels != "folders":
        return dict.fromkeys(paths, (None, None))
    below = [p for p in paths if p.startswith(root.rstrip(os.sep) + os.sep)]
    splits, labels = folder_labels(below, root, _label_depth(store))
    return dict.fromkeys(paths, (None, None)) | dict(zip(below, zip(splits, labels, strict=True), strict=True))


def _label_depth(store: Held) -> int | None:
    """How many folders stand above those that are the labels, as the index's pictures tell; None where none does."""
    has_splits = store.has_splits()
    return None if has_splits is None else int(has_splits)


def _new_classes(store: Held, labels: set[str | None], encoder: Encoder) -> Classes | None:
    """Classes that only the added pictures have, embedded as the index's were."""
    names = sorted({label for label in labels if label is not None} - set(store.classes().names))
    return Classes(names, encoder.encode_concepts(names, store.meta.templates)) if names else None


def remove_pictures(
    place: Path | Address, targets: Sequence[str], *, missing: bool = False, sure: bool = False
) -> list[tuple[int, str]]:
    """Removes pictures by id, by path, by the folder above them, or all whose file is gone; returns ids and paths.

    sure: also where so many files are gone that their drive may be. Raises `CallError` for a target that names no
    picture, `SparsightError` where a drive may be missing; then nothing is removed.
    """
    with changing(place, "remove") as store:
        chosen = _chosen(store, targets, missing, sure)
        if chosen:
            store.change(Change(removed=[i for i, _ in chosen]))
    return chosen


def plan_removal(place: Path | Address, targets: Sequence[str], *, missing: bool = False) -> list[tuple[int, str]]:
    """The ids and paths that `remove_pictures` would remove; changes nothing."""
    with opened(place) as store:
        return _chosen(store, targets, missing, sure=True)


def compact(folder: Path) -> tuple[int, int]:
    """Gives back the room that removed pictures take; returns the bytes of the index before and afterwards."""
    with held_folder(folder, "compact") as store:
        before = _bytes(folder)
        compact_store(folder, store)
        return before, _bytes(folder)


def _bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))


def _chosen(store: Held, targets: Sequence[str], missing: bool, sure: bool) -> list[tuple[int, str]]:
    chosen: dict[int, str] = {}
    for target in targets:
        found = store.named(target)
        if not found:
            raise CallError(f"{target} names no picture of {store.name}: give an id, a path or a folder of pictures")
        chosen |= found
    return sorted((chosen | (_missing(store, sure) if missing else {})).items())


def _missing(store: Held, sure: bool) -> dict[int, str]:
    """The pictures whose files are gone; raises `SparsightError` where that looks like a drive that is not there."""
    files = {i: p for i, p in store.paths().items() if os.path.isabs(p)}
    if not files:
        raise CallError(f"--missing: the pictures of {store.name} were not indexed from files")
    gone = {i: p for i, p in files.items() if not file_exists(p)}
    if gone and not sure:
        first, hint = min(gone.values()), "is their drive mounted? --dry-run lists them, --yes removes them"
        if folder := _gone_folder(files, gone):
            raise SparsightError(f"--missing: all pictures in {folder} are gone, {first} for one; {hint}")
        if len(gone) > MOST_MISSING * len(files):
            raise SparsightError(f"--missing: {len(gone)} of {len(files)} files are gone, {first} for one; {hint}")
    return gone


def _gone_folder(files: dict[int, str], gone: dict[int, str]) -> str | None:
    """A folder that is missing or empty, or cannot be looked into, and held all pictures of one of the top folders."""
    top = os.path.commonpath([os.path.dirname(p) for p in files.values()])
    if len(gone) == len(files):
        return top
    first = lambda path: os.path.relpath(path, top).split(os.sep)[0]  # noqa: E731
    standing = {first(p) for i, p in files.items() if i not in gone}
    folders: dict[str, list[str]] = {}
    for path in gone.values():
        if first(path) not in standing and os.path.dirname(path) != top:
            folders.setdefault(first(path), []).append(os.path.dirname(path))
    common = (os.path.commonpath(below) for _, below in sorted(folders.items()))  # a drive may be mounted deeper down
    return next((folder for folder in common if _is_empty(folder)), None)


def _is_empty(folder: str) -> bool:
    try:
        return not os.listdir(on_disk(folder))
    except OSError:
        return True


def file_exists(path: str) -> bool:
    """Whether a path of the index is there on disk (a link that leads nowhere is not), or may be: a folder that may not
    be entered, or a drive that does not answer, tells nothing."""
    try:
        os.stat(on_disk(path))
    except ValueError:
        return False
    except OSError as e:
        return e.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
    return True


def on_disk(path: str) -> str | bytes:
    """A path of the index, written as `path_text` does, as the file system has it."""
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda m: bytes([int(m[1], 16)]), os.fsencode(path))
    return path if os.path.lexists(path) else raw
