"""The query as a value: what makes sense, and the same again from JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.query import GROUPINGS, KINDS, QUERY_MODES, Query, Term
from training.errors import CallError

words = st.text(min_size=1).filter(str.strip)
weights = st.floats(-100, 100).filter(bool)
terms = st.builds(Term, kind=st.sampled_from(KINDS), value=words, weight=weights)
several = st.lists(words, max_size=3).map(tuple)
queries = st.builds(
    Query,
    terms=st.lists(terms, min_size=1, max_size=4).map(tuple),
    require=several,
    forbid=several,
    labels=several,
    splits=several,
    path=st.none() | words,
    where=st.none() | words,
    mode=st.sampled_from((None, *QUERY_MODES)),
    diverse=st.floats(0, 0.99),
    group_by=st.sampled_from((None, *GROUPINGS)),
    k=st.integers(1, 1000),
    all=st.booleans(),
)


@given(queries)
def test_a_query_is_the_same_again_from_json(query):
    assert Query.from_dict(json.loads(json.dumps(query.to_dict()))) == query


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({}, "the query is empty"),
        ([], "a query is an object"),
        ({"terms": [{"kind": "text", "value": " "}]}, "give a word"),
        ({"terms": [{"kind": "sound", "value": "x"}]}, "kind is 'sound'"),
        ({"terms": [{"kind": "text", "value": "x", "weight": 0}]}, "weight of 'x' is 0"),
        ({"terms": [{"kind": "text", "value": "x", "weight": float("nan")}]}, "weight of 'x' is nan"),
        ({"terms": [{"kind": "text", "value": "x", "weight": 10**400}]}, "weight of 'x'"),
        ({"terms": [{"kind": "text", "value": 7}]}, "give a word"),
        ({"terms": ["x"]}, "a term has a kind"),
        ({"terms": "x"}, "terms of a query are a list"),
        ({"terms": [{"kind": "text", "value": "x"}] * 65}, "65 terms"),
        ({"labels": "cat"}, "labels is a list"),
        ({"labels": [1]}, "labels is a list"),
        ({"path": 3}, "it must be a text"),
        ({"path": "*", "k": 0}, "k is 0"),
        ({"path": "*", "k": True}, "k is True"),
        ({"path": "*", "k": 10**9}, "at most"),
        ({"path": "*", "mode": "fast"}, "mode is 'fast'"),
        ({"path": "*", "mode": []}, "mode is"),
        ({"path": "*", "diverse": 1}, "diverse is 1"),
        ({"path": "*", "diverse": "much"}, "diverse is 'much'"),
        ({"path": "*", "group_by": "colour"}, "group_by is 'colour'"),
        ({"path": "*", "all": 1}, "it must be true or false"),
        ({"path": "*", "fuse": True, "mode": "dense"}, "ranks are fused in mode hybrid"),
        ({"path": "*", "limit": 3}, "a query has no 'limit'"),
    ],
)
def test_what_is_no_query_is_refused_in_one_line(held, said):
    with pytest.raises(CallError) as e:
        Query.from_dict(held)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_only_concepts_are_looked_up_in_the_sparse_index():
    assert Query((Term("concept", "cat"),)).resolved_mode == "sparse"
    assert Query((Term("concept", "cat"), Term("text", "red"))).resolved_mode == "hybrid"
    assert Query((Term("text", "red"),), mode="dense").resolved_mode == "dense"
