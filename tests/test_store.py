"""The store: round trips, changes on a copy of the database and behind the rows of the files, replacement, damage."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from contents import make_contents, make_pictures

from indexer.config import CoderConfig
from indexer.store import DATABASE, Change, IndexMeta, Skip, Store, change_store, compact_store, reader, write_store
from indexer.store.meta import COUNTS, FILES, MetaError, parse_meta
from indexer.store.naming import picture_at
from indexer.store.vectors import block_rows
from training.errors import SparsightError


def data_files(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.name != DATABASE)


def sql(folder: Path, statement: str) -> None:
    with duckdb.connect(str(folder / DATABASE)) as con:
        con.execute(statement)


def change(folder: Path, made: Change) -> IndexMeta:
    with Store(folder) as store:
        return change_store(folder, store, made)


def test_what_is_written_is_read(tmp_path):
    c = make_contents()
    said = write_store(tmp_path, c)
    with Store(tmp_path) as store:
        assert store.meta == said
        assert (said.n, said.d, said.m, said.nnz, said.next_id) == (12, 8, 5, c.pictures.W.nnz, 12)
        np.testing.assert_array_equal(store.embeddings(), c.pictures.X)
        np.testing.assert_array_equal(store.embeddings(np.array([7, 2])), c.pictures.X[[7, 2]])
        np.testing.assert_array_equal(store.embeddings_of([7, 2]), c.pictures.X[[7, 2]])
        np.testing.assert_array_equal(store.dictionary(), c.dictionary.D)
        W, expected = store.codes(), c.pictures.W
        np.testing.assert_array_equal(W.indptr, expected.indptr)
        np.testing.assert_array_equal(W.indices, expected.indices)
        np.testing.assert_allclose(W.data, expected.data, atol=expected.data.max() / 8190)
        classes = store.classes()
        assert classes.names == c.classes.names
        np.testing.assert_array_equal(classes.T, c.classes.T)
        concepts = store.concepts()
        assert [x.name for x in concepts] == c.dictionary.names
        assert concepts[0].aliases == ("fire truck", "x,y")
        assert [x.parent for x in concepts] == c.dictionary.parents
        assert [x.images for x in concepts] == np.bincount(expected.indices, minlength=5).tolist()
        rows, described = store.images(), c.pictures.described
        assert [r.path for r in rows] == described.paths
        assert [r.label for r in rows] == described.labels
        assert store.images([5, 0]) == [rows[5], rows[0]]
        assert store.thumbnails([3, 1]) == {1: b"\x01\x00\xff", 3: b"\x03\x00\xff"}
        assert picture_at(store, described.paths[4]) == 4
        assert picture_at(store, "nowhere") is None
        for image_id, (ids, weights) in zip([5, 0], store.codes_of([5, 0]), strict=True):
            np.testing.assert_array_equal(ids, expected[image_id].indices)
            np.testing.assert_array_equal(weights, W[image_id].data)


def test_pictures_are_found_by_path_and_by_content(tmp_path):
    hashes = [f"{i % 5:064x}" if i else None for i in range(12)]
    stamps = {"sizes": [i * 2**33 if i else None for i in range(12)], "changed": [i + 10**18 for i in range(12)]}
    write_store(tmp_path, make_contents(pictures=make_pictures(hashes=hashes, **stamps)))
    with Store(tmp_path) as store:
        rows = store.images()
        assert [(r.content_hash, r.file_bytes, r.file_changed) for r in rows] == list(
            zip(hashes, stamps["sizes"], stamps["changed"], strict=True)
        )
        assert store.images_at([rows[3].path, "nowhere"]) == {rows[3].path: rows[3]}
        assert store.images_holding([hashes[2], "none"]) == [rows[2], rows[7]]
        assert store.images_at([]) == {}
        assert store.content_prefixes().tolist() == sorted(int(h[:15], 16) for h in hashes if h)


def test_the_postings_of_a_few_concepts_are_those_columns_of_the_codes(tmp_path):
    write_store(tmp_path, make_contents())
    with Store(tmp_path) as store:
        indptr, ids, weights = store.postings([3, 1]).columns()
        W = store.codes().tocsc()
        assert np.diff(indptr).tolist() == [0, W[:, [1]].nnz, 0, W[:, [3]].nnz, 0]
        np.testing.assert_array_equal(ids, np.concatenate([W[:, [j]].indices for j in (1, 3)]))
        np.testing.assert_array_equal(weights, np.concatenate([W[:, [j]].data for j in (1, 3)]))


def test_the_view_shows_the_postings_as_plain_rows(tmp_path):
    write_store(tmp_path, make_contents())
    with Store(tmp_path) as store:
        expected = store.codes().tocoo()
        rows = store.con.execute("SELECT image_id, concept_id, weight FROM postings ORDER BY 1, 2").fetchnumpy()
    for column, values in zip(rows.values(), (expected.row, expected.col, expected.data), strict=True):
        np.testing.assert_array_equal(column, values)


def test_anyone_reads_it_with_plain_sql_and_plain_numpy(tmp_path):
    c = make_contents()
    meta = write_store(tmp_path, c)
    with duckdb.connect(str(tmp_path / DATABASE), read_only=True) as con:
        tables = {row[0] for row in con.execute("SHOW TABLES").fetchall()}
        assert {"meta", "images", "vector_blocks", "concepts", "postings"} <= tables
        tags = con.execute("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchone()
        assert "v1.4" in str(tags)
        rows = con.execute("SELECT vector_row FROM images ORDER BY image_id").fetchnumpy()["vector_row"]
        where = con.execute("SELECT thumbnail_start, thumbnail_bytes FROM images WHERE image_id = 7").fetchone()
    X = np.fromfile(tmp_path / meta.vectors_file, "<f4").reshape(-1, meta.d)
    np.testing.assert_array_equal(X[rows], c.pictures.X)
    start, size = where
    assert (tmp_path / meta.thumbnails_file).read_bytes()[start : start + size] == b"\x07\x00\xff"


def test_replacing_keeps_one_whole_index_and_counts_generations(tmp_path):
    write_store(tmp_path, make_contents(seed=0))
    with Store(tmp_path) as old:
        write_store(tmp_path, make_contents(seed=1))
        np.testing.assert_array_equal(old.embeddings(), make_contents(seed=0).pictures.X)  # it keeps its state
        assert old.thumbnails([3]) == {3: b"\x03\x00\xff"}
        assert not old.is_current()
    with Store(tmp_path) as new:
        np.testing.assert_array_equal(new.embeddings(), make_contents(seed=1).pictures.X)
        assert new.meta.generation == 2
        assert new.is_current()
    assert data_files(tmp_path) == ["thumbnails-2.bin", "vectors-2.f32"]


def test_a_failed_write_leaves_the_earlier_index(tmp_path):
    write_store(tmp_path, make_contents(seed=0))
    before = data_files(tmp_path)
    for broken in (make_pictures(labels=["a"] * 11), make_pictures(paths=[None] * 11 + ["x"], splits=[1] * 3)):
        with pytest.raises((SparsightError, ValueError)):
            write_store(tmp_path, make_contents(seed=1, pictures=broken))
        with Store(tmp_path) as store:
            np.testing.assert_array_equal(store.embeddings(), make_contents(seed=0).pictures.X)
        assert data_files(tmp_path) == before


def test_a_removal_writes_to_no_file_and_an_addition_behind_what_is_there(tmp_path):
    before = write_store(tmp_path, make_contents(n=40))
    vectors, thumbnails = tmp_path / before.vectors_file, tmp_path / before.thumbnails_file
    held, stamps = (
        [p.read_bytes() for p in (vectors, thumbnails)],
        [p.stat().st_mtime_ns for p in (vectors, thumbnails)],
    )
    with Store(tmp_path) as old:
        removed = change(tmp_path, Change(removed=[3, 39]))
        assert [p.stat().st_mtime_ns for p in (vectors, thumbnails)] == stamps
        assert (removed.n, removed.vector_rows, removed.dead, removed.next_id) == (38, 40, 2, 40)
        new = make_pictures(5, seed=7, thumbnails=[b"one", None, b"", b"four", b"5"])
        added = change(tmp_path, Change(added=new))
        assert [p.read_bytes()[: len(h)] for p, h in zip((vectors, thumbnails), held, strict=True)] == held
        assert vectors.stat().st_size == 45 * 8 * 4
        assert thumbnails.stat().st_size == len(held[1]) + len(b"onefour5") == added.thumbnail_bytes
        assert len(old.images()) == len(old.embeddings()) == 40
        assert old.vectors.damaged_blocks() == []
    kept = [i for i in range(40) if i not in (3, 39)]
    with Store(tmp_path) as store:
        assert store.image_ids.tolist() == [*kept, *range(40, 45)]
        np.testing.assert_array_equal(store.embeddings(), np.concatenate([make_contents(n=40).pictures.X[kept], new.X]))
        assert store.ids_by_row.tolist() == [i if i in kept or i > 39 else -1 for i in range(45)]
        assert store.thumbnails(range(38, 45)) == {38: b"\x26\x00\xff", 40: b"one", 42: b"", 43: b"four", 44: b"5"}
        W = store.codes()[len(kept) :]
        np.testing.assert_allclose(W.toarray(), new.W.toarray(), atol=1e-3)
    assert data_files(tmp_path) == ["thumbnails-1.bin", "vectors-1.f32"]


def test_what_a_dead_writer_left_behind_the_rows_is_written_over(tmp_path):
    before = write_store(tmp_path, make_contents())
    for name in (before.vectors_file, before.thumbnails_file):
        with (tmp_path / name).open("ab") as f:
            f.write(b"half of what an addition that was killed would have added")
    with Store(tmp_path) as store:
        np.testing.assert_array_equal(store.embeddings(), make_contents().pictures.X)
    after = change(tmp_path, Change(added=make_pictures(1, seed=7)))
    assert (tmp_path / after.vectors_file).stat().st_size == 13 * 8 * 4
    assert (tmp_path / after.thumbnails_file).stat().st_size == after.thumbnail_bytes == 13 * 3
    with Store(tmp_path) as store:
        assert store.vectors.damaged_blocks() == []
        assert store.thumbnails([12]) == {12: b"\x00\x00\xff"}


@pytest.mark.parametrize("by", ["share", "command"])
def test_compaction_writes_files_of_the_pictures_that_there_are(tmp_path, by):
    write_store(tmp_path, make_contents(n=40))
    gone = list(range(0, 22, 2)) if by == "share" else [4, 5]
    before = change(tmp_path, Change(removed=gone))
    if by == "command":
        assert before.dead == 2
        with Store(tmp_path) as store:
            compact_store(tmp_path, store)
    kept = np.setdiff1d(np.arange(40), gone)
    with Store(tmp_path) as store:
        meta = store.meta
        assert (meta.n, meta.vector_rows, meta.dead, meta.next_id) == (len(kept), len(kept), 0, 40)
        assert (tmp_path / meta.vectors_file).stat().st_size == 4 * 8 * len(kept)
        assert (tmp_path / meta.thumbnails_file).stat().st_size == meta.thumbnail_bytes == 3 * len(kept)
        assert store.image_ids.tolist() == kept.tolist()
        np.testing.assert_array_equal(store.embeddings(), make_contents(n=40).pictures.X[kept])
        assert store.thumbnails([39, 3]) == {3: b"\x03\x00\xff", 39: b"\x27\x00\xff"}
        assert store.vectors.damaged_blocks() == []
        assert data_files(tmp_path) == [meta.thumbnails_file, meta.vectors_file]


def test_a_reader_whose_files_a_compaction_took_away_opens_the_new_ones(tmp_path, monkeypatch):
    write_store(tmp_path, make_contents(n=40))
    change(tmp_path, Change(removed=[1]))
    opened, real = [], reader.open_database

    def open_database(folder: Path) -> duckdb.DuckDBPyConnection:
        con = real(folder)
        opened.append(con)
        if len(opened) == 2:  # the first is the compaction's own
            with monkeypatch.context() as m:
                m.setattr(reader, "open_database", real)
                compact_store(folder, store)
        return con

    monkeypatch.setattr(reader, "open_database", open_database)
    with Store(tmp_path) as store, Store(tmp_path) as read:
        assert len(opened) == 3
        assert read.meta.dead == 0
        assert len(read.embeddings()) == 39


def test_vectors_of_several_blocks_are_checked_by_block(tmp_path):
    d, n = 4096, 40  # 16 rows a block
    assert block_rows(d) == 16
    c = make_contents(n=n, d=d)
    meta = write_store(tmp_path, c)
    with (tmp_path / meta.vectors_file).open("rb+") as f:
        f.seek(4 * d * 20)
        f.write(b"\xff")
    with Store(tmp_path) as store:
        np.testing.assert_array_equal(store.embeddings_of([15, 32]), c.pictures.X[[15, 32]])
        with pytest.raises(SparsightError, match=r"damaged: .* \(rows 16 … 31 of vectors-1.f32\); rebuild it"):
            store.embeddings_of([31])
        with pytest.raises(SparsightError, match="damaged"):
            store.embeddings()


def test_refuses_what_is_no_index(tmp_path):
    with pytest.raises(SparsightError, match="no index in"):
        Store(tmp_path)
    (tmp_path / DATABASE).write_bytes(b"not a database at all" * 1000)
    with pytest.raises(SparsightError, match="not a readable index"):
        Store(tmp_path)


@pytest.mark.parametrize(("version", "hint"), [("2", "sparsight import"), ("3", "sparsight import"), ("99", "rebuild")])
def test_an_index_of_another_format_is_refused_with_what_to_do(tmp_path, version, hint):
    sql(tmp_path, f"CREATE TABLE meta AS SELECT 'format' AS key, '{version}' AS value")
    with pytest.raises(SparsightError, match=rf"has format {version}, this sparsight reads 4; .*{hint}"):
        Store(tmp_path)


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE posting_blocks SET first = first + 10000000, last = last + 10000000",
        "UPDATE posting_blocks SET first = -1",
        "UPDATE posting_blocks SET concept_id = 77 WHERE concept_id = 1",
        "UPDATE posting_blocks SET count = 0",
        "UPDATE posting_blocks SET width = 33",
        "UPDATE posting_blocks SET step = 'nan'",
        "UPDATE posting_blocks SET lift = 65535",
        "UPDATE posting_blocks SET bits = 14",
        "UPDATE posting_blocks SET words = []",
        "UPDATE posting_blocks SET words = list_transform(words, lambda w: 4294967295::UINTEGER)",
        "UPDATE concepts SET images = images + 1",
        "DELETE FROM posting_blocks WHERE concept_id = 2",
    ],
)
def test_damaged_postings_are_refused_before_scipy_sees_them(tmp_path, harm):
    write_store(tmp_path, make_contents())
    sql(tmp_path, harm)
    with Store(tmp_path) as store, pytest.raises(SparsightError, match=r"postings of .* are damaged: .*; rebuild"):
        store.codes()


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE images SET vector_row = NULL WHERE image_id = 3",
        "UPDATE images SET vector_row = 12 WHERE image_id = 3",
        "UPDATE images SET vector_row = -1 WHERE image_id = 3",
        "UPDATE images SET image_id = -1 WHERE image_id = 3",
        "DELETE FROM images WHERE image_id = 3",
        "DELETE FROM vector_blocks",
        "UPDATE vector_blocks SET crc = NULL",
        "UPDATE vector_blocks SET crc = crc - 1",
        "INSERT INTO vector_blocks VALUES (1, 0)",
        "DROP TABLE vector_blocks",
        "ALTER TABLE images DROP vector_row",
    ],
)
def test_what_leads_to_the_vectors_is_checked(tmp_path, harm):
    write_store(tmp_path, make_contents())
    sql(tmp_path, harm)
    with (
        pytest.raises(SparsightError, match=r"damaged: .*; rebuild it|has no crc; rebuild it"),
        Store(tmp_path) as store,
    ):
        store.embeddings_of([3])


META = replace(
    make_contents().meta, generation=3, n=7, m=5, nnz=9, next_id=8, vectors_file="vectors-1.f32", vector_rows=8,
    vector_block=16, thumbnails_file="thumbnails-1.bin", thumbnail_bytes=2**40, labels="folders",
    templates=("a {}", 'the "{}"\n'), coder=CoderConfig(l1=0.25, memory=2**33, refit=True),
)  # fmt: skip


def test_meta_is_what_its_rows_say():
    assert parse_meta(META.rows()) == META
    assert set(META.rows()) == {f.name for f in fields(IndexMeta)} | {"format", "l1"}


@pytest.mark.parametrize("key", [f.name for f in fields(IndexMeta)])
def test_meta_without_a_key_names_it(key):
    rows = {k: v for k, v in META.rows().items() if k != key}
    with pytest.raises(MetaError, match=f"no {key}"):
        parse_meta(rows)
    default = next(f.default for f in fields(IndexMeta) if f.name == key)
    if isinstance(default, (str, int)):
        assert parse_meta(rows, without=(key,)) == replace(META, **{key: default})


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (COUNTS, ["", "x", "-1", "1.0", "1e3", "٣", " 7", "9" * 19, "null"]),
        (FILES, ["", ".", "..", "a/b", "a\\b", "../a", "a\0b"]),
        (("templates",), ["", "{}", "[1]", "null", "[" * 5000]),
        (("coder",), ["", "[]", "null", '{"l2": 1}', '{"l1": "x"}', '{"l1": null}', '{"refit": []}', "[" * 5000]),
    ],
)
def test_meta_of_wrong_values_names_the_key(keys, values):
    for key in keys:
        for value in values:
            with pytest.raises(MetaError, match=key if key != "templates" else "prompts|templates"):
                parse_meta(META.rows() | {key: value})


def test_a_list_of_what_was_skipped_is_kept_by_path(tmp_path):
    write_store(tmp_path, make_contents(skipped=[Skip("b", "1"), Skip("a'\n", '"2"')]))
    change(tmp_path, Change(skipped=[Skip("b", "3"), Skip("c", "4")]))
    with Store(tmp_path) as store:
        assert store.skipped() == [("a'\n", '"2"'), ("b", "3"), ("c", "4")]
