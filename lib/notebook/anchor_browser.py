"""The browser of anchors and their labels (§4.1, §4.2).

A  anchors of the pyramid    G  objects    Sy x Sx  a level's grid
boxes are xyxy in pixels of the network's input frame, padding included
"""

from types import SimpleNamespace

import torch
from torch import Tensor

from lib.anchors import LEVELS, anchor_levels, pyramid_anchors, pyramid_grids
from lib.boxes import inside, iou_matrix
from lib.config import Config
from lib.data.batches import Examples
from lib.matching import IGNORED, NEGATIVE, POSITIVE, match_anchors
from lib.notebook.controls import ALL, Browser, control, offer, plural, slider, tick
from lib.notebook.pixels import Canvas
from lib.preprocess import content_size, preprocess_targets
from lib.rpn import NEGATIVE_IOU, POSITIVE_IOU

SHOWN = 40  # anchors of a kind that are drawn: a sample, evenly spaced in the order of the anchors


class AnchorBrowser(Browser):
    """Every image's anchors and their labels (§4.2): by thresholds, level, ratio, kind and object."""

    def __init__(self, dataset: Examples, config: Config):
        ratios = config.anchors.ratios
        self.config, self.grids = config, pyramid_grids(config.image.padded_size)
        self.anchors, self.levels = pyramid_anchors(self.grids, config.anchors), anchor_levels(self.grids, len(ratios))
        self.ratios = torch.arange(len(self.anchors)) % len(ratios)
        self.removes = config.rpn.cross_boundary == "remove"
        hint = "an anchor is positive where its IoU with an object is above this, or is the object's highest"
        self.positive = slider("positive: IoU above", POSITIVE_IOU, 0.3, 0.95, hint)
        hint = "an anchor that is not positive is negative where its IoU with every object is below this"
        self.negative = slider("negative: IoU below", NEGATIVE_IOU, 0.05, 0.7, hint)
        self.level = control("Dropdown", "level", "of which level of the pyramid", options=["all", *LEVELS])
        options = [ALL, *((f"{ratio:g}", n) for n, ratio in enumerate(ratios))]
        self.ratio = control("Dropdown", "width : height", "of which aspect ratio, width over height", options=options)
        hint = "only the anchors that overlap this object more than others, with their IoU"
        self.object = control("Dropdown", "object", hint, options=[ALL])
        kinds = ["positive", "negative", "ignored"] + ["across the boundary"] * self.removes
        self.kinds = {kind: tick(kind, kind == "positive", f"draw anchors of the kind {kind}") for kind in kinds}
        self.heat = tick("heat map of the best IoU", False, "colour each cell by the best IoU of its anchors")
        chosen = [self.level, self.ratio, self.object], [*self.kinds.values(), self.heat]
        super().__init__("anchors", dataset, [[self.positive], [self.negative], *chosen])

    def orders(self):
        return {"objects that no anchor fits, worst first": lambda index: 1 - self.record(index)}

    def recorded(self, seen):
        return min(seen.best, default=1.0)

    def look(self, index):
        image, target = self.dataset[index]
        size = image.shape[1], image.shape[2]
        (scaled,) = preprocess_targets([{"boxes": target["boxes"]}], size, self.config.image)
        content = content_size(*size, self.config.image)
        crossing = ~inside(self.anchors, *content) & self.removes
        iou = iou_matrix(scaled["boxes"], self.anchors).mT.masked_fill(crossing[:, None], 0)
        best = iou.amax(dim=0).tolist() if iou.shape[1] else []
        about = {"boxes": scaled["boxes"], "names": [self.config.class_names[n] for n in target["labels"].tolist()]}
        return SimpleNamespace(image=image, content=content, crossing=crossing, iou=iou, best=best, **about)

    def assigned(self, seen) -> tuple[dict[str, Tensor], Tensor]:
        """Which anchors (A,) are of each kind, and the object (A,) of each one's highest IoU, as `rpn_targets` says."""
        if self.negative.value > self.positive.value:
            raise ValueError("no anchor can be positive and negative: lower the negative threshold, or raise the other")
        labels, matched = match_anchors(seen.iou, self.positive.value, self.negative.value)
        labels = labels.masked_fill(seen.crossing, IGNORED)
        kinds = labels == POSITIVE, labels == NEGATIVE, (labels == IGNORED) & ~seen.crossing, seen.crossing
        return dict(zip(self.kinds, kinds, strict=False)), matched

    def draw(self, seen, detail):
        names = [f"{n}: {name}" for n, name in enumerate(seen.names)]
        offer(self.object, [ALL, *((name, n) for n, name in enumerate(names))])
        kinds, matched = self.assigned(seen)
        here = torch.ones(len(self.anchors), dtype=torch.bool)
        for of, value in ((self.levels, self.level.index - 1), (self.ratios, self.ratio.value)):
            here &= (of == value) | (value == ALL[1])
        iou = seen.iou[:, self.object.value, None] if self.object.value != ALL[1] else seen.iou
        best = iou.amax(dim=1) if iou.shape[1] else iou.new_zeros(len(iou))
        shown = here & ((matched == self.object.value) & (best > 0) | (self.object.value == ALL[1]))
        canvas = Canvas(seen.image, seen.content, self.config.image.padded_size, seen.content[1] // 16, detail)
        if self.heat.value:
            canvas.heat(self._maps(best * here), "best IoU of a cell's anchors, 0 to 1")
        canvas.boxes(seen.boxes, "ground truth", names)
        said = [self._draw_kind(canvas, kind, (of & shown).nonzero().flatten(), best) for kind, of in kinds.items()]
        each = [f"{name} {(kinds['positive'] & shown & (self.levels == n)).sum()}" for n, name in enumerate(LEVELS)]
        fits = [f"{name} {iou:.2f}" for name, iou in zip(names, seen.best, strict=True)]
        return canvas, (
            f"{plural(len(names), 'object')}; anchors: {', '.join(said)}. Positive by level: {', '.join(each)}. "
            f"Best IoU of an object: {', '.join(fits) or 'there is none'}."
        )

    def _draw_kind(self, canvas: Canvas, kind: str, index: Tensor, best: Tensor) -> str:
        """Draw at most SHOWN anchors of a kind where it is ticked -> how many there are, and how many are drawn."""
        if not self.kinds[kind].value:
            return f"{len(index):,} {kind}"
        some = index[torch.linspace(0, len(index) - 1, min(SHOWN, len(index))).long()]
        captions = [f"{LEVELS[n]} {v:.2f}" for n, v in zip(self.levels[some], best[some], strict=True)]
        told = kind == "positive" or self.object.value != ALL[1]
        canvas.boxes(self.anchors[some], kind, captions if told else ())
        return f"{len(index):,} {kind}" + f" ({len(some)} of {len(index):,} drawn)" * (len(some) < len(index))

    def _maps(self, best: Tensor) -> list[Tensor]:
        """IoUs (A,) -> the best in each cell, (Sy, Sx) for each level."""
        cells = best.unflatten(0, (-1, len(self.config.anchors.ratios))).amax(dim=1)
        parts = zip(cells.split([rows * columns for rows, columns in self.grids]), self.grids, strict=True)
        return [part.unflatten(0, grid) for part, grid in parts]
