"""Which concepts spoke for the class that was chosen? Some pictures that are right, and some that are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

MOST = 5  # concepts of one example


class Picture(NamedTuple):
    """A picture of the index; label and term are None where they are not known."""

    id: int
    path: str
    label: str | None
    term: str | None


@dataclass(frozen=True)
class Part:
    """A concept of one picture: its weight w_j in the code, and what it adds to the class's score, w_j (D t)_j."""

    name: str
    weight: float
    contribution: float


@dataclass(frozen=True)
class Example:
    """A picture, the class that its code gives it, and the concepts that contribute most to this."""

    id: int
    path: str
    label: str | None
    term: str | None
    predicted: str
    concepts: list[Part]


@dataclass(frozen=True)
class Examples:
    correct: list[Example]
    wrong: list[Example]


def draw_examples(
    W: sparse.csr_matrix,
    D: np.ndarray,
    T: np.ndarray,
    predicted: np.ndarray,
    labels: np.ndarray,
    pictures: Sequence[Picture],
    classes: Sequence[str],
    names: Sequence[str],
    count: int,
    seed: int = 0,
) -> Examples:
    """Draws up to `count` right and up to `count` wrong pictures.

    W (n, m) codes over D (m, d), whose concepts have `names`; T (c, d) the classes; predicted, labels (n,) class ids;
    pictures: n.
    """
    rng = np.random.default_rng(seed)

    def drawn(which: np.ndarray) -> list[Example]:
        rows = sorted(rng.choice(which, min(count, len(which)), replace=False))
        return [
            Example(
                **pictures[i]._asdict(),
                predicted=classes[predicted[i]],
                concepts=strongest_parts(W[i], D, T[predicted[i]], names),
            )
            for i in rows
        ]

    return Examples(
        correct=drawn(np.flatnonzero(predicted == labels)),
        wrong=drawn(np.flatnonzero(predicted != labels)),
    )


def strongest_parts(w: sparse.csr_matrix, D: np.ndarray, t: np.ndarray, names: Sequence[str]) -> list[Part]:
    """The concepts of one code w (1, m) that add most to its score for t (d,), the largest first.

    >>> w = sparse.csr_matrix([[0.5, 0.0, 0.25]])
    >>> strongest_parts(w, np.eye(3), np.array([1.0, 0.0, 0.0]), ["tabby", "truck", "cat"])[0]
    Part(name='tabby', weight=0.5, contribution=0.5)
    """
    contributions = w.data * (D[w.indices] @ t)
    order = np.argsort(-contributions, kind="stable")[:MOST]
    return [Part(names[w.indices[j]], float(w.data[j]), float(contributions[j])) for j in order]
