"""How many concepts a picture gets, and which concepts are one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny_models import make_folder

from indexer.build import fitted, index_bundled
from indexer.config import NEAR_SYNONYMS, READABLE, CoderConfig, IndexConfig
from indexer.store import Store
from training.encoders import load_test_embeddings, open_encoder


@pytest.fixture(scope="module")
def bundled():
    encoder = open_encoder()
    return encoder, load_test_embeddings(encoder)


@pytest.mark.parametrize(("wanted", "relative"), [(1.3, True), (3, True), (9, True), (5, False)])
def test_a_picture_gets_as_many_concepts_as_are_asked_for(bundled, tmp_path, wanted, relative):
    encoder, embeddings = bundled
    config = IndexConfig(concepts=wanted, coder=CoderConfig(relative=relative, refit=True))
    built = index_bundled(tmp_path, embeddings, encoder, config)
    assert built.meta.nnz / built.meta.n == pytest.approx(wanted, rel=0.1)
    assert built.meta.coder.relative == relative


def test_of_a_small_dictionary_a_picture_gets_a_quarter_at_the_most(bundled):
    X, D = bundled[1].X[:500], np.linalg.qr(np.random.default_rng(0).normal(size=(256, 6)))[0].T.astype(np.float32)
    X = X + 3 * np.abs(np.random.default_rng(1).normal(size=(500, 6))).astype(np.float32) @ D
    config = fitted(IndexConfig(concepts=READABLE), X, D)
    assert config.coder.l1 == fitted(IndexConfig(concepts=1.5), X, D).coder.l1
    assert fitted(IndexConfig(), X, D) == IndexConfig()


def test_an_encoder_without_terms_gets_readable_codes(run, pictures, tmp_path):
    """The index's dictionary holds near-synonyms once, and pictures have a mean number of concepts, not a penalty."""
    (tmp_path / "album").mkdir()
    for i in range(40):
        Image.fromarray(pictures.pixels[i]).save(tmp_path / "album" / f"{i}.png")
    words = [
        f"{colour} {thing}" for colour in ("red", "dark", "big") for thing in ("cat", "ship", "frog", "tree", "cup")
    ]
    (tmp_path / "words.txt").write_text("\n".join(words))
    asked = (
        "index",
        tmp_path / "album",
        "--encoder",
        make_folder("clip", tmp_path / "clip"),
        "--dictionary",
        tmp_path / "words.txt",
    )
    said = run(*asked, "--index", tmp_path / "i").stderr
    with Store(tmp_path / "i") as store:
        D, concepts, meta = store.dictionary(), store.concepts(), store.meta
    assert sorted(n for c in concepts for n in (c.name, *c.aliases)) == sorted(words)
    assert (D @ D.T - 2 * np.eye(len(D))).max() < NEAR_SYNONYMS
    assert meta.nnz / meta.n == pytest.approx(len(D) / 4, rel=0.15)
    assert f"--l1 {meta.coder.l1:.3g}" in said
    run(*asked, "--index", tmp_path / "all", "--merge", 1, "--l1", 0.5)
    with Store(tmp_path / "all") as store:
        assert len(store.concepts()) == len(words)
        assert store.meta.coder.l1 == 0.5
    found = run("search", "red cat", "--index", tmp_path / "i", "--all", "--json", "-k", 1).stdout
    assert json.loads(found)["rank"] == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--l1", "0.5", "--concepts", "3"], "both set the penalty"),
        (["--absolute"], "needs --l1 or --concepts"),
        (["--concepts", "0"], "--concepts"),
        (["--merge", "1.5"], "--merge"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(run, tmp_path, arguments, reason):
    assert reason in run("index", "--bundled", *arguments, "--index", tmp_path / "i", code=2).stderr
    assert not (tmp_path / "i").exists()
