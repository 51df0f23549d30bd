"""Templates, and the pages that are about a fault."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from search.serve.view import class_href, concept_href, thumbnail_src

TITLES = {404: "Not here", 400: "That makes no sense", 422: "That makes no sense"}


@cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("search.serve", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {"class_href": class_href, "concept_href": concept_href, "thumbnail_src": thumbnail_src}
    templates.filters |= {"signed": lambda value: f"{value:+.2f}", "count": lambda value: f"{value:,}"}
    return templates


def render(request: Request, name: str, status: int = 200, **shown: Any) -> Response:
    """A page from its template."""
    holder = request.app.state.serving.holder
    page = (
        _templates()
        .get_template(name)
        .render(at=request.url.path, version=holder.version, trouble=holder.trouble, **shown)
    )
    return HTMLResponse(page, status)


def error_page(request: Request, status: int, error: str, headers: Mapping[str, str]) -> Response:
    """The page that tells of a fault, with a way to go on."""
    response = render(request, "error.html", status, title=TITLES.get(status, "That did not work"), error=error)
    response.headers.update(headers)
    return response
