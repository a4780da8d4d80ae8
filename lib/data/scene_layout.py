"""Which objects a scene has and which boxes they fill: drawn from the statistics of the course's own labels and boxes.

    G  objects of a scene, one or two
    labels are 1 vehicle, 2 person, 3 animal; boxes are xyxy in pixels of 400 x 300

`course_statistics.txt` holds the statistics, with their source.
"""

from pathlib import Path
from statistics import NormalDist

import numpy as np

from lib.data.scene_shapes import Rng

SIZE = (400, 300)  # of the course's images, (w, h)
PERCENTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
CORRELATION = 0.55  # of the scales of two objects of an image
AT_BORDER = 2  # pixels: a box that ends at most so far from the border is at the border
NORMAL = NormalDist()


def read_statistics() -> dict[str, np.ndarray]:
    """The rows of `course_statistics.txt` by their names."""
    lines = Path(__file__).with_name("course_statistics.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if line and line[0] != "#"]
    return {name: np.array(values, float) for name, *values in rows}


# By label: percentiles of the scales and aspect ratios (width / height) of the boxes, and the share of boxes at the
# border in each quarter of the scales.
STATISTICS = read_statistics()
SCALES, ASPECTS, BORDER = (
    [np.empty(0), *(STATISTICS[f"{name}-{label}"] for label in ("vehicle", "person", "animal"))]
    for name in ("scale", "aspect", "border")
)
KINDS = [(1,), (2,), (3,), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]  # the labels of an image
_IMAGES = np.concatenate([STATISTICS["one"], STATISTICS["two"]])  # of each kind
KIND_SHARES, TWO_OBJECTS = _IMAGES / _IMAGES.sum(), STATISTICS["two"].sum() / _IMAGES.sum()
_OBJECTS = np.array([sum(n * kind.count(label) for n, kind in zip(_IMAGES, KINDS, strict=True)) for label in (1, 2, 3)])
CLASS_SHARES = _OBJECTS / _OBJECTS.sum()
SIDE_SHARES = STATISTICS["sides"] / STATISTICS["sides"].sum()
GAPS = STATISTICS["left-gap"], STATISTICS["top-gap"]


def draw_labels(rng: Rng) -> np.ndarray:
    """The labels (G,) of a scene's objects, in any order."""
    return rng.permutation(KINDS[rng.choice(len(KINDS), p=KIND_SHARES)])


def quantile(table: np.ndarray, rank: float | np.ndarray) -> np.ndarray:
    """The value at a rank in [0, 1] of a distribution with the `PERCENTILES` of the table, log-linear between them."""
    return np.exp(np.interp(rank, PERCENTILES, np.log(table)))


def draw_boxes(labels: np.ndarray, rng: Rng) -> np.ndarray:
    """Boxes (G, 4) for objects of these classes, with the course's scales, shapes, places and overlaps."""
    shared = np.sqrt(CORRELATION) * rng.normal()
    tries = 4 if len(labels) == 2 and labels[0] == labels[1] else 1
    drawn = [[_draw_places(*_draw_shape(label, shared, rng), rng) for _ in range(tries)] for label in labels]
    places = np.stack([np.concatenate(of_object) for of_object in drawn])
    if len(labels) == 1:
        return places[:, 0]
    name = "same" if labels[0] == labels[1] else "different"
    wanted = rng.random() < STATISTICS["overlap"][int(name == "different")]
    iou = box_iou(*places)
    distance = np.abs(iou - (np.interp(rng.random(), PERCENTILES, STATISTICS[f"iou-{name}"]) if wanted else 0))
    return places[:, np.argmin(distance)]


def _draw_shape(label: int, shared: float, rng: Rng) -> tuple[np.ndarray, int | None]:
    """The (w, h) of a box, and the side of the image that it is at, numbered like xyxy, or None."""
    z = shared + np.sqrt(1 - CORRELATION) * rng.normal()
    rank, aspect_rank = map(NORMAL.cdf, (z, rng.normal()))
    scale, aspect = quantile(SCALES[label], rank), quantile(ASPECTS[label], aspect_rank)
    at_border = rng.random() < BORDER[label][int(4 * rank)]
    side = int(rng.choice(4, p=SIDE_SHARES)) if at_border else None
    w, h = np.subtract(SIZE, 0 if at_border else 2 * AT_BORDER + 2)
    scale = min(scale, np.sqrt(w * h))
    aspect = np.clip(aspect, (scale / h) ** 2, (w / scale) ** 2)
    return scale * np.sqrt((aspect, 1 / aspect)), side


def _draw_places(size: np.ndarray, side: int | None, rng: Rng) -> np.ndarray:
    """150 boxes (150, 4) in whole pixels of a size (w, h) at that side of the image, or at none."""
    margin = AT_BORDER + 1 if side is None else 0
    room = np.maximum(np.subtract(SIZE, 2 * margin) - size, 0)
    start = margin + room * np.stack([quantile(gap, rng.random(150)) for gap in GAPS], axis=1)
    if side is not None:
        start[:, side % 2] = room[side % 2] if side > 1 else 0
    return np.round(np.concatenate([start, start + size], axis=1))


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The IoU (...) of boxes (..., 4)."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both, (area, other) = np.maximum(sides, 0).prod(-1), ((box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b))
    return both / (area + other - both)
