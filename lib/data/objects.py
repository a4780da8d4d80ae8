"""Labels and boxes of all images: loaded, and checked with every problem named.

I  images of a data set    G  objects of an image    boxes are xyxy in pixels of the frame, 300 x 400
Sentences begin with a file's name; whoever gives them to a user adds the folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.data.safe_npy import load_object_array
from lib.preprocess import IMAGE_HEIGHT, IMAGE_WIDTH

FILES = {
    "images": "hw3_mycocodata_img_comp_zlib.h5",
    "masks": "hw3_mycocodata_mask_comp_zlib.h5",
    "labels": "hw3_mycocodata_labels_comp_zlib.npy",
    "boxes": "hw3_mycocodata_bboxes_comp_zlib.npy",
}
FRAME_BOX = np.array([IMAGE_WIDTH, IMAGE_HEIGHT] * 2)
HAIR = 1.0  # pixels: a box that reaches less far outside is cut off at the border

WRONG_LABEL, UNEQUAL = "labels that are no class", "images with unequal numbers of boxes and labels"
NO_NUMBER, OUTSIDE, NO_AREA = "boxes that are not numbers", "boxes outside the image", "boxes without an area"
NO_BOX = (NO_NUMBER, OUTSIDE, NO_AREA)
CLIPPED, EMPTY, ASTRAY = "boxes a hair outside, cut off", "empty masks", "masks outside their boxes"


class Problem(NamedTuple):
    """Something wrong: its kind, the image that has it (None: the whole set), and the sentence that says so."""

    kind: str
    image: int | None
    text: str

    def __str__(self) -> str:
        return self.text


def load_labels(path: Path) -> list[np.ndarray]:
    """The labels of each image (G,), as they are stored."""
    return [v.ravel() for v in load_object_array(path)]


def load_boxes(path: Path) -> list[np.ndarray]:
    """The boxes of each image (G, 4), as they are stored; ValueError where they are no boxes."""
    boxes = load_object_array(path)
    if any(v.size % 4 for v in boxes):
        raise ValueError(f"{path} has not four numbers a box: is it the label file?")
    return [v.reshape(-1, 4) for v in boxes]


def find_problems(labels: Sequence, boxes: Sequence, classes: int) -> list[Problem]:
    """What is wrong with labels and boxes as they are stored, image by image; those of CLIPPED can be read."""
    problems = []
    file, images, values = FILES["labels"], *_joined(labels, ())
    wrong = ~((values >= 1) & (values <= classes) & (values == np.floor(values)))
    for m in np.flatnonzero(wrong):
        what = f"image {images[m]} has the label {values[m]:g}; labels are whole numbers from 1 to {classes}"
        problems.append(Problem(WRONG_LABEL, int(images[m]), f"{file}: {what}"))
    file, images, values = FILES["boxes"], *_joined(boxes, (4,))
    clipped = np.clip(values, 0, FRAME_BOX)
    beyond = np.abs(values - clipped).max(axis=1, initial=0)
    for kind, which, what in (
        (NO_NUMBER, ~np.isfinite(values).all(axis=1), "which is not finite"),
        (OUTSIDE, beyond > HAIR, f"which is not inside {IMAGE_WIDTH} x {IMAGE_HEIGHT} pixels"),
        (
            NO_AREA,
            (beyond <= HAIR) & (clipped[:, 2:] <= clipped[:, :2]).any(axis=1),
            "where x1 < x2, y1 < y2 must hold",
        ),
        (CLIPPED, (beyond > 0) & (beyond <= HAIR), "a hair outside the image; it is cut off at the border"),
    ):
        for m in np.flatnonzero(which):
            box = [round(float(v), 2) for v in values[m]]
            problems.append(Problem(kind, int(images[m]), f"{file}: image {images[m]} has the box {box}, {what}"))
    for n, (some, others) in enumerate(zip(labels, boxes, strict=False)):
        if len(some) != len(others):
            problems.append(Problem(UNEQUAL, n, f"{file}: image {n} has {len(others)} boxes but {len(some)} labels"))
    return problems


def _joined(entries: Sequence[np.ndarray], shape: tuple) -> tuple[np.ndarray, np.ndarray]:
    """For all objects, one after the other, their images and their values."""
    values = np.concatenate([np.empty((0, *shape)), *entries])
    return np.repeat(np.arange(len(entries)), [len(v) for v in entries]), values


def in_frame(boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The boxes of each image (G, 4) as float32, cut off at the border."""
    ends = np.cumsum([len(v) for v in boxes])
    return np.split(np.clip(np.concatenate([np.empty((0, 4)), *boxes]), 0, FRAME_BOX).astype(np.float32), ends)[:-1]


def mask_problem(mask: np.ndarray, box: np.ndarray, n: int) -> Problem | None:
    """Where a mask (H, W) of image n has no pixel, or more than half of it outside its box (4,).

    One pixel of grace: annotated boxes are rarely pixel-exact.
    """
    x1, y1, x2, y2 = (int(v) for v in (*np.maximum(np.floor(box[:2]) - 1, 0), *np.ceil(box[2:]) + 1))
    file = FILES["masks"]
    pixels, inside = np.count_nonzero(mask), np.count_nonzero(mask[y1:y2, x1:x2])
    if not pixels:
        return Problem(EMPTY, n, f"{file}: image {n} has an empty mask for its box {box.tolist()}")
    if inside < pixels / 2:
        order = "masks and boxes must be stored in the order of the labels"
        return Problem(ASTRAY, n, f"{file}: image {n} has a mask that does not lie in its box {box.tolist()}; {order}")
    return None
