"""The region proposal network: head, targets, loss and proposals (§4.2 - §4.6).

    B  images    F  channels    Sy x Sx  a level's grid    a  anchors a cell    A  anchors of the pyramid
    M  sampled anchors    G  objects    K, N  proposals before and after NMS
    boxes are xyxy in pixels of the network's input frame; logits are scores before the sigmoid; deltas are t of §4.3

Only the M sampled anchors enter the loss, and an anchor's prediction depends on the 3 x 3 cells around it alone.
Training therefore gathers these M neighbourhoods and evaluates the head there; the dense head is for making
proposals. The BatchNorm is one for all levels: it learns its statistics over the sampled positions of all levels
together and applies them, stored, everywhere; RPNs that learn statistics of sampled positions recall more than with
those of whole maps (`benchmarks.batchnorm`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from lib.anchors import Maps, anchor_levels
from lib.boxes import MIN_SIZE, Named, Size, clip, decode, encode, inside, iou_matrix
from lib.machine.numbers import Numbers, count, number, share
from lib.matching import IGNORED, NEGATIVE, POSITIVE, match_anchors, sample
from lib.roi_align import rows_of_each

POSITIVE_IOU, NEGATIVE_IOU = 0.7, 0.3  # with an object: an anchor above is positive, below negative
POSITIVE_FRACTION = 0.5  # of the minibatch, where there are so many


@dataclass(frozen=True)
class ProposalLimits(Numbers):
    pre_nms: int = count(4000, "K, the proposals of an image before NMS", "§4.6")
    post_nms: int = count(1000, "N, the proposals of an image after NMS", "§4.6")


@dataclass(frozen=True)
class RPNConfig(Numbers):
    # anchors and proposals across the boundary of a training image: as printed both go; or proposals alone are clipped
    cross_boundary: str = number("clip", "across the boundary while training", "§4.2, §4.6", options=("remove", "clip"))
    # as printed they are drawn from all anchors alike, nearly all of which are on P2; or as many from every level
    negatives: str = number("balanced", "how negatives are drawn", "§4.4", options=("uniform", "balanced"))
    batch_samples: int = number(512, "M, the anchors of a minibatch, over all its images", "§4.4", low=2)
    smooth_l1_beta: float = number(1.0, "where smooth L1 turns from quadratic to linear", "§4.4", above=0)
    box_weight: float = number(1.0, "weight of the regressor's loss beside the classifier's", "§4.5", low=0)
    nms_iou: float = share(0.7, "two proposals that overlap more are one", "§4.6")
    train: ProposalLimits = ProposalLimits()
    test: ProposalLimits = ProposalLimits()


class RPNHead(nn.Module):
    """3 x 3 convolution, BatchNorm, ReLU; 1 x 1 convolutions to a logits and 4 a deltas a cell; one for all levels."""

    def __init__(self, channels: int, anchors_per_cell: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.objectness = nn.Conv2d(channels, anchors_per_cell, 1)
        self.regressor = nn.Conv2d(channels, 4 * anchors_per_cell, 1)
        for layer in (self.objectness, self.regressor):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # torch's stub forgets that bias=True

    def forward(self, features: Maps) -> tuple[Tensor, Tensor]:
        """Maps (B, F, Sy, Sx) of all levels -> logits (B, A), deltas (B, A, 4), in the order of the anchors."""
        outputs = [self._predict(self.conv(f)) for f in features]
        logits = torch.cat([logits.flatten(1) for logits, _ in outputs], dim=1)
        deltas = torch.cat([deltas.flatten(1).view(len(deltas), -1, 4) for _, deltas in outputs], dim=1)
        return logits, deltas

    def at_patches(self, patches: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (M, F, 3, 3), ratios (M,) -> logits (M,), deltas (M, 4): the same prediction for M anchors alone.

        `patches` are the cells around them, `ratios` which of its cell's a anchors each one is.
        """
        weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)  # at one position the convolution is a linear map
        hidden = F.linear(patches.permute(0, 2, 3, 1).flatten(1), weight, self.conv.bias)[..., None, None]
        logits, deltas = self._predict(hidden)
        rows = torch.arange(len(ratios), device=ratios.device)
        return logits.flatten(1)[rows, ratios], deltas.reshape(len(ratios), logits.shape[-1], 4)[rows, ratios]

    def _predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The convolution's output (B, F, Sy, Sx) -> logits (B, Sy, Sx, a), deltas (B, Sy, Sx, 4 a)."""
        hidden = F.relu_(self.norm(hidden))
        return self.objectness(hidden).permute(0, 2, 3, 1), self.regressor(hidden).permute(0, 2, 3, 1)


def gather_patches(features: Maps, images: Tensor, anchors: Tensor, anchors_per_cell: int) -> Tensor:
    """Maps (B, F, Sy, Sx), M pairs of image and anchor -> the 3 x 3 cells around each anchor's (M, F, 3, 3).

    `anchors` (M,) are int64 indices in the order of the pyramid. Outside the map there are zeros.
    """
    cells = torch.tensor([f.shape[2] * f.shape[3] for f in features]).to(anchors.device, non_blocking=True)
    ends = cells.cumsum(0)
    cell = anchors // anchors_per_cell
    level = torch.bucketize(cell, ends, right=True)
    cell = cell - (ends - cells)[level]
    parts = rows_of_each(level, len(features))  # the pairs of each level
    patches = [_patches(f, images[part], cell[part]) for f, part in zip(features, parts, strict=True)]
    return torch.cat(patches)[torch.cat(parts).argsort()].unflatten(1, (3, 3)).permute(0, 3, 1, 2)


def _patches(features: Tensor, images: Tensor, cells: Tensor) -> Tensor:
    """One map (B, F, Sy, Sx), image and cell of each anchor -> the 3 x 3 cells around it, zero outside, (., 9, F)."""
    channels, height, width = features.shape[1:]
    offset = torch.arange(9, device=cells.device)
    y = (cells // width)[:, None] + offset // 3 - 1
    x = (cells % width)[:, None] + offset % 3 - 1
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    rows = (images[:, None] * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)  # a view where the channels come last in memory
    return F.embedding(rows, table).masked_fill(outside[..., None], 0)


def rpn_targets(anchors: Tensor, gt_boxes: Tensor, content: Size, config: RPNConfig) -> tuple[Tensor, Tensor]:
    """Anchors (A, 4), an image's boxes (G, 4) -> labels (A,), and the object (A,) of each anchor's highest IoU (§4.2).

    As printed, anchors that cross the boundary of the `content` (height, width) are IGNORED and no object's best.
    """
    iou = iou_matrix(gt_boxes, anchors).mT  # (A, G); the long side last, which is faster
    if config.cross_boundary == "clip":
        return match_anchors(iou, POSITIVE_IOU, NEGATIVE_IOU)
    crossing = ~inside(anchors, *content)
    labels, matched = match_anchors(iou.masked_fill(crossing[:, None], 0), POSITIVE_IOU, NEGATIVE_IOU)
    return labels.masked_fill(crossing, IGNORED), matched


def sample_anchors(labels: Tensor, grids: Sequence[Size], config: RPNConfig) -> Tensor:
    """Labels (B, A) -> indices (M,) into the B A anchors: a minibatch over all images (§4.4).

    `grids` are the pyramid's (Sy, Sx). Drawn uniformly, as printed, most negatives lie on P2, which has three
    quarters of the anchors: hence `negatives`.
    """
    levels = None
    if config.negatives == "balanced":
        levels = anchor_levels(tuple(grids), labels.shape[1] // sum(map(math.prod, grids)), labels.device)
    return sample(labels.flatten(), config.batch_samples, POSITIVE_FRACTION, levels)


@torch.no_grad()
def draw_anchors(
    grids: Sequence[Size], anchors: Tensor, targets: list[dict], content: Size, config: RPNConfig
) -> Named:
    """The pyramid's grids and anchors (A, 4) -> the M anchors that the RPN learns from in this batch.

    `images` (M,) and `anchors` (M,) are their indices, `labels` (M,) is POSITIVE or NEGATIVE, and `deltas` (M, 4), zero
    for negatives, leads from a positive anchor to its object.
    """
    pairs = [rpn_targets(anchors, target["boxes"], content, config) for target in targets]
    labels, matched = (torch.stack(column) for column in zip(*pairs, strict=True))  # (B, A)
    drawn = sample_anchors(labels, grids, config)
    images, index = drawn // len(anchors), drawn % len(anchors)
    labels, deltas = labels.flatten()[drawn], anchors.new_zeros(len(drawn), 4)
    positive = (labels == POSITIVE).nonzero().flatten()
    counts = torch.tensor([len(target["boxes"]) for target in targets]).to(drawn.device, non_blocking=True)
    first = counts.cumsum(0) - counts  # of each image's objects, among those of all images
    objects = (first[images] + matched.flatten()[drawn])[positive]
    deltas[positive] = encode(torch.cat([target["boxes"] for target in targets])[objects], anchors[index[positive]])
    return {"images": images, "anchors": index, "labels": labels, "deltas": deltas}


def sample_rpn(features: Maps, anchors: Tensor, targets: list[dict], content: Size, config: RPNConfig) -> Named:
    """Maps (B, F, Sy, Sx), anchors (A, 4) -> what the RPN learns from in this batch.

    Those are the M anchors of `draw_anchors`, with their neighbourhoods `patches` (M, F, 3, 3) and `ratios` (M,), which
    of its cell's anchors each one is.
    """
    grids = [(f.shape[2], f.shape[3]) for f in features]
    per_cell = len(anchors) // sum(map(math.prod, grids))
    drawn = draw_anchors(grids, anchors, targets, content, config)
    patches = gather_patches(features, drawn["images"], drawn["anchors"], per_cell)
    return {"patches": patches, "ratios": drawn["anchors"] % per_cell, **drawn}


def rpn_loss(logits: Tensor, deltas: Tensor, labels: Tensor, target_deltas: Tensor, beta: float = 1.0) -> Named:
    """Logits (M,), deltas (M, 4) -> both losses of §4.4, each a sum over the sampled anchors divided by M (§4.5).

    Two anchors, a positive one that is sure of itself and half a unit off in tx, and an undecided negative one. Smooth
    L1 of 0.5 is 0.5 * 0.5^2 = 0.125, over M = 2:

    >>> logits, deltas = torch.tensor([9.0, 0.0]), torch.tensor([[0.5, 0.0, 0.0, 0.0]] * 2)
    >>> loss = rpn_loss(logits, deltas, labels=torch.tensor([1, 0]), target_deltas=torch.zeros(2, 4))
    >>> {name: round(float(value), 3) for name, value in loss.items()}  # cross entropy: (0.000 + log 2) / 2
    {'rpn_objectness': 0.347, 'rpn_box': 0.062}
    """
    positive, count = labels > NEGATIVE, max(len(labels), 1)
    objectness = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="sum")
    regression = F.smooth_l1_loss(deltas[positive], target_deltas[positive], reduction="sum", beta=beta)
    return {"rpn_objectness": objectness / count, "rpn_box": regression / count}


@torch.no_grad()
def propose(
    logits: Tensor, deltas: Tensor, anchors: Tensor, content: Size, config: RPNConfig, training: bool
) -> list[Named]:
    """Logits (B, A), deltas (B, A, 4) -> `boxes` (N, 4) and `scores` (N,) of each image: post-processing of §4.6.

    Boxes that cross the boundary of the `content` (height, width) are clipped; while training, where the config says
    so, they are removed. Then the top K, NMS, the top N, best first. Where they are clipped, only K are decoded.
    """
    limits = config.train if training else config.test
    if training and config.cross_boundary == "remove":
        logits = logits.masked_fill(~inside(decode(deltas.float(), anchors), *content), -torch.inf)
    top, index = logits.float().topk(min(limits.pre_nms, logits.shape[1]), dim=1)  # (B, K)
    boxes = decode(deltas.gather(1, index[..., None].expand(-1, -1, 4)).float(), anchors[index])  # (B, K, 4)
    proposals = []
    for box, score in zip(clip(boxes, *content), top, strict=True):
        keep = (score.isfinite() & (box[:, 2:] - box[:, :2] >= MIN_SIZE).all(dim=1)).nonzero().flatten()
        box, score = box[keep], score[keep]
        for few in (2 * limits.post_nms, len(box)):  # NMS never looks ahead: where the best leave enough, stop there
            kept = nms(box[:few], score[:few], config.nms_iou)[: limits.post_nms]
            if len(kept) == limits.post_nms:
                break
        proposals.append({"boxes": box[kept], "scores": score[kept].sigmoid()})
    return proposals
