"""Commands that run in a child process and die, or meet trouble, at a named step or at any moment; and what an index
folder has to look like then.

The child is forked from a server that has imported everything once. In it, and nowhere else, the functions that touch
the disk are wrapped, so that the k-th step of a command can be told and counted. Production code knows nothing of it.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from indexer.store import DATABASE, Store
from indexer.store.dense import FILE, open_dense
from indexer.store.journal import pending, read_batch

SOAK = bool(os.environ.get("SPARSIGHT_SOAK"))
BATCH = 4
BLOCK = 4  # rows of the small encoder's embeddings with one checksum
NOBODY = 65534

fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(["tests.warmed"])  # by its whole name: the server knows no path of pytest's


@dataclass(frozen=True)
class Job:
    """A command on an index folder: index, add (of the pictures below `root`), remove (of targets), compact."""

    command: str
    folder: Path
    root: Path
    encoder: Path
    targets: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """kind: done, fault (refused in one line, `text`), interrupted, killed, bug (a traceback) · steps: their names, in
    order, each once before and once after it · encoded: pictures that went through the encoder · seconds it took."""

    kind: str
    text: str = ""
    steps: tuple[str, ...] = ()
    encoded: int = 0
    seconds: float = 0.0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def limit_files(size: int) -> None:
    """No file may grow beyond this: writes fail as they do on a full disk. Python ignores SIGXFSZ."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def become_nobody() -> None:
    """Permissions mean nothing to root."""
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def forbid(folder: Path) -> None:
    """Takes the right to write from a folder and what is below it."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            path.chmod(0o555)


def allow(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)


def run_job(
    job: Job,
    k: int = 0,
    action: Callable[[], object] = die,
    *,
    start: Callable[[], object] | None = None,
    delay: float | None = None,
    send: signal.Signals = signal.SIGKILL,
) -> Outcome:
    """Runs a job in a child; `action` is done at its k-th step (from 1), or a signal sent after a delay in seconds.

    start: what the child does when it has loaded the encoder, before the command.
    """
    receive, answer = fork.Pipe(duplex=False)
    process = fork.Process(target=_child, args=(job, k, action, start, answer))
    process.start()
    answer.close()
    try:
        assert receive.recv() == "ready"
        if delay is not None:
            time.sleep(delay)
            with suppress(ProcessLookupError):  # it has ended
                os.kill(process.pid, send)
        outcome = receive.recv()
    except (EOFError, OSError):
        outcome = Outcome("killed")
    process.join()
    assert outcome.kind != "bug", outcome.text
    sent = signal.SIGKILL if delay is None else send
    assert outcome.kind != "killed" or process.exitcode == -sent, f"exit code {process.exitcode}"
    return outcome


def _child(job: Job, k: int, action: Callable, start: Callable | None, answer: Any) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    import faiss
    import torch
    from tqdm import tqdm

    from indexer.store import vectors
    from training.encoders import open_encoder
    from training.errors import SparsightError

    vectors.BLOCK_BYTES = 4 * 32 * BLOCK
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    encoder = open_encoder(str(job.encoder))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored
    steps = Steps(k, action)
    steps.install(encoder)
    if start is not None:
        start()
    begun = time.monotonic()
    try:
        answer.send("ready")
        perform(job, encoder)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late
        kind, text = "done", ""
    except SparsightError as e:
        kind, text = "fault", str(e)
    except KeyboardInterrupt:
        kind, text = "interrupted", ""
    except BaseException:
        kind, text = "bug", traceback.format_exc()
    answer.send(Outcome(kind, text, tuple(steps.names), steps.encoded, time.monotonic() - begun))


def perform(job: Job, encoder: Any) -> None:
    from indexer.build import index_folder
    from indexer.config import IndexConfig
    from indexer.update import add_pictures, compact, remove_pictures

    if job.command == "index":
        index_folder(job.folder, job.root, encoder, IndexConfig(batch_size=BATCH), labels=True)
    elif job.command == "add":
        add_pictures(job.folder, [job.root], encoder, batch_size=BATCH)
    elif job.command == "remove":
        remove_pictures(job.folder, job.targets)
    else:
        compact(job.folder)


class Steps:
    """Wraps what a command does to the disk, and its encoder: each call is a step, counted before and after it."""

    def __init__(self, k: int, action: Callable[[], object]):
        self.names: list[str] = []
        self.encoded = 0
        self._k, self._action = k, action

    def install(self, encoder: Any) -> None:
        import duckdb

        from indexer import build
        from indexer.store import dense, journal, thumbnails, vectors, writer

        for owner, name in (
            (os, "fsync"),
            (os, "replace"),
            (os, "unlink"),
            (writer, "copyfile"),
            (writer, "append_vectors"),
            (writer, "append_thumbnails"),
            (writer, "publish"),
            (vectors, "publish"),
            (thumbnails, "publish"),
            (journal, "write_whole"),
            (dense, "write_whole"),
            (journal.Journal, "add"),
            (journal.Journal, "clear"),
            (build, "open_dense"),
        ):
            setattr(owner, name, self._wrapped(name, getattr(owner, name)))
        connect, encode = duckdb.connect, encoder.encode_images
        duckdb.connect = lambda *args, **kwargs: _Connection(connect(*args, **kwargs), self)

        def encode_images(pixels: np.ndarray) -> np.ndarray:
            self.encoded += len(pixels)
            return encode(pixels)

        object.__setattr__(encoder, "encode_images", self._wrapped("encode", encode_images))

    def _wrapped(self, name: str, function: Callable) -> Callable:
        def step(*args: Any, **kwargs: Any) -> Any:
            named = {"replace": 1, "publish": 1, "unlink": 0}.get(name)
            at = name if named is None else f"{name} {unnumbered(args[named])}"
            self.reach(f"before {at}")
            result = function(*args, **kwargs)
            self.reach(f"after {at}")
            return result

        return step

    def reach(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self._k:
            self._action()


class _Connection:
    """A DuckDB connection whose ends of transactions and of files are steps."""

    def __init__(self, con: Any, steps: Steps):
        self._con, self._steps = con, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)

    def execute(self, sql: str, *args: Any) -> Any:
        word = sql.split()[0]
        if word not in ("COMMIT", "DETACH"):
            return self._con.execute(sql, *args)
        self._steps.reach(f"before {word}")
        result = self._con.execute(sql, *args)
        self._steps.reach(f"after {word}")
        return result


def state(folder: Path, *, generation: bool = True) -> dict[str, object] | None:
    """Everything that an index says, as values that compare; None where there is no index."""
    if not (folder / DATABASE).exists():
        return None
    with Store(folder) as store:
        W = store.codes()
        ids = store.image_ids.tolist()
        history = set() if generation else {"generation", "vectors_file", "thumbnails_file"}
        return {
            "meta": {k: v for k, v in vars(store.meta).items() if k not in history},
            "ids": ids,
            "images": store.images(),
            "X": store.embeddings().tobytes(),
            "W": (W.indptr.tolist(), W.indices.tolist(), W.data.tobytes()),
            "concepts": store.concepts(),
            "classes": store.classes().names,
            "thumbnails": store.thumbnails(ids),
            "skipped": store.skipped(),
        }


def check_whole(folder: Path) -> None:
    """No file is half-written under a final name, the index agrees with itself, both searches with brute force."""
    for batch in pending(folder):
        read_batch(batch)  # raises where it is not whole
    if (folder / FILE).exists():
        data = (folder / FILE).read_bytes()
        assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    if (folder / DATABASE).exists():
        copy = folder.with_name(f"{folder.name}-read")  # a reader makes a stale dense index anew
        shutil.copytree(folder, copy)
        with Store(copy) as store:
            check_store(store)
        shutil.rmtree(copy)


def data_files(folder: Path) -> set[str]:
    """The files of a folder that are not hidden."""
    return {p.name for p in folder.iterdir() if not p.name.startswith(".")}


def check_store(store: Store, k: int = 5, *, on_disk: bool = True) -> None:
    """An open index agrees with itself; its dense and its sparse answers are those of numpy over its vectors.

    on_disk: its files are still in the folder; a newer index may have taken their place.
    """
    from search.inverted import Inverted

    ids, X, W, D = store.image_ids, store.embeddings(), store.codes(), store.dictionary()
    n = len(store)
    assert n == len(ids) == len(X) == len(store.images()) == len({row.path for row in store.images()})
    assert ids.tolist() == [row.image_id for row in store.images()]
    assert store.vectors.damaged_blocks() == []
    if on_disk:
        assert store.meta.vector_rows * store.d * 4 <= (store.folder / store.meta.vectors_file).stat().st_size
    assert len(set(store.vector_rows.tolist())) == n
    assert set(store.thumbnails(ids.tolist())) == set(ids.tolist())
    assert store.meta.nnz == W.nnz
    assert store.meta.next_id > max(ids, default=-1)
    assert [c.images for c in store.concepts()] == np.bincount(W.indices, minlength=len(D)).tolist()
    if not n:
        return
    k = min(k, n)
    queries = np.concatenate([X[:3], D[:3]])
    scores, found = open_dense(store).search(queries, k)
    check_best(queries @ X.T, np.searchsorted(ids, found), scores, k)
    engine = Inverted(store.packed, ids=ids)
    for q in D[:3]:
        best = engine.search(D @ q, k)
        assert set(best.ids) <= set(ids)
        check_best((W @ (D @ q))[None], np.searchsorted(ids, best.ids)[None], best.scores[None], k)


def unnumbered(path: str | os.PathLike[str]) -> str:
    """The name of a file without the numbers of processes, generations and batches."""
    return re.sub(r"(?<=[-.])\d+", "N", re.sub(r"[0-9a-f]{16}", "KEY", Path(path).name))


def check_best(all_scores: np.ndarray, rows: np.ndarray, scores: np.ndarray, k: int, atol: float = 1e-5) -> None:
    """What was found has its true score, and nothing that was not found has a better one."""
    np.testing.assert_allclose(np.take_along_axis(all_scores, rows, 1), scores, atol=atol)
    np.testing.assert_allclose(-np.sort(-all_scores, 1)[:, :k], scores, atol=atol)
    assert all(len(set(row)) == k for row in rows.tolist())


def journaled(folder: Path) -> set[str]:
    """Content hashes of the pictures that are encoded but not committed."""
    return {h for batch in pending(folder) for h in read_batch(batch)[0]}
