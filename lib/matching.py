"""From overlaps to labels, and from labels to a balanced minibatch.

B  images    A  anchors or proposals of an image    G  objects    M  sampled anchors or proposals
iou (A, G) in [0, 1]; labels (A,) integers; matched (A,) int64 indices into the G objects
"""

import torch
from torch import Tensor

IGNORED = -1  # neither positive nor negative: left out of training
NEGATIVE = 0
POSITIVE = 1


def match_anchors(iou: Tensor, positive_iou: float, negative_iou: float) -> tuple[Tensor, Tensor]:
    """IoU (A, G) -> labels (A,): POSITIVE, NEGATIVE or IGNORED; and the object (A,) of each highest IoU (§4.2).

    Positive: IoU above `positive_iou` with any object, or an object's highest IoU (ties included, and only where it is
    above 0). Negative: not positive and IoU below `negative_iou` with every object.

    Three anchors and two objects. Anchor 0 is above 0.7; anchor 1 is object 1's best, low as its IoU is; anchor 2 is
    neither positive nor below 0.3:

    >>> iou = torch.tensor([[0.8, 0.0], [0.1, 0.2], [0.5, 0.1]])
    >>> labels, matched = match_anchors(iou, positive_iou=0.7, negative_iou=0.3)
    >>> labels.tolist(), matched.tolist()
    ([1, 1, -1], [0, 1, 0])
    """
    if iou.shape[1] == 0:
        iou = iou.new_zeros(len(iou), 1)  # an object that none overlaps
    best, matched = iou.max(dim=1)  # (A,)
    highest = iou.max(dim=0).values if len(iou) else 0  # (G,)
    is_highest = ((iou == highest) & (iou > 0)).any(dim=1)
    labels = torch.full_like(matched, IGNORED)
    labels[best < negative_iou] = NEGATIVE
    labels[(best > positive_iou) | is_highest] = POSITIVE
    return labels, matched


def match_proposals(iou: Tensor, classes: Tensor, positive_iou: float) -> tuple[Tensor, Tensor]:
    """IoU (A, G), classes (G,) -> labels (A,), and the object (A,) of each one's highest IoU (§6.1).

    A label is the class of that object if the IoU is above `positive_iou`, else background, 0.

    >>> match_proposals(torch.tensor([[0.5, 0.6], [0.4, 0.0]]), torch.tensor([2, 3]), positive_iou=0.4)[0].tolist()
    [3, 0]
    """
    if iou.shape[1] == 0:
        iou, classes = iou.new_zeros(len(iou), 1), classes.new_zeros(1)
    best, matched = iou.max(dim=1)
    return torch.where(best > positive_iou, classes[matched], 0), matched


def sample(labels: Tensor, size: int, positive_fraction: float, groups: Tensor | None = None) -> Tensor:
    """Labels (B A,) of a whole batch of images -> indices (M,) of a random minibatch, positives first (§4.4, §6.3).

    Labels above 0 are positive, 0 negative, IGNORED never drawn. As many positives as there are, up to
    `positive_fraction` of the `size`; negatives make up the rest. With `groups` (A,) int64, say the pyramid level of
    each of an image's anchors, every group gives as many negatives as every other, as far as it can.
    """
    positive, negative = (labels > NEGATIVE).nonzero().flatten(), (labels == NEGATIVE).nonzero().flatten()
    positive = _choose(positive, round(size * positive_fraction))
    count = size - len(positive)
    if groups is None:
        return torch.cat([positive, _choose(negative, count)])
    return torch.cat([positive, _in_turn(negative, groups, count)])


def _in_turn(indices: Tensor, groups: Tensor, count: int) -> Tensor:
    """`count` of the indices at random, one of each group after the other until a group has no more."""
    group_of = groups[indices % len(groups)]
    chosen = [_choose(indices[group_of == group], count) for group in range(int(groups.max()) + 1)]
    turn = torch.cat([torch.arange(len(c), device=indices.device) for c in chosen])
    return torch.cat(chosen)[turn.argsort(stable=True)[:count]]


def _choose(indices: Tensor, count: int) -> Tensor:
    """At most `count` of the indices at random, in random order; of a great many, without shuffling them all."""
    if len(indices) <= 8 * count or count == 0:
        return indices[torch.randperm(len(indices), device=indices.device)[:count]]
    drawn = indices[:0]
    while len(drawn) < count:
        drawn = torch.randint(len(indices), (2 * count,), device=indices.device).unique()
    return indices[drawn[torch.randperm(len(drawn), device=indices.device)[:count]]]
