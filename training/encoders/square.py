"""The centre square of a picture, which towers take that were trained on squares and have no rule of their own."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def square(picture: Image.Image, size: int) -> np.ndarray:
    """(size, size, 3) uint8: shorter side scaled to `size`, the centre of the longer one."""
    return np.array(ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC))


def as_picture(picture: Image.Image | np.ndarray) -> Image.Image:
    """A picture of Pillow's, or pixels (h, w, 3) uint8, as the former."""
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
