"""What became of an image's detections and objects, in the words of notebook 06.

D  detections, best first    G  objects    H x W  an image
boxes are xyxy in pixels of one frame; masks are 1 inside the object
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

from lib.boxes import Named, iou_matrix
from lib.maskhead import paste_masks

RIGHT = "right"
OVERLAP, TOUCH = 0.5, 0.1  # IoU with an object: from here on a box fits it, or is at least badly placed

pasted = lru_cache(1)(paste_masks)  # a slider that leaves masks and threshold as they are pastes nothing anew


class Outcome(NamedTuple):
    """Of each detection its score, its kind, the object that it overlaps most (None for none) and that IoU.

    A kind is "right", "duplicate" (of an object that a better one is right about), "wrong class", "badly placed" or
    "nothing there". `known` is G.
    """

    scores: list[float]
    kinds: list[str]
    objects: list[int | None]
    overlaps: list[float]
    known: int

    def above(self, score: float) -> "Outcome":
        """The outcome without what scores less: a kind rests on better detections alone, so that none changes."""
        n = sum(value >= score for value in self.scores)
        return Outcome(self.scores[:n], self.kinds[:n], self.objects[:n], self.overlaps[:n], self.known)

    @property
    def missed(self) -> list[int]:
        """The objects that no right detection took."""
        taken = {n for n, kind in zip(self.objects, self.kinds, strict=True) if kind == RIGHT}
        return [n for n in range(self.known) if n not in taken]

    @property
    def false(self) -> int:
        """How many detections are not right."""
        return len(self.kinds) - self.kinds.count(RIGHT)


def judged(found: Named, boxes: Tensor, labels: Tensor) -> Outcome:
    """Detections (D) and an image's objects, `boxes` (G, 4) and `labels` (G,) -> what became of them."""
    taken: set[int] = set()
    outcome, truth = Outcome(found["scores"].tolist(), [], [], [], len(boxes)), labels.tolist()
    for row, label in zip(iou_matrix(found["boxes"], boxes).tolist(), found["labels"].tolist(), strict=True):
        overlap = max(row, default=0.0)
        best = row.index(overlap) if overlap > 0 else None
        if best is None or overlap < OVERLAP:
            kind = "badly placed" if overlap >= TOUCH else "nothing there"
        elif truth[best] != label:
            kind = "wrong class"
        else:
            kind = "duplicate" if best in taken else RIGHT
            taken.add(best)
        outcome.kinds.append(kind)
        outcome.objects.append(best)
        outcome.overlaps.append(overlap)
    return outcome


def reached(boxes: Tensor, objects: Tensor) -> int:
    """How many of the objects (G, 4) one of the boxes (D, 4) overlaps enough."""
    return int((iou_matrix(objects, boxes).amax(dim=1) >= OVERLAP).sum()) if len(boxes) else 0


def mask_ious(masks: Tensor, objects: list[int | None], truth: Tensor) -> list[float]:
    """Masks (D, H, W), the object of each, the objects' masks (G, H, W) -> IoUs with these; 0 where there is none."""
    values = [0.0] * len(masks)
    found, there = (m.numpy().view(bool) for m in (masks, truth))
    for n, which in enumerate(objects):
        if which is not None:
            both, either = (int(np.count_nonzero(m)) for m in (found[n] & there[which], found[n] | there[which]))
            values[n] = both / max(either, 1)
    return values
