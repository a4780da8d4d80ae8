import dataclasses

import pytest

from lib.config import CLASS_NAMES, PROFILES, STAGES, Config, load_config


def test_course_profile_is_the_assignment_sheet():
    course = load_config("course")
    sheet = {
        "image_height": 800,
        "image_width": 1066,
        "padded_size": (800, 1088),
        "image_mean": (0.485, 0.456, 0.406),
        "image_std": (0.229, 0.224, 0.225),
        "backbone": "maskrcnn_resnet50_fpn",
        "anchor_scales": (32, 64, 128, 256, 512),
        "anchor_ratios": (0.5, 1, 2),
        "rpn_positive_iou": 0.7,
        "rpn_negative_iou": 0.3,
        "rpn_positive_fraction": 0.5,
        "rpn_post_nms_train": 1000,
        "roi_samples": 2,
        "canonical_size": 224,
        "box_pool_size": 7,
        "box_hidden": 1024,
        "box_positive_iou": 0.4,
        "box_positive_fraction": 0.75,
        "mask_positive_iou": 0.5,
        "box_post_nms_train": 100,
        "mask_pool_size": 14,
        "mask_hidden": 256,
        "mask_threshold": 0.5,
    }
    assert {name: getattr(course, name) for name in sheet} == sheet
    assert CLASS_NAMES == ("background", "vehicle", "person", "animal")
    assert STAGES == ("rpn", "boxhead", "maskhead", "joint")


@pytest.mark.parametrize(
    "pair, field, value",
    [
        ("rpn_epochs=2", "rpn_epochs", 2),
        ("rpn_lr=1", "rpn_lr", 1.0),  # a whole number is a float too
        ("rpn_lr=1e-2", "rpn_lr", 0.01),
        ("backbone=mobilenet_v2", "backbone", "mobilenet_v2"),
        ("anchor_ratios=[1,2]", "anchor_ratios", (1.0, 2.0)),
        ("anchor_ratios=(0.5,)", "anchor_ratios", (0.5,)),
    ],
)
def test_overrides(pair, field, value):
    got = getattr(load_config("demo", [pair]), field)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "pair, message",
    [
        ("rpn_epoch=2", "no field 'rpn_epoch': did you mean 'rpn_epochs'"),
        ("zzz=2", "no field 'zzz'$"),
        ("rpn_epochs", "not of the form field=value"),
        ("rpn_epochs=two", "takes int"),
        ("rpn_epochs=2.5", "takes int"),
        ("rpn_epochs=True", "takes int"),
        ("rpn_lr=True", "takes float"),
        ("backbone=3", "takes str"),
        ("anchor_ratios=1", "takes tuple"),
        ("anchor_ratios=['a']", "'anchor_ratios'"),
        ("rpn_trains=fnp", "'rpn_trains'"),
        ("rpn_negatives=even", "'rpn_negatives' takes one of uniform, balanced"),
    ],
)
def test_wrong_overrides_are_named(pair, message):
    with pytest.raises(ValueError, match=message):
        load_config("demo", [pair])


def test_unknown_profile():
    with pytest.raises(ValueError, match="'curse': choose one of course, demo"):
        load_config("curse")


def test_environment_first_then_the_given_overrides(monkeypatch):
    monkeypatch.setenv("MASKRCNN_SET", "rpn_epochs=3 seed=4")
    assert load_config("demo", ["seed=5"]) == PROFILES["demo"].replace(rpn_epochs=3, seed=5)


@pytest.mark.parametrize("height, width, padded", [(800, 1066, (800, 1088)), (96, 128, (96, 128)), (1, 33, (32, 64))])
def test_padded_size(height, width, padded):
    assert Config(image_height=height, image_width=width).padded_size == padded


def test_frozen_and_the_same_after_json():
    config = load_config("demo", ["anchor_ratios=[1,3]", "rpn_lr=0.3"])
    assert Config.from_json(config.to_json()) == config != load_config("demo")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


@pytest.mark.parametrize("profile", PROFILES)
def test_the_joint_stage_has_its_own_numbers(profile):
    """Joint, and what is loaded after it, has the changes that pay; cut at the border and balanced are all stages."""
    config = load_config(profile)
    assert (config.cross_boundary, config.rpn_negatives) == ("clip", "balanced")
    assert all(config.of_stage(stage) == config for stage in STAGES[:-1])
    joint = config.of_stage("joint")
    assert (config.box_nms_iou_train, config.box_positive_iou, config.smooth_l1_beta) == (0.9, 0.4, 1.0)
    assert (joint.box_nms_iou_train, joint.box_positive_iou, joint.smooth_l1_beta) == (0.9, 0.4, 0.1)
    assert joint.of_stage("joint") == joint == Config.from_json(joint.to_json())
