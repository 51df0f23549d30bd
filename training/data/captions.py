"""Captions of pictures, at two grains: the class of a picture, and the term that it was found under.

A *concept* is a word or a few of them ("fire engine"). A *prompt* is a sentence that holds one ("a photo of a fire
engine."). Each CIFAR-10 class name is one of the terms too, so that one list of concepts serves both grains.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from string import Formatter

import numpy as np

from training.data.cifar10 import CLASSES, Pictures

# The prompts whose mean stands for a concept, as in CLIP's zero-shot classification. A small tower needs but few.
TEMPLATES = ("a photo of a {}.", "a {}.", "{}", "a picture of a {}.", "a small photo of a {}.", "an image of a {}.")
CLIP_TEMPLATES = ("a photo of a {}.",)  # for encoders of web pictures and texts
KIND_TEMPLATE = "{}, a kind of {}"
_ARTICLE = re.compile(r"(?<![\w'’-])([Aa])[Nn]?(?=[\s\"'“‘«(]+$)")  # right before the place of a word


@dataclass(frozen=True)
class Captions:
    """The concepts of a training set and, for each picture, the two that describe it.

    concepts: m names, the classes first. parent: (m,) class id of each concept. of_class: (n,) concept id of each
    picture's class, which is its label. of_term: (n,) concept id of its term.
    """

    concepts: list[str]
    parent: np.ndarray
    of_class: np.ndarray
    of_term: np.ndarray

    @property
    def class_of(self) -> dict[str, str]:
        """Concept → the name of its class."""
        return {c: CLASSES[p] for c, p in zip(self.concepts, self.parent, strict=True)}

    @property
    def kinds(self) -> list[str]:
        """The m concepts, each with its class named as well: "fire engine, a kind of truck"."""
        return [KIND_TEMPLATE.format(c, kind) for c, kind in self.class_of.items()]


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
    """Puts words into a prompt template → "a photo of an airplane."; `{{` and `}}` stand for braces.

    An article right before the place of a word becomes "an" before a vowel, and "a" before any other letter. The prompt
    begins with a small letter, whatever the template and the words begin with.
    """
    text, left = "", iter(words)
    for before, place, _, _ in Formatter().parse(template):
        if place is None:
            text += before
            continue
        word = next(left)
        first = unicodedata.normalize("NFD", word.lstrip(" \"'“‘«("))[:1].lower()
        article = r"\1n" if first and first in "aeiou" else r"\1"
        text += _ARTICLE.sub(article, before) + word
    return text[:1].lower() + text[1:]


def all_prompts(concepts: Iterable[str]) -> list[str]:
    """Every concept in each of the templates, all of a concept's prompts together."""
    return [fill(t, c) for c in concepts for t in TEMPLATES]


def sample_prompts(captions: Captions, rng: np.random.Generator) -> list[str]:
    """One prompt for each concept, its template drawn at random; half of the terms name their class as well."""
    prompts = []
    for i, (concept, kind) in enumerate(zip(captions.concepts, captions.kinds, strict=True)):
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        names_class = i >= len(CLASSES) and rng.random() < 0.5
        prompts.append(fill(template, kind if names_class else concept))
    return prompts


def embed_concepts(
    embed: Callable[[Sequence[str]], np.ndarray], concepts: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """Concepts → (m, d) unit rows: each is the normalised mean of its prompts' embeddings (CLIP, section 3.1.4).

    embed: texts → (n, d) unit rows. templates: of the prompts, each with one {}.
    """
    Z = embed([fill(t, c) for c in concepts for t in templates])
    Z = Z.reshape(len(concepts), len(templates), Z.shape[1]).mean(1)
    return Z / np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), 1e-12)
