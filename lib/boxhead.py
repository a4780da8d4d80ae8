"""The box head: network, targets, loss and post-processing (§6).

R  RoIs    F  channels    P  pooled size    C  classes of objects    G  objects    M  sampled proposals
K', N'  boxes before and after NMS    D  detections, or boxes that train the mask head
boxes are xyxy in pixels of the network's input frame; class 0 is background; deltas are relative to the proposal
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from lib.boxes import MIN_SIZE, Boxes, Named, Size, clip, decode, encode, inside, iou_matrix
from lib.machine.numbers import Numbers, count, number, share
from lib.matching import match_proposals, sample

POOL_SIZE = 7  # P
MASK_POSITIVE_IOU = 0.5  # of boxes that train the mask head with an object (§6.5)


@dataclass(frozen=True)
class TrainLimits(Numbers):
    pre_nms: int = count(200, "K', the boxes of an image before NMS while the mask head learns", "§6.5")
    post_nms: int = count(100, "N', the boxes of an image after NMS while the mask head learns", "§6.5")
    nms_iou: float = share(0.5, "two boxes of a class that overlap more are one", "§6.5")


@dataclass(frozen=True)
class DetectionLimits(Numbers):
    pre_nms: int = count(300, "K', the boxes of an image before NMS", "§6.5")
    post_nms: int = count(100, "N', the detections of an image", "§6.5")
    nms_iou: float = share(0.5, "two boxes of a class that overlap more are one", "§6.5")
    # 0: a proposal is of its most probable class, if that is not background; else of every class above the threshold
    score_threshold: float = share(0.0, "the least score of a detection; 0: the best class", "§6.5")


@dataclass(frozen=True)
class BoxHeadConfig(Numbers):
    hidden: int = count(1024, "width of the two linear layers", "§6.2")
    adds_truth: bool = number(False, "the objects' own boxes join the proposals in training", "§6.1")
    positive_iou: float = share(0.4, "a proposal that overlaps an object more is of its class", "§6.1")
    batch_samples: int = number(512, "M, the proposals of a minibatch, over all its images", "§6.3", low=2)
    positive_fraction: float = share(0.75, "the share of objects in a minibatch: 3 to 1 of background", "§6.3")
    smooth_l1_beta: float = number(1.0, "where smooth L1 turns from quadratic to linear", "§6.3", above=0)
    loss_weight: float = number(10.0, "brings the regressor's loss to the classifier's size", "§6.4", low=0)
    cross_boundary: str = number("clip", "across the boundary in training", "§6.5", options=("remove", "clip"))
    train: TrainLimits = TrainLimits()
    test: DetectionLimits = DetectionLimits()


class BoxHead(nn.Module):
    """Two linear layers with ReLU; then a classifier to C + 1 logits and a regressor to 4 C deltas (§6.2)."""

    def __init__(self, channels: int, hidden: int, classes: int):
        super().__init__()
        first = nn.Linear(channels * POOL_SIZE**2, hidden)
        self.mlp = nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.classifier = nn.Linear(hidden, classes + 1)
        self.regressor = nn.Linear(hidden, 4 * classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.normal_(self.regressor.weight, std=0.001)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (R, F, P, P) -> logits (R, C + 1), deltas (R, C, 4).

        The feature vector lists the F channels of one cell after the other, the order in which they lie in memory.
        """
        hidden = self.mlp(pooled.permute(0, 2, 3, 1).flatten(1))
        return self.classifier(hidden), self.regressor(hidden).unflatten(1, (-1, 4))


def box_targets(proposals: Tensor, gt_boxes: Tensor, gt_labels: Tensor, config: BoxHeadConfig) -> tuple[Tensor, Tensor]:
    """One image's proposals (R, 4) -> classes (R,), 0 for background, and boxes (R, 4) to aim at (§6.1).

    The box is the matched object's, for background the proposal itself.
    """
    labels, matched = match_proposals(iou_matrix(proposals, gt_boxes), gt_labels, config.positive_iou)
    itself = len(gt_boxes) + torch.arange(len(proposals), device=labels.device)
    return labels, torch.cat([gt_boxes, proposals])[torch.where(labels > 0, matched, itself)]


def sample_proposals(proposals: list[Named], targets: list[dict], config: BoxHeadConfig) -> Named:
    """Proposals of each image -> M of them: `rois` (M, 4), `images` (M,), `labels` (M,) and `deltas` (M, 4) (§6.3).

    Objects to background are as close to 3 : 1 as there are objects. `images` has the image of each; the deltas of
    background are zero.
    """
    proposed = [p["boxes"] for p in proposals]
    if config.adds_truth:
        proposed = [torch.cat([p, t["boxes"]]) for p, t in zip(proposed, targets, strict=True)]
    rois, images = stack_rois(proposed)
    pairs = [box_targets(p, t["boxes"], t["labels"], config) for p, t in zip(proposed, targets, strict=True)]
    labels, boxes = (torch.cat(column) for column in zip(*pairs, strict=True))
    drawn = sample(labels, config.batch_samples, config.positive_fraction)
    rois, boxes = rois[drawn], boxes[drawn]
    return {"rois": rois, "images": images[drawn], "labels": labels[drawn], "deltas": encode(boxes, rois)}


def stack_rois(boxes: Boxes) -> tuple[Tensor, Tensor]:
    """Boxes (Ri, 4) of each image -> all boxes (R, 4) and the image of each (R,)."""
    images = [torch.full((len(b),), image, device=b.device) for image, b in enumerate(boxes)]
    return torch.cat(list(boxes)), torch.cat(images)


def box_loss(logits: Tensor, deltas: Tensor, labels: Tensor, target_deltas: Tensor, beta: float = 1.0) -> Named:
    """Logits (M, C + 1), deltas (M, C, 4) -> both losses of §6.3, each a sum divided by the M proposals.

    The regressor is judged on the deltas of the true class alone, and not at all for background.
    """
    count = max(len(labels), 1)
    positive = (labels > 0).nonzero().flatten()
    classification = F.cross_entropy(logits, labels, reduction="sum")
    predicted = deltas[positive, labels[positive] - 1]
    regression = F.smooth_l1_loss(predicted, target_deltas[positive], reduction="sum", beta=beta)
    return {"box_class": classification / count, "box_regression": regression / count}


@torch.no_grad()
def refine(logits: Tensor, deltas: Tensor, proposals: Boxes, content: Size, config: BoxHeadConfig) -> list[Named]:
    """Outputs for the proposals (Ri, 4) of each image -> its detections, best first: post-processing in testing (§6.5).

    Each proposal becomes one box of its most probable class, and background is removed; or, where the config has a
    score threshold, one of every class above it. Boxes are clipped to the `content` (height, width), then the top K',
    NMS for each class, the top N'. Returns `boxes` (D, 4), `labels` (D,), `scores` (D,).
    """
    detections, limits = [], config.test
    candidates = _every_class if limits.score_threshold > 0 else _best_class
    for boxes, labels, scores, is_object in candidates(logits, deltas, proposals):
        boxes = clip(boxes, *content)
        keep = is_object & (scores > limits.score_threshold) & (boxes[:, 2:] - boxes[:, :2] >= MIN_SIZE).all(dim=1)
        keep = _top(boxes, labels, scores, keep, limits)
        detections.append({"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]})
    return detections


@torch.no_grad()
def refine_for_training(
    logits: Tensor, deltas: Tensor, proposals: Boxes, targets: list[dict], content: Size, config: BoxHeadConfig
) -> list[Named]:
    """Outputs for the proposals (Ri, 4) of each image -> its boxes that train the mask head (§6.5).

    They overlap an object by more than 0.5. What crosses the boundary of the `content` (height, width) is clipped, or
    removed where the config says so. Then the top K', NMS for each class, the top N'. Returns for each image `boxes`
    (D, 4), `labels` (D,) the class of the matched object and `matched` (D,) its index.
    """
    chosen = []
    for (boxes, labels, scores, _), target in zip(_best_class(logits, deltas, proposals), targets, strict=True):
        if config.cross_boundary == "clip":
            boxes = clip(boxes, *content)
        object_of, matched = match_proposals(iou_matrix(boxes, target["boxes"]), target["labels"], MASK_POSITIVE_IOU)
        keep = _top(boxes, labels, scores, inside(boxes, *content) & (object_of > 0), config.train)
        chosen.append({"boxes": boxes[keep], "labels": object_of[keep], "matched": matched[keep]})
    return chosen


def _best_class(logits: Tensor, deltas: Tensor, proposals: Boxes) -> Iterator[tuple[Tensor, ...]]:
    """For each image: boxes (R, 4) and labels (R,) of the best class, its probability, whether it beats background."""
    probabilities = logits.float().softmax(dim=1)
    scores, labels = probabilities[:, 1:].max(dim=1)
    is_object = scores > probabilities[:, 0]
    chosen = deltas[torch.arange(len(labels), device=labels.device), labels].float()
    columns = decode(chosen, torch.cat(list(proposals))), labels + 1, scores, is_object
    return zip(*(column.split([len(p) for p in proposals]) for column in columns), strict=True)


def _every_class(logits: Tensor, deltas: Tensor, proposals: Boxes) -> Iterator[tuple[Tensor, ...]]:
    """For each image: boxes (R C, 4) and labels (R C,) of every class, their probabilities, all of them objects."""
    scores = logits.float().softmax(dim=1)[:, 1:]
    boxes = decode(deltas.float(), torch.cat(list(proposals))[:, None])  # (R, C, 4)
    labels = torch.arange(1, scores.shape[1] + 1, device=logits.device).expand_as(scores)
    columns = boxes, labels, scores, torch.ones_like(labels, dtype=torch.bool)
    return zip(*(c.flatten(0, 1).split([len(p) * scores.shape[1] for p in proposals]) for c in columns), strict=True)


def _top(boxes: Tensor, labels: Tensor, scores: Tensor, keep: Tensor, limits: TrainLimits | DetectionLimits) -> Tensor:
    """Boxes (R, 4) -> indices (N',) of those that survive: `keep` (R,), the top K', NMS for each class, the top N'."""
    candidates = keep.nonzero().flatten()
    candidates = candidates[scores[candidates].argsort(descending=True, stable=True)[: limits.pre_nms]]
    survivors = batched_nms(boxes[candidates], scores[candidates], labels[candidates], limits.nms_iou)
    return candidates[survivors[: limits.post_nms]]
