"""The region proposal network: head, targets, loss and proposals (§4.2 - §4.6).

    B  images    C  channels    K  anchors a cell    A  anchors of the pyramid    M  sampled anchors    G  objects
    boxes are xyxy in pixels of the network's input frame; logits are scores before the sigmoid; deltas are t of §4.3

Only the M sampled anchors enter the loss, and an anchor's prediction depends on the 3 x 3 cells around it alone.
Training therefore gathers these M neighbourhoods and evaluates the head there; the dense head is for making
proposals. The BatchNorm is one for all levels: it learns its statistics over the sampled positions of all levels
together and applies them, stored, everywhere; RPNs that learn statistics of sampled positions recall as much as with
those of whole maps (`benchmarks.batchnorm`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from lib.assign import assign_anchors
from lib.boxes import MIN_SIZE, clip, decode, encode, inside, iou_matrix
from lib.config import Config
from lib.matching import IGNORED, NEGATIVE, POSITIVE, match_anchors, sample
from lib.roi_align import rows_by_level


class RPNHead(nn.Module):
    """3 x 3 convolution, BatchNorm, ReLU; then 1 x 1 convolutions to K logits and 4 K deltas; shared by all levels
    (§4.3).
    """

    def __init__(self, channels: int, anchors_per_cell: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.objectness = nn.Conv2d(channels, anchors_per_cell, 1)
        self.regressor = nn.Conv2d(channels, 4 * anchors_per_cell, 1)
        for layer in (self.objectness, self.regressor):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (B, C, Sy, Sx) of all levels -> logits (B, A), deltas (B, A, 4), in the order of the anchors."""
        outputs = [self._predict(self.conv(f)) for f in features]
        logits = torch.cat([logits.flatten(1) for logits, _ in outputs], dim=1)
        deltas = torch.cat([deltas.flatten(1).view(len(deltas), -1, 4) for _, deltas in outputs], dim=1)
        return logits, deltas

    def at_patches(self, patches: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The same prediction for M anchors: 3 x 3 neighbourhoods (M, C, 3, 3), slot in the cell (M,) -> (M,), (M,
        4).
        """
        weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)  # at one position the convolution is a linear map
        hidden = F.linear(patches.permute(0, 2, 3, 1).flatten(1), weight, self.conv.bias)[..., None, None]
        logits, deltas = self._predict(hidden)
        rows = torch.arange(len(slots), device=slots.device)
        return logits.flatten(1)[rows, slots], deltas.reshape(len(slots), logits.shape[-1], 4)[rows, slots]

    def _predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, Sy, Sx) -> logits (B, Sy, Sx, K), deltas (B, Sy, Sx, 4 K)."""
        hidden = F.relu_(self.norm(hidden))
        return self.objectness(hidden).permute(0, 2, 3, 1), self.regressor(hidden).permute(0, 2, 3, 1)


def gather_patches(features: Sequence[Tensor], images: Tensor, anchors: Tensor, anchors_per_cell: int) -> Tensor:
    """The 3 x 3 cells around each anchor's cell, zero outside the map: M (image, anchor) pairs -> (M, C, 3, 3).

    `features` are the pyramid's maps (B, C, Sy, Sx), `anchors` (M,) int64 indices in the order of the pyramid.
    """
    cells = torch.tensor([f.shape[2] * f.shape[3] for f in features])
    ends = cells.cumsum(0).to(anchors.device)
    cell = anchors // anchors_per_cell
    level = torch.bucketize(cell, ends, right=True)
    cell = cell - (ends - cells.to(ends.device))[level]
    parts = rows_by_level(level, len(features))  # the pairs of each level
    patches = [_patches(f, images[part], cell[part]) for f, part in zip(features, parts, strict=True)]
    return torch.cat(patches)[torch.cat(parts).argsort()].unflatten(1, (3, 3)).permute(0, 3, 1, 2)


def _patches(features: Tensor, images: Tensor, cells: Tensor) -> Tensor:
    """The 3 x 3 cells around N (image, cell) pairs of one map (B, C, Sy, Sx), row by row, zero outside: (N, 9, C)."""
    channels, height, width = features.shape[1:]
    offset = torch.arange(9, device=cells.device)
    y = (cells // width)[:, None] + offset // 3 - 1
    x = (cells % width)[:, None] + offset % 3 - 1
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    rows = (images[:, None] * height + y.clamp(0, height - 1)) * width + x.clamp(0, width - 1)
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)  # a view where the channels come last in memory
    return F.embedding(rows, table).masked_fill(outside[..., None], 0)


def rpn_targets(anchors: Tensor, gt_boxes: Tensor, content: tuple[int, int], config: Config) -> tuple[Tensor, Tensor]:
    """The training target of each of one image's anchors (A, 4), given its objects' boxes (G, 4) (§4.2).

    Returns labels (A,), IGNORED for anchors that cross the boundary of the `content` (height, width), and boxes (A, 4):
    a positive anchor's object, any other anchor itself.
    """
    labels = torch.full((len(anchors),), IGNORED, device=anchors.device)
    boxes = anchors.clone()
    removed = config.cross_boundary == "remove"
    valid = (inside(anchors, *content) if removed else anchors.new_ones(len(anchors), dtype=bool)).nonzero().flatten()
    labels[valid], matched = match_anchors(
        iou_matrix(anchors[valid], gt_boxes), config.rpn_positive_iou, config.rpn_negative_iou
    )
    positive = labels[valid] == POSITIVE
    boxes[valid[positive]] = gt_boxes[matched[positive]]
    return labels, boxes


def anchor_labels(
    features: Sequence[Tensor], anchors: Tensor, targets: list[dict], content: tuple[int, int], config: Config
) -> tuple[Tensor, Tensor]:
    """The targets of the anchors (A, 4) in all B images: labels (B, A) and boxes (B, A, 4), the very `rpn_targets`,
    by way of the pyramid's grids.
    """
    grids, labels, boxes = tuple(tuple(f.shape[2:]) for f in features), [], []
    within = content if config.cross_boundary == "remove" else None
    for target in targets:
        assigned, positive, matched = assign_anchors(grids, target["boxes"], config, within)
        labels.append(assigned)
        boxes.append(anchors.index_copy(0, positive, target["boxes"][matched]))
    return torch.stack(labels), torch.stack(boxes)


def sample_anchors(labels: Tensor, grids: Sequence[tuple[int, int]], config: Config) -> Tensor:
    """A minibatch of anchors over all images (§4.4): labels (B, A) -> indices (M,) into the B A anchors.

    `grids` are the pyramid's (Sy, Sx). Drawn uniformly, as printed, nearly all negatives lie on P2, which has three
    quarters of the anchors: hence `rpn_negatives`.
    """
    levels = None
    if config.rpn_negatives == "balanced":
        counts = torch.tensor([rows * columns for rows, columns in grids]) * len(config.anchor_ratios)
        levels = torch.arange(len(grids)).repeat_interleave(counts).to(labels.device).repeat(len(labels))
    return sample(labels.flatten(), config.rpn_batch_samples, config.rpn_positive_fraction, levels)


@torch.no_grad()
def draw_anchors(
    features: Sequence[Tensor], anchors: Tensor, targets: list[dict], content: tuple[int, int], config: Config
) -> dict[str, Tensor]:
    """The M anchors that the RPN learns from in this batch: `images` (M,), `anchors` (M,) their indices, `slots` (M,)
    their places in their cells, `labels` (M,) POSITIVE or NEGATIVE, and `deltas` (M, 4), zero for negatives.
    """
    labels, boxes = anchor_labels(features, anchors, targets, content, config)
    drawn = sample_anchors(labels, [tuple(f.shape[2:]) for f in features], config)
    index = drawn % len(anchors)
    return {
        "images": drawn // len(anchors),
        "anchors": index,
        "slots": index % len(config.anchor_ratios),
        "labels": labels.flatten()[drawn],
        "deltas": encode(boxes.flatten(0, 1)[drawn], anchors[index]),
    }


def sample_rpn(
    features: Sequence[Tensor], anchors: Tensor, targets: list[dict], content: tuple[int, int], config: Config
) -> dict[str, Tensor]:
    """What the RPN learns from in this batch: `draw_anchors`, and their neighbourhoods `patches` (M, C, 3, 3)."""
    drawn = draw_anchors(features, anchors, targets, content, config)
    patches = gather_patches(features, drawn["images"], drawn["anchors"], len(config.anchor_ratios))
    return {"patches": patches, **drawn}


def rpn_loss(
    logits: Tensor, deltas: Tensor, labels: Tensor, target_deltas: Tensor, beta: float = 1.0
) -> dict[str, Tensor]:
    """Both losses of §4.4, each a sum divided by the M sampled anchors (§4.5): logits (M,), deltas (M, 4) -> two
    scalars.
    """
    positive, count = labels > NEGATIVE, max(len(labels), 1)
    objectness = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="sum")
    regression = F.smooth_l1_loss(deltas[positive], target_deltas[positive], reduction="sum", beta=beta)
    return {"rpn_objectness": objectness / count, "rpn_box": regression / count}


@torch.no_grad()
def propose(
    logits: Tensor, deltas: Tensor, anchors: Tensor, content: tuple[int, int], config: Config, training: bool
) -> list[dict[str, Tensor]]:
    """Post-processing of §4.6: logits (B, A), deltas (B, A, 4) -> for each image `boxes` (N, 4) and `scores` (N,),
    best first.

    Boxes that cross the boundary of the `content` (height, width) are removed in training and clipped in testing; then
    the top K, NMS, the top N. Only the top K are decoded where clipping allows it.
    """
    pre_nms = config.rpn_pre_nms_train if training else config.rpn_pre_nms_test
    post_nms = config.rpn_post_nms_train if training else config.rpn_post_nms_test
    if training and config.cross_boundary == "remove":
        logits = logits.masked_fill(~inside(decode(deltas.float(), anchors), *content), -torch.inf)
    top, index = logits.float().topk(min(pre_nms, logits.shape[1]), dim=1)
    boxes = decode(deltas.gather(1, index[..., None].expand(-1, -1, 4)).float(), anchors[index])
    proposals = []
    for box, score in zip(clip(boxes, *content), top, strict=True):
        keep = score.isfinite() & (box[:, 2:] - box[:, :2] >= MIN_SIZE).all(dim=1)
        box, score = box[keep], score[keep]
        for count in (2 * post_nms, len(box)):  # NMS never looks ahead: where the best leave enough, the rest is idle
            kept = nms(box[:count], score[:count], config.rpn_nms_iou)[:post_nms]
            if len(kept) == post_nms:
                break
        proposals.append({"boxes": box[kept], "scores": score[kept].sigmoid()})
    return proposals
