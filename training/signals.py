"""Signals that ask a program to end: noted, and told in one line, whenever they come.

Light on purpose: a program calls `run_program` before it imports anything that takes time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

from training.streams import steady_streams

ENDING = (signal.SIGINT, signal.SIGTERM)
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def run_program(module: str, attribute: str) -> None:
    """Runs a command of the command line as a program of its own, such as `sparsight.main`.

    A signal before its work ends the program at once; one after its work is ignored, since all is done and told.
    """
    handle(_leave)
    steady_streams()
    try:
        getattr(import_module(module), attribute)()
    finally:
        handle(signal.SIG_IGN)


@contextmanager
def noted_signals(received: list[signal.Signals]) -> Iterator[None]:
    """Lists in `received` the signals that ask this process to end, in the order of their coming.

    SIGTERM is handled as Ctrl-C is: each of the two also raises `KeyboardInterrupt`, so that a command ends with
    nothing half done. Some libraries turn that into an error of their own. A command that ends by any error after a
    signal was therefore interrupted, and this list tells.
    """

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        if _is_importing(frame):
            _send_again(number)
        else:
            raise KeyboardInterrupt

    def ask_again(lost: sys.UnraisableHookArgs) -> None:
        """Where Python could not raise the interrupt, as in a finaliser, it would be dropped with a traceback."""
        if received and issubclass(lost.exc_type, KeyboardInterrupt):
            _send_again(received[0])
        else:
            earlier_hook(lost)

    if threading.current_thread() is not threading.main_thread():  # Python lets only the main thread handle signals
        yield
        return
    earlier_hook, sys.unraisablehook = sys.unraisablehook, ask_again
    before = handle(note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = earlier_hook


def end_by_signal(number: signal.Signals) -> NoReturn:
    """Ends the program with one line, and the exit code that a shell gives it: 130 for Ctrl-C."""
    handle(signal.SIG_IGN)  # a second Ctrl-C must not break this line
    with suppress(OSError, ValueError):  # nobody is there to read it
        print(f"Error: {WORDS[number]}", file=sys.stderr, flush=True)
    sys.exit(128 + number)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: an extension that is interrupted as it sets itself up may abort the
    process, as DuckDB's does."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    """Sends a signal to this process once more, a moment later."""
    again = threading.Timer(0.02, signal.pthread_kill, [threading.main_thread().ident, number])
    again.daemon = True
    again.start()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError):
        os.write(2, f"Error: {WORDS[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


def handle(handler: Any) -> dict[signal.Signals, Any]:
    """Sets a handler for the signals that are not ignored (`nohup`, a job in the background); returns the earlier."""
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}
