"""What questions are answered with: hits, classes and explanations, and what each concept adds to a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    import numpy as np

    from search.query import Query

Mode = Literal["sparse", "dense"]
MODES: tuple[str, ...] = get_args(Mode)


class Code(NamedTuple):
    """The code of one picture, a row of W: its nnz concepts, and how much of each it holds."""

    ids: np.ndarray  # (nnz,) integers
    weights: np.ndarray  # (nnz,) float32, above 0


@dataclass(frozen=True)
class ConceptWeight:
    """A concept of one picture: its weight w_j in the code, and what it adds to the score, w_j (D t)_j."""

    name: str
    weight: float
    contribution: float


@dataclass(frozen=True)
class Hit:
    """One picture that was found.

    rank: from 1; id: the picture's in the index; path: where its file was; label: None where it has none.
    concepts: those of its code, the largest contribution first; rest: the part of the score that lies outside all
    concepts, 0 in sparse mode. The contributions and the rest add up to the score.
    chance: how often an unrelated text finds a picture of this score, None where that was not asked; matches: whether
    that is rare enough. others: pictures that this one stands for, where hits are grouped.
    """

    rank: int
    id: int
    score: float
    path: str
    label: str | None
    concepts: list[ConceptWeight]
    rest: float = 0.0
    chance: float | None = None
    matches: bool = True
    others: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The hit as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """What a query finds.

    hits: best first. mode: which index answered. cut_off: the score from which on a hit counts as one: below it an
    unrelated text would find as good a one too often; None where scores are not compared. left_out: how many of the k
    best lie below it and are not among the hits. notes: what else is to be said.
    """

    query: Query
    mode: str
    hits: list[Hit]
    cut_off: float | None = None
    left_out: int = 0
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The answer as JSON holds it."""
        return asdict(self) | {"query": self.query.to_dict()}


@dataclass(frozen=True)
class Classification:
    """The class of a picture.

    label: the class with the highest score; scores: every class with its score, the highest first; concepts: what
    each concept of the picture adds to the score of `label`.
    """

    label: str
    scores: list[tuple[str, float]]
    concepts: list[ConceptWeight]

    def to_dict(self) -> dict[str, object]:
        """The classification as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Explanation:
    """Why a picture x with the code w has its scores for a text t.

    dense_score: x·t; sparse_score: (w D)·t, the sum of the contributions; cosine: of x and w D, how much of the
    embedding the concepts hold. rank: among all pictures by x·t, from 1; ranks_without: for each concept the rank that
    it would have without what that adds. They are told for a text that was asked for.
    """

    target: str
    label: str | None
    text: str
    dense_score: float
    sparse_score: float
    cosine: float
    concepts: list[ConceptWeight]
    rank: int | None = None
    ranks_without: list[tuple[str, int]] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The explanation as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class EditState:
    """What follows from a code: every class with its score, the highest first; the pictures nearest to it; and for a
    text the rank among all pictures, from 1, else None."""

    scores: list[tuple[str, float]]
    neighbours: list[Hit]
    rank: int | None = None


@dataclass(frozen=True)
class Edit:
    """What a picture's code means before and after a change by hand."""

    before: EditState
    after: EditState

    def to_dict(self) -> dict[str, object]:
        """The change as JSON holds it."""
        return asdict(self)


def contributions(code: Code, s: np.ndarray, names: Sequence[str]) -> list[ConceptWeight]:
    """What each concept of a code adds to its score w·s, the largest in size first.

    s (m,): the score of each concept, D t; names: of all m concepts.
    """
    parts = [
        ConceptWeight(names[j], float(w), float(w * c))
        for j, w, c in zip(code.ids, code.weights, s[code.ids], strict=True)
    ]
    return sorted(parts, key=lambda part: -abs(part.contribution))
