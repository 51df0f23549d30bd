"""The doctor: each harm to a real index is named, mended where it can be, and the answers are those of before."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
from contents import make_contents
from mending import answers, faults, held, sql

from indexer.store import DATABASE, Journal, Store, write_store, writing
from indexer.store.database import WAL
from indexer.store.dense import FILE, open_dense
from indexer.store.doctor import examine
from indexer.store.journal import pending
from indexer.store.lock import HOLDER, LOCK
from indexer.store.repair import repair
from training.data.cifar10 import CLASSES
from training.encoders import load_test_embeddings, open_encoder
from training.errors import SparsightError

VECTORS, THUMBNAILS = "vectors-1.f32", "thumbnails-1.bin"
N, BLOCK = 600, 256  # pictures of the index of three blocks


@pytest.fixture
def index(light_index, tmp_path) -> Path:
    return Path(shutil.copytree(light_index, tmp_path / "index"))


@pytest.fixture(scope="module")
def three_blocks(tmp_path_factory) -> Path:
    """An index whose embeddings have three checksums, the last of a block that is not full."""
    from indexer.build import Source, write_index
    from indexer.config import CoderConfig, IndexConfig
    from indexer.store import Described

    encoder = open_encoder()
    bundled = load_test_embeddings(encoder)
    described = Described(
        paths=[f"/pictures/{i:03d}.png" for i in range(N)],
        labels=[CLASSES[y] for y in bundled.labels[:N]],
        thumbnails=[f"jpeg {i}".encode() for i in range(N)],
    )
    folder, config = tmp_path_factory.mktemp("three"), IndexConfig(coder=CoderConfig(l1=0.5))
    write_index(folder, bundled.X[:N], described, encoder, config, Source(dataset="pictures", root="/pictures"))
    with Store(folder) as store:
        assert (store.meta.vector_block, store.meta.vectors_file) == (BLOCK, VECTORS)
    return folder


@pytest.fixture
def blocks(three_blocks, tmp_path) -> Path:
    return Path(shutil.copytree(three_blocks, tmp_path / "blocks"))


def test_a_sound_index_has_no_fault_and_says_so(run, index):
    found = [json.loads(line) for line in run("doctor", "--index", index, "--json").stdout.splitlines()]
    assert {f["status"] for f in found} == {"ok"}
    checks = "database counts ids paths vectors thumbnails dictionary classes postings codes dense encoder leftovers "
    checks += "pending files"
    assert [f["check"] for f in found] == checks.split()
    assert len(run("doctor", "--index", index).stdout.splitlines()) == len(found)


def flip(path: Path, at: int) -> None:
    with path.open("rb+") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 16]))


def flip_blocks_of(folder: Path, table: str) -> None:
    """Damages a byte of every block of the database that a table alone has."""
    with Store(folder) as store:

        def blocks(name: str) -> set[int]:
            return {b for (b,) in store.rows(f"SELECT DISTINCT block_id FROM pragma_storage_info('{name}')") if b >= 0}

        others = ["images", "concepts", "classes", "posting_blocks", "vector_blocks", "meta"]
        own = blocks(table) - set().union(*(blocks(t) for t in others if t != table))
    assert own, f"{table} shares its blocks"
    for block in own:
        flip(folder / DATABASE, 3 * 4096 + block * 262144 + 3000)


def test_a_table_of_damaged_blocks_is_made_anew_from_the_others(run, index):
    before = answers(index)
    flip_blocks_of(index, "posting_blocks")
    assert "posting_blocks cannot be read" in run("doctor", "--index", index, code=1).stdout
    assert faults(index) == {"database"}
    assert "damaged-1" in run("doctor", "--repair", "--index", index).stderr
    assert answers(index) == before
    assert (index / f"{DATABASE}.damaged-1").is_file()


@pytest.mark.parametrize("table", ["skipped", "posting_blocks"])
def test_a_table_that_is_gone_and_follows_or_can_be_done_without(index, table):
    before = answers(index)
    sql(index, *(["DROP VIEW postings"] if table == "posting_blocks" else []), f"DROP TABLE {table}")
    assert faults(index) == {"database"}
    repair(index)
    assert faults(index) == set()
    assert answers(index) == before


def crc_of_another(folder: Path) -> None:
    sql(folder, "UPDATE vector_blocks SET crc = crc - 1 WHERE block = 1")


VECTOR_HARMS: dict[str, tuple[Callable[[Path], object], list[int]]] = {  # the harm → the blocks that are left
    "a byte of the first block": (lambda f: flip(f / VECTORS, 0), [1, 2]),
    "a byte of the second": (lambda f: flip(f / VECTORS, 4 * 256 * BLOCK + 77), [0, 2]),
    "the last byte": (lambda f: flip(f / VECTORS, 4 * 256 * N - 1), [0, 1]),
    "cut in the last block": (lambda f: os.truncate(f / VECTORS, 4 * 256 * N - 1), [0, 1]),
    "cut in the second block": (lambda f: os.truncate(f / VECTORS, 4 * 256 * 400), [0]),
    "the checksum of another": (crc_of_another, [0, 2]),
    "no checksum of one": (lambda f: sql(f, "DELETE FROM vector_blocks WHERE block = 1"), [0, 2]),
    "two of one": (lambda f: sql(f, "INSERT INTO vector_blocks FROM vector_blocks WHERE block = 2"), [0, 1]),
    "NULL for one": (lambda f: sql(f, "UPDATE vector_blocks SET crc = NULL WHERE block = 0"), [1, 2]),
}


@pytest.mark.parametrize("harm", VECTOR_HARMS)
def test_the_pictures_of_damaged_blocks_are_dropped_and_the_others_keep_all(three_blocks, blocks, harm):
    harmed, left = VECTOR_HARMS[harm]
    harmed(blocks)
    damaged = held(blocks)
    assert faults(blocks) == {"vectors"}
    kept = np.flatnonzero(np.isin(np.arange(N) // BLOCK, left))
    done = repair(blocks)
    assert done[0] == f"dropped {N - len(kept)} pictures that were not whole; `sparsight add` takes them again"
    names = [f"{name}.damaged-1" for name in (DATABASE, THUMBNAILS, VECTORS)]
    assert done[1:] == [f"wrote the index anew; the one before is {', '.join(names)}"]
    aside = {name: (blocks / f"{name}.damaged-1").read_bytes() for name in (DATABASE, THUMBNAILS, VECTORS)}
    assert aside == {name: damaged[name] for name in aside}
    assert faults(blocks) == set()
    with Store(three_blocks) as before, Store(blocks) as store:
        assert store.image_ids.tolist() == kept.tolist()
        assert store.images() == before.images(kept.tolist())
        np.testing.assert_array_equal(store.embeddings(), before.embeddings()[kept])
        assert (store.codes() != before.codes()[kept]).nnz == 0
        assert store.thumbnails(kept.tolist()) == before.thumbnails(kept.tolist())
        assert store.meta.next_id == N
    assert repair(blocks) == []


def test_rows_that_are_not_of_unit_norm_are_found_and_their_pictures_dropped(tmp_path):
    """As a writer with a fault would leave them, checksums and all."""
    c = make_contents(n=40)
    c.pictures.X[[3, 30]] *= np.float32([[1.01], [np.nan]])
    c.pictures.X[7] = 0
    write_store(tmp_path, c)
    assert any("3 are not of unit norm (the first: picture 3)" in f.message for f in examine(tmp_path))
    assert repair(tmp_path)[0].startswith("dropped 3 pictures")
    assert "vectors" not in faults(tmp_path)
    with Store(tmp_path) as store:
        assert store.image_ids.tolist() == np.setdiff1d(np.arange(40), [3, 7, 30]).tolist()


@pytest.mark.parametrize("harm", ["removed", "emptied", "a folder", "every byte"])
def test_vectors_of_which_nothing_is_left_are_lost_and_nothing_is_changed(run, blocks, harm):
    path = blocks / VECTORS
    size = path.stat().st_size
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm != "removed":
        path.write_bytes(b"" if harm == "emptied" else b"\x55" * size)
    damaged = held(blocks)
    assert faults(blocks) == {"vectors"}
    assert "`sparsight index PATH`" in run("doctor", "--index", blocks, code=1).stdout
    stderr = run("doctor", "--repair", "--index", blocks, code=1).stderr
    assert "`sparsight index PATH`" in stderr
    assert "nothing was changed" in stderr
    assert held(blocks) == damaged


def test_bytes_beyond_those_that_count_are_no_fault(blocks):
    before = answers(blocks)
    for name in (VECTORS, THUMBNAILS):
        with (blocks / name).open("ab") as f:
            f.write(b"of an addition that was killed")
    assert faults(blocks) == set()
    assert repair(blocks) == []
    assert answers(blocks) == before


THUMBNAIL_HARMS: dict[str, tuple[Callable[[Path], object], set[int]]] = {  # the harm → the pictures that lose theirs
    "a byte": (lambda f: flip(f / THUMBNAILS, 900 * 77 + 5), {77}),
    "cut": (lambda f: os.truncate(f / THUMBNAILS, 900 * 149 - 1), {148, 149}),
    "removed": (lambda f: (f / THUMBNAILS).unlink(), set(range(150))),
    "emptied": (lambda f: os.truncate(f / THUMBNAILS, 0), set(range(150))),
    "the checksum of one": (lambda f: sql(f, "UPDATE images SET thumbnail_crc = 1 WHERE image_id = 4"), {4}),
    "the size of one": (lambda f: sql(f, "UPDATE images SET thumbnail_bytes = NULL WHERE image_id = 4"), {4}),
    "one beyond": (lambda f: sql(f, f"UPDATE images SET thumbnail_start = {2**63 - 1} WHERE image_id = 4"), {4}),
    "one before": (lambda f: sql(f, "UPDATE images SET thumbnail_start = -1 WHERE image_id = 4"), {4}),
}


@pytest.mark.parametrize("harm", THUMBNAIL_HARMS)
def test_thumbnails_that_are_not_as_they_were_are_lost_and_nothing_else(light_index, index, harm):
    harmed, lost = THUMBNAIL_HARMS[harm]
    harmed(index)
    assert faults(index) == {"thumbnails"}
    done = repair(index)
    assert done[0] == f"lost {len(lost)} thumbnails: they cannot be read"
    assert faults(index) == set()
    assert answers(index)[:3] == answers(light_index)[:3]
    with Store(light_index) as before, Store(index) as store:
        kept = before.thumbnails(range(150))
        assert store.thumbnails(range(150)) == {i: jpeg for i, jpeg in kept.items() if i not in lost}
        assert (store.codes() != before.codes()).nnz == 0
    assert repair(index) == []


@pytest.mark.parametrize("key", ["vectors_file", "thumbnails_file"])
def test_a_writer_does_not_clear_files_that_the_database_should_have_named(index, key):
    """A writer clears data files that no database names; what a damaged one says is no reason to."""
    before = held(index)
    sql(index, f"UPDATE meta SET value = 'elsewhere' WHERE key = '{key}'")
    with writing(index, "test"):
        pass
    assert {name: data for name, data in held(index).items() if name != DATABASE} == {
        name: data for name, data in before.items() if name != DATABASE
    }
    if key == "thumbnails_file":  # what takes their place is written beside them
        repair(index)
        assert (index / f"{THUMBNAILS}.damaged-1").read_bytes() == before[THUMBNAILS]


@pytest.mark.parametrize("harm", ["removed", "flipped", "cut", "empty", "another's"])
def test_the_dense_index_is_built_anew(tmp_path, harm):
    write_store(tmp_path, make_contents(n=60, factory="HNSW8"))
    with Store(tmp_path) as store:
        open_dense(store)
    good = (tmp_path / FILE).read_bytes()
    bad = {
        "flipped": good[:500] + bytes([good[500] ^ 1]) + good[501:],
        "cut": good[:-1],
        "empty": b"",
        "another's": b"x",
    }
    assert "dense" not in faults(tmp_path)
    (tmp_path / FILE).unlink()
    if harm in bad:
        (tmp_path / FILE).write_bytes(bad[harm])
    assert "dense" in faults(tmp_path)
    assert repair(tmp_path)[-1] == f"built {FILE} from the vectors"
    assert "dense" not in faults(tmp_path)


def test_leftovers_and_damaged_batches_go_and_foreign_files_stay(index):
    journal = Journal(index, open_encoder())
    journal.add(["a"], np.zeros((1, 256), np.float32), [b"x"])
    journal.add(["b", "c"], np.zeros((2, 256), np.float32), [b"y", b"z"])
    whole, damaged = pending(index)
    data = bytearray(damaged.read_bytes())
    data[40] ^= 1
    damaged.write_bytes(data)
    (index / f".{DATABASE}.1.part").write_bytes(b"half")
    (index / HOLDER).write_text("{}")
    (index / "notes.txt").write_text("mine")
    assert faults(index) == {"leftovers", "pending"}
    notes = [f.message for f in examine(index) if f.status == "note"]
    assert any("1 encoded pictures wait" in note for note in notes)
    assert any("notes.txt is no file of an index" in note for note in notes)
    repair(index)
    assert faults(index) == set()
    assert pending(index) == [whole]
    assert (index / "notes.txt").read_text() == "mine"


def test_a_log_of_another_program_is_put_aside(run, index):
    before = answers(index)
    con = duckdb.connect(str(index / DATABASE))
    con.execute("PRAGMA disable_checkpoint_on_shutdown")
    con.execute("UPDATE meta SET value = '7' WHERE key = 'n'")
    con.close()
    assert (index / WAL).is_file()
    assert WAL in run("concepts", "--index", index, code=1).stderr
    assert faults(index) == {"database"}
    repair(index)
    assert faults(index) == set()
    assert answers(index) == before
    assert (index / f"{WAL}.damaged-1").is_file()


def test_an_index_that_is_being_written_is_no_fault(index):
    with writing(index, "add"):
        (index / f".{DATABASE}.1.part").write_bytes(b"half")
        found = examine(index)
        assert {f.check for f in found if f.status == "fault"} == set()
        assert any("being changed by `sparsight add`" in f.message for f in found)
        with pytest.raises(SparsightError, match="being changed by `sparsight add`"):
            repair(index)


def test_examining_changes_nothing(index):
    sql(index, "DELETE FROM posting_blocks")
    flip(index / VECTORS, 7)
    flip(index / THUMBNAILS, 7)
    (index / LOCK).unlink(missing_ok=True)
    before = {p.name: p.read_bytes() for p in index.iterdir()}
    os.chmod(index, stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert faults(index) == {"counts", "vectors", "thumbnails"}
    finally:
        os.chmod(index, stat.S_IRWXU)
    assert {p.name: p.read_bytes() for p in index.iterdir()} == before


def test_no_index_is_said(run, tmp_path):
    for repairing in ((), ("--repair",)):
        assert "no index in" in run("doctor", *repairing, "--index", tmp_path / "none", code=1).stderr
    assert not (tmp_path / "none").exists()


def test_an_encoder_that_is_gone_is_a_note(index):
    sql(index, "UPDATE meta SET value = '/nowhere/encoder' WHERE key = 'encoder_source'")
    (found,) = [f for f in examine(index) if f.check == "encoder"]
    assert (found.status, faults(index)) == ("note", set())
    assert "/nowhere/encoder" in found.message
