"""The page in a real browser: what a person does on it, without an error, a request to elsewhere, or a barrier."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from browsing import BROWSER, DRIVER, Visit, open_browser
from PIL import Image
from serving import served

pytestmark = pytest.mark.slow
if not BROWSER or not DRIVER:
    pytest.skip("needs chromium and chromedriver: `make test-page` installs them", allow_module_level=True)
Keys = pytest.importorskip("selenium.webdriver.common.keys", reason="needs selenium: `make install` installs it").Keys


@pytest.fixture(scope="module")
def browser():
    driver = open_browser()
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(small_index):
    with served("--index", small_index) as (address, _):
        yield address


@pytest.fixture
def visit(browser, address):
    """After each test: nothing was complained of in the console, and nothing asked for elsewhere."""
    visit = Visit(browser, address)
    visit.size(1200, 900)
    yield visit
    assert [entry["message"] for entry in browser.get_log("browser") if "status of 4" not in entry["message"]] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith((address, "data:", "chrome:", "about:"))] == []


def test_a_query_is_typed_and_a_word_excluded(visit):
    visit.go("/")
    visit.one("body").send_keys("/")
    box = visit.driver.switch_to.active_element
    assert box.get_attribute("id") == "q"
    box.send_keys("ship -truck", Keys.ENTER)
    visit.until(lambda: len(visit.all(".chip")) == 2)
    assert visit.query["text"] == ["ship", "truck=-1"]
    assert visit.all(".summary, .empty")
    visit.driver.back()
    visit.until(lambda: not visit.all(".chip"))
    visit.driver.forward()
    visit.until(lambda: len(visit.all(".chip")) == 2)


def test_a_concept_is_clicked_away(visit):
    visit.go("/?text=ship&all=1&mode=sparse")
    link = visit.one(".grid .bars a")
    name = link.text
    link.click()
    visit.until(lambda: visit.one("dialog").get_attribute("open"))
    visit.one("#menu-forbid").click()
    visit.until(lambda: visit.query.get("forbid") == [name])
    assert name not in [a.text for a in visit.all(".grid .bars a")]
    visit.one(".chip.forbid .remove").click()
    visit.until(lambda: "forbid" not in visit.query)


def test_the_weight_and_the_sign_of_a_word_are_changed(visit):
    visit.go("/?text=ship&all=1")
    weight = visit.one(".chip .weight")
    weight.send_keys(Keys.CONTROL + "a", Keys.NULL, "0.5", Keys.TAB)
    visit.until(lambda: visit.query["text"] == ["ship=0.5"])
    visit.one(".chip .sign").click()
    visit.until(lambda: visit.query["text"] == ["ship=-0.5"])


def test_a_picture_is_dropped(visit, pictures, tmp_path):
    Image.fromarray(pictures.pixels[7]).resize((64, 64)).save(tmp_path / "mine.png")
    visit.go("/")
    visit.one("#file").send_keys(str(tmp_path / "mine.png"))
    visit.until(lambda: visit.query.get("picture", [""])[0].startswith("upload:"))
    assert visit.one(".chip.picture .says").text == "your picture"
    drop = """
        const [bytes, done] = arguments, file = new File([new Uint8Array(bytes)], "a.png", {type: "image/png"});
        const held = new DataTransfer(); held.items.add(file);
        dispatchEvent(new DragEvent("drop", {dataTransfer: held, cancelable: true, bubbles: true}));"""
    visit.go("/?text=ship")
    visit.driver.execute_script(drop, list((tmp_path / "mine.png").read_bytes()))
    visit.until(lambda: len(visit.all(".chip")) == 2)
    visit.go("/")

    def is_told() -> bool:
        if not visit.one("#status").text:  # a page that comes to rest clears what was said before
            visit.driver.execute_script(drop, list(b"no picture"))
        return "no picture that can be read" in visit.one("#status").text

    visit.until(is_told)


def test_an_explanation_is_opened_and_a_concept_switched_off(visit):
    visit.go("/?text=ship&all=1")
    visit.one(".grid .picture").click()
    visit.until(lambda: visit.path.startswith("/picture/"))
    assert visit.query["for"] == ["ship"]
    visit.one("tbody .switch").click()
    visit.until(lambda: visit.all(".changed"))
    assert "without" in visit.query
    assert len(visit.all(".changed .strip")) == 2
    visit.driver.back()
    visit.until(lambda: not visit.all(".changed"))
    visit.driver.back()
    visit.until(lambda: visit.path == "/")
    assert visit.query["text"] == ["ship"]


def test_keys_move_among_the_pictures_and_from_one_to_the_next(visit):
    visit.go("/?text=ship&all=1")
    body = visit.one("body")
    body.send_keys(Keys.ARROW_RIGHT)
    first = visit.driver.switch_to.active_element
    assert first == visit.all(".grid .picture")[0]
    first.send_keys(Keys.ARROW_RIGHT)
    assert visit.driver.switch_to.active_element == visit.all(".grid .picture")[1]
    visit.driver.switch_to.active_element.send_keys(Keys.ARROW_LEFT, "m")
    visit.until(lambda: "picture" in visit.query)
    visit.go("/picture/5")
    visit.one("body").send_keys(Keys.ARROW_RIGHT)
    visit.until(lambda: visit.path == "/picture/6")


def test_the_doctor_is_asked(visit):
    visit.go("/state")
    visit.one("main form button").click()
    visit.until(lambda: visit.all(".findings"))
    assert "every block can be read" in visit.one(".findings").text


PAGES = {
    "start": "/",
    "search": "/?text=ship&text=truck=-0.5&all=1",
    "beside": "/?text=ship&all=1&beside=1",
    "nothing": "/?text=ship&require=ship&forbid=ship",
    "picture": "/picture/3?for=ship",
    "changed": "/picture/3?for=ship&with=ship=0.5",
    "concepts": "/concepts",
    "concept": "/concept/ship",
    "class": "/class/ship",
    "report": "/report",
    "state": "/state",
    "fault": "/nowhere",
}


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("path", PAGES.values(), ids=PAGES)
def test_no_page_is_wider_than_its_window(visit, path, width):
    visit.size(width, 800)
    visit.go(path)
    assert visit.driver.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.fixture(scope="session")
def axe(tmp_path_factory) -> str:
    """The source of axe-core, from the npm registry."""
    folder = tmp_path_factory.mktemp("axe")
    if not shutil.which("npm"):
        pytest.skip("needs npm, to get axe-core")
    command = ["npm", "pack", "axe-core", "--silent"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("the npm registry does not answer")
    found = list(Path(folder).glob("axe-core-*.tgz"))
    if done.returncode or not found:
        pytest.skip("axe-core cannot be had from the npm registry")
    with tarfile.open(found[0]) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("path", PAGES.values(), ids=PAGES)
def test_no_page_has_a_barrier(visit, axe, path, dark):
    visit.size(1200, 900, dark=dark)
    visit.go(path)
    visit.driver.execute_script(axe)
    found = visit.driver.execute_async_script("const done = arguments[0]; axe.run().then(done)")
    serious = [
        (v["id"], v["help"], [node["html"][:200] for node in v["nodes"]][:3])
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []
