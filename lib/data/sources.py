"""The data sets that a notebook names: `data/<source>`, and where what is learnt from them lies."""

from pathlib import Path

from lib.config import Config
from lib.data.download import IMAGES, SETS, cost, download
from lib.data.reader import FILES, CourseDataset
from lib.data.scenes import write_scenes
from lib.data.split import SPLIT_FILE, SPLITS, load_split
from lib.machine.folders import paths


def is_missing(source: str) -> bool:
    """Whether data that can be made are asked for, the built-in scenes or COCO's, and none of their files is there."""
    folder = paths().data / source
    return source in ("synthetic", "coco") and not any((folder / name).exists() for name in FILES.values())


def what_is_made(source: str, config: Config) -> str:
    """What `ensure_data` will do."""
    if not is_missing(source):
        return f"data/{source} as it is"
    return cost(IMAGES) if source == "coco" else f"{config.data.images} scenes to write"


def ensure_data(source: str, config: Config) -> Path:
    """The folder `data/<source>`; missing built-in scenes ("synthetic") are written first, COCO's ("coco") downloaded.

    ValueError where the files do not belong together or a split is empty: better said now than after a training.
    """
    folder = paths().data / source
    if is_missing(source):
        if source == "coco":
            download(SETS[0], folder)
        else:
            write_scenes(folder, config.data.images, config.data.seed)
    indices = load_split(folder, len(CourseDataset(folder)), config.data)
    if empty := [split for split in SPLITS if not indices[split]]:
        fix = "set data.val_fraction and data.test_fraction above 0 and delete that file: a new split is drawn"
        raise ValueError(f"{folder / SPLIT_FILE} has no images in its {' and '.join(empty)} split: {fix}")
    return folder


def weights_folder(source: str, config: Config) -> Path:
    """`weights/<profile>` for the built-in scenes, `weights/<profile>-<source>` for other data."""
    return paths().weights / "-".join([config.profile] + [source] * (source != "synthetic"))
