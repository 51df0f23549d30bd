"""The report's files: report.json, two plots, examples.png, and index.html, one page that holds everything."""

from __future__ import annotations

import json
from pathlib import Path

from eval.evaluate import Report
from eval.report.page import page
from eval.report.plots import accuracy_plot, concepts_plot
from search.show import write_sheet
from training.errors import SparsightError
from training.files import write_whole


def write_report(folder: Path, report: Report, thumbnails: dict[int, bytes]) -> None:
    """Writes the report into `folder`; thumbnails: JPEG bytes by image id, for the examples.

    Raises `SparsightError` where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plots = {"accuracy.svg": accuracy_plot(report), "concepts.svg": concepts_plot(report)}
        for name, svg in plots.items():
            write_whole(folder / name, svg.encode())
        shown = [e for e in (*report.examples.correct, *report.examples.wrong) if e.id in thumbnails]
        if shown:
            captions = [f"{e.label} > {e.predicted}" for e in shown]
            write_sheet(folder / "examples.png", [thumbnails[e.id] for e in shown], captions, columns=8)
        write_whole(folder / "index.html", page(report, list(plots.values()), thumbnails).encode())
        write_whole(folder / "report.json", (json.dumps(report.to_dict(), indent=2) + "\n").encode())
    except OSError as e:
        raise SparsightError(f"cannot write the report to {folder}: {e.strerror or e}; choose another --out") from e
