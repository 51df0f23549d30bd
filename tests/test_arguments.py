"""Whatever is written after a command, it answers, or says in one line what is wrong; never a traceback."""

from __future__ import annotations

import os
import shutil

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10

from sparsight import main

MANY = 1500 if os.environ.get("SPARSIGHT_SOAK") else 120
COMMANDS = (
    "search",
    "classify",
    "concepts",
    "explain",
    "add",
    "remove",
    "compact",
    "doctor",
    "sql",
    "export",
    "import",
    "index album",
    "train",
    "eval --out index/index.duckdb/report",
)
HOSTILE = (
    "", " ", "-", "--", "0", "-1", "7", "99999999999999999999", "nan", "inf", "1e999", ".", "..", "/dev/null",
    "/proc/self/mem", "nowhere", "'); DROP TABLE images;--", '"', "🐴", "\n", "\x1b[2J", "\udce9.png",
    "a" * 300, "%s{}", "SELECT 1", "a cat", "SELECT * FROM images; DELETE FROM images", "--json", "--missing",
    "--repair", "9" * 5000, "nan:nan", "1e-320",
)  # fmt: skip
OPTIONS = ("-k", "--index", "--mode", "--concept", "--picture", "--near", "--for", "--classes", "--encoder", "--device",
           "--format", "--tables", "--limit", "--out", "--l1", "--labels", "--nonsense", "--dictionary", "--dense",
           "--data", "--template", "--seed", "--from", "--sizes", "--lr", "--image-tower", "--teacher", "--split",
           "--examples", "--corrupted", "--sheet")  # fmt: skip
values = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).filter(
        lambda text: not text.startswith("/")
    ),
)
arguments = st.lists(st.one_of(values.map(lambda v: (v,)), st.tuples(st.sampled_from(OPTIONS), values)), max_size=4)


@pytest.fixture
def place(light_index, tmp_path, monkeypatch):
    """A folder to work in, with an index and nothing else."""
    shutil.copytree(light_index, tmp_path / "index")
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "no picture.png").write_bytes(b"no picture")
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.delenv("SPARSIGHT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@settings(
    deadline=None, max_examples=MANY, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(command=st.sampled_from(COMMANDS), arguments=arguments)
def test_any_arguments(place, command, arguments):
    result = CliRunner().invoke(
        main, [*command.split(), *(part for argument in arguments for part in argument)], input=""
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output
    faults = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(faults) == (result.exit_code != 0), result.stderr
