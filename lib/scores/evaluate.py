"""Scores: COCO AP of boxes and masks, the RPN's average recall, and the course's own mAP.

    python -m lib evaluate --data DIR --weights DIR --split {val,test} --out metrics.json

pycocotools does the matching and the AP. On a GPU the network runs in the precision of training, and processes read
ahead; on a CPU in float32. Boxes and masks are compared in the frame of the data set's files (300 x 400).
Of several processes, as under torchrun, each scores whole batches of those that one would score, so that the scores are
the same; the first compares them.
"""

from operator import itemgetter

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from lib.config import STAGES
from lib.data.batches import Examples, loader
from lib.machine.device import autocast, precision
from lib.maskrcnn import MaskRCNN
from lib.scores.coco_ap import average_precision, coco_evaluation, course_map, ground_truth, proposal_recall
from lib.scores.results import box_results, code_results, encode_masks


def evaluate_model(model: MaskRCNN, dataset: Examples, stage: str = "joint") -> dict:
    """Scores of the model on a data set: `images`, `rpn`, and where `stage` has trained them `box`, `mask`, `course`.

    `box` and `mask` hold `AP`, `AP50`, `AP75` and `per_class`; `rpn` holds `AR@100` and `AR@1000`; `course` the
    course's `box_mAP` and `mask_mAP`. A score without any object to find is None. Of several processes, all of which
    call this, the first alone gets scores.
    """
    results = collect_results(model, dataset, stage)
    if not PartialState().is_main_process:
        return {}
    truth = ground_truth(dataset)
    scores = {"images": len(dataset), "rpn": proposal_recall(truth, results["proposals"])}
    course = {}
    for name, kind, needed in (("box", "bbox", "boxhead"), ("mask", "segm", "maskhead")):
        if STAGES.index(stage) >= STAGES.index(needed):  # where it finds nothing, it scores 0
            evaluation = coco_evaluation(truth, results[name], kind, sizes=False)
            scores[name], course[f"{name}_mAP"] = average_precision(evaluation), course_map(evaluation)
    return scores | ({"course": course} if course else {})


@torch.no_grad()
def collect_results(model: MaskRCNN, dataset: Examples, stage: str = "joint") -> dict[str, list[dict]]:
    """The model's `proposals`, `box` and `mask` results on a data set, in COCO's results format, of all processes."""
    size, processes, of_batches = model.config.evaluation.batch_size, PartialState(), []
    starts = range(0, len(dataset), size)[processes.process_index :: processes.num_processes]
    chosen = [list(range(start, min(start + size, len(dataset)))) for start in starts]
    where, wanted = next(model.parameters()).device, model.config.training.mixed_precision
    batches = loader(dataset, chosen, where)
    bar = tqdm(batches, "evaluate", leave=False, unit="batch", disable=not processes.is_main_process)
    for start, (images, targets) in zip(starts, bar, strict=True):
        results: dict[str, list[dict]] = {"proposals": [], "box": [], "mask": []}
        of_batches.append((start, results))
        with autocast(where, precision(wanted) if where.type == "cuda" else "no"):
            each = model.eval()(images.to(where, non_blocking=True), stage)
        for target, found in zip(targets, each, strict=True):
            image, found = target["image_id"], {k: v.cpu() for k, v in found.items()}
            ones = torch.ones(len(found["proposals"]), dtype=torch.long)
            results["proposals"] += box_results(image, found["proposals"], ones, found["proposal_scores"])
            if "boxes" in found:
                results["box"] += box_results(image, found["boxes"], found["labels"], found["scores"])
            if "masks" in found:
                results["mask"] += code_results(image, encode_masks(found["masks"]), found["labels"], found["scores"])
    in_order = sorted(gather_object(of_batches), key=itemgetter(0))
    return {name: [row for _, rows in in_order for row in rows[name]] for name in ("proposals", "box", "mask")}
