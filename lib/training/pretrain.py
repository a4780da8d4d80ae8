"""The demo's backbone: a whole Mask R-CNN learns from random weights, then trunk and pyramid alone are kept.

    python -m lib pretrain --images 30000

It learns on scenes made up on the fly.
The sheet's backbone is a detector's too (§3): torchvision's was trained on COCO, this one on scenes of seeds that no
data set may use. Every scene is new: none is seen twice. A stopped run goes on from its last epoch, an "epoch" being
a fifteenth of the run; `--continues FILE` starts from an earlier run's backbone, on scenes of another seed.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lib.backbone import load_backbone
from lib.config import PRETRAINING_SEEDS, Config
from lib.data.batches import Examples, collate
from lib.data.scenes import scene
from lib.machine.device import keep_memory
from lib.machine.files import one_at_a_time
from lib.machine.tensors import save_tensors
from lib.maskrcnn import MaskRCNN
from lib.preprocess import preprocess_images
from lib.training.checkpoint import read_metadata
from lib.training.run import Run

HELD_OUT = 200  # scenes of the last of the pretraining seeds, never trained on
SETTLING = 800  # scenes of the last but one, for the BatchNorms' final statistics
RECIPE = (  # beside the demo profile
    "joint.changes=()",
    "backbone.weights=none",
    "backbone.batchnorm=trained",
    "joint.lr=1e-3",
    "joint.epochs=15",
    "boxhead.adds_truth=True",  # an untrained RPN proposes few objects
    "boxhead.train.post_nms=12",  # near copies too, so that a mask is learnt in several frames
    "boxhead.train.nms_iou=0.9",
    "rpn.smooth_l1_beta=0.1",  # with 1, and an equal weight in the RPN, 30,000 scenes more made the boxes worse
    "boxhead.smooth_l1_beta=0.1",
    "rpn.box_weight=2",
    "boxhead.loss_weight=2",
    "boxhead.test.score_threshold=0.05",
    "maskhead.loss_weight=2",  # of a frozen backbone's stages, that of the masks is the furthest from what it could be
)


class SceneStream(Examples):
    """`count` new scenes an epoch: item i of epoch e is scene e * count + i of the seed."""

    workers = 2  # processes that make scenes while the network learns

    def __init__(self, seed: int, count: int):
        self.seed, self.indices, self.epoch = seed, range(count), 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __str__(self) -> str:
        return f"an epoch's share of the scenes of seed {self.seed}"

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        number = self.epoch * len(self) + i
        image, labels, boxes, masks = scene(np.random.default_rng([self.seed, number]))
        target = {"boxes": boxes, "labels": labels.astype(np.int64), "masks": masks}
        return torch.from_numpy(image), {"image_id": i, **{k: torch.from_numpy(v) for k, v in target.items()}}


def pretrain(
    config: Config, images: int, run: int, folder: Path, continues: Path | None = None, restart: bool = False
) -> MaskRCNN:
    """Train a whole model on `images` scenes of the `run`-th pretraining seed; its checkpoints lie in `folder`."""
    keep_memory()

    def start() -> MaskRCNN:
        model = MaskRCNN(config)
        if continues:
            load_backbone(model.backbone, continues)
        return model

    train = SceneStream(PRETRAINING_SEEDS[run], images // config.joint.epochs)
    training = Run("joint", config, train, SceneStream(PRETRAINING_SEEDS[-1], HELD_OUT), folder, start)
    with one_at_a_time(folder, "trains", wait=False):
        training.train(restart)
    settle_batchnorm(training.model, SceneStream(PRETRAINING_SEEDS[-2], SETTLING))
    return training.model.eval()


@torch.no_grad()
def settle_batchnorm(model: MaskRCNN, scenes: Examples) -> None:
    """Give the backbone's BatchNorms the plain mean and variance over `scenes` in place of running averages.

    A running average lags behind weights that move: for MobileNetV3, whose momentum is 0.01, by a hundred steps.
    """
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the average of all batches
    model.backbone.train()
    for images, _ in DataLoader(scenes, model.config.joint.batch_size, collate_fn=collate, drop_last=True):
        images = images.to(next(model.parameters()).device)
        model.features(preprocess_images(images, model.config.image))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def save_backbone(model: MaskRCNN, path: Path, record: dict) -> None:
    """Trunk and pyramid in half precision, with what made them as metadata; the file appears whole or not at all."""
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in model.backbone.state_dict().items()}
    save_tensors(tensors, path, {k: str(v) for k, v in record.items()})


def read_record(path: Path) -> dict[str, str]:
    """What made a backbone's file: `config`, `seeds`, `images_seen`, `scores`, `machine`, `date`; or ValueError."""
    return read_metadata(path, "pretrain", ("seeds", "images_seen"))
