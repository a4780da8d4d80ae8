"""The four course files -> a dataset -> batches on the device (§2).

    B  images in a batch    N  images in a data set    M  masks in a data set    G  objects in an image
    H x W  300 x 400, the frame of the files; boxes are xyxy in its pixels, pixel i covering [i, i + 1)

The files are the course's own: images (N, 3, H, W) and masks (M, H, W) as uint8 HDF5, labels and boxes as object
arrays with one entry an image. Targets follow torchvision's detection convention: `boxes`, `labels`, `masks`,
`image_id`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.boxes import flip_boxes, scale_boxes
from lib.config import NUM_CLASSES, Config
from lib.safe_npy import load_object_array
from lib.split import SPLIT_FILE, load_split

FRAME = IMAGE_HEIGHT, IMAGE_WIDTH = 300, 400
FILES = {
    "images": "hw3_mycocodata_img_comp_zlib.h5",
    "masks": "hw3_mycocodata_mask_comp_zlib.h5",
    "labels": "hw3_mycocodata_labels_comp_zlib.npy",
    "boxes": "hw3_mycocodata_bboxes_comp_zlib.npy",
}
_PROBED_MASKS = 16  # masks that are compared with their boxes when a data set is opened


class CourseDataset(torch.utils.data.Dataset):
    """A folder with the four course files, read lazily, as (image, target) pairs.

    An item is a uint8 image (3, H, W) and a dict of `boxes` (G, 4) float32, `labels` (G,) int64, `image_id` and, unless
    `with_masks` is false, `masks` (G, H, W) uint8 of 0 and 1. The files are checked against each other once, here.

    Raises FileNotFoundError for a missing file and ValueError for files that do not belong together.
    """

    def __init__(self, folder: str | Path, split: str | None = None, config: Config | None = None, with_masks=True):
        self.folder, self.with_masks = Path(folder), with_masks
        self._handles: dict[str, h5py.Dataset] = {}
        self._process = os.getpid()
        for name in FILES.values():
            if not (self.folder / name).is_file():
                raise FileNotFoundError(
                    f"{name} is missing: it is looked for in {self.folder.resolve()}; put the course's file there, "
                    f"or write built-in scenes with `python -m lib.synthetic --out {folder} --images 1000 --seed 0`"
                )
        labels, boxes = (load_object_array(self.folder / FILES[kind]) for kind in ("labels", "boxes"))
        if any(v.size % 4 for v in boxes):
            raise ValueError(f"{self.folder / FILES['boxes']} has not four numbers a box: is it the label file?")
        self.labels = [np.asarray(v, np.int64).reshape(-1) for v in labels]
        self.boxes = [np.asarray(v, np.float32).reshape(-1, 4) for v in boxes]
        self._first_mask = np.cumsum([0, *map(len, self.labels)])  # masks are stored in the order of the labels
        self._verify()
        if split is None:
            self.indices = list(range(len(self.labels)))
        else:
            self.indices = load_split(self.folder, len(self.labels), config or Config())[split]

    def __len__(self) -> int:
        return len(self.indices)

    def __str__(self) -> str:
        return str(self.folder)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        return torch.from_numpy(self._file("images")[self.indices[i]]), self.target(i)

    def target(self, i: int) -> dict:
        """An item's target alone: its image is not read."""
        n = self.indices[i]
        target = {
            "boxes": torch.from_numpy(self.boxes[n]),
            "labels": torch.from_numpy(self.labels[n]),
            "image_id": n,
        }
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
        """The four files describe the same images: counts, shapes, label values, boxes, and masks probed against
        boxes.
        """
        images, masks, where = self._file("images"), self._file("masks"), self.folder
        count, objects = len(self.labels), int(self._first_mask[-1])
        for kind, data, shape in (("images", images, (count, 3)), ("masks", masks, (objects,))):
            expected = (*shape, IMAGE_HEIGHT, IMAGE_WIDTH)
            if data.shape != expected or data.dtype != np.uint8:
                raise ValueError(
                    f"{where / FILES[kind]} holds {data.dtype} {data.shape}; the label file asks for uint8 {expected}: "
                    "are the four files of the same set?"
                )
        if len(self.boxes) != count:
            raise ValueError(f"{where / FILES['boxes']} has {len(self.boxes)} images, the label file {count}")
        for n, (labels, boxes) in enumerate(zip(self.labels, self.boxes, strict=True)):
            _verify_image(where, n, labels, boxes)
        flat_boxes = np.concatenate([np.zeros((0, 4), np.float32), *self.boxes])
        for m in np.unique(np.linspace(0, objects - 1, min(objects, _PROBED_MASKS), dtype=int)):
            if not _mask_fits_box(masks[m], flat_boxes[m]):
                image = int(np.searchsorted(self._first_mask, m, side="right")) - 1
                raise ValueError(
                    f"{where / FILES['masks']}: mask {m} does not lie in its box {flat_boxes[m].tolist()} of image "
                    f"{image}; masks must be stored in the order of the labels"
                )


def _verify_image(folder: Path, n: int, labels: np.ndarray, boxes: np.ndarray) -> None:
    if len(labels) != len(boxes):
        raise ValueError(f"{folder / FILES['boxes']}: image {n} has {len(boxes)} boxes but {len(labels)} labels")
    if len(labels) and not (labels.min() >= 1 and labels.max() <= NUM_CLASSES):
        raise ValueError(
            f"{folder / FILES['labels']}: image {n} has labels {labels.tolist()}; they go from 1 to {NUM_CLASSES}"
        )
    inside = (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (IMAGE_WIDTH, IMAGE_HEIGHT)).all()
    if not (inside and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise ValueError(
            f"{folder / FILES['boxes']}: image {n} has boxes {boxes.tolist()}; "
            "they are x1 < x2, y1 < y2 inside 400 x 300 pixels"
        )


def _mask_fits_box(mask: np.ndarray, box: np.ndarray) -> bool:
    """At least half of the mask lies in its box (one pixel of grace: annotated boxes are rarely pixel-exact)."""
    ys, xs = np.nonzero(mask)
    inside = (xs >= box[0] - 1) & (xs <= box[2] + 1) & (ys >= box[1] - 1) & (ys <= box[3] + 1)
    return len(xs) == 0 or bool(inside.mean() >= 0.5)


class CourseWriter:
    """Streams the four course files to a folder; they appear under their names only when the block ends well.

    with CourseWriter(folder) as writer:
        writer.add(image, labels, boxes, masks)   # (3, H, W) uint8, (G,), (G, 4) xyxy, (G, H, W)
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.labels: list[np.ndarray] = []
        self.boxes: list[np.ndarray] = []

    def __enter__(self) -> "CourseWriter":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._h5 = {kind: h5py.File(self._partial(kind), "w") for kind in ("images", "masks")}
        for kind, shape in (("images", (3, IMAGE_HEIGHT, IMAGE_WIDTH)), ("masks", (IMAGE_HEIGHT, IMAGE_WIDTH))):
            self._h5[kind].create_dataset(
                "data",
                (0, *shape),
                "uint8",
                maxshape=(None, *shape),
                chunks=(1, *shape),
                compression="gzip",
                compression_opts=1,
            )
        return self

    def add(self, image: np.ndarray, labels: Sequence[int], boxes: np.ndarray, masks: np.ndarray) -> None:
        for kind, rows in (("images", image[None]), ("masks", masks)):
            data = self._h5[kind]["data"]
            data.resize(len(data) + len(rows), axis=0)
            data[len(data) - len(rows) :] = rows
        self.labels.append(np.asarray(labels, np.int64))
        self.boxes.append(np.asarray(boxes, np.float32).reshape(-1, 4))

    def __exit__(self, kind, error, trace) -> None:
        for file in self._h5.values():
            file.close()
        if error is None:
            for kind, arrays in (("labels", self.labels), ("boxes", self.boxes)):
                column = np.empty(len(arrays), object)
                column[:] = arrays
                with open(self._partial(kind), "wb") as file:
                    np.save(file, column, allow_pickle=True)
            (self.folder / SPLIT_FILE).unlink(missing_ok=True)  # a split belongs to the files that it divides
            for kind in FILES:
                self._partial(kind).replace(self.folder / FILES[kind])
        for kind in FILES:
            self._partial(kind).unlink(missing_ok=True)

    def _partial(self, kind: str) -> Path:
        return self.folder / f"{FILES[kind]}.partial"


# ------------------------------------------------------------------------------------------------ batches on the device


def collate(samples: Sequence[tuple[Tensor, dict]]) -> tuple[Tensor, list[dict]]:
    """(image, target) pairs -> images (B, 3, H, W) uint8 and the list of targets."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


def content_size(height: int, width: int, config: Config) -> tuple[int, int]:
    """(height, width) of an image once rescaled, aspect ratio kept, to fit the config's content: 300 x 400 -> 800 x
    1066.
    """
    scale = min(config.image_height / height, config.image_width / width)
    if (height, width) == (IMAGE_HEIGHT, IMAGE_WIDTH):
        return config.image_height, config.image_width
    return max(1, round(height * scale)), max(1, round(width * scale))


def preprocess_images(images: Tensor, config: Config) -> Tensor:
    """uint8 (B, 3, H, W) of one size -> normalised, rescaled and zero padded float (B, 3, Hp, Wp), on the images'
    device (§2).
    """
    height, width = content_size(*images.shape[-2:], config)
    x = F.interpolate(images.float() / 255, (height, width), mode="bilinear", antialias=True)
    padded_height, padded_width = config.padded_size
    return F.pad(normalised(x, config), (0, padded_width - width, 0, padded_height - height))


def normalised(x: Tensor, config: Config) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> each channel less its mean, over its standard deviation; channels last in memory."""
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (config.image_mean, config.image_std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def preprocess_targets(targets: list[dict], size: tuple[int, int], config: Config) -> list[dict]:
    """Boxes and masks of images of `size` (height, width) -> the network's frame, padding included (§2)."""
    height, width = content_size(*size, config)
    scaled = []
    for target in targets:
        new = {**target, "boxes": scale_boxes(target["boxes"], width / size[1], height / size[0])}
        if "masks" in target:
            new["masks"] = _resize_masks(target["masks"], (height, width), config.padded_size)
        scaled.append(new)
    return scaled


def _resize_masks(masks: Tensor, content: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """(G, H, W) uint8 -> (G, Hp, Wp) uint8: bilinear, 1 where at least half is covered, zero padding."""
    if len(masks) == 0:
        return masks.new_zeros((0, *padded))
    resized = F.interpolate(masks[:, None].float(), content, mode="bilinear", antialias=True)[:, 0] >= 0.5
    return F.pad(resized, (0, padded[1] - content[1], 0, padded[0] - content[0])).to(torch.uint8)


def flip_horizontally(images: Tensor, targets: list[dict], which: Tensor) -> tuple[Tensor, list[dict]]:
    """Mirror the images (B, 3, H, W) where `which` (B,) is true, with their boxes and masks; before any rescaling."""
    flipped = torch.where(which[:, None, None, None], images.flip(-1), images)
    mirrored = flip_targets(targets, images.shape[-1])
    return flipped, [m if flip else t for m, t, flip in zip(mirrored, targets, which.tolist(), strict=True)]


def flip_targets(targets: list[dict], width: int) -> list[dict]:
    """The targets of the mirrored images, whose frame is `width` pixels wide."""
    flipped = [{**target, "boxes": flip_boxes(target["boxes"], width)} for target in targets]
    return [{**t, "masks": t["masks"].flip(-1)} if "masks" in t else t for t in flipped]


def prepare(
    images: Tensor, targets: list[dict], config: Config, augment: bool = False
) -> tuple[Tensor, list[dict], tuple[int, int]]:
    """A collated batch on the device -> the network's input (B, 3, Hp, Wp), targets in its frame, the content
    (height, width).

    With `augment`, images are mirrored at random with the config's flip probability.
    """
    if augment and config.flip_probability > 0:
        which = torch.rand(len(images), device=images.device) < config.flip_probability
        images, targets = flip_horizontally(images, targets, which)
    size = tuple(images.shape[-2:])
    return preprocess_images(images, config), preprocess_targets(targets, size, config), content_size(*size, config)
