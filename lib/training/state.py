"""What a stopped stage goes on from: `<stage>.resume/`, of use until the stage's file is written.

Two safetensors files take turns, so that the last whole state stays until the next one is whole. Each has the learning
parameters, the optimiser's averages, and as JSON the place (epochs and steps done, sums of losses) and the training it
is of; `stage.json` repeats the JSON. Nothing here is a pickle. A state that is damaged is set aside.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.machine.files import write_json
from lib.machine.tensors import load_tensors, not_finite, save_tensors

_AVERAGES = "optimizer."  # how the names of the optimiser's tensors begin


def save_state(folder: Path, model: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, record: dict) -> None:
    """Write a state; `record["saves"]` counts those of this training. ValueError where a parameter is not finite."""
    tensors = dict(model)
    for number, averages in optimizer.state_dict()["state"].items():
        tensors |= {f"{_AVERAGES}{number}.{name}": value for name, value in averages.items()}
    if bad := not_finite(tensors):
        raise ValueError(f"{bad} is NaN or infinite after this step: lower the learning rate; the last state is kept")
    for saves in (record["saves"], *[0] * (record["saves"] == 1)):  # the first state of a training replaces all there
        _slot(folder, saves).unlink(missing_ok=True)  # else the other one is younger
    save_tensors(tensors, _slot(folder, record["saves"]), {"record": json.dumps(record)})
    write_json(record, folder / "stage.json")


def newest_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and record of the last whole state of a folder, if there is one; a damaged one is said and set aside."""
    states = []
    for path in filter(Path.is_file, (_slot(folder, 0), _slot(folder, 1))):
        try:
            tensors, metadata = load_tensors(path)
            states.append((tensors, json.loads(metadata["record"])))
        except ValueError as error:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            print(f"{error}; it is set aside as {aside.name}, and training goes on from the state before it, if any")
    return max(states, key=lambda state: state[1]["saves"], default=None)


def restore(tensors: Mapping[str, Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Copy a state into the model and the optimiser; RuntimeError where it does not fit."""
    model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(_AVERAGES)}, strict=False)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(_AVERAGES):
            number, name = key.removeprefix(_AVERAGES).split(".")
            like = parameters[int(number)]  # an average lies in memory as its parameter does
            value = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _slot(folder: Path, saves: int) -> Path:
    return folder / f"state_{saves % 2}.safetensors"
