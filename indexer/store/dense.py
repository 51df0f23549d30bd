"""The dense index: pictures by the inner product of their embedding with a query, over unit rows.

A score is summed in double precision, in an order that depends on the row alone (`products`). So it has the same bits
wherever the row stands, in the whole of an index or in one shard of it; a product of matrices, which is quicker, only
chooses the rows that may be among the best.

Flat, the default, is the vectors' own file, mapped and scanned in blocks. For any other description of FAISS's
`index_factory` FAISS names candidates, which are scored exactly (`approximate.py`), and a file beside the database
holds its index: a cache. FAISS loads a damaged file without a word, so behind its own bytes (which `faiss.read_index`
ignores) stand its tuning, the number of rows that it holds, the key of those rows and a SHA-256 of it all. Missing,
stale or damaged, it is built anew from the vectors; where rows were only added since, they are added to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

import numpy as np

from indexer.store.approximate import Approximate, Setting, Tuning, build_approximate, grown
from indexer.store.reader import Store
from indexer.store.vectors import Vectors
from training.errors import CallError
from training.files import write_whole

FLAT = "Flat"
FILE = "dense.faiss"
LAYOUT = 2  # of that file
NOTHING = (np.zeros(0), np.zeros(0, np.int64))
ROWS = 1 << 10  # that are multiplied at a time: they stay in the processor's cache
TRAILER = 8 + 8 + 32 + 32  # bytes of the tuning, rows, their key, a SHA-256


class DenseIndex(Protocol):
    """What answers dense queries."""

    def search(self, Q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k pictures with the largest q·x for each query of Q (q, d), best first.

        Returns scores (q, k) float64 and image ids (q, k) int64; −inf and −1 where there are fewer.
        """
        ...


Part = tuple[np.ndarray, np.ndarray]  # ids (b,), and their rows (b, d)


def products(X: np.ndarray, t: np.ndarray) -> np.ndarray:
    """x·t (n,) float64 of each row of X (n, d), whatever the other rows."""
    t = t.astype(np.float64)
    parts = [(X[i : i + ROWS] * t).sum(1) for i in range(0, len(X), ROWS)]
    return np.concatenate([np.zeros(0), *parts])


def best_rows(parts: Iterable[Part], Q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows with the largest q·x for each query of Q (q, d), as a `DenseIndex` returns them; ties to the lower
    id."""
    Q = np.ascontiguousarray(Q, np.float32)
    # Twice what a product in single precision can be off by, rows being of length one.
    margins = 2.0**-23 * Q.shape[1] * np.linalg.norm(Q, axis=1)
    best = [NOTHING for _ in Q]
    for ids, rows in parts:
        S = (rows @ Q.T).T  # (q, b)
        for i, scores in enumerate(S):
            held, of = best[i]
            least = held[-1] if len(held) == k else -np.inf
            if len(scores) > k:
                least = max(least, np.partition(scores, len(scores) - k)[len(scores) - k] - margins[i])
            near = np.flatnonzero(scores >= least - margins[i])
            best[i] = _top(np.append(held, products(rows[near], Q[i])), np.append(of, ids[near]), k)
    return _table(best, k)


class FlatIndex:
    """Every row is scored: exact, ties to the lower id. ids (r,): the picture of each row, −1 for none; None: row i
    is picture i. Raises `DamagedVectors` for a block that is not the one that was written."""

    def __init__(self, vectors: Vectors, ids: np.ndarray | None = None):
        self._vectors, self._ids = vectors, ids

    def search(self, Q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return best_rows(map(self._alive, self._vectors.scan()), Q, k)

    def _alive(self, part: tuple[int, np.ndarray]) -> Part:
        start, rows = part
        if self._ids is None:
            return np.arange(start, start + len(rows)), rows
        ids = self._ids[start : start + len(rows)]
        alive = ids >= 0
        return (ids, rows) if alive.all() else (ids[alive], rows[alive])


class FaissIndex:
    """An index of FAISS over the rows of a vectors' file, removed ones among them; ids as for `FlatIndex`.

    FAISS names candidates, and their scores are the exact ones of the vectors. Where it names too few, or the tuning
    knows no way to find enough of the k best, every row is scored.
    """

    def __init__(self, held: Approximate, vectors: Vectors, ids: np.ndarray | None = None):
        self.held, self._vectors, self._ids = held, vectors, ids
        self._every = FlatIndex(vectors, ids)

    def search(self, Q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        Q, rows = np.ascontiguousarray(Q, np.float32), len(self._vectors)
        alive = rows if self._ids is None else int((self._ids >= 0).sum())
        wanted = min(k, alive)
        setting = self.held.tuning.at(-(-wanted * rows // max(alive, 1)))  # some of what it finds was removed
        best = [self._best(q, wanted, setting) for q in Q]
        every = [i for i, found in enumerate(best) if found is None]
        scores, ids = _table([found or NOTHING for found in best], k)
        if every:
            scores[every], ids[every] = self._every.search(Q[every], k)
        return scores, ids

    def _best(self, q: np.ndarray, k: int, setting: Setting | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores and ids of the k best; None where every row is to be scored.

        A text unlike those that the index was measured by is noticed: more than a few of its best then come late among
        the candidates, so that more would come behind them, and twice as many are looked at.
        """
        while setting is not None and 2 * setting.candidates <= len(self._vectors):
            found = self.held.candidates(q[None], setting)[0]
            rows = np.sort(found)
            ids = rows if self._ids is None else self._ids[rows]
            rows, ids = rows[ids >= 0], ids[ids >= 0]
            best = _top(products(self._vectors.take(rows), q), ids, k)
            late = found[setting.candidates // 2 :]
            share = np.isin(best[1], late if self._ids is None else self._ids[late]).mean()
            is_coded = setting.candidates >= 2 * setting.k and not self.held.is_graph
            if len(best[1]) == k and not (is_coded and share > 1 - self.held.tuning.recall):
                return best
            setting = setting.doubled()
        return None


def _top(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if len(scores) > k:
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        scores, ids = scores[scores >= kth], ids[scores >= kth]
    order = np.lexsort((ids, -scores))[:k]
    return scores[order], ids[order]


def _table(best: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    scores, ids = np.full((len(best), k), -np.inf), np.full((len(best), k), -1, np.int64)
    for i, (s, found) in enumerate(best):
        scores[i, : len(s)], ids[i, : len(s)] = s, found
    return scores, ids


def open_dense(store: Store) -> DenseIndex:
    """The dense index of a store. Where its file cannot be trusted it is built from the vectors, and kept if it can be.

    Where too few pictures are left to train it, every row is scored. Raises `CallError` where no vectors are kept.
    """
    store.meta.need_vectors(store.folder)
    vectors = store.vectors
    if store.meta.dense_factory == FLAT or not len(vectors):
        return FlatIndex(vectors, store.ids_by_row)
    with store.vectors_trusted():
        kept = cached_dense(store)
        try:
            held = build_dense(store, kept)
        except CallError:
            return FlatIndex(vectors, store.ids_by_row)
        if held is not kept and store.is_current():  # else the file may be the newer index's already
            save_dense(store, held)
    return FaissIndex(held, vectors, store.ids_by_row)


def build_dense(store: Store, kept: Approximate | None = None) -> Approximate:
    """FAISS's index over the rows of a store's vectors, from the one that was kept on.

    Raises `CallError` where FAISS cannot build what the index is to have.
    """
    meta, vectors = store.meta, store.vectors
    if kept is None:
        return build_approximate(vectors, store.d, meta.dense_factory, store.dictionary(), meta.dense_recall)
    if kept.index.ntotal == len(vectors) and kept.tuning.fits(meta.dense_recall, len(vectors)):
        return kept
    return grown(kept, vectors, store.dictionary(), meta.dense_recall)


def save_dense(store: Store, held: Approximate) -> None:
    """Writes the cache; where it cannot be written it is made anew next time, and the answers are the same."""
    import faiss

    tuning, rows = held.tuning.to_json().encode(), int(held.index.ntotal)
    body = faiss.serialize_index(held.index).tobytes() + tuning
    body += len(tuning).to_bytes(8, "little") + rows.to_bytes(8, "little") + _key(store, rows)
    with suppress(OSError):
        write_whole(store.folder / FILE, body + hashlib.sha256(body).digest())


def cached_dense(store: Store) -> Approximate | None:
    """FAISS's index as its file holds it, over the first rows of the vectors' file or all; None where the file is
    missing, of other vectors, or damaged."""
    path = store.folder / FILE
    try:
        data = path.read_bytes() if path.is_file() else b""  # a pipe would be waited for
    except OSError:
        return None
    if len(data) <= TRAILER or hashlib.sha256(data[:-32]).digest() != data[-32:]:
        return None
    length, rows = (int.from_bytes(data[at : at + 8], "little") for at in (-TRAILER, 8 - TRAILER))
    if rows > len(store.vectors) or data[-64:-32] != _key(store, rows):
        return None
    import faiss

    end = len(data) - TRAILER - length
    tuning = Tuning.from_json(data[end : len(data) - TRAILER])
    return Approximate(faiss.deserialize_index(np.frombuffer(data[:end], np.uint8)), tuning)


def _key(store: Store, rows: int) -> bytes:
    """A SHA-256 over the description of the dense index and the checksums of the first rows of the vectors' file."""
    sha = hashlib.sha256(f"{LAYOUT}\0{store.meta.dense_factory}\0{store.d}\0{rows}\0".encode())
    sha.update(store.vectors.checksums(rows).tobytes())
    return sha.digest()
