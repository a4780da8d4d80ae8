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
from lib.data.batches import Examples
from lib.data.classes import read_classes
from lib.data.safe_npy import load_object_array
from lib.data.split import load_split
from lib.preprocess import IMAGE_HEIGHT, IMAGE_WIDTH

FILES = {
    "images": "hw3_mycocodata_img_comp_zlib.h5",
    "masks": "hw3_mycocodata_mask_comp_zlib.h5",
    "labels": "hw3_mycocodata_labels_comp_zlib.npy",
    "boxes": "hw3_mycocodata_bboxes_comp_zlib.npy",
}
_PROBED_MASKS = 16  # masks that are compared with their boxes when a data set is opened


class CourseDataset(Examples):
    """A folder with the four course files, read lazily, as (image, target) pairs.

    An item is a uint8 image (3, H, W) and a dict of `boxes` (G, 4) float32, `labels` (G,) int64, `image_id` and, unless
    `with_masks` is false, `masks` (G, H, W) uint8 of 0 and 1; `classes` names the labels 1, 2, ... The files are
    checked against each other once, here.

    Raises FileNotFoundError for a missing file and ValueError for files that do not belong together.
    """

    renewed = False

    def __init__(self, folder: str | Path, split: str | None = None, config: DataConfig | None = None, with_masks=True):
        self.folder, self.with_masks = Path(folder), with_masks
        self._handles: dict[str, h5py.Dataset] = {}
        self._process = os.getpid()
        for name in FILES.values():
            if not (self.folder / name).is_file():
                missing = f"{name} is missing: it is looked for in {self.folder.resolve()}; put the course's file there"
                command = f"python -m lib scenes --out {folder} --images 1000 --seed 0"
                raise FileNotFoundError(f"{missing}, or write built-in scenes with `{command}`")
        self.classes = read_classes(self.folder)
        labels, boxes = (load_object_array(self.folder / FILES[kind]) for kind in ("labels", "boxes"))
        if any(v.size % 4 for v in boxes):
            raise ValueError(f"{self.folder / FILES['boxes']} has not four numbers a box: is it the label file?")
        self.labels = [np.asarray(v, np.int64).reshape(-1) for v in labels]
        self.boxes = [np.asarray(v, np.float32).reshape(-1, 4) for v in boxes]
        self._first_mask = np.cumsum([0, *map(len, self.labels)])  # masks are stored in the order of the labels
        self._verify()
        self.indices = list(range(len(self.labels)))
        if split is not None:
            self.indices = load_split(self.folder, len(self.labels), config or DataConfig())[split]

    def __str__(self) -> str:
        return str(self.folder)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        return torch.from_numpy(self._file("images")[self.indices[i]]), self.target(i)

    def target(self, i: int) -> dict:
        """An item's target alone: its image is not read."""
        n = self.indices[i]
        target = {"boxes": torch.from_numpy(self.boxes[n]), "labels": torch.from_numpy(self.labels[n]), "image_id": n}
        if self.with_masks:
            masks = self._file("masks")[self._first_mask[n] : self._first_mask[n + 1]]
            target["masks"] = torch.from_numpy((masks > 0).astype(np.uint8))
        return target

    def _file(self, kind: str) -> h5py.Dataset:
        """The open HDF5 data set; a forked loader process opens its own."""
        if self._process != os.getpid():
            self._handles, self._process = {}, os.getpid()
        if kind not in self._handles:
            path = self.folder / FILES[kind]
            try:
                self._handles[kind] = h5py.File(path, "r")["data"]
            except (OSError, KeyError) as error:
                raise ValueError(f"{path} is not an HDF5 file with a data set named 'data': {error}") from None
        return self._handles[kind]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handles": {}}  # open files do not travel to another process

    def _verify(self) -> None:
        """The four files describe the same images: counts, shapes, labels, boxes; masks, some of them, lie in boxes."""
        images, masks, where = self._file("images"), self._file("masks"), self.folder
        count, objects = len(self.labels), int(self._first_mask[-1])
        for kind, data, shape in (("images", images, (count, 3)), ("masks", masks, (objects,))):
            expected = (*shape, IMAGE_HEIGHT, IMAGE_WIDTH)
            if data.shape != expected or data.dtype != np.uint8:
                what = f"{where / FILES[kind]} holds {data.dtype} {data.shape}, by the labels it is uint8 {expected}"
                raise ValueError(f"{what}: are the four files of the same set?")
        if len(self.boxes) != count:
            raise ValueError(f"{where / FILES['boxes']} has {len(self.boxes)} images, the label file {count}")
        for n, (labels, boxes) in enumerate(zip(self.labels, self.boxes, strict=True)):
            _verify_image(where, n, labels, boxes, len(self.classes))
        flat_boxes = np.concatenate([np.zeros((0, 4), np.float32), *self.boxes])
        for m in np.unique(np.linspace(0, objects - 1, min(objects, _PROBED_MASKS), dtype=int)):
            if not _mask_fits_box(masks[m], flat_boxes[m]):
                image = int(np.searchsorted(self._first_mask, m, side="right")) - 1
                what = f"mask {m} does not lie in its box {flat_boxes[m].tolist()} of image {image}"
                raise ValueError(f"{where / FILES['masks']}: {what}; masks must be stored in the order of the labels")


def _verify_image(folder: Path, n: int, labels: np.ndarray, boxes: np.ndarray, classes: int) -> None:
    if len(labels) != len(boxes):
        raise ValueError(f"{folder / FILES['boxes']}: image {n} has {len(boxes)} boxes but {len(labels)} labels")
    if len(labels) and not (labels.min() >= 1 and labels.max() <= classes):
        what = f"image {n} has labels {labels.tolist()}; they go from 1 to {classes}"
        raise ValueError(f"{folder / FILES['labels']}: {what}")
    inside = (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (IMAGE_WIDTH, IMAGE_HEIGHT)).all()
    if not (inside and (boxes[:, 2:] > boxes[:, :2]).all()):
        what = f"image {n} has boxes {boxes.tolist()}; they are x1 < x2, y1 < y2 inside 400 x 300 pixels"
        raise ValueError(f"{folder / FILES['boxes']}: {what}")


def _mask_fits_box(mask: np.ndarray, box: np.ndarray) -> bool:
    """At least half of the mask lies in its box (one pixel of grace: annotated boxes are rarely pixel-exact)."""
    ys, xs = np.nonzero(mask)
    inside = (xs >= box[0] - 1) & (xs <= box[2] + 1) & (ys >= box[1] - 1) & (ys <= box[3] + 1)
    return len(xs) == 0 or bool(inside.mean() >= 0.5)
