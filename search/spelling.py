"""How terms are spelled on the command line and in addresses: words, pictures and concepts, `=WEIGHT` behind them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from search.query import Kind, Term
from training.errors import CallError

if TYPE_CHECKING:
    import numpy as np

    from search.index import Index

WEIGHED = re.compile(r"(?P<value>.+)=(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)", re.DOTALL | re.IGNORECASE)


def weighed(kind: Kind, text: str, sign: int = 1) -> Term:
    """A term from `VALUE` or `VALUE=WEIGHT`."""
    if found := WEIGHED.fullmatch(text):
        return Term(kind, found["value"], sign * float(found["weight"]))
    return Term(kind, text, float(sign))


def given_weight(text: str) -> tuple[str, float]:
    """A concept and the weight that a picture is to have of it, from `NAME=WEIGHT`. Raises `CallError` without one."""
    if (found := WEIGHED.fullmatch(text)) is None:
        raise CallError(f"{text!r} has no weight: give the one that it is to have, as {text}=0.3")
    return found["value"], float(found["weight"])


def spelled(term: Term) -> str:
    """A term's value, with its weight where that is not 1."""
    plain = term.weight == 1 and not WEIGHED.fullmatch(term.value)
    return term.value if plain else f"{term.value}={term.weight:g}"


def picture(text: str) -> Term:
    """A picture from `FILE` or `FILE=WEIGHT`; the name of a file that is there is taken as it is."""
    return Term("picture", text) if os.path.lexists(text) else weighed("picture", text)


def unwanted(index: Index, text: str) -> Term:
    """What counts against a picture: a picture, where an id, a picture of the index or a file is named; else a text."""
    from indexer.store.naming import is_id

    term = weighed("text", text, -1)
    value = term.value
    if is_id(value) or index.picture_id(value) is not None or (os.path.isfile(value) and "." in value):
        return Term("picture", value, term.weight)
    return term


def from_stdin(index: Index, terms: Sequence[Term]) -> tuple[list[Term], dict[Term, np.ndarray]]:
    """Terms, where `-` is read from the standard input: a text's words, or a picture's bytes, whose vector is told."""
    if sum(term.value == "-" and term.kind != "concept" for term in terms) > 1:
        raise CallError("the standard input, -, can be read once")
    found: list[Term] = []
    vectors: dict[Term, np.ndarray] = {}
    for term in terms:
        if term.value != "-" or term.kind == "concept":
            found.append(term)
        elif term.kind == "text":
            found.append(Term("text", sys.stdin.read(), term.weight))
        else:
            found.append(term)
            vectors[term] = index.embed_bytes(sys.stdin.buffer.read())
    return found, vectors
