"""The searches timed side by side, on data made here: `python -m eval.bench.search`.

n images of 8 concepts each out of 10,000, used as often as words are (Zipf); weights are exponential. A query is five
concepts with scores between 0.2 and 1, drawn either as often as they are used ("frequent": long lists) or all alike
("any"); or all 10,000 with scores of either sign, as a text gives them ("all"). One thread, one query at a time, every
way warm; each way answers the same queries, and its ten best are held against the float32 product's. FAISS searches
the same pictures' embeddings, X = W D normalised, by the query's own Σ s_j D_j: another score, so its recall is
against FAISS Flat.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from scipy import sparse

from eval.retrieval import overlap
from indexer.coding.dictionary import Dictionary
from indexer.config import CoderConfig
from indexer.store import Classes, Contents, Described, IndexMeta, Pictures, Store, write_store
from indexer.store.postings import Postings, pack
from search.engine import top_k
from search.inverted import Inverted

if TYPE_CHECKING:
    from eval.bench.common import Options, Section

M, CONCEPTS, DIM, TERMS, K = 10_000, 8, 256, 5, 10
LARGE = 2_000_000
Rows = list[dict[str, object]]


def synthetic_codes(n: int, seed: int) -> sparse.csr_matrix:
    """W (n, M) CSR with CONCEPTS different concepts a row, concept r drawn in proportion to 1 / (r + 1)."""
    rng, share = np.random.default_rng(seed), _zipf()
    concepts = np.searchsorted(share, rng.random((n, CONCEPTS))).astype(np.int32)
    left = np.arange(n)
    while len(left):  # draw again what a row has drawn twice
        rows = concepts[left]
        again = np.zeros(rows.shape, bool)
        for a in range(1, CONCEPTS):
            again[:, a] = (rows[:, :a] == rows[:, a : a + 1]).any(1)
        rows[again] = np.searchsorted(share, rng.random(int(again.sum())))
        concepts[left] = rows
        left = left[again.any(1)]
    weights = (rng.exponential(0.15, concepts.shape) + 0.02).astype(np.float32)
    indptr = np.arange(n + 1, dtype=np.int64) * CONCEPTS
    return sparse.csr_matrix((weights.ravel(), concepts.ravel(), indptr), shape=(n, M))


def synthetic_queries(count: int, seed: int, kind: str) -> np.ndarray:
    """S (count, M) with TERMS scores a row; for the kind "all" D t, a text's."""
    rng = np.random.default_rng(seed)
    if kind == "all":
        D = rng.normal(size=(M, DIM)).astype(np.float32)
        D /= np.linalg.norm(D, axis=1, keepdims=True)
        t = D[rng.integers(0, M, count)] + 0.5 * D[rng.integers(0, M, count)]
        return t / np.linalg.norm(t, axis=1, keepdims=True) @ D.T
    chance = np.diff(_zipf(), prepend=0.0) if kind == "frequent" else np.full(M, 1 / M)
    S = np.zeros((count, M), np.float32)
    for row in S:
        row[rng.choice(M, TERMS, replace=False, p=chance)] = rng.uniform(0.2, 1, TERMS)
    return S


def bench_search(
    n: int = 1_000_000, queries: int = 50, seed: int = 0, *, dense: bool = True, hnsw: int = 100_000
) -> Rows:
    """Times every way to search over n synthetic images: one row a way and kind of query.

    dense: FAISS Flat and IVF over all n; hnsw: over how many of them to build an HNSW graph, 0 for none.
    """
    rows: Rows = []
    W = _step(f"{n:,} images", lambda: synthetic_codes(n, seed))
    kinds = {kind: synthetic_queries(queries, seed + 1, kind) for kind in ("frequent", "any", "all")}
    columns = _by_concept(W)
    start = time.perf_counter()
    postings = _step("packing", partial(pack, columns.indptr, columns.indices, columns.data, n))
    memory = {"bytes_per_posting": postings.nbytes / W.nnz, "build_s": time.perf_counter() - start}
    engine = Inverted(postings, patience=0)
    engine.search(kinds["any"][0], K)  # loads the kernels
    exact = {kind: np.array([top_k(W @ s, K) for s in S]) for kind, S in kinds.items()}

    def time_all(name: str, search: Callable[[np.ndarray], tuple[np.ndarray, int]], **more: object) -> None:
        for kind, S in kinds.items():
            if kind == "all" and name not in ("sparsight exact", "scipy W @ s"):
                continue  # ways that are not made for it, or take seconds
            rows.append({"name": name, "queries": kind, "n": n} | timed(search, S, exact[kind]) | more)

    time_all("sparsight exact", _search_of(engine), **memory)
    for trust in (0.7, 0.5, 0.3, 0.1):
        time_all(f"sparsight trust {trust:g}", _search_of(engine, trust))
    engine.search_many(kinds["any"], K)  # loads the matrix
    for kind in ("frequent", "any"):
        S = kinds[kind]
        start = time.perf_counter()
        ids, _ = engine.search_many(S, K)
        each = (time.perf_counter() - start) / queries * 1e3
        found: dict[str, object] = {"name": "sparsight batch, a query", "queries": kind, "n": n, "median_ms": each}
        rows.append(found | {"overlap": overlap(ids, exact[kind])})
    del engine.__dict__["_codes"]
    time_all("scipy W @ s", lambda s: (top_k(W @ s, K), W.nnz), bytes_per_posting=8 + 8 / CONCEPTS)
    lists = sparse.csr_matrix((columns.data, columns.indices, columns.indptr), shape=(M, n))  # Wᵀ, no copy
    time_all("scipy s Wᵀ, both sparse", lambda s: (_sparse_product(s, lists), int(postings.images[s != 0].sum())))
    for name, search, more in _duckdb(columns):
        time_all(name, search, **more)
    if n <= LARGE:  # beyond it these alone take longer than all the rest
        rows += _store(W, postings)
        for name, search, more in _milvus(W):
            time_all(name, search, **more)
    if dense:
        rows += _faiss(W, kinds, seed, hnsw)
    return rows


def bench_scaling(sizes: tuple[int, ...], queries: int = 50, seed: int = 0, touched: int = 50_000) -> Rows:
    """The time of queries whose five lists hold about `touched` postings in all, at growing n."""
    rows: Rows = []
    for n in sizes:
        columns = _step(f"{n:,} images", partial(synthetic_codes, n, seed), _by_concept)
        postings = _step("packing", partial(pack, columns.indptr, columns.indices, columns.data, n))
        del columns
        engine, rng = Inverted(postings, patience=0), np.random.default_rng(seed)
        nearest = np.argsort(np.abs(postings.images - touched / TERMS), kind="stable")[: 4 * TERMS]
        S = np.zeros((queries, M), np.float32)
        for row in S:
            row[rng.choice(nearest, TERMS, replace=False)] = rng.uniform(0.2, 1, TERMS)
        held = int(np.median([postings.images[s != 0].sum() for s in S]))
        bytes_each = postings.nbytes / postings.sizes.sum()
        found: dict[str, object] = {"name": "sparsight exact", "queries": "equal postings", "n": n, "postings": held}
        rows.append(found | timed(_search_of(engine), S, None) | {"bytes_per_posting": bytes_each})
    return rows


def _search_of(engine: Inverted, trust: float = 1.0) -> Callable[[np.ndarray], tuple[np.ndarray, int]]:
    def search(s: np.ndarray) -> tuple[np.ndarray, int]:
        found = engine.search(s, K, trust=trust)
        return found.ids, found.read

    return search


def timed(
    search: Callable[[np.ndarray], tuple[np.ndarray, int]], S: np.ndarray, exact: np.ndarray | None
) -> dict[str, object]:
    """Median and the 10th and 90th percentile of single queries' times in ms; the answers' overlap with `exact`."""
    search(S[0])
    times, found, read = [], [], []
    for s in S:
        start = time.perf_counter()
        ids, postings = search(s)
        times.append((time.perf_counter() - start) * 1e3)
        found.append(ids)
        read.append(postings)
    low, median, high = np.percentile(times, (10, 50, 90))
    result: dict[str, object] = {"median_ms": median, "p10_ms": low, "p90_ms": high, "read": float(np.median(read))}
    return result if exact is None else result | {"overlap": overlap(np.array(found), exact)}


def _duckdb(columns: sparse.csc_matrix) -> Iterator[tuple]:
    """The same query as SQL on plain postings, (concept_id, image_id, weight) rows clustered by concept."""
    import duckdb

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.duckdb"
        start = time.perf_counter()
        with duckdb.connect(str(path), config={"threads": 1}) as con:
            concept_id = np.repeat(np.arange(M, dtype=np.int32), np.diff(columns.indptr))
            incoming = {"concept_id": concept_id, "image_id": columns.indices.astype(np.int32), "weight": columns.data}
            con.register("incoming", incoming)
            con.execute("CREATE TABLE postings AS SELECT * FROM incoming")
            con.unregister("incoming")
        more = {"build_s": time.perf_counter() - start, "bytes_per_posting": path.stat().st_size / columns.nnz}
        with duckdb.connect(str(path), read_only=True, config={"threads": 1}) as con:

            def search(s: np.ndarray) -> tuple[np.ndarray, int]:
                terms = np.flatnonzero(s)
                cases = " ".join(f"WHEN {j} THEN {s[j]}" for j in terms)
                rows = con.execute(
                    f"SELECT image_id, sum(weight * CASE concept_id {cases} END) AS score FROM postings "
                    f"WHERE concept_id IN ({', '.join(map(str, terms))}) "
                    f"GROUP BY image_id ORDER BY score DESC, image_id LIMIT {K}"
                ).fetchall()
                return _filled([i for i, _ in rows]), int(np.diff(columns.indptr)[terms].sum())

            yield "DuckDB SQL on plain postings", search, more


def _store(W: sparse.csr_matrix, postings: Postings) -> Rows:
    """The packed postings in a store: bytes on disk, and the look-up of one concept in a new process."""
    n = W.shape[0]
    names = [str(j) for j in range(M)]
    contents = Contents(
        meta=IndexMeta(
            d=1, dataset="synthetic", embedded="", encoder_name="", encoder_source="", encoder_fingerprint="",
            trained_on="", dictionary="synthetic", dictionary_fingerprint="", templates=(), coder=CoderConfig(),
        ),
        pictures=Pictures(
            X=np.zeros((n, 1), np.float32), W=W, l1=np.zeros(n), gap=np.zeros(n), described=Described(paths=[""] * n)
        ),
        dictionary=Dictionary(names, [[]] * M, [None] * M, np.zeros((M, 1), np.float32), "synthetic"),
        classes=Classes([], np.zeros((0, 1), np.float32)),
    )  # fmt: skip
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "import numpy as np\n"
        "from indexer.store import Store; from search.inverted import Inverted\n"
        "def read(): return int(open('/proc/self/io').read().split()[1]) if sys.platform == 'linux' else -1\n"
        "begin, before = time.perf_counter(), read()\n"
        "with Store(sys.argv[1]) as store:\n"
        "    opened = read()\n"
        "    j = int(sys.argv[2]); s = np.zeros(store.meta.m); s[j] = 1\n"
        "    Inverted(store.postings([j])).search(s, 10)\n"
        "print((time.perf_counter() - begin) * 1e3, read() - opened)"
    )
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        _step("the store", lambda: write_store(Path(folder), contents))
        with Store(folder) as store:
            disk = store.disk_bytes()["index.duckdb:posting_blocks"]
            start = time.perf_counter()
            store.packed  # noqa: B018
            loaded = (time.perf_counter() - start) * 1e3
        rows.append({"name": "store, all postings loaded", "n": n, "median_ms": loaded, "disk_bytes": disk})
        rows[-1]["disk_bytes_per_posting"] = disk / W.nnz
        for j in (0, 100, 9_000):
            found = [
                subprocess.run([sys.executable, "-c", code, folder, str(j)], capture_output=True, text=True, check=True)
                for _ in range(3)
            ]
            times, read = zip(*(map(float, f.stdout.split()) for f in found), strict=True)
            held = int(postings.images[j])
            row = {"name": "store, cold look-up of a concept", "n": n, "postings": held, "median_ms": np.median(times)}
            rows.append(row | {"p10_ms": min(times), "p90_ms": max(times), "bytes_read": max(read)})
    return rows


def _milvus(W: sparse.csr_matrix) -> Iterator[tuple]:
    """milvus-lite's sparse index, where it is installed."""
    try:
        from pymilvus import DataType, MilvusClient

        version("milvus-lite")
    except (ImportError, PackageNotFoundError):
        print("milvus-lite is not installed: left out", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        client = MilvusClient(str(Path(folder) / "milvus.db"))
        schema = client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("codes", DataType.SPARSE_FLOAT_VECTOR)
        index = client.prepare_index_params()
        index.add_index("codes", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        client.create_collection("images", schema=schema, index_params=index)
        start = time.perf_counter()
        ids, weights = W.indices.reshape(-1, CONCEPTS), W.data.reshape(-1, CONCEPTS)
        for a in range(0, W.shape[0], 5000):
            batch = zip(range(a, a + 5000), ids[a : a + 5000].tolist(), weights[a : a + 5000].tolist(), strict=False)
            client.insert("images", [{"id": i, "codes": dict(zip(c, w, strict=True))} for i, c, w in batch])
        client.flush("images")
        client.load_collection("images")

        def search(s: np.ndarray) -> tuple[np.ndarray, int]:
            query = {int(j): float(s[j]) for j in np.flatnonzero(s)}
            hits = client.search(
                "images",
                [query],
                limit=K,
                anns_field="codes",
                search_params={"metric_type": "IP"},
                output_fields=["id"],
            )
            return _filled([int(h["id"]) for h in hits[0]]), -1

        yield "milvus-lite sparse", search, {"build_s": time.perf_counter() - start}
        client.close()


def _faiss(W: sparse.csr_matrix, kinds: dict[str, np.ndarray], seed: int, hnsw: int) -> Rows:
    """FAISS over the embeddings, one thread per query (the graph is built with all)."""
    import faiss

    n, rows = W.shape[0], Rows()
    D = np.random.default_rng(seed + 2).normal(size=(M, DIM)).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    X = _step("embeddings", lambda: W @ D)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    Q = {kind: kinds[kind] @ D for kind in ("frequent", "any")}

    def time_all(name: str, index, exact: dict[str, np.ndarray] | None, size: int, **more: object) -> dict:
        faiss.omp_set_num_threads(1)
        found = {}
        for kind, S in Q.items():
            result = timed(lambda q: (index.search(q[None], K)[1][0], -1), S, None if exact is None else exact[kind])
            if exact is not None:
                result["recall"] = result.pop("overlap")
            rows.append({"name": name, "queries": kind, "n": size} | result | more)
            found[kind] = index.search(S, K)[1]
        return found

    flat = faiss.IndexFlatIP(DIM)
    flat.add(X)
    exact = time_all("FAISS Flat", flat, None, n, memory_bytes=X.nbytes)
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    start = time.perf_counter()
    cells = int(4 * 2 ** round(np.log2(n) / 2 - 2))
    ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, cells, faiss.METRIC_INNER_PRODUCT)
    ivf.cp.niter = 5
    _step("IVF trained", partial(ivf.train, X[: 40 * cells]))
    _step("IVF filled", partial(ivf.add, X))
    more = {"build_s": time.perf_counter() - start, "memory_bytes": X.nbytes + 8 * n}
    for probes in (4, 16, 64):
        ivf.nprobe = probes
        time_all(f"FAISS IVF{cells}, {probes} probed", ivf, exact, n, **more)
    del ivf, flat
    if hnsw:
        X = X[:hnsw]
        flat = faiss.IndexFlatIP(DIM)
        flat.add(X)
        exact = time_all("FAISS Flat", flat, None, len(X), memory_bytes=X.nbytes) if len(X) < n else exact
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        start = time.perf_counter()
        graph = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
        _step("HNSW", lambda: graph.add(X))
        more = {"build_s": time.perf_counter() - start, "memory_bytes": X.nbytes + len(X) * (64 * 4 + 24)}
        for effort in (16, 64, 256):
            graph.hnsw.efSearch = effort
            time_all(f"FAISS HNSW32, efSearch {effort}", graph, exact, len(X), **more)
    return rows


def _zipf() -> np.ndarray:
    share = np.cumsum(1 / np.arange(1, M + 1))
    return share / share[-1]


def _sparse_product(s: np.ndarray, lists: sparse.csr_matrix) -> np.ndarray:
    found = sparse.csr_matrix(s) @ lists
    order = np.argsort(found.indices)
    return _filled(found.indices[order][top_k(found.data[order], K)].tolist())


def _filled(ids: list[int]) -> np.ndarray:
    """K ids, the missing ones −1, −2 …: pictures with a score of 0 are not among the answers of some."""
    return np.array(ids + [-1 - i for i in range(K - len(ids))])


def _by_concept(W: sparse.csr_matrix) -> sparse.csc_matrix:
    columns = W.tocsc()
    columns.sort_indices()
    return columns


def _step(what: str, *work: Callable):
    """Runs functions, each on what the one before gave, and tells how long they took."""
    start = time.perf_counter()
    result = work[0]()
    for function in work[1:]:
        result = function(result)
    print(f"{what}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return result


def run(options: Options) -> Section:
    """The searches in a process of their own, on one thread."""
    from eval.bench.common import Section

    with tempfile.TemporaryDirectory() as folder:
        section = Section()
        for name, arguments in (("searches", []), ("scaling", ["--scaling"]))[: 1 + options.full]:
            path = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", "eval.bench.search", "--json", str(path), *arguments]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
            section.tables[name] = json.loads(path.read_text())
    section.claims = claims(section.tables["searches"])
    return section


def claims(rows: Rows) -> Rows:
    """What the query engine is held to, on frequent concepts."""
    n = max(int(str(row["n"])) for row in rows)
    by_name = {str(row["name"]): row for row in rows if row.get("queries") == "frequent" and row["n"] == n}
    ours = by_name["sparsight exact"]

    def figure(row: dict[str, object], key: str) -> float:
        return float(str(row[key]))

    found: Rows = []
    for name, bar in (("FAISS Flat", 25.0), ("DuckDB SQL", 3.0), ("milvus-lite", 1.0), ("scipy", 1.0)):
        for baseline in (row for key, row in by_name.items() if key.startswith(name)):
            times = figure(baseline, "median_ms") / figure(ours, "median_ms")
            claim = f"faster than {baseline['name']}"
            found.append({"claim": claim, "bar": f"≥ {bar:g} ×", "measured": times, "met": times >= bar})
    held, same = figure(ours, "bytes_per_posting"), figure(ours, "overlap")
    found.append({"claim": "bytes a posting, in memory", "bar": "≤ 3", "measured": held, "met": held <= 3})
    found.append({"claim": "overlap@10 with float32", "bar": "≥ 0.995", "measured": same, "met": same >= 0.995})
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
    from eval.bench.common import hardware, table

    click.echo(json.dumps(hardware()))
    click.echo(table(rows))
    if path:
        path.write_text(json.dumps(rows, indent=1, default=float))


if __name__ == "__main__":
    main()
