"""A program that is asked to end says so in one line, whenever that is."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from programs import begin

from indexer.store.database import connect, insert, told_as
from training.signals import noted_signals

SOAK = "SPARSIGHT_SOAK" in os.environ
ENDS = {signal.SIGINT: (130, "Error: interrupted"), signal.SIGTERM: (143, "Error: terminated")}


@pytest.mark.parametrize("send", ENDS)
@pytest.mark.parametrize("command", ["search truck", "search --picture 3", "doctor", "sql", "export", "--help"])
def test_a_signal_at_any_moment(small_index, tmp_path, command, send):
    """At random ones: while it imports, reads, computes, writes, or when all is done."""
    name, *more = command.split()
    arguments = [name, *more, *([] if name.startswith("-") else ["--index", small_index])]
    if name == "sql":
        arguments.append("SELECT count(*) FROM postings")
    started, took = time.monotonic(), 0.0
    for i in range(21 if SOAK else 4):
        out = [tmp_path / str(i)] if name == "export" else []
        process = begin(*arguments, *out)
        if i:  # the first goes to its end, to tell how long it takes
            time.sleep(random.uniform(0, took))
            process.send_signal(send)
        _, stderr = process.communicate(timeout=120)
        took = took or time.monotonic() - started
        said = (process.returncode, stderr.strip().splitlines()[-1] if stderr.strip() else "")
        assert said == ENDS[send] or process.returncode == 0, stderr
        assert not {"Traceback", "ignored"} & set(stderr.split()), stderr
        assert not list(tmp_path.glob(".*.part"))


# Interrupts a program at the n-th line that it runs of its own handling of signals, errors and streams.
TRACED = """
import signal, sys
n, lines = int(sys.argv.pop(1)), 0
def trace(frame, event, argument):
    global lines
    if event == "line" and signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        if frame.f_code.co_filename.endswith(("commands.py", "signals.py", "contextlib.py")):
            lines += 1
            if lines == n:
                signal.raise_signal(signal.SIGINT)
    return trace
sys.settrace(trace)
from sparsight import run
run()
"""


def test_a_signal_at_any_line_of_the_handling_itself():
    """There is no moment before, between or after at which nobody would catch it."""
    lines = range(1, 400) if SOAK else random.Random(7).sample(range(1, 140), 14)
    found = set()
    for n in lines:
        done = subprocess.run([sys.executable, "-c", TRACED, str(n), "--version"], capture_output=True, text=True)
        said = (done.returncode, done.stderr.strip())  # click may print an empty line first
        assert said in ((130, "Error: interrupted"), (0, "")), (n, done.stderr)
        found.add(done.returncode)
    assert 130 in found


def test_an_interrupt_where_nothing_can_be_raised_comes_again():
    """Python drops an exception that is raised in a finaliser."""

    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    received: list[signal.Signals] = []
    with noted_signals(received):
        last = Last()
        with contextlib.suppress(KeyboardInterrupt):
            del last
            time.sleep(60)
            pytest.fail("the signal was lost")
    assert received[0] == signal.SIGTERM


def test_an_interrupt_waits_for_an_import(tmp_path, monkeypatch):
    """An extension that is interrupted as it sets itself up may abort the process."""
    (tmp_path / "interrupted.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    received: list[signal.Signals] = []
    with noted_signals(received), contextlib.suppress(KeyboardInterrupt):
        module = importlib.import_module("interrupted")
        time.sleep(60)
        pytest.fail("the signal was lost")
    assert module.whole
    assert set(received) == {signal.SIGINT}


def test_an_interrupt_while_duckdb_runs_python_stays_one():
    """DuckDB makes a fault of its own of it, with Python's traceback as its text."""

    class Interrupted(np.ndarray):
        @property
        def dtype(self):
            raise KeyboardInterrupt

    with connect() as con:
        con.execute("CREATE TABLE numbers (i BIGINT)")
        with pytest.raises(KeyboardInterrupt), told_as(str):
            insert(con, "numbers", {"i": np.arange(3).view(Interrupted)})
