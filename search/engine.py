"""Both indexes of one index folder, as they stand when they are opened, and what is read of them.

A query is a vector t in the encoder's space: a text's embedding, a picture's, or a sum of atoms. The dense index
scores `x·t` (FAISS). The sparse one scores `(w D)·t = w·(D t)`: t becomes one score for each concept, and a picture's
score is the sum of what its concepts contribute, `w_j (D t)_j`. That sum is its explanation as well. Where the index
keeps residuals the sparse side scores `x̂·t` instead, x̂ = scale · (w D + r̂), whose parts are those of the concepts and
that of the residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indexer.residual import scales_of
from indexer.store import Concept, Store
from indexer.store.residuals import Residuals, read_residuals
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

    @cached_property
    def residuals(self) -> Residuals | None:
        """What is kept of the embeddings beside the concepts; None where nothing is."""
        return read_residuals(self.store)

    def places_of(self, image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Places (k,) of 0 … n − 1 of pictures of the index."""
        return np.searchsorted(self.store.image_ids, np.asarray(image_ids, np.int64))

    def vectors_of(self, image_ids: list[int]) -> np.ndarray:
        """Unit rows (k, d) that stand for pictures of the index: their embeddings, or where none are kept what their
        codes give back."""
        if self.store.meta.keeps_vectors:
            return self.store.embeddings_of(image_ids)
        V = np.stack([np.zeros(self.store.d, np.float32), *(self.decode(c) for c in self.codes_of(image_ids))])[1:]
        return np.asarray(V * scales_of(V)[:, None], np.float32)

    def sparse_scores(self, t: np.ndarray) -> np.ndarray:
        """(n,) the sparse score of every picture for t (d,), by id: x̂·t, or (w D)·t without residuals."""
        if self.residuals is not None:
            return self.residuals.scores(t, self.D @ t)
        with self.store.damage():
            found = self.inverted.search(self.D @ t, len(self.store))
        return found.scores[np.argsort(found.ids)]

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
        return self.codes_of([image_id])[0]

    def codes_of(self, image_ids: list[int], *, residual: bool = True) -> list[Code]:
        """The codes of pictures of the index, from memory where a query has put them there; with their residuals, if
        there are any, unless these are not asked for."""
        held = self.inverted.codes_of(image_ids) if "inverted" in self.__dict__ else None
        codes = [Code(*code) for code in (self.store.codes_of(image_ids) if held is None else held)]
        if not residual or self.residuals is None:
            return codes
        at = self.places_of(image_ids)
        rests, scales = self.residuals.decoded(at), self.residuals.scales[at].tolist()
        return [Code(c.ids, c.weights, r, scale) for c, r, scale in zip(codes, rests, scales, strict=True)]

    def encode(self, x: np.ndarray) -> Code:
        """The code of an embedding x (d,), with the settings that the index's pictures were coded with."""
        from indexer.coding import encode_sparse

        W = encode_sparse(x[None], self.D, self.store.meta.coder).W
        code = Code(W.indices, W.data)
        if self.residuals is None:
            return code
        quantiser = self.residuals.quantiser
        return self.scaled(code._replace(residual=quantiser.decode(quantiser.encode((x - self.decode(code))[None]))[0]))

    def scaled(self, code: Code) -> Code:
        """A code whose scale is that of its concepts and its residual as they are now."""
        if code.residual is None:
            return code
        return code._replace(scale=float(scales_of(self.decode(code._replace(scale=1.0))[None])[0]))

    def decode(self, code: Code) -> np.ndarray:
        """What a code holds of an embedding (d,): w D, zero for a code without concepts; or x̂ in an index that keeps
        residuals."""
        held = code.weights @ self.D[code.ids]
        return held if code.residual is None else code.scale * (held + code.residual)


def check_mode(mode: str) -> None:
    """Raises `CallError` for the name of an index that there is not."""
    if mode not in MODES:
        raise CallError(f"mode is {mode!r}: it must be one of {', '.join(MODES)}")


def check_k(k: int) -> None:
    """Raises `CallError` where k is no number of things to return."""
    if k < 1:
        raise CallError(f"k is {k}: it must be at least 1")
