"""The pages of the concepts: all of them with their map, and one alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, NamedTuple

import fastapi
from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from indexer.store import Concept
from search.answers import Hit
from search.index import Index
from search.serve.address import Word, link
from search.serve.api import concept_here, ordered
from search.serve.asking import Here
from search.serve.concept_map import Map, concept_map
from search.serve.models import Name
from search.serve.render import render
from search.serve.view import Facet, Links, cards_of, concept_href, score_bars, thumbnail_src

router = APIRouter(include_in_schema=False)

PAGE = 48  # concepts on one page
THUMBNAILS = 3  # of each
STRONGEST = 300  # pictures of a concept that are looked at for what it goes with
SHOWN = 24


class Row(NamedTuple):
    """A concept and the pictures that it makes up most."""

    concept: Concept
    href: str
    pictures: list[tuple[int, str]]


@lru_cache(maxsize=1)
def _drawn(version: str) -> list[Map]:
    return []


def the_map(index: Index, version: str) -> Map:
    """The map of the dictionary, drawn once a version of the index (the caller has the index to itself)."""
    kept = _drawn(version)
    if not kept:
        kept.append(concept_map(index.D, index.concepts()))
    return kept[0]


@router.get("/concepts")
def concepts(
    request: Request,
    here: Here,
    find: Word = "",
    page: Annotated[int, fastapi.Query(ge=1, le=100_000)] = 1,
) -> Response:
    """All concepts, the most frequent first, and where they lie in meaning."""
    version = here.holder.version
    with here.holder.index() as index:
        known = index.concepts()
        found = ordered(known, find)
        pages = max(1, -(-len(found) // PAGE))
        page = min(page, pages)
        rows = [row(index, concept, version) for concept in found[(page - 1) * PAGE : page * PAGE]]
        drawn = the_map(index, version)
        classes = index.engine.classes().names

    def to(number: int) -> str | None:
        find_now = [("find", find)] if find.strip() else []
        return link("/concepts", [*find_now, ("page", str(number))]) if 1 <= number <= pages else None

    return render(
        request,
        "concepts.html",
        rows=rows,
        find=find,
        total=len(known),
        found=len(found),
        page=page,
        pages=pages,
        earlier=to(page - 1),
        later=to(page + 1),
        drawn=drawn,
        classes=classes,
    )


def row(index: Index, concept: Concept, version: str) -> Row:
    hits = index.search(concepts=concept.name, k=THUMBNAILS).hits if concept.images else []
    return Row(concept, concept_href(concept.name), [(h.id, thumbnail_src(h.id, version)) for h in hits])


def by_weight(hit: Hit) -> Hit:
    """The hit with the weights of its concepts in place of what they add: of one concept the others add nothing."""
    weighed = sorted(hit.concepts, key=lambda c: -c.weight)
    return replace(hit, concepts=[replace(c, contribution=c.weight) for c in weighed])


@router.get("/concept/{name:path}")
def concept(request: Request, name: Annotated[Name, Path()], here: Here) -> Response:
    """One concept: its pictures, its neighbours in meaning, what it occurs with, and in which classes."""
    version = here.holder.version
    with here.holder.index() as index:
        found = concept_here(index, name)
        near = index.near_concepts(found.name, min(13, len(index.concepts())))
        hits = index.search(concepts=found.name, k=STRONGEST).hits if found.images else []
        has_labels = bool(index.engine.classes().names)
    together = Counter(c.name for hit in hits for c in hit.concepts if c.name != found.name)
    labels = Counter(hit.label for hit in hits if hit.label)
    return render(
        request,
        "concept.html",
        concept=found,
        near=score_bars([pair for pair in near if pair[0] != found.name][:12]),
        together=[Facet(n, c, concept_href(n)) for n, c in together.most_common(12)],
        labels=[Facet(n, c, link("/", [("concept", found.name), ("label", n)])) for n, c in labels.most_common(12)],
        looked_at=len(hits),
        cards=cards_of([by_weight(hit) for hit in hits[:SHOWN]], Links(None), version, found.name),
        search=link("/", [("concept", found.name)]),
        has_labels=has_labels,
    )
