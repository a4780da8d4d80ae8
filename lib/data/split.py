"""Which images train, validate and test: drawn once from a seed and stored beside the four files."""

import json
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lib.config import DataConfig
from lib.machine.errors import say_once
from lib.machine.files import read_json, written_whole
from lib.machine.folders import copies_folder

SPLIT_FILE = "split.json"
SPLITS = ("train", "val", "test")


def load_split(folder: str | Path, count: int, config: DataConfig) -> dict[str, list[int]]:
    """The stored train/val/test indices of a data set; a seeded split is drawn and stored on first use.

    Where the folder may only be read, the split is kept in the folder of its copies.
    """
    elsewhere = copies_folder(folder)
    if (split := stored_split(folder, count)) is not None:
        return split
    with suppress(ValueError):  # one of an earlier state of the data
        if (split := stored_split(elsewhere, count)) is not None:
            return split
    split = _drawn(count, config)
    try:
        write_split(folder, split)
    except OSError as error:
        say_once(f"{folder} cannot be written to ({error}): its split is kept in {elsewhere}")
        write_split(elsewhere, split)
    return split


def stored_split(folder: str | Path, count: int) -> dict[str, list[int]] | None:
    """The split in a folder, None without one; ValueError where it does not divide `count` images."""
    path = Path(folder) / SPLIT_FILE
    if not path.is_file():
        return None
    if not _divides(split := read_json(path), count):
        what = f"the {count} images of this folder into {SPLITS}"
        raise ValueError(f"{path} does not divide {what}: delete it to draw a new one")
    return {name: split.get(name, []) for name in SPLITS}


def _divides(split: Any, count: int) -> bool:
    """Whether this is a dict of lists that hold each image's number once."""
    if not isinstance(split, dict) or not all(isinstance(split.get(name, []), list) for name in SPLITS):
        return False
    indices = [i for name in SPLITS for i in split.get(name, ())]
    return all(type(i) is int for i in indices) and sorted(indices) == list(range(count))


def _drawn(count: int, config: DataConfig) -> dict[str, list[int]]:
    order = list(range(count))
    random.Random(config.seed).shuffle(order)
    fractions = config.val_fraction, config.test_fraction
    val, test = (max(round(count * fraction), fraction > 0 and count > 2) for fraction in fractions)  # of a few, one
    return {"train": sorted(order[val + test :]), "val": sorted(order[:val]), "test": sorted(order[val : val + test])}


def write_split(folder: str | Path, indices: Mapping[str, Sequence[int]]) -> None:
    """Store the indices of each split beside the four files."""
    with written_whole(Path(folder) / SPLIT_FILE) as part:
        part.write_text(json.dumps({name: list(indices.get(name, ())) for name in SPLITS}))
