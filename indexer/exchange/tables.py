"""The files of an export: which tables, their columns, and how a large table is cut into parts.

An export holds ids, weights and floats exactly and does not depend on the layout of the database, so that an index
moves by it between format versions, and out of a damaged one. Embeddings are plain lists; in JSON lines a float has
the fewest digits that give it back, what is not finite is text ("nan", "inf"), and thumbnails are base64.
"""

from __future__ import annotations

from pathlib import Path

from indexer.store import IndexMeta
from indexer.store.schema import RESIDUAL, TABLES, Column

EXPORT = 2  # the version of these files; theirs alone, whatever the database's format
READABLE = ("1", "2")  # 1 knows neither the size nor the time of change of files, nor their root folder
FORMATS = ("parquet", "jsonl")
PARTS = "export_parts"  # the key of `meta` that tells into how many files each table is cut
CHECKSUMS = "export_checksums"  # … and, of a build's shards, the SHA-256 of each file
PART = 1 << 15  # pictures of which one file holds the vectors at most, or four times as many codes


def _plain(table: str) -> tuple[Column, ...]:
    """The columns of a table of the database that do not follow from others, an array being a list."""
    return tuple(Column(c.name, c.type.replace("[{d}]", "[]"), c.nullable) for c in TABLES[table] if not c.derived)


EXPORTED: dict[str, tuple[Column, ...]] = {
    "meta": _plain("meta"),
    "images": _plain("images"),
    "concepts": _plain("concepts"),
    "classes": _plain("classes"),
    "codes": (
        Column("image_id", "INTEGER"),
        Column("path", "VARCHAR"),
        Column("concept_id", "INTEGER"),
        Column("concept", "VARCHAR"),
        Column("weight", "FLOAT"),
    ),
    "vectors": (Column("image_id", "INTEGER"), Column("embedding", "FLOAT[]")),
    "thumbnails": (Column("image_id", "INTEGER"), Column("jpeg", "BLOB")),
    "means": _plain("means"),
    "skipped": _plain("skipped"),
}
EVERY = EXPORTED | {table: _plain(table) for table in RESIDUAL}  # with those that only some indexes have


def exported_tables(meta: IndexMeta) -> list[str]:
    """The tables of an index that an export has: residuals and vectors where the index has any."""
    held = EVERY if meta.residual else EXPORTED
    return [table for table in held if meta.keeps_vectors or table != "vectors"]


NEW_IN_2 = ("file_bytes", "file_changed")  # columns of `images`


def part_path(folder: Path, table: str, format: str, number: int) -> Path:
    """The file of a table's part, counted from 0: vectors.parquet, vectors-2.parquet, …"""
    return folder / (f"{table}-{number + 1}.{format}" if number else f"{table}.{format}")
