"""Shared fixtures: pictures made by code, a small trained encoder, indexes; and the real ones where they help."""

from __future__ import annotations

import json
import os
import signal

# Threads of torch and faiss that wait for work sleep meanwhile, and so do those of the commands that tests start: where
# other processes use the same cores, waiting in a loop makes a training step 20 times as long. Set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Nothing is downloaded, wherever the tests run; `test_download` has a hub of its own.
os.environ["HF_HUB_OFFLINE"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job of a shell's background; programs inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["COLUMNS"] = "120"  # tables are as wide as this, whatever terminal the tests run in
if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each process
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock

from sparsight import main
from training.data.cifar10 import CLASSES, Pictures

if TYPE_CHECKING:
    from eval.evaluate import Report
    from indexer.coding.dictionary import Dictionary
    from training.encoders import Encoder


# The files that take longest, begun first: else one process would still have such a file when the others are done.
LONGEST = (
    "test_damage",  # these two fork: from processes without threads of other tests
    "test_damage_tables",
    "test_crash",
    "test_residual",
    "test_streams",
    "test_signals",
    "test_failing",
    "test_doctor_tables",
    "test_concurrency",
    "test_doctor",
    "test_add",
    "test_inverted",
    "test_dense",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def coloured_pictures(n: int, seed: int = 0) -> Pictures:
    """Pictures that are easy to tell apart: each class has its colour, each of its two terms a brightness."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(CLASSES)
    fine = rng.integers(0, 2, n)
    colours = np.random.default_rng(7).integers(40, 216, (len(CLASSES), 3))
    base = colours[labels] + np.where(fine, 30, -30)[:, None]
    pixels = np.clip(base[:, None, None] + rng.normal(0, 8, (n, 32, 32, 3)), 0, 255).astype(np.uint8)
    names = [
        f"{CLASSES[y] if f else 'dark_' + CLASSES[y]}_s_{i:06d}.png"
        for i, (y, f) in enumerate(zip(labels, fine, strict=True))
    ]
    return Pictures(pixels, labels.astype(np.int64), names, ["train" if i % 3 else "test" for i in range(n)])


@pytest.fixture(scope="session")
def run():
    """Runs a command through click's runner; a fault is one line on stderr, never a traceback."""

    def invoke(*args: object, code: int = 0):
        result = CliRunner().invoke(main, [str(a) for a in args])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == code, result.output
        if code:
            errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
            assert len(errors) == 1, result.stderr
            assert "Traceback" not in result.output
        return result

    return invoke


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    return coloured_pictures(150)


@pytest.fixture(scope="session")
def small_config():
    from training.config import EncoderConfig, TrainConfig

    encoder = EncoderConfig(
        name="small", image_tower="conv32_tiny", image_size=32, dim=32, text_width=32, text_layers=1, vocab_size=300
    )
    return TrainConfig(encoder=encoder, sizes=((16, 2), (32, 4)), batch_size=30, lr=0.05)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes on one thread: for small models two only wait for each other, long where cores are shared."""
    with threads(1):
        yield


@contextmanager
def threads(n: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def terms_embedded_once() -> Iterator[None]:
    """The bundled encoder's own dictionary is made once in each process: it takes a second, and nearly all that a small
    index takes. `test_a_dictionary_is_remembered_as_it_is_made` holds it against one that is not remembered."""
    from indexer import build
    from training.encoders import fingerprint_of

    bundled, make = fingerprint_of("bundled"), build.make_dictionary
    made: dict[tuple, Dictionary] = {}

    def remembered(source: str, encoder: Encoder, *prompts: Sequence[str]) -> Dictionary:
        if source not in ("auto", "terms") or encoder.fingerprint != bundled:
            return make(source, encoder, *prompts)
        key = tuple(map(tuple, prompts))
        if key not in made:
            made[key] = make(source, encoder, *prompts)
        return deepcopy(made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "make_dictionary", remembered)
        yield


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> MakeOnce:
    """Fills a folder once for all processes of a test run. Who needs it finds it there or waits for it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # that of the run, or of this process alone

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        made = shared / f"made-{name}"
        with FileLock(shared / f"made-{name}.lock"):
            if not made.is_dir():
                begun = tmp_path_factory.mktemp(name)
                fill(begun)
                begun.rename(made)
        return made

    return make


@pytest.fixture(scope="session")
def index_made_once(made_once, tmp_path_factory) -> MakeOnce:
    """The same for an index: each process gets a copy, so that locks and caches in it are its own."""

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        return Path(shutil.copytree(made_once(name, fill), tmp_path_factory.mktemp(name) / name))

    return make


@pytest.fixture(scope="session")
def small_encoder_dir(pictures, small_config, made_once) -> Path:
    import torch

    from training.loop import train

    def fill(folder: Path) -> None:
        # Long enough that one prompt alone finds the right pictures, whatever the machine's rounding.
        config = replace(small_config, sizes=((16, 60), (32, 12)), lr=0.1)
        with threads(1):
            train(pictures, config, folder, device=torch.device("cpu"), held_out=pictures.first(50))

    return made_once("encoder", fill)


@pytest.fixture(scope="session")
def small_index(pictures, small_encoder_dir, index_made_once) -> Path:
    """An index of pictures made by code, through the small encoder, with thumbnails."""
    from indexer.build import index_pictures
    from indexer.config import IndexConfig
    from training.encoders import open_encoder

    encoder = open_encoder(str(small_encoder_dir))
    return index_made_once("index", lambda folder: index_pictures(folder, pictures, encoder, IndexConfig()))


@pytest.fixture(scope="session")
def bundled_index(index_made_once) -> Path:
    """What `make index` builds without CIFAR-10: the bundled embeddings of the 10,000 test pictures."""
    from indexer.build import index_bundled
    from indexer.config import IndexConfig
    from training.encoders import load_test_embeddings, open_encoder

    encoder = open_encoder()
    return index_made_once(
        "bundled", lambda folder: index_bundled(folder, load_test_embeddings(encoder), encoder, IndexConfig())
    )


@dataclass(frozen=True)
class WrittenReport:
    """A report on an index as it was measured, as its JSON file holds it, and as the terminal shows it."""

    folder: Path
    report: Report
    json: dict
    summary: str


def report_on(index: Path, folder: Path) -> WrittenReport:
    """Measures all 10,000 pictures, at few penalties and beside few baselines: the others take minutes of a core."""
    from eval.evaluate import Settings, evaluate
    from eval.report import Thumbnails, summary, write_report
    from indexer.store import Store
    from training.encoders import open_encoder

    with Store(index) as store:
        settings = Settings(ways=("PQ8", "nearest concept alone"), penalties=(0.9, 0.5, 0.2), command="sparsight eval")
        report = evaluate(store, settings, encoder=open_encoder())
        write_report(folder, report, Thumbnails(store))
    return WrittenReport(folder, report, json.loads((folder / "report.json").read_text()), summary(report))


@pytest.fixture(scope="session")
def bundled_report(bundled_index, made_once) -> WrittenReport:
    """The report on `bundled_index`, made once for all tests."""

    def fill(folder: Path) -> None:
        written = report_on(bundled_index, folder / "report")
        (folder / "report.pickle").write_bytes(pickle.dumps(written))

    folder = made_once("report", fill)
    return replace(pickle.loads((folder / "report.pickle").read_bytes()), folder=folder / "report")


@pytest.fixture(scope="session")
def light_index(index_made_once) -> Path:
    """A small index that needs no training: the first bundled embeddings, as if they were of a folder's pictures."""
    from indexer.build import Source, write_index
    from indexer.config import CoderConfig, IndexConfig
    from indexer.store import Described
    from training.encoders import load_test_embeddings, open_encoder

    encoder, n, rng = open_encoder(), 150, np.random.default_rng(0)
    bundled = load_test_embeddings(encoder)
    described = Described(
        paths=[f"/pictures/{i:03d}.png" for i in range(n)],
        splits=["test"] * n,
        labels=[CLASSES[y] for y in bundled.labels[:n]],
        hashes=[f"{i:064x}" for i in range(n)],
        thumbnails=[rng.bytes(900) for _ in range(n)],
    )
    config, source = IndexConfig(coder=CoderConfig(l1=0.5)), Source(dataset="pictures", root="/pictures")
    return index_made_once(
        "light", lambda folder: write_index(folder, bundled.X[:n], described, encoder, config, source)
    )


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    root = os.environ.get("SPARSIGHT_DATA")
    if not root or not (Path(root) / "cifar-10-batches-py").is_dir():
        pytest.skip("needs CIFAR-10: set SPARSIGHT_DATA")
    return Path(root)
