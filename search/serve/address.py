"""A query in an address: `/?text=truck&text=fire engine=-1&forbid=red` and the same below `/api/search`.

Each term is a parameter `text`, `picture` or `concept`, whose value may have a weight behind it. The filters and
the other fields of a `Query` have their names; `label` and `split` may be repeated, as `require` and `forbid` may.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from search.query import KINDS, MOST_TERMS, GroupBy, Query, QueryMode, Term
from search.spelling import spelled, weighed

MOST_K = 1000  # hits that one answer over the web may hold
K = 40  # hits where the address names no number: a few screens of pictures

Word = Annotated[str, StringConstraints(max_length=300)]
Words = Annotated[list[Word], Field(max_length=MOST_TERMS)]
Diverse = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False, description="0: by score alone")]

TYPED = re.compile(r"(?:^|\s)(?=[-−+#]+[^\s\-−+#])")  # where the next word or concept of the query box begins


class Address(BaseModel):
    """The parameters of an address that hold a query."""

    model_config = ConfigDict(extra="forbid")

    text: Words = Field([], description="a word or a few; `fire engine=-1` counts against a picture")
    picture: Words = Field([], description="the id of a picture of the index, or `upload:HASH`")
    concept: Words = Field([], description="a concept's name; `red=0.5` counts half")
    require: Words = Field([], description="concepts that a picture's code must hold")
    forbid: Words = Field([], description="concepts that it must not hold")
    label: Words = Field([], description="labels, of which a picture must have one")
    split: Words = Field([], description="splits, of which a picture must be in one")
    path: Word | None = Field(None, description="a pattern of the path; `*` stands for any characters, `?` for one")
    mode: QueryMode | None = None
    fuse: bool = False
    diverse: Diverse = 0.0
    group_by: GroupBy | None = None
    k: int = Field(K, ge=1, le=MOST_K)
    all: bool = Field(False, description="also what scores no higher than an unrelated text would")

    def query(self, terms: list[Term] | None = None) -> Query:
        """The query, with other terms if some are given; raises `CallError` where it makes no sense."""
        rest: dict[str, Any] = {name: getattr(self, name) for name in SAME if getattr(self, name)}
        lists: dict[str, Any] = {field: tuple(getattr(self, name)) for field, name in LISTS.items()}
        return Query(terms=tuple(self.terms() if terms is None else terms), **lists, **rest)

    def terms(self) -> list[Term]:
        return [weighed(kind, value) for kind in KINDS for value in getattr(self, kind)]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for."""
        return self.has_no_filter and not any(getattr(self, kind) for kind in KINDS)

    @property
    def has_no_filter(self) -> bool:
        return not any(getattr(self, name) for name in (*LISTS.values(), "path"))


LISTS = {"require": "require", "forbid": "forbid", "labels": "label", "splits": "split"}  # of a query → of an address
SAME = ("path", "mode", "fuse", "diverse", "group_by", "k", "all")


def parameters(query: Query | None) -> list[tuple[str, str]]:
    """A query as the parameters of an address."""
    if query is None:
        return []
    found = [(kind, spelled(t)) for kind in KINDS for t in query.terms if t.kind == kind]
    found += [(name, value) for field, name in LISTS.items() for value in getattr(query, field)]
    held = {name: getattr(query, name) for name in SAME}
    defaults = {"fuse": False, "diverse": 0.0, "k": K, "all": False}
    for name, value in held.items():
        if value is not None and value != defaults.get(name):
            found.append((name, f"{value:g}" if name == "diverse" else "1" if value is True else str(value)))
    return found


def link(path: str, pairs: Iterable[tuple[str, str]]) -> str:
    """An address with its parameters."""
    query = urlencode(list(pairs))
    return f"{path}?{query}" if query else path


def typed(text: str, *, against: bool = False) -> list[Term]:
    """The terms of what was typed: `truck -fire engine #red` is a word, one against, and a concept.

    against: the whole is meant against.
    """
    found: list[Term] = []
    for part in TYPED.split(" ".join(text.split())):
        marks = re.match(r"[-−+#]*", part)
        signs, value = (marks[0], part[marks.end() :].strip()) if marks else ("", part.strip())
        if not value:
            continue
        minus = against != bool(set(signs) & {"-", "−"})
        found.append(weighed("concept" if "#" in signs else "text", value, -1 if minus else 1))
    return found
