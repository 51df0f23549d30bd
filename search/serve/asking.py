"""What stands between a request and the engine: queries whose pictures are ids or uploads, and never a file's name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Annotated

import numpy as np
from fastapi import Depends, Request

from search.answers import Answer
from search.index import Index
from search.query import Query, Term
from search.serve.holder import Holder
from search.serve.uploads import PREFIX, Uploads
from training.errors import CallError, SparsightError, TextWarning

NEWEST = 2**31 - 1  # ids are 32-bit


class NotHere(SparsightError):
    """Something that an address names is not in the index."""


@dataclass(frozen=True)
class Serving:
    """What all requests share. report: the folder where `sparsight eval` writes its report."""

    holder: Holder
    report: Path
    uploads: Uploads = field(default_factory=Uploads)
    examining: Lock = field(default_factory=Lock)


def _serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


Here = Annotated[Serving, Depends(_serving)]


def ask(here: Serving, query: Query) -> Answer:
    """The answer to a query of the web. Raises `CallError` for a picture that is neither an id nor an upload."""
    check(query)
    with here.holder.index() as index, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", TextWarning)  # one thread at a time is here
        found = index.answer(query, vectors_of(query, index, here))
    told = [str(warning.message) for warning in said if issubclass(warning.category, TextWarning)]
    cut_off = found.cut_off if found.cut_off is not None and math.isfinite(found.cut_off) else None
    return replace(found, cut_off=cut_off, notes=[*found.notes, *dict.fromkeys(told)])


def check(query: Query) -> None:
    """Raises `CallError` for what the web may not ask: SQL, and files of this machine."""
    if query.where is not None:
        raise CallError("SQL is not taken over the web: use labels, splits and path")
    for term in query.terms:
        if term.kind == "picture" and not term.value.startswith(PREFIX):
            known_id(term.value)


def known_id(text: str) -> int:
    """The id that a text is; raises `CallError` for any other text."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= NEWEST):
        raise CallError(f"{text!r} is no picture's id: over the web a picture is an id or an upload")
    return int(text)


def vectors_of(query: Query, index: Index, here: Serving) -> Mapping[Term, np.ndarray]:
    """The embeddings of the uploaded pictures of a query, by their terms."""
    return {
        term: here.uploads.vector(term.value.removeprefix(PREFIX), index, here.holder.version)
        for term in query.terms
        if term.kind == "picture" and term.value.startswith(PREFIX)
    }


def check_here(index: Index, image_id: int) -> None:
    """Raises `NotHere` where the index does not hold a picture."""
    if not index.engine.holds(image_id):
        raise NotHere(f"no picture {image_id} in the index")
