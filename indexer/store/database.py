"""What DuckDB needs around it: connections that touch nothing but an index, faults told in one line, arrays as rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from indexer.store.schema import FORMAT
from training.errors import SparsightError
from training.files import path_text, shown_path

DATABASE = "index.duckdb"
# No statement looks for anything outside the files that it names, and nothing is fetched.
SETTINGS: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
    "temp_directory": "",
}
WAL = f"{DATABASE}.wal"  # no index of ours has one
STORAGE_VERSION = "v1.4.0"  # DuckDB from 1.4 on opens it
HINT = "rebuild it, or mend it with `sparsight doctor --repair`"
# What DuckDB raises on a damaged file: C++ exceptions that are none of its own arrive as Python's.
FAULTS = (duckdb.Error, RuntimeError, ValueError, IndexError, MemoryError)


def connect() -> duckdb.DuckDBPyConnection:
    """A connection of its own to an empty database in memory; every connection is made here.

    DuckDB would hand the connection of an open file on, however old its state.
    """
    con = duckdb.connect(config=SETTINGS)
    con.execute("SET enable_progress_bar = false")  # it would be drawn on stdout
    return con


def refuse_unreadable_path(path: Path, characters: str = "?\\") -> None:
    r"""Raises `SparsightError` for a path that DuckDB cannot open a database at: it takes ? and \ for syntax of its
    own, and cannot name bytes that are no UTF-8. Asked before any work."""
    text = os.fspath(path)
    wrong = [c for c in characters if c in text]
    if not _is_utf8(text):
        wrong.append("a byte that is no UTF-8")
    if wrong:
        raise SparsightError(
            f"DuckDB opens no file at {path_text(text)}: the path has {wrong[0]}; choose another folder"
        )


def _is_utf8(text: str) -> bool:
    return text.isascii() or text == text.encode("utf-8", "ignore").decode()


@contextmanager
def told_as(tell: Callable[[str], str]) -> Iterator[None]:
    """Raises `SparsightError` with `tell(the fault's first line)` for whatever DuckDB raises in the block.

    An interrupt stays one: a Ctrl-C that arrives while a statement runs in the main thread is a bare RuntimeError of
    DuckDB's, one that another thread passes on is an `InterruptException`.
    """
    try:
        yield
    except FAULTS as e:
        raise_interrupts(e)
        raise SparsightError(tell(first_line(e))) from e


def raise_interrupts(e: BaseException) -> None:
    """Raises `KeyboardInterrupt` where that is what DuckDB has made a fault of its own of.

    One that comes while DuckDB runs Python, as it does to read an array's type, is a plain `duckdb.Error` whose text is
    Python's traceback.
    """
    interrupted = isinstance(e, duckdb.InterruptException)
    interrupted |= type(e) is RuntimeError and str(e) == "Query interrupted"
    interrupted |= type(e) is duckdb.Error and str(e).strip().splitlines()[-1:] == ["KeyboardInterrupt:"]
    if interrupted:
        raise KeyboardInterrupt from e


def first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]


def inode(path: Path) -> int | None:
    """The file that a path names now; None where there is none."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def shards_in(folder: Path) -> list[Path]:
    """The folders in a folder that are indexes, by name; those that begin with a point are in the making."""
    try:
        return sorted(p for p in folder.iterdir() if p.name[0] != "." and (p / DATABASE).is_file())
    except OSError:
        return []


def refuse_no_index(folder: Path) -> None:
    """Raises `SparsightError` where a folder holds no index, or one that another program is changing."""
    refuse_unreadable_path(folder)
    path = folder / DATABASE
    if not path.is_file():
        if shards := shards_in(folder):
            raise SparsightError(
                f"{shown_path(folder)} is a folder of shards, and this is done to one index: name the one that it is "
                f"for, as --index {shown_path(shards[0])}"
            )
        what = "is not a file" if os.path.lexists(path) else "is missing"
        raise SparsightError(
            f"no index in {shown_path(folder)}: {shown_path(path)} {what}; build one with `sparsight index`"
        )
    if os.path.lexists(folder / WAL):  # its changes would be read, but not be in the copy that a change is made on
        raise SparsightError(
            f"another program has changed {path} and left {WAL}: open and close it there to keep the change, or put it "
            "aside with `sparsight doctor --repair`"
        )


def open_database(folder: Path) -> duckdb.DuckDBPyConnection:
    """A connection that reads an index's database as `store`, whatever is in it.

    Raises `SparsightError` where there is none, it is no DuckDB database, or another program is changing it.
    """
    refuse_no_index(folder)
    path = folder / DATABASE
    con = connect()
    try:
        con.execute(f"ATTACH {quoted(path)} AS store (TYPE duckdb, READ_ONLY)")  # else it fetches SQLite's extension
        con.execute("USE store")
    except FAULTS as e:
        con.close()
        raise_interrupts(e)
        held = "Could not set lock" in str(e)
        hint = "close it in the program that has it open" if held else HINT
        raise SparsightError(f"{path} is not a readable index: {first_line(e)}; {hint}") from e
    return con


def read_meta_rows(con: duckdb.DuckDBPyConnection, folder: Path) -> dict[str, str]:
    """The rows of the table `meta`; raises `SparsightError` where it cannot be read, or is of another format."""
    path = folder / DATABASE
    with told_as(lambda reason: f"{path} is not a readable index: {reason}; {HINT}"):
        rows = {str(k): str(v) for k, v in con.execute("SELECT key, value FROM meta").fetchall()}
    if (version := rows.get("format", "missing")) != str(FORMAT):
        hint = "rebuild it"
        if version in ("2", "3"):
            hint = "carry it over into a new folder: `sparsight import OLD --index NEW`, or build it anew"
        raise SparsightError(f"{path} has format {version[:40]}, this sparsight reads {FORMAT}; {hint}")
    return rows


@contextmanager
def writable(database: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that writes a database in one transaction; after it all is in that one file, no log is left."""
    refuse_unreadable_path(database)
    con = connect()
    try:
        con.execute(f"ATTACH {quoted(database)} AS store (STORAGE_VERSION '{STORAGE_VERSION}')")
        con.execute("USE store")
        con.execute("BEGIN")
        yield con
        con.execute("COMMIT")
        con.execute("CHECKPOINT store")  # DETACH does too, but does not say why it fails
        con.execute("USE memory")
        con.execute("DETACH store")
    finally:
        con.close()


def insert(
    con: duckdb.DuckDBPyConnection,
    table: str,
    columns: Mapping[str, Any],
    *,
    rows: np.ndarray | None = None,
    casts: Mapping[str, str] | None = None,
) -> None:
    """Inserts columns and, last, the rows of an array (n, d) as FLOAT[d].

    casts: SQL for a column that arrives as another type. A row is made of d columns, so that no list is aggregated
    and no order can be lost.
    """
    if not len(next(iter(columns.values()))):
        return  # DuckDB knows no type of an empty array of objects
    arrays = {name: v if isinstance(v, np.ndarray) else _objects(v) for name, v in columns.items()}
    chosen = [(casts or {}).get(name, name) for name in arrays]
    if rows is not None:
        parts = {f"x{j}": np.ascontiguousarray(rows[:, j], np.float32) for j in range(rows.shape[1])}
        arrays |= parts
        chosen.append(f"array_value({', '.join(parts)})")
    con.register("incoming", arrays)
    con.execute(f"INSERT INTO {table} SELECT {', '.join(chosen)} FROM incoming")
    con.unregister("incoming")


def stacked(column: np.ndarray, d: int) -> np.ndarray:
    """A column of FLOAT[d] as rows (n, d)."""
    return np.stack(list(column)).astype(np.float32) if len(column) else np.zeros((0, d), np.float32)


def ids_table(name: str) -> str:
    """SQL for ids as a table, bound as one list: a join with it reads only the row groups that hold one of them."""
    return f"(SELECT unnest(?::INTEGER[]) AS {name})"


def _objects(values: Sequence) -> np.ndarray:
    out = np.empty(len(values), object)
    for i, value in enumerate(values):  # at once, numpy would make a matrix of lists that are equally long
        out[i] = value
    return out


def quoted(path: Path | str) -> str:
    """A path, or any text, as an SQL literal."""
    return "'" + str(path).replace("'", "''") + "'"
