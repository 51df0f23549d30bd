"""What the pages show of a query and its answer: chips, cards, bars, facets, and the addresses they lead to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import NamedTuple
from urllib.parse import quote

from search.answers import ConceptWeight, Hit
from search.query import Query, Term
from search.serve.address import LISTS, link, parameters
from search.serve.uploads import PREFIX

BARS = 4  # concepts that a card shows
FACETS = 14


class Bar(NamedTuple):
    """A concept with what it adds, and how long that is drawn: a percentage."""

    name: str
    value: float
    share: float


class Facet(NamedTuple):
    """Something that several hits have: how many, and the address that asks for it alone."""

    name: str
    many: int
    href: str
    is_set: bool = False


class Card(NamedTuple):
    """One hit as the grid shows it."""

    hit: Hit
    title: str
    src: str
    href: str
    bars: list[Bar]
    more: str
    plus: str
    minus: str


class Chip(NamedTuple):
    """One term or filter of the query: its parameter, what it says, the address without it, and of a term its
    weight, and the address with the opposite sign."""

    name: str
    value: str
    says: str
    remove: str
    weight: float | None = None
    flip: str = ""
    src: str = ""


@dataclass(frozen=True)
class Links:
    """Addresses of searches. extras: parameters of the page that are not of the query."""

    query: Query | None
    extras: tuple[tuple[str, str], ...] = ()

    def to(self, query: Query | None) -> str:
        if query is None:
            return "/"
        return link("/", [*parameters(query), *self.extras])

    def but(self, **changes: object) -> str:
        """The address of the query with some fields changed."""
        if self.query is None:
            return "/"
        held = {**vars(self.query), **changes}
        empty = not held["terms"] and not any(held[f] for f in (*LISTS, "path"))
        return "/" if empty else self.to(replace(self.query, **changes))  # type: ignore[arg-type]

    def also(self, *terms: Term) -> str:
        """The address of the query with more terms."""
        if self.query is None:
            return self.to(Query(terms=terms, k=40))
        return self.but(terms=(*self.query.terms, *terms))


def chips_of(links: Links) -> list[Chip]:
    """The terms of the query, then its filters."""
    query = links.query
    if query is None:
        return []
    chips = []
    for kind in ("text", "picture", "concept"):  # the order of the parameters in the form
        for place, term in enumerate(query.terms):
            if term.kind == kind:
                rest = query.terms[:place] + query.terms[place + 1 :]
                other = (*query.terms[:place], replace(term, weight=-term.weight), *query.terms[place + 1 :])
                src = picture_src(term.value) if kind == "picture" else ""
                says = (
                    f"picture {term.value}" if kind == "picture" and not term.value.startswith(PREFIX) else term.value
                )
                says = "your picture" if term.value.startswith(PREFIX) else says
                chips.append(
                    Chip(kind, term.value, says, links.but(terms=rest), term.weight, links.but(terms=other), src)
                )
    for field, name in LISTS.items():
        values = getattr(query, field)
        for value in values:
            chips.append(Chip(name, value, value, links.but(**{field: tuple(v for v in values if v != value)})))
    if query.path:
        chips.append(Chip("path", query.path, query.path, links.but(path=None)))
    return chips


def picture_src(value: str) -> str:
    """Where the thumbnail of a picture term lies."""
    return f"/upload/{value.removeprefix(PREFIX)}.jpg" if value.startswith(PREFIX) else f"/thumbnail/{value}.jpg"


def cards_of(hits: Sequence[Hit], links: Links, version: str, text: str | None = None) -> list[Card]:
    """The hits as cards, whose bars are all of one scale. text: what their own pages explain them for."""
    most = longest([hit.concepts for hit in hits])
    seek = [("for", text)] if text else []
    return [
        Card(
            hit,
            hit.label or PurePath(hit.path).name,
            thumbnail_src(hit.id, version),
            link(f"/picture/{hit.id}", seek),
            bars_of(hit.concepts[:BARS], most),
            link("/", [("picture", str(hit.id))]),
            links.also(Term("picture", str(hit.id), 0.5)),
            links.also(Term("picture", str(hit.id), -0.5)),
        )
        for hit in hits
    ]


def longest(several: Sequence[Sequence[ConceptWeight]]) -> float:
    """The largest contribution, which is drawn as a whole bar."""
    return max((abs(c.contribution) for concepts in several for c in concepts), default=1.0) or 1.0


def bars_of(concepts: Sequence[ConceptWeight], most: float) -> list[Bar]:
    return [Bar(c.name, c.contribution, round(100 * min(1.0, abs(c.contribution) / most), 1)) for c in concepts]


def score_bars(scores: Sequence[tuple[str, float]]) -> list[Bar]:
    """Scores as bars, the highest drawn whole."""
    most = max((abs(score) for _, score in scores), default=1.0) or 1.0
    return [Bar(name, score, round(100 * abs(score) / most, 1)) for name, score in scores]


def thumbnail_src(image_id: int, version: str) -> str:
    return f"/thumbnail/{image_id}.jpg?v={version}"


def concept_href(name: str) -> str:
    return "/concept/" + quote(name, safe="")


def class_href(name: str) -> str:
    return "/class/" + quote(name, safe="")


def label_facets(hits: Sequence[Hit], links: Links) -> list[Facet]:
    """The labels of the hits; one that is asked for already leads to the search without it."""
    set_now = links.query.labels if links.query else ()
    counts = Counter(hit.label for hit in hits if hit.label)
    found = []
    for name, count in counts.most_common(FACETS):
        labels = tuple(label for label in set_now if label != name) if name in set_now else (*set_now, name)
        found.append(Facet(name, count, links.but(labels=labels), name in set_now))
    return found


def concept_facets(hits: Sequence[Hit], links: Links) -> list[Facet]:
    """The concepts that most of the hits hold."""
    required = links.query.require if links.query else ()
    counts = Counter(concept.name for hit in hits for concept in hit.concepts)
    return [Facet(n, c, links.but(require=(*required, n)), n in required) for n, c in counts.most_common(FACETS)]
