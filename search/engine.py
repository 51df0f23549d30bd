"""Queries against both indexes, and why each hit was found.

A query is a vector t in the encoder's space: a text's embedding, a picture's, or a sum of atoms. The dense
index scores `x·t` (FAISS); the sparse one `(w D)·t = w·(D t)`: t becomes one score for each concept, and a
picture's score is the sum of its concepts' contributions `w_j (D t)_j`, which is its explanation as well.
Concept queries read only those concepts' postings.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from indexer.store import Classes, Concept, Store
from training.errors import CallError, SparsightError
from training.files import path_text

if TYPE_CHECKING:
    from search.inverted import Inverted
    from training.encoders import Encoder, TextEncoder

Mode = Literal["dense", "sparse"]


@dataclass(frozen=True)
class ConceptWeight:
    """A concept of one picture: its weight w_j in the code, and what it adds to the score, w_j (D t)_j."""

    name: str
    weight: float
    contribution: float


@dataclass(frozen=True)
class Hit:
    """One found picture. The contributions of a sparse hit add up to its score; a dense hit's are those its code
    would give, the rest of its score lying outside the concepts."""

    rank: int
    id: int
    score: float
    path: str
    label: str | None
    concepts: list[ConceptWeight]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Classification:
    """Classes with their scores, best first, and the concepts' contributions to the best one's score."""

    label: str
    scores: list[tuple[str, float]]
    concepts: list[ConceptWeight]


@dataclass(frozen=True)
class Explanation:
    """One picture for one text: dense score x·t, sparse score (w D)·t, and each concept's part in the latter."""

    target: str
    label: str | None
    text: str
    dense_score: float
    sparse_score: float
    cosine: float  # of x and w D: how much of the embedding the concepts hold
    concepts: list[ConceptWeight]


def top_k(scores: np.ndarray, k: int, ids: np.ndarray | None = None) -> np.ndarray:
    """Places of the k largest scores (n,), largest first, ties by id (n,), else by place: always the same answer."""
    k = min(k, len(scores))
    if k == 0:
        return np.zeros(0, np.int64)
    kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= kth)
    ties = candidates if ids is None else ids[candidates]
    return candidates[np.lexsort((ties, -scores[candidates]))][:k]


class Searcher:
    """An open index and, once a query needs it, the encoder that it was built with."""

    def __init__(self, folder: Path | str, encoder: str | None = None, device: str = "auto"):
        self.store = Store(folder)
        self._encoder_name, self._device = encoder, device

    def __enter__(self) -> Searcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    @cached_property
    def encoder(self) -> Encoder:
        from training.device import pick_device
        from training.encoders import open_encoder

        encoder = open_encoder(self._encoder_source, pick_device(self._device), means=self.store.means())
        self.store.refuse_another(encoder)
        return encoder

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """What embeds texts: the text tower alone where that opens without torch, else the encoder."""
        from training.encoders import open_text_encoder

        if "encoder" in self.__dict__:
            return self.encoder
        encoder = open_text_encoder(self._encoder_source, self._device, means=self.store.means())
        self.store.refuse_another(encoder)
        return encoder

    @property
    def _encoder_source(self) -> str:
        return self._encoder_name or self.store.meta.encoder_source

    @cached_property
    def templates(self) -> list[str]:
        """The prompts that the index's concepts were embedded in."""
        return list(self.store.meta.templates)

    @cached_property
    def D(self) -> np.ndarray:
        return self.store.dictionary()

    @cached_property
    def inverted(self) -> Inverted:
        """The query engine over every concept's postings; a look-up of a few concepts does without."""
        from search.inverted import Inverted

        return Inverted(self.store.packed, ids=self.store.image_ids)

    @cached_property
    def concepts(self) -> list[Concept]:
        return self.store.concepts()

    @cached_property
    def dense(self):
        from indexer.store.dense import open_dense

        return open_dense(self.store)

    def search_text(self, text: str, k: int = 10, mode: Mode = "sparse") -> list[Hit]:
        """The pictures that a text describes best."""
        return self.search_vector(self.embed_text(text), k, mode)

    def search_picture(self, target: str, k: int = 10, mode: Mode = "sparse") -> list[Hit]:
        """The pictures most like one: a file, or an id or path in the index.

        On the sparse side t is the picture's own reconstruction w D, so that only its concepts speak.
        """
        x, _ = self.embed_target(target)
        if mode == "sparse":
            ids, weights = self.code(x)
            if not len(ids):
                raise SparsightError(f"{target} has no concept of the index's dictionary: nothing to search by")
            x = weights @ self.D[ids]
            x = x / np.linalg.norm(x)
        return self.search_vector(x, k, mode)

    def search_concepts(self, names: list[str], k: int = 10, mode: Mode = "sparse") -> list[Hit]:
        """The pictures that the named concepts make up most; sparse scores are summed weights."""
        ids = list(dict.fromkeys(self.concept_id(name) for name in names))
        _check_k(k)
        if mode == "dense":
            t = self.D[ids].sum(0)
            return self.search_vector(t / np.linalg.norm(t), k, mode)
        from search.inverted import Inverted

        s = np.zeros(len(self.concepts), np.float32)
        s[ids] = 1.0
        with self.store.damage():
            engine = self.inverted if "inverted" in self.__dict__ else Inverted(self.store.postings(ids))
            found = engine.search(s, k)
        held = found.scores > 0
        return self._hits(found.ids[held].tolist(), found.scores[held].tolist(), s)

    def search_vector(self, t: np.ndarray, k: int, mode: Mode) -> list[Hit]:
        """The k best pictures for a unit vector t (d,)."""
        _check_k(k)
        s = self.D @ t
        if mode == "dense":
            if not len(self.store):
                return []
            with self.store.vectors_trusted():
                scores, ids = self.dense.search(t[None].astype(np.float32), min(k, len(self.store)))
            kept = ids[0] >= 0
            return self._hits(ids[0][kept].tolist(), scores[0][kept].tolist(), s)
        with self.store.damage():
            found = self.inverted.search(s, k)
        return self._hits(found.ids.tolist(), found.scores.tolist(), s)

    def classify(self, target: str, classes: list[str] | None = None, mode: Mode = "sparse") -> Classification:
        """Zero-shot: the class whose prompts' embedding scores highest (the index's classes, or those given)."""
        known = self.store.classes() if classes is None else Classes(classes, self.embed_concepts(classes))
        names, T = known.names, known.T
        if not names:
            raise CallError(f"{self.store.folder} has no classes: name some with --classes, separated by commas")
        x, image_id = self.embed_target(target)
        ids, weights = self.code(x, image_id)
        scores = T @ (x if mode == "dense" else weights @ self.D[ids] if len(ids) else np.zeros_like(x))
        order = np.argsort(-scores, kind="stable")
        contributions = self._contributions(ids, weights, self.D[ids] @ T[order[0]])
        return Classification(names[order[0]], [(names[i], float(scores[i])) for i in order], contributions)

    def explain(self, target: str, text: str | None = None) -> Explanation:
        """Why a picture is found by a text; without one, why it is given its class.

        Where the index has no classes, t is the picture itself: what each concept holds of it.
        """
        x, image_id = self.embed_target(target)
        ids, weights = self.code(x, image_id)
        if text is None:
            known = self.store.classes()
            names, T = known.names, known.T
            best = int((T @ x).argmax()) if names else 0
            text, t = (names[best], T[best]) if names else ("the picture itself", x)
        else:
            t = self.embed_text(text)
        r = weights @ self.D[ids] if len(ids) else np.zeros_like(x)
        row = self.store.images([image_id])[0] if image_id is not None else None
        return Explanation(
            target=row.path if row else target,
            label=row.label if row else None,
            text=text,
            dense_score=float(x @ t),
            sparse_score=float(r @ t),
            cosine=float(x @ r / max(float(np.linalg.norm(r)), 1e-12)),
            concepts=self._contributions(ids, weights, self.D[ids] @ t),
        )

    def far_from_all(self, t: np.ndarray) -> tuple[str, float] | None:
        """The concept nearest to a text's vector t (d,) and their cosine, where that is below what the encoder knows;
        None where the text means something here."""
        cosines = self.D @ t
        best = int(cosines.argmax())
        if cosines[best] >= self.text_encoder.known_from:
            return None
        return self.concepts[best].name, float(cosines[best])

    def near_concepts(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """The concepts nearest to a word by cosine; a word that is no concept is embedded."""
        _check_k(k)
        try:
            t = self.D[self.concept_id(word)]
        except CallError:
            t = self.embed_concepts([_text(word)])[0]
        cosines = self.D @ t
        return [(self.concepts[i].name, float(cosines[i])) for i in top_k(cosines, k)]

    def concept_id(self, name: str) -> int:
        """The id of a concept by its name or alias; `CallError` with near names where there is none."""
        known: dict[str, int] = {}
        for c in self.concepts:
            for n in (c.name, *c.aliases):
                known.setdefault(n.casefold(), c.id)
        wanted = " ".join(name.split()).casefold()
        if wanted in known:
            return known[wanted]
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
        near += [n for n in known if wanted and wanted in n and n not in near][:3]
        hint = f"; near ones: {', '.join(near)}" if near else "; `sparsight concepts` lists them"
        raise CallError(f"unknown concept {name!r}{hint}")

    def embed_text(self, text: str) -> np.ndarray:
        return self.text_encoder.encode_texts([_text(text)])[0]

    def embed_concepts(self, names: list[str]) -> np.ndarray:
        """Concepts → (m, d), in the index's prompts."""
        return self.text_encoder.encode_concepts([_text(name) for name in names], self.templates)

    def embed_target(self, target: str) -> tuple[np.ndarray, int | None]:
        """x (d,) of a picture file, or of a picture of the index by id or path (then with its id)."""
        image_id = self.image_id(target)
        if image_id is not None:
            return self.store.embeddings_of([image_id])[0], image_id
        if not os.path.exists(target):
            raise SparsightError(f"{target} is neither a file nor a picture of the index (an id or a path in it)")
        from indexer.pictures.files import read_picture

        return self.encoder.encode_images(read_picture(target, self.encoder.image_size)[None])[0], None

    def image_id(self, target: str) -> int | None:
        if target.isascii() and target.isdigit():
            ids = self.store.image_ids
            if int(target) not in ids:
                held = f"ids run from {ids[0]} to {ids[-1]}" if len(ids) else "it is empty"
                gone = " (that one was removed)" if int(target) < self.store.meta.next_id else ""
                raise CallError(f"no picture {target} in the index{gone}: {held}")
            return int(target)
        for path in dict.fromkeys((path_text(target), path_text(os.path.abspath(target)))):
            if (found := self.store.find_path(path)) is not None:
                return found
        return None

    def code(self, x: np.ndarray, image_id: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Concept ids and weights of a picture: the index's where it is in it, else coded with the same settings."""
        if image_id is not None:
            return self.store.codes_of([image_id])[0]
        from indexer.coding.coder import encode_sparse

        W = encode_sparse(x[None], self.D, self.store.meta.coder).W
        return W.indices, W.data

    def _hits(self, ids: list[int], scores: list[float], s: np.ndarray) -> list[Hit]:
        hits = []
        codes = self.store.codes_of(ids)
        rows = self.store.images(ids)
        for rank, (row, score, (js, weights)) in enumerate(zip(rows, scores, codes, strict=True), 1):
            concepts = self._contributions(js, weights, s[js])
            hits.append(Hit(rank, row.image_id, float(score), row.path, row.label, concepts))
        return hits

    def _contributions(self, ids: np.ndarray, weights: np.ndarray, s: np.ndarray) -> list[ConceptWeight]:
        parts = [
            ConceptWeight(self.concepts[j].name, float(w), float(w * c))
            for j, w, c in zip(ids, weights, s, strict=True)
        ]
        return sorted(parts, key=lambda p: -abs(p.contribution))


def _check_k(k: int) -> None:
    if k < 1:
        raise CallError(f"k is {k}: it must be at least 1")


def _text(text: str) -> str:
    text = " ".join(path_text(text).split())  # bytes of an argument that are no UTF-8 are no text
    if not text:
        raise CallError("the query is empty: give a word or a few")
    return text
