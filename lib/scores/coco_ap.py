"""COCO's average precision and recall by pycocotools, and the course's own mAP from the same matches."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lib.data.batches import Examples
from lib.preprocess import IMAGE_HEIGHT, IMAGE_WIDTH
from lib.scores.results import box_results, encode_masks

UNDEFINED = -1  # pycocotools' mark for a score without objects


def categories(classes: Sequence[str]) -> list[dict]:
    """The classes as COCO's categories, numbered from 1."""
    return [{"id": label, "name": name} for label, name in enumerate(classes, start=1)]


def ground_truth(dataset: Examples) -> COCO:
    """The data set's objects as a COCO object."""
    annotations: list[dict] = []
    for _, target in (dataset[i] for i in range(len(dataset))):
        boxes = box_results(target["image_id"], target["boxes"], target["labels"], torch.ones(len(target["labels"])))
        for row, code in zip(boxes, encode_masks(target["masks"]), strict=True):
            area = float(rle.area(code))
            annotations.append({**row, "id": len(annotations) + 1, "segmentation": code, "area": area, "iscrowd": 0})
    images = [{"id": i, "height": IMAGE_HEIGHT, "width": IMAGE_WIDTH} for i in dataset.indices]
    return _coco({"images": images, "annotations": annotations, "categories": categories(dataset.classes)})


def coco_evaluation(
    truth: COCO, results: list[dict], kind: str, max_detections=(1, 10, 100), classes=True, sizes=True
) -> COCOeval:
    """pycocotools' evaluation, accumulated; `kind` is "bbox" or "segm".

    Without `classes` all objects count as one class; without `sizes` small, medium and large ones are not scored apart,
    which takes a quarter of the time.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        found = truth.loadRes(results) if results else _coco({**truth.dataset, "annotations": []})
        evaluation = COCOeval(truth, found, kind)
        evaluation.params.useCats, evaluation.params.maxDets = int(classes), list(max_detections)
        if not sizes:
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def average_precision(evaluation: COCOeval) -> dict:
    """AP (mean over IoU .50:.05:.95), AP50 and AP75 over all classes and sizes, and AP and AP50 of each class."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoUs, recalls, classes): all areas, most detections
    scores = {"AP": _mean(precision), "AP50": _mean(precision[0]), "AP75": _mean(precision[5])}
    names = [category["name"] for category in evaluation.cocoGt.dataset["categories"]]
    of_class = {name: precision[..., k] for k, name in enumerate(names)}
    return {**scores, "per_class": {name: {"AP": _mean(p), "AP50": _mean(p[0])} for name, p in of_class.items()}}


def proposal_recall(truth: COCO, proposals: list[dict]) -> dict:
    """AR@100 and AR@1000: the share of objects of any class that the best proposals find, mean over AP's IoUs."""
    evaluation = coco_evaluation(truth, proposals, "bbox", (100, 1000), classes=False, sizes=False)
    recall = evaluation.eval["recall"]  # (IoUs, 1, areas, limits)
    return {f"AR@{limit}": _mean(recall[:, 0, 0, k]) for k, limit in enumerate((100, 1000))}


def course_map(evaluation: COCOeval) -> float | None:
    """The course's mAP: for each class the area under precision over recall as the score threshold falls; their mean.

    A detection is right where it is matched with an object at IoU 0.5; a second one on the same object is wrong.
    """
    areas = [np.trapezoid(precision, recall) for recall, precision in precision_recall(evaluation) if len(recall)]
    return float(np.mean(areas)) if areas else None


def precision_recall(evaluation: COCOeval, iou: float = 0.5) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each class (recall, precision) at falling score thresholds, from recall 0; both empty without objects."""
    level = int(np.flatnonzero(np.isclose(evaluation.params.iouThrs, iou))[0])
    curves = []
    images = [e for e in evaluation.evalImgs if e and e["aRng"] == evaluation.params.areaRng[0]]
    for category in evaluation.params.catIds:
        found = [e for e in images if e["category_id"] == category]
        objects = sum(len(e["gtIds"]) for e in found)
        order = np.argsort(-np.concatenate([np.zeros(0), *(e["dtScores"] for e in found)]), kind="stable")
        right = np.concatenate([np.zeros(0), *(e["dtMatches"][level] > 0 for e in found)])
        hits, recall, precision = np.cumsum(right[order]), np.zeros(0), np.zeros(0)
        if objects:
            recall = np.concatenate([[0], hits / objects])
            precision = np.concatenate([[1], hits / np.arange(1, len(hits) + 1)])
        curves.append((recall, precision))
    return curves


def _coco(content: dict) -> COCO:
    coco = COCO()
    coco.dataset = {"info": {}, **content}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _mean(values: np.ndarray) -> float | None:
    """The mean without the entries that pycocotools marks as undefined."""
    values = values[values > UNDEFINED]
    return float(values.mean()) if values.size else None
