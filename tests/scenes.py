"""Commands on an index, each played once undisturbed; and what has to hold after one that was not."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from killing import Job, Outcome, allow, check_whole, journaled, run_job, state, unnumbered
from PIL import Image

from indexer.store import DATABASE, ImageRow, Store
from indexer.store.journal import pending
from training.data.cifar10 import CLASSES, Pictures

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


@contextmanager
def played(pictures: Pictures, encoder: Path) -> Iterator[dict[str, Scene]]:
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
    made = Job("index", top / "made", root, encoder)
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


def restore(scene: Scene) -> Path:
    """Puts the index folder of a scene back as it was before the job."""
    work = scene.job.folder
    if work.exists():
        allow(work)
        shutil.rmtree(work)
    shutil.copytree(scene.folder, work)
    return work


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


def check_refused(scene: Scene, outcome: Outcome) -> None:
    assert outcome.kind == "fault", outcome
    assert str(scene.job.folder) in outcome.text
    assert "\n" not in outcome.text
