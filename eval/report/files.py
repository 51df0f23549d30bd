"""The report's files: report.json, its plots, examples.png, and index.html, one page that holds everything."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.evaluate import Report
from eval.report.page import page
from eval.report.plots import along_penalty, frontiers, removal
from indexer.store import Store
from search.show import write_sheet
from training.data.cifar10 import Pictures
from training.errors import SparsightError
from training.files import write_whole

ENLARGED = 3  # times as large are pictures of CIFAR-10 drawn


class Thumbnails:
    """Pictures of the index as files' bytes: its own thumbnails, or CIFAR-10's pictures where it has none."""

    def __init__(self, store: Store, pictures: Pictures | None = None):
        self.store, self.pictures = store, pictures

    def __call__(self, image_ids: Sequence[int]) -> dict[int, bytes]:
        found = dict(self.store.thumbnails(image_ids))
        if self.pictures is not None:
            for row in self.store.images([i for i in image_ids if i not in found]):
                place = re.fullmatch(r"cifar10/test/(\d+)", row.path)
                if place and int(place[1]) < len(self.pictures):
                    found[row.image_id] = enlarged(self.pictures.pixels[int(place[1])])
        return found


def enlarged(pixels: Any) -> bytes:
    """A small picture (h, w, 3) as JPEG, each pixel a square."""
    from PIL import Image

    picture, out = Image.fromarray(pixels), io.BytesIO()
    picture.resize((picture.width * ENLARGED, picture.height * ENLARGED), Image.Resampling.NEAREST).save(
        out, "JPEG", quality=92, subsampling=0
    )
    return out.getvalue()


def to_dict(report: Report) -> dict[str, Any]:
    """What `report.json` holds. A figure that was not measured is left out."""
    return asdict(report, dict_factory=lambda items: {key: value for key, value in items if value is not None})


def write_report(folder: Path, report: Report, thumbnails: Thumbnails) -> None:
    """Writes the report into `folder`.

    Raises `SparsightError` where the folder cannot be written.
    """
    examples = report.concepts.examples
    shown = [*examples.correct, *examples.wrong, *examples.some]
    pictures = thumbnails([example.id for example in shown])
    plots = {"frontiers": frontiers(report), "penalty": along_penalty(report), "removal": removal(report)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for plot in (plot for section in plots.values() for plot in section):
            write_whole(folder / plot.file, plot.svg.encode())
        if pictured := [example for example in shown if example.id in pictures]:
            captions = [f"{e.label} > {e.predicted}" if e.predicted else "" for e in pictured]
            write_sheet(folder / "examples.png", [pictures[e.id] for e in pictured], captions, columns=8)
        write_whole(folder / "index.html", page(report, plots, pictures).encode())
        write_whole(folder / "report.json", (json.dumps(to_dict(report), indent=2) + "\n").encode())
    except OSError as e:
        raise SparsightError(f"cannot write the report to {folder}: {e.strerror or e}; choose another --out") from e
