"""The four course files -> a data set of images and targets (§2).

    I  images of a data set    J  objects of a data set    G  objects of an image    H x W  300 x 400, an image
    boxes are xyxy in pixels, pixel i covering [i, i + 1)

The files are the course's own: images (I, 3, H, W) and masks (J, H, W) as uint8 HDF5, labels and boxes as object
arrays with one entry an image. Targets follow torchvision's detection convention: `boxes`, `labels`, `masks`,
`image_id`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from lib.config import DataConfig
from lib.data import objects
from lib.data.arrays import open_array, quick_array
from lib.data.batches import Examples
from lib.data.classes import read_classes
from lib.data.objects import CLIPPED, EMPTY, FILES, SHAPES, Problem, data_file
from lib.data.split import SPLIT_FILE, load_split
from lib.machine.errors import listed, say_once

_PROBED_MASKS = 4000  # masks that are compared with their boxes when a data set is opened: about a second


class Pixels:
    """The images and masks of a folder, whose images have `counts` objects; opened when they are first read."""

    def __init__(self, folder: Path, counts: Sequence[int]):
        self.folder = folder
        self.first_mask = np.cumsum([0, *counts])  # masks are stored in the order of the labels
        self._files: dict[tuple[int, str], h5py.Dataset] = {}  # by process and kind

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}  # open files do not travel to another process

    def image(self, n: int) -> np.ndarray:
        """Image n (3, H, W) uint8; ValueError where it is damaged."""
        return self._read("images", n)

    def masks(self, n: int) -> np.ndarray:
        """The masks (G, H, W) of image n: 1 where what is stored is not zero; ValueError where they are damaged."""
        return (self._read("masks", slice(*self.first_mask[n : n + 2])) != 0).view(np.uint8)

    def _read(self, kind: str, rows: int | slice) -> np.ndarray:
        """Entries of a file. A damaged copy goes, and the file itself is read."""
        data = self.open(kind)
        try:
            return data[rows]
        except Exception as error:  # HDF5 raises almost anything on a damaged file
            path, own = Path(data.file.filename), self.folder / FILES[kind]
            if path == own:
                raise ValueError(f"{path} is damaged at {rows} ({error}): copy or download it again") from None
        say_once(f"{path} is damaged: it is deleted, and {own} read instead until this data set is opened again")
        path.unlink(missing_ok=True)
        self._files[os.getpid(), kind] = open_array(own)
        return self._read(kind, rows)

    def open(self, kind: str) -> h5py.Dataset:
        """The open HDF5 data set; a forked loader process opens its own."""
        if (key := (os.getpid(), kind)) not in self._files:
            self._files[key] = quick_array(data_file(self.folder, kind))
        return self._files[key]

    def check(self, kind: str) -> None:
        """ValueError unless images are uint8, masks whole numbers or bool, and as many as there should be."""
        data = open_array(path := data_file(self.folder, kind))
        count = self.first_mask[-1] if kind == "masks" else len(self.first_mask) - 1
        shape, fits = (int(count), *SHAPES[kind]), data.dtype == "u1" or (kind == "masks" and data.dtype.kind in "uib")
        if data.shape != shape or not fits:
            wanted = f"by the labels it is uint8 {shape}" + ", 0 outside of an object" * (kind == "masks")
            raise ValueError(f"{path} holds {data.dtype} {data.shape}, {wanted}: are the four files of the same set?")


class CourseDataset(Examples):
    """A folder with the four course files, read lazily, as (image, target) pairs.

    An item is a uint8 image (3, H, W) and a dict of `boxes` (G, 4) float32, `labels` (G,) int64, `image_id` and, unless
    `with_masks` is false, `masks` (G, H, W) uint8 of 0 and 1; `classes` names the labels 1, 2, ... The files are
    checked against each other once, here.

    Raises FileNotFoundError for a missing file, and ValueError for files that do not belong together or a split without
    images, unless it `may_be_empty`.
    """

    renewed = False

    def __init__(
        self, folder: str | Path, split: str | None = None, config: DataConfig | None = None, with_masks=True,
        may_be_empty=False,
    ):  # fmt: skip
        self.folder, self.with_masks = Path(folder), with_masks
        self.classes = read_classes(self.folder)
        labels, boxes = objects.load_labels(self.folder), objects.load_boxes(self.folder)
        self.pixels = Pixels(self.folder, [len(v) for v in labels])
        self._verify(labels, boxes)
        self.labels, self.boxes = [v.astype(np.int64) for v in labels], objects.in_frame(boxes)
        self._verify_masks()
        self.indices = list(range(len(self.labels)))
        if split is not None:
            self.indices = load_split(self.folder, len(self.labels), config or DataConfig())[split]
            if not (self.indices or may_be_empty):
                where = f"{self.folder / SPLIT_FILE} has no images in its {split} split, it is empty"
                raise ValueError(f"{where}: delete that file to draw a new split, or name a data set that has one")

    def __str__(self) -> str:
        return str(self.folder)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        return torch.from_numpy(self.pixels.image(self.indices[i])), self.target(i)

    def target(self, i: int) -> dict:
        """An item's target alone: its image is not read."""
        n = self.indices[i]
        target = {"boxes": torch.from_numpy(self.boxes[n]), "labels": torch.from_numpy(self.labels[n]), "image_id": n}
        if self.with_masks:
            target["masks"] = torch.from_numpy(self.pixels.masks(n))
        return target

    def _verify(self, labels: list[np.ndarray], boxes: list[np.ndarray]) -> None:
        """The four files describe the same images: shapes and counts, labels and boxes as stored."""
        for kind in SHAPES:
            self.pixels.check(kind)
        problems = objects.find_problems(labels, boxes, len(self.classes))
        self._report(problems, all(problem.kind == CLIPPED for problem in problems), f"{sum(map(len, boxes))} boxes")
        for kind in SHAPES:
            self.pixels.open(kind)  # copied now, if at all

    def _verify_masks(self) -> None:
        """Masks lie in their boxes: all of a set of the course's size, of a larger one some, evenly spread."""
        first = self.pixels.first_mask
        images = np.flatnonzero(np.diff(first))[:: max(1, int(first[-1]) // _PROBED_MASKS)].tolist()
        problems = [p for n in images for p in objects.mask_problems(self.pixels.masks(n), self.boxes[n], n)]
        count = sum(len(self.boxes[n]) for n in images)
        some_empty = len(problems) < count and all(problem.kind == EMPTY for problem in problems)
        self._report(problems, some_empty or not count, f"{count} masks")

    def _report(self, problems: list[Problem], harmless: bool, of: str) -> None:
        """Say what was found where it is harmless, else raise ValueError."""
        found = listed([problem.text for problem in problems])
        command = f"`python -m lib check {self.folder}` lists all"
        if not harmless:
            raise ValueError(f"{self.folder}: {found}. {command}, its --repair writes a cleaned copy")
        if problems:
            say_once(f"{self.folder}: {len(problems)} of {of}: {found}; {command}")
