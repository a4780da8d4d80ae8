"""All that is wrong with a data set's files, at once, and a copy without it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from lib.data import objects
from lib.data.arrays import quick_array
from lib.data.classes import read_classes
from lib.data.masks import tight_box
from lib.data.objects import CLIPPED, FILES, NO_BOX, Problem
from lib.data.reader import check_shape, check_there
from lib.data.split import SPLIT_FILE, SPLITS, divides, write_split
from lib.data.writer import CourseWriter
from lib.machine.files import read_json
from lib.maskrcnn import COURSE_CLASSES

FILE, SPLIT, UNREADABLE = "files", "split", "images or masks that cannot be read"
MENDED = {CLIPPED, *NO_BOX}  # what a cleaned copy has right; all else takes its image out


class Checked:
    """A folder's files, as far as they can be read, and all `problems` found in them; `remarks` are no mistakes."""

    def __init__(self, folder: Path):
        self.folder, self.problems, self.remarks = folder, list[Problem](), list[str]()
        self.classes = self._try(FILE, read_classes, folder) or COURSE_CLASSES
        self.labels = self._try(FILE, self._load, "labels", objects.load_labels)
        self.boxes = self._try(FILE, self._load, "boxes", objects.load_boxes)
        self.arrays = {kind: self._try(FILE, self._load, kind, quick_array) for kind in ("images", "masks")}
        self.split = self._try(SPLIT, self._load_split)
        if self.labels is not None and self.boxes is not None:
            self.problems += objects.find_problems(self.labels, self.boxes, len(self.classes))
            self._compare_counts()
        self.whole = not any(problem.kind == FILE for problem in self.problems)
        if self.whole:
            bad = {problem.image for problem in self.problems if problem.kind in NO_BOX}
            self.boxes = [
                np.resize([0, 0, *objects.FRAME_BOX[:2]], b.shape) if n in bad else b
                for n, b in enumerate(objects.in_frame(self.boxes))
            ]
            for n in tqdm(range(len(self.labels)), "check", unit="image", leave=False):
                self.problems += self._try(UNREADABLE, self._image_problems, n, image=n) or []
            present = np.unique(np.concatenate([np.empty(0), *self.labels]))
            absent = [name for label, name in enumerate(self.classes, start=1) if label not in present]
            self.remarks += [f"no object is of the class {name}" for name in absent]

    def _try(self, kind: str, function: Callable, *arguments: Any, image: int | None = None) -> Any:
        """What the function returns; None, and a problem noted, where it fails."""
        try:
            return function(*arguments)
        except (ValueError, OSError) as error:
            self.problems.append(Problem(kind, image, str(error)))
            return None

    def _load(self, kind: str, load: Callable) -> Any:
        check_there(self.folder, kind)
        return load(self.folder / FILES[kind])

    def _load_split(self) -> dict | None:
        path = self.folder / SPLIT_FILE
        if self.labels is None or not path.is_file():
            return None
        if not divides(split := read_json(path), len(self.labels)):
            raise ValueError(f"{path} does not divide the {len(self.labels)} images: delete it to draw a new one")
        self.remarks += [f"the {name} split has no images" for name in SPLITS if not split.get(name)]
        return split

    def _compare_counts(self) -> None:
        if len(self.labels) != len(self.boxes):
            what = f"{FILES['boxes']} has {len(self.boxes)} images, the label file {len(self.labels)}"
            self.problems.append(Problem(FILE, None, what))
        self.first_mask = np.cumsum([0, *map(len, self.labels)])
        for (kind, data), count in zip(self.arrays.items(), (len(self.labels), self.first_mask[-1]), strict=True):
            if data is not None:
                self._try(FILE, check_shape, self.folder / FILES[kind], data, kind, int(count))

    def image(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (3, H, W) and masks (G, H, W) of 0 and 1 of image n; ValueError where the files are damaged."""
        return (
            _entries(self.arrays["images"], n, n),
            (_entries(self.arrays["masks"], slice(*self.first_mask[n : n + 2]), n) != 0).view(np.uint8),
        )

    def _image_problems(self, n: int) -> list[Problem]:
        found = (objects.mask_problem(mask, box, n) for mask, box in zip(self.image(n)[1], self.boxes[n], strict=False))
        return [problem for problem in found if problem]

    def repair(self, out: Path) -> int:
        """Write the images to `out` without the problems -> how many are left out.

        Boxes are cut off at the border; where one of an image is none, they fit its masks tightly. An image with any
        other problem is left out whole, as an unlabelled object would be taught as background. ValueError where
        files are missing, unreadable, or not of one set.
        """
        if not self.whole:
            raise ValueError(f"{self.folder} cannot be repaired: first bring the four files that belong together")
        if taken := [path for name in FILES.values() if (path := out / name).exists()]:
            raise ValueError(f"{taken[0]} exists: choose another --repair, or move its four files away")
        kinds: list[set[str]] = [set() for _ in self.labels]
        for problem in self.problems:
            if problem.image is not None:
                kinds[problem.image].add(problem.kind)
        kept = [n for n, found in enumerate(kinds) if found <= MENDED]
        with CourseWriter(out, self.classes) as writer:
            for n in tqdm(kept, "repair", unit="image"):
                image, masks = self.image(n)
                boxes = [tight_box(mask) for mask in masks] if kinds[n] & set(NO_BOX) else self.boxes[n]
                writer.add(image, self.labels[n], np.array(boxes), masks)
        if self.split:
            new = {n: i for i, n in enumerate(kept)}
            write_split(out, {name: [new[n] for n in self.split.get(name, ()) if n in new] for name in SPLITS})
        return len(self.labels) - len(kept)


def _entries(data: h5py.Dataset, rows: int | slice, n: int) -> np.ndarray:
    try:
        return data[rows]
    except Exception as error:  # HDF5 raises almost anything on a damaged file
        raise ValueError(f"{data.file.filename}: image {n} cannot be read ({error})") from None
