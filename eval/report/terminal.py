"""The report's main lines for a terminal."""

from __future__ import annotations

from eval.evaluate import Report
from eval.report.ladder import COLUMNS, ladder
from eval.report.words import sentences
from training.terminal import table


def summary(report: Report) -> str:
    """Five sentences, what each way to use few bytes is worth, and what was left out."""
    lines = [*sentences(report), "", table(ladder(report), COLUMNS)]
    lines += [f"left out: {left.name}, {left.reason}" for left in report.baselines_left_out]
    if words := report.open_words:
        for name, found in (("development", words.development), ("unseen", words.unseen)):
            lines.append(
                f"open words, {name}: P@10 dense {found.precision_dense:.3f}, sparse {found.precision_sparse:.3f} "
                f"({found.queries} queries); known score {found.known_queries_median:.2f}, of meaningless words "
                f"{found.known_nothing_median:.2f}, separation {found.separation:.3f}"
            )
    if corrupted := report.corruptions:
        each = (f"{k.kind} {k.dense.accuracy:.3f} / {k.sparse.accuracy:.3f}" for k in corrupted.kinds)
        lines.append(f"corrupted (n = {corrupted.n}, five severities): {', '.join(each)} (dense / sparse)")
    return "\n".join(lines)
