"""The file that a picture of the index came from, shown where it is still that file."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from indexer.pictures.files import PictureError, decode, read_file
from indexer.store.contents import ImageRow

SIDE = 1600  # pixels of the longer side of what is shown


def original(row: ImageRow) -> bytes | None:
    """A picture's file as a JPEG of at most SIDE pixels a side; None where it is not there, or another by now.

    Only a file whose content has the hash that was indexed is shown, and only what decodes as a picture: its own bytes
    never reach a browser.
    """
    path = Path(row.path)
    if not path.is_absolute() or row.content_hash is None:
        return None
    try:
        data = read_file(path)
        if hashlib.sha256(data).hexdigest() != row.content_hash:
            return None
        image = decode(data)
    except (PictureError, ValueError):  # a path may hold what no file's name can
        return None
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90, subsampling=0)
    return out.getvalue()
