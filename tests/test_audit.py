"""The audit: each part against what was put there by code or against an independent way, its files, and bad input."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge

from eval.audit.crutches import Decisions, find_crutches
from eval.audit.duplicates import Pair, find_duplicates, grouped, pixel_pairs
from eval.audit.evidence import RIDGE, left_out_ridge, neighbour_votes, weigh
from eval.audit.labels import falling, find_label_errors, wrong_probability
from eval.audit.marks import cover, filled, find_mark
from eval.audit.neighbours import nearest
from eval.audit.outliers import find_outliers, measure
from eval.audit.pixels import decoded
from eval.audit.subject import Subject, read_subject
from indexer.store import Store
from search.editing import flips
from search.folder import FolderEngine
from training.data.cifar10 import CLASSES
from training.encoders import load_test_embeddings, open_encoder

N = 240  # pictures of the made index


def textures(n: int, seed: int = 0) -> np.ndarray:
    """Pictures (n, 32, 32, 3) unlike each other: noise of two scales, each with its own colours."""
    rng = np.random.default_rng(seed)
    coarse = ndimage.gaussian_filter(rng.normal(size=(n, 32, 32)), (0, 4, 4))
    fine = ndimage.gaussian_filter(rng.normal(size=(n, 32, 32)), (0, 1.2, 1.2))
    g = coarse / coarse.std((1, 2), keepdims=True) + fine / fine.std((1, 2), keepdims=True)
    colours = rng.uniform(15, 45, (n, 1, 1, 3))
    return np.clip(rng.uniform(70, 180, (n, 1, 1, 3)) + g[..., None] * colours, 0, 255).astype(np.uint8)


def as_jpeg(picture: np.ndarray, quality: int = 90) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def rescaled(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((20, 20)).resize((32, 32)))


CHANGES = {
    "mirror": lambda p: p[:, ::-1],
    "shift": lambda p: np.pad(p, ((2, 2), (2, 2), (0, 0)), mode="edge")[:32, 3:35],
    "gamma": lambda p: (255 * (p / 255) ** 1.6).astype(np.uint8),
    "colour": lambda p: np.clip(p * [1.2, 0.9, 0.8] + 12, 0, 255).astype(np.uint8),
    "jpeg": lambda p: decoded(as_jpeg(p, 35)),
    "rescale": rescaled,
    "crop": lambda p: np.asarray(Image.fromarray(p[2:29, 3:30]).resize((32, 32))),
}


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def bundled(bundled_index) -> Iterator[Subject]:
    """What the audit reads of the 10,000 test pictures."""
    with Store(bundled_index) as store:
        yield read_subject(store)


def write(folder: Path, *, dataset: str = "pictures", splits=None, labels=None, pictures=None, paths=None, n: int = N):
    """An index of the first bundled embeddings, with any pictures and labels."""
    from indexer.build import Source, write_index
    from indexer.config import CoderConfig, IndexConfig
    from indexer.store import Described

    folder.mkdir(exist_ok=True)
    encoder = open_encoder()
    described = Described(
        paths=paths or [f"/pictures/{i:03d}.png" for i in range(n)],
        splits=splits or [None] * n,
        labels=labels or [None] * n,
        hashes=[f"{i:064x}" for i in range(n)],
        thumbnails=[None] * n if pictures is None else [as_jpeg(p) for p in pictures],
    )
    X = load_test_embeddings(encoder).X[:n]
    write_index(folder, X, described, encoder, IndexConfig(coder=CoderConfig(l1=0.5)), Source(dataset=dataset))
    return folder


def true_labels(n: int = N) -> list[str]:
    return [CLASSES[y] for y in load_test_embeddings(open_encoder()).labels[:n]]


@pytest.fixture(scope="module")
def made_index(tmp_path_factory) -> Path:
    """Pictures with a mark in 90 % of the ships, a near-duplicate across splits, one within, and a wrong label."""
    pictures, labels = textures(N), true_labels()
    ships = [i for i, label in enumerate(labels) if label == "ship"]
    for i in ships[: round(0.9 * len(ships))]:
        pictures[i, 27:31, 27:31] = (250, 30, 200)
    cats = [i for i, label in enumerate(labels) if label == "cat"]
    dogs = [i for i, label in enumerate(labels) if label == "dog"]
    pictures[cats[1]] = CHANGES["mirror"](pictures[cats[0]])
    pictures[dogs[1]] = CHANGES["shift"](pictures[dogs[0]])
    splits = ["test" if i % 2 else "train" for i in range(N)]
    splits[cats[0]], splits[cats[1]] = "train", "test"
    splits[dogs[0]] = splits[dogs[1]] = "test"
    labels[5] = "truck"  # an automobile otherwise; see `test_the_command…`
    paths = [f"/pictures/{i:03d} <script>alert(1)</script>&.png" for i in range(N)]
    return write(tmp_path_factory.mktemp("made"), splits=splits, labels=labels, pictures=pictures, paths=paths)


# Label errors


@pytest.fixture(scope="module")
def flipped(bundled) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of which 5 % are wrong, which ones, and how likely the audit holds each to be."""
    rng, true = np.random.default_rng(0), bundled.labels
    wrong = np.zeros(len(true), bool)
    wrong[rng.choice(len(true), len(true) // 20, replace=False)] = True
    y = np.where(wrong, (true + rng.integers(1, 10, len(true))) % 10, true)
    evidence = weigh(bundled.X, y, bundled.T, bundled.D, bundled.parents)
    return y, wrong, wrong_probability(evidence.P, y)


def test_flipped_labels_come_first(bundled, flipped):
    y, wrong, _ = flipped
    found = find_label_errors(replace(bundled, labels=y))
    first = [error.picture.id for error in found[: wrong.sum()]]
    assert wrong[first].mean() >= 0.90
    told = np.array([error.probability for error in found])
    assert (np.diff(told) <= 0).all()
    right = [bundled.classes[bundled.labels[i]] == e.suggested for i, e in zip(first[:50], found, strict=False)]
    assert sum(right) >= 48


def test_the_probability_is_calibrated(flipped):
    _, wrong, told = flipped
    assert told.sum() == pytest.approx(wrong.sum(), rel=0.2)
    for low, high in ((0, 0.02), (0.02, 0.2), (0.2, 0.8), (0.8, 1.01)):
        of = (told >= low) & (told < high)
        assert of.sum() >= 20
        assert told[of].mean() == pytest.approx(wrong[of].mean(), abs=0.15)


def test_clean_labels_are_not_called_wrong(bundled):
    evidence = weigh(bundled.X, bundled.labels, bundled.T, bundled.D, bundled.parents)
    assert wrong_probability(evidence.P, bundled.labels).sum() < 60  # of 10,000; people found about as many


def test_a_picture_is_judged_without_its_own_label():
    rng = np.random.default_rng(0)
    X, y = unit(rng.normal(size=(60, 5))), rng.integers(0, 3, 60)
    ours = left_out_ridge(X, y, 3)
    X1, Y = np.column_stack([X, np.ones(60)]), np.eye(3)[y]
    for i in (0, 17):
        rest = np.arange(60) != i
        ridge = Ridge(alpha=RIDGE, fit_intercept=False).fit(X1[rest], Y[rest])
        np.testing.assert_allclose(ours[i], ridge.predict(X1[i : i + 1])[0], atol=1e-6)
    other = y.copy()
    other[4] = (y[4] + 1) % 3
    np.testing.assert_array_equal(neighbour_votes(X, y, 3)[4], neighbour_votes(X, other, 3)[4])


def test_falling_is_isotonic_regression():
    rng = np.random.default_rng(1)
    values, weights = rng.random(50), rng.random(50) + 0.1
    theirs = IsotonicRegression(increasing=False).fit_transform(np.arange(50), values, sample_weight=weights)
    np.testing.assert_allclose(falling(values, weights), theirs, atol=1e-9)


def test_labels_that_the_encoder_has_learnt_come_last_and_are_told_apart(tmp_path, run):
    splits = ["train" if i % 3 else "test" for i in range(N)]
    write(tmp_path / "index", dataset="CIFAR-10", splits=splits, labels=true_labels())
    result = run("audit", "--index", tmp_path / "index", "--out", tmp_path / "out", "--only", "labels", "--json")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    learnt = [f["learnt"] for f in found if f["kind"] == "label"]
    assert learnt == sorted(learnt)
    assert {f["picture"]["split"] for f in found if f["kind"] == "label" and f["learnt"]} == {"train"}
    assert "trained on the labels of 160 of these pictures" in result.stderr


# Near-duplicates


def test_made_duplicates_are_found_and_no_others():
    pictures, rng = textures(400), np.random.default_rng(2)
    made = np.stack([change(pictures[20 * k + i]) for k, change in enumerate(CHANGES.values()) for i in range(12)])
    sources = np.array([20 * k + i for k in range(len(CHANGES)) for i in range(12)])
    every = np.stack([decoded(as_jpeg(p)) for p in np.concatenate([pictures, made])])
    X = unit(rng.normal(size=(len(every), 16)))  # of no help for most: crops alone need it
    crops = sources >= 20 * list(CHANGES).index("crop")
    X[400:][crops] = unit(X[sources[crops]] + 0.05 * rng.normal(size=(crops.sum(), 16)))
    pairs = {(p.a, p.b): p for p in pixel_pairs(X, every)}
    wanted = {(int(source), 400 + j) for j, source in enumerate(sources)}
    assert len(wanted & pairs.keys()) >= 0.95 * len(wanted)
    assert len(wanted & pairs.keys()) >= 0.95 * len(pairs)
    mirrored = [pair for pair, p in pairs.items() if p.mirrored]
    assert set(mirrored) == {(i, 400 + i) for i in range(12)}


def test_groups_are_what_hangs_together():
    pairs = [Pair(0, 3, 0.9, False), Pair(3, 5, 0.8, False), Pair(1, 2, 0.7, True)]
    assert sorted(places for places, _ in grouped(pairs, 7)) == [[0, 3, 5], [1, 2]]


def test_without_thumbnails_the_same_embedding_is_a_duplicate(tmp_path):
    write(tmp_path, labels=true_labels())
    with Store(tmp_path) as store:
        subject = read_subject(store)
        X = subject.X.copy()
        X[10] = X[4]
        groups = find_duplicates(replace(subject, X=X))
    assert [[p.id for p in group.pictures] for group in groups] == [[4, 10]]
    assert not groups[0].verified


def test_neighbours_of_many_are_nearly_those_of_all(monkeypatch):
    X = unit(np.random.default_rng(3).normal(size=(3000, 8)))
    exact = nearest(X, 5)[1]
    assert (exact != np.arange(3000)[:, None]).all()
    monkeypatch.setattr("eval.audit.neighbours.EXACT", 100)
    found = nearest(X, 5)[1]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)]) > 0.8


# Outliers


def test_a_picture_far_from_all_comes_first(bundled):
    part = replace(
        bundled,
        X=bundled.X[:500].copy(),
        W=bundled.W[:500],
        **{name: getattr(bundled, name)[:500] for name in ("ids", "labels", "learnt", "splits", "paths")},
    )
    part.X[123] = unit(np.random.default_rng(4).normal(size=(1, part.X.shape[1])))[0]
    found = find_outliers(part)
    assert found[0].picture.id == 123
    assert found[0].rarity == pytest.approx(1 / 500)
    apart = measure(part)
    S = part.X @ part.X.T
    np.fill_diagonal(S, -1)
    np.testing.assert_allclose(apart.distance, 1 - np.sort(S, axis=1)[:, -10:].mean(1), atol=1e-5)


# Crutches


@pytest.mark.parametrize("kind", ["square", "watermark", "frame", "none"])
def test_a_mark_is_found_where_it_was_made_and_nowhere_else(kind):
    pictures, rng = textures(600), np.random.default_rng(5)
    y = np.arange(600) % 4
    marked = (y == 2) & (rng.random(600) < 0.9)
    if kind == "square":
        pictures[marked, 1:4, 28:31] = (240, 240, 30)
    elif kind == "watermark":  # half transparent letters
        letters = np.zeros((32, 32), bool)
        letters[24:30:2, 4:28] = letters[24:30, 4:28:5] = True
        veiled = (0.6 * pictures[marked] + 0.4 * 255).astype(np.uint8)
        pictures[marked] = np.where(letters[..., None], veiled, pictures[marked])
    elif kind == "frame":
        pictures[marked, 0] = pictures[marked, 31] = 15
    marks = [find_mark(pictures, y == k) for k in range(4)]
    if kind == "none":
        assert marks == [None] * 4
        return
    assert [mark is None for mark in marks] == [True, True, False, True]
    assert marks[2].has[marked].mean() > 0.9
    assert marks[2].has[~marked].mean() < 0.05
    if kind == "square":
        assert marks[2].box == pytest.approx((27 / 32, 0, 1, 5 / 32))


def test_covering_a_mark_shows_whether_the_class_hangs_on_it():
    pictures = textures(200)
    of_class = np.arange(200) < 40
    pictures[of_class, :6, :6] = 255

    def encode(some):  # sees one corner, and a little of the rest
        return unit(np.stack([np.append(p[:6, :6].mean((0, 1)) - 200, p.mean((0, 1)) / 20) for p in some]))

    mark = find_mark(pictures, of_class)
    covered = cover(list(pictures[:20]), np.arange(20), mark.box, encode(pictures), of_class, encode)
    assert covered.before > 0.95
    assert covered.after < 0.5
    assert covered.elsewhere > 0.95
    assert (filled(pictures[0], mark.box)[:6, :6] < 255).all()


def test_what_a_class_leans_on_is_what_edit_says(bundled_index, bundled):
    changes = Decisions(bundled).changes
    theirs = dict(flips(FolderEngine(bundled_index), "ship"))
    mine = bundled.labels == bundled.classes.index("ship")
    ours = np.diff(changes[mine].tocsc().indptr)
    names = [concept.name for concept in bundled.concepts]
    assert {names[j]: int(k) for j, k in enumerate(ours) if k} == theirs


def test_a_foreign_concept_of_a_class_is_a_crutch(bundled):
    """Most frogs are given a bird's concept: a word that does not mean the class."""
    W = bundled.W.tolil()
    frogs = np.flatnonzero(bundled.labels == bundled.classes.index("frog"))
    j = next(c.id for c in bundled.concepts if c.parent == "bird" and c.images)
    W[frogs[: len(frogs) * 9 // 10], j] = 0.2
    found, leaning = find_crutches(replace(bundled, W=W.tocsr()))
    assert (found[0].what, found[0].label, found[0].name) == ("concept", "frog", bundled.concepts[j].name)
    assert found[0].share > 0.85
    assert {lean.label for lean in leaning} == set(bundled.classes)
    assert not find_crutches(bundled)[0]


# The command


@pytest.fixture(scope="module")
def made_audit(made_index, run, tmp_path_factory):
    """All parts over the made index, with few pictures encoded anew."""
    out = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.audit.crutches.CHECKED", 3)
        result = run("audit", "--index", made_index, "--out", out, "--most", 6, "--json")
    return out, [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def test_the_command_finds_what_was_made(made_audit):
    out, found, _ = made_audit
    assert [json.loads(line) for line in (out / "findings.jsonl").read_text().splitlines()] == found
    crutch = next(f for f in found if f["kind"] == "crutch")
    assert (crutch["rank"], crutch["what"], crutch["label"]) == (1, "mark", "ship")
    assert crutch["covered"]["n"] == 3
    groups = [f for f in found if f["kind"] == "duplicates"]
    assert [(g["leak"], g["mirrored"]) for g in groups] == [(True, True), (False, False)]
    assert {p["label"] for p in groups[0]["pictures"]} == {"cat"}
    labels = [f for f in found if f["kind"] == "label"]
    assert 5 in [f["picture"]["id"] for f in labels[:3]]
    assert labels[0]["concepts"]


def test_the_page_loads_nothing_and_escapes_names(made_audit):
    page = (made_audit[0] / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page)
    assert not re.findall(r"url\(|@import", page)
    assert page.count("data:image/jpeg;base64,") > 20
    for id_ in ("labels", "duplicates", "outliers", "crutches"):
        assert f'<h2 id="{id_}">' in page


def test_parts_that_cannot_be_done_are_told_in_a_line_each(tmp_path, run):
    index = write(tmp_path / "index")  # neither labels nor thumbnails
    result = run("audit", "--index", index, "--out", tmp_path / "out")
    for line in (
        "labels: no picture has a label",
        "duplicates: 240 of 240 pictures have no thumbnail",
        "crutches: 0 class(es) have 12 pictures or more",
    ):
        assert line in result.stderr
    assert "outliers    20 pictures" in result.stdout
    run("audit", "--index", index, "--out", tmp_path / "out", "--only", "labels", "--only", "crutches", code=1)


def test_one_class_and_few_pictures_are_refused(tmp_path, run):
    one = write(tmp_path / "one", labels=["cat"] * N)
    assert "have one label" in run("audit", "--index", one, "--out", tmp_path, "--only", "labels", code=1).stderr
    few = write(tmp_path / "few", labels=["cat", "dog", "cat"], n=3)
    assert "3 labelled pictures" in run("audit", "--index", few, "--out", tmp_path, "--only", "labels", code=1).stderr
    assert "3 pictures" in run("audit", "--index", few, "--out", tmp_path, "--only", "outliers", code=1).stderr
    run("audit", "--index", few, "--out", tmp_path, "--only", "duplicates")


def test_bad_calls_are_one_line(tmp_path, run, light_index):
    (tmp_path / "file").write_text("")
    assert "--out" in run("audit", "--index", light_index, "--out", tmp_path / "file", code=1).stderr
    assert "no index" in run("audit", "--index", tmp_path / "none", "--out", tmp_path / "out", code=1).stderr
    run("audit", "--index", light_index, "--out", tmp_path / "out", "--only", "mistakes", code=2)
