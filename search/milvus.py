"""An index in Milvus, as queries are answered from it.

A text's scores D t have both signs, and Milvus knows positive ones alone: it is asked by these, which bounds what a
picture can score, and more is asked for until no picture that was not found can be better than the last of the best.
So the answers are those of an index folder, as far as a server gives them: no question brings more than 16,384 hits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, vstack

from indexer.milvus import Address
from indexer.milvus.about import LIMIT, pattern, quoted
from indexer.milvus.measures import milvus_chance, milvus_familiarity
from indexer.milvus.reader import CodeOf, MilvusStore
from indexer.store import Classes
from indexer.store.chance import Chance
from indexer.store.familiarity import Familiarity
from search.answers import Code
from search.engine import Chosen, Found, State, StoredEngine
from search.filters import meant
from search.ranking import top_k
from training.errors import CallError

if TYPE_CHECKING:
    from search.query import Query

FEWEST = 256  # pictures that are asked for at the least where scores of both signs count
ROUNDING = 1e-5  # relative: a server sums in single precision


class Matching:
    """Chosen pictures: those for which a condition of Milvus's holds."""

    def __init__(self, store: MilvusStore, condition: str):
        self._store, self.condition = store, condition

    @cached_property
    def count(self) -> int:
        return self._store.count(self.condition)


class MilvusEngine(StoredEngine):
    """The indexes at an address. Raises `SparsightError` where there is none, or nobody answers."""

    store: MilvusStore

    def __init__(self, address: Address):
        self.store = MilvusStore(address)
        self.meta, self.name = self.store.meta, self.store.name
        self._brought: dict[int, CodeOf] = {}

    @property
    def place(self) -> Address:
        return self.store.address

    def reopened(self) -> MilvusEngine:
        return MilvusEngine(self.store.address)

    @property
    def version(self) -> str:
        return f"{self.meta.version}{self.store.state.load}"

    @cached_property
    def _classes(self) -> Classes:
        return self.store.classes()

    def classes(self) -> Classes:
        return self._classes

    def embeddings_of(self, image_ids: Sequence[int]) -> np.ndarray:
        return self.store.embeddings_of(image_ids)

    def codes_of(self, image_ids: Sequence[int], *, residual: bool = True) -> list[Code]:
        """Those that the last search brought along are not asked for again."""
        asked = [i for i in image_ids if i not in self._brought]
        codes = self._brought | dict(zip(asked, self.store.codes_of(asked), strict=True))
        return [Code(*codes[i]) for i in image_ids]

    def holds(self, image_id: int) -> bool:
        return bool(self.store.query(f"id == {image_id}", []))

    def around(self, image_id: int) -> tuple[int | None, int | None]:
        return self.store.neighbour(image_id, after=False), self.store.neighbour(image_id, after=True)

    @property
    def span(self) -> tuple[int, int] | None:
        first, last = self.store.neighbour(-1, after=True), self.store.neighbour(self.meta.next_id, after=False)
        return None if first is None or last is None else (first, last)

    def picture_at(self, path: str) -> int | None:
        return self.store.picture_at(path)

    def state(self) -> State:
        """The skipped files alone: a server does not tell what an index takes on its disks, nor when it changed."""
        return State(self.store.skipped())

    def chosen(
        self, query: Query, concept_id: Callable[[str], int], holding: Sequence[int] | None = None
    ) -> Matching | None:
        if query.where:
            raise CallError(
                "--where is SQL, which an index in Milvus does not answer: choose by --label, --split, --path, "
                "--require and --forbid"
            )
        if query.k > LIMIT:
            raise CallError(f"k is {query.k}: an index in Milvus gives at most {LIMIT} hits")
        conditions = []
        for column, values in (("label", query.labels), ("split", query.splits)):
            if values:
                named = ", ".join(map(quoted, meant(self.store.values(column), column, values)))
                conditions.append(f"{column} in [{named}]")
        if query.path:
            conditions.append(f"path like {pattern(query.path)}")
        conditions += [f"array_contains(concepts, {concept_id(name)})" for name in query.require]
        conditions += [f"not array_contains(concepts, {concept_id(name)})" for name in query.forbid]
        if holding is not None:
            conditions.append(f"array_contains_any(concepts, {list(holding)})")
        return Matching(self.store, " and ".join(f"({c})" for c in conditions)) if conditions else None

    def first(self, k: int, chosen: Chosen | None) -> np.ndarray:
        """The lowest ids are looked for in ranges that grow: a server need not give them in their order."""
        condition, end = _condition(chosen), k
        while True:
            within = " and ".join(filter(None, [condition, f"id < {end}"]))
            ids = [row["id"] for row in self.store.query(within, [])]
            if len(ids) >= k or end >= self.meta.next_id:
                return np.array(ids[:k], np.int64)
            end = min(4 * end, self.meta.next_id)

    def sparse(self, p: np.ndarray, s: np.ndarray, size: int, chosen: Chosen | None, *, look_up: bool = False) -> Found:
        condition, has_both_signs = _condition(chosen), bool((s < 0).any())
        asked = max(FEWEST, size) if has_both_signs else size
        while True:
            ids, bounds, codes = self.store.search_codes(s, asked, condition)
            scores = _scores(codes, s)
            best = top_k(scores, size, ids)
            self._brought = {int(ids[i]): codes[i] for i in best.tolist()}
            if len(ids) < min(asked, LIMIT):  # the pictures that are left have no concept of a score above 0
                return self._with_others(ids, scores, s, size, condition)
            if asked >= LIMIT or scores[best[-1]] >= bounds[-1] * (1 - ROUNDING):
                return ids[best], scores[best]
            asked *= 4

    def _with_others(self, ids: np.ndarray, scores: np.ndarray, s: np.ndarray, size: int, condition: str) -> Found:
        """The best of some pictures, and, where these are too few or below 0, of the first of those that are left."""
        best = top_k(scores, size, ids)
        if len(ids) < size or scores[best[-1]] < 0:
            rows = self.store.query(condition or "id >= 0", ["code"])
            found = set(ids.tolist())
            others = {row["id"]: self.store.code(row["code"]) for row in rows if row["id"] not in found}
            ids = np.append(ids, np.array(list(others), np.int64))
            scores = np.append(scores, _scores(list(others.values()), s))
            best = top_k(scores, size, ids)
        return ids[best], scores[best]

    def dense(self, p: np.ndarray, size: int, chosen: Chosen | None) -> Found:
        ids, scores = self.store.search_vectors(p, size, _condition(chosen))
        order = np.lexsort((ids, -scores))
        return ids[order], scores[order]

    def every_score(self, t: np.ndarray, *, dense: bool) -> np.ndarray | None:
        """None for more pictures than a server gives hits."""
        if len(self) > LIMIT:
            return None
        if dense:
            X = self.embeddings_of(self._ids.tolist())
            return X @ t.astype(np.float32)
        return _scores(self.store.codes_of(self._ids.tolist()), self.D @ t)

    @cached_property
    def _ids(self) -> np.ndarray:
        """(n,) int64, ascending."""
        return np.array([row["id"] for rows in self.store.scan([]) for row in rows], np.int64)

    def places_of(self, image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.searchsorted(self._ids, np.asarray(image_ids, np.int64))

    def codes_labelled(self, label: str) -> tuple[csr_matrix, None]:
        rows = [row for some in self.store.scan(["code"], f"label == {quoted(label)}") for row in some]
        codes = [self.store.code(row["code"]) for row in rows]
        shape = (1, self.meta.m)
        parts = [csr_matrix((w, (np.zeros(len(j), np.int64), j)), shape=shape) for j, w in codes]
        return csr_matrix(vstack([csr_matrix((0, self.meta.m), dtype=np.float32), *parts])), None

    def chance(self, encode: Callable[[Sequence[str]], np.ndarray]) -> Chance:
        return milvus_chance(self.store, encode)

    def familiarity(self, encoder_source: str) -> Familiarity | None:
        return milvus_familiarity(self.store, encoder_source)


def _condition(chosen: Chosen | None) -> str:
    if chosen is None:
        return ""
    assert isinstance(chosen, Matching)
    return chosen.condition


def _scores(codes: Sequence[CodeOf], s: np.ndarray) -> np.ndarray:
    return np.array([float(weights @ s[ids]) for ids, weights in codes])
