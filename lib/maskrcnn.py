"""The parts composed (§1, figure 2): images in, detections in the original frame out.

B  images    F  channels    Sy x Sx  a level's grid    A  anchors    N  proposals    R  RoIs    P  pooled size
C  classes of objects    D  detections of an image    Hp x Wp  the network's input    H x W  images as given
network frame: pixels of the rescaled and padded input; original frame: pixels of the image as given
content: (height, width) of the rescaled image inside the padding
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib import boxhead, maskhead
from lib.anchors import STRIDES, AnchorConfig, Maps, pyramid_anchors
from lib.backbone import BackboneConfig, build_backbone
from lib.boxes import Boxes, Named, Size, clip, scale_boxes
from lib.boxhead import BoxHead, BoxHeadConfig, refine, stack_rois
from lib.machine.numbers import Numbers
from lib.maskhead import MaskHead, MaskHeadConfig, class_masks, paste_masks
from lib.preprocess import ImageConfig, content_size, preprocess_images
from lib.roi_align import RoIAlignConfig, pool, pyramid_level
from lib.rpn import RPNConfig, RPNHead, propose

COURSE_CLASSES = ("vehicle", "person", "animal")


@dataclass(frozen=True)
class SystemConfig(Numbers):
    """The numbers of all parts, and the names of the C classes of objects, which the data set says."""

    classes: tuple[str, ...] = COURSE_CLASSES
    image: ImageConfig = ImageConfig()
    backbone: BackboneConfig = BackboneConfig()
    anchors: AnchorConfig = AnchorConfig()
    rpn: RPNConfig = RPNConfig()
    roi_align: RoIAlignConfig = RoIAlignConfig()
    boxhead: BoxHeadConfig = BoxHeadConfig()
    maskhead: MaskHeadConfig = MaskHeadConfig()

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each label, from 0."""
        return ("background", *self.classes)


class MaskRCNN(nn.Module):
    """Backbone, region proposal network, box head and mask head.

    `backbone` may be any module that maps images (B, 3, Hp, Wp) to an ordered dict of five maps P2 ... P6 and has
    `out_channels`; without one, the config's is built.
    """

    def __init__(self, config: SystemConfig, backbone: nn.Module | None = None):
        super().__init__()
        self.config: Any = config  # a SystemConfig; in training and scoring lib.config.Config, which is one
        self.backbone = backbone if backbone is not None else build_backbone(config.backbone)
        channels: Any = self.backbone.out_channels
        self.rpn = RPNHead(channels, len(config.anchors.ratios))
        self.box_head = BoxHead(channels, config.boxhead.hidden, len(config.classes))
        self.mask_head = MaskHead(channels, config.maskhead.hidden, len(config.classes))
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> list[Tensor]:
        """Preprocessed images (B, 3, Hp, Wp) -> the maps P2 ... P6, each (B, F, Sy, Sx)."""
        return list(self.backbone(images).values())

    def anchors(self, features: Maps) -> Tensor:
        """Maps (B, F, Sy, Sx) -> their anchors (A, 4), network frame."""
        grids = tuple((f.shape[2], f.shape[3]) for f in features)
        return pyramid_anchors(grids, self.config.anchors, features[0].device)

    def propose(self, features: Maps, content: Size, training: bool = False) -> list[Named]:
        """Maps -> the RPN's `boxes` (N, 4) and `scores` (N,) for each image, network frame (§4.6)."""
        logits, deltas = self.rpn(features)
        return propose(logits, deltas, self.anchors(features), content, self.config.rpn, training)

    def pool(self, features: Maps, rois: Tensor, images: Tensor, size: int) -> Tensor:
        """RoIs (R, 4), network frame, images (R,) -> RoIAlign of each on its level of P2 ... P5 (R, F, P, P) (§5)."""
        levels = pyramid_level(rois, self.config.roi_align.canonical_size) - 2
        return pool(features[:4], [1 / stride for stride in STRIDES[:4]], rois, images, levels, size)

    def classify(self, features: Maps, boxes: Boxes) -> tuple[Tensor, Tensor]:
        """Boxes (Ri, 4) of each image -> the box head's logits (R, C + 1), deltas (R, C, 4), images in order."""
        return self.box_head(self.pool(features, *stack_rois(boxes), boxhead.POOL_SIZE))

    def detect(self, features: Maps, proposals: Boxes, content: Size) -> list[Named]:
        """Proposals (N, 4) of each image -> its detections' `boxes`, `labels` and `scores`, network frame."""
        return refine(*self.classify(features, proposals), proposals, content, self.config.boxhead)

    def segment(self, features: Maps, boxes: Boxes, labels: Sequence[Tensor]) -> list[Tensor]:
        """Boxes (D, 4), labels (D,) of each image -> the probabilities (D, 28, 28) of each box's own class (§7)."""
        pooled = self.pool(features, *stack_rois(boxes), maskhead.POOL_SIZE)
        masks = class_masks(self.mask_head(pooled), torch.cat(list(labels))).float().sigmoid()
        return list(masks.split([len(b) for b in boxes]))

    @torch.no_grad()
    def forward(self, images: Tensor, stage: str = "joint", threshold: float = 0.0, paste=True) -> list[Named]:
        """Images (B, 3, H, W) uint8 of one size -> for each its detections that score at least `threshold`, best first.

        They are `boxes` (D, 4), `labels` (D,), `scores` (D,), `masks` (D, H, W) in the original frame; so are the RPN's
        `proposals` (N, 4) with `proposal_scores` (N,), which come along. `stage` names the last trained stage: "rpn"
        gives proposals alone, "boxhead" no masks. Where they are not to be pasted, `masks` are the probabilities
        (D, 28, 28) within the boxes. Set the module to eval mode first.
        """
        size = (images.shape[-2], images.shape[-1])
        content = content_size(*size, self.config.image)
        features = self.features(preprocess_images(images, self.config.image))
        proposals = self.propose(features, content)
        results = [{"proposals": p["boxes"], "proposal_scores": p["scores"]} for p in proposals]
        if stage != "rpn":
            detections = self.detect(features, [p["boxes"] for p in proposals], content)
            for found, detected in zip(results, detections, strict=True):
                found |= {k: v[detected["scores"] >= threshold] for k, v in detected.items()} if threshold else detected
        if stage in ("maskhead", "joint"):
            masks = self.segment(features, [r["boxes"] for r in results], [r["labels"] for r in results])
            for found, probabilities in zip(results, masks, strict=True):
                found["masks"] = probabilities
        for found in results:
            for name in {"boxes", "proposals"} & set(found):
                found[name] = clip(scale_boxes(found[name], size[1] / content[1], size[0] / content[0]), *size)
            if paste and "masks" in found:
                found["masks"] = paste_masks(found["masks"], found["boxes"], size)
        return results
