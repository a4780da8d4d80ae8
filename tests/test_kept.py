"""What is trained is kept: another training never takes its place unasked, and what differs is said."""

import json
import shutil
from pathlib import Path

import pytest

from lib.__main__ import main
from lib.data.reader import CourseDataset
from lib.data.scenes import write_scenes
from lib.data.split import SPLIT_FILE, write_split
from lib.training import run as training
from lib.training.checkpoint import EARLIER, load_model, save_stage, stage_path
from lib.training.history import read_history
from lib.training.loop import train_stage, train_until

pytestmark = pytest.mark.usefixtures("on_the_tiny_backbone", "fresh_accelerator")


@pytest.fixture(scope="module")
def short(config):
    """One epoch a stage."""
    limits = {"rpn.test.pre_nms": 50, "rpn.test.post_nms": 20, "boxhead.test.post_nms": 5}
    return config.replace(**{f"{stage}.epochs": 1 for stage in ("rpn", "boxhead", "maskhead", "joint")}, **limits)


@pytest.fixture(scope="module")
def begun(on_the_tiny_backbone, scenes, short, tmp_path_factory) -> Path:
    """The weights of the first two stages."""
    weights = tmp_path_factory.mktemp("begun")
    for stage in ("rpn", "boxhead"):
        train_stage(stage, short, scenes, weights)
    return weights


@pytest.fixture
def weights(begun, tmp_path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "w"))


def files(weights: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in weights.iterdir() if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize(
    "stage, changes, differs",
    [
        ("rpn", {"rpn.lr": 2e-3}, r"rpn.lr \(0.006 there, 0.002 asked\)"),
        (
            "rpn",
            {"rpn.epochs": 2, "rpn.batch_size": 3},
            r"rpn.epochs \(1 there, 2 asked\), rpn.batch_size \(2 there, 3",
        ),
        ("boxhead", {"boxhead.epochs": 2}, r"boxhead.epochs \(1 there, 2 asked\)"),
    ],
)
def test_a_finished_stage_with_other_numbers_is_refused(weights, scenes, short, stage, changes, differs):
    before = files(weights)
    ways = "train it anew with --restart .the old file is kept., or in another --weights"
    with pytest.raises(
        ValueError, match=f"^{stage}: .*/{stage}.safetensors differs from what is asked in .*{differs}.*: {ways}"
    ):
        train_stage(stage, short.replace(**changes), scenes, weights)
    assert files(weights) == before


def test_a_finished_stage_of_another_data_set_or_split_is_refused(weights, scenes, short, tmp_path):
    before = files(weights)
    data = shutil.copytree(scenes, tmp_path / "data")
    assert len(train_stage("rpn", short, data, weights)) == 1  # a copy is the same data set
    split = json.loads((data / SPLIT_FILE).read_text())
    write_split(data, {**split, "train": split["test"], "test": split["train"]})
    with pytest.raises(ValueError, match="rpn.safetensors differs from what is asked in the data set or its split: "):
        train_stage("rpn", short, data, weights)
    assert files(weights) == before


def test_asked_by_name_it_is_trained_anew_and_the_old_file_kept(weights, scenes, short, capsys):
    before = files(weights)
    train_stage("rpn", short.replace(**{"rpn.lr": 2e-3}), scenes, weights, restart=True)
    (kept,) = (weights / EARLIER).iterdir()
    assert str(kept) in capsys.readouterr().out and kept.read_bytes() == before["rpn.safetensors"]
    assert load_model(weights, "rpn").config.rpn.lr == 2e-3
    with pytest.raises(ValueError, match="boxhead.* differs .*the rpn that it was trained on top of: "):
        train_stage("boxhead", short.replace(**{"rpn.lr": 2e-3}), scenes, weights)
    assert files(weights)["boxhead.safetensors"] == before["boxhead.safetensors"]


def test_a_damaged_stage_is_refused_by_name(weights, scenes, short):
    """The last one, which nothing is built on, too; asked to, it is trained anew and the damaged file kept aside."""
    path = stage_path(weights, "boxhead")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    for work in (train_stage, train_until):
        with pytest.raises(ValueError, match="boxhead.safetensors is damaged: .*train it again .*--restart"):
            work("boxhead", short, scenes, weights)
    assert path.read_bytes() == content
    train_stage("boxhead", short, scenes, weights, restart=True)
    assert load_model(weights, "boxhead") and len(list((weights / EARLIER).iterdir())) == 1


def test_a_notebook_trains_other_settings_in_a_folder_of_their_own(weights, scenes, short, capsys):
    """Printed, with the stages that it stands on, the same folder each time; and what was there stays."""
    before, changed = files(weights), short.replace(**{"boxhead.lr": 1e-2})
    assert train_until("boxhead", short, scenes, weights) == weights
    capsys.readouterr()
    own = train_until("boxhead", changed, scenes, weights)
    said = capsys.readouterr().out
    assert own.parent == weights.parent and own.name.startswith("w-") and str(own) in said
    assert "differs from what is asked in boxhead.lr (0.0005 there, 0.01 asked): it stays" in said
    assert load_model(own, "boxhead").config.boxhead.lr == 1e-2
    assert files(own)["rpn.safetensors"] == before["rpn.safetensors"]
    assert train_until("boxhead", changed, scenes, weights) == own and "already trained" in capsys.readouterr().out
    assert train_until("maskhead", changed, scenes, weights) == own
    assert train_until("boxhead", changed.replace(**{"rpn.lr": 1e-2}), scenes, weights) not in (own, weights)
    assert files(weights) == before


def stop_at(step: int, monkeypatch, *arguments) -> None:
    """A training that was stopped after so many steps of its first epoch."""
    whole = training.Run._step

    def limited(self, epoch, *batch):
        if self.place["step"] == step:
            self.save()
            raise KeyboardInterrupt
        return whole(self, epoch, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Run, "_step", limited)
        train_stage(*arguments)


def test_a_stopped_training_under_other_numbers(scenes, short, tmp_path, monkeypatch, capsys):
    """Refused, gone on with, trained anew, or in a folder of its own: as asked."""
    smaller = short.replace(**{"rpn.batch_size": 1})
    stop_at(2, monkeypatch, "rpn", short, scenes, tmp_path / "w")
    differs = r"rpn.batch_size \(2 there, 1 asked\)"
    with pytest.raises(ValueError, match=f"what stopped in .*rpn.resume differs .* in {differs}: .*--go-on.*--restart"):
        train_stage("rpn", smaller, scenes, tmp_path / "w")
    own = train_until("rpn", smaller, scenes, tmp_path / "w")
    assert own != tmp_path / "w" and (tmp_path / "w" / "rpn.resume").exists()
    shutil.copytree(tmp_path / "w", tmp_path / "again")
    capsys.readouterr()
    train_stage("rpn", smaller, scenes, tmp_path / "w", go_on=True)
    assert "rpn: going on after step 4 of 6 of epoch 1" in capsys.readouterr().out  # four images were seen
    train_stage("rpn", smaller, scenes, tmp_path / "again", restart=True)
    assert "going on" not in capsys.readouterr().out
    weights = [load_model(folder, "rpn").rpn.conv.weight for folder in (own, tmp_path / "again", tmp_path / "w")]
    assert (weights[0] == weights[1]).all() and (weights[0] != weights[2]).any()


def test_what_cannot_be_gone_on_with(scenes, short, tmp_path, monkeypatch):
    stop_at(2, monkeypatch, "rpn", short, scenes, tmp_path)
    with pytest.raises(ValueError, match=r"rpn.resume does not fit this model .*: use --restart"):
        train_stage("rpn", short.replace(**{"anchors.ratios": (0.5, 1.0)}), scenes, tmp_path, go_on=True)


def test_weights_copied_without_their_history_work(weights, scenes, short):
    losses = read_history(weights, "rpn")[0]
    (weights / "rpn_history.csv").unlink()
    (row,) = train_stage("rpn", short, scenes, weights)
    assert row == {key: value for key, value in losses.items() if key != "seconds"}


def test_an_empty_val_split_is_said_and_trained_without(scenes, short, tmp_path, capsys):
    data = shutil.copytree(scenes, tmp_path / "data")
    split = json.loads((data / SPLIT_FILE).read_text())
    write_split(data, {"train": split["train"], "test": split["test"] + split["val"]})
    (row,) = train_stage("rpn", short, data, tmp_path / "w")
    assert "rpn: " + str(data) + " has no images in its val split" in capsys.readouterr().out
    assert "train_rpn_box" in row and not [key for key in row if key.startswith("val")]


def test_the_classes_are_the_data_sets_and_weights_of_others_are_refused(weights, short, tmp_path):
    """Trained for three, asked about data with one: by the command that scores, and by the one that trains."""
    write_scenes(tmp_path / "data", 12, seed=3)
    data = CourseDataset(tmp_path / "data")
    (tmp_path / "data" / "classes.json").write_text('["car", "person", "animal"]')
    assert data.classes == ("vehicle", "person", "animal")
    arguments = ["--data", str(tmp_path / "data"), "--weights", str(weights)]
    with pytest.raises(SystemExit, match="error: .* was trained for the classes vehicle, person, animal, not for car"):
        main(["evaluate", *arguments, "--split", "val"])
    with pytest.raises(ValueError, match=r"differs .*classes \(\('vehicle', 'person', 'animal'\) there, \('car'"):
        train_stage("boxhead", short, tmp_path / "data", weights)
    with pytest.raises(ValueError, match="was trained for the classes vehicle, person, animal, not for car"):
        train_stage("maskhead", short, tmp_path / "data", weights)
    train_stage("rpn", short, tmp_path / "data", tmp_path / "other")
    assert load_model(tmp_path / "other", "rpn").config.classes == ("car", "person", "animal")


def test_two_epochs_do_not_follow_one_in_silence(weights, scenes, tmp_path, capsys):
    """As the command says it."""
    numbers = ["rpn.lr=1e-3", "data.val_fraction=0.25"]
    save_stage(load_model(weights, "rpn"), tmp_path, "rpn", {})
    with pytest.raises(SystemExit, match=r"error: rpn: .* differs .*rpn.epochs \(1 there, 2 asked\).* --restart"):
        main(["train", "rpn", "--data", str(scenes), "--weights", str(tmp_path), "--epochs", "2", "--set", *numbers])
