"""An index that one can ask, and change: what `sparsight.open` gives.

Here texts, picture files and names become vectors and ids. `search.engine` answers what is asked of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from indexer.store import Classes
from indexer.store.naming import existing_file
from search.answers import Answer, Classification, Code, Edit, Explanation, Hit, Mode, contributions
from search.editing import edit_code, edited, flips, place_among
from search.engine import Engine, check_k, check_mode
from search.folder import FolderEngine
from search.known import Known
from search.lookup import clean_text, find_concept, picture_id, unknown_concept
from search.opening import Place, open_engine
from search.query import Picture, Query, Rules, Term, as_target, is_bytes, several
from training.errors import CallError, SparsightError
from training.files import full_path

if TYPE_CHECKING:
    from indexer.store import Concept, IndexMeta, Store
    from indexer.update import Added
    from training.encoders import Encoder, TextEncoder


class Index:
    """An open index. Close it after use, or use it as a context manager.

    folder: where `sparsight index` built it, or `milvus:URI`; of several, or a folder of such, each is a shard.
    encoder: the encoder that it was built with, where that lies elsewhere now. device: where torch computes, `auto`,
    `cpu`, `cuda` or `mps`. The encoder is opened when it is first needed: searching by concepts, or by pictures of the
    index, needs none.

    Raises `SparsightError` where the folder holds no index or a damaged one, and, once the encoder is needed, where
    that is not the one that the index was built with. A `picture` is a file, or a picture of the index by its id or
    path; what is neither raises `SparsightError`.
    """

    def __init__(self, folder: Place = "index", *, encoder: str | None = None, device: str = "auto"):
        self._encoder_name, self._device = encoder, device
        self._take(open_engine(folder))

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.engine)

    def close(self) -> None:
        """Closes the index's files."""
        self.engine.close()

    @property
    def meta(self) -> IndexMeta:
        """What the index says of itself."""
        return self.engine.meta

    @property
    def store(self) -> Store:
        """The tables of the index, as they stood when it was opened or last changed through this object.

        Raises `SparsightError` for an index that is no single folder.
        """
        if isinstance(self.engine, FolderEngine):
            return self.engine.store
        raise self.engine.no_single_folder()

    @property
    def D(self) -> np.ndarray:
        """The dictionary (m, d) float32: one concept a row, unit rows."""
        return self.engine.D

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that the index was built with, centred as the index is."""
        from training.encoders import open_encoder

        encoder = open_encoder(self._encoder_source, self._device, means=self.engine.means())
        self.engine.refuse_another(encoder)
        return encoder

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """What embeds texts: the text tower alone where that opens without torch, else the encoder."""
        from training.encoders import open_text_encoder

        if "encoder" in self.__dict__:
            return self.encoder
        encoder = open_text_encoder(self._encoder_source, self._device, means=self.engine.means())
        self.engine.refuse_another(encoder)
        return encoder

    def take_encoders(self, other: Index) -> None:
        """Takes over what another index has opened, where that is this index's own encoder, centred alike: the next
        generation of an index then answers as fast as the last did."""
        from training.encoders import same_means

        is_same = same_means(self.engine.means(), other.engine.means())
        if is_same and self.meta.encoder_fingerprint == other.meta.encoder_fingerprint:
            for name in ("encoder", "text_encoder"):
                if name in other.__dict__:
                    self.__dict__[name] = other.__dict__[name]

    @property
    def _encoder_source(self) -> str:
        return self._encoder_name or self.meta.encoder_source

    def count(self, **rules: Unpack[Rules]) -> int:
        """How many pictures pass the filters among a query's rules, as `labels=["cat"]`; all of them without one."""
        chosen = self.engine.chosen(Query.of(None, **rules), self.concept_id)
        return len(self) if chosen is None else chosen.count

    def search(
        self,
        text: str | None = None,
        *,
        like: Picture | Sequence[Picture] = (),
        concepts: str | Sequence[str] | Mapping[str, float] = (),
        without: str | Picture | Sequence[str | Picture] = (),
        **rules: Unpack[Rules],
    ) -> Answer:
        """The pictures that fit a text, pictures and concepts, and do not fit what they are to be without.

        like: pictures, by file, id or path, or as bytes. concepts: names, or a weight for each. without: texts, or
        pictures by id, as a Path or as bytes. rules: the fields of a `Query` beside its terms, as `k=20`,
        `mode="sparse"`, `require="red"`, `labels=["cat", "dog"]` or `all=True`. What any of it means is told, with the
        formulas, in docs/search.md.
        Raises `CallError` for a call that makes no sense, as one that names an unknown concept.
        """
        like, without = several(like), several(without)
        pictures = [(one, weight) for some, weight in ((like, 1.0), (without, -1.0)) for one in some]
        pasted = {Term("picture", as_target(b), w): self.embed_bytes(b) for b, w in pictures if is_bytes(b)}
        return self.answer(Query.of(text, like, concepts, without, **rules), pasted)

    def answer(self, query: Query, vectors: Mapping[Term, np.ndarray] | None = None) -> Answer:
        """The answer to a query: hits with the parts of their scores. vectors: of terms, where they are known already.

        Raises `CallError` for a query that makes no sense here, as one that names an unknown concept.
        """
        from search.answering import answer_query

        known, notes = vectors or {}, dict[str, None]()

        def vector_of(term: Term) -> np.ndarray:
            if term.kind == "text":
                return known[term] if term in known else self.embed_text(term.value)
            x, image_id = (known[term], None) if term in known else self.embed_picture(term.value)
            if image_id is None:
                said = self._known.told_of(x, None).notes
                notes.update((f"a picture that is searched by is {note}", None) for note in said)
            if query.resolved_mode != "sparse" or self.meta.residual:  # x finds better than x̂ does
                return x
            return self.engine.direction(self._code(x, image_id), term.value)

        if not self.meta.keeps_vectors and (query.terms or query.mode):
            if query.fuse or query.mode in ("dense", "hybrid"):
                self.engine.need_vectors()
            query = replace(query, mode="sparse")
        unrelated = lambda: self._known.chance(self.text_encoder)  # noqa: E731
        found = answer_query(self.engine, query, vector_of, self.concept_id, unrelated)
        return replace(found, thumbnails=self.engine.thumbnails, notes=list(notes))

    def search_vector(self, t: np.ndarray, k: int = 10, mode: Mode = "sparse") -> list[Hit]:
        """The pictures that fit a unit vector t (d,) in the encoder's space; at most k, best first."""
        from search.answering import nearest

        check_k(k)
        check_mode(mode)
        return nearest(self.engine, t, k, mode)

    def classify(
        self, picture: Picture, classes: Sequence[str] | None = None, *, mode: Mode = "sparse"
    ) -> Classification:
        """The class whose prompts' embedding T_c has the highest score for a picture, without training for it.

        classes: their names; those of the index without it. Raises `CallError` where there are none.
        """
        check_mode(mode)
        if classes is not None and (isinstance(classes, str) or not len(classes)):
            raise CallError(f"the classes are {classes!r}: give a list of names")
        known = self.engine.classes() if classes is None else Classes(list(classes), self.embed_concepts(classes))
        names, T = known.names, known.T
        if not names:
            raise CallError(f"{self.engine.name} has no classes: name some, as --classes cat,dog")
        x, image_id = self.embed_picture(picture)
        if mode == "dense" and image_id is not None:
            self.engine.need_vectors()
        code = self._code(x, image_id)
        scores = T @ (x if mode == "dense" else self.engine.decode(code))
        order = np.argsort(-scores, kind="stable")
        concepts = contributions(code, self.D @ T[order[0]], self.engine.names)
        rest = 0.0
        if mode == "dense" or code.residual is not None:
            rest = float(scores[order[0]]) - sum(part.contribution for part in concepts)
        ordered = [(names[i], float(scores[i])) for i in order]
        return Classification(names[order[0]], ordered, concepts, rest, *self._known.told_of(x, image_id))

    def explain(self, picture: Picture, text: str | None = None, k: int = 10) -> Explanation:
        """What each concept of a picture adds to its score for a text; and why it is, or is not, one of the k best.

        Without a text, for the class that the picture is given. In an index without classes, for the picture itself:
        what each concept holds of it.
        """
        check_k(k)
        x, image_id = self.embed_picture(picture)
        code = self._code(x, image_id)
        shown, t = (text, self.embed_text(text)) if text is not None else self.engine.best_class(x)
        r = self.engine.decode(code)
        parts = contributions(code, self.D @ t, self.engine.names)
        dense = float(x @ t) if self.meta.keeps_vectors else None
        score = float(r @ t) if dense is None else dense
        among = {} if text is None else place_among(self.engine, score, t, parts, image_id, k)
        is_exact = image_id is None or dense is not None
        row = None if image_id is None else self.engine.images([image_id])[0]
        return Explanation(
            target=row.path if row else as_target(picture),
            label=row.label if row else None,
            text=shown,
            dense_score=dense,
            sparse_score=float(r @ t),
            cosine=float(x @ r / max(float(np.linalg.norm(r)), 1e-12)) if is_exact else None,
            concepts=parts,
            rest=0.0 if code.residual is None else code.scale * float(code.residual @ t),
            **self._known.told_of(x, image_id)._asdict(),
            **among,
        )

    def edit(
        self,
        picture: Picture,
        *,
        without: str | Sequence[str] = (),
        with_: Mapping[str, float] | None = None,
        text: str | None = None,
    ) -> Edit:
        """What a picture would be without some concepts, or with others: its classes, neighbours, and rank for a text.

        with_: weights by name, as `{"red": 0.3}`; a weight of 0 takes a concept out. Raises `CallError` for a weight
        that is none, an unknown concept, and one that is named twice.
        """
        gone = [self.concept_id(name) for name in several(without)]
        changes = {self.concept_id(name): weight for name, weight in (with_ or {}).items()}
        if len({*gone, *changes}) < len(gone) + len(with_ or {}):
            raise CallError("a concept is named twice: take it out, or give it one weight")
        if wrong := [w for w in changes.values() if not (isinstance(w, Real) and 0 <= w <= 1e6)]:
            raise CallError(f"a concept's weight is {wrong[0]!r}: it must be a number from 0 on")
        x, image_id = self.embed_picture(picture)
        code = self._code(x, image_id)
        changed = edit_code(code, gone, changes)
        t = None if text is None else self.embed_text(text)
        return replace(edited(self.engine, code, changed, t, image_id), thumbnails=self.engine.thumbnails)

    def flips(self, label: str, k: int | None = None) -> list[tuple[str, int]]:
        """The concepts that a class hangs on: without them so many of its pictures would be given another class.

        At most k of them, all for None. Raises `CallError` for a class that there is not.
        """
        check_k(1 if k is None else k)
        return flips(self.engine, self.class_name(label))[:k]

    def class_name(self, label: str) -> str:
        """A class of the index as it is written there; raises `CallError` for one that there is not."""
        names = self.engine.classes().names
        found = next((name for name in names if name.casefold() == label.casefold()), None)
        if found is None:
            raise CallError(f"no class {label!r}; " + (f"there are {', '.join(names)}" if names else "there are none"))
        return found

    def concepts(self) -> list[Concept]:
        """Every concept, in the order of the rows of D, with the number of pictures that it helps to make up."""
        return self.engine.concepts

    def concept_id(self, name: str) -> int:
        """The row of D that holds a concept, by its name or alias.

        Raises `CallError` for a name that is none, with the concepts nearest in meaning where the encoder opens.
        """
        found = find_concept(self.engine.concepts, name)
        if found is None:
            raise unknown_concept(self.engine.concepts, name, self._near_in_meaning(name))
        return found

    def _near_in_meaning(self, word: str) -> list[str]:
        try:
            return [concept for concept, _ in self.engine.near_concepts(self.embed_concepts([word])[0], 3)]
        except SparsightError:  # no encoder: what is spelled alike is suggested
            return []

    def near_concepts(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """The k concepts nearest to a word, which may be any word, with their cosines."""
        check_k(k)
        known = find_concept(self.engine.concepts, word)
        t = self.embed_concepts([word])[0] if known is None else self.D[known]
        return self.engine.near_concepts(t, k)

    def far_from_all(self, t: np.ndarray) -> tuple[str, float] | None:
        """The concept nearest to a text's vector t (d,) and their cosine, where the text means little to the encoder.

        None where the cosine is as high as that of texts which the encoder knows.
        """
        nearest = self.engine.near_concepts(t, 1)[0]
        return nearest if nearest[1] < self.text_encoder.known_from else None

    def picture_id(self, picture: Picture) -> int | None:
        """The id of a picture of the index by its id or path; None for another path.

        Raises `CallError` for an id that the index does not hold.
        """
        return picture_id(self.engine, picture)

    def embed_text(self, text: str) -> np.ndarray:
        """Text → unit vector (d,)."""
        return self.text_encoder.encode_texts([clean_text(text)])[0]

    def embed_concepts(self, names: Sequence[str]) -> np.ndarray:
        """Concepts → unit rows (len(names), d), in the prompts that the index's own concepts were embedded in."""
        return self.text_encoder.encode_concepts([clean_text(name) for name in names], self.meta.templates)

    def embed_picture(self, picture: Picture) -> tuple[np.ndarray, int | None]:
        """Picture → unit vector (d,), and its id where it is one of the index: then, where no embeddings are kept, what
        its code gives back."""
        if is_bytes(picture):
            return self.embed_bytes(bytes(picture)), None
        if (image_id := self.picture_id(picture)) is not None:
            return self.engine.vectors_of([image_id])[0], image_id
        path = existing_file(str(picture))
        if path is None:
            raise SparsightError(f"{picture!s} is neither a file nor a picture of the index (an id or a path in it)")
        from indexer.pictures.files import read_picture

        return self.encoder.encode_images([read_picture(str(path), self.encoder.image_size)])[0], None

    def embed_bytes(self, data: bytes) -> np.ndarray:
        """The bytes of a picture file → unit vector (d,); raises `SparsightError` where they are no picture."""
        from indexer.pictures.files import PictureError, decode

        try:
            picture = decode(data, 2 * self.encoder.image_size)
        except PictureError as e:
            raise SparsightError(f"the picture cannot be read: {e}") from e
        return self.encoder.encode_images([picture])[0]

    def add(self, paths: str | Path | Iterable[str | Path]) -> Added:
        """Adds new and changed pictures to the index, as `sparsight add` does: files, and those below folders.

        Answers take them into account from then on. Raises `SparsightError` for a path that is missing.
        """
        from indexer.update import add_pictures
        from training.encoders import open_encoder

        centred = self.engine.means() is not None  # then another is needed: `add_pictures` centres by itself
        encoder = open_encoder(self._encoder_source, self._device) if centred else self.encoder
        added = add_pictures(self.engine.place, [full_path(path) for path in several(paths)], encoder)
        self._reopen()
        return added

    def remove(self, pictures: Picture | Iterable[Picture]) -> list[tuple[int, str]]:
        """Removes pictures from the index, never their files: by id, by path, or all below a folder.

        Returns their ids and paths. Raises `CallError` for what names no picture; then nothing is removed.
        """
        from indexer.update import remove_pictures

        removed = remove_pictures(self.engine.place, [as_target(picture) for picture in several(pictures)])
        self._reopen()
        return removed

    def _reopen(self) -> None:
        """Takes up the folder's index as it is now."""
        with closing(self.engine):
            self._take(self.engine.reopened())

    def _take(self, engine: Engine) -> None:
        self.engine = engine
        self._known = Known(engine, self._encoder_source)

    def _code(self, x: np.ndarray, image_id: int | None) -> Code:
        """The code of a picture: the index's own where it is one of the index, else made now."""
        return self.engine.encode(x) if image_id is None else self.engine.code_of(image_id)
