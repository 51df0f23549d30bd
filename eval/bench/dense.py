"""Dense indexes by their FAISS description: the recall that they reach by default, and what it costs.

Over the bundled embeddings of CIFAR-10's 10,000 test pictures; the queries are pictures and texts that no index was
measured by. Recall@10: the share of the true ten best that is found. Every score is the exact cosine.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
import numpy as np

from eval.bench.common import Options, Row, Section

DESCRIPTIONS = (
    "Flat", "IVF64,Flat", "IVF256,Flat", "HNSW32,Flat", "SQ8", "PQ16", "PQ32", "OPQ16,PQ16", "IVF64,PQ16", "RQ8x8",
    "PCA64,Flat", "PCA32,SQ8", "LSH",
)  # fmt: skip
QUERIES = 200  # pictures; and as many texts at most
K = 10
KINDS = ("small", "large", "red", "dark", "young")


def run(options: Options) -> Section:
    """Builds each index over the embeddings, as `sparsight index --dense` does, and asks it."""
    from indexer.store.approximate import build_approximate
    from indexer.store.dense import FaissIndex, FlatIndex
    from indexer.store.vectors import Vectors, block_rows, write_vectors
    from training.encoders import load_test_embeddings, open_encoder

    encoder = open_encoder(options.encoder or "bundled")
    X, names = load_test_embeddings(encoder).X, list(encoder.concepts)
    D = encoder.encode_concepts(names, encoder.templates)
    rng = np.random.default_rng(5)
    words = rng.choice(names, QUERIES // len(KINDS), replace=False)
    queries = {
        "picture": X[rng.choice(len(X), QUERIES, replace=False)],
        "text": encoder.encode_texts([f"a photo of a {kind} {word}" for word in words for kind in KINDS]),
    }
    section, d = Section(), X.shape[1]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        count, crcs = write_vectors(Path(folder) / "vectors", X, d, block_rows(d))
        vectors = Vectors(Path(folder) / "vectors", count, d, block_rows(d), crcs)
        flat = FlatIndex(vectors)
        for factory in DESCRIPTIONS:
            click.echo(factory, err=True)
            begun = time.perf_counter()
            index = flat if factory == "Flat" else FaissIndex(build_approximate(vectors, d, factory, D, 0.95), vectors)
            row: Row = {"description": factory, "build_s": time.perf_counter() - begun}
            for kind, Q in queries.items():
                begun = time.perf_counter()
                found = [index.search(q[None], K)[1][0] for q in Q]
                row[f"{kind}_ms"] = 1000 * (time.perf_counter() - begun) / len(Q)
                truth = [flat.search(q[None], K)[1][0] for q in Q]
                recall = float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))
                row[f"{kind}_recall"] = recall
                claim = f"{factory}: recall@{K} of {kind} queries"
                section.claims.append({"claim": claim, "bar": 0.95, "measured": recall, "met": recall >= 0.95})
            rows.append(row)
        vectors.close()
    section.tables["dense indexes"] = rows
    return section
