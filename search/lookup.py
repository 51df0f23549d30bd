"""From what a person names to what an index holds: concepts by name, pictures by id or path."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING
from unicodedata import normalize

from indexer.store.naming import is_id, unescaped
from search.query import Picture, as_target
from training.errors import CallError
from training.files import path_text

if TYPE_CHECKING:
    from indexer.store import Concept
    from search.engine import Engine


def clean_text(text: str) -> str:
    """A text with single spaces; raises `CallError` where it is empty."""
    text = " ".join(path_text(text).split())  # bytes of an argument that are no UTF-8 are no text
    if not text:
        raise CallError("the query is empty: give a word or a few")
    return text


def find_concept(concepts: Sequence[Concept], name: str) -> int | None:
    """The id of a concept by its name or alias, in upper or lower case, however its accents are written; or None."""
    known = _names(concepts)
    return next((known[form] for form in (_form(name), _form(unescaped(name))) if form in known), None)


def unknown_concept(concepts: Sequence[Concept], name: str, near: Sequence[str] = ()) -> CallError:
    """The fault of naming a concept that there is not. It suggests what is spelled almost so, then the concepts `near`
    in meaning; where neither is known, what is spelled alike."""
    known, wanted = _names(concepts), _form(name)
    hints = difflib.get_close_matches(wanted, known, n=2, cutoff=0.85)
    hints += [concept for concept in near if concept not in hints]
    if not near:
        hints += [n for n in known if wanted and wanted in n and n not in hints][:3]
        hints += [n for n in difflib.get_close_matches(wanted, known, n=3, cutoff=0.5) if n not in hints]
    hint = f"near ones: {', '.join(hints[:5])}" if hints else "`sparsight concepts` lists them"
    return CallError(f"unknown concept {name!r}; {hint}")


def _names(concepts: Sequence[Concept]) -> dict[str, int]:
    known: dict[str, int] = {}
    for c in concepts:
        for n in (c.name, *c.aliases):
            known.setdefault(_form(n), c.id)
    return known


def _form(name: str) -> str:
    """What names that look alike have in common."""
    return normalize("NFC", " ".join(name.split())).casefold()


def picture_id(engine: Engine, picture: Picture) -> int | None:
    """The id of a picture of the index by its id or path; None where no picture has that path.

    Raises `CallError` for an id that the index does not hold.
    """
    target = as_target(picture)
    if is_id(target):
        return _checked_id(engine, target)
    return engine.picture_at(target)


def _checked_id(engine: Engine, digits: str) -> int:
    image_id, span = int(digits[:18]), engine.span  # no index has ids of so many digits
    if len(digits) <= 18 and engine.holds(image_id):
        return image_id
    held = f"ids run from {span[0]} to {span[1]}" if span else "it is empty"
    gone = " (that one was removed)" if image_id < engine.meta.next_id else ""
    raise CallError(f"no picture {digits} in the index{gone}: {held}")
