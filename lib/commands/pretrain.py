"""Make the backbone of the demo profile."""

import argparse
import datetime
import json
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from lib.config import PRETRAINING_SEEDS, load_config
from lib.machine.folders import paths, root
from lib.scores.evaluate import evaluate_model
from lib.training.checkpoint import fingerprint
from lib.training.pretrain import HELD_OUT, RECIPE, SceneStream, pretrain, read_record, save_backbone


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lib pretrain", description=__doc__)
    parser.add_argument("--images", type=int, default=30000, help="scenes to learn from, each seen once")
    parser.add_argument("--out", type=Path, default=root() / "weights" / "scenes_backbone.safetensors")
    parser.add_argument("--folder", type=Path, help="for checkpoints (default: weights/pretraining)")
    parser.add_argument("--restart", action="store_true", help="begin a run anew that was stopped")
    parser.add_argument("--continues", type=Path, help="an earlier run's file to start from")
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="set numbers of the config")
    args = parser.parse_args(argv)
    config = load_config("demo").override([*RECIPE, *args.set])
    before = read_record(args.continues) if args.continues else {"seeds": "[]", "images_seen": "0"}
    seeds = json.loads(before["seeds"])
    if len(seeds) >= len(PRETRAINING_SEEDS) - 2:
        raise ValueError(f"{args.continues} has seen all {len(seeds)} pretraining seeds: start anew")
    config = config.replace(**{"training.seed": config.training.seed + len(seeds)})
    folder = (args.folder or paths().weights / "pretraining") / f"run_{len(seeds)}"  # each goes on from its own
    model = pretrain(config, args.images, len(seeds), folder, args.continues, args.restart)
    scores = evaluate_model(model, SceneStream(PRETRAINING_SEEDS[-1], HELD_OUT))
    per_epoch, batch = args.images // config.joint.epochs, config.joint.batch_size
    processor = platform.processor() or platform.machine()
    record = {
        "config": config.to_json(),
        "seeds": json.dumps([*seeds, PRETRAINING_SEEDS[len(seeds)]]),
        "images_seen": int(before["images_seen"]) + config.joint.epochs * (per_epoch - per_epoch % batch),
        "scores": json.dumps(scores),
        "machine": f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
    }
    save_backbone(model, args.out, record)
    shutil.rmtree(folder / "joint.resume", ignore_errors=True)
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB, {fingerprint(args.out)})")
    print(f"box AP {scores['box']['AP']:.3f}, mask AP {scores['mask']['AP']:.3f} on {HELD_OUT} held-out scenes")
