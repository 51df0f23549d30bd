"""Folders of pictures: reading ahead, labels, vocabularies, and the whole path over them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from indexer.coding.dictionary import (
    INSULTS,
    NOUNS,
    PEOPLE,
    Dictionary,
    concepts_of,
    meaningful,
    merge_same,
    read_nouns,
    read_words,
)
from indexer.pictures.folders import Picture, find_pictures, folder_labels, in_order, read_pictures
from indexer.store import DATABASE, Store
from training.data.cifar10 import CLASSES
from training.errors import SparsightError


def red(*size: int) -> Image.Image:
    return Image.new("RGB", size or (40, 30), (200, 30, 30))


def test_thumbnails_keep_the_shape(tmp_path):
    red(400, 100).save(tmp_path / "wide.png")
    picture = next(read_pictures([str(tmp_path / "wide.png")], np.asarray, 32, ahead=1))
    assert isinstance(picture, Picture)
    assert Image.open(io.BytesIO(picture.thumbnail)).size == (128, 32)


def test_the_order_is_that_of_the_paths(album):
    paths, _ = find_pictures(album)
    assert paths == sorted(paths, key=os.fsencode)
    results = list(read_pictures(paths, np.asarray, 32, ahead=4, workers=4))
    assert [r.path for r in results] == paths


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_than_a_window_of_pictures_is_held(ahead):
    lock, held, most = threading.Lock(), 0, 0

    def do(i: int) -> int:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        time.sleep(0.001 * (i % 3))
        return i

    results = []
    for i in in_order(do, range(40), workers=4, ahead=ahead):
        with lock:
            held -= 1
        results.append(i)
    assert results == list(range(40))
    assert most <= ahead


def test_a_fault_in_a_thread_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda i: 1 // i, [1, 0, 1], workers=2, ahead=2))


def test_labels_of_folders(tmp_path):
    paths = [str(tmp_path / p) for p in ("top.png", "fire_engine/1.png", "tabby-cat/a/b/2.png", "__/3.png")]
    assert folder_labels(paths, tmp_path) == ([None] * 4, [None, "fire engine", "tabby cat", "__"])
    paths = [str(tmp_path / p) for p in ("test/cat/1.png", "train/dog/2.png", "train/3.png", "4.png")]
    assert folder_labels(paths, tmp_path) == (["test", "train", "train", None], ["cat", "dog", None, None])


# The whole path, through the command line.


@pytest.fixture(scope="module")
def album(pictures, tmp_path_factory) -> Path:
    """Sixty pictures of the small encoder's classes, in class folders; one without a class, one damaged."""
    root = tmp_path_factory.mktemp("album")
    for i in range(60):
        folder = root / CLASSES[pictures.labels[i]]
        folder.mkdir(exist_ok=True)
        kind = ("png", "bmp", "webp")[i % 3]
        Image.fromarray(pictures.pixels[i]).save(folder / f"{i:03d}.{kind}", lossless=True)
    Image.fromarray(pictures.pixels[60]).save(root / "new\nline.png")
    (root / "cat" / "zero.jpg").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def album_index(run, album, small_encoder_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("album-index")
    args = ["index", album, "--labels", "folders", "--encoder", small_encoder_dir, "--index", folder]
    result = run(*args)
    assert "61 pictures" in result.stdout
    assert f"skipped, listed in table `skipped` of {folder / DATABASE}: 1\n" in result.stderr
    assert "zero.jpg: it is empty" in result.stderr
    return folder


def test_the_index_holds_the_folder(album, album_index):
    with Store(album_index) as store:
        rows = store.images()
        assert [row.path for row in rows] == sorted(row.path for row in rows)
        assert all(Path(row.path).is_file() for row in rows)
        assert {row.label for row in rows} == {*CLASSES, None}
        assert all(row.label == Path(row.path).parent.name for row in rows if row.label)
        assert store.classes().names == sorted(CLASSES)
        assert len(store.thumbnails(range(len(rows)))) == len(rows)
        assert store.skipped() == [(str(album / "cat" / "zero.jpg"), "it is empty")]
        assert all(row.content_hash == hashlib.sha256(Path(row.path).read_bytes()).hexdigest() for row in rows)
        assert all(row.file_bytes == Path(row.path).stat().st_size for row in rows)
    files = [".lock", "chance.json", DATABASE, "thumbnails-1.bin", "vectors-1.f32"]
    assert sorted(f.name for f in album_index.iterdir()) == files


def test_the_embeddings_are_those_of_the_files_pixels(album_index, pictures, small_encoder_dir):
    from training.encoders import open_encoder

    with Store(album_index) as store:
        paths, X = [Path(row.path) for row in store.images()], store.embeddings()
    rows = [i for i, p in enumerate(paths) if p.stem.isdigit()]
    expected = open_encoder(str(small_encoder_dir)).encode_images(pictures.pixels[[int(paths[i].stem) for i in rows]])
    np.testing.assert_allclose(X[rows], expected, atol=1e-5)


def test_search_finds_and_shows_the_pictures(run, album, album_index, tmp_path):
    ship = next((album / "ship").iterdir())
    for mode in ("dense", "sparse"):
        at = ("-k", 5, "--mode", mode, "--json", "--index", album_index)
        assert len(run("search", "a ship", "--all", *at).stdout.splitlines()) == 5
        hits = [json.loads(line) for line in run("search", "--picture", ship, *at).stdout.splitlines()]
        assert mode == "sparse" or hits[0]["path"] == str(ship)
        assert all(Path(h["path"]).is_file() for h in hits)
    sheet = tmp_path / "sheet.png"
    found = run("search", "--picture", album / "new\nline.png", "-k", 3, "--index", album_index, "--sheet", sheet)
    assert len(found.stdout.splitlines()) == 4, "a newline in a path is not one in the table"
    assert sheet.is_file()


def test_a_printed_path_names_its_picture(run, album_index, album, monkeypatch):
    hit = json.loads(run("search", "a cat", "-k", 1, "--all", "--json", "--index", album_index).stdout)
    assert json.loads(run("explain", hit["path"], "--json", "--index", album_index).stdout)["target"] == hit["path"]
    again = run("search", "--picture", hit["path"], "--mode", "dense", "-k", 1, "--json", "--index", album_index).stdout
    assert json.loads(again)["id"] == hit["id"]
    monkeypatch.chdir(album)
    relative = os.path.relpath(hit["path"], album)
    assert json.loads(run("explain", relative, "--json", "--index", album_index).stdout)["target"] == hit["path"]


def test_classify_uses_the_folders_as_classes(run, album_index, album):
    with Store(album_index) as store:
        classes, T = store.classes().names, store.classes().T
        rows, X = store.images(), store.embeddings()
    targets = [row.path for row in rows[:9]]
    out = run("classify", *targets, "--mode", "dense", "--json", "--index", album_index).stdout.splitlines()
    assert [json.loads(line)["label"] for line in out] == [classes[i] for i in (X[:9] @ T.T).argmax(1)]


def test_eval_reports_on_few_pictures(run, album_index, tmp_path):
    stdout = run("eval", "--index", album_index, "--out", tmp_path).stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dataset"]["split"] == "all labelled"
    assert report["dataset"]["n"] == 60
    with Store(album_index) as store:
        classes, T = store.classes().names, store.classes().T
        rows, X = store.images(), store.embeddings()
    right = [classes[j] == row.label for row, j in zip(rows, (X @ T.T).argmax(1), strict=True) if row.label]
    assert report["dense"]["accuracy"] == pytest.approx(np.mean(right))
    assert {"SQ8", "SQ4", "matching pursuit, 2 concepts"} <= {r["name"] for r in report["baselines"]}
    left_out = {r["name"]: r["reason"] for r in report["baselines_left_out"]}
    assert {"PQ16", "PQ8", "OPQ16", "CSR, 2 atoms"} <= set(left_out)
    assert "left out: PQ8, 60 pictures to train on, 256 are needed" in stdout
    assert all("term_precision" not in r for r in (*report["baselines"], *report["sweep"]))
    assert "corruptions" not in report
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert "data:image/jpeg" in (tmp_path / "index.html").read_text()


@pytest.fixture(scope="module")
def plain_index(run, album, small_encoder_dir, tmp_path_factory) -> Path:
    """The album without labels, through a vocabulary."""
    words = tmp_path_factory.mktemp("words") / "words.txt"
    words.write_text("\ufeff# colours\nship\n\ncat\n  dark   dog\nCat\n", encoding="utf-8")
    folder = tmp_path_factory.mktemp("plain-index")
    result = run("index", album, "--dictionary", words, "--encoder", small_encoder_dir, "--index", folder)
    assert "passed over 1 blank line(s) and 1 repetition(s)" in result.stderr
    with Store(folder) as store:
        assert [c.name for c in store.concepts()] == ["ship", "cat", "dark dog"]
    return folder


def test_without_labels_classes_are_asked_for(run, plain_index, album):
    picture = album / "new\nline.png"
    assert "--classes" in run("classify", picture, "--index", plain_index, code=2).stderr
    out = run("classify", picture, "--classes", "cat,ship", "--json", "--index", plain_index).stdout
    assert json.loads(out)["label"] in ("cat", "ship")
    e = json.loads(run("explain", picture, "--json", "--index", plain_index).stdout)
    assert e["text"] == "the picture itself"
    assert e["dense_score"] == pytest.approx(1, abs=1e-5)
    assert sum(c["contribution"] for c in e["concepts"]) == pytest.approx(e["sparse_score"], abs=1e-5)


def test_folders_that_cannot_be_indexed(run, small_encoder_dir, album, tmp_path):
    empty, damaged, file = tmp_path / "empty", tmp_path / "damaged", tmp_path / "file.png"
    empty.mkdir()
    (empty / "notes.txt").write_text("no picture")
    damaged.mkdir()
    (damaged / "zero.png").write_bytes(b"")
    red().save(file)
    index = tmp_path / "index"
    at = ("--encoder", small_encoder_dir, "--index", index)
    assert "no pictures in" in run("index", empty, *at, code=1).stderr
    assert "No such file" in run("index", tmp_path / "none", *at, code=1).stderr
    assert "Not a directory" in run("index", file, *at, code=1).stderr
    assert "zero.png: it is empty" in run("index", damaged, *at, code=1).stderr
    assert "no class folders" in run("index", tmp_path / "damaged", "--labels", "folders", *at, code=1).stderr
    assert "needs a PATH" in run("index", "--labels", "folders", *at, code=2).stderr
    assert "not both" in run("index", album, "--bundled", *at, code=2).stderr
    assert not (index / DATABASE).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds 0 concept"),
        (b"\n \n# only a comment\n", "holds 0 concept"),
        (b"cat\n", "holds 1 concept"),
        (b"cat\nCAT\n  cat \n", "holds 1 concept"),
        (b"\xff\xfe\x00d", "not UTF-8"),
        (b"cat\x00\x01\ndog\n", "not text"),
        (None, "Is a directory"),
    ],
)
def test_vocabularies_that_give_no_dictionary(run, small_encoder_dir, album, tmp_path, content, message):
    words = tmp_path / "words.txt"
    if content is None:
        words.mkdir()
    else:
        words.write_bytes(content)
    at = ("--encoder", small_encoder_dir, "--index", tmp_path / "index", "--dictionary", words)
    stderr = run("index", album, *at, code=1).stderr
    assert message in stderr
    assert "encode" not in stderr.replace("encoder", ""), "found before the pictures are encoded"


def test_a_vocabulary_is_read_once_each_with_a_note(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# mine\n\nfire  engine\nCat\ncat\n \n", encoding="utf-8")
    notes: list[str] = []
    assert read_words(path, notes.append) == ["fire engine", "Cat"]
    assert notes == [f"{path}: passed over 2 blank line(s) and 1 repetition(s)"]


def test_lines_that_are_the_same_as_far_as_they_are_read_are_told(run, small_encoder_dir, album, tmp_path):
    long = "a very long description of a thing " * 12
    words = tmp_path / "words.txt"
    words.write_text(f"cat\nship\n{long}one\n{long}other\n")
    at = ("--encoder", small_encoder_dir, "--index", tmp_path / "index", "--dictionary", words)
    notes = [line for line in run("index", album, *at).stderr.splitlines() if line.startswith("note: ")]
    assert sum("left out: " in line for line in notes) == 1
    (same,) = [line for line in notes if "the same as far as they are read" in line]
    assert "one'" in same
    assert "other'" in same
    said = run("search", f"{long} and a dog", "--json", "--index", tmp_path / "index")
    assert "and a dog'" in next(line for line in said.stderr.splitlines() if "left out: " in line)
    assert all(json.loads(line) for line in said.stdout.splitlines())
    assert "left out: " not in run("search", "a cat", "--index", tmp_path / "index").stderr


def test_the_nouns_are_many_distinct_and_no_insults():
    nouns = read_nouns()
    assert len(nouns) > 8000
    assert len({n.casefold() for n in nouns}) == len(nouns)
    assert {"dalmatian", "windmill", "pizza", "acoustic guitar", *PEOPLE} <= set(nouns)
    assert not INSULTS & set(nouns)
    assert not {"gook", "mulatto", "working girl"} & set(nouns)  # of WordNet's file of persons


def test_the_default_dictionary_depends_on_the_encoder(small_encoder_dir, tmp_path):
    from training.encoders import open_encoder
    from training.encoders.files import CONCEPTS

    assert concepts_of("auto", open_encoder(str(small_encoder_dir)))[0] == "terms"
    bare = tmp_path / "bare"
    shutil.copytree(small_encoder_dir, bare)
    (bare / CONCEPTS).unlink()
    source, concepts = concepts_of("auto", open_encoder(str(bare)))
    assert source == NOUNS
    assert list(concepts) == read_nouns()
    with pytest.raises(SparsightError, match="--dictionary nouns"):
        concepts_of("terms", open_encoder(str(bare)))


def test_concepts_that_mean_nothing_to_an_encoder_are_left_out(small_encoder_dir):
    from training.encoders import open_encoder

    encoder = open_encoder(str(small_encoder_dir))
    own = encoder.encode_concepts(list(encoder.concepts))
    far = np.linalg.svd(own)[2][-1:]  # unlike all of its concepts
    words = Dictionary(
        ["nothing", "cat", "aye"], [["void"], [], []], [None, "cat", None], np.vstack([far, own[3], -far]), "x"
    )
    assert meaningful(words, encoder) is words  # no cosine is known below which a text means nothing
    encoder.known_from = 0.9
    kept = meaningful(words, encoder)
    assert (kept.names, kept.aliases, kept.parents, kept.source) == (["cat"], [[]], ["cat"], "x")
    np.testing.assert_array_equal(kept.D, words.D[1:2])


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), m=st.integers(0, 40), block=st.integers(1, 12))
def test_merging_by_blocks_is_merging_one_by_one(seed, m, block):
    rng = np.random.default_rng(seed)
    D = rng.normal(size=(m, 3)).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True) if m else 1
    names = [str(i) for i in range(m)]
    merged = merge_same(Dictionary(names, [[f"{n}'"] for n in names], [None] * m, D, "x"), 0.95, block)
    kept: list[int] = []
    aliases: dict[int, list[str]] = {}
    for i in range(m):
        cosines = [float(D[j] @ D[i]) for j in kept]
        if cosines and max(cosines) >= 0.95:
            aliases[kept[int(np.argmax(cosines))]].append(names[i])
        else:
            kept.append(i)
            aliases[i] = [f"{i}'"]
    assert merged.names == [names[i] for i in kept]
    assert merged.aliases == [aliases[i] for i in kept]
    np.testing.assert_array_equal(merged.D, D[kept])


def test_ctrl_c_leaves_the_earlier_index(album, album_index, small_encoder_dir):
    """While pictures are encoded: the batches that were kept are all that is new."""
    before = {f.name: f.read_bytes() for f in album_index.iterdir()}
    command = ["index", album, "--encoder", small_encoder_dir, "--index", album_index, "--device", "cpu"]
    run = [sys.executable, "-c", INTERRUPTED, *map(str, command)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "Error: interrupted"
    assert {f.name: f.read_bytes() for f in album_index.iterdir()} == before


INTERRUPTED = """
import os, signal
from indexer.cli import builds
from training.encoders.trained import TrainedEncoder
signal.signal(signal.SIGINT, signal.default_int_handler)  # what was started in the background ignores it
encode = TrainedEncoder.encode_images
def interrupted(self, pixels):
    os.kill(os.getpid(), signal.SIGINT)
    return encode(self, pixels)
TrainedEncoder.encode_images = interrupted
builds()
"""
