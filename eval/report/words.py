"""What a report says in five sentences. The words follow the figures: a difference inside its interval is none."""

from __future__ import annotations

from collections.abc import Sequence

from eval.evaluate import Report
from eval.evaluators import Comparison, Difference, Interval

SMALL = 0.05  # p below which McNemar's test tells two sides apart
NAMES = {
    "accuracy": "accuracy",
    "class_precision": "P@10 by class",
    "term_precision": "P@10 by search term",
    "recall_of_dense": "recall@10 of dense neighbours",
    "text_precision": "text → picture P@10",
}


def sentences(report: Report) -> list[str]:
    """Five sentences: the accuracy, the neighbours, the baselines, the concepts, and the limits of it all."""
    return [classes(report), closeness(report), beside_baselines(report), meaning(report), limits(report)]


def classes(report: Report) -> str:
    """How right the codes are beside the embeddings."""
    dataset, dense, codes = report.dataset, report.dense, report.sparse
    size = f"{codes.nnz_mean:.2f} concepts ({report.memory.sparse_compact_bytes_per_image:.1f} bytes) a picture"
    of = f"{dataset.n:,} pictures of {dataset.name} ({dataset.split})"
    if dense.accuracy is None or codes.accuracy is None or dense.ci95 is None or codes.ci95 is None:
        return (
            f"On {of}, codes of {size} hold {codes.cosine_mean:.3f} of the embeddings, as a mean cosine; no labels are "
            "known, so that nothing here says how right either side is."
        )
    differ = report.mcnemar_p is not None and report.mcnemar_p < SMALL
    told = "which does not tell the two apart"
    if differ:
        told = "so the codes are " + ("less" if codes.accuracy < dense.accuracy else "more") + " accurate"
    return (
        f"On {of}, codes of {size} give the right class for {percent(codes.accuracy, codes.ci95)}, the embeddings "
        f"({report.memory.dense_bytes_per_image:,.0f} bytes) for {percent(dense.accuracy, dense.ci95)}; "
        f"McNemar’s test gives p = {report.mcnemar_p:.2g}, {told}."
    )


def closeness(report: Report) -> str:
    """What the codes lose: the embeddings' own neighbours."""
    searched, most = report.sparse.searched, max(report.sweep, key=lambda p: p.recall_of_dense)
    recall = share(searched.recall_of_dense, searched.ci95["recall_of_dense"])
    return (
        f"Of the ten nearest pictures by the embeddings the codes find a share of {recall}"
        f"{as_right(report)}; with more concepts they come closer, up to {most.recall_of_dense:.2f} at "
        f"{most.bytes_per_image:.1f} bytes{by_residual(report)}."
    )


def by_residual(report: Report) -> str:
    """What a quantised residual beside the concepts adds, and whether a baseline of its size is as close."""
    ours = [b for b in report.baselines if b.family == "residual"]
    if not ours:
        return ""
    best = max(ours, key=lambda b: b.recall_of_dense)
    others = [b for b in report.baselines if b.family != "residual" and b.bytes_per_image <= best.bytes_per_image]
    closest = max(others, key=lambda b: b.recall_of_dense, default=None)
    said = (
        f", and with {best.name.partition(' and ')[2]} up to {best.recall_of_dense:.2f} at {best.bytes_per_image:.1f}"
    )
    if closest is None:
        return said
    here, there = best.ci95["recall_of_dense"], closest.ci95["recall_of_dense"]
    word = "more than" if here[0] > there[1] else "less than" if here[1] < there[0] else "as much as"
    other = f"{closest.name} ({closest.recall_of_dense:.2f} at {closest.bytes_per_image:.1f})"
    return f"{said}, {word} the closest baseline of no more bytes, {other}"


def as_right(report: Report) -> str:
    searched, dense = report.sparse.searched, report.dense.worth
    if searched.class_precision is None or dense.class_precision is None:
        return ""
    here, there = searched.ci95["class_precision"], dense.ci95["class_precision"]
    word = "more often" if here[0] > there[1] else "less often" if here[1] < there[0] else "as often"
    return (
        f", while what they find is of the picture’s class {word} ({searched.class_precision:.3f} against "
        f"{dense.class_precision:.3f})"
    )


def beside_baselines(report: Report) -> str:
    """At equal bytes: in what the baselines are better, and worse."""
    if not report.comparisons:
        return "No baseline of so few bytes could be measured."
    parts = []
    for metric in ("recall_of_dense", "accuracy"):
        of = [(c, d) for c in report.comparisons for d in c.differences if d.metric == metric]
        if of:
            parts.append(standing(metric, of))
    return f"Beside {len(report.comparisons)} baselines of the same size, " + "; ".join(parts) + "."


def standing(metric: str, of: Sequence[tuple[Comparison, Difference]]) -> str:
    """In how many comparisons our codes are ahead, behind, and neither; and the widest of either side."""
    ahead, behind = ([pair for pair in of if pair[1].better == sign] for sign in (1, -1))
    said = f"in {NAMES[metric]} the codes are ahead of {len(ahead)}, behind {len(behind)} and level with "
    said += f"{len(of) - len(ahead) - len(behind)}"
    if behind:
        comparison, widest = min(behind, key=lambda pair: pair[1].value)
        said += f" (furthest behind {comparison.baseline}, by {share(-widest.value, turned(widest.ci95))})"
    return said


def meaning(report: Report) -> str:
    """Whether the concepts are true, and whether the decision hangs on them."""
    truth, faithful = report.concepts.truth, report.faithfulness
    if truth is None and faithful is None:
        first = report.concepts.most_used[:3]
        named = ", ".join(f"{use.name} ({use.pictures:,})" for use in first)
        return f"Without labels nothing tests the concepts; those that describe most pictures are {named}."
    parts = []
    if truth is not None:
        exact, loose = (share(rate.value, rate.ci95) for rate in (truth.precision, truth.precision_synonyms))
        parts.append(
            f"an active concept is what the picture was found under in {exact} of cases, with near-synonyms in {loose} "
            f"(by chance: {truth.random_precision:.3f})"
        )
    if faithful is not None and len(faithful.steps) > 1:
        mine, chance = faithful.deletion.ordered[1], faithful.deletion.random[1]
        apart = mine.ci95[1] < chance.ci95[0]
        parts.append(
            f"without its first concept {share(1 - mine.value, turned(mine.ci95, 1))} of embeddings change class, "
            f"without a random one {share(1 - chance.value, turned(chance.ci95, 1))}"
            + ("" if apart else ", which is no clear difference")
        )
    return sentence("; ".join(parts))


def limits(report: Report) -> str:
    """What all of this does not show."""
    parts = ["one encoder and one training of it stand behind every figure, and no interval covers another"]
    if "not zero-shot" in report.encoder.zero_shot:
        parts.append("the encoder was taught these classes, so that its accuracy is not zero-shot")
    nearest = next((b for b in report.baselines if b.name == "nearest concept alone"), None)
    if nearest is not None and nearest.accuracy is not None:
        parts.append(f"the nearest concept alone is right for {percent(nearest.accuracy, nearest.ci95['accuracy'])}")
    if "themselves" in report.baselines_trained_on:
        parts.append("the baselines learned from the judged pictures, which favours them")
    return sentence("Limits: " + "; ".join(parts))


def percent(value: float, ci95: Interval) -> str:
    return f"{100 * value:.2f} % ({100 * ci95[0]:.2f} – {100 * ci95[1]:.2f})"


def share(value: float, ci95: Interval) -> str:
    return f"{value:.3f} ({ci95[0]:.3f} – {ci95[1]:.3f})"


def turned(ci95: Interval, at: float = 0.0) -> Interval:
    """The interval of at − value."""
    return at - ci95[1], at - ci95[0]


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
