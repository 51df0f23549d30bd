"""Shards: indexes that have encoder, dictionary, penalty and quantiser in common, so that they can be searched as one.

An index is cut into some by ranges of its pictures: nothing is encoded or coded anew, and every picture keeps its id,
which is its id in the shard plus the number of ids that the shards before it stand for. Or one is built like another,
of other pictures: it begins without any, and these are added.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from scipy import sparse

from indexer.build import FROM_PICTURES
from indexer.coding import Dictionary
from indexer.pictures import Excluded, find_pictures
from indexer.residual import Coded, Quantiser
from indexer.store import Classes, Contents, Described, IndexMeta, Pictures, Skip, Store, write_store, writing
from indexer.store.approximate import refuse_description
from indexer.store.chance import index_best
from indexer.store.database import DATABASE, refuse_unreadable_path, shards_in
from indexer.store.dense import FLAT, open_dense
from indexer.store.residuals import read_coded, read_quantiser
from indexer.store.vectors import Gathered
from indexer.update import Added, add_pictures
from training.encoders import Encoder, Means, open_text_encoder
from training.errors import SparsightError
from training.files import path_text, shown_path
from training.terminal import progress

READ = 4096  # thumbnails that are read at a time


@dataclass(frozen=True)
class Common:
    """What shards have in common."""

    meta: IndexMeta
    dictionary: Dictionary
    classes: Classes
    means: Means | None
    quantiser: Quantiser | None

    @classmethod
    def of(cls, store: Store) -> Common:
        concepts, source = store.concepts(), store.rows("SELECT coalesce(min(source), '') FROM concepts")[0][0]
        dictionary = Dictionary(
            names=[c.name for c in concepts],
            aliases=[list(c.aliases) for c in concepts],
            parents=[c.parent for c in concepts],
            D=store.dictionary(),
            source=source,
        )
        return cls(store.meta, dictionary, store.classes(), store.means(), read_quantiser(store))

    def contents(
        self, meta: IndexMeta, pictures: Pictures, ids: np.ndarray | None = None, skipped: Sequence[Skip] = ()
    ) -> Contents:
        """All of an index of some pictures."""
        return Contents(
            meta=meta,
            pictures=pictures,
            dictionary=self.dictionary,
            classes=self.classes,
            means=self.means,
            skipped=skipped,
            ids=ids,
            quantiser=self.quantiser,
        )


def split_index(folder: Path, into: Path, pictures: int) -> list[Path]:
    """Cuts the index of a folder into shards of so many pictures in the folder `into`, which appears with all of them
    or not at all; returns theirs. In memory are the packed postings, and what the database says of one shard.

    Raises `SparsightError` where `into` holds something, or the index is damaged.
    """
    refuse_unreadable_path(into)
    if os.path.lexists(into) and not (into.is_dir() and not any(into.iterdir())):
        raise SparsightError(f"{shown_path(into)} is there already: name a new folder for the shards with --into")
    part = into.with_name(f".{into.name}.part")
    with Store(folder) as store:
        common, ids = Common.of(store), store.image_ids
        edges = [0, *ids[pictures::pictures].tolist(), store.meta.next_id]
        digits = max(4, len(str(len(edges))))
        names = [f"shard-{i:0{digits}}" for i in range(len(edges) - 1)]
        encode = _encode_of(store)
        try:
            with writing(part, "split"), store.vectors_trusted():
                for left in shards_in(part):  # of one that was stopped
                    shutil.rmtree(left)
                with progress("split", len(ids)) as step:
                    for name, low, high in zip(names, edges[:-1], edges[1:], strict=True):
                        contents = _cut(store, common, low, high, first=low == 0)
                        _write(part / name, contents, encode)
                        step(len(contents.pictures))
            if into.is_dir():
                into.rmdir()
            part.rename(into)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return [into / name for name in names]


def _encode_of(store: Store) -> Callable[[Sequence[str]], np.ndarray] | None:
    """What embeds unrelated texts; None where the encoder is not to be had: they are then measured when one asks."""
    with suppress(SparsightError, OSError):
        encoder = open_text_encoder(store.meta.encoder_source, "auto", means=store.means())
        store.meta.refuse_another(encoder, store.folder)
        return cache(encoder.encode_texts)
    return None


def _cut(store: Store, common: Common, low: int, high: int, *, first: bool) -> Contents:
    """The pictures with ids low … high − 1 as an index, in which they count from 0."""
    a, b = np.searchsorted(store.image_ids, (low, high)).tolist()
    ids = store.image_ids[a:b]
    rows = store.images(ids.tolist())
    with store.damage():
        held, concepts, weights = store.packed.between(low, high)
        places = np.searchsorted(ids, held)
        if (ids[np.minimum(places, len(ids) - 1)] != held).any() if len(held) and len(ids) else len(held):
            raise ValueError("a picture that is not in the index has some")
    pictures = Pictures(
        X=Gathered(store.vectors, store.vector_rows[a:b]),
        W=sparse.csr_matrix((weights, (places, concepts)), shape=(len(ids), store.meta.m)),
        l1=np.array([row.l1 for row in rows], np.float32),
        gap=np.array([row.gap for row in rows], np.float32),
        described=Described.of_rows(rows, _thumbnails(store, ids)),
        residuals=None if common.quantiser is None else read_coded(store, common.quantiser, ids),
    )
    meta = replace(store.meta, next_id=high - low)
    return common.contents(meta, pictures, ids - low, store.skipped() if first else ())


def _thumbnails(store: Store, ids: np.ndarray) -> Iterator[bytes | None]:
    for start in range(0, len(ids), READ):
        some = ids[start : start + READ].tolist()
        found = store.thumbnails(some)
        yield from (found.get(i) for i in some)


def _write(folder: Path, contents: Contents, encode: Callable[[Sequence[str]], np.ndarray] | None) -> None:
    with writing(folder, "split"):
        meta = write_store(folder, contents)
        with Store(folder) as shard:
            if meta.dense_factory != FLAT:
                open_dense(shard)  # builds it, and keeps it beside the database
            if encode is not None and len(shard):
                index_best(shard, encode)


def index_like(
    folder: Path,
    root: Path,
    like: Path,
    encoder: Encoder,
    *,
    labels: bool = False,
    exclude: tuple[str, ...] = (),
    dense: str | None = None,
    recall: float | None = None,
) -> Added:
    """Builds an index of the pictures below `root` that can be searched together with that of the folder `like`.

    encoder: that index's, not centred. Stopped, it goes on where it ended. Raises `SparsightError` where there is no
    picture to index, where `folder` holds some already, or the encoder is another.
    """
    top = path_text(os.path.realpath(root))
    found, _ = find_pictures(root, Excluded(top, exclude))
    if not found:
        raise SparsightError(f"no pictures in {path_text(root)}: there is nothing to index")
    with Store(like) as store:
        store.meta.refuse_another(encoder, like)
        common = Common.of(store)
    if dense is not None and dense != FLAT:
        refuse_description(dense, common.meta.d, len(found))
    meta = replace(
        common.meta, dataset=Path(top).name or top, root=top, embedded=FROM_PICTURES, next_id=0, exclude=exclude,
        labels="folders" if labels else "", dense_factory=dense or common.meta.dense_factory,
        dense_recall=recall or common.meta.dense_recall,
    )  # fmt: skip
    with writing(folder, "index"):
        if (folder / DATABASE).is_file():
            with Store(folder) as standing:
                if len(standing):
                    raise SparsightError(
                        f"{shown_path(folder)} holds an index already: name a new folder with --index, or use "
                        "`sparsight add`"
                    )
        write_store(folder, common.contents(meta, _no_pictures(common)))
    done = add_pictures(folder, [root], encoder)
    if not done.n:
        first = min(done.skipped)
        raise SparsightError(
            f"none of the {len(found)} picture files in {path_text(root)} can be read; {first.path}: {first.reason}"
        )
    return done


def _no_pictures(common: Common) -> Pictures:
    d, m, quantiser = common.meta.d, common.meta.m, common.quantiser
    nothing = np.zeros(0, np.float32)
    return Pictures(
        X=np.zeros((0, d), np.float32),
        W=sparse.csr_matrix((0, m), dtype=np.float32),
        l1=nothing,
        gap=nothing,
        described=Described(paths=[]),
        residuals=None if quantiser is None else Coded(np.zeros((0, quantiser.size), np.uint8), nothing),
    )
