"""What storing the backbone in half precision changes: AP of the same system in two ways.

    python -m benchmarks.precision --weights weights/demo

*as trained*: every layer as it is, float32. *half*: trunk and pyramid rounded to half precision, as `python -m lib
pretrain` stores them. The difference should stay below 0.002.
"""

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.demo import scored_scenes
from benchmarks.timing import machine
from lib.data.reader import CourseDataset
from lib.machine.device import keep_memory
from lib.machine.errors import command_errors
from lib.machine.files import write_json
from lib.machine.folders import paths
from lib.maskrcnn import MaskRCNN
from lib.scores.evaluate import evaluate_model
from lib.training.checkpoint import backbone_origin, load_model


@torch.no_grad()
def rounded(model: MaskRCNN) -> MaskRCNN:
    """A copy whose trunk and pyramid hold no more than half precision does."""
    model = copy.deepcopy(model)
    for value in model.backbone.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half().float())
    return model


def differences(model: MaskRCNN, data: CourseDataset) -> dict[str, dict[str, float]]:
    """Box and mask AP in the two ways."""
    scores = {"as trained": evaluate_model(model, data), "half": evaluate_model(rounded(model), data)}
    return {way: {kind: score[kind]["AP"] for kind in ("box", "mask")} for way, score in scores.items()}


@command_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.precision", description="AP in half precision.")
    parser.add_argument("--weights", type=Path, default=paths().weights / "demo", help="folder of the trained stages")
    parser.add_argument("--out", type=Path, default=paths().figures / "published" / "benchmarks")
    args = parser.parse_args(argv)
    keep_memory()
    model = load_model(args.weights)
    record = {
        "backbone": backbone_origin(model.config),
        "machine": machine(),
        "AP": differences(model, CourseDataset(scored_scenes())),
    }
    write_json(record, args.out / "precision.json")
    print(json.dumps(record["AP"], indent=1))


if __name__ == "__main__":
    main()
