"""Captions of two grains: the class of a picture, and the term it was found under.

A *concept* is a word or a few of them ("fire engine"); a *prompt* is a sentence that holds one
("a photo of a fire engine."). Each CIFAR-10 class name is one of the terms too, so that one list of
concepts serves both grains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from training.data.cifar10 import CLASSES, Pictures

# The prompt ensemble of zero-shot classification (CLIP, section 3.1.4), small enough for a small tower.
TEMPLATES = ("a photo of a {}.", "a {}.", "{}", "a picture of a {}.", "a small photo of a {}.", "an image of a {}.")
CLIP_TEMPLATES = ("a photo of a {}.",)  # for encoders of web pictures and texts
KIND_TEMPLATE = "{}, a kind of {}"


@dataclass(frozen=True)
class Captions:
    """The concepts of a training set and, for each picture, the two that describe it.

    `concepts` m names, the classes first · `parent` (m,) class id of each concept ·
    `of_class` (n,) concept id of each picture's class (= its label) · `of_term` (n,) of its term.
    """

    concepts: list[str]
    parent: np.ndarray
    of_class: np.ndarray
    of_term: np.ndarray


def make_captions(pictures: Pictures) -> Captions:
    """Builds the concept list of a split; a term seen under two classes belongs to the commoner one."""
    seen: dict[str, Counter] = {}
    terms = pictures.terms
    for term, label in zip(terms, pictures.labels, strict=True):
        seen.setdefault(term, Counter())[int(label)] += 1
    concepts = [*CLASSES, *sorted(set(seen) - set(CLASSES))]
    ids = {c: i for i, c in enumerate(concepts)}
    parent = [i if i < len(CLASSES) else seen[c].most_common(1)[0][0] for i, c in enumerate(concepts)]
    of_term = np.array([ids[t] for t in terms], np.int64)
    return Captions(concepts, np.array(parent, np.int64), pictures.labels, of_term)


def fill(template: str, *words: str) -> str:
    """Puts words into a prompt template, minding "a" before a vowel: → "a photo of an airplane."."""
    text = template.format(*words)
    for word in words:
        if word[:1].lower() in "aeiou":
            text = text.replace(f"a {word}", f"an {word}")
    return text[:1].lower() + text[1:]


def embed_concepts(
    embed: Callable[[Sequence[str]], np.ndarray], concepts: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """Concepts → (m, d): each the normalised mean of its prompts' embeddings, which `embed` gives as unit rows."""
    Z = embed([fill(t, c) for c in concepts for t in templates])
    Z = Z.reshape(len(concepts), len(templates), Z.shape[1]).mean(1)
    return Z / np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), 1e-12)
