"""One writer and many readers: whoever opens an index, and whenever, sees one committed state; a second writer waits.

The writer adds and removes whole groups of pictures, a folder each, which is their label: in a committed state, and in
no other, every group is whole.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from killing import SOAK, Job, check_store, fork, run_job, state
from PIL import Image

from indexer.store import Store
from indexer.store.lock import writing

SECONDS = 60 if SOAK else 5
GROUPS, SIZE, READERS = 6, 4, 4


@pytest.fixture
def job(pictures, small_encoder_dir, tmp_path) -> Job:
    """An index of three of the groups."""
    root = tmp_path / "pictures"

    def put(groups: range) -> None:
        for group in groups:
            (root / f"group {group}").mkdir(parents=True)
            for i in range(group * SIZE, (group + 1) * SIZE):
                Image.fromarray(pictures.pixels[i]).save(root / f"group {group}" / f"{i}.png")

    put(range(3))
    job = Job("index", tmp_path / "index", root, small_encoder_dir)
    assert run_job(job).kind == "done"
    put(range(3, GROUPS))
    return job


def write(job: Job, until: float, pipe: Any) -> None:
    """Adds a group, removes a group, and so on; sends the number of changes."""
    import torch
    from indexer.add import add_pictures
    from indexer.change import remove_pictures

    from training.encoders import open_encoder

    torch.set_num_threads(1)
    encoder = open_encoder(str(job.encoder))
    rng, there, changes = random.Random(0), {0, 1, 2}, 0
    while time.time() < until:
        group = rng.randrange(GROUPS)
        folder = job.root / f"group {group}"
        if group in there:
            assert len(remove_pictures(job.folder, [str(folder)])) == SIZE
        else:
            assert len(add_pictures(job.folder, [folder], encoder).ids) == SIZE
        there ^= {group}
        changes += 1
    pipe.send(changes)


def read(job: Job, until: float, pipe: Any) -> None:
    """Opens and checks the index again and again; sends the reads, and the states seen: generation → groups."""
    import faiss

    faiss.omp_set_num_threads(1)
    reads, states = 0, {}
    while time.time() < until:
        with Store(job.folder) as store:
            groups = Counter(r["label"] for r in store.images())
            assert set(groups.values()) <= {SIZE}, groups
            assert states.setdefault(int(store.meta["generation"]), groups) == groups
            check_store(store)
        reads += 1
    pipe.send((reads, states))


def hold(job: Job, until: float, pipe: Any) -> None:
    """Opens the index once and reads it again and again: its state is one, whatever has taken its place meanwhile."""
    reads = 0
    with Store(job.folder) as store:
        first = store.embeddings().tobytes(), store.codes().data.tobytes(), store.images()
        while time.time() < until:
            assert (store.embeddings().tobytes(), store.codes().data.tobytes(), store.images()) == first
            vars(store).pop("packed", None)
            reads += 1
        assert not store.is_current()
        check_store(store)
    pipe.send(reads)


def test_readers_see_committed_states_while_a_writer_changes_them(job):
    until = time.time() + SECONDS + 2  # the processes need some to start
    running = []
    for what in (write, hold, *[read] * READERS):
        receive, send = fork.Pipe(duplex=False)
        process = fork.Process(target=what, args=(job, until, send))
        process.start()
        send.close()
        running.append((process, receive))
    answers = []
    for process, receive in running:
        process.join(SECONDS + 60)
        assert process.exitcode == 0
        answers.append(receive.recv())
    changes, held, *seen = answers
    states: dict[int, Counter] = {}
    for _, some in seen:
        assert all(states.setdefault(g, groups) == groups for g, groups in some.items()), "readers differ"
    reads = [n for n, _ in seen]
    print(f"{sum(reads)} reads by {READERS} readers, {changes} commits, {len(states)} states seen, {held} re-reads")
    assert changes > 3
    assert min(reads) > 3
    assert len(states) > 3
    with Store(job.folder) as store:
        assert int(store.meta["generation"]) == 1 + changes


def sparsight(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "indexer", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_second_writer_is_refused_by_name(job):
    before = state(job.folder)
    with writing(job.folder, "add"):
        for command in ("remove 0", "compact"):
            refused = sparsight(*command.split(), "--index", job.folder)
            assert refused.returncode == 1
            assert len(refused.stderr.splitlines()) == 1
            assert f"`sparsight add` (process {os.getpid()} on {socket.gethostname()}, since" in refused.stderr
        assert state(job.folder) == before, "readers need no lock"
    done = sparsight("remove", "0", "--json", "--index", job.folder)
    assert json.loads(done.stdout)["id"] == 0


def lock_and_wait(folder: Path, pipe: Any) -> None:
    with writing(folder, "add"):
        pipe.send("locked")
        signal.pause()


def test_a_killed_writers_lock_is_free(job):
    receive, send = fork.Pipe(duplex=False)
    process = fork.Process(target=lock_and_wait, args=(job.folder, send))
    process.start()
    assert receive.recv() == "locked"
    process.kill()
    process.join()
    done = sparsight("remove", "0", "--index", job.folder)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in job.folder.iterdir() if not p.name.startswith(".lock")} == {"dense.faiss", "index.duckdb"}
