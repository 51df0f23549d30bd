"""What is written to Milvus is there, whoever dies: the writer, or the server. A re-run completes what was begun."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs the extra milvus")

from conftest import coloured_pictures
from milvus import ADDED, BATCHES, N, addition, contents, dies_adding, dies_loading, killed_at, running
from PIL import Image

from indexer.milvus import parse_address
from indexer.milvus.about import About
from indexer.milvus.reader import MilvusStore
from indexer.milvus.server import Server
from indexer.milvus.writer import change_milvus, rounded, write_milvus
from training.errors import SparsightError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def whole(store: MilvusStore, n: int) -> None:
    """Checks that the pictures of `contents` are there, each once and as they were."""
    c, ids = contents(n), list(range(n))
    assert (len(store), store.count("id >= 0")) == (n, n)
    np.testing.assert_array_equal(store.embeddings_of(ids), c.pictures.X)
    W = rounded(c.pictures.W)
    for i, (concepts, weights) in enumerate(store.codes_of(ids)):
        np.testing.assert_array_equal(concepts, W[i].indices)
        np.testing.assert_array_equal(weights, W[i].data)
    assert store.thumbnails(ids) == dict(enumerate(c.pictures.described.thumbnails))
    np.testing.assert_array_equal(store.counts(), np.bincount(W.indices, minlength=W.shape[1]))


def pictures_there(address: str) -> int:
    """Rows of the collections of pictures, whether they count or not."""
    server = Server(parse_address(address))
    try:
        about = About(server)
        names = [name for name in server.ask("list_collections") if name.startswith(f"{about.name}__")]
        for name in names:
            server.ask("load_collection", name)
        counts = [server.ask("query", name, filter="", output_fields=["count(*)"]) for name in names]
        return sum(int(found[0]["count(*)"]) for found in counts)
    finally:
        server.close()


def test_a_load_whose_writer_is_killed_is_told_and_completed(tmp_path):
    address = f"milvus:{tmp_path / 'lite'}"
    dies_loading(address, 2 * BATCHES + 10)
    assert pictures_there(address) == 2 * BATCHES  # all that was acknowledged
    with pytest.raises(SparsightError, match=r"the load of 1,200 pictures .* is unfinished: run"):
        MilvusStore(parse_address(address))
    write_milvus(parse_address(address), contents())
    with MilvusStore(parse_address(address)) as store:
        whole(store, N)


def test_the_earlier_index_stands_until_the_new_one_is_whole(tmp_path):
    address = f"milvus:{tmp_path / 'lite'}"
    write_milvus(parse_address(address), contents(40))
    dies_loading(address, BATCHES + 10)
    with MilvusStore(parse_address(address)) as store:
        whole(store, 40)
    meta = write_milvus(parse_address(address), contents(50))  # another one than was stopped
    assert meta.generation == 2
    assert pictures_there(address) == 50  # of the others nothing is left


def test_what_a_killed_addition_left_does_not_count(tmp_path):
    address = f"milvus:{tmp_path / 'lite'}"
    write_milvus(parse_address(address), contents(40))
    dies_adding(address, BATCHES + 10)
    assert pictures_there(address) == 40 + BATCHES
    with MilvusStore(parse_address(address)) as store:
        assert store.is_unfinished
        assert store.search_vectors(addition().added.X[3], 5, "")[0].max() < 40
        assert not store.named("/added")
        meta = change_milvus(store, addition())
    assert (meta.n, meta.next_id) == (40 - 2 + ADDED, 40 + ADDED)
    with MilvusStore(parse_address(address)) as store:
        assert (len(store), store.count("id >= 0"), len(store.named("/added"))) == (meta.n, meta.n, ADDED)
        codes = np.concatenate([ids for ids, _ in store.codes_of([i for i in range(40) if i not in (3, 4)])])
        W = rounded(addition().added.W)
        expected = np.bincount(np.append(codes, W.indices).astype(int), minlength=store.meta.m)
        np.testing.assert_array_equal(store.counts(), expected)
        assert store.values("label") == ["a", "new"]
        assert 1 <= len(json.loads(store.part("probes"))) <= 3


def test_a_server_that_is_gone_is_named_and_a_re_run_completes(tmp_path):
    with running(tmp_path / "server") as (address, process):
        port = int(address.rpartition(":")[2])
        with pytest.raises(SparsightError) as told:
            write_milvus(parse_address(address), killed_at(BATCHES + 10, process.pid, contents()))
        assert f"127.0.0.1:{port} does not answer (asked 4 times)" in str(told.value)
        assert "\n" not in str(told.value)
    with running(tmp_path / "server", port):
        assert pictures_there(address) == BATCHES
        write_milvus(parse_address(address), contents())
        with MilvusStore(parse_address(address)) as store:
            whole(store, N)


def test_a_server_that_comes_back_is_asked_again(tmp_path):
    with running(tmp_path / "server") as (address, process):
        write_milvus(parse_address(address), contents(40))
        store = MilvusStore(parse_address(address))
        process.kill()
        process.wait()
        with running(tmp_path / "server", int(address.rpartition(":")[2])):
            for name in (store.about.name, store.pictures):
                store.server.ask("load_collection", name)
            assert len(store.images([1, 2])) == 2
        store.close()


def test_scores_that_are_wrong_are_refused(tmp_path):
    """Another program has changed a picture's weights."""
    address = parse_address(f"milvus:{tmp_path / 'lite'}")
    write_milvus(address, contents(40))
    with MilvusStore(address) as store:
        probe = int(next(iter(json.loads(store.part("probes")))))
        row = store.rows_of([probe], ["*"])[0]
        code = {j: 1.3 * w for j, w in row["code"].items()}
        store.server.ask("upsert", store.pictures, [dict(row) | {"code": code, "concepts": list(row["concepts"])}])
    with pytest.raises(SparsightError, match=rf"gives picture {probe} the sparse score .* cannot be trusted"):
        MilvusStore(address)


def test_several_indexes_lie_in_one_folder(tmp_path):
    first, second = (parse_address(f"milvus:{tmp_path / 'lite'}{name}") for name in ("", "#other"))
    write_milvus(first, contents(20))
    write_milvus(second, contents(30))
    write_milvus(first, contents(25))
    for address, n in ((first, 25), (second, 30)):
        with MilvusStore(address) as store:
            whole(store, n)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Folders of pictures, each the name of its class."""
    made = coloured_pictures(24)
    for pixels, label, name in zip(made.pixels, made.labels, made.names, strict=True):
        folder = tmp_path / "photos" / str("abcdefghij"[label])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return tmp_path / "photos"


def test_pictures_are_indexed_added_moved_and_removed(run, photos, tmp_path):
    store = ("--store", f"milvus:{tmp_path / 'lite'}")
    later = sorted((photos / "b").iterdir())
    held = [(path, path.read_bytes()) for path in later]
    for path in later:
        path.unlink()
    args = ("index", photos, "--labels", "folders", "--encoder", "bundled", "--dictionary", "classes")
    assert "21 pictures" in run(*args, *store).stdout
    assert len(run("search", "a", "--all", "-k", "30", "--json", *store).stdout.splitlines()) == 21

    for path, data in held:
        path.write_bytes(data)
    moved = sorted((photos / "a").iterdir())[0]
    moved.rename(photos / "c" / "moved.png")
    changed = sorted((photos / "d").iterdir())[0]
    Image.new("RGB", (32, 32), (1, 200, 3)).save(changed)
    os.utime(changed, ns=(1, 1))
    (photos / "broken.png").write_bytes(b"no picture")
    assert "4 would be added, 1 changed, 1 moved" in run("add", photos, "--dry-run", *store).stdout
    assert "3 added, 1 changed, 1 moved, 0 duplicates" in run("add", photos, *store).stdout
    assert "0 added, 0 changed, 0 moved, 0 duplicates, 24 unchanged" in run("add", photos, *store).stdout
    assert '"label": "c"' in run("search", "--like", photos / "c" / "moved.png", "-k1", "--json", *store).stdout
    hits = run("search", "a", "--all", "--label", "b", "-k", "30", "--json", *store).stdout
    assert len(hits.splitlines()) == len(held)

    assert f"{len(held)} removed" in run("remove", photos / "b", *store).stdout
    assert "names no picture" in run("remove", photos / "b", *store, code=2).stderr
    (photos / "c" / "moved.png").unlink()
    assert "1 removed" in run("remove", "--missing", "--yes", *store).stdout
    with MilvusStore(parse_address(store[1])) as now:
        assert now.count("id >= 0") == len(now) == 20
        assert now.counts().sum() == now.meta.nnz == sum(len(ids) for ids, _ in now.codes_of([*now.paths()]))


def test_options_that_an_index_in_milvus_cannot_have(run, photos, tmp_path):
    args = ("index", photos, "--encoder", "bundled", "--store", f"milvus:{tmp_path / 'lite'}")
    assert "index folders alone" in run(*args, "--residual", "PQ8", code=2).stderr
    assert "Flat, or HNSW4" in run(*args, "--dense", "IVF16,Flat", code=2).stderr
    assert "no exact embeddings" in run(*args, "--no-vectors").stdout
    told = run("search", "a", "--mode", "dense", "--store", args[-1], code=2).stderr
    assert "keeps none" in told
    assert run("search", "a", "--all", "-k", "3", "--json", "--store", args[-1]).stdout.count("\n") == 3
