"""A program that is asked to end says so in one line, whenever that is."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
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


def test_an_interrupt_where_nothing_can_be_raised_comes_again():
    """Python drops an exception that is raised in a finaliser."""

    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with noted_signals() as received:
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
    with noted_signals() as received, contextlib.suppress(KeyboardInterrupt):
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
