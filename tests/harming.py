"""The damage sweep: copies of an index are harmed in child processes, asked all that a person can ask, and made whole
again. A crash or a hang of a child is a failed trial.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import pickle
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import faiss
import numpy as np

from indexer.store import Journal
from indexer.store.lock import HOLDER, LOCK
from search.index import Index
from training.encoders import open_encoder
from training.errors import SparsightError

SECONDS = 30  # what a trial may take

Ask = Callable[[Path], bytes]
Harm = Callable[[Path], object]


def with_leftovers(index: Path, folder: Path) -> Path:
    """A copy of an index with a batch that waits, and the note of a writer."""
    folder = Path(shutil.copytree(index, folder))
    hashes = [f"new {i}" for i in range(3)]
    Journal(folder, open_encoder()).add(hashes, np.eye(3, 256, dtype=np.float32), [b"1", b"22", b"333"])
    (folder / HOLDER).write_text('{"command": "add", "process": 1, "host": "h", "since": "then"}')
    (folder / LOCK).touch()
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
    """Runs trials in children until all are done, a new child after each that dies; returns what each came to.

    A trial that killed its child is tried once more: a fork of a process that has threads may stand still by itself.
    """
    expected, outcomes, left = ask(index), {}, dict(trials)
    died: set[str] = set()
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
            if running in died:
                outcomes[running] = "the process died or hung"
            died.add(running)
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


def of_duckdb(*statements: str) -> Callable[[Path], None]:
    """What makes or changes a database."""

    def make(path: Path) -> None:
        with duckdb.connect(str(path)) as con:
            for statement in statements:
                con.execute(statement)

    return make
