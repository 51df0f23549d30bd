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
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from killing import SOAK, Job, check_store, data_files, fork, run_job, state
from PIL import Image

from indexer.store import Store
from indexer.store.lock import HOLDER, writing
from training.errors import SparsightError

ENOUGH = 200 if SOAK else 12  # commits
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


def write(job: Job, stop: Path, pipe: Any) -> None:
    """Adds a group, removes a group, and so on, and compacts now and then; sends each generation that it has made."""
    import torch

    from indexer.update import add_pictures, compact, remove_pictures
    from training.encoders import open_encoder

    torch.set_num_threads(1)
    encoder = open_encoder(str(job.encoder))
    rng, there, generation = random.Random(0), {0, 1, 2}, 1
    while not stop.exists():
        group = rng.randrange(GROUPS + 1)
        folder = job.root / f"group {group}"
        if group == GROUPS:
            compact(job.folder)
        elif group in there:
            assert len(remove_pictures(job.folder, [str(folder)])) == SIZE
        else:
            assert len(add_pictures(job.folder, [folder], encoder).ids) == SIZE
        there ^= {group} - {GROUPS}
        generation += 1
        pipe.send(generation)


def read(job: Job, stop: Path, pipe: Any) -> None:
    """Opens and checks the index again and again; sends each state that it sees: generation, groups."""
    import faiss

    faiss.omp_set_num_threads(1)
    while not stop.exists():
        with Store(job.folder) as store:
            groups = Counter(row.label for row in store.images())
            assert set(groups.values()) <= {SIZE}, groups
            check_store(store, on_disk=False)
            pipe.send((store.meta.generation, groups))


def hold(job: Job, stop: Path, pipe: Any) -> None:
    """Opens the index once and reads it again and again: its state is one, whatever has taken its place meanwhile, and
    though a compaction has taken its files away."""
    with Store(job.folder) as store:
        first, files = everything(store), {store.meta.vectors_file, store.meta.thumbnails_file}
        pipe.send("open")
        while not stop.exists():
            assert everything(store) == first
            vars(store).pop("packed", None)
            gone = not any((job.folder / name).exists() for name in files)
            pipe.send((store.is_current(), gone))
        check_store(store, on_disk=False)


def everything(store: Store) -> tuple:
    ids = store.image_ids.tolist()
    codes = store.codes()
    return store.embeddings().tobytes(), codes.data.tobytes(), store.images(), store.thumbnails(ids)


def start(what: Callable, job: Job, stop: Path) -> tuple[BaseProcess, Connection]:
    receive, send = fork.Pipe(duplex=False)
    process = fork.Process(target=what, args=(job, stop, send))
    process.start()
    send.close()
    return process, receive


def test_readers_see_committed_states_while_a_writer_changes_them(job, tmp_path):
    """They all go on until each has done enough: how long that takes is the machine's."""
    stop = tmp_path / "stop"
    holder, held = start(hold, job, stop)
    assert held.recv() == "open"
    writer, written = start(write, job, stop)
    readers = [start(read, job, stop) for _ in range(READERS)]
    generations, states = [1], {}
    reads, states_seen = Counter[Connection](), {pipe: set() for _, pipe in readers}
    outlived, rereads = False, 0
    deadline = time.monotonic() + 600
    open_pipes = [held, written, *states_seen]
    try:
        while len(generations) <= ENOUGH or not outlived or any(len(s) <= 3 for s in states_seen.values()):
            assert time.monotonic() < deadline, (generations, reads, outlived)
            for pipe in wait(open_pipes, 60):
                if pipe is written:
                    generations.append(written.recv())
                elif pipe is held:
                    current, gone = held.recv()
                    outlived, rereads = outlived or (not current and gone), rereads + 1
                else:
                    generation, groups = pipe.recv()
                    assert states.setdefault(generation, groups) == groups, "readers differ"
                    states_seen[pipe].add(generation)
                    reads[pipe] += 1
    finally:
        stop.touch()
        for process, pipe in ((holder, held), (writer, written), *readers):
            with suppress(EOFError):  # one that waits to be read would not end
                while True:
                    message = pipe.recv()
                    if pipe is written:
                        generations.append(message)
            process.join(120)
    assert {p.exitcode for p in (holder, writer, *(p for p, _ in readers))} == {0}
    changes = len(generations) - 1
    assert generations == list(range(1, changes + 2))
    print(f"{reads.total()} reads by {READERS} readers, {changes} commits, {len(states)} states, {rereads} re-reads")
    with Store(job.folder) as store:
        assert store.meta.generation == generations[-1]


def test_a_file_that_is_missing_for_good_is_named(job):
    with Store(job.folder) as store:
        name = store.meta.vectors_file
    (job.folder / name).rename(job.folder / "elsewhere")
    with pytest.raises(SparsightError, match=f"{name}: No such file") as raised:
        Store(job.folder)
    assert "doctor --repair" in str(raised.value)


def sparsight(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "indexer", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


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
    assert data_files(job.folder) == {"chance.json", "index.duckdb", "thumbnails-1.bin", "vectors-1.f32"}
    assert not (job.folder / HOLDER).exists()
