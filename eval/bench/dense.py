"""Dense indexes by their FAISS description: the recall that they reach by default, and what it costs.

Over the bundled embeddings of CIFAR-10's 10,000 test pictures; with `--full` over all 60,000 pictures, which are
encoded from the folder that SPARSIGHT_DATA names. The queries are pictures and texts that no index was measured by.
Recall@10: the share of the true ten best that is found. Every score is the exact cosine.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from eval.bench.common import Options, Row, Section

if TYPE_CHECKING:
    from training.encoders import Encoder

DESCRIPTIONS = (
    "Flat", "IVF1024,Flat", "HNSW32,Flat", "IVF256_HNSW32,Flat", "PCA64,Flat", "SQ8", "SQ4", "PQ16", "PQ32",
    "OPQ16,PQ16", "OPQ32,PQ32", "RQ8x6", "LSQ8x6", "IVF256,PQ16", "PCA64,IVF256,SQ8", "IVF256,PQ32x4fs,RFlat", "LSH",
)  # fmt: skip
QUERIES = 200  # pictures; and as many texts at most
K = 10
KINDS = ("small", "large", "red", "dark", "young")


def run(options: Options) -> Section:
    """Builds each index over the embeddings, as `sparsight index --dense` does, and asks it."""
    import faiss

    from indexer.store.approximate import RECALL, build_approximate
    from indexer.store.dense import DenseIndex, FaissIndex, FlatIndex
    from indexer.store.vectors import Vectors, block_rows, write_vectors
    from training.encoders import load_test_embeddings, open_encoder

    encoder = open_encoder(options.encoder or "bundled")
    X, names = _cifar10(encoder) if options.full else load_test_embeddings(encoder).X, list(encoder.concepts)
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
            index: DenseIndex = flat
            row: Row = {"description": factory}
            if factory != "Flat":
                held = build_approximate(vectors, d, factory, D, RECALL)
                index, setting = FaissIndex(held, vectors), held.tuning.at(K)
                row["build_s"] = time.perf_counter() - begun
                row["bytes_per_picture"] = len(faiss.serialize_index(held.index)) / count
                row |= {"effort": setting and setting.effort, "candidates": setting and setting.candidates}
            for kind, Q in queries.items():
                begun = time.perf_counter()
                found = [index.search(q[None], K)[1][0] for q in Q]
                row[f"{kind}_ms"] = 1000 * (time.perf_counter() - begun) / len(Q)
                truth = [flat.search(q[None], K)[1][0] for q in Q]
                recall = float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))
                row[f"{kind}_recall"] = recall
                claim = f"{factory}: recall@{K} of {kind} queries"
                section.claims.append({"claim": claim, "bar": RECALL, "measured": recall, "met": recall >= RECALL})
            rows.append(row)
        vectors.close()
    section.tables[f"dense indexes over {len(X):,} × {d}"] = rows
    return section


def _cifar10(encoder: Encoder) -> np.ndarray:
    from training.data.cifar10 import load_cifar10

    pixels = load_cifar10(Path(os.environ.get("SPARSIGHT_DATA", "data"))).pixels
    return np.concatenate([encoder.encode_images(pixels[i : i + 500]) for i in range(0, len(pixels), 500)])
