"""The stage benchmark runs from its command at a tiny size and writes what it measured. No time is asserted."""

import json

from benchmarks import stages

TINY = (
    "image.height=96 image.width=128 boxhead.train.post_nms=4 rpn.batch_samples=64 boxhead.batch_samples=32 "
    "backbone.name=resnet18 backbone.weights=none backbone.channels=32 boxhead.hidden=64 maskhead.hidden=16"
).split()


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "PROPOSALS", 40)
    out = tmp_path / "stages.json"
    stages.main([*"--threads 1 --runs 1 --precision float32 --out".split(), str(out), "--set", *TINY])
    rows = json.loads(out.read_text())["rows"]
    with_proposals = "RPN, peer with the proposals that it makes in training"
    assert [row["what"] for row in rows] == ["RPN", with_proposals, "box head", "mask head"]
    assert all(row["ours ms"] > 0 and row["peer ms"] > 0 for row in rows)
