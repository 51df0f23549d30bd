"""Residuals: what they hold is what numpy says they hold, wherever they are asked for and whatever happens to an index.
And an index without embeddings answers all that its codes can.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import Job, check_whole, run_job
from PIL import Image
from scipy import sparse

from indexer.build import Source, write_index
from indexer.config import CoderConfig, IndexConfig
from indexer.residual import Quantiser, Shape, fit_quantiser, learn_quantiser, read_description
from indexer.store import DATABASE, Described, Store
from indexer.store.doctor import examine
from indexer.store.repair import repair
from indexer.store.residuals import read_residuals
from search.index import Index
from training.data.cifar10 import CLASSES
from training.encoders import load_test_embeddings, open_encoder
from training.errors import CallError, SparsightError

N, FACTORY = 150, "OPQ8_64,PQ8x4"


def build(folder: Path, **settings: object) -> Path:
    """An index of the first bundled embeddings."""
    encoder = open_encoder()
    bundled = load_test_embeddings(encoder)
    described = Described(
        paths=[f"/pictures/{i:03d}.png" for i in range(N)],
        labels=[CLASSES[y] for y in bundled.labels[:N]],
        hashes=[f"{i:064x}" for i in range(N)],
        thumbnails=[b"thumbnail"] * N,
    )
    config = IndexConfig(coder=CoderConfig(l1=0.8, refit=True), **settings)
    write_index(folder, bundled.X[:N], described, encoder, config, Source(dataset="pictures", root="/pictures"))
    return folder


@pytest.fixture(scope="module")
def residual_index(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("residual"), residual=FACTORY)


@pytest.fixture(scope="module")
def small_one(tmp_path_factory) -> Path:
    """Concepts and residuals, and no embeddings."""
    return build(tmp_path_factory.mktemp("small"), residual=FACTORY, vectors=False)


@pytest.fixture(scope="module")
def codes_only(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("codes"), vectors=False)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "index"))


def sql(folder: Path, *statements: str) -> None:
    with duckdb.connect(str(folder / DATABASE)) as con:
        for statement in statements:
            con.execute(statement)


def standing(store: Store) -> np.ndarray:
    """x̂ (n, d) of every picture, from the plain tables alone."""
    A = np.array([row[0] for row in store.rows("SELECT direction FROM residual_axes ORDER BY axis")])
    rows = store.rows("SELECT part, code, centroid FROM residual_centroids")
    centroids = {(part, code): np.array(centroid) for part, code, centroid in rows}
    V = store.codes().toarray().astype(np.float64) @ store.dictionary()
    for i, (scale, code) in enumerate(store.rows("SELECT scale, code FROM residuals ORDER BY image_id")):
        halves = [half for byte in code for half in (byte & 15, byte >> 4)]
        V[i] = scale * (V[i] + np.concatenate([centroids[part, half] for part, half in enumerate(halves)]) @ A)
    return V


# The quantiser


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_a_code_is_the_nearest_and_comes_back(bits, parts, width, seed):
    rng = np.random.default_rng(seed)
    p, d = parts * width, parts * width + 2
    A = np.linalg.qr(rng.normal(size=(d, p)))[0].T.astype(np.float32)
    q = Quantiser(A, rng.normal(size=(parts, 2**bits, width)).astype(np.float32))
    R, t = rng.normal(size=(7, d)).astype(np.float32), rng.normal(size=d)
    codes = q.encode(R)
    assert codes.shape == (7, q.size) == (7, -(-parts * bits // 8))
    assert codes.dtype == np.uint8
    places = q.unpacked(codes)
    np.testing.assert_array_equal(q.packed(places), codes)
    Y = (R @ A.T).reshape(7, parts, 1, width)
    distances = np.square(Y - q.C[None]).sum(3)  # (7, parts, 2**bits); of two that are equally near either will do
    chosen = np.take_along_axis(distances, places[:, :, None], 2)[:, :, 0]
    np.testing.assert_allclose(chosen, distances.min(2), atol=1e-5)
    by_table = q.tables(t)[np.arange(parts), places].sum(1)
    np.testing.assert_allclose(by_table, q.decode(codes) @ t, atol=1e-4)


def test_it_loses_no_more_than_faiss_does():
    import faiss

    rng = np.random.default_rng(0)
    R = (rng.normal(size=(3000, 32)) * np.geomspace(1, 0.05, 32)) @ np.linalg.qr(rng.normal(size=(32, 32)))[0]
    R = np.ascontiguousarray(R, np.float32)

    def loss(decoded: np.ndarray) -> float:
        return float(np.square(R - decoded).sum() / np.square(R).sum())

    for description in ("PQ8x4", "OPQ8,PQ8x4", "OPQ8_24,PQ8x4"):
        index = faiss.index_factory(32, description)
        if "OPQ" in description:  # it would turn for 256 centroids a part: ten times as long, and no better for 16
            trainer = faiss.ProductQuantizer(read_description(description, 32).axes, 8, 4)
            faiss.downcast_VectorTransform(index.chain.at(0)).pq = trainer
        index.train(R)
        ours = fit_quantiser(R, read_description(description, 32))
        assert loss(ours.decode(ours.encode(R))) < 1.03 * loss(index.sa_decode(index.sa_encode(R)))
        assert ours.size == index.sa_code_size()


def test_what_is_learnt_from_is_bounded_and_the_same_each_time(monkeypatch):
    from indexer import residual

    monkeypatch.setattr(residual, "LEARN", 200)
    monkeypatch.setattr(residual, "BLOCK", 64)
    X = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    W = sparse.csr_matrix((500, 3), dtype=np.float32)
    a, b = (learn_quantiser(X, W, np.zeros((3, 8), np.float32), "PQ2x4") for _ in range(2))
    assert a.fingerprint == b.fingerprint
    with pytest.raises(CallError, match="needs at least 16 pictures, and there are 15"):
        learn_quantiser(X[:15], W[:15], np.zeros((3, 8), np.float32), "PQ2x4")


def test_descriptions():
    assert read_description("PQ16", 256) == Shape(16, 8, 256, "")
    assert read_description("OPQ24_240,PQ24", 256) == Shape(24, 8, 240, "OPQ")
    assert read_description("PCA64,PQ16x4np", 256) == Shape(16, 4, 64, "PCA")
    assert read_description("PQ16x4", 256).size == 8


NONE = "SQ8 Flat IVF16,PQ16 PQ PQ0 PQ16x0 PQ16x9 PQ999999999 OPQ24,PQ24 OPQ8,PQ16 OPQ16_512,PQ16 PCA0,PQ1 RQ8x8 ½"


@pytest.mark.parametrize("description", [*NONE.split(), " ", "PQ16, PQ16"])
def test_what_is_no_product_quantiser_is_refused_before_any_work(run, tmp_path, description):
    line = run("index", "--bundled", "--residual", description, "--index", tmp_path / "i", code=2).stderr.splitlines()[
        -1
    ]
    assert line.startswith("Error: --residual")
    assert not (tmp_path / "i").exists()


def test_no_vectors_and_a_dense_index_exclude_each_other(run, tmp_path):
    line = run("index", "--bundled", "--no-vectors", "--dense", "PQ16", "--index", tmp_path / "i", code=2).stderr
    assert "--dense is an index of the embeddings, which --no-vectors leaves out" in line


# Answers


@pytest.fixture(scope="module")
def index(residual_index):
    with Index(residual_index) as index:
        yield index


def parts_sum(hit) -> float:
    return sum(c.contribution for c in hit.concepts) + hit.rest


def test_sparse_scores_are_those_of_what_is_kept(index):
    V = standing(index.store)
    np.testing.assert_allclose(np.linalg.norm(V, axis=1), 1, atol=1e-3)
    assert (V * index.store.embeddings()).sum(1).mean() > 0.97
    for text in ("a fire engine", "a cat"):
        t = index.embed_text(text)
        hits = index.search(text, mode="sparse", k=20, all=True).hits
        expected = np.sort(V @ t)[::-1][:20]
        np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)
        np.testing.assert_allclose([V[hit.id] @ t for hit in hits], expected, atol=1e-5)
        np.testing.assert_allclose([parts_sum(hit) for hit in hits], expected, atol=1e-5)
        assert any(abs(hit.rest) > 1e-3 for hit in hits)


def test_filters_and_what_is_not_wanted(index):
    V, text, less = standing(index.store), index.embed_text("a truck"), index.embed_text("a fire engine")
    labels = [row.label for row in index.store.images()]
    allowed = np.array([label in ("truck", "automobile") for label in labels])
    u = less - max(0.0, float(less @ text)) * text
    scores = np.where(allowed, V @ text - np.maximum(0, V @ u), -9)
    rules = {"labels": ["truck", "automobile"], "mode": "sparse", "all": True}
    hits = index.search("a truck", without="a fire engine", **rules).hits
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:10], atol=1e-5)
    np.testing.assert_allclose([parts_sum(hit) for hit in hits], [hit.score for hit in hits], atol=1e-9)


def test_concepts_alone_are_asked_by_their_weights(index):
    name = max(index.concepts(), key=lambda c: c.images).name
    weights = index.store.codes()[:, index.concept_id(name)].toarray()[:, 0]
    hits = index.search(concepts=name, k=5).hits
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(weights)[::-1][:5], atol=1e-6)
    assert [hit.rest for hit in hits] == [0] * 5
    mixed = index.search("a truck", concepts=name, mode="sparse", k=5).hits
    np.testing.assert_allclose([parts_sum(hit) for hit in mixed], [hit.score for hit in mixed], atol=1e-9)


def test_neighbours_are_nearer_to_the_dense_ones(index):
    X, V = index.store.embeddings(), standing(index.store)
    W = index.store.codes() @ index.store.dictionary()
    W = W / np.linalg.norm(W, axis=1, keepdims=True)

    def found(A: np.ndarray) -> np.ndarray:
        return np.argsort(-(A @ A.T) + 9 * np.eye(N), axis=1)[:, :10]

    def recall(A: np.ndarray) -> float:
        return float(np.mean([len({*a} & {*b}) for a, b in zip(found(A), found(X), strict=True)]) / 10)

    assert recall(V) > recall(W) + 0.1
    ids = [hit.id for hit in index.search(like=7, mode="sparse", k=11).hits]
    assert {*ids} == {*np.argsort(-(V @ X[7]))[:11]}


def test_an_explanation_adds_up(index):
    V, t = standing(index.store), index.embed_text("a boat")
    e = index.explain(7, "a boat")
    assert e.sparse_score == pytest.approx(float(V[7] @ t), abs=1e-5)
    assert sum(c.contribution for c in e.concepts) + e.rest == pytest.approx(e.sparse_score, abs=1e-6)
    assert e.cosine == pytest.approx(float(V[7] @ index.store.embeddings_of([7])[0]), abs=1e-4)
    found = index.classify(7)
    assert sum(c.contribution for c in found.concepts) + found.rest == pytest.approx(found.scores[0][1], abs=1e-6)
    T = index.store.classes().T
    np.testing.assert_allclose(sorted(T @ V[7]), sorted(score for _, score in found.scores), atol=1e-5)


def test_an_edit_changes_the_concepts_and_keeps_the_residual(index):
    store = index.store
    kept, t = read_residuals(store), index.embed_text("a boat")
    ids, weights = store.codes_of([7])[0]
    w = np.zeros(store.meta.m)
    w[ids[1:]] = weights[1:]
    v = w @ store.dictionary() + kept.decoded(np.array([7]))[0]
    v /= np.linalg.norm(v)
    name = index.concepts()[ids[0]].name
    after = index.edit(7, without=name, text="a boat").after
    np.testing.assert_allclose(sorted(s for _, s in after.scores), sorted(store.classes().T @ v), atol=1e-4)
    assert after.rank == 1 + (np.delete(standing(store) @ t, 7) > v @ t).sum()
    label = store.images([7])[0].label
    assert isinstance(index.flips(label), list)


def test_a_picture_from_outside_is_coded_as_those_of_the_index_are(index, run, residual_index, tmp_path):
    x = index.store.embeddings_of([3])[0]
    code = index.engine.encode(x)
    np.testing.assert_allclose(index.engine.decode(code), standing(index.store)[3], atol=2e-3)
    lines = run("explain", "7", "--for", "a boat", "--index", residual_index).stdout
    assert "the rest (residual)" in lines
    assert "the concepts and the residual hold" in lines
    hit = json.loads(run("search", "a boat", "--mode", "sparse", "-k", "1", "--json", "--index", residual_index).stdout)
    assert abs(hit["rest"]) > 0


# An index without embeddings


def test_without_embeddings_what_codes_can_answer_is_answered(run, small_one, residual_index):
    with Index(small_one) as small, Index(residual_index) as whole:
        assert (small_one / small.store.meta.vectors_file).stat().st_size == 0
        for call in (
            lambda index: index.search("a truck", mode="sparse"),
            lambda index: index.search(concepts=index.concepts()[3].name),
        ):
            assert [(h.id, h.score) for h in call(small)] == [(h.id, h.score) for h in call(whole)]
        V = standing(small.store)
        assert [h.id for h in small.search(like=7)] == np.argsort(-(V @ V[7]), kind="stable")[:10].tolist()
        assert small.classify(7) == replace(whole.classify(7), familiarity=None, notes=[])
        assert [h.id for h in small.search("a truck")] == [h.id for h in whole.search("a truck", mode="sparse")]
        e = small.explain(7, "a boat")
        assert (e.dense_score, e.cosine) == (None, None)
        assert e.concepts == whole.explain(7, "a boat").concepts
        scores = standing(small.store) @ small.embed_text("a boat")
        assert e.rank == 1 + (scores > scores[7]).sum()
        assert len(small.search("a truck", diverse=0.5)) == len(small.search("a truck", group_by="near")) == 10
        assert small.edit(7, without=small.explain(7).concepts[0].name).after.neighbours
    stdout = run("explain", "7", "--for", "a boat", "--index", small_one).stdout
    assert "by its sparse score" in stdout
    assert "dense" not in stdout
    stdout = run("search", "--like", "7", "-k", "3", "--index", small_one).stdout
    assert stdout.splitlines()[1].split()[:2] == ["1", "1.000"]


@pytest.mark.parametrize(
    "command",
    [
        ("search", "a truck", "--mode", "dense"),
        ("search", "a truck", "--mode", "hybrid"),
        ("search", "a truck", "--fuse"),
        ("classify", "7", "--mode", "dense"),
        ("export", "OUT", "--tables", "vectors"),
        ("eval", "--out", "OUT"),
    ],
)
def test_without_embeddings_what_needs_them_is_refused_in_one_line(run, small_one, tmp_path, command):
    command = [str(tmp_path / "out") if part == "OUT" else part for part in command]
    stderr = run(*command, "--index", small_one, code=2).stderr
    assert "keeps none" in stderr.splitlines()[-1]


def test_the_page_of_an_index_without_embeddings(small_one):
    from fastapi.testclient import TestClient

    from search.serve.app import application
    from search.serve.asking import Serving
    from search.serve.guard import Door
    from search.serve.holder import Holder, Opening

    door = Door("127.0.0.1", 8321)
    serving = Serving(Holder(Opening(small_one)), small_one / "no-report")
    client = TestClient(application(serving, door), base_url="http://127.0.0.1:8321")
    found = client.get("/?text=truck")
    assert found.status_code == 200
    assert "Which index answers" not in found.text
    refused = client.get("/?text=truck&mode=dense")
    assert (refused.status_code, "keeps none" in refused.text) == (400, True)
    picture = client.get("/picture/7?for=a+boat").text
    assert "and of the residual" in picture
    assert "dense score" not in picture
    assert FACTORY in client.get("/state").text


def test_codes_alone(run, codes_only):
    with Index(codes_only) as index:
        assert index.store.meta.residual == ""
        assert index.search(like=7)[0].score > 0.5
        W = index.store.codes() @ index.store.dictionary()
        t = index.embed_text("a truck")
        assert index.search("a truck", all=True)[0].score == pytest.approx(float((W @ t).max()), abs=1e-3)
        assert index.classify(7).rest == 0
    assert run("doctor", "--index", codes_only).exit_code == 0
    assert "no exact embeddings" not in run("search", "a truck", "--index", codes_only).stdout


# Figures


def test_the_figures_of_a_size():
    from eval.evaluators.residual import Judged, best_at, judge_quantiser, judge_residual, over_seeds
    from indexer.coding import make_dictionary

    encoder = open_encoder()
    X, labels = load_test_embeddings(encoder).X, load_test_embeddings(encoder).labels
    D, T = make_dictionary("terms", encoder).D, encoder.encode_concepts(CLASSES, encoder.templates)
    judged = Judged(X[:600], X[600:1200], T, labels[:600], every=2)
    rows = [judge_residual(judged, D, l1=0.95, description="OPQ8,PQ8x4", seed=seed) for seed in (0, 1)]
    found = over_seeds(rows)
    assert found["low"]["recall_both_coded"] <= found["recall_both_coded"] <= found["high"]["recall_both_coded"]
    assert rows[0]["bytes_per_image"] == pytest.approx(3 * rows[0]["concepts_mean"] + 1 + 4)
    alone = judge_quantiser(judged, "OPQ16,PQ16x4")
    codes = judge_residual(judged, D, l1=0.95, description="")
    assert codes["codebook_bytes"] == 0 < alone["codebook_bytes"] == 4 * (256 * 256 + 16 * 256)
    assert codes["recall_both_coded"] < rows[0]["recall_both_coded"]
    assert codes["cosine"] < rows[0]["cosine"] < 1
    assert best_at([*rows, alone, codes], 7) is codes
    assert best_at([alone], 7) is None
    X32 = X[:600].astype(np.float64)  # the exact embeddings find all of their own neighbours
    exact = judged.figures(X32)
    assert (exact["recall_both_coded"], exact["recall_query_exact"]) == pytest.approx((1, 1), abs=0.01)


# Changes, faults, exports


@pytest.mark.parametrize("vectors", [True, False], ids=["with vectors", "without vectors"])
def test_a_change_keeps_the_residuals_in_step(run, tmp_path, pictures, small_encoder_dir, vectors):
    root, folder = tmp_path / "pictures", tmp_path / "index"
    root.mkdir()
    for i in range(30):
        Image.fromarray(pictures.pixels[i]).save(root / f"{i:02d}.png")
    options = [] if vectors else ["--no-vectors"]
    run("index", root, "--encoder", small_encoder_dir, "--residual", "PQ4x4", *options, "--index", folder)
    for i in range(30, 36):
        Image.fromarray(pictures.pixels[i]).save(root / f"{i:02d}.png")
    run("add", root, "--index", folder)
    run("remove", "3", "4", "--index", folder)
    run("remove", *(str(i) for i in range(10, 24)), "--index", folder)  # so many that the files are compacted
    run("compact", "--index", folder)
    assert run("doctor", "--index", folder).exit_code == 0
    with Store(folder) as store:
        kept = read_residuals(store)
        assert len(store) == len(kept.scales) == 20
        assert store.meta.keeps_vectors == vectors
        V = standing(store)
        np.testing.assert_allclose(np.linalg.norm(V, axis=1), 1, atol=5e-3)
        if vectors:
            X = store.embeddings()
            again = kept.quantiser.encode(X - store.codes() @ store.dictionary())
            assert (again != kept.coded.codes).any(1).mean() < 0.1
            assert (V * X).sum(1).min() > 0.9
    with Index(folder) as index:
        assert {hit.id for hit in index.search(like=35, mode="sparse", k=20)} == {*index.store.image_ids.tolist()}


@pytest.mark.parametrize("command", ["add", "remove"])
def test_whatever_kills_a_change_the_residuals_are_of_its_pictures(command, tmp_path, pictures, small_encoder_dir):
    root, made = tmp_path / "pictures", tmp_path / "made"
    root.mkdir()
    from indexer.build import index_folder

    for i in range(20):
        Image.fromarray(pictures.pixels[i]).save(root / f"{i:02d}.png")
    index_folder(made, root, open_encoder(str(small_encoder_dir)), IndexConfig(residual="PQ4x4", vectors=False))
    for i in range(20, 23):
        Image.fromarray(pictures.pixels[i]).save(root / f"{i:02d}.png")
    work = tmp_path / "work"
    job = Job(command, work, root, small_encoder_dir, targets=("2",))

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(made, work)

    def sizes() -> int:
        with Store(work) as store:
            kept = read_residuals(store)
            assert len(kept.scales) == len(store)
            np.testing.assert_allclose(np.linalg.norm(standing(store), axis=1), 1, atol=5e-3)
            return len(store)

    fresh()
    done = run_job(job)
    assert done.kind == "done"
    after = sizes()
    committed = done.steps.index(f"after replace {DATABASE}") + 1
    for k in (committed - 2, committed - 1, committed, committed + 1):
        fresh()
        assert run_job(job, k).kind == "killed"
        assert sizes() == (20 if k < committed else after)
    assert run_job(job).kind == ("done" if command == "add" else "fault")  # the picture is gone already
    assert {f.status for f in examine(work)} <= {"ok", "note"}


HARMS = [
    "DELETE FROM residuals WHERE image_id = 5",
    "INSERT INTO residuals SELECT 500, 1, code FROM residuals LIMIT 1",
    "UPDATE residuals SET code = '\\x00'::BLOB WHERE image_id = 5",
    "UPDATE residuals SET code = NULL WHERE image_id = 5",
    "UPDATE residuals SET scale = 2 * scale WHERE image_id = 5",
    "UPDATE residuals SET scale = 'nan' WHERE image_id = 5",
    "DELETE FROM residual_axes WHERE axis = 2",
    "UPDATE residual_axes SET direction = (SELECT direction FROM residual_axes LIMIT 1)",
    "DELETE FROM residual_centroids WHERE part = 1 AND code = 3",
    "UPDATE residual_centroids SET centroid = [0.5] WHERE part = 1 AND code = 3",
    "UPDATE residual_centroids SET code = code + 1",
    "DELETE FROM residual_centroids",
    "UPDATE meta SET value = 'abc' WHERE key = 'residual_fingerprint'",
    "DROP TABLE residuals",
]


@pytest.mark.parametrize("harm", HARMS)
def test_harm_is_found_and_mended_where_there_are_embeddings(residual_index, tmp_path, harm):
    folder = copied(residual_index, tmp_path)
    sql(folder, harm)
    assert {f.check for f in examine(folder) if f.status == "fault"} == {"database" if "DROP" in harm else "residuals"}
    if "scale = 2" not in harm:
        with pytest.raises(SparsightError, match=r"residual|a row has no code"), Store(folder) as store:
            read_residuals(store)
    assert any("residuals again" in line for line in repair(folder))
    assert {f.check for f in examine(folder) if f.status == "fault"} == set()
    with Store(folder) as store, Store(residual_index) as before:
        assert (standing(store) * standing(before)).sum(1).mean() > 0.99
    check_whole(folder)


@pytest.mark.parametrize("harm", [HARMS[0], HARMS[-1], "DELETE FROM posting_blocks"])
def test_without_embeddings_a_repair_that_cannot_be_is_refused(small_one, tmp_path, harm):
    folder = copied(small_one, tmp_path)
    sql(folder, harm)
    before = (folder / DATABASE).read_bytes()
    assert {f.status for f in examine(folder)} >= {"fault"}
    with pytest.raises(SparsightError, match=r"make the index anew .*nothing was changed"):
        repair(folder)
    assert (folder / DATABASE).read_bytes() == before


def test_without_embeddings_a_repair_drops_what_is_not_whole(small_one, tmp_path):
    folder = copied(small_one, tmp_path)
    sql(folder, "UPDATE images SET path = NULL WHERE image_id = 5")
    repair(folder)
    assert {f.check for f in examine(folder) if f.status == "fault"} == set()
    with Store(folder) as store, Store(small_one) as before:
        assert len(store) == N - 1
        np.testing.assert_allclose(standing(store), np.delete(standing(before), 5, 0), atol=1e-6)


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
@pytest.mark.parametrize("vectors", [True, False])
def test_an_export_comes_back_whole(run, residual_index, small_one, tmp_path, format, vectors):
    folder = residual_index if vectors else small_one
    run("export", tmp_path / "out", "--format", format, "--index", folder)
    assert (tmp_path / "out" / f"vectors.{format}").exists() == vectors
    run("import", tmp_path / "out", "--index", tmp_path / "new")
    with Store(tmp_path / "new") as store, Store(folder) as before:
        assert (store.meta.residual, store.meta.keeps_vectors) == (FACTORY, vectors)
        np.testing.assert_array_equal(standing(store), standing(before))
        if vectors:
            np.testing.assert_array_equal(store.embeddings(), before.embeddings())
    assert run("doctor", "--index", tmp_path / "new").exit_code == 0


@pytest.mark.parametrize(
    ("table", "harm", "line"),
    [
        ("residuals", "DELETE FROM t WHERE image_id = 3", "not one for each picture"),
        ("residuals", "UPDATE t SET code = '\\x00'::BLOB", "has not 4 bytes"),
        ("residuals", "UPDATE t SET scale = -1", "a scale is below 0"),
        ("residual_axes", "UPDATE t SET direction = list_transform(direction, lambda x: 2 * x)", "not orthonormal"),
        ("residual_axes", "UPDATE t SET direction = direction[:5]", "export again"),
        ("residual_centroids", "DELETE FROM t WHERE part = 0", "export again"),
        ("residual_centroids", "UPDATE t SET centroid = list_transform(centroid, lambda x: x / 0)", "not finite"),
        ("meta", "UPDATE t SET value = 'PQ8x4' WHERE key = 'residual'", "no PQ8x4"),
        ("meta", "UPDATE t SET value = 'SQ8' WHERE key = 'residual'", "no product quantiser"),
        ("meta", "UPDATE t SET value = 'perhaps' WHERE key = 'keeps_vectors'", "keeps_vectors"),
        ("residuals", "", "has no residuals.parquet"),
        ("codes", "", "has no codes.parquet"),
    ],
)
def test_a_damaged_export_is_refused(run, small_one, tmp_path, table, harm, line):
    run("export", tmp_path / "out", "--index", small_one)
    path = tmp_path / "out" / f"{table}.parquet"
    with duckdb.connect() as con:
        con.execute(f"CREATE TABLE t AS FROM '{path}'")
        path.unlink()
        if harm:
            con.execute(harm)
            con.execute(f"COPY t TO '{path}'")
    assert line in run("import", tmp_path / "out", "--index", tmp_path / "new", code=1).stderr
    assert not (tmp_path / "new").exists()


def test_an_export_of_some_tables_of_embeddings_learns_residuals_anew(run, residual_index, tmp_path):
    run("export", tmp_path / "out", "--index", residual_index)
    for path in (tmp_path / "out").glob("residual*"):
        path.unlink()
    run("import", tmp_path / "out", "--index", tmp_path / "new")
    with Store(tmp_path / "new") as store, Store(residual_index) as before:
        assert (standing(store) * standing(before)).sum(1).mean() > 0.99


def test_an_index_from_before_opens_as_it_did(codes_only, light_index, tmp_path):
    folder = copied(light_index, tmp_path)
    keys = "('residual', 'residual_fingerprint', 'keeps_vectors')"
    with Index(folder) as index:
        before = [(h.id, h.score) for h in index.search("a truck", mode="sparse")]
    sql(folder, f"DELETE FROM meta WHERE key IN {keys}")
    with Index(folder) as index:
        assert [(h.id, h.score) for h in index.search("a truck", mode="sparse")] == before
        assert index.store.meta.keeps_vectors
    assert {f.check for f in examine(folder) if f.status == "fault"} == set()
