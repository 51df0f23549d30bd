"""Does the strongest concept name what the picture was found under? And does it belong to the picture's class?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from eval.evaluators.accuracy import wilson
from eval.evaluators.intervals import Interval

SYNONYMS = 0.9  # cosine of two concepts' atoms from which the synonym-aware figure takes them as one


@dataclass(frozen=True)
class ConceptAccuracy:
    """The share of pictures whose one concept is right; None where no term, or no concept's class, is known.

    dense: the concept whose atom is nearest to the embedding; sparse: the one of largest weight in the code.
    top_term: it names the picture's search term; with synonyms: it, or a concept that means nearly the same.
    top_concept_class: it belongs to the picture's class. ci95: the interval of each (Wilson), by name.
    """

    top_term_accuracy_dense: float | None = None
    top_term_accuracy_sparse: float | None = None
    top_term_accuracy_dense_synonyms: float | None = None
    top_term_accuracy_sparse_synonyms: float | None = None
    top_concept_class_accuracy_dense: float | None = None
    top_concept_class_accuracy_sparse: float | None = None
    ci95: dict[str, Interval] = field(default_factory=dict)


def concept_accuracy(
    X: np.ndarray, W: sparse.csr_matrix, D: np.ndarray, wanted: np.ndarray, parents: np.ndarray, labels: np.ndarray
) -> ConceptAccuracy:
    """X (n, d) embeddings, W (n, m) their codes over D (m, d); labels (n,) class ids.

    wanted (n,): the concept that names each picture's term, −1 where none does: such a picture counts as a miss.
    parents (m,): the class of each concept, −1 where it has none.

    >>> D = np.eye(2)
    >>> W = sparse.csr_matrix([[0.9, 0.0], [0.7, 0.0]])
    >>> of = concept_accuracy(D, W, D, wanted=np.array([0, 1]), parents=np.array([0, 0]), labels=np.array([0, 0]))
    >>> of.top_term_accuracy_dense, of.top_term_accuracy_sparse, of.top_concept_class_accuracy_sparse
    (1.0, 0.5, 1.0)
    """
    right: dict[str, np.ndarray] = {}
    for side, top in (("dense", (X @ D.T).argmax(1)), ("sparse", strongest(W))):
        if (wanted >= 0).any():
            known = (top >= 0) & (wanted >= 0)
            near = (D[np.maximum(top, 0)] * D[np.maximum(wanted, 0)]).sum(1) >= SYNONYMS
            right[f"top_term_accuracy_{side}"] = known & (top == wanted)
            right[f"top_term_accuracy_{side}_synonyms"] = known & near
        if (parents >= 0).any():
            right[f"top_concept_class_accuracy_{side}"] = (top >= 0) & (parents[top] == labels)
    shares = {name: float(hits.mean()) for name, hits in right.items()}
    return ConceptAccuracy(**shares, ci95={name: wilson(int(hits.sum()), len(hits)) for name, hits in right.items()})


@dataclass(frozen=True)
class Use:
    """How many of the judged pictures a concept helps to make up, and its mean weight in them."""

    name: str
    pictures: int
    weight: float


def most_used(W: sparse.csr_matrix, names: Sequence[str], most: int = 20) -> list[Use]:
    """The concepts that most codes W (n, m) hold.

    >>> most_used(sparse.csr_matrix([[0.5, 0.0], [0.25, 0.0]]), ["tabby", "truck"])
    [Use(name='tabby', pictures=2, weight=0.375)]
    """
    counts, sums = np.bincount(W.indices, minlength=W.shape[1]), np.asarray(W.sum(0)).ravel()
    order = [j for j in np.argsort(-counts, kind="stable")[:most] if counts[j]]
    return [Use(names[j], int(counts[j]), float(sums[j] / counts[j])) for j in order]


def strongest(W: sparse.csr_matrix) -> np.ndarray:
    """The concept of largest weight in each row (n,), −1 where a row is empty; the lowest id of equals.

    >>> strongest(sparse.csr_matrix([[0.0, 0.2, 0.9], [0.0, 0.0, 0.0], [0.5, 0.5, 0.1]])).tolist()
    [2, -1, 0]
    """
    top = np.full(W.shape[0], -1, np.int64)
    rows = np.repeat(np.arange(W.shape[0]), np.diff(W.indptr))
    order = np.lexsort((W.indices, -W.data, rows))
    first = np.flatnonzero(np.diff(W.indptr) > 0)
    top[first] = W.indices[order[W.indptr[first]]]
    return top
