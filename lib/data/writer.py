"""The four course files, written image by image."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np

from lib.data.classes import write_classes
from lib.data.objects import FILES, SHAPES
from lib.data.split import SPLIT_FILE
from lib.machine.files import written_whole
from lib.maskrcnn import COURSE_CLASSES


class CourseWriter:
    """Streams the four course files to a folder; they appear under their names only when the block ends well.

    with CourseWriter(folder) as writer:
        writer.add(image, labels, boxes, masks)   # (3, H, W) uint8, (G,), (G, 4) xyxy, (G, H, W)
    """

    def __init__(self, folder: str | Path, classes: Sequence[str] = COURSE_CLASSES):
        self.folder, self.classes = Path(folder), classes
        self.labels: list[np.ndarray] = []
        self.boxes: list[np.ndarray] = []

    def __enter__(self) -> "CourseWriter":
        self._stack = ExitStack()
        places = {kind: written_whole(self.folder / name) for kind, name in FILES.items()}
        self._parts = {kind: self._stack.enter_context(place) for kind, place in places.items()}
        self._h5 = {kind: h5py.File(self._parts[kind], "w") for kind in SHAPES}
        for kind, shape in SHAPES.items():
            growing = {"maxshape": (None, *shape), "chunks": (1, *shape), "compression": "gzip", "compression_opts": 1}
            self._h5[kind].create_dataset("data", (0, *shape), "uint8", **growing)
        return self

    def add(self, image: np.ndarray, labels: Sequence[int] | np.ndarray, boxes: np.ndarray, masks: np.ndarray) -> None:
        for kind, rows in (("images", image[None]), ("masks", masks)):
            data = self._h5[kind]["data"]
            data.resize(len(data) + len(rows), axis=0)
            data[len(data) - len(rows) :] = rows
        self.labels.append(np.asarray(labels, np.int64))
        self.boxes.append(np.asarray(boxes, np.float32).reshape(-1, 4))

    def __exit__(self, *error) -> bool | None:
        for file in self._h5.values():
            file.close()
        if error[0] is None:
            for kind, arrays in (("labels", self.labels), ("boxes", self.boxes)):
                column = np.empty(len(arrays), object)
                column[:] = arrays
                with open(self._parts[kind], "wb") as file:
                    np.save(file, column, allow_pickle=True)
            write_classes(self.folder, self.classes)
            (self.folder / SPLIT_FILE).unlink(missing_ok=True)  # a split belongs to the files that it divides
        return self._stack.__exit__(*error)
