"""An index that is held open to be changed: what `indexer.update` asks of it, and that of an index folder."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from indexer.residual import Quantiser
from indexer.store.chance import index_best
from indexer.store.contents import Change, Classes, ImageRow, Skip
from indexer.store.database import refuse_no_index
from indexer.store.familiarity import index_familiarity
from indexer.store.lock import writing
from indexer.store.meta import IndexMeta
from indexer.store.naming import is_id, pictures_at
from indexer.store.reader import Store
from indexer.store.residuals import read_quantiser
from indexer.store.writer import change_store, unused_files
from training.encoders import Means


class Held(Protocol):
    """An open index that nobody else changes meanwhile."""

    meta: IndexMeta

    @property
    def name(self) -> str:
        """How messages call it."""
        ...

    def __len__(self) -> int: ...
    def images_at(self, paths: Iterable[str], /) -> dict[str, ImageRow]: ...
    def images_holding(self, hashes: Iterable[str], /) -> list[ImageRow]: ...
    def contents(self) -> Container[str]:
        """The hashes of the contents that it holds."""
        ...

    def named(self, target: str, /) -> dict[int, str]:
        """The pictures (id → path) that an id, a path or a folder names."""
        ...

    def paths(self) -> dict[int, str]:
        """Every picture's path."""
        ...

    def has_splits(self) -> bool | None:
        """Whether some picture is of a split; None where none has a split or a label."""
        ...

    def skipped(self) -> list[Skip]: ...
    def means(self) -> Means | None: ...
    def dictionary(self) -> np.ndarray: ...
    def classes(self) -> Classes: ...
    def quantiser(self) -> Quantiser | None: ...
    def change(self, change: Change, /) -> IndexMeta:
        """Makes a change; returns the meta data afterwards."""
        ...


class Contents(Container[str]):
    """The contents that an index holds, told by the first 60 bits of their hash: 8 bytes a picture. Of a thousand new
    pictures and a million known ones, one would be taken for known with a probability of 10⁻⁹."""

    def __init__(self, prefixes: np.ndarray):
        self._prefixes = prefixes

    def __contains__(self, content_hash: object) -> bool:
        prefix = int(str(content_hash)[:15], 16)
        at = int(np.searchsorted(self._prefixes, prefix))
        return at < len(self._prefixes) and int(self._prefixes[at]) == prefix


class HeldFolder(Store):
    """The index of a folder, whose lock is held."""

    @property
    def name(self) -> str:
        return str(self.folder)

    def contents(self) -> Contents:
        return Contents(self.content_prefixes())

    def named(self, target: str) -> dict[int, str]:
        if is_id(target):
            sql = "SELECT image_id, path FROM images WHERE image_id = try_cast(? AS INTEGER)"
            return dict(self.rows(sql, [target]))
        return pictures_at(self, target)

    def paths(self) -> dict[int, str]:
        return dict(self.rows("SELECT image_id, path FROM images"))

    def has_splits(self) -> bool | None:
        sql = "SELECT bool_or(split IS NOT NULL) FROM images WHERE split IS NOT NULL OR label IS NOT NULL"
        return self.rows(sql)[0][0]

    def quantiser(self) -> Quantiser | None:
        return read_quantiser(self)

    def change(self, change: Change) -> IndexMeta:
        return change_store(self.folder, self, change)


@contextmanager
def held_folder(folder: Path, command: str) -> Iterator[HeldFolder]:
    """The index of a folder, opened once for a change, and the folder's lock held.

    Files of an earlier state that a writer died before it could remove go first: there may be nothing to change.
    """
    refuse_no_index(folder)  # before the lock makes a folder
    with writing(folder, command), HeldFolder(folder) as store:
        for left in unused_files(folder, store.meta):
            left.unlink(missing_ok=True)
        yield store


def measure_folder(folder: Path, embed: Callable[[Sequence[str]], np.ndarray], source: str | None = None) -> None:
    """Where an index has grown much, or is new, what scores mean in it, and what is familiar to it, is measured.

    embed: texts → unit rows; source: where its encoder lies, if elsewhere now.
    """
    with Store(folder) as store:
        if len(store):
            index_best(store, embed)
            index_familiarity(store, source)
