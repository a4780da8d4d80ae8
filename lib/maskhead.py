"""The mask head: network, targets, loss and pasting (§7).

D  boxes    C  channels of the pyramid    K  classes of objects (3)    m  side of a predicted mask (28)    G  objects
boxes are xyxy in pixels of the frame that each function names; masks are 1 inside the object
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.config import NUM_CLASSES
from lib.roi_align import roi_align

_PASTE_CHUNK = 2**27  # pixels pasted at once: bounds the memory for large pictures


class MaskHead(nn.Module):
    """Four 3 x 3 convolutions, a deconvolution to twice the size, all with ReLU; then a 1 x 1 convolution to K logits
    (§7.2).
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(hidden if i else channels, hidden, 3, padding=1), nn.ReLU()]
        layers += [nn.ConvTranspose2d(hidden, hidden, 2, stride=2), nn.ReLU(), nn.Conv2d(hidden, NUM_CLASSES, 1)]
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.layers[-1].weight, std=0.001)  # every mask starts undecided

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features (D, C, 14, 14) -> logits (D, K, 28, 28)."""
        return self.layers(pooled)


def mask_targets(boxes: Tensor, matched: Tensor, gt_masks: Tensor, size: int) -> Tensor:
    """The part of each box's ground-truth mask that lies in the box, rescaled to m x m (§7.3): (D, m, m) float, 0 or 1.

    boxes (D, 4) in the frame of `gt_masks` (G, H, W) uint8, `matched` (D,) the object of each box. RoIAlign does the
    cropping and rescaling; a cell is 1 where at least half of its samples' weight is on the object.
    """
    if len(boxes) == 0:
        return boxes.new_zeros((0, size, size))
    return (roi_align(gt_masks[:, None].float(), boxes, matched, size)[:, 0] >= 0.5).float()


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Pixelwise binary cross entropy on the mask of the true class (§7.3), averaged over the D masks (§7.4).

    logits (D, K, m, m), labels (D,) from 1 to K, targets (D, m, m) -> a scalar; zero, and differentiable, for no masks.
    """
    logits = class_masks(logits, labels)
    loss = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum")
    return {"mask": loss / max(targets.numel(), 1)}


def class_masks(logits: Tensor, labels: Tensor) -> Tensor:
    """The mask of each box's own class: (D, K, m, m), labels (D,) from 1 to K -> (D, m, m) (§7.5)."""
    return logits[torch.arange(len(labels), device=labels.device), labels - 1]


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Rescale predicted masks into their boxes in an image of `size` (H, W), bilinearly, and threshold them (§7.5).

    masks (D, m, m) probabilities, boxes (D, 4) in the image's frame -> (D, H, W) uint8. The value at a pixel's centre
    is bilinear in the mask, which is a product of one weight for its row and one for its column: pasting is two
    batched matrix products, rows (D, H, m) x masks x columns (D, m, W), zero outside the boxes by themselves.
    """
    height, width = size
    chunk = max(1, _PASTE_CHUNK // (height * width))
    pasted = [
        _interpolation(b[:, 1], b[:, 3], height, m.shape[1])
        @ m
        @ _interpolation(b[:, 0], b[:, 2], width, m.shape[2]).mT
        >= threshold
        for m, b in zip(masks.float().split(chunk), boxes.float().split(chunk), strict=True)
    ]
    return torch.cat(pasted).to(torch.uint8) if pasted else masks.new_zeros((0, height, width), dtype=torch.uint8)


def pasted_crops(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float
) -> Iterator[tuple[int, int, np.ndarray]]:
    """`paste_masks` of the pixels that a box can reach alone: for each mask its first column, its first row and, one
    row a column of the image, (columns, rows + 1) bool. The last row lies beyond the mask, or below the image: False.
    """
    (height, width), cells = size, masks.shape[-1]
    masks, boxes = masks.float().cpu(), boxes.float().cpu()
    columns = _interpolation(boxes[:, 0], boxes[:, 2], width, cells)  # (D, W, m)
    rows = _interpolation(boxes[:, 1], boxes[:, 3], height, cells)
    halfway = F.pad(masks.mT @ rows.mT, (0, 1))  # (D, m, H + 1)
    reach = (boxes[:, 2:] - boxes[:, :2]) / (2 * cells)  # a mask reaches half a cell beyond its box
    limit = torch.tensor([width, height])
    starts = (boxes[:, :2] - reach).floor().clamp(min=0).minimum(limit).int().tolist()
    ends = (boxes[:, 2:] + reach).ceil().clamp(min=0).minimum(limit).int().tolist()
    for column, half, (left, top), (right, bottom) in zip(columns, halfway, starts, ends, strict=True):
        # torch's product, for numpy's would wait for a thread that torch keeps busy
        yield left, top, (column[left:right] @ half[:, top : bottom + 1] >= threshold).numpy()


def _interpolation(start: Tensor, end: Tensor, length: int, m: int) -> Tensor:
    """Bilinear weights (D, length, m) of the m mask cells of intervals (D,) at the centres of `length` pixels."""
    centres = torch.arange(length, device=start.device) + 0.5
    position = (centres - start[:, None]) / (end - start).clamp(min=1e-6)[:, None] * m - 0.5  # in cells of the mask
    return (1 - (position[..., None] - torch.arange(m, device=start.device)).abs()).clamp(min=0)
