"""The demo's backbone: how it is made, what its file holds, and that no data set shares its scenes."""

import datetime
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyBackbone
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from lib.__main__ import main
from lib.backbone import build_backbone
from lib.config import PRETRAINING_SEEDS, Config, load_config
from lib.data.scenes import scene, write_scenes
from lib.maskrcnn import MaskRCNN
from lib.preprocess import preprocess_images
from lib.training.pretrain import RECIPE, SceneStream, read_record, save_backbone, settle_batchnorm
from lib.training.run import Run

TINY = (
    "image.height=96 image.width=126 anchors.scales=(8,16,32,64,96) roi_align.canonical_size=56 rpn.batch_samples=64 "
    "boxhead.batch_samples=32 rpn.train.pre_nms=100 rpn.train.post_nms=50 rpn.test.post_nms=20 boxhead.test.post_nms=5 "
    "backbone.channels=16 boxhead.hidden=32 maskhead.hidden=16 training.mixed_precision=no "
    "joint.batch_size=2 joint.epochs=2"
).split()


@pytest.fixture(autouse=True)
def small(monkeypatch, fresh_accelerator):
    """The tiny backbone, few scenes to settle and score on, and no second process."""
    monkeypatch.setattr("lib.maskrcnn.build_backbone", lambda config: TinyBackbone())
    monkeypatch.setattr("lib.training.pretrain.HELD_OUT", 3)
    monkeypatch.setattr("lib.commands.pretrain.HELD_OUT", 3)
    monkeypatch.setattr("lib.training.pretrain.SETTLING", 4)
    monkeypatch.setattr(SceneStream, "workers", 0)


def run(folder: Path, out: str = "backbone.safetensors", *options: str) -> Path:
    """Two epochs of four scenes."""
    arguments = ["--images", "9", "--out", str(folder / out), "--folder", str(folder / "checkpoints"), *options]
    main(["pretrain", *arguments, "--set", *TINY])
    return folder / out


def stop_after_an_epoch(patch) -> None:
    whole = Run.epoch

    def epoch(training, number):
        if number == 1:
            raise KeyboardInterrupt
        return whole(training, number)

    patch.setattr(Run, "epoch", epoch)


def test_the_recipe_is_what_made_the_committed_backbone():
    demo = load_config("demo")
    made = Config.from_json(read_record(demo.backbone.file)["config"]).of_stage("joint")
    now = demo.override(RECIPE).of_stage("joint")
    differ = {path for path in now.paths() if now.value(path) != made.value(path)}
    assert differ <= {"training.seed", "joint.changes"}  # a later run has a seed of its own; the changes are made


def test_a_run_ends_with_a_file_that_says_what_made_it(tmp_path, capsys):
    path = run(tmp_path)
    assert "wrote" in capsys.readouterr().out
    tensors, record = load_file(path), read_record(path)
    assert tensors.keys() == TinyBackbone().state_dict().keys()
    assert all(v.dtype == torch.float16 for v in tensors.values() if v.is_floating_point())
    config = Config.from_json(record["config"])
    assert (config.backbone.weights, config.backbone.batchnorm, config.joint.epochs) == ("none", "trained", 2)
    assert json.loads(record["seeds"]) == [PRETRAINING_SEEDS[0]] and record["images_seen"] == "8"  # whole batches
    assert {"box", "mask", "rpn"} <= json.loads(record["scores"]).keys() and "torch" in record["machine"]
    assert datetime.date.fromisoformat(record["date"])
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        ".lock",
        "backbone.safetensors",
        "joint_history.csv",
    ]


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="stopped"):
        stop_after_an_epoch(patch)
        run(tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "backbone.safetensors").exists()
    resumed = load_file(run(tmp_path / "stopped"))
    assert "going on after epoch 1" in capsys.readouterr().out
    whole = load_file(run(tmp_path / "whole"))
    assert all(torch.equal(v, resumed[k]) for k, v in whole.items())


def test_a_continued_run_sees_the_next_seeds_scenes(tmp_path, monkeypatch, capsys):
    """From the earlier run's backbone, and neither from its checkpoints nor from those of one that was stopped."""
    first = run(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="stopped"):
        stop_after_an_epoch(patch)
        run(tmp_path, "never.safetensors")
    started = []
    monkeypatch.setattr("lib.training.pretrain.load_backbone", lambda backbone, path: started.append(path))
    seeds = set()
    monkeypatch.setattr(
        "lib.training.pretrain.scene", lambda rng: seeds.add(rng.bit_generator.seed_seq.entropy[0]) or scene(rng)
    )
    capsys.readouterr()
    second = run(tmp_path, "second.safetensors", "--continues", str(first))
    assert "going on" not in capsys.readouterr().out and started == [first]
    assert seeds == {PRETRAINING_SEEDS[1], *PRETRAINING_SEEDS[-2:]}  # to learn from, to settle on, to score on
    record = read_record(second)
    assert json.loads(record["seeds"]) == [*PRETRAINING_SEEDS[:2]] and record["images_seen"] == "16"


def test_scenes_are_new_in_every_epoch():
    stream = SceneStream(PRETRAINING_SEEDS[0], 3)
    seen = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        seen += [stream[i] for i in range(len(stream))]
    for number, (image, target) in enumerate(seen):
        expected, labels, boxes, _ = scene(np.random.default_rng([PRETRAINING_SEEDS[0], number]))
        assert torch.equal(image, torch.from_numpy(expected)) and target["image_id"] == number % 3
        assert target["labels"].tolist() == labels.tolist() and target["boxes"].tolist() == boxes.tolist()


def test_batchnorms_settle_on_the_mean_of_all_scenes(tiny_model, config):
    model, scenes = tiny_model(), SceneStream(PRETRAINING_SEEDS[-2], 4)
    norm, momentum = model.backbone.levels[0][1], model.backbone.levels[0][1].momentum
    norm.running_mean.fill_(9.0)
    settle_batchnorm(model, scenes)
    x = preprocess_images(torch.stack([scenes[i][0] for i in range(4)]), config.image)
    mean = model.backbone.levels[0][0](x).mean(dim=(0, 2, 3))
    assert_close(norm.running_mean, mean.detach(), rtol=1e-3, atol=1e-4)
    assert norm.momentum == momentum


def test_the_demos_file_is_small_and_gives_the_same_maps(tmp_path):
    demo, path = load_config("demo").replace(**{"backbone.weights": "none"}), tmp_path / "backbone.safetensors"
    torch.manual_seed(0)
    model = MaskRCNN(demo, build_backbone(demo.backbone))
    save_backbone(model.train(), path, {"seeds": "[]", "images_seen": 0})
    assert path.stat().st_size < 8e6 and all(v.dtype in (torch.float16, torch.int64) for v in load_file(path).values())
    torch.manual_seed(1)
    loaded = build_backbone(demo.replace(**{"backbone.weights": str(path)}).backbone).eval()
    x = torch.randn(1, 3, *demo.image.padded_size)
    with torch.no_grad():
        expected, got = model.eval().features(x), list(loaded(x).values())
    for ours, theirs in zip(got, expected, strict=True):
        assert_close(ours, theirs, rtol=0, atol=5e-3 * theirs.abs().max().item())


FILE = load_config("demo").backbone.file


@pytest.mark.skipif(not FILE.is_file(), reason="the demo's backbone is not made yet")
def test_the_demos_own_file():
    record = read_record(FILE)
    assert FILE.stat().st_size < 8e6 and {"config", "scores", "machine", "date"} <= record.keys()
    assert set(json.loads(record["seeds"])) <= set(PRETRAINING_SEEDS[:-2]) and int(record["images_seen"]) > 0
    assert build_backbone(load_config("demo").backbone).out_channels == 64


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "b.safetensors is missing: .*python -m lib pretrain.*backbone.weights=none"),
        (b"no such format", "b.safetensors does not fit this backbone"),
        ({"body.0.0.weight": torch.zeros(1)}, "b.safetensors does not fit this backbone"),
    ],
    ids=["missing", "damaged", "another's"],
)
def test_a_file_that_does_not_fit_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "b.safetensors"
    if isinstance(content, dict):
        save_file(content, path)
    elif content:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        build_backbone(load_config("demo").replace(**{"backbone.weights": str(path)}).backbone)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "record, message",
    [
        (None, "error: .*b.safetensors cannot be read"),
        ({}, "error: .*b.safetensors was not written by `python -m lib pretrain`: it has no images_seen"),
        ({"seeds": [*PRETRAINING_SEEDS[:-2]], "images_seen": 8}, "error: .* has seen all 14 pretraining seeds"),
    ],
)
def test_what_cannot_be_continued(tmp_path, tiny_model, record, message):
    if record is not None:
        save_backbone(tiny_model(), tmp_path / "b.safetensors", record)
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, "new.safetensors", "--continues", str(tmp_path / "b.safetensors"))


def test_too_few_scenes_for_a_batch(tmp_path):
    with pytest.raises(
        SystemExit, match="error: .*scenes of seed 1048576 has 1 training images, fewer than one step's 2"
    ):
        main(
            [
                "pretrain",
                "--images",
                "2",
                "--out",
                str(tmp_path / "b.safetensors"),
                "--folder",
                str(tmp_path),
                "--set",
                *TINY,
            ]
        )


def test_no_data_set_shares_the_scenes(tmp_path):
    def hashes(seed: int, count: int) -> set[bytes]:
        scenes = (scene(np.random.default_rng([seed, i]))[0] for i in range(count))
        return {hashlib.sha256(image.tobytes()).digest() for image in scenes}

    pretraining = set.union(*(hashes(seed, 20) for seed in PRETRAINING_SEEDS[:3]))
    builtin = hashes(load_config("demo").data.seed, 60)
    assert len(pretraining) == len(builtin) == 60 and not pretraining & builtin
    for seed in (PRETRAINING_SEEDS[0], PRETRAINING_SEEDS[-1]):
        with pytest.raises(ValueError, match=f"backbone has seen the scenes of seed {seed}"):
            write_scenes(tmp_path, 1, seed)
    assert not list(tmp_path.iterdir())
