"""The browser of what was found beside what is there: masks, their outcomes, their mistakes (§7, §8).

D  detections, best first    G  objects    H x W  an image as given
boxes are xyxy in pixels of the data set's images; masks are 1 inside the object
"""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from lib.data.batches import Examples
from lib.maskhead import THRESHOLD, paste_masks
from lib.maskrcnn import MaskRCNN
from lib.notebook import controls
from lib.notebook.controls import ALL, CAPTIONED, LEAST, Browser, choice, offer, plural, slider, tick
from lib.notebook.draw import COLOURS, class_colour
from lib.notebook.outcomes import RIGHT, Outcome, judged, mask_ious
from lib.notebook.pixels import Canvas

ANY = 0  # in place of a class's label
BOTH, FOUND, TRUTH, DIFFERENCE = "prediction and ground truth", "prediction", "ground truth", "difference in pixels"


class MaskBrowser(Browser):
    """Every image's detections beside its objects, one by one in a list; where they differ; the next mistake.

    The model, trained up to `stage`, sees an image once. Of several data sets, named, one is chosen as the split.
    """

    def __init__(self, model: MaskRCNN, datasets: Examples | Mapping[str, Examples], stage: str = "joint"):
        if stage == "rpn":
            raise ValueError("an RPN alone finds no masks: browse it with StageBrowser, or train the box head")
        self.model, self.stage = model, stage
        self.sets = dict(datasets) if isinstance(datasets, Mapping) else {"": datasets}
        classes = next(iter(self.sets.values())).classes
        self.names = ("background", *classes)
        self.split = choice("split", list(self.sets), "which data set")
        self.what = choice("show", [BOTH, FOUND, TRUTH, DIFFERENCE], "whose masks and boxes are drawn")
        self.class_ = choice(
            "class", [(ALL, ANY), *((n, k) for k, n in enumerate(classes, 1))], "objects of which class"
        )
        self.score = slider("score at least", 0.5, LEAST, 0.95, 0.05, "what scores less is left out")
        hint = "a pixel belongs to a mask from this probability on"
        self.threshold = slider("mask threshold", THRESHOLD, 0.05, 0.95, 0.05, hint)
        self.opacity = slider("opacity of masks", 0.45, 0.0, 1.0, 0.05, "how much a mask covers of the picture")
        self.boxes = tick("boxes", True, "draw boxes and captions")
        self.rows = controls.rows_to_pick("what was found, and what was missed; one that is chosen is drawn alone")
        first = [self.split, self.what] if len(self.sets) > 1 else [self.what]
        rows = [first, [self.class_, self.boxes], [self.score], [self.threshold], [self.opacity]]
        super().__init__("masks", next(iter(self.sets.values())), rows, [self.rows])
        following = controls.button(
            "next mistake", "the next image with a missed object or a false detection", self.next_mistake
        )
        self.buttons.children = (*self.buttons.children, following)
        self.split.unobserve(self.redraw, "value")
        self.split.observe(lambda change: self.show_set(self.sets[change["new"]]), "value")
        self.score.observe(self.list_again, "value")
        self.rows.observe(self.redraw, "value")

    def orders(self):
        def masks(index):
            outcome, ious = self.record(index)
            right = zip(outcome.above(self.score.value).kinds, ious, strict=False)
            return 1 - min((iou for kind, iou in right if kind == RIGHT), default=1.0)

        orders = {
            "missed objects": lambda index: len(self._at_score(index).missed),
            "false detections": lambda index: self._at_score(index).false,
        }
        return orders | ({} if self.stage == "boxhead" else {"right, but the worst masks first": masks})

    def recorded(self, seen):
        masks = self._pasted(seen, list(range(len(seen.labels))), THRESHOLD)
        return seen.outcome, mask_ious(masks, seen.outcome.objects, seen.truth)

    def _at_score(self, index: int) -> Outcome:
        return self.record(index)[0].above(self.score.value)

    def next_mistake(self) -> None:
        """Go to the next image, of those listed, in which something is missed or false at this score."""
        at, count = self.position.value, len(self.images)
        with self._told():
            for place in (*range(at + 1, count), *range(at)):
                outcome = self._at_score(self.images[place])
                if outcome.missed or outcome.false:
                    self.position.value = place
                    return
            raise ValueError("no other image of this list has a missed object or a false detection at this score")

    def look(self, index):
        image, target = self.dataset[index]
        device = next(self.model.parameters()).device
        (found,) = self.model.eval()(image[None].to(device), self.stage, paste=False)
        found = {k: found[k].cpu() for k in ("boxes", "labels", "scores", "masks") if k in found}
        outcome = judged(found, target["boxes"], target["labels"])
        truth = target.get("masks", torch.zeros((len(target["boxes"]), *image.shape[1:]), dtype=torch.uint8))
        about = {"index": index, "image": image, "size": (image.shape[1], image.shape[2]), "target": target}
        labels = {"labels": found["labels"].tolist(), "true_labels": target["labels"].tolist()}
        return SimpleNamespace(**about, **labels, found=found, truth=truth, outcome=outcome)

    def draw(self, seen, detail):
        outcome, of = seen.outcome.above(self.score.value), self.class_.value
        shown = [n for n, label in enumerate(seen.labels[: len(outcome.kinds)]) if of in (ANY, label)]
        objects = [n for n, label in enumerate(seen.true_labels) if of in (ANY, label)]
        masks = self._pasted(seen, shown, self.threshold.value)
        ious = mask_ious(masks, [outcome.objects[n] for n in shown], seen.truth)
        lost = [n for n in outcome.missed if n in objects]
        offer(self.rows, self._table(seen, outcome, shown, ious, lost))
        words = self._summary(outcome, shown, objects, lost)
        if picked := self.rows.value:
            keep = [k for k, n in enumerate(shown) if n == picked[1]]
            shown, objects, masks = [shown[k] for k in keep], [n for n in objects if n == picked[2]], masks[keep]
        canvas = Canvas(seen.image, seen.size, detail=detail)
        if self.what.value == DIFFERENCE:
            words += self._draw_difference(canvas, masks, seen.truth[objects])
        else:
            self._draw_masks(canvas, seen, shown, masks, objects)
        if self.boxes.value:
            self._draw_boxes(canvas, seen, shown, objects, "double" if picked else None)
        return canvas, words

    def _pasted(self, seen, which: list[int], threshold: float) -> Tensor:
        """Masks (., H, W) of some detections; none without a mask head."""
        if "masks" not in seen.found:
            return torch.zeros((len(which), *seen.size), dtype=torch.uint8)
        return paste_masks(seen.found["masks"][which], seen.found["boxes"][which], seen.size, threshold)

    def _table(self, seen, outcome: Outcome, shown, ious, lost) -> list[tuple[str, tuple]]:
        """A row for each detection and for each missed object: its words; the image, the detection and the object."""
        rows: list[tuple[str, tuple]] = [("nothing: all are drawn", ())]
        for n, iou in zip(shown, ious, strict=True):
            about = f"{self.names[seen.labels[n]]}, score {outcome.scores[n]:.2f}, box IoU {outcome.overlaps[n]:.2f}"
            about += f", mask IoU {iou:.2f}" * ("masks" in seen.found)
            rows.append((f"{n + 1}. {outcome.kinds[n]}: {about}", (seen.index, n, outcome.objects[n])))
        return rows + [(f"missed: {self.names[seen.true_labels[n]]}", (seen.index, None, n)) for n in lost]

    def _summary(self, outcome: Outcome, shown, objects, lost) -> str:
        kinds = [outcome.kinds[n] for n in shown]
        counts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)] + [f"{len(lost)} missed"] * bool(lost)
        found = f"{plural(len(shown), 'detection')} with a score of at least {self.score.value:.2f}"
        return f"{plural(len(objects), 'object')}, {found}: {', '.join(counts) or 'nothing'}."

    def _draw_masks(self, canvas: Canvas, seen, shown, masks: Tensor, objects) -> None:
        labels, what, opacity = [seen.labels[n] for n in shown], self.what.value, self.opacity.value
        if what != TRUTH:
            names = [self.names[n] for n in labels]
            canvas.masks(masks.numpy(), [class_colour(n) for n in labels], names, opacity)
        if what != FOUND:
            many, filled = len(objects), opacity if what == TRUTH else 0.0
            canvas.masks(seen.truth[objects].numpy(), [COLOURS["truth"]] * many, ["ground truth"] * many, filled, True)

    def _draw_difference(self, canvas: Canvas, masks: Tensor, truth: Tensor) -> str:
        found, there = ((m != 0).any(dim=0).numpy() for m in (masks, truth))
        areas = {"hit": found & there, "false": found & ~there, "missed": there & ~found}
        canvas.areas(areas, self.opacity.value)
        sizes = {name: int(np.count_nonzero(area)) for name, area in areas.items()}
        counts = ", ".join(f"{plural(size, 'pixel')} {name}" for name, size in sizes.items())
        return f" {counts}; IoU {sizes['hit'] / max(sum(sizes.values()), 1):.2f}."

    def _draw_boxes(self, canvas: Canvas, seen, shown, objects, line: str | None) -> None:
        found, what = seen.found, self.what.value
        if what != FOUND:
            names = [self.names[seen.true_labels[n]] for n in objects]
            canvas.boxes(seen.target["boxes"][objects], "ground truth", names if what == TRUTH else ())
        if what != TRUTH:
            scores = found["scores"][shown].tolist()
            captions = [f"{self.names[seen.labels[n]]} {s:.2f}" for n, s in zip(shown, scores, strict=True)][:CAPTIONED]
            canvas.boxes(found["boxes"][shown], "detection", captions, found["labels"][shown], self.names, line)
