"""The store and the dense index: round trips, replacement, damage."""

from __future__ import annotations

import duckdb
import numpy as np
import pytest
from scipy import sparse

from indexer.store import DATABASE, Contents, Store, vectors_key, write_store
from indexer.store.dense import FILE, build_dense, load_dense, save_dense
from training.errors import CallError, SparsightError


def contents(n: int = 12, m: int = 5, d: int = 8, seed: int = 0) -> Contents:
    rng = np.random.default_rng(seed)
    X, D, T = (rng.normal(size=(rows, d)).astype(np.float32) for rows in (n, m, 3))
    X, D, T = (A / np.linalg.norm(A, axis=1, keepdims=True) for A in (X, D, T))
    W = sparse.random(n, m, 0.4, format="csr", dtype=np.float32, random_state=rng)
    W.sort_indices()
    return Contents(
        X=X,
        W=W,
        D=D,
        T=T,
        classes=["a", "b", "c"],
        names=["fire engine", "it's", 'a "b"', "émeu", "; DROP TABLE meta"][:m],
        aliases=[["fire truck", "x,y"], [], [], [], []][:m],
        parents=["a", None, "b", "b", None][:m],
        source="words.txt",
        paths=[f"folder/é'{i}\n.png" for i in range(n)],
        splits=["test"] * n,
        labels=["a", None] * (n // 2),
        terms=[None] * n,
        hashes=[None] * n,
        l1=rng.random(n),
        gap=rng.random(n),
        thumbnails=[bytes([i, 0, 255]) for i in range(n)],
        meta={"dense_factory": "Flat", "templates": ["{}"]},
    )


def test_what_is_written_is_read(tmp_path):
    c = contents()
    write_store(tmp_path, c)
    with Store(tmp_path) as store:
        np.testing.assert_array_equal(store.embeddings(), c.X)
        np.testing.assert_array_equal(store.embeddings_of([7, 2]), c.X[[7, 2]])
        np.testing.assert_array_equal(store.dictionary(), c.D)
        W = store.codes()
        np.testing.assert_array_equal(W.indptr, c.W.indptr)
        np.testing.assert_array_equal(W.indices, c.W.indices)
        np.testing.assert_allclose(W.data, c.W.data, atol=c.W.data.max() / 8190)
        names, T = store.classes()
        assert names == c.classes
        np.testing.assert_array_equal(T, c.T)
        concepts = store.concepts()
        assert [x.name for x in concepts] == c.names
        assert concepts[0].aliases == ("fire truck", "x,y")
        assert [x.parent for x in concepts] == c.parents
        assert [x.images for x in concepts] == np.bincount(c.W.indices, minlength=5).tolist()
        rows = store.images()
        assert [r["path"] for r in rows] == c.paths
        assert [r["label"] for r in rows] == c.labels
        assert store.thumbnails([3, 1]) == {1: b"\x01\x00\xff", 3: b"\x03\x00\xff"}
        assert store.find_path(c.paths[4]) == 4
        assert store.find_path("nowhere") is None
        for image_id, (ids, weights) in zip([5, 0], store.codes_of([5, 0]), strict=True):
            np.testing.assert_array_equal(ids, c.W[image_id].indices)
            np.testing.assert_array_equal(weights, W[image_id].data)


def test_the_postings_of_a_few_concepts_are_those_columns_of_the_codes(tmp_path):
    c = contents()
    write_store(tmp_path, c)
    with Store(tmp_path) as store:
        indptr, ids, weights = store.postings([3, 1]).columns()
        W = store.codes().tocsc()
        assert np.diff(indptr).tolist() == [0, W[:, [1]].nnz, 0, W[:, [3]].nnz, 0]
        np.testing.assert_array_equal(ids, np.concatenate([W[:, [j]].indices for j in (1, 3)]))
        np.testing.assert_array_equal(weights, np.concatenate([W[:, [j]].data for j in (1, 3)]))


def test_the_view_shows_the_postings_as_plain_rows(tmp_path):
    c = contents()
    write_store(tmp_path, c)
    with Store(tmp_path) as store:
        expected = store.codes().tocoo()
        rows = store.con.execute("SELECT image_id, concept_id, weight FROM postings ORDER BY 1, 2").fetchnumpy()
    for column, values in zip(rows.values(), (expected.row, expected.col, expected.data), strict=True):
        np.testing.assert_array_equal(column, values)


def test_anyone_reads_it_with_plain_sql_in_the_1_4_format(tmp_path):
    write_store(tmp_path, contents())
    with duckdb.connect(str(tmp_path / DATABASE), read_only=True) as con:
        tables = {row[0] for row in con.execute("SHOW TABLES").fetchall()}
        assert {"meta", "images", "vectors", "concepts", "postings"} <= tables
        tags = con.execute("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchone()
        assert "v1.4" in str(tags)


def test_replacing_keeps_one_whole_index_and_counts_generations(tmp_path):
    write_store(tmp_path, contents(seed=0))
    with Store(tmp_path) as old:
        write_store(tmp_path, contents(seed=1))
        np.testing.assert_array_equal(old.embeddings(), contents(seed=0).X)  # the reader keeps its state
    with Store(tmp_path) as new:
        np.testing.assert_array_equal(new.embeddings(), contents(seed=1).X)
        assert new.meta["generation"] == "2"
    assert sorted(f.name for f in tmp_path.iterdir()) == [DATABASE]


def test_a_failed_write_leaves_the_earlier_index(tmp_path):
    write_store(tmp_path, contents(seed=0))
    broken = contents(seed=1)
    broken.labels = broken.labels[:-1]
    with pytest.raises((SparsightError, ValueError)):
        write_store(tmp_path, broken)
    with Store(tmp_path) as store:
        np.testing.assert_array_equal(store.embeddings(), contents(seed=0).X)
    assert sorted(f.name for f in tmp_path.iterdir()) == [DATABASE]


def test_refuses_what_is_no_index(tmp_path):
    with pytest.raises(SparsightError, match="no index in"):
        Store(tmp_path)
    (tmp_path / DATABASE).write_bytes(b"not a database at all" * 1000)
    with pytest.raises(SparsightError, match="not a readable index"):
        Store(tmp_path)
    (tmp_path / DATABASE).unlink()
    with duckdb.connect(str(tmp_path / DATABASE)) as con:
        con.execute("CREATE TABLE meta AS SELECT 'format' AS key, '99' AS value")
    with pytest.raises(SparsightError, match="format 99"):
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
    write_store(tmp_path, contents())
    with duckdb.connect(str(tmp_path / DATABASE)) as con:
        con.execute(harm)
    with Store(tmp_path) as store, pytest.raises(SparsightError, match=r"postings of .* are damaged: .*; rebuild"):
        store.codes()


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,Flat", "SQ8"])
def test_dense_index_finds_what_numpy_finds(factory):
    X = contents(n=200, d=8).X
    index = build_dense(X, factory)
    if factory == "IVF4,Flat":
        index.nprobe = 4
    _, ids = index.search(X[:20], 1)
    assert (ids[:, 0] == np.arange(20)).all()


def test_flat_scores_are_numpys():
    X = contents(n=200, d=8).X
    scores, ids = build_dense(X).search(X[:5], 10)
    expected = X[:5] @ X.T
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :10], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, ids, 1), scores, rtol=1e-5)


def test_a_factory_that_faiss_does_not_know():
    with pytest.raises(CallError, match="Nonsense"):
        build_dense(contents().X, "Nonsense")


@pytest.mark.parametrize("fault", ["missing", "flipped", "truncated", "stale", "empty"])
def test_dense_cache_is_rebuilt_when_it_cannot_be_trusted(tmp_path, fault):
    c = contents()
    write_store(tmp_path, c)
    save_dense(tmp_path, build_dense(c.X), vectors_key(c.X, "Flat"))
    path = tmp_path / FILE
    good = path.read_bytes()
    if fault == "missing":
        path.unlink()
    elif fault == "stale":
        other = contents(seed=9).X
        save_dense(tmp_path, build_dense(other), vectors_key(other, "Flat"))
    else:
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        path.write_bytes({"flipped": bytes(bad), "truncated": good[:-9], "empty": b""}[fault])
    with Store(tmp_path) as store:
        scores, ids = load_dense(store).search(c.X[:1], 3)
    assert ids[0, 0] == 0
    np.testing.assert_allclose(scores[0, 0], 1, rtol=1e-5)
    assert path.read_bytes() == good
