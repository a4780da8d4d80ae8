"""Plain geometry of boxes: overlap, encoding, clipping, and moves between frames.

A  anchors, or other boxes    G  objects    H x W  an image
boxes are (..., 4) float32 xyxy, absolute pixels; x2 and y2 are exclusive edges, so the width is x2 - x1
deltas are (..., 4) float32, t = (tx, ty, tw, th) of §4.3, without unit
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Size = tuple[int, int]  # (height, width), of an image or of what lies in it
Boxes = Sequence[Tensor]  # (Ri, 4), of each image of a batch
Named = dict[str, Tensor]  # what belongs together: samples, losses, an image's detections
MAX_LOG_SCALE = math.log(1000 / 16)  # tw and th are cut here before exp, so that an untrained regressor cannot overflow
MIN_SIZE = 1e-2  # pixels: a box narrower than this, clipped away at the border say, is no box


def area(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) -> width times height (...) in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Boxes (A, 4), (G, 4) -> intersection over union (A, G) in [0, 1] of every one of `a` with every one of `b`."""
    x1, y1 = (torch.maximum(a[:, None, k], b[None, :, k]) for k in (0, 1))  # (A, G)
    x2, y2 = (torch.minimum(a[:, None, k], b[None, :, k]) for k in (2, 3))
    intersection = (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def encode(boxes: Tensor, reference: Tensor) -> Tensor:
    """Boxes (A, 4), relative to `reference` boxes (A, 4) -> deltas (A, 4).

    tx = (x - xa) / wa, ty = (y - ya) / ha, tw = log(w / wa), th = log(h / ha) with centres x, y (§4.3, §6.2.3).
    """
    centre, size = _centre_size(boxes)
    ref_centre, ref_size = _centre_size(reference)
    return torch.cat([(centre - ref_centre) / ref_size, torch.log(size / ref_size)], dim=-1)


def decode(deltas: Tensor, reference: Tensor) -> Tensor:
    """Deltas (..., 4) relative to `reference` (..., 4) -> boxes (..., 4) in its frame: the inverse of `encode`."""
    ref_centre, ref_size = _centre_size(reference)
    centre = ref_centre + deltas[..., :2] * ref_size
    size = ref_size * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE))
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def inside(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes (..., 4) -> bool (...): the box does not cross the boundary of a height x width image (§4.2)."""
    return (boxes[..., 0] >= 0) & (boxes[..., 1] >= 0) & (boxes[..., 2] <= width) & (boxes[..., 3] <= height)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes (..., 4) -> the same, cropped to a height x width image (§4.6, §6.5)."""
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], dim=-1).flatten(-2)


def scale_boxes(boxes: Tensor, x_scale: float, y_scale: float) -> Tensor:
    """Boxes (..., 4) -> the same in a frame that is x_scale times as wide and y_scale times as high."""
    return torch.stack([boxes[..., 0::2] * x_scale, boxes[..., 1::2] * y_scale], dim=-1).flatten(-2)
