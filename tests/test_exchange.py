"""Plain files out and in again, exactly; what is wrong in them, or of an earlier format."""

from __future__ import annotations

import json
import os
import shutil
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import replace
from math import ceil
from pathlib import Path

import duckdb
import numpy as np
import pytest
from click.testing import CliRunner
from contents import make_contents, make_pictures

from indexer.exchange import export
from indexer.exchange.export import export_index
from indexer.exchange.importing import import_index
from indexer.exchange.loading import Loaded
from indexer.exchange.tables import EXPORTED
from indexer.store import DATABASE, Change, Contents, Skip, Store, change_store, compact_store, write_store
from indexer.store.database import connect
from indexer.store.meta import DERIVED
from indexer.store.postings import STEP
from indexer.store.schema import POSTINGS_VIEW
from sparsight import main
from training.encoders import Means
from training.errors import SparsightError

FORMATS = ["parquet", "jsonl"]


def hostile_contents(**more: object) -> Contents:
    c = make_contents(**more)
    c.pictures.gap[:3] = np.nan, np.inf, 1e-45
    means = Means(c.pictures.X[0], c.dictionary.D[0])
    return replace(c, means=means, skipped=[Skip("a'b\n.png", 'is "no" picture')])


@pytest.fixture
def index(tmp_path) -> Path:
    return written(tmp_path, hostile_contents())


def written(tmp_path: Path, c: Contents) -> Path:
    (tmp_path / "index").mkdir()
    write_store(tmp_path / "index", c)
    return tmp_path / "index"


def everything(folder: Path) -> dict[str, object]:
    """All that a store answers, in a form that compares bit by bit."""
    with Store(folder) as store:
        W = store.codes()
        means, classes, ids = store.means(), store.classes(), store.image_ids.tolist()
        places = {"generation", "vectors_file", "vector_rows", "thumbnails_file", "thumbnail_bytes"}
        return {
            "ids": ids,
            "X": store.embeddings().tobytes(),
            "D": store.dictionary().tobytes(),
            "T": classes.T.tobytes(),
            "W": [W.indptr.tolist(), W.indices.tolist(), W.data.tobytes()],
            "images": repr(store.images()),
            "concepts": store.concepts(),
            "sources": store.rows("SELECT source FROM concepts ORDER BY concept_id"),
            "classes": classes.names,
            "thumbnails": store.thumbnails(ids),
            "means": means and [means.image.tobytes(), means.text.tobytes()],
            "skipped": store.skipped(),
            "meta": {k: v for k, v in vars(store.meta).items() if k not in places},
        }


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["index", "light_index"])
def test_an_imported_index_answers_as_the_exported_one(request, tmp_path, format, name):
    index = request.getfixturevalue(name)
    out = tmp_path / "label=cat" / "path=x" / "it's [a]* folder?"
    rows = export_index(index, out, format)
    assert sorted(p.name for p in out.iterdir()) == sorted(f"{t}.{format}" for t in EXPORTED)
    meta = import_index(tmp_path / "new", out)
    assert everything(tmp_path / "new") == everything(index)
    assert meta.nnz == rows["codes"] > 0


@pytest.mark.parametrize("format", FORMATS)
def test_folders_named_as_columns_are_give_no_values(tmp_path, format):
    """DuckDB takes `label=cat` in a path for the value of a column, where it is not told to leave that."""
    index = written(tmp_path, hostile_contents())
    twins = tmp_path / "label=dog" / "image_id=7" / "embedding=1"
    export_index(index, twins, format)
    export_index(index, tmp_path / "label=dog" / "image_id=7" / "embedding=?", format)
    import_index(tmp_path / "new", tmp_path / "label=dog" / "image_id=7" / "embedding=?")
    assert everything(tmp_path / "new") == everything(index)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("part", "files", "of_thumbnails"), [(5, 3, 12), (12, 1, 4), (11, 2, 6), (1, 12, 12)])
def test_a_large_table_is_cut_into_parts(index, tmp_path, format, part, files, of_thumbnails):
    out = tmp_path / "it's [a]* folder?"
    rows = export_index(index, out, format, part=part)
    assert rows["vectors"] == rows["thumbnails"] == 12
    names = [f"vectors.{format}", *(f"vectors-{i}.{format}" for i in range(2, files + 1))]
    assert {p.name for p in out.glob("vectors*")} == set(names)
    assert len(list(out.glob("thumbnails*"))) == of_thumbnails  # these are larger
    assert len(list(out.glob("codes*"))) == ceil(12 / (4 * part))  # a picture has few of them
    import_index(tmp_path / "new", out)
    assert everything(tmp_path / "new") == everything(index)
    (out / names[-1]).unlink()
    with pytest.raises(SparsightError, match=rf"vectors has {files} files|no vectors.parquet|image \d+ has no row"):
        import_index(tmp_path / "less", out)
    assert not (tmp_path / "less").exists()


@pytest.mark.parametrize("table", ["vectors", "thumbnails", "codes"])
@pytest.mark.parametrize("how", ["swapped", "interleaved"])
def test_parts_may_be_in_another_order(index, tmp_path, table, how):
    """Each is read once where one begins after the other ends, and all together where they do not."""
    export_index(index, tmp_path / "out", part=4 if table != "codes" else 1)
    first, second = tmp_path / "out" / f"{table}.parquet", tmp_path / "out" / f"{table}-2.parquet"
    with connect() as con:
        con.execute(f"CREATE TABLE t AS FROM read_parquet(['{first}', '{second}'])")
        middle = con.execute(f"SELECT max(image_id) FROM '{first}'").fetchall()[0][0]
        of_first = f"image_id > {middle}" if how == "swapped" else "image_id % 2 = 1"
        for path, where in ((first, of_first), (second, f"NOT ({of_first})")):
            con.execute(f"COPY (FROM t WHERE {where} ORDER BY image_id DESC) TO '{path}' (FORMAT parquet)")
    import_index(tmp_path / "new", tmp_path / "out")
    assert everything(tmp_path / "new") == everything(index)


def test_no_more_than_a_part_of_a_large_table_is_in_memory(index, tmp_path, monkeypatch):
    export_index(index, tmp_path / "out", part=4)
    sizes, real = [], Loaded.arrays

    def arrays(held: Loaded, sql: str) -> dict[str, np.ndarray]:
        found = real(held, sql)
        sizes.extend(len(column) for name, column in found.items() if name == "x")
        return found

    monkeypatch.setattr(Loaded, "arrays", arrays)
    import_index(tmp_path / "new", tmp_path / "out")
    with Store(index) as store:
        assert sizes == [4 * store.d] * 3


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_of_a_lost_part_of_thumbnails_is_refused(index, tmp_path, format):
    """No picture needs a thumbnail: that the parts are all there is told by their number alone."""
    export_index(index, tmp_path / "out", format, part=5)
    (tmp_path / "out" / f"thumbnails-12.{format}").unlink()
    with pytest.raises(SparsightError, match="thumbnails has 12 files, the last is missing"):
        import_index(tmp_path / "new", tmp_path / "out")


@pytest.mark.parametrize("table", EXPORTED)
def test_every_table_of_an_export_is_of_one_state(tmp_path, monkeypatch, table):
    """Before each table is written another process commits: a removal, an addition, and both files written anew."""
    index = written(tmp_path, hostile_contents())
    expected, real = everything(index), export._sources

    def sources(store: Store, name: str, *args: object) -> Iterable[str]:
        if name == table:
            with Store(index) as other:
                added = make_pictures(3, seed=7, paths=["x", "y", "z"])
                change_store(index, other, Change(removed=[1, 2], added=added, skipped=[Skip("more", "of it")]))
            with Store(index) as other:
                compact_store(index, other)
        return real(store, name, *args)

    monkeypatch.setattr(export, "_sources", sources)
    export_index(index, tmp_path / "out")
    import_index(tmp_path / "new", tmp_path / "out")
    assert everything(index) != expected
    assert everything(tmp_path / "new") == expected


def test_an_index_of_no_pictures_goes_out_and_in(tmp_path):
    written(tmp_path, make_contents(n=0))
    for format in FORMATS:
        export_index(tmp_path / "index", tmp_path / format, format)
        import_index(tmp_path / f"new-{format}", tmp_path / format)
        assert everything(tmp_path / f"new-{format}") == everything(tmp_path / "index")


def test_image_ids_with_holes_stay_as_they_are(tmp_path):
    some: list[bytes | None] = [None if i % 4 == 1 else b"jpeg" for i in range(12)]
    stamps = {"sizes": [None, *range(2**40, 2**40 + 11)], "changed": [*range(10**18, 10**18 + 11), None]}
    c = make_contents(pictures=make_pictures(thumbnails=some, **stamps), ids=np.arange(12) * 3 + 1)
    index = written(tmp_path, replace(c, meta=replace(c.meta, next_id=77)))
    with Store(index) as store:
        change_store(index, store, Change(removed=[4]))
    for format in FORMATS:
        export_index(index, tmp_path / format, format)
        import_index(tmp_path / f"new-{format}", tmp_path / format)
        assert everything(tmp_path / f"new-{format}") == everything(index)
        with Store(tmp_path / f"new-{format}") as store:
            assert (store.meta.next_id, store.meta.dead) == (77, 0)


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_of_version_1_is_taken(index, tmp_path, format):
    """It has neither the size nor the time of change of a file, and the folder of the pictures as the data set."""
    out = tmp_path / "out"
    export_index(index, out, format)
    with duckdb.connect() as con:
        for table, harms in {
            "images": ["ALTER TABLE t DROP file_bytes", "ALTER TABLE t DROP file_changed"],
            "meta": [
                f"DELETE FROM t WHERE key IN {('root', 'export_parts', *DERIVED)}",
                "UPDATE t SET value = '1' WHERE key = 'export'",
                "UPDATE t SET value = '/pictures' WHERE key = 'dataset'",
                "INSERT INTO t VALUES ('format', '3'), ('dead', '0'), ('dense_key', 'abc')",
            ],
        }.items():
            rewrite(con, out, table, format, harms)
    import_index(tmp_path / "new", out)
    assert everything(tmp_path / "new") == everything(index)


def rewrite(con: duckdb.DuckDBPyConnection, out: Path, table: str, format: str, harms: Iterable[str]) -> None:
    """Changes a table `t` of an export by SQL."""
    file = str(out / f"{table}.{format}")
    kinds = ", ".join(f"{c.name}: '{c.type}'" for c in EXPORTED[table])
    read = f"'{file}'" if format == "parquet" else f"read_json('{file}', columns = {{{kinds}}})"
    con.execute(f"CREATE OR REPLACE TABLE t AS FROM {read}")
    for harm in harms:
        con.execute(harm)
    con.execute(f"COPY t TO '{file}' (FORMAT {'json' if format == 'jsonl' else 'parquet'})")


SCHEMA_3 = """
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
"""


def write_format_3(folder: Path, index: Path) -> None:
    """What an index says as a database of format 3, everything in it: by that format's own schema and keys."""
    folder.mkdir()
    with Store(index) as store, duckdb.connect() as con:
        meta, X, ids = store.meta, store.embeddings(), store.image_ids.tolist()
        con.execute(f"ATTACH '{index / DATABASE}' AS new (READ_ONLY)")
        con.execute(f"ATTACH '{folder / DATABASE}' AS old (STORAGE_VERSION 'v1.4.0')")
        con.execute("USE old")
        con.execute(SCHEMA_3.format(d=meta.d) + POSTINGS_VIEW)
        held = "image_id, path, split, label, term, content_hash, l1, gap"
        con.execute(f"INSERT INTO images SELECT {held} FROM new.images")
        for table in ("concepts", "classes", "posting_blocks", "means", "skipped"):
            con.execute(f"INSERT INTO {table} FROM new.{table}")
        con.executemany("INSERT INTO vectors VALUES (?, ?)", [[i, x.tolist()] for i, x in zip(ids, X, strict=True)])
        jpegs = [[i, b64encode(jpeg).decode()] for i, jpeg in store.thumbnails(ids).items()]
        con.executemany("INSERT INTO thumbnails VALUES (?, from_base64(?))", jpegs)
        new = {"root", "vectors_file", "vector_rows", "vector_block", "thumbnails_file", "thumbnail_bytes"}
        rows = {key: value for key, value in meta.rows().items() if key not in new}
        rows |= {"format": "3", "dataset": meta.root, "dead": "0", "dense_key": "0" * 64}
        con.executemany("INSERT INTO meta VALUES (?, ?)", list(rows.items()))


@pytest.mark.parametrize("name", ["index", "light_index"])
def test_an_index_of_format_3_is_taken_over_and_gives_the_same_answers(request, run, tmp_path, name):
    index = request.getfixturevalue(name)
    write_format_3(tmp_path / "old", index)
    (tmp_path / "old" / "dense.faiss").write_bytes(b"of the earlier format")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}
    with pytest.raises(SparsightError, match=r"format 3, this sparsight reads 4; .*`sparsight import OLD --index NEW`"):
        Store(tmp_path / "old")
    run("import", tmp_path / "old", "--index", tmp_path / "new")
    assert everything(tmp_path / "new") == everything(index)
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before
    run("doctor", "--index", tmp_path / "new", code=0 if name == "light_index" else 1)  # these codes were made up


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        ("UPDATE meta SET value = '1' WHERE key = 'format'", "an index of format 1: 2, 3 can be taken over"),
        ("UPDATE meta SET value = '4' WHERE key = 'format'", "an index of format 4: it is the present one"),
        ("DELETE FROM vectors WHERE image_id = 3", "image 3 has no row"),
        ("UPDATE vectors SET embedding = list_transform(embedding, lambda x: 2 * x)::FLOAT[8]", "is no unit vector"),
        ("DROP TABLE thumbnails", "thumbnails"),
        ("ALTER TABLE images DROP path", "has no column path"),
        ("UPDATE posting_blocks SET concept_id = 77", "concept is missing in a row"),
        ("UPDATE posting_blocks SET first = first + 77", "path is missing in a row"),
        ("UPDATE posting_blocks SET step = 'inf'", "negative or not finite"),
        ("DELETE FROM posting_blocks WHERE concept_id = 2", "meta says nnz = "),
        ("DELETE FROM meta WHERE key = 'coder'", "it has no coder"),
    ],
)
def test_an_earlier_format_is_believed_no_more_than_an_export(run, index, tmp_path, harm, line):
    write_format_3(tmp_path / "old", index)
    with duckdb.connect(str(tmp_path / "old" / DATABASE)) as con:
        con.execute(harm)
    stderr = run("import", tmp_path / "old", "--index", tmp_path / "new", code=1).stderr
    assert any(part in stderr for part in line.split("|")), stderr
    assert not (tmp_path / "new").exists()


def test_the_files_are_what_other_programs_read(index, tmp_path):
    export_index(index, tmp_path / "p", "parquet")
    export_index(index, tmp_path / "j", "jsonl")
    with Store(index) as store:
        expected = store.codes().tocoo()
        X, images = store.embeddings(), store.images()
    rows = [json.loads(line) for line in (tmp_path / "j" / "codes.jsonl").read_text().splitlines()]
    assert [(r["image_id"], r["concept_id"]) for r in rows] == list(
        zip(expected.row.tolist(), expected.col.tolist(), strict=True)
    )
    np.testing.assert_array_equal(np.float32([r["weight"] for r in rows]), expected.data)
    assert {r["concept"] for r in rows} <= set(make_contents().dictionary.names)
    assert [r["path"] for r in rows] == [images[r["image_id"]].path for r in rows]
    vectors = [json.loads(line)["embedding"] for line in (tmp_path / "j" / "vectors.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(np.float32(vectors), X)
    gaps = [json.loads(line)["gap"] for line in (tmp_path / "j" / "images.jsonl").read_text().splitlines()]
    assert gaps[:2] == [None, "inf"]  # the store keeps NaN as NULL
    weights = duckdb.sql(f"SELECT weight FROM '{tmp_path}/p/codes.parquet'").fetchnumpy()["weight"]
    np.testing.assert_array_equal(weights, expected.data)


def test_some_tables_alone(run, index, tmp_path):
    out = tmp_path / "out"
    result = run("export", out, "--tables", "codes, concepts", "--index", index)
    assert sorted(p.name for p in out.iterdir()) == ["codes.parquet", "concepts.parquet"]
    assert f"{out / 'concepts.parquet'}: 5 rows" in result.stdout
    assert "no meta.parquet" in run("import", out, "--index", tmp_path / "new", code=1).stderr
    assert not (tmp_path / "new").exists()


def test_nothing_of_a_persons_is_overwritten(run, index, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "a.txt").write_text("a")
    assert "not an empty folder" in run("export", mine, "--index", index, code=1).stderr
    assert "not an empty folder" in run("export", mine / "a.txt", "--index", index, code=1).stderr
    assert [p.name for p in mine.iterdir()] == ["a.txt"]
    run("export", mine / "new" / "deep", "--index", index)
    assert "not an empty folder" in run("export", mine / "new" / "deep", "--index", index, code=1).stderr
    before = (index / DATABASE).read_bytes()
    assert "holds an index already" in run("import", mine / "new" / "deep", "--index", index, code=1).stderr
    assert (index / DATABASE).read_bytes() == before


def test_a_failed_export_leaves_nothing(run, index, tmp_path):
    with duckdb.connect(str(index / DATABASE)) as con:
        con.execute("DROP TABLE skipped")
    run("export", tmp_path / "out", "--index", index, code=1)
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


@pytest.mark.parametrize("name", ["vectors-1.f32", "thumbnails-1.bin"])
def test_damaged_files_are_not_exported(run, index, tmp_path, name):
    data = bytearray((index / name).read_bytes())
    data[20] ^= 1
    (index / name).write_bytes(data)
    assert "damaged" in run("export", tmp_path / "out", "--index", index, code=1).stderr
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    run("export", tmp_path / "out", "--tables", "images,codes", "--index", index)


def test_an_index_with_damaged_postings_comes_back_by_its_embeddings(run, index, tmp_path):
    with duckdb.connect(str(index / DATABASE)) as con:
        con.execute("UPDATE posting_blocks SET count = 0")
    assert "damaged" in run("export", tmp_path / "out", "--index", index, code=1).stderr
    others = ",".join(t for t in EXPORTED if t != "codes")
    run("export", tmp_path / "out", "--tables", others, "--index", index)
    run("import", tmp_path / "out", "--index", tmp_path / "new")
    from indexer.coding import encode_sparse
    from indexer.config import CoderConfig

    with Store(tmp_path / "new") as store:
        expected = encode_sparse(store.embeddings(), store.dictionary(), CoderConfig(l1=0.5)).W
        np.testing.assert_allclose(store.codes().toarray(), expected.toarray(), atol=STEP / 2)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("table", "harm", "line"),
    [
        ("images", "UPDATE t SET path = (SELECT min(path) FROM t)", "is there twice"),
        ("images", "UPDATE t SET path = '' WHERE image_id = 3", "'' names nothing"),
        ("concepts", "UPDATE t SET name = (SELECT min(name) FROM t)", "is there twice"),
        ("concepts", "UPDATE t SET name = 'a' || chr(10) || 'b' WHERE concept_id = 1", "is no line of text"),
        ("concepts", "UPDATE t SET aliases = [NULL] WHERE concept_id = 1", "is no line of text"),
        ("meta", "UPDATE t SET value = '[]' WHERE key = 'export_parts'", "export_parts is no number"),
        ("meta", "UPDATE t SET value = 'nonsense' WHERE key = 'dense_factory'", "in meta, --dense 'nonsense'"),
        ("meta", "DELETE FROM t WHERE key = 'export'", "an export of version none"),
        ("meta", "UPDATE t SET value = '9' WHERE key = 'export'", "an export of version 9"),
        ("meta", "UPDATE t SET value = 'x' WHERE key = 'd'", "meta says d = x"),
        ("meta", "UPDATE t SET value = '9' WHERE key = 'd'", "its embedding has not d = 9 numbers"),
        ("meta", "UPDATE t SET value = '99' WHERE key = 'n'", "meta says n = 99, there are 12"),
        ("meta", "INSERT INTO t FROM t", "is there twice"),
        ("images", "ALTER TABLE t RENAME path TO file", "has no column path"),
        ("images", "UPDATE t SET path = NULL WHERE image_id = 3", "path is missing in a row"),
        ("images", "UPDATE t SET image_id = 4 WHERE image_id = 3", "image_id 4 is there twice"),
        ("images", "UPDATE t SET image_id = -1 WHERE image_id = 3", "image_id -1 is below 0"),
        ("images", "DELETE FROM t WHERE image_id = 3", "no image has the id 3"),
        ("images", "ALTER TABLE t ALTER l1 TYPE VARCHAR USING 'high'", "l1|high"),
        ("vectors", "DELETE FROM t WHERE image_id = 3", "image 3 has no row"),
        ("vectors", "UPDATE t SET embedding = embedding[2:] WHERE image_id = 3", "3: its embedding has not d = 8"),
        ("vectors", "UPDATE t SET embedding = list_transform(embedding, lambda x: 2 * x)", "is no unit vector"),
        ("thumbnails", "INSERT INTO t FROM t", "is there twice"),
        ("thumbnails", "UPDATE t SET image_id = 77 WHERE image_id = 3", "no image has the id 77"),
        ("concepts", "UPDATE t SET concept_id = 9 WHERE concept_id = 2", "concept_id 9 is not of 0, 1, 2"),
        ("concepts", "UPDATE t SET atom = list_transform(atom, lambda x: 'nan'::FLOAT)", "atom is no unit vector"),
        ("concepts", "UPDATE t SET source = 'b' WHERE concept_id = 2", "a 2nd source"),
        ("means", "DELETE FROM t WHERE modality = 'text'", "image and text once each"),
        ("means", "UPDATE t SET embedding = list_transform(embedding, lambda x: 'inf'::FLOAT)", "is not finite"),
        ("codes", "UPDATE t SET weight = -weight", "negative or not finite"),
        ("codes", "UPDATE t SET weight = 'inf'", "negative or not finite"),
        ("codes", "UPDATE t SET image_id = 77 WHERE image_id = 3", "no images row has image_id 77"),
        ("codes", "UPDATE t SET concept_id = 77 WHERE image_id = 3", "no concepts row has concept_id 77"),
        ("codes", "INSERT INTO t FROM t", "has a concept twice"),
    ],
)
def test_import_believes_nothing(run, index, tmp_path, format, table, harm, line):
    out = tmp_path / "out"
    export_index(index, out, format)
    with duckdb.connect() as con:
        rewrite(con, out, table, format, [harm])
    stderr = run("import", out, "--index", tmp_path / "new", code=1).stderr
    assert any(part in stderr for part in line.split("|")), stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[1, 2]\n", b'{"image_id": 1\n', b"PAR1" + bytes(40)])
@pytest.mark.parametrize("format", FORMATS)
def test_import_of_damaged_files_is_one_line(run, index, tmp_path, format, data):
    export_index(index, tmp_path / "out", format)
    (tmp_path / "out" / f"images.{format}").write_bytes(data)
    assert "image" in run("import", tmp_path / "out", "--index", tmp_path / "new", code=1).stderr
    assert "no export in" in run("import", tmp_path / "none", "--index", tmp_path / "new", code=1).stderr


def test_hits_go_to_a_file(run, light_index, tmp_path):
    at = ("search", "--concept", "tabby cat", "-k", 3, "--index", light_index)
    hits = [json.loads(line) for line in run(*at, "--json", "--out", tmp_path / "h.jsonl").stdout.splitlines()]
    assert len(hits) == 3
    assert [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()] == hits
    run(*at, "--out", tmp_path / "h.parquet")
    found = duckdb.sql(f"FROM '{tmp_path}/h.parquet'")
    assert [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()] == hits
    assert "must end in" in run(*at, "--out", tmp_path / "h.csv", code=2).stderr
    assert "cannot write the hits" in run(*at, "--out", tmp_path / "none" / "h.parquet", code=1).stderr
    assert sorted(os.listdir(tmp_path)) == ["h.jsonl", "h.parquet"]


def test_no_index_and_damaged_index(run, tmp_path):
    for command in (("sql", "SELECT 1"), ("export", tmp_path / "out")):
        assert "no index in" in run(*command, "--index", tmp_path, code=1).stderr
    (tmp_path / DATABASE).write_bytes(b"no database" * 999)
    for command in (("sql", "SELECT 1"), ("export", tmp_path / "out")):
        assert "not a readable index" in run(*command, "--index", tmp_path, code=1).stderr
    assert "no table 'x'" in run("export", tmp_path / "out", "--tables", "x", "--index", tmp_path, code=2).stderr


@pytest.mark.parametrize("harm", ["DELETE FROM t WHERE key = '{}'", "UPDATE t SET value = '\"-1' WHERE key = '{}'"])
def test_meta_without_a_key_or_with_a_wrong_value_is_told(index, tmp_path, harm):
    """Key by key: it is made good from the rest, or refused in one line."""
    export_index(index, tmp_path / "out")
    meta, refused = tmp_path / "out" / "meta.parquet", 0
    whole = meta.read_bytes()
    with Store(index) as store:
        keys = [*store.meta.rows(), "export", "export_parts"]
    for key in keys if "DELETE" in harm else keys[::3]:
        meta.write_bytes(whole)
        with duckdb.connect() as con:
            con.execute(f"CREATE TABLE t AS FROM read_parquet('{meta}')")
            con.execute(harm.format(key))
            con.execute(f"COPY t TO '{meta}' (FORMAT parquet)")
        result = CliRunner().invoke(main, ["import", str(tmp_path / "out"), "--index", str(tmp_path / "new")])
        assert isinstance(result.exception, SystemExit | None), (key, result.exception)
        refused += result.exit_code
        assert len(result.stderr.splitlines()) <= 1, (key, result.stderr)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
    assert 2 < refused < len(keys)
