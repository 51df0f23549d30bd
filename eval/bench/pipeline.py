"""Embeddings through all of a large build: `python -m eval.bench --only pipeline`, with `--full` 1,000,000 pictures.

Embeddings as workers leave them (the bundled ones drawn again with noise, files of 5,000) are coded into shards, the
shards are imported into a store, the store is cut into ten, and these are searched as one. Each step has a process of
its own: its seconds on the clock and of the processor, and the most memory that it had, all in all, mapped files
included.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eval.bench.common import Options, Row, Section, at_most, cpu_seconds, memory
from eval.bench.scale import described_rows, noisy
from search.query import QUERY_MODES, QueryMode
from training.terminal import progress

SMALL, FULL, SHARDS, BATCH = 50_000, 1_000_000, 10, 5_000
MOST_MB = 4096.0
TEXTS = ("a fire engine", "a tabby cat", "a small dog", "a sailing ship", "a red truck", "an animal that meows")


def embed(place: Path, n: int) -> None:
    """Writes n embeddings as workers on Ray leave them."""
    from indexer.pictures import Picture
    from indexer.ray.encoded import write_encoded
    from training.encoders import load_test_embeddings, open_encoder

    real, rng = load_test_embeddings(open_encoder()).X, np.random.default_rng(0)
    thumbnails = [jpeg or b"" for jpeg in described_rows(BATCH).thumbnails]
    (place / "encoded").mkdir()
    with progress("embed", n) as step:
        for start in range(0, n, BATCH):
            X = noisy(real, min(BATCH, n - start), rng)
            known = [
                (Picture(f"/pictures/{i:08d}.jpg", hashlib.sha256(str(i).encode()).hexdigest(), i, i, None, jpeg), None)
                for i, jpeg in zip(range(start, start + len(X)), thumbnails, strict=False)
            ]
            write_encoded(place / "encoded" / f"{start:08d}.batch", known, X, [])
            step(len(X))


def code(place: Path, n: int) -> None:
    """Codes them, and writes shards and their manifest."""
    from indexer.build import Source, settle
    from indexer.config import IndexConfig
    from indexer.ray.encoded import EncodedRows
    from indexer.ray.shards import SHARD, Shard, ShardMaker, shared_contents, write_manifest
    from training.encoders import open_encoder

    paths = sorted((place / "encoded").glob("*.batch"))
    rows = np.arange(n, dtype=np.int32)
    X = EncodedRows(paths, np.stack([rows // BATCH, rows % BATCH], axis=1))
    settled, _ = settle(X, open_encoder(), IndexConfig(), Source(dataset="resampled"))
    shared = shared_contents(settled, None, [])
    (place / "shards" / "finished").mkdir(parents=True)
    maker = ShardMaker(place / "shards", shared, "cpu")
    starts = range(0, n, SHARD)
    with progress("code", n) as step:
        for number, start in enumerate(starts):
            stop = min(start + SHARD, n)
            nothing = (None,) * (stop - start)
            maker.make(Shard(number, start, X.pieces(start, stop), nothing, nothing))
            step(stop - start)
    write_manifest(place / "shards", shared, n, len(starts))


def load(place: Path, n: int) -> None:
    """Imports the shards into a store."""
    from indexer.exchange.importing import import_index

    import_index(place / "whole", place / "shards")


def cut(place: Path, n: int) -> None:
    """Cuts the store into shards of the same number of pictures."""
    from indexer.shards import split_index

    split_index(place / "whole", place / "stores", -(-n // SHARDS))


def ask(mode: QueryMode) -> Callable[[Path, int], Row]:
    """A search of the shards by each of some texts: the median of the clock, the first apart."""

    def work(place: Path, n: int) -> Row:
        import sparsight

        times = []
        with sparsight.open(place / "stores") as index:
            for text in (*TEXTS, *TEXTS, *TEXTS):
                start = time.perf_counter()
                found = index.search(text, mode=mode, all=True)
                times.append(time.perf_counter() - start)
                assert len(found) == 10
        return {"first, s": times[0], "median of the others, s": float(np.median(times[len(TEXTS) :]))}

    return work


WORKS: dict[str, Callable[[Path, int], Row | None]] = {
    "embeddings, made": embed,
    "code → shards": code,
    "shards → store": load,
    "store → ten shards": cut,
    **{f"search of ten shards, {mode}": ask(mode) for mode in QUERY_MODES},
}


def run(options: Options) -> Section:
    """Each step in its turn."""
    n = FULL if options.full else SMALL
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.out) as made:
        for name in WORKS:
            command = [sys.executable, "-m", "eval.bench.pipeline", name, str(Path(made).absolute()), str(n)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"pictures": n, **json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1], file=sys.stderr)
    most = [(f"{row['step']}: most memory, MB", MOST_MB, row["most MB"]) for row in rows]
    return Section({"from embeddings to answers": rows}, at_most(most))


def main(name: str, place: str, n: str) -> None:
    """Does one step and prints what it took."""
    cpu, start = cpu_seconds(), time.perf_counter()
    found = WORKS[name](Path(place), int(n)) or {}
    row: Row = {"step": name, "s": time.perf_counter() - start, "cpu s": cpu_seconds() - cpu}
    print(json.dumps(row | {"most MB": memory("VmHWM") / 2**20} | found))


if __name__ == "__main__":
    main(*sys.argv[1:])
