"""The rows that tell joint training apart from what comes with it."""

import dataclasses

from benchmarks.joint import HEADS, rows_of, table
from lib.config import load_config


def test_each_row_changes_one_thing():
    asked = {"joint.boxhead.loss_weight": 7, "joint.boxhead.test.score_threshold": 0.25, "joint.rpn.nms_iou": 0.6}
    config = load_config("demo", ["joint.epochs=3"]).replace(**asked)
    first, inference, longer, with_numbers, joint, as_before, sheet = (rows := rows_of(config)).values()
    assert [row[0] for row in rows.values()] == ["maskhead"] * 4 + ["joint"] * 3
    assert first[1] == first[2] == inference[1] == joint[1] == joint[2] == as_before[1] == config

    rule = inference[2].of_stage("maskhead")
    assert (rule.boxhead.test.score_threshold, rule.rpn.nms_iou) == (0.25, 0.6)
    assert rule.boxhead.loss_weight == config.boxhead.loss_weight
    after = as_before[2].of_stage("joint")
    assert (after.boxhead.test, after.rpn.nms_iou, after.boxhead.loss_weight) == (config.boxhead.test, 0.7, 7)

    assert (longer[1].boxhead.epochs, longer[1].maskhead.epochs) == (11, 11) and longer[1] == longer[2]
    assert longer[1].rpn == with_numbers[1].rpn == config.rpn  # the RPN is that of the first row
    trained, scored = (of_row.of_stage("maskhead") for of_row in with_numbers[1:])
    assert trained.boxhead == scored.boxhead and trained.boxhead.epochs == 11
    jointly = config.of_stage("joint")
    assert dataclasses.replace(scored.boxhead, epochs=8) == jointly.boxhead and scored.rpn == jointly.rpn
    assert sheet[1].joint == dataclasses.replace(config.joint, changes=())


def test_table_of_means_and_paired_differences():
    runs = [
        {"row": row, "scores": {k: {"AP": ap, "AP50": 0.9, "resampled": [ap] * 4} for k in ("box", "mask")}}
        for row, ap in (("a", 0.5), ("a", 0.6), ("b", 0.52), ("b", 0.64))
    ]
    assert HEADS.keys() | HEADS.values() <= rows_of(load_config("demo")).keys()
    first, second = table(runs)
    assert first["box AP"] == "0.550" and first["box AP, difference"] == ""
    assert second["mask AP"] == "0.580" and second["mask AP, difference"].startswith("+0.030 (+0.02")
    assert second["box AP, to the heads alone"] == ""
    for run, name in zip(
        runs, ["... heads trained longer"] * 2 + ["... with the stages' numbers throughout"] * 2, strict=True
    ):
        run["row"] = name
    heads, jointly = table(runs)
    assert heads["box AP, to the heads alone"] == ""
    assert jointly["box AP, to the heads alone"] == jointly["box AP, difference"] != ""
