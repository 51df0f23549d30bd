"""Output for people at a terminal: text that is safe to print, tables, progress bars."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from wcwidth import wcswidth


def printable(text: str) -> str:
    """Text for one line of a terminal: newlines, control characters and the like appear as Python escapes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Rows and their header as lines of left-aligned columns; a line is cut at the terminal's edge."""
    rows = [[printable(c) for c in r] for r in rows]
    widths = [max(width(r[i]) for r in (header, *rows)) for i in range(len(header))]
    edge = max(60, shutil.get_terminal_size((120, 24)).columns)
    lines = ["  ".join(c + " " * (w - width(c)) for c, w in zip(r, widths, strict=True)) for r in (header, *rows)]
    return "\n".join(_cut(line.rstrip(), edge) for line in lines)


def width(text: str) -> int:
    """The columns that a text takes in a terminal: a Chinese character or an emoji takes two, an accent alone none."""
    columns = -1 if text.isascii() else wcswidth(text)
    return len(text) if columns < 0 else columns  # it says −1 of what cannot be shown


def _cut(line: str, edge: int) -> str:
    if width(line) <= edge:
        return line
    while width(line) > edge - 1:
        line = line[: -max(1, (width(line) - edge) // 2)]
    return line + "…"


@contextmanager
def progress(what: str, total: int, unit: str = "pic") -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr, up to `total` units.

    It yields a function, to be called with the number of units done since the last call.
    """
    from tqdm import tqdm

    with tqdm(total=total, desc=f"{what:<10}", unit=unit, file=sys.stderr, mininterval=0.5) as bar:
        yield bar.update
