"""Stands for the engine's `answer` and `edit` until they are there."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from search.answers import Hit as PlainHit
from search.index import Index
from search.query import Query, Term


@dataclass(frozen=True)
class Hit(PlainHit):
    rest: float = 0.0
    chance: float | None = None
    matches: bool = True
    others: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    query: Query
    mode: str
    hits: list[Hit]
    cut_off: float | None
    left_out: int
    notes: list[str]

    def to_dict(self) -> dict[str, object]:
        return {
            "query": self.query.to_dict(),
            "mode": self.mode,
            "hits": [asdict(h) for h in self.hits],
            "cut_off": self.cut_off,
            "left_out": self.left_out,
            "notes": self.notes,
        }


@dataclass(frozen=True)
class State:
    scores: list[tuple[str, float]]
    neighbours: list[Hit]
    rank: int | None


@dataclass(frozen=True)
class Edit:
    before: State
    after: State


def answer(index: Index, query: Query, vectors: Mapping[Term, np.ndarray]) -> Answer:
    t = np.zeros(index.store.d, np.float32)
    for term in query.terms:
        if term in vectors:
            v = vectors[term]
        elif term.kind == "text":
            v = index.embed_text(term.value)
        elif term.kind == "picture":
            v = index.embed_picture(int(term.value))[0]
        else:
            v = index.D[index.concept_id(term.value)]
        t = t + term.weight * v
    for name in (*query.require, *query.forbid):
        index.concept_id(name)
    norm = float(np.linalg.norm(t))
    mode = query.resolved_mode
    plain = index.search_vector(t / (norm or 1), len(index), "sparse" if mode == "sparse" else "dense")
    rows = {r.image_id: r for r in index.store.images()}
    hits: list[Hit] = []
    left = 0
    for h in plain:
        names = {c.name for c in h.concepts}
        if query.labels and h.label not in query.labels:
            continue
        if query.splits and rows[h.id].split not in query.splits:
            continue
        if query.path and not fnmatch.fnmatch(h.path, query.path):
            continue
        if not names >= set(query.require) or names & set(query.forbid):
            continue
        matches = h.score >= 0.35 or not query.terms
        if len(hits) == query.k:
            break
        if not matches and not query.all:
            left += 1
            if len(hits) + left == query.k:
                break
            continue
        parts = sum(c.contribution for c in h.concepts)
        chance = float(min(1.0, np.exp(-8 * h.score)))
        hits.append(Hit(len(hits) + 1, h.id, h.score, h.path, h.label, h.concepts, h.score - parts, chance, matches))
    return Answer(query, mode, hits, 0.35, left, [])


def edit(
    index: Index,
    picture: int,
    without: Sequence[str] = (),
    with_: Mapping[str, float] | None = None,
    text: str | None = None,
) -> Edit:
    for name in (*without, *(with_ or {})):
        index.concept_id(name)
    x = index.embed_picture(picture)[0]
    drop = sum((index.D[index.concept_id(n)] * 0.4 for n in without), np.zeros_like(x))
    add = sum((index.D[index.concept_id(n)] * w for n, w in (with_ or {}).items()), np.zeros_like(x))

    def state(v: np.ndarray) -> State:
        classes = index.store.classes()
        v = v / np.linalg.norm(v)
        scores = sorted(zip(classes.names, (classes.T @ v).tolist(), strict=True), key=lambda p: -p[1])
        near = [Hit(**{f: getattr(h, f) for f in PlainHit.__dataclass_fields__}) for h in index.search_vector(v, 8)]
        return State(scores, near, 1 if text else None)

    return Edit(state(x), state(x - drop + add))
