"""Pictures from files, whatever their size and format, as the squares an encoder takes; thumbnails.

Only five formats are opened (Pillow supports dozens, each a way in); a picture of more than 50 million pixels
is refused before it is decoded. Whatever a file holds is either read in the way that `decode` defines, or refused
with a reason of one line.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from training.errors import SparsightError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 50_000_000
MAX_BYTES = 200_000_000
LARGE = 10_000_000  # pixels from which pictures are decoded one at a time
THUMBNAIL = 128  # pixels of a thumbnail's longer side
NONE = f"it is no picture that can be read ({', '.join(FORMATS)})"

_one_large = threading.Lock()


class PictureError(SparsightError):
    """Why a file is not read as a picture; the message does not name the file."""


def read_picture(path: Path | str, size: int) -> np.ndarray:
    """Reads a picture as (size, size, 3) uint8: as `decode` does, shorter side scaled, centre cropped.

    Raises `SparsightError` naming the file where it is missing, no picture, damaged or too large.
    """
    try:
        with quiet_pillow():
            return square(decode(read_file(path), 2 * size), size)
    except PictureError as e:
        raise SparsightError(f"cannot read the picture {path}: {e}") from e


def read_file(path: Path | str) -> bytes:
    """The bytes of a regular file. A pipe or a device is refused without waiting for what it may send."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as f:
            if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
                raise PictureError("it is not a regular file")
            data = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise PictureError(e.strerror or str(e)) from e
    if not data:
        raise PictureError("it is empty")
    if len(data) > MAX_BYTES:
        raise PictureError(f"it is too large: more than {MAX_BYTES} bytes")
    return data


def decode(data: bytes, side: int = 0) -> Image.Image:
    """A file's bytes → RGB picture: first frame, turned as its EXIF says, alpha on white, 16 bits of grey cut to 8.

    side: a JPEG may be decoded at a fraction of its size, as long as its shorter side keeps this many pixels.
    Raises `PictureError` where the bytes are no picture, damaged, or of more than MAX_PIXELS.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise PictureError(f"it is too large: {file.width} × {file.height}, at most {MAX_PIXELS} pixels")
            if side:
                file.draft("RGB", (side, side))
            with _one_large if file.width * file.height > LARGE else nullcontext():
                file.load()
                return _to_rgb(_upright(file))
    except PictureError:
        raise
    except UnidentifiedImageError as e:
        raise PictureError(NONE) from e
    except Image.DecompressionBombError as e:
        raise PictureError(f"it is too large: at most {MAX_PIXELS} pixels") from e
    except Exception as e:  # of a damaged file, Pillow raises whatever its parsing ran into
        reason = " ".join(str(e).split()) or type(e).__name__
        raise PictureError(f"it is damaged: {reason}") from e


def square(image: Image.Image, size: int) -> np.ndarray:
    """(size, size, 3) uint8: shorter side scaled to `size`, the centre of the longer one."""
    return np.array(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def thumbnail(pixels: np.ndarray) -> bytes:
    """uint8 (h, w, 3) → JPEG bytes, without chroma subsampling: these are small."""
    return _jpeg(Image.fromarray(pixels), quality=90, subsampling=0)


def shrunk(image: Image.Image) -> bytes:
    """An RGB picture as a JPEG whose longer side has at most THUMBNAIL pixels."""
    scale = min(1.0, THUMBNAIL / max(image.size))
    width, height = (max(1, round(scale * s)) for s in image.size)
    return _jpeg(image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0), quality=85)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keeps Pillow's warnings (odd metadata, sizes that `decode` judges itself) off a person's terminal.

    Filters belong to the whole process: enter it from the main thread, around the threads that decode.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # damaged EXIF data beside sound pixels: these are taken as they lie
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _jpeg(image: Image.Image, **settings: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **settings)
    return out.getvalue()
