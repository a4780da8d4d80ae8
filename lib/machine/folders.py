"""Where the project lies, and where its data, weights and figures do. Folders are absolute paths."""

import hashlib
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

DRIVE = Path("/content/drive")
LOCAL = Path(tempfile.gettempdir()) / "maskrcnn"  # on the machine's own disk
LEFT_FREE = 2**30  # bytes of a disk that stay free
FOLDERS = {"data": "MASKRCNN_DATA", "weights": "MASKRCNN_WEIGHTS", "figures": "MASKRCNN_FIGURES"}


def root() -> Path:
    """The project's folder: the one that holds `lib/`."""
    return Path(__file__).resolve().parents[2]


def paths() -> SimpleNamespace:
    """The folders `data`, `weights`, `figures`: in the project, unless MASKRCNN_DATA, ... say otherwise."""
    folders = {name: Path(os.environ.get(variable) or root() / name) for name, variable in FOLDERS.items()}
    return SimpleNamespace(**{name: folder.expanduser().resolve() for name, folder in folders.items()})


def copies_folder(data: str | Path) -> Path:
    """Where copies of a data folder's files lie, on a local disk: with the weights, or in LOCAL.

    LOCAL is taken where the weights are on Drive or may only be read. The data folder itself stays as it is.
    """
    data, weights = Path(data).resolve(), paths().weights
    there = next(folder for folder in (weights, *weights.parents) if folder.is_dir())
    local = os.access(there, os.W_OK) and not weights.is_relative_to(DRIVE)
    name = f"{data.name}-{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}"
    return (weights if local else LOCAL) / "copies" / name
