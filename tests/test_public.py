"""The public door, `import sparsight`: what it offers, and that it is light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sparsight

HEAVY = ("numpy", "scipy", "numba", "duckdb", "faiss", "torch", "transformers", "PIL")
IMPORTED = f"print([m for m in {HEAVY!r} if m in sys.modules])"
HELP = "\ntry:\n    sparsight.main({arguments})\nexcept SystemExit as e:\n    assert e.code == 0\n"


def imported(code: str) -> str:
    """Which of the heavy libraries a new process has imported after some code, as the last line of its output."""
    done = subprocess.run([sys.executable, "-c", code + IMPORTED], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_importing_it_imports_nothing_heavy():
    assert imported("import sys, sparsight; sparsight.SparsightError, sparsight.open, sparsight.__version__\n") == "[]"
    assert "numpy" in imported("import sys, sparsight; sparsight.Index\n")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([c, "--help"] for c in sparsight.COMMANDS)])
def test_help_imports_nothing_heavy(arguments):
    assert imported("import sys, sparsight" + HELP.format(arguments=arguments)) == "[]"


def test_listing_the_commands_imports_none_of_them():
    code = "import sys, sparsight" + HELP.format(arguments=["--help"])
    code += "print([m for m in sys.modules if m.endswith('.cli')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_public_name_is_there():
    for name in sparsight.__all__:
        assert getattr(sparsight, name) is not None
    assert issubclass(sparsight.CallError, sparsight.SparsightError)
    with pytest.raises(AttributeError, match="no attribute 'Searcher'"):
        sparsight.Searcher  # noqa: B018


def test_an_index_answers_as_the_documents_say(bundled_index):
    with sparsight.open(bundled_index) as index:
        hits = index.search("a fire engine", k=3)
        assert [hit.rank for hit in hits] == [1, 2, 3]
        assert {hit.label for hit in hits} == {"truck"}
        assert "fire engine" in [concept.name for concept in hits[0].concepts]
        assert index.classify(hits[0].id).label == "truck"
        assert len(index) == 10_000
    with pytest.raises(sparsight.SparsightError, match="no index in"):
        sparsight.open(bundled_index / "nowhere")
