"""Figures on disk, the same bytes every time. Resolutions are in dots per inch."""

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from lib.machine.files import written_whole
from lib.machine.folders import paths

SCREEN_DPI = 72  # figures inside a notebook
REPORT_DPI = 150  # the PNG exported for the report; the PDF is vector graphics


def save_figure(fig: Figure, name: str, folder: Path | str | None = None) -> list[Path]:
    """Write `name`.pdf and `name`.png to `folder` (default `paths().figures`), the same bytes every time.

    Each is written whole and then renamed: an interrupted run leaves the earlier one. Returns the two paths. The PNG
    has a palette.
    """
    folder, written = Path(folder) if folder else paths().figures, []
    metadata = {"pdf": {"CreationDate": None}, "png": {"Software": None}}  # no date, no version
    for ending, tags in metadata.items():
        written.append(folder / f"{name}.{ending}")
        with written_whole(written[-1]) as part:
            fig.savefig(part, format=ending, dpi=REPORT_DPI, bbox_inches="tight", metadata=tags)
            if ending == "png":
                part.write_bytes(palette_png(part.read_bytes()))
    return written


def palette_png(picture: bytes) -> bytes:
    """The PNG with a palette of its own, a quarter of the size: what is flat stays exact, what is small keeps its hue.

    Sixteen colours are the most frequent, such as the paper's white; half of the others stand for many pixels, half
    differ most: many pixels alone would lose a person's colour in a picture of meadows.
    """
    pixels, smaller, palette = Image.open(io.BytesIO(picture)).convert("RGB"), io.BytesIO(), Image.new("P", (1, 1))
    packed = np.asarray(pixels).astype(np.uint32) @ np.array([2**16, 2**8, 1], np.uint32)  # a number for each colour
    colours, counts = np.unique(packed, return_counts=True)
    frequent = colours[np.argsort(-counts, kind="stable")[:16]]
    kinds = Image.Quantize.MEDIANCUT, Image.Quantize.MAXCOVERAGE
    others = [value for kind in kinds for value in (pixels.quantize(120, kind).getpalette() or [])[:360]]
    palette.putpalette([*(int(colour) >> shift & 255 for colour in frequent for shift in (16, 8, 0)), *others])
    shown = pixels.quantize(palette=palette, dither=Image.Dither.NONE)  # near enough, but not exact
    for index, colour in enumerate(frequent):
        shown.paste(index, mask=Image.fromarray(packed == colour))
    shown.save(smaller, "PNG", optimize=True)
    return smaller.getvalue()
