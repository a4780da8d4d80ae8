"""COCO -> the four course files: any set in COCO's instances format, cut to the course's classes and frame.

    h x w  the photograph as stored    H x W  300 x 400, an image of the course files    G  objects of an image

Photographs are resized without keeping their aspect ratio: the course files have no room for padding, and most are
4:3, as the frame is. Image and masks go through one antialiased filter; a mask pixel is set where at least half of it
is covered. Boxes are tight around the resized masks. EXIF orientation is ignored: COCO annotates the pixels as stored.
Crowd regions are left out.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as rle_tools
from tqdm import tqdm

from lib.data.masks import tight_box
from lib.data.reader import FILES
from lib.data.split import write_split
from lib.data.writer import CourseWriter
from lib.maskrcnn import COURSE_CLASSES
from lib.preprocess import IMAGE_HEIGHT, IMAGE_WIDTH

CATEGORIES = {
    "vehicle": ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    "person": ("person",),
    "animal": ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
}
LABELS = {name: COURSE_CLASSES.index(kind) + 1 for kind, names in CATEGORIES.items() for name in names}
FIELDS = {  # of COCO's JSON, those that are used here
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "segmentation"),
    "categories": ("id", "name"),
}


class Photograph(NamedTuple):
    """An image of a COCO set and its objects of the course's classes; the dicts are items of the JSON."""

    record: dict
    objects: list[tuple[dict, int]]  # annotation and label


def load_photographs(path: Path) -> list[Photograph]:
    """The images of a COCO instances JSON that hold objects of the course's classes, in the JSON's order.

    Raises FileNotFoundError, or ValueError naming the item, for a file that is no such JSON or lacks what it refers to.
    """
    coco = _load_json(path)
    labels = {c["id"]: LABELS[c["name"]] for c in coco["categories"] if c["name"] in LABELS}
    if not labels:
        raise ValueError(f"{path} has none of the categories {', '.join(LABELS)}: rename its own to these")
    photographs = {record["id"]: Photograph(record, []) for record in coco["images"]}
    known = {"image_id": photographs.keys(), "category_id": {c["id"] for c in coco["categories"]}}
    for annotation in coco["annotations"]:
        for key in (key for key, ids in known.items() if annotation[key] not in ids):
            what = f"annotation {annotation['id']} has the unknown {key} {annotation[key]}"
            raise ValueError(f"{path}: {what}; list that id in the JSON or remove the annotation")
        if annotation["category_id"] in labels and not annotation.get("iscrowd"):
            photographs[annotation["image_id"]].objects.append((annotation, labels[annotation["category_id"]]))
    return [photograph for photograph in photographs.values() if photograph.objects]


def _load_json(path: Path) -> dict:
    """The parsed file, after a check that every item has the fields that are used here."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give a COCO JSON such as instances_val2017.json")
    try:
        coco = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): download or export it again") from None
    for kind, fields in FIELDS.items():
        if not isinstance(coco, dict) or not isinstance(coco.get(kind), list):
            raise ValueError(f"{path} has no list '{kind}': give COCO's instances JSON, not captions")
        for n, item in enumerate(coco[kind]):
            if absent := [field for field in fields if field not in item]:
                raise ValueError(f"{path}: item {n} of '{kind}' has no '{absent[0]}': export it again")
    return coco


def convert_image(photo: Photograph, folder: Path, max_objects: int | None, min_size: float) -> tuple | None:
    """Image (3, H, W) uint8, labels (G,), boxes (G, 4) and masks (G, H, W); None for an image that is left out."""
    kept = []
    for annotation, label in photo.objects:
        mask = resize(Image.fromarray(decode_mask(annotation, photo.record) * np.uint8(255))) >= 128  # of 255: half
        box = tight_box(mask) if mask.any() else np.zeros(4)
        if np.prod(box[2:] - box[:2]) >= max(1, min_size**2):
            kept.append((label, box, mask))
    if 0 < len(kept) <= (max_objects or len(kept)):
        return read_image(photo.record, folder), *map(np.stack, zip(*kept, strict=True))
    return None


def read_image(record: dict, folder: Path) -> np.ndarray:
    """The record's image in the frame, (3, H, W) uint8 RGB; ValueError where it is unreadable or of another size."""
    path = folder / record["file_name"]
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{path} is not a readable image ({error}): download it again") from None
    if image.size != (record["width"], record["height"]):
        sizes = f"{image.width} x {image.height} pixels, in the JSON {record['width']} x {record['height']}"
        raise ValueError(f"{path} (image {record['id']}) has {sizes}: use the image as it was annotated")
    return resize(image).transpose(2, 0, 1)


def decode_mask(annotation: dict, record: dict) -> np.ndarray:
    """The mask (h, w) uint8 of 0 and 1 of an annotation; ValueError where it does not describe its image's pixels."""
    try:
        rle = _encode(annotation["segmentation"], record["height"], record["width"])
        mask = rle_tools.decode(rle)
        if mask.sum() != rle_tools.area(rle):  # what the run lengths do not reach is left undefined
            raise ValueError("its run lengths do not fill the image")
    except Exception as error:  # pycocotools raises bare Exception
        where = f"annotation {annotation['id']} of image {record['id']} ({record['file_name']})"
        raise ValueError(f"{where} has no usable segmentation ({error}): correct or remove it") from None
    return mask


def _encode(segmentation: list | dict, height: int, width: int) -> dict:
    """COCO's segmentation, polygons or an RLE, compressed or not, as one compressed RLE."""
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its size is {segmentation['size']}, that of the image {[height, width]}")
        compressed = isinstance(segmentation["counts"], str)
        return segmentation if compressed else rle_tools.frPyObjects(segmentation, height, width)
    points = [np.asarray(polygon, float).reshape(-1, 2) for polygon in segmentation]
    if not points or not (np.abs(np.concatenate(points)) <= 2 * max(height, width)).all():
        raise ValueError("it holds no polygon of the image")  # pycocotools would walk all the way there
    areas = [polygon for polygon in segmentation if len(polygon) >= 6] or [[0] * 6]  # a point has no area
    return rle_tools.merge(rle_tools.frPyObjects(areas, height, width))


def resize(image: Image.Image) -> np.ndarray:
    """The pixels of an image in the frame, (H, W) or (H, W, 3): bilinear, antialiased when it shrinks."""
    return np.asarray(image.resize((IMAGE_WIDTH, IMAGE_HEIGHT), Image.Resampling.BILINEAR))


def convert(images: Path, annotations: Path, out: Path, max_objects: int | None = None, min_size: float = 0,
            limit: int | None = None, split: str | None = None) -> None:  # fmt: skip
    """Write the folder `images` and its JSON `annotations`, in its order, as the course files in `out`.

    Images with more than `max_objects` are left out whole, as unlabelled objects would be taught as background. Objects
    whose box has a sqrt(w h) below `min_size` pixels of the frame are left out, yet stay visible. `limit` is a number
    of images written, `split` the split that the whole set is of; without it `lib.data.split` draws one. Raises
    FileNotFoundError or ValueError, naming file and item, for unusable input or where `out` holds a set already;
    nothing is written then.
    """
    if any(count is not None and count < 1 for count in (max_objects, limit)):
        raise ValueError("--max-objects and --limit must be at least 1: leave them out for no limit")
    if taken := [path for name in FILES.values() if (path := out / name).exists()]:
        raise ValueError(f"{taken[0]} exists: choose another --out, or move its four files away")
    photographs = load_photographs(annotations)
    for record, *_ in photographs[:limit]:  # better missed now than in an hour
        if not (path := images / record["file_name"]).is_file():
            raise FileNotFoundError(f"{path} (image {record['id']}) is missing: is --images its folder?")
    progress = tqdm(photographs, "convert", unit="photograph")
    converted = _in_threads(lambda photo: convert_image(photo, images, max_objects, min_size), progress)
    with CourseWriter(out) as writer:
        for example in islice(filter(None, converted), limit):
            writer.add(*example)
        if not writer.labels:
            raise ValueError(f"{annotations}: no image is left; raise --max-objects or lower --min-size")
    if split:
        write_split(out, {split: range(len(writer.labels))})
    print(f"Wrote {len(writer.labels)} images with {sum(map(len, writer.labels))} objects to {out}.")


def _in_threads(function: Callable, items: Iterable) -> Iterator:
    """`map` in order, in two threads that stay at most six results ahead of the consumer."""
    remaining = iter(items)
    with ThreadPoolExecutor(2) as pool:
        pending = deque(pool.submit(function, item) for item in islice(remaining, 6))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
