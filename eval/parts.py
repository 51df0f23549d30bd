"""The parts of a report, each kept in a file of its own until what it rests on changes.

A part rests on its inputs, on its settings, and on the code that makes it: the file of its function, and the files of
this package and of the coder that this one uses. So a stopped report goes on where it ended, and a report that is made
again measures what has changed, and nothing stale. The files are numpy's, without pickles; one that is damaged is made
anew.
"""

from __future__ import annotations

import inspect
import io
import json
import sys
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from scipy import sparse

from training.files import digest, write_whole

Found = TypeVar("Found")
OURS = ("eval.", "indexer.coding")  # the code that a part may rest on


class Parts:
    """Measures parts, or takes them from `folder` (None: nowhere) where they were measured before.

    tell: called with a part's name and the seconds that it took, None where it was there already. again: measures all
    of them anew.
    """

    def __init__(
        self,
        folder: Path | None = None,
        tell: Callable[[str, float | None], object] = lambda *_: None,
        *,
        again: bool = False,
    ):
        self.folder, self.tell, self.again = folder, tell, again

    def get(self, name: str, kind: type[Found], work: Callable[..., Found], *inputs: object) -> Found:
        """What `work` gives, a dataclass of type `kind`. inputs: all that its result depends on beside its code."""
        print_of_it = fingerprint(name, code_version(module_of(work)), *inputs)
        path = None if self.folder is None else self.folder / f"{slug(name)}.npz"
        if path is not None and not self.again and (found := read_part(path, kind, print_of_it)) is not None:
            self.tell(name, None)
            return found
        start = time.perf_counter()
        found = work()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, packed(found, print_of_it))
        self.tell(name, time.perf_counter() - start)
        return found


def fingerprint(*inputs: object) -> str:
    """One text for any number of arrays, matrices, and values that print as what they are."""
    return digest(part for each in inputs for part in _bytes_of(each))


def _bytes_of(value: object) -> Iterator[bytes]:
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes() if value.dtype != object else repr(value.tolist()).encode()
    elif isinstance(value, sparse.csr_matrix):
        for array in (value.data, value.indices, value.indptr):
            yield from _bytes_of(array)
    else:
        yield repr(value).encode()


def module_of(work: Callable[..., object]) -> str:
    while isinstance(work, partial):
        work = work.func
    return work.__module__


@cache
def code_version(module: str) -> str:
    """A fingerprint of the source of a module, and of those of OURS that it uses, and so on."""
    known: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        if name in known or name not in sys.modules:
            continue
        known.add(name)
        for value in vars(sys.modules[name]).values():
            used = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if isinstance(used, str) and used.startswith(OURS):
                left.append(used)
    sources = [inspect.getsource(sys.modules[name]) for name in sorted(known)]
    return digest(source.encode() for source in sources)


def slug(name: str) -> str:
    """A name as part of a file's name.

    >>> slug("SpLiCE, λ 0.25")
    'splice-λ-0-25'
    """
    return "-".join("".join(c.lower() if c.isalnum() else " " for c in name).split())


def packed(value: Any, print_of_it: str) -> bytes:
    """A dataclass as the bytes of an npz file: its arrays, and all else as JSON."""
    arrays: list[np.ndarray] = []
    tree = _tree(value, arrays)
    text = np.frombuffer(json.dumps({"print": print_of_it, "value": tree}).encode(), np.uint8)
    out = io.BytesIO()
    np.savez(out, text, *arrays)  # as arr_0, arr_1, …
    return out.getvalue()


def _tree(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return len(arrays)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _tree(getattr(value, f.name), arrays) for f in fields(value)}
    if isinstance(value, dict):
        return {key: _tree(each, arrays) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_tree(each, arrays) for each in value]
    return value


def read_part(path: Path, kind: type[Found], print_of_it: str) -> Found | None:
    """What `packed` wrote with this fingerprint; None where it is another, or the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as held:
            text = json.loads(held["arr_0"].tobytes())
            if text["print"] != print_of_it:
                return None
            return restored(kind, text["value"], {name: held[name] for name in held.files})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        return None


def restored(kind: Any, tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A value of a type, dataclasses, lists, tuples and dictionaries among them, from what JSON gave.

    What a dataclass has no value for is None: JSON leaves out what was not measured.
    """
    origin, of = get_origin(kind), get_args(kind)
    if tree is None:
        return None
    if kind is np.ndarray:
        return arrays[f"arr_{tree}"]
    if origin in (Union, types.UnionType):
        return restored(next(each for each in of if each is not type(None)), tree, arrays)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        assert isinstance(kind, type)
        absent = {f.name: None for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
        return kind(**absent | {name: restored(hints[name], each, arrays) for name, each in tree.items()})
    if origin is list:
        return [restored(of[0], each, arrays) for each in tree]
    if origin is tuple:
        kinds = [of[0]] * len(tree) if len(of) == 2 and of[1] is Ellipsis else of
        return tuple(restored(k, each, arrays) for k, each in zip(kinds, tree, strict=True))
    if origin is dict:
        return {key: restored(of[1], each, arrays) for key, each in tree.items()}
    return tree
