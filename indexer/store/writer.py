"""Writes an index, changes it, compacts it: always so that there is the old index or the new one, and nothing between.

The database is never changed where it stands. It is built, or a copy of it changed, under another name in one
transaction, synced, and renamed; DuckDB's own locks would make every reader wait for a writer, and a writer for every
reader. It is small: the embeddings and thumbnails lie in files to which rows are only added (`vectors.py`,
`thumbnails.py`), before the database that counts them takes its place. So a change costs what it changes, and a copy
of what is small. The caller of every function here holds the folder's lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import copyfile

import duckdb
import numpy as np
from scipy import sparse

from indexer.store.contents import Change, Contents, Pictures
from indexer.store.database import (
    DATABASE,
    HINT,
    STORAGE_VERSION,
    connect,
    first_line,
    ids_table,
    inode,
    insert,
    quoted,
    raise_interrupts,
    writable,
)
from indexer.store.inserting import insert_classes, insert_pictures, insert_shared, insert_skipped
from indexer.store.meta import IndexMeta
from indexer.store.postings import Postings, pack_codes
from indexer.store.reader import Store
from indexer.store.residuals import remove_residuals
from indexer.store.schema import create_statements
from indexer.store.thumbnails import CASTS, Places, append_thumbnails, write_thumbnails
from indexer.store.vectors import (
    DamagedVectors,
    Gathered,
    RowSource,
    Vectors,
    append_vectors,
    block_rows,
    kept_rows,
    write_vectors,
)
from training.errors import SparsightError
from training.files import publish

DEAD_SHARE = 0.25  # of the stored rows: from here a change compacts
DATA_FILES = ("vectors-*.f32", "thumbnails-*.bin")


def write_store(folder: Path, c: Contents) -> IndexMeta:
    """Writes (or atomically replaces) the index of a folder; returns its meta data with all counts."""
    n, d = len(c.pictures), c.dictionary.D.shape[1]
    ids = np.arange(n) if c.ids is None else np.asarray(c.ids, np.int64)
    next_id = max(c.meta.next_id, int(ids[-1]) + 1 if n else 0)
    postings = _packed(c.pictures.W, ids, next_id)
    before = current_meta(folder)
    meta = replace(
        c.meta, n=n, d=d, m=len(c.dictionary.D), nnz=c.pictures.W.nnz, next_id=next_id, vector_block=block_rows(d),
        generation=before.generation + 1 if before else 1, residual=c.meta.residual if c.quantiser else "",
        residual_fingerprint=c.quantiser.fingerprint if c.quantiser else "",
    )  # fmt: skip
    with _replaced(folder) as making:
        meta, crcs, places = _new_files(making, meta, c.pictures.X, c.pictures.described.thumbnails or [None] * n)
        with writable(making.database) as con:
            con.execute(create_statements(d, meta.residual))
            insert_pictures(con, ids, np.arange(n), c.pictures, places)
            insert_shared(con, c, postings.images)
            insert(con, "posting_blocks", postings.block_columns())
            _insert_blocks(con, 0, crcs)
            _write_meta(con, meta)
        making.meta = meta
    return meta


def change_store(folder: Path, store: Store, change: Change) -> IndexMeta:
    """Makes a change to the index that `store` has open; returns its meta data afterwards.

    Costs the copy of the database, the rows that are added, and packing the postings anew of those concepts that a
    removed or added picture has. Where a quarter of the stored rows are of removed pictures, the files are compacted.
    """
    removed = sorted(set(change.removed))
    if not np.isin(removed, store.image_ids).all():
        raise ValueError("to be removed: an id that the index does not hold")
    added, before = change.added, store.meta
    count = len(added) if added is not None else 0
    ids = np.arange(before.next_id, before.next_id + count)
    concepts, postings, more = _changed_postings(store, removed, added, ids)
    meta = replace(
        before, n=before.n - len(removed) + count, nnz=before.nnz + more, next_id=before.next_id + count,
        generation=before.generation + 1, exclude=before.exclude if change.exclude is None else change.exclude,
    )  # fmt: skip
    with _replaced(folder) as making:
        copyfile(folder / DATABASE, making.database)
        if added is not None and count:
            meta, crcs, places = _grown_files(store, meta, added)
        with writable(making.database) as con:
            if removed:
                con.execute(f"DELETE FROM images WHERE image_id IN {ids_table('image_id')}", [removed])
                if before.residual:
                    remove_residuals(con, removed)
            _update_images(con, change)
            if added is not None and count:
                insert_pictures(con, ids, before.vector_rows + np.arange(count), added, places)
                first = before.vector_rows // before.vector_block
                con.execute("DELETE FROM vector_blocks WHERE block >= ?", [first])
                _insert_blocks(con, first, crcs[first:])
            if change.classes is not None:
                start = con.execute("SELECT count(*) FROM classes").fetchall()[0][0]
                insert_classes(con, start, change.classes)
            _update_postings(con, concepts, postings)
            _update_skipped(con, change)
            _write_meta(con, meta)
        if meta.dead > DEAD_SHARE * meta.vector_rows:
            meta = _compact(making, meta)
        making.meta = meta
    return meta


def compact_store(folder: Path, store: Store) -> IndexMeta:
    """Writes an index anew without the room that removed pictures took; returns its meta data afterwards."""
    meta = replace(store.meta, generation=store.meta.generation + 1)
    with _replaced(folder) as making:
        copyfile(folder / DATABASE, making.database)
        making.meta = meta = _compact(making, meta)
    return meta


def _new_files(
    making: _Making, meta: IndexMeta, X: RowSource, thumbnails: Iterable[bytes | None]
) -> tuple[IndexMeta, np.ndarray, Places]:
    """Writes the data files of a generation under names that no file has; returns the meta data that names them, the
    checksums of the vectors and the places of the thumbnails."""
    folder, number = making.folder, meta.generation
    while any((folder / name).exists() for name in _names(number)):
        number += 1
    vectors, pictures = _names(number)
    making.files += [folder / vectors, folder / pictures]
    rows, crcs = write_vectors(folder / vectors, kept_rows(X, meta.width), meta.width, meta.vector_block)
    size, places = write_thumbnails(folder / pictures, thumbnails, rows)
    meta = replace(meta, vectors_file=vectors, vector_rows=rows, thumbnails_file=pictures, thumbnail_bytes=size)
    return meta, crcs, places


def _names(number: int) -> tuple[str, str]:
    return f"vectors-{number}.f32", f"thumbnails-{number}.bin"


def _grown_files(store: Store, meta: IndexMeta, added: Pictures) -> tuple[IndexMeta, np.ndarray, Places]:
    """Adds pictures to the data files; returns as `_new_files` does, the places being those of what was added."""
    with store.vectors_trusted():
        rows, crcs = append_vectors(store.vectors, kept_rows(added.X, meta.width))
    path, thumbnails = store.folder / meta.thumbnails_file, added.described.thumbnails
    size, places = append_thumbnails(path, meta.thumbnail_bytes, thumbnails, len(added))
    return replace(meta, vector_rows=rows, thumbnail_bytes=size), crcs, places


def _compact(making: _Making, meta: IndexMeta) -> IndexMeta:
    """Writes new files of the pictures that there are, and the database in the making anew with their places."""
    folder, partial = making.folder, making.database
    small = partial.with_name(f"{partial.name}.small")
    con = connect()
    try:
        con.execute(f"ATTACH {quoted(partial)} AS store")
        con.execute("USE store")
        crcs = con.execute("SELECT crc FROM vector_blocks ORDER BY block").fetchnumpy()["crc"].astype(np.uint32)
        columns = "image_id, vector_row, " + ", ".join(f"coalesce({name}, -1) AS {name}" for name in CASTS)
        held = con.execute(f"SELECT {columns} FROM images ORDER BY image_id").fetchnumpy()
        ids, rows, starts, sizes, sums = (np.asarray(column, np.int64) for column in held.values())
        vectors = Vectors(folder / meta.vectors_file, meta.vector_rows, meta.width, meta.vector_block, crcs)
        thumbnails = _thumbnails_at(folder / meta.thumbnails_file, starts, sizes)
        meta, crcs, places = _new_files(making, meta, Gathered(vectors, rows), thumbnails)
        places = places._replace(crc=sums.astype(np.uint32))  # those it was written with: damage must stay damage
        vectors.close()
        con.execute("BEGIN")
        _update_from(con, {"image_id": ids, "vector_row": np.arange(len(ids)), **places.columns()})
        con.execute("DELETE FROM vector_blocks")
        _insert_blocks(con, 0, crcs)
        _write_meta(con, meta)
        con.execute("COMMIT")
        con.execute(f"ATTACH {quoted(small)} AS small (STORAGE_VERSION '{STORAGE_VERSION}')")
        con.execute("COPY FROM DATABASE store TO small")
        con.execute("CHECKPOINT small")
        con.execute("DETACH small")
    except DamagedVectors as e:
        raise SparsightError(
            f"the index {folder} is damaged: its embeddings are not those written ({e}); {HINT}"
        ) from e
    finally:
        con.close()
    small.replace(partial)
    return meta


def _thumbnails_at(path: Path, starts: np.ndarray, sizes: np.ndarray) -> Iterator[bytes | None]:
    """The bytes at some places, as they lie."""
    with path.open("rb") as f:
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            if start < 0:
                yield None
            else:
                f.seek(start)
                yield f.read(size)


def _changed_postings(
    store: Store, removed: Sequence[int], added: Pictures | None, ids: np.ndarray
) -> tuple[list[int], Postings | None, int]:
    """The concepts that a removed or an added picture has, their postings after the change, and by how many postings
    there are more."""
    gone = np.concatenate([concepts for concepts, _ in store.codes_of(removed)] or [np.zeros(0, np.int32)])
    new = added.W if added is not None else sparse.csr_matrix((0, store.meta.m), dtype=np.float32)
    touched = np.union1d(gone, new.indices).astype(int).tolist()
    if not touched:
        return [], None, 0
    indptr, held, weights = store.postings(touched).columns()
    kept = sparse.csc_matrix((weights, held, indptr), shape=(store.meta.next_id, store.meta.m)).tocsr()
    rows = np.flatnonzero(np.diff(kept.indptr))
    rows = rows[~np.isin(rows, removed)]
    W = sparse.csr_matrix(sparse.vstack([kept[rows], new]))
    next_id = store.meta.next_id + len(ids)
    return touched, _packed(W, np.append(rows, ids), next_id), new.nnz - len(gone)


def _packed(W: sparse.csr_matrix, ids: np.ndarray, next_id: int) -> Postings:
    try:
        return pack_codes(W, ids, next_id)
    except ValueError as e:
        raise SparsightError(f"cannot store the codes: {e}") from e


def _insert_blocks(con: duckdb.DuckDBPyConnection, first: int, crcs: np.ndarray) -> None:
    blocks = np.arange(first, first + len(crcs), dtype=np.int32)
    insert(con, "vector_blocks", {"block": blocks, "crc": crcs})


def _update_skipped(con: duckdb.DuckDBPyConnection, change: Change) -> None:
    """What is said of paths that were skipped before, and are now taken or skipped again, goes."""
    paths = [s.path for s in change.skipped] + [m.path for m in change.moved.values()]
    paths += change.added.described.paths if change.added is not None else ()
    con.execute("DELETE FROM skipped WHERE path IN (SELECT unnest(?::VARCHAR[]))", [paths])
    insert_skipped(con, change.skipped)


def _update_images(con: duckdb.DuckDBPyConnection, change: Change) -> None:
    for image_id, moved in change.moved.items():
        values = [moved.path, moved.split, moved.label, image_id]
        con.execute("UPDATE images SET path = ?, split = ?, label = ? WHERE image_id = ?", values)
    if change.seen:
        seen = np.array([(i, *stamp) for i, stamp in change.seen.items()], np.int64)
        _update_from(con, {"image_id": seen[:, 0], "file_bytes": seen[:, 1], "file_changed": seen[:, 2]})


def _update_from(con: duckdb.DuckDBPyConnection, columns: dict[str, Sequence | np.ndarray]) -> None:
    """Sets columns of `images` by image_id."""
    con.execute("CREATE TEMP TABLE updated AS SELECT " + ", ".join(columns) + " FROM images LIMIT 0")
    insert(con, "temp.updated", columns, casts=CASTS if "thumbnail_start" in columns else None)
    sets = ", ".join(f"{name} = updated.{name}" for name in columns if name != "image_id")
    con.execute(f"UPDATE images SET {sets} FROM temp.updated AS updated WHERE images.image_id = updated.image_id")
    con.execute("DROP TABLE temp.updated")


def _update_postings(con: duckdb.DuckDBPyConnection, concepts: list[int], postings: Postings | None) -> None:
    if postings is None:
        return
    con.execute(f"DELETE FROM posting_blocks WHERE concept_id IN {ids_table('concept_id')}", [concepts])
    insert(con, "posting_blocks", postings.block_columns())
    counts = {"concept_id": np.array(concepts), "images": postings.images[concepts]}
    con.register("incoming", counts)
    con.execute(
        "UPDATE concepts SET images = incoming.images FROM incoming "
        "WHERE concepts.concept_id = incoming.concept_id AND concepts.images <> incoming.images"
    )
    con.unregister("incoming")


def _write_meta(con: duckdb.DuckDBPyConnection, meta: IndexMeta) -> None:
    rows = meta.rows()
    con.execute("DELETE FROM meta")
    insert(con, "meta", {"key": list(rows), "value": list(rows.values())})


def unused_files(folder: Path, meta: IndexMeta) -> list[Path]:
    """The data files of a folder that its database does not name, left by a writer that died."""
    held = {meta.vectors_file, meta.thumbnails_file}
    if not all((folder / name).is_file() for name in held):
        return []  # what the database says of its files is not to be trusted
    return [path for path in data_files(folder) if path.name not in held]


def data_files(folder: Path) -> list[Path]:
    """The files of a folder that are named as those beside the database are."""
    return sorted(p for pattern in DATA_FILES for p in folder.glob(pattern) if not p.is_dir())


@dataclass
class _Making:
    """A state of an index in the making: its folder, the path of its database, the data files written for it, and, once
    it is whole, what it says of itself."""

    folder: Path
    database: Path
    files: list[Path] = field(default_factory=list)
    meta: IndexMeta | None = None


@contextmanager
def _replaced(folder: Path) -> Iterator[_Making]:
    """A state in the making, which becomes the index's when the block ends, or is as if never begun.

    Then the data files that it does not name are removed: those of the earlier state, and what a writer that died has
    left. Who has one open reads on.
    """
    making = _Making(folder, folder / f".{DATABASE}.{os.getpid()}.part")
    earlier = inode(folder / DATABASE)
    try:
        yield making
        publish(making.database, folder / DATABASE)
    except (duckdb.Error, RuntimeError, OSError) as e:
        raise_interrupts(e)
        if type(e) is RuntimeError:
            raise
        reason = getattr(e, "strerror", None) or first_line(e)
        stands = "there is none yet" if earlier is None else "the earlier one is unchanged"
        if inode(folder / DATABASE) not in (earlier, None):  # the folder could not be synced
            stands = "the new one has taken its place, but may not outlive a loss of power"
        raise SparsightError(f"cannot write the index {folder}: {reason}; {stands}") from e
    finally:
        is_new = inode(folder / DATABASE) not in (earlier, None)
        unused = unused_files(folder, making.meta) if is_new and making.meta else making.files
        for path in (*folder.glob(f".*.{os.getpid()}.part*"), *unused):
            with suppress(OSError):
                path.unlink()


def current_meta(folder: Path) -> IndexMeta | None:
    """What the index that stands in a folder says of itself; None where there is none that can be read."""
    try:
        with Store(folder, check=False) as store:
            return store.meta
    except SparsightError:
        return None
