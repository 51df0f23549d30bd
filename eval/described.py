"""What the report says of concepts: whether they name the picture, which are used, and examples."""

from __future__ import annotations

from dataclasses import dataclass

from eval.evaluators import (
    ConceptAccuracy,
    Examples,
    Given,
    Truth,
    Use,
    concept_accuracy,
    concept_truth,
    draw_examples,
    most_used,
    predicted,
    reconstruct,
)
from eval.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Concepts(ConceptAccuracy):
    """truth: against the search terms, None where too few are known. most_used: by how many pictures."""

    truth: Truth | None
    most_used: list[Use]
    examples: Examples


def described(s: Subject, examples: int, seed: int) -> Concepts:
    """Whether the strongest concepts are right, whether all are, which are used most, and some pictures."""
    given, named = None, ConceptAccuracy()
    if s.labels is not None and len(s.T):
        given = Given(s.T, s.classes, predicted(reconstruct(s.W, s.D), s.T), s.labels)
        named = concept_accuracy(s.X, s.W, s.D, s.wanted, s.parents, s.labels)
    return Concepts(
        **vars(named),
        truth=concept_truth(s.W, s.D, s.wanted, s.names, seed),
        most_used=most_used(s.W, s.names),
        examples=draw_examples(s.X, s.W, s.D, given, s.pictures, s.names, examples, seed),
    )
