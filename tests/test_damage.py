"""The damage sweep: whatever happens to the files of an index, it answers as before or says what is wrong.

Every trial harms a copy of a real index, asks it all that a person can, and mends the copy again. Trials run in child
processes: a crash or a hang there is a failed trial. With SPARSIGHT_SOAK=1 every 64th byte of the files is tried.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import pickle
import select
import shutil
import signal
import sqlite3
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import duckdb
import faiss
import numpy as np
import pytest

from indexer.store import DATABASE, Journal, Store, writing
from indexer.store.dense import FILE, open_dense
from indexer.store.journal import pending
from indexer.store.lock import HOLDER, LOCK
from indexer.store.meta import COUNTS, IndexMeta
from search.index import Index
from training.encoders import open_encoder
from training.errors import SparsightError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SOAK = bool(os.environ.get("SPARSIGHT_SOAK"))
HEADERS, BLOCK = 3 * 4096, 262144  # DuckDB's: the file's header and the database's two, then blocks
SECONDS = 30  # what a trial may take
VECTORS, THUMBNAILS = "vectors-1.f32", "thumbnails-1.bin"

Ask = Callable[[Path], bytes]
Harm = Callable[[Path], object]


@pytest.fixture(scope="module")
def index(light_index, tmp_path_factory) -> Path:
    """An index with a batch that waits, and the note of a writer."""
    folder = Path(shutil.copytree(light_index, tmp_path_factory.mktemp("damage") / "index"))
    hashes = [f"new {i}" for i in range(3)]
    Journal(folder, open_encoder()).add(hashes, np.eye(3, 256, dtype=np.float32), [b"1", b"22", b"333"])
    (folder / HOLDER).write_text('{"command": "add", "process": 1, "host": "h", "since": "then"}')
    (folder / LOCK).touch()
    return folder


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


def ask(folder: Path) -> bytes:
    """All that is asked of an index without an encoder, as bytes that can be compared."""
    t = np.random.default_rng(3).normal(size=256).astype(np.float32)
    t /= np.linalg.norm(t)
    with Index(folder) as s:
        name = max(s.concepts(), key=lambda c: c.images).name
        hits = [s.search_vector(t, 7, "dense"), s.search_vector(t, 7, "sparse"), s.search(concepts=name, k=5)]
        store = s.store
        rows = [store.images([3, 77]), store.images(), store.skipped(), store.thumbnails(range(150))]
        codes = [(ids.tolist(), weights.tolist()) for ids, weights in store.codes_of([3, 77])]
        classes = store.classes()
        arrays = [store.embeddings_of([3, 77]), store.embeddings(), s.D, classes.T]
        classified = classes.names, store.means(), s.classify("12"), s.explain("12"), s.near_concepts(name, 3)
        said = repr((hits, rows, codes, classified)).encode() + b"".join(np.asarray(a).tobytes() for a in arrays)
        return hashlib.sha256(said).digest()


class Copy:
    """A copy of an index that is harmed and made whole again."""

    def __init__(self, source: Path, folder: Path):
        self.folder = Path(shutil.copytree(source, folder))
        self.whole = {p: p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}

    @contextmanager
    def harmed(self, harm: Harm) -> Iterator[Path]:
        harm(self.folder)
        yield self.folder
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path not in self.whole and not (path.is_dir() and any(w.is_relative_to(path) for w in self.whole)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path, data in self.whole.items():
            if path.is_dir():
                shutil.rmtree(path)
            path.parent.mkdir(exist_ok=True)
            if not path.is_file() or path.read_bytes() != data:
                path.unlink(missing_ok=True)
                path.write_bytes(data)


def sweep(index: Path, tmp_path: Path, trials: dict[str, Harm], ask: Ask = ask) -> dict[str, str]:
    """Runs trials in children until all are done, a new child after each that dies; returns what each came to."""
    expected, outcomes, left = ask(index), {}, dict(trials)
    copy = Copy(index, tmp_path / "copy")
    while left:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            _child(copy, left, expected, ask, writer)
        os.close(writer)
        results, running = _listen(reader, pid)
        outcomes |= results
        if running is not None and running not in results:
            outcomes[running] = "the process died or hung"
            shutil.rmtree(copy.folder)
            copy = Copy(index, tmp_path / "copy")
        left = {name: harm for name, harm in left.items() if name not in outcomes}
        assert results or running is not None, "a child did nothing"
    return outcomes


def _child(copy: Copy, trials: dict[str, Harm], expected: bytes, ask: Ask, writer: int) -> None:
    code = 1
    try:
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        faiss.omp_set_num_threads(1)  # OpenMP's threads do not outlive a fork
        with os.fdopen(writer, "wb") as out:
            for name, harm in trials.items():
                pickle.dump((name, None), out)
                out.flush()
                with copy.harmed(harm) as folder:
                    try:
                        outcome = "same" if ask(folder) == expected else "other answers"
                    except SparsightError as e:
                        outcome = f"refused: {e}" if str(e) and "\n" not in str(e) else f"no line: {e}"
                    except BaseException as e:
                        outcome = f"{type(e).__name__}: {e}"
                pickle.dump((name, outcome), out)
                out.flush()
        code = 0
    finally:
        os._exit(code)


def _listen(reader: int, pid: int) -> tuple[dict[str, str], str | None]:
    """What a child says of each trial, and the last one that it began."""
    results: dict[str, str] = {}
    running, deadline = None, time.monotonic() + SECONDS
    with os.fdopen(reader, "rb", buffering=0) as said:
        while select.select([said], [], [], max(0, deadline - time.monotonic()))[0]:
            try:
                name, outcome = pickle.load(said)
            except EOFError:
                break
            if outcome is None:
                running, deadline = name, time.monotonic() + SECONDS
            else:
                results[name] = outcome
        else:
            os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return results, running


def flip(name: str, at: int, bit: int) -> Harm:
    def harm(folder: Path) -> None:
        with (folder / name).open("rb+") as f:
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ 1 << bit]))

    return harm


def put(name: str, change: Callable[[bytes], bytes]) -> Harm:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def check(outcomes: dict[str, str]) -> None:
    bad = {name: outcome for name, outcome in outcomes.items() if outcome != "same" and "refused" not in outcome}
    assert not bad, f"{len(bad)} of {len(outcomes)}: {dict(list(bad.items())[:10])}"


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


def _duckdb(*statements: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with duckdb.connect(str(path)) as con:
            for statement in statements:
                con.execute(statement)

    return make


META = "CREATE TABLE meta AS SELECT * FROM (VALUES ('format', '4'), ('n', '5'), ('d', '4'), ('m', '2'), ('nnz', '1'), "
META += "('next_id', '5'), ('vector_rows', '5'), ('generation', '1')) t(key, value)"
FOREIGN: dict[str, Callable[[Path], object]] = {
    "text": lambda p: p.write_text("no database\n" * 999),
    "nothing": lambda p: p.touch(),
    "zip": _zip,
    "sqlite": _sqlite,
    "another database": _duckdb("CREATE TABLE t AS SELECT 1 AS a"),
    "a meta table of another": _duckdb("CREATE TABLE meta AS SELECT 3 AS format"),
    "meta alone": _duckdb(META),
    "tables of other columns": _duckdb(META, "CREATE TABLE images AS SELECT 1 AS image_id"),
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


def _storage_version(folder: Path, version: int) -> None:
    """Writes another storage version into the file's header, and DuckDB's checksum of that."""
    path = folder / DATABASE
    data = bytearray(path.read_bytes())
    data[12:20] = struct.pack("<Q", version)
    checksum = 5381
    for (word,) in struct.iter_unpack("<Q", data[8:4096]):
        checksum ^= word * 0xBF58476D1CE4E5B9 & 2**64 - 1
    data[:8] = struct.pack("<Q", checksum)
    path.write_bytes(data)


def test_other_versions_are_refused(index, tmp_path):
    def set_format(value: str) -> Harm:
        return lambda folder: _duckdb(f"UPDATE meta SET value = '{value}' WHERE key = 'format'")(folder / DATABASE)

    trials = {f"format {value}": set_format(value) for value in ("1", "2", "3", "99", "three", "-3", "3.0", "9" * 5000)}
    trials |= {f"storage {v}": lambda folder, v=v: _storage_version(folder, v) for v in (1, 63, 66, 999, 2**63)}
    trials["storage of this DuckDB"] = _newest_storage
    outcomes = sweep(index, tmp_path, trials)
    check(outcomes)
    assert all("refused" in o for name, o in outcomes.items() if name not in ("storage of this DuckDB", "storage 66"))


def _newest_storage(folder: Path) -> None:
    """The same tables in the newest storage format that the installed DuckDB writes."""
    new = folder / "new.duckdb"
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{folder / DATABASE}' AS old (READ_ONLY)")
        con.execute(f"ATTACH '{new}' AS new (STORAGE_VERSION 'latest')")
        con.execute("COPY FROM DATABASE old TO new")
    new.replace(folder / DATABASE)


KEYS = [f.name for f in fields(IndexMeta)]
PARSED = ("vectors_file", "thumbnails_file", "templates", "coder", "dense_factory")
EDITS = [
    *(f"UPDATE meta SET value = '{v}' WHERE key = '{k}'" for k in COUNTS
      for v in ("-1", "0", "1", "7", "151", "2147483647", "1000000000000", "x")),
    *(f"UPDATE meta SET value = '{v}' WHERE key = '{k}'" for k in PARSED
      for v in ("", "null", '{"l1": "x"}', '{"a": 1}', "[" * 5000, "..", DATABASE, VECTORS, "a' || chr(0) || 'b")),
    *(f"UPDATE meta SET value = {v} WHERE key = '{k}'" for k in KEYS for v in ("NULL", "''", "chr(0)")),
    *(f"DELETE FROM meta WHERE key = '{k}'" for k in (*KEYS, "format")),
    *(f"UPDATE images SET {c} = {v} WHERE image_id = 3" for c in ("vector_row", "thumbnail_start", "thumbnail_bytes",
      "thumbnail_crc") for v in ("NULL", "0", "4", "149", "150", "2147483647")),
    "UPDATE images SET vector_row = 149 - vector_row",
    *(f"UPDATE images SET {c} = -1 WHERE image_id = 3" for c in ("vector_row", "thumbnail_start", "thumbnail_bytes")),
    "UPDATE images SET thumbnail_start = 9223372036854775807",
    *(f"UPDATE vector_blocks SET {c} = {v}" for c in ("block", "crc") for v in ("NULL", "7", "0")),
    "INSERT INTO vector_blocks SELECT 1, 1",
    "UPDATE meta SET value = NULL",
    "INSERT INTO meta VALUES (NULL, NULL), ('n', '9')",
    *(f"DELETE FROM {t}" for t in ("images", "vector_blocks", "concepts", "classes", "posting_blocks", "meta")),
    *(f"DELETE FROM {t} WHERE {c} = 3" for t, c in (("images", "image_id"),
      ("concepts", "concept_id"), ("classes", "class_id"), ("posting_blocks", "concept_id"))),
    *(f"UPDATE {t} SET {c} = {v}" for t, c in (("images", "image_id"), ("images", "vector_row"),
      ("concepts", "concept_id"), ("classes", "class_id"), ("posting_blocks", "concept_id"))
      for v in ("NULL", "3", f"{c} + 1", f"-{c}", "2147483647")),
    *(f"UPDATE {t} SET {c} = NULL" for t, c in (("images", "path"), ("images", "label"), ("images", "l1"),
      ("concepts", "name"), ("concepts", "aliases"), ("concepts", "parent"),
      ("concepts", "images"), ("concepts", "atom"), ("classes", "name"), ("classes", "embedding"))),
    *(f"UPDATE posting_blocks SET {c} = {v}"
      for c in ("tier", "step", "lift", "bits", "first", "last", "count", "width")
      for v in ("NULL", "0", "1", "100")),
    *(f"UPDATE posting_blocks SET words = {v}" for v in ("NULL", "[]", "[NULL]", "[0]", "list_concat(words, words)",
      "list_transform(words, lambda w: 4294967295::UINTEGER)")),
    "UPDATE posting_blocks SET step = 'inf'",
    "INSERT INTO posting_blocks SELECT * FROM posting_blocks",
    *(f"UPDATE {t} SET {c} = list_transform({c}, lambda x: {v})::FLOAT[256]" for t, c in (
      ("concepts", "atom"), ("classes", "embedding")) for v in ("'nan'::FLOAT", "'inf'::FLOAT", "NULL", "0")),
    "INSERT INTO images SELECT * FROM images",
    "INSERT INTO vector_blocks SELECT * FROM vector_blocks",
    "INSERT INTO means SELECT 'image', embedding FROM classes LIMIT 1",
    "INSERT INTO means SELECT unnest(['image', 'text']), NULL",
    "INSERT INTO skipped VALUES (NULL, NULL)",
    *(f"DROP TABLE {t}"
      for t in ("meta", "images", "vector_blocks", "concepts", "classes", "means", "skipped")),
    "ALTER TABLE vector_blocks ALTER crc TYPE VARCHAR",
    "ALTER TABLE images DROP path",
    "ALTER TABLE images ADD COLUMN more VARCHAR",
    "ALTER TABLE meta ALTER value TYPE BLOB USING value::BLOB",
    "ALTER TABLE posting_blocks ALTER words TYPE VARCHAR",
    "DROP VIEW postings",
]  # fmt: skip


def test_edited_tables_give_no_traceback(index, tmp_path):
    """What plain SQL changed is no damage that a checksum tells; it may be believed, but never be the end of it."""
    edit = lambda statement: lambda folder: _duckdb(statement)(folder / DATABASE)  # noqa: E731
    outcomes = sweep(index, tmp_path, {statement: edit(statement) for statement in EDITS})
    check({name: outcome for name, outcome in outcomes.items() if outcome != "other answers"})


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
