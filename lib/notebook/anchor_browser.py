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
from lib.notebook.controls import ALL, CAPTIONED, Browser, choice, offer, plural, slider, tick
from lib.notebook.pixels import Canvas
from lib.preprocess import content_size, preprocess_targets
from lib.rpn import NEGATIVE_IOU, POSITIVE_IOU

SHOWN = 40  # anchors of a kind that are drawn: a sample, evenly spaced in the order of the anchors


class AnchorBrowser(Browser):
    """Every image's anchors and their labels (§4.2): by thresholds, level, ratio, kind and object."""

    def __init__(self, dataset: Examples, config: Config):
        grids = pyramid_grids(config.image.padded_size)
        self.config, self.grids, self.anchors = config, grids, pyramid_anchors(grids, config.anchors)
        self.levels = anchor_levels(grids, len(config.anchors.ratios))
        self.ratios = torch.arange(len(self.anchors)) % len(config.anchors.ratios)
        hint = "an anchor is positive where its IoU with an object is above this, or is the object's highest"
        self.positive = slider("positive: IoU above", POSITIVE_IOU, 0.3, 0.95, 0.05, hint)
        hint = "an anchor that is not positive is negative where its IoU with every object is below this"
        self.negative = slider("negative: IoU below", NEGATIVE_IOU, 0.05, 0.7, 0.05, hint)
        self.level = choice("level", [ALL, *LEVELS], "anchors of which level of the pyramid")
        ratios = [(ALL, -1), *((f"{ratio:g}", n) for n, ratio in enumerate(config.anchors.ratios))]
        self.ratio = choice("width : height", ratios, "anchors of which aspect ratio, width over height")
        self.object = choice("object", [(ALL, -1)], "only the anchors whose best object this is, with their IoU")
        kinds = ("positive", "negative", "ignored", "across the boundary")
        removes = config.rpn.cross_boundary == "remove"
        self.kinds = {k: tick(k, k == "positive", f"draw the {k} anchors") for k in kinds[: 3 + removes]}
        self.heat = tick("heat map of the best IoU", False, "colour each cell by the best IoU of its anchors")
        chosen = [self.level, self.ratio], [self.object], [*self.kinds.values(), self.heat]
        super().__init__("anchors", dataset, [[self.positive], [self.negative], *chosen])

    def orders(self):
        return {"objects that no anchor fits, worst first": lambda index: 1 - self.record(index)}

    def recorded(self, seen):
        return min(seen.best, default=1.0)

    def look(self, index):
        image, target = self.dataset[index]
        size = image.shape[-2], image.shape[-1]
        (scaled,) = preprocess_targets([{"boxes": target["boxes"]}], size, self.config.image)
        content = content_size(*size, self.config.image)
        crossing = ~inside(self.anchors, *content) & (self.config.rpn.cross_boundary == "remove")
        iou = iou_matrix(scaled["boxes"], self.anchors).mT.masked_fill(crossing[:, None], 0)
        best = iou.amax(dim=0).tolist() if iou.shape[1] else []
        about = {"image": image, "labels": target["labels"], "boxes": scaled["boxes"], "content": content}
        return SimpleNamespace(**about, iou=iou, crossing=crossing, best=best)

    def assigned(self, seen) -> tuple[dict[str, Tensor], Tensor]:
        """Which anchors (A,) are of each kind, and the object (A,) of each one's highest IoU, as `rpn_targets` says."""
        if self.negative.value > self.positive.value:
            raise ValueError(
                "an anchor cannot be positive and negative: lower the negative threshold, or raise the other"
            )
        labels, matched = match_anchors(seen.iou, self.positive.value, self.negative.value)
        labels = labels.masked_fill(seen.crossing, IGNORED)
        kinds = {"positive": labels == POSITIVE, "negative": labels == NEGATIVE}
        kinds |= {"ignored": (labels == IGNORED) & ~seen.crossing, "across the boundary": seen.crossing}
        return {kind: kinds[kind] for kind in self.kinds}, matched

    def draw(self, seen, detail):
        names = [self.config.class_names[n] for n in seen.labels.tolist()]
        offer(self.object, [(ALL, -1), *((f"{n}: {name}", n) for n, name in enumerate(names))])
        kinds, matched = self.assigned(seen)
        here = self._chosen(seen, matched)
        canvas = Canvas(seen.image, seen.content, self.config.image.padded_size, seen.content[1] // 16, detail)
        if self.heat.value:
            canvas.heat(self._heat(seen), "best IoU of a cell's anchors, 0 to 1")
        canvas.boxes(seen.boxes, "ground truth", [f"{n}: {name}" for n, name in enumerate(names)])
        said, best = [], seen.iou.amax(dim=1) if seen.iou.shape[1] else seen.iou.new_zeros(len(seen.iou))
        for kind, of_kind in kinds.items():
            said.append(self._draw_kind(canvas, kind, (of_kind & here).nonzero().flatten(), best))
        each = [f"{name} {(kinds['positive'] & here & (self.levels == n)).sum()}" for n, name in enumerate(LEVELS)]
        fits = [f"{name} {iou:.2f}" for name, iou in zip(names, seen.best, strict=True)]
        words = f"{plural(len(names), 'object')}; anchors: {', '.join(said)}. Positive by level: "
        return canvas, words + f"{', '.join(each)}. Best IoU of an object: {', '.join(fits) or 'there is none'}."

    def _chosen(self, seen, matched: Tensor) -> Tensor:
        """Which anchors (A,) are of the level, the ratio and the object chosen."""
        here = torch.ones(len(self.anchors), dtype=torch.bool)
        if self.level.value != ALL:
            here &= self.levels == LEVELS.index(self.level.value)
        if self.ratio.value >= 0:
            here &= self.ratios == self.ratio.value
        if self.object.value >= 0:
            here &= (matched == self.object.value) & (seen.iou[:, self.object.value] > 0)
        return here

    def _draw_kind(self, canvas: Canvas, kind: str, index: Tensor, best: Tensor) -> str:
        """Draw at most SHOWN anchors of a kind where it is ticked -> how many there are, and how many are drawn."""
        words = f"{len(index):,} {kind}"
        if not self.kinds[kind].value:
            return words
        some = index[torch.linspace(0, len(index) - 1, min(SHOWN, len(index))).long()]
        captions = [f"{LEVELS[n]} {v:.2f}" for n, v in zip(self.levels[some], best[some], strict=True)][:CAPTIONED]
        told = kind == "positive" or self.object.value >= 0
        canvas.boxes(self.anchors[some], kind, captions if told else ())
        return words + f" ({len(some)} of {len(index):,} drawn)" * (len(some) < len(index))

    def _heat(self, seen) -> list[Tensor]:
        """The best IoU in each cell (Sy, Sx) of the levels, with the object and for the ratio that are chosen."""
        iou = seen.iou[:, self.object.value :][:, :1] if self.object.value >= 0 else seen.iou
        best = iou.amax(dim=1) if iou.shape[1] else iou.new_zeros(len(iou))
        if self.ratio.value >= 0:
            best = best * (self.ratios == self.ratio.value)
        cells = best.unflatten(0, (-1, len(self.config.anchors.ratios))).amax(dim=1)
        maps = [
            m.unflatten(0, grid)
            for m, grid in zip(cells.split([y * x for y, x in self.grids]), self.grids, strict=True)
        ]
        return maps if self.level.value == ALL else [maps[LEVELS.index(self.level.value)]]
