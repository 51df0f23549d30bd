"""From a path as a person writes it to the pictures of an index.

Names that look alike are alike: an accent may be one character with its letter or one of its own (macOS writes the
second), what was printed as an escape may be given back as one, and a path through a link means what it leads to.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from training.files import full_path, path_text, real_place

if TYPE_CHECKING:
    from indexer.store.reader import Store

CHARACTER = "u(?:(?!d[89a-f])[0-9a-f]{4}|dc[89a-f][0-9a-f])"  # or a byte of a path that is no text; no other surrogate
ESCAPE = re.compile(rf"\\(?:x[0-9a-f]{{2}}|{CHARACTER}|U000[1-9a-f][0-9a-f]{{4}}|U0010[0-9a-f]{{4}}|[nrt])")


def is_id(target: str) -> bool:
    """Whether what a person names is an id: digits alone."""
    return target.isascii() and target.isdigit()


def picture_at(store: Store, target: str) -> int | None:
    """The id of the picture that a path names, the first where several have it; None where none has."""
    return min(_pictures(store, target, whole=True), default=None)


def pictures_at(store: Store, target: str) -> dict[int, str]:
    """The pictures (id → path) that a path names: those there, else all below that folder; none where it names none."""
    return _pictures(store, target, whole=True) or _pictures(store, target, whole=False)


def _pictures(store: Store, target: str, *, whole: bool) -> dict[int, str]:
    paths = spellings(target)
    if not whole:
        paths = [path.rstrip(os.sep) + os.sep for path in paths]
    same = "path IN (FROM wanted)" if whole else "EXISTS (FROM wanted WHERE starts_with(path, start))"
    for form in ("{}", "nfc_normalize({})"):  # all paths are read for the second alone
        wanted = f"SELECT {form.format('unnest(?::VARCHAR[])')} AS start"
        images = f"SELECT image_id, path AS held, {form.format('path')} AS path FROM images"
        sql = f"WITH wanted AS ({wanted}) SELECT image_id, held FROM ({images}) WHERE {same}"
        if rows := store.rows(sql, [paths]):
            return dict(rows)
    return {}


def spellings(target: str) -> list[str]:
    """What a path may be held as in an index, the likeliest first."""
    found: dict[str, None] = {}
    for text in (target, unescaped(target)):
        full = full_path(text)
        found |= dict.fromkeys((path_text(text), path_text(full), path_text(real_place(full))))
    return list(found)


def existing_file(target: str) -> Path | None:
    """The file that a path names, in any spelling that looks the same; None where there is none."""
    for text in dict.fromkeys((target, unescaped(target))):
        for form in (text, normalize("NFC", text), normalize("NFD", text)):
            if os.path.lexists(path := full_path(form)):
                return path
    return None


def unescaped(text: str) -> str:
    """A text as it was before `training.terminal.printable` escaped what cannot be seen."""
    return ESCAPE.sub(lambda m: m[0].encode().decode("unicode_escape"), text)
