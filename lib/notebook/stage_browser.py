"""The browser of one image's way through the stages: anchors, proposals, refined boxes, masks (§4.6, §6.5, §7).

K  the boxes that NMS is given    G  objects    H x W  the image as given
boxes are xyxy in pixels of the network's input frame
"""

from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from lib.boxes import Named, scale_boxes
from lib.boxhead import refine
from lib.config import STAGES
from lib.data.batches import Examples
from lib.maskhead import THRESHOLD
from lib.maskrcnn import MaskRCNN
from lib.notebook.controls import LEAST, Browser, control, plural, slider, tick
from lib.notebook.draw import class_colour
from lib.notebook.outcomes import OVERLAP, judged, pasted, reached
from lib.notebook.pixels import Canvas
from lib.preprocess import content_size, preprocess_images, preprocess_targets
from lib.rpn import propose

ANCHORS, PROPOSALS, REFINED, MASKS = PARTS = "1 anchors", "2 proposals", "3 refined boxes", "4 masks"
MASKED = 100  # of the refined boxes before NMS, how many of the best get a mask


class StageBrowser(Browser):
    """One image from anchors to masks, as far as the model is trained: NMS at work, by its threshold and the score's.

    NMS chooses anew, as lib does, from the boxes that one forward pass gave it. The box head saw the proposals that the
    config's threshold leaves; its boxes are chosen from in the same way.
    """

    def __init__(self, model: MaskRCNN, dataset: Examples, stage: str = "joint"):
        self.model, self.stage, config = model, stage, model.config
        parts = PARTS[: 2 + min(STAGES.index(stage), 2)]
        self.part = control("Dropdown", "stage", "how far the image has come", options=parts, value=PROPOSALS)
        self.score = slider("score at least", 0.3, LEAST, 0.95, "boxes that score less are left out")
        hint = "of two boxes that overlap more than this, NMS leaves the better one"
        self.rpn_nms = slider("NMS of proposals: IoU", config.rpn.nms_iou, 0.05, 1.0, hint)
        self.box_nms = slider("NMS of boxes: IoU", config.boxhead.test.nms_iou, 0.05, 1.0, hint)
        self.most = slider("boxes drawn, at most", 30, 5, 200, "how many of the best are drawn", 5)
        self.suppressed = tick("suppressed boxes", True, "draw dotted what NMS takes away")
        self.truth = tick("ground truth", True, "draw the objects' boxes")
        sliders = [[made] for made in (self.part, self.score, self.rpn_nms, self.box_nms, self.most)]
        super().__init__("stages", dataset, [*sliders, [self.suppressed, self.truth]])
        self.score.observe(self.list_again, "value")

    def orders(self):
        def at_score(index):
            return self.record(index)[1].above(self.score.value)

        orders = {"objects that no proposal finds": lambda index: self.record(index)[0]}
        boxes = {"missed objects": lambda n: len(at_score(n).missed), "false detections": lambda n: at_score(n).false}
        return orders | (boxes if self.stage != "rpn" else {})

    def recorded(self, seen):
        unseen = len(seen.boxes) - reached(seen.proposed["boxes"][seen.kept], seen.boxes)
        if self.stage == "rpn":
            return unseen, None
        return unseen, judged({name: v[seen.found] for name, v in seen.refined.items()}, seen.boxes, seen.labels)

    def look(self, index):
        image, target = self.dataset[index]
        return passed(self.model, image, target, self.stage)

    def chosen(self, seen) -> tuple[Named, Tensor]:
        """What NMS is given of the boxes that score enough, best first, and the indices that it keeps, as lib's do."""
        part, config = self.part.value, self.model.config
        boxes = {ANCHORS: seen.anchors, PROPOSALS: seen.proposed}.get(part) or seen.refined
        boxes = {name: v[boxes["scores"] >= self.score.value] for name, v in boxes.items()}
        if part == ANCHORS:
            return boxes, torch.arange(len(boxes["boxes"]))
        if part == PROPOSALS:
            return boxes, nms(boxes["boxes"], boxes["scores"], self.rpn_nms.value)[: config.rpn.test.post_nms]
        kept = batched_nms(boxes["boxes"], boxes["scores"], boxes["labels"], self.box_nms.value)
        return boxes, kept[: config.boxhead.test.post_nms]

    def draw(self, seen, detail):
        part, most, names = self.part.value, self.most.value, self.model.config.class_names
        self.rpn_nms.disabled, self.box_nms.disabled = part != PROPOSALS, part not in (REFINED, MASKS)
        boxes, kept = self.chosen(seen)
        drawn, gone = kept[:most], torch.ones(len(boxes["boxes"]), dtype=torch.bool).index_fill(0, kept, False)
        canvas = Canvas(seen.image, seen.content, detail=detail)
        if self.truth.value:
            canvas.boxes(seen.boxes, "ground truth", [names[n] for n in seen.labels.tolist()])
        labels = boxes["labels"][drawn] if "labels" in boxes else None
        classes = [""] * len(drawn) if labels is None else [f"{names[n]} " for n in labels.tolist()]
        captions = [f"{name}{score:.2f}" for name, score in zip(classes, boxes["scores"][drawn], strict=True)]
        kind = "anchor" if part == ANCHORS else "proposal"
        canvas.boxes(boxes["boxes"][drawn], kind, captions, labels, names)
        if self.suppressed.value:
            canvas.boxes(boxes["boxes"][gone][:most], "suppressed by NMS")
        masks = self._draw_masks(canvas, seen, drawn) if part == MASKS else ""
        return canvas, self._words(seen, boxes["boxes"][kept], gone) + masks

    def _words(self, seen, kept: Tensor, gone: Tensor) -> str:
        out, most, part = int(gone.sum()), self.most.value, self.part.value
        enough = f"{plural(len(gone), 'box')} with a score of at least {self.score.value:.2f}"
        if part == ANCHORS:
            of = f"of {seen.count:,} anchors the {len(seen.anchors['boxes']):,} that score best become proposals, "
            return f"{of}{enough} ({min(most, len(kept)):,} drawn)."
        threshold = self.rpn_nms.value if part == PROPOSALS else self.box_nms.value
        return (
            f"{enough}; NMS at {threshold:.2f} keeps {len(kept):,} ({min(most, len(kept)):,} drawn) and suppresses "
            f"{out:,} ({min(most, out) * self.suppressed.value:,} drawn). {reached(kept, seen.boxes)} of "
            f"{plural(len(seen.boxes), 'object')} found with an IoU of at least {OVERLAP}."
        )

    def _draw_masks(self, canvas: Canvas, seen, drawn: Tensor) -> str:
        masked, size = drawn[drawn < len(seen.masks)], (seen.image.shape[1], seen.image.shape[2])
        masks = pasted(seen.masks, seen.mask_boxes, size, THRESHOLD)[masked].numpy()
        labels = seen.refined["labels"][masked].tolist()
        names, colours = [self.model.config.class_names[n] for n in labels], [class_colour(n) for n in labels]
        canvas.masks(masks, colours, names, 0.45)
        return f" {plural(len(masked), 'mask')} drawn."


@torch.no_grad()
def passed(model: MaskRCNN, image: Tensor, target: dict, stage: str) -> SimpleNamespace:
    """One forward pass of an image (3, H, W) uint8 up to a stage: what NMS chooses from, on the CPU, best first.

    `anchors` of the best scores among `count`, `proposed` from them, and `kept`, the indices that the config's NMS
    leaves; where the stage has them `refined`, `found`, such indices, and `masks` of the best, as probabilities in
    `mask_boxes` of the original frame; the objects' `boxes` and `labels`, and the `content` (height, width).
    """
    config, where, size = model.eval().config, next(model.parameters()).device, (image.shape[1], image.shape[2])
    content, limits, least = content_size(*size, config.image), config.rpn.test, config.boxhead.test
    features = model.features(preprocess_images(image[None].to(where), config.image))
    logits, deltas = model.rpn(features)
    anchors = model.anchors(features)
    top, index = logits[0].float().topk(min(limits.pre_nms, len(anchors)))
    every = replace(config.rpn, nms_iou=1.0, test=replace(limits, post_nms=limits.pre_nms))  # takes nothing away
    (proposed,) = propose(logits, deltas, anchors, content, every, training=False)
    kept = nms(proposed["boxes"], proposed["scores"], config.rpn.nms_iou)[: limits.post_nms]
    seen = {"anchors": {"boxes": anchors[index], "scores": top.sigmoid()}, "proposed": proposed, "kept": kept}
    if stage != "rpn":
        every = replace(config.boxhead, test=replace(least, nms_iou=1.0, post_nms=least.pre_nms))
        proposals = [proposed["boxes"][kept]]
        (found,) = refine(*model.classify(features, proposals), proposals, content, every)
        seen["refined"] = found
        seen["found"] = batched_nms(found["boxes"], found["scores"], found["labels"], least.nms_iou)[: least.post_nms]
        if stage != "boxhead":
            (seen["masks"],) = model.segment(features, [found["boxes"][:MASKED]], [found["labels"][:MASKED]])
            seen["mask_boxes"] = scale_boxes(found["boxes"][:MASKED], size[1] / content[1], size[0] / content[0])
    seen = {k: {n: t.cpu() for n, t in v.items()} if isinstance(v, dict) else v.cpu() for k, v in seen.items()}
    (scaled,) = preprocess_targets([{"boxes": target["boxes"]}], size, config.image)
    about = {"boxes": scaled["boxes"], "labels": target["labels"], "content": content, "count": len(anchors)}
    return SimpleNamespace(image=image, **about, **seen)
