"""The standard streams of a program, whatever they are: closed, full, of another encoding, or read by nobody."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import TextIO

from training.errors import SparsightError

# What stands for characters that an encoding does not have; others appear as Python escapes them.
PLAIN = {"λ": "lambda", "…": "...", "×": "x", "–": "-", "—": "-", "−": "-", "≥": ">=", "≤": "<=", "→": "->", "’": "'"}
HANDLER = "sparsight.plain"


class ReaderGone(Exception):
    """Whoever read the standard output has all that they wanted, as `head` has: no fault."""


class _Stream(io.TextIOWrapper):
    """Text that is shown as far as a stream's encoding goes."""

    def __init__(self, stream: TextIO, *, is_line: bool):
        self._shown = stream.encoding
        # click takes a stream of ASCII for a mistake, and writes UTF-8 past it: so what it gets is called UTF-8
        encoding = "utf-8" if codecs.lookup(stream.encoding).name == "ascii" else stream.encoding
        super().__init__(stream.detach(), encoding, HANDLER, line_buffering=is_line)  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        return super().write(text.encode(self._shown, HANDLER).decode(self._shown))

    def write_nowhere(self) -> None:
        """From now on; what was written and not yet out would fail again at the program's end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


class Results(_Stream):
    """The standard output. Raises `ReaderGone` where nobody reads it any more, `SparsightError` where it cannot be
    written; from then on it writes nowhere, so that the program's end does not fail again."""

    def __init__(self, stream: TextIO):
        super().__init__(stream, is_line=stream.isatty())

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as e:
            raise self._broken(e) from e

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as e:
            raise self._broken(e) from e

    def _broken(self, e: OSError) -> Exception:
        self.write_nowhere()
        if e.errno == errno.EPIPE:
            return ReaderGone()
        return SparsightError(f"cannot write to the standard output: {e.strerror}")


class Messages(_Stream):
    """The standard error: what cannot be told there is lost, and the work goes on."""

    def __init__(self, stream: TextIO):
        super().__init__(stream, is_line=True)

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self.write_nowhere()


def steady_streams() -> None:
    """Makes the three standard streams of this process safe to use.

    A number that was closed would be given to the next file that is opened, which then got whatever is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    codecs.register_error(HANDLER, _plain)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = Results(sys.stdout or open(1, "w", closefd=False))  # noqa: SIM115
    sys.stderr = Messages(sys.stderr or open(2, "w", closefd=False))  # noqa: SIM115


def _plain(e: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(e, UnicodeEncodeError):
        raise e
    lacking = e.object[e.start : e.end]
    shown = "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking)
    return shown, e.end
