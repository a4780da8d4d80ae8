"""What every notebook starts with: on Google Colab its Drive, then the config, the data and where weights lie."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt

from lib.config import Config, load_config
from lib.data.classes import read_classes
from lib.data.sources import ensure_data, weights_folder
from lib.machine.device import seed_everything
from lib.machine.folders import DRIVE, FOLDERS
from lib.notebook.figures import SCREEN_DPI

DRIVE_FOLDER = DRIVE / "MyDrive" / "maskrcnn"


def in_colab() -> bool:
    """Whether this kernel runs in Google Colab."""
    return "google.colab" in sys.modules


def use_drive(wanted: bool, folder: Path = DRIVE_FOLDER) -> None:
    """On Colab, keep data, weights and figures in `folder` of the Drive that is mounted; elsewhere do nothing."""
    if not (wanted and in_colab()):
        return
    for name, variable in FOLDERS.items():
        os.environ.setdefault(variable, str(folder / name))
        (folder / name).mkdir(parents=True, exist_ok=True)


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """A notebook shows a ValueError or OSError of the block as its message alone, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        error._render_traceback_ = lambda said=f"error: {error}": [said]  # type: ignore[union-attr]  # IPython asks it
        raise


@in_one_sentence()
def set_up(profile: str, source: str, drive: bool, numbers: Iterable[str] = ()) -> tuple[str, Config, Path, Path]:
    """Source, config, the folder `data/<source>`, written if need be, and that of the weights; seeds everything.

    The environment's MASKRCNN_PROFILE and MASKRCNN_SOURCE go before `profile` and `source`; `numbers` are `path=value`.
    ValueError for a profile or a number that does not exist, or data that cannot be used.
    """
    use_drive(drive)
    plt.rcParams["figure.dpi"] = SCREEN_DPI
    source = os.environ.get("MASKRCNN_SOURCE", source)
    config = load_config(os.environ.get("MASKRCNN_PROFILE", profile), numbers)
    data = ensure_data(source, config)
    config = config.replace(classes=read_classes(data))  # vehicle, person, animal, unless the data set names others
    seed_everything(config.training.seed)
    return source, config, data, weights_folder(source, config)
