"""The file that a picture of the index came from, shown where it is still that file."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from indexer.pictures.files import PictureError, decode, read_file
from indexer.store.contents import ImageRow

SIDE = 1600  # pixels of the longer side of what is shown


def file_of(row: ImageRow) -> bytes | None:
    """The bytes of a picture's file; None where it is not there, or its content is not what was indexed."""
    path = Path(row.path)
    if not path.is_absolute() or row.content_hash is None:
        return None
    try:
        data = read_file(path)
    except (PictureError, ValueError):  # a path may hold what no file's name can
        return None
    return data if hashlib.sha256(data).hexdigest() == row.content_hash else None


def shown(data: bytes) -> bytes:
    """A picture's file as a JPEG of at most SIDE pixels a side; raises `PictureError` where it is no picture.

    It is decoded and written anew: a file's own bytes never reach a browser.
    """
    image = decode(data, SIDE)
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90, subsampling=0)
    return out.getvalue()
