"""The stages of training: what each one samples from the frozen parts, and the loss on those samples (§4.5, §6.4,
§7.4, §8).

    B  images    M  sampled anchors or proposals    D  boxes that train the mask head    C  channels    P  pooled size

A stage is split at one seam. `sample` runs the parts before it, with no gradient through what is frozen, and returns
a dict of tensors; `loss` runs the learning head on these samples alone and returns its losses. Where the backbone is
frozen its maps never change, and `lib.features` keeps them: a stage then starts from the stored maps.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from lib.backbone import backbone_parts
from lib.boxhead import box_loss, refine_for_training, sample_proposals, stack_rois
from lib.config import Config
from lib.data import FRAME, content_size, prepare
from lib.maskhead import mask_loss, mask_targets
from lib.maskrcnn import MaskRCNN
from lib.rpn import rpn_loss, sample_rpn

Samples = dict[str, Tensor]
_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Stage(nn.Module):
    """One stage around the shared model; `forward(images, targets)` is `loss(sample(...))`, in the form that
    accelerate wraps.
    """

    name: str

    def __init__(self, model: MaskRCNN):
        super().__init__()
        self.model, self.config = model, model.config
        learning = {id(p) for module in self.learning_modules() for p in module.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in learning)
        if self.config.trunk_batchnorm == "frozen":
            for norm in self._trunk_norms():
                norm.requires_grad_(False)

    def learning_modules(self) -> list[nn.Module]:
        """The modules whose parameters this stage trains."""
        raise NotImplementedError

    def sample(self, features: Sequence[Tensor], targets: list[dict], content: tuple[int, int]) -> Samples:
        """What the stage learns from in this batch, given its feature maps and its targets in the network frame."""
        raise NotImplementedError

    def loss(self, samples: Samples) -> dict[str, Tensor]:
        """The stage's losses (scalars by name) on its samples."""
        raise NotImplementedError

    @property
    def frozen_backbone(self) -> bool:
        return not any(p.requires_grad for p in self.model.backbone.parameters())

    def forward(self, images: Tensor | Sequence[Tensor], targets: list[dict]) -> dict[str, Tensor]:
        """A collated batch, images (B, 3, H, W) uint8 and targets in their frame -> losses; augmented while training.

        Or stored maps of the frozen backbone, (B, C, Sy, Sx) in half precision, and targets in the network frame.
        """
        if isinstance(images, Tensor):
            x, targets, content = prepare(images, targets, self.config, augment=self.training)
            with torch.no_grad() if self.frozen_backbone else nullcontext():
                features = self.model.features(x)
        else:
            features, content = [f.float() for f in images], content_size(*FRAME, self.config)
        return self.loss(self.sample(features, targets, content))

    def train(self, mode: bool = True) -> "Stage":
        """Training mode for the learning modules only: everything before them stays in eval mode."""
        super().train(False)
        self.training = mode
        for module in self.learning_modules() if mode else []:
            module.train()
        if self.config.trunk_batchnorm == "frozen":
            for norm in self._trunk_norms():
                norm.eval()
        return self

    def _trunk_norms(self) -> list[nn.Module]:
        return [m for m in self.model.backbone.modules() if isinstance(m, _BATCHNORMS)]


class RPNStage(Stage):
    """The RPN, with as much of the backbone as `config.rpn_trains` says."""

    name = "rpn"

    def learning_modules(self) -> list[nn.Module]:
        return [
            self.model.rpn,
            *backbone_parts(self.model.backbone, self.config.rpn_trains, self.config.frozen_trunk_blocks),
        ]

    def sample(self, features, targets, content):
        return sample_rpn(features, self.model.anchors(features), targets, content, self.config)

    def loss(self, samples):
        logits, deltas = self.model.rpn.at_patches(samples["patches"], samples["slots"])
        return weighted(
            rpn_loss(logits, deltas, samples["labels"], samples["deltas"], self.config.smooth_l1_beta), self.config
        )


class BoxHeadStage(Stage):
    """The box head on sampled proposals of the frozen RPN."""

    name = "boxhead"

    def learning_modules(self) -> list[nn.Module]:
        return [self.model.box_head]

    @torch.no_grad()
    def sample(self, features, targets, content):
        chosen = sample_proposals(self.model.propose(features, content, training=True), targets, self.config)
        pooled = self.model.pool(features, chosen["rois"], chosen["images"], self.config.box_pool_size)
        return {"pooled": pooled, "labels": chosen["labels"], "deltas": chosen["deltas"]}

    def loss(self, samples):
        logits, deltas = self.model.box_head(samples["pooled"])
        return weighted(
            box_loss(logits, deltas, samples["labels"], samples["deltas"], self.config.smooth_l1_beta), self.config
        )


class MaskHeadStage(Stage):
    """The mask head on the boxes that the frozen box head refines (§6.5, in training)."""

    name = "maskhead"

    def learning_modules(self) -> list[nn.Module]:
        return [self.model.mask_head]

    @torch.no_grad()
    def sample(self, features, targets, content):
        proposals = [p["boxes"] for p in self.model.propose(features, content, training=True)]
        outputs = self.model.classify(features, proposals)
        chosen = refine_for_training(*outputs, proposals, targets, content, self.config)
        return mask_samples(self.model, features, chosen, targets)

    def loss(self, samples):
        logits = self.model.mask_head(samples["pooled"])
        return weighted(mask_loss(logits, samples["labels"], samples["masks"]), self.config)


class JointStage(Stage):
    """All parts together (§8); the RPN's BatchNorm keeps its statistics, for the proposals need it as in inference.

    The samples of the three heads are drawn from the same features, and the boxes that train the mask head are
    refined from the box head's own minibatch.
    """

    name = "joint"

    def learning_modules(self) -> list[nn.Module]:
        model = self.model
        parts = backbone_parts(model.backbone, self.config.joint_trains, self.config.frozen_trunk_blocks)
        return [model.rpn, model.box_head, model.mask_head, *parts]

    def train(self, mode: bool = True) -> "JointStage":
        super().train(mode)
        self.model.rpn.norm.eval()
        return self

    def sample(self, features, targets, content):
        anchors = self.model.anchors(features)
        samples = {f"rpn_{k}": v for k, v in sample_rpn(features, anchors, targets, content, self.config).items()}
        with torch.no_grad():
            proposals = self.model.propose([f.detach() for f in features], content, training=True)
            chosen = sample_proposals(proposals, targets, self.config)
        pooled = self.model.pool(features, chosen["rois"], chosen["images"], self.config.box_pool_size)
        samples |= {"box_pooled": pooled, "box_labels": chosen["labels"], "box_deltas": chosen["deltas"]}
        with torch.no_grad():
            refined = self._refine(pooled, chosen, targets, content)
        return samples | {f"mask_{k}": v for k, v in mask_samples(self.model, features, refined, targets).items()}

    def _refine(self, pooled: Tensor, chosen: Samples, targets: list[dict], content: tuple[int, int]) -> list[dict]:
        order = chosen["images"].argsort(stable=True)
        counts = chosen["images"].bincount(minlength=len(targets)).tolist()
        logits, deltas = self.model.box_head(pooled[order])
        return refine_for_training(logits, deltas, chosen["rois"][order].split(counts), targets, content, self.config)

    def loss(self, samples):
        logits, deltas = self.model.rpn.at_patches(samples["rpn_patches"], samples["rpn_slots"])
        losses = rpn_loss(logits, deltas, samples["rpn_labels"], samples["rpn_deltas"], self.config.smooth_l1_beta)
        logits, deltas = self.model.box_head(samples["box_pooled"])
        losses |= box_loss(logits, deltas, samples["box_labels"], samples["box_deltas"], self.config.smooth_l1_beta)
        logits = self.model.mask_head(samples["mask_pooled"])
        losses |= mask_loss(logits, samples["mask_labels"], samples["mask_masks"])
        return weighted(losses, self.config)


def mask_samples(model: MaskRCNN, features: Sequence[Tensor], chosen: Sequence[dict], targets: list[dict]) -> Samples:
    """What the mask head learns from: of the chosen boxes of all images `pooled` (D, C, 14, 14), `labels` (D,) and mask
    targets `masks` (D, 28, 28).
    """
    rois, images = stack_rois([c["boxes"] for c in chosen])
    size = model.config.mask_pool_size
    masks = [mask_targets(c["boxes"], c["matched"], t["masks"], 2 * size) for c, t in zip(chosen, targets, strict=True)]
    pooled = model.pool(features, rois, images, size)
    return {"pooled": pooled, "labels": torch.cat([c["labels"] for c in chosen]), "masks": torch.cat(masks)}


def weighted(losses: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Each loss times its weight in the config."""
    weights = {
        "rpn_box": config.rpn_box_weight,
        "box_regression": config.box_loss_weight,
        "mask": config.mask_loss_weight,
    }
    return {name: loss * weights.get(name, 1.0) for name, loss in losses.items()}


STAGE_CLASSES = {stage.name: stage for stage in (RPNStage, BoxHeadStage, MaskHeadStage, JointStage)}
