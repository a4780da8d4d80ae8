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


def sample(labels: Tensor, size: int, positive_fraction: float, groups: Tensor | None = None) -> Tensor:
    """Indices (at most `size`,) of a random minibatch: positives first, filled up with negatives (§4.4, §6.3).

    `labels` (A,) of a whole batch of images: above 0 positive, 0 negative, IGNORED never drawn. As many positives as
    there are, up to `positive_fraction` of the size; negatives make up the rest. With `groups` (A,) int64, say the
    pyramid level of each, every group gives as many negatives as every other, as far as it has them.
    """
    positive, negative = (labels > NEGATIVE).nonzero().flatten(), (labels == NEGATIVE).nonzero().flatten()
    positive = _choose(positive, round(size * positive_fraction))
    count = size - len(positive)
    return torch.cat([positive, _choose(negative, count) if groups is None else _in_turn(negative, groups, count)])


def _in_turn(indices: Tensor, groups: Tensor, count: int) -> Tensor:
    """`count` of the indices at random, one of each group after the other until a group has no more."""
    of_group = groups[indices]
    chosen = [_choose(indices[of_group == group], count) for group in of_group.unique().tolist()]
    turn = torch.cat([torch.arange(len(c), device=indices.device) for c in chosen] or [indices])
    return torch.cat(chosen or [indices])[turn.argsort(stable=True)[:count]]


def _choose(indices: Tensor, count: int) -> Tensor:
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
