"""Labels and boxes of all images: loaded, and checked with every problem named.

I  images of a data set    G  objects of an image    boxes are xyxy in pixels of the frame, 300 x 400
A problem's sentence begins with a file's name; whoever gives it to a user adds the folder.
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
SHAPES = {"images": (3, IMAGE_HEIGHT, IMAGE_WIDTH), "masks": (IMAGE_HEIGHT, IMAGE_WIDTH)}  # of one
FRAME_BOX = np.array([IMAGE_WIDTH, IMAGE_HEIGHT] * 2)
HAIR = 1.0  # pixels: a box that reaches less far outside is cut off at the border

FILE, WRONG_LABEL, UNEQUAL = "files", "labels that are no class", "images with unequal numbers of boxes and labels"
NO_NUMBER, OUTSIDE, NO_AREA = "boxes that are not numbers", "boxes outside the image", "boxes without an area"
NO_BOX = (NO_NUMBER, OUTSIDE, NO_AREA)
CLIPPED, EMPTY, ASTRAY = "boxes a hair outside, cut off", "empty masks", "masks outside their boxes"


class Problem(NamedTuple):
    """Something wrong: its kind, the image that has it (None: the whole set), and the sentence that says so."""

    kind: str
    image: int | None
    text: str


def data_file(folder: Path, kind: str) -> Path:
    """The path of one of the four files; FileNotFoundError where it is missing."""
    if (path := folder / FILES[kind]).is_file():
        return path
    missing = f"{path.name} is missing: it is looked for in {folder.resolve()}; put the course's file there"
    command = f"python -m lib scenes --out {folder} --images 1000 --seed 0"
    raise FileNotFoundError(f"{missing}, or write built-in scenes with `{command}`")


def load_labels(folder: Path) -> list[np.ndarray]:
    """The labels of each image (G,), as they are stored; ValueError or FileNotFoundError."""
    return [v.ravel() for v in load_object_array(data_file(folder, "labels"))]


def load_boxes(folder: Path) -> list[np.ndarray]:
    """The boxes of each image (G, 4), as they are stored; ValueError where they are no boxes, or FileNotFoundError."""
    boxes = load_object_array(path := data_file(folder, "boxes"))
    if any(v.size % 4 for v in boxes):
        raise ValueError(f"{path} has not four numbers a box: is it the label file?")
    return [v.reshape(-1, 4) for v in boxes]


def find_problems(labels: Sequence, boxes: Sequence, classes: int) -> list[Problem]:
    """What is wrong with labels and boxes as they are stored; those of CLIPPED can be read."""
    problems = []
    if len(labels) != len(boxes):
        text = f"{FILES['boxes']} has {len(boxes)} images, the label file {len(labels)}"
        problems.append(Problem(FILE, None, text))
    images, values = _joined(labels, ())
    wrong = ~((values >= 1) & (values <= classes) & (values == np.floor(values)))
    for m in np.flatnonzero(wrong):
        what = f"has the label {values[m]:g}; labels are whole numbers from 1 to {classes}"
        problems.append(_of_image(images[m], WRONG_LABEL, "labels", what))
    images, values = _joined(boxes, (4,))
    clipped = np.clip(values, 0, FRAME_BOX)
    beyond = np.abs(values - clipped).max(axis=1, initial=0)
    flat = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    for kind, which, what in (
        (NO_NUMBER, ~np.isfinite(values).all(axis=1), "which is not finite"),
        (OUTSIDE, beyond > HAIR, f"which is not inside {IMAGE_WIDTH} x {IMAGE_HEIGHT} pixels"),
        (NO_AREA, flat & (beyond <= HAIR), "where x1 < x2, y1 < y2 must hold"),
        (CLIPPED, (beyond > 0) & (beyond <= HAIR), "a hair outside the image; it is cut off at the border"),
    ):
        for m in np.flatnonzero(which):
            box = [round(float(v), 2) for v in values[m]]
            problems.append(_of_image(images[m], kind, "boxes", f"has the box {box}, {what}"))
    for n, (some, others) in enumerate(zip(labels, boxes, strict=False)):
        if len(some) != len(others):
            problems.append(_of_image(n, UNEQUAL, "boxes", f"has {len(others)} boxes but {len(some)} labels"))
    return problems


def _of_image(n: int, kind: str, file: str, what: str) -> Problem:
    return Problem(kind, int(n), f"{FILES[file]}: image {n} {what}")


def _joined(entries: Sequence[np.ndarray], shape: tuple) -> tuple[np.ndarray, np.ndarray]:
    """For all objects, one after the other, their images and their values."""
    values = np.concatenate([np.empty((0, *shape)), *entries])
    return np.repeat(np.arange(len(entries)), [len(v) for v in entries]), values


def in_frame(boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The boxes of each image (G, 4) as float32, cut off at the border."""
    clipped = np.clip(_joined(boxes, (4,))[1], 0, FRAME_BOX).astype(np.float32)
    return np.split(clipped, np.cumsum([len(v) for v in boxes]))[:-1]


def mask_problems(masks: np.ndarray, boxes: np.ndarray, n: int) -> list[Problem]:
    """The masks (G, H, W) of image n without a pixel, or with more than half of them outside their boxes (G, 4).

    One pixel of grace: annotated boxes are rarely pixel-exact.
    """
    problems = []
    for mask, box in zip(masks, boxes, strict=False):
        x1, y1, x2, y2 = (int(v) for v in (*np.maximum(np.floor(box[:2]) - 1, 0), *np.ceil(box[2:]) + 1))
        pixels, inside = np.count_nonzero(mask), np.count_nonzero(mask[y1:y2, x1:x2])
        if not pixels:
            problems.append(_of_image(n, EMPTY, "masks", f"has an empty mask for its box {box.tolist()}"))
        elif inside < pixels / 2:
            what = f"has a mask that does not lie in its box {box.tolist()}"
            order = "masks and boxes must be stored in the order of the labels"
            problems.append(_of_image(n, ASTRAY, "masks", f"{what}; {order}"))
    return problems
