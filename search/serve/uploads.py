"""Pictures that were dropped on the page: kept in memory, as many as fit, by their content's hash."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from indexer.pictures.files import decode, shrunk
from search.index import Index
from training.errors import CallError

MOST_BYTES = 32_000_000  # of one picture
MOST_KEPT = 256_000_000  # of all; the longest unused go first
PREFIX = "upload:"  # of the value of a query's term that names one


@dataclass
class Upload:
    """One picture: the file's bytes, a thumbnail, and its embedding by the version of the index that made it."""

    data: bytes
    thumbnail: bytes
    vectors: dict[str, np.ndarray] = field(default_factory=dict)


class Uploads:
    """The pictures that were uploaded since the start."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()
        self._few = threading.Semaphore(2)  # decoded at a time: each may take some hundred megabytes

    def add(self, data: bytes) -> str:
        """Takes a picture; returns its hash. Raises `PictureError` where it is none, damaged or too large."""
        name = hashlib.sha256(data).hexdigest()[:32]
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return name
        with self._few:
            made = Upload(data, shrunk(decode(data, 512)))
        with self._lock:
            self._kept[name] = made
            while sum(len(u.data) for u in self._kept.values()) > MOST_KEPT:
                self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> Upload:
        """A picture by its hash; raises `CallError` where it is not kept (any more)."""
        with self._lock:
            if (found := self._kept.get(name)) is None:
                raise CallError("that uploaded picture is not kept any more: drop it again")
            self._kept.move_to_end(name)
            return found

    def vector(self, name: str, index: Index, version: str) -> np.ndarray:
        """The embedding (d,) of an uploaded picture, made as indexing makes one."""
        upload = self.get(name)
        if version not in upload.vectors:
            upload.vectors = {version: index.embed_bytes(upload.data)}
        return upload.vectors[version]
