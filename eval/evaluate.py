"""The report's numbers. Nearly all come from the two indexes of one store alone; the figures for open words and
for corrupted pictures need the encoder, and the latter the pictures too."""

from __future__ import annotations

import os
import platform
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version

import numpy as np
from tqdm import tqdm

from eval.baselines import baselines
from eval.corruptions import robustness
from eval.metrics import compact_bytes, compacted, csr_bytes, mcnemar, reconstruct, row_cosines, strongest, wilson
from eval.open_words import open_words
from eval.retrieval import neighbours, retrieval
from indexer.coding.coder import Codes, encode_sparse
from indexer.config import CoderConfig
from indexer.store import ImageRow, Store
from training.data.cifar10 import CLASSES, Pictures
from training.encoders import Encoder
from training.errors import SparsightError

SWEEP = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.08, 0.05)
MATCHED = 64  # bytes a picture of a baseline up to which codes are made to its size
ALL = "all labelled"  # in place of a split's name
SYNONYMS = 0.9  # cosine of two concepts' atoms from which the synonym-aware figure takes them as one


def evaluate(
    store: Store,
    *,
    split: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    examples: int = 8,
    encoder: Encoder | None = None,
    pictures: Pictures | None = None,
) -> dict:
    """Returns the report (DESIGN's keys) for the labelled pictures of a split: without one, of the split "test",
    or all labelled ones where it holds none.

    encoder: the index's, for the figures on open words; pictures: labelled pictures that it did not train on,
    for those on corruption.

    Raises `SparsightError` where there are fewer than two labelled pictures.
    """
    rows = store.images()
    known = store.classes()
    classes, T = list(known.names), known.T
    split, chosen = judged(rows, classes, split)
    if len(chosen) < 2:
        of_split = "" if split == ALL else f" of the split {split!r}"
        raise SparsightError(
            f"{store.folder} holds {len(chosen)} labelled picture(s){of_split}, too few for a report; class folders "
            "give labels: `sparsight index PATH --labels folders`"
        )
    X_all, D, W_all = store.embeddings(), store.dictionary(), store.codes()
    concepts = store.concepts()
    others = np.setdiff1d(np.arange(len(rows)), chosen)
    X, W = X_all[chosen], W_all[chosen]
    labels = np.array([classes.index(str(rows[i].label)) for i in chosen])
    R = reconstruct(W, D)
    dense_scores, sparse_scores = X @ T.T, R @ T.T
    dense_right, sparse_right = dense_scores.argmax(1) == labels, sparse_scores.argmax(1) == labels
    coder = store.meta.coder
    n = len(chosen)
    known_terms = any(rows[i].term is not None for i in chosen)
    terms = np.array([str(rows[i].term) for i in chosen]) if known_terms else None
    dense_neighbours = neighbours(X)

    def judge(A: np.ndarray) -> dict[str, float]:
        """What a representation A (n, d) of the same pictures is worth."""
        return {
            "accuracy": float(((A @ T.T).argmax(1) == labels).mean()),
            "cosine_mean": float(row_cosines(X, A).mean()),
            **retrieval(A, labels, terms, dense_neighbours),
        }

    train_rows = others if len(others) >= 10_000 else chosen
    found_baselines, left_out = baselines(X, X_all[train_rows], D, judge, seed)
    report: dict = {
        "dataset": {"name": store.meta.dataset, "split": split, "n": n, "indexed": len(rows)},
        "encoder": {
            "name": store.meta.encoder_name,
            "fingerprint": store.meta.encoder_fingerprint,
            "trained_on": store.meta.trained_on,
            "zero_shot": zero_shot_note(store.meta.trained_on),
        },
        "dictionary": {
            "source": store.meta.dictionary,
            "m": len(D),
            "fingerprint": store.meta.dictionary_fingerprint,
        },
        "dense": {"accuracy": float(dense_right.mean()), "ci95": wilson(int(dense_right.sum()), n)},
        "sparse": {
            "accuracy": float(sparse_right.mean()),
            "ci95": wilson(int(sparse_right.sum()), n),
            "l1": coder.l1,
            "l1_relative": coder.relative,
            "nnz_mean": W.nnz / n,
            "nnz_max": int(np.diff(W.indptr).max()),
            "empty": int((np.diff(W.indptr) == 0).sum()),
            "cosine_mean": float(row_cosines(X, R).mean()),
            "max_relative_gap": float(max(float(rows[i].gap or 0) for i in chosen)),
            "compact": {"bytes_per_image": compact_bytes(W) / n, **judge(reconstruct(compacted(W), D))},
        },
        "mcnemar_p": mcnemar(dense_right, sparse_right),
        "memory": {
            "dense_bytes": X.size * 4,
            "sparse_csr_bytes": csr_bytes(W),
            "ratio": csr_bytes(W) / (X.size * 4),
            "sparse_compact_bytes": compact_bytes(W),
            "dictionary_bytes": D.size * 4,
            "whole_index": {
                "n": len(rows),
                "dense_bytes": X_all.size * 4,
                "sparse_csr_bytes": csr_bytes(W_all),
                "ratio": csr_bytes(W_all) / (X_all.size * 4),
            },
            "disk": store.disk_bytes(),
        },
        "sweep": sweep(X, D, judge, coder, device),
        "matched": matched(X, D, judge, coder, device, [r["bytes_per_image"] for r in found_baselines]),
        "baselines": found_baselines,
        "baselines_left_out": left_out,
        "baselines_trained_on": "pictures outside the split" if train_rows is others else "the split itself",
        "concepts": concept_quality(X, W, D, labels, classes, concepts, [rows[i].term for i in chosen]),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "device": device,
            "seed": seed,
        },
        "versions": {p: version(p) for p in ("sparsight", "torch", "faiss-cpu", "duckdb", "scipy", "numpy")},
    }
    if encoder is not None and classes == list(CLASSES):
        groups = np.array(classes)[labels]
        report["open_words"] = open_words(encoder.encode_texts, X, R, D, groups)
    if encoder is not None and pictures is not None:
        report["corruptions"] = {
            "n": len(pictures),
            "rows": robustness(
                pictures.pixels,
                pictures.labels,
                encoder.encode_images,
                lambda A: reconstruct(encode_sparse(A, D, coder, device=device).W, D),
                T,
                seed,
            ),
        }
    names = [c.name for c in concepts]
    kinds = {"correct": np.flatnonzero(sparse_right), "wrong": np.flatnonzero(~sparse_right)}
    rng = np.random.default_rng(seed)
    report["concepts"]["examples"] = {
        kind: [
            _example(rows[chosen[i]], W[i], D, T, classes, names, int(sparse_scores[i].argmax()))
            for i in sorted(rng.choice(which, min(examples, len(which)), replace=False))
        ]
        for kind, which in kinds.items()
    }
    return report


def zero_shot_note(trained_on: str) -> str:
    """Whether the accuracy is that of pictures whose classes the encoder was never taught."""
    if "CIFAR-10" in trained_on:
        return f"not zero-shot in the strict sense: the encoder was trained on captions of {trained_on}"
    return f"zero-shot as far as sparsight knows: the encoder was trained on {trained_on}"


def judged(rows: list[ImageRow], classes: list[str], split: str | None) -> tuple[str, np.ndarray]:
    """The split to judge by, and the rows of its pictures whose label is one of the classes."""
    labelled = np.array([i for i, r in enumerate(rows) if r.label in classes], np.int64)
    of_split = np.array([i for i in labelled if rows[i].split == (split or "test")], np.int64)
    return (split or "test", of_split) if split or len(of_split) else (ALL, labelled)


def sweep(
    X: np.ndarray, D: np.ndarray, judge: Callable[[np.ndarray], dict[str, float]], coder: CoderConfig, device: str
) -> list[dict]:
    """Codes X at each relative penalty of SWEEP; `judge` says what the codes' reconstructions are worth."""
    points = []
    for l1 in tqdm(SWEEP, desc="sweep", unit="λ", file=sys.stderr):
        codes = encode_sparse(X, D, replace(coder, l1=l1, relative=True), device=device)
        points.append(_point(l1, codes, judge(reconstruct(codes.W, D))))
    return points


def matched(
    X: np.ndarray,
    D: np.ndarray,
    judge: Callable[[np.ndarray], dict[str, float]],
    coder: CoderConfig,
    device: str,
    sizes: Sequence[float],
) -> list[dict]:
    """Codes X at the smallest relative penalty, of thousandths, whose compact layout takes no more bytes a picture than
    each of `sizes`, as that layout gives them back; no label takes part in the choice."""

    def coded(thousandths: int) -> Codes:
        return encode_sparse(X, D, replace(coder, l1=thousandths / 1000, relative=True), device=device)

    points = []
    for size in sorted({s for s in sizes if s <= MATCHED}):
        fits = bisect_left(range(1000), True, lo=1, key=lambda k: compact_bytes(coded(k).W) <= size * len(X))
        if fits < 1000:
            codes = coded(fits)
            worth = judge(reconstruct(compacted(codes.W), D))
            points.append({"name": f"sparse within {size:g} bytes", **_point(fits / 1000, codes, worth)})
    return points


def _point(l1: float, codes: Codes, worth: dict[str, float]) -> dict:
    n = codes.W.shape[0]
    return {
        "l1": l1,
        "nnz_mean": codes.W.nnz / n,
        **worth,
        "bytes_per_image": csr_bytes(codes.W) / n,
        "compact_bytes_per_image": compact_bytes(codes.W) / n,
        "max_relative_gap": float(codes.gap.max()),
    }


def concept_quality(X, W, D, labels, classes, concepts, terms) -> dict:
    """Does the strongest concept name what the picture was found under? And does it belong to its class?

    Of all pictures, those of a term that is no concept count as misses. `dense` is the atom nearest to x.
    """
    ids = {name: c.id for c in concepts for name in (c.name, *c.aliases)}
    wanted = np.array([ids.get(t, -2) for t in terms])
    parents = np.array([classes.index(c.parent) if c.parent in classes else -2 for c in concepts])
    dense, sparse_ = (X @ D.T).argmax(1), strongest(W)
    found: dict = {}
    if (wanted >= 0).any():
        found["top_term_accuracy_dense"] = float((dense == wanted).mean())
        found["top_term_accuracy_sparse"] = float((sparse_ == wanted).mean())
        for side, top in (("dense", dense), ("sparse", sparse_)):
            near = (D[np.maximum(top, 0)] * D[np.maximum(wanted, 0)]).sum(1) >= SYNONYMS
            same = near & (top >= 0) & (wanted >= 0)
            found[f"top_term_accuracy_{side}_synonyms"] = float(same.mean())
    if (parents >= 0).any():
        found["top_concept_class_accuracy_dense"] = float((parents[dense] == labels).mean())
        right = np.where(sparse_ >= 0, parents[sparse_], -1) == labels
        found["top_concept_class_accuracy_sparse"] = float(right.mean())
    return found


def _example(row, w, D, T, classes, names, predicted: int) -> dict:
    contributions = w.data * (D[w.indices] @ T[predicted])
    order = np.argsort(-contributions, kind="stable")[:5]
    return {
        "id": row.image_id,
        "path": row.path,
        "label": row.label,
        "term": row.term,
        "predicted": classes[predicted],
        "concepts": [
            {"name": names[w.indices[j]], "weight": float(w.data[j]), "contribution": float(contributions[j])}
            for j in order
        ],
    }
