"""The four stages of training: what each one samples from the frozen parts, and the loss on those samples (§4.5,
§6.4, §7.4, §8).

    B  images    M  sampled anchors or proposals    D  boxes that train the mask head    C  channels    P  pooled size

A stage is split at one seam. `sample` runs the parts before it, with no gradient through what is frozen, and returns
a dict of tensors; `loss` runs the learning head on these samples alone and returns its losses. `sample` itself takes
three steps: `candidates` says what a minibatch can be drawn from, a row each and no features; `draw` chooses rows;
`gather` adds the features of the chosen. Where everything before the head is frozen, neither an image's candidates
nor their features ever change, and `lib.cache` keeps them.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from lib.backbone import backbone_parts
from lib.boxhead import box_loss, proposal_candidates, refine_for_training, sample_proposals, stack_rois
from lib.config import STAGES, Config
from lib.data import prepare
from lib.maskhead import class_mask_loss, mask_targets
from lib.maskrcnn import MaskRCNN
from lib.matching import sample, superset, take
from lib.rpn import anchor_candidates, gather_rpn, rpn_loss, sample_rpn

Samples = dict[str, Tensor]
_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Stage(nn.Module):
    """One stage around the shared model; `forward(images, targets)` is `loss(sample(...))`, in the form that
    accelerate wraps.
    """

    name: str
    before: tuple[str, ...]  # the parts of the model that it samples from
    times_kept: int  # a cache holds so many times an image's share of a minibatch

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

    def candidates(self, features: Sequence[Tensor], targets: list[dict], content: tuple[int, int]) -> Samples:
        """What can be learnt from in this batch, given its feature maps and its targets in the network frame.

        Columns of one row a candidate, among them `images` (N,) and `labels` (N,), without features.
        """
        raise NotImplementedError

    @property
    def minibatch(self) -> tuple[int, float]:
        """Rows drawn for a minibatch, and the largest share of positives among them."""
        raise NotImplementedError

    def draw(self, labels: Tensor) -> Tensor:
        """The rows of a minibatch, drawn from candidates with these labels (N,)."""
        return sample(labels, *self.minibatch)

    def keep(self, labels: Tensor, images: int) -> Tensor:
        """Of one image's candidates, the rows that suffice for many minibatches over so many images."""
        return superset(labels, *self.minibatch, images, self.times_kept)

    def gather(self, features: Sequence[Tensor], chosen: Samples) -> Samples:
        """The samples for `loss`, a row each: targets and features of the chosen candidates."""
        raise NotImplementedError

    def sample(self, features: Sequence[Tensor], targets: list[dict], content: tuple[int, int]) -> Samples:
        """What the stage learns from in this batch."""
        candidates = self.candidates(features, targets, content)
        return self.gather(features, take(candidates, self.draw(candidates["labels"])))

    def loss(self, samples: Samples) -> dict[str, Tensor]:
        """The stage's losses (scalars by name) on its samples."""
        raise NotImplementedError

    @property
    def frozen_inputs(self) -> bool:
        """Whether nothing that it samples from learns."""
        return not any(p.requires_grad for part in self.before for p in getattr(self.model, part).parameters())

    def forward(self, images: Tensor | Samples, targets: list[dict] | None = None) -> dict[str, Tensor]:
        """A collated batch, images (B, 3, H, W) uint8 -> losses; augmented while training.

        Instead of a batch, samples that were drawn before will do, their features in any precision.
        """
        if targets is None:
            return self.loss({k: v.float() if v.is_floating_point() else v for k, v in images.items()})
        x, targets, content = prepare(images, targets, self.config, augment=self.training)
        with torch.no_grad() if self.frozen_inputs else nullcontext():
            features = self.model.features(x)
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
    before = ("backbone",)
    times_kept = 4

    def learning_modules(self) -> list[nn.Module]:
        return [
            self.model.rpn,
            *backbone_parts(self.model.backbone, self.config.rpn_trains, self.config.frozen_trunk_blocks),
        ]

    @torch.no_grad()
    def candidates(self, features, targets, content):
        return anchor_candidates(features, self.model.anchors(features), targets, content, self.config)

    @property
    def minibatch(self):
        return self.config.rpn_batch_samples, self.config.rpn_positive_fraction

    def gather(self, features, chosen):
        return gather_rpn(features, self.model.anchors(features), chosen, self.config)

    def loss(self, samples):
        logits, deltas = self.model.rpn.at_patches(samples["patches"], samples["slots"])
        return weighted(
            rpn_loss(logits, deltas, samples["labels"], samples["deltas"], self.config.smooth_l1_beta), self.config
        )


class BoxHeadStage(Stage):
    """The box head on sampled proposals of the frozen RPN."""

    name = "boxhead"
    before = ("backbone", "rpn")
    times_kept = 2  # a row is five times as large as the RPN's

    def learning_modules(self) -> list[nn.Module]:
        return [self.model.box_head]

    @torch.no_grad()
    def candidates(self, features, targets, content):
        return proposal_candidates(self.model.propose(features, content, training=True), targets, self.config)

    @property
    def minibatch(self):
        return self.config.box_batch_samples, self.config.box_positive_fraction

    @torch.no_grad()
    def gather(self, features, chosen):
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
    before = ("backbone", "rpn", "box_head")

    def learning_modules(self) -> list[nn.Module]:
        return [self.model.mask_head]

    @torch.no_grad()
    def candidates(self, features, targets, content):
        proposals = [p["boxes"] for p in self.model.propose(features, content, training=True)]
        outputs = self.model.classify(features, proposals)
        chosen = refine_for_training(*outputs, proposals, targets, content, self.config)
        return mask_candidates(chosen, targets, self.config)

    def draw(self, labels):
        return torch.arange(len(labels), device=labels.device)  # all of them

    def keep(self, labels, images):
        return self.draw(labels)

    @torch.no_grad()
    def gather(self, features, chosen):
        return gather_masks(self.model, features, chosen)

    def loss(self, samples):
        logits = self.model.mask_head.of_class(samples["pooled"], samples["labels"])
        return weighted(class_mask_loss(logits, samples["masks"]), self.config)


class JointStage(Stage):
    """All parts together (§8); the RPN's BatchNorm keeps its statistics, for the proposals need it as in inference.

    The samples of the three heads are drawn from the same features, and the boxes that train the mask head are
    refined from the box head's own minibatch.
    """

    name = "joint"
    before = ("backbone", "rpn", "box_head")

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
        logits = self.model.mask_head.of_class(samples["mask_pooled"], samples["mask_labels"])
        losses |= class_mask_loss(logits, samples["mask_masks"])
        return weighted(losses, self.config)


@torch.no_grad()
def mask_candidates(chosen: Sequence[dict], targets: list[dict], config: Config) -> Samples:
    """The chosen boxes of all images, all of which train the mask head: `rois` (D, 4), `images` (D,), `labels` (D,) and
    mask targets `masks` (D, 28, 28).
    """
    rois, images = stack_rois([c["boxes"] for c in chosen])
    masks = [
        mask_targets(c["boxes"], c["matched"], t["masks"], 2 * config.mask_pool_size)
        for c, t in zip(chosen, targets, strict=True)
    ]
    return {
        "rois": rois,
        "images": images,
        "labels": torch.cat([c["labels"] for c in chosen]),
        "masks": torch.cat(masks),
    }


def gather_masks(model: MaskRCNN, features: Sequence[Tensor], chosen: Samples) -> Samples:
    """`pooled` (D, C, 14, 14), `labels` (D,) and mask targets `masks` (D, 28, 28) of the candidates of all images."""
    pooled = model.pool(features, chosen["rois"], chosen["images"], model.config.mask_pool_size)
    return {"pooled": pooled, "labels": chosen["labels"], "masks": chosen["masks"]}


def mask_samples(model: MaskRCNN, features: Sequence[Tensor], chosen: Sequence[dict], targets: list[dict]) -> Samples:
    """What the mask head learns from: `gather_masks` of all candidates."""
    return gather_masks(model, features, mask_candidates(chosen, targets, model.config))


def weighted(losses: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Each loss times its weight in the config."""
    weights = {
        "rpn_box": config.rpn_box_weight,
        "box_regression": config.box_loss_weight,
        "mask": config.mask_loss_weight,
    }
    return {name: loss * weights.get(name, 1.0) for name, loss in losses.items()}


STAGE_CLASSES = {stage.name: stage for stage in (RPNStage, BoxHeadStage, MaskHeadStage, JointStage)}
assert tuple(STAGE_CLASSES) == STAGES
