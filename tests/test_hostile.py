"""Hostile files in a folder of pictures: each is taken in its defined way or skipped with its reason, in bounded
memory and time, from the reading of one file to an index of all of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hostile import FILES, NAMES, NO_UTF8, NOISE, PICTURE, Expected, jpeg, large_pictures, make_folder, saved
from PIL import Image

from indexer.encode import encode_files
from indexer.pictures.files import decode, quiet_pillow, read_picture
from indexer.pictures.folders import Picture, Skipped, find_pictures, read_pictures
from indexer.store import DATABASE, Store
from indexer.store.journal import Journal
from search.index import Index
from training.encoders import open_encoder
from training.errors import CallError, SparsightError
from training.files import path_text
from training.terminal import printable

MB = 1 << 20
PROBE = """
import json, os, signal, sys
from indexer.pictures.folders import find_pictures, read_pictures
from indexer.pictures.files import quiet_pillow
from training.encoders.square import square
def most(paths):
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        with quiet_pillow():
            list(read_pictures(paths, lambda picture: square(picture, 32), 32, ahead=1, workers=1))
        os._exit(0)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_maxrss * 1024
_, base = most([])
for path in find_pictures(sys.argv[1])[0]:
    status, used = most([path])
    print(json.dumps([path, status, used - base, os.path.getsize(path) if os.path.isfile(path) else 0]))
"""
UNPRIVILEGED = """
import json, os, sys
from PIL import Image
import training.device
from indexer.pictures.folders import find_pictures, read_pictures
Image.init()  # loads its modules, which may lie where others cannot read
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
paths, skipped = find_pictures(sys.argv[1])
results = [*skipped, *read_pictures(paths, lambda picture: picture, 32, ahead=1)]
print(json.dumps({os.path.basename(r.path): getattr(r, "reason", "read") for r in results}))
"""


def child(code: str, *args: object) -> list:
    """What a Python of its own prints, as JSON lines."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Path, dict[str, Expected]]:
    root = tmp_path_factory.mktemp("hostile") / "pictures"
    return root, make_folder(root)


@pytest.fixture(scope="module")
def results(hostile) -> dict[str, Picture | Skipped]:
    paths, skipped = find_pictures(hostile[0])
    with quiet_pillow():
        read = list(read_pictures(paths, np.asarray, 32, ahead=5, workers=3))
    return {os.path.relpath(r.path, hostile[0]): r for r in (*read, *skipped)}


def assert_seen(pixels: np.ndarray, expected: np.ndarray, tolerance: int) -> None:
    """Away from the borders of its cells, a picture has their colours."""
    h, w = expected.shape[:2]
    for i in range(h):
        for j in range(w):
            ys, xs = (slice(round((k + 0.2) * s / n), max(round((k + 0.8) * s / n), 1)) for k, s, n in
                      ((i, len(pixels), h), (j, pixels.shape[1], w)))  # fmt: skip
            assert np.abs(pixels[ys, xs].astype(int) - expected[i, j]).max() <= tolerance, pixels[ys, xs][0, 0]


def test_nothing_is_lost_and_nothing_comes_of_itself(hostile, results):
    assert set(results) == {name for name, expected in hostile[1].items() if expected is not None}


@pytest.mark.parametrize("name", [n for n, (_, e) in FILES.items() if isinstance(e, np.ndarray)], ids=printable)
def test_taken_with_its_colours(hostile, results, name):
    expected, picture = hostile[1], results[name]
    assert isinstance(picture, Picture), picture
    lossy = 5 if name.endswith((".jpg", ".jpeg", ".avif", "jpeg.tif")) else 0
    tolerance = 1 if name == "lab.tif" else lossy
    assert picture.prepared.dtype == np.uint8
    assert_seen(picture.prepared, expected[name], tolerance)
    shown = Image.open(BytesIO(picture.thumbnail))
    assert shown.format == "JPEG"
    assert max(shown.size) <= 128
    assert_seen(np.asarray(shown), expected[name], tolerance + 3)


@pytest.mark.parametrize("name", [n for n, (_, e) in FILES.items() if isinstance(e, str)])
def test_skipped_with_its_reason(hostile, results, name):
    root, expected = hostile
    skipped = results[name]
    assert isinstance(skipped, Skipped), "it was taken"
    assert skipped.reason.startswith(expected[name])
    assert "\n" not in skipped.reason
    with pytest.raises(SparsightError, match="cannot read the picture"):
        read_picture(root / name, 32)


def test_one_file_takes_little_memory_and_time(hostile):
    """Beside its own bytes, of which there may be three copies: never what a header, a stream or an IFD promises."""
    seen = child(PROBE, hostile[0])
    assert len(seen) > 100
    faults = [(path, status) for path, status, *_ in seen if status]
    assert not faults, "it crashed, or took longer than a minute"
    greedy = [(path, used // MB) for path, _, used, size in seen if used > 60 * MB + 3 * min(size, 200 * MB)]
    assert not greedy


def test_a_camera_s_jpeg_is_decoded_at_a_fraction(tmp_path, monkeypatch):
    """108 million pixels are more than the limit, but what is decoded of them is not; what cannot be shrunk while it is
    decoded is refused, until the limit is lifted."""
    Image.new("RGB", (12_000, 9_000), "red").save(tmp_path / "a.jpg")
    Image.new("L", (9_000, 9_000), 200).save(tmp_path / "b.png")
    used = {Path(path).name: used for path, _, used, _ in child(PROBE, tmp_path)}
    assert used["a.jpg"] < 100 * MB
    assert read_picture(tmp_path / "a.jpg", 224).size == (1500, 1125)
    with pytest.raises(SparsightError, match=r"at most 50000000 pixels.*SPARSIGHT_MAX_PIXELS"):
        read_picture(tmp_path / "b.png", 224)
    monkeypatch.setenv("SPARSIGHT_MAX_PIXELS", "81000000")
    assert min(read_picture(tmp_path / "b.png", 224).size) >= 448
    for wrong in ("x", "-1", "0", "1e9", "9" * 20):
        monkeypatch.setenv("SPARSIGHT_MAX_PIXELS", wrong)
        with pytest.raises(CallError, match="SPARSIGHT_MAX_PIXELS"):
            read_picture(tmp_path / "b.png", 224)


def test_the_largest_pictures_take_less_than_a_gigabyte(tmp_path):
    for name, data in large_pictures().items():
        (tmp_path / name).write_bytes(data)
    seen = child(PROBE, tmp_path)
    assert [status for _, status, *_ in seen] == [0] * 3
    assert 100 * MB < max(used for *_, used, _ in seen) < 1000 * MB


def test_what_may_not_be_read_is_skipped():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        root = Path(name)
        root.chmod(0o755)
        (root / "open.png").write_bytes(PICTURE)
        (root / "closed.png").write_bytes(PICTURE)
        (root / "closed.png").chmod(0)
        for mode in (0o000, 0o400, 0o100):  # no entry; names without files; files without names
            folder = root / f"{mode:o}"
            folder.mkdir()
            (folder / "inside.png").write_bytes(PICTURE)
            folder.chmod(mode | mode >> 3 | mode >> 6)
        try:
            denied = "Permission denied"
            assert child(UNPRIVILEGED, root) == [
                {"open.png": "read", "closed.png": denied, "0": denied, "100": denied, "inside.png": denied}
            ]
        finally:
            for folder in root.iterdir():
                folder.chmod(0o755)


def test_what_vanishes_midway_is_skipped(tmp_path):
    root = tmp_path / "pictures"
    (root / "folder").mkdir(parents=True)
    names = ["a.png", "b.png", "c.png", "folder/d.png"]
    for name in names:
        (root / name).write_bytes(PICTURE)
    paths, _ = find_pictures(root)
    reading = read_pictures(paths, np.asarray, 32, ahead=1, workers=1)
    assert isinstance(next(reading), Picture)
    (root / "c.png").unlink()
    shutil.rmtree(root / "folder")
    assert [getattr(r, "reason", "read") for r in reading] == ["read", *["No such file or directory"] * 2]


def test_many_scans_are_judged_by_their_own_count():
    data = saved(NOISE, "JPEG", progressive=True)
    decode(data + b"\xff\xda\0\2" * 1000)  # another file behind the picture, as cameras put it, is none of it
    decode(jpeg((0xFFE2, b"\xff\xda\0\2" * 1000)))


# The whole path, through the command line.


@pytest.fixture(scope="module")
def outcome(hostile) -> dict[str, str]:
    """What becomes of each path in an index: "" where it is taken, or how its reason begins."""
    root, expected = hostile
    outcome: dict[str, str] = {}
    first: dict[str, str] = {}
    for path in sorted((str(root / n) for n, e in expected.items() if e is not None), key=os.fsencode):
        text, reason = path_text(path), expected[os.path.relpath(path, root)]
        if isinstance(reason, str):
            outcome[text] = reason
        else:
            of = first.setdefault(hashlib.sha256(Path(path).read_bytes()).hexdigest(), text)
            outcome[text] = "" if of == text else f"it is a duplicate of {of}"
    return outcome


@pytest.fixture(scope="module")
def index(run, hostile, outcome, tmp_path_factory) -> Path:
    """Through the bundled encoder: the only one that needs no training."""
    folder = tmp_path_factory.mktemp("hostile-index")
    result = run("index", hostile[0], "--index", folder)
    skipped = sum(map(bool, outcome.values()))
    assert f"listed in table `skipped` of {folder / DATABASE}: {skipped}" in result.stderr
    assert f"and {skipped - 5} more" in result.stderr
    assert result.stderr.replace("\n", "").replace("\r", "").isprintable()
    return folder


def test_the_index_holds_what_was_taken_and_what_was_skipped(index, outcome):
    with Store(index) as store:
        taken, skipped = [row.path for row in store.images()], store.skipped()
        assert sorted(taken) == sorted(path for path, reason in outcome.items() if not reason)
        assert sorted(path for path, _ in skipped) == sorted(path for path, reason in outcome.items() if reason)
        assert all(reason.startswith(outcome[path]) for path, reason in skipped)
        assert len(store.thumbnails(range(len(taken)))) == len(taken)


def test_links_are_duplicates(outcome, hostile):
    root = path_text(hostile[0])
    assert outcome[f"{root}/link.png"] == f"it is a duplicate of {root}/a.jpg"
    assert not outcome[f"{root}/link out.png"]


def test_a_second_look_changes_nothing(run, index, hostile, outcome):
    out = run("add", hostile[0], "--index", index).stdout
    taken = sum(not reason for reason in outcome.values())
    assert ": 0 added, 0 changed, 0 moved, " in out
    assert f" {taken} unchanged, " in out


def test_search_prints_every_path_as_json_and_as_one_line(run, index, outcome):
    n = sum(not reason for reason in outcome.values())
    for mode in ("dense", "sparse"):
        at = ("search", "a ship", "-k", 10 * n, "--mode", mode, "--index", index)
        hits = [json.loads(line) for line in run(*at, "--json").stdout.splitlines()]
        assert len({h["path"] for h in hits}) == len(hits)
        assert mode == "sparse" or len(hits) == n
        shown = run(*at).stdout.splitlines()
        assert len(shown) == len(hits) + 1
        assert all(line.isprintable() for line in shown)


def test_every_name_finds_its_picture(index, hostile, monkeypatch):
    root = hostile[0]
    monkeypatch.chdir(root)
    with Store(index) as store:
        held = {row.path: row.image_id for row in store.images()}
    with Index(index) as searcher:
        for name in NAMES:
            for target in (str(root / name), path_text(root / name), os.path.join(".", name)):
                assert searcher.picture_id(target) == held[path_text(root / name)]


@pytest.mark.parametrize("name", ["new\nline\r\n.png", "\x1b[31m\x1b]0;title\x07.png", NO_UTF8], ids=printable)
def test_a_strange_name_is_explained_as_json_and_in_printable_lines(run, index, hostile, name):
    path = hostile[0] / name
    out = run("explain", path, "--for", "a cat", "--json", "--index", index).stdout
    assert json.loads(out)["target"] == path_text(path)
    shown = run("explain", path, "--index", index).stdout
    assert all(line.isprintable() for line in shown.splitlines())


def test_names_like_options_and_ids(run, index, hostile, monkeypatch):
    root = hostile[0]
    monkeypatch.chdir(root)
    explained = lambda *args: json.loads(run("explain", "--json", "--index", index, *args).stdout)["target"]  # noqa: E731
    for name in ("--help.png", "7.png"):
        assert explained("--", name) == str(root / name)
    with Store(index) as store:
        assert explained("7") == store.images([7])[0].path, "it is an id"
    assert explained("./7") == "./7", "it is a file"


def test_of_two_paths_that_read_the_same_the_second_is_skipped(tmp_path):
    """An index holds paths as text, where bytes that are no UTF-8 are spelt out, as a name may be of itself."""
    root, index = tmp_path / "pictures", tmp_path / "index"
    root.mkdir()
    index.mkdir()
    for number, name in enumerate((r"\xe9.png", os.fsdecode(b"\xe9.png"))):
        (root / name).write_bytes(PICTURE + bytes([number]))
    encoder = open_encoder()
    read = encode_files(find_pictures(root)[0], encoder, Journal(index, encoder), 8)
    path = str(root / r"\xe9.png")
    assert {p: seen.content_hash for p, seen in read.seen.items()} == {
        path: hashlib.sha256(PICTURE + b"\0").hexdigest()
    }
    assert read.skipped == [(path, "another picture's path reads the same")]


def test_a_fault_names_a_strange_file_in_one_printable_line(run, index, tmp_path):
    for name in ("\x1b[31m\x07.png", "new\nline.png", "\u202e.png", os.fsdecode(b"\xff.png")):
        (tmp_path / name).write_bytes(b"")
        stderr = run("search", "--picture", tmp_path / name, "--index", index, code=1).stderr
        assert "it is empty" in stderr
        assert stderr.strip().isprintable()
