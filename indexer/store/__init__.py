"""The store: one index is one folder, and `index.duckdb` in it is the single source of truth."""

from indexer.store.contents import (
    Change,
    Classes,
    Concept,
    Contents,
    Described,
    ImageRow,
    Moved,
    Pictures,
    Skip,
)
from indexer.store.database import DATABASE, refuse_no_index
from indexer.store.journal import Journal
from indexer.store.lock import writing
from indexer.store.meta import IndexMeta
from indexer.store.postings import Postings
from indexer.store.reader import Store
from indexer.store.writer import change_store, compact_store, unused_files, write_store

__all__ = [
    "DATABASE",
    "Change",
    "Classes",
    "Concept",
    "Contents",
    "Described",
    "ImageRow",
    "IndexMeta",
    "Journal",
    "Moved",
    "Pictures",
    "Postings",
    "Skip",
    "Store",
    "change_store",
    "refuse_no_index",
    "compact_store",
    "unused_files",
    "write_store",
    "writing",
]
