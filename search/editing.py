"""What a picture would be with other concepts, and what a class hangs on: exact changes of codes.

A code is changed by hand, w → w′, and everything that follows from codes is computed anew: classes from (w′ D)·T,
neighbours from the sparse index by w′ D, the rank for a text from (w′ D)·t among all pictures' (w D)·t. It is the
intervention of SpLiCE (Bhalla et al. 2024). Where the index keeps residuals, a picture's stays as it is, and what
stands for it is normalised anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search.answering import nearest
from search.answers import Code, ConceptWeight, Edit, EditState
from search.engine import Engine

NEIGHBOURS = 8
HELP = 3  # concepts that are named


def edit_code(code: Code, without: Sequence[int], with_: Mapping[int, float]) -> Code:
    """A code without some concepts, and with others at these weights; a weight of 0 takes a concept out."""
    weights = dict(zip(code.ids.tolist(), code.weights.tolist(), strict=True))
    weights = {j: w for j, w in (weights | dict(with_)).items() if j not in set(without) and w > 0}
    ids = np.array(sorted(weights), np.int64)
    return code._replace(ids=ids, weights=np.array([weights[j] for j in ids.tolist()], np.float32))


def edited(engine: Engine, code: Code, changed: Code, t: np.ndarray | None, image_id: int | None) -> Edit:
    """What two codes of a picture mean. t (d,): a text's vector, for ranks; image_id: the picture, which is no
    neighbour of its own."""
    totals = None if t is None else of_others(engine, t, image_id)
    changed = engine.scaled(changed)
    return Edit(_state(engine, code, t, totals, image_id), _state(engine, changed, t, totals, image_id))


def of_others(engine: Engine, t: np.ndarray, image_id: int | None, *, dense: bool = False) -> np.ndarray | None:
    """The scores for t (d,) of every picture but one, of all where that is None; None where there are too many."""
    scores = engine.every_score(t, dense=dense)
    return scores if image_id is None or scores is None else np.delete(scores, engine.places_of([image_id])[0])


def rank_of(score: float, others: np.ndarray) -> int:
    """The rank, from 1, of a score among those of the other pictures (n − 1,)."""
    return 1 + int((others > score).sum())


def place_among(
    engine: Engine, score: float, t: np.ndarray, parts: Sequence[ConceptWeight], image_id: int | None, k: int
) -> dict[str, Any]:
    """Where a picture's score x·t, or its sparse score where no embeddings are kept, stands among all others': the
    fields of an `Explanation` from `rank` on; none where there are too many pictures to look at each.

    A concept j would bring a picture that is `short` of the k best among them by the weight short / (D t)_j.
    """
    others = of_others(engine, t, image_id, dense=engine.meta.keeps_vectors)
    if others is None:
        return {}
    last = float(np.partition(others, -k)[-k]) if k <= len(others) else -np.inf
    short = max(0.0, last - score)
    s = engine.D @ t
    best = [j for j in np.argsort(-s, kind="stable")[:HELP] if s[j] > max(0, 0.9 * s.max())] if short else []
    return {
        "rank": rank_of(score, others),
        "ranks_without": [(part.name, rank_of(score - part.contribution, others)) for part in parts],
        "k": k,
        "short": short,
        "would_help": [(engine.names[j], short / float(s[j])) for j in best],
    }


def flips(engine: Engine, label: str) -> list[tuple[str, int]]:
    """For a class of the index: the concepts whose removal changes the class that its pictures are given, and of how
    many pictures; the most first."""
    classes = engine.classes()
    W, residuals = engine.codes_labelled(label)
    of_class = engine.D @ classes.T.T  # (m, c): what a concept is worth to each class
    S = W @ of_class
    if residuals is not None:  # the scale changes no order
        S = S + residuals @ classes.T.T
    before = S.argmax(1)
    counts = np.zeros(len(engine.D), np.int64)
    for i, (start, end) in enumerate(zip(W.indptr[:-1], W.indptr[1:], strict=True)):
        ids, weights = W.indices[start:end], W.data[start:end]
        counts[ids] += (S[i] - weights[:, None] * of_class[ids]).argmax(1) != before[i]
    order = np.lexsort((np.arange(len(counts)), -counts))
    return [(engine.names[j], int(counts[j])) for j in order if counts[j]]


def _state(
    engine: Engine, code: Code, t: np.ndarray | None, totals: np.ndarray | None, image_id: int | None
) -> EditState:
    r = engine.decode(code)
    classes = engine.classes()
    scores = classes.T @ r if classes.names else np.zeros(0)
    order = np.argsort(-scores, kind="stable")
    size = float(np.linalg.norm(r))
    near = nearest(engine, r / size, NEIGHBOURS + 1, "sparse") if size else []
    return EditState(
        scores=[(classes.names[i], float(scores[i])) for i in order],
        neighbours=[hit for hit in near if hit.id != image_id][:NEIGHBOURS],
        rank=None if t is None or totals is None else rank_of(float(r @ t), totals),
    )
