"""The box head: network, targets, loss and post-processing (§6).

R  RoIs    C  channels of the pyramid    P  pooled size    K  classes of objects (3)    M  sampled proposals    G
objects boxes are xyxy in pixels of the network's input frame; class 0 is background; deltas are relative to the
proposal
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from lib.boxes import MIN_SIZE, clip, decode, encode, inside, iou_matrix
from lib.config import NUM_CLASSES, Config
from lib.matching import match_proposals, sample


class BoxHead(nn.Module):
    """Two linear layers with ReLU; then a linear classifier to K + 1 logits and a linear regressor to 4 K deltas
    (§6.2).
    """

    def __init__(self, channels: int, pool_size: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels * pool_size**2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.classifier = nn.Linear(hidden, NUM_CLASSES + 1)
        self.regressor = nn.Linear(hidden, 4 * NUM_CLASSES)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.normal_(self.regressor.weight, std=0.001)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (R, C, P, P) -> logits (R, K + 1), deltas (R, K, 4).

        The feature vector lists the C channels of one cell after the other, the order in which they lie in memory.
        """
        hidden = self.mlp(pooled.permute(0, 2, 3, 1).flatten(1))
        return self.classifier(hidden), self.regressor(hidden).view(-1, NUM_CLASSES, 4)


def box_targets(proposals: Tensor, gt_boxes: Tensor, gt_labels: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Of one image's proposals (R, 4): classes (R,), 0 for background, and boxes (R, 4), the matched object's or
    itself (§6.1).
    """
    labels, matched = match_proposals(iou_matrix(proposals, gt_boxes), gt_labels, config.box_positive_iou)
    boxes = proposals.clone()
    boxes[labels > 0] = gt_boxes[matched[labels > 0]]
    return labels, boxes


def sample_proposals(proposals: Sequence[dict], targets: Sequence[dict], config: Config) -> dict[str, Tensor]:
    """The minibatch of §6.3: M proposals over all images, objects to background as close to 3 : 1 as there are objects.

    Returns `rois` (M, 4), `images` (M,) the image of each, `labels` (M,) and `deltas` (M, 4), zero for background.
    """
    proposed = [p["boxes"] for p in proposals]
    if config.box_adds_truth:
        proposed = [torch.cat([p, t["boxes"]]) for p, t in zip(proposed, targets, strict=True)]
    rois, images = stack_rois(proposed)
    pairs = [box_targets(p, t["boxes"], t["labels"], config) for p, t in zip(proposed, targets, strict=True)]
    labels, boxes = (torch.cat(column) for column in zip(*pairs, strict=True))
    drawn = sample(labels, config.box_batch_samples, config.box_positive_fraction)
    rois, boxes = rois[drawn], boxes[drawn]
    return {"rois": rois, "images": images[drawn], "labels": labels[drawn], "deltas": encode(boxes, rois)}


def stack_rois(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes (Ri, 4) of each image -> all boxes (R, 4) and the image of each (R,)."""
    counts = torch.tensor([len(b) for b in boxes], device=boxes[0].device)
    return torch.cat(list(boxes)), torch.repeat_interleave(torch.arange(len(boxes), device=counts.device), counts)


def box_loss(
    logits: Tensor, deltas: Tensor, labels: Tensor, target_deltas: Tensor, beta: float = 1.0
) -> dict[str, Tensor]:
    """Both losses of §6.3, each a sum divided by the M proposals: logits (M, K + 1), deltas (M, K, 4) -> two scalars.

    The regressor is judged on the deltas of the true class alone, and not at all for background.
    """
    count = max(len(labels), 1)
    positive = (labels > 0).nonzero().flatten()
    classification = F.cross_entropy(logits, labels, reduction="sum")
    predicted = deltas[positive, labels[positive] - 1]
    regression = F.smooth_l1_loss(predicted, target_deltas[positive], reduction="sum", beta=beta)
    return {"box_class": classification / count, "box_regression": regression / count}


@torch.no_grad()
def refine(
    logits: Tensor, deltas: Tensor, proposals: Sequence[Tensor], content: tuple[int, int], config: Config
) -> list[dict]:
    """Post-processing in testing (§6.5): head outputs for the proposals (Ri, 4) of each image -> its detections, best
    first.

    Each proposal becomes one box of its most probable class, and background is removed; or, where the config has a
    score threshold, one of every class above it. Boxes are clipped to the `content` (height, width), then the top K',
    NMS for each class, the top N'. Returns `boxes`, `labels`, `scores`.
    """
    detections = []
    candidates = _every_class if config.box_score_threshold > 0 else _best_class
    for boxes, labels, scores, is_object in candidates(logits, deltas, proposals):
        boxes = clip(boxes, *content)
        is_object = is_object & (scores > config.box_score_threshold)
        keep = is_object & (boxes[:, 2:] - boxes[:, :2] >= MIN_SIZE).all(dim=1)
        keep = _top(boxes, labels, scores, keep, config.box_pre_nms_test, config.box_post_nms_test, config.box_nms_iou)
        detections.append({"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]})
    return detections


@torch.no_grad()
def refine_for_training(
    logits: Tensor,
    deltas: Tensor,
    proposals: Sequence[Tensor],
    targets: Sequence[dict],
    content: tuple[int, int],
    config: Config,
) -> list[dict]:
    """Post-processing while the mask head learns (§6.5): boxes inside the image, or cut at its edge where the config
    says so, with IoU > 0.5 with an object.

    Then the top K', NMS for each class, the top N'. Returns for each image `boxes` (D, 4), `labels` (D,) the class of
    the matched object and `matched` (D,) its index.
    """
    chosen = []
    for (boxes, labels, scores, _), target in zip(_best_class(logits, deltas, proposals), targets, strict=True):
        if config.cross_boundary == "clip":
            boxes = clip(boxes, *content)
        object_of, matched = match_proposals(
            iou_matrix(boxes, target["boxes"]), target["labels"], config.mask_positive_iou
        )
        keep = inside(boxes, *content) & (object_of > 0)
        keep = _top(
            boxes, labels, scores, keep, config.box_pre_nms_train, config.box_post_nms_train, config.box_nms_iou_train
        )
        chosen.append({"boxes": boxes[keep], "labels": object_of[keep], "matched": matched[keep]})
    return chosen


def _best_class(logits: Tensor, deltas: Tensor, proposals: Sequence[Tensor]):
    """For each image: boxes (R, 4) and labels (R,) of the best class of objects, its probability, and whether it
    beats background.
    """
    probabilities = logits.float().softmax(dim=1)
    scores, labels = probabilities[:, 1:].max(dim=1)
    is_object = scores > probabilities[:, 0]
    chosen = deltas[torch.arange(len(labels), device=labels.device), labels].float()
    boxes = decode(chosen, torch.cat(list(proposals)))
    counts = [len(p) for p in proposals]
    return zip(*(v.split(counts) for v in (boxes, labels + 1, scores, is_object)), strict=True)


def _every_class(logits: Tensor, deltas: Tensor, proposals: Sequence[Tensor]):
    """For each image the same for every class of every proposal: boxes (R K, 4), labels, probabilities, all objects."""
    scores = logits.float().softmax(dim=1)[:, 1:]
    boxes = decode(deltas.float(), torch.cat(list(proposals))[:, None])  # (R, K, 4)
    labels = torch.arange(1, NUM_CLASSES + 1, device=logits.device).expand_as(scores)
    counts = [len(p) * NUM_CLASSES for p in proposals]
    columns = (boxes.flatten(0, 1), labels.flatten(), scores.flatten(), torch.ones_like(labels, dtype=bool).flatten())
    return zip(*(v.split(counts) for v in columns), strict=True)


def _top(
    boxes: Tensor, labels: Tensor, scores: Tensor, keep: Tensor, pre_nms: int, post_nms: int, nms_iou: float
) -> Tensor:
    """Indices of the boxes that survive: of those in `keep` (R,) bool the top K', NMS for each class, the top N'."""
    candidates = keep.nonzero().flatten()
    candidates = candidates[scores[candidates].argsort(descending=True, stable=True)[:pre_nms]]
    survivors = batched_nms(boxes[candidates], scores[candidates], labels[candidates], nms_iou)
    return candidates[survivors[:post_nms]]
