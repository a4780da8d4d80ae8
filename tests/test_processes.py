"""Several processes take the steps of one, score what one scores, and end together."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from conftest import ended, forked

from lib.config import STAGES
from lib.data.reader import CourseDataset
from lib.data.scenes import write_scenes
from lib.machine.device import device
from lib.machine.files import read_json, write_json
from lib.scores.evaluate import evaluate_model
from lib.training import run as training
from lib.training.checkpoint import load_model, read_metadata, stage_path
from lib.training.history import read_history
from lib.training.loop import train_stage
from lib.training.processes import own_batches, own_samples

pytestmark = [
    pytest.mark.skipif(
        not hasattr(os, "fork") or not torch.distributed.is_available(), reason="processes are forked, torch joins them"
    ),
    pytest.mark.usefixtures("on_the_tiny_backbone", "fresh_accelerator"),
]


@pytest.fixture(scope="module")
def short(config):
    """Two epochs of three steps of four images: the backbone is frozen but in the joint stage."""
    limits = {"rpn.test.pre_nms": 50, "rpn.test.post_nms": 20, "boxhead.test.post_nms": 5, "evaluation.batch_size": 2}
    schedule = {f"{stage}.{name}": value for stage in STAGES for name, value in (("epochs", 2), ("batch_size", 4))}
    return config.replace(**limits, **schedule, **{"boxhead.adds_truth": True})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, short) -> Path:
    folder = tmp_path_factory.mktemp("many") / "data"
    write_scenes(folder, 24, seed=3)
    CourseDataset(folder, "train", short.data)
    return folder


def started(processes: int, work, *arguments, said: Path, **options) -> list[int]:
    """The process numbers of so many workers, in the environment that torchrun would give them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    same = address | {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "1"}
    environments = [same | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [forked(work, *arguments, said=said, environment=e, **options) for e in environments]


def train_all(config, data: Path, weights: Path) -> None:
    for stage in STAGES:
        train_stage(stage, config, data, weights)


@pytest.mark.parametrize("stored", [False, True])
def test_two_train_as_one_does(scenes, short, tmp_path, stored):
    """Every stage: the same steps, images and learning rates, losses close, one file of each, written once."""
    short, said = short.replace(**{"training.store_features": stored}), tmp_path / "said"
    pids = started(2, train_all, short, scenes, tmp_path / "two", said=said)
    assert [ended(pid) for pid in pids] == [0, 0], said.read_text()
    train_all(short, scenes, tmp_path / "one")
    for stage in STAGES:
        assert said.read_text().count(f"{stage}: wrote") == 1
        assert f"{stage}: 2 epochs of 12 images in batches of 4 on 2 x cpu: 6 steps" in said.read_text()
        one, two = (read_history(tmp_path / name, stage) for name in ("one", "two"))
        for ours, theirs in zip(two, one, strict=True):
            assert ours.keys() == theirs.keys() and ours["lr"] == theirs["lr"]
            for key in (key for key in ours if key.startswith(("train", "val"))):
                few = key.endswith(("mask", "box_regression"))  # a process without a box counts as a loss of 0
                assert ours[key] == pytest.approx(theirs[key], rel=0.6 if few else 0.03, abs=0.005), key
        metadata = [read_metadata(stage_path(tmp_path / name, stage)) for name in ("one", "two")]
        assert metadata[0]["config"] == metadata[1]["config"] and metadata[0]["data"] == metadata[1]["data"]
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}


class Worker:
    """A stand-in for accelerate's state."""

    def __init__(self, process_index: int, num_processes: int):
        self.process_index, self.num_processes = process_index, num_processes


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_shares_are_the_whole(config, processes):
    workers = [Worker(index, processes) for index in range(processes)]
    parts = [own_batches(list(range(10, 24)), 6, worker) for worker in workers]
    steps = [sorted(sum(step, [])) for step in zip(*parts, strict=True)]
    assert steps == [list(range(10, 16)), list(range(16, 22)), [22, 23]]
    for count in (64, 65):
        shares = [own_samples(config.replace(**{"rpn.batch_samples": count}), worker) for worker in workers]
        assert sum(share.rpn.batch_samples for share in shares) == count
        assert sum(share.boxhead.batch_samples for share in shares) == config.boxhead.batch_samples


def scored(weights: Path, data: Path, config, out: Path) -> None:
    device()
    scores = evaluate_model(load_model(weights), CourseDataset(data, "train", config.data))
    got = gather_object([scores])
    if scores:
        write_json([score for score in got if score], out)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_scores_are_those_of_one(scenes, short, tmp_path, processes):
    """To the last digit; the first process alone has them."""
    quick = short.replace(**{f"{stage}.epochs": 1 for stage in STAGES})
    train_all(quick, scenes, tmp_path / "w")
    scored(tmp_path / "w", scenes, short, tmp_path / "one.json")
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = (scored, tmp_path / "w", scenes, short, tmp_path / "more.json")
    said = tmp_path / "said"
    assert [ended(pid) for pid in started(processes, *arguments, said=said)] == [0] * processes, said.read_text()
    (one,), (more,) = read_json(tmp_path / "one.json"), read_json(tmp_path / "more.json")
    assert one == more and one["rpn"]["AR@1000"] > 0


def test_a_stopped_training_goes_on_with_another_number(scenes, short, tmp_path, monkeypatch, capsys):
    """What stays and what does not is said."""
    said, whole = tmp_path / "said", training.Run._step

    def limited(self, epoch, *batch):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, epoch, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "_step", limited)
        pids = started(2, train_stage, "rpn", short, scenes, tmp_path / "w", said=said)
        assert [ended(pid) for pid in pids] == [1, 1]
    assert said.read_text().count("KeyboardInterrupt: rpn stopped after step 1 of epoch 2") == 2
    rows = train_stage("rpn", short, scenes, tmp_path / "w")
    text = capsys.readouterr().out
    assert "rpn: going on after step 1 of 3 of epoch 2" in text and len(rows) == 2 and rows[1]["lr"] == 0
    assert "rpn: 2 process(es) began this, 1 go on: steps, images and learning rate stay" in text


def test_a_batch_that_does_not_divide_is_said(scenes, short, tmp_path):
    said = tmp_path / "said"
    odd = short.replace(**{"rpn.batch_size": 3})
    pids = started(2, train_stage, "rpn", odd, scenes, tmp_path / "w", said=said)
    assert all(ended(pid) for pid in pids)
    assert "ValueError: rpn.batch_size=3 does not divide among 2 processes" in said.read_text()


def test_the_end_of_one_ends_the_others_with_a_sentence(scenes, short, tmp_path, monkeypatch):
    said, whole = tmp_path / "said", training.Run._step

    def killed(self, epoch, *batch):
        if epoch == 1 and self.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, epoch, *batch)

    monkeypatch.setattr(training.Run, "_step", killed)
    before = time.monotonic()
    pids = started(2, train_stage, "rpn", short, scenes, tmp_path / "w", said=said)
    assert ended(pids[1]) == -signal.SIGKILL and ended(pids[0]) == 1 and time.monotonic() - before < 60
    assert "OSError: rpn: another process of this training has ended" in said.read_text().splitlines()[-1]
