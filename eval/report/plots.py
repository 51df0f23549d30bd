"""The report's plots as SVG that takes the page's colours, so that it can be read in light, dark and print."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eval.evaluate import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"  # stands for the page's text colour, ACCENT for its accent, until the SVG is written
ACCENT = "#040506"
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def accuracy_plot(report: Report) -> str:
    """An SVG element: accuracy against λ, beside the dense one with its interval."""

    def draw(axes: Axes) -> None:
        low, high = report.dense.ci95
        axes.axhline(report.dense.accuracy, color=INK, linestyle="--", linewidth=1, label="dense")
        axes.axhspan(low, high, color=INK, alpha=0.1, linewidth=0, label="its 95 % interval")
        axes.plot([p.l1 for p in report.sweep], [p.accuracy for p in report.sweep], "o-", color=ACCENT, label="sparse")
        shown = [low, high, *(p.accuracy for p in report.sweep)]
        room = 0.15 * (max(shown) - min(shown))
        axes.set_ylim(min(shown) - 3 * room, max(shown) + room)  # the legend stands below
        axes.set_ylabel("accuracy")
        axes.legend(loc="lower center", ncols=3, frameon=False)

    return drawn("Accuracy against λ", draw)


def concepts_plot(report: Report) -> str:
    """An SVG element: concepts a picture against λ."""

    def draw(axes: Axes) -> None:
        axes.plot([p.l1 for p in report.sweep], [p.nnz_mean for p in report.sweep], "o-", color=ACCENT)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("concepts a picture")

    return drawn("Concepts a picture against λ", draw)


def drawn(title: str, draw: Callable[[Axes], None]) -> str:
    """One SVG element with what `draw` draws above an axis of λ."""
    import matplotlib
    from matplotlib.figure import Figure

    # The salt names the parts of the SVG: the same report gives the same bytes, and two plots on a page no name twice.
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": title}):
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_xlabel("λ, as a fraction of each picture's λ_max")
        axes.set_xlim(0, 1)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(ACCENT, "var(--accent, #1f6feb)")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
