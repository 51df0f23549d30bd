"""The evaluators: each against hand-made or independent figures."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

import eval.baselines
import eval.evaluators
import eval.report
from eval.evaluators import (
    CASES,
    Hits,
    Judge,
    Texts,
    agreeing,
    compact_bytes,
    compare,
    concept_accuracy,
    concept_truth,
    confusion,
    estimate,
    faithfulness,
    judge_corrupted,
    judge_stability,
    left_out,
    match_sizes,
    mcnemar,
    means_ci95,
    memory_of,
    neighbours,
    recall,
    reconstruct,
    shared,
    sweep_penalties,
)
from eval.evaluators.corruptions import NOISE, corrupt
from eval.evaluators.memory import csr_bytes
from eval.evaluators.open_words import words_found
from eval.evaluators.retrieval import largest
from indexer.coding import encode_sparse
from indexer.config import CoderConfig
from indexer.store import Store
from training.encoders import load_test_embeddings, open_encoder

ROOMS = (eval.evaluators, eval.baselines, eval.report)
MODULES = [f"{room.__name__}.{m.name}" for room in ROOMS for m in pkgutil.iter_modules(room.__path__)]


@pytest.mark.parametrize("name", [*MODULES, "eval.parts", "indexer.residual"])
def test_examples_in_docstrings_hold(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_mcnemar_is_the_binomial_of_the_discordant_pairs():
    a = np.array([True] * 10 + [False] * 2 + [True] * 50)
    b = np.array([False] * 10 + [True] * 2 + [True] * 50)
    assert mcnemar(a, b) == pytest.approx(2 * sum([1, 12, 66]) / 2**12)
    assert mcnemar(a, a) == 1.0


def test_bytes_as_the_reference_counts_them():
    W = sparse.csr_matrix((np.ones(446, np.float32), np.arange(446) % 7, np.linspace(0, 446, 101).astype(np.int32)))
    assert csr_bytes(W) == 3972 == W.data.nbytes + W.indices.nbytes + W.indptr.nbytes
    assert compact_bytes(W) == 446 * 3 + 100
    memory = memory_of(W, np.zeros((7, 256), np.float32), sparse.vstack([W, W]).tocsr(), {})
    assert memory.ratio == 3972 / (100 * 256 * 4)
    assert memory.whole_index.n == 200


@pytest.mark.parametrize(
    ("n", "m", "k", "expected"),
    [(2, 65536, 255, 2 * (3 * 255 + 1)), (2, 65537, 255, 2 * (4 * 255 + 1)), (2, 65536, 256, 2 * (3 * 256 + 2))],
)
def test_the_compact_layout_numbers_every_concept_and_counts_every_code(n, m, k, expected):
    """Two bytes tell 65,536 concepts apart, and one counts up to 255."""
    indices = np.tile(np.linspace(0, m - 1, k).astype(np.int32), n)
    W = sparse.csr_matrix((np.ones(n * k, np.float32), indices, np.arange(n + 1) * k), shape=(n, m))
    assert compact_bytes(W) == expected


@pytest.mark.parametrize(("b", "n", "k"), [(7, 60, 10), (5, 11, 10), (3, 5000, 10), (4, 2, 1), (3, 700, 1)])
def test_the_largest_scores_are_those_of_a_full_sort(b, n, k):
    rng = np.random.default_rng(n)
    for scores in (rng.normal(size=(b, n)), rng.integers(0, 4, (b, n)).astype(float)):  # the second has many ties
        wanted = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        assert largest(scores, k).tolist() == wanted.tolist()


def test_neighbours_are_the_nearest_other_rows():
    A = np.random.default_rng(0).normal(size=(40, 5))
    scores = A @ A.T
    np.fill_diagonal(scores, -np.inf)
    wanted = np.argsort(-scores, axis=1)[:, :10]
    assert neighbours(A, block=7).tolist() == wanted.tolist()
    assert neighbours(A[:4]).shape == (4, 3)  # fewer than ten others


def test_precision_and_recall_by_sets():
    rng = np.random.default_rng(1)
    found, wanted = (np.array([rng.permutation(30)[:10] for _ in range(30)]) for _ in range(2))
    groups = rng.integers(0, 3, 30)
    common = [len({*a} & {*b}) / 10 for a, b in zip(found, wanted, strict=True)]
    assert recall(found, wanted) == pytest.approx(np.mean(common))
    shares = [sum(groups[j] == groups[i] for j in found[i]) / 10 for i in range(30)]
    assert agreeing(found, groups).tolist() == pytest.approx(shares)
    assert shared(found, wanted).tolist() == pytest.approx(common)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of means of draws from a known distribution, about 95 % of the intervals hold its mean; by no formula of ours."""
    rng = np.random.default_rng(0)
    held = 0
    for i in range(300):
        values = rng.exponential(size=(200, 1))
        ((low, high),) = means_ci95(values, seed=i % 3)
        held += low < 1 < high
    assert 0.91 <= held / 300 <= 0.98


def test_the_bootstrap_is_as_wide_as_the_normal_interval_of_many_values():
    values = np.random.default_rng(1).normal(size=5000)
    found = estimate(values)
    assert found.value == pytest.approx(values.mean())
    assert np.diff(found.ci95)[0] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(5000), rel=0.08)


def test_a_difference_counts_only_outside_its_interval():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=2000).astype(np.float32)
    base = {"recall_of_dense": noise, "class_precision": noise, "term_precision": noise}
    other = {
        "recall_of_dense": noise + 0.1 + 0.01 * rng.normal(size=2000),  # small, but paired: certain
        "class_precision": noise - 0.1,
        "term_precision": noise + 0.02 * rng.normal(size=2000),
    }
    found = {d.metric: d for d in compare(Hits(noise, other), Hits(noise, base))}
    assert {metric: d.better for metric, d in found.items()} == {
        "recall_of_dense": 1,
        "class_precision": -1,
        "term_precision": 0,
    }
    assert found["recall_of_dense"].value == pytest.approx(0.1, abs=0.001)


def test_a_confusion_matrix_counts_every_picture_once():
    rng = np.random.default_rng(0)
    labels, dense, codes = rng.integers(0, 3, (3, 100))
    found = confusion(labels, dense, codes, ["a", "b", "c"])
    assert found.dense[2][0] == sum(1 for y, p in zip(labels, dense, strict=True) if (y, p) == (2, 0))
    assert np.sum(found.sparse) == np.sum(found.dense) == 100


@pytest.fixture(scope="module")
def bundled():
    return load_test_embeddings(open_encoder())


@pytest.fixture(scope="module")
def part(bundled_index, bundled):
    """Every tenth bundled embedding, the concepts, and a judge of the first."""
    with Store(bundled_index) as store:
        X, D, T = store.embeddings()[::10], store.dictionary(), store.classes().T
    return X, D, Judge(X, T, bundled.labels[::10])


def test_a_judge_finds_the_embeddings_themselves_perfect(part):
    X, _, judge = part
    worth = judge(np.linspace(1, 9, len(X), dtype=np.float32)[:, None] * X)  # the length of a row decides nothing
    assert worth.recall_of_dense == 1
    assert worth.cosine_mean == pytest.approx(1)
    assert worth.term_precision is None
    assert worth.text_precision is None
    assert judge(X[::-1]).accuracy < 0.5
    low, high = worth.ci95["class_precision"]
    assert low < worth.class_precision < high


def test_a_judge_takes_lengths_and_codes_of_their_own_where_it_is_told_to(part):
    X, _, judge = part
    long = X * np.linspace(1, 9, len(X), dtype=np.float32)[:, None]
    wanted = neighbours(long)
    assert judge.hits(long, lengths=True).of["recall_of_dense"] == pytest.approx(shared(wanted, neighbours(X)))
    assert judge.hits(X[::-1], latent=X).of["recall_of_dense"].mean() == 1


def test_a_judge_asks_texts():
    X = np.eye(4, dtype=np.float32).repeat(12, axis=0)
    groups = np.arange(4).repeat(12)
    texts = Texts("classes", np.eye(4, dtype=np.float32)[[0, 1]], np.array([0, 2]), groups)
    assert Judge(X, texts=texts).hits(X).of["text_precision"].tolist() == [1, 0]
    assert Judge(X)(X).accuracy is None


def test_a_sweep_codes_as_the_coder_does_alone(part):
    X, D, judge = part
    points = sweep_penalties(X, D, judge, CoderConfig(refit=True)).found
    assert [p.l1 for p in points] == sorted((p.l1 for p in points), reverse=True)
    assert [p.nnz_mean for p in points] == sorted(p.nnz_mean for p in points)
    for p in (points[0], points[-1]):
        W = encode_sparse(X, D, CoderConfig(l1=p.l1, relative=True, refit=True)).W
        assert p.nnz_mean == pytest.approx(W.nnz / len(X), rel=1e-3)
        assert p.bytes_per_image == pytest.approx(1 + 3 * p.nnz_mean)
        assert p.csr_bytes_per_image == pytest.approx(8 * p.nnz_mean + 4 + 4 / len(X))
        assert p.accuracy == pytest.approx(judge(reconstruct(W, D)).accuracy, abs=2e-3)


@pytest.mark.parametrize("refit", [False, True])
def test_codes_made_to_a_size_have_the_smallest_penalty_that_keeps_it(part, refit):
    X, D, judge = part
    coder = CoderConfig(refit=refit)
    points = match_sizes(X, D, judge, coder, [8, 16, 8, 3, 256]).found
    assert [p.name for p in points] == ["sparse within 8 bytes", "sparse within 16 bytes"]  # 3: none; 256: too many

    def size(l1: float) -> float:
        return compact_bytes(encode_sparse(X, D, replace(coder, l1=l1, relative=True)).W) / len(X)

    for p, room in zip(points, (8, 16), strict=True):
        assert p.bytes_per_image <= room
        assert size(p.l1) == pytest.approx(p.bytes_per_image)
        assert size(p.l1 - 0.001) > room


def test_concepts_are_right_by_term_synonym_and_class():
    D = np.array([[1, 0, 0], [0.95, np.sqrt(1 - 0.95**2), 0], [0, 0, 1]])  # 0 and 1 mean nearly the same
    W = sparse.csr_matrix([[0.9, 0, 0], [0, 0.7, 0], [0, 0, 0], [0, 0, 0.2]])
    X, wanted, parents, labels = D[[0, 0, 2, 2]], np.array([0, 0, 2, -1]), np.array([5, 5, -1]), np.array([5, 5, 5, 6])
    found = concept_accuracy(X, W, D, wanted, parents, labels)
    assert (found.top_term_accuracy_dense, found.top_term_accuracy_sparse) == (0.75, 0.25)
    assert (found.top_term_accuracy_dense_synonyms, found.top_term_accuracy_sparse_synonyms) == (0.75, 0.5)
    assert (found.top_concept_class_accuracy_dense, found.top_concept_class_accuracy_sparse) == (0.5, 0.5)
    unknown = concept_accuracy(X, W, D, np.full(4, -1), np.full(3, -1), labels)
    assert {value for name, value in vars(unknown).items() if name != "ci95"} == {None}


def test_concepts_are_true_as_counting_by_hand_says():
    """Two concepts that mean the same, one other; twelve pictures of each, of which some have the wrong code."""
    D = np.array([[1, 0, 0], [0.95, np.sqrt(1 - 0.95**2), 0], [0, 0, 1]])
    wanted = np.arange(3).repeat(12)
    W = np.zeros((37, 3))
    W[:12, 0] = 0.5  # all right
    W[12:24, 0] = 0.5  # a synonym in place of the term
    W[24:36, 2] = np.where(np.arange(12) < 6, 0.5, 0)  # half of them, the others empty
    W[24:27, 1] = 0.1
    W[36, 2] = 0.9  # of a term that no concept names
    found = concept_truth(sparse.csr_matrix(W), D, np.append(wanted, -1), ["a", "b", "c"])
    assert found.precision.value == pytest.approx((12 + 6) / (24 + 6 + 3))
    assert found.recall.value == pytest.approx((12 + 6) / 36)
    assert found.precision_synonyms.value == pytest.approx((24 + 6) / 33)
    assert found.recall_synonyms.value == pytest.approx((24 + 6) / 36)
    by_name = {c.name: c for c in found.by_concept}
    assert (by_name["a"].precision, by_name["a"].recall, by_name["a"].precision_synonyms) == (0.5, 1, 1)
    assert (by_name["b"].precision, by_name["b"].recall, by_name["b"].recall_synonyms) == (0, 0, 1)
    assert (by_name["c"].active, by_name["c"].pictures, by_name["c"].precision) == (6, 12, 1)
    assert found.mean_recall.value == pytest.approx((1 + 0 + 0.5) / 3)
    assert concept_truth(sparse.csr_matrix(W), D, np.full(37, -1), ["a", "b", "c"]) is None


def test_deletion_finds_what_carries_the_class_before_chance_does():
    """Each embedding is three concepts, of which one alone carries its class."""
    rng = np.random.default_rng(0)
    D = np.eye(12, dtype=np.float32)
    labels = rng.integers(0, 3, 200)
    W = np.zeros((200, 12), np.float32)
    W[np.arange(200), labels] = 0.5
    for row in W:
        row[rng.choice(np.arange(3, 12), 4, replace=False)] = 0.4
    found = faithfulness(W @ D, sparse.csr_matrix(W), D, D[:3])
    assert found.steps == list(range(6))
    assert found.deletion.ordered[0].value == 1
    assert found.deletion.ordered[1].value < 0.5 < found.deletion.random[1].value
    assert found.insertion.ordered[1].value == 1
    assert found.insertion.ordered[0].value == 0
    assert found.insertion.random[1].value == pytest.approx(0.2, abs=0.06)
    assert found.deletion.random[5].value == pytest.approx(found.deletion.ordered[5].value)


def test_what_the_concepts_leave_out_of_a_class_is_the_rest_of_its_score():
    X, T, D = np.array([[0.6, 0.8], [1.0, 0.0]]), np.eye(2), np.array([[1.0, 0.0]])
    W = sparse.csr_matrix([[0.6], [0.5]])
    found = left_out(X, W, sparse.csr_matrix([[0.6], [1.0]]), D, T, np.array([1, 0]), ["a", "b"])
    assert [(c.name, c.codes.value, c.cone.value) for c in found.classes] == [("a", 0.5, 0), ("b", 1, 1)]
    assert found.codes.value == pytest.approx((0.8 + 0.5) / 1.8)


def test_a_code_that_a_change_does_not_touch_is_stable():
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 200, (12, 16, 16, 3)).astype(np.uint8)
    D = np.eye(2, dtype=np.float32)

    def encode(p: np.ndarray) -> np.ndarray:
        """By halves, left and right: a mirror image exchanges them."""
        halves = np.stack([p[:, :, :8].mean((1, 2, 3)), p[:, :, 8:].mean((1, 2, 3))], axis=1)
        return halves / np.linalg.norm(halves, axis=1, keepdims=True)

    def code(X: np.ndarray) -> sparse.csr_matrix:
        return sparse.csr_matrix(np.where(X.max(1, keepdims=True) <= X, X, 0))

    found = {c.change: c for c in judge_stability(pixels, encode, code, D).changes}
    assert found["5 % lighter"].common.value == found["5 % lighter"].same_top.value == 1
    assert found["mirrored"].same_top.value == found["mirrored"].common.value == 0
    assert found["mirrored"].cosine_dense.value > 0.99


def test_open_words_count_hits_and_tell_nonsense():
    texts = {"kitty": [1, 0, 0], "pooch": [0, 1, 0], "algebra": [0, 0, 1]}
    X = np.repeat(np.eye(3)[:2], [12, 12], axis=0)
    R = X[::-1]  # codes that have everything wrong
    groups = np.array(["cat"] * 12 + ["dog"] * 12)
    queries = [("kitty", "cat"), ("pooch", "cat")]
    found = words_found(lambda t: np.array([texts[x] for x in t]), X, R, np.eye(3)[:2], groups, queries, ["algebra"])
    assert (found.precision_dense, found.precision_sparse) == (0.5, 0.5)
    assert found.missed == ["pooch"]
    assert (found.known_queries_median, found.known_nothing_median, found.separation) == (1, 0, 1)


def test_corruption_is_as_strong_as_it_says_and_seeds_repeat_it():
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    for severity, strength in enumerate(NOISE):
        assert np.std(corrupt(grey, "noise", severity) / 255) == pytest.approx(strength, rel=0.02)
    assert (corrupt(grey, "noise", 0, seed=1) == corrupt(grey, "noise", 0, seed=1)).all()
    assert (corrupt(grey, "noise", 0, seed=1) != corrupt(grey, "noise", 0, seed=2)).any()
    half = np.where(np.arange(32)[:, None, None] < 16, 255, 0).astype(np.uint8) * np.ones((1, 32, 32, 3), np.uint8)
    assert np.ptp(corrupt(half, "contrast", 4)) == pytest.approx(0.15 * 255, abs=1)
    assert np.abs(np.diff(corrupt(half, "blur", 4).astype(int), axis=1)).max() < 128


def test_accuracy_under_corruption_is_that_of_both_sides_and_each_picture_is_encoded_once():
    pixels = np.stack([np.full((8, 8, 3), v, np.uint8) for v in (20, 235)] * 20)
    encoded = []

    def encode(p: np.ndarray) -> np.ndarray:
        encoded.append(len(p))
        return np.stack([255 - p.mean((1, 2, 3)), p.mean((1, 2, 3))], axis=1)

    found = judge_corrupted(pixels, np.array([0, 1] * 20), encode, lambda X: X[:, ::-1], np.eye(2))
    assert [(c.kind, c.severity, c.n) for c in found.rows[:2]] == [("noise", 1, 2), ("noise", 2, 2)]
    assert len(found.rows) == len(CASES) == 20
    assert sum(encoded) == found.n == 40
    assert all((c.dense, c.sparse) == (1, 0) for c in found.rows)
    assert [(k.kind, k.n, k.dense.accuracy, k.sparse.accuracy) for k in found.kinds] == [
        (kind, 10, 1, 0) for kind in ("noise", "blur", "jpeg", "contrast")
    ]
