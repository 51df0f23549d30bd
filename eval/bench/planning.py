"""What a collection of any size would need: `python -m eval.bench --only planning`.

Unit costs are measured: seconds of one core for each stage of a build and each query, and bytes a picture of each
store. What more pictures need is derived from these by arithmetic alone (`derived`), and says so: no cluster was tried.
The encoder is a CLIP of base size (ViT-B/32, random weights, whose values change no speed), the dictionary 10,000 made
atoms of 512 numbers, 8 concepts a picture; pictures are JPEGs of 1024 × 768 pixels.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from eval.bench.coder_data import synthetic
from eval.bench.common import Options, Row, Section, cpu_seconds
from eval.bench.encoders import make_clip
from eval.bench.pictures import photographs, read
from eval.bench.scale import described_rows
from training.terminal import progress

PICTURES = 64  # that are read and encoded
ROWS, ATOMS, DIM, CONCEPTS = 20_000, 10_000, 512, 8  # of the codes and the stores
QUERIES = 20
SIDE = (1024, 768)
SIZES = (10**6, 10**8, 10**10)
CORES, DAY, MONTH = 16, 24, 30 * 24  # of a machine; hours
CORE_HOUR, GB_MONTH = 0.04, 0.08  # US dollars: what a core and a GB of disk cost at a large provider, roughly; assumed


@dataclass(frozen=True)
class Units:
    """Unit costs. Of a core: seconds a picture to read, encode, code, write to shards and load into a store; seconds a
    million pictures to answer a dense and a sparse query. Bytes a picture: in shards, in a store with exact vectors,
    and in one without."""

    read: float
    encode: float
    code: float
    shard: float
    load: float
    dense: float
    sparse: float
    shard_bytes: float
    vectors_bytes: float
    codes_bytes: float


def derived(units: Units, n: int) -> Row:
    """What n pictures need, by arithmetic on the unit costs: see the columns' names."""
    seconds = units.read + units.encode + units.code + units.shard + units.load
    hours = n * seconds / 3600
    disk = n * (units.shard_bytes + units.vectors_bytes) / 1e9
    return {
        "pictures": n,
        "core-hours, built once": hours,
        "machines for a day": hours / (CORES * DAY),
        "dollars, built once": hours * CORE_HOUR,
        "store, GB": n * units.vectors_bytes / 1e9,
        "store without vectors, GB": n * units.codes_bytes / 1e9,
        "dollars a month, disk": disk * GB_MONTH,
        "core-seconds a sparse query": n / 1e6 * units.sparse,
        "core-seconds a dense query": n / 1e6 * units.dense,
    }


def per_picture(n: int, work: Callable[[], object]) -> float:
    """Seconds of a core that a work takes for each of n pictures."""
    before = cpu_seconds()
    work()
    return (cpu_seconds() - before) / n


def web_pictures(folder: Path, n: int) -> list[str]:
    """Writes n JPEGs of 1024 × 768 pixels; returns their paths."""
    shown = [Image.open(io.BytesIO(data)).convert("RGB").resize(SIDE) for data in photographs()]
    paths = [str(folder / f"{i:04d}.jpg") for i in range(n)]
    for i, path in enumerate(paths):
        shown[i % len(shown)].save(path, quality=85)
        with Path(path).open("ab") as f:  # so that each has a content of its own
            f.write(i.to_bytes(8, "big"))
    return paths


def pictures_read_and_encoded(place: Path) -> tuple[float, float]:
    """Seconds of a core a picture: to read it, and to encode it."""
    from training.encoders import open_encoder

    encoder = open_encoder(str(make_clip(place / "clip", 32)))
    paths = web_pictures(place, PICTURES)
    read(paths[:4], encoder)
    reading = per_picture(PICTURES, lambda: read(paths, encoder))
    prepared = [encoder.prepare(Image.open(path)) for path in paths]
    encoder.encode_images(prepared[:4])
    return reading, per_picture(PICTURES, lambda: encoder.encode_images(prepared))


def stores(place: Path) -> dict[str, float]:
    """The unit costs of coding, shards, stores and queries."""
    from dataclasses import replace

    from indexer.build import Source, index_meta
    from indexer.coding import Dictionary, choose_l1, encode_sparse
    from indexer.config import CoderConfig, IndexConfig
    from indexer.exchange.export import export_index
    from indexer.exchange.importing import import_index
    from indexer.store import Classes, Contents, Pictures, write_store, writing
    from training.encoders import open_encoder

    X, D = synthetic(ROWS, ATOMS, DIM, CONCEPTS)
    coder = CoderConfig(refit=True)
    coder = replace(coder, l1=choose_l1(X, D, CONCEPTS, coder))
    encode_sparse(X[:500], D, coder)
    before = cpu_seconds()
    codes = encode_sparse(X, D, coder)
    found = {"code": (cpu_seconds() - before) / ROWS}
    names = [f"concept {i}" for i in range(ATOMS)]
    dictionary = Dictionary(names=names, aliases=[[]] * ATOMS, parents=[None] * ATOMS, D=D, source="made")
    sizes = {}
    for kind, keeps in (("vectors_bytes", True), ("codes_bytes", False)):
        config = IndexConfig(coder=coder, vectors=keeps)
        meta = index_meta(open_encoder(), dictionary, Source(dataset="made", classes=()), config, ("a {}",))
        contents = Contents(
            meta=meta,
            pictures=Pictures(
                X=X if keeps else np.zeros((ROWS, 0), np.float32),
                W=codes.W,
                l1=codes.l1,
                gap=codes.gap,
                described=described_rows(ROWS),
            ),
            dictionary=dictionary,
            classes=Classes([], np.zeros((0, DIM), np.float32)),
        )
        with writing(place / kind, "bench"):
            write_store(place / kind, contents)
        sizes[kind] = folder_bytes(place / kind) / ROWS
    index, shards = place / "vectors_bytes", place / "shards"
    found["shard"] = per_picture(ROWS, lambda: export_index(index, shards))
    found["load"] = per_picture(ROWS, lambda: import_index(place / "loaded", shards))
    return found | sizes | {"shard_bytes": folder_bytes(shards) / ROWS} | queries(index, X)


def queries(index: Path, X: np.ndarray) -> dict[str, float]:
    """Seconds of a core for a dense and a sparse query over a million pictures, from those over an index."""
    from search.folder import FolderEngine

    engine = FolderEngine(index)
    S = X[: QUERIES + 1] @ engine.D.T
    ways: dict[str, Callable[[int], object]] = {
        "dense": lambda i: engine.dense(X[i], 10, None),
        "sparse": lambda i: engine.sparse(X[i], S[i], 10, None),
    }
    found = {}
    for mode, ask in ways.items():
        ask(QUERIES)  # reads what every query needs
        found[mode] = per_picture(QUERIES, lambda ask=ask: [*map(ask, range(QUERIES))]) * 1e6 / len(engine)  # type: ignore[misc]
    engine.close()
    return found


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(options: Options) -> Section:
    """Unit costs, measured, and what collections of some sizes need, derived."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.out) as made, progress("measure", 2) as step:
        place = Path(made).absolute()
        reading, encoding = pictures_read_and_encoded(place)
        step(1)
        units = Units(read=reading, encode=encoding, **stores(place))
        step(1)
    measured: list[Row] = [{"unit cost": name, "measured": value} for name, value in asdict(units).items()]
    return Section(
        {"unit costs, measured": measured, "needs, derived": [derived(units, n) for n in SIZES]},
        notes=[
            f"assumed: machines of {CORES} cores, {CORE_HOUR} dollars a core-hour, {GB_MONTH} dollars a GB-month",
            f"measured in {time.perf_counter() - start:.0f} s",
        ],
    )
