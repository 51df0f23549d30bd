r"""Answers to a `search.query.Query`: which pictures, with which scores, and what each score is made of.

The rule (docs/search.md tells it for people):

- Texts and pictures are unit vectors. Those of a weight above 0 make the direction that is wanted,
  p = Σ a v / ‖Σ a v‖. Of one below 0 only that counts against a picture which it does not share with p:
  u = v − max(0, v·p) p. The score is x·p − Σ |a| max(0, x·u). Whatever is asked for less than nothing, as "truck" less
  "fire engine" would be by a plain sum, so stays what was asked for. Where nothing is wanted, p is the sum itself.
- In dense and hybrid mode x is the embedding, and a concept is its atom. In sparse mode x is w D, and a concept counts
  by the picture's own weight of it; beside concepts p keeps its length, Σ a v, so that weights compare. Where the index
  keeps residuals x is x̂ = scale · (w D + r̂) in sparse mode, and every picture is scored, by tables. A query of
  concepts alone is by the weights still.
- A score's parts: w_j (D q)_j for each concept of the picture, q = p − Σ |a| u over the u that count, and what lies
  outside all concepts, (x − w D)·q. With residuals in sparse mode, scale · w_j (D q)_j and scale · r̂·q.
- Hybrid: candidates from the sparse index, scored by their embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from indexer.store.chance import LEVEL, Chance
from search.answers import Answer, Hit, Mode, contributions
from search.engine import Chosen, Engine, Found
from search.grouping import diversified, grouped
from search.query import Query, Term
from search.ranking import top_k
from training.errors import CallError

CANDIDATES = 200  # that hybrid mode scores at the least: with more, P@10 falls to that of dense mode
MANY = 10  # times k: candidates of hybrid mode, and of groups and diversity
FUSION = 60  # of reciprocal rank fusion (Cormack, Clarke & Büttcher 2009)


@dataclass(frozen=True)
class Wanted:
    """A query as the indexes are asked.

    p (d,): what is wanted, of unit length but beside concepts in sparse mode; s (m,): what each concept is worth.
    against: for each thing that counts against a picture its weight, u (d,), and D u (m,). only_concepts: a picture
    must hold some of what s names.
    """

    p: np.ndarray
    s: np.ndarray
    against: Sequence[tuple[float, np.ndarray, np.ndarray]] = ()
    only_concepts: bool = False

    @property
    def is_look_up(self) -> bool:
        """Whether concepts alone are asked for, whose weights the postings hold."""
        return not self.p.any() and not self.against


@dataclass
class Ranked:
    """ids (k,), best first, their scores, and the scores of what is wanted alone (k,)."""

    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    plain: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def take(self, places: Sequence[int] | np.ndarray) -> Ranked:
        at = np.asarray(places, np.int64)
        return Ranked(self.ids[at], self.scores[at], self.plain[at])


def answer_query(
    engine: Engine,
    query: Query,
    vector_of: Callable[[Term], np.ndarray],
    concept_id: Callable[[str], int],
    chance: Callable[[], Chance],
) -> Answer:
    """The hits of a query. vector_of: a text's or a picture's unit vector (d,); chance: the scores of
    unrelated texts, asked for where they count."""
    mode = query.resolved_mode
    wanted = make_wanted(engine, query, vector_of, concept_id, sparse=mode == "sparse")
    few = query.k if not (query.diverse or query.group_by) else MANY * query.k
    held = np.flatnonzero(wanted.s > 0).tolist() if wanted.only_concepts else None
    chosen = engine.chosen(query, concept_id, held)
    ranked = _ranked(engine, wanted, query, few, chosen)
    others: dict[int, list[int]] = {}
    groups = MANY * query.k if query.diverse else query.k
    while query.group_by:
        places, others = grouped(engine, ranked.ids.tolist(), query.group_by, groups)
        if len(places) == groups or len(ranked.ids) < few:
            ranked = ranked.take(places)
            break
        few *= 4
        ranked = _ranked(engine, wanted, query, few, chosen)
    if query.diverse:
        X = engine.vectors_of(ranked.ids.tolist())
        ranked = ranked.take(diversified(X, ranked.scores, query.diverse, query.k))
    ranked = ranked.take(np.arange(min(query.k, len(ranked.ids))))
    judge = chance() if judged(query) and len(ranked.ids) else None
    hits = _hits(engine, ranked, wanted, mode, judge, others)
    shown = hits if query.all else [hit for hit in hits if hit.matches]
    return Answer(
        query=query,
        mode=mode,
        hits=shown,
        cut_off=judge.cut_off(mode) if judge else None,
        left_out=len(hits) - len(shown),
    )


def nearest(engine: Engine, t: np.ndarray, k: int, mode: Mode) -> list[Hit]:
    """The min(k, n) pictures with the highest scores for a unit vector t (d,), best first."""
    wanted = Wanted(t, engine.D @ t)
    k = min(k, len(engine))
    if not k:
        return []
    found = engine.sparse(t, wanted.s, k, None) if mode == "sparse" else engine.dense(t, k, None)
    return _hits(engine, Ranked(*found, found[1]), wanted, mode, None, {})


def judged(query: Query) -> bool:
    """Whether scores can be compared with those of unrelated texts: where texts alone are wanted."""
    kinds = {term.kind for term in query.terms if term.weight > 0}
    return kinds == {"text"}


def make_wanted(
    engine: Engine,
    query: Query,
    vector_of: Callable[[Term], np.ndarray],
    concept_id: Callable[[str], int],
    *,
    sparse: bool,
) -> Wanted:
    """The query's vectors. Raises `CallError` where the things that are wanted cancel out."""
    D, s = engine.D, np.zeros(len(engine.D))
    plus = np.zeros(D.shape[1])
    minus: list[tuple[float, np.ndarray]] = []
    for term in query.terms:
        if term.kind == "concept" and sparse:
            s[concept_id(term.value)] += term.weight
            continue
        v = D[concept_id(term.value)] if term.kind == "concept" else vector_of(term)
        if term.weight > 0:
            plus += term.weight * v
        else:
            minus.append((-term.weight, np.asarray(v, np.float64)))
    only_concepts = bool((s > 0).any())
    if not plus.any() and not (s > 0).any():
        for weight, v in minus:
            plus -= weight * v
        minus = []
    size = float(np.linalg.norm(plus))
    if query.terms and not minus and size < 1e-6 and not (s > 0).any():
        raise CallError(
            "nothing is wanted: leave something out, or change a weight"
            + (" (`forbid` leaves out the pictures of a concept)" if s.any() else "")
        )
    direction = plus / size if size >= 1e-6 else plus
    p = plus if s.any() else direction
    against = []
    for weight, v in minus:
        u = v - max(0.0, float(v @ direction)) * direction
        if np.linalg.norm(u) < 1e-4:
            raise CallError("the same thing is asked for and counted against: leave one of them out")
        against.append((weight, u, D @ u))
    return Wanted(p, s + D @ p, against, only_concepts and not p.any())


def _ranked(engine: Engine, wanted: Wanted, query: Query, k: int, chosen: Chosen | None) -> Ranked:
    k = min(k, len(engine) if chosen is None else chosen.count)
    if not k:
        return Ranked()
    if not query.terms:
        return Ranked(engine.first(k, chosen), np.zeros(k), np.zeros(k))
    mode = query.resolved_mode

    def sparse(size: int) -> Found:
        return engine.sparse(wanted.p, wanted.s, size, chosen, look_up=wanted.is_look_up)

    if mode == "sparse":
        return _penalised(sparse, _held(engine, wanted), k)
    exact = _embedded(engine, wanted)
    if mode == "dense":
        return _penalised(lambda size: engine.dense(wanted.p, size, chosen), exact if wanted.against else None, k)
    size = max(CANDIDATES, MANY * k)
    candidates = _penalised(sparse, _held(engine, wanted), size)
    plain, scores = exact(candidates.ids)
    if not query.fuse:
        best = top_k(scores, k, candidates.ids)
        return Ranked(candidates.ids[best], scores[best], plain[best])
    dense = _penalised(lambda n: engine.dense(wanted.p, n, chosen), exact, size)
    fused: dict[int, float] = {}
    for ids in (candidates.ids, dense.ids):
        for rank, i in enumerate(ids.tolist(), 1):
            fused[i] = fused.get(i, 0.0) + 1 / (FUSION + rank)
    every = np.array(list(fused))
    ids = every[top_k(np.array(list(fused.values())), k, every)]
    plain, scores = exact(ids)
    return Ranked(ids, scores, plain)


Scores = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # ids (k,) → what is wanted alone, and the score (k,)


def _penalised(search: Callable[[int], Found], exact: Scores | None, k: int) -> Ranked:
    """The k best by score, from a search by what is wanted alone, which is never below the score.

    More is searched for until none that was not found can be better than the last of the best. exact: None where both
    are the same.
    """
    size = k
    while True:
        ids, plain = search(size)
        if exact is None or not len(ids):
            return Ranked(ids, plain, plain)
        _, scores = exact(ids)
        best = top_k(scores, k, ids)
        if len(ids) < size or scores[best[-1]] >= plain[-1]:
            return Ranked(ids[best], scores[best], plain[best])
        size *= 4


def _held(engine: Engine, wanted: Wanted) -> Scores | None:
    """Scores by the codes; None where nothing counts against a picture."""
    if not wanted.against:
        return None

    def score(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = engine.codes_of(ids.tolist(), residual=False)
        kept = engine.residuals
        at = ids if kept is None else engine.places_of(ids)

        def products(t: np.ndarray, s: np.ndarray) -> np.ndarray:
            held = np.array([float(c.weights @ s[c.ids]) for c in codes])
            return held if kept is None else kept.scales[at] * (held + kept.products(t, at))

        plain = products(wanted.p, wanted.s)
        losses = (a * np.maximum(0, products(u, Du)) for a, u, Du in wanted.against)
        return plain, plain - sum(losses, np.zeros(len(at)))

    return score


def _embedded(engine: Engine, wanted: Wanted) -> Scores:
    """Scores by the embeddings."""

    def score(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        X = engine.embeddings_of(ids.tolist()).astype(np.float64)
        plain = X @ wanted.p
        return plain, plain - sum((a * np.maximum(0, X @ u) for a, u, _ in wanted.against), np.zeros(len(X)))

    return score


def _hits(
    engine: Engine, ranked: Ranked, wanted: Wanted, mode: str, judge: Chance | None, others: dict[int, list[int]]
) -> list[Hit]:
    """Hits with their parts, in the order given."""
    ids = ranked.ids.tolist()
    codes = engine.codes_of(ids, residual=False)
    X = None if mode == "sparse" else engine.embeddings_of(ids).astype(np.float64)
    kept = engine.residuals if X is None and engine.meta.residual and not wanted.is_look_up else None
    places = engine.places_of(ids) if kept is not None else np.zeros(len(ids), np.int64)
    hits = []
    for at, (row, code) in enumerate(zip(engine.images(ids), codes, strict=True)):
        place = places[at : at + 1]
        if kept is not None:
            code = code._replace(scale=float(kept.scales[place][0]))
        q, direction = wanted.s.copy(), wanted.p.copy()
        for a, u, Du in wanted.against:
            held = code.weights @ Du[code.ids] if X is None else X[at] @ u
            if kept is not None:
                held += kept.products(u, place)[0]
            q -= a * Du * (held > 0)
            direction = direction - a * u * (held > 0)
        parts = contributions(code, q, engine.names)
        total = sum(part.contribution for part in parts)
        rest = 0.0 if kept is None else code.scale * float(kept.products(direction, place)[0])
        score = total + rest if X is None else float(ranked.scores[at])
        chance = judge.of(float(ranked.plain[at]), mode) if judge else None
        hits.append(
            Hit(
                rank=at + 1,
                id=row.image_id,
                score=score,
                path=row.path,
                label=row.label,
                concepts=parts,
                rest=score - total,
                chance=chance,
                matches=chance is None or chance <= LEVEL,
                others=others.get(row.image_id, []),
            )
        )
    return hits
