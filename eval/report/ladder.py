"""Every way to keep a picture in few bytes, with the same figures for each."""

from __future__ import annotations

from eval.evaluate import Report
from eval.evaluators import Baseline, Point

COLUMNS = (
    "code",
    "bytes a picture",
    "accuracy",
    "class P@10",
    "term P@10",
    "recall@10 of dense neighbours",
    "cosine",
)


def ladder(report: Report) -> list[list[str]]:
    """The rows of the table with COLUMNS: our codes along λ, those made to a baseline's size, and the baselines."""
    ways: list[Point | Baseline] = [*report.sweep, *report.matched, *report.baselines.found]
    return [cells(way) for way in ways]


def cells(way: Point | Baseline) -> list[str]:
    return [
        way.name,
        f"{way.bytes_per_image:.1f}",
        f"{way.accuracy:.4f}",
        f"{way.class_precision:.3f}",
        "-" if way.term_precision is None else f"{way.term_precision:.3f}",
        f"{way.recall_of_dense:.3f}",
        f"{way.cosine_mean:.3f}",
    ]
