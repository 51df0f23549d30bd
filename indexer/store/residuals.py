"""The residuals of an index: three tables of its database, which only an index with residuals has.

`residuals` holds each picture's code and scale, `residual_axes` and `residual_centroids` the two arrays of the
quantiser (`indexer.residual`). They lie in the database since a few bytes a picture are small beside its row of
`images`; so a change of the index changes them in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import duckdb
import numpy as np
from scipy import sparse

from indexer.residual import Coded, Quantiser
from indexer.store.database import ids_table, insert, stacked

if TYPE_CHECKING:
    from indexer.store.reader import Store

BLOCK = 1 << 14  # pictures that are put together at a time


def insert_quantiser(con: duckdb.DuckDBPyConnection, quantiser: Quantiser) -> None:
    """Fills the tables of a quantiser."""
    parts, codes, width = quantiser.C.shape
    insert(con, "residual_axes", {"axis": np.arange(len(quantiser.A), dtype=np.int32)}, rows=quantiser.A)
    columns = {
        "part": np.repeat(np.arange(parts, dtype=np.int32), codes),
        "code": np.tile(np.arange(codes, dtype=np.int32), parts),
    }
    insert(con, "residual_centroids", columns, rows=quantiser.C.reshape(-1, width))


def insert_residuals(con: duckdb.DuckDBPyConnection, ids: np.ndarray, coded: Coded) -> None:
    """Adds the residuals of some pictures."""
    digits, size = coded.codes.tobytes().hex(), 2 * coded.codes.shape[1]
    texts = [digits[i : i + size] for i in range(0, len(digits), size)]  # DuckDB would look at bytes one by one
    columns = {"image_id": ids.astype(np.int32), "scale": coded.scales.astype(np.float32), "code": texts}
    insert(con, "residuals", columns, casts={"code": "unhex(code)"})


def remove_residuals(con: duckdb.DuckDBPyConnection, ids: list[int]) -> None:
    """Removes the residuals of some pictures."""
    con.execute(f"DELETE FROM residuals WHERE image_id IN {ids_table('image_id')}", [ids])


def quantiser_of(A: np.ndarray, parts: np.ndarray, codes: np.ndarray, centroids: Sequence[np.ndarray]) -> Quantiser:
    """The quantiser that rows of both tables hold, ordered by axis, and by part and code.

    Raises ValueError where they hold none.
    """
    count = int(parts[-1]) + 1 if len(parts) else 0
    if not count or len(parts) % count or not np.array_equal(parts * (len(parts) // count) + codes, range(len(parts))):
        raise ValueError("a centroid is missing, or there twice")
    return Quantiser(A, np.stack(list(centroids)).astype(np.float32).reshape(count, len(parts) // count, -1))


def coded_of(
    wanted: np.ndarray, ids: np.ndarray, scales: np.ndarray, codes: Sequence[bytes], quantiser: Quantiser
) -> Coded:
    """The residuals of the pictures `wanted` (n,) ascending that rows hold, ordered by their ids.

    Raises ValueError where they are not one for each.
    """
    if not np.array_equal(ids, wanted):
        raise ValueError("they are not one for each picture")
    if {*map(len, codes)} - {quantiser.size}:
        raise ValueError(f"one has not {quantiser.size} bytes")
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ValueError("a scale is below 0, or not finite")
    return Coded(np.frombuffer(b"".join(codes), np.uint8).reshape(-1, quantiser.size), scales.astype(np.float32))


def read_quantiser(store: Store) -> Quantiser | None:
    """The quantiser of an index's residuals; None where it has none. Raises `SparsightError` for a damaged one."""
    if not store.meta.residual:
        return None
    A = stacked(store.columns("SELECT direction FROM residual_axes ORDER BY axis")["direction"], store.d)
    rows = store.columns("SELECT part, code, centroid FROM residual_centroids ORDER BY part, code")
    try:
        quantiser = quantiser_of(A, rows["part"], rows["code"], rows["centroid"].tolist())
    except ValueError as e:
        raise store.damaged(f"the quantiser of its residuals cannot be read ({e})") from e
    if quantiser.fingerprint != store.meta.residual_fingerprint:
        raise store.damaged("the quantiser of its residuals is not the one that it was built with")
    return quantiser


def read_coded(store: Store, quantiser: Quantiser, ids: np.ndarray | None = None) -> Coded:
    """The residuals as they are stored, by picture; ids (k,) ascending: of those pictures alone.

    Raises `SparsightError` for damaged ones.
    """
    some = ids is not None and len(ids) > 0
    among = "WHERE image_id BETWEEN ? AND ?" if some else ""
    span = [int(ids[0]), int(ids[-1])] if ids is not None and some else []
    held = store.columns(f"SELECT image_id, scale, code FROM residuals {among} ORDER BY image_id", span)
    if ids is not None:
        held = {name: column[np.isin(held["image_id"], ids)] for name, column in held.items()}
    wanted = store.image_ids if ids is None else ids
    try:
        return coded_of(wanted, held["image_id"], held["scale"], held["code"].tolist(), quantiser)
    except ValueError as e:
        raise store.damaged(f"its residuals cannot be read ({e})") from e


@dataclass(frozen=True)
class Residuals:
    """The residuals of an index, read once: a byte for each part of each picture is in memory.

    coded: as they are stored, by picture; W (n, m): the codes; D (m, d): the dictionary.
    """

    quantiser: Quantiser
    coded: Coded
    W: sparse.csr_matrix
    D: np.ndarray

    @cached_property
    def places(self) -> np.ndarray:
        """(M, n) uint8: the centroid of each part of each picture."""
        return np.ascontiguousarray(self.quantiser.unpacked(self.coded.codes).T)

    @property
    def scales(self) -> np.ndarray:
        """(n,) float32: 1 / ‖w D + r̂‖."""
        return self.coded.scales

    def scores(self, t: np.ndarray, s: np.ndarray) -> np.ndarray:
        """(n,) scale · (w·s + r̂·t) of every picture, for t (d,) and s (m,): x̂·t where s = D t."""
        return (self.W @ s + self.products(t)) * self.scales

    def products(self, t: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        """r̂·t of every picture (n,), or of those at some places (k,), for t (d,): one table entry for each byte."""
        tables = self.quantiser.tables(np.asarray(t, np.float64))
        totals = np.zeros(len(self.scales) if at is None else len(at))
        for table, places in zip(tables, self.places, strict=True):
            totals += table.take(places if at is None else places[at])
        return totals

    def decoded(self, at: np.ndarray) -> np.ndarray:
        """(k, d) float32: r̂ of the pictures at some places (k,) of 0 … n − 1."""
        return self.quantiser.decode(self.coded.codes[at])

    def standing_for(self, at: np.ndarray) -> np.ndarray:
        """(k, d) float32: x̂ of the pictures at some places (k,) of 0 … n − 1."""
        return (self.W[at] @ self.D + self.decoded(at)) * self.scales[at, None]

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(the place of the first, x̂ (b, d)) of all pictures, block by block."""
        for start in range(0, len(self.scales), BLOCK):
            yield start, self.standing_for(np.arange(start, min(start + BLOCK, len(self.scales))))


def read_residuals(store: Store) -> Residuals | None:
    """The residuals of an index; None where it has none. Raises `SparsightError` for damaged ones."""
    if (quantiser := read_quantiser(store)) is None:
        return None
    return Residuals(quantiser, read_coded(store, quantiser), store.codes(), store.dictionary())
