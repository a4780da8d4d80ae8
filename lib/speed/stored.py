"""The frozen backbone's maps of all images, computed once for the three stages that start from them.

    I  images of a split    E  entries of its file    F  channels    Sy x Sx  a level's grid    T  cells of all grids
    entry i is image i, entry I + i the same mirrored; without mirroring in training E is I, else 2 I

A split is one memory-mapped file (E, T F) in half precision: of each entry the maps P2 ... P6 one after the other,
cell by cell, the channels of a cell side by side. It lies in `features/` beside the data's four files, with a checksum
of each entry and a key of all that it depends on: the backbone's weights, the frame, the precision, size and time of
the data files, and the split. Where the key differs or a file is missing or damaged, all are computed again, each image
in the same way whatever is computed along with it, so that the same command gives the same weights.
"""

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm

from lib.anchors import pyramid_grids
from lib.config import Config, TrainingConfig
from lib.data.batches import Examples, collate, flip_targets
from lib.data.reader import FILES, CourseDataset
from lib.machine.files import make_folder, one_at_a_time, written_whole
from lib.machine.folders import DRIVE, LEFT_FREE, copies_folder
from lib.preprocess import FRAME, preprocess_images, preprocess_targets

_BATCH = 16  # images computed at once


def is_mirrored(config: TrainingConfig, epoch: int, image: int) -> bool:
    """Whether an image is mirrored in an epoch: at random, and the same whoever asks."""
    return np.random.default_rng([config.seed, epoch, image]).random() < config.flip_probability


def stored_maps(maps: Sequence[Tensor]) -> list[Tensor]:
    """A batch of stored maps as the features that the backbone would give."""
    return [m.float() for m in maps]


class StoredFeatures(Examples):
    """One split's entries with their targets in the network frame, mirrored or not at random; `collate` them."""

    def __init__(self, path: Path, data: CourseDataset, config: Config, channels: int, mirrored: bool):
        self.data, self.config, self.mirrored, self.indices = data, config, mirrored, data.indices
        self.shapes = [(rows, columns, channels) for rows, columns in pyramid_grids(config.image.padded_size)]
        self.entries, _ = _open(path, len(data) * (1 + mirrored))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        flip = self.mirrored and is_mirrored(self.config.training, self.epoch, self.indices[i])
        targets = flip_targets([self.data.target(i)], FRAME[1]) if flip else [self.data.target(i)]
        maps = torch.from_numpy(self.entries[i + flip * len(self)].copy())
        return maps, preprocess_targets(targets, FRAME, self.config.image)[0]

    def collate(self, samples: Sequence[tuple[Tensor, dict]]) -> tuple[list[Tensor], list[dict]]:
        """Entries -> the maps P2 ... P6, each (B, F, Sy, Sx) in half precision, and the list of targets."""
        entries, targets = zip(*samples, strict=True)
        parts = torch.stack(entries).split([int(np.prod(shape)) for shape in self.shapes], dim=1)
        maps = [part.unflatten(1, shape).permute(0, 3, 1, 2) for part, shape in zip(parts, self.shapes, strict=True)]
        return maps, list(targets)


def stored_features(
    backbone: Any, datasets: Mapping[str, CourseDataset], config: Config, home: Path, accelerator: Accelerator
) -> dict[str, StoredFeatures]:
    """The stored maps of the `train` and `val` split, computed now unless they are there.

    To be called by all processes: each computes its share. `home` is the data folder. Raises ValueError where the disk
    has too little room.
    """
    folder, key = features_folder(home), features_key(backbone, datasets, config, accelerator.mixed_precision)
    mirrored = {"train": config.training.flip_probability > 0, "val": False}
    entries = {split: (1 + mirrored[split]) * len(data) for split, data in datasets.items()}
    cells = sum(map(math.prod, pyramid_grids(config.image.padded_size)))
    sizes = {split: 2 * count * cells * backbone.out_channels for split, count in entries.items()}
    made = partial(StoredFeatures, config=config, channels=backbone.out_channels)
    what = "computes the frozen backbone's maps"
    main, alone = accelerator.is_main_process, accelerator.num_processes == 1
    with one_at_a_time(folder.parent, what, wait=alone) if main else nullcontext():
        accelerator.wait_for_everyone()
        if not all(gather_object([_fits(folder, key, sizes, entries, accelerator)])):
            _make_room(folder, sizes, entries, accelerator)
            for split, data in datasets.items():
                _compute(backbone, data, range(entries[split]), folder / split, config, accelerator)
            accelerator.wait_for_everyone()
            if main:
                with written_whole(folder / "key") as part:
                    part.write_text(key)
        accelerator.wait_for_everyone()
        return {split: made(folder / split, data, mirrored=mirrored[split]) for split, data in datasets.items()}


def features_folder(data: str | Path) -> Path:
    """Beside the data set's files; where these lie in Google Drive or may only be read, with the copies of them."""
    data = Path(data).resolve()
    elsewhere = data.is_relative_to(DRIVE) or not os.access(data, os.W_OK)
    return (copies_folder(data) if elsewhere else data) / "features"


def features_key(backbone: nn.Module, datasets: Mapping[str, CourseDataset], config: Config, precision: str) -> str:
    """All that the stored maps depend on, as text."""
    digest = hashlib.sha256()
    for name, value in backbone.state_dict().items():
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    files = {split: [(data.folder / name).stat() for name in FILES.values()] for split, data in datasets.items()}
    key = {
        "weights": digest.hexdigest(),
        "frame": (config.image.height, config.image.width, config.training.flip_probability > 0),
        "precision": precision,
        "files": {split: [(s.st_size, s.st_mtime_ns) for s in stats] for split, stats in files.items()},
        "images": {split: data.indices for split, data in datasets.items()},
    }
    return json.dumps(key)


def _fits(
    folder: Path, key: str, sizes: Mapping[str, int], entries: Mapping[str, int], accelerator: Accelerator
) -> bool:
    """Whether the folder has whole, undamaged files with this key; each process reads its share of the entries."""
    if not (folder / "key").is_file() or (folder / "key").read_text(errors="replace") != key:
        return False
    wanted = {**sizes} | {f"{split}.sums": 4 * count for split, count in entries.items()}
    if not all((folder / name).is_file() and (folder / name).stat().st_size == n for name, n in wanted.items()):
        return False
    for split, count in entries.items():
        stored, sums = _open(folder / split, count)
        for entry in range(accelerator.process_index, count, accelerator.num_processes):
            if zlib.crc32(stored[entry]) != sums[entry]:
                print(f"features: {folder / split} is damaged; all are computed again")
                return False
    return True


def _open(path: Path, count: int, mode: Any = "r") -> tuple[np.ndarray, np.ndarray]:
    """A split's `count` entries and, beside them, the checksum of each."""
    if not count:
        return np.empty((0, 0)), np.empty(0)
    sums = np.memmap(path.with_name(f"{path.name}.sums"), np.uint32, mode)
    return np.memmap(path, np.float16, mode).reshape(count, -1), sums


def _make_room(folder: Path, sizes: Mapping[str, int], entries: Mapping[str, int], accelerator: Accelerator) -> None:
    """Say what the stored maps will take, `sizes` bytes for each split, and lay their files out at full size."""
    if accelerator.is_main_process:
        remove(folder)
        make_folder(folder)
        needed, free = sum(sizes.values()), shutil.disk_usage(folder).free - LEFT_FREE
        if needed > free:
            maps = f"the frozen backbone's maps take {needed / 1e9:.1f} GB in {folder}"
            room = f"{max(free, 0) / 1e9:.1f} GB of the disk may be used"
            raise ValueError(f"{maps}, and {room}: make room, or set training.store_features=False")
        seen = f"{sum(entries.values())} images (mirrored ones counted) go through the frozen backbone once"
        print(f"features: {seen}; {needed / 1e9:.2f} GB in {folder}")
        for split, size in sizes.items():
            for name, length in ((split, size), (f"{split}.sums", 4 * entries[split])):
                with open(folder / name, "wb") as file:
                    file.truncate(length)
    accelerator.wait_for_everyone()


@torch.no_grad()
def _compute(
    backbone: Any, data: CourseDataset, entries: range, path: Path, config: Config, accelerator: Accelerator
) -> None:
    """Write this process's share of a split's entries."""
    device = accelerator.device
    backbone = backbone.eval().to(device, memory_format=torch.channels_last)
    share = entries[accelerator.process_index :: accelerator.num_processes]
    stored, sums = _open(path, len(entries), "r+")
    starts = range(0, len(share), _BATCH)
    for start in tqdm(starts, f"features: {path.name}", leave=False, disable=not accelerator.is_main_process):
        chosen = list(share[start : start + _BATCH])
        images, _ = collate([data[e % len(data)] for e in chosen])
        flip = torch.tensor([e >= len(data) for e in chosen])[:, None, None, None]
        images = torch.where(flip, images.flip(-1), images)
        images = images[torch.arange(_BATCH) % len(chosen)].to(device)  # rounding depends on the size of a batch
        with accelerator.autocast():
            maps = backbone(preprocess_images(images, config.image)).values()
        values = torch.cat([m.permute(0, 2, 3, 1).flatten(1) for m in maps], 1)[: len(chosen)].half().cpu().numpy()
        stored[chosen], sums[chosen] = values, [zlib.crc32(value) for value in values]


def remove(folder: Path) -> int:
    """Delete the stored maps of a folder -> the bytes that they took."""
    freed = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return freed
