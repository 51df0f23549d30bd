"""The doctor: each harm to a real index is named, mended where it can be, and the answers are those of before."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import duckdb
import numpy as np
import pytest

from indexer.store import DATABASE, WAL, Store
from indexer.store.dense import FILE
from indexer.store.doctor import examine, repair
from indexer.store.journal import Journal, pending
from indexer.store.lock import HOLDER, LOCK, writing
from search.index import Index
from training.encoders import open_encoder
from training.errors import SparsightError


@pytest.fixture
def index(light_index, tmp_path) -> Path:
    return Path(shutil.copytree(light_index, tmp_path / "index"))


def answers(folder: Path) -> list[object]:
    """What an index says of everything that a repair must bring back."""
    with Index(folder) as s:
        t = s.D[0]
        hits = [s.search_vector(t, 20, mode) for mode in ("dense", "sparse")]
        # Among equal scores the order of the codes' last bits may differ once they are computed again.
        found = [[(h.id, h.path, round(h.score, 4), h.label, len(h.concepts)) for h in list_] for list_ in hits]
        s.store.images()
        return [found, s.store.classes()[0], s.concepts(), s.store.thumbnails([0, 77])]


def sql(folder: Path, *statements: str) -> None:
    with duckdb.connect(str(folder / DATABASE)) as con:
        for statement in statements:
            con.execute(statement)


def faults(folder: Path) -> set[str]:
    return {f.check for f in examine(folder) if f.status == "fault"}


def flip_blocks_of(folder: Path, table: str) -> None:
    """Damages a byte of every block that a table alone has."""
    with Store(folder) as store:

        def blocks(name: str) -> set[int]:
            return {b for (b,) in store._rows(f"SELECT DISTINCT block_id FROM pragma_storage_info('{name}')") if b >= 0}

        others = ["images", "vectors", "concepts", "classes", "posting_blocks", "thumbnails", "meta"]
        own = blocks(table) - set().union(*(blocks(t) for t in others if t != table))
    assert own, f"{table} shares its blocks"
    with (folder / DATABASE).open("rb+") as f:
        for block in own:
            at = 3 * 4096 + block * 262144 + 3000
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ 16]))


def test_a_sound_index_has_no_fault_and_says_so(run, index):
    found = [json.loads(line) for line in run("doctor", "--index", index, "--json").stdout.splitlines()]
    assert {f["status"] for f in found} == {"ok"}
    checks = "database counts ids paths vectors dictionary classes postings codes dense encoder leftovers pending files"
    assert [f["check"] for f in found] == checks.split()
    assert len(run("doctor", "--index", index).stdout.splitlines()) == len(found)


HARMS = {  # what is done to the tables → the checks that find it; each can be mended, and no picture is lost
    "UPDATE meta SET value = '151' WHERE key = 'n'": {"counts"},
    "UPDATE meta SET value = '1000000000000' WHERE key = 'n'": {"counts"},
    "UPDATE meta SET value = 'many' WHERE key = 'm'": {"counts"},
    "UPDATE meta SET value = '3' WHERE key = 'd'": {"counts"},
    "UPDATE meta SET value = '1' WHERE key = 'nnz'": {"counts"},
    "UPDATE meta SET value = '7' WHERE key = 'next_id'": {"counts"},
    "DELETE FROM meta WHERE key = 'next_id'": {"counts"},
    "UPDATE concepts SET images = images + 1 WHERE concept_id = 3": {"counts"},
    "UPDATE concepts SET images = NULL": {"counts"},
    "INSERT INTO images SELECT * FROM images WHERE image_id = 4": {"counts", "ids", "paths"},
    "INSERT INTO vectors SELECT 200, embedding FROM vectors WHERE image_id = 4": {"ids", "vectors"},
    "DELETE FROM vectors WHERE image_id = 5": {"ids", "vectors"},
    "INSERT INTO thumbnails VALUES (149000, 'x'::BLOB)": {"ids"},
    "UPDATE vectors SET embedding = (SELECT embedding FROM vectors WHERE image_id = 1) WHERE image_id = 2": {"vectors"},
    "UPDATE vectors SET embedding = (SELECT atom FROM concepts LIMIT 1)": {"vectors"},
    "UPDATE vectors SET embedding = NULL WHERE image_id = 2": {"vectors"},
    "UPDATE vectors SET embedding = list_transform(embedding, lambda x: NULL)::FLOAT[256]": {"vectors"},
    "UPDATE vectors SET embedding = list_transform(embedding, lambda x: 2 * x)::FLOAT[256]": {"vectors"},
    "UPDATE meta SET value = 'abc' WHERE key = 'dense_key'": {"vectors", "dense"},
    "UPDATE posting_blocks SET first = -1": {"postings"},
    "UPDATE posting_blocks SET step = step * 2": {"codes"},
    "UPDATE posting_blocks SET words = []": {"postings"},
    "UPDATE posting_blocks SET words = NULL": {"postings"},
    "UPDATE posting_blocks SET width = NULL": {"postings"},
    "DELETE FROM posting_blocks WHERE concept_id = (SELECT min(concept_id) FROM posting_blocks)": {"counts", "codes"},
    "DELETE FROM posting_blocks": {"counts", "codes"},
}


@pytest.mark.parametrize("harm", HARMS)
def test_harm_to_the_tables_is_found_and_mended(index, harm):
    before = answers(index)
    sql(index, harm)
    found = faults(index)
    assert found - {"codes"} == HARMS[harm] - {"codes"}
    assert found >= HARMS[harm]
    repair(index)
    assert faults(index) == set()
    assert answers(index) == before
    assert repair(index) == []


@pytest.mark.parametrize(
    ("harm", "found", "left"),
    [
        ("DELETE FROM images WHERE image_id = 5", {"counts", "ids", "postings"}, 149),
        ("UPDATE images SET path = (SELECT path FROM images WHERE image_id = 9) WHERE image_id = 5", {"paths"}, 149),
        ("UPDATE images SET path = NULL WHERE image_id = 5", {"paths"}, 149),
        ("UPDATE images SET image_id = 6 WHERE image_id = 5", {"ids"}, 148),
        ("UPDATE images SET image_id = -5 WHERE image_id = 5", {"ids"}, 149),
        ("UPDATE images SET image_id = 500 WHERE image_id = 5", {"ids"}, 149),
    ],
)
def test_pictures_that_are_not_whole_are_dropped(light_index, index, harm, found, left):
    sql(index, harm)
    assert found <= faults(index)
    assert any(line.startswith(f"dropped {150 - left} pictures") for line in repair(index))
    assert faults(index) == set()
    with Store(index) as store:
        assert len(store) == left
        assert 5 not in store.image_ids
        assert len(store.images()) == store.codes().shape[0] == left
        with Store(light_index) as before:
            np.testing.assert_array_equal(store.embeddings(), before.embeddings()[store.image_ids])
        assert set(store.thumbnails(range(150))) == set(store.image_ids.tolist())
    assert (index / f"{DATABASE}.damaged-1").is_file()


@pytest.mark.parametrize(
    ("harm", "check"),
    [
        ("UPDATE concepts SET name = 'cat'", "dictionary"),
        ("UPDATE concepts SET atom = NULL WHERE concept_id = 1", "dictionary"),
        ("UPDATE concepts SET atom = list_transform(atom, lambda x: 'nan'::FLOAT)::FLOAT[256]", "dictionary"),
        ("UPDATE classes SET embedding = list_transform(embedding, lambda x: 0)::FLOAT[256]", "classes"),
        ("INSERT INTO means SELECT 'image', embedding FROM classes LIMIT 1", "dictionary"),
        ("UPDATE meta SET value = '2' WHERE key = 'format'", "database"),
        ("DELETE FROM meta WHERE key = 'format'", "database"),
        ("ALTER TABLE vectors ALTER embedding TYPE VARCHAR", "database"),
    ],
)
def test_what_cannot_be_derived_is_said_and_left_alone(run, index, harm, check):
    sql(index, harm)
    before = {p.name: p.read_bytes() for p in index.iterdir()}
    result = run("doctor", "--index", index, code=1)
    assert check in faults(index)
    assert "`sparsight index PATH`" in result.stdout
    assert "`sparsight index PATH`" in run("doctor", "--repair", "--index", index, code=1).stderr
    assert {p.name: p.read_bytes() for p in index.iterdir() if p.name in before} == before


@pytest.mark.parametrize("table", ["posting_blocks", "thumbnails", "vectors"])
def test_tables_of_damaged_blocks_are_made_anew_from_the_others(run, index, table):
    before = answers(index)
    flip_blocks_of(index, table)
    result = run("doctor", "--index", index, code=1)
    assert f"{table} cannot be read" in result.stdout
    assert faults(index) == {"database"}
    assert "damaged-1" in run("doctor", "--repair", "--index", index).stderr
    assert answers(index)[:3] == before[:3]
    assert (answers(index)[3] == before[3]) == (table != "thumbnails")
    assert (index / f"{DATABASE}.damaged-1").is_file()


def test_a_table_that_is_gone(index):
    before = answers(index)
    sql(index, "DROP TABLE thumbnails")
    assert faults(index) == {"database"}
    assert "lost 150 thumbnails: they cannot be read" in repair(index)
    assert faults(index) == set()
    assert answers(index)[:3] == before[:3]


def test_vectors_without_a_proven_copy_are_lost(run, index):
    flip_blocks_of(index, "vectors")
    (index / FILE).unlink()
    damaged = (index / DATABASE).read_bytes()
    assert "index PATH" in run("doctor", "--repair", "--index", index, code=1).stderr
    assert (index / DATABASE).read_bytes() == damaged


@pytest.mark.parametrize("harm", ["removed", "flipped", "cut", "empty", "another's"])
def test_the_dense_index_is_built_anew(index, harm):
    good = (index / FILE).read_bytes()
    bad = {
        "flipped": good[:500] + bytes([good[500] ^ 1]) + good[501:],
        "cut": good[:-1],
        "empty": b"",
        "another's": b"x",
    }
    (index / FILE).unlink()
    if harm in bad:
        (index / FILE).write_bytes(bad[harm])
    assert faults(index) == {"dense"}
    assert len(repair(index)) == 1
    assert (index / FILE).read_bytes() == good
    assert faults(index) == set()


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
    (index / FILE).unlink()
    (index / LOCK).unlink(missing_ok=True)
    before = {p.name: p.read_bytes() for p in index.iterdir()}
    os.chmod(index, stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert faults(index) == {"counts", "codes", "dense"}
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
