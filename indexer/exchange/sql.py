"""A person's SQL on an index: one query at a time, on a connection that can read nothing else and change nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import duckdb
import numpy as np

from indexer.store.database import FAULTS, first_line, open_database, raise_interrupts
from training.errors import CallError, SparsightError

LOCK = {  # of the connection that a person's SQL runs on, beyond `SETTINGS`; the last one makes the others final
    "allow_persistent_secrets": "false",
    "memory_limit": "'1GB'",
    "enable_external_access": "false",
    "lock_configuration": "true",
}
FAMILIARITY = "familiarity"  # a table that is made where a query names it
BATCH = 1000  # rows of its answer in memory at a time

T = TypeVar("T")


class Query:
    """One query of a person's on a locked connection that reads an index and can touch nothing else.

    columns: the names of its answer, each different. Raises `CallError` for what DuckDB refuses, in its own words.
    """

    def __init__(self, folder: Path, sql: str):
        self._con = _locked(folder, with_familiarity=FAMILIARITY in sql.casefold())
        try:
            self._sql = self._one_query(sql)
            self._run(lambda: self._con.execute(f"SELECT * FROM (\n{self._sql}\n) LIMIT 0"))
            self._types = [str(column[1]) for column in self._con.description or ()]
            self.columns = [str(column[0]) for column in self._con.description or ()]  # DuckDB tells the same apart
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Query:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._con.close()

    def texts(self) -> Iterator[tuple[str | None, ...]]:
        """Rows as DuckDB writes them."""
        return self._rows("#{}::VARCHAR" for _ in self.columns)

    def json_lines(self) -> Iterator[str]:
        """Rows as JSON objects: bytes are base64 (within lists and structs: as SQL writes them), NaN and Infinity
        are text, dates and the like are text as in SQL, decimals and huge integers are numbers."""
        keys = [json.dumps(name) for name in self.columns]
        chosen = ("to_json(to_base64(#{}))::VARCHAR" if t == "BLOB" else "to_json(#{})::VARCHAR" for t in self._types)
        for row in self._rows(chosen):
            values = ("null" if v is None else _finite(v) for v in row)
            yield _ascii("{" + ", ".join(f"{k}: {v}" for k, v in zip(keys, values, strict=True)) + "}")

    def _rows(self, chosen: Iterable[str]) -> Iterator[tuple]:
        selected = ", ".join(sql.format(i) for i, sql in enumerate(chosen, 1))
        self._run(lambda: self._con.execute(f"SELECT {selected} FROM (\n{self._sql}\n)"))
        while rows := self._run(lambda: self._con.fetchmany(BATCH)):
            yield from rows

    def _one_query(self, sql: str) -> str:
        """The text of the only statement, its semicolon and what follows cut off."""
        try:
            data = sql.encode()
        except UnicodeEncodeError as e:
            raise CallError("the SQL is not valid UTF-8") from e
        statements = self._run(lambda: self._con.extract_statements(sql))
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            kinds = ", ".join(s.type.name for s in statements) or "nothing"
            raise CallError(f"one query at a time (SELECT, FROM, WITH, DESCRIBE, SHOW, SUMMARIZE), this is: {kinds}")
        return data[: next((at for at, _ in duckdb.tokenize(sql) if data[at : at + 1] == b";"), len(data))].decode()

    def _run(self, work: Callable[[], T]) -> T:
        """In a thread of its own: DuckDB's loops are deaf to Ctrl-C, which then interrupts them from here."""
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(work)
            try:
                return running.result()
            except KeyboardInterrupt:
                self._con.interrupt()
                raise
            except (duckdb.OperationalError, duckdb.InternalError, duckdb.FatalException) as e:
                raise_interrupts(e)
                raise SparsightError(f"the query failed: {first_line(e)}") from e
            except duckdb.Error as e:
                raise_interrupts(e)
                raise CallError(first_line(e)) from e
            except FAULTS as e:  # of a damaged file
                raise SparsightError(f"the query failed: {first_line(e)}") from e


def _locked(folder: Path, *, with_familiarity: bool) -> duckdb.DuckDBPyConnection:
    """A connection with the index attached, read-only, as its default database, and every way out shut.

    with_familiarity: and a table `familiarity`, which is not stored: a picture's changes with what is known.
    """
    con = open_database(folder)
    try:
        if with_familiarity:
            _add_familiarity(con, folder)
        for setting, value in LOCK.items():
            con.execute(f"SET {setting} = {value}")
    except BaseException:
        con.close()
        raise
    return con


def _add_familiarity(con: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """The table `familiarity`: each picture's share of known pictures that lie as far out, or NULL."""
    from indexer.store.familiarity import index_familiarity, shares_of_all
    from indexer.store.reader import Store

    with Store(folder) as store:
        known = index_familiarity(store)
        shares = np.full(len(store), np.nan) if known is None else shares_of_all(store, known)
        con.register("incoming", {"image_id": store.image_ids.astype(np.int32), FAMILIARITY: shares})
    made = f"SELECT image_id, CASE WHEN isnan({FAMILIARITY}) THEN NULL ELSE {FAMILIARITY} END AS {FAMILIARITY}"
    con.execute(f"CREATE TEMP TABLE {FAMILIARITY} AS {made} FROM incoming")
    con.unregister("incoming")


def _ascii(line: str) -> str:
    """JSON with other characters escaped, as Python's own: it reads alike whatever the encoding of the output."""
    return line if line.isascii() else re.sub(r"[^\x00-\x7f]+", lambda m: json.dumps(m[0])[1:-1], line)


def _finite(text: str) -> str:
    """JSON with NaN and ±Infinity, which is none, as text."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    return re.sub(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN', lambda m: m[0] if m[0][0] == '"' else f'"{m[0]}"', text)
