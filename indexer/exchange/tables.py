"""An index as plain files (Parquet or JSON lines), back again, and SQL on it that can touch nothing else.

An export is a folder of one file a table. It holds ids, weights and floats exactly, and does not depend on the
layout of the database, so that an index moves by it between format versions, and out of a damaged one. `import`
believes nothing that it reads. Embeddings are plain lists there; in JSON lines a float has the fewest digits that
give it back, what is not finite is text ("nan", "inf"), and thumbnails are base64.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np
from scipy import sparse

from indexer.store.lock import writing
from indexer.store.store import (
    COUNTS,
    DATABASE,
    FAULTS,
    Contents,
    Store,
    first_line,
    open_database,
    raise_interrupts,
    write_store,
)
from training.encoders import Means
from training.errors import CallError, SparsightError
from training.files import write_whole

EXPORT = 1  # the version of these files; theirs alone, whatever the database's format
TABLES = {
    "meta": {"key": "VARCHAR", "value": "VARCHAR"},
    "images": {
        "image_id": "INTEGER",
        "path": "VARCHAR",
        "split": "VARCHAR",
        "label": "VARCHAR",
        "term": "VARCHAR",
        "content_hash": "VARCHAR",
        "l1": "FLOAT",
        "gap": "FLOAT",
    },
    "concepts": {
        "concept_id": "INTEGER",
        "name": "VARCHAR",
        "aliases": "VARCHAR[]",
        "parent": "VARCHAR",
        "source": "VARCHAR",
        "atom": "FLOAT[]",
    },
    "classes": {"class_id": "INTEGER", "name": "VARCHAR", "embedding": "FLOAT[]"},
    "codes": {
        "image_id": "INTEGER",
        "path": "VARCHAR",
        "concept_id": "INTEGER",
        "concept": "VARCHAR",
        "weight": "FLOAT",
    },
    "vectors": {"image_id": "INTEGER", "embedding": "FLOAT[]"},
    "thumbnails": {"image_id": "INTEGER", "jpeg": "BLOB"},
    "means": {"modality": "VARCHAR", "embedding": "FLOAT[]"},
    "skipped": {"path": "VARCHAR", "reason": "VARCHAR"},
}
OPTIONAL = {"split", "label", "term", "content_hash", "l1", "gap", "parent", "aliases"}  # may be NULL
ACCEPTED = {
    "INTEGER": r"U?(TINY|SMALL|BIG)?INT(EGER)?",
    "FLOAT": r"FLOAT|DOUBLE",
    "FLOAT[]": r"(FLOAT|DOUBLE)\[\d*\]",
    "VARCHAR[]": r"VARCHAR\[\]",
}
SOURCES = {
    "meta": f"SELECT key, value FROM meta UNION ALL SELECT 'export', '{EXPORT}'",
    "codes": "SELECT c.*, i.path, k.name AS concept FROM codes_in c JOIN images i USING (image_id) "
    "JOIN concepts k USING (concept_id) ORDER BY image_id, concept_id",
}
HITS = """[{"rank": "INTEGER", "id": "INTEGER", "score": "DOUBLE", "path": "VARCHAR", "label": "VARCHAR",
           "concepts": [{"name": "VARCHAR", "weight": "DOUBLE", "contribution": "DOUBLE"}]}]"""
LOCK = {  # of the connection that a person's SQL runs on; the last one makes the others final
    "enable_progress_bar": "false",  # else it is drawn on stdout
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_persistent_secrets": "false",
    "memory_limit": "'1GB'",
    "temp_directory": "''",
    "enable_external_access": "false",
    "lock_configuration": "true",
}
BATCH = 1000  # rows of its answer in memory at a time

T = TypeVar("T")


def export_index(
    folder: Path, out: Path, format: str = "parquet", tables: Sequence[str] = tuple(TABLES)
) -> dict[str, int]:
    """Writes tables of an index to the new folder `out`, which appears whole or not at all; returns rows by table.

    format: parquet or jsonl. Raises `SparsightError` where `out` is a file or holds anything.
    """
    out = Path(os.path.realpath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SparsightError(f"{out} is there already, and not an empty folder: name a new one")
    codes = _codes(folder) if "codes" in tables else None
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    con = open_database(folder)
    try:
        con.execute("SET enable_progress_bar = false")  # else it is drawn on stdout
        partial.mkdir(parents=True)
        if codes is not None:
            con.register("codes_in", codes)
        rows = {}
        for table in tables:
            columns = ", ".join(_written(c, t, format) for c, t in TABLES[table].items())
            path = partial / f"{table}.{format}"
            source = SOURCES.get(table, f"FROM {table}")
            copied = con.execute(
                f"COPY (SELECT {columns} FROM ({source})) TO {_text(path)} "
                f"(FORMAT {'json' if format == 'jsonl' else 'parquet'})"
            )
            rows[table] = copied.fetchall()[0][0]
            _sync(path)
        _sync(partial)
        partial.rename(out)
        _sync(out.parent)
    except FAULTS as e:
        raise_interrupts(e)
        raise SparsightError(f"cannot export {folder} to {out}: {first_line(e)}") from e
    except OSError as e:
        raise SparsightError(f"cannot write {out}: {e.strerror}; name another folder") from e
    finally:
        con.close()
        shutil.rmtree(partial, ignore_errors=True)
    return rows


def _codes(folder: Path) -> dict[str, np.ndarray]:
    """The codes as columns, checked by the store."""
    with Store(folder) as store:
        W = store.codes().tocoo()
        return {"image_id": store.image_ids[W.row], "concept_id": W.col, "weight": W.data}


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


def import_index(folder: Path, source: Path) -> dict[str, int]:
    """Builds an index in `folder` from an export of either format; returns its counts n, m, nnz.

    Where the export has no codes, as from an index whose postings are damaged, the embeddings are coded anew.
    Raises `SparsightError` for the first thing that is not as it should be, and where `folder` holds an index.
    """
    if not source.is_dir():
        raise SparsightError(f"no export in {source}: it is no folder; `sparsight export` writes one")
    con = duckdb.connect(config={"temp_directory": ""})
    try:
        read = {table for table in TABLES if _read(con, source, table)}
        with _reading(source):
            contents = _contents(con, source, read)
    finally:
        con.close()
    with writing(folder, "import"):
        if os.path.lexists(folder / DATABASE):
            raise SparsightError(f"{folder} holds an index already: name another --index")
        write_store(folder, contents)
    return {"n": len(contents.X), "m": len(contents.D), "nnz": contents.W.nnz}


def _read(con: duckdb.DuckDBPyConnection, source: Path, table: str) -> bool:
    """Loads a table's file, its columns and types checked; False where the export has no codes."""
    path = next((p for f in ("parquet", "jsonl") if (p := source / f"{table}.{f}").is_file()), None)
    if path is None:
        if table == "codes":
            return False
        raise SparsightError(f"{source} has no {table}.parquet or {table}.jsonl: export every table (but codes)")
    wanted = TABLES[table]
    with _reading(path):
        if path.suffix == ".parquet":
            file = f"read_parquet({_text(_literal(path))})"
            rows = con.execute(f"DESCRIBE SELECT * FROM {file}").fetchall()
            found = {name: str(kind) for name, kind, *_ in rows}
        else:
            text = {"FLOAT": "VARCHAR", "BLOB": "VARCHAR"}  # "nan"; base64
            columns = ", ".join(f"{c}: '{text.get(kind, kind)}'" for c, kind in wanted.items())
            file = f"read_json({_text(_literal(path))}, format = 'newline_delimited', columns = {{{columns}}})"
            found = wanted | dict.fromkeys(_missing_in_first_line(path, wanted), "")
        for column, kind in wanted.items():
            if not found.get(column):
                raise SparsightError(f"{path} has no column {column}: it is not as `sparsight export` wrote it")
            if not re.fullmatch(ACCEPTED.get(kind, re.escape(kind)), found[column]):
                raise SparsightError(f"{path}: column {column} is {found[column]}, it must be {kind}")
        taken = {c: "from_base64(jpeg)" if c == "jpeg" and path.suffix == ".jsonl" else c for c in wanted}
        chosen = ", ".join(f"({sql})::{wanted[c]} AS {c}" for c, sql in taken.items())
        con.execute(f"CREATE TABLE {table} AS SELECT {chosen} FROM {file}")
    for column in wanted.keys() - OPTIONAL:
        _refuse(con, path.name, f"SELECT 1 FROM {table} WHERE {column} IS NULL", f"{column} is missing in a row")
    return True


def _missing_in_first_line(path: Path, wanted: dict[str, str]) -> list[str]:
    with path.open(encoding="utf-8") as f:
        line = f.readline()
    try:
        keys = json.loads(line) if line else wanted
    except ValueError as e:
        raise SparsightError(f"{path} is damaged: its first line is no JSON ({e})") from e
    return [c for c in wanted if not isinstance(keys, dict) or c not in keys]


def _refuse(con: duckdb.DuckDBPyConnection, where: str, sql: str, why: str) -> None:
    """Raises where a query finds anything; {} in `why` is the first thing it finds."""
    with _reading(where):
        found = con.execute(f"{sql} LIMIT 1").fetchone()
    if found:
        raise SparsightError(f"{where}: {why.format(found[0])}; mend it, or export again")


@contextmanager
def _reading(where: Path | str) -> Iterator[None]:
    try:
        yield
    except FAULTS as e:
        raise_interrupts(e)
        raise SparsightError(f"cannot read {where}: {first_line(e)}; export again") from e
    except OSError as e:
        raise SparsightError(f"cannot read {where}: {e.strerror}") from e


def _contents(con: duckdb.DuckDBPyConnection, source: Path, read: set[str]) -> Contents:
    """The loaded tables, checked against each other."""
    meta = dict(con.execute("SELECT key, value FROM meta").fetchall())
    if meta.get("export") != str(EXPORT):
        version = meta.get("export", "none")
        raise SparsightError(f"{source} is an export of version {version}, this sparsight reads {EXPORT}")
    for key in ("d", "next_id"):
        if not re.fullmatch(r"\d{1,9}", meta.get(key, "0" if key == "next_id" else "")):
            raise SparsightError(f"{source}: meta says {key} = {meta.get(key)}, it must be a whole number")
    d, next_id = int(meta["d"]), int(meta.get("next_id", 0))  # format 2 had no next_id
    _check(con, d, read)

    def column(sql: str) -> list:
        return [row[0] for row in con.execute(sql).fetchall()]

    def rows(sql: str) -> np.ndarray:
        found = con.execute(sql).fetchnumpy()
        return np.stack(list(*found.values())).astype(np.float32) if len(*found.values()) else np.zeros((0, d), "f4")

    def of_images(name: str) -> list:
        return column(f"SELECT {name} FROM images ORDER BY image_id")

    ids = np.array(of_images("image_id"), np.int32)
    X = rows(f"SELECT embedding::FLOAT[{d}] FROM vectors ORDER BY image_id")
    D = rows(f"SELECT atom::FLOAT[{d}] FROM concepts ORDER BY concept_id")
    for key, counted in (("n", len(X)), ("m", len(D))):
        if meta.get(key) != str(counted):
            raise SparsightError(f"{source}: meta says {key} = {meta.get(key)}, there are {counted}; export again")
    l1, gap = (np.array(of_images(name), np.float32) for name in ("l1", "gap"))
    if "codes" in read:
        found = con.execute("SELECT image_id, concept_id, weight FROM codes WHERE weight > 0").fetchnumpy()
        places = np.searchsorted(ids, found["image_id"]), found["concept_id"]
        W = sparse.csr_matrix((found["weight"].astype(np.float32), places), shape=(len(X), len(D)))
    else:
        W, l1, gap = _coded(X, D, meta.get("coder", ""), source)
    means = {m: np.array(e, np.float32) for m, e in con.execute("SELECT modality, embedding FROM means").fetchall()}
    return Contents(
        ids=ids,
        next_id=next_id,
        X=X,
        W=W,
        D=D,
        T=rows(f"SELECT embedding::FLOAT[{d}] FROM classes ORDER BY class_id"),
        classes=column("SELECT name FROM classes ORDER BY class_id"),
        names=column("SELECT name FROM concepts ORDER BY concept_id"),
        aliases=[a or [] for a in column("SELECT aliases FROM concepts ORDER BY concept_id")],
        parents=column("SELECT parent FROM concepts ORDER BY concept_id"),
        source=next(iter(column("SELECT source FROM concepts")), ""),
        paths=of_images("path"),
        splits=of_images("split"),
        labels=of_images("label"),
        terms=of_images("term"),
        hashes=of_images("content_hash"),
        l1=l1,
        gap=gap,
        thumbnails=column("SELECT jpeg FROM images LEFT JOIN thumbnails USING (image_id) ORDER BY image_id"),
        skipped=con.execute("SELECT path, reason FROM skipped").fetchall(),
        # What the store counts itself is its own to say; so is its format.
        meta={k: v for k, v in meta.items() if k not in {"export", "format", *COUNTS}},
        means=Means(means["image"], means["text"]) if means else None,
    )


def _check(con: duckdb.DuckDBPyConnection, d: int, read: set[str]) -> None:
    for table, key in {"images": "image_id", "concepts": "concept_id", "classes": "class_id", "meta": "key"}.items():
        _refuse(con, table, f"SELECT {key} FROM {table} GROUP BY 1 HAVING count(*) > 1", f"{key} {{}} is there twice")
    _refuse(con, "images", "SELECT image_id FROM images WHERE image_id < 0", "image_id {} is below 0")
    for table, key in {"concepts": "concept_id", "classes": "class_id"}.items():
        count = f"(SELECT count(*) FROM {table})"
        sql = f"SELECT {key} FROM {table} WHERE {key} NOT BETWEEN 0 AND {count} - 1"
        _refuse(con, table, sql, f"{key} {{}} is not of 0, 1, 2, …")
    _refuse(con, "concepts", "SELECT max(source) FROM concepts HAVING min(source) <> max(source)", "{}: a 2nd source")
    for table in ("vectors", "thumbnails"):
        _refuse(con, table, f"SELECT image_id FROM {table} GROUP BY 1 HAVING count(*) > 1", "image {} is there twice")
        _refuse(con, table, f"SELECT image_id FROM {table} ANTI JOIN images USING (image_id)", "no image has the id {}")
    _refuse(con, "vectors", "SELECT image_id FROM images ANTI JOIN vectors USING (image_id)", "image {} has no row")
    for table, key, name in (
        ("vectors", "image_id", "embedding"),
        ("concepts", "concept_id", "atom"),
        ("classes", "class_id", "embedding"),
        ("means", "modality", "embedding"),
    ):
        sql = f"SELECT {key} FROM {table} WHERE len({name}) <> {d}"
        _refuse(con, table, sql, f"{key} {{}}: its {name} has not d = {d} numbers")
        square = f"list_inner_product({name}::DOUBLE[], {name}::DOUBLE[])"
        bound = f"isfinite({square})" if table == "means" else f"abs(sqrt({square}) - 1) <= 1e-3"
        what = "is not finite" if table == "means" else "is no unit vector"
        _refuse(con, table, f"SELECT {key} FROM {table} WHERE NOT ({bound})", f"{key} {{}}: its {name} {what}")
    if sorted(row[0] for row in con.execute("SELECT modality FROM means").fetchall()) not in ([], ["image", "text"]):
        raise SparsightError("means: it must hold image and text once each, or nothing; export again")
    if "codes" in read:
        for key, table in (("image_id", "images"), ("concept_id", "concepts")):
            _refuse(
                con,
                "codes",
                f"SELECT {key} FROM codes ANTI JOIN {table} USING ({key})",
                f"no {table} row has {key} {{}}",
            )
        sql = "SELECT image_id FROM codes GROUP BY image_id, concept_id HAVING count(*) > 1"
        _refuse(con, "codes", sql, "image {} has a concept twice")
        bad = "SELECT image_id FROM codes WHERE NOT (isfinite(weight) AND weight >= 0)"
        _refuse(con, "codes", bad, "a weight of image {} is negative or not finite")


def _coded(
    X: np.ndarray, D: np.ndarray, settings: str, source: Path
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    from indexer.coding.coder import encode_sparse
    from indexer.config import CoderConfig

    try:
        config = CoderConfig(**json.loads(settings))
    except (TypeError, ValueError) as e:
        raise SparsightError(f"{source} has neither codes nor, in meta, the coder's settings: export the codes") from e
    codes = encode_sparse(X, D, config)
    return codes.W, codes.l1, codes.gap


class Query:
    """One query of a person's on a locked connection that reads an index and can touch nothing else.

    columns: the names of its answer, each different. Raises `CallError` for what DuckDB refuses, in its own words.
    """

    def __init__(self, folder: Path, sql: str):
        self._con = _locked(folder)
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
            yield "{" + ", ".join(f"{k}: {v}" for k, v in zip(keys, values, strict=True)) + "}"

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


def _locked(folder: Path) -> duckdb.DuckDBPyConnection:
    """A connection with the index attached, read-only, as its default database, and every way out shut."""
    con = open_database(folder)
    try:
        for setting, value in LOCK.items():
            con.execute(f"SET {setting} = {value}")
    except BaseException:
        con.close()
        raise
    return con


def write_hits(path: Path, hits: Sequence[dict[str, Any]]) -> None:
    """Writes hits (`Hit.to_dict`) to a .parquet or .jsonl file, whole or not at all."""
    try:
        if path.suffix == ".jsonl":
            data = "".join(json.dumps(hit) + "\n" for hit in hits).encode()
        else:
            with tempfile.TemporaryDirectory() as folder, duckdb.connect() as con:
                file = Path(folder) / "hits.parquet"
                con.execute(f"CREATE TABLE hits AS SELECT unnest(from_json(?, '{HITS}')) AS hit", [json.dumps(hits)])
                con.execute(f"COPY (SELECT unnest(hit) FROM hits) TO {_text(file)} (FORMAT parquet)")
                data = file.read_bytes()
        write_whole(path, data)
    except OSError as e:
        raise SparsightError(f"cannot write the hits {path}: {e.strerror}; name another --out") from e


def _finite(text: str) -> str:
    """JSON with NaN and ±Infinity, which is none, as text."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    return re.sub(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN', lambda m: m[0] if m[0][0] == '"' else f'"{m[0]}"', text)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _literal(path: Path) -> str:
    """A path as a glob that finds it alone."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))


def _text(path: Path | str) -> str:
    return "'" + str(path).replace("'", "''") + "'"
