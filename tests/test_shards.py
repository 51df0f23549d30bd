"""Shards are searched as the whole is: the same pictures, scores, parts and notes; and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse

from indexer.build import Source, write_index
from indexer.config import CoderConfig, IndexConfig
from indexer.residual import Quantiser, code_residuals
from indexer.shards import split_index
from indexer.store import DATABASE, Contents, Described, Store, write_store
from indexer.store.chance import FILE, Chance, index_best, measured_best
from indexer.store.dense import best_rows, products
from indexer.store.familiarity import familiarity_of, index_familiarity
from indexer.store.postings import STEP
from indexer.update import remove_pictures
from search.answers import Answer
from search.folder import FolderEngine
from search.index import Index
from search.opening import open_engine
from search.query import Query, Term
from search.serve.holder import Holder, Opening
from search.shards import ShardedEngine
from tests.contents import make_contents
from training.data.cifar10 import CLASSES
from training.encoders import Means, load_test_embeddings, open_encoder
from training.errors import CallError, SparsightError

TEXTS = ("truck", "fire engine", "a small dog", "bird", "red", "sailing ship")
CONCEPTS = ("cat", "truck", "fire engine", "tabby cat", "airplane", "toad")
GONE = (0, 3, 39, 40, 41, 97, 120)  # removed before the index is split
LATER = (*range(66, 92), 5, 149)  # removed from the whole and from the shards: all of one shard among them


class Pair(NamedTuple):
    """An index, and its shards."""

    whole: Index
    shards: Index


def harmed(folder: Path, to: Path) -> Path:
    """A copy of an index without some pictures; what unrelated texts score in it is to be measured as in the shards."""
    shutil.copytree(folder, to)
    remove_pictures(to, [str(i) for i in GONE])
    (to / FILE).unlink(missing_ok=True)
    return to


def cut(whole: Path, into: Path, pictures: int) -> list[Path]:
    """Shards of an index from which the same pictures are removed then."""
    shards, start = split_index(whole, into, pictures), 0
    for shard in shards:
        with Store(shard) as store:
            mine = [str(i - start) for i in LATER if 0 <= i - start < store.meta.next_id]
            start += store.meta.next_id
        if mine:
            remove_pictures(shard, mine)
        (shard / FILE).unlink(missing_ok=True)  # of the pictures before: a few less, and it would be kept
    remove_pictures(whole, [str(i) for i in LATER])
    return shards


@pytest.fixture(scope="module")
def pairs(light_index, tmp_path_factory):
    """Shards of several sizes, an empty one among them; by embeddings and codes, codes alone, and residuals."""
    root = tmp_path_factory.mktemp("shards")
    small = cut(harmed(light_index, root / "uneven"), root / "uneven-shards", 21)
    split_index(small[1], root / "inner", 12)
    encoder, n = open_encoder(), 150
    bundled = load_test_embeddings(encoder)
    for name, more in {"residual": {"residual": "OPQ4_16,PQ4x4"}, "bare": {"vectors": False}}.items():
        described = Described(
            paths=[f"/pictures/{i:03d}.png" for i in range(n)],
            labels=[CLASSES[y] for y in bundled.labels[:n]],
        )
        (root / name).mkdir()
        config = IndexConfig(coder=CoderConfig(l1=0.5), **more)
        write_index(root / name, bundled.X[:n], described, encoder, config, Source(dataset="pictures"))
        (root / name / FILE).unlink()
        cut(root / name, root / f"{name}-shards", 80)
    found = {
        "uneven": Pair(Index(root / "uneven"), Index([small[0], root / "inner", *small[2:]])),
        "residual": Pair(Index(root / "residual"), Index(root / "residual-shards")),
        "bare": Pair(Index(root / "bare"), Index(root / "bare-shards")),
    }
    assert isinstance(engine := found["uneven"].shards.engine, ShardedEngine)
    assert [len(part) for part in engine.parts].count(0) == 1
    yield found
    for pair in found.values():
        pair.whole.close()
        pair.shards.close()


terms = st.one_of(
    st.builds(Term, st.just("text"), st.sampled_from(TEXTS), st.sampled_from((1.0, 0.5, -0.5, -1.0, 2.0))),
    st.builds(Term, st.just("concept"), st.sampled_from(CONCEPTS), st.sampled_from((1.0, -1.0))),
    st.builds(
        Term, st.just("picture"), st.sampled_from(("1", "55", "/pictures/133.png")), st.sampled_from((1.0, -1.0))
    ),
)
queries = st.fixed_dictionaries(
    {
        "terms": st.lists(terms, max_size=3, unique_by=lambda term: (term.kind, term.value)).map(tuple),
        "require": st.sampled_from(((), (), ("cat",))),
        "forbid": st.sampled_from(((), (), ("truck",), ("cat", "toad"))),
        "labels": st.sampled_from(((), (), ("cat",), ("truck", "Dog"))),
        "where": st.sampled_from((None, None, "image_id % 3 = 0", "label <> 'ship' AND image_id BETWEEN 30 AND 90")),
        "path": st.sampled_from((None, None, "*/0?5.png")),
        "mode": st.sampled_from((None, "hybrid", "sparse", "dense")),
        "fuse": st.booleans(),
        "diverse": st.sampled_from((0.0, 0.0, 0.5)),
        "group_by": st.sampled_from((None, None, "label", "near")),
        "k": st.sampled_from((1, 5, 20, 500)),
        "all": st.booleans(),
    }
)


def told(index: Index, asked: dict) -> Answer | str:
    """The answer to a query, or the fault that it is."""
    try:
        return index.answer(Query(**asked))
    except CallError as e:
        return str(e).replace("-shards", "")


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(asked=queries, name=st.sampled_from(("uneven", "residual", "bare")))
def test_shards_answer_as_the_whole_does(pairs, asked, name):
    whole, shards = (told(index, asked) for index in pairs[name])
    assert shards == whole
    if isinstance(whole, Answer) and isinstance(shards, Answer):
        assert shards.notes == whole.notes


def test_shards_tell_of_pictures_what_the_whole_does(pairs):
    for name, (whole, shards) in pairs.items():
        assert len(shards) == len(whole)
        for image_id in (1, 59, 95, 148):
            assert shards.explain(image_id, "truck") == whole.explain(image_id, "truck"), name
            assert shards.explain(image_id) == whole.explain(image_id)
            assert shards.classify(image_id) == whole.classify(image_id)
            edits = {"without": "cat", "with_": {"truck": 0.5}, "text": "dog"}
            assert shards.edit(image_id, **edits) == whole.edit(image_id, **edits)
            assert shards.engine.around(image_id) == whole.engine.around(image_id)
            assert shards.picture_id(f"/pictures/{image_id:03d}.png") == image_id
        assert shards.flips("cat") == whole.flips("cat")
        assert shards.concepts() == whole.concepts()
        assert shards.count(labels=["cat"]) == whole.count(labels=["cat"])
        assert shards.engine.span == whole.engine.span
        np.testing.assert_array_equal(shards.engine.vectors_of([148, 2, 2]), whole.engine.vectors_of([148, 2, 2]))
        ids = [1, 130, 2]
        assert shards.engine.thumbnails(ids) == whole.engine.thumbnails(ids)
        for wrong in (70, 149, 10**6):
            with pytest.raises(CallError, match="no picture"):
                shards.explain(wrong)
        with pytest.raises(CallError, match="no picture has the label 'nothing'; there are airplane"):
            shards.search("truck", labels="nothing")


def test_each_row_is_scored_alike_wherever_it_stands():
    """A product of matrices would round by the rows that stand beside it."""
    rng = np.random.default_rng(3)
    X, t = rng.normal(size=(4000, 96)).astype(np.float32), rng.normal(size=96).astype(np.float32)
    scores = products(X, t)
    for _ in range(50):
        at = np.sort(rng.choice(len(X), rng.integers(1, 60), replace=False))
        assert (products(X[at], t) == scores[at]).all()
    order = np.argsort(-scores, kind="stable")[:7]
    for cuts in ([], [1], [5, 5, 1000, 3999]):
        parts = zip(np.split(np.arange(len(X)), cuts), np.split(X, cuts), strict=True)
        found, ids = best_rows(parts, t[None], 7)
        assert (ids[0] == order).all()
        assert (found[0] == scores[order]).all()


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), pictures=st.integers(4, 25))
def test_random_splits_find_the_same(tmp_path_factory, seed, pictures):
    """Of ids with gaps, and weights of two and more: a shard that has none of these has finer steps than the whole."""
    rng, n, tmp_path = np.random.default_rng(seed), 40, tmp_path_factory.mktemp("random")
    W = sparse.random(n, 5, 0.5, "csr", np.float32, random_state=seed)
    ids = np.sort(rng.choice(55, n, replace=False))
    W.data = np.ceil(W.data * 40).astype(np.float32) / 32
    W.data[rng.integers(0, W.nnz)] = 9.5
    contents = make_contents(n=n)
    (tmp_path / "whole").mkdir()
    write_store(tmp_path / "whole", replace(contents, ids=ids, pictures=replace(contents.pictures, W=W)))
    split_index(tmp_path / "whole", tmp_path / "shards", pictures)
    whole, shards = open_engine([tmp_path / "whole"]), open_engine([tmp_path / "shards"])
    assert isinstance(shards, ShardedEngine)
    assert len({part.coarsest for part in shards.parts}) > 1
    assert isinstance(whole, FolderEngine)
    assert whole.coarsest > STEP
    for size in (1, 10, n):
        s, p, nothing = rng.normal(size=5), rng.normal(size=8), np.zeros(8)
        for mine, theirs in (
            (shards.sparse(nothing, s, size, None), whole.sparse(nothing, s, size, None)),
            (shards.dense(p, size, None), whole.dense(p, size, None)),
        ):
            np.testing.assert_array_equal(mine[0], theirs[0])
            np.testing.assert_array_equal(mine[1], theirs[1])
        np.testing.assert_array_equal(shards.first(size, None), ids[:size])
    whole.close()
    shards.close()


def test_what_is_usual_is_that_of_the_whole(small_index, tmp_path):
    """An encoder without known pictures of its own: those of all shards are known."""
    split_index(small_index, tmp_path / "shards", 60)
    with Index(small_index) as whole, Index(tmp_path / "shards") as shards:
        assert isinstance(shards.engine, ShardedEngine)
        stores = [part.store for part in shards.engine.parts]
        known, mine = index_familiarity(whole.store), familiarity_of(stores, whole.meta.encoder_source)
        X = whole.store.embeddings()
        np.testing.assert_array_equal(mine.share(X, np.arange(len(X))), known.share(X, np.arange(len(X))))
        T = whole.text_encoder.encode_texts(["a red thing", "a dark thing", "nothing"])
        parts = [measured_best(store, T) for store in stores]
        together, measured = Chance.among(parts), Chance.among([measured_best(whole.store, T)])
        np.testing.assert_array_equal(together.dense, measured.dense)
        np.testing.assert_array_equal(together.sparse, measured.sparse)
        assert (tmp_path / "shards" / "shard-0001" / FILE).is_file()  # measured when it was split
        assert len(index_best(stores[1], lambda texts: np.zeros((0, 0))).dense) > 100


def test_a_split_appears_whole_or_not_at_all(light_index, tmp_path, run):
    out = run("split", "--into", tmp_path / "s", "--pictures", 100, "--index", light_index).stdout
    assert out.endswith("s: 2 shards, shard-0000 to shard-0001\n")
    again = run("split", "--into", tmp_path / "s", "--pictures", 100, "--index", light_index, code=1)
    assert "is there already: name a new folder" in again.stderr
    broken = tmp_path / "broken"
    shutil.copytree(light_index, broken)
    vectors = next(broken.glob("vectors-*"))
    data = bytearray(vectors.read_bytes())
    data[-5] ^= 1
    vectors.write_bytes(data)
    (tmp_path / "later").mkdir()
    run("split", "--into", tmp_path / "later", "--pictures", 100, "--index", broken, code=1)
    assert not list((tmp_path / "later").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"s", "broken", "later"}


@pytest.fixture(scope="module")
def two(light_index, tmp_path_factory) -> Path:
    return split_index(light_index, tmp_path_factory.mktemp("two") / "shards", 100)[0].parent


def test_commands_ask_shards(run, light_index, two, monkeypatch):
    both = ("--index", two / "shard-0000", "--index", two / "shard-0001")
    for command in (
        ("search", "truck", "-k", 3),
        ("search", "--concept", "cat", "--mode", "sparse"),
        ("explain", 120, "--for", "dog"),
        ("concepts", "cat"),
    ):
        whole = run(*command, "--json", "--index", light_index).stdout
        assert run(*command, "--json", *both).stdout == whole
        assert run(*command, "--json", "--index", two).stdout == whole
    monkeypatch.setenv("SPARSIGHT_INDEX", str(two))
    assert json.loads(run("search", "--concept", "cat", "--json").stdout.splitlines()[0])["id"] >= 0


@pytest.mark.parametrize(
    "command",
    [("add", "."), ("remove", "3"), ("compact",), ("doctor",), ("sql", "SELECT 1"), ("export", "out"), ("audit",)],
)
def test_what_is_done_to_one_index_asks_which(run, two, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    several = run(*command, "--index", two / "shard-0000", "--index", two / "shard-0001", code=2)
    assert f"{command[0]} takes one index: name the shard that it is for" in several.stderr
    folder = run(*command, "--index", two, code=1)
    assert "shard that it is for" in folder.stderr or f"name the one that it is for, as --index {two}" in folder.stderr
    with Index(two) as index, pytest.raises(SparsightError, match="the shard that it is for"):
        index.remove("3")


def with_residuals(root: Path) -> Path:
    encoder = open_encoder()
    described = Described(paths=[f"/others/{i}.png" for i in range(40)])
    config = IndexConfig(coder=CoderConfig(l1=0.5), residual="PQ4x4")
    root.mkdir()
    X = load_test_embeddings(encoder).X[200:240]
    write_index(root, X, described, encoder, config, Source(dataset="others", classes=("cat", "dog")))
    return root


def written(folder: Path, contents: Contents, **meta: object) -> Path:
    folder.mkdir()
    write_store(folder, replace(contents, meta=replace(contents.meta, **meta)))
    return folder


@pytest.mark.parametrize(
    ("meta", "what"),
    [
        ({"encoder_fingerprint": "9"}, "encoder"),
        ({"dictionary_fingerprint": "9"}, "dictionary"),
        ({"coder": CoderConfig(l1=0.4)}, "penalty"),
        ({"keeps_vectors": False}, "way to keep embeddings"),
        ({"templates": ("a {}",)}, "prompts"),
        ({}, "centre of its embeddings"),
        ({"residual": "PQ2"}, "quantiser of residuals"),
    ],
)
def test_what_does_not_fit_together_is_refused(run, tmp_path, meta, what):
    first, other = written(tmp_path / "a", make_contents(n=4)), make_contents(n=4)
    if "residual" in meta:
        D = other.dictionary.D
        quantiser = Quantiser(np.eye(8, dtype=np.float32)[:2], np.zeros((2, 256, 1), np.float32))
        coded = code_residuals(np.zeros((4, 8), np.float32), other.pictures.W, D, quantiser)
        other = replace(other, quantiser=quantiser, pictures=replace(other.pictures, residuals=coded))
    if not meta:
        other = replace(other, means=Means(*other.dictionary.D[:2]))
    second = written(tmp_path / "b", other, **meta)
    told = run("concepts", "--index", first, "--index", second, code=1).stderr
    assert f"{second} cannot be searched with {first}: its {what}" in told
    assert f"--like {first} --index {second}" in told


def test_faults_of_shards(run, two, tmp_path):
    one = two / "shard-0000"
    assert "is named twice" in run("search", "truck", "--index", one, "--index", one, code=2).stderr
    assert "name a new folder in it" in run("index", "--bundled", "--index", two, code=1).stderr
    assert "is named twice" in run("search", "truck", "--index", two, "--index", one, code=2).stderr
    assert "no index in" in run("search", "truck", "--index", one, "--index", tmp_path, code=1).stderr
    with pytest.raises(CallError, match="no index is named"):
        Index([])


def test_a_server_takes_up_what_changes(light_index, tmp_path):
    shards = split_index(light_index, tmp_path / "shards", 60)
    apart = tmp_path / "apart"
    shards[-1].rename(apart)
    holder = Holder(Opening(tmp_path / "shards"))
    versions = [holder.version]
    with holder.index() as index:
        assert len(index) == 120
    remove_pictures(shards[1], ["3"])
    with holder.index() as index:
        assert len(index) == 119
        with pytest.raises(CallError):
            index.explain(63)
    versions.append(holder.version)
    apart.rename(shards[-1])  # a shard more
    with holder.index() as index:
        assert len(index) == 149
        assert index.classify(121).label
    versions.append(holder.version)
    (shards[0] / DATABASE).rename(tmp_path / "aside")  # it is gone: what is open answers on
    with holder.index() as index:
        index.search(concepts="cat")
    assert len({*versions}) == 3
    holder.close()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, pictures) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for i in range(12):
        folder = root / ("cat" if i % 2 else "zebra")
        folder.mkdir(exist_ok=True)
        Image.fromarray(pictures.pixels[i]).save(folder / f"{i}.png")
    return root


def test_an_index_is_built_like_another(run, light_index, photographs, tmp_path):
    new = tmp_path / "new"
    run("index", photographs, "--labels", "folders", "--like", light_index, "--index", new)
    with Store(new) as made, Store(light_index) as like:
        assert len(made) == 12
        rows = made.images()
        assert {row.label for row in rows} == {"cat", "zebra"}
        assert made.meta.dictionary_fingerprint == like.meta.dictionary_fingerprint
        assert made.classes().names == [*like.classes().names, "zebra"]
        assert made.meta.root == str(photographs)
    run("doctor", "--index", new)
    with Index([light_index, new]) as both, Index(light_index) as first:
        assert len(both) == 162
        assert both.class_name("zebra") == "zebra"
        zebras = {row.image_id + 150 for row in rows if row.label == "zebra"}
        assert {hit.id for hit in both.search(labels="zebra", k=20)} == zebras
        assert both.concepts()[0].images >= first.concepts()[0].images
    again = run("index", photographs, "--like", light_index, "--index", new, code=1)
    assert "holds an index already" in again.stderr


def test_a_shard_more_is_a_folder_more(run, photographs, tmp_path):
    """With residuals, which are coded by the same quantiser."""
    (tmp_path / "all").mkdir()
    with_residuals(tmp_path / "all" / "a")
    run("index", photographs, "--like", tmp_path / "all", "--index", tmp_path / "all" / "b")
    with Index(tmp_path / "all") as both:
        assert both.search(like=45, mode="sparse", k=1)[0].id == 45


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--l1", "0.4"), "--l1 is that of the index which --like names"),
        (("--no-refit",), "--refit is that"),
        (("--dictionary", "nouns"), "--dictionary is that"),
        (("--no-vectors",), "--no-vectors is that"),
    ],
)
def test_options_that_contradict_the_other_index_are_refused(run, light_index, photographs, tmp_path, more, said):
    told = run("index", photographs, "--like", light_index, "--index", tmp_path / "x", *more, code=2)
    assert said in told.stderr
    assert not (tmp_path / "x").exists()


def test_like_needs_pictures_and_the_same_encoder(run, light_index, small_encoder_dir, photographs, tmp_path):
    at = ("--like", light_index, "--index", tmp_path / "x")
    assert "--like needs a PATH" in run("index", *at, code=2).stderr
    (tmp_path / "empty").mkdir()
    assert "no pictures in" in run("index", tmp_path / "empty", *at, code=1).stderr
    (tmp_path / "empty" / "a.png").write_bytes(b"none")
    assert "none of the 1 picture files" in run("index", tmp_path / "empty", *at, code=1).stderr
    other = run("index", photographs, *at, "--encoder", small_encoder_dir, code=1)
    assert "was built with encoder" in other.stderr
    run("index", photographs, *at)  # goes on where that was left without pictures
