"""What joint fine-tuning adds (§8), told apart from what only came along with it.

    python -m benchmarks.joint --seeds 0 1 2

Before and after the joint stage differ in more than joint training: the network has seen more images, and the stage may
have numbers of its own, for its losses and for inference. The rows tell these apart. Scored on the 1,000
scenes of `benchmarks.demo`, three seeds; the difference to the first row is paired by image and seed. Each run leaves
one JSON in the benchmarks' folder and is not run again.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.accuracy import print_table, scores
from benchmarks.bootstrap import interval
from benchmarks.demo import scored_scenes
from benchmarks.timing import machine
from lib.config import STAGES, Config, load_config
from lib.data.reader import CourseDataset
from lib.data.sources import ensure_data
from lib.machine.device import keep_memory
from lib.machine.errors import command_errors
from lib.machine.files import write_json
from lib.machine.folders import paths
from lib.notebook.report import save_table
from lib.scores.evaluate import collect_results
from lib.training.checkpoint import fingerprint, load_model
from lib.training.loop import train_stage

HEADS = {  # fair pairs, of as many epochs and the same numbers: all parts trained jointly, and the heads alone
    "joint": "... heads trained longer, with the joint stage's numbers",
    "... with the stages' numbers throughout": "... heads trained longer",
}
Row = tuple[str, Config, Config]  # the stage that is scored, the config to train with and the one to score with


def rows_of(config: Config) -> dict[str, Row]:
    """By name, what each row trains and how it is scored; "longer" is by the joint stage's epochs."""
    changes, more = dict(config.joint.changes), config.joint.epochs
    rule = {path: value for path, value in changes.items() if ".test." in path or path == "rpn.nms_iou"}
    inference = config.replace(**rule)
    as_before = config.replace(**{f"joint.{path}": config.value(path) for path in rule})
    longer = config.replace(**{f"{s}.epochs": getattr(config, s).epochs + more for s in ("boxhead", "maskhead")})
    with_numbers = longer.replace(**{path: value for path, value in changes.items() if path.startswith("boxhead.")})
    sheet = config.override(["joint.changes=()"])  # all numbers of the stages before
    return {
        "stage by stage": ("maskhead", config, config),
        "... with the joint stage's inference": ("maskhead", config, inference),
        "... heads trained longer": ("maskhead", longer, longer),
        "... heads trained longer, with the joint stage's numbers": (
            "maskhead",
            with_numbers,
            longer.replace(**changes),
        ),
        "joint": ("joint", config, config),
        "... with the stages' inference": ("joint", config, as_before),
        "... with the stages' numbers throughout": ("joint", sheet, sheet),
    }


def run_row(row: Row, seed: int, data: Path, scored: CourseDataset, weights: Path) -> dict:
    """Train what the row needs and `weights` lacks, and score it."""
    (stage, *configs), at_seed = row, {"training.seed": seed}
    trained, tested = (config.replace(**at_seed) for config in configs)
    for name in STAGES[: STAGES.index(stage) + 1]:
        train_stage(name, trained, data, weights)
    model = load_model(weights, stage)
    model.config = tested.of_stage(stage)
    return {"seed": seed, "scores": scores(collect_results(model, scored, stage), scored), "machine": machine()}


def table(runs: Sequence[dict]) -> list[dict]:
    """A row for each name: means over the seeds, and the difference of AP to the first with its interval.

    Where the row is one of a fair pair, so is its difference to the heads alone.
    """
    of_row = {name: [run for run in runs if run["row"] == name] for name in dict.fromkeys(run["row"] for run in runs)}
    rows, first = [], of_row[runs[0]["row"]]
    for name, mine in of_row.items():
        row = {"": name}
        for kind in ("box", "mask"):
            values = [run["scores"][kind]["AP"] for run in mine]
            row[f"{kind} AP"] = f"{np.mean(values):.3f}"
            row[f"{kind} AP50"] = f"{np.mean([run['scores'][kind]['AP50'] for run in mine]):.3f}"
            row[f"{kind} AP, difference"] = "" if mine == first else _difference(first, mine, kind)
        for kind in ("box", "mask"):
            heads = of_row.get(HEADS.get(name, ""), [])
            row[f"{kind} AP, to the heads alone"] = _difference(heads, mine, kind) if heads else ""
        rows.append(row)
    return rows


def _difference(first: Sequence[dict], mine: Sequence[dict], kind: str) -> str:
    before, after = ([run["scores"][kind]["resampled"] for run in runs] for runs in (first, mine))
    low, high = interval(before, after)
    mean = np.mean([b["scores"][kind]["AP"] - a["scores"][kind]["AP"] for a, b in zip(first, mine, strict=True)])
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


@command_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.joint", description="What joint fine-tuning adds.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="set numbers of the config")
    parser.add_argument("--out", type=Path, default=paths().figures / "published" / "benchmarks")
    args = parser.parse_args(argv)
    keep_memory()
    config = load_config("demo", args.set)
    data, backbone, scored = ensure_data("synthetic", config), fingerprint(config.backbone.file), None
    runs = []
    for number, (name, row) in enumerate(rows_of(config).items()):
        for seed in args.seeds:
            path = args.out / f"joint_{backbone}_{number}_{seed}.json"
            about = {"row": name, "backbone": backbone, "configs": [c.to_json() for c in row[1:]]}
            if not path.is_file():
                scored = scored or CourseDataset(scored_scenes())
                write_json(about | run_row(row, seed, data, scored, _weights(number, row, config, seed)), path)
            runs.append(json.loads(path.read_text()))
            if any(runs[-1].get(key) != value for key, value in about.items()):
                raise ValueError(f"{path} is a run with another config: move it away, or give another --out")
    save_table(table(runs), "06_joint", args.out.parent)
    print_table(table(runs))


def _weights(number: int, row: Row, config: Config, seed: int) -> Path:
    """The folder that a row trains in: that of `benchmarks.demo`, or where it trains otherwise a copy of its own."""
    first = paths().weights / "benchmarks" / f"seed_{seed}"
    if row[1] == config:
        return first
    own = first.with_name(f"joint_{number}_{seed}")
    shared = STAGES[:1] if row[0] == "maskhead" else STAGES[:-1]  # the stages before the change are the same
    copy_stages(shared, first, own)
    return own


def copy_stages(stages: Sequence[str], source: Path, target: Path) -> None:
    """Give a folder the trained stages of another one, as far as they are there."""
    target.mkdir(parents=True, exist_ok=True)
    for path in [path for stage in stages for path in source.glob(f"{stage}[._]*")]:
        shutil.copy(path, target)


if __name__ == "__main__":
    main()
