"""The report's numbers: reads the store once and asks every evaluator.

Nearly all figures come from the two indexes of one store alone. Those on open words need the encoder, and those on
corrupted pictures need the pictures too.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np

from eval.evaluators import (
    CASES,
    FACTORIES,
    SWEEP,
    Accuracy,
    Baselines,
    CodeFigures,
    ConceptAccuracy,
    Corruptions,
    Examples,
    Judge,
    Memory,
    OpenWords,
    Point,
    accuracy_of,
    code_figures,
    concept_accuracy,
    draw_examples,
    judge_baselines,
    judge_compact,
    judge_corrupted,
    judge_open_words,
    match_sizes,
    mcnemar,
    memory_of,
    predicted,
    reconstruct,
    sweep_penalties,
)
from eval.subject import Subject, read_subject
from indexer.coding import encode_sparse
from indexer.store import Store
from training.data.cifar10 import CLASSES, Pictures
from training.encoders import Encoder
from training.terminal import progress

Found = TypeVar("Found")


@dataclass(frozen=True)
class Dataset:
    """n: pictures that were judged; indexed: pictures in the index."""

    name: str
    split: str
    n: int
    indexed: int


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


@dataclass(frozen=True, kw_only=True)
class Report:
    """All figures of one report. open_words, corruptions: None where the encoder or the pictures are missing."""

    dataset: Dataset
    encoder: EncoderNote
    dictionary: DictionaryNote
    dense: Accuracy
    sparse: CodeFigures
    mcnemar_p: float
    memory: Memory
    sweep: list[Point]
    matched: list[Point]
    baselines: Baselines
    baselines_trained_on: str
    concepts: ConceptAccuracy
    examples: Examples
    open_words: OpenWords | None = None
    corruptions: Corruptions | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What `report.json` holds. A figure that was not measured is left out."""
        found = asdict(self, dict_factory=lambda items: {key: value for key, value in items if value is not None})
        baselines = found.pop("baselines")
        found |= {"baselines": baselines["found"], "baselines_left_out": baselines["left_out"]}
        found["concepts"]["examples"] = found.pop("examples")
        return found


def evaluate(
    store: Store,
    *,
    split: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    examples: int = 8,
    encoder: Encoder | None = None,
    pictures: Pictures | None = None,
    factories: Sequence[str] = FACTORIES,
) -> Report:
    """The report on the labelled pictures of a split: without one, of the split "test", or all where it holds none.

    encoder: the index's, for the figures on open words; pictures: labelled pictures that it did not train on, for
    those on corruption. examples: how many right and how many wrong ones. factories: the quantisers to compare with.

    Raises `SparsightError` where there are fewer than two labelled pictures.
    """
    s = read_subject(store, split, seed)
    coder, R = s.meta.coder, reconstruct(s.W, s.D)
    judge = Judge(s.X, s.T, s.labels, s.terms)
    by_dense, by_sparse = predicted(s.X, s.T), predicted(R, s.T)
    dense_right, sparse_right = by_dense == s.labels, by_sparse == s.labels
    with progress("sweep", len(SWEEP), "λ") as step:
        swept = sweep_penalties(s.X, s.D, ticking(judge, step), coder, device)
    with progress("baselines", len(factories) + 2, "baseline") as step:
        baselines = judge_baselines(s.X, s.train, s.D, ticking(judge, step), seed, factories)
    sizes = [baseline.bytes_per_image for baseline in baselines.found]
    return Report(
        dataset=Dataset(s.meta.dataset, s.split, len(s.X), len(store)),
        encoder=EncoderNote(
            s.meta.encoder_name, s.meta.encoder_fingerprint, s.meta.trained_on, zero_shot_note(s.meta.trained_on)
        ),
        dictionary=DictionaryNote(s.meta.dictionary, len(s.D), s.meta.dictionary_fingerprint),
        dense=accuracy_of(dense_right),
        sparse=code_figures(s.X, R, s.W, sparse_right, s.gap, coder, judge_compact(s.W, s.D, judge)),
        mcnemar_p=mcnemar(dense_right, sparse_right),
        memory=memory_of(s.W, s.D, s.W_all, s.disk),
        sweep=swept,
        matched=match_sizes(s.X, s.D, judge, coder, sizes, device),
        baselines=baselines,
        baselines_trained_on="the split itself" if s.train is s.X else "pictures outside the split",
        concepts=concept_accuracy(s.X, s.W, s.D, s.wanted, s.parents, s.labels),
        examples=draw_examples(s.W, s.D, s.T, by_sparse, s.labels, s.pictures, s.classes, s.names, examples, seed),
        open_words=open_words(s, R, encoder) if encoder else None,
        corruptions=corruptions(s, encoder, pictures, device, seed) if encoder and pictures else None,
        hardware={
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "device": device,
            "seed": seed,
        },
        versions={p: version(p) for p in ("sparsight", "torch", "faiss-cpu", "duckdb", "scipy", "numpy")},
    )


def open_words(s: Subject, R: np.ndarray, encoder: Encoder) -> OpenWords | None:
    """The figures on open words; None where the classes are not those that the queries were written for."""
    if s.classes != list(CLASSES):
        return None
    return judge_open_words(encoder.encode_texts, s.X, R, s.D, np.array(s.classes)[s.labels])


def corruptions(s: Subject, encoder: Encoder, pictures: Pictures, device: str, seed: int) -> Corruptions:
    """The figures on corrupted pictures, coded as the index's are."""

    def recode(X: np.ndarray) -> np.ndarray:
        return reconstruct(encode_sparse(X, s.D, s.meta.coder, device=device).W, s.D)

    with progress("corrupted", len(CASES), "case") as step:
        of_codes = ticking(recode, step)
        return judge_corrupted(pictures.pixels, pictures.labels, encoder.encode_images, of_codes, s.T, seed)


def ticking(function: Callable[[np.ndarray], Found], step: Callable[[int], object]) -> Callable[[np.ndarray], Found]:
    """The same function, which also moves a progress bar on by one."""

    def called(A: np.ndarray) -> Found:
        found = function(A)
        step(1)
        return found

    return called


def zero_shot_note(trained_on: str) -> str:
    """Whether the accuracy is that of pictures whose classes the encoder was never taught."""
    if "CIFAR-10" in trained_on:
        return f"not zero-shot in the strict sense: the encoder was trained on captions of {trained_on}"
    return f"zero-shot as far as sparsight knows: the encoder was trained on {trained_on}"
