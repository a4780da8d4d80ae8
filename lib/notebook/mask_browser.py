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
from lib.maskhead import THRESHOLD
from lib.maskrcnn import MaskRCNN
from lib.notebook.controls import ALL, LEAST, Browser, alone, button, control, offer, plural, slider, tick
from lib.notebook.draw import COLOURS, class_colour
from lib.notebook.outcomes import RIGHT, Outcome, judged, mask_ious, pasted
from lib.notebook.pixels import Canvas

SHOWS = "prediction and ground truth", "prediction", "ground truth", "difference in pixels"
BOTH, FOUND, TRUTH, DIFFERENCE = SHOWS


class MaskBrowser(Browser):
    """Every image's detections beside its objects, one by one in a list; where they differ; the next mistake.

    The model, trained up to `stage`, sees an image once. Of several data sets, named, one is chosen as the split.
    """

    def __init__(self, model: MaskRCNN, datasets: Examples | Mapping[str, Examples], stage: str = "joint"):
        if stage == "rpn":
            raise ValueError("an RPN alone finds no masks: browse it with StageBrowser, or train the box head")
        self.model, self.stage = model, stage
        self.sets = datasets if isinstance(datasets, Mapping) else {"the one": datasets}
        first = next(iter(self.sets.values()))
        self.class_names = ("background", *first.classes)
        self.split = control("Dropdown", "split", "which data set", options=list(self.sets))
        self.what = control("Dropdown", "show", "whose masks and boxes are drawn", "460px", options=SHOWS)
        options = [ALL, *((name, n) for n, name in enumerate(first.classes, start=1))]
        self.of = control("Dropdown", "class", "objects and detections of which class", options=options)
        self.score = slider("score at least", 0.5, LEAST, 0.95, "what scores less is left out")
        hint = "the probability from which on a pixel is the object's"
        self.threshold = slider("mask threshold", THRESHOLD, 0.05, 0.95, hint)
        self.opacity = slider("opacity of masks", 0.45, 0.0, 1.0, "how much a mask covers of the picture")
        self.boxes = tick("boxes", True, "draw boxes and captions")
        hint = "what was found, and what was missed: one that is chosen is drawn alone"
        self.rows = control("Select", "highlight", hint, "800px", options=[("nothing", ())], rows=6)
        chosen = [self.split] * (len(self.sets) > 1) + [self.what, self.of, self.boxes]
        hint = "the next image in which an object is missed or a detection is false"
        following = button("next mistake", hint, self.next_mistake)
        sliders = [self.score], [self.threshold], [self.opacity]
        super().__init__("masks", first, [chosen, *sliders], [self.rows], [following])
        self.split.observe(lambda _: self.show_set(self.sets[self.split.value]), "value")
        self.score.observe(self.list_again, "value")

    def orders(self):
        def worst(index):
            pairs = zip(self._at_score(index).kinds, self.record(index)[1], strict=False)
            return 1 - min((iou for kind, iou in pairs if kind == RIGHT), default=1.0)

        boxes = {
            "missed objects": lambda index: len(self._at_score(index).missed),
            "false detections": lambda index: self._at_score(index).false,
        }
        return boxes | ({"right, but the worst masks first": worst} if self.stage != "boxhead" else {})

    def recorded(self, seen):
        masks = self._pasted(seen, list(range(len(seen.labels))), THRESHOLD)
        return seen.outcome, mask_ious(masks, seen.outcome.objects, seen.truth)

    def _at_score(self, index: int) -> Outcome:
        return self.record(index)[0].above(self.score.value)

    @alone
    def next_mistake(self) -> None:
        """Go to the next image, of those listed, in which something is missed or false at this score."""
        at, count = self.position.value, len(self.images)
        for place in (*range(at + 1, count), *range(at)):
            outcome = self._at_score(self.images[place])
            if outcome.missed or outcome.false:
                self.position.value = place
                return self._draw()
        raise ValueError("no other image of this list has a missed object or a false detection at this score")

    def look(self, index):
        image, target = self.dataset[index]
        (found,) = self.model.eval()(image[None].to(next(self.model.parameters()).device), self.stage, paste=False)
        found = {name: value.cpu() for name, value in found.items()}
        truth = target.get("masks", torch.zeros((len(target["boxes"]), *image.shape[1:]), dtype=torch.uint8))
        labels = {"labels": found["labels"].tolist(), "true_labels": target["labels"].tolist()}
        outcome, about = judged(found, target["boxes"], target["labels"]), {"index": index, "boxes": target["boxes"]}
        pictures = {"image": image, "size": tuple(image.shape[1:]), "truth": truth}
        return SimpleNamespace(**pictures, **labels, **about, found=found, outcome=outcome)

    def _pasted(self, seen, which: list[int], threshold: float) -> Tensor:
        """Masks (., H, W) uint8 of some detections; empty ones without a mask head."""
        if "masks" not in seen.found:
            return torch.zeros((len(which), *seen.size), dtype=torch.uint8)
        return pasted(seen.found["masks"], seen.found["boxes"], seen.size, threshold)[which]

    def draw(self, seen, detail):
        outcome, what, opacity = seen.outcome.above(self.score.value), self.what.value, self.opacity.value
        found = [n for n in range(len(outcome.kinds)) if self.of.value in (ALL[1], seen.labels[n])]
        objects = [n for n, label in enumerate(seen.true_labels) if self.of.value in (ALL[1], label)]
        masks = self._pasted(seen, found, self.threshold.value)
        ious = mask_ious(masks, [outcome.objects[n] for n in found], seen.truth)
        offer(self.rows, self._table(seen, outcome, dict(zip(found, ious, strict=True)), objects))
        words = self._words(outcome, found, objects)
        if picked := self.rows.value:
            masks, objects = masks[[n == picked[1] for n in found]], [n for n in objects if n == picked[2]]
            found = [n for n in found if n == picked[1]]
        canvas = Canvas(seen.image, seen.size, detail=detail)
        if what == DIFFERENCE:
            words += self._draw_difference(canvas, masks, seen.truth[objects])
        if what in (BOTH, FOUND):
            labels = [seen.labels[n] for n in found]
            names, colours = [self.class_names[n] for n in labels], [class_colour(n) for n in labels]
            canvas.masks(masks.numpy(), colours, names, opacity)
        if what in (BOTH, TRUTH):
            many, filled = len(objects), opacity * (what == TRUTH)
            canvas.masks(seen.truth[objects].numpy(), [COLOURS["truth"]] * many, ["ground truth"] * many, filled, True)
        if self.boxes.value:
            self._draw_boxes(canvas, seen, found if what != TRUTH else [], objects if what != FOUND else [])
        return canvas, words

    def _table(self, seen, outcome: Outcome, ious: Mapping[int, float], objects: list[int]) -> list[tuple[str, tuple]]:
        """A row for each detection and for each missed object: its words; the image, the detection and the object."""
        rows: list[tuple[str, tuple]] = [("nothing: all are drawn", ())]
        for n, iou in ious.items():
            name, score, overlap = self.class_names[seen.labels[n]], outcome.scores[n], outcome.overlaps[n]
            about = f"{name}, score {score:.2f}, box IoU {overlap:.2f}"
            about += f", mask IoU {iou:.2f}" if "masks" in seen.found else ""
            rows.append((f"{n + 1}. {outcome.kinds[n]}: {about}", (seen.index, n, outcome.objects[n])))
        lost = [n for n in outcome.missed if n in objects]
        return rows + [(f"missed: {self.class_names[seen.true_labels[n]]}", (seen.index, None, n)) for n in lost]

    def _words(self, outcome: Outcome, found: list[int], objects: list[int]) -> str:
        kinds = [outcome.kinds[n] for n in found] + ["missed" for n in outcome.missed if n in objects]
        counts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
        detections = f"{plural(len(found), 'detection')} with a score of at least {self.score.value:.2f}"
        return f"{plural(len(objects), 'object')}, {detections}: {', '.join(counts) or 'nothing'}."

    def _draw_difference(self, canvas: Canvas, masks: Tensor, truth: Tensor) -> str:
        found, there = ((m != 0).any(dim=0).numpy() for m in (masks, truth))
        areas = {"hit": found & there, "false": found & ~there, "missed": there & ~found}
        canvas.areas(areas, self.opacity.value)
        sizes = {name: int(np.count_nonzero(area)) for name, area in areas.items()}
        counts = ", ".join(f"{plural(size, 'pixel')} {name}" for name, size in sizes.items())
        return f" {counts}; IoU {sizes['hit'] / max(sum(sizes.values()), 1):.2f}."

    def _draw_boxes(self, canvas: Canvas, seen, found: list[int], objects: list[int]) -> None:
        names, line = self.class_names, "double" if self.rows.value else ""
        captions = [f"{names[seen.labels[n]]} {seen.outcome.scores[n]:.2f}" for n in found]
        labels = seen.found["labels"][found]
        canvas.boxes(seen.found["boxes"][found], "detection", captions, labels, names, line)
        alone_there = [names[seen.true_labels[n]] for n in objects] if not found else ()
        canvas.boxes(seen.boxes[objects], "ground truth", alone_there)
