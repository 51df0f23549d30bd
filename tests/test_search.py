"""Searches against plain numpy over the same arrays, and explanations that add up."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from search.index import Index
from search.query import Query
from search.ranking import top_k
from training.errors import CallError, SparsightError


@pytest.fixture(scope="module")
def index(small_index, small_encoder_dir):
    with Index(small_index, encoder=str(small_encoder_dir), device="cpu") as opened:
        yield opened


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), max_size=30), st.integers(1, 40))
def test_top_k_is_a_stable_sort(scores, k):
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert top_k(np.array(scores, np.float32), k).tolist() == expected


@pytest.mark.parametrize("text", ["a cat", "dark ship", "a photo of a truck."])
def test_text_scores_are_numpys(index, text):
    t = index.embed_text(text)
    X, R = index.store.embeddings(), index.store.codes() @ index.store.dictionary()
    for mode, A in (("dense", X), ("sparse", R)):
        hits = index.search(text, k=15, mode=mode, all=True)
        np.testing.assert_allclose([h.score for h in hits], -np.sort(-(A @ t))[:15], atol=1e-5)
        np.testing.assert_allclose([A[h.id] @ t for h in hits], [h.score for h in hits], atol=1e-5)
        assert [h.rank for h in hits] == list(range(1, 16))


def test_contributions_of_a_sparse_hit_add_up_to_its_score(index, pictures, tmp_path):
    Image.fromarray(pictures.pixels[4]).resize((90, 60)).save(tmp_path / "p.webp")
    found = [*index.search("dark frog", k=20, mode="sparse", all=True)]
    found += [
        *index.search(like=tmp_path / "p.webp", k=20, mode="sparse"),
        *index.search(concepts=["cat", "dark dog"], k=20),
    ]
    assert len(found) > 40
    for hit in found:
        assert sum(c.contribution for c in hit.concepts) == pytest.approx(hit.score, abs=1e-5)


def test_pictures_may_be_bytes(index, pictures, tmp_path):
    Image.fromarray(pictures.pixels[4]).save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    by_bytes, by_file = (index.search("ship", like=one, k=5, all=True) for one in (data, tmp_path / "p.png"))
    assert by_bytes.hits == by_file.hits
    assert Query.from_dict(json.loads(json.dumps(by_bytes.query.to_dict()))) == by_bytes.query
    less, same = (index.search("cat", without=one, k=5, all=True) for one in (data, tmp_path / "p.png"))
    assert less.hits == same.hits
    assert index.classify(data) == index.classify(tmp_path / "p.png")
    with pytest.raises(SparsightError, match="cannot be read"):
        index.search(like=b"no picture")


def test_concept_search_is_the_codes_column(index):
    W = index.store.codes().toarray()
    j = index.concept_id("dark cat")
    hits = index.search(concepts="dark cat", k=1000)
    assert len(hits) == (W[:, j] > 0).sum()
    np.testing.assert_allclose([h.score for h in hits], -np.sort(-W[:, j])[: len(hits)], rtol=1e-6)


def test_a_picture_of_the_index_finds_itself(index):
    for picture in (3, "3", index.search(like=3, k=1, mode="dense")[0].path):
        assert index.search(like=picture, k=1, mode="dense")[0].id == 3


def test_a_trained_space_finds_the_right_class(index):
    for mode in ("dense", "sparse"):
        assert [h.label for h in index.search("a ship", k=5, mode=mode)].count("ship") >= 4


def test_explanation_agrees_with_both_scores(index):
    e = index.explain(7, "a deer")
    t = index.embed_text("a deer")
    x = index.store.embeddings_of([7])[0]
    assert e.dense_score == pytest.approx(float(x @ t), abs=1e-5)
    assert sum(c.contribution for c in e.concepts) == pytest.approx(e.sparse_score, abs=1e-5)
    assert 0 < e.cosine <= 1.0001


def test_classify_gives_the_best_scoring_class(index, pictures):
    results = [index.classify(i) for i in range(30)]
    assert np.mean([r.label == r.scores[0][0] for r in results]) == 1
    assert all(np.diff([s for _, s in r.scores]).max() <= 0 for r in results)
    names = ["a ship", "an airplane"]
    own = index.classify(0, names, mode="dense")
    expected = index.encoder.encode_concepts(names) @ index.store.embeddings_of([0])[0]
    assert dict(own.scores) == {n: pytest.approx(float(s), abs=1e-5) for n, s in zip(names, expected, strict=True)}


def test_concepts_by_name_alias_case_and_near_name(index):
    assert index.concept_id(" Dark  CAT ") == index.concept_id("dark cat")
    with pytest.raises(CallError, match=r"near ones: .*dark cat"):
        index.concept_id("dark catt")
    names = [n for n, _ in index.near_concepts("cat", 3)]
    assert names[0] == "cat"


def test_near_duplicates_become_aliases():
    from indexer.coding import Dictionary, merge_same

    D = np.eye(3, dtype=np.float32)[[0, 1, 0, 2]]
    merged = merge_same(Dictionary(["a", "b", "c", "d"], [[], [], [], []], [None] * 4, D, "x"))
    assert merged.names == ["a", "b", "d"]
    assert merged.aliases == [["c"], [], []]
    assert len(merged.D) == 3


@pytest.mark.parametrize("k", [0, -3])
def test_k_must_be_positive(index, k):
    for question in ({"text": "cat"}, {"concepts": "cat"}, {"like": 3}):
        with pytest.raises(CallError, match="at least 1"):
            index.search(**question, k=k)
    with pytest.raises(CallError, match="at least 1"):
        index.near_concepts("cat", k)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"require": 17}, "require is a list of texts"),
        ({"labels": [3]}, "labels is a list of texts"),
        ({"path": Path("a*")}, "path is"),
        ({"where": 5}, "where is 5"),
        ({"fuse": "no"}, "true or false"),
        ({"lables": "x"}, "no 'lables': it has"),
        ({"k": 2.0}, "whole number"),
        ({"concepts": {"cat": 1e7}}, "at most 1e"),
        ({"concepts": {"cat": "0.3"}}, "must be a number"),
    ],
)
def test_wrong_types_are_told(index, asked, reason):
    with pytest.raises(CallError, match=reason):
        index.search("cat", **asked)


def test_wrong_things_are_told(index):
    for wrong in (17, ["truck"], "\ud800"):
        with pytest.raises(CallError):
            index.search(wrong)
    with pytest.raises(CallError, match="a number from 0 on"):
        index.edit(3, with_={"cat": "0.3"})
    for classes in ("cat,dog", []):
        with pytest.raises(CallError, match="give a list of names"):
            index.classify(3, classes)


def test_what_is_given_may_be_of_any_kind(index):
    expected = index.search("cat", like=[3, 5], without=["dark dog"], k=4, all=True).hits
    for like, k in (((i for i in (3, 5)), np.int64(4)), (np.array([3, 5]), 4), ({3: 1, 5: 1}, 4)):
        assert index.search("cat", like=like, without=iter(["dark dog"]), k=k, all=True).hits == expected
    assert index.search("cat", like=None, without=None, k=2) == index.search("cat", k=2)
    weighed = index.search("cat", concepts={"dark cat": np.float32(0.5)}, k=2, all=True)
    assert weighed.hits == index.search("cat", concepts={"dark cat": 0.5}, k=2, all=True).hits
    assert pickle.loads(pickle.dumps(weighed)) == weighed
    assert index.edit(3, without="cat").after == index.edit(3, without=["cat"]).after


def test_k_beyond_the_index_returns_all(index):
    for mode in ("sparse", "dense"):
        assert len(index.search("cat", k=10_000, mode=mode, all=True)) == len(index.store)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ({}, "empty"),
        ({"text": " "}, "empty"),
        ({"concepts": []}, "empty"),
        ({"concepts": ["cat", "zebra crossing"]}, "unknown concept 'zebra crossing'"),
        ({"text": "cat", "mode": "both"}, "one of hybrid, sparse, dense"),
        ({"like": 100_000}, "ids run from 0 to 149"),
    ],
)
def test_questions_that_make_no_sense_are_refused(index, question, reason):
    with pytest.raises(CallError, match=reason):
        index.search(**question)


def test_a_path_of_digits_is_no_id(index, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pictures.pixels[4]).save("3", "png")
    as_id, as_file = (index.embed_picture(picture) for picture in ("3", Path("3")))
    assert (as_id[1], as_file[1]) == (3, None)
    assert as_file[0] @ index.store.embeddings_of([4])[0] > 0.999
    with pytest.raises(SparsightError, match="neither a file nor a picture"):
        index.search(like=Path("4"))


def test_refuses_an_index_of_another_encoder(small_index):
    with Index(small_index, encoder="bundled", device="cpu") as other, pytest.raises(SparsightError) as e:
        other.search("cat")
    assert "small" in str(e.value)
    assert "conv32-cifar10" in str(e.value)


def test_what_is_added_is_found_and_what_is_removed_is_not(small_index, small_encoder_dir, pictures, tmp_path):
    shutil.copytree(small_index, tmp_path / "index")
    picture = tmp_path / "new.png"
    Image.fromarray(pictures.pixels[4][:, ::-1]).save(picture)
    with Index(tmp_path / "index", encoder=str(small_encoder_dir), device="cpu") as changed:
        n = len(changed)
        for mode in ("sparse", "dense"):
            assert len(changed.search("cat", k=1000, mode=mode, all=True)) == n
        assert list(changed.add(picture).ids) == [n]
        assert len(changed) == n + 1
        for mode in ("sparse", "dense"):
            assert n in [hit.id for hit in changed.search("cat", k=1000, mode=mode, all=True)]
        assert str(picture) in [hit.path for hit in changed.search(like=4, k=2, mode="dense")]
        assert changed.remove([picture, 3]) == [(3, path_of(small_index, 3)), (n, str(picture))]
        for mode in ("sparse", "dense"):
            assert {hit.id for hit in changed.search("cat", k=1000, mode=mode, all=True)} == set(range(n)) - {3}
        with pytest.raises(CallError, match="names no picture"):
            changed.remove("nowhere.png")
        with pytest.raises(SparsightError, match="does not exist"):
            changed.add(tmp_path / "nowhere")
        assert len(changed) == n - 1


def path_of(folder: Path, image_id: int) -> str:
    with Index(folder) as index:
        return index.explain(image_id).target
