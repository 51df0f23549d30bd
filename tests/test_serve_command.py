"""`sparsight serve` as a program: it starts, says where, and ends in one line when it is asked to."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from programs import begin
from serving import served


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_one_line(light_index, number):
    with served("--index", light_index) as (address, process):
        with urllib.request.urlopen(f"{address}/api/state", timeout=30) as answer:
            assert json.load(answer)["pictures"] == 150
        head = urllib.request.Request(f"{address}/", method="HEAD")
        with urllib.request.urlopen(head, timeout=30) as answer:
            assert (answer.status, answer.read()) == (200, b"")
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
        assert (process.returncode, stderr) == (0, "stopped\n")


def test_a_second_signal_changes_nothing(light_index):
    with served("--index", light_index) as (_, process):
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.03)
        _, stderr = process.communicate(timeout=30)
        assert (process.returncode, stderr) == (0, "stopped\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_one_line_at_any_moment(light_index, number):
    """While it imports, opens the index, begins to listen, or loads the encoder."""
    for _ in range(3):
        process = begin("serve", "--port", 0, "--index", light_index)
        time.sleep(random.uniform(0, 4))
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode in (0, 128 + number), stderr
        assert stderr.splitlines()[-1] in ("stopped", "Error: interrupted", "Error: terminated")
        assert len(stderr.splitlines()) <= 2, stderr


def test_many_ask_at_once(light_index):
    """Threads that share one index: every answer is whole, and all are alike."""
    with served("--index", light_index) as (address, _):
        found, faults = set(), []

        def ask() -> None:
            try:
                for _ in range(5):
                    with urllib.request.urlopen(f"{address}/api/search?text=truck&k=5&all=1", timeout=60) as answer:
                        found.add(answer.read())
            except OSError as e:
                faults.append(e)

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        assert len(found) == 1


def test_elsewhere_than_on_this_machine_a_token_is_made(light_index):
    with served("--index", light_index, "--host", "0.0.0.0") as (address, _):
        assert "?token=" in address


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--host", "no.such.host.invalid"], 1, "cannot listen at no.such.host.invalid"),
        (["--host", "203.0.113.1"], 1, "cannot listen at 203.0.113.1"),
        (["--port", "99999"], 2, "--port"),
        (["--token", "short"], 2, "at least 8"),
        (["--token", "with; a semicolon"], 2, "at least 8"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(run, light_index, arguments, code, says):
    assert says in run("serve", "--index", light_index, *arguments, code=code).stderr


def test_a_port_in_use_and_a_missing_index_are_told(run, light_index, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "choose another" in run("serve", "--index", light_index, "--port", port, code=1).stderr
    assert str(tmp_path) in run("serve", "--index", tmp_path / "none", code=1).stderr


def test_the_page_is_there_before_torch_is():
    """Importing torch takes seconds, which nobody should wait for to see the first page."""
    code = "import sys, search.serve.app; print(sorted({'torch', 'faiss', 'numba', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
