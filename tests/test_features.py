"""The frozen backbone's stored maps: they are its own, they fit what they depend on, and they do not stay."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.testing import assert_close

from lib.config import STAGES
from lib.data.batches import collate, flip_horizontally, loader, prepare
from lib.data.reader import FILES, CourseDataset
from lib.data.scenes import write_scenes
from lib.machine.folders import copies_folder, root
from lib.speed import stored
from lib.speed.stored import features_folder, features_key, stored_features, stored_maps
from lib.training.checkpoint import stage_path
from lib.training.loop import train_stage
from lib.training.stages import STAGE_CLASSES, Learner

COMPUTED = "go through the frozen backbone once"
NEAR = {"rtol": 2e-3, "atol": 2e-3}  # half precision has 11 bits


@pytest.fixture
def accelerator(fresh_accelerator):
    return Accelerator(cpu=True, mixed_precision="no")


@pytest.fixture
def data(scenes, config) -> dict[str, CourseDataset]:
    return {split: CourseDataset(scenes, split, config.data) for split in ("train", "val")}


@pytest.fixture
def model(tiny_model):
    """The tiny model with BatchNorms that do something, as a trained backbone's."""
    model = tiny_model(**{"boxhead.train.nms_iou": 1.0, "boxhead.train.post_nms": 80})
    for name, value in model.backbone.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            value.normal_(std=0.1)
    return model


@pytest.fixture
def store(model, data, config, tmp_path, accelerator):
    """A function from config overrides to the stored maps."""
    return lambda **changes: stored_features(model.backbone, data, config.replace(**changes), tmp_path, accelerator)


def live(data: CourseDataset, mirrored: bool) -> tuple[torch.Tensor, list[dict]]:
    """A batch of all images, mirrored or not."""
    images, targets = collate([data[i] for i in range(len(data))])
    return flip_horizontally(images, targets, torch.full((len(images),), mirrored))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_stored_maps_are_the_backbones_own(store, model, data, config, split, mirrored):
    """In training mirrored ones where the flip says so, in validation never; with the targets of the live path."""
    stored = store(**{"training.flip_probability": float(mirrored)})[split]
    images, targets = live(data[split], mirrored and split == "train")
    x, targets, _ = prepare(images, targets, config.image)
    with torch.no_grad():
        expected = model.features(x)
    maps, stored_targets = next(iter(loader(stored, len(stored), torch.device("cpu"))))
    assert [f.dtype for f in maps] == [torch.float16] * 5 and [f.shape for f in maps] == [f.shape for f in expected]
    for ours, theirs in zip(maps, expected, strict=True):
        assert_close(ours.float(), theirs, **NEAR)
    for ours, theirs in zip(stored_targets, targets, strict=True):
        assert ours.keys() == theirs.keys() and ours["image_id"] == theirs["image_id"]
        assert all(torch.equal(ours[k], theirs[k]) for k in ("boxes", "labels", "masks"))


def test_mirrored_at_random(store, data):
    """Half of the epochs give the mirrored entry, box and map together; an epoch always gives the same."""
    stored = store(**{"training.flip_probability": 0.5})["train"]
    draws = [(stored.set_epoch(epoch), stored[0])[1] for epoch in range(60)]
    stored.set_epoch(0)
    assert torch.equal(stored[0][0], draws[0][0])
    boxes = [target["boxes"] for _, target in draws]
    alike = [torch.equal(box, boxes[0]) for box in boxes]
    assert 15 < sum(alike) < 45
    assert alike == [torch.equal(maps, draws[0][0]) for maps, _ in draws]
    val = store(**{"training.flip_probability": 0.5})["val"]
    assert len(val.entries) == len(data["val"]) and len(stored.entries) == 2 * len(data["train"])


def around(targets: list[dict]) -> list[dict]:
    """Boxes near the objects, in place of what an untrained RPN proposes from maps that differ in their last bits."""
    noise = torch.randn(12, 1, 4, generator=torch.Generator().manual_seed(0)) * 2
    return [{"boxes": (t["boxes"] + noise).flatten(0, 1).clamp(2, 94), "scores": None} for t in targets]


@pytest.mark.parametrize("name", ["rpn", "boxhead", "maskhead"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_losses_are_those_of_the_images(store, model, data, name, mirrored):
    stored = store(**{"training.flip_probability": float(mirrored)})["train"]
    images, targets = live(data["train"], mirrored)
    maps, scaled = stored.collate([stored[i] for i in range(len(stored))])
    model.propose = lambda features, content, training: around(scaled)
    stage, losses = STAGE_CLASSES[name](model), []
    x, own, content = prepare(images, targets, model.config.image)
    for learner, batch in ((Learner(stage), (x, own)), (Learner(stage, stored_maps), (maps, scaled))):
        torch.manual_seed(1)
        losses.append(learner.eval()(*batch, content))
    assert losses[0].keys() == losses[1].keys() and all(v > 0 for v in losses[0].values())
    assert_close(losses[1], losses[0], rtol=5e-3, atol=1e-4)


def test_the_key_is_all_that_the_maps_depend_on(model, config, tmp_path):
    write_scenes(tmp_path, 8, seed=1)

    def key(changes=None, splits=("train", "val"), precision="no") -> str:
        changed = config.replace(**changes or {})
        data = dict(zip(("train", "val"), (CourseDataset(tmp_path, s, changed.data) for s in splits), strict=True))
        return features_key(model.backbone, data, changed, precision)

    keys = [key(), key({"image.width": 120}), key({"image.height": 90}), key({"training.flip_probability": 0})]
    keys += [key(splits=("train", "test")), key(precision="bf16")]
    assert key({"training.flip_probability": 0.3, "rpn.lr": 1.0, "boxhead.hidden": 8}) == keys[0]
    os.utime(tmp_path / FILES["images"], (1, 1))
    keys.append(key())
    model.backbone.levels[0][0].bias.data[0] += 1e-3
    keys.append(key())
    assert len(set(keys)) == len(keys)


def overwrite(path: Path) -> None:
    """One byte in the middle, as a bad disk would."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / "train"),
        lambda folder: (folder / "val").unlink(),
        lambda folder: (folder / "key").unlink(),
        lambda folder: (folder / "key").write_text("another"),
        lambda folder: (folder / "key").write_bytes(b"\xff\xfe"),
        lambda folder: overwrite(folder / "val"),
        lambda folder: overwrite(folder / "train.sums"),
    ],
    ids=["cut off", "lost", "key lost", "another key", "no key", "overwritten", "overwritten sums"],
)
def test_what_is_lost_or_cut_off_is_computed_again(store, tmp_path, capsys, damage):
    store()
    contents = {path.name: path.read_bytes() for path in features_folder(tmp_path).iterdir()}
    assert capsys.readouterr().out.count(COMPUTED) == 1
    assert contents.keys() == {"train", "val", "train.sums", "val.sums", "key"}
    store()
    assert COMPUTED not in capsys.readouterr().out
    damage(features_folder(tmp_path))
    store()
    assert capsys.readouterr().out.count(COMPUTED) == 1
    assert {path.name: path.read_bytes() for path in features_folder(tmp_path).iterdir()} == contents


def test_an_image_is_computed_the_same_way_whatever_is_computed_with_it(store, data, tmp_path, monkeypatch):
    """Alone, and among twelve with a remainder, as several processes or a resumed training would have it."""
    monkeypatch.setattr(stored, "_BATCH", 5)
    together = store()["train"].entries.copy()
    order = data["train"].indices
    for place in (0, 5):
        data["train"].indices = order[place : place + 1]
        alone = store()["train"].entries
        assert (alone == together[[place, len(order) + place]]).all()


def test_two_trainings_do_not_compute_at_once(store, tmp_path, capsys):
    """The second waits for the lock beside the features; here for a process that is then killed."""
    holder = (
        "import sys, time; from pathlib import Path; from lib.machine.files import one_at_a_time as one\n"
        "with one(Path(sys.argv[1]), 'computes'): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", holder, str(features_folder(tmp_path).parent)]
    with subprocess.Popen(command, cwd=root(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        threading.Timer(0.3, process.kill).start()
        store()
    assert "waiting for its end" in capsys.readouterr().out and process.returncode == -signal.SIGKILL


def test_too_little_room_is_said_before_anything_is_written(store, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "LEFT_FREE", 2**60)
    with pytest.raises(
        ValueError, match="maps take 0.0 GB in .*features, and 0.0 GB of the disk.*training.store_features=False"
    ):
        store()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def test_an_empty_split(model, data, config, tmp_path, accelerator):
    data["val"].indices = []
    stored = stored_features(model.backbone, data, config, tmp_path, accelerator)
    assert (len(stored["train"]), len(stored["val"])) == (6, 0)


def test_data_in_google_drive_or_read_only_keep_their_maps_on_the_machine(tmp_path, monkeypatch):
    first, second = (tmp_path.resolve() / name / "demo" for name in "ab")  # of one name
    first.mkdir(parents=True), second.mkdir(parents=True)
    assert features_folder(first) == first / "features"
    with monkeypatch.context() as patch:
        patch.setattr(stored.os, "access", lambda path, mode: False)  # root may write everywhere
        assert features_folder(first) == copies_folder(first) / "features" != features_folder(second)
    monkeypatch.setattr(stored, "DRIVE", tmp_path.resolve())
    assert features_folder(first) == copies_folder(first) / "features" != features_folder(second)


@pytest.fixture
def short(config, on_the_tiny_backbone):
    """One epoch a stage, from stored maps."""
    limits = {"rpn.test.post_nms": 20, "boxhead.test.post_nms": 5, "training.store_features": True}
    return config.replace(**{f"{stage}.epochs": 1 for stage in STAGES}, **limits)


@pytest.mark.usefixtures("accelerator")
def test_three_stages_share_them_and_the_last_removes_them(scenes, short, tmp_path, capsys):
    for stage in STAGES:
        train_stage(stage, short, scenes, tmp_path)
        assert capsys.readouterr().out.count(COMPUTED) == (stage == "rpn")
        assert features_folder(scenes).exists() == (stage in ("rpn", "boxhead"))


@pytest.mark.usefixtures("accelerator")
def test_computed_or_found_gives_the_same_weights(scenes, short, tmp_path):
    train_stage("rpn", short, scenes, tmp_path)
    weights = []
    for found in (True, False):
        if not found:
            stored.remove(features_folder(scenes))
        train_stage("boxhead", short, scenes, tmp_path, restart=True)
        weights.append(load_file(stage_path(tmp_path, "boxhead")))
    stored.remove(features_folder(scenes))
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
