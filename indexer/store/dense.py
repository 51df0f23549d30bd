"""The dense index: FAISS over unit rows, inner product.

`dense.faiss` is a cache of the store's vectors. FAISS loads a damaged file without a word, so 64 bytes
follow its own (which `faiss.read_index` ignores): the key of the vectors it was built from, which the store
holds too, and a SHA-256 of the file. Missing, stale or damaged, it is built again from the store.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from indexer.store.store import Store
from training.errors import CallError
from training.files import write_whole

FILE = "dense.faiss"


def build_dense(X: np.ndarray, factory: str = "Flat"):
    """Builds a FAISS index of any `index_factory` description over X (n, d) unit rows, by inner product."""
    import faiss

    if not len(X):  # no picture is left: what is to be trained cannot be
        return faiss.IndexFlatIP(X.shape[1])
    try:
        index = faiss.index_factory(X.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        X = np.ascontiguousarray(X, np.float32)
        if not index.is_trained:
            index.train(X)
        index.add(X)
    except (RuntimeError, AssertionError) as e:
        reason = str(e).strip().splitlines()[-1] if str(e).strip() else "its size does not fit"
        raise CallError(f"FAISS cannot build {factory!r} over {len(X)} × {X.shape[1]}: {reason}") from e
    return index


def save_dense(folder: Path, index, key: str) -> None:
    """Writes the cache; where it cannot be written it is made anew next time, and the answers are the same."""
    import faiss

    body = faiss.serialize_index(index).tobytes() + bytes.fromhex(key)
    with suppress(OSError):
        write_whole(folder / FILE, body + hashlib.sha256(body).digest())


def load_dense(store: Store):
    """Opens the dense index of a store; builds it anew from the store's vectors where the file cannot be trusted."""
    index = cached_dense(store)
    if index is None:
        index = build_dense(store.embeddings(), store.meta["dense_factory"])
        if store.is_current():  # else the file may be the newer index's already
            save_dense(store.folder, index, store.meta["dense_key"])
    return index


def cached_dense(store: Store):
    """The dense index as its file holds it; None where that is missing, stale or damaged."""
    import faiss

    path = store.folder / FILE
    try:
        data = path.read_bytes() if path.is_file() else b""  # a pipe would be waited for
    except OSError:
        return None
    if (
        len(data) > 64
        and data[-64:-32].hex() == store.meta["dense_key"]
        and hashlib.sha256(data[:-32]).digest() == data[-32:]
    ):
        return faiss.deserialize_index(np.frombuffer(data[:-64], np.uint8))
    return None
