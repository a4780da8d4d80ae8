"""What folding BatchNorm and storing the backbone in half precision change: AP of the same system in three ways.

    python -m benchmarks.precision --weights weights/demo

*as trained*: every layer as it is, float32. *folded*: `lib.fast`'s copy, which scores are taken with. *half*: trunk and
pyramid rounded to half precision, as `lib.pretrain` stores them. A difference should stay below 0.002.
"""

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.demo import scored_scenes
from benchmarks.timing import machine
from lib import evaluate
from lib.checkpoint import backbone_origin, load_model
from lib.data import CourseDataset
from lib.maskrcnn import MaskRCNN
from lib.runtime import command_errors, keep_memory, paths


@torch.no_grad()
def rounded(model: MaskRCNN) -> MaskRCNN:
    """A copy whose trunk and pyramid hold no more than half precision does."""
    model = copy.deepcopy(model)
    for value in model.backbone.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half().float())
    return model


def differences(model: MaskRCNN, data: CourseDataset) -> dict[str, dict[str, float]]:
    """Box and mask AP in the three ways."""
    with patch("lib.evaluate.for_inference", lambda model: model.eval()):
        scores = {"as trained": evaluate.evaluate_model(model, data)}
    scores |= {"folded": evaluate.evaluate_model(model, data), "half": evaluate.evaluate_model(rounded(model), data)}
    return {way: {kind: score[kind]["AP"] for kind in ("box", "mask")} for way, score in scores.items()}


@command_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.precision", description="AP folded and in half precision.")
    parser.add_argument("--weights", type=Path, default=paths().weights / "demo", help="folder of the trained stages")
    parser.add_argument("--out", type=Path, default=paths().figures / "benchmarks")
    args = parser.parse_args(argv)
    keep_memory()
    model = load_model(args.weights)
    record = {
        "backbone": backbone_origin(model.config),
        "machine": machine(),
        "AP": differences(model, CourseDataset(scored_scenes())),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "precision.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["AP"], indent=1))


if __name__ == "__main__":
    main()
