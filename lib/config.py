"""All numbers of the system, in nested frozen dataclasses with two profiles.

A part's numbers stand in its own module; here they are put together with those that no part owns: of the data, of
training and of evaluation. `course` is the assignment sheet, but for the anchors that the RPN learns from
(`rpn.cross_boundary`, `rpn.negatives`), the boxes that train the mask head (`boxhead.cross_boundary`) and what the
joint stage changes. `demo` is the same system scaled down so that a CPU learns it in minutes: smaller images, a
narrower pyramid and a MobileNetV3 that was pretrained, pyramid included, on scenes of its own as the sheet's ResNet-50
was on COCO.

The epochs of `course` are chosen for three hours on a GPU like NVIDIA's T4: an estimate, which no run has tested yet.
At 800 x 1088 an image takes 240 GFLOP forward through the backbone, 720 forward and back: say 6 images/s where it is
frozen, 2 in joint fine-tuning. Of 3,265 images 2,612 are trained on and 326 validate, so that an epoch takes 8 and 23
minutes. Ten frozen epochs (03 trains the RPN's two again, as printed) and three joint ones take 150 minutes; half an
hour is for scores and figures.

Any number can be set by its path: `load_config("demo", ["rpn.epochs=2"])` in a notebook, `--set rpn.epochs=2` on the
command line, or `MASKRCNN_SET="rpn.epochs=2 ..."` in the environment. `python -m lib config` shows them all.
"""

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lib.backbone import PARTS
from lib.boxhead import BoxHeadConfig
from lib.machine.numbers import Numbers, count, number, share
from lib.machine.overrides import flat, hint, parsed
from lib.maskhead import MaskHeadConfig
from lib.maskrcnn import SystemConfig
from lib.rpn import RPNConfig

STAGES = ("rpn", "boxhead", "maskhead", "joint")  # in the order in which they are trained
PRETRAINING_SEEDS = range(2**20, 2**20 + 16)  # of the scenes that the demo's backbone has seen; of no data set


@dataclass(frozen=True)
class DataConfig(Numbers):
    seed: int = number(0, "of the built-in scenes, and of the split", low=0, high=PRETRAINING_SEEDS[0] - 1)
    images: int = count(1000, "built-in scenes that are written where there is no data yet")
    val_fraction: float = number(0.1, "the share of images in the val split", low=0, high=0.9)
    test_fraction: float = number(0.1, "the share of images in the test split", low=0, high=0.9)


@dataclass(frozen=True)
class TrainingConfig(Numbers):
    seed: int = number(0, "of initial weights, the order of images and all sampling", low=0)
    flip_probability: float = share(0.5, "the share of training images that are mirrored")
    store_features: bool = number(False, "the frozen backbone's maps are computed once and kept on disk")
    mixed_precision: str = number("auto", "auto: bf16 or fp16 where fast", options=("auto", "no", "fp16", "bf16"))


@dataclass(frozen=True)
class EvaluationConfig(Numbers):
    batch_size: int = count(4, "images at a time")


@dataclass(frozen=True)
class Schedule(Numbers):
    epochs: int = count(8, "passes over the training images")
    batch_size: int = count(4, "images a step, of all processes together")
    lr: float = number(1e-3, "AdamW's learning rate after the warm-up", above=0, high=1)


@dataclass(frozen=True)
class RPNStageConfig(RPNConfig, Schedule):
    trains: str = number("none", "what of the backbone learns along with the RPN", "§4.5", options=PARTS)


@dataclass(frozen=True)
class BoxHeadStageConfig(BoxHeadConfig, Schedule): ...


@dataclass(frozen=True)
class MaskHeadStageConfig(MaskHeadConfig, Schedule): ...


@dataclass(frozen=True)
class JointConfig(Schedule):
    """Joint fine-tuning. `changes` are the numbers that this stage, and the system after it, has otherwise.

    They are pairs of a path of Config and a value, each set by its path behind `joint.`, as in joint.rpn.box_weight=3.
    """

    trains: str = number("all", "what of the backbone learns in joint fine-tuning", "§8", options=PARTS)
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Config(SystemConfig):
    """The numbers of all parts, of the data, of training and of evaluation."""

    profile: str = "course"
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    rpn: RPNStageConfig = RPNStageConfig()
    boxhead: BoxHeadStageConfig = BoxHeadStageConfig()
    maskhead: MaskHeadStageConfig = MaskHeadStageConfig()
    joint: JointConfig = JointConfig()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))  # a list in JSON
        if self.data.val_fraction + self.data.test_fraction >= 1:
            raise ValueError("data.val_fraction and data.test_fraction leave no image to train on: lower one of them")
        if self.joint.changes:  # checked as they will be used, and typed as their fields are
            try:
                changed = self.replaced({"joint.changes": (), **dict(self.joint.changes)})
            except ValueError as error:
                raise ValueError(f"joint.{error}") from None
            changes = tuple((path, changed.value(path)) for path, _ in self.joint.changes)
            object.__setattr__(self, "joint", dataclasses.replace(self.joint, changes=changes))

    def replace(self, **values: Any) -> "Config":
        """A copy with these values, by path: `replace(**{"rpn.epochs": 2})`.

        What is set so holds in every stage: where the joint stage had another value of the same number, that goes; one
        for that stage alone is set as "joint.rpn.box_weight". ValueError gives the path of what does not exist, or of
        a value that cannot be.
        """
        own, changes = {}, dict(self.joint.changes)
        for path, value in values.items():
            name, _, rest = path.partition(".")
            if name not in self.__dataclass_fields__:
                raise ValueError(f"config has no field {path!r}{hint(path, self.paths())}")
            if name == "joint" and rest.partition(".")[0] in self.__dataclass_fields__:
                changes[rest] = value
            else:
                changes.pop(path, None)
                own[path] = value
        try:
            return self.replaced({"joint.changes": tuple(sorted(changes.items())), **own})
        except (TypeError, ValueError) as error:
            raise ValueError(f"config field {error}") from None

    def override(self, pairs: Iterable[str]) -> "Config":
        """A copy with `path=value` overrides as the command line gives them; ValueError like `replace`."""
        if {"profile", "classes"} & (values := dict(map(parsed, pairs))).keys():
            raise ValueError("--profile names the profile, and the data set's classes.json the classes: not --set")
        return self.replace(**values)

    def of_stage(self, stage: str) -> "Config":
        """The config under which a stage trains: this one, and in the joint stage with its changes."""
        return self.replaced(dict(self.joint.changes)) if stage == "joint" else self

    def read_by(self, groups: Iterable[str]) -> dict[str, Any]:
        """All that a training which reads these groups depends on: what they hold, but for numbers of testing alone."""
        held = {name: dataclasses.asdict(self)[name] for name in groups}
        for group in (held[name] for name in groups if isinstance(held[name], dict)):
            group.update(test=None, changes=None)
        return held

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "Config":
        """The inverse of `to_json`; ValueError for the config of another version of the project."""
        try:
            return Config().replaced(flat(json.loads(text)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"its config is of another version of this project ({error}): train it again") from None


COURSE = (
    "boxhead.lr=3e-4 maskhead.lr=5e-4 joint.lr=5e-5 rpn.epochs=2 boxhead.epochs=3 maskhead.epochs=3 joint.epochs=3 "
    "joint.rpn.batch_samples=1024 joint.boxhead.batch_samples=1024 joint.boxhead.test.pre_nms=1000 "
    "joint.boxhead.adds_truth=True joint.boxhead.positive_iou=0.5 joint.boxhead.positive_fraction=0.25 "
    "joint.boxhead.loss_weight=5 joint.boxhead.test.score_threshold=0.05"
)
DEMO = (
    "image.height=180 image.width=240 anchors.scales=(24,48,84,120,156) backbone.name=mobilenet_v3_large "
    "backbone.channels=64 backbone.weights=weights/scenes_backbone.safetensors training.store_features=True "
    "evaluation.batch_size=8 rpn.batch_samples=256 rpn.train.pre_nms=600 rpn.train.post_nms=200 rpn.test.pre_nms=600 "
    "rpn.test.post_nms=200 rpn.epochs=16 rpn.batch_size=8 rpn.lr=6e-3 roi_align.canonical_size=90 boxhead.hidden=256 "
    "boxhead.batch_samples=256 boxhead.train.pre_nms=80 boxhead.train.post_nms=6 boxhead.batch_size=8 boxhead.lr=5e-4 "
    "maskhead.hidden=64 maskhead.batch_size=8 maskhead.lr=1e-3 joint.epochs=3 joint.batch_size=8 joint.lr=2e-4 "
    "joint.rpn.nms_iou=0.8 joint.boxhead.adds_truth=True joint.boxhead.positive_iou=0.5 "
    "joint.boxhead.positive_fraction=0.25 joint.boxhead.batch_samples=512 joint.boxhead.smooth_l1_beta=0.02 "
    "joint.boxhead.loss_weight=4 joint.boxhead.test.score_threshold=0.05 data.val_fraction=0.06 data.test_fraction=0.3"
)
PROFILES = {n: Config(profile=n).override(numbers.split()) for n, numbers in (("course", COURSE), ("demo", DEMO))}


def load_config(profile: str = "demo", overrides: Iterable[str] = ()) -> Config:
    """The profile's config with `path=value` overrides, those of the environment's MASKRCNN_SET first."""
    if profile not in PROFILES:
        raise ValueError(f"there is no profile {profile!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[profile].override([*os.environ.get("MASKRCNN_SET", "").split(), *overrides])
