"""Train one stage of Mask R-CNN, or all of them in order."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lib.config import PROFILES, STAGES, load_config
from lib.machine.folders import paths
from lib.training.loop import train_stage


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lib train", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--profile", default="demo", choices=PROFILES, help="the config to start from")
    parser.add_argument("--data", type=Path, help="folder of the four course files (default: data/synthetic)")
    parser.add_argument("--weights", type=Path, help="folder for the stages (default: weights/<profile>)")
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="set numbers of the config")
    parser.add_argument("--val-data", type=Path, help="another data set to take the val split from")
    parser.add_argument("--epochs", type=int, help="of each stage trained")
    parser.add_argument("--batch-size", type=int, help="images a step, of all processes together")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--restart", action="store_true", help="train anew a stage that is finished or half done")
    ways.add_argument("--go-on", action="store_true", help="go on with a stopped stage under numbers that have changed")
    args = parser.parse_args(argv)
    stages = STAGES if args.stage == "all" else (args.stage,)
    config = load_config(args.profile, args.set)
    for option, value in (("epochs", args.epochs), ("batch_size", args.batch_size)):
        if value is not None:
            config = config.replace(**{f"{stage}.{option}": value for stage in stages})
    data, weights = args.data or paths().data / "synthetic", args.weights or paths().weights / args.profile
    for stage in stages:
        train_stage(stage, config, data, weights, args.val_data, args.restart, args.go_on)
