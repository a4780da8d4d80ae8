"""What each of several processes does of a step, so that together they take the steps of one.

Of a step's images process p takes every P-th from its own number on, and it draws its share of the step's samples;
accelerate averages the gradients. With one process all of this changes nothing.
"""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator

from lib.config import Config

_SAMPLES = ("rpn.batch_samples", "boxhead.batch_samples")  # of a step, for all processes together


def own_batches(images: Sequence[int], size: int, accelerator: Accelerator) -> list[list[int]]:
    """This process's share of each step's `size` images; the last step may have fewer."""
    steps = (images[start : start + size] for start in range(0, len(images), size))
    return [list(step)[accelerator.process_index :: accelerator.num_processes] for step in steps]


def own_samples(config: Config, accelerator: Accelerator) -> Config:
    """The config with this process's share of a step's samples."""
    processes, index = accelerator.num_processes, accelerator.process_index
    return config.replaced({path: (config.value(path) + processes - 1 - index) // processes for path in _SAMPLES})


def mean(values: Mapping[str, float], accelerator: Accelerator) -> dict[str, float]:
    """The mean of each number over the processes."""
    if accelerator.num_processes == 1 or not values:
        return dict(values)
    numbers = torch.tensor([*values.values()], device=accelerator.device)
    return dict(zip(values, accelerator.reduce(numbers, "mean").tolist(), strict=True))
