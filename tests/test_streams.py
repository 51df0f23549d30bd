"""Standard streams of every kind: closed, full, read by nobody, of an encoding that has not every character."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from indexer.store import Store
from sparsight import COMMANDS

RUN = [sys.executable, "-c", "import sparsight; sparsight.run()"]
READING = [
    ["search", "truck"],
    ["search", "truck", "--json"],
    ["classify", "3"],
    ["concepts"],
    ["explain", "3"],
    ["doctor"],
    ["sql", "SELECT * FROM images"],
    ["--help"],
    ["--version"],
]


def shell(line: str, *arguments: object, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which "$@" is the program with its arguments."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *RUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **env},
    )


@pytest.fixture
def folder(light_index, tmp_path) -> Path:
    shutil.copytree(light_index, tmp_path / "index")
    return tmp_path


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize("command", [READING[0], READING[5], READING[6], READING[7]], ids=" ".join)
def test_a_closed_stream_is_no_fault(folder, command, closed):
    done = shell(f'"$@" {closed}', *command, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_change_is_told_as_done_where_nobody_listens(folder):
    """And nothing that is printed gets into the files that are opened in the streams' place."""
    for i, closed in enumerate([">&-", "2>&-", ">&- 2>&- <&-", "2>&1 | true"]):
        done = shell(f'set -o pipefail; "$@" {closed}', "remove", i, folder=folder)
        assert done.returncode == 0, (closed, done.stderr)
    with Store(folder / "index") as store:
        assert store.image_ids[0] == 4
    assert shell('"$@"', "doctor", folder=folder).returncode == 0


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_a_full_device_is_told_in_one_line(folder, command):
    done = shell('"$@" > /dev/full', *command, folder=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: cannot write to the standard output: No space left on device"
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


@pytest.mark.parametrize("command", [["search", "truck", "-k", "150", "--json"], READING[3], READING[6]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_fault(folder, command):
    for reader in ("head -1", "true"):
        done = shell(f'"$@" | {reader}; exit ${{PIPESTATUS[0]}}', *command, folder=folder)
        assert (done.returncode, "Error" in done.stderr, "Traceback" in done.stderr) == (0, False, False)


def test_work_goes_on_where_its_messages_are_not_read(folder):
    (folder / "words.txt").write_text("dog\ncat\ntruck\nship\n")
    command = ["index", "--bundled", "--dictionary", "words.txt", "--index", "new"]
    done = shell('"$@" 2>&1 | true; exit ${PIPESTATUS[0]}', *command, folder=folder)
    assert done.returncode == 0, done.stderr
    with Store(folder / "new") as store:
        assert len(store) == 10_000


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_encoding_without_a_character_shows_another(folder, encoding):
    env = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    shown = shell('"$@"', "index", "--help", folder=folder, **env)
    assert shown.returncode == 0
    assert "lambda" in shown.stdout
    shown.stdout.encode(encoding)
    if encoding == "ascii":
        for name in COMMANDS:
            assert shell('"$@"', name, "--help", folder=folder, **env).stderr == ""
        assert shell('"$@"', "search", "λ…\u202f🐴", folder=folder, **env).returncode == 0
        assert shell('"$@"', "concepts", "λ…é", folder=folder, **env).stderr.isascii()
        done = shell('"$@"', "explain", "λ…\u202f🐴.png", folder=folder, **env)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        lines = shell('"$@"', "sql", "SELECT 'λ…' AS word", "--json", folder=folder, **env).stdout.splitlines()
        assert json.loads(lines[0])["word"] == "λ…"
