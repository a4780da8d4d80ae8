"""Where the project lies, and where its data, weights and figures do. Folders are absolute paths."""

import os
from pathlib import Path
from types import SimpleNamespace

DRIVE = Path("/content/drive")
FOLDERS = {"data": "MASKRCNN_DATA", "weights": "MASKRCNN_WEIGHTS", "figures": "MASKRCNN_FIGURES"}


def root() -> Path:
    """The project's folder: the one that holds `lib/`."""
    return Path(__file__).resolve().parents[2]


def paths() -> SimpleNamespace:
    """The folders `data`, `weights`, `figures`: in the project, unless MASKRCNN_DATA, ... say otherwise."""
    folders = {name: Path(os.environ.get(variable) or root() / name) for name, variable in FOLDERS.items()}
    return SimpleNamespace(**{name: folder.expanduser().resolve() for name, folder in folders.items()})
