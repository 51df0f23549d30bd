"""Indexes in Milvus for tests: what is loaded, queries of every kind, and writers and servers that are killed."""

from __future__ import annotations

import io
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from contents import make_contents, make_pictures
from PIL import Image

from indexer.milvus import Address
from indexer.store import Change, Contents, Described, Skip
from search.answers import Answer
from search.query import Query, Term
from training.data.cifar10 import CLASSES
from training.errors import SparsightError

N, BATCHES = 1200, 500  # pictures of a load that is killed, and as many as one call writes
ADDED = 600
TEXTS = ("a red car", "a dog", "a fire engine", "a frog on grass", "an aeroplane", "a ship at sea", "a horse", "a deer")


def contents(n: int = N) -> Contents:
    """What is loaded: made by code, always the same."""
    thumbnails = [bytes([i % 256, 0, 255]) for i in range(n)]
    return make_contents(
        n=n, pictures=make_pictures(n=n, paths=[f"/p/{i}.png" for i in range(n)], thumbnails=thumbnails)
    )


def build_bundled(place: Path | Address, n: int) -> None:
    """Builds an index of the first bundled embeddings, as if they were of pictures with labels and thumbnails."""
    from indexer.build import Source, write_index
    from indexer.config import IndexConfig
    from training.encoders import load_test_embeddings, open_encoder

    encoder, jpeg = open_encoder(), io.BytesIO()
    bundled = load_test_embeddings(encoder)
    Image.new("RGB", (8, 8), "red").save(jpeg, "JPEG")
    described = Described(
        paths=[f"cifar10/test/{i:05d}" for i in range(n)],
        splits=["test" if i % 2 else "train" for i in range(n)],
        labels=[CLASSES[y] if i % 7 else None for i, y in enumerate(bundled.labels[:n])],
        hashes=[f"{i:064x}" for i in range(n)],
        thumbnails=[jpeg.getvalue() if i % 3 else None for i in range(n)],
    )
    source, skipped = Source(dataset="CIFAR-10"), [Skip("/p/é\n.png", "it is no picture")]
    if isinstance(place, Path):
        place.mkdir()
    write_index(place, bundled.X[:n], described, encoder, IndexConfig(), source, skipped)


def addition(n: int = ADDED) -> Change:
    paths = [f"/added/{i}.png" for i in range(n)]
    return Change(added=make_pictures(n=n, seed=5, paths=paths, labels=["new"] * n), removed=[3, 4])


class Killing(list):
    """Thumbnails of pictures; the one at `at` is never read, since something is killed first."""

    def __init__(self, thumbnails: list[bytes | None], at: int, pid: int):
        super().__init__(thumbnails)
        self._at, self._pid = at, pid

    def __iter__(self) -> Iterator[bytes | None]:
        for i, thumbnail in enumerate(super().__iter__()):
            if i == self._at:
                os.kill(self._pid, signal.SIGKILL)
                time.sleep(0.5)
            yield thumbnail


def killed_at(at: int, pid: int, c: Contents) -> Contents:
    described = c.pictures.described
    thumbnails = Killing(list(described.thumbnails), at, pid)
    return replace(c, pictures=replace(c.pictures, described=replace(described, thumbnails=thumbnails)))


def child(code: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | more
    program = [sys.executable, "-c", code]
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False)


def dies_loading(address: str, at: int) -> None:
    """Loads `contents` in a process that is killed when it reads the picture at `at`."""
    code = (
        "import os; from milvus import *; from indexer.milvus.address import parse_address\n"
        "from indexer.milvus.writer import write_milvus\n"
        f"write_milvus(parse_address({address!r}), killed_at({at}, os.getpid(), contents()))"
    )
    assert (done := child(code)).returncode == -signal.SIGKILL, done.stderr


def dies_adding(address: str, at: int) -> None:
    """Adds `addition` in a process that is killed when it reads the picture at `at`."""
    code = (
        "import os; from milvus import *; from indexer.milvus.address import parse_address\n"
        "from indexer.milvus.reader import MilvusStore; from indexer.milvus.writer import change_milvus\n"
        "change = addition(); described = change.added.described\n"
        f"described = replace(described, thumbnails=Killing(list(described.thumbnails), {at}, os.getpid()))\n"
        "change = replace(change, added=replace(change.added, described=described))\n"
        f"change_milvus(MilvusStore(parse_address({address!r})), change)"
    )
    assert (done := child(code)).returncode == -signal.SIGKILL, done.stderr


@contextmanager
def running(folder: Path, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server of milvus-lite in a process of its own; yields its address and the process."""
    if not port:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
    program = [sys.executable, "-m", "milvus_lite", "server", "--host", "127.0.0.1", "--data-dir", str(folder)]
    process = subprocess.Popen([*program, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < end, "the server did not start"
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        yield f"milvus:http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def queries(names: list[str], n: int, count: int, seed: int = 0) -> list[Query]:
    """Queries of every kind: sums of texts, pictures and concepts, of both signs, with filters, in every mode."""
    draw = random.Random(seed)

    def term(sign: float = 1.0) -> Term:
        kind = draw.choice(("text", "text", "picture", "concept"))
        values = {"text": draw.choice(TEXTS), "picture": str(draw.randrange(n)), "concept": draw.choice(names)}
        return Term(kind, values[kind], sign * draw.choice((1.0, 1.0, 0.5)))

    def query() -> Query:
        terms = [term() for _ in range(draw.choice((1, 1, 2, 3)))] + [term(-1.0)] * (draw.random() < 0.3)
        mode = draw.choice(("dense", "sparse", "hybrid"))
        rules = {
            "labels": tuple(draw.sample(CLASSES, 2)),
            "path": "*/0?1*",
            "require": (draw.choice(names),),
            "forbid": (draw.choice(names),),
            "diverse": 0.3,
            "group_by": draw.choice(("label", "near")),
        }
        taken = {name: value for name, value in rules.items() if draw.random() < 0.12}
        return Query(tuple(terms), mode=mode, fuse=mode == "hybrid" and draw.random() < 0.4, all=True, **taken)

    return [query() for _ in range(count)]


def answer_or_fault(index: object, query: Query) -> Answer | str:
    try:
        return index.answer(query)  # type: ignore[attr-defined]
    except SparsightError as e:
        return str(e)


def same_up_to_ties(a: Answer, b: Answer) -> bool:
    """Whether both have the same hits, but for such as have the score of the last one."""
    ours, theirs = ({hit.id: hit.score for hit in answer.hits} for answer in (a, b))
    if len(ours) != len(theirs) or not np.allclose([*ours.values()], [*theirs.values()], rtol=1e-4, atol=1e-6):
        return False
    last = min(ours.values(), default=0.0)
    return all(i in theirs or abs(score - last) <= 1e-4 * abs(last) + 1e-6 for i, score in ours.items())
