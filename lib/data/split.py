"""Which images train, validate and test: drawn once from a seed and stored beside the four files."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib.config import DataConfig
from lib.machine.files import written_whole

SPLIT_FILE = "split.json"
SPLITS = ("train", "val", "test")


def load_split(folder: str | Path, count: int, config: DataConfig) -> dict[str, list[int]]:
    """The stored train/val/test indices of a data set; a seeded split is drawn and stored on first use."""
    path = Path(folder) / SPLIT_FILE
    if path.is_file():
        split = json.loads(path.read_text())
        if sorted(i for name in SPLITS for i in split.get(name, ())) != list(range(count)):
            what = f"the {count} images of this folder into {SPLITS}"
            raise ValueError(f"{path} does not divide {what}: delete it to draw a new one")
        return split
    order = list(range(count))
    random.Random(config.seed).shuffle(order)
    val, test = round(count * config.val_fraction), round(count * config.test_fraction)
    split = {"train": sorted(order[val + test :]), "val": sorted(order[:val]), "test": sorted(order[val : val + test])}
    write_split(folder, split)
    return split


def write_split(folder: str | Path, indices: Mapping[str, Sequence[int]]) -> None:
    """Store the indices of each split beside the four files."""
    with written_whole(Path(folder) / SPLIT_FILE) as part:
        part.write_text(json.dumps({name: list(indices.get(name, ())) for name in SPLITS}))
