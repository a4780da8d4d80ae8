"""What each part of the recipe is worth: ours trained with and without it, on the same data with the same seeds.

    python -m benchmarks.ablation scenes --seeds 0 1
    python -m benchmarks.ablation photographs --train data/photos_train --test data/photos_val

The settings are those of `benchmarks.accuracy` with fewer epochs of the joint stage: the rows compare with each other,
not with its table. Each run leaves one JSON and is not run again.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy import SETTINGS, data_of, finished_runs, kept_run, print_table, table
from lib.config import Config
from lib.report import save_table
from lib.runtime import command_errors, paths

JOINT_EPOCHS = {"scenes": 2, "photographs": 4}
WITHOUT = {  # row: the entries of `joint_changes` that it leaves out, so that the value as printed holds
    "the recipe": (),
    "cross-boundary anchors and boxes removed": ("cross_boundary",),
    "one class a proposal": ("box_score_threshold",),
    "smooth L1 with beta 1": ("smooth_l1_beta", "rpn_box_weight", "box_loss_weight"),
    "no true boxes among the proposals": ("box_adds_truth",),
    "3 : 1 sampling and IoU > 0.4": ("box_positive_fraction", "box_positive_iou"),
    "NMS at 0.5 among the boxes for masks": ("box_nms_iou_train",),
}


def rows_of(setting: str) -> dict[str, Config]:
    """The configs to compare, by name of their row."""
    recipe = SETTINGS[setting].replace(joint_epochs=JOINT_EPOCHS[setting])
    rows = {}
    for name, left_out in WITHOUT.items():
        kept = [change for change in recipe.joint_changes if change.partition("=")[0] not in left_out]
        rows[name] = recipe.replace(joint_changes=kept)
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
    data = data_of(args)
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as weights:  # the rows share their stages: joint alone differs
            for number, (name, config) in enumerate(rows_of(args.setting).items()):
                config, path = config.replace(seed=seed), args.out / f"ablation_{args.setting}_{number}_{seed}.json"
                kept_run(path, args.setting, "ours", config, data, Path(weights), row=name)
                print_table(table(finished_runs(args.out, "ablation"), "row"))
    save_table(table(finished_runs(args.out, "ablation"), "row"), "06_ablation")


if __name__ == "__main__":
    main()
