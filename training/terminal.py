"""Output for people at a terminal: text that is safe to print, tables, progress bars."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TextIO

import click
from wcwidth import wcswidth

EIGHTHS = " ▏▎▍▌▋▊▉█"
BAR = 12  # columns of the longest
EVERY = 10.0  # seconds between two lines of progress
DRAWN = re.compile(rf"([{EIGHTHS[1:]}]+)(?= +(-?)[+\d])")  # a bar, and the sign of the number behind it


def printable(text: str) -> str:
    """Text for one line of a terminal: newlines, control characters and the like appear as Python escapes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def counted(n: int, noun: str) -> str:
    """1 hit, 2 hits."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


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


def bar(share: float, columns: int = BAR) -> str:
    """A bar of a share, from −1 to 1, of so many columns; the sign is left to the colour and the number beside it."""
    whole, part = divmod(round(min(1.0, abs(share)) * columns * 8), 8)
    return "█" * whole + EIGHTHS[part].strip()


def bar_table(rows: Sequence[Sequence[str]], shares: Sequence[float], header: Sequence[str], column: int) -> str:
    """A table with a bar before a column of numbers, where the output is a terminal that can draw them."""
    if not draws_bars(sys.stdout):
        return table(rows, header)
    drawn = [[*r[:column], bar(share), *r[column:]] for r, share in zip(rows, shares, strict=True)]
    return coloured(table(drawn, [*header[:column], "", *header[column:]]))


def draws_bars(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can draw them."""
    return stream.isatty() and (stream.encoding or "").lower().replace("-", "") == "utf8"


def coloured(text: str) -> str:
    """Text whose bars are green, and red before a number below 0; as it is where no colour is wanted (no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return DRAWN.sub(lambda found: click.style(found[1], fg="red" if found[2] == "-" else "green"), text)


@contextmanager
def progress(what: str, total: int, unit: str = "pic") -> Iterator[Callable[[int], object]]:
    """Tells on stderr how much of `total` units is done, how fast, and the time left: a bar on a terminal, elsewhere a
    line now and then.

    It yields a function, to be called with the number of units done since the last call.
    """
    if not sys.stderr.isatty():
        yield from _lines(what, total, unit)
        return
    from tqdm import tqdm

    # Pictures come in bursts, as an encoder takes them in batches: the rate is that of the last while.
    with tqdm(total=total, desc=f"{what:<10}", unit=unit, file=sys.stderr, mininterval=0.5, smoothing=0.05) as bar:
        yield bar.update


def _lines(what: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """Progress for a file or a pipe, in which a bar would be drawn again and again: a line every `EVERY` seconds."""
    start = told = time.monotonic()
    done = 0

    def step(n: int) -> None:
        nonlocal done, told
        done += n
        now = time.monotonic()
        if now - told >= EVERY and done < total:
            told, rate = now, done / (now - start)
            left = timedelta(seconds=round((total - done) / rate)) if rate else "?"
            print(f"{what:<10}: {done:,} of {total:,}, {rate:.3g} {unit}/s, {left} left", file=sys.stderr, flush=True)

    yield step
    seconds = time.monotonic() - start
    rate = done / max(seconds, 1e-9)
    print(
        f"{what:<10}: {done:,} of {total:,} in {timedelta(seconds=round(seconds))}, {rate:.3g} {unit}/s",
        file=sys.stderr,
    )
