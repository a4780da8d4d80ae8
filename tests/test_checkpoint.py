import json

import pytest
import torch
from safetensors.torch import save_file

from lib.config import STAGES, Config
from lib.maskrcnn import MaskRCNN
from lib.training.checkpoint import (
    fingerprint,
    is_current,
    last_trained,
    load_model,
    load_parts,
    read_metadata,
    save_stage,
    stage_path,
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
    assert metadata["stage"] == "boxhead" and len(metadata["built_on"]) == 16
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
    assert is_current(weights, "rpn", changed)
    assert load_model(weights, "rpn", changed, backbone()).config.rpn.test.post_nms == 7
    assert load_model(weights, "rpn", backbone=backbone()).config == config


def test_a_file_of_an_earlier_version_is_no_traceback(weights, config):
    path = stage_path(weights, "rpn")
    save_file({"x": torch.zeros(1)}, path, {"config": '{"rpn_epochs": 8}', "built_on": ""})
    assert not is_current(weights, "rpn", config)
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
    "changes, current",
    [
        ({}, True),
        ({"joint.lr": 0.5, "maskhead.epochs": 99}, True),  # other stages' schedules
        ({"joint.training.seed": 7}, True),
        ({"maskhead.hidden": 8}, True),  # a later part
        ({"boxhead.epochs": 99}, False),
        ({"boxhead.hidden": 8}, False),
    ],
)
def test_a_finished_stage_is_current_with_its_config(weights, config, changes, current):
    assert is_current(weights, "boxhead", config.replace(**changes)) == current


def test_a_stage_on_another_base_is_not_current(weights, config, tiny_model):
    save_stage(tiny_model(), weights, "rpn", {})
    assert is_current(weights, "rpn", config) and not is_current(weights, "boxhead", config)


def test_the_joint_stage_is_current_under_its_own_numbers(weights, config, tiny_model):
    model = tiny_model()
    model.config = config.of_stage("joint")
    save_stage(model, weights, "joint", {})
    assert is_current(weights, "joint", config)
    assert not is_current(weights, "joint", config.replace(**{"joint.rpn.box_weight": 7}))
