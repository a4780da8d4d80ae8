"""The four course files -> a data set of images and targets (§2).

    I  images of a data set    J  objects of a data set    G  objects of an image    H x W  300 x 400, an image
    boxes are xyxy in pixels, pixel i covering [i, i + 1)

The files are the course's own: images (I, 3, H, W) and masks (J, H, W) as uint8 HDF5, labels and boxes as object
arrays with one entry an image. Targets follow torchvision's detection convention: `boxes`, `labels`, `masks`,
`image_id`.
"""

import os
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
from lib.data.objects import CLIPPED, EMPTY, FILES, Problem
from lib.data.split import SPLIT_FILE, load_split
from lib.machine.errors import listed, say_once
from lib.preprocess import IMAGE_HEIGHT, IMAGE_WIDTH

_PROBED_MASKS = 4000  # masks that are compared with their boxes when a data set is opened: about a second


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
        self._handles: dict[str, h5py.Dataset] = {}
        self._process = os.getpid()
        for kind in FILES:
            check_there(self.folder, kind)
        self.classes = read_classes(self.folder)
        labels = objects.load_labels(self.folder / FILES["labels"])
        boxes = objects.load_boxes(self.folder / FILES["boxes"])
        self._first_mask = np.cumsum([0, *map(len, labels)])  # masks are stored in the order of the labels
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
        return torch.from_numpy(self._read("images", self.indices[i])), self.target(i)

    def target(self, i: int) -> dict:
        """An item's target alone: its image is not read."""
        n = self.indices[i]
        target = {"boxes": torch.from_numpy(self.boxes[n]), "labels": torch.from_numpy(self.labels[n]), "image_id": n}
        if self.with_masks:
            target["masks"] = torch.from_numpy(self._masks(n))
        return target

    def _masks(self, n: int) -> np.ndarray:
        """The masks (G, H, W) of image n: 1 where what is stored is not zero."""
        return (self._read("masks", slice(*self._first_mask[n : n + 2])) != 0).view(np.uint8)

    def _read(self, kind: str, rows: int | slice) -> np.ndarray:
        """Entries of a file; ValueError where they are damaged. A damaged copy goes, and the file itself is read."""
        data = self._file(kind)
        try:
            return data[rows]
        except Exception as error:  # HDF5 raises almost anything on a damaged file
            path, own = Path(data.file.filename), self.folder / FILES[kind]
            if path == own:
                raise ValueError(f"{path} is damaged at {rows} ({error}): copy or download it again") from None
        say_once(f"{path} is damaged: it is deleted, and {own} read instead until this data set is opened again")
        path.unlink(missing_ok=True)
        self._handles[kind] = open_array(own)
        return self._read(kind, rows)

    def _file(self, kind: str) -> h5py.Dataset:
        """The open HDF5 data set; a forked loader process opens its own."""
        if self._process != os.getpid():
            self._handles, self._process = {}, os.getpid()
        if kind not in self._handles:
            self._handles[kind] = quick_array(self.folder / FILES[kind])
        return self._handles[kind]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handles": {}}  # open files do not travel to another process

    def _verify(self, labels: list[np.ndarray], boxes: list[np.ndarray]) -> None:
        """The four files describe the same images: counts, labels and boxes as stored, shapes."""
        if len(boxes) != len(labels):
            raise ValueError(f"{self.folder / FILES['boxes']} has {len(boxes)} images, the label file {len(labels)}")
        for kind, count in (("images", len(labels)), ("masks", int(self._first_mask[-1]))):
            check_shape(self.folder / FILES[kind], open_array(self.folder / FILES[kind]), kind, count)
        problems = objects.find_problems(labels, boxes, len(self.classes))
        clipped = [problem for problem in problems if problem.kind == CLIPPED]
        self._refuse([problem.text for problem in problems if problem.kind != CLIPPED], clipped)
        for kind in ("images", "masks"):
            self._file(kind)  # copied now, if at all
        if clipped:
            say_once(f"{self.folder}: {len(clipped)} box(es): {listed([problem.text for problem in clipped])}")

    def _verify_masks(self) -> None:
        """Masks lie in their boxes: all of a set of the course's size, of a larger one some, evenly spread."""
        images = np.flatnonzero(np.diff(self._first_mask))
        some = max(1, int(self._first_mask[-1]) // _PROBED_MASKS)
        pairs: list[Problem | None] = []
        for n in images[::some].tolist():
            pairs += [
                objects.mask_problem(mask, box, n) for mask, box in zip(self._masks(n), self.boxes[n], strict=True)
            ]
        problems = [problem for problem in pairs if problem]
        empty = [problem.text for problem in problems if problem.kind == EMPTY]
        self._refuse(
            [problem.text for problem in problems if problem.kind != EMPTY] or empty * (len(empty) == len(pairs))
        )
        if empty:
            say_once(
                f"{len(empty)} of {len(pairs)} masks: {listed(empty)}; `python -m lib check {self.folder}` lists all"
            )

    def _refuse(self, problems: list[str], also=()) -> None:
        if problems:
            command = f"`python -m lib check {self.folder}` lists all, its --repair writes a cleaned copy"
            raise ValueError(f"{self.folder}: {listed([*problems, *map(str, also)])}. {command}")


def check_there(folder: Path, kind: str) -> None:
    """FileNotFoundError where one of the four files is missing."""
    if not (folder / FILES[kind]).is_file():
        missing = f"{FILES[kind]} is missing: it is looked for in {folder.resolve()}; put the course's file there"
        command = f"python -m lib scenes --out {folder} --images 1000 --seed 0"
        raise FileNotFoundError(f"{missing}, or write built-in scenes with `{command}`")


def check_shape(path: Path, data: h5py.Dataset, kind: str, count: int) -> None:
    """ValueError unless images are uint8 (I, 3, H, W), masks whole numbers or bool (J, H, W), as many as `count`."""
    shape = (count, *(3,) * (kind == "images"), IMAGE_HEIGHT, IMAGE_WIDTH)
    if data.shape != shape or (data.dtype != np.uint8 if kind == "images" else data.dtype.kind not in "uib"):
        wanted = f"by the labels it is uint8 {shape}" + ", 0 outside of an object" * (kind == "masks")
        raise ValueError(f"{path} holds {data.dtype} {data.shape}, {wanted}: are the four files of the same set?")
