"""The path from one process to several of docs/scale.md, run as it is written there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("ray.data", reason="needs the extra ray")
pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs the extra milvus")

from conftest import coloured_pictures
from PIL import Image


def test_each_command_runs_and_all_answer_alike(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # no hub is asked: the bundled encoder is taken, and a note says so
    (tmp_path / "pictures").mkdir()
    for i, pixels in enumerate(coloured_pictures(150).pixels):
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i:04d}.png")
    page = (Path(__file__).parents[2] / "docs/scale.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\n(.*?)```", page, re.DOTALL)
    assert block is not None
    commands = [shlex.split(line, comments=True)[1:] for line in block[1].splitlines()]
    assert len(commands) == 6
    told = {" ".join(command): run(*command).stdout for command in commands}
    answers = [text for command, text in told.items() if command.startswith("search")]
    assert len(answers) == 2
    assert answers[0] == answers[1]
