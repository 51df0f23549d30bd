"""What an audit looks at: every picture of an index, read once, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import sparse

from eval.audit.pixels import Pixels, decoded, read_pixels
from indexer.store import Concept, Store
from search.answers import Code, ConceptWeight, contributions

TOLD = 5  # concepts that a finding names


class Shown(NamedTuple):
    """A picture that a finding shows."""

    id: int
    path: str
    split: str | None
    label: str | None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """n pictures of an index.

    ids (n,); X (n, d) embeddings; W (n, m) codes over D (m, d); labels (n,): places in `classes`, −1 for none; T
    (c, d): the classes' texts; learnt (n,): whether the encoder was trained on a picture's label.
    """

    store: Store
    ids: np.ndarray
    X: np.ndarray
    W: sparse.csr_matrix
    D: np.ndarray
    T: np.ndarray
    classes: list[str]
    labels: np.ndarray
    learnt: np.ndarray
    splits: list[str | None]
    paths: list[str]
    concepts: list[Concept]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def names(self) -> list[str]:
        """The concepts' names, by id."""
        return [concept.name for concept in self.concepts]

    @cached_property
    def parents(self) -> np.ndarray:
        """The class of each concept (m,), a place in `classes`, −1 where it has none."""
        places = {name: i for i, name in enumerate(self.classes)}
        return np.array([places.get(c.parent or "", -1) for c in self.concepts], np.int64)

    @cached_property
    def pixels(self) -> Pixels:
        """The thumbnails of the pictures that have one, small and square."""
        return read_pixels(self.store)

    def label_of(self, place: int) -> str | None:
        return self.classes[self.labels[place]] if self.labels[place] >= 0 else None

    def shown(self, place: int) -> Shown:
        """The picture at a place."""
        return Shown(int(self.ids[place]), self.paths[place], self.splits[place], self.label_of(place))

    def labelled_pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """The labelled pictures that have a thumbnail: their places (k,), and RGB (k, SIDE, SIDE, 3)."""
        places = np.searchsorted(self.ids, self.pixels.ids)
        labelled = self.labels[places] >= 0
        return (places, self.pixels.rgb) if labelled.all() else (places[labelled], self.pixels.rgb[labelled])

    def pictures_of(self, places: np.ndarray) -> list[np.ndarray]:
        """The thumbnails of pictures that have one, uint8 (h, w, 3)."""
        ids = self.ids[places].tolist()
        jpegs = self.store.thumbnails(ids)
        return [decoded(jpegs[i]) for i in ids]

    def parts(self, place: int, t: np.ndarray) -> list[ConceptWeight]:
        """What a picture's concepts add to a text's score, t (d,): the strongest TOLD of them, by size."""
        row = self.W[place]
        parts = contributions(Code(row.indices, row.data), self.D @ t, self.names)
        return sorted(parts, key=lambda part: -abs(part.contribution))[:TOLD]


def read_subject(store: Store) -> Subject:
    """Reads an index. Labels that are no class of the index stand as none."""
    known, rows = store.classes(), store.images()
    places = {name: i for i, name in enumerate(known.names)}
    splits = [row.split for row in rows]
    return Subject(
        store=store,
        ids=store.image_ids,
        X=np.asarray(store.embeddings(), np.float32),
        W=store.codes(),
        D=store.dictionary(),
        T=known.T,
        classes=list(known.names),
        labels=np.array([places.get(row.label or "", -1) for row in rows], np.int64),
        learnt=learnt(store.meta.dataset, store.meta.trained_on, splits),
        splits=splits,
        paths=[row.path for row in rows],
        concepts=store.concepts(),
    )


def learnt(dataset: str, trained_on: str, splits: Sequence[str | None]) -> np.ndarray:
    """Which pictures' labels the encoder was trained on (n,): CIFAR-10's training split, where it says so of itself."""
    if dataset != "CIFAR-10" or "CIFAR-10 train" not in trained_on:
        return np.zeros(len(splits), bool)
    return np.array([split == "train" for split in splits], bool)
