"""The large tables of an export as a writer takes them: in the order of the images, a part in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from indexer.exchange.loading import Loaded


class Embeddings:
    """X (n, d) float32: the rows of the table `vectors`, by image. Rows that are read one after the other read each
    part once."""

    def __init__(self, held: Loaded, d: int):
        self._held, self._d = held, d
        self._parts = held.by_image("vectors")
        self._starts = np.cumsum([0, *(part.rows for part in self._parts)])
        self._open: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        wanted = np.arange(len(self))[rows]
        of_part = np.searchsorted(self._starts, wanted, side="right") - 1
        pieces = [np.zeros((0, self._d), np.float32)]
        pieces += [self._part(p)[wanted[of_part == p] - self._starts[p]] for p in np.unique(of_part).tolist()]
        return np.concatenate(pieces)

    def _part(self, number: int) -> np.ndarray:
        if self._open is None or self._open[0] != number:
            self._open = None  # two parts are never in memory
            sql = f"SELECT unnest(embedding)::FLOAT AS x FROM (FROM ({self._parts[number].sql}) ORDER BY image_id)"
            self._open = number, np.asarray(self._held.arrays(sql)["x"], np.float32).reshape(-1, self._d)
        return self._open[1]


def thumbnails_of(held: Loaded, ids: np.ndarray) -> Iterator[bytes | None]:
    """The JPEG bytes of the pictures ids (n,), ascending; None where there is none."""
    at = 0
    for part in held.by_image("thumbnails"):
        rows = held.rows(f"SELECT image_id, jpeg FROM ({part.sql}) ORDER BY image_id")
        # All at once, and as the type of ids: each search for a number of another type would copy all ids.
        places = np.searchsorted(ids, np.array([image_id for image_id, _ in rows], ids.dtype))
        for place, (_, jpeg) in zip(places.tolist(), rows, strict=True):
            yield from [None] * (place - at)
            yield jpeg
            at = place + 1
    yield from [None] * (len(ids) - at)


def codes_of(held: Loaded, ids: np.ndarray, m: int) -> sparse.csr_matrix:
    """W (n, m) CSR: the weights above 0 of the pictures ids (n,), ascending."""
    counts = np.zeros(len(ids) + 1, np.int64)
    indices, weights = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for part in held.by_image("codes"):
        found = held.arrays(f"SELECT image_id, concept_id, weight FROM ({part.sql}) WHERE weight > 0")
        first, last = np.searchsorted(ids, np.array([part.first, part.last], ids.dtype))
        places = np.searchsorted(ids, found["image_id"]) - first, found["concept_id"]
        shape = (int(last - first) + 1, m)
        W = sparse.csr_matrix((found["weight"].astype(np.float32), places), shape=shape)
        counts[first + 1 : last + 2] = np.diff(W.indptr)
        indices.append(W.indices.astype(np.int32))
        weights.append(W.data)
    indptr = np.cumsum(counts)
    return sparse.csr_matrix((np.concatenate(weights), np.concatenate(indices), indptr), shape=(len(ids), m))
