"""Opens an index whose meta data may be wrong: what it counts is counted anew in its tables and files."""

from __future__ import annotations

from contextlib import closing, suppress
from itertools import product
from pathlib import Path

import numpy as np

from indexer.store.database import HINT, open_database, read_meta_rows
from indexer.store.meta import COUNTS, LATER, MOST, MetaError, count_of, parse_meta
from indexer.store.reader import Store
from indexer.store.vectors import DamagedVectors, Vectors, block_rows
from training.errors import SparsightError


def open_leniently(folder: Path) -> tuple[Store, list[str]]:
    """An index opened with the counts that its tables have, whatever its meta data says; and where the two differ.

    Raises `SparsightError` where what the meta data has wrong does not follow from the tables.
    """
    con = open_database(folder)
    try:
        rows = read_meta_rows(con, folder)
    finally:
        con.close()
    stated = {key: rows.get(key) for key in COUNTS}
    rows |= {key: text if text and _is_count(key, text) else "0" for key, text in stated.items()}
    try:
        meta = parse_meta(rows, without=LATER)
        with Store(folder, meta=meta, check=False) as store:
            true = _true_counts(store)
        meta = parse_meta(rows | {key: str(value) for key, value in true.items()}, without=LATER)
    except MetaError as e:
        raise SparsightError(f"the index {folder} is damaged: in its meta data, {e}; {HINT}") from e
    differ = [
        f"{key} is {stated[key]} in the meta data, {value} by the tables"
        for key, value in true.items()
        if stated[key] != str(value)
    ]
    return Store(folder, meta=meta, check=False), differ


def _is_count(key: str, text: str) -> bool:
    number = count_of(text)
    return number is not None and (number < MOST or key == "thumbnail_bytes")


def _true_counts(store: Store) -> dict[str, int]:
    """The counts as the tables have them; one that cannot be read, or does not contradict them, is as stated."""
    meta = store.meta
    true = {"generation": meta.generation, "d": _dimensions(store)}
    with suppress(SparsightError):
        n, last, row = store.rows(
            "SELECT count(*), coalesce(max(image_id), -1), coalesce(max(vector_row), -1) FROM images"
        )[0]
        true["n"], true["next_id"] = n, max(meta.next_id, last + 1)
        true["vector_rows"], true["vector_block"] = _true_rows(store, row + 1, true["d"] if meta.keeps_vectors else 0)
        true["thumbnail_bytes"] = _true_thumbnail_bytes(store)
    with suppress(SparsightError):
        true["m"] = store.rows("SELECT count(*) FROM concepts")[0][0]
    with suppress(SparsightError):
        true["nnz"] = int(store.rows("SELECT coalesce(sum(count), 0) FROM posting_blocks")[0][0])
    return true


def _true_rows(store: Store, used: int, d: int) -> tuple[int, int]:
    """How many rows the vectors' file has, and how many of them share a checksum: as stated, or as the pictures and the
    writer have it, whichever the last checksum bears out. used: rows up to the last picture's."""
    stated = store.meta.vector_rows, store.meta.vector_block
    path, usual = store.folder / store.meta.vectors_file, block_rows(d)
    crcs = store.columns("SELECT crc FROM vector_blocks ORDER BY block")["crc"].astype(np.uint32)
    for rows, block in dict.fromkeys(product((stated[0], used), (stated[1], usual))):
        if block and -(-rows // block) == len(crcs):
            with suppress(DamagedVectors, OSError), closing(Vectors(path, rows, d, block, crcs)) as vectors:
                vectors.take(np.arange(rows)[-1:])
                return rows, block
    fits = stated[1] and -(-stated[0] // stated[1]) == len(crcs)
    return stated if fits else (min(used, MOST - 1), usual)


def _true_thumbnail_bytes(store: Store) -> int:
    """At least as many as the places of thumbnails, within the file, ask for."""
    try:
        size = (store.folder / store.meta.thumbnails_file).stat().st_size
    except OSError:
        size = 0
    end = "thumbnail_start::HUGEINT + thumbnail_bytes"
    within = f"SELECT max({end}) FROM images WHERE {end} <= ? AND thumbnail_bytes >= 0"
    return max(store.meta.thumbnail_bytes, int(store.rows(within, [size])[0][0] or 0))


def _dimensions(store: Store) -> int:
    """d, by the column of the atoms; 0 where there is none."""
    where = "database_name = 'store' AND table_name = 'concepts' AND column_name = 'atom'"
    kinds = store.rows(f"SELECT data_type FROM duckdb_columns() WHERE {where}")
    size = kinds[0][0].removeprefix("FLOAT[").removesuffix("]") if kinds else ""
    return int(size) if size.isdecimal() else 0
