"""Each benchmark runs at a small size; what it measures is nobody's business here."""

import json

import pytest
import torch

from benchmarks import assignment, batchnorm, cost, evaluation, inference, timing
from lib.config import Config, load_config
from lib.data import CourseDataset, collate
from lib.report import save_table
from lib.runtime import save_figure
from lib.stages import RPNStage

COLUMNS = {"what", "threads", "runs", "ours ms", "peer ms", "ratio", "times_ms"}


def rows_of(path) -> list[dict]:
    content = json.loads(path.read_text())
    assert {"processor", "cores", "torch", "torchvision", "date"} <= set(content["machine"])
    for row in content["rows"]:
        assert set(row) >= COLUMNS and row["ratio"] > 0
    return content["rows"]


def test_rows_and_tables(tmp_path):
    row = timing.row("a", [1, 2, 4], [4, 4, 6], objects=5)
    assert (row["ours ms"], row["peer ms"], row["ratio"]) == (2, 4, 2) and row["ratio quartiles"] == [1.75, 3]
    head, line = timing.table([row]).splitlines()
    assert len(head) == len(line) and "times_ms" not in head and "2 [1.75, 3]" in line
    assert rows_of(timing.save([row], tmp_path / "new" / "a.json")) == [row]


def test_ours_and_peer_take_turns():
    said = []
    before = (lambda: said.append("b"), None)
    row = timing.compare("a", lambda: said.append("o"), lambda: said.append("p"), 2, 1, before)
    assert "".join(said) == "pbo" + "bop" + "pbo" and len(row["times_ms"]["ours"]) == 2


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with timing.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_assignment(tmp_path):
    config = Config(image_height=192, image_width=256, anchor_scales=(8.0, 16.0, 32.0, 64.0, 128.0))
    assignment.main(["--threads", "1", "--runs", "1", "--out", str(tmp_path / "a.json")], config)
    assert [row["objects"] for row in rows_of(tmp_path / "a.json")] == [1, 5, 20]


def test_evaluation(tmp_path):
    small = ["--images", "4", "--detections", "10", "--threads", "1", "--runs", "1"]
    evaluation.main([*small, "--out", str(tmp_path / "e.json")])
    assert rows_of(tmp_path / "e.json")[0]["images"] == 4


@pytest.fixture
def small() -> Config:
    counts = {"rpn_pre_nms_test": 1000, "rpn_post_nms_test": 40, "box_post_nms_test": 4, "fpn_channels": 32}
    counts["backbone_weights"] = "none"
    return load_config("demo").replace(image_height=96, image_width=128, mask_hidden=16, box_hidden=32, **counts)


def test_inference(tmp_path, small, monkeypatch):
    monkeypatch.setattr(inference, "SAME_PIXELS", 0.99)  # four large boxes
    inference.main(["--threads", "1", "--runs", "1", "--out", str(tmp_path / "i.json")], small)
    rows = rows_of(tmp_path / "i.json")
    assert {"and keep_memory: end to end", "backbone", "paste and encode"} <= {row["what"] for row in rows}
    assert rows[-1]["agreement"]["mask pixels"] > 0.99


def test_cost(tmp_path, small):
    rows = cost.measure(small, runs=1)
    assert {"backbone", "all", "batch", "proposals"} <= {row["cost of"] for row in rows}
    assert all(path.stat().st_size for path in save_table(rows, cost.NAME, tmp_path))
    assert all(path.stat().st_size for path in save_figure(cost.cost_figure(rows), cost.NAME, tmp_path))


def test_batchnorm(tiny_model, scenes):
    """With stored statistics both RPNs are the same; while they learn, they differ."""
    data = CourseDataset(scenes)
    batch, losses = collate([data[0], data[1]]), {}
    for training in (False, True):
        for stage in (RPNStage, batchnorm.WholeMaps):
            torch.manual_seed(0)
            losses[training, stage] = sum(stage(tiny_model(flip_probability=0.0)).train(training)(*batch).values())
    assert losses[False, RPNStage].item() == pytest.approx(losses[False, batchnorm.WholeMaps].item(), rel=1e-4)
    assert losses[True, RPNStage].item() != pytest.approx(losses[True, batchnorm.WholeMaps].item(), rel=1e-6)
    losses[True, batchnorm.WholeMaps].backward()
