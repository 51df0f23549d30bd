"""The figures that the pages show: a report without its examples, and what the benchmarks found."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.evaluate import Report
from eval.evaluators import Examples
from eval.parts import restored
from training.errors import SparsightError
from training.files import write_whole

DIGITS = 6  # that figures are kept to


@dataclass(frozen=True)
class Figures:
    """report: without pictures, concept by concept figures and paths. bench: what bench/results.json holds."""

    report: Report
    bench: dict[str, Any] = field(default_factory=dict)


def taken(report: Path, bench: Path, before: Figures | None) -> Figures:
    """The figures of a report's folder and of a benchmark's; of a folder that is not there, those from before.

    Raises `SparsightError` where there is neither.
    """
    found, timed = report / "report.json", bench / "results.json"
    if not found.is_file() and before is None:
        raise SparsightError(f"no report in {report}: write one with `sparsight eval`")
    whole = restored(Report, _read(found), {}) if found.is_file() else before.report if before else None
    assert whole is not None
    if whole.made.get("quick") or None in (whole.open_words, whole.corruptions, whole.stability, whole.texts):
        raise SparsightError(
            f"the report in {report} is not whole: write it with `sparsight eval`, without --quick, and with the "
            "pictures of CIFAR-10 at hand"
        )
    truth = whole.concepts.truth and replace(whole.concepts.truth, by_concept=[])
    concepts = replace(whole.concepts, examples=Examples([], [], []), truth=truth)
    return Figures(
        replace(whole, concepts=concepts, memory=replace(whole.memory, disk={})),
        _read(timed) if timed.is_file() else before.bench if before else {},
    )


def read_figures(path: Path) -> Figures | None:
    """What `write_figures` wrote; None where there is no file."""
    return restored(Figures, _read(path), {}) if path.is_file() else None


def write_figures(path: Path, figures: Figures) -> None:
    text = json.dumps(_rounded(asdict(figures)), indent=1, ensure_ascii=False)
    write_whole(path, (text + "\n").encode())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as e:
        raise SparsightError(f"cannot read {path}: {e}") from e


def _rounded(value: Any) -> Any:
    """Floats to DIGITS digits: more are noise, and a file of text holds them."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items() if each is not None}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
