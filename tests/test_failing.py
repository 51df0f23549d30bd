"""Ways to fail that are no kill: one line says what, the earlier state stands, and the re-run makes good.

In CI a sample of the points at which a disk fills up or a permission is lost; `make soak` takes every one.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from killing import NOBODY, SOAK, allow, become_nobody, check_whole, forbid, limit_files, run_job, state
from scenes import COMMANDS, SEED, Scene, check_after, check_refused, played, restore

from indexer.store import DATABASE


@pytest.fixture(scope="module")
def scenes(pictures, small_encoder_dir) -> Iterator[dict[str, Scene]]:
    with played(pictures, small_encoder_dir) as found:
        yield found


SIZES = (0, 2_000, 40_000, 600_000, "as now", "and a bit")


@pytest.mark.parametrize(
    ("command", "size"),
    [(c, s) for c in COMMANDS for s in SIZES if SOAK or c == "add" or s == "as now"],
)
def test_a_full_disk(scenes, command, size):
    scene = scenes[command]
    work = restore(scene)
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
def test_a_disk_that_fills_up_midway(scenes, command, step):
    scene = scenes[command]
    work = restore(scene)
    outcome = run_job(scene.job, scene.steps.index(step) + 1, partial(limit_files, 1000))
    check_refused(scene, outcome)
    assert state(work) == scene.before
    check_after(scene)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root of Linux mounts")
@pytest.mark.parametrize("room", [100_000, 1_200_000, 2_500_000])
def test_a_full_file_system(scenes, room):
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
def test_a_folder_that_cannot_be_written(scenes, command):
    scene = scenes[command]
    work = restore(scene)
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
def test_a_folder_whose_permission_is_lost_midway(scenes, command):
    scene = scenes[command]
    for k in some_steps(scene, 3):
        work = restore(scene)
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
def test_a_folder_that_is_deleted_midway(scenes, command):
    scene = scenes[command]
    for k in some_steps(scene, 3):
        work = restore(scene)
        outcome = run_job(scene.job, k, partial(shutil.rmtree, work))
        assert "was deleted" in outcome.text or (outcome.kind == "done" and k >= scene.committed), scene.steps[k - 1]
        assert not (work / DATABASE).exists(), scene.steps[k - 1]
