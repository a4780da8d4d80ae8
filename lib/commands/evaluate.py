"""Score trained weights on images never trained on."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from lib.config import STAGES
from lib.data.reader import CourseDataset
from lib.machine.device import device, keep_memory
from lib.machine.files import write_json
from lib.scores.evaluate import evaluate_model
from lib.training.checkpoint import backbone_origin, check_classes, last_trained, load_model


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lib evaluate", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the four course files")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the trained stages")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--stage", choices=STAGES, help="the system as it was after this one (default: the last)")
    parser.add_argument("--out", type=Path, default=Path("metrics.json"))
    args = parser.parse_args(argv)
    keep_memory()
    stage = args.stage or last_trained(args.weights)
    model = load_model(args.weights, stage).to(device())
    data = CourseDataset(args.data, args.split, model.config.data)
    check_classes(args.weights, model.config, data.classes)
    scores = {"split": args.split, "backbone": backbone_origin(model.config), **evaluate_model(model, data, stage)}
    if PartialState().is_main_process:
        write_json(scores, args.out)
        print(json.dumps(scores, indent=2))
    PartialState().wait_for_everyone()
