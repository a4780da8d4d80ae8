"""What each change of the sheet is worth: ours trained with all and without one, on the same data and seeds.

    python -m benchmarks.ablation scenes --seeds 0 1 2
    python -m benchmarks.ablation photographs --train data/photos_train --test data/photos_val

Scenes are scored on others than in `benchmarks.demo` and `benchmarks.accuracy`, for by these rows recipes are chosen.
Each run leaves one JSON and is not run again. A row of the joint stage trains that alone, on the first row's other
stages; on scenes the first row's weights are those of `benchmarks.demo`.
"""

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy import SETTINGS, data_of, finished_runs, kept_run, print_table, table
from benchmarks.demo import CHOSEN_ON
from benchmarks.joint import copy_stages
from lib.config import PROFILES, STAGES, Config
from lib.machine.errors import command_errors
from lib.machine.folders import paths
from lib.notebook.report import save_table

WITHOUT = {  # rows without some changes of the joint stage: the numbers that have the earlier stages' value
    "the losses": ("boxhead.smooth_l1_beta", "boxhead.loss_weight", "rpn.smooth_l1_beta", "rpn.box_weight"),
    "the minibatch": (
        *("boxhead.adds_truth", "boxhead.positive_iou", "boxhead.positive_fraction"),
        *("boxhead.batch_samples", "rpn.batch_samples"),
    ),
    "NMS of proposals": ("rpn.nms_iou",),
    "score threshold": ("boxhead.test.score_threshold", "boxhead.test.pre_nms"),
}
AS_PRINTED = {  # rows with numbers as the sheet has them, in every stage
    "anchors and boundary": ("rpn.cross_boundary=remove", "boxhead.cross_boundary=remove", "rpn.negatives=uniform"),
    "NMS for the mask head": ("boxhead.train.nms_iou=0.5",),
}
ONLY_SCORING = "joint without score threshold"  # no stage trains with it
FIRST = "all changes"


def rows_of(setting: str) -> dict[str, tuple[Config, Config]]:
    """By name of the row, the config to train with and the one to score with; no row that changes nothing."""
    recipe = PROFILES["demo"] if setting == "scenes" else SETTINGS[setting]
    rows = {FIRST: (recipe, recipe)}
    for name, numbers in WITHOUT.items():
        without = recipe.replace(**{f"joint.{p}": recipe.value(p) for p in numbers if p in dict(recipe.joint.changes)})
        rows[f"joint without {name}"] = (without, without)
    rows[ONLY_SCORING] = (recipe, rows[ONLY_SCORING][1])
    for name, numbers in AS_PRINTED.items():
        printed = recipe.override(numbers)
        rows[f"{name} as printed"] = (printed, printed)
    return {name: row for name, row in rows.items() if name == FIRST or row[1] != recipe}


@command_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.ablation", description="With and without each change.")
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--train", type=Path, help="data set to train on (its train split)")
    parser.add_argument("--test", type=Path, help="data set to score on (all of it)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=paths().figures / "published" / "benchmarks")
    args = parser.parse_args(argv)
    data = data_of(args, CHOSEN_ON)
    for seed in args.seeds:
        kept = f"seed_{seed}" if args.setting == "scenes" else f"{args.setting}_{seed}"
        first = paths().weights / "benchmarks" / kept
        with tempfile.TemporaryDirectory() as folder:
            for name, configs in rows_of(args.setting).items():
                trained, scored = (config.replace(**{"training.seed": seed}) for config in configs)
                weights = first if name in (FIRST, ONLY_SCORING) else Path(folder) / slug(name)
                path = args.out / f"ablation_{args.setting}_{slug(name)}_{seed}.json"
                if weights != first and name.startswith("joint "):
                    copy_stages(STAGES[:-1], first, weights)  # the stages before the change are the same
                kept_run(path, args.setting, "ours", scored, data, weights, trained, row=name)
                print_table(ablation_table(args.out))
    save_table(ablation_table(args.out), "06_ablation", args.out.parent)


def slug(name: str) -> str:
    """The name of a row as part of a file's name."""
    return re.sub("[^a-z0-9]+", "_", name.lower())


def ablation_table(folder: Path) -> list[dict]:
    """The rows of all finished runs, scenes and all changes first; without times, for they share trained stages."""
    runs = finished_runs(folder, "ablation")
    runs.sort(key=lambda run: (run["setting"] != "scenes", run["row"] != FIRST))
    return [{k: v for k, v in row.items() if "training" not in k} for row in table(runs, "row")]


if __name__ == "__main__":
    main()
