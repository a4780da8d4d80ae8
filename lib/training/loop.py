"""What trains: a stage by itself, or all up to one. A finished stage is kept, a stopped one gone on with.

What is there and differs from what is asked for, in a number, the data set or an earlier stage, is never overwritten
unasked: a command says what differs and how to go on, a notebook trains in a folder of its own.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from accelerate import PartialState

from lib.config import STAGES, Config
from lib.data.reader import CourseDataset
from lib.machine.device import device, keep_memory
from lib.machine.files import check_writable, make_folder, one_at_a_time, read_json, remove_leftovers, written_whole
from lib.maskrcnn import MaskRCNN
from lib.speed.stored import features_folder, remove
from lib.training import checkpoint
from lib.training.checkpoint import differences, previous_stage, stage_path, standing
from lib.training.history import read_history
from lib.training.run import Run

_NEEDS_MASKS = ("maskhead", "joint")


def train_stage(
    name: str,
    config: Config,
    data: str | Path,
    weights: str | Path,
    val_data: str | Path | None = None,
    restart: bool = False,
    go_on: bool = False,
) -> list[dict]:
    """Train one stage on the train split of `data`, on top of the stages in `weights` -> its history, a row an epoch.

    `val_data` is another data set whose val split is used, where train and val images come as two sets. The classes are
    those of `data`. `restart` trains again a stage that is finished (its file is kept aside) or half done; `go_on` goes
    on with one half done under other numbers. Raises FileNotFoundError where an earlier stage is missing, and
    ValueError where what is there differs from what is asked for, or is damaged.
    """
    keep_memory()
    device()  # several processes find each other
    weights, processes = Path(weights), PartialState()
    train, val = _datasets(name, config, data, val_data)
    config = config.replace(classes=train.classes).of_stage(name)
    alone, first = processes.num_processes == 1, processes.is_main_process
    with one_at_a_time(weights, "trains", wait=alone) if first else nullcontext(), _said(name, config, processes):
        processes.wait_for_everyone()
        differs = None if restart else standing(weights, name, config, checkpoint.data_fingerprint(train, val))
        if differs:
            what = f"{name}: {stage_path(weights, name)} differs from what is asked in {', '.join(differs)}"
            raise ValueError(f"{what}: train it anew with --restart (the old file is kept), or in another --weights")
        if differs is None:
            _train(name, config, train, val, weights, restart, go_on)
        else:
            processes.print(f"{name}: already trained, {stage_path(weights, name)} is kept")
        if first:
            shutil.rmtree(weights / f"{name}.resume", ignore_errors=True)
            _free_features(name, features_folder(train.folder))
        processes.wait_for_everyone()
        return read_history(weights, name)


def train_until(name: str, config: Config, data: str | Path, weights: str | Path) -> Path:
    """Train the stages up to and including `name` that `weights` does not hold yet: what a notebook calls.

    Returns the folder that holds them: `weights`, or where a stage there was trained otherwise than is asked for, one
    beside it, of its own for what differs.
    """
    weights, (train, val) = Path(weights), _datasets(name, config, data, None)
    config, data_id = config.replace(classes=train.classes), checkpoint.data_fingerprint(train, val)
    for stage in STAGES[: STAGES.index(name) + 1]:
        differs, half_done = standing(weights, stage, config, data_id), weights / f"{stage}.resume" / "stage.json"
        if differs is None and half_done.is_file():
            with suppress(ValueError):  # damaged: that is seen to when it trains
                differs = differences(read_json(half_done), weights, stage, config, data_id) or None
        if differs:
            own = weights.with_name(f"{weights.name}-{hashlib.sha256(repr(differs).encode()).hexdigest()[:8]}")
            what = f"{stage} in {weights} differs from what is asked in {', '.join(differs)}"
            print(f"{what}: it stays, and this one is trained in {own}")
            _copy_stages(weights, own, STAGES[: STAGES.index(stage)])
            return train_until(name, config, data, own)
        if stage != name and differs is None:
            print(f"{stage} is not trained yet: training it first")
        train_stage(stage, config, data, weights)
    return weights


def starting_model(name: str, config: Config, weights: Path) -> MaskRCNN:
    """The model that a stage starts from: earlier stages' parts as trained, the rest fresh, all under this config."""
    if before := previous_stage(name):
        parts = checkpoint.read_parts(weights, before)  # before anything is built or downloaded
        checkpoint.check_classes(weights, checkpoint.stored_config(stage_path(weights, before)), config.classes)
        return checkpoint.load_parts(MaskRCNN(config), weights, before, parts)
    return MaskRCNN(config)


def _train(
    name: str, config: Config, train: CourseDataset, val: CourseDataset, weights: Path, restart: bool, go_on: bool
) -> None:
    """Train a stage and write its file; this process and its like are alone in the folder."""
    if PartialState().is_main_process:
        check_writable(weights)
        for folder in (weights, weights / f"{name}.resume"):
            remove_leftovers(folder)
        if not len(val):
            print(f"{name}: {val} has no images in its val split: it trains without figures of them")
    run = Run(name, config, train, val, weights, lambda: starting_model(name, config, weights))
    if restart and PartialState().is_main_process:
        checkpoint.keep_aside(weights, name)
    run.train(restart, go_on)
    run.finish()


def _datasets(
    name: str, config: Config, data: str | Path, val_data: str | Path | None
) -> tuple[CourseDataset, CourseDataset]:
    train = CourseDataset(data, "train", config.data, with_masks=name in _NEEDS_MASKS)
    return train, CourseDataset(val_data or data, "val", config.data, may_be_empty=True)


def _copy_stages(weights: Path, own: Path, stages: tuple[str, ...]) -> None:
    """Copies of finished stages, for those that another folder trains on top of them."""
    make_folder(own)
    for stage in stages:
        if not stage_path(own, stage).exists():
            with written_whole(stage_path(own, stage)) as part:
                shutil.copy(stage_path(weights, stage), part)


def _free_features(name: str, folder: Path) -> None:
    """Delete stored maps that no later stage reads, unless another training computes some there now."""
    if name in _NEEDS_MASKS and folder.exists():
        with suppress(ValueError), one_at_a_time(folder.parent, "computes the frozen backbone's maps", wait=False):
            print(f"features: removed {remove(folder) / 1e9:.2f} GB that no later stage reads")


@contextmanager
def _said(name: str, config: Config, processes: PartialState) -> Iterator[None]:
    """Too little memory, and the end of another process, as errors in a sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        size = f"{name}.batch_size={getattr(config, name).batch_size} at {config.image.height} x {config.image.width}"
        advice = f"lower {name}.batch_size and go on with --go-on, or lower image.height and image.width"
        raise ValueError(f"{name}: out of memory with {size} ({str(error).partition(chr(10))[0]}): {advice}") from None
    except RuntimeError as error:
        if processes.num_processes == 1 or not any(word in str(error) for word in ("gloo", "NCCL", "Connection")):
            raise
        raise OSError(f"{name}: another process of this training has ended; the same command goes on") from None
