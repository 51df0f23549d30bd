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
    """A picture, the class that its code gives it, and the concepts that contribute most to this.

    predicted is None where there are no labels; the contributions are then to the picture itself, x·(w_j d_j).
    """

    id: int
    path: str
    label: str | None
    term: str | None
    predicted: str | None
    concepts: list[Part]


@dataclass(frozen=True)
class Examples:
    """correct, wrong: pictures whose class is right and wrong; some: pictures at random, where no label is known."""

    correct: list[Example]
    wrong: list[Example]
    some: list[Example]


@dataclass(frozen=True)
class Given:
    """What the codes say of the classes: T (c, d), their names, and of each picture the class given and the true one
    (n,)."""

    T: np.ndarray
    classes: Sequence[str]
    predicted: np.ndarray
    labels: np.ndarray


def draw_examples(
    X: np.ndarray,
    W: sparse.csr_matrix,
    D: np.ndarray,
    given: Given | None,
    pictures: Sequence[Picture],
    names: Sequence[str],
    count: int,
    seed: int = 0,
) -> Examples:
    """Draws up to `count` right and up to `count` wrong pictures; without classes up to `count` of all.

    X (n, d) embeddings; W (n, m) codes over D (m, d), whose concepts have `names`; pictures: n.
    """
    rng = np.random.default_rng(seed)

    def drawn(which: np.ndarray) -> list[Example]:
        rows = sorted(rng.choice(which, min(count, len(which)), replace=False))
        return [
            Example(
                **pictures[i]._asdict(),
                predicted=None if given is None else given.classes[given.predicted[i]],
                concepts=strongest_parts(W[i], D, X[i] if given is None else given.T[given.predicted[i]], names),
            )
            for i in rows
        ]

    if given is None:
        return Examples([], [], drawn(np.arange(len(pictures))))
    right = given.predicted == given.labels
    return Examples(correct=drawn(np.flatnonzero(right)), wrong=drawn(np.flatnonzero(~right)), some=[])


def strongest_parts(w: sparse.csr_matrix, D: np.ndarray, t: np.ndarray, names: Sequence[str]) -> list[Part]:
    """The concepts of one code w (1, m) that add most to its score for t (d,), the largest first.

    >>> w = sparse.csr_matrix([[0.5, 0.0, 0.25]])
    >>> strongest_parts(w, np.eye(3), np.array([1.0, 0.0, 0.0]), ["tabby", "truck", "cat"])[0]
    Part(name='tabby', weight=0.5, contribution=0.5)
    """
    contributions = w.data * (D[w.indices] @ t)
    order = np.argsort(-contributions, kind="stable")[:MOST]
    return [Part(names[w.indices[j]], float(w.data[j]), float(contributions[j])) for j in order]
