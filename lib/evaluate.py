"""Scores: COCO AP of boxes and masks, the RPN's average recall, and the course's own mAP.

    python -m lib.evaluate --data DIR --weights DIR --split {val,test} --out metrics.json

pycocotools does the matching and the AP. Boxes and masks are compared in the frame of the data set's files (300 x 400).
"""

import argparse
import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lib.checkpoint import backbone_origin, last_trained, load_model
from lib.config import CLASS_NAMES, STAGES
from lib.data import IMAGE_HEIGHT, IMAGE_WIDTH, CourseDataset, collate
from lib.fast import for_inference
from lib.maskhead import pasted_crops
from lib.maskrcnn import MaskRCNN
from lib.runtime import command_errors, device, keep_memory
from lib.split import SPLIT_FILE

UNDEFINED = -1  # pycocotools' mark for a score without objects
CATEGORIES = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES) if i]


def evaluate_model(model: MaskRCNN, dataset: CourseDataset, upto: str = "joint") -> dict:
    """Scores of the model on a data set: `images`, `rpn`, and with the parts that `upto` has trained `box`, `mask`,
    `course`.

    `box` and `mask` hold `AP`, `AP50`, `AP75` and `per_class`; `rpn` holds `AR@100` and `AR@1000`; `course` the
    course's `box_mAP` and `mask_mAP`. A score without any object to find is None.
    """
    truth, results = ground_truth(dataset), collect_results(model, dataset, upto)
    scores = {"images": len(dataset), "rpn": proposal_recall(truth, results["proposals"])}
    course = {}
    for name, kind, stage in (("box", "bbox", "boxhead"), ("mask", "segm", "maskhead")):
        if STAGES.index(upto) >= STAGES.index(stage):  # where it finds nothing, it scores 0
            evaluation = coco_evaluation(truth, results[name], kind, sizes=False)
            scores[name], course[f"{name}_mAP"] = average_precision(evaluation), course_map(evaluation)
    return scores | ({"course": course} if course else {})


@torch.no_grad()
def collect_results(model: MaskRCNN, dataset: CourseDataset, upto: str = "joint") -> dict[str, list[dict]]:
    """The model's `proposals`, `box` and `mask` results on a data set, in COCO's results format."""
    results = {"proposals": [], "box": [], "mask": []}
    batch_size, where, fast = model.config.eval_batch_size, next(model.parameters()).device, for_inference(model)
    for images, targets in tqdm(
        DataLoader(dataset, batch_size, collate_fn=collate), "evaluate", leave=False, unit="batch"
    ):
        for target, found in zip(targets, fast.find(images.to(where), upto), strict=True):
            image, found = target["image_id"], {k: v.cpu() for k, v in found.items()}
            ones = torch.ones(len(found["proposals"]), dtype=torch.long)
            results["proposals"] += box_results(image, found["proposals"], ones, found["proposal_scores"])
            if "boxes" in found:
                results["box"] += box_results(image, found["boxes"], found["labels"], found["scores"])
            if "masks" in found:
                size, threshold = tuple(images.shape[-2:]), model.config.mask_threshold
                codes = encode_pasted(found["masks"], found["boxes"], size, threshold)
                results["mask"] += code_results(image, codes, found["labels"], found["scores"])
    return results


def box_results(image: int, boxes: Tensor, labels: Tensor, scores: Tensor) -> list[dict]:
    """COCO results of boxes (D, 4) xyxy: `bbox` is (x, y, width, height)."""
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
    rows = zip(xywh, labels.tolist(), scores.tolist(), strict=True)
    return [{"image_id": image, "category_id": label, "bbox": box, "score": score} for box, label, score in rows]


def code_results(image: int, codes: list[dict], labels: Tensor, scores: Tensor) -> list[dict]:
    """COCO results of masks given as compressed RLE."""
    rows = zip(codes, labels.tolist(), scores.tolist(), strict=True)
    return [
        {"image_id": image, "category_id": label, "segmentation": code, "score": score} for code, label, score in rows
    ]


def encode_masks(masks: Tensor) -> list[dict]:
    """Masks (D, H, W) uint8 of 0 and 1 -> compressed run-length codes."""
    return rle.encode(np.asfortranarray(masks.numpy().transpose(1, 2, 0))) if len(masks) else []


def encode_pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> list[dict]:
    """Run-length codes of small masks (D, m, m) in their boxes (D, 4): `encode_masks` of `paste_masks`, whose pixels
    out of a box's reach it never makes.

    A code lists the lengths of runs of 0 and 1 down the columns of an image of `size` (H, W).
    """
    (height, width), codes = size, []
    for left, top, crop in pasted_crops(masks, boxes, size, threshold):
        pixels = np.concatenate([[False], crop.ravel()])
        column, row = np.divmod(np.flatnonzero(pixels[1:] != pixels[:-1]), crop.shape[1])
        changes = (left + column) * height + top + row  # where runs of 1 start and end, in turns
        if crop.shape[1] > height:  # a run that ends at the foot of the image may go on at the head of the next column
            goes_on = np.flatnonzero(changes[1:] == changes[:-1])
            changes = np.delete(changes, np.concatenate([goes_on, goes_on + 1]))
        end = [] if len(changes) and changes[-1] == height * width else [height * width]
        edges = np.concatenate([[0], changes, end]).astype(np.uint32)
        codes.append({"size": [height, width], "counts": edges[1:] - edges[:-1]})
    return rle.frPyObjects(codes, height, width) if codes else []


def ground_truth(dataset: CourseDataset) -> COCO:
    """The data set's objects as a COCO object."""
    annotations = []
    for _, target in (dataset[i] for i in range(len(dataset))):
        boxes = box_results(target["image_id"], target["boxes"], target["labels"], torch.ones(len(target["labels"])))
        for row, code in zip(boxes, encode_masks(target["masks"]), strict=True):
            area = float(rle.area(code))
            annotations.append({**row, "id": len(annotations) + 1, "segmentation": code, "area": area, "iscrowd": 0})
    size = {"height": IMAGE_HEIGHT, "width": IMAGE_WIDTH}
    images = [{"id": i, **size} for i in dataset.indices]
    return _coco({"images": images, "annotations": annotations, "categories": CATEGORIES})


def coco_evaluation(
    truth: COCO,
    results: list[dict],
    kind: str,
    max_detections: Sequence[int] = (1, 10, 100),
    classes: bool = True,
    sizes: bool = True,
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
    per_class = {
        c["name"]: {"AP": _mean(precision[..., k]), "AP50": _mean(precision[0, :, k])} for k, c in enumerate(CATEGORIES)
    }
    return {**scores, "per_class": per_class}


def proposal_recall(truth: COCO, proposals: list[dict]) -> dict:
    """AR@100 and AR@1000: the share of objects that the best proposals find, mean over IoU .50:.05:.95, classes
    ignored.
    """
    recall = coco_evaluation(truth, proposals, "bbox", (100, 1000), classes=False, sizes=False).eval[
        "recall"
    ]  # (IoUs, 1, areas, limits)
    return {f"AR@{limit}": _mean(recall[:, 0, 0, k]) for k, limit in enumerate((100, 1000))}


def course_map(evaluation: COCOeval, iou: float = 0.5) -> float | None:
    """The course's mAP: for each class the area under precision over recall as the score threshold falls; their mean.

    A detection is right where it is matched with an object at this IoU; a second one on the same object is wrong.
    """
    areas = [np.trapezoid(precision, recall) for recall, precision in precision_recall(evaluation, iou) if len(recall)]
    return float(np.mean(areas)) if areas else None


def precision_recall(evaluation: COCOeval, iou: float = 0.5) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each class (recall, precision) at falling score thresholds, from recall 0; empty for a class without
    objects.
    """
    level = int(np.flatnonzero(np.isclose(evaluation.params.iouThrs, iou))[0])
    curves = []
    images = [e for e in evaluation.evalImgs if e and e["aRng"] == evaluation.params.areaRng[0]]
    for category in evaluation.params.catIds:
        found = [e for e in images if e["category_id"] == category]
        objects = sum(len(e["gtIds"]) for e in found)
        scores = np.concatenate([np.zeros(0), *(e["dtScores"] for e in found)])
        right = np.concatenate([np.zeros(0), *(e["dtMatches"][level] > 0 for e in found)])[
            np.argsort(-scores, kind="stable")
        ]
        hits, recall, precision = np.cumsum(right), np.zeros(0), np.zeros(0)
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


def write_metrics(scores: dict, path: str | Path) -> None:
    """Scores as JSON, written whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(scores, indent=2) + "\n")
    partial.replace(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lib.evaluate", description="Score trained weights on images never trained on."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the four course files")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the trained stages")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument(
        "--stage", choices=STAGES, default=None, help="score the system as it was after this stage (default: the last)"
    )
    parser.add_argument("--out", type=Path, default=Path("metrics.json"))
    args = parser.parse_args(argv)
    keep_memory()
    with command_errors():
        stage = args.stage or last_trained(args.weights)
        model = load_model(args.weights, stage).to(device())
        data = CourseDataset(args.data, args.split, model.config)
        if not len(data):
            raise ValueError(
                f"{args.data / SPLIT_FILE} has no images in its {args.split} split: choose the other split"
            )
        scores = {"split": args.split, "backbone": backbone_origin(model.config), **evaluate_model(model, data, stage)}
        write_metrics(scores, args.out)
        print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
