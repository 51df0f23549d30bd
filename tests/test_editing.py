"""What follows from a changed code is what codes made by hand say."""

from __future__ import annotations

import numpy as np
import pytest

from search.index import Index
from training.errors import CallError


@pytest.fixture(scope="module")
def index(light_index):
    with Index(light_index) as opened:
        yield opened


def test_a_picture_without_a_concept_and_with_another(index):
    W, D, T = index.store.codes().toarray(), index.D, index.store.classes().T
    names = [c.name for c in index.concepts()]
    t = index.embed_text("truck")
    for i in (3, 20, 77):
        mine = np.flatnonzero(W[i])
        gone, more = names[mine[0]], "truck"
        edit = index.edit(i, without=[gone], with_={more: 0.3}, text="truck")
        w = W[i].copy()
        w[mine[0]], w[names.index(more)] = 0, 0.3
        others = np.delete(W @ D @ t, i)
        for state, code in ((edit.before, W[i]), (edit.after, w)):
            assert dict(state.scores) == pytest.approx(
                dict(zip(index.store.classes().names, (code @ D @ T.T).tolist(), strict=True)), abs=1e-5
            )
            assert state.scores == sorted(state.scores, key=lambda pair: -pair[1])
            near = np.argsort(-np.delete((W @ D) @ (code @ D), i), kind="stable")[:8]
            assert {hit.id for hit in state.neighbours} == set(np.delete(np.arange(len(W)), i)[near].tolist())
            assert abs(state.rank - 1 - (others > code @ D @ t).sum()) <= 1  # weights are stored in steps
        same = index.edit(i, with_={gone: float(W[i, mine[0]])})
        assert dict(same.before.scores) == pytest.approx(dict(same.after.scores))


def test_what_a_class_hangs_on(index):
    W, D, T = index.store.codes().toarray(), index.D, index.store.classes().T
    labels = [row.label for row in index.store.images()]
    found = dict(index.flips("cat"))
    before = (W @ D @ T.T).argmax(1)
    for j, concept in enumerate(index.concepts()):
        changed = W.copy()
        changed[:, j] = 0
        flipped = (changed @ D @ T.T).argmax(1) != before
        assert found.get(concept.name, 0) == sum(f for f, label in zip(flipped, labels, strict=True) if label == "cat")


def test_an_explanation_tells_the_rank_and_what_it_would_be(index):
    X, t = index.store.embeddings(np.arange(len(index))), index.embed_text("truck")
    explained = index.explain("9", "truck")
    others = np.delete(X @ t, 9)
    assert explained.rank == 1 + (others > X[9] @ t).sum()
    assert [name for name, _ in explained.ranks_without] == [part.name for part in explained.concepts]
    for part, (_, rank) in zip(explained.concepts, explained.ranks_without, strict=True):
        assert rank == 1 + (others > np.float32(explained.dense_score - part.contribution)).sum()
    assert index.explain("9").rank is None


@pytest.mark.parametrize(
    "call", [{"without": ["poodle"]}, {"with_": {"cat": -1.0}}, {"with_": {"cat": float("nan")}}, {"text": " "}]
)
def test_a_change_that_makes_no_sense_is_told(index, call):
    with pytest.raises(CallError):
        index.edit(3, **call)
    with pytest.raises(CallError, match="there are airplane"):
        index.flips("lorry")
