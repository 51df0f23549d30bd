"""Searches against plain numpy over the same arrays, and explanations that add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from search.engine import Searcher, top_k
from training.errors import CallError, SparsightError


@pytest.fixture(scope="module")
def searcher(small_index, small_encoder_dir):
    with Searcher(small_index, str(small_encoder_dir), "cpu") as s:
        yield s


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), max_size=30), st.integers(1, 40))
def test_top_k_is_a_stable_sort(scores, k):
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert top_k(np.array(scores, np.float32), k).tolist() == expected


@pytest.mark.parametrize("text", ["a cat", "dark ship", "a photo of a truck."])
def test_text_scores_are_numpys(searcher, text):
    t = searcher.embed_text(text)
    X, R = searcher.store.embeddings(), searcher.store.codes() @ searcher.store.dictionary()
    for mode, A in (("dense", X), ("sparse", R)):
        hits = searcher.search_text(text, 15, mode)
        np.testing.assert_allclose([h.score for h in hits], -np.sort(-(A @ t))[:15], atol=1e-5)
        np.testing.assert_allclose([A[h.id] @ t for h in hits], [h.score for h in hits], atol=1e-5)
        assert [h.rank for h in hits] == list(range(1, 16))


def test_contributions_of_a_sparse_hit_add_up_to_its_score(searcher, pictures, tmp_path):
    Image.fromarray(pictures.pixels[4]).resize((90, 60)).save(tmp_path / "p.webp")
    found = searcher.search_text("dark frog", 20) + searcher.search_picture(str(tmp_path / "p.webp"), 20)
    found += searcher.search_concepts(["cat", "dark dog"], 20)
    assert len(found) > 40
    for hit in found:
        assert sum(c.contribution for c in hit.concepts) == pytest.approx(hit.score, abs=1e-5)


def test_concept_search_is_the_codes_column(searcher):
    W = searcher.store.codes().toarray()
    j = searcher.concept_id("dark cat")
    hits = searcher.search_concepts(["dark cat"], 1000)
    assert len(hits) == (W[:, j] > 0).sum()
    np.testing.assert_allclose([h.score for h in hits], -np.sort(-W[:, j])[: len(hits)], rtol=1e-6)


def test_a_picture_of_the_index_finds_itself(searcher):
    for target in ("3", str(searcher.store.images([3])[0]["path"])):
        assert searcher.search_picture(target, 1, "dense")[0].id == 3


def test_a_trained_space_finds_the_right_class(searcher):
    for mode in ("dense", "sparse"):
        assert [h.label for h in searcher.search_text("a ship", 5, mode)].count("ship") >= 4


def test_explanation_agrees_with_both_scores(searcher):
    e = searcher.explain("7", "a deer")
    t = searcher.embed_text("a deer")
    x = searcher.store.embeddings_of([7])[0]
    assert e.dense_score == pytest.approx(float(x @ t), abs=1e-5)
    assert sum(c.contribution for c in e.concepts) == pytest.approx(e.sparse_score, abs=1e-5)
    assert 0 < e.cosine <= 1.0001


def test_classify_gives_the_best_scoring_class(searcher, pictures):
    results = [searcher.classify(str(i)) for i in range(30)]
    assert np.mean([r.label == r.scores[0][0] for r in results]) == 1
    assert all(np.diff([s for _, s in r.scores]).max() <= 0 for r in results)
    names = ["a ship", "an airplane"]
    own = searcher.classify("0", names, "dense")
    expected = searcher.encoder.encode_concepts(names) @ searcher.store.embeddings_of([0])[0]
    assert dict(own.scores) == {n: pytest.approx(float(s), abs=1e-5) for n, s in zip(names, expected, strict=True)}


def test_concepts_by_name_alias_case_and_near_name(searcher):
    assert searcher.concept_id(" Dark  CAT ") == searcher.concept_id("dark cat")
    with pytest.raises(CallError, match=r"near ones: .*dark cat"):
        searcher.concept_id("dark catt")
    names = [n for n, _ in searcher.near_concepts("cat", 3)]
    assert names[0] == "cat"


def test_near_duplicates_become_aliases():
    from indexer.coding.dictionary import Dictionary, merge_same

    D = np.eye(3, dtype=np.float32)[[0, 1, 0, 2]]
    merged = merge_same(Dictionary(["a", "b", "c", "d"], [[], [], [], []], [None] * 4, D, "x"))
    assert merged.names == ["a", "b", "d"]
    assert merged.aliases == [["c"], [], []]
    assert len(merged.D) == 3


@pytest.mark.parametrize("k", [0, -3])
def test_k_must_be_positive(searcher, k):
    with pytest.raises(CallError, match="at least 1"):
        searcher.search_text("cat", k)


def test_k_beyond_the_index_returns_all(searcher):
    assert len(searcher.search_text("cat", 10_000)) == len(searcher.store)
    assert len(searcher.search_text("cat", 10_000, "dense")) == len(searcher.store)


def test_refuses_an_index_of_another_encoder(small_index):
    with Searcher(small_index, "bundled", "cpu") as other, pytest.raises(SparsightError) as e:
        other.search_text("cat")
    assert "small" in str(e.value)
    assert "conv32-cifar10" in str(e.value)
