"""The searches timed side by side, on data made here: `python -m eval.bench.search`.

One thread, one query at a time, every way warm. Each way answers the same queries (`eval.bench.search_data`), and its
ten best are held against those of the float32 product.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import chain
from pathlib import Path

import click
import numpy as np
from scipy import sparse

from eval.bench.common import Options, Row, Section, table
from eval.bench.search_baselines import Faiss, duckdb_ways, milvus_ways, scipy_ways
from eval.bench.search_data import (
    RECALL,
    TERMS,
    K,
    M,
    Problem,
    Search,
    Way,
    by_concept,
    step,
    synthetic_codes,
    timed,
)  # fmt: skip
from eval.evaluators import recall
from eval.machine import hardware
from indexer.coding import Dictionary
from indexer.config import CoderConfig
from indexer.store import Classes, Contents, Described, IndexMeta, Pictures, Store, write_store
from indexer.store.postings import Postings, pack
from search.inverted import Inverted

LARGE = 2_000_000  # pictures; beyond it the store and milvus-lite alone take longer than all the rest


def bench_search(
    n: int = 1_000_000, queries: int = 50, seed: int = 0, *, dense: bool = True, hnsw: int = 100_000
) -> list[Row]:
    """Times every way to search over n synthetic pictures: one row a way and kind of query.

    dense: FAISS Flat and IVF over all n; hnsw: over how many of them to build an HNSW graph, 0 for none.
    """
    problem = Problem(n, queries, seed)
    start = time.perf_counter()
    postings = _packed(problem.columns)
    packing_s = time.perf_counter() - start
    rows = _ours(problem, postings, packing_s)
    for way in chain(scipy_ways(problem), duckdb_ways(problem)):
        rows += problem.time(way)
    if n <= LARGE:
        rows += _store(problem.W, postings)
        for way in milvus_ways(problem):
            rows += problem.time(way)
    if dense:
        rows += Faiss(problem, seed).rows(hnsw)
    return rows


def bench_scaling(sizes: tuple[int, ...], queries: int = 50, seed: int = 0, touched: int = 50_000) -> list[Row]:
    """The time of queries whose five lists hold about `touched` postings in all, at growing n."""
    rows: list[Row] = []
    for n in sizes:
        postings = _packed(by_concept(step(f"{n:,} pictures", partial(synthetic_codes, n, seed))))
        rng = np.random.default_rng(seed)
        nearest = np.argsort(np.abs(postings.images - touched / TERMS), kind="stable")[: 4 * TERMS]
        S = np.zeros((queries, M), np.float32)
        for row in S:
            row[rng.choice(nearest, TERMS, replace=False)] = rng.uniform(0.2, 1, TERMS)
        held = int(np.median([postings.images[s != 0].sum() for s in S]))
        found: Row = {"name": "sparsight exact", "queries": "equal postings", "n": n, "postings": held}
        found |= timed(_search_of(Inverted(postings, patience=0)), S, None)
        rows.append(found | {"bytes_per_posting": postings.nbytes / postings.sizes.sum()})
    return rows


def _packed(columns: sparse.csc_matrix) -> Postings:
    return step("packing", lambda: pack(columns.indptr, columns.indices, columns.data, columns.shape[0]))


def _ours(problem: Problem, postings: Postings, build_s: float) -> list[Row]:
    """One query at a time through the engine, and a batch of them as one product."""
    engine = Inverted(postings, patience=0)
    engine.search(problem.queries["any"][0], K)  # loads the kernels
    figures: Row = {"bytes_per_posting": postings.nbytes / problem.W.nnz, "build_s": build_s}
    rows = problem.time(Way("sparsight exact", _search_of(engine), figures, takes_all=True))
    engine.search_many(problem.queries["any"], K)  # loads the matrix
    for kind in ("frequent", "any"):
        S = problem.queries[kind]
        start = time.perf_counter()
        ids, _ = engine.search_many(S, K)
        each = (time.perf_counter() - start) / len(S) * 1e3
        row: Row = {"name": "sparsight batch, a query", "queries": kind, "n": problem.n, "median_ms": each}
        rows.append(row | {RECALL: recall(ids, problem.exact[kind])})
    return rows


def _search_of(engine: Inverted) -> Search:
    def search(s: np.ndarray) -> tuple[np.ndarray, int]:
        found = engine.search(s, K)
        return found.ids, found.read

    return search


COLD_LOOK_UP = """
import sys, time
import numpy as np
from indexer.store import Store
from search.inverted import Inverted

def read():
    return int(open("/proc/self/io").read().split()[1]) if sys.platform == "linux" else -1

begin = time.perf_counter()
with Store(sys.argv[1]) as store:
    opened = read()
    s = np.zeros(store.meta.m)
    s[int(sys.argv[2])] = 1
    Inverted(store.postings([int(sys.argv[2])])).search(s, 10)
print((time.perf_counter() - begin) * 1e3, read() - opened)
"""


def _store(W: sparse.csr_matrix, postings: Postings) -> list[Row]:
    """The packed postings in a store: bytes on disk, and the look-up of one concept in a new process."""
    n = W.shape[0]
    with tempfile.TemporaryDirectory() as folder:
        step("the store", lambda: _write_store(Path(folder), W))
        with Store(folder) as store:
            disk = store.disk_bytes()["index.duckdb:posting_blocks"]
            start = time.perf_counter()
            store.packed  # noqa: B018
            loaded = (time.perf_counter() - start) * 1e3
        first: Row = {"name": "store, all postings loaded", "n": n, "median_ms": loaded, "disk_bytes": disk}
        rows = [first | {"disk_bytes_per_posting": disk / W.nnz}]
        for j in (0, 100, 9_000):
            command = [sys.executable, "-c", COLD_LOOK_UP, folder, str(j)]
            found = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
            times, read = zip(*(map(float, f.stdout.split()) for f in found), strict=True)
            row: Row = {"name": "store, cold look-up of a concept", "n": n, "postings": int(postings.images[j])}
            row |= {"median_ms": np.median(times), "p10_ms": min(times), "p90_ms": max(times)}
            rows.append(row | {"bytes_read": max(read)})
    return rows


def _write_store(folder: Path, W: sparse.csr_matrix) -> None:
    """An index that holds the codes W and otherwise as little as it can."""
    n = W.shape[0]
    contents = Contents(
        meta=IndexMeta(
            d=1, dataset="synthetic", embedded="", encoder_name="", encoder_source="", encoder_fingerprint="",
            trained_on="", dictionary="synthetic", dictionary_fingerprint="", templates=(), coder=CoderConfig(),
        ),
        pictures=Pictures(
            X=np.zeros((n, 1), np.float32), W=W, l1=np.zeros(n), gap=np.zeros(n), described=Described(paths=[""] * n)
        ),
        dictionary=Dictionary(
            [str(j) for j in range(M)], [[]] * M, [None] * M, np.zeros((M, 1), np.float32), "synthetic"
        ),
        classes=Classes([], np.zeros((0, 1), np.float32)),
    )  # fmt: skip
    write_store(folder, contents)


def run(options: Options) -> Section:
    """The searches in a process of their own, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        section = Section()
        for name, arguments in (("searches", []), ("scaling", ["--scaling"]))[: 1 + options.full]:
            path = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", "eval.bench.search", "--json", str(path), *arguments]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
            section.tables[name] = json.loads(path.read_text())
    section.claims = claims(section.tables["searches"])
    return section


def claims(rows: list[Row]) -> list[Row]:
    """What the query engine is held to, on frequent concepts, against the rows of `bench_search`."""
    n = max(int(str(row["n"])) for row in rows)
    by_name = {str(row["name"]): row for row in rows if row.get("queries") == "frequent" and row["n"] == n}

    def figure(name: str, key: str) -> float:
        return float(str(by_name[name][key]))

    found: list[Row] = []
    for baseline, bar in (("FAISS Flat", 25.0), ("DuckDB SQL", 3.0), ("milvus-lite", 1.0), ("scipy", 1.0)):
        for name in (name for name in by_name if name.startswith(baseline)):
            times = figure(name, "median_ms") / figure("sparsight exact", "median_ms")
            found.append(
                {"claim": f"faster than {name}", "bar": f"≥ {bar:g} ×", "measured": times, "met": times >= bar}
            )
    size, recall = figure("sparsight exact", "bytes_per_posting"), figure("sparsight exact", RECALL)
    found.append({"claim": "bytes a posting, in memory", "bar": "≤ 3", "measured": size, "met": size <= 3})
    claim = f"{RECALL} of the float32 product"
    found.append({"claim": claim, "bar": "≥ 0.995", "measured": recall, "met": recall >= 0.995})
    return found


@click.command()
@click.option("--images", default=1_000_000, show_default=True)
@click.option("--queries", default=50, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--dense/--no-dense", default=True, help="FAISS over all images, d = 256: 1 KB each.")
@click.option("--hnsw", default=100_000, show_default=True, help="Images in the HNSW graph; slow to build; 0: none.")
@click.option("--scaling", is_flag=True, help="Only: equal postings at 100,000, 1,000,000 and 10,000,000 images.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows as JSON too.")
def main(images: int, queries: int, seed: int, dense: bool, hnsw: int, scaling: bool, path: Path | None) -> None:
    """Times the searches over synthetic images, one thread."""
    if scaling:
        rows = bench_scaling((100_000, 1_000_000, 10_000_000), queries, seed)
    else:
        rows = bench_search(images, queries, seed, dense=dense, hnsw=hnsw)
    click.echo(json.dumps(hardware()))
    click.echo(table(rows))
    if path:
        path.write_text(json.dumps(rows, indent=1, default=float))


if __name__ == "__main__":
    main()
