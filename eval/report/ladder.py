"""Every way to keep a picture in few bytes, with the same figures for each, as rows of tables."""

from __future__ import annotations

from collections.abc import Sequence

from eval.baselines import Baseline
from eval.evaluate import Report
from eval.evaluators import Difference, Interval, Point

COLUMNS = (
    "code",
    "bytes a picture",
    "accuracy",
    "class P@10",
    "term P@10",
    "recall@10 of dense neighbours",
    "text P@10",
    "cosine",
)
COSTS = ("baseline", "concepts or atoms", "tables, bytes", "to learn, s", "to code, s")
DIFFERENCES = ("baseline", "bytes", "accuracy", "class P@10", "term P@10", "recall@10", "text P@10")
NONE = "–"


def ladder(report: Report, *, intervals: bool = False) -> list[list[str]]:
    """The rows of the table with COLUMNS: our codes along λ, those made to a baseline's size, and the baselines."""
    ways: list[Point | Baseline] = [*report.sweep, *report.matched, *report.baselines]
    return [cells(way, intervals) for way in ways]


def cells(way: Point | Baseline, intervals: bool) -> list[str]:
    metrics = (
        ("accuracy", 4),
        ("class_precision", 3),
        ("term_precision", 3),
        ("recall_of_dense", 3),
        ("text_precision", 3),
    )
    of_metrics = [figure(getattr(way, m), way.ci95.get(m) if intervals else None, digits) for m, digits in metrics]
    return [way.name, f"{way.bytes_per_image:.1f}", *of_metrics, f"{way.cosine_mean:.3f}"]


def costs(report: Report) -> list[list[str]]:
    """What each baseline takes beside its codes: shared tables, and time."""
    return [
        [
            b.name,
            NONE if b.concepts is None else f"{b.concepts:.2f}",
            f"{b.table_bytes:,}",
            f"{b.train_seconds:.2f}",
            f"{b.code_seconds:.2f}",
        ]
        for b in report.baselines
    ]


def differences(report: Report) -> list[tuple[str, str, list[tuple[str, str, int]]]]:
    """Our code of the same size less each baseline: its name and bytes, and of each figure a text, its interval, and 1
    or −1 where it is more than chance."""
    rows = []
    for each in report.comparisons:
        of = {d.metric: d for d in each.differences}
        metrics = ("accuracy", "class_precision", "term_precision", "recall_of_dense", "text_precision")
        cells = [(NONE, "", 0) if m not in of else (*signed(of[m]), of[m].better) for m in metrics]
        rows.append((each.baseline, f"{each.bytes_per_image:.1f}", cells))
    return rows


def signed(difference: Difference) -> tuple[str, str]:
    """A difference and its interval."""
    value, low, high = (f"{x:+.3f}".replace("-", "−") for x in (difference.value, *difference.ci95))
    return value, f"{low} to {high}"


def figure(value: float | None, ci95: Interval | None = None, digits: int = 3) -> str:
    """A figure, with its interval where there is one; a dash where it was not measured."""
    if value is None:
        return NONE
    text = f"{value:.{digits}f}" + ("" if ci95 is None else f" ({ci95[0]:.{digits}f} – {ci95[1]:.{digits}f})")
    return text.replace("-", "−")


def confused(counts: Sequence[Sequence[int]]) -> list[list[tuple[int, float]]]:
    """A confusion matrix as (count, how dark its cell is): of what is wrong, the largest is darkest."""
    wrong = max((n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j), default=0)
    return [[(n, 0.0 if i == j else n / max(wrong, 1)) for j, n in enumerate(row)] for i, row in enumerate(counts)]
