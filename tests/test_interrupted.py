"""Nothing trained is lost: killed at every moment, a training goes on and ends with the same bytes."""

import errno
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ended, forked
from safetensors import SafetensorError

from lib.__main__ import main
from lib.data.reader import CourseDataset
from lib.data.scenes import write_scenes
from lib.machine import files, folders, tensors
from lib.speed.stored import features_folder
from lib.training import run as training
from lib.training.checkpoint import EARLIER, read_metadata, read_stage, save_stage, stage_path
from lib.training.history import read_history
from lib.training.loop import train_stage
from lib.training.stages import RPNStage
from lib.training.state import newest_state

pytestmark = pytest.mark.usefixtures("on_the_tiny_backbone", "fresh_accelerator")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here, so that no imports are paid")
STEPS = 3  # of an epoch


@pytest.fixture
def at_each_step(monkeypatch):
    """A state is saved after each step."""
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(training, "SAVE_SHARE", 1e9)


@pytest.fixture(scope="module")
def short(config):
    """Two epochs of three steps, from stored maps."""
    limits = {"rpn.test.pre_nms": 50, "rpn.test.post_nms": 20, "boxhead.test.post_nms": 5}
    epochs = {"rpn.epochs": 2, "maskhead.epochs": 1}
    return config.replace(**limits, **epochs, **{"training.store_features": True})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, config) -> Path:
    folder = tmp_path_factory.mktemp("few") / "data"
    write_scenes(folder, 12, seed=3)
    CourseDataset(folder, "train", config.data)  # the split is drawn once
    return folder


@pytest.fixture(scope="module")
def uninterrupted(on_the_tiny_backbone, scenes, short, tmp_path_factory) -> dict[str, str]:
    """What a training of the RPN leaves."""
    weights = tmp_path_factory.mktemp("whole")
    train_stage("rpn", short, scenes, weights)
    return contents(weights)


def contents(weights: Path) -> dict[str, str]:
    """The checksum of each stage's file, which is whole: it covers the history too, without the seconds."""
    files = sorted([*weights.glob("*.safetensors"), *weights.glob(f"{EARLIER}/*.safetensors")])
    return {str(p.relative_to(weights)): read_stage(p) and read_metadata(p)["checksum"] for p in files}


def left_over(weights: Path) -> list[str]:
    """All files but the stages', their histories, and the lock."""
    kept = (".safetensors", ".csv", ".lock")
    return [p.name for p in weights.rglob("*") if p.is_file() and not p.name.endswith(kept) or p.suffix == ".resume"]


def reached(weights: Path) -> int:
    """The steps that the last state has behind it."""
    found = newest_state(weights / "rpn.resume")
    return STEPS * len(found[1]["history"]) + found[1]["step"] if found else 0


@forks
@pytest.mark.usefixtures("at_each_step")
def test_killed_at_random_it_ends_with_the_same_bytes(scenes, short, uninterrupted, tmp_path, pytestconfig):
    """20 times, 200 in `make soak`; no step that was saved is lost."""
    moments, weights, said, kills, steps = random.Random(0), tmp_path / "w", tmp_path / "said", 0, 0
    started = time.monotonic()
    assert ended(forked(train_stage, "rpn", short, scenes, tmp_path / "timed", said=said)) == 0
    seconds = time.monotonic() - started
    while kills < pytestconfig.getoption("--kills"):
        pid = forked(train_stage, "rpn", short, scenes, weights, said=said)
        time.sleep(moments.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        if ended(pid) == -signal.SIGKILL:
            kills += 1
            if not stage_path(weights, "rpn").exists():
                assert steps <= (steps := reached(weights))
        else:
            assert contents(weights) == uninterrupted and not left_over(weights)
            shutil.rmtree(weights)
            steps = 0
    assert ended(forked(train_stage, "rpn", short, scenes, weights, said=said)) == 0
    assert contents(weights) == uninterrupted and not left_over(weights)
    assert "Traceback" not in said.read_text() and "set aside" not in said.read_text()


def killed_at(event: int, inside: Path, work, *arguments, **options) -> None:
    """Do the work, and be killed just before the `event`-th time that it changes something below a folder."""
    changes = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
    left = [event]

    def hook(name: str, values: tuple) -> None:
        writes = name == "open" and isinstance(values[1], str) and set(values[1]) & set("wa+x")
        if (name in changes or writes) and str(values[0]).startswith(str(inside)):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work(*arguments, **options)


@forks
def test_killed_before_any_change_of_a_file_it_ends_with_the_same_bytes(scenes, short, tiny_model, tmp_path):
    """From the maps that are stored to the leftovers that are removed, one event after the other."""
    begun, said, event = tmp_path / "begun", tmp_path / "said", 0
    for stage in ("rpn", "boxhead"):
        save_stage(tiny_model(**{"training.store_features": True}), begun, stage, {})
    results: list[dict[str, str]] = []
    while True:
        weights, data = (tmp_path / "runs" / str(event) / name for name in "wd")
        shutil.copytree(begun, weights), shutil.copytree(scenes, data, ignore=shutil.ignore_patterns("features", ".*"))
        arguments, event = ("maskhead", short, data, weights), event + 1
        status = ended(forked(killed_at, event, tmp_path / "runs", train_stage, *arguments, said=said))
        if status != 0:
            assert status == -signal.SIGKILL
            assert ended(forked(train_stage, *arguments, said=said)) == 0
        results.append(contents(weights))
        assert not left_over(weights) and not features_folder(data).exists()
        if status == 0:
            break
    assert event > 20 and all(result == results[-1] for result in results)
    assert "Traceback" not in said.read_text()


@forks
def test_a_killed_restart_loses_neither_the_old_nor_the_new(scenes, short, tmp_path):
    """Before any change of a file: the old file is whole, here or aside, and never beside a new history."""
    said, changed, event, new = tmp_path / "said", short.replace(**{"rpn.lr": 2e-3, "rpn.epochs": 1}), 0, []
    train_stage("rpn", short, scenes, tmp_path / "old")
    (old,) = contents(tmp_path / "old").values()
    while True:
        weights = tmp_path / str(event)
        weights.mkdir()
        shutil.copy(stage_path(tmp_path / "old", "rpn"), weights)
        arguments, event = ("rpn", changed, scenes, weights), event + 1
        status = ended(forked(killed_at, event, weights, train_stage, *arguments, restart=True, said=said))
        there = contents(weights)
        assert old in there.values()
        aside = there.get("rpn.safetensors") != old
        assert aside or not (weights / "rpn_history.csv").exists()
        if status != 0:
            assert ended(forked(train_stage, *arguments, restart=not aside, said=said)) == 0
        new.append(contents(weights)["rpn.safetensors"])
        assert not left_over(weights) and len(read_history(weights, "rpn")) == 1
        if status == 0:
            break
    assert event > 10 and set(new) == {new[-1]} and new[-1] != old


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 5, 6])
def test_a_signal_stops_it_within_a_step(scenes, short, uninterrupted, tmp_path, monkeypatch, capsys, number, step):
    """As Ctrl-C, a notebook's interrupt and a scheduler's end do; then it goes on from that very step."""
    whole, done = training.Run._step, []

    def with_signal(self, epoch, *batch):
        done.append(epoch)
        if len(done) == step:
            os.kill(os.getpid(), number)
        return whole(self, epoch, *batch)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "_step", with_signal)
        with pytest.raises(KeyboardInterrupt, match=f"rpn stopped after step {(step - 1) % 3 + 1} of epoch .*goes on"):
            train_stage("rpn", short, scenes, tmp_path)
    assert len(done) == step == reached(tmp_path) and signal.getsignal(number) == before
    train_stage("rpn", short, scenes, tmp_path)
    assert "rpn: going on after" in capsys.readouterr().out and contents(tmp_path) == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_look_is_not_lost(scenes, short, uninterrupted, tmp_path, monkeypatch, number):
    """While the state of an epoch's last step is written, and nobody looks again before the next epoch."""
    save, saved = training.Run.save, []

    def with_signal(self):
        save(self)
        saved.append(self.place["step"])
        if saved[-1] == STEPS:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "save", with_signal)
        with pytest.raises(KeyboardInterrupt):
            train_stage("rpn", short, scenes, tmp_path)
    assert saved == [0, STEPS]
    train_stage("rpn", short, scenes, tmp_path)
    assert contents(tmp_path) == uninterrupted


def test_an_interrupted_command_is_one_line(monkeypatch, tmp_path, scenes):
    def interrupted(*arguments):
        raise KeyboardInterrupt("rpn stopped")

    monkeypatch.setattr("lib.commands.train.train_stage", interrupted)
    with pytest.raises(SystemExit, match="^stopped: rpn stopped$"):
        main(["train", "rpn", "--data", str(scenes), "--weights", str(tmp_path)])


def stopped(short, scenes, weights: Path, monkeypatch, step: int = 5) -> None:
    """A training that was stopped after so many steps."""
    whole, done = training.Run._step, []

    def limited(self, epoch, *batch):
        if len(done) == step:
            raise KeyboardInterrupt
        done.append(epoch)
        return whole(self, epoch, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Run, "_step", limited)
        train_stage("rpn", short, scenes, weights)


def overwrite(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.usefixtures("at_each_step")
@pytest.mark.parametrize("damage", [overwrite, cut, lambda path: path.write_bytes(b""), Path.unlink])
@pytest.mark.parametrize("names", [["state_0"], ["state_1"], ["state_0", "state_1"], ["stage"]])
def test_a_damaged_state_is_set_aside(scenes, short, uninterrupted, tmp_path, monkeypatch, capsys, damage, names):
    """And the training goes on from the one before it; without any, it begins anew."""
    stopped(short, scenes, tmp_path, monkeypatch)
    (tmp_path / "rpn_history.csv").write_bytes(b"\xff\xfe")
    chosen = [path for path in (tmp_path / "rpn.resume").iterdir() if path.stem in names]
    assert len(chosen) == len(names)
    for path in chosen:
        damage(path)
    train_stage("rpn", short, scenes, tmp_path)
    said = capsys.readouterr().out
    sentence = "is set aside as" if damage is not Path.unlink and names != ["stage"] else ""
    assert sentence in said and ("going on after" in said) == (len(names) == 1)
    assert contents(tmp_path) == uninterrupted and len(read_history(tmp_path, "rpn")) == 2


def test_no_file_of_a_state_is_unpickled(scenes, short, tmp_path, monkeypatch):
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "mark",)

    stopped(short, scenes, tmp_path, monkeypatch)
    for name in ("custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl", "state_0.safetensors"):
        torch.save(Payload(), tmp_path / "rpn.resume" / name)
    train_stage("rpn", short, scenes, tmp_path)
    assert not (tmp_path / "mark").exists() and stage_path(tmp_path, "rpn").exists()


def test_lost_maps_are_computed_again_the_same(scenes, short, uninterrupted, tmp_path, monkeypatch):
    stopped(short, scenes, tmp_path, monkeypatch)
    shutil.rmtree(features_folder(scenes))
    train_stage("rpn", short, scenes, tmp_path)
    assert contents(tmp_path) == uninterrupted


def losses_from(step: int, value: float, monkeypatch) -> None:
    """From this step on a loss is not finite."""
    whole, count = RPNStage.loss, []

    def loss(self, samples):
        count.append(1)
        losses = whole(self, samples)
        return losses | {"rpn_box": losses["rpn_box"] * (value if len(count) >= step else 1)}

    monkeypatch.setattr(RPNStage, "loss", loss)


@pytest.mark.usefixtures("at_each_step")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_stage(scenes, short, tmp_path, monkeypatch, value):
    """Two steps are done when it says step, terms, images and learning rate; lowered, it goes on from there."""
    with monkeypatch.context() as patch:
        losses_from(3, value, patch)
        terms = r"\{'rpn_objectness': 0\.\d+, 'rpn_box': (nan|inf)\}, images \[\d+, \d+\], learning rate 0.00\d+"
        with pytest.raises(ValueError, match=rf"^rpn: a loss is not finite in step 3 of epoch 1 \({terms}\): lower"):
            train_stage("rpn", short, scenes, tmp_path)
    assert reached(tmp_path) == 2 and not stage_path(tmp_path, "rpn").exists()
    lower = short.replace(**{"rpn.lr": 1e-4})
    with pytest.raises(
        ValueError, match=r"differs .* in rpn.lr \(0.006 there, 0.0001 asked\): going on .* takes --go-on"
    ):
        train_stage("rpn", lower, scenes, tmp_path)
    assert len(train_stage("rpn", lower, scenes, tmp_path, go_on=True)) == 2


@pytest.mark.usefixtures("at_each_step")
def test_no_state_holds_parameters_that_are_not_finite(scenes, short, tmp_path, monkeypatch):
    whole = training.Run._step

    def poisoned(self, epoch, *batch):
        losses = whole(self, epoch, *batch)
        if self.place["step"] == 2:
            self.model.rpn.regressor.bias.data[0] = float("nan")
        return losses

    monkeypatch.setattr(training.Run, "_step", poisoned)
    with pytest.raises(ValueError, match="rpn.regressor.bias is NaN or infinite after this step: .*last state is kept"):
        train_stage("rpn", short, scenes, tmp_path)
    assert reached(tmp_path) == 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried ..."), MemoryError()])
def test_out_of_memory_says_what_to_lower(scenes, short, tmp_path, monkeypatch, error):
    def full(*arguments):
        raise error

    monkeypatch.setattr(RPNStage, "sample", full)
    what = "rpn: out of memory with rpn.batch_size=2 at 96 x 126.*: lower rpn.batch_size and go on with --go-on"
    with pytest.raises(ValueError, match=what):
        train_stage("rpn", short, scenes, tmp_path)


@pytest.mark.usefixtures("at_each_step")
@pytest.mark.parametrize("write", [1, 2, 5, 8])
def test_a_full_disk_is_said_and_the_last_state_kept(scenes, short, uninterrupted, tmp_path, monkeypatch, write):
    """Before the first step, at a state, at the stage's file."""
    whole, count = tensors.save_file, []

    def full(values, path, metadata):
        count.append(path)
        if len(count) >= write:
            Path(path).write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        whole(values, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "save_file", full)
        with pytest.raises(OSError, match="safetensors cannot be written .No space left on device.: make room"):
            train_stage("rpn", short, scenes, tmp_path)
    assert reached(tmp_path) == min(6, max(0, write - 2))
    train_stage("rpn", short, scenes, tmp_path)
    assert contents(tmp_path) == uninterrupted


def test_a_folder_that_cannot_be_written_is_said_before_training(scenes, short, tmp_path, monkeypatch):
    """For its kind of disk, or because Google Drive is not mounted: no folder appears in its place."""
    monkeypatch.setattr(training.Run, "__init__", lambda *arguments: pytest.fail("it has begun"))
    with monkeypatch.context() as patch:
        patch.setattr(
            files, "_flush", lambda path: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system"))
        )
        with pytest.raises(OSError, match="cannot be written .Read-only file system.: make room there, or choose"):
            train_stage("rpn", short, scenes, tmp_path / "w")
    monkeypatch.setattr(folders, "DRIVE", tmp_path / "drive")
    with pytest.raises(OSError, match="drive/w lies in Google Drive, which is not mounted"):
        train_stage("rpn", short, scenes, tmp_path / "drive" / "w")
    assert not (tmp_path / "drive").exists()


@forks
def test_two_trainings_on_one_folder_take_turns(scenes, short, uninterrupted, tmp_path):
    """The second says so, waits, and finds the stage trained."""
    pids = [forked(train_stage, "rpn", short, scenes, tmp_path / "w", said=tmp_path / "said") for _ in range(2)]
    assert [ended(pid) for pid in pids] == [0, 0]
    said = (tmp_path / "said").read_text()
    assert said.count("waiting for its end") == 1 and said.count("already trained") == 1
    assert contents(tmp_path / "w") == uninterrupted
