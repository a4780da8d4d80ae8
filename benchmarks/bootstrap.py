"""How sure is a difference of AP? Two systems are scored on the same images, and these drawn anew many times.

    I  images    D  detections    T  IoU thresholds (10)    C  classes    R  resamples

A resample draws I of the I images with repetition; every system is scored on the same resamples, so that a difference
is paired by image. AP is COCO's: 101 points of the precision's envelope, mean over classes and thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

RESAMPLES = 500
_RECALLS = np.linspace(0, 1, 101)


@dataclass
class Matches:
    """What an evaluation found in one class, best score first.

    The `image` (D,) of each detection, whether it is a `hit` (D, T); `objects` (I,) of each image.
    """

    image: np.ndarray
    hit: np.ndarray
    objects: np.ndarray


def matches(evaluation: COCOeval) -> list[Matches]:
    """Of each class that has objects, from pycocotools' evaluation of all areas."""
    area, images = evaluation.params.areaRng[0], {n: i for i, n in enumerate(evaluation.params.imgIds)}
    rows = [e for e in evaluation.evalImgs if e and e["aRng"] == area]
    classes = []
    for category in evaluation.params.catIds:
        mine = [e for e in rows if e["category_id"] == category]
        objects = np.zeros(len(images))
        for e in mine:
            objects[images[e["image_id"]]] = len(e["gtIds"])
        if not objects.any():
            continue
        order = np.argsort(-np.concatenate([e["dtScores"] for e in mine]), kind="stable")
        image = np.concatenate([np.full(len(e["dtIds"]), images[e["image_id"]]) for e in mine]).astype(int)
        hit = np.concatenate([(e["dtMatches"] > 0).T for e in mine])
        classes.append(Matches(image[order], hit[order], objects))
    return classes


def weighted_ap(classes: Sequence[Matches], weights: np.ndarray) -> float:
    """COCO's AP where image i counts `weights[i]` times; weights (I,)."""
    values = []
    for found in classes:
        total, weight = (weights * found.objects).sum(), weights[found.image]
        if total == 0:
            continue
        hits = (weight[:, None] * found.hit).cumsum(0)
        precision = hits / (weight.cumsum() + np.spacing(1))[:, None]
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        envelope = np.concatenate([envelope, np.zeros((1, envelope.shape[1]))])  # a recall that is never reached
        for recall, height in zip((hits / total).T, envelope.T, strict=True):
            values.append(height[np.searchsorted(recall, _RECALLS, "left")].mean())
    return float(np.mean(values))


def resampled_ap(evaluation: COCOeval) -> list[float]:
    """AP on the R resamples of the evaluation's images: the same ones for every evaluation of as many images."""
    classes, count = matches(evaluation), len(evaluation.params.imgIds)
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return [round(weighted_ap(classes, draw), 5) for draw in draws]


def interval(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Where the difference of two systems' AP, second less first, lies in 95 of 100 resamples.

    Each is a list over training seeds, the same ones in the same order, of APs on the R resamples; the seeds are drawn
    anew as well, in pairs.
    """
    difference = np.subtract(second, first)  # (seeds, R)
    seeds = np.random.default_rng(1).integers(0, len(difference), (len(difference), difference.shape[1]))
    low, high = np.percentile(np.take_along_axis(difference, seeds, 0).mean(0), (2.5, 97.5))
    return float(low), float(high)
