"""The doctor on tables that plain SQL has harmed: what can be derived is made anew, and the rest is said."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mending import answers, faults, held, sql

from indexer.store import DATABASE, Store
from indexer.store.lenient import open_leniently
from indexer.store.meta import COUNTS
from indexer.store.repair import repair


@pytest.fixture
def index(light_index, tmp_path) -> Path:
    return Path(shutil.copytree(light_index, tmp_path / "index"))


HARMS = {  # what is done to the tables → the checks that find it; each can be mended, and no picture is lost
    f"UPDATE meta SET value = 'many' WHERE key IN {COUNTS}": {"counts"},
    f"DELETE FROM meta WHERE key IN {COUNTS}": {"counts"},
    "UPDATE meta SET value = '151' WHERE key = 'n'": {"counts"},
    "UPDATE meta SET value = '1000000000000' WHERE key = 'n'": {"counts"},
    "UPDATE meta SET value = '3' WHERE key = 'd'": {"counts"},
    "UPDATE meta SET value = '1' WHERE key = 'nnz'": {"counts"},
    "UPDATE meta SET value = '7' WHERE key = 'next_id'": {"counts"},
    "UPDATE meta SET value = '149' WHERE key = 'vector_rows'": {"counts"},
    "UPDATE meta SET value = '151' WHERE key = 'vector_rows'": {"counts"},
    "UPDATE meta SET value = '7' WHERE key = 'vector_block'": {"counts"},
    "UPDATE meta SET value = '7' WHERE key = 'thumbnail_bytes'": {"counts"},
    "UPDATE meta SET value = '1000000000000' WHERE key = 'thumbnail_bytes'": {"thumbnails"},
    "UPDATE concepts SET images = images + 1 WHERE concept_id = 3": {"counts"},
    "UPDATE concepts SET images = NULL": {"counts", "postings"},
    "INSERT INTO images SELECT * FROM images WHERE image_id = 4": {"counts", "ids", "paths"},
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
    assert found >= HARMS[harm]
    assert found - {"codes"} == HARMS[harm] - {"codes"}
    repair(index)
    assert faults(index) == set()
    assert answers(index) == before
    assert repair(index) == []


@pytest.mark.parametrize(
    ("harm", "found", "left"),
    [
        ("UPDATE images SET path = (SELECT path FROM images WHERE image_id = 9) WHERE image_id = 5", {"paths"}, 149),
        ("UPDATE images SET path = NULL WHERE image_id = 5", {"paths"}, 149),
        ("UPDATE images SET image_id = 6 WHERE image_id = 5", {"ids"}, 148),
        ("UPDATE images SET image_id = -5 WHERE image_id = 5", {"ids"}, 149),
        ("UPDATE images SET vector_row = NULL WHERE image_id = 5", {"ids"}, 149),
        ("UPDATE images SET vector_row = 150 WHERE image_id = 5", {"ids"}, 149),
        ("UPDATE images SET vector_row = 2147483647 WHERE image_id = 5", {"ids"}, 149),
        ("UPDATE images SET vector_row = -1 WHERE image_id = 5", {"ids"}, 149),
        ("UPDATE images SET vector_row = 6 WHERE image_id = 5", {"ids"}, 148),
        ("UPDATE images SET image_id = NULL WHERE image_id = 5", {"ids"}, 149),
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


def test_every_count_of_the_meta_data_is_made_anew(light_index, index):
    with Store(light_index) as store:
        good = store.meta
    for key in COUNTS:
        sql(index, f"UPDATE meta SET value = '-1' WHERE key = '{key}'")
        store, differ = open_leniently(index)
        with store:
            history = {"generation": 0} if key == "generation" else {}
            assert store.meta == replace(good, **history)
        assert differ == [f"{key} is -1 in the meta data, {getattr(store.meta, key)} by the tables"]
        sql(index, f"UPDATE meta SET value = '{getattr(good, key)}' WHERE key = '{key}'")


@pytest.mark.parametrize(
    ("harm", "found", "left"),
    [
        ("DELETE FROM images WHERE image_id = 5", {"counts", "postings"}, {*range(150)} - {5}),
        (
            "UPDATE images SET image_id = 500 WHERE image_id = 5",
            {"counts", "ids", "postings"},
            {*range(150), 500} - {5},
        ),
    ],
)
def test_pictures_without_the_codes_and_codes_without_the_pictures_are_put_right(light_index, index, harm, found, left):
    sql(index, harm)
    assert faults(index) == found
    repair(index)
    assert faults(index) == set()
    with Store(index) as store, Store(light_index) as before:
        assert store.image_ids.tolist() == sorted(left)
        origin = [5 if i == 500 else i for i in sorted(left)]
        np.testing.assert_array_equal(store.embeddings(), before.embeddings()[origin])


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
        ("DROP TABLE vector_blocks", "database"),
        ("DELETE FROM vector_blocks", "vectors"),
        ("UPDATE vector_blocks SET crc = NULL", "vectors"),
        ("UPDATE vector_blocks SET crc = crc - 1", "vectors"),
        ("UPDATE meta SET value = 'vectors-2.f32' WHERE key = 'vectors_file'", "vectors"),
        ("UPDATE meta SET value = '../a' WHERE key = 'vectors_file'", "database"),
        ("UPDATE meta SET value = '[' WHERE key = 'coder'", "database"),
        ("DELETE FROM meta WHERE key = 'encoder_name'", "database"),
        ("ALTER TABLE images ALTER vector_row TYPE VARCHAR", "database"),
        ("DELETE FROM meta", "database"),
    ],
)
def test_what_cannot_be_derived_is_said_and_left_alone(run, index, harm, check):
    sql(index, harm)
    before = held(index)
    result = run("doctor", "--index", index, code=1)
    assert check in faults(index)
    assert "`sparsight index PATH`" in result.stdout
    assert "`sparsight index PATH`" in run("doctor", "--repair", "--index", index, code=1).stderr
    assert held(index) == before
