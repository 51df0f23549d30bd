"""The tables of an index's database, as data: the writer, the reader, the doctor, export and import all go by them.

No column has an ART index (PRIMARY KEY, UNIQUE): they are slow to fill and have open corruption reports. What is large
and never changes does not lie in the database: embeddings and thumbnails are in files beside it (`vectors.py`,
`thumbnails.py`), and `images` says where in them a picture's lie.
"""

from __future__ import annotations

from typing import NamedTuple

FORMAT = 4


class Column(NamedTuple):
    """A column: its DuckDB type · whether it may be NULL · whether it follows from the rest of an index (an export
    leaves such a column out, an import makes it anew)."""

    name: str
    type: str
    nullable: bool = False
    derived: bool = False


TABLES: dict[str, tuple[Column, ...]] = {
    "meta": (Column("key", "VARCHAR"), Column("value", "VARCHAR")),
    "images": (
        Column("image_id", "INTEGER"),
        Column("path", "VARCHAR"),
        Column("split", "VARCHAR", nullable=True),
        Column("label", "VARCHAR", nullable=True),
        Column("term", "VARCHAR", nullable=True),
        Column("content_hash", "VARCHAR", nullable=True),  # SHA-256 of the file's bytes, hexadecimal
        Column("file_bytes", "BIGINT", nullable=True),  # of the file when it was read …
        Column("file_changed", "BIGINT", nullable=True),  # … and its time of change, nanoseconds since 1970
        Column("l1", "FLOAT", nullable=True),
        Column("gap", "FLOAT", nullable=True),
        Column("vector_row", "INTEGER", derived=True),
        Column("thumbnail_start", "BIGINT", nullable=True, derived=True),
        Column("thumbnail_bytes", "INTEGER", nullable=True, derived=True),
        Column("thumbnail_crc", "UINTEGER", nullable=True, derived=True),
    ),
    "concepts": (
        Column("concept_id", "INTEGER"),
        Column("name", "VARCHAR"),
        Column("aliases", "VARCHAR[]", nullable=True),
        Column("parent", "VARCHAR", nullable=True),
        Column("source", "VARCHAR"),
        Column("images", "INTEGER", derived=True),
        Column("atom", "FLOAT[{d}]"),
    ),
    "classes": (Column("class_id", "INTEGER"), Column("name", "VARCHAR"), Column("embedding", "FLOAT[{d}]")),
    "posting_blocks": (
        Column("concept_id", "INTEGER"),
        Column("tier", "UTINYINT"),
        Column("step", "FLOAT"),
        Column("lift", "USMALLINT"),
        Column("bits", "UTINYINT"),
        Column("first", "INTEGER"),
        Column("last", "INTEGER"),
        Column("count", "UTINYINT"),
        Column("width", "UTINYINT"),
        Column("words", "UINTEGER[]"),
    ),
    "vector_blocks": (Column("block", "INTEGER"), Column("crc", "UINTEGER")),  # checksums of the vectors' file
    "means": (Column("modality", "VARCHAR"), Column("embedding", "FLOAT[{d}]")),
    "skipped": (Column("path", "VARCHAR"), Column("reason", "VARCHAR")),
    "residuals": (Column("image_id", "INTEGER"), Column("scale", "FLOAT"), Column("code", "BLOB")),
    "residual_axes": (Column("axis", "INTEGER"), Column("direction", "FLOAT[{d}]")),
    "residual_centroids": (Column("part", "INTEGER"), Column("code", "INTEGER"), Column("centroid", "FLOAT[]")),
}
RESIDUAL = ("residuals", "residual_axes", "residual_centroids")  # of an index that keeps residuals, and of no other


def tables_of(residual: str) -> dict[str, tuple[Column, ...]]:
    """The tables of an index with a residual of this description, "" for none."""
    return {name: columns for name, columns in TABLES.items() if residual or name not in RESIDUAL}


# The plain rows that the packed blocks stand for: (concept_id, image_id, weight).
POSTINGS_VIEW = """
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


def create_statements(d: int, residual: str) -> str:
    """SQL that makes the tables of an index with d dimensions, and with residuals where they are described."""
    tables = (
        f"CREATE TABLE {name} ({', '.join(f'{c.name} {c.type.format(d=d)}' for c in columns)});"
        for name, columns in tables_of(residual).items()
    )
    return "\n".join(tables) + POSTINGS_VIEW
