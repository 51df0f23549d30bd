"""A folder of every kind of file that a person, a camera, a damaged disk or an attacker may put among pictures.

`make_folder` writes it and returns what is to become of each file:
- an array (h, w, 3): it is taken, and these colours are seen, each in its cell of an h × w grid over the picture;
- a text: it is skipped, and its reason begins so;
- None: it is passed over without a word.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

Expected = np.ndarray | str | None
Make = Callable[[Path], object]

RED, WHITE = (200, 30, 30), (255, 255, 255)
QUADRANTS = np.array([[(200, 30, 30), (30, 160, 40)], [(30, 40, 190), (240, 240, 240)]], np.uint8)
OUTSIDE = "outside"  # a folder beside the made one
BROKEN, BIG = "it is damaged", "it is too large"


def red(*size: int) -> Image.Image:
    return Image.new("RGB", size or (40, 30), RED)


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.kron(QUADRANTS, np.ones((height // 2, width // 2, 1), np.uint8)))


def saved(image: Image.Image, form: str, **settings: object) -> bytes:
    out = BytesIO()
    image.save(out, form, **settings)
    return out.getvalue()


# Files, piece by piece.


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, before: bytes = b"", after: bytes = b""
) -> bytes:
    """rows: deflated. colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", rows) + after + chunk(b"IEND", b"")


def png16(colour: int, pixel: tuple[int, ...], before: bytes = b"") -> bytes:
    """A PNG of 4 × 4 equal pixels, 16 bits a channel."""
    row = b"\0" + struct.pack(f">{len(pixel)}H", *pixel) * 4
    return png(4, 4, 16, colour, zlib.compress(row * 4), before)


def deflated_zeros(n: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(min(1 << 20, n - i))) for i in range(0, n, 1 << 20)) + packer.flush()


def jpeg(*segments: tuple[int, bytes], image: Image.Image | None = None, **settings: object) -> bytes:
    """A JPEG with segments (marker, content) before its own."""
    data = saved(image or red(), "JPEG", quality=95, **settings)
    return data[:2] + b"".join(struct.pack(">HH", m, len(c) + 2) + c for m, c in segments) + data[2:]


def exif(orientation: int, tags: int = 0) -> bytes:
    """EXIF data; tags: as many more entries, each of 60,000 bytes that all lie in the same place."""
    more = [struct.pack(">HHLL", 0x8000 + i, 1, 60_000, 0) for i in range(tags)]
    entries = struct.pack(">HHLHH", 0x0112, 3, 1, orientation, 0) + b"".join(more)
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", 1 + tags) + entries + bytes(4)


def stored(orientation: int) -> Image.Image:
    """The quadrants as a camera held so stores them: EXIF says at which sides row 0 and column 0 are to be seen."""
    row, column = ("top left", "top right", "bottom right", "bottom left", "left top", "right top", "right bottom",
                   "left bottom")[orientation - 1].split()  # fmt: skip
    upright = np.asarray(quadrants())
    lying = upright.swapaxes(0, 1) if row in ("left", "right") else upright
    rows, columns = (-1 if side in ("bottom", "right") else 1 for side in (row, column))
    return Image.fromarray(np.ascontiguousarray(lying[::rows, ::columns]))


def cmyk(ink: tuple[int, int, int, int], *, transform: int = 0) -> bytes:
    """A JPEG of four inks (255: all of it), inverted as Adobe writes it. transform 2: the first three are YCbCr."""
    data = saved(Image.new("CMYK", (40, 30), ink), "JPEG", quality=95)
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    return data[:at] + bytes([transform]) + data[at + 1 :]


def without_adobe(data: bytes) -> bytes:
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 16 :]


def scan_bomb(scans: int) -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, comes again and again."""
    data = saved(Image.new("L", (500, 500)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def vp8l(width: int, height: int) -> bytes:
    """A lossless WebP of one colour, half transparent red: 38 bytes, whatever its size."""
    data = saved(Image.new("RGBA", (1, 1), (*RED, 128)), "WEBP", lossless=True)
    at = data.index(b"VP8L") + 9
    return data[:at] + struct.pack("<L", (width - 1) | (height - 1) << 14 | 1 << 28) + data[at + 4 :]


def gif(width: int, height: int, frame: tuple[int, int], before: bytes = b"") -> bytes:
    """A GIF of a screen and one frame of any size, with the pixels of a small one; before: extensions."""
    data = saved(red().quantize(2), "GIF")
    at = data.index(b",\0\0\0\0\x28\0\x1e\0")
    image = data[at : at + 5] + struct.pack("<HH", *frame) + data[at + 9 :]
    return data[:6] + struct.pack("<HH", width, height) + data[10:at] + before + image


def resized_bmp(width: int, height: int) -> bytes:
    data = saved(red(), "BMP")
    return data[:18] + struct.pack("<ll", width, height) + data[26:]


def tiff(
    size: tuple[int, int],
    pixels: bytes,
    *,
    depth: int = 8,
    tile: tuple[int, int] | None = None,
    places: int = 1,
    more: list[tuple[int, int, int, int]] = [],  # noqa: B006 (never written to)
) -> bytes:
    """A TIFF of RGB, not compressed, its pixels in one strip or tile. size: width and height. places: how many
    strips it says to have. more: tags (number, type, count, place)."""
    width, height = size
    start = 8
    where, counts, sides = (324, 325, [(322, 4, 1, tile[0]), (323, 4, 1, tile[1])]) if tile else (273, 279, [])
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, depth), (259, 3, 1, 1), (262, 3, 1, 2),
            (where, 4, places, start), (277, 3, 1, 3), (counts, 4, places, len(pixels) if places == 1 else start),
            *sides, *more]  # fmt: skip
    entries = b"".join(struct.pack("<HHLL", *tag) for tag in sorted(tags))
    ifd = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<L", start + len(pixels)) + pixels + ifd


def animated(form: str) -> bytes:
    return saved(
        red(), form, save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")], duration=50, lossless=True
    )


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def palette(**settings: object) -> bytes:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 255, *RED])
    return saved(image, "PNG", **settings)


def socket_at(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as s:  # its whole path may be too long for one
        s.bind(path.name)


NOISE = Image.effect_noise((200, 200), 60)
ONE = zlib.compress(b"\0" + bytes(RED))  # the row of a PNG of one red pixel
ZEROS = deflated_zeros(100_000_000)
PICTURE = saved(red(), "PNG")
NO_UTF8 = os.fsdecode(b"caf\xe9 \xff.png")

NAMES = (
    "B.PNG", "deep/er/and/deeper/a.png", "--help.png", "-k.png", "7.png", "42/7.png", " .png", "*.png", "~.png",
    "'); DROP TABLE images;--.png", "it's \"quoted\" `so` “too”.png", "back\\slash.png", "$(touch x).png", "%s {}.png",
    "tab\t.png", "new\nline\r\n.png", "\x1b[31m\x1b]0;title\x07.png", "\x7f\x01.png", NO_UTF8, "🐈.png", "e\u0301.png",
    "\u00e9.png", "\u202egnp.exe\u202c.png", "\u200f.png", "\u2028.png", "ÅÄÖ/日本語.png", "x" * 251 + ".png",
    "a picture really.jpg",
)  # fmt: skip


def made(how: bytes | str | Make, expected: object) -> tuple[Make, Expected]:
    """A file by its bytes, a link by its target, or what a function makes; a colour stands for one all over."""
    make: Make = how  # type: ignore[assignment]
    if isinstance(how, bytes):
        make = lambda path: path.write_bytes(how)  # noqa: E731
    elif isinstance(how, str):
        make = lambda path: path.symlink_to(how)  # noqa: E731
    return make, np.array(expected, np.uint8, ndmin=3) if isinstance(expected, tuple) else expected  # type: ignore


def turned(orientation: int, form: str) -> bytes:
    start = b"Exif\0\0" if form == "JPEG" else b""
    return saved(stored(orientation), form, exif=start + exif(orientation), quality=95, subsampling=0, lossless=True)


def key(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def text(name: bytes, content: bytes) -> bytes:
    return png(1, 1, 8, 2, ONE, chunk(name, content))


FILES: dict[str, tuple[Make, Expected]] = {
    **{name: made(PICTURE + os.fsencode(name), RED) for name in NAMES},  # what lies behind a picture is none of it
    # formats, colours and depths
    "a.jpg": made(jpeg(), RED),
    "progressive.jpeg": made(jpeg(progressive=True), RED),
    "a.webp": made(saved(red(), "WEBP", lossless=True), RED),
    "a.gif": made(saved(red(), "GIF"), RED),
    "a.bmp": made(saved(red(), "BMP"), RED),
    "upside down.bmp": made(resized_bmp(40, -30), RED),
    "two in one.jpg": made(saved(red(), "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]), RED),
    "one bit.png": made(saved(Image.new("1", (20, 20), 1), "PNG"), WHITE),
    "grey.jpg": made(jpeg(image=Image.new("L", (20, 20), 77)), (77, 77, 77)),
    "grey16.png": made(png16(0, (0x80FF,)), (0x80, 0x80, 0x80)),
    "grey16 dark.png": made(png16(0, (0x0101,)), (1, 1, 1)),
    "grey16 keyed.png": made(png16(0, (0x1234,), key(0x1234)), WHITE),
    "grey16 alpha.png": made(png16(4, (0x4000, 0xFFFF)), (0x40, 0x40, 0x40)),
    "rgb16.png": made(png16(2, (0xC8FF, 0x1E00, 0x1E80)), RED),
    "rgb16 keyed.png": made(png16(2, (0x1234, 0x5678, 0x9ABC), key(0x1234, 0x5678, 0x9ABC)), WHITE),
    "rgb16 not keyed.png": made(png16(2, (0x1234, 0x5678, 0x9ABC), key(0x12, 0x56, 0x9A)), (0x12, 0x56, 0x9A)),
    "rgba16.png": made(png16(6, (0, 0, 0, 0x8000)), (127, 127, 127)),
    "rgb keyed.png": made(saved(red(), "PNG", transparency=RED), WHITE),
    "la.png": made(saved(Image.new("LA", (20, 20), (0, 51)), "PNG"), (204, 204, 204)),
    "clear.png": made(saved(Image.new("RGBA", (40, 30), (9, 9, 9, 0)), "PNG"), WHITE),
    "half clear.webp": made(vp8l(40, 30), (227, 142, 142)),
    "palette.png": made(palette(), RED),
    "palette clear.png": made(palette(transparency=1), WHITE),
    "palette half clear.png": made(palette(transparency=b"\xff\x33"), (244, 210, 210)),
    "clear.gif": made(saved(Image.new("RGBA", (20, 20), (9, 9, 9, 0)), "GIF"), WHITE),
    "cmyk.jpg": made(cmyk((0, 255, 255, 0)), (255, 0, 0)),
    "cmyk with black.jpg": made(cmyk((0, 128, 0, 128)), (127, 63, 127)),
    "cmyk, no adobe.jpg": made(without_adobe(cmyk((0, 255, 255, 0))), (255, 0, 0)),
    "ycck.jpg": made(cmyk((255 - 179, 255 - 171, 254, 0), transform=2), (255, 0, 0)),  # Y, Cb, Cr of the lack of ink
    "animated.gif": made(animated("GIF"), RED),
    "animated.webp": made(animated("WEBP"), RED),
    "animated.png": made(animated("PNG"), RED),
    "a.tif": made(saved(red(), "TIFF"), RED),
    "lzw.tiff": made(saved(red(), "TIFF", compression="tiff_lzw"), RED),
    "jpeg.tif": made(saved(red(), "TIFF", compression="jpeg", quality=95), RED),
    "big.tif": made(saved(red(), "TIFF", big_tiff=True), RED),
    "pages.tif": made(saved(red(), "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]), RED),
    "cmyk.tif": made(saved(Image.new("CMYK", (40, 30), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "grey16.tif": made(saved(Image.fromarray(np.full((30, 40), 0x80FF, np.uint16)), "TIFF"), (0x80, 0x80, 0x80)),
    "grey32.tif": made(saved(Image.fromarray(np.full((30, 40), 0x40000000, np.int32)), "TIFF"), (0x80, 0x80, 0x80)),
    "float.tif": made(saved(Image.fromarray(np.full((30, 40), 0.5, np.float32)), "TIFF"), (127, 127, 127)),
    "rgb16.tif": made(tiff((40, 30), bytes.fromhex("ff80") * 3 * 1200, depth=16), (0x80, 0x80, 0x80)),
    "tiled.tif": made(tiff((40, 30), bytes(RED) * 64 * 64, tile=(64, 64)), RED),
    "lab.tif": made(saved(Image.new("LAB", (40, 30), (255, 128, 128)), "TIFF"), (254, 255, 254)),
    "alpha.tif": made(saved(Image.new("RGBA", (40, 30), (9, 9, 9, 0)), "TIFF", compression="tiff_deflate"), WHITE),
    "one bit.tif": made(saved(Image.new("1", (20, 20), 1), "TIFF", compression="group4"), WHITE),
    "a.avif": made(saved(red(), "AVIF", quality=100), RED),
    # shapes
    "1x1.png": made(saved(red(1, 1), "PNG"), RED),
    "1x10000.png": made(saved(red(1, 10_000), "PNG"), RED),
    "10000x1.png": made(saved(red(10_000, 1), "PNG"), RED),
    "65000x1.gif": made(saved(red(65_000, 1), "GIF"), RED),
    "0x5.png": made(png(0, 5, 8, 2, ONE), "it is no picture"),
    "0x0.gif": made(gif(0, 0, (0, 0)), "it is no picture"),
    # metadata
    **{f"exif/{o}.jpg": made(turned(o, "JPEG"), QUADRANTS) for o in range(1, 9)},
    "exif/6.png": made(turned(6, "PNG"), QUADRANTS),
    "exif/6.webp": made(turned(6, "WEBP"), QUADRANTS),
    **{f"exif/{o}.tif": made(saved(stored(o), "TIFF", tiffinfo={274: o}), QUADRANTS) for o in range(1, 9)},
    "exif/6.avif": made(saved(stored(6), "AVIF", exif=exif(6), quality=100, subsampling="4:4:4"), QUADRANTS),
    "exif/0.jpg": made(jpeg((0xFFE1, b"Exif\0\0" + exif(0))), RED),
    "exif/999.jpg": made(jpeg((0xFFE1, b"Exif\0\0" + exif(999))), RED),
    "exif/broken.jpg": made(jpeg((0xFFE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")), RED),
    "exif/bomb.webp": made(saved(red(), "WEBP", exif=exif(1, 5000), lossless=True), RED),
    "exif/bomb.png": made(saved(red(), "PNG", exif=exif(1, 5000)), RED),
    "exif/many.jpg": made(jpeg(*[(0xFFE1, b"Exif\0\0" + b"x" * 1000)] * 5000), RED),
    "text/zTXt.png": made(text(b"zTXt", b"Comment\0\0" + ZEROS), RED),
    "text/iTXt.png": made(text(b"iTXt", b"Comment\0\1\0\0\0" + ZEROS), RED),
    "text/after.png": made(png(1, 1, 8, 2, ONE, after=chunk(b"zTXt", b"Comment\0\0" + ZEROS)), RED),
    "text/long.png": made(lambda p: p.write_bytes(text(b"tEXt", b"comment\0" + bytes(70_000_000))), RED),
    "text/comment.png": made(text(b"tEXt", b"comment\0" + b"x" * 70_000), RED),
    "text/comment.gif": made(gif(40, 30, (40, 30), b"!\xfe" + b"\xfa" * 251 * 400 + b"\0"), RED),
    "text/comments.gif": made(gif(40, 30, (40, 30), b"!\xfe\1x\0" * 200_000), RED),
    "text/segments.jpg": made(jpeg(*[(0xFFE5, b"")] * 200_000), RED),
    "text/large segments.jpg": made(jpeg(*[(0xFFED, b"Photoshop 3.0\0" + bytes(60_000))] * 300), RED),
    "text/chunks.png": made(png(1, 1, 8, 2, ONE, chunk(b"prVt", b"") * 200_000), RED),
    "text/false end.jpg": made(jpeg((0xFFFE, b"\xff\xd9\xff\xda")), RED),
    "profile.png": made(text(b"iCCP", b"p\0\0" + ZEROS), RED),
    "profile.jpg": made(jpeg(*[(0xFFE2, b"ICC_PROFILE\0%c\xff" % i + bytes(65_000)) for i in range(1, 256)]), RED),
    # damage and bombs
    **{f"half.{form}": made(half(saved(NOISE, form)), BROKEN) for form in ("jpeg", "png", "gif", "bmp")},
    "half.webp": made(half(saved(NOISE, "WEBP")), "it is "),
    "zero.png": made(b"", "it is empty"),
    "text.jpg": made(b"no picture", "it is no picture that can be read (JPEG, PNG, WEBP, GIF, BMP, TIFF"),
    "psd.png": made(b"8BPS\0\1" + bytes(40), "it is no picture"),
    "head.jpg": made(b"\xff\xd8\xff", "it is "),
    "head.png": made(b"\x89PNG\r\n\x1a\n", "it is "),
    "head.gif": made(b"GIF89a", "it is "),
    "broken stream.png": made(PICTURE.replace(b"IDAT", b"IDAT\1", 1), BROKEN),
    "50 megapixels.png": made(png(9_000, 8_000, 1, 0, ONE), BIG + ": 9000 × 8000, at most 50000000 pixels"),
    "declared.png": made(png(50_000, 50_000, 8, 6, ONE), BIG),
    "declared.gif": made(gif(65_535, 65_535, (1, 1)), BIG),
    "frame.gif": made(gif(1, 1, (60_000, 60_000)), BIG),
    "declared.webp": made(vp8l(16_384, 16_384), BIG),
    "declared.bmp": made(resized_bmp(50_000, 50_000), BIG),
    "declared.jpg": made(jpeg().replace(struct.pack(">HH", 30, 40), struct.pack(">HH", 65_500, 65_500)), BIG),
    "half.tif": made(half(saved(NOISE, "TIFF", compression="tiff_lzw")), "it is "),
    "half raw.tif": made(saved(NOISE, "TIFF")[:20_000], "it is "),
    "half.avif": made(half(saved(NOISE, "AVIF")), "it is "),
    "head.tif": made(b"II*\0\x08\0\0\0\xff\xff", "it is "),
    "loop.tif": made(b"II*\0\0\0\0\0", "it is "),
    "declared.tif": made(tiff((60_000, 60_000), b""), BIG),
    "tile bomb.tif": made(tiff((40, 30), b"", tile=(60_000, 60_000)), "it is damaged: its tiles"),
    "tags.tif": made(tiff((40, 30), bytes(RED) * 1200, more=[(40_000 + i, 7, 60_000, 8) for i in range(5000)]), RED),
    "places.tif": made(tiff((40, 30), bytes(9_000_000), places=2_000_000), "it is damaged: its tag 273"),
    "chained.tif": made(saved(red(), "TIFF", save_all=True, append_images=[red(2, 2)] * 500), RED),
    "declared progressive.jpg": made(
        jpeg(progressive=True).replace(struct.pack(">HH", 30, 40), struct.pack(">HH", 9_000, 9_000)), BIG
    ),
    "zlib bomb.png": made(png(1, 1, 8, 2, ZEROS), (0, 0, 0)),
    "scans.jpg": made(scan_bomb(200), "it has too many scans"),
    "large file.png": made(lambda p: p.touch() or os.truncate(p, 10**10), BIG + ": more than 200000000 bytes"),
    # no files, and links
    "pipe.jpg": made(os.mkfifo, "it is not a regular file"),
    "socket.jpg": made(socket_at, "it is not a regular file"),
    "device.png": made("/dev/zero", "it is not a regular file"),
    "itself.png": made("itself.png", "Too many levels of symbolic links"),
    "there.png": made("back.png", "Too many levels of symbolic links"),
    "back.png": made("there.png", "Too many levels of symbolic links"),
    "dangling.png": made("nothing", "No such file or directory"),
    "link.png": made("a.jpg", RED),
    "link out.png": made(f"../{OUTSIDE}/a.png", RED),
    "loop": made(".", "it is a link to a folder"),
    "folder out": made(f"../{OUTSIDE}", "it is a link to a folder"),
    "folder out.png": made(f"../{OUTSIDE}", "it is a link to a folder"),
    # what is none of ours
    "7": made(PICTURE, None),
    "--help": made(PICTURE, None),
    "notes.txt": made(b"notes", None),
    "dangling": made("nothing", None),
    ".hidden.png": made(PICTURE, None),
    ".png": made(PICTURE, None),
    ".git/a.png": made(PICTURE, None),
    "a folder.png/readme": made(b"a folder may be named so", None),
}  # fmt: skip


def large_pictures() -> dict[str, bytes]:
    """Small files of pictures as large as are taken: the most memory that decoding asks for."""
    side = 7_000
    return {
        "rgba.png": png(side, side, 8, 6, deflated_zeros(side * (4 * side + 1))),
        "grey16.png": png(side, side, 16, 0, deflated_zeros(side * (2 * side + 1))),
        "rgba.webp": vp8l(side, side),
    }


def make_folder(root: Path) -> dict[str, Expected]:
    """Makes `root`, a new folder, and one beside it, which links lead to; returns each file's expectation."""
    (root.parent / OUTSIDE).mkdir()
    (root.parent / OUTSIDE / "a.png").write_bytes(PICTURE)
    expected = {}
    for name, (make, what) in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        make(root / name)
        expected[name] = what
    expected[too_deep(root)] = "File name too long"
    return expected


def too_deep(root: Path) -> str:
    """Makes folders in folders until no path reaches them; the name of the first beyond reach."""
    names = ["y" * 250] * 18
    with contextlib.chdir(root):
        for name in names:
            os.mkdir(name)
            os.chdir(name)
    return next("/".join(names[:n]) for n in range(len(names)) if len(f"{root}/{'/'.join(names[:n])}") > 4095)
