"""The browsers' benchmark runs from its command at a tiny size and writes what it measured. No time is asserted."""

import json

import torch

from benchmarks import browsers
from lib.config import load_config

TINY = (
    "image.height=96 image.width=128 backbone.name=resnet18 backbone.channels=32 boxhead.hidden=32 maskhead.hidden=16"
).split()


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(browsers, "IMAGES", 2)
    monkeypatch.setattr(browsers, "models", lambda image, config: (untrained(config), None))
    monkeypatch.setattr(browsers, "DETECTIONS", 0)
    out = tmp_path / "b.json"
    browsers.main(
        ["--threads", "1", "--runs", "1", "--moves", "3", "--out", str(out)], {"demo": load_config("demo", TINY)}
    )
    rows = json.loads(out.read_text())["rows"]
    assert [row["browser"] for row in rows] == ["anchors"] * 5 + ["stages"] * 5 + ["masks"] * 5
    assert {row["size"] for row in rows} == {"96 x 128"}
    assert all(row["median ms"] > 0 and len(row["times_ms"]) == 1 for row in rows if row["grown MB"] == "")
    assert [row["what"] for row in rows if row["grown MB"] != ""] == ["3 moves"] * 3


def untrained(config):
    torch.manual_seed(0)
    model = browsers.MaskRCNN(config).eval()
    torch.nn.init.constant_(model.box_head.classifier.bias, 0)
    model.box_head.classifier.bias.data[0] = 100  # nothing but background
    return model
