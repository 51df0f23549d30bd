"""What scores mean in an index in Milvus, and what is familiar to it: measured by reading it once, and kept with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from indexer.milvus.reader import MilvusStore
from indexer.milvus.writer import put_measures
from indexer.store.chance import Best, Chance, best_text, embed_unrelated, parse_best
from indexer.store.familiarity import (
    OF_INDEX,
    Familiarity,
    familiarity_bytes,
    known_to_encoder,
    measured,
    parse_familiarity,
    sampled,
)

Embed = Callable[[Sequence[str]], np.ndarray]  # texts → unit rows


def milvus_chance(store: MilvusStore, embed: Embed) -> Chance:
    """What unrelated texts score in an index that is not empty."""
    return Chance.among([_best(store, embed)])


def _best(store: MilvusStore, embed: Embed) -> Best:
    """The best score of each unrelated text: as it is kept, else measured now."""
    if best := parse_best(store.part("chance").decode(), store.meta):
        return best
    T = embed_unrelated(embed).astype(np.float32)
    S, dense, sparse = store.dictionary() @ T.T, [], []
    for rows in store.scan(["code", "dense"] if store.meta.keeps_vectors else ["code"]):
        if store.meta.keeps_vectors:
            dense.append((np.array([row["dense"] for row in rows], np.float32) @ T.T).max(0))
        codes = (store.code(row["code"]) for row in rows)
        sparse.append(np.stack([weights @ S[ids] for ids, weights in codes]).max(0))
    return Best(*((np.max(kind, 0) if kind else np.zeros(0)).astype(np.float64) for kind in (dense, sparse)))


def milvus_familiarity(store: MilvusStore, source: str | None = None) -> Familiarity | None:
    """What pictures are judged by: as it is kept, else measured now. None where too few pictures are known."""
    return parse_familiarity(store.part("familiarity"), store.meta) or _familiarity(store, source)


def _familiarity(store: MilvusStore, source: str | None) -> Familiarity | None:
    if found := known_to_encoder(source or store.meta.encoder_source, store.meta):
        return found
    if not store.meta.keeps_vectors:
        return None
    splits = {row["id"]: row["split"] for rows in store.scan(["split"]) for row in rows}
    tested = [i for i, split in splits.items() if (split or "").lower() == "test"]
    ids = sampled(np.array(list(splits), np.int64), np.array(tested, np.int64))
    return measured(store.embeddings_of(ids.tolist()), ids, OF_INDEX)


def keep_measures(store: MilvusStore, embed: Embed, source: str | None = None) -> None:
    """Measures what is missing, or is of far fewer or more pictures, and keeps it with the index."""
    if not len(store):
        return
    best, familiarity = _best(store, embed), milvus_familiarity(store, source)
    made = {"chance": best_text(best, store.meta).encode()}
    if familiarity is not None:
        made["familiarity"] = familiarity_bytes(familiarity, store.meta)
    put_measures(store, made)
