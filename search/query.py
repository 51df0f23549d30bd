"""A query: what is looked for, what is left out, and how the answer is put together.

The command line, Python and the REST interface all spell the same `Query`; as JSON it is `to_dict()`, and `from_dict`
reads it back. What it means is told, with the formulas, in docs/search.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeGuard, Unpack, get_args

from training.errors import CallError
from training.files import full_path

Kind = Literal["text", "picture", "concept"]
QueryMode = Literal["hybrid", "sparse", "dense"]
GroupBy = Literal["label", "near"]
KINDS, QUERY_MODES, GROUPINGS = get_args(Kind), get_args(QueryMode), get_args(GroupBy)
MOST_TERMS = 64
MOST_HITS = 100_000
MOST_WEIGHT = 1e6
# A file, or the id or path of a picture of the index, or a picture file's bytes; a Path is never an id.
Picture = str | int | Path | bytes


class Rules(TypedDict, total=False):
    """What a query may have beside its terms, as Python spells it: see `Query`."""

    require: str | Sequence[str]
    forbid: str | Sequence[str]
    labels: str | Sequence[str]
    splits: str | Sequence[str]
    path: str | None
    where: str | None
    mode: QueryMode | None
    fuse: bool
    diverse: float
    group_by: GroupBy | None
    k: int
    all: bool


@dataclass(frozen=True)
class Term:
    """One part of the sum that is looked for.

    kind: `text`; `picture`, a file, or the id or path of a picture of the index; `concept`, a name of the dictionary.
    weight: how much it counts; below 0 it counts against a picture.
    """

    kind: Kind
    value: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise CallError(f"a term's kind is {self.kind!r}: it must be one of {', '.join(KINDS)}")
        if not isinstance(self.value, str) or not self.value.strip():
            raise CallError("the query is empty: give a word or a few")
        if not is_text(self.value):
            raise CallError(f"{self.value!r} is no text: it holds bytes of no character")
        if not _number(self.weight) or self.weight == 0:
            bounds = f"other than 0, of at most {MOST_WEIGHT:g}"
            raise CallError(f"the weight of {self.value!r} is {self.weight!r}: it must be a number {bounds}")
        object.__setattr__(self, "weight", float(self.weight))


@dataclass(frozen=True)
class Query:
    """What pictures are asked for.

    terms: the sum that they are scored by; may be empty where filters alone choose. Filters, of which each must hold:
    require, forbid: concepts that a picture's code holds, or does not; labels, splits: one of these; path: a pattern
    in which `*` stands for any characters and `?` for one; where: an SQL condition on the table `images`.
    mode: which index answers (docs/search.md); None: `hybrid`, or `sparse` where only concepts are asked for.
    fuse: order by the ranks in both indexes (reciprocal rank fusion). diverse: from 0, by score alone, to below 1, the
    more unlike those before (maximal marginal relevance). group_by: one hit a label, or one of near-duplicates.
    k: how many. all: also what scores no higher than an unrelated text would.
    Raises `CallError` where a value makes no sense.
    """

    terms: tuple[Term, ...] = ()
    require: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    path: str | None = None
    where: str | None = None
    mode: QueryMode | None = None
    fuse: bool = False
    diverse: float = 0.0
    group_by: GroupBy | None = None
    k: int = 10
    all: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.k, Integral) or isinstance(self.k, bool):
            raise CallError(f"k is {self.k!r}: it must be a whole number")
        object.__setattr__(self, "k", int(self.k))
        if self.k < 1:
            raise CallError(f"k is {self.k}: it must be at least 1")
        if self.k > MOST_HITS:
            raise CallError(f"k is {self.k}: it must be at most {MOST_HITS}")
        if self.mode not in (None, *QUERY_MODES):
            raise CallError(f"mode is {self.mode!r}: it must be one of {', '.join(QUERY_MODES)}")
        if self.group_by not in (None, *GROUPINGS):
            raise CallError(f"group_by is {self.group_by!r}: it must be one of {', '.join(GROUPINGS)}")
        if not _number(self.diverse) or not 0 <= self.diverse < 1:
            raise CallError(f"diverse is {self.diverse!r}: it must be a number from 0 to below 1")
        object.__setattr__(self, "diverse", float(self.diverse))
        for name in LISTS:
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for name in ("path", "where"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value.strip() and is_text(value)):
                raise CallError(f"{name} is {value!r}: it must be a text that is not empty")
        for name in ("fuse", "all"):
            if not isinstance(getattr(self, name), bool):
                raise CallError(f"{name} is {getattr(self, name)!r}: it must be true or false")
        if self.fuse and self.mode in ("sparse", "dense"):
            raise CallError(f"ranks are fused in mode hybrid, not {self.mode}: leave one of them out")
        if len(self.terms) > MOST_TERMS:
            raise CallError(f"the query has {len(self.terms)} terms: at most {MOST_TERMS} are taken")
        if not self.terms and not self.filters():
            raise CallError("the query is empty: give a text, a picture, a concept, or a filter")

    @property
    def resolved_mode(self) -> QueryMode:
        """The mode that answers, where None leaves the choice."""
        if self.mode:
            return self.mode
        return "sparse" if all(term.kind == "concept" for term in self.terms) else "hybrid"

    def filters(self) -> dict[str, object]:
        """The filters that are set, by the names of their fields."""
        return {name: getattr(self, name) for name in FILTERS if getattr(self, name)}

    def to_dict(self) -> dict[str, object]:
        """The query as JSON holds it: what is as it always is, is left out."""
        held = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return held | ({"terms": [asdict(term) for term in self.terms]} if self.terms else {})

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> Query:
        """The query that `to_dict` wrote. Raises `CallError` for what is no query."""
        if not isinstance(held, Mapping):
            raise CallError(f"a query is an object, not {type(held).__name__}")
        _refuse_unknown(held, {f.name for f in fields(cls)})
        terms = held.get("terms", ())
        if not isinstance(terms, list | tuple):
            raise CallError("the terms of a query are a list")
        rest = {name: value for name, value in held.items() if name != "terms"}
        return cls(terms=tuple(_term(term) for term in terms), **rest)

    @classmethod
    def of(
        cls,
        text: str | None = None,
        like: Picture | Sequence[Picture] = (),
        concepts: str | Sequence[str] | Mapping[str, float] = (),
        without: str | Picture | Sequence[str | Picture] = (),
        **rules: Unpack[Rules],
    ) -> Query:
        """The query as Python spells it (`search.index.Index.search`)."""
        _refuse_unknown(rules, Rules.__annotations__)
        if not isinstance(text, str | None):
            raise CallError(f"the text is {text!r}: pictures are given as like=, concepts as concepts=")
        terms = [] if text is None else [Term("text", text)]
        terms += [Term("picture", as_target(one)) for one in several(like)]
        weights = concepts if isinstance(concepts, Mapping) else dict.fromkeys(several(concepts), 1.0)
        terms += [Term("concept", name, weight) for name, weight in weights.items()]
        for one in several(without):
            terms.append(Term("text", one, -1.0) if isinstance(one, str) else Term("picture", as_target(one), -1.0))
        held = {name: several(value) if name in LISTS else value for name, value in rules.items()}
        return cls(terms=tuple(terms), **held)  # type: ignore[arg-type]

    def with_terms(self, *terms: Term) -> Query:
        """The same query with other terms."""
        return replace(self, terms=terms)


LISTS = ("require", "forbid", "labels", "splits")
FILTERS = (*LISTS, "path", "where")


def _refuse_unknown(held: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted(set(held) - set(known)):
        raise CallError(f"a query has no {unknown[0]!r}: it has {', '.join(sorted(known))}")


def several(value: object) -> list[Any]:
    """One thing, each of several, or nothing for None."""
    if value is None:
        return []
    single = isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Iterable)
    return [value] if single else list(value)  # type: ignore[call-overload]


def as_target(picture: Picture) -> str:
    """A picture as a term names it: digits alone are an id, so a Path of digits is made absolute. Bytes are named by
    their hash."""
    if is_bytes(picture):
        return f"bytes:{hashlib.sha256(picture).hexdigest()[:16]}"
    text = str(picture)
    return str(full_path(text)) if isinstance(picture, Path) and text.isdigit() else text


def is_bytes(picture: object) -> TypeGuard[bytes]:
    """Whether a picture is given by its file's bytes."""
    return isinstance(picture, bytes | bytearray | memoryview)


def is_text(value: str) -> bool:
    """Whether a string can be bytes, as what Python makes of an argument can; half of a surrogate pair cannot."""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _number(value: Any) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and bool(abs(value) <= MOST_WEIGHT)


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) and is_text(text) for text in value):
        raise CallError(f"{name} is a list of texts, not {value!r}")
    return tuple(value)


def _term(held: object) -> Term:
    if not isinstance(held, Mapping) or not {"kind", "value"} <= set(held) <= {"kind", "value", "weight"}:
        raise CallError(f"a term has a kind, a value, and may have a weight; this one is {held!r}")
    return Term(**held)
