"""Google Colab: whether this is it, and its Drive."""

import os
import sys
from pathlib import Path

from lib.machine.folders import DRIVE, FOLDERS

DRIVE_FOLDER = DRIVE / "MyDrive" / "maskrcnn"


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
