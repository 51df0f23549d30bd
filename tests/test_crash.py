"""Whatever stops a command, and whenever: there is the index from before it or the one from after it, and a re-run
ends where an undisturbed run does.

In CI a sample of the points at which a command can die; `make soak` takes every one, and 200 and more in all.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest
from killing import (
    SOAK,
    journaled,
    run_job,
    state,
    unnumbered,
)
from PIL import Image
from scenes import COMMANDS, SEED, Scene, check_after, played, restore

from indexer.store import DATABASE, Store
from indexer.store.chance import FILE as CHANCE
from indexer.store.lock import HOLDER
from training.data.cifar10 import CLASSES


@pytest.fixture(scope="module")
def scenes(pictures, small_encoder_dir) -> Iterator[dict[str, Scene]]:
    with played(pictures, small_encoder_dir) as found:
        yield found


def published(name: str) -> list[str]:
    return [f"publish {name}", *replaced(name)]


def replaced(name: str) -> list[str]:
    return ["fsync", f"replace {name}", "fsync"]


BATCHES = {"index": 5, "reindex": 5, "add": 4}
ENCODED = ["encode", "add", "write_whole", *replaced("KEY-N.batch")]
TRANSACTION = ["COMMIT", "DETACH"]
FILES = [*published("vectors-N.f32"), *published("thumbnails-N.bin")]
GROWN = ["append_vectors", "fsync", "append_thumbnails", "fsync"]
COMPACTED = [*FILES, *TRANSACTION, "replace .index.duckdb.N.part"]
SWEPT = ["unlink thumbnails-N.bin", "unlink vectors-N.f32"]
STEPS = {
    "index": [*FILES, *TRANSACTION, *published(DATABASE), *replaced(CHANCE)],
    "reindex": [*FILES, *TRANSACTION, *published(DATABASE), *SWEPT, *replaced(CHANCE)],
    "add": ["copyfile", *GROWN, *TRANSACTION, *published(DATABASE), *replaced(CHANCE)],
    "remove": ["copyfile", *TRANSACTION, *published(DATABASE)],
    "remove much": ["copyfile", *TRANSACTION, *COMPACTED, *published(DATABASE), *SWEPT],
    "compact": ["copyfile", *COMPACTED, *published(DATABASE), *SWEPT],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_steps_are_all_that_a_command_does_to_the_disk(scenes, command):
    """A function that is moved, or no longer called, would take its kill points with it."""
    n = BATCHES.get(command, 0)
    cleared = ["clear", *["unlink KEY-N.batch"] * n] if n else []
    expected = [*replaced(".holder.json"), *ENCODED * n, *STEPS[command], *cleared, "unlink .holder.json"]
    steps = scenes[command].steps
    assert [s.removeprefix("before ") for s in steps if s.startswith("before ")] == expected
    assert Counter(s.removeprefix("after ") for s in steps if s.startswith("after ")) == Counter(expected)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_kill_leaves_the_old_state_or_the_new(scenes, command):
    scene = scenes[command]
    rng = random.Random(f"{SEED} {command}")
    points = range(1, len(scene.steps) + 1)
    kills: list[tuple[int, float | None]] = [
        (k, None) for k in (points if SOAK else (scene.committed, rng.choice(points)))
    ]
    kills += [(0, rng.uniform(0, scene.seconds)) for _ in range(20 if SOAK else 1)]
    tally: Counter[str] = Counter()
    for k, delay in kills:
        restore(scene)
        outcome = run_job(scene.job, k, delay=delay)
        assert delay is not None or outcome.kind == "killed"
        tally[check_after(scene, at=k, done=outcome.kind == "done")] += 1
    figures = ", ".join(f"{n} {what}" for what, n in sorted(tally.items()))
    print(f"{command:<8} {len(kills)} kills ({len(kills) - (20 if SOAK else 1)} at named steps): {figures}")


@pytest.mark.parametrize("step", ["after append_vectors", "after append_thumbnails", "before replace index.duckdb"])
def test_what_lies_beyond_the_recorded_length_is_not_there(scenes, step):
    """Rows of a writer that died stay in the files; nobody reads them, and the next addition writes over them."""
    scene = scenes["add"]
    work = restore(scene)
    run_job(scene.job, scene.steps.index(step) + 1)
    with Store(work) as store:
        meta = store.meta
        assert (work / meta.vectors_file).stat().st_size > 4 * meta.d * meta.vector_rows
        assert len(store.vectors) == meta.vector_rows
    for name in (meta.vectors_file, meta.thumbnails_file):
        with (work / name).open("ab") as f:
            f.write(b"garbage" * 1000)
    assert state(work) == scene.before
    check_after(scene)


def test_files_of_no_index_are_swept_by_the_next_writer(scenes):
    """As a build or a compaction leaves them that dies before its database takes its place; no other file goes."""
    scene = scenes["remove"]
    work = restore(scene)
    for name in ("vectors-7.f32", "thumbnails-7.bin", ".vectors-8.f32.1.part", ".index.duckdb.1.part.wal", "mine.txt"):
        (work / name).write_bytes(b"left")
    assert state(work) == scene.before
    assert run_job(scene.job).kind == "done"
    assert state(work) == scene.after
    assert sorted(unnumbered(p) for p in work.iterdir()) == sorted([*scene.names, "mine.txt"])
    (work / "mine.txt").unlink()


@pytest.mark.parametrize("send", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", COMMANDS if SOAK else ("reindex", "add"))
def test_a_signal_at_any_moment(scenes, command, send):
    scene = scenes[command]
    rng = random.Random(f"{SEED} {command} {send}")
    for _ in range(10 if SOAK else 2):
        restore(scene)
        outcome = run_job(scene.job, delay=rng.uniform(0, scene.seconds), send=send)
        assert outcome.kind in ("done", "interrupted" if send == signal.SIGINT else "killed"), outcome
        check_after(scene, done=outcome.kind == "done")
        assert outcome.kind != "interrupted" or not list(scene.job.folder.glob(".*.part*"))


def test_a_picture_that_is_replaced_between_planning_and_commit(scenes, pictures):
    """What was read is what is indexed, and the next addition sees the change."""
    scene = scenes["add"]
    work = restore(scene)
    path = scene.job.root / CLASSES[pictures.labels[12]] / "012.png"
    was, status, other = path.read_bytes(), path.stat(), path.with_name("no picture yet")
    Image.fromarray(pictures.pixels[40]).save(other, "PNG")
    k = scene.steps.index("before copyfile") + 1
    try:
        assert run_job(scene.job, k, partial(shutil.copyfile, other, path)).kind == "done"
        assert state(work) == scene.after
        assert run_job(scene.job).encoded == 1
    finally:
        path.write_bytes(was)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.unlink()
    (held,) = (row for row in state(work)["images"] if row.path == str(path))
    (was_held,) = (row for row in scene.after["images"] if row.path == str(path))
    assert held.image_id > max(scene.after["ids"])
    assert held.content_hash != was_held.content_hash


def test_ctrl_c_while_duckdb_works(scenes):
    """DuckDB answers a signal with an error of its own."""
    scene = scenes["compact"]
    restore(scene)
    run = [sys.executable, "-c", SLOW, "compact", "--index", scene.job.folder]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == "Error: interrupted"
    check_after(scene)


SLOW = """
import os, signal, threading, duckdb
from indexer.cli import builds
signal.signal(signal.SIGINT, signal.default_int_handler)  # what was started in the background ignores it
connect = duckdb.connect
class Slow:
    def __init__(self, con):
        self.con = con
    def __getattr__(self, name):
        return getattr(self.con, name)
    def execute(self, sql, *args):
        if sql.startswith("COPY"):
            self.con.execute("SET threads = 1")  # else another's work may keep it from looking for signals
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            self.con.execute("SELECT max(md5(range::VARCHAR)) FROM range(10000000000)")
        return self.con.execute(sql, *args)
duckdb.connect = lambda *args, **settings: Slow(connect(*args, **settings))
builds()
"""


def test_ctrl_c_keeps_the_journal(scenes):
    """Through the real command line, once there is something to keep."""
    scene = scenes["add"]
    work = restore(scene)
    run = [sys.executable, "-c", STOPPED, "add", scene.job.root, "--index", work, "--device", "cpu"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "Error: interrupted"
    assert not (work / HOLDER).exists()
    assert len(journaled(work)) == scene.encoded
    check_after(scene, exact=False)


STOPPED = """
import os, signal
from indexer.cli import builds
from indexer.store.journal import Journal
signal.signal(signal.SIGINT, signal.default_int_handler)
add = Journal.add
def stopped(self, *batch):
    add(self, *batch)
    os.kill(os.getpid(), signal.SIGINT)
Journal.add = stopped
builds()
"""
