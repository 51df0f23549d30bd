"""Concepts with a product-quantised residual beside OPQ at equal bytes: accuracy, cosine and recall@10.

Judged are CIFAR-10's 10,000 test pictures, by the embeddings that come with the encoder; codebooks are learnt from the
first 5,000 training pictures, which are encoded once (minutes, from the folder that SPARSIGHT_DATA names) and kept
beside the results. Each size is split between concepts and residual at several penalties; the best split of each size,
and OPQ at that size, are then measured over five seeds. Each fifth picture asks for its neighbours among all.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from scipy import sparse

from eval.baselines import Material, quantised
from eval.bench.common import Options, Row, Section
from eval.evaluators import compact_bytes
from eval.evaluators.residual import (
    Judged,
    best_at,
    codes_at,
    judge_codes,
    judge_quantiser,
    over_seeds,
    turned,
)
from indexer.residual import Coded, Quantiser
from indexer.store.residuals import Residuals
from search.ranking import top_k

if TYPE_CHECKING:
    from training.encoders import Encoder

Figures = dict[str, Any]  # as `eval.evaluators.residual` gives them
SEEDS = 5
PENALTIES = (0.8, 0.87, 0.95, 0.97)
SIZES = (16, 20, 24, 32)  # bytes a picture
LEARNT, EVERY = 5000, 5


def run(options: Options) -> Section:
    """Tries the splits, and measures the best of each size beside OPQ."""
    from indexer.coding import make_dictionary
    from training.data.cifar10 import CLASSES
    from training.encoders import load_test_embeddings, open_encoder

    encoder = open_encoder(options.encoder or "bundled")
    test, train = load_test_embeddings(encoder), _training_rows(encoder, options)
    D, T = make_dictionary("terms", encoder).D, encoder.encode_concepts(CLASSES, encoder.templates)
    judged = Judged(test.X, train, T, test.labels, EVERY)
    seeds, d = range(SEEDS), D.shape[1]
    codes = {l1: (codes_at(judged.X, D, l1), codes_at(train, D, l1)) for l1 in PENALTIES}
    tried = []
    for size in SIZES:
        for l1 in PENALTIES:
            parts = size - math.ceil(compact_bytes(codes[l1][0]) / len(judged.X))
            tried.append(judge_codes(judged, D, *codes[l1], l1=l1, description=opq(parts, d)))
            click.echo(f"tried {tried[-1]['name']}", err=True)
    chosen = {(row["l1"], row["description"]): None for size in SIZES if (row := best_at(tried, size))}
    ours, alone = [], []
    for l1, text in chosen:
        ours.append(over_seeds([judge_codes(judged, D, *codes[l1], l1=l1, description=text, seed=s) for s in seeds]))
        click.echo(f"measured {ours[-1]['name']}", err=True)
    for size in SIZES:
        for judge in (judge_quantiser, judge_faiss):
            alone.append(over_seeds([judge(judged, opq(size, d), s) for s in seeds]))
            click.echo(f"measured {alone[-1]['name']}", err=True)
    ours += [judge_codes(judged, D, *codes[l1], l1=l1, description="") for l1 in PENALTIES]
    rows = sorted(ours + alone, key=lambda row: row["bytes_per_image"])
    tables = {
        f"{len(test.X):,} test pictures, codebooks from {len(train):,} others, {SEEDS} seeds": [_row(r) for r in rows],
        "the splits that were tried, one seed": [_row(row) for row in tried],
    }
    tables["one sparse search, 24 bytes a picture, made-up codes"] = [_timed(n, D) for n in (60_000, 1_000_000)]
    return Section(tables, _claims(ours, alone))


def judge_faiss(judged: Judged, description: str, seed: int = 0) -> Figures:
    """The figures of a FAISS quantiser of the embeddings, as FAISS trains it; keys as those of `judge_residual`.

    FAISS begins an OPQ at a random rotation, `judge_quantiser` at principal axes of balanced variances: it is ahead.
    """
    turn = turned(judged.X.shape[1], seed)
    X, train = (np.ascontiguousarray(A @ turn, np.float32) for A in (judged.X, judged.train))
    kept = quantised(Material(X, train, X[:0], seed), description, own_start=True)
    return {
        "name": f"FAISS {description}",
        "description": description,
        "l1": None,
        "seed": seed,
        "bytes_per_image": kept.bytes_per_image,
        "concepts_mean": 0.0,
        "codebook_bytes": kept.table_bytes,
        **judged.figures(kept.A @ turn.T),
    }


def opq(parts: int, d: int) -> str:
    """The FAISS description of an OPQ of so many parts, a byte each, over as many of d axes as they divide."""
    axes = d // parts * parts
    return f"OPQ{parts}_{axes},PQ{parts}" if axes < d else f"OPQ{parts},PQ{parts}"


def _claims(ours: list[Figures], alone: list[Figures]) -> list[Row]:
    """At each size from 20 bytes on: is the readable code ahead of OPQ at no fewer bytes, as FAISS trains it, and as
    the residuals are learnt?"""
    claims: list[Row] = []
    for size in SIZES[1:]:
        if (best := best_at([row for row in ours if row["description"]], size)) is None:
            continue
        for bar in [row for row in alone if row["bytes_per_image"] == size]:
            for key in ("recall_both_coded", "recall_query_exact"):
                low, high = best["low"][key], bar["high"][key]
                claims.append(
                    {
                        "claim": f"{key}: {best['name']} ({best['bytes_per_image']:.1f} B) > {bar['name']} ({size} B)",
                        "bar": f"{bar[key]:.4f} (up to {high:.4f})",
                        "measured": f"{best[key]:.4f} (from {low:.4f})",
                        "met": low > high,
                    }
                )
    return claims


def _timed(n: int, D: np.ndarray) -> Row:
    """How long it takes to score n pictures for a text, and to find the ten best: the processor's time, the median of
    nine."""
    rng, d = np.random.default_rng(0), D.shape[1]
    axes = d // 24 * 24
    quantiser = Quantiser(np.eye(axes, d, dtype=np.float32), rng.normal(size=(24, 256, axes // 24)).astype(np.float32))
    W = sparse.random(n, len(D), 1.6 / len(D), format="csr", dtype=np.float32, random_state=0)
    coded = Coded(rng.integers(0, 256, (n, 24), dtype=np.uint8), np.ones(n, np.float32))
    kept, t = Residuals(quantiser, coded, W, D), rng.normal(size=(1, d))[0]
    times = []
    for _ in range(10):
        begun = time.process_time()
        top_k(kept.scores(t, D @ t), 10)
        times.append(time.process_time() - begun)
    return {"pictures": n, "ms": 1000 * float(np.median(times[1:]))}


def _row(row: Figures) -> Row:
    """A line of a table; what is known over seeds with half its interval."""
    shown: Row = {"code": row["name"], "bytes": round(float(row["bytes_per_image"]), 1)}
    for key in ("accuracy", "cosine", "recall_both_coded", "recall_query_exact"):
        low = row["low"][key] if "low" in row else None
        shown[key] = f"{row[key]:.4f}" + (f" ± {row[key] - low:.4f}" if low is not None else "")
    return shown | {"tables kB": round(int(row["codebook_bytes"]) / 1000)}


def _training_rows(encoder: Encoder, options: Options) -> np.ndarray:
    """Embeddings (k, d) of training pictures, encoded once."""
    from training.data.cifar10 import load_cifar10

    path = options.out / f"training-{encoder.fingerprint[:12]}.npy"
    if not path.is_file():
        pixels = load_cifar10(Path(os.environ.get("SPARSIGHT_DATA", "data")), ("train",)).pixels[:LEARNT]
        np.save(path, np.concatenate([encoder.encode_images(pixels[i : i + 500]) for i in range(0, LEARNT, 500)]))
    return np.load(path)[:LEARNT]
