"""What an index costs as it grows: `python -m eval.bench --only scale --full`.

The pictures are the bundled embeddings drawn again and again with noise, each with a thumbnail of about 1.2 kB; their
codes are those that `sparsight index` would give them. Every work is timed in a process of its own: seconds on the
clock and on the processor, the memory that it takes beyond what the process had before it (the encoder apart), and
the bytes that it writes. The file system's cache is warm.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import numpy as np
from PIL import Image

from eval.bench.common import Options, Row, Section, at_most, cpu_seconds, forget_peak, memory
from training.terminal import progress

if TYPE_CHECKING:
    from indexer.store import Described

SIZES = (60_000, 300_000, 1_000_000)
NOISE = 0.35  # length of the noise beside a unit embedding
PIECE = 50_000  # rows made and coded at a time
DRAWN = 1000  # different thumbnails
COLD = 5  # processes that a cold search is timed over
FILES = 1000  # picture files that the index knows and that do not change
TEXTS = ("a fire engine", "a tabby cat", "a small dog", "a sailing ship", "a red truck", "an animal that meows")
BARS: dict[str, tuple[float | None, ...]] = {  # of 1,000,000 pictures: seconds, MB of memory, MB written, disk
    "add one picture": (2.0, 500.0, 150.0, None),
    "remove one picture": (2.0, 300.0, None, None),
    "add, nothing new among 1,000 files": (3.0, None, None, None),
    "dense search, cold": (1.5, None, None, None),
    "sparse search, cold": (0.8, None, None, None),
    "sparse search with hits and thumbnails, warm": (0.015, None, None, None),
    "doctor": (None, 512.0, None, None),
    "export": (None, 512.0, None, None),
    "compact": (None, 512.0, None, None),
    "all codes read": (None, 512.0, None, None),
    "what scores mean, measured": (None, 512.0, None, None),
    "on disk": (None, None, None, 0.15),
}


class _Cycled(Sequence[bytes]):
    """n thumbnails, of which a few are different."""

    def __init__(self, drawn: Sequence[bytes], n: int):
        self._drawn, self._n = drawn, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < self._n:
            raise IndexError(i)
        return self._drawn[i % len(self._drawn)]


def make_index(folder: Path, n: int, seed: int = 0) -> None:
    """Writes an index of n pictures to a folder."""
    from scipy import sparse

    from indexer.build import Source, index_meta
    from indexer.coding import encode_sparse, make_dictionary, merge_same
    from indexer.config import IndexConfig
    from indexer.store import Classes, Contents, Pictures, write_store, writing
    from training.encoders import load_test_embeddings, open_encoder

    encoder, config, rng = open_encoder(), IndexConfig(), np.random.default_rng(seed)
    real = load_test_embeddings(encoder).X
    source = Source(dataset="resampled", root="/pictures")
    dictionary = merge_same(make_dictionary(config.dictionary, encoder, source.classes, encoder.templates))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made, progress("make", n) as step:
        X = np.memmap(Path(made) / "X.f32", np.float32, "w+", shape=(n, real.shape[1]))
        parts, l1, gap = [], np.empty(n, np.float32), np.empty(n, np.float32)
        for start in range(0, n, PIECE):
            rows = slice(start, min(start + PIECE, n))
            X[rows] = noisy(real, rows.stop - start, rng)
            codes = encode_sparse(np.array(X[rows]), dictionary.D, config.coder)
            parts.append(codes.W)
            l1[rows], gap[rows] = codes.l1, codes.gap
            step(rows.stop - start)
        described = described_rows(n)
        contents = Contents(
            meta=index_meta(encoder, dictionary, source, config, encoder.templates),
            pictures=Pictures(X=X, W=sparse.csr_matrix(sparse.vstack(parts)), l1=l1, gap=gap, described=described),
            dictionary=dictionary,
            classes=Classes(list(source.classes), encoder.encode_concepts(source.classes)),
        )
        with writing(folder, "bench"):
            write_store(folder, contents)


def noisy(real: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n unit rows: rows of `real` (k, d), drawn at random, with noise."""
    drawn = real[rng.integers(0, len(real), n)]
    noise = rng.standard_normal(drawn.shape, np.float32)
    drawn = drawn + NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def described_rows(n: int) -> Described:
    """What is known of n made-up files, thumbnails among it."""
    from indexer.store import Described

    rng = np.random.default_rng(n)
    return Described(
        paths=[f"/pictures/{i // 1000:05d}/IMG_{i:08d}.jpg" for i in range(n)],
        hashes=[hashlib.sha256(str(i).encode()).hexdigest() for i in range(n)],
        sizes=rng.integers(1_000_000, 4_000_000, n).tolist(),
        changed=rng.integers(1_500_000_000_000_000_000, 1_700_000_000_000_000_000, n).tolist(),
        thumbnails=_Cycled([_thumbnail(rng) for _ in range(DRAWN)], n),
    )


def _thumbnail(rng: np.random.Generator) -> bytes:
    """A JPEG of about 1.2 kB: soft noise of 32 × 32 pixels, as CIFAR-10's are."""
    small = Image.fromarray(rng.integers(0, 255, (10, 10, 3), np.uint8))
    out = io.BytesIO()
    small.resize((32, 32), Image.Resampling.BICUBIC).save(out, "JPEG", quality=80, subsampling=0)
    return out.getvalue()


def _picture(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(path)
    old = time.time_ns() - 10**12
    os.utime(path, ns=(old, old))


# Works: each is called in a process of its own with an index folder and a folder of picture files.


def add_one(index: Path, files: Path) -> Callable[[], object]:
    from indexer.update import add_pictures
    from training.encoders import open_encoder

    encoder = open_encoder()
    encoder.encode_images(np.zeros((1, 32, 32, 3), np.uint8))
    return lambda: add_pictures(index, [files / "one.png"], encoder)


def add_files(index: Path, files: Path) -> Callable[[], object]:
    from indexer.update import add_pictures
    from training.encoders import open_encoder

    encoder = open_encoder()
    encoder.encode_images(np.zeros((1, 32, 32, 3), np.uint8))
    return lambda: add_pictures(index, [files / "known"], encoder)


def remove_one(index: Path, files: Path) -> Callable[[], object]:
    from indexer.update import remove_pictures

    return lambda: remove_pictures(index, ["17"])


def doctor(index: Path, files: Path) -> Callable[[], object]:
    from indexer.store.doctor import examine

    def work() -> None:
        faults = [f for f in examine(index) if f.status == "fault"]
        assert not faults, faults

    return work


def compact(index: Path, files: Path) -> Callable[[], object]:
    from indexer.update import compact

    return lambda: compact(index)


def export(index: Path, files: Path) -> Callable[[], object]:
    from indexer.exchange.export import export_index

    out = files / "export"

    def work() -> None:
        export_index(index, out)

    return work


def codes(index: Path, files: Path) -> Callable[[], object]:
    from indexer.store import Store

    return lambda: Store(index).codes()


def chance(index: Path, files: Path) -> Callable[[], object]:
    from indexer.store import Store
    from indexer.store.chance import index_best
    from training.encoders import open_text_encoder

    embed = open_text_encoder("bundled").encode_texts
    return lambda: index_best(Store(index), embed)


def search_cold(mode: str) -> Callable[[Path, Path], Callable[[], object]]:
    def prepare(index: Path, files: Path) -> Callable[[], object]:
        command = [sys.executable, "-m", "search", "search", TEXTS[0], "--mode", mode, "--index", str(index), "--json"]

        def work() -> dict[str, float]:
            times = []
            for _ in range(COLD):
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                times.append(time.perf_counter() - start)
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = (used.ru_utime + used.ru_stime) / COLD
            return {"seconds": float(np.median(times)), "cpu_s": cpu, "memory_mb": used.ru_maxrss / 2**10}

        return work

    return prepare


def search_warm(mode: Literal["sparse", "dense"]) -> Callable[[Path, Path], Callable[[], object]]:
    def prepare(index: Path, files: Path) -> Callable[[], object]:
        import sparsight

        searcher = sparsight.open(index)

        def query(i: int) -> None:
            hits = searcher.search(TEXTS[i % len(TEXTS)], mode=mode)
            searcher.store.thumbnails([hit.id for hit in hits])

        def work() -> dict[str, float]:
            for i in range(20):
                query(i)
            times = []
            for i in range(60):
                start = time.perf_counter()
                query(i)
                times.append(time.perf_counter() - start)
            return {"seconds": float(np.median(times)), "worst_s": float(np.max(times))}

        return work

    return prepare


WORKS: dict[str, Callable[[Path, Path], Callable[[], object]]] = {
    "what scores mean, measured": chance,
    "sparse search, cold": search_cold("sparse"),
    "dense search, cold": search_cold("dense"),
    "sparse search with hits and thumbnails, warm": search_warm("sparse"),
    "dense search with hits and thumbnails, warm": search_warm("dense"),
    "all codes read": codes,
    "doctor": doctor,
    "export": export,
    "add 1,000 pictures": add_files,
    "add, nothing new among 1,000 files": add_files,
    "add one picture": add_one,
    "remove one picture": remove_one,
    "compact": compact,
}


def measured(name: str, index: Path, files: Path) -> Row:
    """Does a work in this process and says what it took."""
    work = WORKS[name](index, files)
    forget_peak()
    held, written, cpu, start = memory("VmRSS"), _written(), cpu_seconds(), time.perf_counter()
    found = work()
    row = {
        "work": name,
        "seconds": time.perf_counter() - start,
        "cpu_s": cpu_seconds() - cpu,
        "memory_mb": (memory("VmHWM") - held) / 2**20,
        "written_mb": (_written() - written) / 2**20,
    }
    return row | (found if isinstance(found, dict) else {})


def _written() -> int:
    with suppress(OSError):
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("wchar")).split()[1])
    return 0


def measure(n: int, folder: Path) -> list[Row]:
    """The rows of an index of n pictures, made in a folder."""
    index, files = folder / "index", folder / "files"
    (files / "known").mkdir(parents=True)
    for i in range(FILES):
        _picture(files / "known" / f"{i:04d}.png", i)
    _picture(files / "one.png", FILES)
    start = time.perf_counter()
    make_index(index, n)
    rows: list[Row] = [{"work": "make it", "seconds": time.perf_counter() - start}]
    rows += [_disk(index, n)]
    for name in WORKS:
        command = [sys.executable, "-m", "eval.bench.scale", name, str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        click.echo(f"{n:>9,}  {rows[-1]}", err=True)
        shutil.rmtree(files / "export", ignore_errors=True)
    return [{"pictures": n, **row} for row in rows]


def _disk(index: Path, n: int) -> Row:
    """Bytes on disk beside those of the raw vectors and thumbnails."""
    from indexer.store import Store

    with Store(index) as store:
        raw = 4 * n * store.d + store.meta.thumbnail_bytes
        whole = sum(store.disk_bytes()[name] for name in os.listdir(index) if (index / name).is_file())
    return {"work": "on disk", "disk_mb": whole / 2**20, "raw_mb": raw / 2**20, "more_than_raw": whole / raw - 1}


def claims(rows: list[Row]) -> list[Row]:
    """The bars at 1,000,000 pictures and what was measured."""
    of_million = {str(row["work"]): row for row in rows if row["pictures"] == 1_000_000}
    held = [
        (f"{work}: {key}", bar, of_million[work][key])
        for work, bars in BARS.items()
        if work in of_million
        for key, bar in zip(("seconds", "memory_mb", "written_mb", "more_than_raw"), bars, strict=True)
        if bar is not None
    ]
    return at_most(held)


def run(options: Options) -> Section:
    """The costs of an index of 60,000 pictures; with `--full` also of 300,000 and of 1,000,000."""
    rows: list[Row] = []
    for n in SIZES if options.full else SIZES[:1]:
        with tempfile.TemporaryDirectory(dir=options.out) as place:
            rows += measure(n, Path(place).absolute())
    return Section({"an index as it grows": rows}, claims(rows))


@click.command()
@click.argument("work", type=click.Choice(list(WORKS)))
@click.argument("folder", type=click.Path(path_type=Path))
def main(work: str, folder: Path) -> None:
    """Does one work on the index in FOLDER, which `measure` made, and prints what it took as JSON."""
    click.echo(json.dumps(measured(work, folder / "index", folder / "files")))


if __name__ == "__main__":
    main()
