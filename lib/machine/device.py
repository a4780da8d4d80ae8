"""What a process runs on: device, precision, random generators, memory."""

import ctypes
import random
import sys
from typing import Any

import numpy as np
import torch


def device() -> torch.device:
    """The device accelerate picks for this process: its GPU where there is one, else the CPU.

    ACCELERATE_USE_CPU=1 asks for the CPU, as it does everywhere in accelerate.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device


def precision(wanted: str = "auto") -> str:
    """accelerate's mixed precision: the one wanted; with "auto" bf16 where the hardware multiplies in it.

    Older GPUs take fp16. CPUs with bf16 instructions (AVX-512 BF16, and AMX above it) train a ResNet's convolutions
    twice as fast in it as in float32, a MobileNet's no faster; others stay in float32.
    """
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def autocast(device: torch.device, kind: str) -> torch.autocast:
    """A context in which the device computes in this kind of `precision`."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(kind)
    return torch.autocast(device.type, half, enabled=half is not None)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def keep_memory(wanted: bool = True) -> None:
    """Whether this process keeps the memory that it frees, for its next tensors, or hands large blocks back at once.

    With glibc, the C library of most Linux systems, that spares a CPU the page faults of every large tensor; elsewhere
    nothing happens. Not `wanted` gives glibc's own steady state back.
    """
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4  # glibc's names of its settings
    kept = {mmap_max: 0, trim_threshold: -1, top_pad: 2**28}
    given_back = {mmap_max: 65536, mmap_threshold: 2**25, trim_threshold: 2**26, top_pad: 2**17}
    for setting, value in (kept if wanted else given_back).items() if mallopt else ():
        mallopt(setting, value)
