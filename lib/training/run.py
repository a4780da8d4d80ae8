"""One loop for every stage.

While it trains, `<stage>.resume/` holds what a stopped training goes on from and `<stage>_history.csv` a row an epoch:
mean losses on the train and val split, learning rate and seconds. Then it writes `<stage>.safetensors`. All that a step
draws at random follows from seed, epoch and step, so that stopped and gone on with it gives the same weights. Devices,
precision and processes (under `torchrun`, see `processes`) are accelerate's.
"""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from tqdm import tqdm

from lib.boxes import Named
from lib.config import Config
from lib.data.batches import flip_horizontally, loader, prepare
from lib.machine.device import precision, seed_everything
from lib.machine.signals import signals_noted
from lib.maskrcnn import MaskRCNN
from lib.preprocess import FRAME, content_size
from lib.scores.evaluate import evaluate_model
from lib.speed.pace import timed
from lib.speed.stored import is_mirrored, stored_features, stored_maps
from lib.training import checkpoint
from lib.training.history import write_history
from lib.training.processes import mean, own_batches, own_samples
from lib.training.schedule import warmup_cosine
from lib.training.stages import STAGE_CLASSES, Learner
from lib.training.state import newest_state, restore, save_state

WEIGHT_DECAY = 1e-4  # AdamW
CLIP_NORM = 10.0  # of the gradient
SAVE_SECONDS = 60.0  # between two states, or longer:
SAVE_SHARE = 0.05  # of the time is spent on writing them, at most


class Run:
    """The state of one stage's training: loaders, model, optimiser and place, on accelerate's device and processes.

    `train` and `val` are Examples, and CourseDatasets where features are stored; `start` makes the model to start from.
    """

    def __init__(self, name: str, config: Config, train: Any, val: Any, weights: Path, start: Any):
        self.name, self.config, self.weights, self.val_data = name, config, weights, val
        self.folder, self.data = weights / f"{name}.resume", checkpoint.data_fingerprint(train, val)
        self.base = checkpoint.built_on(weights, name, config)
        schedule = getattr(config, name)
        self.epochs, self.batch_size, self.lr = schedule.epochs, schedule.batch_size, schedule.lr
        self.accelerator = Accelerator(mixed_precision=precision(config.training.mixed_precision))
        device, processes = self.accelerator.device, self.accelerator.num_processes
        if self.batch_size % processes:
            raise ValueError(f"{name}.batch_size={self.batch_size} does not divide among {processes} processes")
        if len(train) < self.batch_size:
            few = f"{train} has {len(train)} training images, fewer than one step's {self.batch_size}"
            raise ValueError(f"{few}: add images or lower {name}.batch_size")
        seed_everything(config.training.seed)
        model = start()
        model.config = own_samples(config, self.accelerator)
        learner = Learner(STAGE_CLASSES[name](model))
        self.stored = config.training.store_features and learner.frozen_backbone
        if self.stored:
            data = {"train": train, "val": val}
            train, val = stored_features(model.backbone, data, config, train.folder, self.accelerator).values()
            learner = Learner(learner.stage, stored_maps)
        self.train_data, self.batches = train, [[0]] * (len(train) // self.batch_size)
        self.train_loader = loader(train, self.batches, device)
        val_batches = own_batches(range(len(val)), self.batch_size, self.accelerator)
        self.val_loader = loader(val, [batch for batch in val_batches if batch], device)
        self.steps = len(self.batches)  # of an epoch
        learning = [p for p in learner.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, self.lr, weight_decay=WEIGHT_DECAY, fused=True)
        self.learner, self.wrapped = self.accelerator.prepare(learner, self.optimizer)
        self.history, self.due, self.tells = list[dict](), time.monotonic() + SAVE_SECONDS, True
        self.place: dict[str, Any] = {"step": 0, "sums": {}, "seconds": 0.0, "saves": 0}
        images = f"{self.epochs} epochs of {len(train)} images in batches of {self.batch_size}"
        size = f"{self.epochs * self.steps} steps, {sum(p.numel() for p in learning):,} parameters learn"
        self.accelerator.print(f"{name}: {images} on {processes} x {device.type}: {size}")

    def train(self, restart: bool = False, go_on: bool = False) -> list[dict]:
        """All epochs to come, with `restart` all -> the whole history; `go_on`: even where numbers have changed."""
        if restart or not self.resume(go_on):
            self.save()  # before the first step: whether there is room, too
        while len(self.history) < self.epochs:
            self.history.append(self.epoch(len(self.history)))
            self._write_history()
            self.place |= {"step": 0, "sums": {}, "seconds": 0.0}
        self.model.config = self.config
        return self.history

    @property
    def model(self) -> MaskRCNN:
        return self.accelerator.unwrap_model(self.learner).model

    def epoch(self, epoch: int) -> dict:
        """One pass over the train split, from the place on, and one over the val split -> a row of the history."""
        started = time.perf_counter() - self.place["seconds"]
        with signals_noted() as signals:
            self._train(epoch, started, signals)
        train = {name: total / self.steps for name, total in self.place["sums"].items()}
        val = self._validate(list(train)) if len(self.val_data) else {}
        row = {"epoch": epoch + 1, "lr": self._rate(epoch), "seconds": time.perf_counter() - started}
        row |= {f"train_{k}": v for k, v in train.items()} | {f"val_{k}": v for k, v in val.items()}
        totals = [f"{split} {sum(v.values()):.4f}" for split, v in (("train", train), ("val", val)) if v]
        self.accelerator.print(f"{self.name} {epoch + 1:2d}/{self.epochs}  {'  '.join(totals)}  {row['seconds']:.0f} s")
        return row

    def _train(self, epoch: int, started: float, signals: list[int]) -> None:
        """The steps of an epoch that are still to come; the state is saved at times, at the end, and at a signal."""
        if hasattr(self.train_data, "set_epoch"):
            self.train_data.set_epoch(epoch)
        order = np.random.default_rng([self.config.training.seed, epoch]).permutation(len(self.train_data)).tolist()
        self.batches[:] = own_batches(order, self.batch_size, self.accelerator)[self.place["step"] : self.steps]
        self.learner.train()
        bar = self._bar(self.train_loader, f"{self.name} {epoch + 1}/{self.epochs}")
        left, first, self.tells = (self.epochs - epoch) * self.steps - self.place["step"], self.tells, False
        for batch in timed(bar, self.name, left, self.batch_size) if first else bar:
            losses, sums, step = self._step(epoch, *batch), self.place["sums"], self.place["step"] + 1
            sums = {name: sums.get(name, 0.0) + loss for name, loss in losses.items()}
            self.place |= {"step": step, "sums": sums, "seconds": time.perf_counter() - started}
            bar.set_postfix({name: f"{total / step:.3f}" for name, total in sums.items()}, refresh=False)
            stop, due = self._asked(bool(signals))
            if stop or due or step == self.steps:
                self.save()
            if stop:
                where = f"{self.name} stopped after step {step} of epoch {epoch + 1}"
                raise KeyboardInterrupt(f"{where}: the same command goes on from there")

    def _step(self, epoch: int, *batch: Any) -> dict[str, float]:
        """Learn from a batch -> its losses; ValueError where one is not finite, before anything is learnt from it."""
        key = [self.config.training.seed, epoch, self.place["step"], self.accelerator.process_index]
        seed_everything(int(np.random.SeedSequence(key).generate_state(1)[0]))
        losses, values = self._losses(self.learner, epoch, *batch)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(epoch)
        self.accelerator.backward(sum(losses.values()))
        self.accelerator.clip_grad_norm_(self.learner.parameters(), CLIP_NORM)
        self.wrapped.step()
        self.wrapped.zero_grad()
        return values

    @torch.no_grad()
    def _validate(self, names: list[str]) -> dict[str, float]:
        """The mean of each loss over the val split's images."""
        self.learner.eval()
        seed_everything(self.config.training.seed)
        learner = self.accelerator.unwrap_model(self.learner)  # processes may have batches more or less
        sums = dict.fromkeys([*names, "images"], 0.0)
        for batch, targets in self._bar(self.val_loader, f"{self.name} val"):
            for name, value in self._losses(learner, len(self.history), batch, targets)[1].items():
                sums[name] += value * len(targets)
            sums["images"] += len(targets)
        sums = mean(sums, self.accelerator)
        return {name: sums[name] / sums["images"] for name in names}

    def _losses(self, learner: Any, epoch: int, batch: Any, targets: list[dict]) -> tuple[Named, dict[str, float]]:
        """The losses of a batch as tensors and as numbers; ValueError where one is not finite."""
        batch, targets = send_to_device((batch, targets), self.accelerator.device, non_blocking=True)
        images = [target["image_id"] for target in targets]
        if self.stored:
            inputs = batch, targets, content_size(*FRAME, self.config.image)
        else:
            flips = [learner.training and is_mirrored(self.config.training, epoch, image) for image in images]
            batch, targets = flip_horizontally(batch, targets, torch.tensor(flips, device=batch.device))
            inputs = prepare(batch, targets, self.config.image)
        losses = learner(*inputs)
        values = dict(zip(losses, torch.stack([*losses.values()]).tolist(), strict=True))
        if not all(map(math.isfinite, values.values())):
            where = f"{self.name}: a loss is not finite in step {self.place['step'] + 1} of epoch {epoch + 1}"
            numbers = f"{values}, images {images}, learning rate {self._rate(epoch):.2g}"
            advice = f"lower {self.name}.lr and go on with --go-on, or look at these images"
            raise ValueError(f"{where} ({numbers}): {advice}; the state before it is kept in {self.folder}")
        return losses, values

    def _rate(self, epoch: int) -> float:
        """The learning rate at this place of an epoch."""
        return self.lr * warmup_cosine(epoch * self.steps + self.place["step"], self.epochs * self.steps)

    def _bar(self, batches: Any, title: str) -> Any:
        hidden = not self.accelerator.is_main_process
        return tqdm(batches, title, leave=False, disable=hidden, unit_scale=self.batch_size, unit="img")

    def _asked(self, signalled: bool) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether it is time for a state."""
        due = time.monotonic() > self.due and self.accelerator.is_main_process
        asked = mean({"stop": float(signalled), "due": float(due)}, self.accelerator)
        return asked["stop"] > 0, asked["due"] > 0

    def save(self) -> None:
        """Write all that is needed to go on from this place."""
        started, processes, scaler = time.monotonic(), self.accelerator.num_processes, self.accelerator.scaler
        self.place |= {"saves": self.place["saves"] + 1, "sums": mean(self.place["sums"], self.accelerator)}
        if self.accelerator.is_main_process:
            learnt = checkpoint.learnt_by(self.name, self.config)
            parameters = {k: v for k, v in self.model.state_dict().items() if k.startswith(learnt)}
            record = {**self.place, "history": self.history, "processes": processes, "config": self.config.to_json()}
            record |= {"data": self.data, "built_on": self.base, "scaler": scaler.state_dict() if scaler else None}
            save_state(self.folder, parameters, self.optimizer, record)
        self.due = time.monotonic() + max(SAVE_SECONDS, (time.monotonic() - started) / SAVE_SHARE)

    def resume(self, go_on: bool = False) -> bool:
        """Take up a stopped training of this stage, if there is one; ValueError where it is another, unless `go_on`."""
        with self.accelerator.main_process_first():
            found = newest_state(self.folder)
        if found is None:
            return False
        tensors, record = found
        differs = checkpoint.differences(record, self.weights, self.name, self.config, self.data)
        if differs and not go_on:
            what = f"{self.name}: what stopped in {self.folder} differs from what is asked in {', '.join(differs)}"
            ways = "going on with what is asked takes --go-on, beginning anew --restart, keeping both another --weights"
            raise ValueError(f"{what}: {ways}")
        try:
            restore(tensors, self.model, self.optimizer)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{self.folder} does not fit this model ({reason}): use --restart") from None
        if record["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(record["scaler"])
        self.history, size = record["history"], getattr(Config.from_json(record["config"]), self.name).batch_size
        self.place = {key: record[key] for key in self.place}
        step, epoch = min(self.steps, record["step"] * size // self.batch_size), len(self.history)
        if step != record["step"]:  # as many images as were seen
            sums = {name: total / record["step"] * step for name, total in record["sums"].items()}
            self.place |= {"step": step, "sums": sums}
        self._write_history()
        where = f"step {step} of {self.steps} of epoch" if step % self.steps else "epoch"
        self.accelerator.print(f"{self.name}: going on after {where} {epoch + math.ceil(step / self.steps)}")
        if record["processes"] != (now := self.accelerator.num_processes):
            same = "steps, images and learning rate stay, what is drawn in a step is another"
            self.accelerator.print(f"{self.name}: {record['processes']} process(es) began this, {now} go on: {same}")
        return True

    def finish(self) -> None:
        """Score the model on the val split and write the stage's file."""
        scores = evaluate_model(self.model, self.val_data, self.name) if len(self.val_data) else {}
        if self.accelerator.is_main_process:
            path = checkpoint.save_stage(self.model, self.weights, self.name, scores, self.data, self.history)
            print(f"{self.name}: wrote {path}")
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()

    def _write_history(self) -> None:
        if self.accelerator.is_main_process:
            write_history(self.weights, self.name, self.history)
