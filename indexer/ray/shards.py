"""Shards: an index as the files of an export, each table cut by pictures, made by any number of workers.

A shard is a pure function of the pictures in it and of what holds for all of them. What it was made of is named by a
key; its receipt, written last, holds the key and the checksums of its files. So a shard that is finished and sound is
not made again. `meta`, the manifest of all, is written when every shard is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
from scipy import sparse

from indexer.build import Settled
from indexer.coding import encode_sparse
from indexer.exchange.export import table_parts, write_parts
from indexer.exchange.tables import CHECKSUMS, EVERY, EXPORT, PARTS, exported_tables, part_path
from indexer.ray.encoded import needed
from indexer.residual import Quantiser, code_residuals
from indexer.store import Contents, Described, IndexMeta, Pictures, Skip
from indexer.store.database import connect, insert
from indexer.store.inserting import insert_pictures, insert_shared
from indexer.store.schema import create_statements
from indexer.store.thumbnails import Places
from training.encoders import centre
from training.files import digest, sync_folder, write_whole

SHARD = 1 << 13  # pictures of a shard: no table has more in one file of an export
RECEIPTS = "finished"
OF_PICTURES = ("images", "codes", "vectors", "thumbnails", "residuals")  # tables that a shard has a part of


@dataclass(frozen=True)
class Shard:
    """Pictures first, first + 1, … of an index: where they lie encoded, and what their places say of them."""

    number: int
    first: int
    pieces: tuple[tuple[Path, tuple[int, ...]], ...]
    splits: tuple[str | None, ...]
    labels: tuple[str | None, ...]

    @property
    def pictures(self) -> int:
        return sum(len(rows) for _, rows in self.pieces)

    def key(self, settings: str) -> str:
        """A name for what is made of it."""
        pieces = [(path.name, rows) for path, rows in self.pieces]
        return digest([repr((self.first, pieces, self.splits, self.labels)).encode(), settings.encode()])


def shared_contents(settled: Settled, quantiser: Quantiser | None, skipped: list[Skip]) -> Contents:
    """What an index holds beside its pictures."""
    nothing = np.zeros(0, np.float32)
    m, d = settled.dictionary.D.shape
    W = sparse.csr_matrix((0, m), dtype=np.float32)
    pictures = Pictures(X=np.zeros((0, d), np.float32), W=W, l1=nothing, gap=nothing, described=Described(paths=()))
    return Contents(
        meta=settled.meta,
        pictures=pictures,
        dictionary=settled.dictionary,
        quantiser=quantiser,
        classes=settled.classes,
        means=settled.means,
        skipped=skipped,
    )


def _settings(shared: Contents) -> str:
    """A name for all that a shard depends on beside its pictures."""
    D, means, quantiser = shared.dictionary, shared.means, shared.quantiser
    arrays = [D.D] if means is None else [D.D, means.image]
    parts = [np.ascontiguousarray(a, "<f4").tobytes() for a in arrays]
    parts += [json.dumps(D.names).encode(), json.dumps(shared.meta.rows()).encode()]
    return digest([*parts, (quantiser.fingerprint if quantiser else "").encode()])


class ShardMaker:
    """Codes shards and writes their files into a folder. shared: what holds for all pictures; device: of the coder."""

    def __init__(self, folder: Path, shared: Contents, device: str):
        self.folder, self._shared, self._device = folder, shared, device
        self._key = _settings(shared)

    def key_of(self, shard: Shard) -> str:
        """The name of a shard, and of all that it is made of."""
        return shard.key(self._key)

    def make(self, shard: Shard) -> str:
        """Makes a shard unless it is finished; returns a word of one that was damaged, or ""."""
        key = self.key_of(shard)
        held = read_receipt(self.folder, shard.number)
        damaged = held.first_damaged(self.folder) if held and held.key == key else None
        if held and held.key == key and damaged is None:
            return ""
        making = self.folder / f".shard-{shard.number}.{os.getpid()}.part"
        with suppress(FileNotFoundError):
            receipt_path(self.folder, shard.number).unlink()
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        try:
            files = self._write(making, shard)
            for name in files:
                os.replace(making / name, self.folder / name)
            sync_folder(self.folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        write_whole(receipt_path(self.folder, shard.number), json.dumps({"key": key, "files": files}).encode())
        return f"the shard {damaged} is damaged: it is made anew" if damaged else ""

    def _write(self, out: Path, shard: Shard) -> dict[str, str]:
        """Writes the shard's part of each table; returns the checksum of each file."""
        with closing(connect()) as con:
            con.execute(create_statements(self._shared.meta.d, self._shared.meta.residual))
            insert_shared(con, self._shared, np.zeros(len(self._shared.dictionary.D), np.int32))
            tables = self._tables(con, shard)
            files = {}
            for table in (t for t in exported_tables(self._shared.meta) if t in OF_PICTURES):
                write_parts(con, out, table, table_parts(tables, table), first=shard.number)
                path = part_path(out, table, "parquet", shard.number)
                files[path.name] = checksum(path)
        return files

    def _tables(self, con: duckdb.DuckDBPyConnection, shard: Shard) -> ShardTables:
        """The shard's pictures, coded, on a connection."""
        shared, D = self._shared, self._shared.dictionary.D
        batches = [(needed(path), rows) for path, rows in shard.pieces]
        X = np.concatenate([batch.tensors["X"][list(rows)] for batch, rows in batches])
        if shared.means is not None:
            X = centre(X, shared.means.image)
        codes = encode_sparse(X, D, shared.meta.coder, device=self._device)
        residuals = code_residuals(X, codes.W, D, shared.quantiser) if shared.quantiser else None
        taken = [(json.loads(batch.notes["taken"]), rows) for batch, rows in batches]
        known = [every[row] for every, rows in taken for row in rows]
        described = Described(
            paths=[name for name, *_ in known],
            splits=shard.splits,
            labels=shard.labels,
            hashes=[batch.hashes[row] for batch, rows in batches for row in rows],
            sizes=[size for _, size, *_ in known],
            changed=[changed for _, _, changed, _ in known],
            thumbnails=[batch.thumbnail(row) for batch, rows in batches for row in rows],
        )
        ids = shard.first + np.arange(len(X))
        pictures = Pictures(X=X, W=codes.W, l1=codes.l1, gap=codes.gap, described=described, residuals=residuals)
        insert_pictures(con, ids, np.arange(len(ids)), pictures, Places.none(len(ids)))
        jpegs = {int(i): jpeg for i, jpeg in zip(ids, described.thumbnails, strict=True) if jpeg}
        return ShardTables(con, ids, X, codes.W, jpegs)


@dataclass(frozen=True)
class ShardTables:
    """A shard as `indexer.exchange.export` writes it."""

    con: duckdb.DuckDBPyConnection
    image_ids: np.ndarray
    X: np.ndarray
    W: sparse.csr_matrix
    jpegs: dict[int, bytes]

    @property
    def d(self) -> int:
        return int(self.X.shape[1])

    def __len__(self) -> int:
        return len(self.X)

    def codes(self) -> sparse.csr_matrix:
        return self.W

    def embeddings(self, rows: np.ndarray, /) -> np.ndarray:
        return self.X[rows]

    def thumbnails(self, image_ids: list[int], /) -> dict[int, bytes]:
        return {i: self.jpegs[i] for i in image_ids if i in self.jpegs}


@dataclass(frozen=True)
class Receipt:
    """What a finished shard was made of, and the checksums of its files."""

    key: str
    files: dict[str, str]

    def first_damaged(self, folder: Path) -> str | None:
        """The first of its files that is not as it was written."""
        for name, expected in self.files.items():
            try:
                if checksum(folder / name) != expected:
                    return name
            except OSError:
                return name
        return None


def receipt_path(folder: Path, number: int) -> Path:
    return folder / RECEIPTS / f"{number:07d}.json"


def read_receipt(folder: Path, number: int) -> Receipt | None:
    """A shard's receipt; None where there is none that can be read."""
    try:
        held = json.loads(receipt_path(folder, number).read_bytes())
        return Receipt(str(held["key"]), {str(k): str(v) for k, v in held["files"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_manifest(folder: Path, shared: Contents, pictures: int, shards: int) -> IndexMeta:
    """Writes the tables that no shard has a part of, and last `meta`, which says how many files there are; removes what
    an earlier build of more shards has left."""
    meta = replace(shared.meta, n=pictures, m=len(shared.dictionary.D), next_id=pictures)
    checksums: dict[str, str] = {}
    for number in range(shards):
        receipt = read_receipt(folder, number)
        assert receipt is not None, "the manifest is written once every shard is"
        checksums |= receipt.files
    tables = exported_tables(meta)
    parts = {table: shards if table in OF_PICTURES else 1 for table in tables if table != "meta"}
    for path in _unnamed(folder, checksums):
        path.unlink()
    with closing(connect()) as con:
        con.execute(create_statements(meta.d, meta.residual))
        insert_shared(con, shared, np.zeros(meta.m, np.int32))
        rows = meta.rows() | {"export": str(EXPORT), PARTS: json.dumps(parts)}
        for table in [t for t in tables if t not in (*OF_PICTURES, "meta")]:
            checksums |= _published(con, folder, table)
        rows[CHECKSUMS] = json.dumps(checksums)
        insert(con, "meta", {"key": list(rows), "value": list(rows.values())})
        _published(con, folder, "meta")
    return meta


def _published(con: duckdb.DuckDBPyConnection, folder: Path, table: str) -> dict[str, str]:
    """Writes a table that is one file, whole or not at all; returns its checksum."""
    making = folder / f".{table}.{os.getpid()}.part"
    making.mkdir(exist_ok=True)
    try:
        write_parts(con, making, table, [f"FROM {table}"])
        path = part_path(making, table, "parquet", 0)
        found = {path.name: checksum(path)}
        os.replace(path, folder / path.name)
        sync_folder(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return found


def _unnamed(folder: Path, named: dict[str, str]) -> Iterator[Path]:
    """Files of tables that are of no shard."""
    for path in folder.glob("*.parquet"):
        if path.name not in named and path.stem.partition("-")[0] in EVERY:
            yield path
