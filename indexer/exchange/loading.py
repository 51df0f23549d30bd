"""The tables of an export, or of an index of an earlier format, on a connection: their columns and types checked.

A table of Parquet files that is large is not loaded: it is a view of them, and is read part by part, so that what is
imported need not fit into memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import duckdb
import numpy as np

from indexer.exchange.tables import CHECKSUMS, EVERY, FORMATS, NEW_IN_2, part_path
from indexer.store import DATABASE
from indexer.store.database import connect, open_database, quoted, told_as
from indexer.store.schema import FORMAT, RESIDUAL
from training.errors import SparsightError

ACCEPTED = {
    "INTEGER": r"U?(TINY|SMALL|BIG)?INT(EGER)?",
    "BIGINT": r"U?(TINY|SMALL|BIG)?INT(EGER)?",
    "FLOAT": r"FLOAT|DOUBLE",
    "FLOAT[]": r"(FLOAT|DOUBLE)\[\d*\]",
    "VARCHAR[]": r"VARCHAR\[\]",
}
OPTIONAL = ("codes", "vectors", *RESIDUAL)  # tables that an export need not have, or not each has
VIEWED = ("codes", "vectors", "thumbnails")  # tables that are read part by part
EARLIER = ("2", "3")  # formats of databases that can be taken over
EARLIER_SOURCES = {  # where such a database has what an export calls by another name
    "codes": "(SELECT p.*, i.path, k.name AS concept FROM store.postings p LEFT JOIN store.images i USING (image_id) "
    "LEFT JOIN store.concepts k USING (concept_id))",
}


class PartOf(NamedTuple):
    """A part of a table: the SQL that answers it, its first image, its last, and its rows."""

    sql: str
    first: int
    last: int
    rows: int


@dataclass
class Loaded:
    """Tables on a connection, and which there are; parts: SQL for each part of a table that is not in memory."""

    con: duckdb.DuckDBPyConnection
    source: Path
    tables: set[str] = field(default_factory=set)
    parts: dict[str, list[str]] = field(default_factory=dict)

    def column(self, sql: str) -> list:
        """The first column of what SQL answers."""
        return [row[0] for row in self.con.execute(sql).fetchall()]

    def arrays(self, sql: str) -> dict[str, np.ndarray]:
        """The columns of what SQL answers, as arrays."""
        with reading(self.source):
            return self.con.execute(sql).fetchnumpy()

    def refuse(self, where: str, sql: str, why: str) -> None:
        """Raises where a query finds anything; {} in `why` is the first thing it finds."""
        with reading(where):
            found = self.con.execute(f"{sql} LIMIT 1").fetchone()
        if found:
            raise SparsightError(f"{where}: {why.format(found[0])}; mend it, or export again")

    def rows(self, sql: str) -> list[tuple]:
        """What SQL answers."""
        with reading(self.source):
            return self.con.execute(sql).fetchall()

    def by_image(self, table: str) -> list[PartOf]:
        """A table in parts that have rows, the images of each after those of the part before it. Parts that overlap, as
        those of files that somebody has made otherwise, are taken as one."""
        found = []
        for sql in self.parts.get(table, [f"FROM {table}"]):
            first, last, rows = self.rows(f"SELECT min(image_id), max(image_id), count(*) FROM ({sql})")[0]
            if rows:
                found.append(PartOf(sql, first, last, rows))
        found.sort(key=lambda part: part.first)
        if any(a.last >= b.first for a, b in pairwise(found)):
            last, rows = max(p.last for p in found), sum(p.rows for p in found)
            return [PartOf(f"FROM {table}", found[0].first, last, rows)]
        return found


@contextmanager
def loaded(source: Path) -> Iterator[Loaded]:
    """The tables of the folder of an export, or of an index of an earlier format."""
    earlier = (source / DATABASE).is_file()
    con = open_database(source) if earlier else connect()
    held = Loaded(con, source)
    try:
        if earlier:
            con.execute("USE memory")
        for table in EVERY:
            if _take(held, table) if earlier else _read(held, table):
                held.tables.add(table)
        yield held
    finally:
        con.close()


def _take(held: Loaded, table: str) -> bool:
    """Loads a table of a database of an earlier format; False for one that none of them has."""
    if table in RESIDUAL:
        return False
    con, source, path = held.con, held.source, held.source / DATABASE
    with reading(path):
        if table == "meta":
            version = str(dict(con.execute("SELECT key, value FROM store.meta").fetchall()).get("format"))
            if version not in EARLIER:
                known = "it is the present one" if version == str(FORMAT) else f"{', '.join(EARLIER)} can be taken over"
                raise SparsightError(f"{source} is an index of format {version}: {known}; export it, and import that")
        file = EARLIER_SOURCES.get(table, f"store.{table}")
        _create(held, path, table, file)
        if table == "codes":
            sql = "SELECT (SELECT value FROM meta WHERE key = 'nnz'), (SELECT count(*)::VARCHAR FROM codes)"
            said, counted = con.execute(sql).fetchall()[0]
            if said != counted:
                raise SparsightError(f"{source}: meta says nnz = {said}, there are {counted} codes; build it anew")
    return True


def _read(held: Loaded, table: str) -> bool:
    """Loads a table's files; False where the export has none of a table that it may do without."""
    source = held.source
    path = next((p for f in FORMATS if (p := source / f"{table}.{f}").is_file()), None)
    if path is None:
        if table in OPTIONAL:
            return False
        raise lacking(source, table)
    format, parts = path.suffix[1:], [path]
    while (more := part_path(source, table, format, len(parts))).is_file():
        parts.append(more)
    wanted = {c.name: c.type for c in EVERY[table]}
    with reading(path):
        if format == "parquet":
            _create(held, path, table, _parquet(parts), parts=parts if table in VIEWED else ())
        else:
            text = {"FLOAT": "VARCHAR", "BLOB": "VARCHAR"}  # "nan"; base64
            columns = ", ".join(f"{c}: '{text.get(kind, kind)}'" for c, kind in wanted.items())
            options = "format = 'newline_delimited', hive_partitioning = false"
            file = f"read_json({_files(parts)}, {options}, columns = {{{columns}}})"
            missing = set(_missing_in_first_line(path, wanted))
            _create(held, path, table, file, {c: f"from_base64({c})" for c in wanted if wanted[c] == "BLOB"}, missing)
    if table == "meta":
        _compare_checksums(held)
    return True


def _compare_checksums(held: Loaded) -> None:
    """Raises `SparsightError` for the first file that is not the one whose checksum `meta` tells, if it tells any."""
    known = held.column(f"SELECT value FROM meta WHERE key = '{CHECKSUMS}'")
    for name, checksum in json.loads(known[0]).items() if known else ():
        path = held.source / name
        with reading(path), path.open("rb") as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != checksum:
                raise SparsightError(f"{path} is damaged: it is not the file that was written; build the shards again")


def lacking(source: Path, table: str) -> SparsightError:
    """The fault of an export without a table."""
    return SparsightError(f"{source} has no {table}.parquet or {table}.jsonl: export every table (but codes)")


def _create(
    held: Loaded,
    path: Path,
    table: str,
    source: str,
    taken: Mapping[str, str] = MappingProxyType({}),
    missing: Container[str] = (),
    parts: Sequence[Path] = (),
) -> None:
    """Makes a table of what a source holds, once its columns and types are found right; taken: SQL for a column that is
    held as another type; missing: columns that the source is only thought to have; parts: the Parquet files that the
    source is of, where a view of them is to stand for a table."""
    con = held.con
    rows = con.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
    found = {str(name): str(kind) for name, kind, *_ in rows if name not in missing}
    chosen = []
    for c in EVERY[table]:
        if c.name not in found:
            if c.name in NEW_IN_2:
                chosen.append(f"NULL::{c.type} AS {c.name}")
                continue
            raise SparsightError(f"{path} has no column {c.name}: it is not as `sparsight export` wrote it")
        is_text = source.startswith("read_json") and c.type in ("FLOAT", "BLOB")
        if not is_text and not re.fullmatch(ACCEPTED.get(c.type, re.escape(c.type)), found[c.name]):
            raise SparsightError(f"{path}: column {c.name} is {found[c.name]}, it must be {c.type}")
        chosen.append(f"({taken.get(c.name, c.name)})::{c.type} AS {c.name}")
    select = f"SELECT {', '.join(chosen)} FROM "
    con.execute(f"CREATE {'VIEW' if parts else 'TABLE'} {table} AS {select}{source}")
    if parts:
        held.parts[table] = [select + _parquet([p]) for p in parts]
    for c in EVERY[table]:
        if not c.nullable:
            why = f"{c.name} is missing in a row"
            held.refuse(path.name, f"SELECT 1 FROM {table} WHERE {c.name} IS NULL", why)


def _missing_in_first_line(path: Path, wanted: dict[str, str]) -> list[str]:
    with path.open(encoding="utf-8") as f:
        line = f.readline()
    try:
        keys = json.loads(line) if line else wanted
    except ValueError as e:
        raise SparsightError(f"{path} is damaged: its first line is no JSON ({e})") from e
    return [c for c in wanted if not isinstance(keys, dict) or c not in keys]


@contextmanager
def reading(where: Path | str) -> Iterator[None]:
    """Tells what DuckDB or the system raises in the block as a fault of what is read."""
    try:
        with told_as(lambda reason: f"cannot read {where}: {reason}; export again"):
            yield
    except OSError as e:
        raise SparsightError(f"cannot read {where}: {e.strerror}") from e


def _parquet(files: Sequence[Path]) -> str:
    return f"read_parquet({_files(files)}, hive_partitioning = false)"


def _files(files: Sequence[Path]) -> str:
    return f"[{', '.join(quoted(_literal(path)) for path in files)}]"


def _literal(path: Path) -> str:
    """A path as a glob that finds it alone."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))
