"""The stage benchmark runs from its command at a tiny size and writes what it measured. No time is asserted."""

import json

from accelerate.state import AcceleratorState

from benchmarks import stages


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stages, "PROPOSALS", 40)
    tiny = [
        "image_height=96",
        "image_width=128",
        "box_post_nms_train=4",
        "rpn_batch_samples=64",
        "box_batch_samples=32",
    ]
    out = tmp_path / "stages.json"
    sizes = [
        "--threads",
        "1",
        "--runs",
        "1",
        "--stage-runs",
        "1",
        "--images",
        "2",
        "--epochs",
        "2",
        "--stage",
        "maskhead",
    ]
    stages.main([*sizes, "--precision", "float32", "--out", str(out), "--set", *tiny])
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = json.loads(out.read_text())["rows"]
    names = [row["what"] for row in rows]
    assert len(names) == 7 + 2 and names[0] == "RPN" and names[-1] == "maskhead stage, an image"
    assert all(row["ours ms"] > 0 and row["peer ms"] > 0 for row in rows)
    assert [row["mirrored"] for row in rows[7:]] == [False, True]
    assert "100 images, extrapolated from the 2 measured" in capsys.readouterr().out
