"""`path=value` as a user writes it, and what they may have meant."""

import ast
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

_WORDS = {"box": "boxhead", "mask": "maskhead", "anchor": "anchors", "eval": "evaluation"}
_RENAMED = {"fpn_channels": "backbone.channels", "frozen_trunk_blocks": "backbone.frozen_blocks"}
_RENAMED |= {"trunk_batchnorm": "backbone.batchnorm", "synthetic_images": "data.images", "synthetic_seed": "data.seed"}
_RENAMED |= {"box_nms_iou": "boxhead.test.nms_iou", "box_score_threshold": "boxhead.test.score_threshold"}
_RENAMED |= {"joint_changes": "a number for each change, as joint.rpn.box_weight=2"}
_CONSTANTS = {  # names of earlier versions
    "preprocess": "size_divisor image_mean image_std",
    "rpn": "rpn_positive_iou rpn_negative_iou rpn_positive_fraction",
    "roi_align": "roi_samples canonical_level",
    "boxhead": "box_pool_size mask_positive_iou",
    "maskhead": "mask_pool_size mask_threshold",
    "training/run": "weight_decay clip_norm",
    "training/schedule": "warmup_fraction",
}
_RENAMED |= {name: f"a constant of lib/{file}.py" for file, names in _CONSTANTS.items() for name in names.split()}


def hint(name: str, known: Iterable[str]) -> str:
    """Where a number is that was asked for by another name, as of the flat config of earlier versions."""
    if name in _RENAMED:
        return f": it is now {_RENAMED[name]}"
    words = sorted(_WORDS.get(word, word) for word in name.replace(".", "_").split("_"))
    found = [p for p in known if sorted(p.replace(".", "_").split("_")) == words or p.endswith(f".{name}")]
    found = found or difflib.get_close_matches(name, known, 1)
    return f": did you mean {' or '.join(found)}?" if found else ""


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"rpn": {"nms_iou": 0.7}} -> {"rpn.nms_iou": 0.7}"""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def parsed(pair: str) -> tuple[str, Any]:
    path, equals, text = pair.partition("=")
    if not equals:
        raise ValueError(f"override {pair!r} is not of the form path=value")
    try:
        return path, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return path, text  # a bare word is a text: backbone.name=resnet18
