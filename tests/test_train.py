import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lib.__main__ import main
from lib.config import STAGES
from lib.data.reader import CourseDataset
from lib.machine.folders import root
from lib.maskrcnn import MaskRCNN
from lib.scores.evaluate import evaluate_model
from lib.training import loop
from lib.training.checkpoint import load_model, read_metadata, stage_path
from lib.training.history import read_history, write_history
from lib.training.loop import train_stage
from lib.training.schedule import warmup_cosine

LOSSES = {
    "rpn": ["rpn_objectness", "rpn_box"],
    "boxhead": ["box_class", "box_regression"],
    "maskhead": ["mask"],
    "joint": ["rpn_objectness", "rpn_box", "box_class", "box_regression", "mask"],
}


pytestmark = pytest.mark.usefixtures("on_the_tiny_backbone", "fresh_accelerator")


@pytest.fixture(scope="module")
def short(config, training_seed):
    """Two epochs a stage over six images, with a small test-time budget."""
    epochs = {f"{stage}.epochs": 2 for stage in STAGES}
    limits = {"rpn.test.pre_nms": 50, "rpn.test.post_nms": 20, "boxhead.test.post_nms": 5}
    return config.replace(**{"training.seed": training_seed}, **epochs, **limits)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, scenes, short):
    """The weights of all four stages."""
    weights = tmp_path_factory.mktemp("weights")
    for stage in STAGES:
        train_stage(stage, short, scenes, weights)
    return weights


@pytest.mark.parametrize("stage", STAGES)
def test_history(trained, stage):
    rows = read_history(trained, stage)
    names = [f"{split}_{loss}" for split in ("train", "val") for loss in LOSSES[stage]]
    assert [list(row) for row in rows] == [["epoch", "lr", "seconds", *names]] * 2
    assert [row["epoch"] for row in rows] == [1, 2] and rows[1]["lr"] == 0
    assert all(0 <= row[name] < 100 for row in rows for name in names)
    assert not (trained / f"{stage}.resume").exists()


def test_what_was_trained_loads_and_scores(trained, short):
    model = load_model(trained)
    assert model.config == short.of_stage("joint") and load_model(trained, "maskhead").config == short
    found = model(torch.zeros(1, 3, 300, 400, dtype=torch.uint8))[0]
    assert found["masks"].shape[1:] == (300, 400)


def test_a_stage_that_trains_in_bf16_is_scored_in_float32(trained, scenes, short, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    config = short.replace(**{"training.mixed_precision": "bf16", "maskhead.epochs": 1})
    train_stage("maskhead", config, scenes, tmp_path, restart=True)
    scores = json.loads(read_metadata(stage_path(tmp_path, "maskhead"))["scores"])
    config, val = load_model(tmp_path, "maskhead").config, CourseDataset(scenes, "val", short.data)
    assert config.training.mixed_precision == "bf16" and scores["images"] == len(val) > 0
    assert scores == evaluate_model(load_model(tmp_path, "maskhead"), val, "maskhead")


def test_a_finished_stage_is_kept(trained, scenes, short, capsys):
    before = stage_path(trained, "rpn").read_bytes()
    history = train_stage("rpn", short, scenes, trained)
    assert "already trained" in capsys.readouterr().out and len(history) == 2
    assert stage_path(trained, "rpn").read_bytes() == before


def interrupt_after(monkeypatch, epochs: int):
    """Stop the training with Ctrl-C once so many epochs are done."""
    whole = loop.Run.epoch

    def epoch(run, number):
        if number == epochs:
            raise KeyboardInterrupt
        return whole(run, number)

    monkeypatch.setattr(loop.Run, "epoch", epoch)


def test_going_on_after_an_interruption_gives_the_same_weights(trained, scenes, short, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        train_stage("rpn", short, scenes, tmp_path)
    assert len(read_history(tmp_path, "rpn")) == 1 and not stage_path(tmp_path, "rpn").exists()
    history = train_stage("rpn", short, scenes, tmp_path)
    assert "going on after epoch 1" in capsys.readouterr().out and len(history) == 2
    resumed, whole = (load_file(stage_path(folder, "rpn")) for folder in (tmp_path, trained))
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[k], whole[k]) for k in whole)


def test_schedule_by_hand():
    """40 steps, 2 of them warm-up: 1/2, 1, then half a cosine over 38: 1, ..., 1/2 at its middle, ..., 0 after."""
    factors = [warmup_cosine(step, 40) for step in range(41)]
    assert factors[:3] == [0.5, 1, 1] and factors[21] == pytest.approx(0.5) and factors[40] == pytest.approx(0)
    assert factors[3] == pytest.approx((1 + 0.9965845) / 2)  # cos(pi / 38)


def test_history_round_trip(tmp_path):
    rows = [{"epoch": 1, "train_mask": 0.5}, {"epoch": 2, "train_mask": 0.25, "val_mask": 0.75}]
    write_history(tmp_path / "new", "maskhead", rows)
    assert read_history(tmp_path / "new", "maskhead") == rows


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["boxhead", "--batch-size", "2"], "error: rpn.safetensors is missing.*python -m lib train rpn"),
        (["rpn", "--set", "rpn.epoch=1"], "error: config field rpn.epoch is no field"),
        (["rpn", "--batch-size", "99"], "error: .* has 6 training images, fewer than one step's 99.*rpn.batch_size"),
    ],
)
def test_the_command_says_what_is_wrong(scenes, tmp_path, arguments, message):
    extra = ["data.val_fraction=0.25", "data.test_fraction=0.25", "backbone.weights=none"]
    command = [*arguments, "--data", str(scenes), "--weights", str(tmp_path)]
    command += [] if "--set" in arguments else ["--set", *extra]
    with pytest.raises(SystemExit, match=message):
        main(["train", *command])


def test_missing_data(tmp_path):
    with pytest.raises(SystemExit, match="error: hw3_mycocodata_.*is missing"):
        main(["train", "rpn", "--data", str(tmp_path / "none"), "--weights", str(tmp_path)])


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_torchrun(scenes, tmp_path):
    """The same command: two share the batches and the stored maps' entries, one writes."""
    fields = {"image.height": 96, "image.width": 126, "backbone.channels": 16, "training.mixed_precision": "no"}
    fields |= {"anchors.scales": "(8,16,32,64,96)", "rpn.test.post_nms": 20, "rpn.batch_samples": 32}
    fields |= {"backbone.name": "resnet18", "backbone.weights": "none", "training.store_features": True}
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node 2 -m lib train rpn".split()
    command = [sys.executable, *torchrun, "--epochs", "2", "--batch-size", "2"]
    data, weights = shutil.copytree(scenes, tmp_path / "data"), tmp_path / "weights"
    command += ["--data", str(data), "--weights", str(weights), "--set", *(f"{k}={v}" for k, v in fields.items())]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # two processes on a machine with one GPU: gloo would look for a second
    result = subprocess.run(command, cwd=root(), env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    steps = "in batches of 2 on 2 x cpu: 6 steps"  # two epochs of 6 images
    assert steps in result.stdout and result.stdout.count("rpn: wrote") == 1
    assert result.stdout.count("go through the frozen backbone once") == 1
    assert sorted(path.name for path in weights.iterdir()) == [".lock", "rpn.safetensors", "rpn_history.csv"]
    maps = np.fromfile(data / "features" / "train", np.float16).reshape(12, -1)
    assert np.isfinite(maps).all() and maps.any(axis=1).all()  # each process has computed its share


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no list of open files")
def test_a_training_leaves_no_file_open(scenes, short, tmp_path):
    counts = []
    for name in "abc":
        train_stage("rpn", short, scenes, tmp_path / name)
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[1] == counts[2]


class Stream(CourseDataset):
    """A data set that remembers the epochs that it is told."""

    def set_epoch(self, epoch: int) -> None:
        self.epochs = [*getattr(self, "epochs", []), epoch]


def test_a_data_set_is_told_each_epoch(scenes, short, tmp_path):
    data = Stream(scenes, "train", short)
    training = loop.Run("rpn", short, data, CourseDataset(scenes, "val", short.data), tmp_path, lambda: MaskRCNN(short))
    training.train()
    assert sorted(set(data.epochs)) == [0, 1]
