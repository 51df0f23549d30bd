"""What questions are answered with: hits, classes and explanations, and what each concept adds to a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args, overload

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from search.query import Query

Mode = Literal["sparse", "dense"]
MODES: tuple[str, ...] = get_args(Mode)
Thumbnails = Callable[[Sequence[int]], dict[int, bytes]]  # ids → JPEGs, of the pictures that have one


class Code(NamedTuple):
    """The code of one picture, a row of W: its nnz concepts, and how much of each it holds.

    residual, scale: where the index keeps residuals, scale · (w D + residual) is the unit vector that stands for the
    picture; else w D does.
    """

    ids: np.ndarray  # (nnz,) integers
    weights: np.ndarray  # (nnz,) float32, above 0
    residual: np.ndarray | None = None  # (d,) float32
    scale: float = 1.0


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
    concepts; in sparse mode that of the residual, 0 in an index that keeps none. The contributions and the rest add up
    to the score.
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
class Answer(Sequence[Hit]):
    """What a query finds; its length, its items and what one goes through are its hits. A notebook shows it.

    hits: best first. mode: which index answered. cut_off: the score from which on a hit counts as one: below it an
    unrelated text would find as good a one too often; None where scores are not compared. left_out: how many of the k
    best lie below it and are not among the hits. notes: what else is to be said. thumbnails: of pictures by id.
    """

    query: Query
    mode: str
    hits: list[Hit]
    cut_off: float | None = None
    left_out: int = 0
    notes: list[str] = field(default_factory=list)
    thumbnails: Thumbnails | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, place: int) -> Hit: ...
    @overload
    def __getitem__(self, place: slice) -> list[Hit]: ...
    def __getitem__(self, place: int | slice) -> Hit | list[Hit]:
        return self.hits[place]

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "thumbnails": None}  # an open index cannot be copied or kept

    def to_dict(self) -> dict[str, object]:
        """The answer as JSON holds it."""
        return {
            "query": self.query.to_dict(),
            "mode": self.mode,
            "hits": [hit.to_dict() for hit in self.hits],
            "cut_off": self.cut_off,
            "left_out": self.left_out,
            "notes": self.notes,
        }

    def to_pandas(self) -> pd.DataFrame:
        """The hits as a table of pandas, one a row; what the concepts add is a dict."""
        from search.tables import to_pandas

        return to_pandas([hit.to_dict() for hit in self.hits])

    def to_arrow(self) -> pa.Table:
        """The hits as a table of pyarrow, one a row; the concepts are a list of structs."""
        from search.tables import to_arrow

        return to_arrow([hit.to_dict() for hit in self.hits])

    def _repr_html_(self) -> str:
        from search.notebook import show

        return show("answer", self, self.thumbnails, [hit.id for hit in self.hits])


@dataclass(frozen=True)
class Classification:
    """The class of a picture.

    label: the class with the highest score; scores: every class with its score, the highest first; concepts: what
    each concept of the picture adds to the score of `label`; rest: what lies outside them adds. familiarity: the share
    of the pictures that are known that lie as far out as this one, None where too few are known to tell; where it is so
    small that the class means little, notes say so.
    """

    label: str
    scores: list[tuple[str, float]]
    concepts: list[ConceptWeight]
    rest: float = 0.0
    familiarity: float | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The classification as JSON holds it."""
        return asdict(self)

    def _repr_html_(self) -> str:
        from search.notebook import show

        return show("classification", self)


@dataclass(frozen=True)
class Explanation:
    """Why a picture x with the code w has its scores for a text t.

    dense_score: x·t; sparse_score: (w D)·t, the sum of the contributions; cosine: of x and w D, how much of the
    embedding the concepts hold. In an index with residuals x̂ stands for w D, and rest is what the residual adds to the
    sparse score; in one without embeddings the dense score and the cosine of its pictures are not known: None. What
    follows is told for a text that was asked for. rank: among all pictures by x·t, or where no embeddings are kept by
    the sparse score, from 1; ranks_without: for each concept the rank that it would have without what that adds. k: of
    how many hits it may be one; short: what its score lacks to be among these, 0 for a hit; would_help: concepts that
    would bring it there, each with the weight that would have to be added, the least first. familiarity,
    notes: as of a `Classification`.
    """

    target: str
    label: str | None
    text: str
    dense_score: float | None
    sparse_score: float
    cosine: float | None
    concepts: list[ConceptWeight]
    rest: float = 0.0
    rank: int | None = None
    ranks_without: list[tuple[str, int]] = field(default_factory=list)
    k: int = 0
    short: float = 0.0
    would_help: list[tuple[str, float]] = field(default_factory=list)
    familiarity: float | None = None
    notes: list[str] = field(default_factory=list)

    def in_words(self) -> list[str]:
        """Where it stands, and what would bring it among the first k, a sentence each; none without a text."""
        if self.rank is None:
            return []
        by = "sparse" if self.dense_score is None else "dense"
        said = [f"It ranks {ordinal(self.rank)} by its {by} score."]
        if self.short:
            more = [f"{weight:.2g} more of {name}" for name, weight in self.would_help]
            more += [f"without {name}" for name, rank in self.ranks_without if rank <= self.k]
            what = f" It would be with {', or '.join(more)}." if more else ""
            said.append(f"It is not among the first {self.k}, by {self.short:.3f}.{what}")
        return said

    def to_dict(self) -> dict[str, object]:
        """The explanation as JSON holds it."""
        return asdict(self)

    def _repr_html_(self) -> str:
        from search.notebook import show

        return show("explanation", self)


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
    thumbnails: Thumbnails | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, object]:
        """The change as JSON holds it."""
        return {"before": asdict(self.before), "after": asdict(self.after)}

    def _repr_html_(self) -> str:
        from search.notebook import show

        ids = [hit.id for state in (self.before, self.after) for hit in state.neighbours]
        return show("edit", self, self.thumbnails, ids)


def ordinal(n: int) -> str:
    """1 → 1st, 2 → 2nd, 12 → 12th, 1003 → 1,003rd."""
    end = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n:,}{end}"


def contributions(code: Code, s: np.ndarray, names: Sequence[str]) -> list[ConceptWeight]:
    """What each concept of a code adds to its score, scale · w·s, the largest in size first.

    s (m,): the score of each concept, D t; names: of all m concepts.
    """
    parts = [
        ConceptWeight(names[j], float(w), float(w * c * code.scale))
        for j, w, c in zip(code.ids, code.weights, s[code.ids], strict=True)
    ]
    return sorted(parts, key=lambda part: -abs(part.contribution))
