"""Both indexes of one index folder, as they stand when they are opened, and what is read of them.

A query is a vector t in the encoder's space: a text's embedding, a picture's, or a sum of atoms. The dense index
scores `x·t` (FAISS). The sparse one scores `(w D)·t = w·(D t)`: t becomes one score for each concept, and a picture's
score is the sum of what its concepts contribute, `w_j (D t)_j`. That sum is its explanation as well.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indexer.store import Concept, Store
from search.answers import MODES, Code
from training.errors import CallError

if TYPE_CHECKING:
    from indexer.store.dense import DenseIndex
    from search.inverted import Inverted

BLOCK = 1 << 15  # rows of X that are scored at a time


class Engine:
    """The parts of an open index that queries are answered from. It reads each when it is first needed.

    Raises `SparsightError` where the folder holds no index, or a damaged one.
    """

    def __init__(self, folder: Path | str):
        self.store = Store(folder)

    def close(self) -> None:
        self.store.close()

    @cached_property
    def D(self) -> np.ndarray:
        """The dictionary (m, d): one concept a row, unit rows."""
        return self.store.dictionary()

    @cached_property
    def concepts(self) -> list[Concept]:
        """The m concepts, in the order of their ids."""
        return self.store.concepts()

    @cached_property
    def names(self) -> list[str]:
        """The names of the m concepts, in the order of their ids."""
        return [concept.name for concept in self.concepts]

    @cached_property
    def inverted(self) -> Inverted:
        """The sparse index over every concept's postings."""
        from search.inverted import Inverted

        return Inverted(self.store.packed, ids=self.store.image_ids)

    @cached_property
    def dense(self) -> DenseIndex:
        """The dense index over X (n, d)."""
        from indexer.store.dense import open_dense

        return open_dense(self.store)

    def dense_scores(self, t: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """The exact scores x·t of every picture (n,), by id, or of those at some places (k,) of 0 … n − 1."""
        every = np.arange(len(self.store)) if places is None else places
        t = t.astype(np.float32)
        blocks = [every[i : i + BLOCK] for i in range(0, len(every), BLOCK)]
        return np.concatenate([np.zeros(0, np.float32), *(self.store.embeddings(block) @ t for block in blocks)])

    def near_concepts(self, t: np.ndarray, k: int) -> list[tuple[str, float]]:
        """The k concepts whose atoms have the highest cosine with a unit vector t (d,), and these cosines."""
        from search.ranking import top_k

        check_k(k)
        cosines = self.D @ t
        return [(self.names[j], float(cosines[j])) for j in top_k(cosines, k)]

    def code_of(self, image_id: int) -> Code:
        """The code of a picture of the index, as it is stored."""
        return Code(*self.store.codes_of([image_id])[0])

    def codes_of(self, image_ids: list[int]) -> list[Code]:
        """The codes of pictures of the index, from memory where a query has put them there."""
        held = self.inverted.codes_of(image_ids) if "inverted" in self.__dict__ else None
        return [Code(*code) for code in (self.store.codes_of(image_ids) if held is None else held)]

    def encode(self, x: np.ndarray) -> Code:
        """The code of an embedding x (d,), with the settings that the index's pictures were coded with."""
        from indexer.coding import encode_sparse

        W = encode_sparse(x[None], self.D, self.store.meta.coder).W
        return Code(W.indices, W.data)

    def decode(self, code: Code) -> np.ndarray:
        """w D (d,): what the concepts of a code hold of an embedding; zero for a code without concepts."""
        return code.weights @ self.D[code.ids]


def check_mode(mode: str) -> None:
    """Raises `CallError` for the name of an index that there is not."""
    if mode not in MODES:
        raise CallError(f"mode is {mode!r}: it must be one of {', '.join(MODES)}")


def check_k(k: int) -> None:
    """Raises `CallError` where k is no number of things to return."""
    if k < 1:
        raise CallError(f"k is {k}: it must be at least 1")
