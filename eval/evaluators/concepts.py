"""Does the strongest concept name what the picture was found under? And does it belong to the picture's class?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

SYNONYMS = 0.9  # cosine of two concepts' atoms from which the synonym-aware figure takes them as one


@dataclass(frozen=True)
class ConceptAccuracy:
    """The share of pictures whose one concept is right; None where no term, or no concept's class, is known.

    dense: the concept whose atom is nearest to the embedding; sparse: the one of largest weight in the code.
    top_term: it names the picture's search term; with synonyms: it, or a concept that means nearly the same.
    top_concept_class: it belongs to the picture's class.
    """

    top_term_accuracy_dense: float | None = None
    top_term_accuracy_sparse: float | None = None
    top_term_accuracy_dense_synonyms: float | None = None
    top_term_accuracy_sparse_synonyms: float | None = None
    top_concept_class_accuracy_dense: float | None = None
    top_concept_class_accuracy_sparse: float | None = None


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
    found: dict[str, float] = {}
    for side, top in (("dense", (X @ D.T).argmax(1)), ("sparse", strongest(W))):
        if (wanted >= 0).any():
            known = (top >= 0) & (wanted >= 0)
            near = (D[np.maximum(top, 0)] * D[np.maximum(wanted, 0)]).sum(1) >= SYNONYMS
            found[f"top_term_accuracy_{side}"] = float((known & (top == wanted)).mean())
            found[f"top_term_accuracy_{side}_synonyms"] = float((known & near).mean())
        if (parents >= 0).any():
            found[f"top_concept_class_accuracy_{side}"] = float(((top >= 0) & (parents[top] == labels)).mean())
    return ConceptAccuracy(**found)


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
