"""Whether a picture is like those that are known: the figure is calibrated, tells strangers, and is told everywhere."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kstest

from eval.bench.familiarity import auroc, made_pictures
from indexer.store import Store
from indexer.store.familiarity import FEWEST, FILE, LEVEL, OF_ENCODER, OF_INDEX, index_familiarity, measured
from search.index import Index
from training.encoders import load_test_embeddings, open_encoder


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    """Rows about five centres, more spread in some directions than in others."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(5, d))[rng.integers(0, 5, n)] + rng.normal(size=(n, d)) * np.linspace(0.05, 1, d)
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def test_rows() -> np.ndarray:
    return load_test_embeddings(open_encoder()).X


def test_the_figure_is_a_share_pictures_that_it_has_not_seen_have_any_equally_often(test_rows):
    known = measured(test_rows[:5000])
    shares = known.share(test_rows[5000:])
    assert kstest(shares, "uniform").statistic < 0.035  # 0.027 is what two samples of 5,000 differ by once in 20 times
    for level in (0.01, 0.05, 0.2):
        assert abs((shares <= level).mean() - level) < 0.25 * level + 0.004


@pytest.mark.parametrize(("n", "d"), [(FEWEST, 64), (150, 512), (600, 16)])
def test_few_pictures_in_many_dimensions_are_judged_as_fairly(n, d):
    """Also those of the index, which one of the halves was fitted to: the other one judges them."""
    new, own, unfair = [], [], []
    for seed in range(20):
        X = unit_rows(n + 50, d, seed)
        known = measured(X[:n], np.arange(n), OF_INDEX)
        new.append(known.share(X[n:]))
        own.append(known.share(X[:n], np.arange(n)))
        unfair.append(known.share(X[:n]))
    for shares in (np.concatenate(new), np.concatenate(own)):
        assert abs((shares <= 0.1).mean() - 0.1) < 0.04
        assert abs(shares.mean() - 0.5) < 0.04
    assert n > 10 * d or np.mean(unfair) > 0.55, "without their ids they look more familiar than they are"


def test_unrelated_pictures_are_told_from_known_ones(test_rows):
    """By more than the largest cosine with a concept tells."""
    encoder = open_encoder()
    known, D = measured(test_rows[:5000]), encoder.encode_concepts(list(encoder.concepts))
    held_out = test_rows[5000:]
    figures, baseline = {}, {}
    for name, pixels in made_pictures(30).items():
        X = encoder.encode_images(pixels)
        figures[name] = auroc(known.share(held_out), known.share(X))
        baseline[name] = auroc((held_out @ D.T).max(1), (X @ D.T).max(1))
    assert np.mean(list(figures.values())) > 0.93, figures
    assert np.mean(list(figures.values())) > np.mean(list(baseline.values())) + 0.02, (figures, baseline)
    assert min(figures.values()) > 0.85, figures


def test_too_few_known_pictures_tell_nothing():
    assert measured(unit_rows(FEWEST - 1, 8, 0)) is None
    same = np.repeat(unit_rows(1, 8, 0), FEWEST, 0)
    assert measured(same).share(np.vstack([same[:1], -same[:1]])).tolist() == [1.0, pytest.approx(1 / 51)]


def test_an_index_of_few_pictures_says_that_it_does_not_know(run, small_encoder_dir, pictures, tmp_path):
    (tmp_path / "few").mkdir()
    for i in range(5):
        Image.fromarray(pictures.pixels[i]).save(tmp_path / "few" / f"{i}.png")
    at = ("--index", tmp_path / "index")
    run("index", tmp_path / "few", "--encoder", small_encoder_dir, *at)
    assert not (tmp_path / "index" / FILE).exists()
    found = json.loads(run("classify", tmp_path / "few" / "0.png", "--classes", "cat,dog", "--json", *at).stdout)
    assert found["familiarity"] is None
    assert found["notes"] == []
    assert "familiarity" not in run("explain", 0, *at).stdout
    rows = run("sql", "SELECT familiarity FROM familiarity", "--json", *at).stdout.splitlines()
    assert [json.loads(row)["familiarity"] for row in rows] == [None] * 5


def test_what_is_known_is_the_encoders_own_or_the_indexs(light_index, small_index):
    with Store(light_index) as store:
        assert index_familiarity(store).of == OF_ENCODER
    with Store(small_index) as store:  # its encoder has 50 pictures beside its weights: too few
        assert index_familiarity(store).of == OF_INDEX


def test_a_stranger_is_told_of_wherever_it_is_asked_about(run, light_index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(made_pictures(1)["checks"][0]).save(tmp_path / "checks.png")
    at, picture = ("--index", light_index), "checks.png"
    found = json.loads(run("classify", picture, "--json", *at).stdout)
    assert 0 < found["familiarity"] <= LEVEL
    said = f"unlike {OF_ENCODER}: {100 * found['familiarity']:.2g} % of them lie as far out"
    assert found["notes"] == [said]
    shown = run("classify", picture, 3, *at)
    assert shown.stderr.startswith(f"note: {picture} is {said}\n")
    assert f"{found['familiarity']:.3f}" in shown.stdout
    assert f"familiarity {found['familiarity']:.3f}: it is {said}" in run("explain", picture, *at).stdout
    assert said in run("search", "--like", picture, *at).stderr
    with Index(light_index) as index:
        assert index.explain(picture).familiarity == index.classify(picture).familiarity == found["familiarity"]
        assert said in index.classify(picture)._repr_html_()
        assert said in index.explain(picture)._repr_html_()


def test_sql_and_filters_know_it_too(run, light_index):
    at = ("--index", light_index)
    sql = "SELECT image_id, familiarity FROM images JOIN familiarity USING (image_id) ORDER BY familiarity, image_id"
    rows = [json.loads(line) for line in run("sql", sql, "--json", *at).stdout.splitlines()]
    with Index(light_index) as index:
        alone = [index.classify(row["image_id"]).familiarity for row in rows]
        np.testing.assert_allclose([row["familiarity"] for row in rows], alone, atol=1e-3)  # rounded in other places
        found = index.search(where="Familiarity < 0.2", k=150)
        assert {hit.id for hit in found} == {row["image_id"] for row in rows if row["familiarity"] < 0.2}
        assert 0 < len(found) < 150


def test_a_kept_figure_is_the_one_that_is_measured_and_a_damaged_one_is_measured_anew(small_index, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(small_index, folder)
    kept = (folder / FILE).read_bytes()
    with Store(folder) as store:
        X, first = store.embeddings(), index_familiarity(store)
        for harm in (kept[:-1], b"", kept[:200] + b"\xff" + kept[201:]):
            (folder / FILE).write_bytes(harm)
            np.testing.assert_array_equal(index_familiarity(store).share(X), first.share(X))
            assert (folder / FILE).read_bytes() == kept
        (folder / FILE).unlink()  # an index of before
        np.testing.assert_array_equal(index_familiarity(store).share(X), first.share(X))
