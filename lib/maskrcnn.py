"""The parts composed (§1, figure 2): images in, detections in the original frame out.

B  images    R  RoIs    D  detections of an image    F  channels of the pyramid    C  classes of objects, 3
network frame: pixels of the rescaled and padded input (Hp, Wp)
original frame: pixels of the image as given (H, W)
content: (height, width) of the rescaled image inside the padding
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import boxhead, maskhead
from lib.anchors import STRIDES, AnchorConfig, pyramid_anchors
from lib.backbone import BackboneConfig, build_backbone
from lib.boxes import Size, clip, scale_boxes
from lib.boxhead import BoxHead, BoxHeadConfig, refine, stack_rois
from lib.machine.numbers import Numbers
from lib.maskhead import MaskHead, MaskHeadConfig, class_masks, paste_masks
from lib.preprocess import ImageConfig, content_size, preprocess_images
from lib.roi_align import RoIAlignConfig, pool, pyramid_level
from lib.rpn import RPNConfig, RPNHead, propose


@dataclass(frozen=True)
class SystemConfig(Numbers):
    """The numbers of all parts."""

    image: ImageConfig = ImageConfig()
    backbone: BackboneConfig = BackboneConfig()
    anchors: AnchorConfig = AnchorConfig()
    rpn: RPNConfig = RPNConfig()
    roi_align: RoIAlignConfig = RoIAlignConfig()
    boxhead: BoxHeadConfig = BoxHeadConfig()
    maskhead: MaskHeadConfig = MaskHeadConfig()


class MaskRCNN(nn.Module):
    """Backbone, region proposal network, box head and mask head.

    `backbone` may be any module that maps images (B, 3, Hp, Wp) to an ordered dict of five maps P2 ... P6 and has
    `out_channels`; without one, the config's is built.
    """

    def __init__(self, config: SystemConfig, backbone: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.backbone = backbone if backbone is not None else build_backbone(config.backbone)
        channels = self.backbone.out_channels
        self.rpn = RPNHead(channels, len(config.anchors.ratios))
        self.box_head = BoxHead(channels, config.boxhead.hidden)
        self.mask_head = MaskHead(channels, config.maskhead.hidden)
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> list[Tensor]:
        """Preprocessed images (B, 3, Hp, Wp) -> the maps P2 ... P6, each (B, F, Sy, Sx)."""
        return list(self.backbone(images).values())

    def anchors(self, features: Sequence[Tensor]) -> Tensor:
        """The anchors (A, 4) of these maps, network frame."""
        return pyramid_anchors(
            tuple((f.shape[2], f.shape[3]) for f in features), self.config.anchors, features[0].device
        )

    def propose(self, features: Sequence[Tensor], content: Size, training: bool = False) -> list[dict]:
        """The RPN's `boxes` and `scores` for each image, network frame (§4.6)."""
        logits, deltas = self.rpn(features)
        return propose(logits, deltas, self.anchors(features), content, self.config.rpn, training)

    def pool(self, features: Sequence[Tensor], rois: Tensor, images: Tensor, size: int) -> Tensor:
        """RoIAlign of RoIs (R, 4), network frame, each on its level of P2 ... P5 (§5) -> (R, F, P, P)."""
        levels = pyramid_level(rois, self.config.roi_align.canonical_size) - 2
        scales = [1 / stride for stride in STRIDES[:4]]
        return pool(features[:4], scales, rois, images, levels, size)

    def classify(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The box head on the boxes (Ri, 4) of each image -> logits (R, C + 1), deltas (R, C, 4), images in order."""
        return self.box_head(self.pool(features, *stack_rois(boxes), boxhead.POOL_SIZE))

    def detect(self, features: Sequence[Tensor], proposals: Sequence[Tensor], content: Size) -> list[dict]:
        """`boxes`, `labels` and `scores` of each image's detections, from its proposals (R, 4), network frame."""
        return refine(*self.classify(features, proposals), proposals, content, self.config.boxhead)

    def segment(self, features: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """The probability (D, 28, 28) of each box's own class, of each image (§7)."""
        pooled = self.pool(features, *stack_rois(boxes), maskhead.POOL_SIZE)
        masks = class_masks(self.mask_head(pooled), torch.cat(list(labels))).float().sigmoid()
        return list(masks.split([len(b) for b in boxes]))

    @torch.no_grad()
    def forward(self, images: Tensor, upto: str = "joint", threshold: float = 0.0) -> list[dict[str, Tensor]]:
        """uint8 images (B, 3, H, W) of one size -> for each its detections that score at least `threshold`, best first:
        `boxes` (D, 4), `labels`, `scores`, `masks` (D, H, W).

        Boxes and masks are in the original frame; so are the RPN's `proposals` (N, 4) with `proposal_scores`, which
        come along. `upto` names the last trained stage: "rpn" gives proposals alone, "boxhead" no masks. Set the
        module to eval mode first.
        """
        size = tuple(images.shape[-2:])
        content = content_size(*size, self.config.image)
        features = self.features(preprocess_images(images, self.config.image))
        proposals = self.propose(features, content)
        results = [{"proposals": p["boxes"], "proposal_scores": p["scores"]} for p in proposals]
        if upto != "rpn":
            for found, detected in zip(
                results, self.detect(features, [p["boxes"] for p in proposals], content), strict=True
            ):
                found |= {name: value[detected["scores"] >= threshold] for name, value in detected.items()}
        if upto in ("maskhead", "joint"):
            masks = self.segment(features, [r["boxes"] for r in results], [r["labels"] for r in results])
            for found, probabilities in zip(results, masks, strict=True):
                found["masks"] = probabilities
        for found in results:
            for name in {"boxes", "proposals"} & set(found):
                found[name] = clip(scale_boxes(found[name], size[1] / content[1], size[0] / content[0]), *size)
            if "masks" in found:
                found["masks"] = paste_masks(found["masks"], found["boxes"], size)
        return results
