"""Whether the concepts carry the decision, and what they leave out: codes for that are made here."""

from __future__ import annotations

from dataclasses import dataclass

from eval.evaluators import Faithfulness, Outside, faithfulness, left_out
from eval.parts import Parts
from eval.subject import Subject
from indexer.coding import choose_l1, encode_sparse
from indexer.config import CoderConfig
from training.errors import DataError

CONE = 0.01  # of λ_max: next to no penalty
FAITHFUL = 5  # concepts a picture where deletion and insertion are tried


@dataclass(frozen=True, kw_only=True)
class Believed:
    """Whether the concepts carry the decision, and what they leave out; None where there are no classes."""

    faithfulness: Faithfulness | None = None
    outside: Outside | None = None


def believed(s: Subject, device: str, seed: int, parts: Parts, known: str) -> Believed:
    """Whether the concepts carry the decision, and what they leave out; None where there are no classes."""
    if s.labels is None or not len(s.T):
        return Believed()
    coder = s.meta.coder
    relative = CoderConfig(relative=True, refit=coder.refit, memory=coder.memory)

    def faithful() -> Faithfulness:
        try:
            l1 = choose_l1(s.X, s.D, FAITHFUL, relative, device=device)
            W = encode_sparse(s.X, s.D, CoderConfig(l1, refit=True), device=device).W
        except DataError:  # a dictionary of few concepts
            W = s.W
        return faithfulness(s.X, W, s.D, s.T, seed)

    def outside() -> Outside:
        cone = encode_sparse(s.X, s.D, CoderConfig(CONE, refit=True), device=device).W
        assert s.labels is not None
        return left_out(s.X, s.W, cone, s.D, s.T, s.labels, s.classes, seed)

    return Believed(
        faithfulness=parts.get("deletion and insertion", Faithfulness, faithful, known, seed, FAITHFUL),
        outside=parts.get("outside the cone", Outside, outside, known, seed, CONE),
    )
