"""Each benchmark runs at a small size; what it measures is nobody's business here."""

import json

import pytest
import torch

from benchmarks import batchnorm, cost, inference, timing
from lib.config import Config, load_config
from lib.data.batches import collate, prepare
from lib.data.reader import CourseDataset
from lib.notebook.figures import save_figure
from lib.notebook.report import save_table
from lib.training.stages import Learner, RPNStage

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


@pytest.fixture
def small() -> Config:
    counts = {"rpn.test.pre_nms": 1000, "rpn.test.post_nms": 40, "boxhead.test.post_nms": 4, "backbone.channels": 32}
    counts["backbone.weights"] = "none"
    return load_config("demo").replace(
        **{"image.height": 96, "image.width": 128, "maskhead.hidden": 16, "boxhead.hidden": 32}, **counts
    )


def test_inference(tmp_path, small, monkeypatch):
    monkeypatch.setattr(inference, "SAME_PIXELS", 0.99)  # four large boxes
    inference.main(["--threads", "1", "--runs", "1", "--out", str(tmp_path / "i.json")], small)
    rows = rows_of(tmp_path / "i.json")
    assert {"keep_memory on both sides", "backbone", "paste and encode"} <= {row["what"] for row in rows}
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
            model = tiny_model()
            torch.manual_seed(0)
            learner = Learner(stage(model)).train(training)
            losses[training, stage] = sum(learner(*prepare(*batch, model.config.image)).values())
    assert losses[False, RPNStage].item() == pytest.approx(losses[False, batchnorm.WholeMaps].item(), rel=1e-4)
    assert losses[True, RPNStage].item() != pytest.approx(losses[True, batchnorm.WholeMaps].item(), rel=1e-6)
    losses[True, batchnorm.WholeMaps].backward()
