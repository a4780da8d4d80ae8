"""Tensors on disk: safetensors files, which run no code, with a checksum that every change to them breaks."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lib.machine.files import written_whole


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata, with their `checksum` beside the latter; the file appears whole or not at all."""
    tensors = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    with written_whole(path) as part:
        try:
            save_file(tensors, part, {**metadata, "checksum": checksum(tensors, metadata)})
        except SafetensorError as error:  # it wraps the system's errors in its own
            code = re.search(r"os error (\d+)", str(error))
            raise (OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(f"{path}: {error}")) from None


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file; ValueError where it is damaged, has no checksum or holds NaN or infinity."""
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    if metadata.pop("checksum", "") != checksum(tensors, metadata):
        raise ValueError(f"{path} is damaged: its checksum is missing or does not fit")
    if bad := not_finite(tensors):
        raise ValueError(f"{path} is of no use: {bad} holds NaN or infinity")
    return tensors, metadata


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, and over the metadata."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, if any."""
    return next((name for name, value in tensors.items() if not torch.isfinite(value).all()), None)
