"""Pictures from files, whatever their size and format, as the squares an encoder takes; thumbnails.

Only four formats are opened (Pillow supports dozens, each a way in); a picture of more than 50 million pixels
is refused before it is decoded.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from training.errors import SparsightError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 50_000_000


def read_picture(path: Path | str, size: int) -> np.ndarray:
    """Reads a picture as (size, size, 3) uint8: EXIF-rotated, alpha on white, shorter side scaled, centre cropped.

    Raises `SparsightError` naming the file where it is missing, no picture, damaged or too large.
    """
    path = Path(path)
    try:
        with Image.open(path, formats=FORMATS) as file:
            image: Image.Image = file
            if image.width * image.height > MAX_PIXELS:
                raise SparsightError(
                    f"{path} is too large: {image.width} × {image.height}, at most {MAX_PIXELS} pixels"
                )
            if file.format == "JPEG":
                file.draft("RGB", (2 * size, 2 * size))
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
            return np.asarray(image)
    except UnidentifiedImageError as e:
        raise SparsightError(f"{path} is no picture that can be read ({', '.join(FORMATS)})") from e
    except Image.DecompressionBombError as e:
        raise SparsightError(f"{path} is too large: {e}") from e
    except (OSError, SyntaxError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else e
        raise SparsightError(f"cannot read the picture {path}: {reason}") from e


def thumbnail(pixels: np.ndarray) -> bytes:
    """uint8 (h, w, 3) → JPEG bytes, without chroma subsampling: these are small."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90, subsampling=0)
    return out.getvalue()
