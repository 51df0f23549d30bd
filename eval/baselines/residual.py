"""Concepts first, and what they leave of the embedding by a quantiser: a code that is readable and close."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from eval.baselines.kept import Kept, Material, kept_codes, timed
from eval.baselines.quantisers import quantised
from indexer.coding import encode_sparse
from indexer.config import CoderConfig

PENALTY = 0.95  # of λ_max: one concept or two, since the residual has the rest


def with_residual(material: Material, factory: str) -> Kept:
    """X as its code gives it back, in the compact layout, and x − wD by a FAISS quantiser that learned from such
    rests."""

    def rest(X: np.ndarray) -> tuple[np.ndarray, Kept]:
        codes, seconds = timed(lambda: encode_sparse(X, material.D, CoderConfig(PENALTY, refit=True)))
        kept = kept_codes(codes.W, material.D, seconds)
        return X - kept.A, kept

    left, kept = rest(material.X)
    learned = left if material.train is material.X else rest(material.train)[0]
    residual = quantised(replace(material, X=left, train=learned), factory)
    return Kept(
        A=kept.A + residual.A,
        bytes_per_image=kept.bytes_per_image + residual.bytes_per_image,
        table_bytes=kept.table_bytes + residual.table_bytes,
        concepts=kept.concepts,
        train_seconds=residual.train_seconds,
        code_seconds=kept.code_seconds + residual.code_seconds,
    )
