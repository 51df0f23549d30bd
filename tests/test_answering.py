"""Answers to queries are those of brute force, and every score is the sum of its parts."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.evaluators.queries import NOTHING_UNSEEN, UNSEEN
from indexer.store import Store
from indexer.store.chance import FILE, kept_best
from search.index import Index
from search.query import Query, Term
from training.errors import CallError, SparsightError

MODES = ("hybrid", "sparse", "dense")
TEXTS = ("truck", "fire engine", "a small dog", "bird", "red", "sailing ship")
CONCEPTS = ("cat", "truck", "fire engine", "tabby cat", "airplane", "toad")
terms = st.one_of(
    st.builds(Term, st.just("text"), st.sampled_from(TEXTS), st.sampled_from((1.0, 0.5, -0.5, -1.0, 2.0))),
    st.builds(Term, st.just("concept"), st.sampled_from(CONCEPTS), st.sampled_from((1.0, -1.0))),
    st.builds(Term, st.just("picture"), st.sampled_from(("0", "7", "33")), st.sampled_from((1.0, -1.0))),
)
queries = st.builds(
    Query,
    terms=st.lists(terms, min_size=1, max_size=3, unique_by=lambda term: (term.kind, term.value)).map(tuple),
    require=st.sampled_from(((), ("cat",))),
    forbid=st.sampled_from(((), ("truck",), ("cat", "toad"))),
    labels=st.sampled_from(((), ("cat",), ("truck", "Dog"))),
    where=st.sampled_from((None, "image_id % 3 = 0", "label <> 'ship' AND image_id < 100")),
    path=st.sampled_from((None, "*/0?5.png")),
    mode=st.sampled_from(MODES),
    k=st.sampled_from((1, 5, 20, 500)),
    all=st.just(True),
)
SLOW = {"deadline": None, "max_examples": 60, "suppress_health_check": [HealthCheck.too_slow]}


@pytest.fixture(scope="module")
def index(light_index):
    with Index(light_index) as opened:
        yield opened


def brute_force(index: Index, query: Query) -> tuple[np.ndarray, np.ndarray]:
    """The ids that pass the filters, and their scores, by the formula of `search.answering` in numpy."""
    store, D = index.store, index.D.astype(np.float64)
    X, W = store.embeddings(np.arange(len(store))).astype(np.float64), store.codes().toarray().astype(np.float64)
    sparse = query.mode == "sparse"
    names = {name: c.id for c in index.concepts() for name in (c.name, *c.aliases)}
    Z = W @ D if sparse else X
    plus, minus, own = np.zeros(D.shape[1]), [], np.zeros(len(store))
    for term in query.terms:
        if term.kind == "concept" and sparse:
            own += term.weight * W[:, names[term.value]]
            continue
        if term.kind == "text":
            v = index.embed_text(term.value)
        elif term.kind == "concept":
            v = D[names[term.value]]
        else:
            v = Z[int(term.value)] / np.linalg.norm(Z[int(term.value)])
        if term.weight > 0:
            plus = plus + term.weight * v
        else:
            minus.append((-term.weight, v))
    if not plus.any() and not any(t.weight > 0 for t in query.terms):
        plus, minus = -sum((a * v for a, v in minus), np.zeros(D.shape[1])), []
    p = plus / (np.linalg.norm(plus) or 1)
    beside_concepts = sparse and any(term.kind == "concept" for term in query.terms)
    scores = Z @ (plus if beside_concepts else p) + own
    for a, v in minus:
        scores = scores - a * np.maximum(0, Z @ (v - max(0, v @ p) * p))
    rows, keep = store.images(), np.ones(len(store), bool)
    for name in query.require:
        keep &= W[:, names[name]] > 0
    for name in query.forbid:
        keep &= W[:, names[name]] == 0
    if query.labels:
        keep &= np.isin([r.label for r in rows], [label.lower() for label in query.labels])
    if query.where == "image_id % 3 = 0":
        keep &= store.image_ids % 3 == 0
    elif query.where:
        keep &= np.array([r.label != "ship" and r.image_id < 100 for r in rows])
    if query.path:
        keep &= np.array([r.path[-5:] == "5.png" and r.path[-7] == "0" for r in rows])
    positive = [term.kind for term in query.terms if term.weight > 0]
    if sparse and positive and set(positive) == {"concept"}:  # a picture must hold what alone is wanted
        keep &= (W[:, [names[t.value] for t in query.terms if t.kind == "concept" and t.weight > 0]] > 0).any(1)
    return store.image_ids[keep], scores[keep]


@settings(**SLOW)
@given(query=queries)
def test_answers_are_those_of_brute_force(index, query):
    if query.mode == "sparse" and all(t.kind == "concept" and t.weight < 0 for t in query.terms):
        with pytest.raises(CallError, match="nothing is wanted"):
            index.answer(query)
        return
    ids, scores = brute_force(index, query)
    hits = index.answer(query).hits
    assert len(hits) == min(query.k, len(ids))
    expected = np.sort(scores)[::-1][: len(hits)]
    assert [hit.score for hit in hits] == pytest.approx(expected.tolist(), abs=2e-4)  # weights are stored in 12 bits
    by_id = dict(zip(ids.tolist(), scores, strict=True))
    for hit in hits:
        assert hit.score == pytest.approx(by_id[hit.id], abs=2e-4)
        assert abs(hit.score - hit.rest - sum(c.contribution for c in hit.concepts)) < 1e-5
        assert hit.rest == 0 or query.mode != "sparse"


def test_what_is_counted_against_leaves_what_is_asked_for(bundled_index):
    """The plain sum would find neither: truck − fire engine points away from all trucks."""
    with Index(bundled_index) as index:
        rows = {row.image_id: row for row in index.store.images()}
        for mode in MODES:
            hits = index.answer(Query((Term("text", "truck"), Term("text", "fire engine", -1)), k=50, mode=mode)).hits
            assert sum(hit.label == "truck" for hit in hits) >= 45
            assert not any(rows[hit.id].term in ("fire engine", "fire truck") for hit in hits)


@pytest.mark.parametrize("mode", MODES)
def test_few_hits_where_few_match(bundled_index, mode):
    """Of the words that mean nothing nine in ten find nothing, and four in five of the right hits stay."""
    with Index(bundled_index) as index:
        found = [index.answer(Query((Term("text", word),), mode=mode)) for word in NOTHING_UNSEEN]
        assert np.mean([not answer.hits for answer in found]) >= 0.9
        right = kept = 0
        for text, label in UNSEEN:
            answer = index.answer(Query((Term("text", text),), mode=mode, all=True))
            right += sum(hit.label == label for hit in answer.hits)
            kept += sum(hit.label == label and hit.matches for hit in answer.hits)
        assert kept >= 0.8 * right


def test_fusion_grouping_and_diversity(index):
    query = Query((Term("text", "animal"),), all=True, k=5)
    plain = [hit.id for hit in index.answer(query).hits]
    labels = [hit.label for hit in index.answer(Query(query.terms, group_by="label", all=True, k=6)).hits]
    assert len(set(labels)) == 6
    diverse = [hit.id for hit in index.answer(Query(query.terms, diverse=0.9, all=True, k=5)).hits]
    assert diverse[0] == plain[0]
    assert diverse != plain
    X = index.store.embeddings_of(diverse) @ index.store.embeddings_of(diverse).T
    Y = index.store.embeddings_of(plain) @ index.store.embeddings_of(plain).T
    assert X.sum() < Y.sum()
    fused = index.answer(Query(query.terms, fuse=True, all=True, k=5)).hits
    assert all(abs(hit.score - hit.rest - sum(c.contribution for c in hit.concepts)) < 1e-5 for hit in fused)


def test_near_duplicates_stand_behind_one(small_index):
    with Index(small_index) as index:
        query = Query((Term("picture", "3"),), k=200, group_by="near")
        hits = index.answer(query).hits
        folded = [i for hit in hits for i in hit.others]
        assert len(set(folded) | {hit.id for hit in hits}) == len(folded) + len(hits) == len(index)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (Query((Term("concept", "poodle"),)), "unknown concept"),
        (Query(require=("poodle",)), "unknown concept"),
        (Query(labels=("lorry",)), "no picture has the label 'lorry'; there are airplane"),
        (Query(splits=("val",)), "no picture has the split"),
        (Query(where="nonsense = 3"), "nonsense"),
        (Query(where="1) UNION SELECT (2"), "error"),
        (Query((Term("text", "a cat"), Term("text", "a cat", -1))), "counted against"),
        (Query((Term("picture", "999999"),)), "no picture 999999"),
    ],
)
def test_a_query_that_makes_no_sense_here_is_told_in_one_line(index, query, said):
    with pytest.raises(CallError) as e:
        index.answer(query)
    assert said.lower() in str(e.value).lower()
    assert "\n" not in str(e.value)


def test_filters_alone_choose_in_the_order_of_ids(index):
    hits = index.answer(Query(labels=("frog",), k=3)).hits
    assert [hit.label for hit in hits] == ["frog"] * 3
    assert [hit.id for hit in hits] == sorted(hit.id for hit in hits)


def test_the_scores_of_unrelated_texts_are_kept_beside_the_index(light_index, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(light_index, folder)
    query = Query((Term("text", "truck"),), k=3)
    with Index(folder) as index:
        first = index.answer(query)
    kept = (folder / FILE).read_bytes()
    with Store(folder) as store:
        known = kept_best(store)
    for harm in (kept[: len(kept) // 2], b"", kept.replace(b'"n": 150', b'"n": 900'), b"\xff" + kept[1:]):
        (folder / FILE).write_bytes(harm)
        with Index(folder) as index:
            answer = index.answer(query)
        assert answer.cut_off == pytest.approx(first.cut_off, abs=1e-6)  # measured by the text tower alone
        assert replace(answer, cut_off=first.cut_off) == first
        with Store(folder) as store:
            again = kept_best(store)
        for mode in ("dense", "sparse"):  # another text tower may have measured it: torch's or numpy's
            np.testing.assert_allclose(getattr(again, mode), getattr(known, mode), atol=1e-5)


def test_weights_of_texts_and_concepts_compare(light_index):
    """In sparse mode, too: a text of little weight beside a concept counts little."""
    with Index(light_index) as index:
        pairs = [(Term("text", "truck", w), Term("concept", "cat")) for w in (0.001, 1.0, 1000.0)]
        orders = [[hit.id for hit in index.answer(Query(pair, mode="sparse", k=20))] for pair in pairs]
        cats = [hit.id for hit in index.search(concepts="cat", k=3)]
        trucks = [hit.id for hit in index.search("truck", k=3, mode="sparse", all=True)]
    assert orders[0][:3] == cats
    assert orders[2][:3] == trucks
    assert orders[0] != orders[1] != orders[2]


def test_groups_are_diversified(index):
    query = Query((Term("text", "horse"),), group_by="near", k=5, all=True)
    plain, diverse = (index.answer(q).hits for q in (query, replace(query, diverse=0.9)))
    assert {hit.id for hit in plain} != {hit.id for hit in diverse}
    assert plain[0].id == diverse[0].id


def test_a_closed_index_says_so(light_index):
    index = Index(light_index)
    index.close()
    with pytest.raises(SparsightError, match="was closed: open it again"):
        index.search("horse")
