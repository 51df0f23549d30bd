"""Builds an index from an export, or from an index of an earlier format; believes nothing that it reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import duckdb
import numpy as np
from scipy import sparse

from indexer.coding import Dictionary, encode_sparse
from indexer.exchange.tables import EVERY, EXPORT, FORMATS, NEW_IN_2, READABLE, part_path
from indexer.residual import Coded, Quantiser, make_residuals, read_description
from indexer.store import DATABASE, Classes, Contents, Described, IndexMeta, Pictures, Skip, write_store, writing
from indexer.store.approximate import refuse_description
from indexer.store.database import connect, open_database, quoted, refuse_unreadable_path, told_as
from indexer.store.dense import FLAT
from indexer.store.meta import DERIVED, LATER, MetaError, count_of, parse_meta
from indexer.store.residuals import coded_of, quantiser_of
from indexer.store.schema import FORMAT, RESIDUAL
from training.encoders import Means
from training.errors import CallError, SparsightError
from training.files import full_path

ACCEPTED = {
    "INTEGER": r"U?(TINY|SMALL|BIG)?INT(EGER)?",
    "BIGINT": r"U?(TINY|SMALL|BIG)?INT(EGER)?",
    "FLOAT": r"FLOAT|DOUBLE",
    "FLOAT[]": r"(FLOAT|DOUBLE)\[\d*\]",
    "VARCHAR[]": r"VARCHAR\[\]",
}
OPTIONAL_META = (*DERIVED, *LATER, "next_id", "root")  # that an export need not have
OPTIONAL = ("codes", "vectors", *RESIDUAL)  # tables that an export need not have, or not each has
EARLIER = ("2", "3")  # formats of databases that can be taken over
EARLIER_SOURCES = {  # where such a database has what an export calls by another name
    "codes": "(SELECT p.*, i.path, k.name AS concept FROM store.postings p LEFT JOIN store.images i USING (image_id) "
    "LEFT JOIN store.concepts k USING (concept_id))",
}


def import_index(folder: Path, source: Path) -> IndexMeta:
    """Builds an index in `folder` from an export of either format, or from an index folder of an earlier format.

    Where an export has no codes, as from an index whose postings are damaged, the embeddings are coded anew. Raises
    `SparsightError` for the first thing that is not as it should be, and where `folder` holds an index.
    """
    folder, source = full_path(folder), full_path(source)
    refuse_unreadable_path(folder)
    refuse_unreadable_path(source, "")
    _refuse_an_index(folder)
    if not source.is_dir():
        raise SparsightError(f"no export in {source}: it is no folder; `sparsight export` writes one")
    with _loaded(source) as (con, tables), _reading(source):
        contents = _contents(con, source, tables)
    with writing(folder, "import"):
        _refuse_an_index(folder)  # another process may have made one meanwhile
        return write_store(folder, contents)


def _refuse_an_index(folder: Path) -> None:
    if os.path.lexists(folder / DATABASE):
        raise SparsightError(f"{folder} holds an index already: name another --index")


@contextmanager
def _loaded(source: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, set[str]]]:
    """A connection whose tables are those of an export, their columns and types checked; and which there are."""
    if (source / DATABASE).is_file():
        con, earlier = open_database(source), True
    else:
        con, earlier = connect(), False
    try:
        if earlier:
            con.execute("USE memory")
            yield con, {table for table in EVERY if _take(con, source, table)}
        else:
            yield con, {table for table in EVERY if _read(con, source, table)}
    finally:
        con.close()


def _take(con: duckdb.DuckDBPyConnection, source: Path, table: str) -> bool:
    """Loads a table of a database of an earlier format; False for one that none of them has."""
    if table in RESIDUAL:
        return False
    path = source / DATABASE
    with _reading(path):
        if table == "meta":
            version = str(dict(con.execute("SELECT key, value FROM store.meta").fetchall()).get("format"))
            if version not in EARLIER:
                known = "it is the present one" if version == str(FORMAT) else f"{', '.join(EARLIER)} can be taken over"
                raise SparsightError(f"{source} is an index of format {version}: {known}; export it, and import that")
        file = EARLIER_SOURCES.get(table, f"store.{table}")
        _create(con, path, table, file)
        if table == "codes":
            sql = "SELECT (SELECT value FROM meta WHERE key = 'nnz'), (SELECT count(*)::VARCHAR FROM codes)"
            said, counted = con.execute(sql).fetchall()[0]
            if said != counted:
                raise SparsightError(f"{source}: meta says nnz = {said}, there are {counted} codes; build it anew")
    return True


def _read(con: duckdb.DuckDBPyConnection, source: Path, table: str) -> bool:
    """Loads a table's files; False where the export has none of a table that it may do without."""
    path = next((p for f in FORMATS if (p := source / f"{table}.{f}").is_file()), None)
    if path is None:
        if table in OPTIONAL:
            return False
        raise _lacking(source, table)
    format, parts = path.suffix[1:], [path]
    while (more := part_path(source, table, format, len(parts))).is_file():
        parts.append(more)
    files = f"[{', '.join(quoted(_literal(p)) for p in parts)}]"
    wanted = {c.name: c.type for c in EVERY[table]}
    with _reading(path):
        if format == "parquet":
            file = f"read_parquet({files}, hive_partitioning = false)"
            _create(con, path, table, file)
        else:
            text = {"FLOAT": "VARCHAR", "BLOB": "VARCHAR"}  # "nan"; base64
            columns = ", ".join(f"{c}: '{text.get(kind, kind)}'" for c, kind in wanted.items())
            options = "format = 'newline_delimited', hive_partitioning = false"
            file = f"read_json({files}, {options}, columns = {{{columns}}})"
            missing = set(_missing_in_first_line(path, wanted))
            _create(con, path, table, file, {c: f"from_base64({c})" for c in wanted if wanted[c] == "BLOB"}, missing)
    return True


def _lacking(source: Path, table: str) -> SparsightError:
    return SparsightError(f"{source} has no {table}.parquet or {table}.jsonl: export every table (but codes)")


def _create(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    table: str,
    source: str,
    taken: Mapping[str, str] = MappingProxyType({}),
    missing: Container[str] = (),
) -> None:
    """Makes a table of what a source holds, once its columns and types are found right; taken: SQL for a column that is
    held as another type; missing: columns that the source is only thought to have."""
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
    con.execute(f"CREATE TABLE {table} AS SELECT {', '.join(chosen)} FROM {source}")
    for c in EVERY[table]:
        if not c.nullable:
            why = f"{c.name} is missing in a row"
            _refuse(con, path.name, f"SELECT 1 FROM {table} WHERE {c.name} IS NULL", why)


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
        with told_as(lambda reason: f"cannot read {where}: {reason}; export again"):
            yield
    except OSError as e:
        raise SparsightError(f"cannot read {where}: {e.strerror}") from e


def _meta(rows: dict[str, str], source: Path, n: int, m: int, tables: set[str]) -> IndexMeta:
    """The meta data of an export, its counts compared with the tables."""
    version = rows.get("export", "none")
    if version not in READABLE and not (source / DATABASE).is_file():
        raise SparsightError(f"{source} is an export of version {version}, this sparsight reads {EXPORT}")
    if "root" not in rows and os.path.isabs(rows.get("dataset", "")):  # export 1 had the folder in the name's place
        rows |= {"root": rows["dataset"], "dataset": Path(rows["dataset"]).name or rows["dataset"]}
    try:
        meta = parse_meta({k: v for k, v in rows.items() if k not in DERIVED}, without=OPTIONAL_META)
    except MetaError as e:
        raise SparsightError(f"{source}: in meta, {e}; export again") from e
    for key, said, counted in (("n", meta.n, n), ("m", meta.m, m)):
        if said != counted:
            raise SparsightError(f"{source}: meta says {key} = {said}, there are {counted}; export again")
    if meta.dense_factory != FLAT:
        try:
            refuse_description(meta.dense_factory, meta.d, n)
        except CallError as e:
            raise SparsightError(f"{source}: in meta, {e}; write Flat in its place") from e
    if meta.keeps_vectors and "vectors" not in tables:
        raise _lacking(source, "vectors")
    if meta.residual:
        try:
            read_description(meta.residual, meta.d)
        except CallError as e:
            raise SparsightError(f"{source}: in meta, {e}") from e
    for table, parts in _parts(rows, source).items():
        if table in tables and parts > 1 and not any(part_path(source, table, f, parts - 1).is_file() for f in FORMATS):
            raise SparsightError(f"{source}: {table} has {parts} files, the last is missing; export again")
    return meta


def _parts(rows: dict[str, str], source: Path) -> dict[str, int]:
    """Into how many files each table was cut."""
    with suppress(ValueError):
        parts = json.loads(rows.get("export_parts", "{}"))
        if isinstance(parts, dict) and all(type(n) is int for n in parts.values()):
            return parts
    raise SparsightError(f"{source}: in meta, export_parts is no number of files by table; export again")


def _contents(con: duckdb.DuckDBPyConnection, source: Path, tables: set[str]) -> Contents:
    """The loaded tables, checked against each other."""
    rows = {str(k): str(v) for k, v in con.execute("SELECT key, value FROM meta").fetchall()}
    if (d := count_of(rows.get("d"))) is None:
        raise SparsightError(f"{source}: meta says d = {rows.get('d')}, it must be a whole number")
    _check(con, d, tables)

    def vectors(sql: str) -> np.ndarray:
        flat = con.execute(f"SELECT unnest(v)::FLOAT AS v FROM ({sql})").fetchnumpy()["v"]
        return np.asarray(flat, np.float32).reshape(-1, d)

    ids = np.array(_of_images(con, "image_id"), np.int32)
    D = vectors("SELECT atom AS v FROM concepts ORDER BY concept_id")
    meta = _meta(rows, source, len(ids), len(D), tables)
    X = np.zeros((len(ids), 0), np.float32)
    if meta.keeps_vectors:
        X = vectors("SELECT embedding AS v FROM vectors ORDER BY image_id")
    l1, gap = (np.array(_of_images(con, name), np.float32) for name in ("l1", "gap"))
    if "codes" in tables:
        found = con.execute("SELECT image_id, concept_id, weight FROM codes WHERE weight > 0").fetchnumpy()
        places = np.searchsorted(ids, found["image_id"]), found["concept_id"]
        W = sparse.csr_matrix((found["weight"].astype(np.float32), places), shape=(len(X), len(D)))
    elif not meta.keeps_vectors:
        raise _lacking(source, "codes")
    else:
        codes = encode_sparse(X, D, meta.coder)
        W, l1, gap = codes.W, codes.l1, codes.gap
    means = {m: np.array(e, np.float32) for m, e in con.execute("SELECT modality, embedding FROM means").fetchall()}
    held = _residuals(con, source, meta, tables, ids)
    if meta.residual and held is None and not meta.keeps_vectors:
        raise _lacking(source, "residuals")
    quantiser, residuals = held or make_residuals(X, W, D, meta.residual)
    return Contents(
        meta=meta,
        ids=ids,
        quantiser=quantiser,
        pictures=Pictures(X=X, W=W, l1=l1, gap=gap, described=_described(con), residuals=residuals),
        dictionary=Dictionary(
            names=_column(con, "SELECT name FROM concepts ORDER BY concept_id"),
            aliases=[a or [] for a in _column(con, "SELECT aliases FROM concepts ORDER BY concept_id")],
            parents=_column(con, "SELECT parent FROM concepts ORDER BY concept_id"),
            D=D,
            source=next(iter(_column(con, "SELECT source FROM concepts")), ""),
        ),
        classes=Classes(
            _column(con, "SELECT name FROM classes ORDER BY class_id"),
            vectors("SELECT embedding AS v FROM classes ORDER BY class_id"),
        ),
        means=Means(means["image"], means["text"]) if means else None,
        skipped=[Skip(*row) for row in con.execute("SELECT path, reason FROM skipped").fetchall()],
    )


def _column(con: duckdb.DuckDBPyConnection, sql: str) -> list:
    return [row[0] for row in con.execute(sql).fetchall()]


def _of_images(con: duckdb.DuckDBPyConnection, name: str) -> list:
    return _column(con, f"SELECT {name} FROM images ORDER BY image_id")


def _described(con: duckdb.DuckDBPyConnection) -> Described:
    thumbnails = "SELECT jpeg FROM images LEFT JOIN thumbnails USING (image_id) ORDER BY image_id"
    return Described(
        paths=_of_images(con, "path"),
        splits=_of_images(con, "split"),
        labels=_of_images(con, "label"),
        terms=_of_images(con, "term"),
        hashes=_of_images(con, "content_hash"),
        sizes=_of_images(con, "file_bytes"),
        changed=_of_images(con, "file_changed"),
        thumbnails=_column(con, thumbnails),
    )


def _residuals(
    con: duckdb.DuckDBPyConnection, source: Path, meta: IndexMeta, tables: set[str], ids: np.ndarray
) -> tuple[Quantiser, Coded] | None:
    """The quantiser and the residuals of the pictures `ids` (n,); None where the export has none of them."""
    if not meta.residual or "codes" not in tables or not tables & set(RESIDUAL):
        return None
    if lacking := [table for table in RESIDUAL if table not in tables]:
        raise _lacking(source, lacking[0])
    axes = con.execute("SELECT direction FROM residual_axes ORDER BY axis").fetchall()
    rows = con.execute("SELECT part, code, centroid FROM residual_centroids ORDER BY 1, 2").fetchall()
    held = con.execute("SELECT image_id, scale, code FROM residuals ORDER BY image_id").fetchall()
    try:
        A = np.array([axis for (axis,) in axes], np.float32).reshape(len(axes), meta.d)
        parts, codes = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
        quantiser = quantiser_of(A, parts, codes, [np.array(row[2]) for row in rows])
        shape = read_description(meta.residual, meta.d)
        if (len(quantiser.C), quantiser.bits, len(A)) != shape[:3]:
            raise ValueError(f"the quantiser is no {meta.residual}")
        scales = np.array([row[1] for row in held], np.float32)
        return quantiser, coded_of(ids, np.array([r[0] for r in held]), scales, [r[2] for r in held], quantiser)
    except ValueError as e:
        raise SparsightError(f"{source}: its residuals: {e}; export again") from e


def _check(con: duckdb.DuckDBPyConnection, d: int, read: set[str]) -> None:
    for table, key in {"images": "image_id", "concepts": "concept_id", "classes": "class_id", "meta": "key"}.items():
        _refuse(con, table, f"SELECT {key} FROM {table} GROUP BY 1 HAVING count(*) > 1", f"{key} {{}} is there twice")
    _refuse(con, "images", "SELECT image_id FROM images WHERE image_id < 0", "image_id {} is below 0")
    for table, name in {"images": "path", "concepts": "name", "classes": "name"}.items():
        _refuse(
            con, table, f"SELECT {name} FROM {table} GROUP BY 1 HAVING count(*) > 1", f"{name} {{!r}} is there twice"
        )
        sql = f"SELECT {name} FROM {table} WHERE trim({name}) = '' OR contains({name}, chr(0)) OR {name} IS NULL"
        _refuse(con, table, sql, f"{name} {{!r}} names nothing")
    sql = "SELECT name FROM concepts WHERE contains(name, chr(10)) OR list_count(aliases) < len(aliases)"
    _refuse(con, "concepts", sql, "{!r}: its name or an alias is no line of text")
    for table, key in {"concepts": "concept_id", "classes": "class_id"}.items():
        count = f"(SELECT count(*) FROM {table})"
        sql = f"SELECT {key} FROM {table} WHERE {key} NOT BETWEEN 0 AND {count} - 1"
        _refuse(con, table, sql, f"{key} {{}} is not of 0, 1, 2, …")
    _refuse(con, "concepts", "SELECT max(source) FROM concepts HAVING min(source) <> max(source)", "{}: a 2nd source")
    for table in sorted({"vectors", "thumbnails"} & read):
        _refuse(con, table, f"SELECT image_id FROM {table} GROUP BY 1 HAVING count(*) > 1", "image {} is there twice")
        _refuse(con, table, f"SELECT image_id FROM {table} ANTI JOIN images USING (image_id)", "no image has the id {}")
    if "vectors" in read:
        _refuse(con, "vectors", "SELECT image_id FROM images ANTI JOIN vectors USING (image_id)", "image {} has no row")
    for table, key, name in (
        ("vectors", "image_id", "embedding"),
        ("concepts", "concept_id", "atom"),
        ("classes", "class_id", "embedding"),
        ("means", "modality", "embedding"),
    ):
        if table not in read:
            continue
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


def _literal(path: Path) -> str:
    """A path as a glob that finds it alone."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))
