"""The browser of one image's way through the stages: anchors, proposals, refined boxes, masks (§4.6, §6.5, §7).

A  anchors    K, K'  proposals and refined boxes before NMS    G  objects    m  side of a predicted mask
H x W  the image as given
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
from lib.maskhead import paste_masks
from lib.maskrcnn import MaskRCNN
from lib.notebook.controls import CAPTIONED, LEAST, Browser, choice, plural, slider, tick
from lib.notebook.draw import class_colour
from lib.notebook.outcomes import OVERLAP, judged, reached
from lib.notebook.pixels import Canvas
from lib.preprocess import content_size, preprocess_images, preprocess_targets
from lib.rpn import propose

MASKED = 100  # best boxes before NMS that get a mask, beside those that the config's NMS keeps


class StageBrowser(Browser):
    """One image from anchors to masks, as far as the model is trained: NMS at work, by its threshold and the score's.

    NMS chooses anew, as lib does, from the boxes that one forward pass gave it. The box head saw the proposals that the
    config's threshold leaves; its boxes are chosen from in the same way.
    """

    def __init__(self, model: MaskRCNN, dataset: Examples, stage: str = "joint"):
        self.model, self.stage, config = model, stage, model.config
        names = ["1 anchors", "2 proposals", "3 refined boxes", "4 masks"][: 2 + min(STAGES.index(stage), 2)]
        self.part = choice("stage", names, "how far the image has come")
        self.part.value = names[1]
        self.score = slider("score at least", 0.3, LEAST, 0.95, 0.05, "boxes that score less are not drawn")
        hint = "of two boxes that overlap more than this, NMS leaves the better one"
        self.rpn_nms = slider("NMS of proposals: IoU", config.rpn.nms_iou, 0.05, 1.0, 0.05, hint)
        self.box_nms = slider("NMS of boxes: IoU", config.boxhead.test.nms_iou, 0.05, 1.0, 0.05, hint)
        self.most = slider("boxes drawn, at most", 30, 5, 200, 5, "how many of the best are drawn, of each kind")
        self.suppressed = tick("suppressed boxes", True, "draw dotted what NMS takes away")
        self.truth = tick("ground truth", True, "draw the objects' boxes")
        super().__init__("stages", dataset, [[self.part], [self.score], [self.rpn_nms], [self.box_nms], [self.most],
                                             [self.suppressed, self.truth]])  # fmt: skip
        self.score.observe(self.list_again, "value")

    def orders(self):
        orders = {"objects that no proposal finds": lambda index: self.record(index)[0]}
        if self.stage != "rpn":
            orders |= {
                "missed objects": lambda index: len(self.record(index)[1].above(self.score.value).missed),
                "false detections": lambda index: self.record(index)[1].above(self.score.value).false,
            }
        return orders

    def recorded(self, seen):
        unseen = len(seen.boxes) - reached(seen.proposed["boxes"][seen.kept], seen.boxes)
        if self.stage == "rpn":
            return unseen, None
        return unseen, judged({k: v[seen.found] for k, v in seen.refined.items()}, seen.boxes, seen.labels)

    def look(self, index):
        image, target = self.dataset[index]
        return passed(self.model, image, target, self.stage)

    def draw(self, seen, detail):
        part = int(self.part.value[0])
        self.rpn_nms.disabled, self.box_nms.disabled = part != 2, part < 3
        canvas = Canvas(seen.image, seen.content, detail=detail)
        names = self.model.config.class_names
        if self.truth.value:
            canvas.boxes(seen.boxes, "ground truth", [names[n] for n in seen.labels.tolist()])
        if part == 1:
            words = self._draw_anchors(canvas, seen)
        else:
            boxes, kept = self.chosen(seen)
            words = self._draw_boxes(canvas, seen, boxes, kept, names if part > 2 else ())
            words += self._draw_masks(canvas, seen, kept) if part == 4 else ""
        return canvas, words

    def chosen(self, seen) -> tuple[Named, Tensor]:
        """The boxes before NMS that score enough, best first, and which of them NMS keeps, as lib does."""
        part, limits = int(self.part.value[0]), self.model.config
        boxes = seen.proposed if part == 2 else seen.refined
        boxes = {name: v[boxes["scores"] >= self.score.value] for name, v in boxes.items()}
        if part == 2:
            return boxes, nms(boxes["boxes"], boxes["scores"], self.rpn_nms.value)[: limits.rpn.test.post_nms]
        kept = batched_nms(boxes["boxes"], boxes["scores"], boxes["labels"], self.box_nms.value)
        return boxes, kept[: limits.boxhead.test.post_nms]

    def _draw_anchors(self, canvas: Canvas, seen) -> str:
        enough = (seen.anchor_scores >= self.score.value).nonzero().flatten()
        some = enough[: self.most.value]
        canvas.boxes(seen.anchors[some], "anchor", [f"{s:.2f}" for s in seen.anchor_scores[some][:CAPTIONED]])
        return (f"of {seen.count:,} anchors the {len(seen.anchors):,} that score best become proposals; "
                f"{len(enough):,} of these score at least {self.score.value:.2f} ({len(some):,} drawn).")  # fmt: skip

    def _draw_boxes(self, canvas: Canvas, seen, boxes: Named, kept: Tensor, names) -> str:
        """Kept boxes solid and suppressed ones dotted; `names` where they are of classes."""
        gone = torch.ones(len(boxes["boxes"]), dtype=torch.bool)
        gone[kept] = False
        drawn, most = kept[: self.most.value], self.most.value
        scores, labels = boxes["scores"][drawn], boxes["labels"][drawn] if names else None
        classes = [names[n] + " " for n in labels.tolist()] if names else [""] * len(drawn)
        captions = [f"{c}{s:.2f}" for c, s in zip(classes, scores, strict=True)][:CAPTIONED]
        canvas.boxes(boxes["boxes"][drawn], "proposal", captions, labels, names)
        if self.suppressed.value:
            canvas.boxes(boxes["boxes"][gone][:most], "suppressed by NMS")
        before, threshold = len(gone), (self.box_nms if names else self.rpn_nms).value
        hit = reached(boxes["boxes"][kept], seen.boxes)
        out = min(most, int(gone.sum())) * self.suppressed.value
        return (f"{plural(before, 'box')} with a score of at least {self.score.value:.2f}; NMS at {threshold:.2f} keeps "
                f"{len(kept):,} ({len(drawn):,} drawn) and suppresses {int(gone.sum()):,} ({out:,} drawn). "
                f"{hit} of {plural(len(seen.boxes), 'object')} found with an IoU of at least {OVERLAP}.")  # fmt: skip

    def _draw_masks(self, canvas: Canvas, seen, kept: Tensor) -> str:
        with_mask = kept[seen.mask_of[kept] >= 0][: self.most.value]
        probabilities = seen.masks[seen.mask_of[with_mask]]
        size = seen.image.shape[-2:]
        boxes = scale_boxes(seen.refined["boxes"][with_mask], size[1] / seen.content[1], size[0] / seen.content[0])
        labels = seen.refined["labels"][with_mask].tolist()
        names, colours = [self.model.config.class_names[n] for n in labels], [class_colour(n) for n in labels]
        canvas.masks(paste_masks(probabilities, boxes, size).numpy(), colours, names, 0.45)
        return f" {plural(len(with_mask), 'mask')} drawn."


@torch.no_grad()
def passed(model: MaskRCNN, image: Tensor, target: dict, stage: str) -> SimpleNamespace:
    """One forward pass of an image (3, H, W) uint8 up to a stage: what NMS chooses from, on the CPU, best first.

    `proposed` (K), whose `anchors` (K, 4) have `anchor_scores` (K,), and `kept`, the indices that the config's NMS
    leaves; where the stage has them `refined` (K') and `found`, such indices; `masks` (., m, m), and `mask_of` (K',),
    which of them is a box's, or -1. `boxes` and `labels` are the objects', `content` is (height, width).
    """
    config, device, size = model.eval().config, next(model.parameters()).device, (image.shape[-2], image.shape[-1])
    content = content_size(*size, config.image)
    features = model.features(preprocess_images(image[None].to(device), config.image))
    logits, deltas = model.rpn(features)
    anchors, limits = model.anchors(features), config.rpn.test
    every = replace(
        config.rpn, nms_iou=1.0, test=replace(limits, post_nms=limits.pre_nms)
    )  # NMS that takes nothing away
    (proposed,) = propose(logits, deltas, anchors, content, every, training=False)
    kept = nms(proposed["boxes"], proposed["scores"], config.rpn.nms_iou)[: limits.post_nms]
    top, index = logits[0].float().topk(min(limits.pre_nms, len(anchors)))
    (scaled,) = preprocess_targets([{"boxes": target["boxes"]}], size, config.image)
    about = {"boxes": scaled["boxes"], "labels": target["labels"], "content": content, "count": len(anchors)}
    seen = {"anchors": anchors[index], "anchor_scores": top.sigmoid(), "proposed": proposed, "kept": kept}
    if stage != "rpn":
        seen |= _refined(model, features, proposed["boxes"][kept], content, stage)
    return SimpleNamespace(image=image, **about, **{k: _on_cpu(v) for k, v in seen.items()})


def _refined(model: MaskRCNN, features: list[Tensor], proposals: Tensor, content, stage: str) -> dict:
    """Proposals (R, 4) -> `refined`, `found`, and where the stage has masks `masks` and `mask_of`."""
    limits = model.config.boxhead.test
    every = replace(model.config.boxhead, test=replace(limits, nms_iou=1.0, post_nms=limits.pre_nms))
    (refined,) = refine(*model.classify(features, [proposals]), [proposals], content, every)
    found = batched_nms(refined["boxes"], refined["scores"], refined["labels"], limits.nms_iou)[: limits.post_nms]
    seen = {"refined": refined, "found": found}
    if stage != "boxhead":
        some = torch.cat([found, torch.arange(min(MASKED, len(refined["boxes"])), device=found.device)]).unique()
        (seen["masks"],) = model.segment(features, [refined["boxes"][some]], [refined["labels"][some]])
        seen["mask_of"] = torch.full_like(refined["labels"], -1)
        seen["mask_of"][some] = torch.arange(len(some), device=some.device)
    return seen


def _on_cpu(value):
    return {k: v.cpu() for k, v in value.items()} if isinstance(value, dict) else value.cpu()
