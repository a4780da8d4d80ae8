"""torchvision's Mask R-CNN, trained on COCO, in our parts: it finds vehicles, people and animals in any photograph.

B  images    D  detections of an image    R  RoIs    A  anchors    F  channels    P  pooled size    H x W  a picture
boxes are xyxy in pixels of the network's input frame, of the picture where that is said

Its weights fit our parts once they are renamed and put in our order. What it does otherwise, and no number of ours
says, is in the methods of `CocoMaskRCNN`. Two things stay ours: a large picture is shrunk by averaging all its pixels,
where it takes some; and masks are pasted to a fraction of a pixel, where it rounds their boxes.
"""

import socket
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms

from lib.anchors import STRIDES, Maps
from lib.boxes import Named, Size
from lib.boxhead import POOL_SIZE
from lib.config import Config
from lib.data.coco_json import COURSE_LABELS
from lib.maskrcnn import COURSE_CLASSES, MaskRCNN
from lib.roi_align import pyramid_level
from lib.rpn import propose
from lib.training.checkpoint import fingerprint

COCO = "coco"  # names these weights where a folder of trained stages could stand
WEIGHTS = MaskRCNN_ResNet50_FPN_Weights.COCO_V1
CATEGORIES = WEIGHTS.meta["categories"]  # 91: the background, 80 of objects, and 10 "N/A" in between
NUMBERS = {
    "anchors.ratios": (2, 1, 0.5),  # its ratios are h / w
    "rpn.test.pre_nms": 1000,  # of each level
    "boxhead.test.pre_nms": 100_000,  # all: at most 19 classes of a proposal are above the threshold
    "boxhead.test.score_threshold": 0.05,
}
NAMES = {
    "rpn.head.conv.0.0": "rpn.conv",
    "rpn.head.cls_logits": "rpn.objectness",
    "rpn.head.bbox_pred": "rpn.regressor",
    "roi_heads.box_head.fc6": "box_head.mlp.0",
    "roi_heads.box_head.fc7": "box_head.mlp.2",
    "roi_heads.box_predictor.cls_score": "box_head.classifier",
    "roi_heads.box_predictor.bbox_pred": "box_head.regressor",
    **{f"roi_heads.mask_head.{layer}.0": f"mask_head.layers.{2 * layer}" for layer in range(4)},
    "roi_heads.mask_predictor.conv5_mask": "mask_head.layers.8",
    "roi_heads.mask_predictor.mask_fcn_logits": "mask_head.layers.10",
}
TIMEOUT = 30  # seconds that a server may be silent


def coco_maskrcnn() -> MaskRCNN:
    """The model with torchvision's weights, 170 MB, from torch hub's cache or downloaded into it; in eval mode.

    Raises FileNotFoundError where they are neither there nor to be had, ValueError where the file there is damaged.
    """
    file, before = Path(torch.hub.get_dir(), "checkpoints", Path(WEIGHTS.url).name), socket.getdefaulttimeout()
    if file.is_file() and not file.stem.endswith(fingerprint(file)[:8]):
        raise ValueError(f"{file} is damaged: delete it, and it is downloaded again, or put a whole copy there")
    socket.setdefaulttimeout(TIMEOUT)
    try:
        theirs = maskrcnn_resnet50_fpn(weights=WEIGHTS)
    except (OSError, HTTPException, RuntimeError) as error:  # torch hub's check of what arrived is a RuntimeError
        advice = f"connect to the internet, or put {WEIGHTS.url} there yourself"
        raise FileNotFoundError(f"{file} is missing and cannot be downloaded ({error}): {advice}") from None
    finally:
        socket.setdefaulttimeout(before)
    return CocoMaskRCNN(theirs).eval()


class CocoMaskRCNN(MaskRCNN):
    """torchvision's Mask R-CNN `theirs`, of COCO's 91 categories, as ours; its backbone is taken over, not copied.

    The heads keep all categories; detections are given in the course's classes.
    """

    def __init__(self, theirs: Any):
        super().__init__(Config().replace(classes=CATEGORIES[1:], **NUMBERS), theirs.backbone)
        self.config = self.config.replace(classes=COURSE_CLASSES)
        self.rpn.norm = nn.Identity()  # type: ignore[assignment]  # it has no BatchNorm there
        self.load_state_dict(_in_our_order(theirs.state_dict(), theirs.roi_heads.box_coder.weights))
        self.anchor_generator = theirs.rpn.anchor_generator
        self.short, self.long = theirs.transform.min_size[-1], theirs.transform.max_size

    def anchors(self, features: Maps) -> Tensor:
        """Maps (B, F, Sy, Sx) -> its anchors (A, 4): in whole pixels, each about the upper left corner of its cell."""
        height, width = (STRIDES[0] * n for n in features[0].shape[2:])
        images = ImageList(torch.empty(height, width, device="meta"), [(height, width)])
        return self.anchor_generator(images, list(features))[0]

    def propose(self, features: Maps, content: Size, training: bool = False) -> list[Named]:
        """Maps -> its proposals of each image: our §4.6 for each level by itself, then the best N of all levels."""
        logits, deltas = self.rpn(features)
        anchors, per_cell = self.anchors(features), len(self.config.anchors.ratios)
        counts = [f.shape[2] * f.shape[3] * per_cell for f in features]
        levels = zip(logits.split(counts, dim=1), deltas.split(counts, dim=1), anchors.split(counts), strict=True)
        found = [propose(*level, content, self.config.rpn, training) for level in levels]
        proposals = []
        for image in zip(*found, strict=True):
            boxes, scores = (torch.cat([level[name] for level in image]) for name in ("boxes", "scores"))
            best = scores.argsort(descending=True)[: self.config.rpn.test.post_nms]
            proposals.append({"boxes": boxes[best], "scores": scores[best]})
        return proposals

    def pool(self, features: Maps, rois: Tensor, images: Tensor, size: int) -> Tensor:
        """RoIs (R, 4), images (R,) -> pooled features (R, F, P, P), of points half a pixel of the map off ours.

        To it a pixel's value lies at the pixel's upper left corner, and a RoI is a pixel of the map wide at least.
        """
        levels = pyramid_level(rois, self.config.roi_align.canonical_size) - 2
        cell = torch.tensor(STRIDES, device=rois.device)[levels, None]
        start, end = rois[:, :2] + cell / 2, rois[:, 2:] + cell / 2
        return super().pool(features, torch.cat([start, end.maximum(start + cell)], dim=1), images, size)

    @torch.no_grad()
    def forward(self, images: Tensor, stage: str = "joint", threshold: float = 0.0, paste=True) -> list[Named]:
        """Images (B, 3, H, W) uint8 of one size -> what `MaskRCNN` gives, in the course's classes.

        A picture's shorter side becomes 800 pixels, unless the longer one would be more than 1333 then.
        """
        short, long = sorted(images.shape[-2:])
        scale = min(self.short / short, self.long / long)
        height, width = (max(32, round(n * scale)) for n in images.shape[-2:])
        self.config = self.config.replace(**{"image.height": height, "image.width": width})
        found = super().forward(images, stage, threshold, paste)
        return found if stage == "rpn" else [self._in_course_classes(f) for f in found]

    def _in_course_classes(self, found: Named) -> Named:
        """An image's detections, those of other categories left out, with the course's labels and NMS among these."""
        labels = found["labels"].new_tensor([COURSE_LABELS.get(name, 0) for name in CATEGORIES])[found["labels"]]
        keep = labels.nonzero().flatten()
        boxes, scores = found["boxes"][keep], found["scores"][keep]
        keep = keep[batched_nms(boxes, scores, labels[keep], self.config.boxhead.test.nms_iou)]
        found["labels"] = labels
        return found | {name: found[name][keep] for name in ("boxes", "labels", "scores", "masks") if name in found}


def _in_our_order(theirs: dict[str, Tensor], box_weights: tuple[float, ...]) -> dict[str, Tensor]:
    """Its parameters by our names: features cell after cell, deltas as they are, no box or mask of the background."""
    ours = {}
    for name, value in theirs.items():
        part, _, kind = name.rpartition(".")
        ours[f"{NAMES.get(part, part)}.{kind}"] = value
    first = ours["box_head.mlp.0.weight"].unflatten(1, (-1, POOL_SIZE, POOL_SIZE))
    ours["box_head.mlp.0.weight"] = first.permute(0, 2, 3, 1).flatten(1)
    for kind in ("weight", "bias"):
        deltas = ours[f"box_head.regressor.{kind}"].unflatten(0, (-1, 4))[1:]  # (C, 4, ...)
        factors = deltas.new_tensor(box_weights).view(4, *[1] * (deltas.ndim - 2))  # it learnt deltas times these
        ours[f"box_head.regressor.{kind}"] = (deltas / factors).flatten(0, 1)
        ours[f"mask_head.layers.10.{kind}"] = ours[f"mask_head.layers.10.{kind}"][1:]
    return ours
