"""What each stage of the demo profile reaches, on 1,000 scenes of a seed of their own.

    python -m benchmarks.demo --seeds 0 1 2

A seed varies initial weights, the order of images and sampling; scenes, split and backbone stay. Each run leaves one
JSON in figures/published/benchmarks/ and is not run again; the table, means over the seeds beside their bars, goes to
figures/published/06_stages.
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.timing import machine
from lib.anchors import LEVELS
from lib.config import STAGES, Config, load_config
from lib.data.batches import loader, prepare
from lib.data.reader import FILES, CourseDataset
from lib.data.scenes import write_scenes
from lib.data.sources import ensure_data
from lib.machine.device import keep_memory
from lib.machine.errors import command_errors
from lib.machine.files import write_json
from lib.machine.folders import paths
from lib.maskhead import mask_targets, paste_masks
from lib.maskrcnn import MaskRCNN
from lib.matching import NEGATIVE, POSITIVE
from lib.notebook.report import save_table
from lib.rpn import rpn_targets
from lib.scores.coco_ap import coco_evaluation, ground_truth
from lib.scores.evaluate import collect_results, evaluate_model
from lib.training.checkpoint import fingerprint, load_model
from lib.training.loop import train_stage

SCORED_SCENES = 1000
SCORED, CHOSEN_ON = 1001, 1000  # seeds of the scenes that figures are read on, and of those that recipes are chosen by
BARS = {  # row: the stage after which it is read, and what it should reach
    "AR@100": ("rpn", 0.66),
    "AR at N": ("rpn", 0.68),
    "recall of the ten best": ("rpn", 0.88),
    "objectness gap": ("rpn", 0.4),
    "box AP": ("boxhead", 0.52),
    "box AP50": ("boxhead", 0.86),
    "mask AP": ("maskhead", 0.42),
    "mask AP50": ("maskhead", 0.82),
    "joint box AP": ("joint", 0.66),
    "joint box AP50": ("joint", 0.93),
    "joint mask AP": ("joint", 0.52),
    "joint mask AP50": ("joint", 0.90),
    "joint person's mask AP": ("joint", 0.40),
}


def scored_scenes(seed: int = SCORED) -> Path:
    """The folder of the 1,000 scenes to score on, written on first use."""
    folder = paths().data / f"scenes_scored_{seed}"
    if not (folder / FILES["boxes"]).is_file():
        write_scenes(folder, SCORED_SCENES, seed)
    return folder


def scores_after(stage: str, model: MaskRCNN, data: CourseDataset) -> dict[str, float]:
    """The rows of BARS that are read after a stage."""
    if stage == "rpn":
        recall = proposal_recalls(model, data)
        return {**recall, "objectness gap": min(objectness_gaps(model, data).values())}
    scores = evaluate_model(model, data, stage)
    kinds = {"boxhead": ["box"], "maskhead": ["mask"], "joint": ["box", "mask"]}[stage]
    rows = {f"{kind} {name}": scores[kind][name] for kind in kinds for name in ("AP", "AP50", "AP75")}
    if stage != "joint":
        return rows
    rows |= {"person's mask AP": scores["mask"]["per_class"]["person"]["AP"], "AR@100": scores["rpn"]["AR@100"]}
    return {f"joint {name}": value for name, value in rows.items()}


def proposal_recalls(model: MaskRCNN, data: CourseDataset) -> dict[str, float]:
    """The mean recall over IoU .50:.05:.95 of the best 100 proposals and of all N, and of the best ten at IoU .5."""
    proposals, limits = collect_results(model, data, "rpn")["proposals"], (10, 100, model.config.rpn.test.post_nms)
    recall = coco_evaluation(ground_truth(data), proposals, "bbox", limits, classes=False, sizes=False).eval["recall"]
    return {
        "AR@100": float(recall[:, 0, 0, 1].mean()),
        "AR at N": float(recall[:, 0, 0, 2].mean()),
        "recall of the ten best": float(recall[0, 0, 0, 0]),
    }


@torch.no_grad()
def objectness_gaps(model: MaskRCNN, data: CourseDataset) -> dict[str, float]:
    """By level: the mean objectness of the positive anchors less that of the negative ones."""
    sums = torch.zeros(2, len(LEVELS), 2, dtype=torch.double)  # (label, level): total and count
    for images, targets in loader(data, model.config.evaluation.batch_size, torch.device("cpu")):
        x, targets, content = prepare(images, targets, model.config.image)
        features = model.features(x)
        logits, _ = model.rpn(features)
        anchors = model.anchors(features)
        labels = torch.stack([rpn_targets(anchors, t["boxes"], content, model.config.rpn)[0] for t in targets])
        sizes = [f.shape[2] * f.shape[3] * len(model.config.anchors.ratios) for f in features]
        for k, (p, label) in enumerate(zip(logits.sigmoid().split(sizes, 1), labels.split(sizes, 1), strict=True)):
            for row, kind in enumerate((POSITIVE, NEGATIVE)):
                chosen = p[label == kind]
                sums[row, k] += torch.tensor([chosen.sum(), len(chosen)])
    means = sums[..., 0] / sums[..., 1]
    return {name: float(gap) for name, gap in zip(LEVELS, means[0] - means[1], strict=True) if gap.isfinite()}


def mask_ceiling(data: CourseDataset) -> float:
    """The mean IoU of 200 images' objects with their masks, cropped to 28 x 28 zeros and ones and pasted back."""
    overlaps = []
    for i in tqdm(range(min(len(data), 200)), "ceiling", leave=False):
        target = data.target(i)
        boxes, masks = target["boxes"], target["masks"]
        small = mask_targets(boxes, torch.arange(len(boxes)), masks)
        pasted = paste_masks(small, boxes, tuple(masks.shape[-2:]))
        overlaps += _mask_iou(pasted.bool(), masks.bool()).tolist()
    return float(np.mean(overlaps))


def _mask_iou(a: Tensor, b: Tensor) -> Tensor:
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp(min=1)


def run_seed(config: Config, data: Path, scored: CourseDataset, weights: Path) -> dict:
    """Train all stages -> the rows after each, and what training took: CPU and wall seconds, the peak of memory."""
    record = {"seed": config.training.seed, "scores": {}, "cpu_seconds": {}, "seconds": {}, "peak_gb": {}}
    for stage in STAGES:
        started, wall = time.process_time(), time.perf_counter()
        train_stage(stage, config, data, weights, restart=True)  # a kept stage would have no time
        record["cpu_seconds"][stage] = time.process_time() - started
        record["seconds"][stage] = time.perf_counter() - wall
        record["peak_gb"][stage] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # so far; Linux's unit
        record["scores"] |= scores_after(stage, load_model(weights, stage), scored)
        print(record["scores"], flush=True)
    return record


def table(records: Sequence[dict]) -> list[dict]:
    """A row for each of BARS: mean and standard deviation over the seeds, and the bar."""
    rows = []
    for name, (stage, bar) in BARS.items():
        values = [record["scores"][name] for record in records]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        rows.append({"after": stage, "figure": name.removeprefix("joint "), "mean": float(np.mean(values))})
        rows[-1] |= {"deviation": deviation, "seeds": len(values), "bar": bar}
    return rows


@command_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.demo", description="What each stage of the demo reaches.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="set numbers of the config")
    parser.add_argument("--out", type=Path, default=paths().figures / "published" / "benchmarks")
    args = parser.parse_args(argv)
    keep_memory()
    config = load_config("demo", args.set)
    data, backbone = ensure_data("synthetic", config), fingerprint(config.backbone.file)
    scored, records = CourseDataset(scored_scenes()), []
    for seed in args.seeds:
        path, of_seed = args.out / f"demo_{backbone}_{seed}.json", config.replace(**{"training.seed": seed})
        about = {"backbone": backbone, "config": of_seed.to_json()}
        if not path.is_file():
            record = run_seed(of_seed, data, scored, paths().weights / "benchmarks" / f"seed_{seed}")
            write_json(about | record | {"machine": machine(), "ceiling": mask_ceiling(scored)}, path)
        records.append(json.loads(path.read_text()))
        if any(records[-1].get(name) != value for name, value in about.items()):
            raise ValueError(f"{path} is a run with another config: move it away, or give another --out")
    save_table(table(records), "06_stages", args.out.parent)
    for row in table(records):
        print(row)


if __name__ == "__main__":
    main()
