"""What is passed over in a folder of pictures, and told: folders nobody means, kinds that are not read, patterns."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.pictures.files import LIMIT, PictureError, decode, formats
from indexer.pictures.passed import Excluded, check_patterns, nobody_means, summarised
from indexer.store import Store
from indexer.store.meta import parse_meta
from training.errors import CallError

JUNK = (
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/a.jpg", "$RECYCLE.BIN/S-1/a.jpg", "__MACOSX/._a.jpg",
    "lost+found/a.jpg", ".thumbnails/a.jpg", ".Trash-1000/files/a.jpg", "System Volume Information/a.jpg",
    "Catalog Previews.lrdata/0/a.jpg", "My.photoslibrary/resources/derivatives/a.jpg", ".picasaoriginals/a.jpg",
    "._a.jpg", ".dtrash/files/a.jpg", "sub/@EADIR/a.jpg",
)  # fmt: skip
UNREAD = ("a.CR2", "a.cr3", "b.NEF", "c.mov", "d.psd", "e.svg", "sub/f.dng")
TAKEN = (
    "a.jpg",
    "My.photoslibrary/originals/0/b.jpg",
    "sub/c.png",
    "derivatives/d.jpg",
    "private/x/e.jpg",
    "résumé/f.jpg",
)


@pytest.fixture
def album(tmp_path) -> Path:
    for i, name in enumerate((*JUNK, *UNREAD, *TAKEN)):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (7 * i, 90, 200 - 7 * i)).save(path, "PNG")
    (tmp_path / "album" / "notes.txt").write_text("notes")
    return tmp_path / "album"


def held(index: Path, root: Path) -> list[str]:
    with Store(index) as store:
        return sorted(str(Path(row.path).relative_to(root)) for row in store.images())


def lines(stderr: str, start: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith(start)]


def test_what_nobody_means_is_passed_over_and_told(run, album, tmp_path):
    said = run("index", album, "--index", tmp_path / "i").stderr
    assert held(tmp_path / "i", album) == sorted(TAKEN)
    assert lines(said, "not read: ") == ["not read: 1 .cr2, 1 .cr3, 1 .dng, 1 .mov, 1 .nef, 1 .psd, 1 .svg"]
    (passed,) = lines(said, "passed over: ")
    for name in (
        "2 @eaDir",
        "1 #recycle",
        "1 $RECYCLE.BIN",
        "1 __MACOSX",
        "1 lost+found",
        "1 .thumbnails",
        "1 *.lrdata",
    ):
        assert name in passed
    with Store(tmp_path / "i") as store:
        skipped = dict(store.skipped())
    assert {str(album / name) for name in UNREAD} <= set(skipped)
    assert skipped[str(album / "a.CR2")] == ".cr2 files are not read"
    assert str(album / "notes.txt") not in skipped
    again = run("add", album, "--index", tmp_path / "i")
    assert f"0 added, 0 changed, 0 moved, 0 duplicates, {len(TAKEN)} unchanged" in again.stdout
    assert lines(again.stderr, "not read: ") == lines(said, "not read: ")


def test_a_folder_of_nothing_that_is_read_says_so(run, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.CR2").write_bytes(b"raw")
    stderr = run("index", tmp_path / "raw", "--index", tmp_path / "i", code=1).stderr
    assert "no pictures in" in stderr
    assert "not read: 1 .cr2" in stderr


def test_patterns_are_kept_with_the_index(run, album, tmp_path):
    at = ("--index", tmp_path / "i")
    run("index", album, "--exclude", "private", "--exclude", "sub/*.png", "--exclude", "re\u0301sume\u0301", *at)
    expected = sorted(set(TAKEN) - {"private/x/e.jpg", "sub/c.png", "résumé/f.jpg"})
    assert held(tmp_path / "i", album) == expected
    for path in (album, album / "private", album / "private" / "x", album / "private/x/e.jpg", album / "sub"):
        said = run("add", path, *at)
        assert "0 added" in said.stdout
        assert "excluded by" in said.stderr
    run("add", album, "--exclude", "d.jpg", *at)
    assert held(tmp_path / "i", album) == expected, "what the index holds stays"
    run("remove", album / "derivatives", *at)
    assert "0 added" in run("add", album, *at).stdout, "what was removed does not come back"
    kept = json.loads(run("sql", "SELECT value FROM meta WHERE key = 'exclude'", "--json", *at).stdout)
    assert json.loads(kept["value"]) == ["private", "sub/*.png", "re\u0301sume\u0301", "d.jpg"]
    run("export", tmp_path / "out", *at)
    run("import", tmp_path / "out", "--index", tmp_path / "j")
    with Store(tmp_path / "j") as store:
        assert len(store.meta.exclude) == 4


def test_patterns_hold_through_a_link_to_the_folder(run, album, tmp_path):
    (tmp_path / "link").symlink_to(album)
    at = ("--index", tmp_path / "i")
    run("index", tmp_path / "link", "--exclude", "private", "--exclude", "sub/*.png", *at)
    expected = sorted(set(TAKEN) - {"private/x/e.jpg", "sub/c.png"})
    for path in (album, tmp_path / "link", tmp_path / "link" / "private", tmp_path / "link" / "sub"):
        assert "0 added" in run("add", path, *at).stdout
    assert held(tmp_path / "i", album) == expected


@pytest.mark.parametrize("pattern", ["", "/", ".", "*", "**/*", "a\nb"])
def test_patterns_that_are_none(run, album, tmp_path, pattern):
    with pytest.raises(CallError):
        check_patterns([pattern])
    assert "--exclude" in run("index", album, "--exclude", pattern, "--index", tmp_path / "i", code=2).stderr


def test_patterns_need_a_folder(run, tmp_path):
    assert "--exclude needs a PATH" in run("index", "--exclude", "x", "--index", tmp_path / "i", code=2).stderr


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("x", "/r/x/a.png", True), ("x", "/r/a/x", True), ("x", "/r/xy/a.png", False), ("*.gif", "/r/a/b.gif", True),
        ("a/b", "/r/a/b/c.png", True), ("a/b", "/r/c/a/b/c.png", False), ("/r/a", "/r/a/c.png", True),
        ("a/", "/r/a/c.png", True), ("./a/b", "/r/a/b", True), ("[ab].png", "/r/c/b.png", True),
        ("r", "/r/a.png", False), ("X", "/r/x", False),
    ],
)  # fmt: skip
def test_what_a_pattern_names(pattern, path, matches):
    assert bool(Excluded("/r", (pattern,)).reason(path, "/r")) == matches


def test_below_another_folder_than_the_index_patterns_name_names(tmp_path):
    excluded = Excluded("/r", ("x",))
    assert excluded.reason("/x/other/x/a.png", "/x/other")
    assert not excluded.reason("/x/other/a.png", "/x/other")


def test_names_of_people_s_own_folders_are_taken():
    for name in (
        "/r/Trash Polka",
        "/r/cache",
        "/r/resources",
        "/r/derivatives",
        "/r/eaDir",
        "/r/thumbnails",
        "/r/Thumbs up",
    ):
        assert nobody_means(name) is None


def test_the_summary_keeps_what_has_a_reason_of_its_own():
    lines, rest = summarised([("/a", "it is empty"), ("/b.cr2", ".cr2 files are not read")])
    assert (lines, rest) == (["not read: 1 .cr2"], [("/a", "it is empty")])


def test_an_index_that_knows_no_patterns_is_read(light_index):
    from indexer.store.meta import LATER

    with Store(light_index) as store:
        rows = store.meta.rows()
        del rows["exclude"]
        assert parse_meta(rows, without=LATER) == store.meta


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("old", ["sub/old", "old"]),
        ("old/scans", ["old/scans"]),
        ("old//scans/", ["old/scans"]),
        ("./old/../old/scans", ["old/scans"]),
        ("**/scans", ["old/scans", "sub/old/scans"]),
        ("**/old", ["sub/old", "old"]),
        ("old/**", ["old"]),
        ("a[1]", ["a[1]"]),
        ("[", ["["]),
        ("~/pictures/old", ["old"]),
        ("{top}/old", ["old"]),
        ("{link}/old", ["old"]),
        ("{link}/*/scans", ["old/scans"]),
    ],
)
def test_a_pattern_means_what_it_seems_to(run, tmp_path, monkeypatch, pattern, left):
    """However it is written; and what is added from elsewhere is left out alike."""
    top, link = tmp_path / "pictures", tmp_path / "link"
    folders = ("old/scans", "old/new", "sub/old/scans", "a[1]", "[", "rest")
    for root in (top, tmp_path / "other"):
        for i, folder in enumerate(folders):
            (root / folder).mkdir(parents=True)
            Image.new("RGB", (20, 10), (9 * i, 90, 30 if root == top else 200)).save(root / folder / "p.png")
    link.symlink_to(top)
    monkeypatch.setenv("HOME", str(tmp_path))
    given = pattern.format(top=top, link=link)
    expected = [f"{folder}/p.png" for folder in folders if not any(f"{folder}/".startswith(f"{x}/") for x in left)]
    index = tmp_path / "i"
    said = run("index", link, "--encoder", "bundled", "--exclude", given, "--index", index).stderr
    assert held(index, top) == sorted(expected)
    assert "leaves nothing out" not in said
    if not pattern.startswith(("~", "{")):
        run("add", tmp_path / "other", "--index", index)
        assert [p.removeprefix("../other/") for p in beside(index, top)] == sorted(expected)


def beside(index: Path, root: Path) -> list[str]:
    with Store(index) as store:
        paths = [os.path.relpath(row.path, root) for row in store.images()]
    return sorted(path for path in paths if path.startswith(".."))


def test_a_pattern_that_leaves_nothing_out_is_told(run, album, tmp_path):
    said = run("index", album, "--encoder", "bundled", "--exclude", "nowhere", "--index", tmp_path / "i").stderr
    assert "note: --exclude nowhere leaves nothing out" in said


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_heic_is_read_with_the_extra(turn, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    corners = np.array([[[220, 30, 30], [30, 200, 30]], [[30, 30, 220], [200, 200, 30]]], np.uint8)
    pixels = corners.repeat(40, 0).repeat(60, 1)  # 120 × 80, a colour in each corner
    exif = Image.Exif()
    exif[274] = turn
    out, formats_now = io.BytesIO(), formats()
    heif.from_pillow(Image.fromarray(pixels)).save(out, quality=95, exif=exif.tobytes())
    assert "HEIF" in formats_now
    found = np.asarray(decode(out.getvalue()), np.int64)
    expected = np.rot90(pixels, {1: 0, 3: 2, 6: 3, 8: 1}[turn]).astype(np.int64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 8
    monkeypatch.setenv(LIMIT, "9000")
    with pytest.raises(PictureError, match="at most 9000 pixels"):
        decode(out.getvalue())


def test_a_folder_of_heic(run, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    for name, colour in (("IMG_0001.HEIC", (200, 20, 20)), ("b.heif", (20, 20, 200))):
        heif.from_pillow(Image.new("RGB", (64, 48), colour)).save(tmp_path / "made.heif")
        (tmp_path / "album").mkdir(exist_ok=True)
        (tmp_path / "made.heif").rename(tmp_path / "album" / name)
    (tmp_path / "album" / "c.HEIC").write_bytes(b"no picture")
    said = run("index", tmp_path / "album", "--index", tmp_path / "i").stderr
    assert held(tmp_path / "i", tmp_path / "album") == ["IMG_0001.HEIC", "b.heif"]
    assert "c.HEIC" in said
