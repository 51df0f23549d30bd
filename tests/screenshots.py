"""Draws docs/images/page-*.webp: each view of the page, light and dark, wide and on a phone; and report.webp.

python tests/screenshots.py INDEX            (an index of CIFAR-10's pictures, with thumbnails)
python tests/screenshots.py --report REPORT  (the folder of a report: its beginning, and its frontiers)
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

from browsing import Visit, open_browser
from PIL import Image
from serving import served

OUT = Path(__file__).parent.parent / "docs" / "images"
WIDE, PHONE = (1200, 900), (390, 844)
HEIGHT = 560  # of what is drawn
LOADED = """return [...document.images].filter(i => i.getBoundingClientRect().top < innerHeight)
    .every(i => i.complete)"""
VIEWS = {
    "start": "/",
    "search": "/?text=truck&text=fire+engine%3D-1",
    "beside": "/?text=a+small+dog&beside=1",
    "nothing": "/?text=democracy",
    "picture": "/picture/{picture}?for=truck",
    "change": "/picture/{picture}?for=truck&without={concept}",
    "concepts": "/concepts",
    "concept": "/concept/fire%20engine",
    "class": "/class/truck",
    "state": "/state",
}


def shot(visit: Visit, path: str, size: tuple[int, int], *, dark: bool) -> Image.Image:
    visit.size(*size, dark=dark)
    visit.go(path)
    visit.until(lambda: visit.driver.execute_script(LOADED))
    time.sleep(0.3)
    picture = Image.open(io.BytesIO(visit.driver.get_screenshot_as_png())).convert("RGB")
    return picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT), Image.Resampling.LANCZOS)


def main(index: str) -> None:
    import sparsight

    with sparsight.open(index) as opened:
        hit = opened.search("truck", without="fire engine", labels="truck", k=3)[0]
    places = {"picture": hit.id, "concept": hit.concepts[0].name}
    with served("--index", index) as (address, _):
        driver = open_browser()
        visit = Visit(driver, address)
        for name, path in VIEWS.items():
            each = [shot(visit, path.format(**places), s, dark=d) for s in (WIDE, PHONE) for d in (False, True)]
            save(f"page-{name}.webp", each)
        driver.quit()


def save(name: str, each: list[Image.Image]) -> None:
    """Writes pictures of one height beside each other."""
    sheet = Image.new("RGB", (sum(p.width + 8 for p in each) - 8, HEIGHT), (128, 128, 128))
    x = 0
    for picture in each:
        sheet.paste(picture, (x, 0))
        x += picture.width + 8
    sheet.save(OUT / name, quality=82, method=6)
    print(name, sheet.size, (OUT / name).stat().st_size)


def report(folder: str) -> None:
    driver = open_browser()
    visit = Visit(driver, (Path(folder).absolute() / "index.html").as_uri())
    save(
        "report.webp",
        [
            shot(visit, "", WIDE, dark=False),
            shot(visit, "#frontiers", WIDE, dark=True),
            shot(visit, "", PHONE, dark=False),
        ],
    )
    driver.quit()


if __name__ == "__main__":
    if sys.argv[1] == "--report":
        report(sys.argv[2])
    else:
        main(sys.argv[1])
