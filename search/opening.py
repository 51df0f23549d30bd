"""From where an index lies to what answers for it."""

from __future__ import annotations

from indexer.milvus import Address, is_address, parse_address
from search.engine import Engine
from search.shards import Folders, open_folders

Place = Folders | Address  # of an index: a folder, those of its shards, or one in Milvus


def open_engine(place: Place) -> Engine:
    """The engine of the index at a place; raises `SparsightError` where there is none."""
    if is_address(place):
        place = parse_address(place)
    if isinstance(place, Address):
        from search.milvus import MilvusEngine

        return MilvusEngine(place)
    return open_folders(place)
