"""All that is wrong with a data set's files, at once, and a copy without it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.data import objects
from lib.data.classes import read_classes
from lib.data.masks import tight_box
from lib.data.objects import CLIPPED, FILE, FILES, FRAME_BOX, NO_BOX, SHAPES, Problem
from lib.data.reader import Pixels
from lib.data.split import stored_split, write_split
from lib.data.writer import CourseWriter
from lib.maskrcnn import COURSE_CLASSES

SPLIT, UNREADABLE = "split", "images or masks that cannot be read"
MENDED = {CLIPPED, *NO_BOX}  # what a cleaned copy has right; all else takes its image out


class Checked:
    """A folder's files, as far as they can be read, and all `problems` found in them; `remarks` are no mistakes."""

    def __init__(self, folder: Path):
        self.folder, self.problems, self.remarks = folder, list[Problem](), list[str]()
        self.classes = self._try(FILE, read_classes, folder) or COURSE_CLASSES
        self.labels = self._try(FILE, objects.load_labels, folder)
        self.boxes = self._try(FILE, objects.load_boxes, folder)
        self.pixels = Pixels(folder, [len(v) for v in self.labels or ()])
        for kind in SHAPES:
            self._try(FILE, self.pixels.open if self.labels is None else self.pixels.check, kind)
        self.split = self._try(SPLIT, stored_split, folder, len(self.labels)) if self.labels is not None else None
        if self.split is not None:
            self.remarks += [f"the {name} split has no images" for name, images in self.split.items() if not images]
        if self.labels is not None and self.boxes is not None:
            self.problems += objects.find_problems(self.labels, self.boxes, len(self.classes))
        self.whole = not any(problem.kind == FILE for problem in self.problems)
        if self.whole:
            self._check_objects()

    def _try(self, kind: str, function: Callable, *arguments: Any, image: int | None = None) -> Any:
        """What the function returns; None, and a problem noted, where it fails."""
        try:
            return function(*arguments)
        except (ValueError, OSError) as error:
            text = str(error) if image is None else f"image {image} cannot be read: {error}"
            self.problems.append(Problem(kind, image, text))
            return None

    def _check_objects(self) -> None:
        """The masks of all images, and the classes."""
        self.boxes = objects.in_frame(self.boxes)
        for n in {problem.image for problem in self.problems if problem.kind in NO_BOX}:
            self.boxes[n] = np.tile([0, 0, *FRAME_BOX[:2]], (len(self.boxes[n]), 1))  # its masks tell later
        for n in tqdm(range(len(self.labels)), "check", unit="image", leave=False):
            self.problems += self._try(UNREADABLE, self._image_problems, n, image=n) or []
        present = np.unique(np.concatenate([np.empty(0), *self.labels]))
        absent = [name for label, name in enumerate(self.classes, start=1) if label not in present]
        self.remarks += [f"no object is of the class {name}" for name in absent]

    def _image_problems(self, n: int) -> list[Problem]:
        self.pixels.image(n)
        return objects.mask_problems(self.pixels.masks(n), self.boxes[n], n)

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
        spoilt = {problem.image for problem in self.problems if problem.kind not in MENDED}
        fitted = {problem.image for problem in self.problems if problem.kind in NO_BOX}
        kept = [n for n in range(len(self.labels)) if n not in spoilt]
        with CourseWriter(out, self.classes) as writer:
            for n in tqdm(kept, "repair", unit="image"):
                masks = self.pixels.masks(n)
                boxes = np.array([tight_box(mask) for mask in masks]) if n in fitted else self.boxes[n]
                writer.add(self.pixels.image(n), self.labels[n], boxes, masks)
        if self.split:
            new = {n: i for i, n in enumerate(kept)}
            write_split(out, {name: [new[n] for n in images if n in new] for name, images in self.split.items()})
        return len(self.labels) - len(kept)
