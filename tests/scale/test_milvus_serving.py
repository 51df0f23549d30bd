"""The page and the REST interface over an index that a Milvus server holds."""

from __future__ import annotations

import json
import re
import shlex
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs the extra milvus")

from milvus import build_bundled, running
from serving import served

from indexer.milvus import parse_address
from search.index import Index


def get(url: str, data: bytes | None = None) -> tuple[str, str]:
    """The kind of an answer, and its text."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, {"Origin": url[: url.find("/", 8)]})) as answer:
            return answer.headers["Content-Type"], answer.read().decode(errors="replace")
    except urllib.error.HTTPError as e:
        return str(e.code), e.read().decode()


def test_pages_are_served(tmp_path):
    with running(tmp_path / "server") as (store, process):
        build_bundled(parse_address(store), 150)
        with served("--store", store) as (address, _):
            assert 'src="/thumbnail/' in get(f"{address}/?text=a+dog&all=true")[1]
            assert get(f"{address}/thumbnail/1.jpg")[0] == "image/jpeg"
            assert get(f"{address}/thumbnail/3.jpg")[0] == "404"
            for page in ("picture/7?for=a+dog", "concepts", "class/cat", "picture/7?without=ship"):
                assert get(f"{address}/{page}")[0] == "text/html; charset=utf-8", page
            assert "is the server's to tell" in get(f"{address}/state")[1].replace("&#39;", "'")
            assert "is no index folder" in get(f"{address}/api/doctor", b"")[1]
            hits = json.loads(get(f"{address}/api/search?text=a+dog&k=3&all=true")[1])["hits"]
            with Index(store) as index:
                assert [hit["id"] for hit in hits] == [hit.id for hit in index.search("a dog", k=3, all=True).hits]
                index.remove([hits[0]["id"]])
            again = json.loads(get(f"{address}/api/search?text=a+dog&k=2&all=true")[1])["hits"]
            assert [hit["id"] for hit in again] == [hit["id"] for hit in hits[1:]]
            process.kill()
            process.wait()
            status, told = get(f"{address}/api/search?text=a+dog")
            assert (status, "does not answer" in told) == ("409", True)


def test_the_commands_of_the_page_run_as_they_are_written(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    page = (
        (Path(__file__).parents[2] / "docs/scale.md").read_text(encoding="utf-8").partition("## Serving from Milvus")[2]
    )
    commands = re.findall(r"^sparsight (.*--store milvus:photos\.db)$", page, re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        assert run(*shlex.split(command)).stdout
