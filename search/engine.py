"""What queries are answered from: both indexes of some pictures, wherever these lie.

A query is a vector t in the encoder's space: a text's embedding, a picture's, or a sum of atoms. The dense index
scores `x·t`. The sparse one scores `(w D)·t = w·(D t)`: t becomes one score for each concept, and a picture's score is
the sum of what its concepts contribute, `w_j (D t)_j`. That sum is its explanation as well. Where the index keeps
residuals the sparse side scores `x̂·t` instead, x̂ = scale · (w D + r̂), whose parts are those of the concepts and that
of the residual.

`Engine` says what `search.answering` and `search.index` ask for, and holds what follows from it. `search.folder`
answers from an index folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.sparse import csr_matrix

from indexer.residual import scales_of
from search.answers import MODES, Code
from training.errors import CallError, SparsightError

if TYPE_CHECKING:
    from indexer.milvus import Address
    from indexer.milvus.reader import MilvusStore
    from indexer.residual import Quantiser
    from indexer.store import Classes, Concept, ImageRow, IndexMeta, Skip, Store
    from indexer.store.chance import Chance
    from indexer.store.familiarity import Familiarity
    from search.query import Query
    from training.encoders import Means
    from training.encoders.protocol import TextEncoder

Found = tuple[np.ndarray, np.ndarray]  # ids (k,) int64, best first, ties to the lower id; scores (k,) float64


class Kept(Protocol):
    """What an index keeps of the embeddings beside the concepts, by place: `indexer.store.residuals.Residuals`."""

    @property
    def quantiser(self) -> Quantiser: ...
    @property
    def scales(self) -> np.ndarray: ...
    def products(self, t: np.ndarray, at: np.ndarray | None = None) -> np.ndarray: ...


class Chosen(Protocol):
    """The pictures that the filters of a query leave, as an engine keeps them; only that engine looks inside."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...


@dataclass(frozen=True)
class State:
    """What is shown of an index beside its meta data.

    skipped: the files that were not taken; sizes: bytes by file; when: its last change, None where not known.
    """

    skipped: Sequence[Skip] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    when: datetime | None = None


class Engine(ABC):
    """Some pictures' indexes, opened to be asked. name: how messages call it; meta: what it says of itself."""

    name: str
    meta: IndexMeta

    @abstractmethod
    def close(self) -> None:
        """Gives back what it holds open."""

    @property
    def place(self) -> Path | Address:
        """Where it lies, for what changes it; raises `SparsightError` for an index that is not changed as one."""
        raise self.no_single_folder()

    def no_single_folder(self) -> SparsightError:
        """The fault to raise for what is done to one index folder alone."""
        return SparsightError(
            f"{self.name} is no single index folder: this is done to one, as to the shard that it is for"
        )

    @abstractmethod
    def is_current(self) -> bool:
        """False once what is open is no longer the newest generation."""

    @abstractmethod
    def reopened(self) -> Engine:
        """The same index as it is now."""

    @property
    @abstractmethod
    def version(self) -> str:
        """A short text that is another for every generation and every rebuild."""

    # What it holds

    @cached_property
    @abstractmethod
    def D(self) -> np.ndarray:
        """The dictionary (m, d): one concept a row, unit rows."""

    @cached_property
    @abstractmethod
    def concepts(self) -> list[Concept]:
        """The m concepts, in the order of their ids."""

    @abstractmethod
    def classes(self) -> Classes:
        """The classes that pictures are told apart by."""

    @abstractmethod
    def means(self) -> Means | None:
        """What is subtracted from the embeddings of each modality; None for nothing."""

    @abstractmethod
    def images(self, image_ids: Sequence[int]) -> list[ImageRow]:
        """What is known of some pictures, in the order asked for."""

    @abstractmethod
    def thumbnails(self, image_ids: Sequence[int]) -> dict[int, bytes]:
        """JPEG bytes by id; pictures without one are left out."""

    @abstractmethod
    def embeddings_of(self, image_ids: Sequence[int]) -> np.ndarray:
        """Rows of X (k, d), in their order; raises `CallError` where the index keeps no embeddings."""

    @abstractmethod
    def codes_of(self, image_ids: Sequence[int], *, residual: bool = True) -> list[Code]:
        """The codes of some pictures, with their residuals, if there are any, unless these are not asked for."""

    @abstractmethod
    def holds(self, image_id: int) -> bool:
        """Whether it has a picture of this id."""

    @abstractmethod
    def around(self, image_id: int) -> tuple[int | None, int | None]:
        """The ids before and after a picture's, None where it is the first or the last."""

    @property
    @abstractmethod
    def span(self) -> tuple[int, int] | None:
        """The lowest and the highest id; None where there is no picture."""

    @abstractmethod
    def picture_at(self, path: str) -> int | None:
        """The id of the picture that a path names, in any spelling that looks the same; None where there is none."""

    @abstractmethod
    def state(self) -> State:
        """What is shown of it."""

    # What it finds

    @abstractmethod
    def chosen(
        self, query: Query, concept_id: Callable[[str], int], holding: Sequence[int] | None = None
    ) -> Chosen | None:
        """The pictures for which every filter of a query holds, None for all.

        concept_id: name → row of D; holding: concepts of which a picture must hold one as well. Raises `CallError` for
        a concept, a label or a split that the index does not have, and for a condition that it refuses.
        """

    @abstractmethod
    def first(self, k: int, chosen: Chosen | None) -> np.ndarray:
        """The lowest k ids of the chosen pictures."""

    @abstractmethod
    def sparse(self, p: np.ndarray, s: np.ndarray, size: int, chosen: Chosen | None, *, look_up: bool = False) -> Found:
        """The best `size` of the chosen pictures by their codes.

        s (m,): what each concept is worth; p (d,): what it follows from, which residuals are scored by. look_up:
        concepts alone are asked for, which residuals do not touch.
        """

    @abstractmethod
    def dense(self, p: np.ndarray, size: int, chosen: Chosen | None) -> Found:
        """The best `size` of the chosen pictures by x·p; all exact where some are chosen."""

    @abstractmethod
    def every_score(self, t: np.ndarray, *, dense: bool) -> np.ndarray | None:
        """The scores of every picture for t (d,), by id (n,), by embeddings or by codes; None where there are too many
        pictures to look at each."""

    @abstractmethod
    def codes_labelled(self, label: str) -> tuple[csr_matrix, np.ndarray | None]:
        """W (k, m) of the pictures of a label, and their residuals (k, d) where the index keeps any."""

    @abstractmethod
    def chance(self, encode: Callable[[Sequence[str]], np.ndarray]) -> Chance:
        """What unrelated texts score; encode: texts → unit rows."""

    @abstractmethod
    def familiarity(self, encoder_source: str) -> Familiarity | None:
        """What pictures are judged by, None where that cannot be told."""

    # What follows from it

    @property
    def residuals(self) -> Kept | None:
        """What is kept of the embeddings beside the concepts, by place; None where nothing is."""
        return None

    def places_of(self, image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Places (k,) of 0 … n − 1 of pictures of the index, by id; asked for where there are residuals."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Pictures."""
        return self.meta.n

    @cached_property
    def names(self) -> list[str]:
        """The names of the m concepts, in the order of their ids."""
        return [concept.name for concept in self.concepts]

    def need_vectors(self) -> None:
        """Raises `CallError` where the index keeps no embeddings."""
        self.meta.need_vectors(self.name)

    def refuse_another(self, encoder: TextEncoder) -> None:
        """Raises `SparsightError` where an encoder is not the one that the index was built with."""
        self.meta.refuse_another(encoder, self.name)

    def vectors_of(self, image_ids: Sequence[int]) -> np.ndarray:
        """Unit rows (k, d) that stand for pictures of the index: their embeddings, or where none are kept what their
        codes give back."""
        if self.meta.keeps_vectors:
            return self.embeddings_of(image_ids)
        V = np.stack([np.zeros(self.meta.d, np.float32), *(self.decode(c) for c in self.codes_of(image_ids))])[1:]
        return np.asarray(V * scales_of(V)[:, None], np.float32)

    def near_concepts(self, t: np.ndarray, k: int) -> list[tuple[str, float]]:
        """The k concepts whose atoms have the highest cosine with a unit vector t (d,), and these cosines."""
        from search.ranking import top_k

        check_k(k)
        cosines = self.D @ t
        return [(self.names[j], float(cosines[j])) for j in top_k(cosines, k)]

    def code_of(self, image_id: int) -> Code:
        """The code of a picture of the index, as it is stored."""
        return self.codes_of([image_id])[0]

    def encode(self, x: np.ndarray) -> Code:
        """The code of an embedding x (d,), with the settings that the index's pictures were coded with."""
        from indexer.coding import encode_sparse

        W = encode_sparse(x[None], self.D, self.meta.coder).W
        code = Code(W.indices, W.data)
        if self.residuals is None:
            return code
        quantiser = self.residuals.quantiser
        return self.scaled(code._replace(residual=quantiser.decode(quantiser.encode((x - self.decode(code))[None]))[0]))

    def scaled(self, code: Code) -> Code:
        """A code whose scale is that of its concepts and its residual as they are now."""
        if code.residual is None:
            return code
        return code._replace(scale=float(scales_of(self.decode(code._replace(scale=1.0))[None])[0]))

    def decode(self, code: Code) -> np.ndarray:
        """What a code holds of an embedding (d,): w D, zero for a code without concepts; or x̂ in an index that keeps
        residuals."""
        held = code.weights @ self.D[code.ids]
        return held if code.residual is None else code.scale * (held + code.residual)

    def direction(self, code: Code, name: str) -> np.ndarray:
        """What to search by for a picture's code in an index without residuals: w D, normalised, so that its concepts
        decide (d,). Raises `SparsightError` with the picture's name where it has none."""
        r = self.decode(code)
        if not r.any():
            raise SparsightError(f"{name} has no concept of the index's dictionary: nothing to search by")
        return r / np.linalg.norm(r)

    def best_class(self, x: np.ndarray) -> tuple[str, np.ndarray]:
        """The class nearest to an embedding x (d,), and its vector; x itself where there are no classes."""
        classes = self.classes()
        if not classes.names:
            return "the picture itself", x
        best = int((classes.T @ x).argmax())
        return classes.names[best], classes.T[best]


class StoredEngine(Engine):
    """An engine over one open store, a folder's or a server's, which holds what is asked for."""

    store: Store | MilvusStore

    def close(self) -> None:
        self.store.close()

    def is_current(self) -> bool:
        return self.store.is_current()

    @cached_property
    def D(self) -> np.ndarray:
        return self.store.dictionary()

    @cached_property
    def concepts(self) -> list[Concept]:
        return self.store.concepts()

    def means(self) -> Means | None:
        return self.store.means()

    def images(self, image_ids: Sequence[int]) -> list[ImageRow]:
        return self.store.images(image_ids)

    def thumbnails(self, image_ids: Sequence[int]) -> dict[int, bytes]:
        return self.store.thumbnails(image_ids)


def check_mode(mode: str) -> None:
    """Raises `CallError` for the name of an index that there is not."""
    if mode not in MODES:
        raise CallError(f"mode is {mode!r}: it must be one of {', '.join(MODES)}")


def check_k(k: int) -> None:
    """Raises `CallError` where k is no number of things to return."""
    if k < 1:
        raise CallError(f"k is {k}: it must be at least 1")
