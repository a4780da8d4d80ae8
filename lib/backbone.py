"""The shared feature extractor: a torchvision trunk with a feature pyramid on top (§3).

    B  images    Hp x Wp  the network's input    F  channels, `out_channels`    Sy x Sx  a level's grid
    images (B, 3, Hp, Wp) float, normalised -> an ordered dict of P2 ... P6, each (B, F, Sy, Sx)

Any module with this output and an `out_channels` will do: `MaskRCNN(config, backbone=...)`. FPN: Lin et al. 2017.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from lib.machine.folders import root
from lib.machine.numbers import Numbers, count, number

TRUNK_STRIDES = (4, 8, 16, 32)  # of the trunk's maps that the pyramid is built on
PARTS = ("none", "fpn", "all")  # what of a backbone may learn: nothing, the pyramid, or the trunk too


@dataclass(frozen=True)
class BackboneConfig(Numbers):
    # torchvision's backbone of this name, or any of its classification trunks ("resnet18") under a new pyramid
    name: str = number("maskrcnn_resnet50_fpn", "the trunk, and with what pyramid", "§3")
    # a name of torchvision's weights API; a file of `python -m lib pretrain`, from the project's folder; or "none"
    weights: str = number("DEFAULT", "a name of torchvision's, a file of trunk and pyramid, or none", "§3")
    channels: int = count(256, "F, channels of every map of a new pyramid", "§3")
    frozen_blocks: int = number(0, "the first blocks of the trunk, which never learn", low=0)
    batchnorm: str = number("frozen", "the trunk's BatchNorms when it learns", options=("frozen", "trained"))

    @property
    def file(self) -> Path | None:
        """The file that `weights` names, if it names one: from the project's folder, or absolute."""
        return root() / self.weights if self.weights.endswith(".safetensors") else None


def build_backbone(config: BackboneConfig) -> nn.Module:
    """The backbone that the config names, with its weights; ValueError for an unknown name or unavailable weights.

    "maskrcnn_resnet50_fpn" is the backbone of torchvision's model of that name, trained on COCO; any other name is a
    torchvision classification trunk under a new pyramid, or, where the weights are a file of `python -m lib pretrain`,
    trunk and pyramid from there.
    """
    if config.file:
        return load_backbone(build_backbone(replace(config, weights="none")), config.file)
    weights = None if config.weights == "none" else config.weights
    what, cache = f"backbone {config.name!r} with weights {config.weights!r}", f"{torch.hub.get_dir()}/checkpoints"
    try:
        if config.name == "maskrcnn_resnet50_fpn":
            return maskrcnn_resnet50_fpn(weights=weights, weights_backbone=None).backbone
        return _trunk_with_fpn(get_model(config.name, weights=weights), config.channels)
    except OSError as error:  # a URLError is one
        advice = f"put the file into torch hub's cache ({cache}), connect to the internet, or set backbone.weights=none"
        raise ValueError(f"{what}: its weights are neither on disk nor to be downloaded ({error}): {advice}") from None
    except (EOFError, UnpicklingError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        # a vision transformer asserts, say; of a file that was cut off PyTorch's reader says so
        damaged = isinstance(error, (EOFError, UnpicklingError)) or "PytorchStreamReader" in str(error)
        mend = f": delete the damaged file in {cache}, and it is downloaded again" if damaged else ""
        raise ValueError(f"{what}: {error}{mend}") from None


def load_backbone(backbone: nn.Module, path: Path) -> nn.Module:
    """Copy a file's trunk and pyramid, stored in half precision, into the backbone; ValueError where they don't fit."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: `git checkout` it, `python -m lib pretrain`, or backbone.weights=none")
    try:
        backbone.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} does not fit this backbone: {str(error).splitlines()[-1].strip()}") from None
    return backbone


def _trunk_with_fpn(model: nn.Module, channels: int) -> nn.Module:
    trunk = getattr(model, "features", model)  # of a mobilenet, say; a resnet is its own list of children
    last = _last_block_of_each_stride(trunk)
    levels = {name: str(level) for level, (name, _) in enumerate(last)}
    return BackboneWithFPN(trunk, levels, [width for _, width in last], channels)


@torch.no_grad()
def _last_block_of_each_stride(trunk: nn.Module) -> list[tuple[str, int]]:
    """(name, channels) of the trunk's last child at each of the strides 4, 8, 16, 32, found by a small image."""
    last, x, was_training = {}, torch.zeros(1, 3, 256, 256), trunk.training
    trunk.eval()
    for name, child in trunk.named_children():
        if isinstance(child, (nn.AdaptiveAvgPool2d, nn.Linear)):
            break
        x = child(x)
        last[256 // x.shape[-1]] = (name, x.shape[1])
    trunk.train(was_training)
    if missing := set(TRUNK_STRIDES) - last.keys():
        raise ValueError(f"this trunk has no feature map at stride {min(missing)}")
    return [last[stride] for stride in TRUNK_STRIDES]
