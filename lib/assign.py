"""The labels of §4.2 for a whole pyramid of anchors, from the few anchors that an object can matter to.

    Sy x Sx  a level's grid of cells    K  aspect ratios, anchors a cell    A  anchors of the pyramid    G  objects
    boxes are xyxy in pixels of the network's input frame

Anchors form a grid, so an overlap is a product of one length for the column and one for the row, and only the cells
near an object overlap it. And IoU is at most the smaller area over the larger one: a level whose anchors are much
larger or smaller than the object holds neither a positive anchor nor one to ignore. `lib.matching.match_anchors` on
`lib.boxes.iou_matrix` is the plain version; the labels are the same to the last bit.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.anchors import STRIDES, level_anchors, pyramid_anchors
from lib.boxes import iou_matrix
from lib.config import Config
from lib.matching import IGNORED, NEGATIVE, POSITIVE

_SLACK = 1 + 1e-4  # of the bound on IoU: the arithmetic is that of float32


class _Level(NamedTuple):
    stride: int
    area: float
    reach: tuple[float, float]  # half of the widest anchor's width, of the highest one's height
    x: np.ndarray  # (2, Sx, K): x1, x2
    y: np.ndarray  # (2, Sy, K): y1, y2


@lru_cache(maxsize=8)
def _levels(grids: tuple[tuple[int, int], ...], config: Config) -> list[_Level]:
    levels = []
    for (rows, columns), stride, scale in zip(grids, STRIDES, config.anchor_scales, strict=True):
        anchors = level_anchors((rows, columns), stride, scale, config.anchor_ratios).numpy()
        anchors = anchors.reshape(rows, columns, -1, 4)
        x, y = anchors[0, :, :, ::2].transpose(2, 0, 1).copy(), anchors[:, 0, :, 1::2].transpose(2, 0, 1).copy()
        reach = float((x[1] - x[0]).max()) / 2, float((y[1] - y[0]).max()) / 2
        levels.append(_Level(stride, scale**2, reach, x, y))
    return levels


@lru_cache(maxsize=8)
def _outside(grids: tuple[tuple[int, int], ...], content: tuple[int, int], config: Config) -> list[np.ndarray]:
    return [
        ~((x[0] >= 0) & (x[1] <= content[1]) & (y[0] >= 0) & (y[1] <= content[0]))
        for x, y in ((level.x, level.y[:, :, None]) for level in _levels(grids, config))
    ]


def assign_anchors(
    grids: tuple[tuple[int, int], ...], gt_boxes: Tensor, config: Config, content: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (A,) int8, the indices (P,) of the positive anchors, and the object (P,) of each one's highest IoU.

    `grids` are the pyramid's (Sy, Sx), `gt_boxes` (G, 4). With `content` (height, width), anchors that cross its
    boundary are IGNORED and no object's best.
    """
    levels = _levels(grids, config)
    shapes = [(level.y.shape[1], *level.x.shape[1:]) for level in levels]  # (Sy, Sx, K)
    sizes = [math.prod(shape) for shape in shapes]
    labels = np.full(sum(sizes), NEGATIVE, np.int8)
    found = [v.reshape(s) for v, s in zip(np.split(labels, np.cumsum(sizes)[:-1]), shapes, strict=True)]  # views
    outside = None if content is None else _outside(grids, content, config)
    for box in gt_boxes.float().cpu().numpy():
        _add_object(found, levels, box, outside, config)
    for level, out in zip(found, outside or (), strict=outside is not None):
        level[out] = IGNORED
    positive = torch.from_numpy(np.flatnonzero(labels == POSITIVE))
    matched = torch.zeros_like(positive)
    if len(gt_boxes) > 1:
        matched = iou_matrix(pyramid_anchors(grids, config)[positive], gt_boxes.float().cpu()).argmax(dim=1)
    return tuple(v.to(gt_boxes.device) for v in (torch.from_numpy(labels), positive, matched))


def _add_object(found: list, levels: list[_Level], box: np.ndarray, outside: list | None, config: Config) -> None:
    """Change the labels `found`, (Sy, Sx, K) of each level, to what one object (4,) makes of them."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    bounds = [_SLACK * min(level.area, area) / max(level.area, area, 1e-9) for level in levels]
    best, overlapping = np.float32(0), []
    for n in sorted(range(len(levels)), key=lambda n: -bounds[n]):
        if bounds[n] < config.rpn_negative_iou and bounds[n] < best:
            break
        cells, iou = _overlap(levels[n], box, area)
        if iou.size == 0:
            continue
        if outside is not None:
            iou[outside[n][cells]] = 0
        part = found[n][cells]
        part[(iou >= config.rpn_negative_iou) & (part == NEGATIVE)] = IGNORED
        part[iou > config.rpn_positive_iou] = POSITIVE
        overlapping.append((part, iou))
        best = max(best, iou.max())
    for part, iou in overlapping if best > 0 else ():
        part[iou == best] = POSITIVE


def _overlap(level: _Level, box: np.ndarray, area: np.float32) -> tuple[tuple[slice, slice], np.ndarray]:
    """The cells (rows, columns) whose anchors may overlap the box, and these anchors' IoU (rows, columns, K)."""
    cells = tuple(
        slice(max(0, int((box[axis] - reach) / level.stride - 0.5)), int((box[axis + 2] + reach) / level.stride + 1.5))
        for axis, reach in ((1, level.reach[1]), (0, level.reach[0]))
    )
    (y1, y2), (x1, x2) = level.y[:, cells[0], None], level.x[:, cells[1]]
    width = np.maximum(np.minimum(x2, box[2]) - np.maximum(x1, box[0]), 0)
    height = np.maximum(np.minimum(y2, box[3]) - np.maximum(y1, box[1]), 0)
    intersection = width * height
    union = (x2 - x1) * (y2 - y1)
    union += area
    union -= intersection
    return cells, np.divide(intersection, union, out=intersection)
