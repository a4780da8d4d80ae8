"""Every number of the assignment, in one frozen dataclass with two profiles.

`course` is the assignment sheet, but for the anchors that the RPN learns from (`cross_boundary`, `rpn_negatives`) and
the boxes that train the mask head (`box_nms_iou_train`). `demo` is the same system scaled down so that a CPU learns it
in minutes: smaller images, a narrower pyramid and a MobileNetV3 that was pretrained, pyramid included, on scenes of its
own (`lib.pretrain`) as the sheet's ResNet-50 was on COCO.

Any field can be overridden: `load_config("demo", ["rpn_epochs=2"])` in a notebook, `--set rpn_epochs=2` on the command
line, or `MASKRCNN_SET="rpn_epochs=2 ..."` in the environment.
"""

import ast
import dataclasses
import difflib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass

CLASS_NAMES = ("background", "vehicle", "person", "animal")
NUM_CLASSES = len(CLASS_NAMES) - 1  # C: the classes of objects, background not counted
PRETRAINING_SEEDS = range(2**20, 2**20 + 16)  # of the scenes that the demo's backbone has seen; of no data set
STAGES = ("rpn", "boxhead", "maskhead", "joint")  # in the order in which they are trained
_CHOICES = {name: ("none", "fpn", "all") for name in ("rpn_trains", "joint_trains")}
_CHOICES |= {"cross_boundary": ("remove", "clip"), "rpn_negatives": ("uniform", "balanced")}
_CHOICES |= {"trunk_batchnorm": ("frozen", "trained"), "mixed_precision": ("auto", "no", "fp16", "bf16")}


# What joint fine-tuning does otherwise than the sheet; `benchmarks.ablation` has a row without each.
JOINT_CHANGES = (
    "smooth_l1_beta=0.1",
    "rpn_box_weight=2",
    "box_score_threshold=0.05",
)


@dataclass(frozen=True)
class Config:
    """The numbers of the system. Lengths are pixels of the network's input frame unless a comment says otherwise."""

    profile: str = "course"

    # data (§2)
    image_height: int = 800  # the image content after rescaling ...
    image_width: int = 1066
    size_divisor: int = 32  # ... zero padded right and below to a multiple of this: 800 x 1088
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    flip_probability: float = 0.5  # horizontal flips of training images; 0 switches them off
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0  # of the split, the initial weights, the order of images and the sampling
    synthetic_images: int = 1000  # the built-in scenes that a run writes when there is no data yet
    synthetic_seed: int = 0

    # backbone (§3)
    backbone: str = "maskrcnn_resnet50_fpn"  # this, or any torchvision classification trunk: "resnet18", "mobilenet_v2"
    backbone_weights: str = "DEFAULT"  # a name of torchvision's weights API; a file that `lib.pretrain` wrote, from the
    # project's folder; or "none" for random weights
    fpn_channels: int = 256
    rpn_trains: str = "none"  # what of the backbone learns along with the RPN: "none", "fpn" or "all"
    joint_trains: str = "all"  # what of the backbone learns in joint fine-tuning, likewise
    frozen_trunk_blocks: int = 0  # the first blocks of the trunk that never learn
    trunk_batchnorm: str = "frozen"  # "frozen": stored statistics and scales; "trained": learns when the trunk does
    store_features: bool = False  # the frozen backbone's maps of all images are computed once and kept on disk

    # anchors (§4.1, §4.2)
    cross_boundary: str = "clip"  # in training, anchors and boxes that cross the image's boundary: "remove" as printed,
    # or keep the anchors and "clip" the boxes as in testing
    anchor_scales: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)  # sqrt(w h), one for each of P2 ... P6
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # w / h
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3

    # region proposal network (§4.3 - §4.6)
    smooth_l1_beta: float = 1.0  # where smooth L1 turns from quadratic to linear, in the RPN and in the box head (§4.4)
    rpn_batch_samples: int = 512  # M, over the whole batch of images
    rpn_positive_fraction: float = 0.5
    rpn_negatives: str = "balanced"  # drawn "uniform" from all negative anchors as printed, nearly all of which are on
    # P2, or "balanced": as many from every level
    rpn_box_weight: float = 1.0  # both losses are averaged over the M anchors: equal weights (§4.5)
    rpn_nms_iou: float = 0.7
    rpn_pre_nms_train: int = 4000  # K and N (§4.6), chosen from the recall curve in 03_rpn
    rpn_post_nms_train: int = 1000
    rpn_pre_nms_test: int = 4000
    rpn_post_nms_test: int = 1000

    # RoIAlign (§5)
    roi_samples: int = 2  # 2 x 2 = 4 regular sampling points a cell
    canonical_level: int = 4
    canonical_size: float = 224.0

    # box head (§6)
    box_pool_size: int = 7  # P
    box_hidden: int = 1024
    box_adds_truth: bool = False  # the objects' own boxes join the proposals in training, so that none goes unseen
    box_positive_iou: float = 0.4
    box_batch_samples: int = 512  # over the whole batch of images
    box_positive_fraction: float = 0.75  # 3 : 1, objects to background
    box_loss_weight: float = 10.0  # brings the regressor's loss to the size of the classifier's (§6.4)
    box_nms_iou: float = 0.5
    box_nms_iou_train: float = 0.9  # of NMS among the boxes that train the mask head: 0.5 leaves it one an object
    box_score_threshold: float = 0.0  # 0: a proposal's best class, if not background (§6.5); else every class above it
    box_pre_nms_train: int = 200  # K' and N' (§6.5)
    box_post_nms_train: int = 100
    box_pre_nms_test: int = 300
    box_post_nms_test: int = 100

    # mask head (§7)
    mask_pool_size: int = 14
    mask_hidden: int = 256
    mask_positive_iou: float = 0.5  # boxes that train the mask head (§6.5)
    mask_threshold: float = 0.5
    mask_loss_weight: float = 1.0

    # training (§4.5, §6.4, §7.4, §8)
    joint_changes: tuple[str, ...] = (  # what the joint stage, and the system after it, does otherwise
        *JOINT_CHANGES,
        "rpn_batch_samples=1024",
        "box_batch_samples=1024",
        "box_pre_nms_test=1000",
        "box_loss_weight=5",
    )
    rpn_epochs: int = 8
    boxhead_epochs: int = 8
    maskhead_epochs: int = 8
    joint_epochs: int = 6
    rpn_batch_size: int = 4
    boxhead_batch_size: int = 4
    maskhead_batch_size: int = 4
    joint_batch_size: int = 4
    rpn_lr: float = 1e-3
    boxhead_lr: float = 3e-4
    maskhead_lr: float = 5e-4
    joint_lr: float = 5e-5
    weight_decay: float = 1e-4  # AdamW
    warmup_fraction: float = 0.05  # of a stage's steps: linear warm-up, then half a cosine to zero
    clip_norm: float = 10.0
    mixed_precision: str = "auto"  # "auto": bf16 or fp16 where the hardware is fast in it; or "no", "fp16", "bf16"
    eval_batch_size: int = 4

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) of the network's input: the content size rounded up to the size divisor."""
        return tuple(-(-n // self.size_divisor) * self.size_divisor for n in (self.image_height, self.image_width))

    def replace(self, **fields) -> "Config":
        """A copy with these fields changed; ValueError names a field that does not exist or a value of another type."""
        return dataclasses.replace(self, **{name: _checked(name, value) for name, value in fields.items()})

    def override(self, pairs: Iterable[str]) -> "Config":
        """A copy with `field=value` overrides as the command line gives them; ValueError like `replace`."""
        return self.replace(**dict(_parsed(pair) for pair in pairs))

    def of_stage(self, stage: str) -> "Config":
        """The config under which a stage trains: this one, and in the joint stage its `joint_changes`."""
        return self.override(self.joint_changes) if stage == "joint" else self

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "Config":
        return Config().replace(**json.loads(text))


PROFILES = {
    "course": Config(),
    "demo": Config(
        profile="demo",
        image_height=180,
        image_width=240,
        backbone="mobilenet_v3_large",
        backbone_weights="weights/scenes_backbone.safetensors",
        fpn_channels=64,
        store_features=True,
        val_fraction=0.06,
        test_fraction=0.3,
        anchor_scales=(24.0, 48.0, 84.0, 120.0, 156.0),
        rpn_batch_samples=256,
        rpn_pre_nms_train=600,
        rpn_post_nms_train=200,
        rpn_pre_nms_test=600,
        rpn_post_nms_test=200,
        canonical_size=90.0,
        box_hidden=256,
        box_batch_samples=256,
        box_pre_nms_train=80,
        box_post_nms_train=6,
        mask_hidden=64,
        rpn_batch_size=8,
        boxhead_batch_size=8,
        maskhead_batch_size=8,
        joint_batch_size=8,
        rpn_epochs=16,
        rpn_lr=6e-3,
        boxhead_lr=5e-4,
        maskhead_lr=1e-3,
        joint_lr=1e-4,
        joint_epochs=2,
        joint_changes=(*JOINT_CHANGES, "box_batch_samples=512", "box_loss_weight=2"),
        eval_batch_size=8,
    ),
}


def load_config(profile: str = "demo", overrides: Iterable[str] = ()) -> Config:
    """The profile's config with `field=value` overrides, those of the environment's MASKRCNN_SET first."""
    if profile not in PROFILES:
        raise ValueError(f"there is no profile {profile!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[profile].override([*os.environ.get("MASKRCNN_SET", "").split(), *overrides])


def _parsed(pair: str) -> tuple[str, object]:
    name, equals, text = pair.partition("=")
    if not equals:
        raise ValueError(f"override {pair!r} is not of the form field=value")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name, text  # a bare word is a string: backbone=resnet18


def _checked(name: str, value: object) -> object:
    """`value` as the field's own type: int to float and list to tuple are allowed, nothing else."""
    if name not in Config.__dataclass_fields__:
        near = difflib.get_close_matches(name, Config.__dataclass_fields__, 1)
        raise ValueError(f"config has no field {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
    default = getattr(Config(), name)
    if value not in _CHOICES.get(name, (value,)):
        raise ValueError(f"config field {name!r} takes one of {', '.join(_CHOICES[name])}, not {value!r}")
    if name == "joint_changes" and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if isinstance(default, tuple) and isinstance(value, (list, tuple)) and all(type(v) in (int, float) for v in value):
        return tuple(float(v) for v in value)
    if isinstance(default, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ValueError(f"config field {name!r} takes {type(default).__name__}, like {default!r}, not {value!r}")
    return value
