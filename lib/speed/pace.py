"""What a training will cost on this machine: one pass of its backbone is measured, the rest is a rule of thumb.

The shares were measured with the demo profile on two cores of an Intel Xeon server CPU with AMX that did nothing else,
in bf16; those of stages that start from images follow from the operations of a ResNet-50 at 800 x 1088. The joint
stage's lies between what was measured, 0.9, and what follows, 1.5.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lib.anchors import pyramid_grids
from lib.config import Config
from lib.machine.device import autocast, device, precision
from lib.maskrcnn import MaskRCNN
from lib.preprocess import normalised

SECONDS = 3.0  # of measuring, or two passes
# of the time that an image takes forward and back through the backbone: a stage on stored maps, and from images
SHARES = {"rpn": (0.035, 0.4), "boxhead": (0.06, 0.5), "maskhead": (0.12, 0.7), "joint": (1.1, 1.1)}
WARM_UP_STEPS, WARM_UP_SECONDS = 20, 10.0  # the shorter of them


def measured_pass(config: Config) -> tuple[float, float, int]:
    """An image's pass forward and back through the config's backbone, untrained, at its size and in its precision.

    Returns seconds an image, bytes an image that are kept for the way back, and the network's number of parameters.
    """
    where, (height, width) = device(), config.image.padded_size
    images = normalised(torch.rand(max(1, 2**18 // (height * width)), 3, height, width, device=where))
    model = MaskRCNN(config.replace(**{"backbone.weights": "none"})).to(where)
    started, times, kept = time.perf_counter(), list[float](), dict[int, int]()

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    while len(times) < 2 or time.perf_counter() - started < SECONDS:
        begun = time.perf_counter()
        kept.clear()
        with autocast(where, precision(config.training.mixed_precision)):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
                total: Any = sum(m.float().mean() for m in model.features(images))
        total.backward()
        next(p.grad for p in model.parameters() if p.grad is not None).sum().item()  # a GPU is waited for
        times.append(time.perf_counter() - begun)
    return min(times[1:]) / len(images), sum(kept.values()) / len(images), sum(p.numel() for p in model.parameters())


def stage_seconds(stage: str, config: Config, images: int, one_pass: float) -> float:
    """Seconds that a stage's training on so many images takes, about, where a pass of one takes `one_pass`."""
    epochs, stored = getattr(config, stage).epochs, config.training.store_features and stage != "joint"
    return epochs * images * one_pass * SHARES[stage][0 if stored else 1]


def room(config: Config, images: int, kept: float, parameters: int) -> str:
    """Memory and disk that the stages take, about: an image's bytes by `measured_pass`, and 4 bytes a number.

    In memory are weights, gradients and the optimiser's averages, and an image's maps with a third more for the heads;
    on disk the stages' files, two states to go on from, and the stored maps, half of them mirrored.
    """
    memory = 16 * parameters + 4 / 3 * kept * config.joint.batch_size
    cells = sum(map(math.prod, pyramid_grids(config.image.padded_size))) * config.training.store_features
    disk = 32 * parameters + 2 * 2 * images * cells * config.backbone.channels
    return f"{memory / 1e9:.1f} GB of memory beside the program's own, {disk / 1e9:.1f} GB of disk"


def minutes(seconds: float) -> str:
    """A time that is known to a third or so, in words: "about 6 to 12 minutes"."""
    if 1.4 * seconds < 60:
        return "under a minute"
    low, high = (max(1, round(seconds * factor / 60)) for factor in (0.7, 1.4))
    if high > 120:
        return f"about {low / 60:.0f} to {high / 60:.0f} hours"
    return f"about {low} to {high} minutes" if high > low else f"about {low} minute{'s' * (low > 1)}"


def timed(bar: tqdm, name: str, steps: int, images: int) -> Iterator:
    """The bar's batches of so many images; after 20, or 10 seconds, it is told how long `steps` of them will take."""
    begun, tell = time.perf_counter(), not bar.disable
    for done, batch in enumerate(bar):
        seconds = time.perf_counter() - begun
        if done == 1:
            begun = time.perf_counter()  # the first step warms up
        elif tell and done > 1 and (done > WARM_UP_STEPS or seconds > WARM_UP_SECONDS):
            tell, each = False, seconds / (done - 1)
            bar.write(f"{name}: {images / each:.0f} images/s at first, {minutes((steps - done) * each)} to go")
        yield batch
