"""The data sets that a notebook names: `data/<source>`, and where what is learnt from them lies."""

from pathlib import Path

from lib.config import Config
from lib.data.reader import FILES, CourseDataset
from lib.data.scenes import write_scenes
from lib.data.split import SPLIT_FILE, SPLITS, load_split
from lib.machine.folders import paths


def needs_scenes(source: str) -> bool:
    """Whether the built-in scenes are asked for and none of their four files is there."""
    folder = paths().data / source
    return source == "synthetic" and not any((folder / name).exists() for name in FILES.values())


def ensure_data(source: str, config: Config) -> Path:
    """The folder `data/<source>`; the built-in scenes ("synthetic") are written first if they are missing.

    ValueError where the files do not belong together or a split is empty: better said now than after a training.
    """
    folder = paths().data / source
    if needs_scenes(source):
        write_scenes(folder, config.data.images, config.data.seed)
    indices = load_split(folder, len(CourseDataset(folder)), config.data)
    if empty := [split for split in SPLITS if not indices[split]]:
        fix = "delete that file to draw a new split, or set data.val_fraction and data.test_fraction"
        raise ValueError(f"{folder / SPLIT_FILE} has no images in its {' and '.join(empty)} split: {fix}")
    return folder


def weights_folder(source: str, config: Config) -> Path:
    """`weights/<profile>` for the built-in scenes, `weights/<profile>-<source>` for other data."""
    return paths().weights / "-".join([config.profile] + [source] * (source != "synthetic"))
