"""Hits as people read them: a table, pictures in a terminal, a contact sheet."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from search.answers import ConceptWeight, Hit
from training.errors import SparsightError
from training.files import write_output
from training.terminal import bar, coloured, draws_bars, printable, table

CELL = 128  # pixels a side of a picture on the sheet


FEW = 4  # concepts that a line shows
SHORT = 4  # columns of the longest bar in a line of several


def concepts_line(concepts: Sequence[ConceptWeight], longest: float = 0) -> str:
    """The first concepts and what they add to the score, on one line. longest: what is drawn as a whole bar, where bars
    are drawn."""
    bars = [bar(c.contribution / longest, SHORT) + " " if longest else "" for c in concepts[:FEW]]
    return ", ".join(f"{c.name} {b}{c.contribution:+.2f}" for c, b in zip(concepts, bars, strict=False))


def hits_table(hits: Sequence[Hit]) -> str:
    """Hits as a table, one a line; with bars where the output is a terminal that can draw them."""
    drawn = draws_bars(sys.stdout)
    longest = max((abs(c.contribution) for h in hits for c in h.concepts), default=0.0) if drawn else 0.0
    rows = [
        [str(h.rank), _score(h), h.label or "-", str(h.id), h.path, concepts_line(h.concepts, longest)] for h in hits
    ]
    text = table(rows, ["", "score", "label", "id", "path", "concepts (what each adds to the score)"])
    return coloured(text) if drawn else text


def _score(hit: Hit) -> str:
    return f"{hit.score:.3f}" + ("" if hit.matches else " ?")


def terminal_shows_pictures(stream: TextIO) -> bool:
    """Whether a stream is a terminal that says it shows 24-bit colour."""
    return stream.isatty() and os.environ.get("COLORTERM", "") in ("truecolor", "24bit")


def terminal_pictures(thumbnails: Sequence[bytes], width: int = 16) -> str:
    """Pictures side by side, two pixels a character (a half block in 24-bit colour)."""
    per_line = max(1, shutil.get_terminal_size((120, 24)).columns // (width + 1))
    out = []
    for start in range(0, len(thumbnails), per_line):
        pictures = [np.asarray(ImageOps.pad(_open(t), (width, width))) for t in thumbnails[start : start + per_line]]
        for y in range(0, width, 2):
            line = ""
            for p in pictures:
                pairs = np.concatenate([p[y], p[y + 1]], axis=1)  # (width, 6): the upper pixel, the lower one
                line += "".join("\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*pair) for pair in pairs) + "\x1b[0m "
            out.append(line)
    return "\n".join(out)


def write_sheet(path: Path, thumbnails: Sequence[bytes], captions: Sequence[str], columns: int = 5) -> None:
    """Writes a contact sheet as PNG: pictures (JPEG bytes) in rows of `columns`, a caption under each.

    Raises `SparsightError` where the file cannot be written.
    """
    columns = min(columns, len(thumbnails))
    lines = -(-len(thumbnails) // columns)
    sheet = Image.new("RGB", (columns * (CELL + 8) + 8, lines * (CELL + 28) + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (thumbnail, caption) in enumerate(zip(thumbnails, captions, strict=True)):
        x, y = 8 + i % columns * (CELL + 8), 8 + i // columns * (CELL + 28)
        sheet.paste(ImageOps.pad(_open(thumbnail), (CELL, CELL), Image.Resampling.LANCZOS, "white"), (x, y))
        draw.text((x, y + CELL + 4), _fitted(draw, printable(caption)), fill="black")
    out = io.BytesIO()
    sheet.save(out, "PNG")
    try:
        write_output(path, out.getvalue())
    except OSError as e:
        raise SparsightError(f"cannot write the sheet {path}: {e.strerror}") from e


def _fitted(draw: ImageDraw.ImageDraw, text: str) -> str:
    while text and draw.textlength(text) > CELL:
        text = text[:-1]
    return text


def _open(thumbnail: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(thumbnail), formats=("JPEG",)).convert("RGB")
    except OSError as e:
        raise SparsightError("a thumbnail of the index is no JPEG: rebuild it from its pictures") from e
