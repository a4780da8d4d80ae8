"""COCO -> the four course files: any set in COCO's instances format, cut to classes asked for and the course's frame.

    h x w  the photograph as annotated    H x W  300 x 400, an image of the course files    G  objects of an image

Photographs are resized without keeping their aspect ratio: the course files have no room for padding, and most are
4:3, as the frame is. Image and masks go through one antialiased filter; a mask pixel is set where at least half of it
is covered. Boxes are tight around the resized masks. Crowd regions are left out.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np
from PIL import Image
from tqdm import tqdm

from lib.data import coco_json
from lib.data.coco_json import Photograph, Report
from lib.data.masks import tight_box
from lib.data.objects import FILES
from lib.data.pictures import picture_sizes, read_picture
from lib.data.segmentations import decode
from lib.data.split import write_split
from lib.data.writer import CourseWriter
from lib.machine.errors import listed
from lib.preprocess import IMAGE_HEIGHT, IMAGE_WIDTH

Converted = tuple[Counter, str | None, tuple | None]  # objects left out by reason; why the image is, or the example


class Pictures:
    """The files of a folder, by the names that exporting tools write; what lies outside it is not read."""

    def __init__(self, folder: Path):
        self.folder, self.root = folder, folder.resolve()
        self._asked: dict[str, str] = {}  # by the path of a file that was found, the path that was asked for

    def find(self, photo: Photograph) -> Path:
        """The photograph's file, by its path or, where no such path exists, by its bare name in the folder.

        ValueError where there is none, where it lies outside of the folder, or is taken for another path too.
        """
        plain = unquote(photo.file_name).replace("\\", "/")
        names = (photo.file_name, photo.file_name.replace("\\", "/"), plain, PurePosixPath(plain).name)
        path = next((self.folder / name for name in names if os.path.isfile(self.folder / name)), None)
        if path is None:
            raise ValueError(f"{self.folder / names[1]} is missing: is --images its folder?")
        if not (real := path.resolve()).is_relative_to(self.root):
            raise ValueError(f"it leads out of {self.folder}, to {real}: copy the file into that folder")
        asked = os.path.normpath(self.folder / plain)
        if (other := self._asked.setdefault(os.path.normpath(path), asked)) != asked:
            raise ValueError(f"{path} is taken for {other} already: is --images the folder of both?")
        return path

    def check(self, photo: Photograph) -> None:
        """ValueError where the photograph is missing or, by its header, unreadable or not of the size declared."""
        sizes = picture_sizes(self.find(photo))
        if photo.size not in sizes:
            (width, height), (declared_width, declared_height) = sizes[0], photo.size
            have = f"it has {width} x {height} pixels, in the JSON {declared_width} x {declared_height}"
            raise ValueError(f"{have}: use the image as it was annotated")


def convert_image(
    pictures: Pictures, max_objects: int | None, min_size: float, keep_empty: bool, photo: Photograph
) -> Converted:
    """Objects left out; then why the image is, or image (3, H, W) uint8, labels (G,), boxes (G, 4), masks (G, H, W).

    ValueError where the picture cannot be read.
    """
    kept, lost = objects_in_frame(photo, min_size)
    if len(kept) > (max_objects or len(kept)) or not (kept or keep_empty):
        return lost, coco_json.MANY if kept else coco_json.NO_OBJECT, None
    picture = read_picture(pictures.find(photo), photo.size)
    image = resize(Image.fromarray(picture.transpose(1, 2, 0))).transpose(2, 0, 1)
    labels, boxes, masks = zip(*kept, strict=True) if kept else ((), (), ())
    return lost, None, (image, labels, np.array(boxes), np.array(masks).reshape(-1, IMAGE_HEIGHT, IMAGE_WIDTH))


def objects_in_frame(photo: Photograph, min_size: float) -> tuple[list[tuple[int, np.ndarray, np.ndarray]], Counter]:
    """The label, box (4,) and mask (H, W) of each object; those left out are counted by reason."""
    kept: list[tuple[int, np.ndarray, np.ndarray]] = []
    lost: Counter[str] = Counter()
    for segmentation, label in photo.objects:
        mask = resize(Image.fromarray(decode(segmentation, *photo.size[::-1]) * np.uint8(255))) >= 128  # of 255: half
        if not mask.any():
            lost[coco_json.NO_AREA] += 1
        elif np.prod((box := tight_box(mask))[2:] - box[:2]) < min_size**2:
            lost[coco_json.SMALL] += 1
        else:
            kept.append((label, box, mask))
    return kept, lost


def resize(image: Image.Image) -> np.ndarray:
    """The pixels of an image in the frame, (H, W) or (H, W, 3): bilinear, antialiased when it shrinks."""
    return np.asarray(image.resize((IMAGE_WIDTH, IMAGE_HEIGHT), Image.Resampling.BILINEAR))


def convert(images: Path, annotations: Path, out: Path, max_objects: int | None = None, min_size: float = 0,
            limit: int | None = None, split: str | None = None, classes: str | None = None, keep_empty=False,
            strict=False, skip_broken=False) -> None:  # fmt: skip
    """Write the folder `images` and its JSON `annotations`, in its order, as the course files in `out`.

    Images with more than `max_objects` are left out whole, as unlabelled objects would be taught as background. Objects
    whose box has a sqrt(w h) below `min_size` pixels of the frame are left out, yet stay visible. `limit` is a number
    of images written, `split` the split that the whole set is of; without it `lib.data.split` draws one. `classes` is
    what `class_labels` takes; `keep_empty` writes images without objects too. A table at the end says what became of
    all that was read; `strict` makes any loss an error, `skip_broken` goes on without what cannot be used. Raises
    FileNotFoundError or ValueError, naming file and items, for unusable input or where `out` holds a set already;
    nothing is written then.
    """
    if any(count is not None and count < 1 for count in (max_objects, limit)):
        raise ValueError("--max-objects and --limit must be at least 1: leave them out for no limit")
    check_untaken(out)
    report, pictures = Report(), Pictures(images)
    chosen, photographs = coco_json.load_photographs(annotations, classes, report)
    photographs = list(_usable(photographs, pictures, keep_empty, limit, report))
    _check_losses(annotations, report, strict, skip_broken)
    with CourseWriter(out, chosen) as writer:
        convert_one = partial(convert_image, pictures, max_objects, min_size, keep_empty)
        write_examples(writer, photographs, in_threads(convert_one, photographs), limit, report)
        _check_losses(annotations, report, strict, skip_broken)
        if not writer.labels:
            raise ValueError(f"{annotations}: no image is left; {report.advice()}")
    if split:
        write_split(out, {split: range(len(writer.labels))})
    objects = sum(map(len, writer.labels))
    print(report.table(len(writer.labels), objects))
    print(f"Wrote {len(writer.labels)} images with {objects} objects of {len(chosen)} class(es) to {out}.")


def check_untaken(out: Path) -> None:
    """ValueError where a set is in the folder already."""
    if taken := [path for name in FILES.values() if (path := out / name).exists()]:
        raise ValueError(f"{taken[0]} exists: choose another --out, or move its four files away")


def _usable(
    photographs: list[Photograph], pictures: Pictures, keep_empty: bool, limit: int | None, report: Report
) -> Iterator[Photograph]:
    """Those that have objects, or may be without; the pictures of the first `limit` are looked for and at."""
    found = 0
    for photo in tqdm(photographs, "look at the pictures", unit="photograph", leave=False):
        if not photo.objects and (photo.spoilt or not keep_empty):
            report.leave_out(photo, coco_json.NO_OBJECT)
            continue
        try:
            if limit is None or found < limit:  # better missed now than in an hour
                pictures.check(photo)
        except ValueError as error:
            report.leave_out_broken(photo, error)
        else:
            found += 1
            yield photo


def _check_losses(annotations: Path, report: Report, strict: bool, skip_broken: bool) -> None:
    """ValueError for items that cannot be used, and if `strict` for all others left out that the user did not limit."""
    if report.broken and not skip_broken:
        fix = "Correct them, or go on without them by --skip-broken"
        raise ValueError(f"{annotations}: {len(report.broken)} unusable: {listed(report.broken)}. {fix}")
    if strict and (report.images | report.objects).keys() - {coco_json.BEYOND, coco_json.WITH_IMAGE}:
        raise ValueError(f"{annotations}: with --strict nothing may be left out; {report.advice()}")


def write_examples(
    writer: CourseWriter, photographs: list[Photograph], converted: Iterator, limit: int | None, report: Report
) -> None:
    """Write the first `limit` of those that are converted, and count what becomes of all."""
    for photo in tqdm(photographs, "convert", unit="photograph"):
        if len(writer.labels) == limit:
            report.leave_out(photo, coco_json.BEYOND)
            continue
        try:
            lost, reason, example = next(converted).result()
        except ValueError as error:
            report.leave_out_broken(photo, error)
            continue
        report.objects += lost
        if example:
            writer.add(*example)
        else:
            report.images[reason] += 1
            report.objects[coco_json.WITH_IMAGE] += len(photo.objects) - lost.total()


def in_threads(function: Callable, items: Iterable, threads: int = 2) -> Generator:
    """`map` to futures in order, in threads that stay at most three results each ahead of the consumer."""
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        pending = deque(pool.submit(function, item) for item in islice(remaining, 3 * threads))
        try:
            while pending:
                yield pending.popleft()
                pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
        finally:
            pool.shutdown(cancel_futures=True)
