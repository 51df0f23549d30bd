"""The store: one index is one folder, and `index.duckdb` in it is the single source of truth.

The database is built under another name in one transaction, synced, and renamed: a reader sees the old
index or the new one. It is written in the v1.4.0 storage format, so that any DuckDB from 1.4 on opens it
with plain SQL. Postings are packed (`indexer.postings`) in blocks clustered by concept, so that a look-up reads
that concept's blocks only; the view `postings` shows them as plain rows.
No ART index (PRIMARY KEY, UNIQUE): they are slow to fill and have open corruption reports.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
from scipy import sparse

from indexer.postings import Postings, pack
from training.centring import Means
from training.errors import SparsightError

DATABASE = "index.duckdb"
FORMAT = 2
STORAGE_VERSION = "v1.4.0"
CHUNK = 4096  # thumbnails in memory at a time

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


@dataclass
class Contents:
    """All that an index holds, as arrays.

    X (n, d), W (n, m) CSR, D (m, d), T (c, d); per picture: paths, splits, labels, terms, hashes (None where
    unknown), l1 and gap (n,), thumbnails (JPEG bytes, or an empty list); per concept: names, aliases,
    parents (the class each belongs to, or None); skipped: path and reason of what was not taken; meta: what
    `meta` is to say beside the counts; means: what was subtracted from the embeddings of each modality, if anything.
    """

    X: np.ndarray
    W: sparse.csr_matrix
    D: np.ndarray
    T: np.ndarray
    classes: list[str]
    names: list[str]
    aliases: list[list[str]]
    parents: list[str | None]
    source: str
    paths: list[str]
    splits: list[str | None]
    labels: list[str | None]
    terms: list[str | None]
    hashes: list[str | None]
    l1: np.ndarray
    gap: np.ndarray
    thumbnails: Sequence[bytes] = ()
    skipped: Sequence[tuple[str, str]] = ()
    meta: dict[str, object] = field(default_factory=dict)
    means: Means | None = None


@dataclass(frozen=True)
class Concept:
    id: int
    name: str
    aliases: tuple[str, ...]
    parent: str | None
    images: int


def write_store(folder: Path, c: Contents) -> None:
    """Writes (or atomically replaces) the database of an index folder."""
    n, d = c.X.shape
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SparsightError(f"cannot write an index to {folder}: {e.strerror}; choose another --index") from e
    generation = _generation(folder / DATABASE) + 1
    partial = folder / f".{DATABASE}.{os.getpid()}.part"
    wal = partial.with_name(partial.name + ".wal")
    meta = {"format": FORMAT, "generation": generation, "n": n, "d": d, "m": len(c.D), "nnz": c.W.nnz, **c.meta}
    postings = _packed(c.W)
    con = duckdb.connect()
    try:
        con.execute(f"ATTACH {_quote(partial)} AS store (STORAGE_VERSION '{STORAGE_VERSION}')")
        con.execute("USE store")
        con.execute("BEGIN")
        con.execute(SCHEMA.format(d=d))
        _insert(con, "meta", {"key": list(meta), "value": [_to_text(v) for v in meta.values()]})
        ids = np.arange(n, dtype=np.int32)
        _insert(
            con,
            "images",
            {
                "image_id": ids,
                "path": c.paths,
                "split": c.splits,
                "label": c.labels,
                "term": c.terms,
                "content_hash": c.hashes,
                "l1": c.l1.astype(np.float32),
                "gap": c.gap.astype(np.float32),
            },
        )
        _insert_rows(con, "vectors", {"image_id": ids}, c.X)
        concept_ids = np.arange(len(c.D), dtype=np.int32)
        aliases = [json.dumps(a) for a in c.aliases]
        columns = {
            "concept_id": concept_ids,
            "name": c.names,
            "aliases": aliases,
            "parent": c.parents,
            "source": [c.source] * len(c.D),
            "images": postings.images.astype(np.int32),
        }
        _insert_rows(con, "concepts", columns, c.D, casts={"aliases": "from_json(aliases, '[\"VARCHAR\"]')"})
        _insert_rows(con, "classes", {"class_id": np.arange(len(c.T), dtype=np.int32), "name": c.classes}, c.T)
        if len(postings.first):
            _insert(con, "posting_blocks", _block_rows(postings))
        for start in range(0, len(c.thumbnails), CHUNK):
            some = range(start, min(start + CHUNK, len(c.thumbnails)))
            _insert(con, "thumbnails", {"image_id": ids[some], "jpeg": [c.thumbnails[i] for i in some]})
        if c.means is not None:
            _insert_rows(con, "means", {"modality": ["image", "text"]}, np.stack([c.means.image, c.means.text]))
        if c.skipped:
            _insert(con, "skipped", {"path": [p for p, _ in c.skipped], "reason": [r for _, r in c.skipped]})
        con.execute("COMMIT")
        con.execute("USE memory")
        con.execute("DETACH store")  # checkpoints: no write-ahead log is left
        with partial.open("rb+") as f:
            os.fsync(f.fileno())
        partial.replace(folder / DATABASE)
    except (duckdb.Error, OSError) as e:
        raise SparsightError(f"cannot write the index {folder}: {_first_line(e)}; the earlier one is unchanged") from e
    finally:
        con.close()
        partial.unlink(missing_ok=True)
        wal.unlink(missing_ok=True)


class Store:
    """An open index: reads what a query asks for, and no more."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        path = self.folder / DATABASE
        if not path.is_file():
            raise SparsightError(f"no index in {self.folder}: {path} is missing; build one with `sparsight index`")
        try:
            self.con = duckdb.connect(str(path), read_only=True)
        except duckdb.Error as e:
            raise SparsightError(f"{path} is not a readable index: {_first_line(e)}; rebuild it") from e
        try:
            self.meta = self._read_meta(path)
        except SparsightError:
            self.con.close()  # else this process could not open a new index in its place
            raise

    def _read_meta(self, path: Path) -> dict[str, str]:
        try:
            rows = self.con.execute("SELECT key, value FROM meta").fetchall()
            meta = {str(k): str(v) for k, v in rows}
            version = int(meta["format"])
        except (duckdb.Error, KeyError, ValueError) as e:
            raise SparsightError(f"{path} is not a readable index: {_first_line(e)}; rebuild it") from e
        if version != FORMAT:
            raise SparsightError(f"{path} has format {version}, this sparsight reads {FORMAT}; rebuild it")
        return meta

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

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except duckdb.Error as e:
            raise SparsightError(f"cannot read the index {self.folder}: {_first_line(e)}; rebuild it") from e

    def _columns(self, sql: str, parameters: Sequence[object] = ()) -> dict[str, np.ndarray]:
        with self._faults():
            return self.con.execute(sql, list(parameters)).fetchnumpy()

    def _rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple]:
        with self._faults():
            return self.con.execute(sql, list(parameters)).fetchall()

    def embeddings(self) -> np.ndarray:
        """X (n, d)."""
        return _stack(self._columns("SELECT embedding FROM vectors ORDER BY image_id")["embedding"], self.d)

    def embeddings_of(self, image_ids: Sequence[int]) -> np.ndarray:
        """Rows of X (len(image_ids), d), in their order."""
        rows = self._rows(f"SELECT image_id, embedding FROM vectors WHERE image_id IN ({_marks(image_ids)})", image_ids)
        by_id = {i: np.asarray(e, np.float32) for i, e in rows}
        return np.stack([by_id[i] for i in image_ids]) if image_ids else np.zeros((0, self.d), np.float32)

    def dictionary(self) -> np.ndarray:
        """D (m, d)."""
        return _stack(self._columns("SELECT atom FROM concepts ORDER BY concept_id")["atom"], self.d)

    def classes(self) -> tuple[list[str], np.ndarray]:
        """Class names, and T (c, d)."""
        columns = self._columns("SELECT name, embedding FROM classes ORDER BY class_id")
        return [str(name) for name in columns["name"]], _stack(columns["embedding"], self.d)

    def means(self) -> Means | None:
        """What queries are centred on, as the index's embeddings were; None where they were not."""
        found = {m: np.asarray(e, np.float32) for m, e in self._rows("SELECT modality, embedding FROM means")}
        return Means(found["image"], found["text"]) if found else None

    def names(self) -> list[str]:
        """The concepts' names, by id."""
        return [row[0] for row in self._rows("SELECT name FROM concepts ORDER BY concept_id")]

    def concepts(self) -> list[Concept]:
        """Every concept, with the number of pictures that it helps to make up."""
        rows = self._rows("SELECT concept_id, name, aliases, parent, images FROM concepts ORDER BY concept_id")
        return [Concept(i, name, tuple(aliases or ()), parent, count) for i, name, aliases, parent, count in rows]

    def postings(self, concept_ids: Sequence[int] | None = None) -> Postings:
        """The packed postings, of some concepts alone or of all: no other concept's blocks are read.

        Raises `SparsightError` where they are damaged.
        """
        condition = "true" if concept_ids is None else f"concept_id IN ({_marks(concept_ids)})"
        found = self._postings(condition, concept_ids or ())
        images = self._rows(f"SELECT concept_id, images FROM concepts WHERE {condition}", concept_ids or ())
        with self.damage():
            if any(found.images[concept] != count for concept, count in images):
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
            n=len(self),
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
        except ValueError as e:
            raise SparsightError(f"the postings of {self.folder} are damaged: {e}; rebuild the index") from e

    @cached_property
    def packed(self) -> Postings:
        """The packed postings of every concept, read once."""
        return self.postings()

    def codes(self) -> sparse.csr_matrix:
        """W (n, m) CSR, checked: scipy takes damaged indices without a word and then segfaults in a product."""
        with self.damage():
            indptr, ids, weights = self.packed.columns()
        return sparse.csc_matrix((weights, ids, indptr), shape=(len(self), self.packed.m)).tocsr()

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
        return [by_id[i] for i in image_ids]

    def find_path(self, path: str) -> int | None:
        """The id of the picture with a path; the first where several share it."""
        rows = self._rows("SELECT min(image_id) FROM images WHERE path = ?", [path])
        return rows[0][0]

    def thumbnails(self, image_ids: Sequence[int]) -> dict[int, bytes]:
        """JPEG bytes by image id; pictures without one are left out."""
        rows = self._rows(f"SELECT image_id, jpeg FROM thumbnails WHERE image_id IN ({_marks(image_ids)})", image_ids)
        return {i: bytes(jpeg) for i, jpeg in rows}

    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of the files that were not taken."""
        return self._rows("SELECT path, reason FROM skipped ORDER BY path")

    def disk_bytes(self) -> dict[str, int]:
        """Bytes on disk by file, and the database's by table (blocks that its segments use)."""
        files = {f.name: f.stat().st_size for f in sorted(self.folder.iterdir()) if f.is_file()}
        block = self._rows("SELECT block_size FROM pragma_database_size()")[0][0]
        for table in ("images", "vectors", "concepts", "posting_blocks", "thumbnails"):
            info = self._rows(f"SELECT DISTINCT block_id FROM pragma_storage_info('{table}') WHERE block_id >= 0")
            files[f"{DATABASE}:{table}"] = len(info) * int(block)
        return files


def _packed(W: sparse.csr_matrix) -> Postings:
    columns = W.tocsc()
    columns.sort_indices()
    try:
        return pack(columns.indptr, columns.indices, columns.data.astype(np.float32), W.shape[0])
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
        "words": np.split(p.words[:-1], p.offset[1:-1]),
    }


def _insert(con: duckdb.DuckDBPyConnection, table: str, columns: dict) -> None:
    arrays = {k: v if isinstance(v, np.ndarray) else _objects(v) for k, v in columns.items()}
    con.register("incoming", arrays)
    con.execute(f"INSERT INTO {table} SELECT {', '.join(arrays)} FROM incoming")
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


def _generation(path: Path) -> int:
    try:
        with Store(path.parent) as store:
            return int(store.meta.get("generation", 0))
    except (SparsightError, ValueError):
        return 0


def _marks(values: Sequence) -> str:
    return ", ".join("?" * len(values)) or "NULL"


def _quote(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _to_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]
