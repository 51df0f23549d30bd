"""The report as one HTML page that loads nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.evaluate import Report
from eval.report import ladder
from eval.report.plots import Plot
from eval.report.words import sentences
from eval.template import page_of

MOST_CLASSES = 20  # of which confusion matrices are shown


def page(report: Report, plots: Mapping[str, Sequence[Plot]], thumbnails: dict[int, bytes]) -> str:
    """The page (`page.html`). plots: by section; thumbnails: JPEG bytes by image id, for the examples.

    The template escapes all text but the plots and the style sheet, which are our own.
    """
    confusion = report.confusion
    shown = confusion is not None and len(confusion.classes) <= MOST_CLASSES
    return page_of(
        "eval.report",
        thumbnails,
        r=report,
        sentences=sentences(report),
        plots=plots,
        ladder=ladder,
        rows=ladder.ladder(report, intervals=True),
        matrices=[
            (side, ladder.confused(counts))
            for side, counts in (("embeddings", confusion.dense), ("codes", confusion.sparse))
        ]
        if confusion is not None and shown
        else [],
        changed=changed(report) if shown else [],
    )


def changed(report: Report) -> list[list[int]]:
    """How many more pictures of each class (row) the codes give each class (column) than the embeddings do."""
    assert report.confusion is not None
    return [
        [ours - theirs for ours, theirs in zip(*rows, strict=True)]
        for rows in zip(report.confusion.sparse, report.confusion.dense, strict=True)
    ]
