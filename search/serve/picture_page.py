"""A picture's own page, and the pictures themselves: thumbnails and originals, by id only."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from search.answers import Edit, EditState
from search.serve.address import Word, Words
from search.serve.api import PictureId
from search.serve.asking import Here, NotHere, check_here
from search.serve.originals import file_of, shown
from search.serve.render import render
from search.serve.view import Links, bars_of, cards_of, longest, score_bars, thumbnail_src
from search.spelling import given_weight

router = APIRouter(include_in_schema=False)


@router.get("/picture/{image_id}")
def picture(
    request: Request,
    image_id: PictureId,
    here: Here,
    text: Annotated[Word, Query(alias="for")] = "",
    without: Annotated[Words, Query()] = [],  # noqa: B006 (never changed)
    with_: Annotated[Words, Query(alias="with")] = [],  # noqa: B006
) -> Response:
    """One picture: its concepts, what they add, and what it would be without some of them or with others."""
    added = dict(given_weight(name) for name in with_ if name.strip())
    without = [name for name in without if name.strip()]
    text = " ".join(text.split())
    change = None
    with here.holder.index() as index:
        check_here(index, image_id)
        row = index.engine.images([image_id])[0]
        has_thumbnail = bool(index.engine.thumbnails([image_id]))
        earlier, later = index.engine.around(image_id)
        explained = index.explain(image_id, text or None)
        if without or added:
            change = index.edit(image_id, without=without, with_=added, text=text or None)
    most = longest([explained.concepts])
    return render(
        request,
        "picture.html",
        row=row,
        large=file_of(row) is not None,
        has_thumbnail=has_thumbnail,
        src=thumbnail_src(image_id, here.holder.version),
        text=text,
        ranks=dict(explained.ranks_without),
        without=without,
        added=added,
        explained=explained,
        bars=list(zip(bars_of(explained.concepts, most), explained.concepts, strict=True)),
        change=change and changed(change, here.holder.version),
        earlier=earlier,
        later=later,
    )


def changed(change: Edit, version: str) -> dict[str, Any]:
    """Before and after, side by side: the scores of the classes, the neighbours, the rank for the text."""
    before = dict(change.before.scores)
    rows = [(bar, before.get(bar.name, 0.0)) for bar in score_bars(change.after.scores)]

    def side(state: EditState) -> dict[str, Any]:
        label = state.scores[0][0] if state.scores else None
        return {"label": label, "rank": state.rank, "cards": cards_of(state.neighbours, Links(None), version)}

    return {"scores": rows[:10], "before": side(change.before), "after": side(change.after)}


@router.get("/thumbnail/{image_id}.jpg")
def thumbnail(image_id: PictureId, here: Here, v: str = "", if_none_match: Annotated[str, Header()] = "") -> Response:
    """A thumbnail; one that is asked for with the version of the index may be kept for good."""
    with here.holder.index() as index:
        check_here(index, image_id)
        jpeg = index.engine.thumbnails([image_id]).get(image_id)
        version = here.holder.version
    if jpeg is None:
        raise NotHere(f"the index keeps no thumbnail of picture {image_id}")
    return jpeg_response(jpeg, if_none_match, keep=v == version)


@router.get("/original/{image_id}.jpg")
def large(image_id: PictureId, here: Here, if_none_match: Annotated[str, Header()] = "") -> Response:
    """The picture's file, as large as it is, where it is still the one that was indexed."""
    with here.holder.index() as index:
        check_here(index, image_id)
        row = index.engine.images([image_id])[0]
    if (data := file_of(row)) is None:
        raise NotHere(f"the file of picture {image_id} is not there any more, or another by now")
    return jpeg_response(shown(data), if_none_match, keep=False)


@router.get("/upload/{name}.jpg")
def uploaded(name: str, here: Here, if_none_match: Annotated[str, Header()] = "") -> Response:
    """The thumbnail of an uploaded picture."""
    return jpeg_response(here.uploads.get(name).thumbnail, if_none_match, keep=True)


def jpeg_response(jpeg: bytes, known: str, *, keep: bool) -> Response:
    """A JPEG, or that the browser has it already. keep: whether it may be kept without asking again."""
    tag = f'"{hashlib.sha256(jpeg).hexdigest()[:24]}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=31536000, immutable" if keep else "private, no-cache"}
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(jpeg, media_type="image/jpeg", headers=headers)
