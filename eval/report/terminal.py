"""The report's main lines for a terminal."""

from __future__ import annotations

from eval.evaluate import Report
from eval.evaluators import Accuracy, CodeFigures
from eval.report.ladder import COLUMNS, ladder
from training.terminal import table


def summary(report: Report) -> str:
    """The report's main lines as text."""
    lines = [*headline(report), *concept_lines(report), table(ladder(report), COLUMNS)]
    lines += [f"left out: {left.name}, {left.reason}" for left in report.baselines.left_out]
    if words := report.open_words:
        for name, found in (("development", words.development), ("unseen", words.unseen)):
            lines.append(
                f"open words, {name}: P@10 dense {found.precision_dense:.3f}, sparse {found.precision_sparse:.3f} "
                f"({found.queries} queries); known score {found.known_queries_median:.2f}, of meaningless words "
                f"{found.known_nothing_median:.2f}, separation {found.separation:.3f}"
            )
    if corrupted := report.corruptions:
        lines.append(
            f"corrupted (n = {corrupted.n}, mean of five severities): "
            + ", ".join(f"{kind} {dense:.3f} / {sparse:.3f}" for kind, dense, sparse in corrupted.means())
            + " (dense / sparse)"
        )
    return "\n".join(lines)


def headline(report: Report) -> list[str]:
    """What was judged, accuracy and memory of both sides."""
    dataset, sparse, memory = report.dataset, report.sparse, report.memory
    return [
        f"{dataset.name} {dataset.split}, n = {dataset.n}, encoder {report.encoder.name}, "
        f"trained on: {report.encoder.trained_on}",
        f"dense   accuracy {interval(report.dense)}",
        f"sparse  accuracy {interval(sparse)}, {sparse.nnz_mean:.2f} concepts a picture at l1 = {sparse.l1:g}, "
        f"gap ≤ {sparse.max_relative_gap:.1e}, {sparse.empty} empty, cosine {sparse.cosine_mean:.3f}",
        f"McNemar p = {report.mcnemar_p:.3g}",
        f"memory  sparse / dense = {100 * memory.ratio:.2f} % in CSR ({memory.sparse_csr_bytes} / "
        f"{memory.dense_bytes} bytes); compact layout {memory.sparse_compact_bytes} bytes, "
        f"{memory.sparse_compact_bytes / dataset.n:.1f} a picture",
    ]


def concept_lines(report: Report) -> list[str]:
    """Whether the strongest concepts are right, as far as terms and classes are known."""
    c, lines = report.concepts, []
    if c.top_term_accuracy_sparse is not None:
        lines.append(
            f"strongest concept = file name's term: {c.top_term_accuracy_sparse:.4f} "
            f"(dense nearest {c.top_term_accuracy_dense:.4f}); synonyms counted "
            f"{c.top_term_accuracy_sparse_synonyms:.4f} ({c.top_term_accuracy_dense_synonyms:.4f})"
        )
    if c.top_concept_class_accuracy_sparse is not None:
        lines.append(
            f"strongest concept in the right class: {c.top_concept_class_accuracy_sparse:.4f} "
            f"(dense nearest {c.top_concept_class_accuracy_dense:.4f})"
        )
    return lines


def interval(part: Accuracy | CodeFigures) -> str:
    return f"{part.accuracy:.4f} ({part.ci95[0]:.4f} – {part.ci95[1]:.4f})"
