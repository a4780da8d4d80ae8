"""Plain geometry of boxes: overlap, encoding, clipping, and moves between frames.

N, M, A  numbers of boxes
boxes    (..., 4) float32 xyxy, absolute pixels; x2 and y2 are exclusive edges, so the width is x2 - x1
deltas   (..., 4) float32 t = (tx, ty, tw, th) of §4.3, without unit
"""

import math

import torch
from torch import Tensor

Size = tuple[int, int]  # (height, width), of an image or of what lies in it
MAX_LOG_SCALE = math.log(1000 / 16)  # tw and th are cut here before exp, so that an untrained regressor cannot overflow
MIN_SIZE = 1e-2  # pixels: a box narrower than this, clipped away at the border say, is no box


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...): width times height in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of `a` (N, 4) with every box of `b` (M, 4) -> (N, M) in [0, 1]."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=2)
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def encode(boxes: Tensor, reference: Tensor) -> Tensor:
    """`boxes` (N, 4) relative to `reference` boxes (N, 4) -> deltas (N, 4).

    tx = (x - xa) / wa, ty = (y - ya) / ha, tw = log(w / wa), th = log(h / ha) with centres x, y (§4.3, §6.2.3).
    """
    centre, size = _centre_size(boxes)
    ref_centre, ref_size = _centre_size(reference)
    return torch.cat([(centre - ref_centre) / ref_size, torch.log(size / ref_size)], dim=-1)


def decode(deltas: Tensor, reference: Tensor) -> Tensor:
    """The inverse of `encode`: deltas (..., 4) relative to `reference` (..., 4) -> boxes (..., 4) in its frame."""
    ref_centre, ref_size = _centre_size(reference)
    centre = ref_centre + deltas[..., :2] * ref_size
    size = ref_size * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE))
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def inside(boxes: Tensor, height: float, width: float) -> Tensor:
    """(..., 4) -> bool (...): the box does not cross the boundary of a height x width image (§4.2)."""
    return (boxes[..., 0] >= 0) & (boxes[..., 1] >= 0) & (boxes[..., 2] <= width) & (boxes[..., 3] <= height)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes (..., 4) cropped to a height x width image (§4.6, §6.5)."""
    limit = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    return boxes.clamp(min=0).minimum(limit)


def scale_boxes(boxes: Tensor, x_scale: float, y_scale: float) -> Tensor:
    """Boxes (N, 4) moved to a frame that is x_scale times as wide and y_scale times as high."""
    return boxes * torch.tensor([x_scale, y_scale, x_scale, y_scale], dtype=boxes.dtype, device=boxes.device)
