"""Runtime: where the project lies, what it runs on, and how a figure is saved the same way twice.

Nothing here knows about boxes or networks. Folders are absolute paths; resolutions are in dots per inch.
"""

import ctypes
import io
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

SCREEN_DPI = 72  # figures inside a notebook
REPORT_DPI = 150  # the PNG exported for the report; the PDF is vector graphics
DRIVE = Path("/content/drive")
DRIVE_FOLDER = DRIVE / "MyDrive" / "maskrcnn"
FOLDERS = {"data": "MASKRCNN_DATA", "weights": "MASKRCNN_WEIGHTS", "figures": "MASKRCNN_FIGURES"}


def root() -> Path:
    """The project's folder: the one that holds `lib/`."""
    return Path(__file__).resolve().parent.parent


def paths() -> SimpleNamespace:
    """The folders `data`, `weights`, `figures`: in the project, unless MASKRCNN_DATA, ... say otherwise."""
    folders = {name: Path(os.environ.get(variable) or root() / name) for name, variable in FOLDERS.items()}
    return SimpleNamespace(**{name: folder.expanduser().resolve() for name, folder in folders.items()})


def in_colab() -> bool:
    """Whether this kernel runs in Google Colab."""
    return "google.colab" in sys.modules


def use_drive(wanted: bool, folder: Path = DRIVE_FOLDER) -> None:
    """On Colab, mount Google Drive and keep data, weights and figures in `folder`; elsewhere do nothing."""
    if not (wanted and in_colab()):
        return
    from google.colab import drive

    drive.mount(str(DRIVE))
    for name, variable in FOLDERS.items():
        os.environ.setdefault(variable, str(folder / name))
        (folder / name).mkdir(parents=True, exist_ok=True)


def device() -> torch.device:
    """The device accelerate picks for this process: its GPU where there is one, else the CPU.

    ACCELERATE_USE_CPU=1 asks for the CPU, as it does everywhere in accelerate.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device


def precision(wanted: str = "auto") -> str:
    """accelerate's mixed precision: the one wanted, or with "auto" bf16 where the hardware multiplies in it, fp16 on
    older GPUs.

    CPUs with bf16 instructions (AVX-512 BF16, and AMX above it) train the convolutions two to three times as fast in it
    as in float32; others stay in float32.
    """
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def keep_memory(wanted: bool = True) -> None:
    """Whether this process keeps the memory that it frees, for its next tensors, or hands large blocks back at once.

    With glibc, the C library of most Linux systems, that spares a CPU the page faults of every large tensor; elsewhere
    nothing happens. Not `wanted` gives glibc's own steady state back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4  # glibc's names of its settings
    kept = {mmap_max: 0, trim_threshold: -1, top_pad: 2**28}
    given_back = {mmap_max: 65536, mmap_threshold: 2**25, trim_threshold: 2**26, top_pad: 2**17}
    for setting, value in (kept if wanted else given_back).items() if mallopt else ():
        mallopt(setting, value)


def save_figure(fig: Figure, name: str, folder: Path | str | None = None) -> list[Path]:
    """Write `name`.pdf and `name`.png to `folder` (default `paths().figures`), the same bytes every time.

    Each is written whole and then renamed: an interrupted run leaves the earlier one. Returns the two paths. The PNG
    has a palette.
    """
    folder = Path(folder) if folder else paths().figures
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"pdf": {"CreationDate": None}, "png": {"Software": None}}  # no date, no version
    written = []
    for ending, tags in metadata.items():
        part = folder / f".{name}.{ending}.part"
        fig.savefig(part, format=ending, dpi=REPORT_DPI, bbox_inches="tight", metadata=tags)
        if ending == "png":
            part.write_bytes(palette_png(part.read_bytes()))
        written.append(part.replace(folder / f"{name}.{ending}"))
    return written


def palette_png(picture: bytes) -> bytes:
    """The PNG with 256 colours of its own, a third of the size."""
    pixels, smaller = Image.open(io.BytesIO(picture)).convert("RGB"), io.BytesIO()
    pixels.quantize(256, Image.Quantize.MEDIANCUT).save(smaller, "PNG", optimize=True)
    return smaller.getvalue()


@contextmanager
def command_errors() -> Iterator[None]:
    """Turn a ValueError or OSError (a user's mistake) into one line on stderr and exit status 1.

    A context manager, and a decorator of a command's `main`: `@command_errors()`.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit("error: " + " ".join(str(error).split())) from None
