"""The report: each evaluator against hand-made or independent figures, the bundled encoder's results, and the page."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import re
from dataclasses import replace

import numpy as np
import pytest
from eval.evaluators.baselines import quantised
from scipy import sparse

import eval.evaluators
from eval.evaluators import (
    Judge,
    concept_accuracy,
    judge_baselines,
    judge_compact,
    judge_corrupted,
    match_sizes,
    mcnemar,
    memory_of,
    neighbours,
    precision,
    recall,
    reconstruct,
    sweep_penalties,
)
from eval.evaluators.corruptions import NOISE, corrupt
from eval.evaluators.memory import compact_bytes, csr_bytes
from eval.evaluators.open_words import words_found
from eval.evaluators.retrieval import largest
from eval.report.page import page
from eval.subject import drawn, read_subject
from indexer.coding import encode_sparse
from indexer.config import CoderConfig
from indexer.store import Store
from training.encoders import load_test_embeddings, open_encoder


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(eval.evaluators.__path__)])
def test_examples_in_docstrings_hold(name):
    failed, _ = doctest.testmod(importlib.import_module(f"eval.evaluators.{name}"))
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
    assert precision(found, groups) == pytest.approx(np.mean(shares))


@pytest.fixture(scope="module")
def bundled():
    return load_test_embeddings(open_encoder())


@pytest.fixture(scope="module")
def part(bundled_index, bundled):
    """Every tenth bundled embedding, the concepts, and a judge of the first."""
    from indexer.store import Store

    with Store(bundled_index) as store:
        X, D, T = store.embeddings()[::10], store.dictionary(), store.classes().T
    return X, D, Judge(X, T, bundled.labels[::10])


def test_a_judge_finds_the_embeddings_themselves_perfect(part):
    X, _, judge = part
    worth = judge(2 * X)  # the length of a row decides nothing here but who is found
    assert worth.recall_of_dense == 1
    assert worth.cosine_mean == pytest.approx(1)
    assert worth.term_precision is None
    assert judge(X[::-1]).accuracy < 0.5


def test_a_sweep_codes_as_the_coder_does_alone(part):
    X, D, judge = part
    points = sweep_penalties(X, D, judge, CoderConfig(refit=True))
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
    points = match_sizes(X, D, judge, coder, [8, 16, 8, 3, 256])
    assert [p.name for p in points] == ["sparse within 8 bytes", "sparse within 16 bytes"]  # 3: none; 256: too many

    def size(l1: float) -> float:
        return compact_bytes(encode_sparse(X, D, replace(coder, l1=l1, relative=True)).W) / len(X)

    for p, room in zip(points, (8, 16), strict=True):
        assert p.bytes_per_image <= room
        assert size(p.l1) == pytest.approx(p.bytes_per_image)
        assert size(p.l1 - 0.001) > room


def test_rounded_weights_cost_next_to_nothing(part):
    X, D, judge = part
    W = encode_sparse(X, D, CoderConfig(l1=0.5)).W
    compact = judge_compact(W, D, judge)
    assert compact.bytes_per_image == compact_bytes(W) / len(X)
    assert compact.cosine_mean == pytest.approx(judge(reconstruct(W, D)).cosine_mean, abs=1e-4)


def test_baselines_are_named_sized_and_left_out_with_a_reason(part):
    X, D, judge = part
    found = judge_baselines(X, X, D, judge, factories=("SQ8", "PQ8", "PQ7"))
    assert [(b.name, b.bytes_per_image) for b in found.found] == [
        ("float32", 1024),
        ("SQ8", 256),
        ("PQ8", 8),
        ("nearest concept alone", 3),
    ]
    dense, sq8, pq8, nearest = (b.recall_of_dense for b in found.found)
    assert 1 == dense > sq8 > pq8 > nearest
    assert [left.name for left in found.left_out] == ["PQ7"]
    few = judge_baselines(X, X[:100], D, judge, factories=("PQ8",))
    assert [left.reason for left in few.left_out] == ["100 pictures to train on, 256 are needed"]


def test_a_rotation_helps_a_product_quantiser(part):
    X = part[0][:, :16] @ np.diag(np.linspace(3, 0.1, 16)).astype(np.float32)  # parts of unequal worth
    errors = {f: ((quantised(X, X, f, 0)[0] - X) ** 2).sum() for f in ("PQ4", "OPQ4,PQ4")}
    assert errors["OPQ4,PQ4"] < 0.9 * errors["PQ4"]


def test_concepts_are_right_by_term_synonym_and_class():
    D = np.array([[1, 0, 0], [0.95, np.sqrt(1 - 0.95**2), 0], [0, 0, 1]])  # 0 and 1 mean nearly the same
    W = sparse.csr_matrix([[0.9, 0, 0], [0, 0.7, 0], [0, 0, 0], [0, 0, 0.2]])
    X, wanted, parents, labels = D[[0, 0, 2, 2]], np.array([0, 0, 2, -1]), np.array([5, 5, -1]), np.array([5, 5, 5, 6])
    found = concept_accuracy(X, W, D, wanted, parents, labels)
    assert (found.top_term_accuracy_dense, found.top_term_accuracy_sparse) == (0.75, 0.25)
    assert (found.top_term_accuracy_dense_synonyms, found.top_term_accuracy_sparse_synonyms) == (0.75, 0.5)
    assert (found.top_concept_class_accuracy_dense, found.top_concept_class_accuracy_sparse) == (0.5, 0.5)
    unknown = concept_accuracy(X, W, D, np.full(4, -1), np.full(3, -1), labels)
    assert set(vars(unknown).values()) == {None}


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


def test_accuracy_under_corruption_is_that_of_both_sides():
    pixels = np.stack([np.full((8, 8, 3), v, np.uint8) for v in (20, 235)])
    encode = lambda p: np.stack([255 - p.mean((1, 2, 3)), p.mean((1, 2, 3))], axis=1)  # noqa: E731
    found = judge_corrupted(pixels, np.array([0, 1]), encode, lambda X: X[:, ::-1], np.eye(2))
    assert [(c.kind, c.severity) for c in found.rows[:3]] == [("none", 0), ("noise", 1), ("noise", 2)]
    assert len(found.rows) == 21
    assert all((c.dense, c.sparse) == (1, 0) for c in found.rows)
    assert found.means() == [(kind, 1, 0) for kind in ("none", "noise", "blur", "jpeg", "contrast")]


def test_the_bundled_encoder_keeps_its_promises(bundled_report):
    r = bundled_report.json
    assert r["dataset"]["n"] == 10_000
    assert r["dense"]["accuracy"] >= 0.93
    assert r["sparse"]["accuracy"] >= r["dense"]["accuracy"] - 0.005
    assert r["memory"]["ratio"] <= 0.0387
    assert r["sparse"]["max_relative_gap"] <= 1e-3
    assert r["sparse"]["empty"] == 0
    assert r["concepts"]["top_term_accuracy_sparse"] >= 0.20
    assert r["concepts"]["top_concept_class_accuracy_sparse"] >= 0.90


def test_the_reports_figures_agree_with_plain_numpy(bundled_report, bundled_index):
    from indexer.store import Store

    r = bundled_report.json
    with Store(bundled_index) as store:
        X, W, D, T = store.embeddings(), store.codes(), store.dictionary(), store.classes().T
        names = list(store.classes().names)
        labels = np.array([names.index(str(row.label)) for row in store.images()])
    assert r["dense"]["accuracy"] == pytest.approx(((X @ T.T).argmax(1) == labels).mean())
    assert r["sparse"]["accuracy"] == pytest.approx((((W @ D) @ T.T).argmax(1) == labels).mean(), abs=2e-4)
    assert r["memory"]["sparse_csr_bytes"] == 8 * W.nnz + 4 * (len(X) + 1)
    assert r["memory"]["dense_bytes"] == X.nbytes
    assert r["sparse"]["compact"]["bytes_per_image"] == 1 + 3 * W.nnz / len(X)
    low, high = r["dense"]["ci95"]
    assert low < r["dense"]["accuracy"] < high


def test_the_report_has_the_agreed_keys(bundled_report):
    r = bundled_report.json
    agreed = {
        "dataset": {"name", "split", "n"},
        "encoder": {"name", "fingerprint", "trained_on"},
        "dictionary": {"source", "m", "fingerprint"},
        "dense": {"accuracy", "ci95"},
        "sparse": {"accuracy", "ci95", "l1", "nnz_mean", "cosine_mean", "max_relative_gap"},
        "memory": {"dense_bytes", "sparse_csr_bytes", "ratio", "sparse_compact_bytes", "dictionary_bytes", "disk"},
        "concepts": {"top_term_accuracy_dense", "top_term_accuracy_sparse", "examples"},
    }
    assert set(r) >= {*agreed, "mcnemar_p", "sweep", "matched", "baselines", "baselines_left_out", "open_words"}
    for part, keys in agreed.items():
        assert set(r[part]) >= keys, part
    assert len(r["sweep"]) >= 8
    wanted = {"l1", "nnz_mean", "accuracy", "cosine_mean", "bytes_per_image", "csr_bytes_per_image"}
    assert all(set(p) >= wanted for p in (*r["sweep"], *r["matched"]))
    assert all(set(b) >= {"name", "bytes_per_image", "accuracy", "recall_of_dense"} for b in r["baselines"])
    json.dumps(r, allow_nan=False)


def test_examples_are_of_the_kind_that_they_say(bundled_report):
    examples = bundled_report.json["concepts"]["examples"]
    assert len(examples["correct"]) == len(examples["wrong"]) == 8
    assert all(e["predicted"] == e["label"] for e in examples["correct"])
    assert all(e["predicted"] != e["label"] for e in examples["wrong"])
    for e in examples["correct"]:
        parts = [c["contribution"] for c in e["concepts"]]
        assert parts == sorted(parts, reverse=True)


def test_the_page_and_the_summary_hold_the_figures(bundled_report):
    html = (bundled_report.folder / "index.html").read_text()
    assert (bundled_report.folder / "accuracy.svg").read_text().startswith("<svg")
    r = bundled_report.json
    for text in (html, bundled_report.summary):
        assert "CIFAR-10 train split, captions" in text
        assert "McNemar" in text
        assert "recall@10 of dense" in text
        assert f"{r['sparse']['accuracy']:.4f}" in text
        assert f"{r['baselines'][-1]['recall_of_dense']:.3f}" in text
        assert "sparse within 8 bytes" in text


def test_the_page_loads_nothing_from_outside(bundled_report):
    html = (bundled_report.folder / "index.html").read_text()
    loaded = re.findall(r"""(?:\b(?:src|href)\s*=|\burl\()\s*["']?([^"'\s)>]*)""", html)
    assert "#" in {address[:1] for address in loaded}  # the plot's own parts
    assert all(address.startswith(("data:", "#")) for address in loaded), loaded
    assert not re.search("<script|<link|<iframe|@import", html)


def test_the_page_escapes_what_it_is_told(bundled_report):
    report = bundled_report.report
    hostile = replace(report, dataset=replace(report.dataset, name="<script>alert('x')</script>"))
    html = page(hostile, ["<svg></svg>"], {})
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_report_shows_its_pictures(run, small_index, tmp_path):
    stdout = run("eval", "--index", small_index, "--out", tmp_path, "--corrupted", 50).stdout
    assert "dense   accuracy" in stdout
    assert (tmp_path / "examples.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/jpeg;base64" in (tmp_path / "index.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["dataset"]["n"] == 50


def test_of_many_pictures_so_many_are_drawn_in_their_order():
    places = np.arange(100) * 3
    some = drawn(places, 10, seed=0)
    assert len(set(some.tolist())) == 10
    assert (np.diff(some) > 0).all()
    assert np.isin(some, places).all()
    assert drawn(places, 10, seed=0).tolist() == some.tolist() != drawn(places, 10, seed=1).tolist()
    assert drawn(places, 100, seed=0) is places


def test_a_report_on_a_large_index_reads_a_sample(bundled_index, monkeypatch):
    monkeypatch.setattr("eval.subject.MOST_JUDGED", 500)
    with Store(bundled_index) as store:
        subject = read_subject(store)
        rows = {row.image_id: row for row in store.images()}
    assert len(subject.X) == subject.W.shape[0] == len(subject.labels) == 500
    for picture, label in zip(subject.pictures, subject.labels, strict=True):
        assert rows[picture.id].label == picture.label == subject.classes[label]
        assert rows[picture.id].split == "test"


def test_a_report_takes_the_encoder_that_it_is_given_and_refuses_a_folder_first(run, small_index, tmp_path):
    """As the doctor tells people to: the encoder may lie elsewhere now."""
    result = run("eval", "--index", small_index, "--out", tmp_path / "report", "--encoder", tmp_path / "none")
    assert "left out, for want of the encoder" in result.stderr
    assert "none" in result.stderr
    (tmp_path / "file").write_text("no folder")
    refused = run("eval", "--index", small_index, "--out", tmp_path / "file" / "report", code=1)
    assert refused.stderr.startswith("Error: cannot write the report")
