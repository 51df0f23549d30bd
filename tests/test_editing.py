"""What follows from a changed code is what codes made by hand say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from search.answers import ordinal
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
    assert index.explain("9").in_words() == []


def test_what_would_bring_a_miss_among_the_first_does(index):
    X, D, t = index.store.embeddings(np.arange(len(index))), index.D, index.embed_text("truck")
    scores, names = X @ t, [c.name for c in index.concepts()]
    order = np.argsort(-scores, kind="stable")
    hit, miss = index.explain(int(order[2]), "truck", 5), index.explain(int(order[60]), "truck", 5)
    assert (hit.rank, hit.short, hit.would_help) == (3, 0, [])
    assert miss.rank == 61
    assert miss.short == pytest.approx(scores[order[4]] - scores[order[60]], abs=1e-6)
    assert miss.would_help
    for name, weight in miss.would_help:
        raised = (X[order[60]] + weight * D[names.index(name)]) @ t
        assert raised == pytest.approx(scores[order[4]], abs=1e-5)
    best = miss.would_help[0][0]
    assert any(f"{miss.would_help[0][1]:.2g} more of {best}" in line for line in miss.in_words())


@pytest.mark.parametrize(("n", "text"), [(1, "1st"), (2, "2nd"), (13, "13th"), (111, "111th"), (1003, "1,003rd")])
def test_ordinals(n, text):
    assert ordinal(n) == text


def test_the_command_line_changes_a_picture_and_asks_what_a_class_hangs_on(index, light_index, run):
    index_option = ("--index", light_index)
    gone = index.explain(3).concepts[0].name
    expected = index.edit(3, without=[gone], with_={"truck": 0.3}, text="truck")
    asked = ("edit", 3, "--without", gone, "--with", "truck=0.3", "--for", "truck", *index_option)
    assert json.loads(run(*asked, "--json").stdout) == json.loads(json.dumps(expected.to_dict()))
    shown = run(*asked).stdout
    assert f"{expected.before.rank:,} before, {expected.after.rank:,} after" in shown
    assert "neighbours after:" in shown
    flips = [
        json.loads(line)
        for line in run("edit", "--class", "cat", "-k", 3, "--json", *index_option).stdout.split("\n")
        if line
    ]
    assert [(f["concept"], f["pictures"]) for f in flips] == index.flips("cat")[:3]
    assert run("edit", "--class", "cat", *index_option).stdout.splitlines()[0].split() == ["concept", "pictures"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["3"], "nothing is changed"),
        ([], "either a PICTURE or --class"),
        (["3", "--class", "cat"], "either a PICTURE or --class"),
        (["--class", "cat", "--without", "cat"], "stands alone"),
        (["3", "--with", "cat"], "cat=0.3"),
        (["3", "--with", "cat=-1"], "a number from 0 on"),
        (["3", "--with", "cat=1", "--without", "Cat"], "named twice"),
        (["3", "--with", "cat=1", "--with", "cat=2"], "twice"),
        (["--class", "cat", "-k", "0"], "at least 1"),
        (["3", "--without", "poodle"], "unknown concept"),
        (["--class", "lorry"], "there are airplane"),
    ],
)
def test_a_change_on_the_command_line_that_makes_no_sense(run, light_index, arguments, reason):
    result = run("edit", *arguments, "--index", light_index, code=2)
    assert reason in result.stderr


@pytest.mark.parametrize(
    "call", [{"without": ["poodle"]}, {"with_": {"cat": -1.0}}, {"with_": {"cat": float("nan")}}, {"text": " "}]
)
def test_a_change_that_makes_no_sense_is_told(index, call):
    with pytest.raises(CallError):
        index.edit(3, **call)
    with pytest.raises(CallError, match="there are airplane"):
        index.flips("lorry")
