"""What each change of the sheet is worth: ours trained with all and without one, on the same data and seeds.

    python -m benchmarks.ablation scenes --seeds 0 1 2
    python -m benchmarks.ablation photographs --train data/photos_train --test data/photos_val

The settings are those of `benchmarks.accuracy`, but scenes are scored on others than there: recipes are chosen by
these rows, and what can't be told from noise has left the demo (`benchmarks.accuracy.TRIED`). Each run leaves one JSON
and is not run again. A row trains only what its change concerns; the rest is that of the first row.
"""

import argparse
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy import SETTINGS, TRIED, data_of, finished_runs, kept_run, print_table, table
from benchmarks.demo import CHOSEN_ON
from lib.config import Config
from lib.machine.errors import command_errors
from lib.machine.folders import paths
from lib.notebook.report import save_table

WITHOUT = {  # rows without a change of the joint stage: the numbers that have the earlier stages' value
    "smooth_l1_beta": ("rpn.smooth_l1_beta", "boxhead.smooth_l1_beta"),
    "rpn.box_weight": ("rpn.box_weight",),
    "score_threshold": ("boxhead.test.score_threshold",),
}
AS_PRINTED = (  # rows with numbers as the sheet has them, in every stage
    ("rpn.cross_boundary=remove", "boxhead.cross_boundary=remove", "rpn.negatives=uniform"),
    ("boxhead.train.nms_iou=0.5",),
)
ONLY_SCORING = "score_threshold"  # no stage trains with it
FIRST = "all changes"


def rows_of(setting: str) -> dict[str, tuple[Config, Config]]:
    """By name of the row, the config to train with and the one to score with."""
    tried = SETTINGS[setting].override(TRIED)
    rows = {FIRST: (tried, tried)}
    for name, numbers in WITHOUT.items():
        without = tried.replace(**{f"joint.{path}": tried.value(path) for path in numbers})
        rows[f"without {name}"] = (tried if name == ONLY_SCORING else without, without)
    for numbers in AS_PRINTED:
        printed = tried.override(numbers)
        rows[f"as printed: {', '.join(numbers)}"] = (printed, printed)
    return rows


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
        with tempfile.TemporaryDirectory() as folder:
            first = Path(folder) / slug(FIRST)
            for name, configs in rows_of(args.setting).items():
                trained, scored = (config.replace(**{"training.seed": seed}) for config in configs)
                weights = first if name == f"without {ONLY_SCORING}" else Path(folder) / slug(name)
                if first.is_dir() and not weights.is_dir():  # the stages before the change are the same
                    shutil.copytree(first, weights)
                path = args.out / f"ablation_{args.setting}_{slug(name)}_{seed}.json"
                kept_run(path, args.setting, "ours", scored, data, weights, trained, row=name)
                print_table(ablation_table(args.out))
    save_table(ablation_table(args.out), "06_ablation", args.out.parent)


def slug(name: str) -> str:
    """The name of a row as part of a file's name."""
    return re.sub("[^a-z0-9]+", "_", name.lower())


def ablation_table(folder: Path) -> list[dict]:
    """The rows of all finished runs, scenes and all changes first, without their times.

    The first of a setting trained the stages that all share.
    """
    runs = finished_runs(folder, "ablation")
    runs.sort(key=lambda run: (run["setting"] != "scenes", run["row"] != FIRST))
    return [{k: v for k, v in row.items() if "training" not in k} for row in table(runs, "row")]


if __name__ == "__main__":
    main()
