"""Figures on disk, the same bytes every time. Resolutions are in dots per inch."""

import io
from pathlib import Path

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
    """The PNG with 256 colours of its own, a third of the size."""
    pixels, smaller = Image.open(io.BytesIO(picture)).convert("RGB"), io.BytesIO()
    pixels.quantize(256, Image.Quantize.MEDIANCUT).save(smaller, "PNG", optimize=True)
    return smaller.getvalue()
