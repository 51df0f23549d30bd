"""The pages of the index itself: its report, its state, and the doctor on demand."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from search.serve import api
from search.serve.asking import Here, NotHere, Serving
from search.serve.render import render

router = APIRouter(include_in_schema=False)

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"


@router.get("/report")
def report(request: Request, here: Here) -> Response:
    """Leads to the report where there is one, else says how one is made."""
    page = here.report / "index.html"
    when = None
    if page.is_file():
        when = datetime.fromtimestamp(page.stat().st_mtime).astimezone()
    return render(request, "report.html", when=when, folder=here.report, figures=figures(here))


@router.get("/report/index.html")
def report_page(here: Here) -> Response:
    """The report as it was written: one file, which runs nothing and loads nothing."""
    try:
        page = (here.report / "index.html").read_bytes()
    except OSError as e:
        raise NotHere(f"there is no report in {here.report}: `sparsight eval` writes one") from e
    return Response(page, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": REPORT_POLICY})


def figures(here: Serving) -> list[tuple[str, str]]:
    """The first figures of the report, as far as its file holds them."""
    try:
        held: dict[str, Any] = json.loads((here.report / "report.json").read_bytes())
        return [
            (f"{held['dense']['accuracy']:.4f}", "accuracy by the embeddings"),
            (f"{held['sparse']['accuracy']:.4f}", "accuracy by the codes"),
            (f"{held['sparse']['nnz_mean']:.2f}", "concepts a picture"),
            (f"{100 * held['memory']['ratio']:.2f} %", "of the dense memory, codes in CSR"),
        ]
    except (OSError, ValueError, KeyError, TypeError):  # an older or another file: the report itself tells
        return []


@router.get("/state")
def state(request: Request, here: Here) -> Response:
    """What the index holds, how large it is, and since when."""
    return _state(request, here, None)


@router.post("/state")
def examined(request: Request, here: Here) -> Response:
    """The same, with the findings of the doctor."""
    return _state(request, here, api.doctor(here))


def _state(request: Request, here: Serving, findings: list[Any] | None) -> Response:
    with here.holder.index() as index:
        found, meta, name = index.engine.state(), index.meta, index.engine.name
        classes = len(index.engine.classes().names)
    page = render(
        request,
        "state.html",
        meta=meta,
        folder=name,
        classes=classes,
        when=found.when,
        sizes=found.sizes,
        total=sum(found.sizes.values()),
        skipped=found.skipped[:50],
        skipped_count=len(found.skipped),
        findings=findings,
    )
    page.headers["Referrer-Policy"] = "same-origin"  # without one, a browser does not say that the form is ours
    return page
