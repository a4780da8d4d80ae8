"""The mask head: network, targets, loss and pasting (§7).

D  boxes    F  channels    C  classes of objects    m  side of a predicted mask, 28    G  objects    H x W  an image
boxes are xyxy in pixels of the frame that each function names; masks are 1 inside the object
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.boxes import Named, Size
from lib.machine.numbers import Numbers, count, number
from lib.roi_align import roi_align

POOL_SIZE = 14  # of a box that a mask is predicted for; the mask is twice as large
THRESHOLD = 0.5  # of the probability that a pixel belongs to the object (§7.5)
_PASTE_CHUNK = 2**23  # pixels pasted at once: what fits into memory that is had again and again, not asked for anew


@dataclass(frozen=True)
class MaskHeadConfig(Numbers):
    hidden: int = count(256, "channels of the convolutions", "§7.2")
    loss_weight: float = number(1.0, "weight of the loss beside the other heads' in joint training", "§8", low=0)


class MaskHead(nn.Module):
    """Four 3 x 3 convolutions, a deconvolution to twice the size, all with ReLU; then C logits a cell (§7.2)."""

    def __init__(self, channels: int, hidden: int, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(hidden if i else channels, hidden, 3, padding=1), nn.ReLU()]
        last = nn.Conv2d(hidden, classes, 1)
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(hidden, hidden, 2, stride=2), nn.ReLU(), last)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # torch's stub forgets that bias=True
        nn.init.normal_(last.weight, std=0.001)  # every mask starts undecided

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features (D, F, 14, 14) -> logits (D, C, 28, 28)."""
        return self.layers(pooled)


def mask_targets(boxes: Tensor, matched: Tensor, gt_masks: Tensor, size: int = 2 * POOL_SIZE) -> Tensor:
    """Boxes (D, 4), matched (D,), masks (G, H, W) uint8 -> the objects' masks in the boxes (D, m, m) of 0 or 1 (§7.3).

    The boxes are in the frame of the masks, `matched` has the object of each. RoIAlign does the cropping and rescaling;
    a cell is 1 where at least half of its samples' weight is on the object.
    """
    if len(boxes) == 0:
        return boxes.new_zeros((0, size, size))
    return (roi_align(gt_masks[:, None].float(), boxes, matched, size)[:, 0] >= 0.5).float()


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Named:
    """Logits (D, C, m, m), labels (D,) from 1 to C, targets (D, m, m) -> the loss of §7.4.

    Pixelwise binary cross entropy on the mask of the true class (§7.3), averaged over the D masks; zero, and
    differentiable, for no masks.
    """
    logits = class_masks(logits, labels)
    loss = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum")
    return {"mask": loss / max(targets.numel(), 1)}


def class_masks(logits: Tensor, labels: Tensor) -> Tensor:
    """Masks (D, C, m, m), labels (D,) from 1 to C -> the mask of each box's own class (D, m, m) (§7.5)."""
    return logits[torch.arange(len(labels), device=labels.device), labels - 1]


@torch.autocast("cuda", enabled=False)  # a half product would move the masks' borders
def paste_masks(masks: Tensor, boxes: Tensor, size: Size, threshold: float = THRESHOLD) -> Tensor:
    """Probabilities (D, m, m), boxes (D, 4) -> masks (D, H, W) uint8 in an image of `size` (H, W) (§7.5).

    Predicted masks are rescaled into their boxes bilinearly, and thresholded. The value at a pixel's centre is bilinear
    in the mask, which is a product of one weight for its row and one for its column: pasting is two batched matrix
    products, rows (D, H, m) x masks x columns (D, m, W), below a half outside the boxes by themselves.
    """
    pasted = [masks.new_zeros((0, *size), dtype=torch.bool)]
    chunk = max(1, _PASTE_CHUNK // (size[0] * size[1]))
    for part, (x1, y1, x2, y2) in zip(masks.float().split(chunk), boxes.float().mT.split(chunk, dim=1), strict=True):
        rows, columns = _interpolation(y1, y2, size[0], part.shape[1]), _interpolation(x1, x2, size[1], part.shape[2])
        pasted.append(rows @ part @ columns.mT >= threshold)
    return torch.cat(pasted).to(torch.uint8)


def _interpolation(start: Tensor, end: Tensor, length: int, m: int) -> Tensor:
    """Intervals (D,) of m mask cells -> the cells' bilinear weights (D, length, m) at the centres of pixels."""
    centres = torch.arange(length, device=start.device) + 0.5
    position = (centres - start[:, None]) / (end - start).clamp(min=1e-6)[:, None] * m - 0.5  # in cells of the mask
    return (1 - (position[..., None] - torch.arange(m, device=start.device)).abs()).clamp(min=0)
