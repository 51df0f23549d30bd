"""Concepts with a product-quantised residual beside OPQ at equal bytes: accuracy, cosine and recall@10.

Judged are CIFAR-10's 10,000 test pictures, by the embeddings that come with the encoder; codebooks are learnt from the
first 10,000 training pictures, which are encoded once (minutes, from the folder that SPARSIGHT_DATA names) and kept
beside the results. Penalties and residuals are tried with codebooks from half of them; the best split of each size, and
OPQ at every size, are then measured over five seeds. Each fifth picture asks for its neighbours among all.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.bench.common import Options, Row, Section
from eval.evaluators.residual import Judged, best_at, codes_at, judge_codes, judge_quantiser, over_seeds

if TYPE_CHECKING:
    from training.encoders import Encoder

Figures = dict[str, Any]  # as `eval.evaluators.residual` gives them
SEEDS = 5
PENALTIES = (0.8, 0.87, 0.95, 0.97)
RESIDUALS = ("OPQ8,PQ8", "OPQ12_252,PQ12", "OPQ16,PQ16", "OPQ20_240,PQ20", "OPQ24_240,PQ24", "OPQ28_252,PQ28")
ALONE = ("OPQ16,PQ16", "OPQ20_240,PQ20", "OPQ24_240,PQ24", "OPQ32,PQ32")
SIZES = (16, 20, 24, 32)  # bytes a picture
LEARNT, EVERY = 10_000, 5


def run(options: Options) -> Section:
    """Tries the splits, and measures the best of each size beside OPQ."""
    from indexer.coding import make_dictionary
    from training.data.cifar10 import CLASSES
    from training.encoders import load_test_embeddings, open_encoder

    encoder = open_encoder(options.encoder or "bundled")
    test, train = load_test_embeddings(encoder), _training_rows(encoder, options)
    D, T = make_dictionary("terms", encoder).D, encoder.encode_concepts(CLASSES, encoder.templates)
    judged = Judged(test.X, train, T, test.labels, EVERY)
    half = replace(judged, train=train[: len(train) // 2])
    codes = {l1: (codes_at(judged.X, D, l1), codes_at(train, D, l1)) for l1 in PENALTIES}
    tried = [
        judge_codes(half, D, codes[l1][0], codes[l1][1][: len(half.train)], l1=l1, description=description)
        for l1 in PENALTIES
        for description in RESIDUALS
    ]
    chosen = {(row["l1"], row["description"]): row for size in SIZES if (row := best_at(tried, size))}
    ours = [
        over_seeds([judge_codes(judged, D, *codes[l1], l1=l1, description=text, seed=s) for s in range(SEEDS)])
        for l1, text in chosen
    ]
    ours += [judge_codes(judged, D, *codes[l1], l1=l1, description="") for l1 in PENALTIES]
    alone = [over_seeds([judge_quantiser(judged, text, s) for s in range(SEEDS)]) for text in ALONE]
    rows = sorted(ours + alone, key=lambda row: row["bytes_per_image"])
    tables = {
        f"{len(test.X):,} test pictures, codebooks from {len(train):,} others, {SEEDS} seeds": [_row(r) for r in rows],
        f"tried with codebooks from {len(half.train):,} pictures, one seed": [_row(row) for row in tried],
    }
    return Section(tables, _claims(ours, alone))


def _claims(ours: list[Figures], alone: list[Figures]) -> list[Row]:
    """At each size from 20 bytes on: is the readable code ahead of OPQ at no fewer bytes?"""
    claims: list[Row] = []
    for size in SIZES[1:]:
        best = best_at([row for row in ours if row["description"]], size)
        bar = next(row for row in alone if row["bytes_per_image"] == size)
        if best is None:
            continue
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
