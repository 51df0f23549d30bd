"""An export, or the shards of a build on Ray, is imported into Milvus as into a folder."""

from __future__ import annotations

import pytest

pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs the extra milvus")

import numpy as np
from click.testing import CliRunner
from milvus import contents

from indexer.exchange.export import export_index
from indexer.exchange.importing import import_index
from indexer.milvus import parse_address
from indexer.milvus.reader import MilvusStore
from indexer.store import Store, write_store, writing
from sparsight import main

N = 120


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """A folder with an index, and an export of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "index").mkdir()
    with writing(tmp_path / "index", "index"):
        write_store(tmp_path / "index", contents(N))
    export_index(tmp_path / "index", tmp_path / "out")
    return tmp_path


def test_an_export_is_imported_whole(exported):
    address = parse_address(f"milvus:{exported / 'm.db'}")
    meta = import_index(address, exported / "out")
    ids = list(range(N))
    with Store(exported / "index") as held, MilvusStore(address) as store:
        assert (meta.n, meta.nnz, len(store)) == (N, held.meta.nnz, N)
        np.testing.assert_array_equal(store.embeddings_of(ids), held.embeddings())
        for ours, theirs in zip(store.codes_of(ids), held.codes_of(ids), strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])
        assert store.thumbnails(ids) == held.thumbnails(ids)
        assert [row.path for row in store.images(ids)] == [row.path for row in held.images(ids)]


def test_an_index_that_stands_is_not_replaced(exported):
    asked = ["import", str(exported / "out"), "--store", f"milvus:{exported / 'm.db'}"]
    assert CliRunner().invoke(main, asked).exit_code == 0
    again = CliRunner().invoke(main, asked)
    assert again.exit_code == 1
    assert "holds an index already: name another one behind #" in again.stderr
    other = CliRunner().invoke(main, [*asked[:-1], f"{asked[-1]}#other"])
    assert other.exit_code == 0
    assert f"{N} pictures" in other.stdout
