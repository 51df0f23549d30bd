"""A build on Ray gives the index that one process gives, whatever dies or is damaged on the way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import coloured_pictures
from PIL import Image
from programs import begin as begin_program
from tiny_models import make_folder

from indexer.build import index_folder
from indexer.config import CoderConfig, IndexConfig
from indexer.exchange.export import export_index
from indexer.exchange.importing import import_index
from indexer.ray import RayOptions
from indexer.ray.cluster import cluster
from indexer.ray.encoded import read_encoded
from indexer.ray.run import index_on_ray
from indexer.ray.tries import MOST, begin, ended, forget
from indexer.residual import Quantiser
from indexer.store import Store
from indexer.store.residuals import read_coded, read_quantiser
from search.index import Index
from training.encoders import open_encoder
from training.errors import SparsightError

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra `ray`")
FEW = 300
OLD = 1_700_000_000  # a time of change long enough ago that a file is known by it
CONFIG = IndexConfig(coder=CoderConfig(l1=0.6, refit=True))


@pytest.fixture(scope="module")
def machines() -> Iterator[None]:
    """One local cluster for the builds of this file."""
    with cluster(""):
        yield


@pytest.fixture(scope="module")
def encoder():
    return open_encoder()


def write_pictures(root: Path, pixels: np.ndarray, labels: list[str]) -> Path:
    for i, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        (root / label).mkdir(parents=True, exist_ok=True)
        path = root / label / f"{i:05d}.png"
        Image.fromarray(picture).save(path)
    return aged(root)


def aged(root: Path) -> Path:
    for path in root.rglob("*.png"):
        os.utime(path, (OLD, OLD))
    return root


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """A folder of a few pictures, with a duplicate and one that is damaged."""
    pictures = coloured_pictures(FEW)
    root = write_pictures(tmp_path_factory.mktemp("few"), pictures.pixels, [f"c_{y}" for y in pictures.labels])
    (root / "c_9" / "zz.png").write_bytes((root / "c_3" / "00003.png").read_bytes())
    (root / "c_0" / "bad.png").write_bytes(b"no picture")
    return aged(root)


@pytest.fixture(scope="module")
def expected(few, encoder, tmp_path_factory) -> Path:
    """The index of these pictures that one process builds."""
    folder = tmp_path_factory.mktemp("expected")
    index_folder(folder, few, encoder, CONFIG, labels=True)
    return folder


def assert_same(found: Path, wanted: Path, queries: int = 20) -> None:
    """The same pictures with the same ids, embeddings, codes within their certificate, and the same ranks."""
    with Store(found) as a, Store(wanted) as b:
        assert a.image_ids.tolist() == b.image_ids.tolist()
        assert [row[:8] for row in a.images()] == [row[:8] for row in b.images()]
        assert a.thumbnails(a.image_ids.tolist()) == b.thumbnails(b.image_ids.tolist())
        assert a.skipped() == b.skipped()
        assert a.concepts() == b.concepts()
        assert a.classes().names == b.classes().names
        np.testing.assert_allclose(a.embeddings(), b.embeddings(), atol=1e-6)
        np.testing.assert_allclose(a.dictionary(), b.dictionary(), atol=1e-6)
        assert a.meta.coder.l1 == pytest.approx(b.meta.coder.l1, rel=1e-6)
        assert max(row.gap for row in a.images()) <= a.meta.coder.tol
        np.testing.assert_allclose(a.codes().toarray(), b.codes().toarray(), atol=2e-3)
        assert vars(replace(a.meta, coder=b.meta.coder, nnz=b.meta.nnz, residual_fingerprint="")) == vars(
            replace(b.meta, residual_fingerprint="")
        )
        names = [c.name for c in a.concepts()[:queries]]
    with Index(found) as a, Index(wanted) as b:
        for name in names:
            for mode in ("dense", "sparse"):
                ours, theirs = (index.search(name, k=10, mode=mode) for index in (a, b))
                np.testing.assert_allclose([h.score for h in ours], [h.score for h in theirs], atol=1e-3)
                assert {h.id for h in ours if h.score > theirs[-1].score + 1e-3} <= {h.id for h in theirs}


def test_the_index_is_that_of_one_process(machines, encoder, tmp_path):
    """Of 2,000 pictures: CIFAR-10's where they are at hand, else made by code."""
    root = os.environ.get("SPARSIGHT_DATA", "")
    if (Path(root) / "cifar-10-batches-py").is_dir() and root:
        from training.data.cifar10 import load_cifar10

        pixels = load_cifar10(Path(root)).pixels[:2000]
    else:
        pixels = coloured_pictures(2000).pixels
    folder = write_pictures(tmp_path / "pictures", pixels, [f"part {i % 7}" for i in range(2000)])
    config = replace(CONFIG, residual="PQ8x4")
    index_folder(tmp_path / "local", folder, encoder, config, labels=True)
    index_on_ray(tmp_path / "ray", folder, encoder, config, RayOptions(), labels=True)
    assert_same(tmp_path / "ray", tmp_path / "local")
    assert not (tmp_path / "ray" / ".shards").exists()
    with Store(tmp_path / "ray") as a, Store(tmp_path / "local") as b:
        (q, ours), (p, theirs) = (coded_residuals(store) for store in (a, b))
        np.testing.assert_allclose(q.C, p.C, atol=1e-4)
        assert np.mean(ours == theirs) > 0.99
        assert ours.shape == (2000, 4)


def coded_residuals(store: Store) -> tuple[Quantiser, np.ndarray]:
    quantiser = read_quantiser(store)
    return quantiser, read_coded(store, quantiser).codes


def is_below(pid: int, ancestor: int) -> bool:
    """Whether a process was started by another, or by one that this started."""
    while pid not in (0, ancestor):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == ancestor


def workers() -> list[int]:
    """The processes that run stages for this one: a build that somebody else runs is not to suffer."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"ray::MapWorker" in (folder / "cmdline").read_bytes() and is_below(int(folder.name), os.getpid()):
                found.append(int(folder.name))
    return found


def test_workers_that_are_killed_are_replaced(machines, encoder, few, expected, tmp_path, capfd):
    """Each that runs once the first slices are encoded: nothing is missing then, and nothing there twice."""
    shards, killed = tmp_path / "shards", []

    def kill() -> None:
        while not list(shards.glob("encoded/*.batch")):
            time.sleep(0.02)
        for pid in workers():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    index_on_ray(
        tmp_path / "index", few, encoder, replace(CONFIG, batch_size=10), RayOptions(shards=shards), labels=True
    )
    killer.join()
    assert len(killed) >= 2
    shown = capfd.readouterr()
    assert shown.out == ""  # Ray tells there of each
    assert "ray" not in shown.err.replace(str(tmp_path), "").casefold()
    assert len(list(shards.glob("encoded/*.batch"))) == -(-(FEW + 2) // 10)
    assert_same(tmp_path / "index", expected)


def test_what_is_finished_is_not_made_again_and_what_is_damaged_is(machines, encoder, few, expected, tmp_path, capsys):
    shards = RayOptions(shards=tmp_path / "shards")
    for name in ("first", "second"):
        index_on_ray(tmp_path / name, few, encoder, CONFIG, shards, labels=True)
        assert_same(tmp_path / name, expected)
        if name == "first":
            before = {p: p.stat().st_mtime_ns for p in shards.shards.rglob("*.*")}
            batch, vectors = sorted(shards.shards.glob("encoded/*.batch"))[0], shards.shards / "vectors.parquet"
            for path in (batch, vectors):
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 1
                path.write_bytes(data)
            with pytest.raises(SparsightError, match=r"vectors.parquet is damaged: it is not the file"):
                import_index(tmp_path / "imported", shards.shards)
            capsys.readouterr()
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(told) == 2
    assert f"{batch.name} is damaged: it is made anew" in told[0]
    assert "the shard vectors.parquet is damaged: it is made anew" in told[1]
    kept = [p for p in shards.shards.glob("encoded/*.batch") if p != batch]
    assert {p: p.stat().st_mtime_ns for p in kept} == {p: before[p] for p in kept}
    import_index(tmp_path / "imported", shards.shards)
    assert_same(tmp_path / "imported", expected)


def test_an_encoder_with_a_gap_is_centred_on_all_pictures(machines, few, tmp_path):
    """Means, the penalty for a number of concepts, and the vocabulary are settled as one process does it."""
    encoder = open_encoder(str(make_folder("clip", tmp_path / "model")))
    (tmp_path / "words.txt").write_text("\n".join(["red", "green", "blue", "a ship", "dog", "grey", "night", "sun"]))
    config = IndexConfig(str(tmp_path / "words.txt"), concepts=2.0, coder=CoderConfig(refit=True), batch_size=50)
    index_folder(tmp_path / "local", few, encoder, config)
    index_on_ray(tmp_path / "ray", few, encoder, config, RayOptions())
    assert_same(tmp_path / "ray", tmp_path / "local", queries=3)
    with Store(tmp_path / "ray") as a, Store(tmp_path / "local") as b:
        np.testing.assert_allclose(a.means().image, b.means().image, atol=1e-7)


def test_a_shard_that_cannot_be_read_is_tried_a_few_times_and_named(machines, encoder, tmp_path, few):
    """The others are encoded meanwhile; once it is mended, a second run makes what is missing."""
    files = sorted(few.rglob("0*.png"))[:40]
    cells = [{"bytes": f.read_bytes(), "path": None} for f in files]
    for number in range(2):
        rows = cells[20 * number : 20 * number + 20]
        pq.write_table(pa.table({"image": rows}), tmp_path / f"{number}.parquet", compression="NONE")
    whole = (tmp_path / "1.parquet").read_bytes()
    data = bytearray(whole)
    data[: len(data) // 2] = bytes(len(data) // 2)  # the end, which tells what lies where, stays
    (tmp_path / "1.parquet").write_bytes(data)
    options, shards = RayOptions(shards=tmp_path / ".shards"), tmp_path / ".shards"
    with pytest.raises(SparsightError, match=r"the shard .*1.parquet cannot be read") as raised:
        index_on_ray(tmp_path / ".index", tmp_path, encoder, CONFIG, options)
    assert "\n" not in str(raised.value)
    assert len([p for p in shards.glob("encoded/*.batch") if read_encoded(p)]) == 1
    assert not (tmp_path / ".index" / "index.duckdb").exists()
    (tmp_path / "1.parquet").write_bytes(whole)
    built = index_on_ray(tmp_path / ".index", tmp_path, encoder, CONFIG, options)
    assert built.meta.n == 40


def test_a_folder_of_other_things_is_not_taken_for_shards(encoder, few, expected, tmp_path):
    """A build replaces what it finds among its shards: an export would be lost."""
    export_index(expected, tmp_path / "export")
    before = sorted(p.name for p in (tmp_path / "export").iterdir())
    with pytest.raises(SparsightError, match="export holds other things than shards: name a new folder"):
        index_on_ray(tmp_path / "index", few, encoder, CONFIG, RayOptions(shards=tmp_path / "export"))
    assert sorted(p.name for p in (tmp_path / "export").iterdir()) == before


def test_work_that_ends_its_worker_each_time_is_given_up(tmp_path):
    """Ray gives the work of a worker that died to another, for ever."""
    for _ in range(MOST):
        begin(tmp_path / "encoded" / "slice", "read", "a.png … z.png")
    with pytest.raises(SparsightError, match=r"a.png … z.png: to read it ended a worker 5 times"):
        begin(tmp_path / "encoded" / "slice", "read", "a.png … z.png")
    forget(tmp_path)
    begin(tmp_path / "encoded" / "slice", "read", "a.png … z.png")
    ended(tmp_path / "encoded" / "slice")
    assert not list(tmp_path.rglob("*.tries"))


def ray_processes() -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (folder / "cmdline").read_bytes()
            if any(name in line for name in (b"ray::", b"raylet", b"gcs_server", b"ray/_private")):
                found.add(int(folder.name))
    return found


def test_an_interrupt_ends_it_within_seconds_and_a_second_run_goes_on(encoder, few, expected, tmp_path, machines):
    """In one line, and with none of Ray's processes left."""
    before, shards = ray_processes(), tmp_path / "shards"
    command = ["index", few, "--labels", "folders", "--encoder", "bundled", "--engine", "ray", "--shards", shards]
    command += ["--l1", "0.6", "--index", tmp_path / "index"]
    program = begin_program(*command)
    while not list(shards.glob("encoded/*.batch")):
        assert program.poll() is None
        time.sleep(0.05)
    program.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, err = program.communicate(timeout=60)
    assert time.monotonic() - sent < 20
    assert program.returncode == 130, err
    lines = err.splitlines()
    assert lines[-1] == "Error: interrupted"
    assert [line for line in lines[:-1] if not line.startswith(("encoder ", "encode ", "code ", str(few)))] == []
    deadline = time.monotonic() + 10
    while left := ray_processes() - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    done = {p: p.stat().st_mtime_ns for p in shards.glob("encoded/*.batch")}
    index_on_ray(tmp_path / "index", few, encoder, CONFIG, RayOptions(shards=shards), labels=True)
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert_same(tmp_path / "index", expected)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:9", "no Ray cluster at --address 127.0.0.1:9: Connection refused"),
        ("127.0.0.1:99999", "no Ray cluster at --address 127.0.0.1:99999"),
        ("somewhere", "--address somewhere: give auto, or HOST:PORT"),
    ],
)
def test_a_cluster_that_is_not_there_is_named(address, told):
    """At once; in a process of its own, for this one may have joined another."""
    code = (
        "import sys\n"
        "from indexer.ray.cluster import cluster\n"
        "from training.errors import SparsightError\n"
        "try:\n    with cluster(sys.argv[1]): pass\n"
        "except SparsightError as e: print(e)"
    )
    found = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, check=True)
    assert found.stdout.startswith(told)
    assert found.stdout.count("\n") == 1


def test_a_cluster_that_asks_for_a_token_is_joined(tmp_path):
    """Ray begins so wherever a build on this machine has left one."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    home = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray = Path(sys.executable).with_name("ray")
    sizes = ["--num-cpus", "1", "--object-store-memory", "100000000", "--include-dashboard", "false"]
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", "--port", str(port), *sizes],
        env=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert head.stdout is not None
        assert any("Ray runtime started" in line for line in head.stdout)
        code = (
            f"import sys; sys.path[:0] = {sys.path!r}\nfrom indexer.ray.cluster import cluster\n"
            f"with cluster('127.0.0.1:{port}') as machines: print(machines.cpus)"
        )
        joined = subprocess.run([sys.executable, "-c", code], env=home, capture_output=True, text=True, check=False)
        assert (joined.stdout, joined.returncode) == ("1\n", 0), joined.stderr
    finally:
        head.terminate()
        head.wait(30)
