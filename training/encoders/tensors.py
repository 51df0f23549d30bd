"""Single tensors of a model's safetensors, read from the disk as float32; the bytes of all others stay there.

Format: https://huggingface.co/docs/safetensors. Its own numpy reader knows no bfloat16 and no single rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}


class Tensor(NamedTuple):
    """Where a tensor lies. start: its first byte in the file."""

    path: Path
    start: int
    dtype: str
    shape: tuple[int, ...]


class Tensors:
    """The tensors of a model's files, by their names.

    Raises OSError, `SafetensorError`, KeyError or ValueError where a file is missing or damaged.
    """

    def __init__(self, files: Iterable[Path]):
        self.places = {name: place for file in files for name, place in _places(file).items()}

    def read(self, name: str) -> np.ndarray:
        """A whole tensor. Raises ValueError where it is cut off or has values that are not finite."""
        place = self.places[name]
        count = int(np.prod(place.shape, dtype=np.int64))
        found = np.fromfile(place.path, DTYPES[place.dtype], count, offset=place.start)
        return _finite(found, place, name).reshape(place.shape)

    def rows(self, name: str) -> Rows:
        """A matrix of which only the rows that are asked for are read."""
        return Rows(self.places[name], name)


class Rows:
    """The rows of a matrix in a file, which stays open: it may be replaced meanwhile."""

    def __init__(self, place: Tensor, name: str):
        self.place, self.name = place, name
        self.size, self.width = place.shape
        self._file = place.path.open("rb")
        self._lock = Lock()  # for the place in the file

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """The rows of ids (…) → (…, width) float32. Raises IndexError, or ValueError as `Tensors.read` does."""
        distinct, where = np.unique(ids, return_inverse=True)
        if len(distinct) and not 0 <= distinct[0] <= distinct[-1] < self.size:
            raise IndexError(f"{self.name} has {self.size} rows, and row {distinct[-1]} is asked for")
        dtype = np.dtype(DTYPES[self.place.dtype])
        length = self.width * dtype.itemsize
        with self._lock:
            found = b"".join(self._read(self.place.start + int(i) * length, length) for i in distinct)
        rows = _finite(np.frombuffer(found, dtype), self.place, self.name).reshape(-1, self.width)
        return rows[where.reshape(ids.shape)]

    def _read(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        found = self._file.read(length)
        if len(found) < length:
            raise ValueError(f"tensor {self.name} is cut off")
        return found


def _places(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, "np"):  # checks that the header fits the file
        pass
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        header: dict[str, Any] = json.loads(f.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        name: Tensor(path, start + told["data_offsets"][0], told["dtype"], tuple(told["shape"]))
        for name, told in header.items()
    }


def _finite(found: np.ndarray, place: Tensor, name: str) -> np.ndarray:
    """What was read, as float32."""
    if place.dtype == "BF16":  # the upper half of a float32
        found = (found.astype(np.uint32) << 16).view(np.float32)
    found = found.astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        raise ValueError(f"tensor {name} has values that are not finite")
    return found
