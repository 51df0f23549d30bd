"""Blocks of figures in pages: between two marks stands what a template makes of the figures."""

from __future__ import annotations

import re
from pathlib import Path

from eval.baselines import Baseline
from eval.evaluators import Point
from eval.report import ladder, sentences
from eval.results import benchmarks
from eval.results.figures import Figures
from training.errors import SparsightError

PAGES = ("README.md", "docs/results.md", "docs/model-card.md", "docs/benchmarks.md", "docs/scale.md")
BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, figures: Figures, templates: Path) -> str:
    """A page's text with every block written anew. Raises `SparsightError` for a block that has no template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(templates), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def block(found: re.Match[str]) -> str:
        template = f"{found[2]}.jinja"
        if not (templates / template).is_file():
            raise SparsightError(f"no template {templates / template} for the block {found[2]!r}")
        report = figures.report
        each: list[Point | Baseline] = [*report.sweep, *report.matched, *report.baselines]
        ways = {way.name: way for way in each}
        body = environment.get_template(template).render(
            r=report, ways=ways, ladder=ladder, bench=figures.bench, benchmarks=benchmarks, sentences=sentences(report)
        )
        return f"{found[1]}{body.strip()}\n{found[3]}"

    return BLOCK.sub(block, text)
