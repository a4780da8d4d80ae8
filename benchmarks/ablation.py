"""What each part of the recipe is worth: ours trained with and without it, on the same data with the same seeds.

    python -m benchmarks.ablation scenes --seeds 0 1
    python -m benchmarks.ablation photographs --train data/photos_train --test data/photos_val

The settings are those of `benchmarks.accuracy`, but scenes are scored on others than there: recipes are chosen by
these rows. Each run leaves one JSON and is not run again.
"""

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy import SETTINGS, data_of, finished_runs, kept_run, print_table, table
from lib.config import Config
from lib.report import save_table
from lib.runtime import command_errors, paths

WITHOUT = {  # row: the entries of `joint_changes` that it leaves out, so that the value as printed holds
    "the recipe": (),
    "cross-boundary anchors and boxes removed": ("cross_boundary",),
    "one class a proposal": ("box_score_threshold",),
    "smooth L1 with beta 1": ("smooth_l1_beta", "rpn_box_weight", "box_loss_weight"),
    "NMS at 0.5 among the boxes for masks": ("box_nms_iou_train",),
}
WITH = {  # row: what it adds; changes that did not pay, and are not in the recipe
    "true boxes among the proposals": ("box_adds_truth=True",),
    "1 : 3 sampling and IoU > 0.5": ("box_positive_fraction=0.25", "box_positive_iou=0.5"),
}


def rows_of(setting: str) -> dict[str, Config]:
    """The configs to compare, by name of their row."""
    recipe = SETTINGS[setting]
    rows = {}
    for name, left_out in WITHOUT.items():
        kept = [change for change in recipe.joint_changes if change.partition("=")[0] not in left_out]
        rows[name] = recipe.replace(joint_changes=kept)
    for name, added in WITH.items():
        rows[name] = recipe.replace(joint_changes=[*recipe.joint_changes, *added])
    return rows | ({"no stage 0": recipe.replace(trunk_epochs=0)} if recipe.trunk_epochs else {})


@command_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.ablation", description="With and without each change.")
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--train", type=Path, help="data set to train on (its train split)")
    parser.add_argument("--test", type=Path, help="data set to score on (all of it)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=paths().figures / "benchmarks")
    args = parser.parse_args(argv)
    data = data_of(args, "val")
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as weights:  # the rows share their stages: joint alone differs
            for name, config in rows_of(args.setting).items():
                path = args.out / f"ablation_{args.setting}_{slug(name)}_{seed}.json"
                kept_run(path, args.setting, "ours", config.replace(seed=seed), data, Path(weights), row=name)
                print_table(ablation_table(args.out))
    save_table(ablation_table(args.out), "06_ablation")


def slug(name: str) -> str:
    """The name of a row as part of a file's name."""
    return re.sub("[^a-z0-9]+", "_", name.lower())


def ablation_table(folder: Path) -> list[dict]:
    """The rows of all finished runs, the recipe first; without their times, for the first trained the shared stages."""
    runs = sorted(finished_runs(folder, "ablation"), key=lambda run: run["row"] != "the recipe")
    return [{k: v for k, v in row.items() if "minutes" not in k} for row in table(runs, "row")]


if __name__ == "__main__":
    main()
