"""The command line as a program of its own, to which a test sends signals."""

from __future__ import annotations

import subprocess
import sys

BEGIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what was started in the background ignores it
from training.signals import run_program
print("begun", flush=True)
run_program("sparsight", "main")
"""


def begin(*arguments: object) -> subprocess.Popen[str]:
    """Starts `sparsight` with arguments, and waits until Python itself has started."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process
