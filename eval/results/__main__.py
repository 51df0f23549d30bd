"""`python -m eval.results`, which `make results` calls: writes the figures of README and docs anew."""

from __future__ import annotations

from pathlib import Path

import click

from eval.results import PAGES, filled, read_figures, taken, write_figures
from training.commands import Command, FilePath
from training.files import write_whole


@click.command(cls=Command)
@click.option("--report", type=FilePath(), default="report", show_default=True, help="Folder of the report.")
@click.option("--bench", type=FilePath(), default="bench", show_default=True, help="Folder of the benchmarks.")
@click.option("--root", type=FilePath(), default=".", show_default=True, help="Folder of the project.")
def main(report: Path, bench: Path, root: Path) -> None:
    """Takes the figures of a report and of the benchmarks, and writes them into README.md and docs.

    Where one of the two is missing, its figures stay as they are.
    """
    folder = root / "docs" / "figures"
    path = folder / "figures.json"
    write_figures(path, taken(report, bench, read_figures(path)))
    figures = read_figures(path)
    assert figures is not None
    for page in PAGES:
        text = (root / page).read_text(encoding="utf-8")
        if (new := filled(text, figures, folder)) != text:
            write_whole(root / page, new.encode())
            click.echo(f"wrote {page}", err=True)


if __name__ == "__main__":
    main()
