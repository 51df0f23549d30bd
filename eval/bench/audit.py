"""How well the audit finds what was put there by code: wrong labels, near-duplicates, a mark.

Over the bundled embeddings of CIFAR-10's test pictures, which the encoder was not trained on; near-duplicates and marks
need the pictures themselves, from the folder that SPARSIGHT_DATA names. Wrong labels are ranked by cleanlab as well, by
the same probabilities; its licence is not ours, so it is in the extra `bench` alone.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from PIL import Image

from eval.bench.common import Options, Row, Section

if TYPE_CHECKING:
    from eval.audit.subject import Subject
    from training.encoders import Encoder

SEEDS = range(5)
FLIPPED = 0.05  # of the labels
MADE = 100  # near-duplicates of each kind
MARKED = 0.9  # of a class
EDGES = (0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0001)
BAR, DUPLICATES_BAR = 0.90, 0.95


def run(options: Options) -> Section:
    """Measures label errors always, the other parts where CIFAR-10's pictures are at hand."""
    from eval.audit.subject import read_subject
    from indexer.build import index_bundled
    from indexer.config import IndexConfig
    from indexer.store import Store
    from training.encoders import load_test_embeddings, open_encoder

    section, encoder = Section(), open_encoder(options.encoder or "bundled")
    with tempfile.TemporaryDirectory() as folder:
        index_bundled(Path(folder), load_test_embeddings(encoder), encoder, IndexConfig())
        with Store(folder) as store:
            subject = read_subject(store)
            _labels(section, subject)
            root = os.environ.get("SPARSIGHT_DATA", "data")
            if not (Path(root) / "cifar-10-batches-py").is_dir():
                section.notes.append(f"near-duplicates and marks are left out: no CIFAR-10 in {root}")
                return section
            from training.data.cifar10 import load_cifar10

            rgb = load_cifar10(Path(root), ("test",), download=False).pixels
            _duplicates(section, subject.X, rgb, encoder)
            _marks(section, subject, rgb)
    return section


def _labels(section: Section, subject: Subject) -> None:
    from eval.audit.evidence import weigh
    from eval.audit.labels import wrong_probability

    true, c = subject.labels, len(subject.classes)
    most = round(FLIPPED * len(true))
    rows: list[Row] = []
    told: list[np.ndarray] = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        flipped = np.zeros(len(true), bool)
        flipped[rng.choice(len(true), most, replace=False)] = True
        y = np.where(flipped, (true + rng.integers(1, c, len(true))) % c, true)
        begun = time.perf_counter()
        evidence = weigh(subject.X, y, subject.T, subject.D, subject.parents)
        wrong = wrong_probability(evidence.P, y)
        row: Row = {"seed": seed, "seconds": time.perf_counter() - begun}
        first = np.lexsort((evidence.P[np.arange(len(y)), y], -wrong))[:most]
        row |= {"recall": float(flipped[first].mean()), "expected": float(wrong.sum())}
        rows.append(
            row | {f"cleanlab_{way}": recall for way, recall in _cleanlab(y, evidence.P, flipped, most).items()}
        )
        told.append(np.stack([wrong, flipped], 1))
    section.tables[f"{most} of {len(true):,} labels flipped"] = rows
    wrong, flipped = np.concatenate(told).T
    bins = [(a, b, (wrong >= a) & (wrong < b)) for a, b in pairwise(EDGES)]
    section.tables["told and true probability, all seeds"] = [
        {"from": a, "to": min(b, 1), "labels": int(of.sum()), "told": wrong[of].mean(), "true": flipped[of].mean()}
        for a, b, of in bins
    ]
    least = min(float(str(row["recall"])) for row in rows)
    error = sum(of.mean() * abs(wrong[of].mean() - flipped[of].mean()) for *_, of in bins)
    _claim(section, "least recall of flipped labels among the first 5 %", BAR, least)
    section.notes.append(f"expected calibration error {error:.4f}")


def _cleanlab(y: np.ndarray, P: np.ndarray, flipped: np.ndarray, most: int) -> dict[str, float]:
    """The recall among the first by each of cleanlab's scores; nothing where it is not installed."""
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return {}
    ways = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
    return {
        way: float(flipped[np.argsort(get_label_quality_scores(y, P, method=way), kind="stable")[:most]].mean())
        for way in ways
    }


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """A picture as its JPEG gives it back."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out).convert("RGB"))


def shifted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moved by one or two pixels along each axis; edges are continued."""
    across, down = rng.choice([-2, -1, 1, 2], 2)
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)), mode="edge")
    return padded[2 + down : 34 + down, 2 + across : 34 + across]


def rescaled(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrunk to 50 to 75 % of its size, and enlarged again."""
    side = int(rng.integers(16, 25))
    small = Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC))


def toned(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each colour made lighter or darker, and stronger or weaker."""
    return np.clip(picture * rng.uniform(0.8, 1.2, 3) + rng.uniform(-20, 20, 3), 0, 255).astype(np.uint8)


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "mirror": lambda p, rng: p[:, ::-1],
    "shift": shifted,
    "gamma": lambda p, rng: (255 * (p / 255.0) ** np.exp(rng.uniform(-0.6, 0.6))).astype(np.uint8),
    "colour": toned,
    "JPEG": lambda p, rng: jpeg(p, int(rng.integers(25, 70))),
    "rescale": rescaled,
}


def _duplicates(section: Section, X: np.ndarray, rgb: np.ndarray, encoder: Encoder) -> None:
    """MADE near-duplicates of each kind among all test pictures; every picture goes through a thumbnail's JPEG."""
    from eval.audit.duplicates import pixel_pairs

    rng, n = np.random.default_rng(0), len(rgb)
    sources = rng.choice(n, MADE * len(KINDS), replace=False)
    kinds = np.repeat(list(KINDS), MADE)
    made = np.stack([KINDS[kind](rgb[i], rng) for kind, i in zip(kinds, sources, strict=True)])
    click.echo(f"encoding {len(made)} near-duplicates", err=True)
    every = np.concatenate([rgb, made])
    thumbnails = np.stack([jpeg(p, 90) for p in every])
    begun = time.perf_counter()
    pairs = pixel_pairs(np.concatenate([X, encoder.encode_images(list(made))]), thumbnails)
    seconds = time.perf_counter() - begun
    found = {(p.a, p.b) for p in pairs}
    hit = np.array([(source, n + j) in found for j, source in enumerate(sources)])
    # A copy of a picture that has near-duplicates in the split itself is theirs, too.
    alike = [{a, b} for a, b in found if b < n]
    right = []
    for a, b in ((a, b) for a, b in found if b >= n):
        one, other = (int(sources[i - n]) if i >= n else i for i in (a, b))
        right.append(one == other or {one, other} in alike)
    rows: list[Row] = [{"kind": kind, "made": MADE, "recall": float(hit[kinds == kind].mean())} for kind in KINDS]
    rows.append(
        {
            "kind": "all",
            "made": len(made),
            "recall": float(hit.mean()),
            "pairs": len(right),
            "precision": float(np.mean(right)),
            "seconds": seconds,
        }
    )
    section.tables[f"near-duplicates made of test pictures, among {n:,}"] = rows
    _claim(section, "recall of near-duplicates", DUPLICATES_BAR, float(hit.mean()))
    _claim(section, "precision of near-duplicates", DUPLICATES_BAR, float(np.mean(right)))


def _marks(section: Section, subject: Subject, rgb: np.ndarray) -> None:
    """A square of 3 pixels in a corner of most pictures of one class after another, among 3,000 pictures."""
    from eval.audit.marks import find_mark

    rows: list[Row] = []
    for k, name in enumerate(subject.classes):
        rng = np.random.default_rng(k)
        drawn = rng.permutation(len(rgb))[:3000]
        y, pictures = subject.labels[drawn], rgb[drawn].copy()
        marked = (y == k) & (rng.random(len(y)) < MARKED)
        pictures[marked, 28:31, 28:31] = rng.integers(0, 256, 3)
        found = {j: mark for j in range(len(subject.classes)) if (mark := find_mark(pictures, y == j))}
        mark = found.get(k)
        rows.append(
            {
                "class": name,
                "marked": int(marked.sum()),
                "found": mark is not None,
                "others_told": len(found.keys() - {k}),
                "recall": float(mark.has[marked].mean()) if mark else 0.0,
                "precision": float(marked[mark.has & (y == k)].mean()) if mark else 0.0,
            }
        )
    section.tables["a mark in 90 % of one class"] = rows
    first = float(np.mean([row["found"] and not row["others_told"] for row in rows]))
    _claim(section, "classes whose mark is found, and no other", 1.0, first)


def _claim(section: Section, claim: str, bar: float, measured: float) -> None:
    section.claims.append({"claim": claim, "bar": bar, "measured": measured, "met": measured >= bar})
