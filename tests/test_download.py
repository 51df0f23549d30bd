"""Models of the hub, downloaded from one on this machine: once, without pickles and code, and on from a break."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import make_folder

from indexer.store import Store
from training.encoders import hub_files, open_encoder
from training.encoders.hub import HubEncoder
from training.encoders.hub_files import FOR_PHOTOGRAPHS, fetch, hub_fingerprint
from training.errors import SparsightError

OTHERS = (  # what stands beside the weights in many a repository
    *(
        "pytorch_model.bin",
        "flax_model.msgpack",
        "tf_model.h5",
        "model.fp16.safetensors",
        "open_clip_model.safetensors",
    ),
    *("onnx/model.onnx", "onnx/config.json", "onnx/model.safetensors", "openvino/model-00001-of-00002.safetensors"),
    *("README.md", "vision_model.safetensors"),
)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub's interface as a snapshot takes; org/tiny alone is there."""

    folder: Path
    asked: list[str]
    breaks: list[int]  # after so many bytes of the weights a connection ends, each once
    sent: list[int]  # bytes of the weights

    def do_GET(self, body: bool = True) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        commit = "c" * 40
        if path.startswith("/api/models/org/tiny/revision/"):
            self._answer(json.dumps({"id": "org/tiny", "sha": commit, "siblings": []}).encode(), {}, body)
        elif path.startswith("/api/models/org/tiny/tree/"):
            files = [
                (f.relative_to(self.folder).as_posix(), f.read_bytes())
                for f in sorted(self.folder.rglob("*"))
                if f.is_file()
            ]
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files
            ]
            self._answer(json.dumps(tree).encode(), {}, body)
        elif path.startswith(f"/org/tiny/resolve/{commit}/"):
            name = path.rpartition("/")[2]
            data = (self.folder / name).read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            self._answer(data, headers, body, is_large=name.endswith(".safetensors"))
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def _answer(self, data: bytes, headers: dict[str, str], body: bool, is_large: bool = False) -> None:
        whole, start = len(data), 0
        if body and (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(found[1])
        self.send_response(206 if start else 200)
        if start:
            headers = {**headers, "Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        for key, value in {**headers, "Content-Length": str(whole - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        broken = is_large and self.breaks
        part = data[start : start + self.breaks.pop()] if broken else data[start:]
        if is_large:
            self.sent.append(len(part))
        self.wfile.write(part)
        if broken:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine that offers a tiny CLIP with a pickle and code beside it, and an empty cache."""
    from huggingface_hub import constants

    copied = make_folder("clip", tmp_path / "clip")
    (copied / "modeling.py").write_text("raise SystemExit")
    for name in OTHERS:
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_bytes(b"the same weights for another program")
    handler = type("Handler", (Hub,), {"folder": copied, "asked": [], "breaks": [], "sent": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # a break is taken up at a multiple of it
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield handler
        server.shutdown()


def test_a_model_of_the_hub_is_fetched_once_without_pickles_and_code(hub):
    encoder = open_encoder("org/tiny")
    assert isinstance(encoder, HubEncoder)
    assert (encoder.name, encoder.source) == ("org/tiny", "org/tiny")
    assert encoder.fingerprint == hub_fingerprint(hub.folder)
    asked = {p.partition("?")[0].rpartition("/resolve/")[2].partition("/")[2] for p in hub.asked if "/resolve/" in p}
    assert asked == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
    }
    assert {f.name for f in fetch("org/tiny").iterdir()} == asked
    hub.asked.clear()
    assert open_encoder("org/tiny").fingerprint == encoder.fingerprint
    assert hub.asked == []


def test_a_model_that_the_hub_does_not_have(hub, tmp_path):
    with pytest.raises(SparsightError, match=r"no encoder org/none.*has no such model") as e:
        open_encoder("org/none")
    assert str(tmp_path / "cache") in str(e.value)


def test_without_a_network_the_cache_answers_and_else_one_line_names_it(run, hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    open_encoder("org/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert open_encoder("org/tiny").name == "org/tiny"
    stderr = run("index", "--encoder", "openai/clip-vit-base-patch32", "--index", tmp_path / "i", code=1).stderr
    assert "openai/clip-vit-base-patch32" in stderr
    assert str(tmp_path / "cache") in stderr


@pytest.fixture
def album(pictures, tmp_path) -> Path:
    (tmp_path / "album").mkdir()
    for i in range(24):
        Image.fromarray(pictures.pixels[i]).resize((60, 40)).save(tmp_path / "album" / f"{i}.jpg")
    return tmp_path / "album"


def test_own_pictures_get_the_hubs_model_through_a_break_in_its_download(run, hub, album, tmp_path, monkeypatch):
    """From an empty cache to hits, by the commands that a person types."""
    monkeypatch.setattr(hub_files, "FOR_PHOTOGRAPHS", FOR_PHOTOGRAPHS._replace(name="org/tiny"))
    size = (hub.folder / "model.safetensors").stat().st_size
    hub.breaks[:] = [size // 3]
    at = ("--index", tmp_path / "i")
    (tmp_path / "words.txt").write_text("\n".join(("cat", "ship", "green field", "snow", "red brick", "a dog")))
    said = run("index", album, "--dictionary", tmp_path / "words.txt", *at).stderr
    assert "org/tiny (MIT licence), of which 605 MB are downloaded, once" in said
    assert sum(hub.sent) < size + 1000  # nothing twice
    assert len(hub.sent) == 2
    with Store(tmp_path / "i") as store:
        assert store.meta.encoder_source == "org/tiny"
    asked = len(hub.asked)
    assert json.loads(run("search", "cat", "-k", 1, "--all", "--json", *at).stdout)["rank"] == 1
    said = run("index", album, "--dictionary", tmp_path / "words.txt", *at).stderr
    assert "downloaded" not in said
    assert len(hub.asked) == asked  # the cache answers


def test_a_download_that_ends_goes_on_when_it_is_called_again(run, hub, album, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_files, "FOR_PHOTOGRAPHS", FOR_PHOTOGRAPHS._replace(name="org/tiny"))
    size = (hub.folder / "model.safetensors").stat().st_size
    config = f"/org/tiny/resolve/{'c' * 40}/config.json"
    hub.breaks[:] = [0] * 8
    (tmp_path / "words.txt").write_text("cat\nship\nsnow\nfrog\n")
    at = ("index", album, "--dictionary", tmp_path / "words.txt", "--index", tmp_path / "i")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its tries
    stderr = run(*at, code=1).stderr
    assert "broke off" in stderr
    assert "call again to go on" in stderr
    assert not (tmp_path / "i").exists()
    hub.breaks.clear()
    asked = hub.asked.count(config)
    run(*at)
    assert sum(hub.sent) == size
    assert hub.asked.count(config) == asked  # what came whole is not fetched again


def test_without_a_hub_the_bundled_encoder_is_taken_and_what_that_means_is_said(run, album, tmp_path):
    said = run("index", album, "--index", tmp_path / "i").stderr  # tests have no network
    assert f"{FOR_PHOTOGRAPHS.name} cannot be had" in said
    assert "ten kinds of things at 32 × 32 pixels" in said
    with Store(tmp_path / "i") as store:
        assert store.meta.encoder_source == "bundled"
    said = run("index", album, "--encoder", "bundled", "--index", tmp_path / "i").stderr
    assert "cannot be had" not in said
