"""How far a picture lies outside what is known: the share of known pictures that lie as far out.

An encoder gives every picture a place, one of an apple as well where it has only seen animals and vehicles, and the
class that is nearest there. So the place itself is judged. Known pictures are halved. One half gives centres
(k-means) and the covariance about them; a picture's distance is Mahalanobis's from the nearest centre (Lee et al. 2018,
arXiv:1807.03888, with clusters in place of labels, which most pictures do not have). The other half, to which nothing
was fitted, gives the distances that pictures have which are no strangers: p = (1 + how many of them are as large) /
(1 + how many there are), a conformal p-value. Known pictures have any p equally often, and so at most a share a of
them has p ≤ a (Vovk et al. 2005).

What is known: CIFAR-10's test pictures, where their embeddings lie beside the encoder's weights, since the encoder was
not trained on them; else the pictures of the index, those of a test split where there are some. Whoever builds an index
measures it; it lies beside the database, and is no part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.encoders import embeddings_beside, fingerprint_of
from training.errors import SparsightError
from training.files import write_whole

if TYPE_CHECKING:
    from indexer.store.meta import IndexMeta
    from indexer.store.reader import Store

LEVEL = 0.05  # below it a picture is called unlike the known ones
FILE = "familiarity.safetensors"
FEWEST, MOST = 100, 20_000  # known pictures that are enough, and that are looked at
CENTRES, EACH = 16, 100  # at most; and of so many pictures at the least
ROUNDS = 15  # of k-means
BLOCK = 1 << 14  # pictures that are judged at a time
GROWN = 1.2  # an index that has grown or shrunk by more is measured again
OF_ENCODER, OF_INDEX = "the pictures that the encoder knows", "the pictures of this index"


@dataclass(frozen=True)
class Half:
    """What one half of the known pictures gives, and how far out those of the other half lie.

    P (d, d): makes the covariance about the centres the unit matrix. C (k, d): the centres, times P. far (c,): the
    other half's distances, ascending.
    """

    P: np.ndarray
    C: np.ndarray
    far: np.ndarray

    def distances(self, X: np.ndarray) -> np.ndarray:
        """X (n, d) → the Mahalanobis distance of each row from its nearest centre (n,)."""
        Z = X @ self.P
        squares = (Z * Z).sum(1)[:, None] - 2 * Z @ self.C.T + (self.C * self.C).sum(1)
        return np.sqrt(np.maximum(squares.min(1), 0))

    def share(self, X: np.ndarray) -> np.ndarray:
        """X (n, d) → the share of known pictures that lie as far out (n,), above 0 and up to 1."""
        nearer = np.searchsorted(self.far, self.distances(X), "left")
        return (1 + len(self.far) - nearer) / (1 + len(self.far))


@dataclass(frozen=True)
class Familiarity:
    """What pictures are judged by.

    halves: a picture is judged by the first. ids: those of the index's pictures that it was fitted to, which the second
    judges. of: the pictures that are known, in words.
    """

    halves: tuple[Half, Half]
    ids: np.ndarray
    of: str

    def share(self, X: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
        """X (n, d) → the share of known pictures that lie as far out (n,). ids (n,): where they are of the index."""
        shares = self.halves[0].share(X)
        fitted = np.zeros(len(X), bool) if ids is None else np.isin(ids, self.ids)
        if fitted.any():
            shares[fitted] = self.halves[1].share(X[fitted])
        return shares


def measured(X: np.ndarray, ids: np.ndarray | None = None, of: str = OF_ENCODER) -> Familiarity | None:
    """What pictures are judged by who are to be like X (n, d); None where these are too few. ids (n,): in the index."""
    if len(X) < FEWEST:
        return None
    first, second = X[::2], X[1::2]
    return Familiarity(
        halves=(_half(first, second), _half(second, first)),
        ids=np.zeros(0, np.int64) if ids is None else np.asarray(ids[::2], np.int64),
        of=of,
    )


def _half(X: np.ndarray, other: np.ndarray) -> Half:
    n, d = X.shape
    centres = _centres(X, min(CENTRES, max(1, n // EACH)))
    rest = (X - centres[(X @ centres.T).argmax(1)]).astype(np.float64)
    values, vectors = np.linalg.eigh(rest.T @ rest / n)
    # Few pictures tell little of a direction: the fewer there are, the more alike all directions are taken to be.
    P = (vectors / np.sqrt(np.maximum(values, 0) + max(values.mean() * d / n, 1e-9))).astype(np.float32)
    half = Half(P, (centres @ P).astype(np.float32), np.zeros(0, np.float32))
    return Half(half.P, half.C, np.sort(half.distances(other)).astype(np.float32))


def _centres(X: np.ndarray, k: int) -> np.ndarray:
    """k centres of the unit rows X (n, d), unit rows as well, by k-means from rows that lie evenly among them."""
    centres = X[np.linspace(0, len(X) - 1, k).astype(int)]
    for _ in range(ROUNDS):
        nearest = (X @ centres.T).argmax(1)
        sums = np.stack([X[nearest == j].sum(0) for j in range(k)])
        sizes = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(sizes > 1e-6, sums / np.maximum(sizes, 1e-6), centres)
    return centres


def index_familiarity(store: Store, encoder_source: str | None = None) -> Familiarity | None:
    """What an index's pictures, and others, are judged by: the kept one, else one that is measured now, and kept where
    it can be. None where too few pictures are known. encoder_source: where the encoder lies, if elsewhere now."""
    path = store.folder / FILE
    with suppress(OSError):
        data = path.read_bytes() if path.is_file() else b""  # a pipe would be waited for
        if found := parse_familiarity(data, store.meta):
            return found
    made = familiarity_of([store], encoder_source or store.meta.encoder_source)
    if made is not None:
        with suppress(OSError):  # then it is measured anew next time, and the answers are the same
            write_whole(path, familiarity_bytes(made, store.meta))
    return made


def parse_familiarity(data: bytes, meta: IndexMeta) -> Familiarity | None:
    """What `familiarity_bytes` wrote; None where it is damaged, or of another encoder or other pictures."""
    with suppress(ValueError, KeyError):
        if len(data) > 32 and hashlib.sha256(data[:-32]).digest() == data[-32:]:
            found, n = _read(data[:-32], _key(meta))
            if found.of == OF_ENCODER or 1 / GROWN <= meta.n / n <= GROWN:
                return found
    return None


def familiarity_bytes(known: Familiarity, meta: IndexMeta) -> bytes:
    """What pictures are judged by, as it is kept."""
    body = _written(known, _key(meta), meta.n)
    return body + hashlib.sha256(body).digest()


def known_to_encoder(source: str, meta: IndexMeta) -> Familiarity | None:
    """What the pictures give whose embeddings lie beside the encoder of an index; None where there are too few."""
    with suppress(SparsightError, OSError):
        X = embeddings_beside(source).X
        if fingerprint_of(source) == meta.encoder_fingerprint:
            return measured(X)
    return None


def sampled(ids: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Those of an index's pictures ids (n,) that are looked at: of the ones in a test split where these are enough."""
    among = tested if len(tested) >= FEWEST else ids
    return among[np.linspace(0, len(among) - 1, min(len(among), MOST)).astype(int)]


def shares_of_all(store: Store, known: Familiarity) -> np.ndarray:
    """For every picture of an index, by id, the share of known pictures that lie as far out (n,)."""
    shares = np.ones(len(store))
    for start in range(0, len(store), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(store)))
        shares[rows] = known.share(store.embeddings(rows), store.image_ids[rows])
    return shares


def familiarity_of(stores: Sequence[Store], source: str) -> Familiarity | None:
    """What the pictures of some shards, and others, are judged by: that of the index which they are together.

    An id is that of the shard plus all that the shards before it have given. source: where the encoder lies.
    """
    meta = stores[0].meta
    if found := known_to_encoder(source, meta):  # where there are none, the index's own pictures are known
        return found
    if not meta.keeps_vectors:
        return None
    sql = "SELECT image_id FROM images WHERE lower(split) = 'test' ORDER BY image_id"
    tested = [np.searchsorted(store.image_ids, store.columns(sql)["image_id"]) for store in stores]
    if sum(map(len, tested)) < FEWEST:
        tested = [np.arange(len(store)) for store in stores]
    count, start, base = sum(map(len, tested)), 0, 0
    chosen = np.linspace(0, count - 1, min(count, MOST)).astype(int)
    rows, ids = [], []
    for store, places in zip(stores, tested, strict=True):
        mine = places[chosen[(chosen >= start) & (chosen < start + len(places))] - start]
        rows.append(store.embeddings(mine))
        ids.append(store.image_ids[mine] + base)
        start, base = start + len(places), base + store.meta.next_id
    return measured(np.concatenate(rows), np.concatenate(ids), OF_INDEX)


def _key(meta: IndexMeta) -> str:
    """What it depends on, the pictures apart."""
    return f"2 {meta.encoder_fingerprint} {meta.d}"


def _written(known: Familiarity, key: str, n: int) -> bytes:
    from safetensors.numpy import save

    arrays = {f"{name}{i}": getattr(half, name) for i, half in enumerate(known.halves) for name in ("P", "C", "far")}
    held = json.dumps({"key": key, "n": n, "of": known.of})
    arrays |= {"ids": known.ids, "held": np.frombuffer(held.encode(), np.uint8)}
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # of a view it saves other numbers
    return save(whole)


def _read(body: bytes, key: str) -> tuple[Familiarity, int]:
    """Raises `ValueError` or `KeyError` where it is another one."""
    from safetensors.numpy import load

    arrays = load(body)
    held = json.loads(arrays["held"].tobytes())
    if held["key"] != key:
        raise ValueError("of another encoder")
    halves = [Half(*(arrays[f"{name}{i}"] for name in ("P", "C", "far"))) for i in (0, 1)]
    return Familiarity((halves[0], halves[1]), arrays["ids"], held["of"]), held["n"]
