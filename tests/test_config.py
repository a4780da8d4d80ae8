import dataclasses
import os
import subprocess
import sys

import pytest

from lib import boxhead, maskhead, preprocess, roi_align, rpn
from lib.config import PROFILES, STAGES, Config, load_config
from lib.machine.folders import root
from lib.training.stages import STAGE_CLASSES


def test_course_profile_is_the_assignment_sheet():
    course = load_config("course")
    sheet = {
        "image.height": 800,
        "image.width": 1066,
        "backbone.name": "maskrcnn_resnet50_fpn",
        "anchors.scales": (32, 64, 128, 256, 512),
        "anchors.ratios": (0.5, 1, 2),
        "rpn.train.post_nms": 1000,
        "rpn.box_weight": 1,
        "roi_align.canonical_size": 224,
        "boxhead.hidden": 1024,
        "boxhead.positive_iou": 0.4,
        "boxhead.positive_fraction": 0.75,
        "boxhead.train.post_nms": 100,
        "maskhead.hidden": 256,
    }
    assert {path: course.value(path) for path in sheet} == sheet
    assert (preprocess.IMAGE_MEAN, preprocess.IMAGE_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert course.image.padded_size == (800, 1088)
    assert (rpn.POSITIVE_IOU, rpn.NEGATIVE_IOU, rpn.POSITIVE_FRACTION) == (0.7, 0.3, 0.5)
    assert (roi_align.SAMPLES, roi_align.CANONICAL_LEVEL, boxhead.POOL_SIZE, maskhead.POOL_SIZE) == (2, 4, 7, 14)
    assert (boxhead.MASK_POSITIVE_IOU, maskhead.THRESHOLD) == (0.5, 0.5)
    assert course.class_names == ("background", "vehicle", "person", "animal")
    assert STAGES == ("rpn", "boxhead", "maskhead", "joint") == tuple(STAGE_CLASSES)


@pytest.mark.parametrize(
    "pair, value",
    [
        ("rpn.epochs=2", 2),
        ("rpn.lr=1", 1.0),  # a whole number is a float too
        ("rpn.lr=1e-2", 0.01),
        ("backbone.name=mobilenet_v2", "mobilenet_v2"),
        ("anchors.ratios=[1,2]", (1.0, 2.0)),
        ("anchors.ratios=(0.5,)", (0.5,)),
        ("boxhead.test.post_nms=7", 7),
        ("joint.epochs=3", 3),
    ],
)
def test_overrides(pair, value):
    got = load_config("demo", [pair]).value(pair.partition("=")[0])
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "pair, message",
    [
        ("rpn.epoch=2", "field rpn.epoch is no field: did you mean epochs?"),
        ("zzz=2", "no field 'zzz'$"),
        ("rpn.epochs", "not of the form path=value"),
        ("rpn.epochs=two", "rpn.epochs cannot be 'two': passes over the training images; a whole number from 1"),
        ("rpn.epochs=2.5", "rpn.epochs cannot be 2.5"),
        ("rpn.epochs=True", "rpn.epochs cannot be True"),
        ("rpn.epochs=0", "rpn.epochs cannot be 0"),
        ("rpn.lr=True", "rpn.lr cannot be True"),
        ("rpn.lr=nan", "rpn.lr cannot be 'nan'"),
        ("rpn.lr=1e400", "rpn.lr cannot be inf"),
        ("backbone.name=3", "backbone.name cannot be 3: .*; a text"),
        ("anchors.ratios=1", "anchors.ratios cannot be 1: .*; a list of numbers above 0"),
        ("anchors.ratios=['a']", "anchors.ratios cannot be ..a"),
        ("anchors.ratios=()", r"anchors.ratios cannot be \(\)"),
        ("anchors.scales=(8,16,32)", "anchors.scales .*; 5 numbers above 0"),
        ("anchors.scales=(0,16,32,64,128)", "anchors.scales .*; 5 numbers above 0"),
        ("rpn.trains=fnp", "rpn.trains cannot be 'fnp': .*; one of none, fpn, all"),
        ("rpn.nms_iou=7", "rpn.nms_iou cannot be 7: two proposals that overlap more are one; a number from 0 up to 1"),
        ("training.flip_probability=7", "training.flip_probability cannot be 7"),
        ("image.height=0", "image.height cannot be 0: .*; a whole number from 32"),
        ("rpn.test=3", "rpn.test has fields of its own: set pre_nms, post_nms"),
        ("rpn.epochs.x=3", "rpn.epochs has no fields"),
        ("joint.rpn.box_weight=-1", "config field joint.rpn.box_weight cannot be -1"),  # before any stage starts
        ("profile=course", "--profile names the profile"),
        ("classes=cat", "classes.json the classes"),
        ("joint.changes=3", "config field .*not iterable"),
        ("joint.rpn.box_wait=1", "config field joint.rpn.box_wait is no field: did you mean box_weight"),
    ],
)
def test_wrong_overrides_are_named(pair, message):
    with pytest.raises(ValueError, match=message):
        load_config("demo", [pair])


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match="val_fraction and data.test_fraction leave no image to train on"):
        load_config("demo", ["data.val_fraction=0.5", "data.test_fraction=0.5"])


@pytest.mark.parametrize(
    "earlier, now",
    [
        ("rpn_nms_iou", "rpn.nms_iou"),
        ("rpn_post_nms_test", "rpn.test.post_nms"),
        ("box_hidden", "boxhead.hidden"),
        ("eval_batch_size", "evaluation.batch_size"),
        ("store_features", "training.store_features"),
        ("seed", "data.seed or training.seed"),
        ("fpn_channels", "backbone.channels"),
        ("mask_threshold", "a constant of lib/maskhead.py"),
        ("joint_changes", "joint.rpn.box_weight"),
    ],
)
def test_the_flat_names_of_earlier_versions_lead_to_the_new_ones(earlier, now):
    with pytest.raises(ValueError, match=f"config has no field '{earlier}'.*{now}"):
        load_config("demo", [f"{earlier}=1"])


@pytest.mark.parametrize("profile", PROFILES)
def test_every_number_is_checked(profile):
    """Nonsense of every kind, to every number: each is refused in one sentence that begins with its path."""
    config = load_config(profile)
    for path, field in config.paths().items():
        if not field.metadata:
            continue
        kind, nonsense = type(field.default), [None, "nonsense", -1, float("nan"), (), [[1]], {}]
        allowed = {"nonsense": kind is str and "options" not in field.metadata}
        for value in nonsense:
            if allowed.get(str(value)):
                continue
            with pytest.raises(ValueError, match=f"^config field {path} cannot be "):
                config.replace(**{path: value})


def test_unknown_profile():
    with pytest.raises(ValueError, match="'curse': choose one of course, demo"):
        load_config("curse")


def test_environment_first_then_the_given_overrides(monkeypatch):
    monkeypatch.setenv("MASKRCNN_SET", "rpn.epochs=3 training.seed=4")
    assert load_config("demo", ["training.seed=5"]) == PROFILES["demo"].replace(**{"rpn.epochs": 3, "training.seed": 5})


@pytest.mark.parametrize("module", ["lib.config", "benchmarks.accuracy", "benchmarks.ablation", "benchmarks.cost"])
def test_nothing_is_read_from_the_environment_at_import(module):
    environment = {**os.environ, "MASKRCNN_SET": "nonsense=1"}
    subprocess.run([sys.executable, "-c", f"import {module}"], cwd=root(), env=environment, check=True)


@pytest.mark.parametrize("height, width, padded", [(800, 1066, (800, 1088)), (96, 128, (96, 128)), (32, 33, (32, 64))])
def test_padded_size(height, width, padded):
    assert Config().replace(**{"image.height": height, "image.width": width}).image.padded_size == padded


def test_frozen_and_the_same_after_json():
    config = load_config("demo", ["anchors.ratios=[1,3]", "rpn.lr=0.3", "joint.anchors.ratios=[1,2]"])
    assert Config.from_json(config.to_json()) == config != load_config("demo")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.training.seed = 1
    with pytest.raises(ValueError, match="another version of this project"):
        Config.from_json('{"rpn_nms_iou": 0.7}')


@pytest.mark.parametrize("profile", PROFILES)
def test_the_joint_stage_has_its_own_numbers(profile):
    """Joint, and what is loaded after it, has the changes that pay; cut at the border and balanced are all stages."""
    config = load_config(profile)
    assert (config.rpn.cross_boundary, config.rpn.negatives) == ("clip", "balanced")
    assert all(config.of_stage(stage) == config for stage in STAGES[:-1])
    joint = config.of_stage("joint")
    for path, value in config.joint.changes:
        assert joint.value(path) == value != config.value(path), path
    assert joint.of_stage("joint") == joint == Config.from_json(joint.to_json())


def test_what_the_user_sets_holds_in_every_stage():
    config = load_config("demo", ["rpn.box_weight=3"])
    assert config.rpn.box_weight == config.of_stage("joint").rpn.box_weight == 3
    config = load_config("demo", ["joint.rpn.box_weight=3"])
    assert config.rpn.box_weight == 1 and config.of_stage("joint").rpn.box_weight == 3


@pytest.mark.parametrize(
    "pair, stale",
    [
        ("evaluation.batch_size=2", ""),
        ("rpn.test.post_nms=300", ""),
        ("boxhead.test.score_threshold=0.3", ""),
        ("data.seed=1", ""),
        ("data.test_fraction=.2", ""),
        ("joint.trains=fpn", "joint"),
        ("joint.epochs=9", "joint"),
        ("joint.rpn.box_weight=7", "joint"),
        ("maskhead.hidden=8", "maskhead joint"),
        ("maskhead.lr=1e-4", "maskhead joint"),
        ("boxhead.positive_iou=0.3", "boxhead maskhead joint"),
        ("roi_align.canonical_size=50", "boxhead maskhead joint"),
        ("rpn.epochs=9", "rpn boxhead maskhead joint"),
        ("anchors.ratios=[1]", "rpn boxhead maskhead joint"),
        ("training.seed=9", "rpn boxhead maskhead joint"),
    ],
)
def test_a_stage_depends_on_the_groups_that_it_reads(pair, stale):
    before, after = load_config("demo"), load_config("demo", [pair])
    changed = [
        stage
        for stage, kind in STAGE_CLASSES.items()
        if before.of_stage(stage).read_by(kind.reads) != after.of_stage(stage).read_by(kind.reads)
    ]
    assert changed == stale.split()
