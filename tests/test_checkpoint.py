import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib.config import STAGES, Config
from lib.data.reader import FILES, CourseDataset
from lib.data.scenes import write_scenes
from lib.machine.tensors import load_tensors, save_tensors
from lib.maskrcnn import MaskRCNN
from lib.training.checkpoint import (
    EARLIER,
    data_fingerprint,
    fingerprint,
    keep_aside,
    last_trained,
    load_model,
    load_parts,
    read_metadata,
    save_stage,
    stage_path,
    standing,
)


@pytest.fixture
def backbone(tiny_model):
    return type(tiny_model().backbone)


@pytest.fixture
def weights(tmp_path, tiny_model, request):
    """A folder with all four stages of the tiny model, each with parameters of its own."""
    model = tiny_model(**{"rpn.trains": getattr(request, "param", "none")})
    for i, stage in enumerate(STAGES):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, i + 1.0)
        save_stage(model, tmp_path, stage, {"images": i})
    return tmp_path


backbone_learns = pytest.mark.parametrize("weights", ["all"], indirect=True)


@backbone_learns
@pytest.mark.parametrize(
    "last, values",
    [
        ("rpn", {"backbone": 1, "rpn": 1}),
        ("boxhead", {"backbone": 1, "rpn": 1, "box_head": 2}),
        ("maskhead", {"backbone": 1, "rpn": 1, "box_head": 2, "mask_head": 3}),
        ("joint", {"backbone": 4, "rpn": 4, "box_head": 4, "mask_head": 4}),
    ],
)
def test_each_stage_brings_its_own_parts(weights, backbone, last, values):
    model = load_model(weights, last, backbone=backbone())
    assert not model.training
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        assert part not in values or (parameter == values[part]).all(), name


def test_round_trip(tmp_path, tiny_model, backbone):
    """Buffers too: the loaded model computes the same."""
    model = tiny_model().train()
    model.features(torch.randn(2, 3, 96, 128))  # moves the statistics
    model.eval()
    for stage in STAGES:
        save_stage(model, tmp_path, stage, {})
    loaded = load_model(tmp_path, backbone=backbone())
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_metadata_and_what_a_file_holds(weights, config):
    metadata = read_metadata(stage_path(weights, "boxhead"))
    assert Config.from_json(metadata["config"]) == config and json.loads(metadata["scores"]) == {"images": 1}
    assert metadata["stage"] == "boxhead"
    assert metadata["built_on"] == read_metadata(stage_path(weights, "rpn"))["checksum"][:16]
    assert read_metadata(stage_path(weights, "rpn"))["built_on"] == ""
    assert not list(weights.glob("*.partial"))


def test_the_backbone_is_stored_where_it_learnt(tmp_path, tiny_model):
    sizes = {}
    for trains in ("none", "all"):
        path = save_stage(tiny_model(**{"rpn.trains": trains}), tmp_path / trains, "rpn", {})
        sizes[trains] = path.stat().st_size
    assert sizes["all"] > 2 * sizes["none"]


def test_numbers_of_testing_are_the_callers_where_given(weights, config, backbone):
    """A kept stage is loaded with the numbers that the user has set since."""
    changed = config.replace(**{"rpn.test.post_nms": 7})
    assert standing(weights, "rpn", changed, "") == []
    assert load_model(weights, "rpn", changed, backbone()).config.rpn.test.post_nms == 7
    assert load_model(weights, "rpn", backbone=backbone()).config == config


def test_a_file_of_an_earlier_version_is_no_traceback(weights, config):
    path = stage_path(weights, "rpn")
    save_file({"x": torch.zeros(1)}, path, {"config": '{"rpn_epochs": 8}', "built_on": ""})
    with pytest.raises(ValueError, match="rpn.safetensors.*checksum.*--restart"):
        standing(weights, "rpn", config, "")
    with pytest.raises(ValueError, match="rpn.safetensors: .*another version of this project.*train it again"):
        load_model(weights)


def test_stages_of_different_trainings_are_not_combined(weights, tiny_model, backbone):
    save_stage(tiny_model(), weights, "rpn", {})  # trained again, and different
    assert load_model(weights, "rpn", backbone=backbone()) is not None
    for stage in STAGES[1:]:
        with pytest.raises(ValueError, match="boxhead.safetensors was trained on top of another rpn.safetensors"):
            load_model(weights, stage, backbone=backbone())


def test_the_first_stage_is_built_on_the_backbones_file(tmp_path, tiny_model, backbone):
    file = tmp_path / "backbone.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    path = save_stage(tiny_model(**{"backbone.weights": str(file)}), tmp_path, "rpn", {})
    assert read_metadata(path)["built_on"] == fingerprint(file)
    assert load_model(tmp_path, "rpn", backbone=backbone()) is not None
    save_file({"x": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="rpn.safetensors was trained on top of another backbone: .* rpn .*--restart"):
        load_model(tmp_path, "rpn", backbone=backbone())


def test_missing_stages_are_named_with_the_command(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="no trained stage in .*empty: train with `python -m lib train all"):
        last_trained(tmp_path / "empty")
    assert last_trained(weights) == "joint"
    stage_path(weights, "boxhead").unlink()
    with pytest.raises(FileNotFoundError, match="boxhead.safetensors is missing.*python -m lib train boxhead"):
        load_model(weights)


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", None])
def test_damaged_files_are_named(weights, content):
    path = stage_path(weights, "rpn")
    if content is None:
        save_file({"x": torch.zeros(1)}, path)  # a sound file of another origin
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="rpn.safetensors"):
        load_model(weights, "rpn")


@backbone_learns
def test_parts_that_do_not_fit(weights, config, backbone, tiny_model):
    with pytest.raises(ValueError, match="boxhead.safetensors does not fit this config"):
        load_parts(MaskRCNN(config.replace(**{"boxhead.hidden": 8}), backbone()), weights, "boxhead")
    model = tiny_model()
    model.backbone = torch.nn.Identity()
    with pytest.raises(ValueError, match="rpn.safetensors holds backbone.*which this model lacks"):
        load_parts(model, weights, "rpn")


@pytest.mark.parametrize(
    "changes, differs",
    [
        ({}, []),
        ({"joint.lr": 0.5, "maskhead.epochs": 99}, []),  # other stages' schedules
        ({"joint.training.seed": 7, "boxhead.test.nms_iou": 0.1}, []),
        ({"maskhead.hidden": 8}, []),  # a later part
        ({"boxhead.epochs": 99}, ["boxhead.epochs (8 there, 99 asked)"]),
        (
            {"boxhead.hidden": 8, "rpn.lr": 0.5},
            ["rpn.lr (0.006 there, 0.5 asked)", "boxhead.hidden (32 there, 8 asked)"],
        ),
        ({"classes": ("cat",)}, ["classes (('vehicle', 'person', 'animal') there, ('cat',) asked)"]),
    ],
)
def test_what_a_finished_stage_differs_in(weights, config, changes, differs):
    assert standing(weights, "boxhead", config.replace(**changes), "") == differs


def test_a_stage_on_another_base_differs_in_that(weights, config, tiny_model):
    save_stage(tiny_model(), weights, "rpn", {})
    assert standing(weights, "rpn", config, "") == []
    assert standing(weights, "boxhead", config, "") == ["the rpn that it was trained on top of"]


def test_a_stage_of_other_data_differs_in_that(weights, config, tiny_model):
    save_stage(tiny_model(), weights, "rpn", {}, data="0123")
    assert standing(weights, "rpn", config, "0123") == []
    assert standing(weights, "rpn", config, "4567") == ["the data set or its split"]


def test_the_data_sets_fingerprint_is_of_their_content(tmp_path):
    """The same scenes twice are the same; another split, another label, box or file size are not."""
    write_scenes(tmp_path / "a", 6, seed=1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "split.json").unlink(missing_ok=True)
    first, second = (CourseDataset(tmp_path / name) for name in "ab")
    same = data_fingerprint(first)
    assert data_fingerprint(second) == same
    second.indices = second.indices[:-1]
    prints = [same, data_fingerprint(second), data_fingerprint(first, first)]
    second = CourseDataset(tmp_path / "b")
    second.labels[0][0] = 1 + second.labels[0][0] % 3
    prints.append(data_fingerprint(second))
    second = CourseDataset(tmp_path / "b")
    second.boxes[-1][0, 0] += 1
    prints.append(data_fingerprint(second))
    with open(tmp_path / "b" / FILES["images"], "ab") as file:
        file.write(b"more")
    prints.append(data_fingerprint(CourseDataset(tmp_path / "b")))
    assert len(set(prints)) == len(prints)


def test_the_joint_stage_differs_in_its_own_numbers(weights, config, tiny_model):
    model = tiny_model()
    model.config = config.of_stage("joint")
    save_stage(model, weights, "joint", {})
    assert standing(weights, "joint", config, "") == []
    changed = config.replace(**{"joint.rpn.box_weight": 7.0})
    assert standing(weights, "joint", changed, "") == ["rpn.box_weight (1.0 there, 7.0 asked)"]


def test_weights_of_other_classes_are_refused_by_name(weights, config, backbone):
    names = "vehicle, person, animal"
    with pytest.raises(ValueError, match=f"was trained for the classes {names}, not for cat, dog, bird"):
        load_model(weights, config=config.replace(classes=("cat", "dog", "bird")), backbone=backbone())


def rewritten(path, change) -> None:
    """The file with other tensors and a sound checksum."""
    tensors, metadata = load_tensors(path)
    change(tensors)
    metadata.pop("checksum", None)
    save_tensors(tensors, path, metadata)


def test_weights_that_lack_a_part_are_refused_by_name(weights, backbone):
    rewritten(stage_path(weights, "joint"), lambda tensors: tensors.pop("box_head.classifier.weight"))
    with pytest.raises(ValueError, match="joint.safetensors lacks box_head.classifier.weight"):
        load_model(weights, backbone=backbone())


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_with_a_number_that_is_none_are_refused_by_name(weights, backbone, value):
    rewritten(stage_path(weights, "joint"), lambda tensors: tensors["box_head.classifier.bias"].fill_(value))
    with pytest.raises(ValueError, match="joint.safetensors is of no use: box_head.classifier.bias holds NaN or inf"):
        load_model(weights, backbone=backbone())


@pytest.mark.parametrize("stage", STAGES)
def test_no_mutation_of_a_stages_file_loads_changed(weights, backbone, stage):
    """Bits turned and bytes cut off anywhere, in the header and in the numbers: refused by name."""
    path, rng = stage_path(weights, stage), np.random.default_rng(STAGES.index(stage))
    sound, whole = path.read_bytes(), load_model(weights, stage, backbone=backbone()).state_dict()
    for _ in range(25):
        place, damaged = int(rng.integers(len(sound))), bytearray(sound)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged if rng.random() < 0.7 else sound[:place])
        try:
            loaded = load_model(weights, stage, backbone=backbone()).state_dict()
        except ValueError as error:
            assert path.name in str(error) or "trained on top of another" in str(error)
        else:
            assert all(torch.equal(value, loaded[name]) for name, value in whole.items())


def test_what_was_trained_before_is_kept_aside(weights):
    content = stage_path(weights, "rpn").read_bytes()
    kept = weights / EARLIER / f"rpn.{fingerprint(stage_path(weights, 'rpn'))}.safetensors"
    keep_aside(weights, "rpn")
    keep_aside(weights, "rpn")  # nothing is there any more
    assert kept.read_bytes() == content and not stage_path(weights, "rpn").exists()
