"""Files of pictures without their metadata: Pillow sees nothing but what makes up the pixels, and how to turn them.

It keeps an object for each piece of metadata, so that a hostile file of 200 MB would become gigabytes.
"""

from __future__ import annotations

import io
import re
import zlib
from typing import Literal

from training.errors import SparsightError

MAX_PARTS = 1_000_000  # chunks of a PNG, segments of a JPEG
MAX_SCANS = 100  # of a progressive JPEG: each may be a few bytes and passes over all pixels; encoders write 10 or so
MAX_EXIF = 1 << 16
MAX_TAG = 1 << 20  # bytes of a TIFF's tag, as the places of its strips
TILE_BEYOND = 1024  # pixels that a tile of a TIFF may reach beyond the picture

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # one that a segment's length, or the end, follows
_SEQUENTIAL = b"\xff\xc0", b"\xff\xc1", b"\xff\xc9"  # frames, that are not progressive or lossless
_KEPT_APPS = (b"\xff\xe0", b"JFIF\0"), (b"\xff\xee", b"Adobe")  # they say what the channels mean
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_KEPT = {  # what is stored how and where (orientation: 274)
    *range(256, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293, 317, *range(320, 326), *range(332, 337),
    338, 339, 347, *range(512, 522), *range(529, 533), 50674,
}  # fmt: skip
_TILE_SIDES = {322: 256, 323: 257}  # the tags of a tile's width and length, and those of the picture's


class PictureError(SparsightError):
    """Why a file is not read as a picture; the message does not name the file."""


def bare(data: bytes) -> io.BytesIO:
    """A JPEG, PNG, GIF or TIFF without its metadata, the orientation excepted; any other file as it is.

    Raises `PictureError` where it has too many parts.
    """
    starts = (b"\xff\xd8\xff", _bare_jpeg), (_PNG, _bare_png), (b"GIF8", _bare_gif), *((s, _bare_tiff) for s in _TIFF)
    for start, strip in starts:
        if data.startswith(start):
            return strip(data)
    return io.BytesIO(data)


def _bare_jpeg(data: bytes) -> io.BytesIO:
    parts, view = [], memoryview(data)
    at = kept = scans = 0
    channels = b""  # their number, where one scan may hold them all
    exif = False
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(data, at)
        if not found or (found[0] == b"\xff\xd9" and scans):
            break
        marker, start, content = found[0], found.start(), found.end() + 2
        at = content - 2 + int.from_bytes(data[content - 2 : content])
        scans += marker == b"\xff\xda"
        if scans > MAX_SCANS:
            raise PictureError(f"it has too many scans: at most {MAX_SCANS}")
        if marker in _SEQUENTIAL:
            channels = data[content + 5 : content + 6]
        elif marker == b"\xff\xda" and data[content : content + 1] == channels:
            break  # it holds all channels, so that it is the only one, and libjpeg reads nothing behind it
        if b"\xff\xe0" <= marker <= b"\xff\xef" or marker == b"\xff\xfe":
            if not exif and marker == b"\xff\xe1" and data.startswith(b"Exif\0\0", content):
                exif = True
            elif not any(marker == m and data.startswith(name, content) for m, name in _KEPT_APPS):
                parts.append(view[kept:start])
                kept = at
    else:
        raise PictureError(f"it has too many segments: at most {MAX_PARTS}")
    return io.BytesIO(b"".join((*parts, view[kept:])) if kept else data)  # of bytes it makes no copy, nor who reads all


def _bare_png(data: bytes) -> io.BytesIO:
    made, view = io.BytesIO(), memoryview(data)
    at = made.write(_PNG)
    deep = data[24:26] == b"\x10\x02"  # 16 bits of red, green, blue
    for _ in range(MAX_PARTS):
        length, name, start = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8], at
        at += 12 + length
        if name == b"tRNS" and deep:  # Pillow compares its low bytes with the pixels' high ones
            key = b"tRNS" + bytes(b for high in data[start + 8 : start + 14 : 2] for b in (0, high))
            made.write(b"\0\0\0\6" + key + zlib.crc32(key).to_bytes(4))
        elif name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or (name == b"eXIf" and length <= MAX_EXIF):
            made.write(view[start:at])
        if name == b"IEND" or at >= len(data):
            made.seek(0)
            return made
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


def _bare_tiff(data: bytes) -> io.BytesIO:
    """The header leads to a list of tags of our own, behind all else: those of the first picture that are needed."""
    order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"
    number = lambda start, size: int.from_bytes(data[start : start + size], order)  # noqa: E731
    wide = b"+" in data[2:4]  # a BigTIFF
    word, head, counted = (8, 8, 8) if wide else (4, 4, 2)  # bytes of a place, before the first one, of a count
    step, start = 4 + 2 * word, number(head, word)
    kept: list[bytes] = []
    values: dict[int, int] = {}
    for at in range(start + counted, start + counted + step * min(number(start, counted), 1 << 16), step):
        tag, kind, count = number(at, 2), number(at + 2, 2), number(at + 4, word)
        if at + step > len(data) or tag not in _TIFF_KEPT:
            continue
        size = _TIFF_SIZES.get(kind, 1)
        if size * count > MAX_TAG:
            raise PictureError(f"it is damaged: its tag {tag} has {count} values")
        kept.append(data[at : at + step])
        values[tag] = number(at + 4 + word, min(size, word))
    for tile, side in _TILE_SIDES.items():
        if values.get(tile, 0) > values.get(side, 0) + TILE_BEYOND:
            raise PictureError("it is damaged: its tiles are larger than the picture")
    made, place = io.BytesIO(), len(data) + len(data) % 2
    made.write(data[:head] + place.to_bytes(word, order))
    made.write(memoryview(data)[head + word :])
    made.write(b"\0" * (place - len(data)) + len(kept).to_bytes(counted, order) + b"".join(kept) + bytes(word))
    made.seek(0)
    return made
