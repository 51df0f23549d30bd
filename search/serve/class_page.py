"""The page of a class: the concepts that it hangs on."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from search.serve.address import link
from search.serve.api import class_here
from search.serve.asking import Here
from search.serve.models import Name
from search.serve.render import render
from search.serve.view import score_bars

router = APIRouter(include_in_schema=False)
SHOWN = 40  # concepts


@router.get("/class/{label:path}")
def class_page(request: Request, label: Annotated[Name, Path()], here: Here) -> Response:
    """A class, and the concepts without which most of its pictures would be given another."""
    with here.holder.index() as index:
        found = class_here(index, label)
        others = [name for name in index.engine.classes().names if name != found.name]
    return render(
        request,
        "class.html",
        label=found.name,
        pictures=found.pictures,
        bars=score_bars([(flip.concept, flip.pictures) for flip in found.flips[:SHOWN]]),
        others=others,
        search=link("/", [("label", found.name)]),
    )
