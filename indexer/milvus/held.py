"""An index in Milvus that is held to be changed. The folder of the work is this user's: see `work_folder`."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

from indexer.milvus.address import Address
from indexer.milvus.reader import MilvusStore
from indexer.milvus.writer import change_milvus, settled
from indexer.store.contents import Change
from indexer.store.lock import writing
from indexer.store.meta import IndexMeta
from training.digests import cache_folder


class _Contents(Container[str]):
    """The contents that an index holds: each is asked for, which takes less than to encode a picture."""

    def __init__(self, store: MilvusStore):
        self._store = store

    def __contains__(self, content_hash: object) -> bool:
        return bool(self._store.images_holding([str(content_hash)]))


class HeldMilvus(MilvusStore):
    """The index at an address, which no other process of this user changes."""

    def contents(self) -> Container[str]:
        return _Contents(self)

    def has_splits(self) -> bool | None:
        return bool(self.values("split")) if self.values("split") or self.values("label") else None

    def quantiser(self) -> None:
        return None

    def change(self, change: Change) -> IndexMeta:
        return change_milvus(self, change)


def work_folder(address: Address) -> Path:
    """Where the lock of an index lies, and what was encoded for it and is not in it yet, in the user's cache folder."""
    return cache_folder() / "milvus" / hashlib.sha256(address.key.encode()).hexdigest()[:16]


@contextmanager
def held_milvus(address: Address, command: str) -> Iterator[HeldMilvus]:
    """The index at an address, opened once for a change; one that was stopped midway is undone first."""
    with HeldMilvus(address) as store, writing(work_folder(address), command):
        settled(store)
        yield store
