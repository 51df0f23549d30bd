"""How fast pictures are read, beside Pillow alone: `python -m eval.bench --only pictures`.

The pictures are JPEGs of 4000 × 3000 pixels, quality 90, chroma subsampled: scikit-learn's two sample photographs, made
twice as large and mirrored until they fill the frame, with a little noise, as a sensor gives. A few are made, each
with a camera's EXIF data, half of them lying on their side; the others are these with other bytes behind the end, so
that each has a content of its own.

The baseline is Pillow alone: `Image.open`, `draft` and `load` of the file by as many threads, decoded at the same
fraction of its size (JPEG decodes to 1/2, 1/4 or 1/8 at once). It hashes, turns, scales and keeps nothing. Both take
the same pictures in turn, a block at a time; a ratio is that of one block's two times.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from eval.bench.common import Options, Row, Section, cpu_seconds, forget_peak, memory
from indexer.config import THUMBNAIL
from indexer.pictures import Picture, quiet_pillow, read_pictures
from indexer.pictures.folders import WORKERS
from training.encoders import Encoder, open_encoder
from training.errors import SparsightError
from training.terminal import progress

SIZE = (4000, 3000)
DISTINCT, FULL, PLAIN = 4, 10_000, 240
BLOCK = 40  # pictures that each way reads in its turn
BAR = 0.8  # of the baseline's pictures a second
CLIP_SIDE = 224


def photographs() -> Iterator[bytes]:
    """`DISTINCT` JPEGs of 12 million pixels."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    samples = load_sample_images().images
    for i in range(DISTINCT):
        sample = samples[i % len(samples)]
        large = Image.fromarray(sample).resize((2 * sample.shape[1], 2 * sample.shape[0]), Image.Resampling.BICUBIC)
        pixels = np.asarray(large)
        repeats = (-(-SIZE[1] // pixels.shape[0]) + 1, -(-SIZE[0] // pixels.shape[1]) + 1)
        tiled = np.pad(
            pixels, ((0, (repeats[0] - 1) * len(pixels)), (0, (repeats[1] - 1) * pixels.shape[1]), (0, 0)), "symmetric"
        )
        y, x = (int(rng.integers(0, side - wanted)) for side, wanted in zip(tiled.shape, SIZE[::-1], strict=False))
        frame = tiled[y : y + SIZE[1], x : x + SIZE[0]]
        noisy = (frame + rng.normal(0, 3, (*frame.shape[:2], 1))).clip(0, 255).astype(np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if i % 2 else 1  # turned by a quarter, or upright
        exif[0x010F] = "a camera"
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, "JPEG", quality=90, exif=exif)
        yield out.getvalue()


def make_pictures(folder: Path, n: int) -> list[str]:
    """Writes n JPEGs, no two with the same content, to a folder; returns their paths. Raises `SparsightError` where
    there is too little space."""
    drawn = list(photographs())
    needed, free = n * max(map(len, drawn)), shutil.disk_usage(folder).free
    if needed > 0.9 * free:
        raise SparsightError(f"{n:,} pictures take {needed / 1e9:.0f} GB, but {folder} has {free / 1e9:.0f} GB free")
    paths = [str(folder / f"IMG_{i:05d}.jpg") for i in range(n)]
    with progress("make", n) as step:
        for i, path in enumerate(paths):
            Path(path).write_bytes(drawn[i % DISTINCT] + i.to_bytes(8, "big"))
            step(1)
    return paths


def clip_sized() -> Encoder:
    """An encoder with the image processor of a CLIP for 224 × 224 pixels, and tiny random towers."""
    import transformers as tf

    from training.encoders.hub import HubEncoder

    letters = {t: i for i, t in enumerate(["<|startoftext|>", "<|endoftext|>", *map(chr, range(33, 127))])}
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = tf.CLIPConfig(
        text_config={**tower, "vocab_size": len(letters), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**tower, "patch_size": 32, "image_size": CLIP_SIDE},
        projection_dim=16,
    )
    tokenizer = tf.CLIPTokenizer(vocab=letters, merges=[])
    names = {"name": "CLIP-sized", "source": "random", "fingerprint": "0" * 64}
    return HubEncoder(tf.CLIPModel(config), tokenizer, tf.CLIPImageProcessor(), **names)


ENCODERS: dict[str, Callable[[], Encoder]] = {"bundled, 32": open_encoder, f"CLIP, {CLIP_SIDE}": clip_sized}


def side_of(encoder: Encoder) -> int:
    """Pixels that the shorter side of a decoded picture keeps."""
    return 2 * max(encoder.image_size, THUMBNAIL)


def pillow_alone(paths: Iterable[str], side: int) -> int:
    """Decodes pictures by as many threads as `read_pictures` has; the number of them."""

    def load(path: str) -> int:
        with Image.open(path) as file:
            file.draft("RGB", (side, side))
            file.load()
        return 1

    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(pool.map(load, paths))


def read(paths: Iterable[str], encoder: Encoder) -> int:
    """Reads pictures as an index does; the number of them."""
    found = read_pictures(paths, encoder.prepare, encoder.image_size, ahead=encoder.batch)
    return sum(isinstance(p, Picture) and p.prepared is not None for p in found)


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """Seconds on the clock, and on the processor."""
    start, cpu = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - start, cpu_seconds() - cpu


def compared(name: str, paths: list[str]) -> Row:
    """`read_pictures` for an encoder beside the baseline, block by block, in turns of either order."""
    encoder = ENCODERS[name]()
    side = side_of(encoder)
    ways: list[Callable[[list[str]], int]] = [lambda part: pillow_alone(part, side), lambda part: read(part, encoder)]
    for way in ways:
        way(paths[:DISTINCT])  # what is imported by the first picture
    times = []
    for number, start in enumerate(range(0, len(paths), BLOCK)):
        part = paths[start : start + BLOCK]
        pair: list[tuple[float, float]] = [(0.0, 0.0)] * 2
        for i in (0, 1) if number % 2 else (1, 0):
            pair[i] = timed(lambda i=i, part=part: ways[i](part))  # type: ignore[misc]
        times.append(pair)
    t = np.array(times)  # (blocks, ways, clock and processor)
    ratios = t[:, 0] / t[:, 1]
    alone, ours = len(paths) / t[:, :, 0].sum(0)
    return {
        "encoder, pixels": name,
        "pictures": len(paths),
        "Pillow alone, /s": float(alone),
        "sparsight, /s": float(ours),
        "ratio": float(np.median(ratios[:, 0])),
        "quartiles": " – ".join(f"{q:.2f}" for q in np.percentile(ratios[:, 0], [25, 75])),
        "ratio of CPU": float(np.median(ratios[:, 1])),
    }


def peak(name: str, folder: Path) -> Row:
    """In a process of its own: the memory that reading a folder takes beside what it held before, in MB."""
    encoder = ENCODERS[name]()
    paths = sorted(map(str, folder.glob("*.jpg")))
    read(paths[:1], encoder)
    forget_peak()
    before = memory("VmRSS")
    read(paths, encoder)
    return {"peak, MB": (memory("VmHWM") - before) / 2**20}


def indexed(folder: Path) -> Row:
    """In a process of its own: `sparsight index FOLDER` with the bundled encoder.

    It also says where its main thread's time goes. Reading is what it waits for; while it encodes, threads read on.
    """
    from indexer import build
    from indexer.config import IndexConfig
    from indexer.store import Journal

    encoder = open_encoder()
    spent = dict.fromkeys(("encode_images", "add", "write_index"), 0.0)

    def clocked(owner: Any, name: str) -> None:
        do = getattr(owner, name)

        def call(*args: Any, **settings: Any) -> Any:
            start = time.perf_counter()
            try:
                return do(*args, **settings)
            finally:
                spent[name] += time.perf_counter() - start

        setattr(owner, name, call)

    for owner, name in ((encoder, "encode_images"), (Journal, "add"), (build, "write_index")):
        clocked(owner, name)
    forget_peak()
    before, start = memory("VmRSS"), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder.parent) as index, quiet_pillow():
        built = build.index_folder(Path(index) / "index", folder, encoder, IndexConfig())
    seconds = time.perf_counter() - start
    shares = {
        "waiting for reading, %": seconds - sum(spent.values()),
        "encoding, %": spent["encode_images"],
        "journal, %": spent["add"],
        "codes and index, %": spent["write_index"],
    }
    n = built.meta.n
    row: Row = {"pictures": n, "seconds": seconds, "pictures/s": n / seconds}
    row |= {what: 100 * share / seconds for what, share in shares.items()}
    return row | {"peak, MB": (memory("VmHWM") - before) / 2**20}


def run(options: Options) -> Section:
    """Pictures a second of `read_pictures` beside Pillow alone, its memory, and a whole index of a folder."""
    n = FULL if options.full else PLAIN
    rows, notes = [], []
    with tempfile.TemporaryDirectory(dir=options.out) as place, quiet_pillow():
        folder = Path(place).absolute() / "pictures"
        folder.mkdir()
        paths = make_pictures(folder, n)
        size = sum(Path(p).stat().st_size for p in paths) / n / 1e6
        notes.append(
            f"JPEGs of {SIZE[0]} × {SIZE[1]} pixels, {size:.1f} MB each on average. The baseline decodes them by"
            f" {WORKERS} threads: " + "; ".join(baseline(paths[0], name) for name in ENCODERS)
        )
        for name in ENCODERS:
            row = compared(name, paths) | own_process(peak, name, str(folder))
            click.echo(row, err=True)
            rows.append(row)
        index = own_process(indexed, str(folder))
    tables = {
        f"reading JPEGs of 12 million pixels, {WORKERS} threads": rows,
        "sparsight index FOLDER, bundled": [index],
    }
    return Section(tables, claims(rows), notes)


def baseline(path: str, name: str) -> str:
    """What the baseline decodes of a picture for an encoder, in words."""
    with Image.open(path) as file:
        file.draft("RGB", (side_of(ENCODERS[name]()),) * 2)
        return f"{name}: to {file.size[0]} × {file.size[1]}"


def own_process(work: Callable[..., Row], *arguments: str) -> Row:
    """A row that a function of this module measures in a process of its own."""
    command = [sys.executable, "-m", "eval.bench.pictures", work.__name__, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def claims(rows: list[Row]) -> list[Row]:
    """The bar and what was measured."""
    what = "pictures/s ÷ those of Pillow's own draft decode, as many threads"
    ratios = [(row["encoder, pixels"], float(str(row["ratio"]))) for row in rows]
    return [{"claim": f"{name}: {what}", "bar": BAR, "measured": r, "met": r >= BAR} for name, r in ratios]


if __name__ == "__main__":
    work, *arguments = sys.argv[1:]
    made = peak(arguments[0], Path(arguments[1])) if work == "peak" else indexed(Path(arguments[0]))
    print(json.dumps(made))
