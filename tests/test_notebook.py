"""Answers in a notebook and as tables."""

from __future__ import annotations

import base64
import os
import pty
import subprocess
import sys
from html.parser import HTMLParser

import pytest

import training.terminal as terminal
from search.index import Index
from search.tables import COLUMNS


class Read(HTMLParser):
    """The pictures and the texts of a page; what is opened has to be closed."""

    def __init__(self, html: str):
        super().__init__()
        self.pictures: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        assert not {"src", "href"} & set(held) or held["src"].startswith("data:"), "nothing is loaded"
        if tag == "img":
            self.pictures.append(held["src"])
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts += [data.strip()] if data.strip() else []


def test_an_answer_shows_its_pictures_and_concepts(small_index, small_encoder_dir):
    with Index(small_index, encoder=str(small_encoder_dir), device="cpu") as index:
        found = index.search("cat", k=3, all=True)
        page = Read(found._repr_html_())
        thumbnails = index.store.thumbnails([hit.id for hit in found])
        assert [base64.b64decode(src.split(",")[1]) for src in page.pictures] == [thumbnails[h.id] for h in found]
        assert all(part.name in page.texts for hit in found for part in hit.concepts[:3])
        edit = index.edit(3, with_={"dark cat": 0.3})
        assert len(Read(edit._repr_html_()).pictures) == 16
        for shown in (index.explain(3, "cat"), index.classify(3)):
            assert Read(shown._repr_html_()).texts
    assert Read(found._repr_html_()).texts  # the index is closed: what was found is still told


def test_what_is_shown_is_no_html(light_index):
    with Index(light_index) as index:
        page = index.explain(3, "<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in page
    assert "<script>alert(1)</script>" in Read(page).texts


def test_hits_as_tables(light_index):
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    with Index(light_index) as index:
        found, nothing = index.search("truck", k=4, all=True), index.search("truck", labels="cat", forbid="cat", k=1)
    table = found.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert table["id"].tolist() == [hit.id for hit in found]
    assert table["concepts"][0] == {c.name: c.contribution for c in found[0].concepts}
    assert found.to_arrow().to_pylist() == [hit.to_dict() for hit in found]
    assert isinstance(found.to_arrow(), arrow.Table)
    for answer in (found, nothing):
        assert list(answer.to_pandas().columns) == list(answer.to_arrow().schema.names) == COLUMNS
        assert len(answer.to_pandas()) == len(answer.to_arrow()) == len(answer)


@pytest.mark.parametrize(("share", "drawn"), [(1, "█" * 12), (-0.5, "█" * 6), (0.01, "▏"), (0, ""), (9, "█" * 12)])
def test_a_bar_is_as_long_as_its_share(share, drawn):
    assert terminal.bar(share) == drawn


@pytest.mark.parametrize(
    ("setting", "coloured", "drawn"),
    [({}, True, True), ({"NO_COLOR": "1"}, False, True), ({"LC_ALL": "C"}, False, False)],
)
def test_bars_are_drawn_on_a_terminal_that_can(setting, coloured, drawn):
    code = (
        "from training.terminal import bar_table; print(bar_table([['a', '+1'], ['b', '-1']], [1, -1], ['', 'x'], 1))"
    )
    ours, theirs = pty.openpty()
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "PYTHONUTF8")}
    environment = plain | {"PYTHONIOENCODING": "ascii" if "LC_ALL" in setting else "utf-8", "TERM": "xterm"} | setting
    subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environment, check=True)
    os.close(theirs)
    out = os.read(ours, 10_000).decode()
    assert ("\x1b[32m" in out and "\x1b[31m" in out) == coloured
    assert ("█" in out) == drawn
