"""A build on Ray is asked for and refused in one line; without it, nothing imports Ray."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = (
    "import sys; sys.modules['ray'] = None; sys.argv = ['sparsight', *sys.argv[1:]]; import sparsight; sparsight.run()"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--address", "auto"], "--address needs --engine ray"),
        (["--column", "x"], "--column needs --engine ray"),
        (["--shards", "x"], "--shards needs --engine ray"),
    ],
)
def test_options_of_ray_need_it(run, tmp_path, arguments, message):
    assert message in run("index", tmp_path, *arguments, "--index", tmp_path / "index", code=2).stderr


def test_a_build_on_ray_needs_a_path(run, tmp_path):
    assert "--engine ray needs a PATH" in run("index", "--engine", "ray", "--index", tmp_path / "i", code=2).stderr


def test_a_build_on_ray_is_like_no_other_index(run, tmp_path):
    command = ["index", tmp_path, "--engine", "ray", "--like", tmp_path / "other", "--index", tmp_path / "i"]
    assert "--like builds in this process: leave out --engine ray" in run(*command, code=2).stderr


def test_without_ray_the_command_says_what_to_install(tmp_path):
    command = ["index", tmp_path, "--encoder", "bundled", "--engine", "ray", "--index", tmp_path / "index"]
    found = subprocess.run([sys.executable, "-c", WITHOUT, *map(str, command)], capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("Error: --engine ray needs Ray Data")
    assert found.stderr.splitlines()[-1].endswith("install 'sparsight[ray]'")
    assert "Traceback" not in found.stderr


def test_no_import_of_the_package_imports_ray():
    code = "import sys, sparsight, indexer.cli, indexer.ray.run; print({'ray', 'pyarrow'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
