"""Pictures of every kind -> RGB, by one function for training and prediction.

h x w  a picture's own size, any
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from lib.machine.errors import say_once

MOST_PIXELS = 100_000_000
Image.init()
KINDS: list[str] = [  # none that starts another program
    kind
    for kind in ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")
    if kind in Image.OPEN
]
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses twice as many before it expands them, and warns of this many
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, int, tuple[int, int]]]:
    """A picture whose pixels are not read yet, its EXIF orientation, its size upright; what fails is a ValueError."""
    try:
        with Image.open(path, formats=KINDS) as file:
            orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
            yield file, orientation, file.size[::-1] if orientation in (5, 6, 7, 8) else file.size
    except Image.DecompressionBombError:
        fix = "shrink it, for example to half its width and height"
        raise ValueError(f"{path} has more than {MOST_PIXELS:,} pixels: {fix}") from None
    except Exception as error:  # Pillow's readers raise almost anything on a damaged file
        raise ValueError(f"{path} is not a readable picture ({error}): give a whole JPEG, PNG or the like") from None


def picture_sizes(path: Path) -> list[tuple[int, int]]:
    """A picture's (width, height) upright and as it is stored, from its header; ValueError without one."""
    with _opened(path) as (file, _, upright):
        return [upright, file.size]


def read_picture(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture of any mode as (3, h, w) uint8 RGB, upright, white where it is transparent.

    `size` is the (width, height) that its objects were annotated in: where the picture has it only as it is stored, it
    is not turned. ValueError for a file that is unreadable, of another size, or larger than 100 megapixels.
    """
    with _opened(path) as (file, orientation, upright):
        if size not in (None, upright, file.size):
            raise ValueError(f"it has {upright[0]} x {upright[1]} pixels, not {size[0]} x {size[1]}")
        if size == upright == file.size and orientation in range(2, 9):
            ambiguous = "an EXIF orientation leaves a picture's size as it is, so its annotations may fit it or not"
            say_once(f"{path.parent}: {ambiguous}; it is read upright, as viewers and labelling tools show it")
        picture = _eight_bits(ImageOps.exif_transpose(file) if size in (None, upright) else file)
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.asarray(picture.convert("RGB")).transpose(2, 0, 1).copy()


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of fractions, in 8 bits; ValueError where its range is none of those in use."""
    if picture.mode not in ("F", "I") and not picture.mode.startswith("I;16"):
        return picture
    values = np.asarray(picture)
    low, high = float(values.min()), float(values.max())
    ranges = {"F": (1, 255, 65535), "I": (255, 65535)}.get(picture.mode, (65535,))
    most = next((most for most in ranges if 0 <= low <= high <= most), None)
    if most is None:
        raise ValueError(f"its values go from {low:g} to {high:g}: save it with 8 or 16 bits, or from 0 to 1")
    return Image.fromarray((values * np.float32(255 / most) + np.float32(0.5)).astype(np.uint8))
