"""The figures of README and docs are those of docs/figures/figures.json: `make results` writes them, nobody else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from eval.results import PAGES, filled, read_figures
from eval.results.__main__ import main

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "figures"


@pytest.fixture(scope="module")
def figures():
    return read_figures(FIGURES / "figures.json")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_the_figures_that_were_measured(page, figures):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- figures: " in text
    assert filled(text, figures, FIGURES) == text, "the figures have drifted: run `make results`"


def test_every_template_is_used():
    used = {
        name for page in PAGES for name in re.findall(r"<!-- figures: ([\w-]+) -->", (ROOT / page).read_text("utf-8"))
    }
    assert {path.stem for path in FIGURES.glob("*.jinja")} - {"table"} == used


def test_a_page_follows_its_figures_and_keeps_what_is_written_by_hand(figures):
    dense = replace(figures.report.dense, worth=replace(figures.report.dense.worth, accuracy=0.1234))
    other = replace(figures, report=replace(figures.report, dense=dense))
    text = "before\n<!-- figures: readme -->\nold\n<!-- end -->\nafter\n"
    new = filled(text, other, FIGURES)
    assert "0.1234" in new
    assert "old" not in new
    assert new.startswith("before\n<!--")
    assert new.endswith("-->\nafter\n")


def project(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "figures").mkdir(parents=True)
    for path in FIGURES.iterdir():
        (tmp_path / "docs" / "figures" / path.name).write_bytes(path.read_bytes())
    for page in PAGES:
        (tmp_path / page).write_bytes((ROOT / page).read_bytes())
    return tmp_path


def test_make_results_writes_pages_anew_and_leaves_what_was_not_measured(tmp_path):
    root = project(tmp_path)
    bench = tmp_path / "bench"
    bench.mkdir()
    held = json.loads((FIGURES / "figures.json").read_text("utf-8"))["bench"]
    rows = next(iter(held["coder"]["tables"].values()))
    rows[0]["rows_per_s"] = 98765.4
    (bench / "results.json").write_text(json.dumps(held))
    arguments = ["--root", str(root), "--report", str(tmp_path / "none"), "--bench", str(bench)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "**98,765**" in (root / "docs/benchmarks.md").read_text("utf-8")
    assert (root / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()


def test_a_report_that_is_not_whole_is_refused_and_changes_nothing(bundled_report, tmp_path):
    root = project(tmp_path)
    before = {page: (root / page).read_bytes() for page in PAGES}
    result = CliRunner().invoke(main, ["--root", str(root), "--report", str(bundled_report.folder)])
    assert result.exit_code == 1
    assert "is not whole" in result.stderr
    assert {page: (root / page).read_bytes() for page in PAGES} == before
    (tmp_path / "report.json").write_text("{")
    broken = CliRunner().invoke(main, ["--root", str(root), "--report", str(tmp_path)])
    assert broken.exit_code == 1
    assert broken.stderr.startswith("Error: cannot read")
