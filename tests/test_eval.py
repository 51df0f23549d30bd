"""The report: its arithmetic against hand-made and independent figures, and the bundled encoder's results."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import sparse

from eval.metrics import compact_bytes, csr_bytes, mcnemar, row_cosines, strongest, wilson
from sparsight import main


def test_wilson_interval_of_the_textbook():
    low, high = wilson(81, 263)  # Newcombe 1998, table I
    assert (low, high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_mcnemar_is_the_binomial_of_the_discordant_pairs():
    a = np.array([True] * 10 + [False] * 2 + [True] * 50)
    b = np.array([False] * 10 + [True] * 2 + [True] * 50)
    assert mcnemar(a, b) == pytest.approx(2 * sum([1, 12, 66]) / 2**12)
    assert mcnemar(a, a) == 1.0


def test_bytes_as_the_reference_counts_them():
    W = sparse.csr_matrix(np.ones((100, 446), np.float32))[:, :5].tolil()
    W = sparse.csr_matrix((np.ones(446, np.float32), np.arange(446) % 7, np.linspace(0, 446, 101).astype(np.int32)))
    assert csr_bytes(W) == 3972 == W.data.nbytes + W.indices.nbytes + W.indptr.nbytes
    assert compact_bytes(W) == 446 * 3 + 100


def test_strongest_concept_of_each_row():
    W = sparse.csr_matrix(np.array([[0, 0.2, 0.9], [0, 0, 0], [0.5, 0.5, 0.1]], np.float32))
    assert strongest(W).tolist() == [2, -1, 0]


def test_cosines_by_row():
    X = np.eye(2, dtype=np.float32)
    assert row_cosines(X, np.array([[3, 0], [1, 1]], np.float32)).tolist() == pytest.approx([1, 2**-0.5])


@pytest.fixture(scope="module")
def report(bundled_index, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    result = CliRunner().invoke(main, ["eval", "--index", str(bundled_index), "--out", str(out), "--corrupted", "50"])
    assert result.exit_code == 0, result.output
    return out, json.loads((out / "report.json").read_text()), result.stdout


def test_the_bundled_encoder_keeps_its_promises(report):
    _, r, _ = report
    assert r["dataset"]["n"] == 10_000
    assert r["dense"]["accuracy"] >= 0.93
    assert r["sparse"]["accuracy"] >= r["dense"]["accuracy"] - 0.005
    assert r["memory"]["ratio"] <= 0.0387
    assert r["sparse"]["max_relative_gap"] <= 1e-3
    assert r["sparse"]["empty"] == 0
    assert r["concepts"]["top_term_accuracy_sparse"] >= 0.20
    assert r["concepts"]["top_concept_class_accuracy_sparse"] >= 0.90


def test_the_reports_figures_agree_with_plain_numpy(report, bundled_index):
    from indexer.store import Store

    _, r, _ = report
    with Store(bundled_index) as store:
        X, W, D = store.embeddings(), store.codes(), store.dictionary()
        classes, T = store.classes()
        labels = np.array([classes.index(str(i["label"])) for i in store.images()])
    assert r["dense"]["accuracy"] == pytest.approx(((X @ T.T).argmax(1) == labels).mean())
    assert r["sparse"]["accuracy"] == pytest.approx((((W @ D) @ T.T).argmax(1) == labels).mean(), abs=2e-4)
    assert r["memory"]["sparse_csr_bytes"] == 8 * W.nnz + 4 * (len(X) + 1)
    assert r["memory"]["dense_bytes"] == X.nbytes
    low, high = r["dense"]["ci95"]
    assert low < r["dense"]["accuracy"] < high


def test_the_report_has_the_agreed_keys_and_pages(report):
    out, r, stdout = report
    assert set(r) >= {
        "dataset",
        "encoder",
        "dictionary",
        "dense",
        "sparse",
        "mcnemar_p",
        "memory",
        "sweep",
        "baselines",
    }
    assert set(r["sparse"]) >= {"accuracy", "ci95", "l1", "nnz_mean", "cosine_mean", "max_relative_gap"}
    assert len(r["sweep"]) >= 8
    assert all(set(p) >= {"l1", "nnz_mean", "accuracy", "cosine_mean", "bytes_per_image"} for p in r["sweep"])
    nnz = [p["nnz_mean"] for p in sorted(r["sweep"], key=lambda p: p["l1"])]
    assert nnz == sorted(nnz, reverse=True)
    names = [x["name"] for x in r["baselines"]]
    assert {"SQ8", "PQ8", "OPQ16,PQ16"} <= set(names)
    matched = {p["name"]: p for p in r["matched"]}
    within = matched["sparse within 16 bytes"]
    assert within["compact_bytes_per_image"] <= 16
    smaller = [p["compact_bytes_per_image"] for p in r["sweep"] if p["l1"] > within["l1"]]
    assert all(size <= within["compact_bytes_per_image"] for size in smaller)
    assert "sparse within 16 bytes" in stdout
    examples = r["concepts"]["examples"]
    assert all(e["predicted"] == e["label"] for e in examples["correct"])
    assert all(e["predicted"] != e["label"] for e in examples["wrong"])
    page = (out / "index.html").read_text()
    assert "CIFAR-10 train split, captions" in page
    assert "src='http" not in page
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "McNemar" in stdout


def test_a_report_shows_its_pictures(small_index, tmp_path):
    at = ["--index", str(small_index), "--out", str(tmp_path), "--corrupted", "50"]
    result = CliRunner().invoke(main, ["eval", *at])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "examples.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/jpeg;base64" in (tmp_path / "index.html").read_text()
