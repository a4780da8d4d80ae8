"""The region proposal network: head, targets, loss and proposals (§4.2 - §4.6).

    B  images    C  channels    K  anchors a cell    A  anchors of the pyramid    M  sampled anchors    G  objects
    boxes are xyxy in pixels of the network's input frame; logits are scores before the sigmoid; deltas are t of §4.3

Only the M sampled anchors enter the loss, and an anchor's prediction depends on the 3 x 3 cells around it alone.
Training therefore gathers these M neighbourhoods and evaluates the head there; the dense head is for making
proposals. The BatchNorm is one for all levels: it learns its statistics over the sampled positions of all levels
together and applies them, stored, everywhere.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from lib.boxes import MIN_SIZE, clip, decode, encode, inside, iou_matrix
from lib.config import Config
from lib.matching import IGNORED, NEGATIVE, POSITIVE, match_anchors, sample


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
        hidden = F.conv2d(patches, self.conv.weight, self.conv.bias)  # (M, C, 1, 1)
        logits, deltas = self._predict(hidden)
        rows = torch.arange(len(slots), device=slots.device)
        return logits.flatten(1)[rows, slots], deltas.reshape(len(slots), logits.shape[-1], 4)[rows, slots]

    def _predict(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, Sy, Sx) -> logits (B, Sy, Sx, K), deltas (B, Sy, Sx, 4 K)."""
        hidden = F.relu(self.norm(hidden))
        return self.objectness(hidden).permute(0, 2, 3, 1), self.regressor(hidden).permute(0, 2, 3, 1)


def gather_patches(features: Sequence[Tensor], images: Tensor, anchors: Tensor, anchors_per_cell: int) -> Tensor:
    """The 3 x 3 cells around each anchor's cell, zero outside the map: M (image, anchor) pairs -> (M, C, 3, 3).

    `features` are the pyramid's maps (B, C, Sy, Sx), `anchors` (M,) int64 indices in the order of the pyramid.
    """
    channels = features[0].shape[1]
    shapes = torch.tensor([f.shape[2:] for f in features]).to(anchors.device)  # (L, 2)
    cells = shapes.prod(1)
    cell = anchors // anchors_per_cell
    level = torch.bucketize(cell, cells.cumsum(0), right=True)
    cell = cell - (cells.cumsum(0) - cells)[level]
    height, width = shapes[level].unbind(1)

    # all maps, each with a border of zeros, as one table of rows (sum B (Sy + 2) (Sx + 2), C)
    table = torch.cat([F.pad(f, (1, 1, 1, 1)).permute(0, 2, 3, 1).reshape(-1, channels) for f in features])
    padded = (shapes + 2).prod(1)
    first = len(features[0]) * (padded.cumsum(0) - padded)[level] + images * padded[level]
    corner = first + cell // width * (width + 2) + cell % width  # top left of the neighbourhood
    step = torch.arange(3, device=anchors.device)
    rows = corner[:, None, None] + step[:, None] * (width + 2)[:, None, None] + step
    return F.embedding(rows, table).permute(0, 3, 1, 2)


def rpn_targets(anchors: Tensor, gt_boxes: Tensor, content: tuple[int, int], config: Config) -> tuple[Tensor, Tensor]:
    """The training target of each of one image's anchors (A, 4), given its objects' boxes (G, 4) (§4.2).

    Returns labels (A,), IGNORED for anchors that cross the boundary of the `content` (height, width), and boxes (A, 4):
    a positive anchor's object, any other anchor itself.
    """
    labels = torch.full((len(anchors),), IGNORED, device=anchors.device)
    boxes = anchors.clone()
    valid = inside(anchors, *content).nonzero().flatten()
    labels[valid], matched = match_anchors(
        iou_matrix(anchors[valid], gt_boxes), config.rpn_positive_iou, config.rpn_negative_iou
    )
    positive = labels[valid] == POSITIVE
    boxes[valid[positive]] = gt_boxes[matched[positive]]
    return labels, boxes


def sample_rpn(
    features: Sequence[Tensor], anchors: Tensor, targets: list[dict], content: tuple[int, int], config: Config
) -> dict[str, Tensor]:
    """What the RPN learns from in this batch: M anchors over all images (§4.4), their neighbourhoods and their targets.

    Returns `patches` (M, C, 3, 3), `slots` (M,) the anchor's place in its cell, `labels` (M,) POSITIVE or NEGATIVE, and
    `deltas` (M, 4), zero for negatives.
    """
    labels, boxes = map(
        torch.stack, zip(*(rpn_targets(anchors, t["boxes"], content, config) for t in targets), strict=True)
    )
    chosen = sample(labels.flatten(), config.rpn_batch_samples, config.rpn_positive_fraction)
    image, anchor = chosen // len(anchors), chosen % len(anchors)
    anchors_per_cell = len(config.anchor_ratios)
    return {
        "patches": gather_patches(features, image, anchor, anchors_per_cell),
        "slots": anchor % anchors_per_cell,
        "labels": labels[image, anchor],
        "deltas": encode(boxes[image, anchor], anchors[anchor]),
    }


def rpn_loss(logits: Tensor, deltas: Tensor, labels: Tensor, target_deltas: Tensor) -> dict[str, Tensor]:
    """Both losses of §4.4, each a sum divided by the M sampled anchors (§4.5): logits (M,), deltas (M, 4) -> two
    scalars.
    """
    positive, count = labels > NEGATIVE, max(len(labels), 1)
    objectness = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="sum")
    regression = F.smooth_l1_loss(deltas[positive], target_deltas[positive], reduction="sum")
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
    if training:
        logits = logits.masked_fill(~inside(decode(deltas.float(), anchors), *content), -torch.inf)
    top, index = logits.float().topk(min(pre_nms, logits.shape[1]), dim=1)
    boxes = decode(deltas.gather(1, index[..., None].expand(-1, -1, 4)).float(), anchors[index])
    proposals = []
    for box, score in zip(clip(boxes, *content), top, strict=True):
        keep = score.isfinite() & (box[:, 2:] - box[:, :2] >= MIN_SIZE).all(dim=1)
        box, score = box[keep], score[keep]
        keep = nms(box, score, config.rpn_nms_iou)[:post_nms]
        proposals.append({"boxes": box[keep], "scores": score[keep].sigmoid()})
    return proposals
