"""Answers as a notebook shows them: pictures, bars of concepts, scores. One piece of HTML that loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import SparsightError

if TYPE_CHECKING:
    from jinja2 import Environment

SHOWN = 40  # pictures; of a longer answer the rest is counted


def show(
    what: str,
    answer: Any,
    thumbnails: Callable[[Sequence[int]], dict[int, bytes]] | None = None,
    ids: Sequence[int] = (),
) -> str:
    """An answer by the template's macro `what`. thumbnails: where the pictures of the ids are; without them, or when
    the index has been closed or changed since, no pictures are shown."""
    found: dict[int, bytes] = {}
    if thumbnails is not None:
        try:
            found = thumbnails(list(dict.fromkeys(ids))[:SHOWN])
        except (SparsightError, OSError):
            found = {}
    pictures = {i: "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() for i, jpeg in found.items()}
    page = _environment().get_template("notebook.html").module
    return str(getattr(page, what)(answer, pictures, SHOWN))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader

    return Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
