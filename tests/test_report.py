"""The report: its figures against plain numpy, its parts that are kept, its page, its words; with and without
labels."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from eval.evaluate import Report
from eval.evaluators import SWEEP, Estimate
from eval.parts import Parts, code_version, fingerprint, packed, read_part, restored
from eval.report import sentences, to_dict
from eval.report.page import page
from eval.subject import drawn, read_subject
from indexer.store import Store

ROOT = Path(__file__).parent.parent


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
    assert r["concepts"]["truth"]["precision"]["value"] > 20 * r["concepts"]["truth"]["random_precision"]


@pytest.fixture(scope="module")
def arrays(bundled_index):
    with Store(bundled_index) as store:
        names = list(store.classes().names)
        rows = store.images()
        labels = np.array([names.index(str(row.label)) for row in rows])
        terms = np.array([str(row.term) for row in rows])
        return store.embeddings(), store.codes(), store.dictionary(), store.classes().T, labels, terms


def test_the_reports_figures_agree_with_plain_numpy(bundled_report, arrays):
    r, (X, W, D, T, labels, _) = bundled_report.json, arrays
    assert r["dense"]["accuracy"] == pytest.approx(((X @ T.T).argmax(1) == labels).mean())
    assert r["sparse"]["accuracy"] == pytest.approx((((W @ D) @ T.T).argmax(1) == labels).mean(), abs=2e-4)
    assert r["memory"]["sparse_csr_bytes"] == 8 * W.nnz + 4 * (len(X) + 1)
    assert r["memory"]["dense_bytes"] == X.nbytes
    assert r["sparse"]["compact"]["bytes_per_image"] == 1 + 3 * W.nnz / len(X)
    low, high = r["dense"]["ci95"]
    assert low < r["dense"]["accuracy"] < high
    confused = np.array(r["confusion"]["sparse"])
    assert np.trace(confused) / len(X) == pytest.approx(r["sparse"]["accuracy"])
    assert confused.sum(1).tolist() == np.bincount(labels).tolist()


def test_neighbours_of_some_pictures_agree_with_sorting(bundled_report, arrays):
    """P@10 and recall@10 of 300 pictures by a full sort in float64 lie within the interval that so few allow."""
    X, W, D, _, labels, terms = arrays
    some = np.random.default_rng(0).choice(len(X), 300, replace=False)

    def ten(A: np.ndarray) -> np.ndarray:
        A = A.astype(np.float64)
        scores = A[some] @ A.T
        scores[np.arange(len(some)), some] = -np.inf
        return np.argsort(-scores, axis=1)[:, :10]

    dense, codes = ten(X), ten(W @ D)
    found = {
        "recall_of_dense": [len({*a} & {*b}) / 10 for a, b in zip(codes, dense, strict=True)],
        "class_precision": (labels[codes] == labels[some][:, None]).mean(1),
        "term_precision": (terms[codes] == terms[some][:, None]).mean(1),
    }
    searched = bundled_report.json["sparse"]["searched"]
    for metric, values in found.items():
        assert np.mean(values) == pytest.approx(searched[metric], abs=3 * np.std(values) / np.sqrt(300)), metric


def test_precision_of_concepts_agrees_with_sets(bundled_report, arrays, bundled_index):
    with Store(bundled_index) as store:
        names = {name: c.id for c in store.concepts() for name in (c.name, *c.aliases)}
    _, W, _, _, _, terms = arrays
    right = active = found = known = 0
    for i, term in enumerate(terms):
        mine = {*W[i].indices.tolist()}
        if term in names:
            known += 1
            right += names[term] in mine
            active += len(mine)
            found += names[term] in mine
    truth = bundled_report.json["concepts"]["truth"]
    assert truth["precision"]["value"] == pytest.approx(right / active)
    assert truth["recall"]["value"] == pytest.approx(found / known)


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
    assert [point["l1"] for point in r["sweep"]] == [0.9, 0.5, 0.2]
    assert len(SWEEP) >= 8
    wanted = {"l1", "nnz_mean", "accuracy", "cosine_mean", "bytes_per_image", "csr_bytes_per_image"}
    assert all(set(p) >= wanted for p in (*r["sweep"], *r["matched"]))
    assert all(set(b) >= {"name", "bytes_per_image", "accuracy", "recall_of_dense"} for b in r["baselines"])
    json.dumps(r, allow_nan=False)


def test_every_key_is_documented(bundled_report):
    """As a name in code marks in docs/report.md; the names of files, metrics and packages are values."""
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "report.md").read_text(encoding="utf-8")))
    assert keys_of(bundled_report.json) - documented == set()


def keys_of(tree: object, named: frozenset[str] = frozenset({"disk", "versions"})) -> set[str]:
    if isinstance(tree, list):
        return set().union(*map(keys_of, tree)) if tree else set()
    if not isinstance(tree, dict):
        return set()
    return {*tree}.union(*(keys_of(value) for key, value in tree.items() if key not in named))


def test_examples_are_of_the_kind_that_they_say(bundled_report):
    examples = bundled_report.json["concepts"]["examples"]
    assert len(examples["correct"]) == len(examples["wrong"]) == 8
    assert all(e["predicted"] == e["label"] for e in examples["correct"])
    assert all(e["predicted"] != e["label"] for e in examples["wrong"])
    for e in examples["correct"]:
        parts = [c["contribution"] for c in e["concepts"]]
        assert parts == sorted(parts, reverse=True)


class Shown(HTMLParser):
    """The text of a page, without styles and plots."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.inside = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.inside += tag in ("style", "svg")

    def handle_endtag(self, tag: str) -> None:
        self.inside -= tag in ("style", "svg")

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.text.append(data)


def numbers_of(tree: object) -> set[float]:
    if isinstance(tree, bool) or tree is None:
        return set()
    if isinstance(tree, int | float):
        return {float(tree)}
    if isinstance(tree, str):
        return {float(x) for x in re.findall(r"\d+\.\d+", tree)}
    each = tree.values() if isinstance(tree, dict) else tree
    return set().union(*map(numbers_of, each)) if each else set()


def test_every_figure_on_the_page_is_in_the_json(bundled_report):
    """Each number with a point, as it is, in percent, or as what is left to 1, to as many digits as the page shows."""
    parser = Shown()
    parser.feed((bundled_report.folder / "index.html").read_text(encoding="utf-8"))
    shown = set(re.findall(r"\d+\.\d+(?:e-?\d+)?", " ".join(parser.text).replace("−", "-")))
    known = {abs(x) for x in numbers_of(bundled_report.json)}
    every = np.array(sorted({*known, *(100 * x for x in known), *(abs(1 - x) for x in known)}))
    assert len(shown) > 200
    for text in shown:
        digits, _, power = text.partition("e")
        room = 0.5001 * 10.0 ** (int(power or 0) - len(digits.partition(".")[2])) + 1e-12
        assert np.abs(every - float(text)).min() <= room, text


def test_the_page_and_the_summary_hold_the_figures(bundled_report):
    html = (bundled_report.folder / "index.html").read_text()
    assert (bundled_report.folder / "accuracy.svg").read_text().startswith("<svg")
    r = bundled_report.json
    for text in (html, bundled_report.summary):
        assert "taught these classes" in text
        assert "McNemar" in text
        assert "recall@10 of dense" in text
        assert f"{r['dense']['accuracy']:.4f}" in text or f"{100 * r['dense']['accuracy']:.2f} %" in text
        assert "sparse within 8 bytes" in text
    assert "CIFAR-10 train split, captions" in html
    for baseline in r["baselines"]:
        assert f"{baseline['recall_of_dense']:.3f}" in html


def test_the_page_loads_nothing_from_outside(bundled_report):
    html = (bundled_report.folder / "index.html").read_text()
    loaded = re.findall(r"""(?:\b(?:src|href)\s*=|\burl\()\s*["']?([^"'\s)>]*)""", html)
    assert "#" in {address[:1] for address in loaded}  # the plot's own parts
    assert all(address.startswith(("data:", "#")) for address in loaded), loaded
    assert not re.search("<script|<link|<iframe|@import", html)


def test_the_page_escapes_what_it_is_told(bundled_report):
    report = bundled_report.report
    hostile = replace(report, dataset=replace(report.dataset, name="<script>alert('x')</script>"))
    html = page(hostile, {"frontiers": [], "penalty": [], "removal": []}, {})
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def said(report: Report, **changes: object) -> str:
    return " ".join(sentences(replace(report, **changes)))


def test_words_follow_the_figures(bundled_report):
    report = bundled_report.report
    assert len(sentences(report)) == 5
    assert "does not tell the two apart" in said(report, mcnemar_p=0.3)
    assert "less accurate" in said(report, mcnemar_p=0.001)
    better = replace(report.sparse, accuracy=report.dense.accuracy + 0.01)
    assert "so the codes are more accurate" in said(report, mcnemar_p=0.001, sparse=better)
    comparison = report.comparisons[0]
    level = [
        replace(comparison, differences=[replace(d, better=0) for d in comparison.differences]),
    ]
    assert "ahead of 0, behind 0 and level with 1" in said(report, comparisons=level)
    behind = [replace(comparison, differences=[replace(d, better=-1, value=-0.5) for d in comparison.differences])]
    assert f"furthest behind {comparison.baseline}" in said(report, comparisons=behind)
    assert "favours them" in said(report)
    assert "favours them" not in said(report, baselines_trained_on="pictures outside the split")


def test_a_report_on_unlabelled_pictures_says_what_can_be_said(run, album_without_labels, tmp_path):
    result = run("eval", "--index", album_without_labels, "--out", tmp_path, "--examples", 3)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dataset"]["labelled"] is False
    assert not {"mcnemar_p", "confusion", "texts", "faithfulness", "outside", "corruptions"} & set(report)
    assert "accuracy" not in report["dense"]
    assert report["memory"]["dense_bytes"] == 150 * 256 * 4
    assert all("recall_of_dense" in way and "accuracy" not in way for way in (*report["sweep"], *report["baselines"]))
    assert report["comparisons"]
    assert len(report["concepts"]["examples"]["some"]) == 3
    assert report["concepts"]["most_used"]
    assert "no labels are known" in result.stdout
    assert "--labels folders" in result.stderr
    assert (tmp_path / "frontier-recall-of-dense.svg").is_file()
    assert not (tmp_path / "frontier-accuracy.svg").exists()


@pytest.fixture(scope="module")
def album_without_labels(tmp_path_factory) -> Path:
    """The first bundled embeddings, as if they were of pictures that nobody has labelled."""
    from indexer.build import Source, write_index
    from indexer.config import CoderConfig, IndexConfig
    from indexer.store import Described
    from training.encoders import load_test_embeddings, open_encoder

    encoder, n = open_encoder(), 150
    described = Described(
        paths=[f"/pictures/{i:03d}.png" for i in range(n)],
        splits=[None] * n,
        labels=[None] * n,
        hashes=[f"{i:064x}" for i in range(n)],
        thumbnails=[None] * n,
    )
    folder = tmp_path_factory.mktemp("unlabelled")
    X = load_test_embeddings(encoder).X[:n]
    config = IndexConfig(coder=CoderConfig(l1=0.5))
    write_index(folder, X, described, encoder, config, Source(dataset="pictures", root="/pictures"))
    return folder


def test_a_report_shows_its_pictures(run, small_index, tmp_path):
    stdout = run("eval", "--index", small_index, "--out", tmp_path, "--corrupted", 50).stdout
    assert "the embeddings (128 bytes)" in stdout
    assert (tmp_path / "examples.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/jpeg;base64" in (tmp_path / "index.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["dataset"]["n"] == 50


def test_a_quick_report_is_a_smaller_one_and_a_second_one_measures_nothing_anew(run, small_index, tmp_path):
    at = ("eval", "--index", small_index, "--out", tmp_path, "--quick")
    first = run(*at)
    again = run(*at)
    told = [line for line in again.stderr.splitlines() if line.endswith("as measured before")]
    assert {line.split("  ")[0] for line in told} >= {"sweep", "baseline PCA16, 8 bits each", "codes of equal size"}
    assert first.stdout == again.stdout
    assert "as measured before" not in run(*at, "--again").stderr
    other = run(*at, "--seed", 1)
    assert "sweep" in other.stderr
    assert not re.search("sweep +as measured before", other.stderr)


@dataclass(frozen=True)
class Part:
    """Every kind of value that a part may hold."""

    name: str
    values: np.ndarray
    intervals: dict[str, tuple[float, float]]
    estimates: list[Estimate]
    nothing: Estimate | None = None


PART = Part("é", np.arange(6.0).reshape(2, 3), {"a": (0.1, 0.2)}, [Estimate(1.0, (0.5, 1.5))])


def test_a_part_comes_back_as_it_was_and_only_for_its_own_inputs(tmp_path):
    path = tmp_path / "part.npz"
    path.write_bytes(packed(PART, "x"))
    found = read_part(path, Part, "x")
    assert found is not None
    assert found.values.tolist() == PART.values.tolist()
    assert replace(found, values=PART.values) == PART
    assert read_part(path, Part, "y") is None
    whole = path.read_bytes()
    for damage in (
        b"",
        whole[:-30],
        whole[: len(whole) // 2],
        b"no file of numpy",
        whole.replace(b"estimates", b"estimatez"),
    ):
        path.write_bytes(damage)
        assert read_part(path, Part, "x") is None


def test_parts_are_measured_once_and_anew_when_an_input_changes(tmp_path):
    calls = []

    def work() -> Part:
        calls.append(1)
        return PART

    told: list[tuple[str, float | None]] = []
    parts = Parts(tmp_path / "parts", lambda name, seconds: told.append((name, seconds)))
    X = np.eye(2)
    for _ in range(2):
        parts.get("a part, λ 0.5", Part, work, X, "setting")
    assert len(calls) == 1
    assert [seconds is None for _, seconds in told] == [False, True]
    X[0, 1] = 1e-9
    parts.get("a part, λ 0.5", Part, work, X, "setting")
    parts.get("a part, λ 0.5", Part, work, X, "another")
    Parts(tmp_path / "parts", again=True).get("a part, λ 0.5", Part, work, X, "another")
    assert len(calls) == 4
    Parts().get("a part, λ 0.5", Part, work, X, "another")
    assert len(calls) == 5


def test_fingerprints_tell_arrays_and_code_apart():
    a = np.arange(4)
    every = [a, a.astype(float), a.reshape(2, 2), a[::-1], a.tolist(), "0", 0, None]
    assert len({fingerprint(each) for each in every}) == len(every)
    assert fingerprint(a, "x") != fingerprint("x", a)
    assert code_version("eval.evaluators.outside") != code_version("eval.evaluators.truth")


def test_a_report_comes_back_from_its_json(bundled_report):
    again = restored(Report, bundled_report.json, {})
    assert json.loads(json.dumps(to_dict(again))) == bundled_report.json


def test_of_many_pictures_so_many_are_drawn_in_their_order():
    places = np.arange(100) * 3
    some = drawn(places, 10, seed=0)
    assert len(set(some.tolist())) == 10
    assert (np.diff(some) > 0).all()
    assert np.isin(some, places).all()
    assert drawn(places, 10, seed=0).tolist() == some.tolist() != drawn(places, 10, seed=1).tolist()
    assert drawn(places, 100, seed=0) is places


def test_a_report_on_a_large_index_reads_a_sample(bundled_index):
    with Store(bundled_index) as store:
        subject = read_subject(store, most=500)
        rows = {row.image_id: row for row in store.images()}
    assert len(subject.X) == subject.W.shape[0] == len(subject.labels) == 500
    for picture, label in zip(subject.pictures, subject.labels, strict=True):
        assert rows[picture.id].label == picture.label == subject.classes[label]
        assert rows[picture.id].split == "test"


def test_a_report_takes_the_encoder_that_it_is_given_and_refuses_a_folder_first(run, small_index, tmp_path):
    """As the doctor tells people to: the encoder may lie elsewhere now."""
    at = ("eval", "--index", small_index, "--quick")
    result = run(*at, "--out", tmp_path / "report", "--encoder", tmp_path / "none")
    assert "left out, for want of the encoder" in result.stderr
    assert "none" in result.stderr
    (tmp_path / "file").write_text("no folder")
    refused = run(*at, "--out", tmp_path / "file" / "report", code=1)
    assert refused.stderr.startswith("Error: cannot write the report")
    missing = run(*at, "--split", "nothing", "--out", tmp_path / "report", code=1)
    assert "0 picture(s) of the split 'nothing'" in missing.stderr
