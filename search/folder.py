"""Both indexes of one index folder, as they stand when they are opened, and what is read of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from indexer.store import Classes, Store
from indexer.store.chance import Chance, index_best
from indexer.store.dense import best_rows, products
from indexer.store.familiarity import Familiarity, index_familiarity
from indexer.store.naming import picture_at
from indexer.store.postings import STEP
from indexer.store.residuals import Residuals, read_residuals
from search.answers import Code
from search.engine import Chosen, Found, State, StoredEngine
from search.filters import allowed_pictures, holding_one, known_names
from search.ranking import top_k

if TYPE_CHECKING:
    from indexer.store.dense import DenseIndex
    from search.inverted import Inverted
    from search.query import Query

BLOCK = 1 << 15  # rows of X that are scored at a time


@dataclass(frozen=True)
class Marked:
    """Chosen pictures. allowed (next_id,) bool: for each id, whether it is one of them."""

    allowed: np.ndarray

    @cached_property
    def count(self) -> int:
        return int(self.allowed.sum())


class FolderEngine(StoredEngine):
    """The indexes of a folder. It reads each part when it is first needed.

    Raises `SparsightError` where the folder holds no index, or a damaged one.
    """

    store: Store

    def __init__(self, folder: Path | str):
        self.store = Store(folder)
        self.meta, self.name = self.store.meta, str(self.store.folder)

    @property
    def place(self) -> Path:
        return self.store.folder

    def reopened(self) -> FolderEngine:
        return FolderEngine(self.store.folder)

    @property
    def version(self) -> str:
        return self.meta.version

    def classes(self) -> Classes:
        return self.store.classes()

    def embeddings_of(self, image_ids: Sequence[int]) -> np.ndarray:
        return self.store.embeddings(self.places_of(image_ids))

    def codes_of(self, image_ids: Sequence[int], *, residual: bool = True) -> list[Code]:
        """From memory where a query has put them there."""
        ids = list(image_ids)
        held = self.inverted.codes_of(ids) if "inverted" in self.__dict__ else None
        codes = [Code(*code) for code in (self.store.codes_of(ids) if held is None else held)]
        if not residual or self.residuals is None:
            return codes
        at = self.places_of(ids)
        rests, scales = self.residuals.decoded(at), self.residuals.scales[at].tolist()
        return [Code(c.ids, c.weights, r, scale) for c, r, scale in zip(codes, rests, scales, strict=True)]

    def holds(self, image_id: int) -> bool:
        place = self.places_of([image_id])[0]
        return place < len(self) and self.store.image_ids[place] == image_id

    def around(self, image_id: int) -> tuple[int | None, int | None]:
        ids, place = self.store.image_ids, int(self.places_of([image_id])[0])
        before, after = (int(ids[i]) if 0 <= i < len(ids) else None for i in (place - 1, place + 1))
        return before, after

    @property
    def span(self) -> tuple[int, int] | None:
        ids = self.store.image_ids
        return (int(ids[0]), int(ids[-1])) if len(ids) else None

    def picture_at(self, path: str) -> int | None:
        return picture_at(self.store, path)

    def state(self) -> State:
        sizes, when = {}, None
        with suppress(OSError):  # the folder may be gone; what is open still answers
            sizes = {name: size for name, size in self.store.disk_bytes().items() if ":" not in name}
            when = datetime.fromtimestamp(self.store.changed()).astimezone()
        return State(self.store.skipped(), sizes, when)

    @cached_property
    def inverted(self) -> Inverted:
        """The sparse index over every concept's postings."""
        from search.inverted import Inverted

        return Inverted(self.store.packed, ids=self.store.image_ids)

    @cached_property
    def dense_index(self) -> DenseIndex:
        """The dense index over X (n, d)."""
        from indexer.store.dense import open_dense

        return open_dense(self.store)

    @cached_property
    def _residuals(self) -> Residuals | None:
        return read_residuals(self.store)

    @property
    def residuals(self) -> Residuals | None:
        return self._residuals

    def places_of(self, image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.searchsorted(self.store.image_ids, np.asarray(image_ids, np.int64))

    def chosen(
        self, query: Query, concept_id: Callable[[str], int], holding: Sequence[int] | None = None
    ) -> Marked | None:
        return self.marked(known_names([self.store], query), concept_id, holding)

    def marked(
        self, query: Query, concept_id: Callable[[str], int], holding: Sequence[int] | None, base: int = 0
    ) -> Marked | None:
        """As `chosen`, of a query whose labels and splits are known; base: what its condition finds added to ids."""
        allowed = allowed_pictures(self.store, query, concept_id, base)
        if holding is not None:
            held = holding_one(self.store, holding)
            allowed = held if allowed is None else held & allowed
        return None if allowed is None else Marked(allowed)

    def first(self, k: int, chosen: Chosen | None) -> np.ndarray:
        allowed = allowed_by(chosen)
        return (self.store.image_ids if allowed is None else np.flatnonzero(allowed))[:k]

    @cached_property
    def coarsest(self) -> float:
        """The largest step of the weights, at least STEP."""
        return max(STEP, float(self.store.rows("SELECT coalesce(max(step), 0) FROM posting_blocks")[0][0]))

    def sparse(
        self,
        p: np.ndarray,
        s: np.ndarray,
        size: int,
        chosen: Chosen | None,
        *,
        look_up: bool = False,
        coarsest: float | None = None,
    ) -> Found:
        """coarsest: the largest step in all of an index of which this is a shard."""
        allowed = allowed_by(chosen)
        if self.meta.residual and not look_up and self.residuals is not None:
            scores, ids = self.residuals.scores(p, s), self.store.image_ids
            if allowed is not None:
                scores, ids = scores[allowed[ids]], ids[allowed[ids]]
            best = top_k(scores, size, ids)
            return ids[best], scores[best]
        inverted, n = self._inverted_for(p, s), len(self)
        share = 1.0 if chosen is None else max(chosen.count, 1) / n
        asked = min(n, int(size / share * 1.2) + 8 if share < 1 else size)
        with self.store.damage():
            while True:
                found = inverted.search(s, asked, coarsest or self.coarsest)
                held = np.arange(len(found.ids)) if allowed is None else np.flatnonzero(allowed[found.ids])
                if len(held) >= size or asked >= n:
                    return found.ids[held[:size]], found.scores[held[:size]]
                asked = min(n, 8 * asked)

    def _inverted_for(self, p: np.ndarray, s: np.ndarray) -> Inverted:
        """The whole sparse index, or the postings alone of the concepts that a query names."""
        from search.inverted import Inverted

        if not p.any() and "inverted" not in self.__dict__:
            return Inverted(self.store.postings(np.flatnonzero(s).tolist()), ids=self.store.image_ids)
        return self.inverted

    def dense(self, p: np.ndarray, size: int, chosen: Chosen | None) -> Found:
        """Of some pictures alone each is scored, whatever the dense index is."""
        store, allowed = self.store, allowed_by(chosen)
        if allowed is None:
            with store.vectors_trusted():
                scores, ids = self.dense_index.search(p[None].astype(np.float32), min(size, len(self)))
        else:
            rows = self._rows(np.flatnonzero(allowed[store.image_ids]))
            scores, ids = best_rows(rows, p[None], min(size, len(self)))
        held = ids[0] >= 0
        return ids[0][held], scores[0][held]

    def _rows(self, places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The ids and the embeddings of the pictures at some places of 0 … n − 1, block by block."""
        for start in range(0, len(places), BLOCK):
            block = places[start : start + BLOCK]
            yield self.store.image_ids[block], self.store.embeddings(block)

    def every_score(self, t: np.ndarray, *, dense: bool, coarsest: float | None = None) -> np.ndarray:
        if dense:
            rows = self._rows(np.arange(len(self)))
            return np.concatenate([np.zeros(0), *(products(X, t.astype(np.float32)) for _, X in rows)])
        if self.residuals is not None:
            return self.residuals.scores(t, self.D @ t)
        with self.store.damage():
            found = self.inverted.search(self.D @ t, len(self), coarsest or self.coarsest)
        return found.scores[np.argsort(found.ids)]

    def codes_labelled(self, label: str) -> tuple[csr_matrix, np.ndarray | None]:
        mine = np.flatnonzero([row.label == label for row in self.store.images()])
        W = self.store.codes()[mine]
        return W, None if self.residuals is None else self.residuals.decoded(mine)

    def chance(self, encode: Callable[[Sequence[str]], np.ndarray]) -> Chance:
        return Chance.among([index_best(self.store, encode)])

    def familiarity(self, encoder_source: str) -> Familiarity | None:
        return index_familiarity(self.store, encoder_source)


def allowed_by(chosen: Chosen | None) -> np.ndarray | None:
    """(next_id,) bool, None for all pictures."""
    if chosen is None:
        return None
    assert isinstance(chosen, Marked)
    return chosen.allowed
