"""The dense index: pictures by the inner product of their embedding with a query, over unit rows.

Flat, the default, is the vectors' own file, mapped and scanned in blocks. For any other description of FAISS's
`index_factory` a file beside the database holds that index: a cache. FAISS loads a damaged file without a word, so
behind its own bytes (which `faiss.read_index` ignores) stand the number of rows that it holds, the key of those rows
and a SHA-256 of it all. Missing, stale or damaged, it is built anew from the vectors; where rows were only added
since, they are added to it.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from indexer.store.reader import Store
from indexer.store.vectors import RowSource, Vectors
from training.errors import CallError
from training.files import write_whole

FLAT = "Flat"
FILE = "dense.faiss"
TRAILER = 8 + 32 + 32  # rows, their key, a SHA-256


class DenseIndex(Protocol):
    """What answers dense queries."""

    def search(self, Q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k pictures with the largest q·x for each query of Q (q, d), best first.

        Returns scores (q, k) float32 and image ids (q, k) int64; −inf and −1 where there are fewer.
        """
        ...


class FlatIndex:
    """Every row is scored: exact, ties to the lower id. ids (r,): the picture of each row, −1 for none; None: row i
    is picture i. Raises `DamagedVectors` for a block that is not the one that was written."""

    def __init__(self, vectors: Vectors, ids: np.ndarray | None = None):
        self._vectors, self._ids = vectors, ids

    def search(self, Q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        Q = np.ascontiguousarray(Q, np.float32)
        best: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0, np.float32), np.zeros(0, np.int64)) for _ in Q]
        for start, rows in self._vectors.scan():
            S = (rows @ Q.T).T  # (q, b)
            ids = np.arange(start, start + len(rows)) if self._ids is None else self._ids[start : start + len(rows)]
            for i, scores in enumerate(S):
                held, of = best[i]
                least = held[-1] if len(held) == k else -np.inf
                better = np.flatnonzero((scores > least) & (ids >= 0)) if len(held) == k else np.flatnonzero(ids >= 0)
                best[i] = _top(np.append(held, scores[better]), np.append(of, ids[better]), k)
        return _table(best, k)


class FaissIndex:
    """An index of FAISS over the rows of a vectors' file, removed ones among them; ids as for `FlatIndex`."""

    def __init__(self, index: Any, ids: np.ndarray | None = None):
        self.index, self._ids = index, ids

    def search(self, Q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        Q, rows = np.ascontiguousarray(Q, np.float32), self.index.ntotal
        if self._ids is None:
            scores, ids = self.index.search(Q, min(k, max(rows, 1)))
            return _table([(s[i >= 0], i[i >= 0]) for s, i in zip(scores, ids, strict=True)], k)
        asked = min(2 * k, rows)  # some of what it finds was removed
        while True:
            scores, found = self.index.search(Q, max(asked, 1))
            ids = np.where(found >= 0, self._ids[np.maximum(found, 0)], -1)
            if asked >= rows or ((ids >= 0).sum(1) >= k).all():
                return _table([(s[i >= 0][:k], i[i >= 0][:k]) for s, i in zip(scores, ids, strict=True)], k)
            asked = min(4 * asked, rows)


def _top(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if len(scores) > k:
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        scores, ids = scores[scores >= kth], ids[scores >= kth]
    order = np.lexsort((ids, -scores))[:k]
    return scores[order], ids[order]


def _table(best: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    scores, ids = np.full((len(best), k), -np.inf, np.float32), np.full((len(best), k), -1, np.int64)
    for i, (s, found) in enumerate(best):
        scores[i, : len(s)], ids[i, : len(s)] = s, found
    return scores, ids


def build_dense(X: RowSource, d: int, factory: str) -> Any:
    """Builds a FAISS index of any `index_factory` description over rows (n, d), by inner product.

    Raises `CallError` where FAISS cannot: the description means nothing to it, or asks for more rows.
    """
    import faiss

    try:
        index = faiss.index_factory(d, factory, faiss.METRIC_INNER_PRODUCT)
        rows = np.ascontiguousarray(X[:], np.float32)
        if not index.is_trained:
            index.train(rows)
        index.add(rows)
    except (RuntimeError, AssertionError) as e:
        reason = str(e).strip().splitlines()[-1] if str(e).strip() else "its size does not fit"
        raise CallError(f"FAISS cannot build {factory!r} over {len(X)} × {d}: {reason}") from e
    return index


def open_dense(store: Store) -> DenseIndex:
    """The dense index of a store. Where its file cannot be trusted it is built from the vectors, and kept if it can be.

    Where too few pictures are left to train it, every row is scored.
    """
    factory, vectors = store.meta.dense_factory, store.vectors
    if factory != FLAT and len(vectors):
        with store.vectors_trusted():
            index, rows = cached_dense(store)
            if index is None or rows < len(vectors):
                try:
                    index = build_dense(vectors, store.d, factory) if index is None else _grown(index, vectors, rows)
                except CallError:
                    return FlatIndex(vectors, store.ids_by_row)
                if store.is_current():  # else the file may be the newer index's already
                    save_dense(store.folder, index, dense_key(store, len(vectors)))
        return FaissIndex(index, store.ids_by_row)
    return FlatIndex(vectors, store.ids_by_row)


def _grown(index: Any, vectors: Vectors, rows: int) -> Any:
    index.add(np.ascontiguousarray(vectors[rows:]))
    return index


def dense_key(store: Store, rows: int) -> bytes:
    """A SHA-256 over the description of the dense index and the checksums of the first rows of the vectors' file."""
    sha = hashlib.sha256(f"{store.meta.dense_factory}\0{store.d}\0{rows}\0".encode())
    sha.update(store.vectors.checksums(rows).tobytes())
    return sha.digest()


def save_dense(folder: Path, index: Any, key: bytes) -> None:
    """Writes the cache; where it cannot be written it is made anew next time, and the answers are the same."""
    import faiss

    body = faiss.serialize_index(index).tobytes() + int(index.ntotal).to_bytes(8, "little") + key
    with suppress(OSError):
        write_whole(folder / FILE, body + hashlib.sha256(body).digest())


def cached_dense(store: Store) -> tuple[Any, int]:
    """FAISS's index as its file holds it, and how many rows of the vectors' file that is; None and 0 where the file is
    missing, of other vectors, or damaged."""
    path = store.folder / FILE
    try:
        data = path.read_bytes() if path.is_file() else b""  # a pipe would be waited for
    except OSError:
        return None, 0
    if len(data) <= TRAILER or hashlib.sha256(data[:-32]).digest() != data[-32:]:
        return None, 0
    rows = int.from_bytes(data[-TRAILER : 8 - TRAILER], "little")
    if rows > len(store.vectors) or data[-64:-32] != dense_key(store, rows):
        return None, 0
    import faiss

    return faiss.deserialize_index(np.frombuffer(data[:-TRAILER], np.uint8)), rows
