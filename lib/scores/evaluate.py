"""Scores: COCO AP of boxes and masks, the RPN's average recall, and the course's own mAP.

    python -m lib evaluate --data DIR --weights DIR --split {val,test} --out metrics.json

pycocotools does the matching and the AP. Boxes and masks are compared in the frame of the data set's files (300 x 400).
"""

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from lib.config import STAGES
from lib.data.batches import Examples, collate
from lib.maskrcnn import MaskRCNN
from lib.scores.coco_ap import average_precision, coco_evaluation, course_map, ground_truth, proposal_recall
from lib.scores.results import box_results, code_results, encode_masks


def evaluate_model(model: MaskRCNN, dataset: Examples, stage: str = "joint") -> dict:
    """Scores of the model on a data set: `images`, `rpn`, and where `stage` has trained them `box`, `mask`, `course`.

    `box` and `mask` hold `AP`, `AP50`, `AP75` and `per_class`; `rpn` holds `AR@100` and `AR@1000`; `course` the
    course's `box_mAP` and `mask_mAP`. A score without any object to find is None.
    """
    truth, results = ground_truth(dataset), collect_results(model, dataset, stage)
    scores = {"images": len(dataset), "rpn": proposal_recall(truth, results["proposals"])}
    course = {}
    for name, kind, needed in (("box", "bbox", "boxhead"), ("mask", "segm", "maskhead")):
        if STAGES.index(stage) >= STAGES.index(needed):  # where it finds nothing, it scores 0
            evaluation = coco_evaluation(truth, results[name], kind, sizes=False)
            scores[name], course[f"{name}_mAP"] = average_precision(evaluation), course_map(evaluation)
    return scores | ({"course": course} if course else {})


@torch.no_grad()
def collect_results(model: MaskRCNN, dataset: Examples, stage: str = "joint") -> dict[str, list[dict]]:
    """The model's `proposals`, `box` and `mask` results on a data set, in COCO's results format."""
    results: dict[str, list[dict]] = {"proposals": [], "box": [], "mask": []}
    batches = DataLoader(dataset, model.config.evaluation.batch_size, collate_fn=collate)
    where = next(model.parameters()).device
    for images, targets in tqdm(batches, "evaluate", leave=False, unit="batch"):
        for target, found in zip(targets, model.eval()(images.to(where), stage), strict=True):
            image, found = target["image_id"], {k: v.cpu() for k, v in found.items()}
            ones = torch.ones(len(found["proposals"]), dtype=torch.long)
            results["proposals"] += box_results(image, found["proposals"], ones, found["proposal_scores"])
            if "boxes" in found:
                results["box"] += box_results(image, found["boxes"], found["labels"], found["scores"])
            if "masks" in found:
                results["mask"] += code_results(image, encode_masks(found["masks"]), found["labels"], found["scores"])
    return results
