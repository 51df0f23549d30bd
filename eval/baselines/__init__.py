"""Other ways to keep a picture in few bytes, on the same embeddings: quantisers, other choices of concepts, learned
atoms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from eval.baselines.kept import Kept, Material, Way
from eval.baselines.learned import autoencoder
from eval.baselines.learned import unfit as unfit_for_learning
from eval.baselines.pursuit import matching_pursuit, nearest_concept, splice, thresholding
from eval.baselines.quantisers import one_bit, quantised
from eval.baselines.quantisers import unfit as unfit_for_factory
from eval.evaluators import Hits, Judge, Worth
from training.errors import SparsightError

__all__ = ["QUICK", "WAYS", "Baseline", "Judged", "Kept", "LeftOut", "Material", "Way", "judge_baseline", "quantised"]

FACTORIES = {
    "SQ8": "SQ8",
    "SQ4": "SQ4",
    "PQ8": "PQ8",
    "PQ16": "PQ16",
    "OPQ8": "OPQ8,PQ8",
    "OPQ16": "OPQ16,PQ16",
    "OPQ32": "OPQ32,PQ32",
    "PCA8, 8 bits each": "PCA8,SQ8",
    "PCA16, 8 bits each": "PCA16,SQ8",
    "PCA32, 8 bits each": "PCA32,SQ8",
    "PCA64, 4 bits each": "PCA64,SQ4",
    "RaBitQ": "RR,RaBitQ",
}
CONCEPTS = (2, 5, 10)  # a picture


def _quantiser(name: str, factory: str) -> Way:
    def unfit(material: Material) -> str | None:
        return unfit_for_factory(factory, material.X.shape[1], len(material.train))

    return Way(name, "quantiser", partial(quantised, factory=factory), unfit)


def _few_concepts(k: int) -> list[Way]:
    def unfit(material: Material) -> str | None:
        m = len(material.D)
        return f"{k} concepts, the dictionary has {m}" if k > m else None

    def unfit_to_learn(material: Material) -> str | None:
        return unfit_for_learning(len(material.train))

    return [
        Way(f"matching pursuit, {k} concepts", "concepts", partial(matching_pursuit, k=k), unfit),
        Way(f"thresholding, {k} concepts", "concepts", partial(thresholding, k=k), unfit),
        Way(f"SpLiCE, {k} concepts", "concepts", partial(splice, concepts=k), unfit),
        Way(f"TopK autoencoder, {k} atoms", "learned", partial(autoencoder, k=k), unfit_to_learn),
        Way(f"CSR, {k} atoms", "learned", partial(autoencoder, k=k, contrastive=True), unfit_to_learn),
    ]


WAYS: dict[str, Way] = {
    way.name: way
    for way in (
        *(_quantiser(name, factory) for name, factory in FACTORIES.items()),
        Way("one bit a dimension", "quantiser", one_bit),
        Way("nearest concept alone", "concepts", nearest_concept),
        Way("SpLiCE, λ 0.25", "concepts", splice),
        *(way for k in CONCEPTS for way in _few_concepts(k)),
    )
}
QUICK = ("PQ8", "OPQ16", "PCA16, 8 bits each", "nearest concept alone", "matching pursuit, 5 concepts")


@dataclass(frozen=True, kw_only=True)
class Baseline(Worth):
    """What one baseline is worth. family: quantiser, concepts (of the same dictionary) or learned (atoms without
    names).

    bytes_per_image: of its codes; table_bytes: of what all pictures share. concepts: how many a picture has, None
    where it is not kept as such. train_seconds, code_seconds: to learn, and to code all pictures.
    """

    name: str
    family: str
    bytes_per_image: float
    table_bytes: int
    concepts: float | None = None
    train_seconds: float
    code_seconds: float


@dataclass(frozen=True)
class LeftOut:
    """A baseline that could not be measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Judged:
    """One baseline: what it is worth and how right it is query by query, or why it was left out."""

    baseline: Baseline | None = None
    hits: Hits | None = None
    left_out: LeftOut | None = None


def judge_baseline(way: Way, material: Material, judge: Judge) -> Judged:
    """Judges X as one baseline gives it back, or says why that cannot be."""
    if reason := way.unfit(material):
        return Judged(left_out=LeftOut(way.name, reason))
    try:
        kept = way.make(material)
    except SparsightError as e:
        return Judged(left_out=LeftOut(way.name, str(e)))
    hits = judge.hits(kept.A, kept.latent)
    baseline = Baseline(
        name=way.name,
        family=way.family,
        bytes_per_image=kept.bytes_per_image,
        table_bytes=kept.table_bytes,
        concepts=kept.concepts,
        train_seconds=kept.train_seconds,
        code_seconds=kept.code_seconds,
        **vars(judge.worth(hits)),
    )
    return Judged(baseline, hits)
