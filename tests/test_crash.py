"""Whatever stops a command, and whenever: there is the index from before it or the one from after it, and a re-run
ends where an undisturbed run does.

In CI a sample of the points at which a command can die; `make soak` takes every one, and 200 and more in all.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from killing import (
    NOBODY,
    SOAK,
    Job,
    Outcome,
    allow,
    become_nobody,
    check_whole,
    forbid,
    journaled,
    limit_files,
    run_job,
    state,
    unnumbered,
)
from PIL import Image

from indexer.store import DATABASE, ImageRow, Store
from indexer.store.chance import FILE as CHANCE
from indexer.store.journal import pending
from indexer.store.lock import HOLDER
from training.data.cifar10 import CLASSES

COMMANDS = ("index", "reindex", "add", "remove", "remove much", "compact")
SEED = 0


class Scene(NamedTuple):
    """A job undisturbed: the index folder before it; what that held, and what the job made of it; its steps, the first
    of them after which the new index stands; pictures that it encodes; seconds it takes; the names it leaves."""

    job: Job
    folder: Path
    before: dict | None
    after: dict
    settled: dict
    steps: tuple[str, ...]
    committed: int
    encoded: int
    seconds: float
    names: list[str]


@pytest.fixture(scope="module")
def scenes(pictures, small_encoder_dir) -> Iterator[dict[str, Scene]]:
    """One folder of pictures, and an index of what it held before some came, one changed, one moved, one went."""
    top = Path(tempfile.mkdtemp())  # not below pytest's own, which nobody else may enter
    top.chmod(0o755)
    root = top / "pictures"

    second = itertools.count(1_600_000_000)  # each file has a time of change of its own, long ago

    def put(i: int, name: str) -> None:
        path = root / CLASSES[pictures.labels[i]] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures.pixels[i]).save(path)
        os.utime(path, (now := next(second), now))

    for i in range(10):
        put(i, f"{i:03d}.png")
    made = Job("index", top / "made", root, small_encoder_dir)
    assert run_job(made).kind == "done"
    gone = replace(made, command="remove", targets=("2",))
    assert run_job(gone).kind == "done"
    for i in range(10, 18):
        put(i, f"{i:03d}.png")
    put(20, "000.png")
    (root / CLASSES[1] / "001.png").rename(root / CLASSES[1] / "moved.png")
    put(4, "a copy.png")
    (root / CLASSES[5] / "damaged.png").write_bytes(b"no picture")

    found = {}
    for name in COMMANDS:
        work = top / name
        if name == "index":
            (top / "none").mkdir()
        folder = top / ("none" if name == "index" else "made")
        command = {"reindex": "index", "remove much": "remove"}.get(name, name)
        targets = {"remove": ("3",), "remove much": ("3", "4", "5")}.get(name, ())  # a third: the files are compacted
        job = replace(made, command=command, folder=work, targets=targets)
        shutil.copytree(folder, work)
        outcome = run_job(job)
        assert outcome.kind == "done", outcome
        check_whole(work)
        found[name] = Scene(
            job=job,
            folder=folder,
            before=state(folder),
            after=state(work),
            settled=state(work, generation=False),
            steps=outcome.steps,
            committed=outcome.steps.index(f"after replace {DATABASE}") + 1,
            encoded=outcome.encoded,
            seconds=outcome.seconds,
            names=sorted(unnumbered(p) for p in work.iterdir()),
        )
        assert found[name].before != found[name].after
    yield found
    shutil.rmtree(top)


@pytest.fixture
def fresh(scenes):
    """Puts the index folder of a scene back as it was before the job."""

    def restore(scene: Scene) -> Path:
        work = scene.job.folder
        if work.exists():
            allow(work)
            shutil.rmtree(work)
        shutil.copytree(scene.folder, work)
        return work

    return restore


def check_settled(scene: Scene, found: dict, exact: bool) -> None:
    """What an undisturbed run makes; not bit by bit where the encoder's batches or threads were others."""
    if exact:
        assert found == scene.settled
        return
    for key in ("ids", "classes", "skipped"):
        assert found[key] == scene.settled[key]
    images = [[row[: ImageRow._fields.index("l1")] for row in s["images"]] for s in (found, scene.settled)]
    assert images[0] == images[1]
    X, expected = (np.frombuffer(s["X"], np.float32) for s in (found, scene.settled))
    np.testing.assert_allclose(X, expected, atol=1e-5)


def check_after(scene: Scene, *, at: int = 0, done: bool = False, exact: bool = True) -> str:
    """Old or new, as it has to be; then a re-run goes on, clears up and ends where an undisturbed run does.

    at: the step (from 1) that was the last one; 0 where it is not known. done: the command had answered. Returns which
    state was found, and whether the re-run had less to encode.
    """
    work = scene.job.folder
    check_whole(work)
    found = state(work)
    is_new = found == scene.after if exact else found != scene.before
    assert is_new or found == scene.before, "neither the state before nor the one after"
    if done:
        assert is_new, "acknowledged, and not there"
    elif at:
        assert is_new == (at >= scene.committed), f"wrong state when stopped {scene.steps[at - 1]}"
    kept = journaled(work)
    if at and not is_new:
        assert len(pending(work)) >= scene.steps[:at].count("after add"), "a batch that was kept is lost"
    again = run_job(scene.job)
    if is_new and scene.job.command == "remove":
        assert "names no picture" in again.text
    else:
        assert again.kind == "done", again
        left = 0 if is_new and scene.job.command == "add" else scene.encoded - len(kept)
        assert again.encoded == left, "encodes what was journaled"
    check_whole(work)
    check_settled(scene, state(work, generation=False), exact)
    assert sorted(unnumbered(p) for p in work.iterdir()) == scene.names, "left behind"
    with Store(work) as store:
        meta = store.meta
        assert (work / meta.vectors_file).stat().st_size == 4 * meta.d * meta.vector_rows, "bytes left behind"
        assert (work / meta.thumbnails_file).stat().st_size == meta.thumbnail_bytes, "bytes left behind"
    return f"{'new' if is_new else 'old'}{', went on' if kept and again.encoded < scene.encoded else ''}"


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
def test_a_kill_leaves_the_old_state_or_the_new(scenes, fresh, command):
    scene = scenes[command]
    rng = random.Random(f"{SEED} {command}")
    points = range(1, len(scene.steps) + 1)
    kills: list[tuple[int, float | None]] = [
        (k, None) for k in (points if SOAK else (scene.committed, rng.choice(points)))
    ]
    kills += [(0, rng.uniform(0, scene.seconds)) for _ in range(20 if SOAK else 1)]
    tally: Counter[str] = Counter()
    for k, delay in kills:
        fresh(scene)
        outcome = run_job(scene.job, k, delay=delay)
        assert delay is not None or outcome.kind == "killed"
        tally[check_after(scene, at=k, done=outcome.kind == "done")] += 1
    figures = ", ".join(f"{n} {what}" for what, n in sorted(tally.items()))
    print(f"{command:<8} {len(kills)} kills ({len(kills) - (20 if SOAK else 1)} at named steps): {figures}")


@pytest.mark.parametrize("step", ["after append_vectors", "after append_thumbnails", "before replace index.duckdb"])
def test_what_lies_beyond_the_recorded_length_is_not_there(scenes, fresh, step):
    """Rows of a writer that died stay in the files; nobody reads them, and the next addition writes over them."""
    scene = scenes["add"]
    work = fresh(scene)
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


def test_files_of_no_index_are_swept_by_the_next_writer(scenes, fresh):
    """As a build or a compaction leaves them that dies before its database takes its place; no other file goes."""
    scene = scenes["remove"]
    work = fresh(scene)
    for name in ("vectors-7.f32", "thumbnails-7.bin", ".vectors-8.f32.1.part", ".index.duckdb.1.part.wal", "mine.txt"):
        (work / name).write_bytes(b"left")
    assert state(work) == scene.before
    assert run_job(scene.job).kind == "done"
    assert state(work) == scene.after
    assert sorted(unnumbered(p) for p in work.iterdir()) == sorted([*scene.names, "mine.txt"])
    (work / "mine.txt").unlink()


# Other ways to fail: one line says what, the earlier state stands, and the re-run makes good.


def check_refused(scene: Scene, outcome: Outcome) -> None:
    assert outcome.kind == "fault", outcome
    assert str(scene.job.folder) in outcome.text
    assert "\n" not in outcome.text


SIZES = (0, 2_000, 40_000, 600_000, "as now", "and a bit")


@pytest.mark.parametrize(
    ("command", "size"),
    [(c, s) for c in COMMANDS for s in SIZES if SOAK or c == "add" or s == "as now"],
)
def test_a_full_disk(scenes, fresh, command, size):
    scene = scenes[command]
    work = fresh(scene)
    if isinstance(size, str):  # DuckDB's log fits, the blocks that it becomes do not
        size = (scenes["add"].folder / DATABASE).stat().st_size + (size != "as now") * 2**18
    outcome = run_job(scene.job, start=partial(limit_files, size))
    if outcome.kind == "done":
        assert state(work) == scene.after
    else:
        check_refused(scene, outcome)
        assert state(work) == scene.before
    check_after(scene, done=outcome.kind == "done")


@pytest.mark.parametrize(
    ("command", "step"),
    [
        ("add", "before append_vectors"),
        ("add", "before append_thumbnails"),
        ("add", "before COMMIT"),
        ("compact", "after copyfile"),
        ("reindex", "before publish thumbnails-N.bin"),
    ],
)
def test_a_disk_that_fills_up_midway(scenes, fresh, command, step):
    scene = scenes[command]
    work = fresh(scene)
    outcome = run_job(scene.job, scene.steps.index(step) + 1, partial(limit_files, 1000))
    check_refused(scene, outcome)
    assert state(work) == scene.before
    check_after(scene)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root of Linux mounts")
@pytest.mark.parametrize("room", [100_000, 1_200_000, 2_500_000])
def test_a_full_file_system(scenes, fresh, room):
    scene = scenes["add"]
    held = sum(f.stat().st_size for f in scene.folder.iterdir())
    work = scene.job.folder
    shutil.rmtree(work)
    work.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={held + room}", "none", work], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        shutil.copytree(scene.folder, work, dirs_exist_ok=True)
        outcome = run_job(scene.job)
        check_refused(scene, outcome)
        assert state(work) == scene.before
        check_whole(work)
        subprocess.run(["mount", "-o", "remount,size=64m", work], check=True)
        check_after(scene)
    finally:
        subprocess.run(["umount", work], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written(scenes, fresh, command):
    scene = scenes[command]
    work = fresh(scene)
    allow(work)
    forbid(work)
    outcome = run_job(scene.job, start=become_nobody)
    check_refused(scene, outcome)
    assert "Permission denied" in outcome.text
    allow(work)
    check_after(scene)


def some_steps(scene: Scene, n: int) -> list[int]:
    """Steps (from 1): a few in CI, one of them just before and one just after the new index stands; all in soak."""
    every = list(range(1, len(scene.steps) + 1))
    edge = [scene.committed - 1, scene.committed]
    return every if SOAK else sorted({*edge, *random.Random(SEED).sample(every, n)})


@pytest.mark.parametrize("command", COMMANDS if SOAK else ("reindex", "remove"))
def test_a_folder_whose_permission_is_lost_midway(scenes, fresh, command):
    scene = scenes[command]
    for k in some_steps(scene, 3):
        work = fresh(scene)
        allow(work)
        outcome = run_job(scene.job, k, partial(forbid, work), start=partial(give_away, work))
        allow(work)
        if k < scene.committed:
            check_refused(scene, outcome)
        else:  # the dense index is a cache: one that cannot be written is made anew later
            assert outcome.kind == "done", outcome
        check_after(scene, at=k)


def give_away(folder: Path) -> None:
    """The folder is its writer's, who is not root."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    become_nobody()


@pytest.mark.parametrize("command", COMMANDS if SOAK else ("index", "add"))
def test_a_folder_that_is_deleted_midway(scenes, fresh, command):
    scene = scenes[command]
    for k in some_steps(scene, 3):
        work = fresh(scene)
        outcome = run_job(scene.job, k, partial(shutil.rmtree, work))
        assert "was deleted" in outcome.text or (outcome.kind == "done" and k >= scene.committed), scene.steps[k - 1]
        assert not (work / DATABASE).exists(), scene.steps[k - 1]


@pytest.mark.parametrize("send", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", COMMANDS if SOAK else ("reindex", "add"))
def test_a_signal_at_any_moment(scenes, fresh, command, send):
    scene = scenes[command]
    rng = random.Random(f"{SEED} {command} {send}")
    for _ in range(10 if SOAK else 2):
        fresh(scene)
        outcome = run_job(scene.job, delay=rng.uniform(0, scene.seconds), send=send)
        assert outcome.kind in ("done", "interrupted" if send == signal.SIGINT else "killed"), outcome
        check_after(scene, done=outcome.kind == "done")
        assert outcome.kind != "interrupted" or not list(scene.job.folder.glob(".*.part*"))


def test_a_picture_that_is_replaced_between_planning_and_commit(scenes, fresh, pictures):
    """What was read is what is indexed, and the next addition sees the change."""
    scene = scenes["add"]
    work = fresh(scene)
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


def test_ctrl_c_while_duckdb_works(scenes, fresh):
    """DuckDB answers a signal with an error of its own."""
    scene = scenes["compact"]
    fresh(scene)
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


def test_ctrl_c_keeps_the_journal(scenes, fresh):
    """Through the real command line, once there is something to keep."""
    scene = scenes["add"]
    work = fresh(scene)
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
