"""The store: one index is one folder, and `index.duckdb` in it is the single source of truth.

The database is never changed where it stands. It is built, or a copy of it changed, under another name in one
transaction, synced, and renamed: whatever happens, and whoever reads meanwhile, there is the old index or the new
one. DuckDB's own locks would make every reader wait for a writer, and a writer for every reader. What a change costs
beside its pictures is the copy (a file system with reflinks shares the blocks).
Image ids are given once: a removed picture's is not used again, so they may have gaps. Row i of every array is the
i-th picture by id. The file is in the v1.4.0 storage format, so that any DuckDB from 1.4 on opens it with plain SQL.
Postings are packed (`indexer.store.postings`) in blocks clustered by concept, so that a look-up reads that concept's
blocks only; the view `postings` shows them as plain rows.
No ART index (PRIMARY KEY, UNIQUE): they are slow to fill and have open corruption reports.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from shutil import copyfile
from typing import Protocol

import duckdb
import numpy as np
from scipy import sparse

from indexer.config import CoderConfig
from indexer.store.postings import Postings, pack
from training.encoders import Means
from training.errors import SparsightError
from training.files import publish

DATABASE = "index.duckdb"
WAL = f"{DATABASE}.wal"  # no index of ours has one
FORMAT = 3
STORAGE_VERSION = "v1.4.0"
CHUNK = 4096  # thumbnails in memory at a time
DEAD_SHARE = 0.25  # of the stored rows: from here a change compacts
COUNTS = ("n", "d", "m", "nnz", "next_id", "dead", "generation")  # of `meta`, whole numbers
HINT = "rebuild it, or mend it with `sparsight doctor --repair`"
# What DuckDB raises on a damaged file: C++ exceptions that are none of its own arrive as Python's.
FAULTS = (duckdb.Error, RuntimeError, ValueError, IndexError, MemoryError)

SCHEMA = """
CREATE TABLE meta (key VARCHAR, value VARCHAR);
CREATE TABLE images (image_id INTEGER, path VARCHAR, split VARCHAR, label VARCHAR, term VARCHAR,
                     content_hash VARCHAR, l1 FLOAT, gap FLOAT);
CREATE TABLE vectors (image_id INTEGER, embedding FLOAT[{d}]);
CREATE TABLE concepts (concept_id INTEGER, name VARCHAR, aliases VARCHAR[], parent VARCHAR, source VARCHAR,
                       images INTEGER, atom FLOAT[{d}]);
CREATE TABLE classes (class_id INTEGER, name VARCHAR, embedding FLOAT[{d}]);
CREATE TABLE posting_blocks (concept_id INTEGER, tier UTINYINT, step FLOAT, lift USMALLINT, bits UTINYINT,
                             first INTEGER, last INTEGER, count UTINYINT, width UTINYINT, words UINTEGER[]);
CREATE TABLE thumbnails (image_id INTEGER, jpeg BLOB);
CREATE TABLE means (modality VARCHAR, embedding FLOAT[{d}]);
CREATE TABLE skipped (path VARCHAR, reason VARCHAR);
CREATE VIEW postings AS
WITH fields AS (
    SELECT concept_id, step, lift, bits, first, count, list_transform(range(count), lambda i:
        ((words[i * width // 32 + 1]::UBIGINT + (coalesce(words[i * width // 32 + 2], 0)::UBIGINT << 32))
            >> (i * width % 32)) & ((1::UBIGINT << width) - 1)) AS field
    FROM posting_blocks
), lists AS (
    SELECT concept_id, step, lift, bits, first, count, list_transform(field, lambda f: f >> bits) AS gap,
        list_transform(field, lambda f: f & ((1::UBIGINT << bits) - 1)) AS code
    FROM fields
)
SELECT concept_id,
    unnest(list_transform(range(1, count + 1), lambda i: first + list_sum(gap[:i])))::INTEGER AS image_id,
    (lift + unnest(code))::FLOAT * step AS weight
FROM lists;
"""


@dataclass(kw_only=True)
class Rows:
    """Pictures: X (n, d), W (n, m) CSR; paths, splits, labels, terms, hashes (None where unknown), l1 and gap (n,),
    thumbnails (JPEG bytes, None where there is none; or an empty list)."""

    X: np.ndarray
    W: sparse.csr_matrix
    paths: Sequence[str]
    splits: Sequence[str | None]
    labels: Sequence[str | None]
    terms: Sequence[str | None]
    hashes: Sequence[str | None]
    l1: np.ndarray
    gap: np.ndarray
    thumbnails: Sequence[bytes | None] = ()


@dataclass(kw_only=True)
class Contents(Rows):
    """All that an index holds, as arrays.

    D (m, d), T (c, d); per concept: names, aliases, parents (the class each belongs to, or None); skipped: path and
    reason of what was not taken; meta: what `meta` is to say beside the counts; means: what was subtracted from the
    embeddings of each modality, if anything; ids (n,) ascending: the pictures' where they are not 0 … n − 1, and
    next_id: the one that the next picture is to get.
    """

    D: np.ndarray
    T: np.ndarray
    classes: list[str]
    names: list[str]
    aliases: list[list[str]]
    parents: list[str | None]
    source: str
    skipped: Sequence[tuple[str, str]] = ()
    meta: dict[str, object] = field(default_factory=dict)
    means: Means | None = None
    ids: np.ndarray | None = None
    next_id: int = 0


@dataclass(kw_only=True)
class Change:
    """What is to be done to an index, all of it at once.

    removed: ids; added: pictures, coded against the index's dictionary; moved: id → new path, split, label; skipped:
    path and reason of what was not taken (in place of what was said of these paths before); classes: names and
    embeddings (c, d) of those to add.
    """

    removed: Sequence[int] = ()
    added: Rows | None = None
    moved: Mapping[int, tuple[str, str | None, str | None]] = field(default_factory=dict)
    skipped: Sequence[tuple[str, str]] = ()
    classes: tuple[Sequence[str], np.ndarray] | None = None


class HasFingerprint(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Concept:
    id: int
    name: str
    aliases: tuple[str, ...]
    parent: str | None
    images: int


def write_store(folder: Path, c: Contents) -> None:
    """Writes (or atomically replaces) the database of an index folder, whose lock the caller holds."""
    n, d = c.X.shape
    ids = np.arange(n) if c.ids is None else np.asarray(c.ids, np.int64)
    next_id = max(c.next_id, int(ids[-1]) + 1 if n else 0)
    counts = {"n": n, "d": d, "m": len(c.D), "nnz": c.W.nnz, "next_id": next_id, "dead": 0}
    key = vectors_key(c.X, str(c.meta["dense_factory"]))
    meta = {"format": FORMAT, "generation": _generation(folder) + 1, **counts, **c.meta, "dense_key": key}
    postings = _packed(c.W, ids, next_id)
    with _partial(folder) as partial, _opened(partial) as con:
        con.execute("BEGIN")
        con.execute(SCHEMA.format(d=d))
        _insert(con, "meta", {"key": list(meta), "value": [_to_text(v) for v in meta.values()]})
        _insert_pictures(con, ids, c)
        concept_ids = np.arange(len(c.D), dtype=np.int32)
        columns = {
            "concept_id": concept_ids,
            "name": c.names,
            "aliases": [json.dumps(a) for a in c.aliases],
            "parent": c.parents,
            "source": [c.source] * len(c.D),
            "images": postings.images.astype(np.int32),
        }
        _insert_rows(con, "concepts", columns, c.D, casts={"aliases": "from_json(aliases, '[\"VARCHAR\"]')"})
        _insert_rows(con, "classes", {"class_id": np.arange(len(c.T), dtype=np.int32), "name": c.classes}, c.T)
        _insert(con, "posting_blocks", _block_rows(postings))
        if c.means is not None:
            _insert_rows(con, "means", {"modality": ["image", "text"]}, np.stack([c.means.image, c.means.text]))
        _insert(con, "skipped", {"path": [p for p, _ in c.skipped], "reason": [r for _, r in c.skipped]})
        con.execute("COMMIT")


def change_store(folder: Path, change: Change, before: Callable[[np.ndarray], object] = lambda X: None) -> None:
    """Changes an index in one transaction on a copy, which takes the index's place; the caller holds the lock.

    Costs the copy, the rows that change, and packing the postings anew. Where a quarter of the stored rows are of
    removed pictures, the copy is compacted. before: is given the new X, and prevents the change by raising.
    """
    removed = sorted(set(change.removed))
    with Store(folder) as store:
        meta, kept = store.meta, np.setdiff1d(store.image_ids, removed)
        if len(kept) + len(removed) != len(store):
            raise ValueError("to be removed: an id that the index does not hold")
        next_id = int(meta["next_id"])
        rows = np.isin(store.image_ids, kept)
        X, W = store.embeddings()[rows], store.codes()[rows]
    added = change.added
    ids = np.arange(next_id, next_id + (len(added.X) if added else 0))
    if added is not None:
        X, W = np.concatenate([X, added.X]), sparse.csr_matrix(sparse.vstack([W, added.W]))
    before(X)
    next_id += len(ids)
    postings = _packed(W, np.append(kept, ids), next_id)
    dead = int(meta["dead"]) + len(removed)
    counts = {"n": len(X), "nnz": W.nnz, "next_id": next_id, "dead": dead, "generation": int(meta["generation"]) + 1}
    new_meta = {**counts, "dense_key": vectors_key(X, meta["dense_factory"])}
    with _partial(folder) as partial:
        copyfile(folder / DATABASE, partial)
        with _opened(partial) as con:
            con.execute("BEGIN")
            for table in ("images", "vectors", "thumbnails") if removed else ():
                con.execute(f"DELETE FROM {table} WHERE image_id IN (SELECT unnest(?))", [removed])
            for image_id, (path, split, label) in change.moved.items():
                where = [path, split, label, image_id]
                con.execute("UPDATE images SET path = ?, split = ?, label = ? WHERE image_id = ?", where)
            if added is not None:
                _insert_pictures(con, ids, added)
            if change.classes is not None:
                names, T = change.classes
                start = con.execute("SELECT count(*) FROM classes").fetchall()[0][0]
                class_ids = np.arange(start, start + len(T), dtype=np.int32)
                _insert_rows(con, "classes", {"class_id": class_ids, "name": names}, T)
            con.execute("DELETE FROM posting_blocks")
            _insert(con, "posting_blocks", _block_rows(postings))
            incoming = {"concept_id": np.arange(postings.m), "images": postings.images}
            con.register("incoming", incoming)
            con.execute(
                "UPDATE concepts SET images = incoming.images FROM incoming "
                "WHERE concepts.concept_id = incoming.concept_id AND concepts.images <> incoming.images"
            )
            con.unregister("incoming")
            gone = [p for p, _ in change.skipped] + [p for p, _, _ in change.moved.values()]
            gone += added.paths if added is not None else ()
            con.execute("DELETE FROM skipped WHERE path IN (SELECT unnest(?::VARCHAR[]))", [gone])
            _insert(con, "skipped", {"path": [p for p, _ in change.skipped], "reason": [r for _, r in change.skipped]})
            for key, value in new_meta.items():
                con.execute("UPDATE meta SET value = ? WHERE key = ?", [_to_text(value), key])
            con.execute("COMMIT")
        if dead > DEAD_SHARE * (dead + len(X)):
            _compact(partial)


def compact_store(folder: Path) -> None:
    """Writes the database anew without the room that removed pictures took; the caller holds the lock."""
    with _partial(folder) as partial:
        copyfile(folder / DATABASE, partial)
        _compact(partial)


def _compact(database: Path) -> None:
    """Replaces a database that nobody reads by one that holds the same rows and nothing else."""
    small = database.with_name(database.name + ".small")
    con = duckdb.connect()
    try:
        con.execute(f"ATTACH {_quote(database)} AS store (READ_ONLY)")
        con.execute(f"ATTACH {_quote(small)} AS small (STORAGE_VERSION '{STORAGE_VERSION}')")
        con.execute("COPY FROM DATABASE store TO small")
        con.execute("UPDATE small.meta SET value = '0' WHERE key = 'dead'")
        con.execute("CHECKPOINT small")
        con.execute("DETACH small")
    finally:
        con.close()
    small.replace(database)


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """The path of a database in the making, which becomes the index's when the block ends, or is as if never begun."""
    partial = folder / f".{DATABASE}.{os.getpid()}.part"
    earlier = _inode(folder / DATABASE)
    try:
        yield partial
        publish(partial, folder / DATABASE)
    except (duckdb.Error, RuntimeError, OSError) as e:
        raise_interrupts(e)
        if type(e) is RuntimeError:
            raise
        reason = getattr(e, "strerror", None) or first_line(e)
        stands = "the earlier one is unchanged"
        if _inode(folder / DATABASE) not in (earlier, None):  # the folder could not be synced
            stands = "the new one has taken its place, but may not outlive a loss of power"
        raise SparsightError(f"cannot write the index {folder}: {reason}; {stands}") from e
    finally:
        for left in folder.glob(f"{partial.name}*"):
            left.unlink(missing_ok=True)


def _inode(path: Path) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


@contextmanager
def _opened(database: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that writes a database; when the block ends all is in that one file, no write-ahead log is left."""
    con = duckdb.connect()
    try:
        con.execute(f"ATTACH {_quote(database)} AS store (STORAGE_VERSION '{STORAGE_VERSION}')")
        con.execute("USE store")
        yield con
        con.execute("CHECKPOINT store")  # DETACH does too, but does not say why it fails
        con.execute("USE memory")
        con.execute("DETACH store")
    finally:
        con.close()


def vectors_key(X: np.ndarray, factory: str) -> str:
    """The checksum of the vectors X (n, d) and of the description of the dense index over them."""
    return hashlib.sha256(factory.encode() + b"\0" + np.ascontiguousarray(X, np.float32).tobytes()).hexdigest()


def open_database(folder: Path) -> duckdb.DuckDBPyConnection:
    """A connection that reads an index's database as `store`, whatever is in it.

    Raises `SparsightError` where there is none, it is no DuckDB database, or another program is changing it.
    """
    path = folder / DATABASE
    if not path.is_file():
        what = "is not a file" if os.path.lexists(path) else "is missing"
        raise SparsightError(f"no index in {folder}: {path} {what}; build one with `sparsight index`")
    if os.path.lexists(folder / WAL):  # its changes would be read, but not be in the copy that a change is made on
        raise SparsightError(
            f"another program has changed {path} and left {WAL}: open and close it there to keep the change, or put it "
            "aside with `sparsight doctor --repair`"
        )
    con = duckdb.connect()  # of its own: DuckDB hands an open file's connection on, however old its state
    try:
        con.execute(f"ATTACH {_quote(path)} AS store (TYPE duckdb, READ_ONLY)")  # else it fetches SQLite's extension
        con.execute("USE store")
    except FAULTS as e:
        con.close()
        raise_interrupts(e)
        held = "Could not set lock" in str(e)
        hint = "close it in the program that has it open" if held else HINT
        raise SparsightError(f"{path} is not a readable index: {first_line(e)}; {hint}") from e
    return con


class _Meta(dict[str, str]):
    """The table `meta`; raises `SparsightError` for a key that it does not hold."""

    def __missing__(self, key: str) -> str:
        raise SparsightError(f"the index is damaged: its table meta has no {key}; {HINT}")


class Store:
    """An open index: reads what a query asks for, and no more.

    Raises `SparsightError` where there is no index, or one of another format, or whose meta data, tables and counts
    contradict each other (not without `check`, which leaves that to the caller).
    """

    def __init__(self, folder: Path | str, *, check: bool = True):
        self.folder, self._checks = Path(folder), check
        self.con = open_database(self.folder)
        try:
            self._inode = os.stat(self.folder / DATABASE).st_ino
            self.meta = self._read_meta(self.folder / DATABASE)
            if check:
                self._check()
        except OSError as e:
            self.con.close()
            raise SparsightError(f"cannot read the index {self.folder}: {e.strerror}") from e
        except SparsightError:
            self.con.close()
            raise

    def _read_meta(self, path: Path) -> _Meta:
        try:
            rows = self.con.execute("SELECT key, value FROM meta").fetchall()
            meta = _Meta((str(k), str(v)) for k, v in rows)
            version = int(meta.get("format", "missing"))
        except FAULTS as e:
            raise_interrupts(e)
            raise SparsightError(f"{path} is not a readable index: {first_line(e)}; {HINT}") from e
        if version != FORMAT:
            raise SparsightError(f"{path} has format {version}, this sparsight reads {FORMAT}; rebuild it")
        return meta

    def _check(self) -> None:
        """What every query relies on, where it is cheap: the tables' columns, and their lengths."""
        if wrong := bad_counts(self.meta):
            raise self._damaged(f"its table meta has no whole number {wrong[0]}")
        if wrong := self.bad_columns(self.d):
            raise self._damaged(f"it has no column {wrong[0]}")
        n, m, next_id = (int(self.meta[key]) for key in ("n", "m", "next_id"))
        lengths = self._rows(
            "SELECT (SELECT count(*) FROM images), (SELECT count(*) FROM vectors), (SELECT count(*) FROM concepts), "
            "coalesce(min(image_id), 0), coalesce(max(image_id), -1) FROM images"
        )[0]
        if lengths[:3] != (n, n, m) or lengths[3] < 0 or lengths[4] >= next_id:
            raise self._damaged("its counts are not those of its tables")

    def bad_columns(self, d: int) -> list[str]:
        """The columns of the schema that are missing, or of another type."""
        wanted = {
            (table, *column.split())
            for table, columns in re.findall(r"TABLE (\w+) \((.*?)\);", SCHEMA.format(d=d), re.DOTALL)
            for column in re.split(r",\s+", columns)
        }
        columns = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE database_name = 'store'"
        return sorted(" ".join(column) for column in wanted - set(self._rows(columns)))

    def _damaged(self, what: str) -> SparsightError:
        return SparsightError(f"the index {self.folder} is damaged: {what}; {HINT}")

    def is_current(self) -> bool:
        """False once another generation has taken the file's place."""
        try:
            return os.stat(self.folder / DATABASE).st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        self.con.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self.meta["n"])

    @property
    def d(self) -> int:
        return int(self.meta["d"])

    @cached_property
    def coder(self) -> CoderConfig:
        """The settings that its pictures were coded with."""
        found, defaults = self._json("coder"), asdict(CoderConfig())
        if not isinstance(found, dict) or not set(found) <= set(defaults):
            raise self._damaged("its meta data names no settings of the coder")
        for key, value in found.items():
            if not isinstance(value, int | float | (type(None) if defaults[key] is None else int)):
                raise self._damaged(f"its coder's {key} is {value!r}")
        return CoderConfig(**found)

    @cached_property
    def templates(self) -> list[str]:
        """The prompts that its concepts were embedded in."""
        found = self._json("templates")
        if not isinstance(found, list) or not all(isinstance(template, str) for template in found):
            raise self._damaged("its meta data names no prompts")
        return found

    def _json(self, key: str) -> object:
        text = self.meta[key]
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as e:
            raise self._damaged(f"in its meta data, {key} is {text[:40]!r}") from e

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except FAULTS as e:
            raise_interrupts(e)
            raise SparsightError(f"cannot read the index {self.folder}: {first_line(e)}; {HINT}") from e

    def _columns(self, sql: str, parameters: Sequence[object] = ()) -> dict[str, np.ndarray]:
        """Columns, none of which may have a NULL."""
        with self._faults():
            columns = self.con.execute(sql, list(parameters)).fetchnumpy()
            for name, column in columns.items():
                if np.ma.is_masked(column) or (column.dtype == object and any(map(np.ma.is_masked, column))):
                    raise ValueError(f"a row has no {name}")
        return columns

    def _rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple]:
        """What a statement answers; raises `SparsightError` where the file cannot be read."""
        with self._faults():
            return self.con.execute(sql, list(parameters)).fetchall()

    @cached_property
    def image_ids(self) -> np.ndarray:
        """(n,) int64, ascending: the id of row i of `embeddings`, `codes` and `images`."""
        n = len(self)
        if n == int(self.meta["next_id"]):  # none was removed
            return np.arange(n)
        return self._columns("SELECT image_id FROM images ORDER BY image_id")["image_id"].astype(np.int64)

    def known_files(self) -> dict[str, tuple[int, str | None]]:
        """Id and content hash of each picture by its path."""
        rows = self._rows("SELECT image_id, path, content_hash FROM images WHERE path IS NOT NULL ORDER BY 1")
        return {p: (i, h) for i, p, h in rows}

    def refuse_another(self, encoder: HasFingerprint) -> None:
        """Raises `SparsightError` with both names where an encoder is not the one that the index was built with."""
        meta = self.meta
        if encoder.fingerprint != meta["encoder_fingerprint"]:
            raise SparsightError(
                f"{self.folder} was built with encoder {meta['encoder_name']} "
                f"({meta['encoder_fingerprint'][:12]}), not with {encoder.name} ({encoder.fingerprint[:12]}); "
                "name that one with --encoder, or rebuild the index"
            )

    def embeddings(self) -> np.ndarray:
        """X (n, d); raises `SparsightError` where it is not the one that was written."""
        X = _stack(self._columns("SELECT embedding FROM vectors ORDER BY image_id")["embedding"], self.d)
        if self._checks and vectors_key(X, self.meta["dense_factory"]) != self.meta["dense_key"]:
            raise self._damaged("its vectors are not those that its dense_key is of")
        return X

    def embeddings_of(self, image_ids: Sequence[int]) -> np.ndarray:
        """Rows of X (len(image_ids), d), in their order."""
        rows = self._rows(f"SELECT image_id, embedding FROM vectors WHERE image_id IN ({_marks(image_ids)})", image_ids)
        by_id = {i: np.asarray(e, np.float32) for i, e in rows if e is not None and None not in e}
        if missing := [i for i in image_ids if i not in by_id]:
            raise self._damaged(f"picture {missing[0]} has no vector")
        return np.stack([by_id[i] for i in image_ids]) if image_ids else np.zeros((0, self.d), np.float32)

    def dictionary(self) -> np.ndarray:
        """D (m, d)."""
        D = _stack(self._columns("SELECT atom FROM concepts ORDER BY concept_id")["atom"], self.d)
        if not np.isfinite(D).all():
            raise self._damaged("an atom of its dictionary is not a vector")
        return D

    def classes(self) -> tuple[list[str], np.ndarray]:
        """Class names, and T (c, d)."""
        columns = self._columns("SELECT name, embedding FROM classes ORDER BY class_id")
        return [str(name) for name in columns["name"]], _stack(columns["embedding"], self.d)

    def means(self) -> Means | None:
        """What queries are centred on, as the index's embeddings were; None where they were not."""
        columns = self._columns("SELECT modality, embedding FROM means ORDER BY 1")
        if not len(columns["modality"]):
            return None
        if list(columns["modality"]) != ["image", "text"]:
            raise self._damaged("its means are not those of pictures and texts")
        return Means(*_stack(columns["embedding"], self.d))

    def names(self) -> list[str]:
        """The concepts' names, by id."""
        return [concept.name for concept in self.concepts()]

    def concepts(self) -> list[Concept]:
        """Every concept, with the number of pictures that it helps to make up."""
        rows = self._rows("SELECT concept_id, name, aliases, parent, images FROM concepts ORDER BY concept_id")
        if [row[0] for row in rows] != list(range(len(rows))) or any(
            None in (name, count, *(aliases or ())) for _, name, aliases, _, count in rows
        ):
            raise self._damaged("a concept has no number, name or count of its own")
        return [Concept(i, name, tuple(aliases or ()), parent, count) for i, name, aliases, parent, count in rows]

    def postings(self, concept_ids: Sequence[int] | None = None) -> Postings:
        """The packed postings, of some concepts alone or of all: no other concept's blocks are read.

        Raises `SparsightError` where they are damaged.
        """
        condition = "true" if concept_ids is None else f"concept_id IN ({_marks(concept_ids)})"
        found = self._postings(condition, concept_ids or ())
        images = self._rows(f"SELECT concept_id, images FROM concepts WHERE {condition}", concept_ids or ())
        with self.damage():
            if self._checks and any(found.images[concept] != count for concept, count in images):
                raise ValueError("a concept has not as many as it should")
        return found

    def _postings(self, condition: str, bound: Sequence[int]) -> Postings:
        """The blocks that a condition chooses."""
        chosen = f"FROM posting_blocks WHERE {condition} ORDER BY concept_id, tier, first"
        rows = self._columns(f"SELECT concept_id, tier, step, lift, bits, first, last, count, width {chosen}", bound)
        words = self._columns(f"SELECT unnest(words) AS word FROM (SELECT words {chosen})", bound)["word"]
        concept, tier, step, lift, bits, first, last, count, width = (np.asarray(column) for column in rows.values())
        changes = (np.diff(concept, prepend=-1) != 0) | (np.diff(tier.astype(np.int32), prepend=-1) != 0)
        starts = np.flatnonzero(changes)
        found = Postings(
            n=int(self.meta["next_id"]),
            m=int(self.meta["m"]),
            concept=concept[starts],
            step=step[starts],
            lift=lift[starts],
            bits=bits[starts],
            start=np.append(starts, len(concept)),
            first=first,
            last=last,
            count=count,
            width=width,
            words=np.append(words, np.zeros(1, np.uint32)),
        )
        with self.damage():
            blocks = np.diff(found.start)
            pairs = ((step, found.step), (lift, found.lift), (bits, found.bits))
            if any((of_block != np.repeat(of_tier, blocks)).any() for of_block, of_tier in pairs):
                raise ValueError("a tier's blocks disagree")
            found.check()
        return found

    @contextmanager
    def damage(self) -> Iterator[None]:
        """Tells of damage that is found in the postings while they are read or searched."""
        try:
            yield
        except (ValueError, IndexError) as e:
            raise SparsightError(f"the postings of {self.folder} are damaged: {e}; {HINT}") from e

    @cached_property
    def packed(self) -> Postings:
        """The packed postings of every concept, read once."""
        return self.postings()

    def codes(self) -> sparse.csr_matrix:
        """W (n, m) CSR, checked: scipy takes damaged indices without a word and then segfaults in a product."""
        with self.damage():
            indptr, ids, weights = self.packed.columns()
            rows = np.searchsorted(self.image_ids, ids)
            if (self.image_ids[np.minimum(rows, len(self) - 1)] != ids).any() if len(ids) else False:
                raise ValueError("a picture that is not in the index has some")
        return sparse.csc_matrix((weights, rows.astype(np.int32), indptr), shape=(len(self), self.packed.m)).tocsr()

    def codes_of(self, image_ids: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each picture its concept ids and weights; reads the blocks alone that can hold one of a few pictures."""
        held = "packed" in self.__dict__ or len(image_ids) > 50
        spans = " OR ".join(["? BETWEEN first AND last"] * len(image_ids)) or "false"
        packed = self.packed if held else self._postings(spans, image_ids)
        with self.damage():
            found, concepts, weights = packed.rows(np.array(image_ids, np.int64))
        bounds = [np.searchsorted(found, (i, i + 1)) for i in image_ids]
        return [(concepts[a:b], weights[a:b]) for a, b in bounds]

    def images(self, image_ids: Sequence[int] | None = None) -> list[dict[str, object]]:
        """Dicts of the images' columns, in the order asked for (all of them, by id, without one)."""
        where = "" if image_ids is None else f" WHERE image_id IN ({_marks(image_ids)})"
        keys = ("image_id", "path", "split", "label", "term", "l1", "gap")
        rows = self._rows(f"SELECT {', '.join(keys)} FROM images{where} ORDER BY image_id", image_ids or ())
        dicts = [dict(zip(keys, row, strict=True)) for row in rows]
        if image_ids is None:
            return dicts
        by_id = {row["image_id"]: row for row in dicts}
        if missing := [i for i in image_ids if i not in by_id]:
            raise self._damaged(f"it has no picture {missing[0]}")
        return [by_id[i] for i in image_ids]

    def find_path(self, path: str) -> int | None:
        """The id of the picture with a path; the first where several share it."""
        rows = self._rows("SELECT min(image_id) FROM images WHERE path = ?", [path])
        return rows[0][0]

    def thumbnails(self, image_ids: Sequence[int]) -> dict[int, bytes]:
        """JPEG bytes by image id; pictures without one are left out."""
        rows = self._rows(f"SELECT image_id, jpeg FROM thumbnails WHERE image_id IN ({_marks(image_ids)})", image_ids)
        return {i: bytes(jpeg) for i, jpeg in rows if jpeg is not None}

    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of the files that were not taken."""
        return self._rows("SELECT path, reason FROM skipped ORDER BY path")

    def disk_bytes(self) -> dict[str, int]:
        """Bytes on disk by file, and the database's by table (blocks that its segments use)."""
        files = {f.name: f.stat().st_size for f in sorted(self.folder.iterdir()) if f.is_file()}
        block = self._rows("SELECT block_size FROM pragma_database_size() WHERE database_name = 'store'")[0][0]
        for table in ("images", "vectors", "concepts", "posting_blocks", "thumbnails"):
            info = self._rows(f"SELECT DISTINCT block_id FROM pragma_storage_info('{table}') WHERE block_id >= 0")
            files[f"{DATABASE}:{table}"] = len(info) * int(block)
        return files


def _packed(W: sparse.csr_matrix, ids: np.ndarray, next_id: int) -> Postings:
    """The postings of codes W (n, m) of the pictures ids (n,)."""
    columns = W.tocsc()
    columns.sort_indices()
    try:
        return pack(columns.indptr, ids[columns.indices], columns.data.astype(np.float32), next_id)
    except ValueError as e:
        raise SparsightError(f"cannot store the codes: {e}") from e


def _block_rows(p: Postings) -> dict[str, object]:
    """The columns of `posting_blocks`."""
    blocks = np.diff(p.start)
    tiers = np.arange(len(p.concept)) - np.searchsorted(p.concept, p.concept)
    return {
        "concept_id": np.repeat(p.concept, blocks),
        "tier": np.repeat(tiers.astype(np.uint8), blocks),
        "step": np.repeat(p.step, blocks),
        "lift": np.repeat(p.lift, blocks),
        "bits": np.repeat(p.bits, blocks),
        "first": p.first,
        "last": p.last,
        "count": p.count,
        "width": p.width,
        "words": [w.tolist() for w in np.split(p.words[:-1], p.offset[1:-1])],  # DuckDB 1.4 takes arrays for text
    }


def _insert_pictures(con: duckdb.DuckDBPyConnection, ids: np.ndarray, rows: Rows) -> None:
    ids = ids.astype(np.int32)
    columns = {
        "image_id": ids,
        "path": rows.paths,
        "split": rows.splits,
        "label": rows.labels,
        "term": rows.terms,
        "content_hash": rows.hashes,
        "l1": rows.l1.astype(np.float32),
        "gap": rows.gap.astype(np.float32),
    }
    _insert(con, "images", columns)
    _insert_rows(con, "vectors", {"image_id": ids}, rows.X)
    for start in range(0, len(rows.thumbnails), CHUNK):
        some = [(i, rows.thumbnails[i]) for i in range(start, min(start + CHUNK, len(rows.thumbnails)))]
        held = [(ids[i], jpeg) for i, jpeg in some if jpeg is not None]
        columns = {
            "image_id": np.array([i for i, _ in held], np.int32),
            "jpeg": [b64encode(jpeg).decode() for _, jpeg in held],  # DuckDB 1.4 takes an array of bytes for text
        }
        _insert(con, "thumbnails", columns, casts={"jpeg": "from_base64(jpeg)"})


def _insert(con: duckdb.DuckDBPyConnection, table: str, columns: dict, casts: Mapping[str, str] | None = None) -> None:
    if not len(next(iter(columns.values()))):
        return  # DuckDB knows no type of an empty array of objects
    arrays = {k: v if isinstance(v, np.ndarray) else _objects(v) for k, v in columns.items()}
    con.register("incoming", arrays)
    chosen = [(casts or {}).get(k, k) for k in arrays]
    con.execute(f"INSERT INTO {table} SELECT {', '.join(chosen)} FROM incoming")
    con.unregister("incoming")


def _insert_rows(
    con: duckdb.DuckDBPyConnection, table: str, columns: dict, A: np.ndarray, casts: dict[str, str] | None = None
) -> None:
    """Inserts columns and, last, the rows of A (n, d) as FLOAT[d]: no list is aggregated, no order can be lost."""
    arrays = {k: v if isinstance(v, np.ndarray) else _objects(v) for k, v in columns.items()}
    parts = {f"x{j}": np.ascontiguousarray(A[:, j], np.float32) for j in range(A.shape[1])}
    chosen = [(casts or {}).get(k, k) for k in arrays]
    con.register("incoming", arrays | parts)
    con.execute(f"INSERT INTO {table} SELECT {', '.join(chosen)}, array_value({', '.join(parts)}) FROM incoming")
    con.unregister("incoming")


def _objects(values: Sequence) -> np.ndarray:
    out = np.empty(len(values), object)
    for i, value in enumerate(values):  # at once, numpy would make a matrix of lists that are equally long
        out[i] = value
    return out


def _stack(column: np.ndarray, d: int) -> np.ndarray:
    return np.stack(list(column)).astype(np.float32) if len(column) else np.zeros((0, d), np.float32)


def _generation(folder: Path) -> int:
    try:
        with Store(folder) as store:
            return int(store.meta.get("generation", 0))
    except (SparsightError, ValueError):
        return 0


def _marks(values: Sequence) -> str:
    return ", ".join("?" * len(values)) or "NULL"


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _to_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def bad_counts(meta: Mapping[str, str]) -> list[str]:
    """The counts of `meta` that are no numbers an index can have."""
    return [key for key in COUNTS if not (meta.get(key, "").isdecimal() and int(meta[key]) < 2**31)]


def first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]


def raise_interrupts(e: BaseException) -> None:
    """Raises `KeyboardInterrupt` where that is what DuckDB has made an error of its own of.

    A Ctrl-C that arrives while a statement runs in the main thread is a bare RuntimeError, one that another thread
    passes on is an `InterruptException`.
    """
    if isinstance(e, duckdb.InterruptException) or (type(e) is RuntimeError and str(e) == "Query interrupted"):
        raise KeyboardInterrupt from e
