"""The baselines of the searches: scipy, DuckDB SQL, milvus-lite, and FAISS over the embeddings."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from eval.bench.common import Row
from eval.bench.search_data import CONCEPTS, DIM, RECALL, K, M, Problem, Way, filled, step, timed
from search.ranking import top_k


def scipy_ways(problem: Problem) -> Iterator[Way]:
    """Products in scipy: of W with a dense query, and of a sparse query with Wᵀ."""
    W, columns = problem.W, problem.columns
    yield Way("scipy W @ s", lambda s: (top_k(W @ s, K), W.nnz), {"bytes_per_posting": 8 + 8 / CONCEPTS}, True)
    lists = sparse.csr_matrix((columns.data, columns.indices, columns.indptr), shape=(M, problem.n))  # Wᵀ, no copy
    counts = np.diff(columns.indptr)

    def search(s: np.ndarray) -> tuple[np.ndarray, int]:
        found = sparse.csr_matrix(s) @ lists
        order = np.argsort(found.indices)
        return filled(found.indices[order][top_k(found.data[order], K)].tolist()), int(counts[s != 0].sum())

    yield Way("scipy s Wᵀ, both sparse", search)


def duckdb_ways(problem: Problem) -> Iterator[Way]:
    """The same query as SQL on plain postings, (concept_id, image_id, weight) rows clustered by concept."""
    import duckdb

    columns = problem.columns
    counts = np.diff(columns.indptr)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.duckdb"
        start = time.perf_counter()
        with duckdb.connect(str(path), config={"threads": 1}) as con:
            concept_id = np.repeat(np.arange(M, dtype=np.int32), counts)
            incoming = {"concept_id": concept_id, "image_id": columns.indices.astype(np.int32), "weight": columns.data}
            con.register("incoming", incoming)
            con.execute("CREATE TABLE postings AS SELECT * FROM incoming")
            con.unregister("incoming")
        figures: Row = {"build_s": time.perf_counter() - start}
        figures["bytes_per_posting"] = path.stat().st_size / columns.nnz
        with duckdb.connect(str(path), read_only=True, config={"threads": 1}) as con:

            def search(s: np.ndarray) -> tuple[np.ndarray, int]:
                terms = np.flatnonzero(s)
                cases = " ".join(f"WHEN {j} THEN {s[j]}" for j in terms)
                rows = con.execute(
                    f"SELECT image_id, sum(weight * CASE concept_id {cases} END) AS score FROM postings "
                    f"WHERE concept_id IN ({', '.join(map(str, terms))}) "
                    f"GROUP BY image_id ORDER BY score DESC, image_id LIMIT {K}"
                ).fetchall()
                return filled([i for i, _ in rows]), int(counts[terms].sum())

            yield Way("DuckDB SQL on plain postings", search, figures)


def milvus_ways(problem: Problem) -> Iterator[Way]:
    """milvus-lite's sparse index, where it is installed."""
    try:
        from pymilvus import MilvusClient

        version("milvus-lite")
    except (ImportError, PackageNotFoundError):
        print("milvus-lite is not installed: left out", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        client = MilvusClient(str(Path(folder) / "milvus.db"))
        start = time.perf_counter()
        _fill_milvus(client, problem.W)

        def search(s: np.ndarray) -> tuple[np.ndarray, int]:
            query = {int(j): float(s[j]) for j in np.flatnonzero(s)}
            settings = {"anns_field": "codes", "search_params": {"metric_type": "IP"}, "output_fields": ["id"]}
            hits = client.search("images", [query], limit=K, **settings)
            return filled([int(h["id"]) for h in hits[0]]), -1

        yield Way("milvus-lite sparse", search, {"build_s": time.perf_counter() - start})
        client.close()


def _fill_milvus(client: Any, W: sparse.csr_matrix) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("codes", DataType.SPARSE_FLOAT_VECTOR)
    index = client.prepare_index_params()
    index.add_index("codes", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    client.create_collection("images", schema=schema, index_params=index)
    ids, weights = W.indices.reshape(-1, CONCEPTS), W.data.reshape(-1, CONCEPTS)
    for a in range(0, W.shape[0], 5000):
        batch = zip(range(a, a + 5000), ids[a : a + 5000].tolist(), weights[a : a + 5000].tolist(), strict=False)
        client.insert("images", [{"id": i, "codes": dict(zip(c, w, strict=True))} for i, c, w in batch])
    client.flush("images")
    client.load_collection("images")


class Faiss:
    """FAISS over the same pictures' embeddings X (n, DIM) = W D, normalised; one thread per query.

    It searches by a query's own vector Σ s_j D_j. That is another score than the sparse one, so its recall is of what
    FAISS Flat finds. Indexes are built with all threads.
    """

    def __init__(self, problem: Problem, seed: int):
        D = np.random.default_rng(seed + 2).normal(size=(M, DIM)).astype(np.float32)
        D /= np.linalg.norm(D, axis=1, keepdims=True)
        self.X = step("embeddings", lambda: problem.W @ D)
        self.X /= np.linalg.norm(self.X, axis=1, keepdims=True)
        self.queries = {kind: problem.queries[kind] @ D for kind in ("frequent", "any")}

    def rows(self, hnsw: int) -> list[Row]:
        """Flat and IVF over all pictures, HNSW over the first `hnsw` of them (0: none)."""
        rows, exact = self._flat(len(self.X))
        rows += self._ivf(exact)
        if hnsw:
            fewer, exact = self._flat(hnsw) if hnsw < len(self.X) else ([], exact)
            rows += fewer + self._hnsw(hnsw, exact)
        return rows

    def _flat(self, n: int) -> tuple[list[Row], dict[str, np.ndarray]]:
        """Its rows, and the ids (q, K) that it finds by kind of query."""
        import faiss

        X = self.X[:n]
        index = faiss.IndexFlatIP(DIM)
        index.add(X)
        rows = self._time("FAISS Flat", index, None, {"memory_bytes": X.nbytes})
        return rows, {kind: index.search(Q, K)[1] for kind, Q in self.queries.items()}

    def _ivf(self, exact: dict[str, np.ndarray]) -> list[Row]:
        import faiss

        X = self.X
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        start = time.perf_counter()
        cells = int(4 * 2 ** round(np.log2(len(X)) / 2 - 2))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter = 5
        step("IVF trained", lambda: index.train(X[: 40 * cells]))
        step("IVF filled", lambda: index.add(X))
        figures: Row = {"build_s": time.perf_counter() - start, "memory_bytes": X.nbytes + 8 * len(X)}
        rows = []
        for probes in (4, 16, 64):
            index.nprobe = probes
            rows += self._time(f"FAISS IVF{cells}, {probes} probed", index, exact, figures)
        return rows

    def _hnsw(self, n: int, exact: dict[str, np.ndarray]) -> list[Row]:
        import faiss

        X = self.X[:n]
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        start = time.perf_counter()
        graph = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
        step("HNSW", lambda: graph.add(X))
        figures: Row = {"build_s": time.perf_counter() - start, "memory_bytes": X.nbytes + len(X) * (64 * 4 + 24)}
        rows = []
        for effort in (16, 64, 256):
            graph.hnsw.efSearch = effort
            rows += self._time(f"FAISS HNSW32, efSearch {effort}", graph, exact, figures)
        return rows

    def _time(self, name: str, index: Any, exact: dict[str, np.ndarray] | None, figures: Row) -> list[Row]:
        import faiss

        faiss.omp_set_num_threads(1)
        rows = []
        for kind, Q in self.queries.items():
            row = timed(lambda q: (index.search(q[None], K)[1][0], -1), Q, None if exact is None else exact[kind])
            if exact is not None:
                row[f"{RECALL} of Flat"] = row.pop(RECALL)
            rows.append({"name": name, "queries": kind, "n": index.ntotal} | row | figures)
        return rows
