"""What a baseline is worth, by the same judge as our own codes."""

from __future__ import annotations

from dataclasses import dataclass

from eval.baselines.kept import Material, Way
from eval.evaluators import Hits, Judge, Worth
from training.errors import SparsightError


@dataclass(frozen=True, kw_only=True)
class Baseline(Worth):
    """What one baseline is worth. family: quantiser, concepts (of the same dictionary), learned (atoms without names),
    or residual (our codes and a quantised rest).

    bytes_per_image: of its codes; table_bytes: of what all pictures share. concepts: how many a picture has, None
    where it is not kept as such. train_seconds, code_seconds: to learn, and to code all pictures.
    """

    name: str
    family: str
    bytes_per_image: float
    table_bytes: int
    concepts: float | None = None
    train_seconds: float
    code_seconds: float


@dataclass(frozen=True)
class LeftOut:
    """A baseline that could not be measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Judged:
    """One baseline: what it is worth and how right it is query by query, or why it was left out."""

    baseline: Baseline | None = None
    hits: Hits | None = None
    left_out: LeftOut | None = None


def judge_baseline(way: Way, material: Material, judge: Judge) -> Judged:
    """Judges X as one baseline gives it back, or says why that cannot be."""
    if reason := way.unfit(material):
        return Judged(left_out=LeftOut(way.name, reason))
    try:
        kept = way.make(material)
    except SparsightError as e:
        return Judged(left_out=LeftOut(way.name, str(e)))
    hits = judge.hits(kept.A, kept.latent)
    baseline = Baseline(
        name=way.name,
        family=way.family,
        bytes_per_image=kept.bytes_per_image,
        table_bytes=kept.table_bytes,
        concepts=kept.concepts,
        train_seconds=kept.train_seconds,
        code_seconds=kept.code_seconds,
        **vars(judge.worth(hits)),
    )
    return Judged(baseline, hits)
