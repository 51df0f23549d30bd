"""The dense index: every row scored as numpy scores it, and FAISS's others as a cache that is never trusted blindly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from contents import make_contents, make_pictures, unit_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.store import Change, Store, change_store, dense, write_store
from indexer.store.approximate import refuse_description, tune
from indexer.store.dense import FILE, FaissIndex, FlatIndex, build_dense, cached_dense, open_dense, save_dense
from indexer.store.vectors import Vectors, write_vectors
from search.ranking import top_k
from training.errors import CallError

FACTORIES = ["HNSW8", "IVF4,Flat", "SQ8"]


@pytest.fixture
def build(monkeypatch) -> Iterator[list[int]]:
    """How many rows each index of FAISS that was built had."""
    built, real = [], dense.build_approximate
    monkeypatch.setattr(dense, "build_approximate", lambda X, *args: (built.append(len(X)), real(X, *args))[1])
    return built


def change(folder: Path, made: Change) -> None:
    with Store(folder) as store:
        change_store(folder, store, made)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_every_row_is_scored_and_ties_go_to_the_lower_id(tmp_path_factory, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, k = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 70))
    X = rng.integers(-1, 2, (n, 3)).astype(np.float32)  # exact products, and many of them equal
    Q = rng.integers(-1, 2, (3, 3)).astype(np.float32)
    ids = None
    if data.draw(st.booleans()):
        ids = np.cumsum(rng.integers(1, 4, n))
        ids[rng.random(n) < 0.3] = -1
    path = tmp_path_factory.getbasetemp() / "vectors-1.f32"
    count, crcs = write_vectors(path, X, 3, 7)
    with closing(Vectors(path, count, 3, 7, crcs)) as vectors, pytest.MonkeyPatch.context() as m:
        m.setattr(Vectors.scan, "__defaults__", (data.draw(st.integers(1, 25)),))
        scores, found = FlatIndex(vectors, ids).search(Q, k)
    held = np.arange(n) if ids is None else ids
    for q, row_scores, row_ids in zip(Q, scores, found, strict=True):
        all_scores, alive = (X @ q)[held >= 0], held[held >= 0]
        best = top_k(all_scores, k, alive)
        assert row_ids.tolist() == [*alive[best].tolist(), *[-1] * (k - len(best))]
        assert row_scores.tolist() == [*all_scores[best].tolist(), *[-np.inf] * (k - len(best))]


def test_flat_scores_are_those_of_faiss(tmp_path):
    c = make_contents(n=200)
    write_store(tmp_path, c)
    X = c.pictures.X
    faiss_flat = faiss.IndexFlatIP(8)
    faiss_flat.add(X)
    expected = faiss_flat.search(X[:5], 10)
    with Store(tmp_path) as store:
        index = open_dense(store)
        assert isinstance(index, FlatIndex)
        scores, ids = index.search(X[:5], 10)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("Nonsense", "Nonsense"),
        ("IVF999,Flat", "needs at least 999 pictures to train on, and there are 300"),
        ("PQ3", "PQ3"),  # 3 does not divide 8
        ("HNSW1", "breaks down"),  # it ends the process
        ("BFlat", "BFlat"),
        ("", "index_factory"),
    ],
)
def test_what_faiss_cannot_build_is_refused(factory, reason):
    with pytest.raises(CallError) as e:
        refuse_description(factory, 8, 300)
    assert reason in str(e.value)
    assert f"--dense {factory!r}" in str(e.value)


def test_what_faiss_can_build_is_not_refused():
    refuse_description("OPQ4,IVF16,PQ4", 8, 256)


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """Rows (2000, 32) in clouds, as embeddings lie."""
    rng = np.random.default_rng(3)
    X = unit_rows(60, 32, rng)[rng.integers(0, 60, 2000)] + 0.15 * rng.normal(size=(2000, 32)).astype(np.float32)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "factory",
    [
        *("IVF64,Flat", "HNSW16,Flat", "PQ8", "OPQ8,PQ8x6", "RQ4x6", "LSQ4x4", "PCA24,Flat", "SQ4", "IVF16,PQ8"),
        *("IVF32_HNSW8,Flat", "LSHrt", "IDMap,IVF32,Flat", "PCA24,IVF32,SQ8", "IVF32,PQ8x4fs,RFlat", "HNSW16_SQ8"),
        *("NSG16,Flat", "L2norm,Flat"),
    ],
)
def test_the_recall_that_is_asked_for_is_reached(tmp_path, many, factory):
    """By pictures, and by texts, which lie elsewhere; for k as far as it was measured, and beyond."""
    c = make_contents(n=2000, d=32, factory=factory)
    write_store(tmp_path, replace(c, pictures=replace(c.pictures, X=many)))
    rng = np.random.default_rng(4)
    with Store(tmp_path) as store:
        index = open_dense(store)
        assert isinstance(index, FaissIndex)
        assert index.held.tuning.settings or factory in ("LSQ4x4", "LSHrt"), "measured, and not only scanned"
        for Q, least in ((many[rng.choice(2000, 40, replace=False)], 0.95), (unit_rows(40, 32, rng), 0.9)):
            S = Q @ many.T
            for k in (1, 10, 77, 500, 2000, 2100):
                scores, ids = index.search(Q, k)
                held = min(k, 2000)
                assert (ids[:, :held] >= 0).all()
                assert (ids[:, held:] < 0).all()
                np.testing.assert_allclose(scores[:, :held], np.take_along_axis(S, ids[:, :held], 1), atol=1e-6)
                exact = np.argsort(-S, 1)[:, :held]
                found = np.mean([np.isin(e, i).mean() for e, i in zip(exact, ids, strict=True)])
                assert found >= (least if k > 1 else 0.9)


def test_a_graph_that_cannot_reach_the_recall_is_not_asked(many):
    index = faiss.IndexHNSWFlat(32, 2, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 1
    index.add(many)
    tuning = tune(index, many, many[:5], 1.0)
    assert tuning.at(10) is None


@pytest.mark.parametrize("factory", ["Flat", *FACTORIES])
@pytest.mark.parametrize("removed", [[0], list(range(1, 40, 9)), list(range(0, 24))])
def test_removed_pictures_are_never_found_and_k_are_where_k_exist(tmp_path, factory, removed):
    """The last removal compacts: a quarter of the rows are of removed pictures then."""
    c = make_contents(n=80, factory=factory)
    write_store(tmp_path, c)
    with Store(tmp_path) as store:
        open_dense(store)  # leaves a cache of the rows before
    change(tmp_path, Change(removed=removed))
    kept = np.setdiff1d(np.arange(80), removed)
    expected = c.pictures.X[kept] @ c.pictures.X.T
    with Store(tmp_path) as store:
        assert (store.meta.dead == 0) == (len(removed) == 24)
        scores, ids = open_dense(store).search(c.pictures.X, 10)
        assert np.isin(ids, kept).all()
        rows = np.searchsorted(kept, ids)
        exact = np.take_along_axis(expected.T, rows, 1)
        np.testing.assert_allclose(exact, scores, atol=0.05 if factory == "SQ8" else 1e-5)
        found = (exact >= -np.sort(-expected.T, 1)[:, 9:10] - 1e-5).mean()
        assert found > (0.9 if factory in ("SQ8", "HNSW8") else 1 - 1e-9)
        scores, ids = open_dense(store).search(c.pictures.X[:2], 90)
        assert (np.isneginf(scores) == (ids < 0)).all()
        for row in ids.tolist():
            found = [i for i in row if i >= 0]
            assert len(set(found)) == len(found) >= 30
            assert set(found) <= set(kept.tolist())
            assert factory == "HNSW8" or len(found) == len(kept), "but for a graph, whose links reach not every row"


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_cache_grows_by_the_rows_that_were_added(tmp_path, build, factory):
    write_store(tmp_path, make_contents(n=200, factory=factory))
    with Store(tmp_path) as store:
        open_dense(store)
    new = make_pictures(30, seed=5, paths=[f"new/{i}" for i in range(30)])
    change(tmp_path, Change(added=new, removed=[3]))
    with Store(tmp_path) as store:
        assert cached_dense(store).index.ntotal == 200
        _, ids = open_dense(store).search(new.X, 1)
        assert cached_dense(store).index.ntotal == 230
    assert ids[:, 0].tolist() == list(range(200, 230))
    assert build == [200]
    with Store(tmp_path) as store:
        open_dense(store)
    assert build == [200], "the grown one was kept"


@pytest.mark.parametrize(
    "fault", ["missing", "flipped", "truncated", "of other vectors", "of another factory", "empty"]
)
def test_a_cache_that_cannot_be_trusted_is_built_anew(tmp_path, build, fault):
    c = make_contents(factory="HNSW8")
    write_store(tmp_path, c)
    path = tmp_path / FILE
    with Store(tmp_path) as store:
        save_dense(store, build_dense(store))
        good = path.read_bytes()
    if fault == "missing":
        path.unlink()
    elif fault.startswith("of "):
        factory = "SQ8" if fault == "of another factory" else "HNSW8"
        other = make_contents(seed=9 if fault == "of other vectors" else 0, factory=factory)
        (tmp_path / "other").mkdir()
        write_store(tmp_path / "other", other)
        with Store(tmp_path / "other") as store:
            save_dense(store, build_dense(store))
            (tmp_path / FILE).write_bytes((tmp_path / "other" / FILE).read_bytes())
    else:
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        path.write_bytes({"flipped": bytes(bad), "truncated": good[:-9], "empty": b""}[fault])
    build.clear()
    with Store(tmp_path) as store:
        assert cached_dense(store) is None
        scores, ids = open_dense(store).search(c.pictures.X[:1], 3)
        assert cached_dense(store).index.ntotal == 12
    assert build == [12]
    assert ids[0, 0] == 0
    np.testing.assert_allclose(scores[0, 0], 1, rtol=1e-5)
    assert path.read_bytes() == good


def test_a_cache_of_more_rows_than_there_are_is_built_anew(tmp_path, build):
    write_store(tmp_path, make_contents(n=20, factory="HNSW8"))
    change(tmp_path, Change(added=make_pictures(4, seed=5, paths=list("abcd"))))
    with Store(tmp_path) as store:
        save_dense(store, build_dense(store))
    of_more = (tmp_path / FILE).read_bytes()
    write_store(tmp_path, make_contents(n=20, factory="HNSW8"))
    (tmp_path / FILE).write_bytes(of_more)
    with Store(tmp_path) as store:
        open_dense(store)
        assert cached_dense(store).index.ntotal == 20


def test_a_reader_of_an_earlier_generation_leaves_the_cache_alone(tmp_path):
    write_store(tmp_path, make_contents(n=20, factory="HNSW8"))
    with Store(tmp_path) as earlier:
        write_store(tmp_path, make_contents(n=30, seed=1, factory="HNSW8"))
        with Store(tmp_path) as store:
            open_dense(store)
        held = (tmp_path / FILE).read_bytes()
        _, ids = open_dense(earlier).search(make_contents(n=20).pictures.X, 1)
        assert ids[:, 0].tolist() == list(range(20))
    assert (tmp_path / FILE).read_bytes() == held


def test_where_too_few_pictures_are_left_to_train_every_row_is_scored(tmp_path):
    c = make_contents(n=40, factory="IVF16,Flat")
    write_store(tmp_path, c)
    with Store(tmp_path) as store:
        assert isinstance(open_dense(store), FaissIndex)
    change(tmp_path, Change(removed=range(30)))
    with Store(tmp_path) as store:
        index = open_dense(store)
        assert isinstance(index, FlatIndex)
        scores, ids = index.search(c.pictures.X[30:], 3)
        expected = c.pictures.X[30:] @ c.pictures.X[30:].T
    np.testing.assert_array_equal(ids[:, 0], np.arange(30, 40))
    np.testing.assert_allclose(scores, -np.sort(-expected, 1)[:, :3], rtol=1e-5)


def test_an_index_of_no_pictures_finds_nothing(tmp_path):
    for factory in ("Flat", "IVF4,Flat"):
        write_store(tmp_path, make_contents(n=0, factory=factory))
        with Store(tmp_path) as store:
            scores, ids = open_dense(store).search(np.eye(2, 8, dtype=np.float32), 3)
        assert (ids == -1).all()
        assert np.isneginf(scores).all()


def test_a_cache_that_cannot_be_written_changes_no_answer(tmp_path):
    write_store(tmp_path, make_contents(factory="HNSW8"))
    (tmp_path / FILE).mkdir()
    with Store(tmp_path) as store:
        _, ids = open_dense(store).search(store.embeddings(), 1)
    assert ids[:, 0].tolist() == list(range(12))
