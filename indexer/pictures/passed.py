"""What is passed over in a folder of pictures: folders that nobody means, files of kinds that are not read, and what
the patterns of `--exclude` name."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from indexer.pictures.files import formats
from training.errors import CallError
from training.files import path_text

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib",
            ".tif", ".tiff")  # fmt: skip
MORE_SUFFIXES = {"AVIF": (".avif", ".avifs"), "HEIF": (".heic", ".heif", ".hif", ".heics", ".heifs")}

# Kinds of pictures that people look for in vain: they are told that these are not read.
_RAW = ("3fr ari arw bay cap cr2 cr3 crw dcr dcs dng drf eip erf fff gpr iiq k25 kdc mdc mef mos mrw nef nrw orf pef "
        "ptx pxn r3d raf raw rw2 rwl rwz sr2 srf srw x3f")  # fmt: skip
_VIDEO = "3g2 3gp asf avi divx flv insv lrv m2ts m4v mkv mod mov mp4 mpeg mpg mts ogv qt rm rmvb tod ts vob webm wmv"
_DRAWN = ("ai afphoto cdr cin clip cur dcm dcx dds dpx emf eps exr fits fpx hdp hdr icns ico indd insp j2c j2k jls jp2 "
          "jpf jpm jpx jxl jxr kra ora pam pbm pcd pcx pfm pgm pict pnm ppm psb psd pxd qoi ras sgi sk svg svgz tga "
          "wbmp wdp wmf wpg xbm xcf xpm")  # fmt: skip
UNREAD = frozenset(f".{suffix}" for suffix in f"{_RAW} {_VIDEO} {_DRAWN}".split())

# Folders of thumbnails, caches, deleted files and the like, in the names that systems and photo programs give them.
FOLDERS = (
    "@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", ".@__thumb", "@tmp",  # of network drives
    "$RECYCLE.BIN", "RECYCLER", "RECYCLED", "System Volume Information", "FOUND.[0-9][0-9][0-9]",  # of Windows
    "__MACOSX", ".Trash*", ".Trashes", ".DocumentRevisions-V100", ".fseventsd", ".Spotlight-V100", ".TemporaryItems",
    "lost+found", ".thumbnails", ".thumbs", ".cache", ".Trash-*", ".sh_thumbnails", ".xvpics",  # of Linux
    ".thumbdata*", "LOST.DIR", ".trashed*", ".globalTrash", ".BeautyTemp",  # of telephones
    "*.lrdata", "*.lrcat-data", "*.cocatalogdb", "CaptureOne/Cache", "CaptureOne/Cache*",  # Lightroom, Capture One
    ".picasaoriginals", ".picasa*", "Originals.picasa", ".dtrash", ".darktable*", "darktable/mipmaps*",  # and others
    "*.photoslibrary/resources", "*.photoslibrary/database", "*.photoslibrary/private", "*.photoslibrary/scopes",
    "*.photolibrary/Thumbnails", "*.photolibrary/resources", "*.photolibrary/Previews", "*.photolibrary/Attachments",
    "*.aplibrary/Thumbnails", "*.aplibrary/Previews", "*.aplibrary/Masks", "*.migratedphotolibrary/Thumbnails",
    "iPod Photo Cache", "BridgeCache", ".BridgeCache*", "ZbThumbnail.info", "_vti_cnf", ".comments", ".AppleDouble",
    "photoprism/storage/cache", ".photoprism", ".ipynb_checkpoints", ".gthumb", ".nomedia.d", "@__thumb",
)  # fmt: skip
APPLE_DOUBLE = "._*"  # what macOS puts beside each file on a drive that is not its own
_PASSED, _EXCLUDED, _NOT_READ = "passed over as ", "excluded by ", " files are not read"


class Skipped(NamedTuple):
    """A file or folder that was not taken, and why."""

    path: str
    reason: str


def suffixes() -> tuple[str, ...]:
    """The endings, in small letters, of the names of files that are taken."""
    return SUFFIXES + tuple(s for form, some in MORE_SUFFIXES.items() if form in formats() for s in some)


def unread(path: str) -> str | None:
    """Why a file is not read whose name's ending is of a known kind that is not; None for any other file."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in UNREAD:
        return f"{suffix}{_NOT_READ}"
    kind = next((form for form, some in MORE_SUFFIXES.items() if suffix in some and form not in formats()), None)
    if kind is None:
        return None
    return f"{suffix}{_NOT_READ}" + (" without the extra: install 'sparsight[heic]'" if kind == "HEIF" else "")


@dataclass(frozen=True)
class Excluded:
    """Patterns of what is to be left out below a folder, as in a shell: * ? [ab].

    A pattern without a slash, or after `**/`, names files and folders at any depth; one with a slash a path below
    `root` or below what is being added, or, where it begins with a slash, from the top of the file system. What lies in
    an excluded folder is excluded.
    """

    root: str
    patterns: tuple[str, ...] = ()

    def reason(self, path: str, top: str) -> str | None:
        """Why an absolute path is left out; None where it is not. top: what is being looked through, or added."""
        if not self.patterns:
            return None
        roots = [self.root] if _below(path, self.root) else [top, os.path.dirname(top)]
        whole = _plain(path).split(os.sep)
        below = [_plain(os.path.relpath(path, root)).split(os.sep) for root in roots]
        for pattern in self.patterns:
            if _matches(_plain(pattern), whole, below):
                return f"{_EXCLUDED}{pattern}"
        return None

    def idle(self, skipped: Iterable[tuple[str, str]]) -> list[str]:
        """The patterns by which nothing was left out."""
        met = {reason for _, reason in skipped}
        return [pattern for pattern in self.patterns if f"{_EXCLUDED}{pattern}" not in met]


def _matches(pattern: str, whole: list[str], below: Iterable[list[str]]) -> bool:
    """Whether a pattern names a path or a folder above it. whole: the path's parts; below: those from each root."""
    wanted = pattern.rstrip("/").removeprefix("./").split("/")
    wanted = ["**", *wanted] if len(wanted) == 1 else wanted
    return any(_begins(parts, wanted) for parts in ([whole] if pattern.startswith("/") else below))


def _begins(parts: list[str], wanted: list[str]) -> bool:
    """Whether a path begins with what a pattern's parts name; `**` stands for any number of folders."""
    if not wanted:
        return True
    if wanted[0] == "**":
        return any(_begins(parts[i:], wanted[1:]) for i in range(len(parts)))
    is_first = bool(parts) and (parts[0] == wanted[0] or fnmatchcase(parts[0], wanted[0]))
    return is_first and _begins(parts[1:], wanted[1:])


def check_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    """Patterns of `--exclude`, each once, as paths are written: `~` expanded, links followed, without `//` and `..`.

    Raises `CallError` for one that could match nothing, or everything.
    """
    found = []
    for given in patterns:
        pattern = os.path.expanduser(given)
        if not pattern.strip("/. ") or "\0" in pattern or "\n" in pattern:
            raise CallError(f"--exclude {given!r}: give the name of files or folders, or a path below the folder")
        if not pattern.strip("*/"):
            raise CallError(f"--exclude {given}: it would leave nothing; name what is to be left out")
        if "/" in pattern.rstrip("/"):
            pattern = os.path.normpath(pattern)
        if pattern.split("/")[0] == "..":
            raise CallError(f"--exclude {given}: it lies outside of the folder; give a whole path")
        found.append(os.path.realpath(pattern) if pattern.startswith("/") else pattern)
    return tuple(dict.fromkeys(found))


def nobody_means(path: str) -> str | None:
    """Why a folder is passed over by its name, or by its name and that of the folder above it; None where it is not."""
    above, name = os.path.split(path)
    pair = f"{os.path.basename(above)}/{name}"
    for pattern in FOLDERS:
        if fnmatchcase((pair if "/" in pattern else name).lower(), pattern.lower()):
            return f"{_PASSED}{pattern}"
    return None


def apple_double(name: str) -> str | None:
    """Why a file is passed over that macOS put beside a picture; None for any other file."""
    return f"{_PASSED}{APPLE_DOUBLE}" if fnmatchcase(name, APPLE_DOUBLE) and name.lower().endswith(suffixes()) else None


def summarised(skipped: Iterable[tuple[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Lines that count what is skipped for its kind or its name; and the others, each with its own reason."""
    kinds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    rest: list[tuple[str, str]] = []
    hints: dict[str, None] = {}
    for path, reason in skipped:
        if found := re.match(rf"(\.\w+){_NOT_READ}(.*)", reason):
            kinds[found[1]] += 1
            if found[2]:
                hints[found[2].partition(": ")[2] + " to read them"] = None
        elif reason.startswith((_PASSED, _EXCLUDED)):
            names[reason.removeprefix(_PASSED)] += 1
        else:
            rest.append((path, reason))
    lines = []
    if kinds:
        lines.append(f"not read: {_counted(kinds)}" + "".join(f"; {hint}" for hint in hints))
    if names:
        lines.append(f"passed over: {_counted(names)}")
    return lines, rest


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])))


def _below(path: str, root: str) -> bool:
    return bool(root) and path_text(path).startswith(root.rstrip(os.sep) + os.sep)


def _plain(path: str) -> str:
    """A path as text, its letters with accents in one form: drives store them in two."""
    return unicodedata.normalize("NFC", path_text(path))
