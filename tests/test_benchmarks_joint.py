"""The rows that tell joint training apart from what comes with it."""

import dataclasses

from benchmarks.joint import rows_of, table
from lib.config import load_config


def test_each_row_changes_one_thing():
    config = load_config("demo", ["joint.epochs=3", "joint.boxhead.loss_weight=7"])
    rows = rows_of(config.replace(**{"joint.boxhead.test.score_threshold": 0.25}))
    first, longer, inference, joint, as_before, sheet = rows.values()
    assert [row[0] for row in rows.values()] == ["maskhead"] * 3 + ["joint"] * 3
    assert (longer[1].boxhead.epochs, longer[1].maskhead.epochs) == (11, 11) and longer[1].rpn == first[1].rpn
    assert inference[1] == first[1] and inference[2].of_stage("maskhead").boxhead.test.score_threshold == 0.25
    assert inference[2].of_stage("maskhead").boxhead.loss_weight == first[1].boxhead.loss_weight
    assert joint[1] == joint[2] == as_before[1] == first[1]
    after = as_before[2].of_stage("joint")
    assert after.boxhead.test == first[1].boxhead.test and after.boxhead.loss_weight == 7
    assert sheet[1].joint == dataclasses.replace(first[1].joint, changes=())


def test_table_of_means_and_paired_differences():
    runs = [
        {"row": row, "scores": {k: {"AP": ap, "AP50": 0.9, "resampled": [ap] * 4} for k in ("box", "mask")}}
        for row, ap in (("a", 0.5), ("a", 0.6), ("b", 0.52), ("b", 0.64))
    ]
    first, second = table(runs)
    assert first["box AP"] == "0.550" and first["box AP, difference"] == ""
    assert second["mask AP"] == "0.580" and second["mask AP, difference"].startswith("+0.030 (+0.02")
