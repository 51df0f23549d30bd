"""Whatever happens to the files of an index, it answers as before or says what is wrong.

With SPARSIGHT_SOAK=1 every 64th byte of the files is tried.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
from harming import Harm, check, flip, of_duckdb, put, sweep, with_leftovers

from indexer.store import DATABASE, Journal, Store, writing
from indexer.store.dense import FILE, open_dense
from indexer.store.journal import pending
from indexer.store.lock import HOLDER, LOCK
from training.encoders import open_encoder
from training.errors import SparsightError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SOAK = bool(os.environ.get("SPARSIGHT_SOAK"))
HEADERS, BLOCK = 3 * 4096, 262144  # DuckDB's: the file's header and the database's two, then blocks
VECTORS, THUMBNAILS = "vectors-1.f32", "thumbnails-1.bin"


@pytest.fixture(scope="module")
def index(light_index, tmp_path_factory) -> Path:
    return with_leftovers(light_index, tmp_path_factory.mktemp("damage") / "index")


@pytest.fixture(scope="module")
def cached_index(index, tmp_path_factory) -> Path:
    """The same with a dense index of FAISS's, and its cache."""
    folder = Path(shutil.copytree(index, tmp_path_factory.mktemp("cached") / "index"))
    with duckdb.connect(str(folder / DATABASE)) as con:
        con.execute("UPDATE meta SET value = 'SQ8' WHERE key = 'dense_factory'")
    with Store(folder) as store:
        open_dense(store)
    assert (folder / FILE).is_file()
    return folder


def some_bytes(data: bytes, n: int) -> list[int]:
    if SOAK:
        return list(range(0, len(data), 64))
    return sorted(np.random.default_rng(0).choice(len(data), min(n, len(data)), replace=False).tolist())


def test_a_crash_and_an_exception_are_told_from_an_answer(index, tmp_path):
    def answer(folder: Path) -> bytes:
        kind = (folder / "kind").read_text() if (folder / "kind").is_file() else ""
        if kind == "crash":
            os.abort()
        if kind == "exception":
            raise ValueError(kind)
        return kind.encode()

    kinds = {
        "crash": "the process died or hung",
        "exception": "ValueError: exception",
        "other": "other answers",
        "": "same",
    }
    trials: dict[str, Harm] = {k: lambda folder, k=k: (folder / "kind").write_text(k) for k in kinds}
    assert sweep(index, tmp_path, trials, answer) == kinds


def test_flipped_bytes_of_the_database(index, tmp_path):
    data, rng = (index / DATABASE).read_bytes(), np.random.default_rng(1)
    headers = [i for i in range(HEADERS) if data[i] or i % 4096 < 16 or (i < 144 and i % 4 == 0)]
    blocks = range((len(data) - HEADERS) // BLOCK)
    starts = [HEADERS + b * BLOCK + i for b in blocks for i in (0, 8, 12, 16, 40, 300, 2000)]
    places = sorted({*headers, *starts, *some_bytes(data, 250)})
    trials = {f"{at}": flip(DATABASE, at, int(rng.integers(8))) for at in places}
    outcomes = sweep(index, tmp_path, trials)
    check(outcomes)
    refused = [int(name) for name, outcome in outcomes.items() if outcome != "same"]
    assert any(at < HEADERS for at in refused), "a flip in the headers was seen"
    assert len({(at - HEADERS) // BLOCK for at in refused if at >= HEADERS}) > 3, "flips in several blocks were seen"


@pytest.mark.parametrize("name", [VECTORS, THUMBNAILS])
def test_flipped_bytes_of_the_embeddings_and_thumbnails(index, tmp_path, name):
    """Each is of a row that counts, so that each is noticed."""
    data = (index / name).read_bytes()
    places = sorted({*range(0, 60, 4), *range(len(data) - 70, len(data), 7), len(data) - 1, *some_bytes(data, 60)})
    outcomes = sweep(index, tmp_path, {f"{at}": flip(name, at, at % 8) for at in places})
    assert all("damaged: " in outcome and name[:7] in outcome for outcome in outcomes.values()), outcomes


def test_flipped_bytes_of_the_dense_index(cached_index, tmp_path):
    data = (cached_index / FILE).read_bytes()
    places = sorted({*range(0, 60, 4), *range(len(data) - 70, len(data), 7), *some_bytes(data, 20)})
    outcomes = sweep(cached_index, tmp_path, {f"{at}": flip(FILE, at, at % 8) for at in places})
    assert set(outcomes.values()) == {"same"}, "it is built again"


def test_truncated_and_lengthened_files(cached_index, tmp_path):
    trials: dict[str, Harm] = {}
    index, data = cached_index, (VECTORS, THUMBNAILS)
    for name in (DATABASE, FILE, *data):
        size = (index / name).stat().st_size
        cuts = {0, 1, 8, 100, 4095, 4096, 8192, HEADERS - 1, HEADERS, size // 3, size // 2, size - 4096, size - 1}
        if name == DATABASE:
            cuts |= {HEADERS + b * BLOCK + extra for b in range(size // BLOCK) for extra in (0, 1000)}
        for cut in sorted(c for c in cuts if 0 <= c < size):
            trials[f"{name} cut at {cut}"] = put(name, lambda data, cut=cut: data[:cut])
        for more in (b"\0", b"x" * 5000, b"\0" * BLOCK):
            trials[f"{name} and {len(more)} bytes"] = put(name, lambda data, more=more: data + more)
        trials[f"{name} zeroed in its middle"] = put(name, lambda d: d[: len(d) // 3] + b"\0" * 9000 + d[len(d) // 3 :])
        trials[f"{name} without it"] = lambda folder, name=name: (folder / name).unlink()
    outcomes = sweep(index, tmp_path, trials)
    check(outcomes)
    for name, outcome in outcomes.items():
        if name.startswith(FILE) or (name.startswith(data) and " and " in name):
            assert outcome == "same", f"{name}: a cache, or bytes beyond those that count"
        elif name.startswith(data):
            assert "refused" in outcome, name


def _sqlite(path: Path) -> None:
    with sqlite3.connect(path) as con:
        con.execute("CREATE TABLE meta (key, value)")
        con.execute("INSERT INTO meta VALUES ('format', '3')")
    con.close()


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("a", "b" * 999)


META = "CREATE TABLE meta AS SELECT * FROM (VALUES ('format', '4'), ('n', '5'), ('d', '4'), ('m', '2'), ('nnz', '1'), "
META += "('next_id', '5'), ('vector_rows', '5'), ('generation', '1')) t(key, value)"
FOREIGN: dict[str, Callable[[Path], object]] = {
    "text": lambda p: p.write_text("no database\n" * 999),
    "nothing": lambda p: p.touch(),
    "zip": _zip,
    "sqlite": _sqlite,
    "another database": of_duckdb("CREATE TABLE t AS SELECT 1 AS a"),
    "a meta table of another": of_duckdb("CREATE TABLE meta AS SELECT 3 AS format"),
    "meta alone": of_duckdb(META),
    "tables of other columns": of_duckdb(META, "CREATE TABLE images AS SELECT 1 AS image_id"),
    "folder": lambda p: (p / "x").mkdir(parents=True),
    "pipe": lambda p: os.mkfifo(p),
    "link to nothing": lambda p: p.symlink_to("nowhere"),
    "link to itself": lambda p: p.symlink_to(p.name),
    "link to a device": lambda p: p.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("name", [DATABASE, VECTORS, THUMBNAILS, FILE, HOLDER, LOCK])
def test_something_else_under_a_file_s_name(cached_index, tmp_path, name):
    def place(make: Callable[[Path], object]) -> Harm:
        def harm(folder: Path) -> None:
            (folder / name).unlink()
            make(folder / name)

        return harm

    outcomes = sweep(cached_index, tmp_path, {kind: place(make) for kind, make in FOREIGN.items()})
    check(outcomes)
    assert {outcome == "same" for outcome in outcomes.values()} == {name in (FILE, HOLDER, LOCK)}


def test_a_damaged_batch_is_encoded_again_and_a_whole_one_is_taken(index, tmp_path):
    encoder, whole = open_encoder(), {f"new {i}" for i in range(3)}
    (path,) = pending(index)
    name, size = str(path.relative_to(index)), path.stat().st_size

    def take(folder: Path) -> bytes:
        journal = Journal(folder, encoder)
        held = sorted(h for h in whole if h in journal)
        return repr((held, journal.vectors(held).tolist(), list(journal.thumbnails(held)))).encode() if held else b""

    def none_or_all(folder: Path) -> bytes:
        return take(folder) or expected

    expected = take(index)
    trials: dict[str, Harm] = {f"{at}": flip(name, at, at % 8) for at in some_bytes(path.read_bytes(), 250)}
    trials |= {
        f"cut at {cut}": put(name, lambda d, cut=cut: d[:cut]) for cut in (0, 1, 31, 32, 33, size // 2, size - 1)
    }
    trials["longer"] = put(name, lambda d: d + b"\0" * 40)
    for kind, make in FOREIGN.items():
        trials[kind] = lambda folder, make=make: [(folder / name).unlink(), make(folder / name)]
        trials[f"{kind} for its folder"] = lambda folder, make=make: [
            shutil.rmtree((folder / name).parent),
            make((folder / name).parent),
        ]
    outcomes = sweep(index, tmp_path, trials, none_or_all)
    assert set(outcomes.values()) == {"same"}, check(outcomes)


def test_the_lock_outlives_damage_to_its_files(index, tmp_path):
    def write(folder: Path) -> bytes:
        """Takes the lock, is told by another who holds it, whatever the holder's note says, and lets go."""
        with writing(folder, "test"):
            note = (folder / HOLDER).read_bytes()
            for at in range(-1, len(note)):
                if at >= 0:
                    flip(HOLDER, at, at % 8)(folder)
                said = "being changed by" if at >= 0 else "being changed by `sparsight test`"
                with pytest.raises(SparsightError, match=said), writing(folder, "other"):
                    pass
        assert not os.path.lexists(folder / HOLDER)
        return b"written"

    source = shutil.copytree(index, tmp_path / "source")
    place = lambda name, make: lambda folder: [(folder / name).unlink(missing_ok=True), make(folder / name)]  # noqa: E731
    trials = {f"{kind} as {name}": place(name, make) for kind, make in FOREIGN.items() for name in (HOLDER, LOCK)}
    check(sweep(source, tmp_path, trials, write))
