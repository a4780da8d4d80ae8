"""From overlaps to labels, and from labels to a balanced minibatch.

A  anchors or proposals    G  ground-truth boxes    M  samples in a minibatch
iou (A, G) in [0, 1]; labels (A,) integers; matched (A,) int64 indices into the G boxes
"""

import torch
from torch import Tensor

IGNORED = -1  # neither positive nor negative: left out of training
NEGATIVE = 0
POSITIVE = 1


def match_anchors(iou: Tensor, positive_iou: float, negative_iou: float) -> tuple[Tensor, Tensor]:
    """The labels of §4.2, POSITIVE, NEGATIVE or IGNORED, of anchors inside the image, and the object of each one's
    highest IoU.

    Positive: IoU above `positive_iou` with any object, or an object's highest IoU (ties included, and only where it is
    above 0). Negative: not positive and IoU below `negative_iou` with every object.
    """
    if iou.shape[1] == 0:
        return (torch.full((len(iou),), v, device=iou.device) for v in (NEGATIVE, 0))
    best, matched = iou.max(dim=1)
    highest = iou.max(dim=0).values if len(iou) else iou.new_zeros(iou.shape[1])  # (G,)
    is_highest = ((iou == highest) & (highest > 0)).any(dim=1)
    labels = torch.full_like(matched, IGNORED)
    labels[best < negative_iou] = NEGATIVE
    labels[(best > positive_iou) | is_highest] = POSITIVE
    return labels, matched


def match_proposals(iou: Tensor, classes: Tensor, positive_iou: float) -> tuple[Tensor, Tensor]:
    """The classes of §6.1: that of the object with the highest IoU if this is above `positive_iou`, else background
    (0).

    `classes` (G,) int64 are the objects' labels. Returns labels (A,) and matched (A,), valid where the label is not 0.
    """
    if iou.shape[1] == 0:
        return (torch.zeros(len(iou), dtype=torch.long, device=iou.device) for _ in range(2))
    best, matched = iou.max(dim=1)
    return torch.where(best > positive_iou, classes[matched], 0), matched


def sample(labels: Tensor, size: int, positive_fraction: float) -> Tensor:
    """Indices (at most `size`,) of a random minibatch: positives first, filled up with negatives (§4.4, §6.3).

    `labels` (A,) of a whole batch of images: above 0 positive, 0 negative, IGNORED never drawn. As many positives as
    there are, up to `positive_fraction` of the size; negatives make up the rest.
    """
    positive, negative = (labels > NEGATIVE).nonzero().flatten(), (labels == NEGATIVE).nonzero().flatten()
    positive = _choose(positive, round(size * positive_fraction))
    return torch.cat([positive, _choose(negative, size - len(positive))])


def superset(labels: Tensor, size: int, positive_fraction: float, images: int, times: int) -> Tensor:
    """Of one image's candidates, indices of those that many minibatches over `images` images can be drawn from.

    As many positives as a minibatch of `size` may take, and `times` the image's share of negatives, drawn at random.
    """
    positive, negative = (labels > NEGATIVE).nonzero().flatten(), (labels == NEGATIVE).nonzero().flatten()
    positive, share = _choose(positive, round(size * positive_fraction)), times * -(-size // images)
    return torch.cat([positive, _choose(negative, max(share - len(positive), round(share * (1 - positive_fraction))))])


def take(columns: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """These rows of every column."""
    return {name: column[rows] for name, column in columns.items()}


def _choose(indices: Tensor, count: int) -> Tensor:
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
