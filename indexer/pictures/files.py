"""Pictures from files, whatever their size and format, as the squares an encoder takes; thumbnails.

Only five formats are opened (Pillow supports dozens, each a way in); a picture of more than 50 million pixels
is refused before it is decoded. Whatever a file holds is either read in the way that `decode` defines, or refused
with a reason of one line. Colour profiles are not applied, as encoders were not taught with them.

Memory: of pictures with more than 10 million pixels one at a time is decoded; the worst measured, a WebP with alpha,
took 0.8 GB beside the file, and one of 10 million pixels a fifth of that. Pillow sees nothing of a JPEG, PNG or GIF
but what makes up its pixels: it keeps an object for each piece of metadata, so that a hostile file of 200 MB would
become gigabytes.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from indexer.config import THUMBNAIL
from training.errors import SparsightError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 50_000_000
MAX_BYTES = 200_000_000
MAX_PARTS = 1_000_000  # chunks of a PNG, segments of a JPEG
MAX_SCANS = 100  # of a progressive JPEG: each may be a few bytes and passes over all pixels; encoders write 10 or so
MAX_EXIF = 1 << 16
LARGE = 10_000_000  # pixels from which pictures are decoded one at a time
NONE = f"it is no picture that can be read ({', '.join(FORMATS)})"

_one_large = threading.Lock()
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # one that a segment's length, or the end, follows
_KEPT_APPS = (b"\xff\xe0", b"JFIF\0"), (b"\xff\xee", b"Adobe")  # they say what the channels mean


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
            status = os.fstat(f.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PictureError("it is not a regular file")
            data = f.read(MAX_BYTES + 1) if status.st_size <= MAX_BYTES else None
    except OSError as e:
        socket = e.errno == errno.ENXIO
        raise PictureError("it is not a regular file" if socket else e.strerror or str(e)) from e
    if data is None or len(data) > MAX_BYTES:
        raise PictureError(f"it is too large: more than {MAX_BYTES} bytes")
    if not data:
        raise PictureError("it is empty")
    return data


def decode(data: bytes, side: int = 0) -> Image.Image:
    """A file's bytes → RGB picture: first frame, turned as its EXIF says, alpha on white, 16 bits cut to 8.

    side: a picture may be decoded at a fraction of its size, as long as its shorter side keeps this many pixels.
    Raises `PictureError` where the bytes are no picture, damaged, or of more than MAX_PIXELS.
    """
    try:
        with Image.open(_bare(data), formats=FORMATS) as file:
            pixels = file.width * file.height
            if pixels > MAX_PIXELS:
                raise PictureError(f"it is too large: {file.width} × {file.height}, at most {MAX_PIXELS} pixels")
            if side:
                file.draft("RGB", (side, side))
            if "progressive" not in file.info:  # libjpeg keeps all coefficients of such, whatever the fraction
                pixels = file.width * file.height
            with _one_large if pixels > LARGE else nullcontext():
                file.load()
                image = _to_rgb(_upright(file))
                image.info.clear()  # a long comment is one that the thumbnail's JPEG cannot hold
                much = side and image.width * image.height > LARGE
                return image.reduce(max(1, min(image.size) // side)) if much else image
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
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
        image = Image.fromarray(grey)
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _bare(data: bytes) -> io.BytesIO:
    """A JPEG, PNG or GIF without its metadata, the orientation excepted; any other file as it is."""
    for start, bare in ((b"\xff\xd8\xff", _bare_jpeg), (_PNG, _bare_png), (b"GIF8", _bare_gif)):
        if data.startswith(start):
            return bare(data)
    return io.BytesIO(data)


def _bare_jpeg(data: bytes) -> io.BytesIO:
    bare, view = io.BytesIO(), memoryview(data)
    at = kept = scans = 0
    exif = False
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(data, at)
        if not found or (found[0] == b"\xff\xd9" and scans):
            bare.write(view[kept:])
            bare.seek(0)
            return bare
        marker, start, content = found[0], found.start(), found.end() + 2
        at = content - 2 + int.from_bytes(data[content - 2 : content])
        scans += marker == b"\xff\xda"
        if scans > MAX_SCANS:
            raise PictureError(f"it has too many scans: at most {MAX_SCANS}")
        if b"\xff\xe0" <= marker <= b"\xff\xef" or marker == b"\xff\xfe":
            if not exif and marker == b"\xff\xe1" and data.startswith(b"Exif\0\0", content):
                exif = True
            elif not any(marker == m and data.startswith(name, content) for m, name in _KEPT_APPS):
                bare.write(view[kept:start])
                kept = at
    raise PictureError(f"it has too many segments: at most {MAX_PARTS}")


def _bare_png(data: bytes) -> io.BytesIO:
    bare, view = io.BytesIO(), memoryview(data)
    at = bare.write(_PNG)
    deep = data[24:26] == b"\x10\x02"  # 16 bits of red, green, blue
    for _ in range(MAX_PARTS):
        length, name, start = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8], at
        at += 12 + length
        if name == b"tRNS" and deep:  # Pillow compares its low bytes with the pixels' high ones
            key = b"tRNS" + bytes(b for high in data[start + 8 : start + 14 : 2] for b in (0, high))
            bare.write(b"\0\0\0\6" + key + zlib.crc32(key).to_bytes(4))
        elif name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or (name == b"eXIf" and length <= MAX_EXIF):
            bare.write(view[start:at])
        if name == b"IEND" or at >= len(data):
            bare.seek(0)
            return bare
    raise PictureError(f"it has too many chunks: at most {MAX_PARTS}")


def _bare_gif(data: bytes) -> io.BytesIO:
    """Only the last graphic control before the first picture says how to show it."""
    palette = 3 << (data[10] & 7) + 1 if data[10:11] >= b"\x80" else 0
    at = header = 13 + palette
    control = b""
    for _ in range(MAX_PARTS):
        if data[at : at + 1] != b"!":
            return io.BytesIO(b"".join((data[:header], control, data[at:])))
        start, label, at = at, data[at + 1 : at + 2], at + 2
        while size := data[at] if at < len(data) else 0:
            at += 1 + size
        at += 1
        if label == b"\xf9":
            control = data[start:at]
    raise PictureError(f"it has too many extensions: at most {MAX_PARTS}")


def _jpeg(image: Image.Image, **settings: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **settings)
    return out.getvalue()
