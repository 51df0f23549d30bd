"""The files beside the database, byte by byte: embeddings with a checksum a block, thumbnails with one each."""

from __future__ import annotations

import os
import zlib
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from contents import unit_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.store.thumbnails import Place, Places, Thumbnails, append_thumbnails, write_thumbnails
from indexer.store.vectors import DamagedVectors, Gathered, Vectors, append_vectors, write_vectors

X = unit_rows(60, 3, np.random.default_rng(0))


def crcs_of(rows: np.ndarray, block: int) -> np.ndarray:
    """The checksums by block, written down once more."""
    return np.array([zlib.crc32(rows[i : i + block].tobytes()) for i in range(0, len(rows), block)], np.uint32)


def written(folder: Path, rows: np.ndarray, block: int) -> Vectors:
    path = folder / "vectors-1.f32"
    count, crcs = write_vectors(path, rows, rows.shape[1], block)
    return Vectors(path, count, rows.shape[1], block, crcs)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 7), st.binary(max_size=9))
def test_any_sequence_of_additions_is_one_write(sizes, block, garbage):
    with TemporaryDirectory() as name:
        path, ends = Path(name) / "vectors-1.f32", np.cumsum(sizes)
        count, crcs = write_vectors(path, X[: sizes[0]], 3, block)
        for start, stop in pairwise(ends):
            with path.open("ab") as f:
                f.write(garbage)  # of a writer that died
            with closing(Vectors(path, count, 3, block, crcs)) as held:
                count, crcs = append_vectors(held, X[start:stop])
        total = int(ends[-1])
        assert count == total
        np.testing.assert_array_equal(crcs, crcs_of(X[:total], block))
        assert path.read_bytes() == X[:total].tobytes()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), st.integers(1, 9), st.data())
def test_checksums_slices_and_rows_are_numpys(count, block, data):
    rows = X[:count]
    with TemporaryDirectory() as name, closing(written(Path(name), rows, block)) as vectors:
        assert len(vectors) == count
        first = data.draw(st.integers(0, count))
        np.testing.assert_array_equal(vectors.checksums(first), crcs_of(rows[:first], block))
        bounds = st.one_of(st.none(), st.integers(-count - 2, count + 2))
        part = slice(data.draw(bounds), data.draw(bounds))
        np.testing.assert_array_equal(vectors[part], rows[part])
        some = data.draw(st.lists(st.integers(0, count - 1), max_size=8)) if count else []
        np.testing.assert_array_equal(vectors.take(np.array(some, np.int64)), rows[some])
        size = data.draw(st.integers(1, 12))
        pieces = list(vectors.scan(size))
        assert [start for start, _ in pieces] == list(range(0, count, size))
        np.testing.assert_array_equal(np.concatenate([rows[:0], *(piece for _, piece in pieces)]), rows)
        gathered = Gathered(vectors, np.array(some, np.int64))
        assert gathered.shape == (len(some), 3) == gathered[:].shape
        np.testing.assert_array_equal(gathered[part], rows[some][part])
        assert vectors.damaged_blocks() == []


@pytest.mark.parametrize("count", [1, 8, 11])
def test_damage_to_any_byte_is_found_by_whoever_reads_that_block_and_by_no_other(tmp_path, count):
    block, rows = 4, X[:count]
    vectors = written(tmp_path, rows, block)
    crcs = vectors.checksums(count)
    vectors.close()
    good = vectors.path.read_bytes()
    for at in range(len(good)):
        vectors.path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        hit = at // (3 * 4)
        with closing(Vectors(vectors.path, count, 3, block, crcs)) as read:
            with pytest.raises(DamagedVectors, match=rf"rows {hit // block * block} … "):
                read[hit : hit + 1]
            with pytest.raises(DamagedVectors):
                read.take(np.array([hit]))
            with pytest.raises(DamagedVectors):
                list(read.scan(2))
            assert read.damaged_blocks() == [hit // block]
            others = np.setdiff1d(np.arange(count), np.arange(hit // block * block, hit // block * block + block))
            np.testing.assert_array_equal(read.take(others), rows[others])


def test_a_block_is_checked_once_more_where_the_whole_file_is(tmp_path):
    with closing(written(tmp_path, X[:8], 4)) as vectors:
        np.testing.assert_array_equal(vectors[:], X[:8])
        with vectors.path.open("rb+") as f:
            f.seek(20)
            f.write(b"\x7f")
        assert vectors.damaged_blocks() == [0]


def test_an_addition_does_not_bless_a_damaged_block(tmp_path):
    """It computes the checksum of the block that grows: damage in that one must not become what it says."""
    with closing(written(tmp_path, X[:6], 4)) as vectors:
        data = bytearray(vectors.path.read_bytes())
        data[5 * 12] ^= 1
        vectors.path.write_bytes(data)
        with pytest.raises(DamagedVectors, match="rows 4 … 5"):
            append_vectors(vectors, X[6:7])
        assert vectors.path.read_bytes() == data


def test_rows_that_were_read_outlive_the_file(tmp_path):
    vectors = written(tmp_path, X[:8], 4)
    rows = vectors[2:7]
    vectors.close()
    vectors.path.unlink()
    np.testing.assert_array_equal(rows, X[2:7])


@pytest.mark.parametrize("more", [b"", b"x", b"\0" * 999])
def test_what_lies_beyond_the_rows_that_count_is_not_there(tmp_path, more):
    vectors = written(tmp_path, X[:10], 4)
    crcs = vectors.checksums(7)
    vectors.close()
    with vectors.path.open("ab") as f:
        f.write(more)
    with closing(Vectors(vectors.path, 7, 3, 4, crcs)) as read:
        assert read.damaged_blocks() == []
        np.testing.assert_array_equal(read[:], X[:7])


def test_a_short_file_and_too_few_checksums_are_damage(tmp_path):
    vectors = written(tmp_path, X[:10], 4)
    crcs = vectors.checksums(10)
    vectors.close()
    for wrong in (crcs[:2], np.append(crcs, crcs[:1])):
        with pytest.raises(DamagedVectors, match=r"checksums for 10 rows"):
            Vectors(vectors.path, 10, 3, 4, wrong)
    os.truncate(vectors.path, 119)
    with pytest.raises(DamagedVectors, match="has 119 bytes, 120 were written"):
        Vectors(vectors.path, 10, 3, 4, crcs)


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path):
    path = tmp_path / "vectors-1.f32"
    with pytest.raises(ValueError, match="expected rows of 4 dimensions"):
        write_vectors(path, X, 4, 5)
    assert not path.exists()


@pytest.mark.parametrize("opens", [lambda p: Vectors(p, 0, 3, 4, np.zeros(0, np.uint32)), lambda p: Thumbnails(p, 0)])
def test_a_pipe_and_a_folder_are_no_files(tmp_path, opens):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(OSError, match="it is not a file"):
            opens(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        opens(tmp_path / "none")


JPEGS = st.lists(st.one_of(st.none(), st.binary(max_size=20)), max_size=6)


@settings(deadline=None, max_examples=60)
@given(st.lists(JPEGS, min_size=1, max_size=4), st.binary(max_size=9))
def test_every_thumbnail_is_where_it_is_said_to_be(batches, garbage):
    with TemporaryDirectory() as name:
        path = Path(name) / "thumbnails-1.bin"
        size, first = write_thumbnails(path, batches[0], len(batches[0]))
        places = [first]
        for batch in batches[1:]:
            with path.open("ab") as f:
                f.write(garbage)
            size, more = append_thumbnails(path, size, batch, len(batch))
            places.append(more)
        every = [jpeg for batch in batches for jpeg in batch]
        assert path.read_bytes() == b"".join(jpeg for jpeg in every if jpeg is not None)
        joined = Places(*(np.concatenate(column) for column in zip(*places, strict=True)))
        assert size == path.stat().st_size
        with closing(Thumbnails(path, size)) as thumbnails:
            for jpeg, start, length, crc in zip(every, *map(np.ndarray.tolist, joined), strict=True):
                assert (start < 0) == (jpeg is None)
                if jpeg is not None:
                    assert thumbnails.read(Place(start, length, crc)) == jpeg


def test_a_damaged_thumbnail_is_none_and_its_neighbours_are_whole(tmp_path):
    path, jpegs = tmp_path / "thumbnails-1.bin", [b"first", b"second", b"third"]
    size, (start, length, crc) = write_thumbnails(path, jpegs, 3)
    places = [Place(*map(int, row)) for row in zip(start, length, crc, strict=True)]
    good = path.read_bytes()
    for at in range(size):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with closing(Thumbnails(path, size)) as thumbnails:
            hit = int(np.searchsorted(start, at, side="right")) - 1
            expected = [None if i == hit else jpeg for i, jpeg in enumerate(jpegs)]
            assert [thumbnails.read(place) for place in places] == expected
    path.write_bytes(good)
    with closing(Thumbnails(path, size)) as thumbnails:
        for place in (Place(-1, 5, crc[0]), Place(0, size + 1, 0), Place(size, 1, 0), Place(0, -1, 0), Place(0, 5, 0)):
            assert thumbnails.read(place) is None


def test_a_short_file_of_thumbnails_is_refused_or_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "thumbnails-1.bin"
    size, (start, length, crc) = write_thumbnails(path, [b"first", b"second"], 2)
    os.truncate(path, size - 1)
    with pytest.raises(ValueError, match="has 10 bytes, 11 were written"):
        Thumbnails(path, size)
    with closing(Thumbnails(path, size, check=False)) as thumbnails:
        first, second = (Place(*map(int, row)) for row in zip(start, length, crc, strict=True))
        assert (thumbnails.read(first), thumbnails.read(second)) == (b"first", None)
