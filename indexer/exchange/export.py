"""Writes an index as plain files, Parquet or JSON lines, one table after the other, a large one in parts."""

from __future__ import annotations

import json
import os
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import duckdb
import numpy as np
from scipy import sparse

from indexer.exchange.tables import EVERY, EXPORT, PART, PARTS, exported_tables, part_path
from indexer.store import Store
from indexer.store.database import quoted, refuse_unreadable_path, told_as
from training.errors import CallError, SparsightError
from training.files import full_path, sync, sync_folder

ROW_GROUP = 1 << 13  # rows that Parquet's writer holds in memory

Columns = dict[str, np.ndarray]


class Tables(Protocol):
    """What can be exported: an open index, or some pictures on their way into one.

    con: a connection that has the tables but those in LARGE. image_ids (n,) ascending; d: dimensions of an embedding.
    """

    @property
    def con(self) -> duckdb.DuckDBPyConnection: ...
    @property
    def image_ids(self) -> np.ndarray: ...
    @property
    def d(self) -> int: ...
    def __len__(self) -> int: ...
    def codes(self) -> sparse.csr_matrix: ...
    def embeddings(self, rows: np.ndarray, /) -> np.ndarray: ...
    def thumbnails(self, image_ids: list[int], /) -> dict[int, bytes]: ...


def export_index(
    folder: Path, out: Path, format: str = "parquet", tables: Sequence[str] | None = None, *, part: int = PART
) -> dict[str, int]:
    """Writes tables of an index to the new folder `out`, which appears whole or not at all; returns rows by table.

    Everything comes from one state of the index, whatever another process commits meanwhile. format: parquet or jsonl;
    part: how many rows of embeddings one file takes at most, thumbnails a sixteenth of it. tables: all that the index
    has without it. Raises `SparsightError` where `out` is a file or holds anything, `CallError` for a table that the
    index does not have.
    """
    out = Path(os.path.realpath(full_path(out)))
    refuse_unreadable_path(out, "")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SparsightError(f"{out} is there already, and not an empty folder: name a new one")
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    with Store(folder) as store:
        held = exported_tables(store.meta)
        for table in tables or ():
            if table not in held:
                raise CallError(f"--tables {table}: {folder} keeps none; it has {', '.join(held)}")
        try:
            partial.mkdir(parents=True)
            with told_as(lambda reason: f"cannot export {folder} to {out}: {reason}"):
                rows = _write_tables(store, partial, format, held if tables is None else tables, part)
            sync_folder(partial)
            partial.rename(out)
            sync_folder(out.parent)
        except OSError as e:
            raise SparsightError(f"cannot write {out}: {e.strerror}; name another folder") from e
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return rows


def _write_tables(store: Store, out: Path, format: str, tables: Sequence[str], part: int) -> dict[str, int]:
    rows: dict[str, int] = {}
    parts: dict[str, int] = {}
    for table in [t for t in tables if t != "meta"] + [t for t in tables if t == "meta"]:
        sources = _sources(store, table, parts, part)
        rows[table], parts[table] = write_parts(store.con, out, table, sources, format)
    return {table: rows[table] for table in tables}


def write_parts(
    con: duckdb.DuckDBPyConnection,
    out: Path,
    table: str,
    sources: Iterable[str],
    format: str = "parquet",
    first: int = 0,
) -> tuple[int, int]:
    """Writes a table's parts, each what SQL answers, as files whose numbers begin with `first`; returns how many rows
    and how many parts there were."""
    columns = ", ".join(_written(c.name, c.type, format) for c in EVERY[table])
    kind = "json" if format == "jsonl" else f"parquet, ROW_GROUP_SIZE {ROW_GROUP}"
    rows, number = 0, first
    for source in sources:
        path = part_path(out, table, format, number)
        copied = con.execute(f"COPY (SELECT {columns} FROM ({source})) TO {quoted(path)} (FORMAT {kind})")
        rows, number = rows + copied.fetchall()[0][0], number + 1
        with path.open("rb") as f:
            sync(f.fileno())
    return rows, number - first


def _sources(store: Store, table: str, parts: dict[str, int], part: int) -> Iterator[str]:
    """SQL for each part of a table; what it names is there until the next is asked for."""
    if table == "meta":
        notes = {"export": str(EXPORT), PARTS: json.dumps(parts)}
        more = " ".join(f"UNION ALL SELECT {quoted(key)}, {quoted(value)}" for key, value in notes.items())
        yield f"SELECT key, value FROM meta {more}"
    else:
        yield from table_parts(store, table, part)


def table_parts(tables: Tables, table: str, part: int = PART) -> Iterator[str]:
    """SQL for each part of any table but `meta`; what it names is there until the next is asked for."""
    if table in LARGE:
        yield from _registered(tables.con, LARGE[table](tables, part))
    else:
        yield f"FROM {table}"


def _registered(con: duckdb.DuckDBPyConnection, parts: Iterator[tuple[Columns, str]]) -> Iterator[str]:
    for columns, sql in parts:
        con.register("part", columns)
        yield sql
        con.unregister("part")


def _codes(store: Tables, part: int) -> Iterator[tuple[Columns, str]]:
    codes = store.codes()
    size = 4 * part  # a picture has few of them
    for start in range(0, max(1, len(store)), size):
        W = codes[start : start + size].tocoo()
        ids = store.image_ids[start : start + size]
        columns = {"image_id": ids[W.row].astype(np.int32), "concept_id": W.col, "weight": W.data}
        among = f"BETWEEN {ids[0]} AND {ids[-1]}" if len(ids) else "< 0"  # so that only their rows are joined
        yield (
            columns,
            f"SELECT c.*, i.path, k.name AS concept FROM part c JOIN (FROM images WHERE image_id {among}) i "
            "USING (image_id) JOIN concepts k USING (concept_id) ORDER BY image_id, concept_id",
        )


def _vectors(store: Tables, part: int) -> Iterator[tuple[Columns, str]]:
    parts = [f"x{j}" for j in range(store.d)]
    for start in range(0, max(1, len(store)), part):
        places = np.arange(start, min(start + part, len(store)))
        X = np.ascontiguousarray(store.embeddings(places).T)
        columns = {"image_id": store.image_ids[places].astype(np.int32), **dict(zip(parts, X, strict=True))}
        yield columns, f"SELECT image_id, [{', '.join(parts)}] AS embedding FROM part"


def _thumbnails(store: Tables, part: int) -> Iterator[tuple[Columns, str]]:
    size = max(1, part // 4)  # they are larger than other rows
    for start in range(0, max(1, len(store)), size):
        found = store.thumbnails(store.image_ids[start : start + size].tolist())
        if not found and start:
            continue
        texts = np.array([b64encode(jpeg).decode() for jpeg in found.values()] or [""], object)
        columns = {"image_id": np.array(list(found) or [-1], np.int32), "jpeg": texts}
        yield columns, "SELECT image_id, from_base64(jpeg) AS jpeg FROM part WHERE image_id >= 0"


LARGE: dict[str, Callable[[Tables, int], Iterator[tuple[Columns, str]]]] = {
    "codes": _codes,
    "vectors": _vectors,
    "thumbnails": _thumbnails,
}


def _written(column: str, kind: str, format: str) -> str:
    """SQL for a column as a file has it."""
    if format == "parquet":
        return f"{column}::{kind} AS {column}"
    return {
        "FLOAT": f"({_number(column)})::JSON AS {column}",
        "FLOAT[]": f"('[' || array_to_string(list_transform({column}::FLOAT[], lambda x: {_number('x')}), ',') || ']')"
        f"::JSON AS {column}",
        "BLOB": f"to_base64({column}) AS {column}",
    }.get(kind, column)


def _number(x: str) -> str:
    """SQL for a float as JSON; DuckDB's own has 17 digits, and a bare NaN, which is no JSON."""
    return f"CASE WHEN isfinite({x}) THEN {x}::VARCHAR ELSE '\"' || {x}::VARCHAR || '\"' END"
