"""The page `/`: the query, and the pictures that answer it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.responses import RedirectResponse, Response

from search.answers import Answer
from search.index import Index
from search.query import MOST_TERMS, Query, QueryMode
from search.serve.address import Address, Word, link, parameters, typed
from search.serve.asking import Here, Serving, ask
from search.serve.models import Weight
from search.serve.render import render
from search.serve.view import Card, Links, cards_of, chips_of, concept_facets, label_facets, thumbnail_src

router = APIRouter(include_in_schema=False)

MOST_K = 100  # hits on one page
BESIDE_K = 24  # of each where two answers stand side by side
EXAMPLES = 12
RAREST = 2.5  # in powers of ten: the null distribution of an index has some hundred texts


class PageAddress(Address):
    """An address of the page: a query, what was typed into the form, and how the answer is shown.

    q, sign: words to add, `minus` where they are meant against. w: the weights of the terms as the form holds them.
    rare: only hits that fewer than one in 10^rare unrelated texts would find. beside: sparse and dense side by side.
    """

    k: int = Field(40, ge=1, le=MOST_K)
    q: Word = ""
    sign: str = ""
    w: Annotated[list[Weight], Field(max_length=MOST_TERMS)] = Field([])
    rare: float = Field(0, ge=0, le=RAREST, allow_inf_nan=False)
    beside: bool = False

    @property
    def extras(self) -> tuple[tuple[str, str], ...]:
        """The parameters that are not of the query, and stay."""
        rare = (("rare", f"{self.rare:g}"),) if self.rare else ()
        return (*rare, ("beside", "1")) if self.beside else rare

    def settled(self) -> str:
        """The address that holds what the form sent as a query."""
        terms = self.terms()
        if len(self.w) == len(terms):
            terms = [replace(t, weight=w) for t, w in zip(terms, self.w, strict=True) if w]
        terms += typed(self.q, against=self.sign == "minus")
        if not terms and self.has_no_filter:
            return "/"
        return link("/", [*parameters(self.query(terms)), *self.extras])


class Column(NamedTuple):
    """One answer as the page shows it."""

    mode: str
    answer: Answer
    cards: list[Card]
    left_out: int


@router.get("/")
def search(request: Request, here: Here) -> Response:
    """The start, or the answer to the query of the address."""
    sent = request.query_params.multi_items()
    address = page_address(sent)
    if address.q or address.w or address.sign or any(not value for _, value in sent):
        return RedirectResponse(address.settled(), 303)
    if address.is_empty:
        with here.holder.index() as index:
            return render(request, "start.html", **start(index, here.holder.version))
    query = address.query()
    links = Links(query, address.extras)
    columns = [column(here, q, links, address) for q in queries(query, beside=address.beside)]
    with here.holder.index() as index:
        has_modes = index.meta.keeps_vectors
    hits = [card.hit for card in columns[0].cards]
    return render(
        request,
        "search.html",
        query=query,
        address=address,
        chips=chips_of(links),
        columns=columns,
        modes=modes(query, links, columns[0].mode, beside=address.beside) if has_modes else [],
        labels=label_facets(hits, links),
        concepts=concept_facets(hits, links),
        show_all=Links(query).but(all=True),
        show_fewer=links.but(all=False),
        notes=list(dict.fromkeys(note for c in columns for note in c.answer.notes)),
    )


def page_address(sent: list[tuple[str, str]]) -> PageAddress:
    """The parameters of an address, empty ones left out as forms send them; raises `RequestValidationError`."""
    held: dict[str, Any] = {}
    for name, value in sent:
        field = PageAddress.model_fields.get(name)
        if field is not None and field.get_default(call_default_factory=True) == []:
            held.setdefault(name, []).extend([value] if value.strip() else [])
        elif value.strip():
            held[name] = value
    try:
        return PageAddress.model_validate(held)
    except ValidationError as e:
        raise RequestValidationError(e.errors(include_url=False)) from e


def queries(query: Query, *, beside: bool) -> list[Query]:
    """The query itself, or the two that stand side by side."""
    if not beside:
        return [query]
    both: tuple[QueryMode, ...] = ("sparse", "dense")
    return [replace(query, mode=mode, fuse=False, k=min(query.k, BESIDE_K)) for mode in both]


def column(here: Serving, query: Query, links: Links, address: PageAddress) -> Column:
    """Asks, and leaves out what is not rare enough."""
    if not address.rare:
        answer = ask(here, query)
        kept, left_out = answer.hits, answer.left_out
    else:
        answer = ask(here, replace(query, all=True))
        most = 10.0**-address.rare
        kept = [hit for hit in answer.hits if hit.chance is None or hit.chance <= most]
        left_out = len(answer.hits) - len(kept)
    words = [term.value for term in query.terms if term.kind == "text" and term.weight > 0]
    cards = cards_of(kept, links, here.holder.version, words[0] if words else None)
    return Column(answer.mode, answer, cards, left_out)


def modes(query: Query, links: Links, now: str, *, beside: bool) -> list[tuple[str, str, bool]]:
    """Name and address of each way to answer, and whether it is the one that is shown."""
    alone = Links(query, tuple(pair for pair in links.extras if pair[0] != "beside"))
    found = [
        (name, alone.but(mode=name, fuse=query.fuse and name == "hybrid"), name == now and not beside)
        for name in ("hybrid", "sparse", "dense")
    ]
    both = Links(query, (*alone.extras, ("beside", "1")))
    return [*found, ("side by side", both.but(fuse=False), beside)]


def start(index: Index, version: str) -> dict[str, Any]:
    """What the page shows before anything is asked: what there is, and where one might begin."""
    frequent = sorted((c for c in index.concepts() if c.images), key=lambda c: -c.images)[:EXAMPLES]
    shown = [(concept, index.search(concepts=concept.name, k=1)) for concept in frequent]
    return {
        "meta": index.meta,
        "examples": [(c, thumbnail_src(hits[0].id, version) if hits else None) for c, hits in shown],
        "address": PageAddress.model_validate({}),
        "chips": [],
        "query": None,
    }
