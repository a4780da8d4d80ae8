"""One loop for every stage.

A stage writes `<stage>.safetensors` and, for each epoch, one row of `<stage>_history.csv`: the mean losses on the
train and val split, learning rate and seconds. A finished stage is kept; a stopped one goes on from its last epoch.
Devices, precision and processes are accelerate's: `torchrun --nproc_per_node 4 -m lib train rpn` runs the same loop
on four GPUs.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from tqdm import tqdm

from lib.boxes import Named
from lib.config import STAGES, Config, Schedule
from lib.data.batches import loader, prepare
from lib.data.reader import CourseDataset
from lib.machine.device import keep_memory, precision, seed_everything
from lib.maskrcnn import MaskRCNN
from lib.preprocess import FRAME, content_size
from lib.scores.evaluate import evaluate_model
from lib.speed.stored import features_folder, remove, stored_features, stored_maps
from lib.training import checkpoint
from lib.training.checkpoint import is_current, previous_stage, stage_path
from lib.training.history import read_history, write_history
from lib.training.stages import STAGE_CLASSES, Learner

WEIGHT_DECAY = 1e-4  # AdamW
WARMUP = 0.05  # of a stage's steps: the learning rate rises from 0; then half a cosine back
CLIP_NORM = 10.0  # of the gradient
_NEEDS_MASKS = ("maskhead", "joint")


def train_stage(
    name: str, config: Config, data: str | Path, weights: str | Path, val_data: str | Path | None = None, restart=False
) -> list[dict]:
    """Train one stage on the train split of `data`, on top of the stages in `weights` -> its history, a row an epoch.

    `val_data` is another data set whose val split is used, where train and val images come as two sets. `restart`
    trains again a stage that is finished or half done. Raises FileNotFoundError where an earlier stage is missing.
    """
    keep_memory()
    weights, config = Path(weights), config.of_stage(name)
    if not restart and is_current(weights, name, config):
        print(f"{name}: already trained, {stage_path(weights, name)} is kept")
        return read_history(weights, name)
    train = CourseDataset(data, "train", config.data, with_masks=name in _NEEDS_MASKS)
    val = CourseDataset(val_data or data, "val", config.data, may_be_empty=True)
    run = Run(name, config, train, val, weights, lambda: starting_model(name, config, weights))
    history = run.train(restart)
    run.finish()
    return history


class Run:
    """The state of one stage's training: loaders, model, optimiser and schedule, all in accelerate's hands.

    `train` and `val` are Examples, and CourseDatasets where features are stored; `start` makes the model to start from.
    """

    def __init__(self, name: str, config: Config, train: Any, val: Any, weights: Path, start: Callable[[], MaskRCNN]):
        self.name, self.config, self.weights, self.train_data, self.val_data = name, config, weights, train, val
        self.folder, self.base = weights / f"{name}.resume", checkpoint.built_on(weights, name, config)
        schedule: Schedule = getattr(config, name)
        self.epochs, self.batch_size, self.seed = schedule.epochs, schedule.batch_size, config.training.seed
        loading = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=self.seed, non_blocking=True)
        half = precision(config.training.mixed_precision)
        self.accelerator = Accelerator(mixed_precision=half, dataloader_config=loading)
        device, processes = self.accelerator.device, self.accelerator.num_processes
        if len(train) < self.batch_size * processes:
            few = f"{train} has {len(train)} training images, fewer than one step's {self.batch_size * processes}"
            raise ValueError(f"{few}: add images or lower {name}.batch_size")
        seed_everything(self.seed)
        stage = STAGE_CLASSES[name](start())
        learner = Learner(stage)
        self.stored = config.training.store_features and learner.frozen_backbone
        if self.stored:
            data = {"train": train, "val": val}
            train, val = stored_features(stage.model.backbone, data, config, train.folder, self.accelerator).values()
            learner = Learner(stage, stored_maps)
        learning = [p for p in learner.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, schedule.lr, weight_decay=WEIGHT_DECAY, fused=True)
        loaders = loader(train, self.batch_size, device, shuffle=True), loader(val, self.batch_size, device)
        prepared = self.accelerator.prepare(learner, optimizer, *loaders)
        self.learner, self.optimizer, self.train_loader, self.val_loader = prepared
        steps = self.epochs * len(self.train_loader)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps))
        self.accelerator.register_for_checkpointing(self.schedule)
        images = f"{self.epochs} epochs of {len(train)} images in batches of {self.batch_size}"
        size = f"{steps} steps, {sum(p.numel() for p in learning) / 1e6:.1f} M parameters learn"
        self.accelerator.print(f"{name}: {images} on {processes} x {device.type}: {size}")

    def train(self, restart: bool = False) -> list[dict]:
        """All epochs that are still to come, or with `restart` all -> the whole history."""
        history = [] if restart else self.resume()
        while len(history) < self.epochs:
            history.append(self.epoch(len(history)))
            self.checkpoint(history)
        return history

    @property
    def model(self) -> MaskRCNN:
        return self.accelerator.unwrap_model(self.learner).model

    def epoch(self, epoch: int) -> dict:
        """One pass over the train and val split -> a row of the history."""
        started = time.perf_counter()
        seed = self.seed + 1000 * (epoch + 1)  # a resumed epoch draws the same
        seed_everything(seed + self.accelerator.process_index)
        self.train_loader.set_epoch(epoch)
        if hasattr(self.train_data, "set_epoch"):  # with several processes, accelerate does not pass it on
            self.train_data.set_epoch(epoch)
        self.learner.train()
        train = self._pass(self.train_loader, f"{self.name} {epoch + 1}/{self.epochs}", self._step)
        self.learner.eval()
        seed_everything(self.seed)
        with torch.no_grad():
            val = self._pass(self.val_loader, f"{self.name} val", self.learner)
        row = {"epoch": epoch + 1, "lr": self.schedule.get_last_lr()[0], "seconds": time.perf_counter() - started}
        row |= {f"train_{k}": v for k, v in train.items()} | {f"val_{k}": v for k, v in val.items()}
        totals = [f"{split} {sum(v.values()):.4f}" for split, v in (("train", train), ("val", val)) if v]
        self.accelerator.print(f"{self.name} {epoch + 1:2d}/{self.epochs}  {'  '.join(totals)}  {row['seconds']:.0f} s")
        return row

    def _inputs(self, batch: Any, targets: list[dict]) -> tuple:
        """Images, mirrored while training, or stored maps -> the network's input, targets in its frame, the content."""
        if self.stored:
            return batch, targets, content_size(*FRAME, self.config.image)
        flip = self.config.training.flip_probability if self.learner.training else 0.0
        return prepare(batch, targets, self.config.image, flip)

    def _step(self, *batch) -> Named:
        losses = self.learner(*batch)
        self.accelerator.backward(sum(losses.values()))
        self.accelerator.clip_grad_norm_(self.learner.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return losses

    def _pass(self, batches: Iterable, title: str, step: Callable[..., Named]) -> dict[str, float]:
        """The mean of each loss over the batches of all processes, behind a progress bar."""
        sums: Named = {}
        hidden, size = not self.accelerator.is_main_process, self.batch_size
        bar = tqdm(batches, title, leave=False, disable=hidden, unit_scale=size, unit="img")
        for count, batch in enumerate(bar, start=1):
            for name, loss in step(*self._inputs(*batch)).items():
                sums[name] = sums.get(name, 0) + loss.detach()
            if count % 10 == 1:  # reading a loss waits for the device
                bar.set_postfix({name: f"{float(total) / count:.3f}" for name, total in sums.items()})
        return {name: float(self.accelerator.reduce(total / count, "mean")) for name, total in sums.items()}

    def checkpoint(self, history: list[dict]) -> None:
        """After an epoch: the history, and all that is needed to go on from here."""
        if self.accelerator.is_main_process:
            write_history(self.weights, self.name, history)
        partial = self.folder.with_suffix(".partial")
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()  # every process has written its part
        if self.accelerator.is_main_process:
            record = {"config": self.config.to_json(), "built_on": self.base, "history": history}
            (partial / "stage.json").write_text(json.dumps(record))
            shutil.rmtree(self.folder, ignore_errors=True)
            partial.rename(self.folder)
        self.accelerator.wait_for_everyone()

    def resume(self) -> list[dict]:
        """The history of a stopped training's epochs, their state loaded; empty if this one cannot go on from it.

        That takes the same config and the same earlier stages.
        """
        file, say = self.folder / "stage.json", self.accelerator.print
        if not file.is_file():
            return []
        record = json.loads(file.read_text())
        same = checkpoint.same_training(record["config"], self.config, self.name)
        if not same or record["built_on"] != self.base:
            say(f"{self.name}: the training in {self.folder} had another config or earlier stages; starting afresh")
            return []
        self.accelerator.load_state(str(self.folder))
        say(f"{self.name}: going on after epoch {len(record['history'])}")
        return record["history"]

    def finish(self) -> None:
        """Score the model on the val split and write the stage's file."""
        if self.accelerator.is_main_process:
            scores = evaluate_model(self.model, self.val_data, self.name) if len(self.val_data) else {}
            path = checkpoint.save_stage(self.model, self.weights, self.name, scores)
            shutil.rmtree(self.folder, ignore_errors=True)
            print(f"{self.name}: wrote {path}")
            if self.name in _NEEDS_MASKS and (freed := remove(features_folder(self.train_data.folder))):
                print(f"features: removed {freed / 1e9:.2f} GB that no later stage reads")
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()


def starting_model(name: str, config: Config, weights: Path) -> MaskRCNN:
    """The model that a stage starts from: earlier stages' parts as trained, the rest fresh, all under this config."""
    if before := previous_stage(name):
        checkpoint.check_chain(weights, before)  # before anything is built or downloaded
        return checkpoint.load_parts(MaskRCNN(config), weights, before)
    return MaskRCNN(config)


def warmup_cosine(step: int, steps: int) -> float:
    """The learning rate's factor: linear warm-up, then half a cosine down to 0."""
    warmup = max(1, round(steps * WARMUP))
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def train_until(name: str, config: Config, data: str | Path, weights: str | Path) -> None:
    """Train the stages up to and including `name` that `weights` does not hold yet: what a notebook calls."""
    for stage in STAGES[: STAGES.index(name) + 1]:
        if stage != name and not is_current(weights, stage, config):
            print(f"{stage} is not trained yet: training it first")
        train_stage(stage, config, data, weights)
