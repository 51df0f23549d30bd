"""Other ways to keep a picture in few bytes, on the same embeddings: quantisers, other choices of concepts, learned
atoms."""

from __future__ import annotations

from functools import partial

from eval.baselines.judging import Baseline, Judged, LeftOut, judge_baseline
from eval.baselines.kept import Kept, Material, Way
from eval.baselines.learned import autoencoder
from eval.baselines.learned import unfit as unfit_for_learning
from eval.baselines.pursuit import matching_pursuit, nearest_concept, splice, thresholding
from eval.baselines.quantisers import one_bit, quantised
from eval.baselines.quantisers import unfit as unfit_for_factory
from eval.baselines.residual import with_residual

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
RESIDUALS = ("OPQ8", "OPQ16", "PCA16, 8 bits each")


def _quantiser(name: str, factory: str) -> Way:
    def unfit(material: Material) -> str | None:
        return unfit_for_factory(factory, material.X.shape[1], len(material.train))

    return Way(name, "quantiser", partial(quantised, factory=factory), unfit)


def _residual(name: str, factory: str) -> Way:
    def unfit(material: Material) -> str | None:
        return unfit_for_factory(factory, material.X.shape[1], len(material.train))

    return Way(f"concepts and a residual of {name}", "residual", partial(with_residual, factory=factory), unfit)


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
        *(_residual(name, FACTORIES[name]) for name in RESIDUALS),
    )
}
QUICK = ("PQ8", "OPQ16", "PCA16, 8 bits each", "nearest concept alone", "matching pursuit, 5 concepts")
