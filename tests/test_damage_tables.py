"""Tables of an index that plain SQL has changed, or that another version wrote: it answers, or says what is wrong."""

from __future__ import annotations

import os
import struct
from dataclasses import fields
from pathlib import Path

import duckdb
import pytest
from harming import Harm, check, of_duckdb, sweep, with_leftovers

from indexer.store import DATABASE
from indexer.store.meta import COUNTS, IndexMeta

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
VECTORS = "vectors-1.f32"


@pytest.fixture(scope="module")
def index(light_index, tmp_path_factory) -> Path:
    return with_leftovers(light_index, tmp_path_factory.mktemp("damage") / "index")


def _storage_version(folder: Path, version: int) -> None:
    """Writes another storage version into the file's header, and DuckDB's checksum of that."""
    path = folder / DATABASE
    data = bytearray(path.read_bytes())
    data[12:20] = struct.pack("<Q", version)
    checksum = 5381
    for (word,) in struct.iter_unpack("<Q", data[8:4096]):
        checksum ^= word * 0xBF58476D1CE4E5B9 & 2**64 - 1
    data[:8] = struct.pack("<Q", checksum)
    path.write_bytes(data)


def test_other_versions_are_refused(index, tmp_path):
    def set_format(value: str) -> Harm:
        return lambda folder: of_duckdb(f"UPDATE meta SET value = '{value}' WHERE key = 'format'")(folder / DATABASE)

    trials = {f"format {value}": set_format(value) for value in ("1", "2", "3", "99", "three", "-3", "3.0", "9" * 5000)}
    trials |= {f"storage {v}": lambda folder, v=v: _storage_version(folder, v) for v in (1, 63, 66, 999, 2**63)}
    trials["storage of this DuckDB"] = _newest_storage
    outcomes = sweep(index, tmp_path, trials)
    check(outcomes)
    assert all("refused" in o for name, o in outcomes.items() if name not in ("storage of this DuckDB", "storage 66"))


def _newest_storage(folder: Path) -> None:
    """The same tables in the newest storage format that the installed DuckDB writes."""
    new = folder / "new.duckdb"
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{folder / DATABASE}' AS old (READ_ONLY)")
        con.execute(f"ATTACH '{new}' AS new (STORAGE_VERSION 'latest')")
        con.execute("COPY FROM DATABASE old TO new")
    new.replace(folder / DATABASE)


KEYS = [f.name for f in fields(IndexMeta)]
PARSED = ("vectors_file", "thumbnails_file", "templates", "coder", "dense_factory")
EDITS = [
    *(f"UPDATE meta SET value = '{v}' WHERE key = '{k}'" for k in COUNTS
      for v in ("-1", "0", "1", "7", "151", "2147483647", "1000000000000", "x")),
    *(f"UPDATE meta SET value = '{v}' WHERE key = '{k}'" for k in PARSED
      for v in ("", "null", '{"l1": "x"}', '{"a": 1}', "[" * 5000, "..", DATABASE, VECTORS, "a' || chr(0) || 'b")),
    *(f"UPDATE meta SET value = {v} WHERE key = '{k}'" for k in KEYS for v in ("NULL", "''", "chr(0)")),
    *(f"DELETE FROM meta WHERE key = '{k}'" for k in (*KEYS, "format")),
    *(f"UPDATE images SET {c} = {v} WHERE image_id = 3" for c in ("vector_row", "thumbnail_start", "thumbnail_bytes",
      "thumbnail_crc") for v in ("NULL", "0", "4", "149", "150", "2147483647")),
    "UPDATE images SET vector_row = 149 - vector_row",
    *(f"UPDATE images SET {c} = -1 WHERE image_id = 3" for c in ("vector_row", "thumbnail_start", "thumbnail_bytes")),
    "UPDATE images SET thumbnail_start = 9223372036854775807",
    *(f"UPDATE vector_blocks SET {c} = {v}" for c in ("block", "crc") for v in ("NULL", "7", "0")),
    "INSERT INTO vector_blocks SELECT 1, 1",
    "UPDATE meta SET value = NULL",
    "INSERT INTO meta VALUES (NULL, NULL), ('n', '9')",
    *(f"DELETE FROM {t}" for t in ("images", "vector_blocks", "concepts", "classes", "posting_blocks", "meta")),
    *(f"DELETE FROM {t} WHERE {c} = 3" for t, c in (("images", "image_id"),
      ("concepts", "concept_id"), ("classes", "class_id"), ("posting_blocks", "concept_id"))),
    *(f"UPDATE {t} SET {c} = {v}" for t, c in (("images", "image_id"), ("images", "vector_row"),
      ("concepts", "concept_id"), ("classes", "class_id"), ("posting_blocks", "concept_id"))
      for v in ("NULL", "3", f"{c} + 1", f"-{c}", "2147483647")),
    *(f"UPDATE {t} SET {c} = NULL" for t, c in (("images", "path"), ("images", "label"), ("images", "l1"),
      ("concepts", "name"), ("concepts", "aliases"), ("concepts", "parent"),
      ("concepts", "images"), ("concepts", "atom"), ("classes", "name"), ("classes", "embedding"))),
    *(f"UPDATE posting_blocks SET {c} = {v}"
      for c in ("tier", "step", "lift", "bits", "first", "last", "count", "width")
      for v in ("NULL", "0", "1", "100")),
    *(f"UPDATE posting_blocks SET words = {v}" for v in ("NULL", "[]", "[NULL]", "[0]", "list_concat(words, words)",
      "list_transform(words, lambda w: 4294967295::UINTEGER)")),
    "UPDATE posting_blocks SET step = 'inf'",
    "INSERT INTO posting_blocks SELECT * FROM posting_blocks",
    *(f"UPDATE {t} SET {c} = list_transform({c}, lambda x: {v})::FLOAT[256]" for t, c in (
      ("concepts", "atom"), ("classes", "embedding")) for v in ("'nan'::FLOAT", "'inf'::FLOAT", "NULL", "0")),
    "INSERT INTO images SELECT * FROM images",
    "INSERT INTO vector_blocks SELECT * FROM vector_blocks",
    "INSERT INTO means SELECT 'image', embedding FROM classes LIMIT 1",
    "INSERT INTO means SELECT unnest(['image', 'text']), NULL",
    "INSERT INTO skipped VALUES (NULL, NULL)",
    *(f"DROP TABLE {t}"
      for t in ("meta", "images", "vector_blocks", "concepts", "classes", "means", "skipped")),
    "ALTER TABLE vector_blocks ALTER crc TYPE VARCHAR",
    "ALTER TABLE images DROP path",
    "ALTER TABLE images ADD COLUMN more VARCHAR",
    "ALTER TABLE meta ALTER value TYPE BLOB USING value::BLOB",
    "ALTER TABLE posting_blocks ALTER words TYPE VARCHAR",
    "DROP VIEW postings",
]  # fmt: skip


def test_edited_tables_give_no_traceback(index, tmp_path):
    """What plain SQL changed is no damage that a checksum tells; it may be believed, but never be the end of it."""
    edit = lambda statement: lambda folder: of_duckdb(statement)(folder / DATABASE)  # noqa: E731
    outcomes = sweep(index, tmp_path, {statement: edit(statement) for statement in EDITS})
    check({name: outcome for name, outcome in outcomes.items() if outcome != "other answers"})
