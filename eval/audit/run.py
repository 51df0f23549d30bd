"""An audit: its parts, each of which finds something, finds nothing, or says in one line why it cannot be done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from eval.audit import PARTS
from eval.audit.crutches import Crutch, Leaning, find_crutches
from eval.audit.duplicates import DuplicateGroup, find_duplicates
from eval.audit.labels import LabelError, find_label_errors
from eval.audit.marks import Encode
from eval.audit.outliers import Outlier, find_outliers
from eval.audit.subject import Subject, read_subject
from indexer.store import Store
from training.errors import SparsightError

DISPUTED = 0.05  # how likely a label is, by the evidence, from which on it is disputed


@dataclass(frozen=True)
class LeftOut:
    """A part that cannot be done, or not wholly, and why, in one line."""

    part: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found in an index of n pictures: findings of each part, the foremost first; left_out: parts that could
    not be done, and what must be known of the others; seconds: of each part that was done."""

    dataset: str
    encoder: str
    trained_on: str
    n: int
    labelled: int
    learnt: int
    labels: list[LabelError] = field(default_factory=list)
    duplicates: list[DuplicateGroup] = field(default_factory=list)
    outliers: list[Outlier] = field(default_factory=list)
    crutches: list[Crutch] = field(default_factory=list)
    leaning: list[Leaning] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def disputed(self) -> int:
        """Labels to which the evidence gives DISPUTED or less."""
        return sum(error.given <= DISPUTED for error in self.labels)

    def findings(self) -> Iterator[dict[str, Any]]:
        """Each finding as a dictionary for JSON: `kind`, `rank` within its kind, and its fields."""
        for part, kind in (("labels", "label"), ("duplicates", "duplicates"), ("outliers", "outlier")):
            yield from _numbered(kind, getattr(self, part))
        yield from _numbered("crutch", self.crutches)
        yield from _numbered("leaning", self.leaning)
        for left in self.left_out:
            yield {"kind": "left out", "part": left.part, "reason": left.reason}


def _numbered(kind: str, found: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for rank, finding in enumerate(found, 1):
        yield {"kind": kind, "rank": rank} | {name: _plain(value) for name, value in asdict(finding).items()}


def _plain(value: Any) -> Any:
    """Named tuples as dictionaries, so that JSON names their fields."""
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def audit(
    store: Store,
    parts: Sequence[str] = PARTS,
    *,
    encode: Encode | None = None,
    seed: int = 0,
    told: Callable[[str], object] = lambda part: None,
) -> Audit:
    """Audits an index.

    encode: uint8 pictures → embeddings, to confirm marks; where it raises `SparsightError` they are unconfirmed. told:
    is called with the name of each part before it begins. Raises `SparsightError` where no part can be done.
    """
    subject = read_subject(store)
    found: dict[str, Any] = {}
    left_out: list[LeftOut] = []
    seconds: dict[str, float] = {}
    for part in [part for part in PARTS if part in parts]:
        told(part)
        begun = time.perf_counter()
        try:
            found |= _run(part, subject, encode, seed)
        except SparsightError as e:
            left_out.append(LeftOut(part, str(e)))
        else:
            seconds[part] = time.perf_counter() - begun
            left_out += [LeftOut(part, note) for note in _notes(part, subject)]
    if not seconds:
        raise SparsightError("; ".join(f"{left.part}: {left.reason}" for left in left_out))
    return Audit(
        dataset=store.meta.dataset,
        encoder=store.meta.encoder_name,
        trained_on=store.meta.trained_on,
        n=len(subject),
        labelled=int((subject.labels >= 0).sum()),
        learnt=int(subject.learnt.sum()),
        left_out=left_out,
        seconds=seconds,
        **found,
    )


def _run(part: str, subject: Subject, encode: Encode | None, seed: int) -> dict[str, Any]:
    if part == "labels":
        return {"labels": find_label_errors(subject, seed)}
    if part == "duplicates":
        return {"duplicates": find_duplicates(subject)}
    if part == "outliers":
        return {"outliers": find_outliers(subject)}
    crutches, leaning = find_crutches(subject, encode, seed)
    return {"crutches": crutches, "leaning": leaning}


def _notes(part: str, subject: Subject) -> Iterator[str]:
    """What of a part that was done is not done, or must be taken with care."""
    learnt, labelled = int((subject.learnt & (subject.labels >= 0)).sum()), int((subject.labels >= 0).sum())
    if part == "labels" and learnt:
        yield (
            f"the encoder was trained on the labels of {learnt:,} of these pictures and has learnt their errors, too: "
            "few of them can be seen; they are listed last"
        )
    if part in ("labels", "crutches") and 0 < labelled < len(subject):
        yield f"{len(subject) - labelled:,} pictures have no label: they are left out"
    if part in ("duplicates", "crutches") and (blind := len(subject) - len(subject.pixels.ids)):
        pictures = f"{blind:,} of {len(subject):,} pictures have no thumbnail"
        if part == "duplicates":
            yield f"{pictures}: of these only copies with the same embedding are found"
        else:
            yield f"{pictures}: no marks are looked for in them"
