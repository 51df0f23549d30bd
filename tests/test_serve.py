"""The page and the REST interface without a browser: answers, faults, and who is let in."""

from __future__ import annotations

import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from search.index import Index
from search.query import Query, Term
from search.serve.address import Address, link, parameters, typed
from search.serve.app import application
from search.serve.asking import Serving
from search.serve.guard import BODY_BYTES, Door
from search.serve.holder import Holder, Opening

JSON = {"Content-Type": "application/json"}
HOST = "127.0.0.1:8321"
ELSEWHERE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}


def client_of(folder, report=None, door: Door | None = None) -> TestClient:
    door = door or Door("127.0.0.1", 8321)
    app = application(Serving(Holder(Opening(folder)), report or folder / "no-report"), door)
    return TestClient(app, base_url=f"http://{HOST}", follow_redirects=False)


@pytest.fixture(scope="module")
def client(small_index) -> TestClient:
    return client_of(small_index)


@pytest.fixture(scope="module")
def concept(small_index) -> str:
    """The concept that most pictures hold."""
    with Index(small_index) as index:
        return max(index.concepts(), key=lambda c: c.images).name


def jpeg_of(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).resize((90, 60)).save(out, "JPEG")
    return out.getvalue()


# Pages


@pytest.mark.parametrize("path", ["/", "/?text=ship", "/?text=ship&beside=1", "/picture/3", "/picture/3?for=ship"])
@pytest.mark.parametrize("more", ["", "&rare=2&all=1&k=100"])
def test_a_page_is_small_and_asks_for_nothing_outside(client, path, more):
    page = client.get(path + (more if path.startswith("/?") else ""))
    assert page.status_code == 200
    assert len(page.content) <= 150_000
    assert_only_ours(page.text)


def assert_only_ours(html: str) -> None:
    """No address of another site, no script or style in the page itself (the policy would forbid it)."""

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            held = dict(attributes)
            assert not {"style", "onclick", "onload"} & held.keys(), (tag, held)
            assert tag != "style"
            assert tag != "script" or held.get("src")
            for name in ("src", "href", "action"):
                assert (held.get(name) or "/").startswith(("/", "#")), held

    Reader().feed(html)


def test_a_search_shows_the_hits_of_the_engine(client):
    found = client.get("/api/search", params={"text": "a photo of a ship", "k": 5}).json()
    page = client.get("/", params={"text": "a photo of a ship", "k": 5}).text
    shown = re.findall(r'class="picture" href="/picture/(\d+)', page)
    assert [int(i) for i in shown] == [hit["id"] for hit in found["hits"]]
    assert len(shown) == 5


def test_what_is_typed_becomes_the_address(client):
    answer = client.get("/", params={"q": "truck -fire engine #red", "path": "", "rare": "0"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?text=truck&text=fire+engine%3D-1&concept=red"
    answer = client.get("/", params=[("text", "truck=1"), ("w", "-0.5"), ("q", "")])
    assert answer.headers["location"] == "/?text=truck%3D-0.5"
    answer = client.get("/", params=[("text", "truck=1"), ("w", "1"), ("q", "ship"), ("sign", "minus")])
    assert answer.headers["location"] == "/?text=truck&text=ship%3D-1"


def test_nothing_typed_leads_to_the_start(client):
    assert client.get("/?q=").headers["location"] == "/"


TERMS = st.builds(
    Term,
    st.sampled_from(["text", "picture", "concept"]),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip),
    st.floats(-100, 100).filter(lambda w: w != 0).map(lambda w: float(f"{w:g}")),
)
NAMES = st.lists(st.text("ab c*=&+", min_size=1, max_size=6).filter(str.strip), max_size=2).map(tuple)
QUERIES = st.builds(
    Query,
    terms=st.lists(TERMS, min_size=1, max_size=4).map(
        lambda terms: tuple(t for kind in ("text", "picture", "concept") for t in terms if t.kind == kind)
    ),
    require=NAMES,
    forbid=NAMES,
    labels=NAMES,
    splits=NAMES,
    path=st.none() | st.just("*/a b?"),
    mode=st.sampled_from([None, "hybrid"]),
    fuse=st.booleans(),
    diverse=st.sampled_from([0.0, 0.25]),
    group_by=st.sampled_from([None, "near"]),
    k=st.integers(1, 1000),
    all=st.booleans(),
)


@given(QUERIES)
def test_an_address_holds_the_whole_query(query):
    held: dict = {}
    for name, value in parameters(query):
        many = isinstance(Address.model_fields[name].get_default(call_default_factory=True), list)
        held[name] = [*held.get(name, []), value] if many else value
    assert Address.model_validate(held).query() == query


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("truck", [Term("text", "truck")]),
        ("t-shirt", [Term("text", "t-shirt")]),
        ("truck=0.5", [Term("text", "truck", 0.5)]),
        ("−fire engine", [Term("text", "fire engine", -1.0)]),
        ("#red -#dark blue", [Term("concept", "red"), Term("concept", "dark blue", -1.0)]),
        (" - ", []),
        ("", []),
    ],
)
def test_what_is_typed_is_understood(text, terms):
    assert typed(text) == terms


def test_names_are_escaped(client):
    page = client.get("/", params={"text": "<script>alert(1)</script>"})
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;" in page.text


def test_concepts_are_found_and_have_pages(client, concept):
    assert concept in client.get("/concepts", params={"find": concept[:4]}).text
    assert "No concept has that" in client.get("/concepts", params={"find": "zzzz"}).text
    page = client.get(f"/concept/{concept}")
    assert page.status_code == 200
    assert f"<h1>{concept}</h1>" in page.text
    missing = client.get("/concept/zzzz")
    assert missing.status_code == 404
    assert "unknown concept" in missing.text


def test_a_switch_shows_what_would_change(client):
    held = client.get("/api/pictures/3").json()["concepts"]
    page = client.get("/picture/3", params={"without": held[0]["name"], "for": "ship"})
    assert "What changes" in page.text
    assert "Neighbours after" in page.text
    assert page.text.count(" checked>") == 1
    assert client.get("/picture/3", params={"with": "0.3*nonsense"}).status_code == 400


def test_pictures_turn_from_one_to_the_next(client):
    page = client.get("/picture/0").text
    assert 'rel="next" href="/picture/1"' in page
    assert 'rel="prev"' not in page
    assert client.get("/picture/999").status_code == 404
    assert client.get("/picture/x").status_code == 422


def test_without_a_report_the_page_says_how_one_is_made(client):
    assert "sparsight eval" in client.get("/report").text
    assert client.get("/report/index.html").status_code == 404


def test_a_report_is_served_and_may_run_nothing(small_index, tmp_path):
    (tmp_path / "index.html").write_text("<script>alert(1)</script>")
    client = client_of(small_index, tmp_path)
    assert "Open the report" in client.get("/report").text
    report = client.get("/report/index.html")
    assert report.status_code == 200
    assert "script-src" not in report.headers["content-security-policy"]
    assert "default-src 'none'" in report.headers["content-security-policy"]


def test_the_doctor_is_asked_on_demand(client):
    assert "every block can be read" not in client.get("/state").text
    assert "every block can be read" in client.post("/state").text


# The REST interface


def test_the_query_is_spelled_alike_in_the_body_and_in_the_address(client, concept):
    query = Query((Term("text", "ship"), Term("concept", concept, -0.5)), labels=("ship", "cat"), k=7)
    by_body = client.post("/api/search", json=query.to_dict()).json()
    by_address = client.get(link("/api/search", parameters(query))).json()
    assert by_body == by_address
    assert Query.from_dict(by_body["query"]) == query


def test_the_parts_of_a_hit_add_up_to_its_score(client):
    for mode in ("hybrid", "sparse", "dense"):
        for hit in client.get("/api/search", params={"text": "ship", "mode": mode, "all": True}).json()["hits"]:
            parts = sum(c["contribution"] for c in hit["concepts"])
            assert parts + hit["rest"] == pytest.approx(hit["score"], abs=1e-5)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 400),
        ({"terms": []}, 400),
        ({"terms": [{"kind": "text", "value": "a"}], "where": "1 = 1"}, 422),
        ({"terms": [{"kind": "picture", "value": "/etc/passwd"}]}, 400),
        ({"terms": [{"kind": "picture", "value": "../../etc/passwd"}]}, 400),
        ({"terms": [{"kind": "picture", "value": "upload:../x"}]}, 400),
        ({"terms": [{"kind": "picture", "value": "99999"}]}, 400),
        ({"terms": [{"kind": "picture", "value": "9" * 200}]}, 400),
        ({"terms": [{"kind": "concept", "value": "nonsense"}]}, 400),
        ({"terms": [{"kind": "text", "value": "a", "weight": 0}]}, 400),
        ({"terms": [{"kind": "text", "value": "a"}], "k": 10**6}, 422),
        ({"terms": [{"kind": "text", "value": "a" * 10_000}]}, 422),
        ({"terms": [{"kind": "text", "value": "\ud800"}]}, 422),
        ({"terms": [{"kind": "text", "value": "a"}], "fuse": True, "mode": "dense"}, 400),
        ([], 422),
    ],
)
def test_a_malformed_query_is_told_in_one_line(client, query, status):
    answer = client.post("/api/search", content=json.dumps(query), headers=JSON)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert "\n" not in answer.json()["error"]


def test_a_body_that_is_no_json_is_told(client):
    answer = client.post("/api/search", content=b'{"terms": ', headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["error"]


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_an_uploaded_picture_is_searched_by_as_a_file_would_be(client, small_index, pictures, tmp_path, mode):
    data = jpeg_of(pictures.pixels[7])
    (tmp_path / "picture.jpg").write_bytes(data)
    sent = client.post("/api/pictures", content=data).json()
    found = client.get("/api/search", params={"picture": sent["value"], "mode": mode, "all": True, "k": 5}).json()
    with Index(small_index) as index:
        wanted = index.search(like=tmp_path / "picture.jpg", mode=mode, k=5)
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in wanted]
    assert [hit["score"] for hit in found["hits"]] == pytest.approx([hit.score for hit in wanted], abs=1e-5)
    assert client.get(sent["thumbnail"]).headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\xff\xd8\xff\xe0 damaged", b"<svg xmlns='x'/>"])
def test_what_is_no_picture_is_refused(client, data):
    answer = client.post("/api/pictures", content=data)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_the_description_has_no_default_fault_and_no_outside_page(client):
    held = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in held["components"]["schemas"]
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


# Pictures, by id only


def test_a_thumbnail_is_kept_by_its_version(client, small_index):
    page = client.get("/", params={"text": "ship"}).text
    src = re.findall(r'src="(/thumbnail/[^"]+)"', page)[0]
    answer = client.get(src)
    assert answer.headers["content-type"] == "image/jpeg"
    assert "immutable" in answer.headers["cache-control"]
    assert client.get(src, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert "no-cache" in client.get(src.partition("?")[0]).headers["cache-control"]


@pytest.fixture
def folder_index(small_encoder_dir, pictures, tmp_path, run) -> tuple[Path, Path]:
    """A folder of twelve pictures, and an index of it."""
    folder, index = tmp_path / "pictures", tmp_path / "index"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(pictures.pixels[i]).save(folder / f"{i:02d}.png")
    run("index", folder, "--index", index, "--encoder", small_encoder_dir)
    return folder, index


def test_a_file_is_shown_only_while_it_is_the_one_that_was_indexed(folder_index):
    folder, index = folder_index
    client = client_of(index)
    assert client.get("/original/3.jpg").headers["content-type"] == "image/jpeg"
    (folder / "03.png").write_bytes((folder / "04.png").read_bytes())
    assert client.get("/original/3.jpg").status_code == 404
    (folder / "05.png").unlink()
    (folder / "05.png").symlink_to("/etc/passwd")
    assert client.get("/original/5.jpg").status_code == 404
    assert "index’s thumbnail" in client.get("/picture/5").text.replace("'", "’")
    for path in (
        "/original/../../etc/passwd",
        "/thumbnail/%2e%2e%2fx.jpg",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
    ):
        assert client.get(path).status_code in (404, 405, 422), path


def test_a_new_generation_is_taken_up_without_a_restart(folder_index, pictures, run):
    folder, index = folder_index
    client = client_of(index)
    assert client.get("/api/state").json()["pictures"] == 12
    Image.fromarray(pictures.pixels[20]).save(folder / "20.png")
    run("add", folder, "--index", index)
    assert client.get("/api/state").json()["pictures"] == 13
    assert client.get("/picture/12").status_code == 200
    shutil.rmtree(index)
    state = client.get("/api/state").json()
    assert state["pictures"] == 13
    assert state["trouble"]
    for path in ("/", "/state", "/?text=ship", "/picture/12", "/concepts"):
        page = client.get(path)
        assert page.status_code == 200, path
        assert "cannot be opened" in page.text
    assert client.get("/thumbnail/12.jpg").status_code == 200


def test_a_new_generation_keeps_the_encoders_that_are_open(folder_index, pictures, run):
    folder, index = folder_index
    holder = Holder(Opening(index))
    with holder.index() as before:
        opened = before.text_encoder
    Image.fromarray(pictures.pixels[21]).save(folder / "21.png")
    run("add", folder, "--index", index)
    with holder.index() as after:
        assert after is not before
        assert after.text_encoder is opened
    holder.close()


# Who is let in


def test_every_answer_carries_the_policy(client):
    for path in ("/", "/nope", "/api/state", "/static/page.js", "/thumbnail/1.jpg"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("host", ["127.0.0.1:8321", "localhost:8321", "[::1]:8321", "LOCALHOST:8321"])
def test_a_name_of_this_machine_is_answered(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8321", "127.0.0.1:80", "127.0.0.1", "", "localhost.evil:8321"]
)
def test_another_host_is_refused(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, ELSEWHERE, ELSEWHERE | {"Sec-Fetch-Site": "same-site"}],
)
@pytest.mark.parametrize(
    "asked", ["POST /api/search", "POST /state", "GET /api/search?text=a", "GET /thumbnail/1.jpg", "POST /api/pictures"]
)
def test_another_site_is_refused(client, headers, asked):
    method, path = asked.split()
    answer = client.request(method, path, headers=headers)
    assert answer.status_code == 403
    assert set(answer.json()) == {"error"}


def test_a_link_from_another_site_is_followed(client):
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/?text=ship", headers=followed).status_code == 200
    assert client.get("/?text=ship", headers=followed | {"Sec-Fetch-Dest": "iframe"}).status_code == 403


def test_our_own_page_may_post(client):
    ours = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/search", json={"terms": [{"kind": "text", "value": "a"}]}, headers=ours).status_code == 200


def test_a_body_that_is_too_large_is_refused(client):
    big = b" " * (BODY_BYTES + 1)
    assert client.post("/api/search", content=big, headers=JSON).status_code == 413
    pieces = client.post("/api/search", content=(big[i : i + 65536] for i in range(0, len(big), 65536)), headers=JSON)
    assert pieces.status_code == 413


def test_a_token_is_asked_for_and_kept_in_a_cookie(small_index):
    door = Door("0.0.0.0", 8321, "secret-token")
    client = client_of(small_index, door=door)
    for path in ("/", "/api/state", "/static/page.js", "/thumbnail/1.jpg", "/?token=another-one"):
        assert client.get(path).status_code == 401, path
    assert client.get("/api/state", headers={"Authorization": "Bearer secret-token"}).status_code == 200
    assert client.get("/api/state", headers={"Authorization": "Bearer sécret".encode()}).status_code == 401
    entered = client.get("/?token=secret-token&text=ship")
    assert entered.status_code == 303
    assert entered.headers["location"] == "/?text=ship"
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert "SameSite=Strict" in entered.headers["set-cookie"]
    assert client.get("/?text=ship").status_code == 200
    astray = client.get(f"http://{HOST}//evil.example/?token=secret-token")
    assert astray.headers["location"] == "/evil.example/"


def test_a_picture_unlike_all_that_is_known_is_called_so(light_index):
    """By the page and the REST interface, of an upload and of a picture of the index."""
    client = client_of(light_index)
    board = (np.indices((90, 60)).sum(0) // 15 % 2 * 200)[..., None].repeat(3, 2).astype(np.uint8)
    name = client.post("/api/pictures", content=jpeg_of(board)).json()["value"]
    found = client.post("/api/search", json={"terms": [{"kind": "picture", "value": name}]}).json()
    (said,) = found["notes"]
    assert "unlike the pictures that the encoder knows" in said
    assert said in client.get("/", params={"picture": name}).text
    with Index(light_index) as index:
        shares = {i: index.classify(i).familiarity for i in range(len(index))}
    strange, usual = min(shares, key=shares.get), max(shares, key=shares.get)
    for what in ("classify", "explain"):
        told = client.get(f"/api/pictures/{strange}/{what}").json()
        assert told["familiarity"] == pytest.approx(shares[strange])
        assert len(told["notes"]) == 1
        assert client.get(f"/api/pictures/{usual}/{what}").json()["notes"] == []
    assert "It is unlike" in client.get(f"/picture/{strange}").text
    assert "It is familiar" in client.get(f"/picture/{usual}").text
