"""The report's plots as SVG that takes the page's colours, so that it can be read in light, dark and print."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.baselines import Baseline
from eval.evaluate import Report
from eval.evaluators import Curve, Estimate, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Each stands for a colour of the page until the SVG is written.
INK, ACCENT, THIRD = "#010203", "#040506", "#070809"
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
MARKERS = {"residual": ("D", ACCENT), "quantiser": ("o", INK), "concepts": ("^", ACCENT), "learned": ("s", THIRD)}
FAMILIES = {
    "residual": "sparsight's codes and a residual",
    "quantiser": "quantisers",
    "concepts": "other choices of concepts",
    "learned": "learned atoms, no names",
}


LEAST, MOST = 2, 420  # bytes a picture that are shown
WIDTH, LINE = 0.36, 0.05  # of a name, as shares of the axes


@dataclass(frozen=True)
class Plot:
    """file: its name in the report's folder; title: what it shows; svg: one element."""

    file: str
    title: str
    svg: str


FRONTIERS = {
    "accuracy": "Accuracy of the class",
    "class_precision": "P@10, same class",
    "term_precision": "P@10, same search term",
    "recall_of_dense": "Recall@10 of dense neighbours",
    "text_precision": "Text → picture, P@10",
}


AXES = {
    "accuracy": "accuracy",
    "class_precision": "P@10, class",
    "term_precision": "P@10, term",
    "recall_of_dense": "recall@10",
    "text_precision": "P@10, text",
}


def frontiers(report: Report) -> list[Plot]:
    """Each figure against bytes a picture: our codes a curve, every baseline a point, all with 95 % intervals."""
    known = [name for name in FRONTIERS if getattr(report.dense.worth, name) is not None]
    return [
        drawn(
            f"frontier-{name.replace('_', '-')}.svg",
            f"{FRONTIERS[name]}, against bytes a picture",
            frontier(report, name),
        )
        for name in known
    ]


def frontier(report: Report, metric: str) -> Callable[[Axes], None]:
    """Draws one of FRONTIERS."""
    curve = sorted([*report.sweep, *report.matched], key=lambda point: point.bytes_per_image)

    def draw(axes: Axes) -> None:
        dense = report.dense.worth
        axes.axhspan(*dense.ci95[metric], color=INK, alpha=0.1, linewidth=0)
        axes.axhline(getattr(dense, metric), color=INK, linestyle="--", linewidth=1, label="embeddings, float32")
        for family, (marker, colour) in MARKERS.items():
            mine = [b for b in report.baselines if b.family == family and getattr(b, metric) is not None]
            if mine:
                axes.errorbar(
                    [b.bytes_per_image for b in mine],
                    [getattr(b, metric) for b in mine],
                    yerr=spread(mine, metric),
                    fmt=marker,
                    markersize=5,
                    markerfacecolor=colour if family == "residual" else "none",
                    color=colour,
                    elinewidth=0.8,
                    label=FAMILIES[family],
                )
        band(axes, [p.bytes_per_image for p in curve], [p.ci95[metric] for p in curve])
        axes.plot(
            [p.bytes_per_image for p in curve],
            [getattr(p, metric) for p in curve],
            "-",
            marker=".",
            color=ACCENT,
            linewidth=1.8,
            label="sparsight's codes, along λ",
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks := [2, 4, 8, 16, 32, 64, 128, 256], [str(tick) for tick in ticks])
        axes.set_xlim(LEAST, MOST)
        axes.set_xlabel("bytes a picture")
        if metric == "recall_of_dense":
            axes.set_ylim(0, 1.05)
        axes.set_ylabel(AXES[metric] + begins_at(axes))
        axes.legend(loc="best", fontsize=7.5, frameon=False)
        name_leading(axes, [b for b in report.baselines if b.family != "residual"], metric)

    return draw


def name_leading(axes: Axes, baselines: Sequence[Baseline], metric: str) -> None:
    """Names those that no other beats, the largest first, where there is room for a name."""
    low, high = axes.get_ylim()
    placed: list[tuple[float, float]] = []
    for best in reversed(leading(baselines, metric)):
        value = getattr(best, metric)
        x = np.log(best.bytes_per_image / LEAST) / np.log(MOST / LEAST)
        y = (value - low) / (high - low)
        if all(abs(x - other) > WIDTH or abs(y - above) > LINE for other, above in placed):
            axes.annotate(best.name, (best.bytes_per_image, value), (4, 5), textcoords="offset points", fontsize=7.5)
            placed.append((x, y))


def leading(baselines: Sequence[Baseline], metric: str) -> list[Baseline]:
    """Those that no other baseline of as few bytes beats."""
    found: list[Baseline] = []
    for each in sorted(baselines, key=lambda b: (b.bytes_per_image, -getattr(b, metric))):
        if not found or getattr(each, metric) > getattr(found[-1], metric):
            found.append(each)
    return found


def spread(ways: Sequence[Baseline | Point], metric: str) -> np.ndarray:
    """How far the intervals reach below and above: (2, len(ways))."""
    value = np.array([getattr(way, metric) for way in ways])
    low, high = np.array([way.ci95[metric] for way in ways]).T
    return np.maximum(np.stack([value - low, high - value]), 0)


def band(axes: Axes, x: Sequence[float], intervals: Sequence[tuple[float, float]], colour: str = ACCENT) -> None:
    low, high = zip(*intervals, strict=True)
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def begins_at(axes: Axes) -> str:
    """What is said of an axis that does not begin at 0."""
    low = axes.get_ylim()[0]
    return "" if low <= 0.02 else f" (axis from {low:.2f})"


def along_penalty(report: Report) -> list[Plot]:
    """Accuracy against λ on the whole axis, the same near the dense one, and concepts a picture."""
    penalties = [p.l1 for p in report.sweep]
    plots = []
    if report.dense.accuracy is not None:
        for whole in (True, False):

            def draw(axes: Axes, whole: bool = whole) -> None:
                accuracy_along(axes, report, whole)

            title = "Accuracy against λ, " + ("the whole axis" if whole else "enlarged")
            plots.append(drawn(f"accuracy{'' if whole else '-enlarged'}.svg", title, draw))

    def concepts(axes: Axes) -> None:
        axes.plot(penalties, [p.nnz_mean for p in report.sweep], "o-", color=ACCENT)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("concepts a picture")
        of_penalty(axes)

    return [*plots, drawn("concepts.svg", "Concepts a picture against λ", concepts)]


def accuracy_along(axes: Axes, report: Report, whole: bool) -> None:
    dense, swept = report.dense, [p for p in report.sweep if p.accuracy is not None]
    assert dense.accuracy is not None
    assert dense.ci95 is not None
    penalties = [p.l1 for p in swept]
    axes.axhspan(*dense.ci95, color=INK, alpha=0.1, linewidth=0, label="its 95 % interval")
    axes.axhline(dense.accuracy, color=INK, linestyle="--", linewidth=1, label="embeddings")
    band(axes, penalties, [p.ci95["accuracy"] for p in swept])
    axes.plot(penalties, [p.accuracy for p in swept if p.accuracy is not None], "o-", color=ACCENT, label="codes")
    if whole:
        axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy" + ("" if whole else begins_at(axes)))
    axes.legend(loc="lower center", ncols=3, frameon=False, fontsize=8)
    of_penalty(axes)


def of_penalty(axes: Axes) -> None:
    axes.set_xlabel("λ, as a fraction of each picture's λ_max")
    axes.set_xlim(0, 1)


def removal(report: Report) -> list[Plot]:
    """The deletion and insertion curves."""
    if report.faithfulness is None:
        return []
    steps, plots = report.faithfulness.steps, []
    for name, said, curve in (
        ("deletion", "concepts taken out of the embedding", report.faithfulness.deletion),
        ("insertion", "concepts put into the code", report.faithfulness.insertion),
    ):

        def draw(axes: Axes, curve: Curve = curve, said: str = said) -> None:
            for estimates, colour, label in (
                (curve.ordered, ACCENT, "those that add most to the class first"),
                (curve.random, INK, "in random order"),
            ):
                shown: Sequence[Estimate] = estimates[: len(steps)]
                band(axes, steps, [e.ci95 for e in shown], colour)
                axes.plot(steps, [e.value for e in shown], "o-", color=colour, label=label)
            axes.set_ylim(0, 1)
            axes.set_xlabel(said)
            axes.set_ylabel("same class as the embedding's")
            axes.legend(frameon=False, fontsize=8)

        plots.append(drawn(f"{name}.svg", f"{name.capitalize()} of concepts", draw))
    return plots


def drawn(file: str, title: str, draw: Callable[[Axes], None]) -> Plot:
    """One SVG element with what `draw` draws."""
    import matplotlib
    from matplotlib.figure import Figure

    # The salt names the parts of the SVG: the same report gives the same bytes, and two plots on a page no name twice.
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": title}):
        figure = Figure(figsize=(5, 3.7), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = svg.replace(ACCENT, "var(--accent, #1f6feb)").replace(THIRD, "var(--third, #9a5b00)")
    return Plot(file, title, svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1))
