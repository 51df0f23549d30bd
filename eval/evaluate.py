"""The report's numbers: reads the store once and measures part after part.

Nearly all figures come from the two indexes of one store alone. Those on open words need the encoder, and those on
corrupted and changed pictures need the pictures too. Where no label is known, what needs one is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version

import numpy as np

from eval.baselines import QUICK, WAYS, Baseline, Judged, LeftOut, Material, judge_baseline
from eval.believed import Believed, believed
from eval.described import Concepts, described
from eval.evaluators import (
    MATCHED,
    SWEEP,
    CodeFigures,
    Comparison,
    Confusion,
    Hits,
    Judge,
    Memory,
    OpenWords,
    Point,
    Points,
    Texts,
    Worth,
    accuracy_of,
    code_figures,
    compare,
    confusion,
    fitting,
    match_sizes,
    mcnemar,
    memory_of,
    predicted,
    reconstruct,
    sweep_penalties,
)
from eval.machine import hardware
from eval.parts import Parts, code_version, fingerprint, module_of
from eval.pictured import OnPictures, judge_pictures, judge_words
from eval.subject import MOST_JUDGED, Subject, read_subject
from indexer.store import Store
from training.data.cifar10 import Pictures
from training.encoders import Encoder

LEAST_OF_A_TEXT = 10  # pictures of a term or class from which it is asked for
QUICK_JUDGED = 2000


@dataclass(frozen=True)
class Dataset:
    """n: pictures that were judged; indexed: pictures in the index; labelled: whether their classes are known."""

    name: str
    split: str
    n: int
    indexed: int
    labelled: bool


@dataclass(frozen=True)
class EncoderNote:
    """zero_shot: whether its accuracy is that of classes which it was never taught, in words."""

    name: str
    fingerprint: str
    trained_on: str
    zero_shot: str


@dataclass(frozen=True)
class DictionaryNote:
    source: str
    m: int
    fingerprint: str


@dataclass(frozen=True)
class TextsNote:
    """The text queries: the search terms or the classes with at least ten judged pictures."""

    kind: str
    n: int


@dataclass(frozen=True, kw_only=True)
class DenseFigures:
    """accuracy, ci95: of the class by the embedding, None without labels. worth: all of its figures."""

    accuracy: float | None = None
    ci95: tuple[float, float] | None = None
    worth: Worth


@dataclass(frozen=True)
class Reference:
    """The result that this project began from: accuracies on n pictures, and the codes' share of the dense bytes."""

    dense: float = 0.95
    sparse: float = 0.88
    ratio: float = 0.0387
    n: int = 100


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Our codes along λ, and made to the size of each baseline; the baselines, and how ours differ from them."""

    sweep: list[Point]
    matched: list[Point]
    baselines: list[Baseline]
    baselines_left_out: list[LeftOut]
    comparisons: list[Comparison]


@dataclass(frozen=True, kw_only=True)
class Report(Frontier, Believed, OnPictures):
    """All figures of one report; None: what the labels, the encoder or the pictures to measure it are missing for."""

    dataset: Dataset
    encoder: EncoderNote
    dictionary: DictionaryNote
    dense: DenseFigures
    sparse: CodeFigures
    mcnemar_p: float | None
    confusion: Confusion | None
    memory: Memory
    texts: TextsNote | None
    baselines_trained_on: str
    concepts: Concepts
    open_words: OpenWords | None
    reference: Reference = Reference()
    made: dict[str, str | int | bool] = field(default_factory=dict)
    hardware: dict[str, str | int | float | bool] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a report is to hold. split: see `read_subject`. examples: right and wrong ones, each. quick: fewer pictures,
    penalties and baselines. ways, penalties: the names of the baselines and the penalties of the sweep, largest first;
    None: all of them. command: what the page says that it was made by."""

    split: str | None = None
    device: str = "cpu"
    seed: int = 0
    examples: int = 8
    quick: bool = False
    ways: Sequence[str] | None = None
    penalties: Sequence[float] | None = None
    command: str = ""

    @property
    def baselines(self) -> Sequence[str]:
        return self.ways if self.ways is not None else QUICK if self.quick else tuple(WAYS)

    @property
    def path(self) -> Sequence[float]:
        return self.penalties if self.penalties is not None else SWEEP[::3] if self.quick else SWEEP


def evaluate(
    store: Store,
    settings: Settings | None = None,
    *,
    encoder: Encoder | None = None,
    pictures: Pictures | None = None,
    parts: Parts | None = None,
) -> Report:
    """The report on the pictures of a split: on the labelled ones, where there are any.

    encoder: the index's, for the figures on open words; pictures: labelled pictures that it did not train on, for
    those on corrupted ones. parts: where measured parts are kept.

    Raises `SparsightError` where there are fewer than two pictures.
    """
    settings, parts = settings or Settings(), parts or Parts()
    s = read_subject(store, settings.split, settings.seed, QUICK_JUDGED if settings.quick else MOST_JUDGED)
    texts = text_queries(s, encoder)
    has_classes = s.labels is not None and len(s.T) > 0
    judge = Judge(s.X, s.T if has_classes else None, s.labels, s.terms, texts, seed=settings.seed)
    known = fingerprint(
        s.X, s.W, s.D, s.T, s.labels, s.terms, s.train, *([] if texts is None else vars(texts).values())
    )
    dense, codes, p, confused = both_sides(s, judge)
    front = frontier(s, judge, settings, parts, known)
    of_pictures = judge_pictures(s, encoder, pictures, settings.seed, settings.device, parts)
    return Report(
        dataset=Dataset(s.meta.dataset, s.split, len(s.X), len(store), s.labels is not None),
        encoder=EncoderNote(
            s.meta.encoder_name, s.meta.encoder_fingerprint, s.meta.trained_on, zero_shot_note(s.meta.trained_on)
        ),
        dictionary=DictionaryNote(s.meta.dictionary, len(s.D), s.meta.dictionary_fingerprint),
        dense=dense,
        sparse=codes,
        mcnemar_p=p,
        confusion=confused,
        memory=memory_of(s.W, s.D, s.W_all, s.disk),
        texts=None if texts is None else TextsNote(texts.kind, len(texts.vectors)),
        **vars(front),
        baselines_trained_on="the judged pictures themselves" if s.train is s.X else "pictures outside the split",
        concepts=described(s, settings.examples, settings.seed),
        **vars(believed(s, settings.device, settings.seed, parts, known)),
        open_words=judge_words(s, encoder, parts),
        **vars(of_pictures),
        made={"command": settings.command, "seed": settings.seed, "quick": settings.quick},
        hardware=hardware(settings.device),
        versions={p: version(p) for p in ("sparsight", "torch", "faiss-cpu", "duckdb", "scipy", "numpy")},
    )


def both_sides(s: Subject, judge: Judge) -> tuple[DenseFigures, CodeFigures, float | None, Confusion | None]:
    """The embeddings' figures, the codes' as the index holds them, and how the classes that both give differ."""
    worth, accuracy, right, p, confused = judge(s.X), None, None, None, None
    if s.labels is not None and len(s.T):
        by_dense, by_codes = predicted(s.X, s.T), predicted(reconstruct(s.W, s.D), s.T)
        accuracy, right = accuracy_of(by_dense == s.labels), by_codes == s.labels
        p = mcnemar(by_dense == s.labels, right)
        confused = confusion(s.labels, by_dense, by_codes, s.classes)
    dense = DenseFigures(worth=worth, **({} if accuracy is None else vars(accuracy)))
    return dense, code_figures(s.X, s.W, s.D, right, s.gap, s.meta.coder, judge), p, confused


def frontier(s: Subject, judge: Judge, settings: Settings, parts: Parts, known: str) -> Frontier:
    """The codes along λ, the baselines, codes made to each baseline's size, and the differences between those two."""
    coder, device, seed = s.meta.coder, settings.device, settings.seed
    key = (known, seed, coder)
    sweep = parts.get(
        "sweep",
        Points,
        partial(sweep_penalties, s.X, s.D, judge, coder, device, settings.path),
        *(*key, settings.path),
    )
    material = Material(s.X, s.train, s.D, seed)
    judged = [
        parts.get(
            f"baseline {name}",
            Judged,
            partial(judge_baseline, WAYS[name], material, judge),
            *(known, seed, name, code_version(module_of(WAYS[name].make))),
        )
        for name in settings.baselines
    ]
    found = [(each.baseline, each.hits) for each in judged if each.baseline is not None and each.hits is not None]
    sizes = sorted({round(baseline.bytes_per_image) for baseline, _ in found})
    matched = parts.get(
        "codes of equal size",
        Points,
        partial(match_sizes, s.X, s.D, judge, coder, sizes, device),
        *(*key, sizes),
    )
    return Frontier(
        sweep=sweep.found,
        matched=matched.found,
        baselines=[baseline for baseline, _ in found],
        baselines_left_out=[each.left_out for each in judged if each.left_out is not None],
        comparisons=comparisons(matched, found, seed),
    )


def comparisons(matched: Points, baselines: Sequence[tuple[Baseline, Hits]], seed: int) -> list[Comparison]:
    """Each baseline of at most MATCHED bytes beside the largest of our codes that keeps within its size, to the
    byte."""
    ours, found = [point.bytes_per_image for point in matched.found], []
    for baseline, hits in baselines:
        place = fitting(ours, round(baseline.bytes_per_image))
        if place is not None and baseline.bytes_per_image <= MATCHED and baseline.family != "residual":
            differences = compare(matched.hits[place], hits, seed)
            found.append(Comparison(baseline.name, matched.found[place].name, baseline.bytes_per_image, differences))
    return found


def text_queries(s: Subject, encoder: Encoder | None) -> Texts | None:
    """The search terms with enough judged pictures, as a search would embed them; without terms, or without an encoder,
    the classes. None where nothing is known of the pictures."""
    if s.terms is not None and encoder is not None:
        counts = np.bincount(s.terms[s.terms >= 0])
        if len(asked := np.flatnonzero(counts >= LEAST_OF_A_TEXT)):
            names = {int(number): str(p.term) for number, p in zip(s.terms, s.pictures, strict=True)}
            return Texts("terms", encoder.encode_texts([names[int(t)] for t in asked]), asked, s.terms)
    if s.labels is not None and len(s.T):
        asked = np.flatnonzero(np.bincount(s.labels, minlength=len(s.T)) >= LEAST_OF_A_TEXT)
        if len(asked):
            return Texts("classes", s.T[asked], asked, s.labels)
    return None


def zero_shot_note(trained_on: str) -> str:
    """Whether the accuracy is that of pictures whose classes the encoder was never taught."""
    if "CIFAR-10" in trained_on:
        return f"not zero-shot in the strict sense: the encoder was trained on captions of {trained_on}"
    return f"zero-shot as far as sparsight knows: the encoder was trained on {trained_on}"
