"""Additions in place: what is new or changed below a path is encoded, coded and committed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from indexer.build import bar, encode_files
from indexer.change import commit, file_exists
from indexer.coding.coder import encode_sparse
from indexer.config import IndexConfig
from indexer.pictures.folders import Skipped, find_pictures, folder_labels
from indexer.plan import Plan, plan_addition
from indexer.store.journal import Journal
from indexer.store.lock import writing
from indexer.store.store import Change, Rows, Store
from training.encoders import Encoder, centre
from training.encoders.centring import CentredEncoder
from training.errors import SparsightError
from training.files import path_text


class Added(NamedTuple):
    """What an addition did: the plan, the ids of what it added, what it skipped, and the pictures there are now."""

    plan: Plan
    ids: list[int]
    skipped: list[Skipped]
    n: int


def add_pictures(
    folder: Path, paths: Sequence[Path], encoder: Encoder, *, batch_size: int = IndexConfig.batch_size
) -> Added:
    """Adds what the index does not hold of picture files, and of those below folders.

    encoder: the index's, not centred. Where a file's content has changed, its picture is replaced (by one with an id of
    its own); where a picture's file has moved, its path is. Pictures are coded as the index's are, against its
    dictionary. An index with folder labels takes those of pictures below its root. Stopped, an addition goes on
    from the batches that it had encoded. Raises `SparsightError` where a path is missing, or the encoder another.
    """
    Store(folder).close()  # refuses what is no index, before the lock makes a folder
    with writing(folder, "add"), Store(folder) as store:
        store.refuse_another(encoder)
        found, skipped = _find(paths)
        known = store.known_files()
        journal = Journal(folder, encoder)
        indexed = {content_hash for _, content_hash in known.values()}
        seen, more = encode_files(found, encoder, journal, batch_size, indexed)
        skipped += more
        plan = plan_addition(known, seen, file_exists)
        if plan.is_empty and set(skipped) <= {Skipped(*s) for s in store.skipped()}:
            journal.clear()
            return Added(plan, [], skipped, len(store))
        new_paths, hashes = [path for path, _ in plan.added], [h for _, h in plan.added]
        X = journal.vectors(hashes) if hashes else np.zeros((0, store.d), np.float32)
        if (means := store.means()) is not None:
            X = centre(X, means.image)
        places = _labels(store, [*new_paths, *plan.moved.values()])
        with bar("code", len(X)) as step:
            codes = encode_sparse(X, store.dictionary(), store.coder, device=encoder.device, progress=step)
        change = Change(
            removed=plan.removed,
            added=Rows(
                X=X,
                W=codes.W,
                paths=new_paths,
                splits=[places[p][0] for p in new_paths],
                labels=[places[p][1] for p in new_paths],
                terms=[None] * len(X),
                hashes=hashes,
                l1=codes.l1,
                gap=codes.gap,
                thumbnails=journal.thumbnails(hashes),
            ),
            moved={image_id: (path, *places[path]) for image_id, path in plan.moved.items()},
            skipped=skipped,
            classes=_new_classes(store, places, encoder),
        )
        first = int(store.meta["next_id"])
        commit(folder, store, change)
        journal.clear()
        return Added(plan, list(range(first, first + len(X))), skipped, len(store) + len(X) - len(plan.removed))


def _find(paths: Sequence[Path]) -> tuple[list[str], list[Skipped]]:
    found: dict[str, None] = {}
    skipped: list[Skipped] = []
    for path in paths:
        if path.is_dir():
            below, more = find_pictures(path)
            found |= dict.fromkeys(below)
            skipped += [Skipped(path_text(s.path), s.reason) for s in more]
        elif os.path.lexists(path):
            found[os.path.abspath(path)] = None
        else:
            raise SparsightError(f"{path_text(path)} does not exist: give picture files or folders")
    return list(found), skipped


def _labels(store: Store, paths: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
    """Split and label of each path, where the index takes them from the folders below its root."""
    root = store.meta["dataset"]
    if store.meta["labels"] != "folders":
        return dict.fromkeys(paths, (None, None))
    below = [p for p in paths if p.startswith(root.rstrip(os.sep) + os.sep)]
    splits, labels = folder_labels(below, root)
    return dict.fromkeys(paths, (None, None)) | dict(zip(below, zip(splits, labels, strict=True), strict=True))


def _new_classes(
    store: Store, places: dict[str, tuple[str | None, str | None]], encoder: Encoder
) -> tuple[list[str], np.ndarray] | None:
    """Classes that only the added pictures have, embedded as the index's were."""
    known, _ = store.classes()
    names = sorted({label for _, label in places.values() if label is not None} - set(known))
    if not names:
        return None
    means = store.means()
    embedder = encoder if means is None else CentredEncoder(encoder, means)
    return names, embedder.encode_concepts(names, store.templates)
