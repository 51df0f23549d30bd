"""What PATH holds, cut into slices that any machine reads by itself.

| PATH | pictures | labels |
| --- | --- | --- |
| a folder of pictures | files, as `sparsight index PATH` finds them | its folders', with `--labels folders` |
| tar shards, as of webdataset | members; what goes with one has its name up to a dot | `.cls`, or `label` in `.json` |
| Parquet files | a column of bytes, or of structs with `bytes` | column `label` |
| a Hugging Face data set on disk | the same, in Arrow files | the same |

A slice says all that its reading depends on, so that what was made of it can be found by its content.
"""

from __future__ import annotations

import json
import os
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from indexer.build import Source, folder_source, pictures_below
from indexer.config import IndexConfig
from indexer.pictures import Skipped
from indexer.pictures.folders import stamp
from indexer.pictures.passed import suffixes
from indexer.ray.tables import ARROW, PARQUET, groups_of, picture_column
from training.errors import CallError, SparsightError
from training.files import digest, path_text, shown_path

if TYPE_CHECKING:
    from indexer.ray.options import RayOptions

FILES, TAR = "picture files", "tar shards"
SHARDS = {".tar": TAR, ".parquet": PARQUET}
MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")  # of a Hugging Face data set on disk
LABEL = ("cls", "json")  # members that may hold a label


@dataclass(frozen=True)
class Slice:
    """Some pictures that are read together.

    kind: of the file that holds them, FILES where each is a file by itself · paths: as the index names them · stamp:
    of the files that are read · file, group: the shard, and the part of it that has to be read from its beginning ·
    places: of a picture in it, (first byte, bytes) or (row,) · labels: those that are known before it is read ·
    column: that of the pictures.
    """

    kind: str
    paths: tuple[str, ...]
    stamp: str
    file: str = ""
    group: int = 0
    places: tuple[tuple[int, ...], ...] = ()
    labels: tuple[str | None, ...] = ()
    column: str = ""

    def key(self, *settings: str) -> str:
        """A name for what is made of it with some settings."""
        return digest([repr(self).encode("utf-8", "surrogateescape"), *(s.encode() for s in settings)])[:32]


class Inputs(NamedTuple):
    """All slices, in the order of the pictures; what was passed over; where the pictures come from, and which kind."""

    slices: list[Slice]
    left: list[Skipped]
    source: Source
    told: str

    @property
    def pictures(self) -> int:
        return sum(len(part.paths) for part in self.slices)


def find_inputs(root: Path, config: IndexConfig, options: RayOptions, size: int, *, labels: bool) -> Inputs:
    """The pictures of PATH in slices of at most `size`.

    Raises `SparsightError` where there are none, or where a shard cannot be read, which it names; `CallError` for
    options that do not go with what PATH holds.
    """
    top = Path(os.path.realpath(root))
    kind, files = _kind_of(top)
    if kind == FILES:
        if options.column:
            raise CallError(f"--column is for Parquet files and data sets, and {path_text(root)} holds picture files")
        found, left = pictures_below(root, config, labels=labels)
        slices = [Slice(FILES, tuple(part), _stamp(part)) for part in _cut(found, size)]
        return Inputs(slices, left, folder_source(root, config, labels=labels), f"{len(found):,} {FILES}")
    if labels or config.exclude:
        raise CallError(f"{'--labels' if labels else '--exclude'} is for picture files: {path_text(root)} holds {kind}")
    if kind == TAR and options.column:
        raise CallError(f"--column is for Parquet files and data sets, and {path_text(root)} holds {TAR}")
    cut = _tar_slices if kind == TAR else _table_slices
    slices = [part for file in files for part in cut(kind, file, _name_below(file, top), options.column, size)]
    if not slices:
        raise SparsightError(f"no pictures in {path_text(root)}: its {kind} hold none")
    name = path_text(top.name) or path_text(top)
    return Inputs(slices, [], Source(dataset=name, classes=()), f"{len(files):,} {kind}")


def _kind_of(root: Path) -> tuple[str, list[Path]]:
    """What PATH holds, and the shards. One picture file makes a folder one of pictures: an archive may lie in it."""
    if root.is_file():
        if kind := SHARDS.get(root.suffix.lower()):
            return kind, [root]
        raise SparsightError(f"cannot index {path_text(root)}: it is neither a folder nor a .tar or .parquet file")
    found: dict[str, list[Path]] = {TAR: [], PARQUET: [], ARROW: []}
    is_set = any((root / mark).is_file() for mark in MARKS)
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(n for n in names if not n.startswith(".")):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in suffixes():
                return FILES, []
            if kind := ARROW if is_set and suffix == ".arrow" else SHARDS.get(suffix):
                found[kind].append(Path(folder, name))
    kinds = [kind for kind, files in found.items() if files]
    if len(kinds) > 1:
        raise SparsightError(f"{path_text(root)} holds both {kinds[0]} and {kinds[1]}: name a folder of one kind")
    return (kinds[0], found[kinds[0]]) if kinds else (FILES, [])


def _name_below(file: Path, root: Path) -> str:
    """How the paths of a shard's pictures begin; no file has such a path."""
    return path_text(file.name if file == root else file.relative_to(root)).replace(os.sep, "/")


def _stamp(paths: Iterable[str | Path]) -> str:
    """What tells whether files are those that they were: their sizes and times of change. Of a file so new that a later
    change may leave its time as it is, the moment; it is read anew the next time."""
    seen = []
    for path in map(str, paths):
        try:
            seen.append(f"{os.stat(path).st_size} {stamp(path) or time.time_ns()}")
        except OSError:
            seen.append("none")
    return digest(s.encode() for s in seen)[:16]


def _cut(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _table_slices(kind: str, file: Path, name: str, column: str, size: int) -> Iterator[Slice]:
    with naming(file):
        column, stamp = picture_column(kind, file, column), _stamp([file])
        for group, first, rows in groups_of(kind, file):
            for start in range(0, rows, size):
                places = tuple((row,) for row in range(start, min(start + size, rows)))
                paths = tuple(f"{name}/{first + row:07d}" for (row,) in places)
                yield Slice(kind, paths, stamp, str(file), group, places, column=column)


def _tar_slices(kind: str, file: Path, name: str, column: str, size: int) -> Iterator[Slice]:
    pictures: list[tuple[str, str, tuple[int, int]]] = []
    labels: dict[str, str] = {}
    with naming(file), tarfile.open(file, "r:") as tar:
        for member in tar:
            base = os.path.basename(member.name)
            if not member.isfile() or base.startswith("."):
                continue
            stem, _, ending = base.partition(".")
            group, ending = os.path.join(os.path.dirname(member.name), stem), ending.lower()
            if f".{ending.rpartition('.')[2]}" in suffixes():
                pictures.append((group, member.name, (member.offset_data, member.size)))
            elif ending in LABEL:
                data = tar.extractfile(member)
                label = _label(data.read() if data else b"", ending)
                if label and (ending == "cls" or group not in labels):
                    labels[group] = label
        _refuse_cut(file, tar.offset)
        stamp = _stamp([file])
    for start in range(0, len(pictures), size):
        groups, names, places = zip(*pictures[start : start + size], strict=True)
        paths = tuple(path_text(f"{name}/{member}") for member in names)
        yield Slice(kind, paths, stamp, str(file), 0, places, tuple(labels.get(group) for group in groups))


def _refuse_cut(file: Path, end: int) -> None:
    """Raises ValueError where no empty block marks the end of a tar: `tarfile` takes one that was cut for whole."""
    with file.open("rb") as f:
        f.seek(end)
        if f.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("it has no end, as if it was cut")


def _label(data: bytes, ending: str) -> str | None:
    text = data.decode("utf-8", "replace").strip()
    if ending == "json":
        try:
            held = json.loads(text)
        except ValueError:
            return None
        label = held.get("label") if isinstance(held, dict) else None
        return str(label).strip() if isinstance(label, str | int) else None
    return " ".join(text.split()) or None


@contextmanager
def naming(file: Path | str) -> Iterator[None]:
    """Tells in one line which shard it is that cannot be read."""
    try:
        yield
    except SparsightError:
        raise
    except (OSError, ValueError, tarfile.TarError) as e:  # pyarrow's faults are OSErrors and ValueErrors
        reason = getattr(e, "strerror", None) or (str(e).strip().splitlines() or [type(e).__name__])[0]
        where, hint = shown_path(Path(file)), "mend it or take it away, and run it again"
        raise SparsightError(f"the shard {where} cannot be read: {reason}; {hint}") from e
