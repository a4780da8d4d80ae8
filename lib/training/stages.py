"""The stages of training: what each learns, what it samples for that, and the loss on it (§4.5, §6.4, §7.4, §8).

    B  images    F  channels    Sy x Sx  a level's grid    Hp x Wp  the network's input    P  pooled size
    M  sampled anchors or proposals    D  boxes that train the mask head    m  side of a predicted mask
    features: the maps P2 ... P6, each (B, F, Sy, Sx); targets in the network frame; content (height, width)

`sample` runs the parts before the one that learns, with no gradient through what is frozen, and returns a dict of
tensors; `loss` runs the learning head on these samples alone and returns its losses. Joint fine-tuning is the three
stages at once, on the same features.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lib.anchors import Maps
from lib.boxes import Boxes, Named, Size
from lib.boxhead import POOL_SIZE, box_loss, refine_for_training, sample_proposals, stack_rois
from lib.maskhead import POOL_SIZE as MASK_POOL_SIZE
from lib.maskhead import mask_loss, mask_targets
from lib.maskrcnn import MaskRCNN
from lib.roi_align import rows_of_each
from lib.rpn import rpn_loss, sample_rpn


class Stage:
    """What all stages have. Making one changes nothing in the model."""

    name: str
    heads: tuple[str, ...]  # the model's parts that it trains
    reads: tuple[str, ...]  # the groups of the config that its training depends on

    def __init__(self, model: MaskRCNN):
        self.model, self.config = model, model.config

    def learns(self) -> list[nn.Module]:
        """The modules whose parameters this stage trains: its heads, and as much of the backbone as the config says."""
        trains, frozen = getattr(getattr(self.config, self.name), "trains", "none"), self.config.backbone.frozen_blocks
        heads = [getattr(self.model, head) for head in self.heads]
        return heads + backbone_parts(self.model.backbone, trains, frozen)

    def sample(self, features: Maps, targets: list[dict], content: Size) -> Named:
        """What the stage learns from in this batch."""
        raise NotImplementedError

    def loss(self, samples: Named) -> Named:
        """The stage's losses on its samples, scalars by name, weighted as the config says."""
        raise NotImplementedError


class RPNStage(Stage):
    """The RPN, with as much of the backbone as the config says."""

    name, heads = "rpn", ("rpn",)
    reads = ("image", "backbone", "anchors", "rpn", "training")

    def sample(self, features, targets, content):
        return sample_rpn(features, self.model.anchors(features), targets, content, self.config.rpn)

    def loss(self, samples):
        logits, deltas = self.model.rpn.at_patches(samples["patches"], samples["ratios"])
        losses = rpn_loss(logits, deltas, samples["labels"], samples["deltas"], self.config.rpn.smooth_l1_beta)
        return losses | {"rpn_box": losses["rpn_box"] * self.config.rpn.box_weight}


class BoxHeadStage(Stage):
    """The box head on sampled proposals of the RPN."""

    name, heads = "boxhead", ("box_head",)
    reads = (*RPNStage.reads, "classes", "roi_align", "boxhead")

    def sample(self, features, targets, content):
        with torch.no_grad():
            proposals = self.model.propose([f.detach() for f in features], content, training=True)
            chosen = sample_proposals(proposals, targets, self.config.boxhead)
        return {**chosen, "pooled": self.model.pool(features, chosen["rois"], chosen["images"], POOL_SIZE)}

    def loss(self, samples):
        logits, deltas = self.model.box_head(samples["pooled"])
        losses = box_loss(logits, deltas, samples["labels"], samples["deltas"], self.config.boxhead.smooth_l1_beta)
        return losses | {"box_regression": losses["box_regression"] * self.config.boxhead.loss_weight}


class MaskHeadStage(Stage):
    """The mask head on the boxes that the box head refines (§6.5, in training)."""

    name, heads = "maskhead", ("mask_head",)
    reads = (*BoxHeadStage.reads, "maskhead")

    @torch.no_grad()
    def sample(self, features, targets, content):
        proposals = [p["boxes"] for p in self.model.propose(features, content, training=True)]
        return self.of_boxes(features, self.model.classify(features, proposals), proposals, targets, content)

    def of_boxes(
        self, features: Maps, outputs: tuple[Tensor, Tensor], proposals: Boxes, targets: list[dict], content: Size
    ) -> Named:
        """The box head's `outputs` for the proposals (Ri, 4) of each image -> what the mask head learns from."""
        with torch.no_grad():
            chosen = refine_for_training(*outputs, proposals, targets, content, self.config.boxhead)
        return mask_samples(self.model, features, chosen, targets)

    def loss(self, samples):
        losses = mask_loss(self.model.mask_head(samples["pooled"]), samples["labels"], samples["masks"])
        return {name: loss * self.config.maskhead.loss_weight for name, loss in losses.items()}


def mask_samples(model: MaskRCNN, features: Maps, chosen: Sequence[Named], targets: list[dict]) -> Named:
    """Boxes chosen in each image -> `pooled` (D, F, P, P), `labels` (D,) and mask targets `masks` (D, m, m) of all."""
    rois, images = stack_rois([c["boxes"] for c in chosen])
    pairs = zip(chosen, targets, strict=True)
    masks = torch.cat([mask_targets(c["boxes"], c["matched"], t["masks"]) for c, t in pairs])
    pooled = model.pool(features, rois, images, MASK_POOL_SIZE)
    return {"pooled": pooled, "labels": torch.cat([c["labels"] for c in chosen]), "masks": masks}


class JointStage(Stage):
    """All parts together (§8): the three stages on the same features.

    The mask head's boxes are refined from the box head's own minibatch.
    """

    name, heads = "joint", ("rpn", "box_head", "mask_head")
    reads = (*MaskHeadStage.reads, "joint")

    def __init__(self, model: MaskRCNN):
        super().__init__(model)
        self.rpn, self.boxhead, self.maskhead = RPNStage(model), BoxHeadStage(model), MaskHeadStage(model)

    def sample(self, features, targets, content):
        rpn = self.rpn.sample(features, targets, content)
        box = self.boxhead.sample(features, targets, content)
        rows = rows_of_each(box["images"], len(targets))
        with torch.no_grad():
            outputs = self.model.box_head(box["pooled"][torch.cat(rows)])
        mask = self.maskhead.of_boxes(features, outputs, [box["rois"][r] for r in rows], targets, content)
        parts = {"rpn": rpn, "boxhead": box, "maskhead": mask}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}

    def loss(self, samples):
        losses: Named = {}
        for stage in (self.rpn, self.boxhead, self.maskhead):
            prefix = f"{stage.name}."
            losses |= stage.loss({k.removeprefix(prefix): v for k, v in samples.items() if k.startswith(prefix)})
        return losses


def backbone_parts(backbone: Any, trains: str, frozen_blocks: int) -> list[nn.Module]:
    """The modules that learn where `trains`, one of PARTS, is "none", "fpn" or "all" (but the trunk's first blocks)."""
    if trains == "none":
        return []
    if not hasattr(backbone, "fpn"):
        return [backbone] if trains == "all" else []
    return [backbone.fpn, *(list(backbone.body.children())[frozen_blocks:] if trains == "all" else [])]


STAGE_CLASSES = {stage.name: stage for stage in (RPNStage, BoxHeadStage, MaskHeadStage, JointStage)}
_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Learner(nn.Module):
    """A stage in the form that accelerate wraps: `forward` goes from a batch to losses, `train` lets the stage learn.

    `features` makes a batch's maps of what the loader gives: by the model's backbone of the network's input
    (B, 3, Hp, Wp), or of stored maps. From here on the parameters of other modules need no gradient.
    """

    def __init__(self, stage: Stage, features: Callable[[Any], list[Tensor]] | None = None):
        super().__init__()
        self.model, self.stage, self._features = stage.model, stage, features or stage.model.features
        learning = {id(p) for module in stage.learns() for p in module.parameters()}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in learning)
        for norm in self._frozen_norms():
            norm.requires_grad_(False)

    @property
    def frozen_backbone(self) -> bool:
        return not any(p.requires_grad for p in self.model.backbone.parameters())

    def forward(self, x: Any, targets: list[dict], content: Size) -> Named:
        """The network's input, or stored maps, and the targets in its frame -> the stage's losses."""
        with torch.no_grad() if self.frozen_backbone else nullcontext():
            features = self._features(x)
        return self.stage.loss(self.stage.sample(features, targets, content))

    def train(self, mode: bool = True) -> "Learner":
        """Training mode for the learning modules only: everything else stays in eval mode.

        So do the backbone's BatchNorms, unless the config has them trained, and in joint training the RPN's, which must
        propose as it will later.
        """
        super().train(False)
        self.training = mode
        for module in self.stage.learns() if mode else []:
            module.train()
        for norm in self._frozen_norms():
            norm.eval()
        if self.stage.name == "joint":
            self.model.rpn.norm.eval()
        return self

    def _frozen_norms(self) -> list[nn.Module]:
        if self.model.config.backbone.batchnorm == "trained":
            return []
        return [m for m in self.model.backbone.modules() if isinstance(m, _BATCHNORMS)]
