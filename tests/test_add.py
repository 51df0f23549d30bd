"""Changes in place: what add, remove and compact do and say; the journal; ids that are given once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexer.add import add_pictures
from indexer.change import file_exists, remove_pictures
from PIL import Image

from indexer.build import index_folder
from indexer.config import IndexConfig
from indexer.store import DATABASE, Store
from indexer.store.dense import FILE, cached_dense
from indexer.store.journal import FOLDER, Journal
from search.index import Index
from training.encoders import open_encoder
from training.errors import CallError, SparsightError
from training.files import path_text


@pytest.fixture(scope="module")
def encoder(small_encoder_dir):
    return open_encoder(str(small_encoder_dir))


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    """Twenty picture files, in class folders."""
    root = tmp_path / "album"
    for i in range(20):
        paint(root, pictures, i)
    return root


@pytest.fixture
def index(folder, encoder, tmp_path) -> Path:
    index_folder(tmp_path / "index", folder, encoder, IndexConfig(), labels=True)
    return tmp_path / "index"


def paint(root: Path, pictures, i: int, name: str | None = None) -> Path:
    path = root / (name or f"{pictures.terms[i].replace(' ', '_')}/{i:03d}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pictures.pixels[i]).save(path)
    return path


def state(index: Path) -> dict[str, tuple]:
    """Path → hash, label, vector and code of every picture."""
    with Store(index) as store:
        X, W, rows, known = store.embeddings(), store.codes(), store.images(), store.known_files()
        assert [r["image_id"] for r in rows] == store.image_ids.tolist()
        assert [c.images for c in store.concepts()] == np.diff(W.tocsc().indptr).tolist()
        assert cached_dense(store).ntotal == len(store) == len(rows) == len(store.thumbnails(store.image_ids.tolist()))
    return {r["path"]: (known[r["path"]][1], r["label"], X[i], W[i].toarray()[0]) for i, r in enumerate(rows)}


def assert_same(a: dict[str, tuple], b: dict[str, tuple]) -> None:
    assert a.keys() == b.keys()
    for path in a:
        assert a[path][:2] == b[path][:2]
        np.testing.assert_allclose(a[path][2], b[path][2], atol=1e-5)
        np.testing.assert_allclose(a[path][3], b[path][3], atol=1e-3)


def test_adding_ends_where_building_would(folder, index, encoder, pictures, tmp_path):
    for i in range(20, 30):
        paint(folder, pictures, i)
    done = add_pictures(index, [folder], encoder)
    assert len(done.plan.added) == 10
    assert len(done.plan.unchanged) == 20
    assert done.ids == list(range(20, 30))
    index_folder(tmp_path / "whole", folder, encoder, IndexConfig(), labels=True)
    assert_same(state(index), state(tmp_path / "whole"))


def test_what_is_known_changed_moved_doubled_or_damaged(run, folder, index, small_encoder_dir, pictures):
    with Store(index) as store:
        before = store.known_files()
    files = sorted(p for p in folder.rglob("*.png"))
    shutil.copy(files[0], folder / "copy.png")
    files[1].rename(files[1].with_name("moved.png"))
    paint(folder, pictures, 40, str(files[2].relative_to(folder)))
    paint(folder, pictures, 41, "fresh class/41.png")
    (folder / "bad.png").write_bytes(b"no picture")
    lines = [json.loads(x) for x in run("add", folder, "--index", index, "--json").stdout.splitlines()]
    by_status = {
        s: [x for x in lines if x["status"] == s] for s in ("added", "changed", "moved", "duplicate", "skipped")
    }
    assert {s: len(xs) for s, xs in by_status.items()} == dict.fromkeys(by_status, 1)
    assert by_status["duplicate"][0] == {"path": str(folder / "copy.png"), "status": "duplicate", "of": str(files[0])}
    assert by_status["moved"][0]["id"] == before[str(files[1])][0]
    assert by_status["changed"][0]["id"] not in [i for i, _ in before.values()]
    now = state(index)
    assert now.keys() == before.keys() - {str(files[1])} | {
        lines[0]["path"],
        lines[1]["path"],
        by_status["moved"][0]["path"],
    }
    assert now[str(folder / "fresh class/41.png")][1] == "fresh class"
    with Store(index) as store:
        assert "fresh class" in store.classes()[0]
        assert store.skipped() == [(str(folder / "bad.png"), by_status["skipped"][0]["reason"])]
        generation = store.meta["generation"]
    again = run("add", folder, "--index", index)
    assert again.stdout.endswith("0 added, 0 changed, 0 moved, 1 duplicates, 21 unchanged, 1 skipped; 21 pictures\n")
    with Store(index) as store:
        assert store.meta["generation"] == generation  # nothing to do is nothing done


def test_swapped_files_keep_their_pictures(folder, index, encoder):
    a, b = sorted(folder.rglob("*.png"))[:2]
    before = state(index)
    a.rename(folder / "c"), b.rename(a), (folder / "c").rename(b)
    done = add_pictures(index, [a, b], encoder)
    assert len(done.plan.moved) == 2
    now = state(index)
    assert now[str(a)][0] == before[str(b)][0]
    np.testing.assert_array_equal(now[str(a)][2], before[str(b)][2])


def test_removing_by_id_path_and_folder(run, folder, index):
    before = state(index)
    some = sorted(folder.rglob("*.png"))
    class_folder = some[-1].parent
    assert run("remove", "0", some[3], class_folder, "--index", index).stdout.startswith(f"{index}: ")
    with Store(index) as store:
        gone = before.keys() - store.known_files().keys()
        assert 0 not in store.image_ids
    assert str(some[3]) in gone
    assert {str(p) for p in class_folder.iterdir()} <= gone
    assert_same(state(index), {p: v for p, v in before.items() if p not in gone})


def test_ids_are_given_once(run, folder, index, encoder, pictures):
    remove_pictures(index, ["19", "3"])
    added = add_pictures(index, [paint(folder, pictures, 50)], encoder)
    assert added.ids == [20]
    assert (
        "3 in the index (that one was removed): ids run from 0 to 20"
        in run("explain", "3", "--index", index, code=2).stderr
    )


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_searches_after_changes_are_brute_force(folder, index, encoder, pictures, mode):
    remove_pictures(index, ["0", "7", "8"])
    add_pictures(index, [paint(folder, pictures, i) for i in (60, 61)], encoder)
    rng = np.random.default_rng(0)
    with Index(index) as searcher:
        store = searcher.store
        A = store.embeddings() if mode == "dense" else store.codes() @ store.dictionary()
        for t in rng.normal(size=(5, store.d)).astype(np.float32):
            hits = searcher.search_vector(t / np.linalg.norm(t), 100, mode)
            scores = A @ (t / np.linalg.norm(t))
            assert sorted(h.id for h in hits) == store.image_ids.tolist()
            np.testing.assert_allclose([h.score for h in hits], -np.sort(-scores), atol=1e-4)
            at = np.searchsorted(store.image_ids, [h.id for h in hits])
            np.testing.assert_allclose([h.score for h in hits], scores[at], atol=1e-4)


def test_removing_nothing_that_is_there_removes_nothing(run, index):
    before = (index / DATABASE).read_bytes()
    assert "nowhere.png names no picture" in run("remove", "1", "nowhere.png", "--index", index, code=2).stderr
    assert "name what is to be removed" in run("remove", "--index", index, code=2).stderr
    assert (index / DATABASE).read_bytes() == before


def test_missing_files_are_removed_but_not_with_their_drive(run, folder, index):
    odd = folder / os.fsdecode(b"caf\xe9 \\x41.png")
    shutil.copy(sorted(folder.rglob("*.png"))[0], odd)
    assert file_exists(path_text(odd))
    files = sorted(folder.rglob("*/*.png"))
    files[5].unlink()
    assert run("remove", "--missing", "--index", index).stdout == f"{index}: 1 removed\n"
    folder.rename(folder.with_name("elsewhere"))
    assert "is their drive mounted?" in run("remove", "--missing", "--index", index, code=1).stderr
    assert len(state(index)) == 19


def test_pictures_that_were_no_files_are_not_missing(run, small_index, tmp_path):
    shutil.copytree(small_index, tmp_path / "copy")
    assert "not indexed from files" in run("remove", "--missing", "--index", tmp_path / "copy", code=2).stderr


def test_an_emptied_index_answers_and_fills_again(run, folder, index, encoder, tmp_path):
    before = state(index)
    run("remove", folder, "--index", index)
    assert state(index) == {}
    for mode in ("dense", "sparse"):
        assert run("search", "a cat", "--index", index, "--mode", mode, "--json").stdout == ""
    run("compact", "--index", index)
    add_pictures(index, [folder], encoder)
    assert_same(state(index), before)


def test_compacting_gives_room_back_and_changes_nothing_else(run, index, encoder):
    remove_pictures(index, ["1", "2"])
    before = state(index)
    with Store(index) as store:
        assert store.meta["dead"] == "2"
    run("compact", "--index", index)
    assert_same(state(index), before)
    with Store(index) as store:
        assert store.meta["dead"] == "0"
        assert "v1.4" in str(store._rows("SELECT tags FROM duckdb_databases() WHERE database_name = 'store'"))
    remove_pictures(index, [str(i) for i in range(3, 9)])  # a third of all rows: compacted by the way
    with Store(index) as store:
        assert store.meta["dead"] == "0"


def test_an_encoder_of_another_index_is_refused(run, index):
    assert "was built with encoder" in run("add", ".", "--index", index, "--encoder", "bundled", code=1).stderr


def test_no_index_no_folder_made(run, tmp_path):
    for command in (["add", tmp_path], ["remove", "1"], ["compact"]):
        assert "no index in" in run(*command, "--index", tmp_path / "none", code=1).stderr
    assert not (tmp_path / "none").exists()


def test_a_missing_path_is_named(run, index):
    assert "nowhere does not exist" in run("add", "nowhere", "--index", index, code=1).stderr


@pytest.mark.parametrize("factory", ["HNSW8", "IVF2,Flat", "SQ8"])
def test_any_dense_index_follows(folder, encoder, pictures, tmp_path, factory):
    index = tmp_path / "index"
    index_folder(index, folder, encoder, IndexConfig(dense=factory))
    add_pictures(index, [paint(folder, pictures, i) for i in range(70, 75)], encoder)
    with Index(index) as searcher:
        assert cached_dense(searcher.store).ntotal == 25
        x = searcher.store.embeddings_of([22])[0]
        assert 22 in [h.id for h in searcher.search_vector(x, 3, "dense")]
    remove_pictures(index, ["22"])
    with Index(index) as searcher:
        assert 22 not in [h.id for h in searcher.search_vector(x, 30, "dense")]


def test_a_factory_that_cannot_be_trained_on_the_rest_prevents_the_change(folder, encoder, tmp_path):
    index_folder(tmp_path / "index", folder, encoder, IndexConfig(dense="IVF15,Flat"))
    before = (tmp_path / "index" / DATABASE).read_bytes(), (tmp_path / "index" / FILE).read_bytes()
    with pytest.raises(CallError, match="cannot build 'IVF15,Flat' over 10"):
        remove_pictures(tmp_path / "index", [str(i) for i in range(10)])
    assert before == ((tmp_path / "index" / DATABASE).read_bytes(), (tmp_path / "index" / FILE).read_bytes())


def test_a_stopped_build_and_a_stopped_addition_go_on(folder, encoder, pictures, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    batches = []

    def stops_at(n):
        def encode(pixels):
            if len(batches) == n:
                raise Stopped
            batches.append(len(pixels))
            return type(encoder).encode_images(encoder, pixels)

        return encode

    index, config = tmp_path / "index", IndexConfig(batch_size=6)
    monkeypatch.setattr(encoder, "encode_images", stops_at(2))
    with pytest.raises(Stopped):
        index_folder(index, folder, encoder, config)
    assert len(list((index / FOLDER).iterdir())) == 2
    assert not (index / DATABASE).exists()
    monkeypatch.setattr(encoder, "encode_images", stops_at(99))
    index_folder(index, folder, encoder, config)
    assert batches == [6, 6, 6, 2]  # none twice
    for i in range(80, 90):
        paint(folder, pictures, i)
    monkeypatch.setattr(encoder, "encode_images", stops_at(5))
    with pytest.raises(Stopped):
        add_pictures(index, [folder], encoder, batch_size=25)
    monkeypatch.setattr(encoder, "encode_images", stops_at(99))
    add_pictures(index, [folder], encoder, batch_size=25)
    assert sum(batches) == 30
    assert not (index / FOLDER).exists()
    monkeypatch.undo()
    index_folder(tmp_path / "whole", folder, encoder, IndexConfig())
    assert_same(state(index), state(tmp_path / "whole"))


@settings(deadline=None, max_examples=25)
@given(
    batches=st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=5, unique=True), max_size=5),
    harm=st.integers(0, 9),
)
def test_the_journal_gives_back_what_it_was_given_or_nothing(encoder, tmp_path_factory, batches, harm):
    folder = tmp_path_factory.mktemp("journal")
    journal, rng = Journal(folder, encoder), np.random.default_rng(0)
    kept = {}
    for b, thumbnails in enumerate(batches):
        X = rng.normal(size=(len(thumbnails), 4)).astype(np.float32)
        hashes = [f"{b}-{i}" for i in range(len(thumbnails))]
        journal.add(hashes, X, thumbnails)
        kept |= dict(zip(hashes, zip(X, thumbnails, strict=True), strict=True))
    if harm < len(batches):
        path = sorted((folder / FOLDER).iterdir())[harm]
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 4
        path.write_bytes(data)
        kept = {h: v for h, v in kept.items() if not h.startswith(f"{harm}-")}
    again = Journal(folder, encoder)
    assert all((h in again) == (h in kept) for b in range(len(batches)) for h in [f"{b}-0"])
    order = sorted(kept, reverse=True)
    if order:
        np.testing.assert_array_equal(again.vectors(order), np.stack([kept[h][0] for h in order]))
    assert list(again.thumbnails(order)) == [kept[h][1] for h in order]


def test_another_encoders_batches_do_not_count(encoder, tmp_path):
    Journal(tmp_path, encoder).add(["a"], np.ones((1, 3), np.float32), [b""])
    assert "a" in Journal(tmp_path, encoder)
    assert "a" not in Journal(tmp_path, open_encoder())


def test_the_second_writer_is_told_who_the_first_is(index, encoder, folder):
    from indexer.store.lock import writing

    with writing(index, "compact"):
        with pytest.raises(
            SparsightError, match=rf"changed by `sparsight compact` \(process {os.getpid()} on .*, since"
        ):
            add_pictures(index, [folder], encoder)
        with Index(index) as searcher:  # readers need no lock
            assert len(searcher.store) == 20
    remove_pictures(index, ["0"])
