"""The filters of a query: which pictures of an index may be hits at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from search.query import Query
from training.errors import CallError

if TYPE_CHECKING:
    from indexer.store import Store

SHOWN = 12  # values that an error lists


def known_names(stores: Sequence[Store], query: Query) -> Query:
    """The query with its labels and splits as the shards of an index write them, in upper or lower case.

    Raises `CallError` for one that none of them has.
    """
    if not query.labels and not query.splits:
        return query
    labels, splits = _known(stores, "label", query.labels), _known(stores, "split", query.splits)
    return replace(query, labels=labels, splits=splits)


def allowed_pictures(store: Store, query: Query, concept_id: Callable[[str], int], base: int = 0) -> np.ndarray | None:
    """(next_id,) bool: for each id, whether every filter of a query holds; None for a query without filters.

    Its labels and splits are those of `known_names`. concept_id: name → row of D; base: what an SQL condition finds
    added to every id. Raises `CallError` for a concept that the index does not have, and for a condition that DuckDB
    refuses.
    """
    if not query.filters():
        return None

    allowed = _marked(store, _matching(store, query))
    if query.where:
        allowed &= _marked(store, _where(store, query.where, base))
    for name in query.require:
        allowed &= holding_one(store, [concept_id(name)])
    for name in query.forbid:
        allowed &= ~holding_one(store, [concept_id(name)])
    return allowed


def holding_one(store: Store, concepts: Sequence[int]) -> np.ndarray:
    """(next_id,) bool: for each id, whether the picture's code holds one of some concepts."""
    postings = store.packed if "packed" in store.__dict__ else store.postings(list(concepts))
    with store.damage():
        return _marked(store, postings.lists(np.flatnonzero(np.isin(postings.concept, concepts)))[1])


def _marked(store: Store, ids: np.ndarray) -> np.ndarray:
    marks = np.zeros(store.meta.next_id, bool)
    marks[ids] = True
    return marks


def _matching(store: Store, query: Query) -> np.ndarray:
    """The ids that the labels, the splits and the path choose."""
    conditions: list[str] = []
    bound: list[object] = []
    for column, values in (("label", query.labels), ("split", query.splits)):
        if values:
            conditions.append(f"{column} IN (SELECT unnest(?::VARCHAR[]))")
            bound.append(values)
    if query.path:
        conditions.append("path GLOB ?")
        bound.append(query.path.replace("\\", "\\\\").replace("[", "\\["))  # only * and ? are patterns here
    if not conditions:
        return store.image_ids
    return store.columns(f"SELECT image_id FROM images WHERE {' AND '.join(conditions)}", bound)["image_id"]


def _known(stores: Sequence[Store], column: str, values: Sequence[str]) -> tuple[str, ...]:
    if not values:
        return ()
    sql = f"SELECT DISTINCT {column} FROM images WHERE {column} IS NOT NULL"
    return meant(sorted({row[0] for store in stores for row in store.rows(sql)}), column, values)


def meant(known: Sequence[str], column: str, values: Sequence[str]) -> tuple[str, ...]:
    """Those of the known labels or splits that are meant, in upper or lower case; raises `CallError` for others."""
    folded = {value.casefold() for value in known}
    if unknown := [value for value in values if value.casefold() not in folded]:
        listed = ", ".join(known[:SHOWN]) + (", …" if len(known) > SHOWN else "")
        raise CallError(
            f"no picture has the {column} {unknown[0]!r}; " + (f"there are {listed}" if known else "none has any")
        )
    wanted = {value.casefold() for value in values}
    return tuple(value for value in known if value.casefold() in wanted)


def _where(store: Store, condition: str, base: int) -> np.ndarray:
    """The ids that an SQL condition on `images` chooses, on a connection that can reach nothing but the index."""
    from indexer.exchange.sql import FAMILIARITY
    from indexer.exchange.sql import Query as SqlQuery

    table = "images LEFT JOIN familiarity USING (image_id)" if FAMILIARITY in condition.casefold() else "images"
    if base:
        table = f"(SELECT * REPLACE (image_id + {base} AS image_id) FROM {table}) AS images"
    sql = f"SELECT image_id FROM (SELECT image_id, (\n{condition}\n) AS held FROM {table}) WHERE held"
    with SqlQuery(store.folder, sql) as found:
        ids = np.array([int(row[0] or 0) for row in found.texts()], np.int64) - base
    return ids[np.isin(ids, store.image_ids)]  # another generation may have been written since
