"""COCO's segmentations: checked before anything is expanded, then masks.

h x w  the image that is annotated, its size declared in the JSON
"""

from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

LONGEST_OUTLINE = 5_000_000  # pixels: pycocotools walks along it


def checked(segmentation: Any, height: int, width: int, box: Any = None) -> list[list[float]] | dict:
    """A segmentation as a list of polygons [x, y, x, y, ...] of three points or more, or as an RLE that fills h x w.

    Polygons may be nested in the ways that exporting tools write them; four numbers are a box where they can be nothing
    else, or are the annotation's own `box`. A list without polygons has no area. ValueError for all else.
    """
    if isinstance(segmentation, dict):
        return _checked_rle(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("it is empty" if segmentation in ([], None, "") else "it is neither polygons nor an RLE")
    if _numbers(segmentation):
        raise ValueError("it is a flat list of numbers: write [[x, y, ...]], a list of polygons")
    shapes = [np.asarray(shape, float) for shape in _flattened(segmentation)]
    if any(len(shape) % 2 for shape in shapes):
        raise ValueError("it has an odd number of coordinates")
    if not all((np.abs(shape) <= 2 * max(height, width)).all() for shape in shapes):
        raise ValueError("it holds no polygon of the image")  # pycocotools would walk all the way there
    polygons = [_corners(shape, box) if len(shape) == 4 else shape for shape in shapes]
    steps = [
        np.abs(np.diff(p.reshape(-1, 2), axis=0, append=p[None, :2])).max(axis=1).sum() for p in polygons if len(p)
    ]
    if sum(steps) > LONGEST_OUTLINE:
        raise ValueError(f"its outline is longer than {LONGEST_OUTLINE:,} pixels")
    return [polygon.tolist() for polygon in polygons if len(polygon) >= 6]


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) in (int, float) for v in values)


def _flattened(values: Any, depth: int = 0) -> list[list[float]]:
    """The flat lists of numbers in nested lists; a list of points is one."""
    if not isinstance(values, list) or not values or depth > 3:
        raise ValueError("its lists hold something else than coordinates")
    if _numbers(values):
        return [values]
    if all(_numbers(point) and len(point) == 2 for point in values) and (depth or len(values) > 2):
        return [[number for point in values for number in point]]
    return [shape for part in values for shape in _flattened(part, depth + 1)]


def _corners(four: np.ndarray, box: Any) -> np.ndarray:
    """Four numbers that can only be a box (x, y, w, h) -> its corners, flat; else they are two points, without area."""
    x, y, w, h = four
    own = _numbers(box) and len(box) == 4 and np.allclose(box, four, atol=0.5)
    if min(w, h) > 0 and (own or w <= x or h <= y):  # no corners (x1, y1, x2, y2) with x1 < x2 and y1 < y2
        return np.array([x, y, x + w, y, x + w, y + h, x, y + h])
    return four


def _checked_rle(rle: dict, height: int, width: int) -> dict:
    """The RLE in its compressed form, if its runs fill h x w."""
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise ValueError(f"its size is {size!r:.60}, that of the image {[height, width]}")
    if isinstance(counts, str):
        runs = _runs(counts)
    elif isinstance(counts, list) and all(type(run) is int and 0 <= run <= height * width for run in counts):
        runs = np.array(counts, np.int64)
    else:
        raise ValueError("its counts are neither text nor whole numbers")
    if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise ValueError("its run lengths do not fill the image")
    return {"size": size, "counts": counts} if isinstance(counts, str) else rle_tools.frPyObjects(rle, height, width)


def _runs(text: str) -> np.ndarray:
    """The run lengths of a compressed RLE: six bits a letter, five of a number and whether it goes on; differences."""
    codes = np.array([ord(letter) - 48 for letter in text], np.int64)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("its counts are no run lengths")
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise ValueError("its counts are no run lengths")
    runs = np.add.reduceat((codes & 31) << (5 * place), starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * (place[ends] + 1)), 0)  # a number below zero
    for first in (1, 2):  # from the fourth on, runs are written as the difference to the one two before
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def decode(segmentation: list[list[float]] | dict, height: int, width: int) -> np.ndarray:
    """A segmentation that was checked -> its mask (h, w) uint8 of 0 and 1."""
    if not segmentation:
        return np.zeros((height, width), np.uint8)
    if isinstance(segmentation, list):
        segmentation = rle_tools.merge(rle_tools.frPyObjects(segmentation, height, width))
    return rle_tools.decode(segmentation)
