"""Draws docs/images/contact_sheet.png: what three searches find, and what each concept adds to each score.

    sparsight index --bundled --index index
    python docs/contact_sheet.py index data        # data: the folder that holds cifar-10-batches-py

The pictures are thumbnails of CIFAR-10's test split (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny
Images", 2009).
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from training.data.cifar10 import load_cifar10

QUERIES = ("a fire engine", "a galloping horse", "a yacht on the sea")
HITS = 5
SHOWN = 3  # concepts under a picture
COLOURS = ("#2f6f9f", "#6fa8c9", "#b5d3e4")


def search(index: Path, text: str) -> list[dict]:
    """The hits of a text, as `sparsight search --json` prints them."""
    command = [sys.executable, "-m", "search", "search", text, "-k", str(HITS), "--json", "--index", str(index)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def draw_hit(ax_picture: plt.Axes, ax_bars: plt.Axes, pixels: np.ndarray, hit: dict) -> None:
    """One picture, its score, and a bar for each of its strongest concepts."""
    ax_picture.imshow(pixels, interpolation="lanczos")
    ax_picture.set_title(f"{hit['label']}   score {hit['score']:.2f}", fontsize=9, pad=4)
    ax_picture.axis("off")
    concepts = hit["concepts"][:SHOWN]
    for row, (concept, colour) in enumerate(zip(concepts, COLOURS, strict=False)):
        ax_bars.barh(row + 0.44, concept["contribution"], height=0.22, color=colour)
        ax_bars.text(0, row, shortened(concept["name"]), fontsize=8, va="center")
        ax_bars.text(1, row, f"{concept['contribution']:+.2f}", fontsize=8, va="center", ha="right")
    ax_bars.set(xlim=(0, 1), ylim=(SHOWN - 0.25, -0.35))
    ax_bars.axis("off")


def shortened(name: str, most: int = 20) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def draw(index: Path, data: Path, out: Path) -> None:
    """Writes the sheet, a row a query."""
    pictures = load_cifar10(data, ("test",)).pixels  # (n, 32, 32, 3) uint8
    figure = plt.figure(figsize=(9.2, 2.75 * len(QUERIES)), dpi=110)
    rows = figure.subfigures(len(QUERIES), 1)
    for text, row in zip(QUERIES, rows, strict=True):
        row.text(0.02, 0.93, f'sparsight search "{text}"', family="monospace", fontsize=11, weight="bold")
        axes = row.subplots(2, HITS, height_ratios=(3, 1.6))
        row.subplots_adjust(left=0.02, right=0.98, top=0.8, bottom=0.02, wspace=0.14, hspace=0.05)
        for hit, (ax_picture, ax_bars) in zip(search(index, text), axes.T, strict=True):
            draw_hit(ax_picture, ax_bars, pictures[int(hit["path"].rsplit("/", 1)[1])], hit)
    drawn = io.BytesIO()
    figure.savefig(drawn)
    Image.open(drawn).convert("RGB").quantize(256).save(out, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]), Path(__file__).parent / "images" / "contact_sheet.png")
