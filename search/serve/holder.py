"""The one open index that all requests share.

The libraries below (DuckDB's connection, the mapped files, compiled kernels) are not made for several threads at once,
so a request has the index to itself while it asks; what it renders, it renders afterwards. A new generation of the
index is taken up at the next request; until then answers come from the one that is open, whole as it was.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from indexer.milvus import Address
from search.index import Index
from search.query import Query, Term, several
from search.shards import shard_folders
from training.errors import CallError, SparsightError
from training.files import full_path

TEXT = Query((Term("text", "picture"),), k=1)
PAUSE = 2.0  # seconds: importing torch takes so many of a processor that the first page would wait for it


class Opening(NamedTuple):
    """What to open: the folder of the index, or those of its shards, its encoder where that lies elsewhere now, where
    torch computes."""

    folders: Path | Sequence[Path] | Address
    encoder: str | None = None
    device: str = "auto"


class Holder:
    """Keeps an index open, and its encoder loaded. Raises `SparsightError` where there is no index to open."""

    def __init__(self, opening: Opening):
        self.opening = opening
        self._lock = threading.Lock()
        self._loading: threading.Thread | None = None
        self._index = self._open()
        self.version = self._index.engine.version
        self.trouble = ""  # why a newer generation could not be opened

    @property
    def folders(self) -> list[Path]:
        """The folders of the index, one a shard."""
        if isinstance(self.opening.folders, Address):
            raise CallError(f"{self.opening.folders} is no index folder: its server checks what it holds")
        return shard_folders([full_path(folder) for folder in several(self.opening.folders)])

    @contextmanager
    def index(self) -> Iterator[Index]:
        """The index of the newest generation, for one thread at a time."""
        with self._lock:
            self._renew()
            yield self._index

    def close(self) -> None:
        with self._lock:
            self._index.close()

    def warm(self) -> None:
        """Loads what the first query would wait for, in the background; a fault shows itself when it is asked for."""
        self._loading = threading.Thread(target=self._load, daemon=True)
        self._loading.start()

    def leave(self) -> None:
        """Ends the process where something is still being loaded: Python would end that thread, and with it abort."""
        if self._loading is not None and self._loading.is_alive():
            self._loading.join(0.2)
            if self._loading.is_alive():
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                os._exit(0)

    def _load(self) -> None:
        with suppress(SparsightError):
            with self._open() as apart:  # the first text of all measures unrelated ones: others need not wait for that
                apart.answer(TEXT)
            with self.index() as index:
                index.answer(TEXT)
            time.sleep(PAUSE)
            import torch  # noqa: F401 (not while others wait for the index)

            with self.index() as index:
                index.encoder  # noqa: B018

    def _open(self) -> Index:
        return Index(self.opening.folders, encoder=self.opening.encoder, device=self.opening.device)

    def _renew(self) -> None:
        if self._index.engine.is_current():
            return
        try:
            newer = self._open()
        except SparsightError as e:  # removed, or damaged: the one that is open still answers
            self.trouble = str(e)
            return
        newer.take_encoders(self._index)
        self._index.close()
        self._index, self.trouble = newer, ""
        self.version = newer.engine.version
