"""RoIAlign (§5.1) and the pyramid level of a box (§5.2).

    B  images    F  channels    Sy x Sx  a map's grid    R  RoIs    P  pooled size
    S  sampling points along a cell's side
    rois (R, 4) xyxy in pixels of the network's input frame; images (R,) int64, the image that each RoI is of

A pooled value is the mean of S x S bilinear samples, and each bilinear sample a weighted sum of four pixels: with a
feature map stored as a table of rows, one row of F channels a pixel, a pooled value is one weighted sum of 4 S S
rows. `embedding_bag` does just that, for all RoIs of all images on a level in one call, and knows its own gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.anchors import Maps
from lib.boxes import area
from lib.machine.numbers import Numbers, number

SAMPLES = 2  # S: 2 x 2 = 4 regular sampling points a cell
CANONICAL_LEVEL = 4  # the level of a box of the canonical size, P4


@dataclass(frozen=True)
class RoIAlignConfig(Numbers):
    canonical_size: float = number(224.0, "sqrt(w h) of a box that is pooled from P4", "§5.2", above=0, unit="px")


def roi_align(features: Tensor, rois: Tensor, images: Tensor, size: int, scale=1.0, samples=SAMPLES) -> Tensor:
    """One feature map (B, F, Sy, Sx), RoIs (R, 4), their images (R,) -> pooled features (R, F, P, P) with P = `size`.

    `scale` takes the RoIs to the feature map's pixels. The same as torchvision.ops.roi_align with aligned=True and a
    sampling ratio of `samples`. Differentiable in the features, and unlike torchvision's in the RoIs; but the RPN makes
    proposals without gradient, so that none flows back through them. Mask R-CNN (He et al. 2017), section 3; §5.1.

    A map whose value at (x, y) is x, its pixels' centres being 0.5, 1.5, ...: the value at a point is its x less half
    a pixel. A box from x = 1 to 3 has cells from 1 to 2 and from 2 to 3, whose samples' means lie at 1.5 and 2.5:

    >>> ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    >>> roi_align(ramp, torch.tensor([[1.0, 1.0, 3.0, 3.0]]), torch.tensor([0]), size=2)[0, 0]
    tensor([[1., 2.],
            [1., 2.]])
    """
    channels, height, width = features.shape[1:]
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)  # (B Sy Sx, F), a view where the channels come last
    boxes = rois * scale - 0.5
    y, y_weight = _bilinear(_sample_points(boxes[:, 1], boxes[:, 3], size, samples), height)  # (R, P S, 2)
    x, x_weight = _bilinear(_sample_points(boxes[:, 0], boxes[:, 2], size, samples), width)

    # one bag a cell: the 2S rows by 2S columns of pixels that its samples touch
    y = images[:, None, None] * height * width + y * width
    y, y_weight = ((v.view(-1, size, 1, 2 * samples, 1)) for v in (y, y_weight))
    x, x_weight = ((v.view(-1, 1, size, 1, 2 * samples)) for v in (x, x_weight))
    rows = (y + x).flatten(3).flatten(0, 2)  # (R P P, 4 S S)
    weights = (y_weight * x_weight / samples**2).flatten(3).flatten(0, 2).to(table.dtype)
    pooled = F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")
    return pooled.view(-1, size, size, channels).permute(0, 3, 1, 2)


def pool(features: Maps, scales: Sequence[float], rois: Tensor, images: Tensor, levels: Tensor, size: int) -> Tensor:
    """Maps of a pyramid, each (B, F, Sy, Sx), RoIs (R, 4) -> RoIAlign of each on its own level, (R, F, P, P).

    `levels` (R,) int64 indexes `features` and `scales`.
    """
    pooled = features[0].new_empty(len(rois), size, size, features[0].shape[1])
    for f, scale, part in zip(features, scales, rows_of_each(levels, len(features)), strict=True):
        pooled[part] = roi_align(f, rois[part], images[part], size, scale).permute(0, 2, 3, 1)
    return pooled.permute(0, 3, 1, 2)


def rows_of_each(levels: Tensor, count: int) -> tuple[Tensor, ...]:
    """Levels (R,), or images -> the rows of each of `count`, in order. A GPU is waited for once, not once for each."""
    counts = (levels == torch.arange(count, device=levels.device)[:, None]).sum(dim=1)
    return levels.argsort(stable=True).split(counts.tolist())


def _sample_points(start: Tensor, end: Tensor, size: int, samples: int) -> Tensor:
    """Intervals (R,) along one axis, each cut into P cells of S points -> regular coordinates (R, P S)."""
    steps = (torch.arange(size * samples, device=start.device) + 0.5) / (size * samples)
    return start[:, None] + (end - start)[:, None] * steps


def _bilinear(points: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Points (R, P S) in pixels -> the indices (R, P S, 2) of the two pixels around each, and their weights.

    Within one pixel of the border the value continues constantly; further out it is zero.
    """
    within = (points >= -1) & (points <= length)
    points = points.clamp(min=0).clamp(max=length - 1)
    low = points.floor().long()
    high = (low + 1).clamp(max=length - 1)
    fraction = points - low
    weights = torch.stack([1 - fraction, fraction], dim=-1) * within[..., None]
    return torch.stack([low, high], dim=-1), weights


def pyramid_level(boxes: Tensor, canonical_size: float = 224.0) -> Tensor:
    """Boxes (R, 4) -> k (R,) int64, floor(4 + log2(sqrt(w h) / 224)), limited to P2 ... P5 (§5.2).

    >>> pyramid_level(torch.tensor([[0.0, 0, 224, 224], [0, 0, 223, 224], [0, 0, 9, 9]])).tolist()
    [4, 3, 2]
    """
    ratio = area(boxes).clamp(min=0).sqrt() / canonical_size + 1e-6  # so that 224 itself is level 4 in float32 too
    return torch.floor(CANONICAL_LEVEL + torch.log2(ratio)).clamp(2, 5).long()
