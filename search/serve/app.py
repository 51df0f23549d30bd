"""The web application: its routes, its faults told in one line, and the guard around it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from indexer.pictures.files import PictureError
from search.serve import api, class_page, concept_pages, picture_page, search_page, state_pages
from search.serve.asking import NotHere, Serving
from search.serve.guard import App, Door, Guard
from search.serve.render import error_page
from training.errors import CallError, SparsightError

STATIC = Path(__file__).parent / "static"


def application(serving: Serving, door: Door) -> App:
    """The page and the REST interface over one index, for whom the door lets in."""
    app = FastAPI(
        title="sparsight",
        version=version("sparsight"),
        description="Finds and explains pictures by concept.",
        docs_url=None,  # these load scripts from outside
        redoc_url=None,
    )
    app.state.serving = serving
    for part in (api, search_page, picture_page, class_page, concept_pages, state_pages):
        app.include_router(part.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for fault in (SparsightError, RequestValidationError, HTTPException):
        app.add_exception_handler(fault, tell)
    return Guard(app, door)


def tell(request: Request, e: Exception) -> Response:
    """A fault, as JSON below /api, else as a page."""
    status, error = told(e)
    headers = dict(getattr(e, "headers", None) or {})
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": error}, status, headers)
    return error_page(request, status, error, headers)


def told(e: Exception) -> tuple[int, str]:
    """The status of a fault, and one line about it."""
    if isinstance(e, RequestValidationError):
        return 422, "; ".join(dict.fromkeys(_one(error) for error in e.errors()[:3]))
    if isinstance(e, HTTPException):
        words = {404: "there is no such page", 405: "that is not done with this address"}
        return e.status_code, words.get(e.status_code, e.detail)
    status = next((s for kind, s in STATUS.items() if isinstance(e, kind)), 409)
    return status, " ".join(str(e).split())


STATUS: dict[type[Exception], int] = {NotHere: 404, CallError: 400, PictureError: 400}


def _one(error: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path"))
    message = str(error["msg"])
    return " ".join((f"{place}: {message}" if place else message).split())
