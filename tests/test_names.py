"""What looks alike is alike: escapes that were printed, accents of two spellings, links; columns and suggestions."""

from __future__ import annotations

import json
from pathlib import Path
from unicodedata import normalize

import pytest
from click.testing import CliRunner
from PIL import Image

from search.index import Index
from sparsight import main
from training.errors import CallError
from training.terminal import printable, table, width

STRANGE = [
    "a\u202fb",
    "tab\there",
    "new\nline",
    "\u202eright to left",
    "zero\u200bwidth",
    "soft\u00adhyphen",
    "back\\slash",
    "\x7f",
]
CAFE = "Café Zoë"


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("names") / "real"
    folder.mkdir()
    names = [*STRANGE, normalize("NFC", f"{CAFE} c"), normalize("NFD", f"{CAFE} d"), "東京", "plain"]
    for i, name in enumerate(names):
        Image.new("RGB", (24, 16), (20 * i, 255 - 20 * i, 7 * i)).save(folder / f"{name}.png")
    (folder.parent / "link").symlink_to(folder)
    return folder


@pytest.fixture(scope="module")
def index(album, small_encoder_dir, tmp_path_factory) -> Path:
    """Built through a link."""
    index = tmp_path_factory.mktemp("index")
    words = index.with_name("words.txt")
    words.write_text("dog\ncat\ntruck\nship\nfire engine\ncafé\n")
    arguments = [
        "index",
        album.parent / "link",
        "--encoder",
        small_encoder_dir,
        "--dictionary",
        words,
        "--index",
        index,
    ]
    assert CliRunner().invoke(main, list(map(str, arguments))).exit_code == 0
    return index


@pytest.mark.parametrize("text", [r"\Uffffffff", r"\ud800", r"\udcff", r"\x00", r"\U0000d800", r"\u12", "\\"])
def test_what_looks_like_an_escape_and_is_none_is_refused_in_one_line(run, index, text):
    for command in (["explain"], ["search", "--picture"], ["classify", "--classes", "cat,dog"]):
        assert "is neither a file nor a picture" in run(*command, text, "--index", index, code=1).stderr
    assert "names no picture" in run("remove", "--dry-run", text, "--index", index, code=2).stderr
    assert "unknown concept" in run("concepts", text, "--index", index, code=2).stderr


def test_fewer_hits_than_asked_for_are_said(run, index, album):
    at, n = ["--index", index, "--json"], len(list(album.iterdir()))
    assert f"note: {n} hits, 99 were asked for" in run("search", "--all", "cat", "-k", 99, *at).stderr
    assert run("search", "--all", "cat", "-k", n, *at).stderr == ""


def test_what_is_printed_is_taken_back(run, index, album, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    found = [
        json.loads(line)
        for line in run("search", "cat", "-k", 99, "--all", "--json", "--index", index).stdout.splitlines()
    ]
    assert len(found) == len(list(album.iterdir()))
    shown = run("search", "cat", "-k", 99, "--all", "--index", index).stdout
    for hit in found:
        name = printable(hit["path"])
        assert name in shown
        for given in (hit["path"], name):
            answer = json.loads(run("explain", given, "--json", "--index", index).stdout)
            assert answer["target"] == hit["path"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_accent_may_be_written_in_two_ways(run, index, album, form):
    for letter in "cd":
        given = normalize(form, str(album / f"{CAFE} {letter}.png"))
        assert json.loads(run("explain", given, "--json", "--index", index).stdout)["label"] is None
    with Index(index) as opened:
        assert opened.concept_id(normalize(form, "CAFÉ")) == 5


def test_a_link_and_what_it_leads_to_are_one_place(run, index, album):
    link = album.parent / "link"
    ids = set()
    with Index(index) as opened:
        for folder in (album, link):
            ids.add(opened.picture_id(str(folder / "plain.png")))
        assert opened.store.meta.root == str(album)
    assert len(ids) == 1
    assert None not in ids
    for folder in (album, link):
        assert "0 added" in run("add", folder, "--index", index).output


def test_columns_align_with_wide_characters():
    names = ["東京.png", "🐴🐴", normalize("NFD", "é"), "ab"]
    lines = table([[name, "end"] for name in names], ["name", "last"]).splitlines()
    assert {width(line[: line.rindex("end")]) for line in lines[1:]} == {10}


def test_a_long_line_is_cut_by_its_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for text in ("東" * 80, "a" * 80, "東a" * 50):
        line = table([[text]], ["x"]).splitlines()[1]
        assert line.endswith("…")
        assert 58 <= width(line) <= 60


def test_an_unknown_concept_suggests_what_is_near_in_meaning(bundled_index):
    with Index(bundled_index) as index:
        for word, near in {
            "poodle": "dog",
            "kitten": "cat",
            "foal": "horse",
            "sloop": "ship",
            "thrush": "bird",
        }.items():
            with pytest.raises(CallError) as e:
                index.concept_id(word)
            suggested = str(e.value).split("near ones: ")[1].split(", ")
            parents = {c.parent for c in index.concepts() if c.name in suggested}
            assert near in parents, e.value
        with pytest.raises(CallError, match="fire engine"):
            index.concept_id("fire engin")


def test_without_its_encoder_an_index_suggests_what_is_spelled_alike(bundled_index, tmp_path):
    with Index(bundled_index, encoder=str(tmp_path / "gone")) as index, pytest.raises(CallError, match="fire engine"):
        index.concept_id("fire engines and more")
