"""Accuracy beside torchvision's own Mask R-CNN, on the same data for the same number of images seen.

    python -m benchmarks.accuracy scenes --seeds 0 1 2
    python -m benchmarks.accuracy photographs --train data/photos_train --test data/photos_val --seeds 0
    python -m benchmarks.accuracy course --train data/photos_train --test data/photos_val     # on a GPU

Ours trains stage by stage and then jointly; torchvision's `MaskRCNN` trains jointly, in its usual way, for as many
epochs as all our stages together. Both have the same trunk, pyramid, image size, anchors, heads' widths, flips,
optimiser, schedule, batch size and precision (where ours takes fp16, torchvision's float32), and start from the same
weights of the backbone. Everything else is each one's own: sampling, losses, targets and post-processing. Each run
leaves one JSON in figures/published/benchmarks/ and is not run again; what the runs found is printed as a table, means
over the seeds, with the difference to the first row and where it lies in 95 of 100 resamples of images and seeds
(`benchmarks.bootstrap`).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from tqdm import tqdm

from benchmarks.bootstrap import interval, resampled_ap
from benchmarks.demo import SCORED, scored_scenes
from benchmarks.timing import machine
from lib import boxhead, maskhead
from lib.anchors import Maps
from lib.backbone import build_backbone
from lib.boxes import Named, Size
from lib.config import PROFILES, STAGES, Config
from lib.data.batches import collate, flip_horizontally
from lib.data.reader import CourseDataset
from lib.data.sources import ensure_data
from lib.machine.device import autocast, device, keep_memory, precision, seed_everything
from lib.machine.errors import command_errors
from lib.machine.files import write_json
from lib.machine.folders import paths
from lib.maskrcnn import MaskRCNN
from lib.notebook.report import save_table
from lib.preprocess import IMAGE_MEAN, IMAGE_STD
from lib.roi_align import SAMPLES
from lib.rpn import propose
from lib.scores.coco_ap import average_precision, coco_evaluation, ground_truth, proposal_recall
from lib.scores.evaluate import collect_results
from lib.scores.results import box_results, code_results, encode_masks
from lib.training.checkpoint import load_model
from lib.training.loop import train_stage
from lib.training.run import CLIP_NORM, WEIGHT_DECAY
from lib.training.schedule import warmup_cosine
from lib.training.stages import backbone_parts

PHOTOGRAPHS = PROFILES["course"].override(
    [
        *"backbone.name=mobilenet_v2 backbone.frozen_blocks=7 rpn.trains=fpn rpn.box_weight=10 joint.lr=4e-4".split(),
        *"rpn.epochs=2 boxhead.epochs=1 maskhead.epochs=1 boxhead.train.nms_iou=0.9".split(),
        *"joint.rpn.smooth_l1_beta=0.1 joint.boxhead.smooth_l1_beta=0.1 joint.rpn.box_weight=2".split(),
    ]
)
SETTINGS = {
    "scenes": PROFILES["demo"].override(["joint.epochs=5"]),  # two more, which torchvision learns from
    "photographs": PHOTOGRAPHS.override(
        "image.height=300 image.width=400 backbone.channels=128 boxhead.hidden=512 maskhead.hidden=128 "
        "anchors.scales=(16,32,64,128,256) roi_align.canonical_size=84 rpn.train.pre_nms=1000 rpn.train.post_nms=300 "
        "rpn.test.pre_nms=2000 joint.epochs=19".split()
    ),
    "course": PHOTOGRAPHS.override(["joint.epochs=8"]),  # the same at the sheet's size and widths: for a GPU
}
MODELS = ("ours", "torchvision")


def images_seen(config: Config) -> int:
    """Passes over the training images, all stages together."""
    return sum(getattr(config, stage).epochs for stage in STAGES)


# ------------------------------------------------------------------------------------------------------------- ours


def train_ours(config: Config, data: Path, folder: Path) -> nn.Module:
    """The four stages in order, in a folder of their own."""
    for stage in STAGES:
        train_stage(stage, config, data, folder)
    return load_model(folder)


def propose_level_by_level(model: MaskRCNN, features: Maps, content: Size, training: bool = False) -> list[Named]:
    """`MaskRCNN.propose` with K and NMS for each level by itself, as torchvision has it; then the N best of all."""
    logits, deltas = model.rpn(features)
    levels = [f.shape[2] * f.shape[3] * len(model.config.anchors.ratios) for f in features]
    parts = (logits.split(levels, 1), deltas.split(levels, 1), model.anchors(features).split(levels))
    each = [propose(*part, content, model.config.rpn, training) for part in zip(*parts, strict=True)]
    proposals = []
    for of_levels in zip(*each, strict=True):
        boxes, scores = (torch.cat([p[name] for p in of_levels]) for name in ("boxes", "scores"))
        best = scores.argsort(descending=True, stable=True)[: model.config.rpn.test.post_nms]
        proposals.append({"boxes": boxes[best], "scores": scores[best]})
    return proposals


def recall_level_by_level(model: MaskRCNN, dataset: CourseDataset) -> dict:
    """`proposal_recall` of the same weights where boxes of different levels do not suppress one another."""
    model.propose = partial(propose_level_by_level, model)
    return proposal_recall(ground_truth(dataset), collect_results(model, dataset, "rpn")["proposals"])


# ----------------------------------------------------------------------------------------------------- torchvision's


def torchvision_model(config: Config) -> TorchvisionMaskRCNN:
    """torchvision's Mask R-CNN with the config's trunk, pyramid, anchors and widths; all else as torchvision has it."""
    backbone, hidden = build_backbone(config.backbone), config.maskhead.hidden
    channels, maps = backbone.out_channels, ["0", "1", "2", "3"]
    anchors = AnchorGenerator(tuple((s,) for s in config.anchors.scales), (config.anchors.ratios,) * 5)
    pools = [
        MultiScaleRoIAlign(maps, size, SAMPLES, canonical_scale=int(config.roi_align.canonical_size))
        for size in (boxhead.POOL_SIZE, maskhead.POOL_SIZE)
    ]
    model = TorchvisionMaskRCNN(
        backbone,
        min_size=config.image.height,
        max_size=config.image.width,
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
        rpn_anchor_generator=anchors,
        box_roi_pool=pools[0],
        mask_roi_pool=pools[1],
        box_head=TwoMLPHead(channels * boxhead.POOL_SIZE**2, config.boxhead.hidden),
        box_predictor=FastRCNNPredictor(config.boxhead.hidden, len(config.classes) + 1),
        mask_head=MaskRCNNHeads(channels, (hidden,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(hidden, hidden, len(config.classes) + 1),
    )
    learning = {
        id(p) for part in backbone_parts(backbone, "all", config.backbone.frozen_blocks) for p in part.parameters()
    }
    for parameter in backbone.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    return model.to(device(), memory_format=torch.channels_last)


def train_torchvision(config: Config, data: Path) -> nn.Module:
    """Joint training with AdamW, warm-up and half a cosine, as our joint stage has it."""
    seed_everything(config.training.seed)
    model, where, epochs = torchvision_model(config), device(), images_seen(config)
    dataset = CourseDataset(data, "train", config.data)
    loader = DataLoader(dataset, config.joint.batch_size, shuffle=True, collate_fn=collate, drop_last=True)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, config.joint.lr, weight_decay=WEIGHT_DECAY, fused=True)
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps))
    half = precision(config.training.mixed_precision) == "bf16"
    print(f"torchvision: {epochs} epochs of {len(dataset)} images in batches of {loader.batch_size}", flush=True)
    for epoch in range(epochs):
        model.train()
        if config.backbone.batchnorm == "frozen":
            for module in model.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval().requires_grad_(False)
        total, started = 0.0, time.perf_counter()
        for images, targets in tqdm(loader, f"torchvision {epoch + 1}/{epochs}", leave=False):
            which = torch.rand(len(images)) < config.training.flip_probability
            images, targets = flip_horizontally(images, targets, which)
            images = [image.float() / 255 for image in images.to(where)]
            targets = [{k: v.to(where) for k, v in t.items() if k != "image_id"} for t in targets]
            with torch.autocast(where.type, torch.bfloat16, enabled=half):
                losses = model(images, targets)
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, CLIP_NORM)
            optimizer.step()
            schedule.step()
            total += loss.detach()
        seconds = time.perf_counter() - started
        print(f"torchvision {epoch + 1:2d}/{epochs}  train {total / len(loader):.4f}  {seconds:.0f} s", flush=True)
    return model


@torch.no_grad()
def torchvision_results(model: nn.Module, dataset: CourseDataset) -> dict[str, list[dict]]:
    """Its detections and its RPN's proposals on a data set, in COCO's results format."""
    results, proposals = {"proposals": [], "box": [], "mask": []}, []
    model.eval().rpn.register_forward_hook(lambda module, inputs, outputs: proposals.append(outputs[0][0]))
    for i in tqdm(range(len(dataset)), "evaluate", leave=False):
        image, target = dataset[i]
        with autocast(device(), precision() if device().type == "cuda" else "no"):
            found, n = model([image.float().to(device()) / 255])[0], target["image_id"]
        boxes = _in_original_frame(proposals.pop(), model, image)
        ranks = 1 - torch.arange(len(boxes)) / max(len(boxes), 1)  # best first; the scores themselves are not returned
        results["proposals"] += box_results(n, boxes, torch.ones(len(boxes), dtype=torch.long), ranks)
        boxes, labels, scores = (found[k].cpu() for k in ("boxes", "labels", "scores"))
        results["box"] += box_results(n, boxes, labels, scores)
        codes = encode_masks((found["masks"][:, 0] > 0.5).to(torch.uint8).cpu())
        results["mask"] += code_results(n, codes, labels, scores)
    return results


def _in_original_frame(boxes: Tensor, model: nn.Module, image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    scale = min(model.transform.min_size[0] / min(height, width), model.transform.max_size / max(height, width))
    return boxes.cpu() / scale


# ------------------------------------------------------------------------------------------------- scores of a run


def scores(results: dict[str, list[dict]], dataset: CourseDataset) -> dict:
    """AP of boxes and masks, recall of the proposals, and what became of each object."""
    truth = ground_truth(dataset)
    found = {"rpn": proposal_recall(truth, results["proposals"])}
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        evaluation = coco_evaluation(truth, results[name], kind, sizes=False)
        found[name] = average_precision(evaluation) | {"resampled": resampled_ap(evaluation)}
    return found | {"objects": object_fates(truth, results["box"], results["mask"])}


def object_fates(truth, boxes: list[dict], masks: list[dict]) -> dict:
    """Which objects were found, how well, and how many detections are of none; detections of score >= 0.3 count.

    `found` is the share of all objects that some detection overlaps by IoU 0.5; of these, the share whose
    best-overlapping detection has the right class (`right class`), and the mean IoU of its box and mask. `false` is
    the number of such detections an image that overlap no object by 0.5.
    """
    found = [(b, m) for b, m in zip(boxes, masks, strict=True) if b["score"] >= 0.3]
    rows, false, objects = [], 0, 0
    for image in truth.getImgIds():
        mine = [(b, m) for b, m in found if b["image_id"] == image]
        gt = truth.loadAnns(truth.getAnnIds(image))
        objects += len(gt)
        if not mine or not gt:
            false += len(mine)
            continue
        crowd = [0] * len(gt)
        iou = rle.iou([b["bbox"] for b, _ in mine], [g["bbox"] for g in gt], crowd)  # (detections, objects)
        mask_iou = rle.iou([m["segmentation"] for _, m in mine], [g["segmentation"] for g in gt], crowd)
        false += int((iou.max(1) < 0.5).sum())
        for k, d in enumerate(iou.argmax(0)):
            if iou[d, k] >= 0.5:
                rows.append((iou[d, k], mask_iou[d, k], mine[d][0]["category_id"] == gt[k]["category_id"]))
    box_iou, mask_iou, right = np.array(rows).T if rows else np.zeros((3, 1))
    return {
        "found": len(rows) / max(objects, 1),
        "right class": float(right.mean()),
        "box IoU": float(box_iou.mean()),
        "mask IoU": float(mask_iou.mean()),
        "false an image": false / len(truth.getImgIds()),
    }


def run(
    setting: str,
    model_name: str,
    config: Config,
    train: Path,
    test: Path,
    weights: Path | None = None,
    trained: Config | None = None,
) -> dict:
    """Train one model and score it: the row that a run leaves on disk. Its training time is without scoring on `test`.

    Ours trains in the folder `weights`, where finished stages are kept, or in one of its own; with the config `trained`
    where that differs from the one to score with.
    """
    keep_memory()  # as `train_stage` does: both sides have the same allocator
    wall, cpu = time.perf_counter(), time.process_time()
    if model_name == "torchvision":
        model = train_torchvision(config, train)
    else:
        with tempfile.TemporaryDirectory() as folder:
            model = train_ours(trained or config, train, weights or Path(folder)).to(device())
            model.config = config.of_stage("joint")
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    dataset = CourseDataset(test)
    if model_name == "torchvision":
        found = scores(torchvision_results(model, dataset), dataset)
    else:
        found = scores(collect_results(model, dataset), dataset)
        found["rpn, level by level"] = recall_level_by_level(model, dataset)
    seen = images_seen(config) * len(CourseDataset(train, "train", config.data, with_masks=False))
    about = {"setting": setting, "model": model_name, "seed": config.training.seed, "images seen": seen}
    about |= {"precision": precision(config.training.mixed_precision), "machine": machine()}
    return about | seconds | {"scores": found, "config": config.to_json()}


def kept_run(
    path: Path,
    setting: str,
    model_name: str,
    config: Config,
    data: tuple[Path, Path],
    weights: Path | None = None,
    trained: Config | None = None,
    **about,
) -> dict:
    """The run that `path` holds; without one, the run is made and left there. ValueError for one of another config."""
    if not path.is_file():
        row = run(setting, model_name, config, *data, weights, trained) | about
        write_json(row, path)
    row = json.loads(path.read_text())
    if not _same(row["config"], config):
        raise ValueError(f"{path} is a run with another config: move it away, or give another --out")
    return row


def _same(stored: str, config: Config) -> bool:
    """Whether a run's config is this one; a number that is no more makes it another."""
    try:
        return Config.from_json(stored) == Config.from_json(config.to_json())
    except ValueError:
        return False


def finished_runs(folder: Path, kind: str) -> list[dict]:
    """All runs of a kind that the folder holds."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{kind}_*.json"))]


# ------------------------------------------------------------------------------------------------------ the command


def scenes_data(seed: int = SCORED) -> tuple[Path, Path]:
    """The scenes of the demo's run, whose train split is learnt from, and 1,000 others to score on."""
    return ensure_data("synthetic", SETTINGS["scenes"]), scored_scenes(seed)


def data_of(args: argparse.Namespace, seed: int = SCORED) -> tuple[Path, Path]:
    """The data sets to train and to score on; ValueError where photographs are asked for and not given."""
    if args.train and args.test:
        return args.train, args.test
    if args.train or args.test or args.setting != "scenes":
        raise ValueError(f"{args.setting}: name two data sets, --train DIR to train on and --test DIR to score on")
    return scenes_data(seed)


COLUMNS = {  # of the table: where a run's scores hold them
    **{"box AP": ("box", "AP"), "AP50": ("box", "AP50"), "AP75": ("box", "AP75")},
    **{"mask AP": ("mask", "AP"), "mask AP50": ("mask", "AP50"), "mask AP75": ("mask", "AP75")},
    **{name: ("rpn", name) for name in ("AR@100", "AR@1000")},
    **{name: ("objects", name) for name in ("found", "right class", "box IoU", "mask IoU", "false an image")},
}


def table(runs: Sequence[dict], key: str = "model") -> list[dict]:
    """One row for each setting and value of `key`: means over the seeds, with the standard deviation of the APs.

    With them goes the difference to the setting's first row, and the interval in which it lies in 95 of 100 resamples.
    """
    rows, first = [], {}
    for setting, value in dict.fromkeys((r["setting"], r[key]) for r in runs):
        of_row = [r for r in runs if (r["setting"], r[key]) == (setting, value)]
        mine = {r["seed"]: r["scores"] for r in of_row}
        base = first.setdefault(setting, mine)
        row = {"setting": setting, key: value, "seeds": len(mine)}
        for name, (part, score) in COLUMNS.items():
            values = np.array([scores[part][score] for scores in mine.values()])
            row[name] = f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(mine) > 1 else "")
        for kind in ("box", "mask"):
            row[f"{kind} AP, difference"] = _difference(base, mine, kind)
        on_gpu = any(r["machine"]["gpu"] for r in of_row)  # on a CPU others may have run, or this one stood still
        seconds = np.mean([r["wall_s" if on_gpu else "cpu_s"] for r in of_row])
        row["training, s"] = f"{seconds:.0f}" + " of CPU" * (not on_gpu)
        rows.append(row)
    return rows


def _difference(base: dict[int, dict], mine: dict[int, dict], kind: str) -> str:
    """Scores by seed -> over the seeds that both have, the mean difference of AP and its interval.

    Nothing for runs from before there were resamples.
    """
    seeds = [n for n in sorted(base.keys() & mine.keys()) if "resampled" in base[n][kind].keys() & mine[n][kind].keys()]
    if base is mine or not seeds:
        return ""
    (first, second), (before, after) = (
        [[scores[seed][kind][name] for seed in seeds] for scores in (base, mine)] for name in ("AP", "resampled")
    )
    low, high = interval(before, after)
    return f"{np.mean(second) - np.mean(first):+.3f} ({low:+.3f} to {high:+.3f})"


def print_table(rows: Sequence[dict]) -> None:
    for name in rows[0]:
        print(f"{name:15}", *(f"{row[name]!s:>16}" for row in rows))


@command_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accuracy", description="Accuracy beside torchvision's model."
    )
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--train", type=Path, help="data set to train on (its train split)")
    parser.add_argument("--test", type=Path, help="data set to score on (all of it)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="change the setting, for both")
    parser.add_argument("--out", type=Path, default=paths().figures / "published" / "benchmarks")
    args = parser.parse_args(argv)
    data = data_of(args)
    for seed in args.seeds:
        for model in args.models:
            path = args.out / f"accuracy_{args.setting}_{model}_{seed}.json"
            config = SETTINGS[args.setting].override([*args.set, f"training.seed={seed}"])
            if model == "torchvision":
                config = config.override(["joint.changes=()"])  # which are ours alone
            kept_run(path, args.setting, model, config, data)
            print_table(table(finished_runs(args.out, "accuracy")))
    save_table(table(finished_runs(args.out, "accuracy")), "06_accuracy", args.out.parent)


if __name__ == "__main__":
    main()
