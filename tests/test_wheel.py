"""A wheel, installed away from the source, has all it needs: it indexes the bundled embeddings and answers a query."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SOURCES = ("training", "indexer", "search", "eval", "sparsight.py", "pyproject.toml", "README.md", "LICENSE")
WEIGHTS = ("model.safetensors", "config.json", "concepts.json", "tokenizer.json", "cifar10-test.safetensors")


def run(*command: object, cwd: Path) -> str:
    """Runs a command far from the source, which no variable of ours leads it to; returns its stdout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SPARSIGHT"))}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the source: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of an environment that holds the wheel, and that finds this environment's other packages."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(run(python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # Of a folder that a .pth file names, its own .pth files are not read: no editable install is in the way.
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "others.pth").write_text("\n".join(sorted(places)))
    return folder


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info" not in name}
    there = {p for top in SOURCES if (ROOT / top).is_dir() for p in ROOT.glob(f"{top}/**/*") if p.is_file()}
    wanted = {p.relative_to(ROOT).as_posix() for p in there if "__pycache__" not in p.parts} | {"sparsight.py"}
    assert held == wanted
    assert {f"training/weights/{name}" for name in WEIGHTS} <= held


def test_an_installed_wheel_indexes_and_answers(installed):
    python, sparsight = installed / "venv/bin/python", installed / "venv/bin/sparsight"
    where = run(python, "-I", "-c", "import training; print(training.__file__)", cwd=installed).strip()
    assert Path(where).is_relative_to(installed / "venv")
    assert run(sparsight, "index", "--bundled", cwd=installed).startswith("index: 10000 pictures, 389 concepts")
    hits = [
        json.loads(line) for line in run(sparsight, "search", "a fire engine", "--json", cwd=installed).splitlines()
    ]
    assert [hit["label"] for hit in hits] == ["truck"] * 10
    parts = sum(c["contribution"] for c in hits[0]["concepts"]) + hits[0]["rest"]
    assert hits[0]["score"] == pytest.approx(parts, abs=1e-4)
