"""Packed postings and the query engine: against brute force, on random indexes, and through the store."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from indexer.store import postings as packing
from indexer.store.postings import MAX_GAP, STEP, TOP, Postings, pack
from search.inverted import Inverted, quantise_query


def random_codes(rng: np.random.Generator, n: int, m: int, density: float, levels: int) -> sparse.csc_matrix:
    """W (n, m) CSC: lists of very different lengths, some empty; few levels of weight make many ties."""
    share = density * rng.random(m) ** 3 * (rng.random(m) > 0.1)
    W = rng.random((n, m)) < share
    return sparse.csc_matrix(W * rng.integers(1, levels + 1, (n, m)) / levels, dtype=np.float32)


def packed(W: sparse.csc_matrix) -> Postings:
    W.sort_indices()
    return pack(W.indptr, W.indices, W.data, W.shape[0])


def brute_force(p: Postings, s: np.ndarray, k: int) -> tuple[list[int], list[float]]:
    """Ids and scores of a stable sort of all n totals, the definition."""
    tiers, units, scale = quantise_query(s, p)
    totals = np.zeros(p.n, np.int64)
    for tier, unit in zip(tiers, units, strict=True):
        _, ids, codes = p.lists(np.array([tier]))
        totals[ids] += codes * unit
    best = np.argsort(-totals, kind="stable")[:k]
    return best.tolist(), (totals[best] * scale).tolist()


@pytest.fixture
def tiers_of_short_lists(monkeypatch):
    monkeypatch.setattr(packing, "SPLIT", 8)


LEVELS = st.sampled_from([1, 3, 1000])
indexes = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(1, 600),
    st.integers(1, 12),
    st.floats(0.01, 1),
    st.sampled_from([1, 3, 1000]),
)


FIELDS = ("concept", "step", "lift", "bits", "start", "first", "last", "count", "width", "words")


@settings(deadline=None, max_examples=60)
@given(indexes)
def test_packing_keeps_every_posting_and_its_weight_to_half_a_step(index):
    seed, n, m, density, levels = index
    W = random_codes(np.random.default_rng(seed), n, m, density, levels)
    p = packed(W)
    indptr, ids, weights = p.columns()
    R = sparse.csc_matrix((weights, ids, indptr), shape=W.shape)
    assert ((R > 0) != (W > 0)).nnz == 0
    steps = np.repeat(p.step, p.sizes)  # of each posting, in the order of the columns
    held = W.toarray()[ids, np.repeat(np.arange(m), np.diff(indptr))]
    assert (np.abs(weights - held) <= steps * 0.501).all()
    most = W.max(axis=0).toarray()[0][p.concept] / p.step  # steps of each concept's largest weight
    assert (p.step >= STEP).all()
    assert ((p.step == STEP) | (most >= TOP / 2 - 1)).all()
    assert (most <= TOP + 0.001).all()
    assert (np.frexp(p.step)[0] == 0.5).all()


@settings(deadline=None, max_examples=60)
@given(indexes)
def test_packing_what_was_unpacked_changes_nothing(index):
    seed, n, m, density, levels = index
    p = packed(random_codes(np.random.default_rng(seed), n, m, density, levels))
    indptr, ids, weights = p.columns()
    again = packed(sparse.csc_matrix((weights, ids, indptr), shape=(n, m)))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(again, name), getattr(p, name))


def test_weights_below_half_a_step_are_kept_as_one():
    step = np.float32(2**-12)
    p = pack(np.array([0, 3]), np.arange(3), np.array([1, 1e-9, 0.4 * step], np.float32), 3)
    assert p.step.tolist() == [step]
    assert p.unpack(np.arange(1))[1].tolist() == [4096, 1, 1]


def test_weights_that_are_alike_take_few_bits():
    for span, bits in ((0, 0), (1, 1), (100, 7)):
        p = pack(np.array([0, 2]), np.arange(2), np.array([TOP - span, TOP], np.float32), 2)
        assert p.bits.tolist() == [bits]
        assert p.columns()[2].tolist() == [TOP - span, TOP]


def test_gaps_too_wide_for_a_field_begin_a_block():
    ids = np.array([5, 6, 7 + MAX_GAP, 7 + 3 * MAX_GAP, 8 + 3 * MAX_GAP])
    p = pack(np.array([0, 5]), ids, np.ones(5, np.float32), int(ids[-1]) + 1)
    assert p.unpack(np.arange(len(p.first)))[0].tolist() == ids.tolist()
    assert len(p.first) == 3
    assert p.width.max() <= 32


def test_chunks_do_not_change_the_packing(monkeypatch):
    W = random_codes(np.random.default_rng(3), 3000, 30, 0.5, 1000)
    whole = packed(W)
    monkeypatch.setattr(packing, "CHUNK", 1000)
    parts = packed(W)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    for a, b in zip(parts.columns(), whole.columns(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("weight", [0, -1, np.nan, np.inf])
def test_weights_that_are_not_positive_numbers_are_refused(weight):
    with pytest.raises(ValueError, match="not a positive number"):
        pack(np.array([0, 1]), np.array([0]), np.array([weight], np.float32), 1)


@pytest.mark.parametrize("ids", [[3, 2], [2, 2], [0, 9], [-1, 0]])
def test_ids_out_of_order_or_range_are_refused(ids):
    with pytest.raises(ValueError, match="out of"):
        pack(np.array([0, 2]), np.array(ids), np.ones(2, np.float32), 9)


def test_rows_are_those_of_the_matrix():
    W = random_codes(np.random.default_rng(5), 2500, 20, 0.9, 1000)
    p = packed(W)
    indptr, ids, weights = p.columns()
    R = sparse.csc_matrix((weights, ids, indptr), shape=W.shape).tocsr()
    wanted = [7, 2499, 0, 7, 1300]
    found, concepts, weights = p.rows(np.array(wanted))
    rows = R[np.unique(wanted)]
    np.testing.assert_array_equal(found, np.repeat(np.unique(wanted), np.diff(rows.indptr)))
    np.testing.assert_array_equal(concepts, rows.indices)
    np.testing.assert_array_equal(weights, rows.data)


scores = st.lists(st.sampled_from([-1.0, -0.3, 0.0, 0.0, 0.25, 0.5, 1.0, 0.7310585]), min_size=12, max_size=12)


@settings(deadline=None, max_examples=150)
@given(indexes, scores, st.sampled_from([1, 2, 10, 700]))
@pytest.mark.usefixtures("tiers_of_short_lists")
def test_the_best_are_those_of_brute_force(index, s, k):
    seed, n, m, density, levels = index
    p = packed(random_codes(np.random.default_rng(seed), n, m, density, levels))
    s = np.array(s[:m])
    expected = brute_force(p, s, k)
    for patience, many in ((0, 200), (0, 0), (10**9, 0)):  # the kernels by list and by picture, then numpy
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("search.inverted.MANY", many)
            found = Inverted(p, patience).search(s, k)
        assert (found.ids.tolist(), found.scores.tolist()) == expected


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.booleans())
def test_the_best_of_many_windows_are_those_of_brute_force(seed, k, negative):
    rng = np.random.default_rng(seed)
    n, m = 70_000, 8
    W = sparse.hstack([sparse.random(n, 1, d, "csc", np.float32, rng) for d in rng.random(m) ** 4]).tocsc()
    W.data = (W.data**3 + 1e-3).astype(np.float32)
    p = packed(W)
    s = rng.random(m) - (0.3 if negative else 0)
    for many in (200, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("search.inverted.MANY", many)
            found = Inverted(p, 0).search(s, k)
        assert (found.ids.tolist(), found.scores.tolist()) == brute_force(p, s, k)


def test_scores_are_those_of_the_float_product():
    W = random_codes(np.random.default_rng(1), 4000, 40, 0.3, 1000)
    p = packed(W)
    indptr, ids, weights = p.columns()
    s = np.random.default_rng(2).normal(size=40)
    product = sparse.csc_matrix((weights.astype(np.float64), ids, indptr), shape=W.shape) @ s
    found = Inverted(p, 0).search(s, 20)
    np.testing.assert_allclose(found.scores, -np.sort(-product)[:20], rtol=1e-7)
    np.testing.assert_allclose(product[found.ids], found.scores, rtol=1e-7)


@settings(deadline=None, max_examples=30)
@given(indexes, st.lists(scores, min_size=1, max_size=5), st.sampled_from([1, 10, 700]), st.booleans())
def test_a_batch_answers_as_single_queries_do(index, S, k, dense):
    seed, n, m, density, levels = index
    p = packed(random_codes(np.random.default_rng(seed), n, m, density, levels))
    S = np.array(S)[:, :m]
    ids, values = Inverted(p).search_many(S if dense else sparse.csr_matrix(S), k)
    for s, row, value in zip(S, ids, values, strict=True):
        single = Inverted(p, 10**9).search(s, k)
        assert (row.tolist(), value.tolist()) == (single.ids.tolist(), single.scores.tolist())


def test_a_batch_in_parts_answers_the_same(monkeypatch):
    p = packed(random_codes(np.random.default_rng(1), 500, 10, 0.5, 100))
    S = np.random.default_rng(2).normal(size=(20, 10))
    whole = Inverted(p).search_many(S, 5)
    monkeypatch.setattr("search.inverted.BATCH", 1500)
    for a, b in zip(Inverted(p).search_many(S, 5), whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_what_can_change_the_best_is_read():
    """A frequent weak concept beside a rare strong one: its list is looked into, not read through."""
    rng = np.random.default_rng(0)
    n = 200_000
    rare = sparse.csc_matrix((np.ones(50, np.float32), (rng.choice(n, 50, False), np.zeros(50, int))), shape=(n, 1))
    frequent = sparse.random(n, 1, 0.5, "csc", np.float32, rng)
    p = packed(sparse.hstack([rare, frequent]).tocsc())
    s = np.array([1.0, 0.1])
    found = Inverted(p, 0).search(s, 10)
    assert (found.ids.tolist(), found.scores.tolist()) == brute_force(p, s, 10)
    assert found.read < 0.2 * p.sizes.sum()


def test_postings_take_at_most_three_bytes():
    """1 of 50 pictures a concept, as many as there are; the headers count too."""
    rng = np.random.default_rng(0)
    W = sparse.random(100_000, 40, 0.02, "csc", np.float32, rng)
    assert packed(W).nbytes <= 3 * W.nnz


@pytest.mark.parametrize("s", [[1.0], [np.nan, 1.0], [np.inf, 0.0]])
def test_scores_must_be_finite_and_one_for_each_concept(s):
    p = packed(random_codes(np.random.default_rng(0), 50, 2, 0.5, 10))
    with pytest.raises(ValueError, match="2 finite concept scores"):
        Inverted(p).search(np.array(s), 3)


def test_an_index_without_postings_answers_by_id():
    p = packed(sparse.csc_matrix((5, 3), dtype=np.float32))
    for patience in (0, 10**9):
        assert Inverted(p, patience).search(np.ones(3), 3).ids.tolist() == [0, 1, 2]
    assert Inverted(packed(sparse.csc_matrix((0, 3), dtype=np.float32))).search(np.ones(3), 3).ids.tolist() == []


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_flipped_words_cannot_lead_the_kernels_astray(data):
    """Damage that the headers do not show: an answer with ids of the index, or ValueError, always an end."""
    p = packed(random_codes(np.random.default_rng(4), 400, 4, 0.8, 50))
    words = p.words.copy()
    for _ in range(data.draw(st.integers(1, 20))):
        words[data.draw(st.integers(0, len(words) - 2))] ^= np.uint32(data.draw(st.integers(1, 2**32 - 1)))
    harmed = Postings(p.n, p.m, p.concept, p.step, p.lift, p.bits, p.start, p.first, p.last, p.count, p.width, words)
    for patience, many in ((0, 200), (0, 0), (10**9, 0)):
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("search.inverted.MANY", many)
                found = Inverted(harmed, patience).search(np.array([1.0, 0.5, 0.2, -0.3]), 10)
        except ValueError:
            continue
        assert len(found.ids) == 10
        assert 0 <= found.ids.min() <= found.ids.max() < 400


def test_the_kernels_are_kept_compiled(tmp_path):
    """Compiled once, they are loaded from the cache by the next process: compiling takes some ten times as long."""
    code = (
        "import numpy as np\n"
        "from scipy import sparse\n"
        "from indexer.store.postings import pack\n"
        "from search import kernels\n"
        "from search.inverted import Inverted\n"
        "W = sparse.random(500, 300, 0.1, 'csc', np.float32, np.random.default_rng(0))\n"
        "W.sort_indices()\n"
        "engine = Inverted(pack(W.indptr, W.indices, W.data, 500), 0)\n"
        "engine.search(np.eye(300)[0], 5), engine.search(np.ones(300), 5)\n"
        "stats = [f.stats for f in (kernels.max_score, kernels.by_picture, kernels.scan)]\n"
        "print([(len(s.cache_hits), len(s.cache_misses)) for s in stats])"
    )
    at = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    found = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=at).stdout.strip()
        for _ in range(2)
    ]
    assert found == ["[(0, 1), (0, 1), (0, 1)]", "[(1, 0), (1, 0), (1, 0)]"]


def test_the_bench_agrees_with_the_float_product(capsys):
    from eval.bench.search import bench_search, claims

    rows = bench_search(2000, queries=4, dense=False)
    assert {"DuckDB SQL on plain postings", "scipy W @ s", "store, cold look-up of a concept"} <= {
        r["name"] for r in rows
    }
    names = ("sparsight exact", "sparsight batch, a query", "DuckDB SQL on plain postings", "scipy s Wᵀ, both sparse")
    recalls = [r["recall@10"] for r in rows if r["name"] in names and r["queries"] == "frequent"]
    assert len(recalls) == 4
    assert min(recalls) >= 0.95
    assert {c["claim"]: c["met"] for c in claims(rows)}["recall@10 of the float32 product"] == (
        next(r["recall@10"] for r in rows if r["name"] == "sparsight exact" and r["queries"] == "frequent") >= 0.995
    )


def test_codes_by_picture_are_those_of_the_postings():
    W = random_codes(np.random.default_rng(3), 300, 40, 0.2, 300)
    p = packed(W)
    engine = Inverted(p, patience=0)
    assert engine.codes_of([0]) is None  # no query has made the rows yet
    engine._rows  # noqa: B018
    found, concepts, weights = p.rows(np.arange(300))
    for i, (ids, values) in enumerate(engine.codes_of(range(300))):
        np.testing.assert_array_equal(ids, concepts[found == i])
        np.testing.assert_array_equal(values, weights[found == i])
