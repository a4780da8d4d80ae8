"""The parts composed (§1, figure 2): images in, detections in the original frame out.

B  images    R  RoIs    D  detections of an image    C  channels of the pyramid
"network frame": pixels of the rescaled and padded input (Hp, Wp); "original frame": pixels of the image as given (H, W)
content: (height, width) of the rescaled image inside the padding
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib.anchors import STRIDES, pyramid_anchors
from lib.backbone import build_backbone
from lib.boxes import clip, scale_boxes
from lib.boxhead import BoxHead, refine, stack_rois
from lib.config import Config
from lib.data import content_size, preprocess_images
from lib.maskhead import MaskHead, class_masks, paste_masks
from lib.roi_align import pool, pyramid_level
from lib.rpn import RPNHead, propose


class MaskRCNN(nn.Module):
    """Backbone, region proposal network, box head and mask head.

    `backbone` may be any module that maps images (B, 3, Hp, Wp) to an ordered dict of five maps P2 ... P6 and has
    `out_channels`; without one, the config's is built.
    """

    def __init__(self, config: Config, backbone: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.backbone = backbone if backbone is not None else build_backbone(config)
        channels = self.backbone.out_channels
        self.rpn = RPNHead(channels, len(config.anchor_ratios))
        self.box_head = BoxHead(channels, config.box_pool_size, config.box_hidden)
        self.mask_head = MaskHead(channels, config.mask_hidden)
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> list[Tensor]:
        """Preprocessed images (B, 3, Hp, Wp) -> the maps P2 ... P6, each (B, C, Sy, Sx)."""
        return list(self.backbone(images).values())

    def anchors(self, features: Sequence[Tensor]) -> Tensor:
        """The anchors (A, 4) of these maps, network frame."""
        return pyramid_anchors(tuple(tuple(f.shape[2:]) for f in features), self.config, features[0].device)

    def propose(self, features: Sequence[Tensor], content: tuple[int, int], training: bool = False) -> list[dict]:
        """The RPN's `boxes` and `scores` for each image, network frame (§4.6)."""
        logits, deltas = self.rpn(features)
        return propose(logits, deltas, self.anchors(features), content, self.config, training)

    def pool(self, features: Sequence[Tensor], rois: Tensor, images: Tensor, size: int) -> Tensor:
        """RoIAlign of RoIs (R, 4), network frame, each on its level of P2 ... P5 (§5) -> (R, C, P, P)."""
        levels = pyramid_level(rois, self.config.canonical_level, self.config.canonical_size) - 2
        scales = [1 / stride for stride in STRIDES[:4]]
        return pool(features[:4], scales, rois, images, levels, size, self.config.roi_samples)

    def classify(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The box head on the boxes (Ri, 4) of each image -> logits (R, K + 1), deltas (R, K, 4), images in order."""
        return self.box_head(self.pool(features, *stack_rois(boxes), self.config.box_pool_size))

    def detect(self, features: Sequence[Tensor], proposals: Sequence[Tensor], content: tuple[int, int]) -> list[dict]:
        """`boxes`, `labels` and `scores` of each image's detections, from its proposals (R, 4), network frame."""
        return refine(*self.classify(features, proposals), proposals, content, self.config)

    def segment(self, features: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """The probability (D, 28, 28) of each box's own class, for the boxes (D, 4), network frame, of each image
        (§7).
        """
        pooled = self.pool(features, *stack_rois(boxes), self.config.mask_pool_size)
        masks = class_masks(self.mask_head(pooled), torch.cat(list(labels))).float().sigmoid()
        return list(masks.split([len(b) for b in boxes]))

    @torch.no_grad()
    def forward(self, images: Tensor, upto: str = "joint") -> list[dict[str, Tensor]]:
        """uint8 images (B, 3, H, W) of one size -> for each its detections `boxes` (D, 4), `labels`, `scores`,
        `masks` (D, H, W).

        Boxes and masks are in the original frame; so are the RPN's `proposals` (N, 4) with `proposal_scores`, which
        come along. `upto` names the last trained stage: "rpn" gives proposals alone, "boxhead" no masks. Set the
        module to eval mode first.
        """
        results = self.find(images, upto)
        for found in results:
            if "masks" in found:
                size = tuple(images.shape[-2:])
                found["masks"] = paste_masks(found["masks"], found["boxes"], size, self.config.mask_threshold)
        return results

    @torch.no_grad()
    def find(self, images: Tensor, upto: str = "joint") -> list[dict[str, Tensor]]:
        """The same with `masks` as the mask head gives them, probabilities (D, 28, 28) in their boxes."""
        size = tuple(images.shape[-2:])
        content = content_size(*size, self.config)
        features = self.features(preprocess_images(images, self.config))
        proposals = self.propose(features, content)
        boxes = [p["boxes"] for p in proposals]
        results = [{}] * len(images) if upto == "rpn" else self.detect(features, boxes, content)
        if upto in ("maskhead", "joint"):
            masks = self.segment(features, [r["boxes"] for r in results], [r["labels"] for r in results])
            results = [{**r, "masks": m} for r, m in zip(results, masks, strict=True)]
        results = [
            {**r, "proposals": p["boxes"], "proposal_scores": p["scores"]}
            for r, p in zip(results, proposals, strict=True)
        ]
        x_scale, y_scale = size[1] / content[1], size[0] / content[0]
        for found in results:
            for name in {"boxes", "proposals"} & set(found):
                found[name] = clip(scale_boxes(found[name], x_scale, y_scale), *size)
        return results
