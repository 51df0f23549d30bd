"""Pictures from files, whatever their size and format; thumbnails.

A few formats are opened (Pillow supports dozens, each a way in). Whatever a file holds is either read in the way that
`decode` defines, or refused with a reason of one line. Colour profiles are not applied, as encoders were not taught
with them.

Memory: what is decoded is bounded, not what a header says. A JPEG is decoded at a fraction of its size where that is
enough, so that one of 108 million pixels takes no more than a small one. Of pictures that are decoded to more than 10
million pixels one at a time is; the worst measured, a WebP with alpha, took 0.8 GB beside the file, and one of 10
million pixels a fifth of that. Metadata is taken away before (`bare.py`).
"""

from __future__ import annotations

import errno
import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from indexer.config import THUMBNAIL
from indexer.pictures.bare import PictureError, bare
from training.errors import CallError, SparsightError

MAX_BYTES = 200_000_000  # of a file, or four for each of the pixels that are decoded at most
MAX_PIXELS = 50_000_000  # that are decoded of one picture, where SPARSIGHT_MAX_PIXELS sets no other number
LIMIT = "SPARSIGHT_MAX_PIXELS"
LARGE = 10_000_000  # pixels from which pictures are decoded one at a time

_one_large = threading.Lock()


@cache
def formats() -> tuple[str, ...]:
    """The formats that are opened, as Pillow names them: HEIF where the extra `heic` is installed, AVIF where this
    Pillow has it."""
    more = ["AVIF"] if features.check("avif") else []
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        more.append("HEIF")
    return ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *more)


def max_pixels() -> int:
    """The most pixels that are decoded of one picture. Raises `CallError` where the variable is no number."""
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return MAX_PIXELS
    if not (text.isascii() and text.isdecimal() and 0 < len(text) <= 12 and int(text)):
        raise CallError(f"{LIMIT}={text}: it must be a number of pixels, as {MAX_PIXELS}")
    return int(text)


def read_picture(path: Path | str, size: int) -> Image.Image:
    """Reads a picture in RGB, its whole, as `decode` does; its shorter side has twice `size` pixels, or all it has.

    Raises `SparsightError` naming the file where it is missing, no picture, damaged or too large.
    """
    try:
        with quiet_pillow():
            return decode(read_file(path), 2 * size)
    except PictureError as e:
        raise SparsightError(f"cannot read the picture {path}: {e}") from e


def read_file(path: Path | str) -> bytes:
    """The bytes of a regular file. A pipe or a device is refused without waiting for what it may send."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    most = max(MAX_BYTES, 4 * max_pixels())
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as f:
            status = os.fstat(f.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PictureError("it is not a regular file")
            # The memory for all that is asked for is taken at once, so what the file has is asked for first.
            data = f.read(status.st_size + 1) if status.st_size <= most else None
            if data is not None and len(data) > status.st_size:  # it grows
                data += f.read(most + 1 - len(data))
    except OSError as e:
        socket = e.errno == errno.ENXIO
        raise PictureError("it is not a regular file" if socket else e.strerror or str(e)) from e
    if data is None or len(data) > most:
        raise PictureError(f"it is too large: more than {most} bytes ({LIMIT} sets another limit, a quarter of that)")
    if not data:
        raise PictureError("it is empty")
    return data


def decode(data: bytes, side: int = 0) -> Image.Image:
    """A file's bytes → RGB picture: first frame, turned as its EXIF says, alpha on white, 16 bits cut to 8.

    side: a picture may be decoded at a fraction of its size, as long as its shorter side keeps this many pixels.
    Raises `PictureError` where the bytes are no picture, damaged, or more than `max_pixels` would be decoded.
    """
    most = max_pixels()
    try:
        with Image.open(bare(data), formats=formats()) as file:
            whole = file.size
            if side:
                file.draft("RGB", (side, side))
            # Of a progressive JPEG libjpeg keeps all coefficients, whatever the fraction.
            width, height = whole if "progressive" in file.info else file.size
            if width * height > most:
                size = f"{whole[0]} × {whole[1]}, at most {most} pixels are decoded"
                raise PictureError(f"it is too large: {size} ({LIMIT} sets another limit)")
            if file.format == "JPEG":
                file.decodermaxblock = len(data)  # libjpeg begins anew at the edge of each block that it is given
            with _one_large if width * height > LARGE else nullcontext():
                file.load()
                image = _to_rgb(_upright(file))
                image.info.clear()  # a long comment is one that the thumbnail's JPEG cannot hold
                return _reduced(image, side) if side else image
    except PictureError:
        raise
    except UnidentifiedImageError as e:
        raise PictureError(f"it is no picture that can be read ({', '.join(formats())})") from e
    except Image.DecompressionBombError as e:
        raise PictureError(f"it is too large: at most {most} pixels") from e
    except Exception as e:  # of a damaged file, Pillow raises whatever its parsing ran into
        reason = " ".join(str(e).split()) or type(e).__name__
        raise PictureError(f"it is damaged: {reason}") from e


def thumbnail(pixels: np.ndarray) -> bytes:
    """uint8 (h, w, 3) → JPEG bytes, without chroma subsampling: these are small."""
    return _jpeg(Image.fromarray(pixels), quality=90, subsampling=0)


def shrunk(image: Image.Image) -> bytes:
    """An RGB picture, its whole, as a JPEG whose longer side has at most THUMBNAIL pixels."""
    scale = min(1.0, THUMBNAIL / max(image.size))
    width, height = (max(1, round(scale * s)) for s in image.size)
    return _jpeg(image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=1.5), quality=85)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keeps Pillow's warnings (odd metadata) off a person's terminal, and leaves it to `decode` to judge sizes.

    Filters belong to the whole process: enter it from the main thread, around the threads that decode.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _reduced(image: Image.Image, side: int) -> Image.Image:
    """A picture of no more than LARGE pixels, as far as its shorter side keeps `side` of them."""
    needed = math.ceil(math.sqrt(image.width * image.height / LARGE))
    factor = max(1, min(needed, min(image.size) // side))
    return image.reduce(factor) if factor > 1 else image


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # damaged EXIF data beside sound pixels: these are taken as they lie
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # more than 8 bits of grey, which Pillow would clip at 255
        values = np.asarray(image)
        grey = _in_8_bits(values)
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
        image = Image.fromarray(grey)
    if image.mode == "LAB":
        image = _from_lab(image)
    if image.format == "JPEG" and image.mode == "RGB":
        return image  # a copy would take time, and let go of nothing: a JPEG, once read, holds its pixels alone
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _in_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits, of 32, or as floats from 0 to 1 (where some are above, from 0 to the largest) → uint8."""
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, posinf=0, neginf=0)
        return (values.clip(0) * (255 / max(1.0, float(values.max(initial=0))))).astype(np.uint8)
    bits = 8 if values.max(initial=0) < 1 << 16 else 23
    return (values.clip(0) >> bits).astype(np.uint8)


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, rgb, "LAB", "RGB")
    return ImageCms.applyTransform(image, transform) or image


def _jpeg(image: Image.Image, **settings: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **settings)
    return out.getvalue()
