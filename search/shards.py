"""Indexes that are searched together as one: the shards of an index, each a folder of its own.

A picture's id in the whole is its id in the shard plus all ids that the shards before it have given. The best of the
whole are the best of the shards' best, since a score depends on the picture and the query alone: the shards have the
encoder, the dictionary, the penalty and the quantiser in common, which is checked when they are opened. What is usual,
as the scores of unrelated texts, is told of the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix, vstack

from indexer.store import Classes, Concept, ImageRow, IndexMeta
from indexer.store.chance import Chance, index_best
from indexer.store.database import DATABASE, shards_in
from indexer.store.familiarity import Familiarity, familiarity_of
from search.answers import Code
from search.engine import Chosen, Engine, Found, State
from search.filters import known_names
from search.folder import FolderEngine, Marked
from search.query import Query, several
from search.ranking import top_k
from training.encoders import Means, same_means
from training.errors import CallError, SparsightError
from training.files import full_path

if TYPE_CHECKING:
    from indexer.residual import Quantiser
    from indexer.store.residuals import Residuals

Folders = Path | str | Sequence[Path | str]  # of one index, or of its shards

SHARED = {  # what shards must have in common: field of the meta data → what it is called
    "encoder_fingerprint": "encoder",
    "d": "number of dimensions",
    "dictionary_fingerprint": "dictionary",
    "coder": "penalty, or way of coding,",
    "residual_fingerprint": "quantiser of residuals",
    "keeps_vectors": "way to keep embeddings",
    "templates": "prompts",
}


def open_folders(given: Folders) -> Engine:
    """The index in one folder, or of several; a folder that is none may be one of shards, which are its folders.

    Raises `SparsightError` where there is no index, a damaged one, or where some do not fit together.
    """
    folders = [full_path(folder) for folder in several(given)]
    if not folders:
        raise CallError("no index is named: give a folder, or several")
    found = shard_folders(folders)
    return FolderEngine(found[0]) if found == folders and len(found) == 1 else ShardedEngine(folders)


def shard_folders(given: Sequence[Path]) -> list[Path]:
    """The folders of the indexes that are meant, in the order in which they are counted."""
    return [
        shard for folder in given for shard in ([] if (folder / DATABASE).is_file() else shards_in(folder)) or [folder]
    ]


@dataclass(frozen=True)
class Parted:
    """Chosen pictures, shard by shard."""

    parts: Sequence[Marked | None]

    @cached_property
    def count(self) -> int:
        return sum(part.count for part in self.parts if part is not None)


@dataclass(frozen=True)
class JoinedResiduals:
    """The residuals of shards, by place in the whole. starts: the place at which each shard begins."""

    parts: Sequence[Residuals]
    starts: np.ndarray

    @property
    def quantiser(self) -> Quantiser:
        return self.parts[0].quantiser

    @cached_property
    def scales(self) -> np.ndarray:
        """(n,) float32."""
        return np.concatenate([part.scales for part in self.parts])

    def products(self, t: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        """r̂·t of every picture (n,), or of those at some places (k,), for t (d,)."""
        if at is None:
            return np.concatenate([part.products(t) for part in self.parts])
        totals = np.zeros(len(at))
        for shard, mine, places in by_shard(self.starts, at):
            totals[mine] = self.parts[shard].products(t, places)
        return totals


def by_shard(starts: np.ndarray, numbers: np.ndarray | Sequence[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each shard that some numbers (k,), ids or places, lie in: which it is, where in the k, and the numbers there.

    starts: the number at which each shard begins.
    """
    held = np.asarray(numbers, np.int64)
    of = np.searchsorted(starts, held, side="right") - 1
    for shard in np.unique(of).tolist():
        mine = np.flatnonzero(of == shard)
        yield shard, mine, held[mine] - starts[shard]


class ShardedEngine(Engine):
    """Some indexes, opened to be asked as one. given: their folders, and folders of such folders.

    Raises `SparsightError` where a shard cannot be opened, or does not fit the first.
    """

    def __init__(self, given: Sequence[Path]):
        self._given, self.folders = list(given), shard_folders(given)
        with ExitStack() as opened:
            self.parts: list[FolderEngine] = []
            for folder in self.folders:
                self.parts.append(FolderEngine(folder))
                opened.callback(self.parts[-1].close)
            _refuse_unfit(self.parts)
            opened.pop_all()
        metas = [part.meta for part in self.parts]
        self._bases = _starts(meta.next_id for meta in metas)
        self._places = _starts(meta.n for meta in metas)
        self.meta = _joined(metas)
        more = len(self.folders) - 1
        self.name = str(given[0]) if len(given) == 1 else f"{self.folders[0]} and {more} more shard" + "s" * (more > 1)

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def is_current(self) -> bool:
        return all(part.is_current() for part in self.parts) and shard_folders(self._given) == self.folders

    def reopened(self) -> ShardedEngine:
        return ShardedEngine(self._given)

    @property
    def version(self) -> str:
        return hashlib.sha256("\0".join(part.version for part in self.parts).encode()).hexdigest()[:12]

    # What it holds

    @cached_property
    def D(self) -> np.ndarray:
        D = self.parts[0].D
        for part in self.parts[1:]:
            part.D = D  # one in memory
        return D

    @cached_property
    def concepts(self) -> list[Concept]:
        held = [part.concepts for part in self.parts]
        return [same[0]._replace(images=sum(c.images for c in same)) for same in zip(*held, strict=True)]

    def classes(self) -> Classes:
        """Those of the first, and behind them what later ones have beside."""
        held = {name: t for part in reversed(self.parts) for name, t in _rows(part.classes())}
        names = list(dict.fromkeys(name for part in self.parts for name in part.classes().names))
        return Classes(names, np.array([held[name] for name in names], np.float32).reshape(len(names), self.meta.d))

    def means(self) -> Means | None:
        return self.parts[0].means()

    def images(self, image_ids: Sequence[int]) -> list[ImageRow]:
        found: dict[int, ImageRow] = {}
        for shard, mine, ids in by_shard(self._bases, image_ids):
            rows = self.parts[shard].images(ids.tolist())
            found |= {
                i: r._replace(image_id=r.image_id + int(self._bases[shard])) for i, r in zip(mine, rows, strict=True)
            }
        return [found[i] for i in range(len(image_ids))]

    def thumbnails(self, image_ids: Sequence[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for shard, _, ids in by_shard(self._bases, image_ids):
            jpegs = self.parts[shard].thumbnails(ids.tolist())
            found |= {i + int(self._bases[shard]): jpeg for i, jpeg in jpegs.items()}
        return found

    def embeddings_of(self, image_ids: Sequence[int]) -> np.ndarray:
        self.need_vectors()
        X = np.empty((len(image_ids), self.meta.d), np.float32)
        for shard, mine, ids in by_shard(self._bases, image_ids):
            X[mine] = self.parts[shard].embeddings_of(ids.tolist())
        return X

    def codes_of(self, image_ids: Sequence[int], *, residual: bool = True) -> list[Code]:
        found: dict[int, Code] = {}
        for shard, mine, ids in by_shard(self._bases, image_ids):
            found |= zip(mine.tolist(), self.parts[shard].codes_of(ids.tolist(), residual=residual), strict=True)
        return [found[i] for i in range(len(image_ids))]

    def holds(self, image_id: int) -> bool:
        return any(self.parts[shard].holds(int(ids[0])) for shard, _, ids in by_shard(self._bases, [image_id]))

    def around(self, image_id: int) -> tuple[int | None, int | None]:
        shard, _, ids = next(by_shard(self._bases, [image_id]))
        before, after = (i if i is None else i + int(self._bases[shard]) for i in self.parts[shard].around(int(ids[0])))
        spans = self._spans
        if before is None:
            before = next((span[1] for span in reversed(spans[:shard]) if span), None)
        if after is None:
            after = next((span[0] for span in spans[shard + 1 :] if span), None)
        return before, after

    @cached_property
    def _spans(self) -> list[tuple[int, int] | None]:
        """The lowest and the highest id of each shard."""
        held = [(part.span, int(base)) for part, base in zip(self.parts, self._bases, strict=True)]
        return [None if span is None else (span[0] + base, span[1] + base) for span, base in held]

    @property
    def span(self) -> tuple[int, int] | None:
        spans = [span for span in self._spans if span]
        return (spans[0][0], spans[-1][1]) if spans else None

    def picture_at(self, path: str) -> int | None:
        for part, base in zip(self.parts, self._bases, strict=True):
            if (found := part.picture_at(path)) is not None:
                return found + int(base)
        return None

    def state(self) -> State:
        states = [part.state() for part in self.parts]
        names = [folder.name for folder in self.folders]
        sizes = {
            f"{name}/{file}": size for name, s in zip(names, states, strict=True) for file, size in s.sizes.items()
        }
        skipped = sorted(skip for s in states for skip in s.skipped)
        return State(skipped, sizes, max((s.when for s in states if s.when), default=None))

    @cached_property
    def _residuals(self) -> JoinedResiduals | None:
        parts = [kept for part in self.parts if (kept := part.residuals) is not None]
        return JoinedResiduals(parts, self._places) if parts else None

    @property
    def residuals(self) -> JoinedResiduals | None:
        return self._residuals

    def places_of(self, image_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        places = np.zeros(len(image_ids), np.int64)
        for shard, mine, ids in by_shard(self._bases, image_ids):
            places[mine] = self.parts[shard].places_of(ids) + self._places[shard]
        return places

    # What it finds

    def chosen(
        self, query: Query, concept_id: Callable[[str], int], holding: Sequence[int] | None = None
    ) -> Parted | None:
        if not query.filters() and holding is None:
            return None
        query = known_names([part.store for part in self.parts], query)
        held = zip(self.parts, self._bases.tolist(), strict=True)
        return Parted([part.marked(query, concept_id, holding, base) for part, base in held])

    def first(self, k: int, chosen: Chosen | None) -> np.ndarray:
        ids = np.zeros(0, np.int64)
        for part, base, mine in self._asked(chosen):
            if len(ids) < k:
                ids = np.append(ids, part.first(k - len(ids), mine) + base)
        return ids

    def sparse(self, p: np.ndarray, s: np.ndarray, size: int, chosen: Chosen | None, *, look_up: bool = False) -> Found:
        return self._best(
            size,
            [
                (part.sparse(p, s, size, mine, look_up=look_up, coarsest=self._coarsest), base)
                for part, base, mine in self._asked(chosen)
            ],
        )

    def dense(self, p: np.ndarray, size: int, chosen: Chosen | None) -> Found:
        return self._best(size, [(part.dense(p, size, mine), base) for part, base, mine in self._asked(chosen)])

    @cached_property
    def _coarsest(self) -> float:
        return max(part.coarsest for part in self.parts)

    def _asked(self, chosen: Chosen | None) -> Iterator[tuple[FolderEngine, int, Marked | None]]:
        """The shards that hold any of the chosen pictures, their bases, and those pictures."""
        assert chosen is None or isinstance(chosen, Parted)
        marks = [None] * len(self.parts) if chosen is None else chosen.parts
        for part, base, mine in zip(self.parts, self._bases.tolist(), marks, strict=True):
            if len(part) if mine is None else mine.count:
                yield part, base, mine

    @staticmethod
    def _best(size: int, found: Sequence[tuple[Found, int]]) -> Found:
        ids = np.concatenate([np.zeros(0, np.int64), *(ids + base for (ids, _), base in found)])
        scores = np.concatenate([np.zeros(0), *(scores for (_, scores), _ in found)])
        best = top_k(scores, size, ids)
        return ids[best], scores[best]

    def every_score(self, t: np.ndarray, *, dense: bool) -> np.ndarray:
        self.D  # noqa: B018 (one in memory)
        held = [part.every_score(t, dense=dense, coarsest=self._coarsest) for part in self.parts if len(part)]
        return np.concatenate([np.zeros(0), *held])

    def codes_labelled(self, label: str) -> tuple[csr_matrix, np.ndarray | None]:
        held = [part.codes_labelled(label) for part in self.parts]
        rests = [rest for _, rest in held if rest is not None]
        return csr_matrix(vstack([W for W, _ in held])), np.concatenate(rests) if rests else None

    def chance(self, encode: Callable[[Sequence[str]], np.ndarray]) -> Chance:
        texts: dict[tuple[str, ...], np.ndarray] = {}

        def once(asked: Sequence[str]) -> np.ndarray:
            if (key := tuple(asked)) not in texts:
                texts[key] = encode(asked)
            return texts[key]

        return Chance.among([index_best(part.store, once) for part in self.parts if len(part)])

    def familiarity(self, encoder_source: str) -> Familiarity | None:
        return familiarity_of([part.store for part in self.parts], encoder_source)


def _starts(counts: Iterator[int]) -> np.ndarray:
    """(s,) int64: the running sum before each."""
    return np.array([0, *accumulate(counts)][:-1], np.int64)


def _rows(classes: Classes) -> Iterator[tuple[str, np.ndarray]]:
    return zip(classes.names, classes.T, strict=True)


def _joined(metas: Sequence[IndexMeta]) -> IndexMeta:
    """What the whole says of itself: as the first shard, the counts together."""
    counts = ("generation", "n", "nnz", "next_id", "vector_rows", "thumbnail_bytes")
    sums = {name: sum(getattr(meta, name) for meta in metas) for name in counts}
    return replace(metas[0], dataset=", ".join(dict.fromkeys(meta.dataset for meta in metas)), **sums)


def _refuse_unfit(parts: Sequence[FolderEngine]) -> None:
    """Raises `SparsightError` where a shard is not made like the first, `CallError` where one is named twice."""
    first, seen = parts[0], set()
    for part in parts:
        if (place := part.store.folder.resolve()) in seen:
            raise CallError(f"{part.name} is named twice: its pictures would be found twice")
        seen.add(place)
        wrong = [said for name, said in SHARED.items() if getattr(part.meta, name) != getattr(first.meta, name)]
        if not wrong and not same_means(first.means(), part.means()):
            wrong = ["centre of its embeddings"]
        if wrong:
            raise SparsightError(
                f"{part.name} cannot be searched with {first.name}: its {wrong[0]} is another; build it as "
                f"`sparsight index PATH --like {first.name} --index {part.name}`"
            )
