"""Whose statistics should the RPN's BatchNorm learn? The recall of RPNs that differ in nothing else.

    python -m benchmarks.batchnorm --data data/synthetic --weights weights/demo

New RPNs learn on the frozen backbone of a trained RPN stage: with statistics over the sampled positions, as `lib.rpn`
has it; and with statistics over all cells of all levels, as a head run over whole maps has them. Recall on the val
split, which neither the backbone nor the RPNs have seen.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import send_to_device

from benchmarks.timing import machine
from lib.data.batches import loader, prepare
from lib.data.reader import CourseDataset
from lib.machine.device import precision, seed_everything
from lib.machine.errors import command_errors
from lib.machine.files import write_json
from lib.machine.folders import paths
from lib.rpn import RPNHead, draw_anchors, rpn_loss
from lib.scores.evaluate import evaluate_model
from lib.training.checkpoint import backbone_origin, load_model
from lib.training.run import WEIGHT_DECAY
from lib.training.schedule import warmup_cosine
from lib.training.stages import Learner, RPNStage

EPOCHS, IMAGES = 6, 240
KINDS = ("sampled", "whole maps")


class WholeMaps(RPNStage):
    """The RPN's stage with BatchNorm statistics over all cells; predictions and losses at the sampled anchors."""

    def sample(self, features, targets, content):
        anchors, grids = self.model.anchors(features), [tuple(f.shape[2:]) for f in features]
        drawn = draw_anchors(grids, anchors, targets, content, self.config.rpn)
        cells = [self.model.rpn.conv(f).permute(0, 2, 3, 1).flatten(1, 2) for f in features]  # (B, Sy Sx, F)
        hidden = torch.cat(cells, dim=1)
        hidden = self.model.rpn.norm(hidden.flatten(0, 1)[..., None, None]).view(hidden.shape)
        per_cell = len(self.config.anchors.ratios)
        hidden = hidden[drawn["images"], drawn["anchors"] // per_cell]
        return drawn | {"hidden": hidden, "ratios": drawn["anchors"] % per_cell}

    def loss(self, samples):
        rpn, ratios = self.model.rpn, samples["ratios"]
        hidden, rows = F.relu(samples["hidden"])[..., None, None], torch.arange(len(ratios), device=ratios.device)
        logits = rpn.objectness(hidden).flatten(1)[rows, ratios]
        deltas = rpn.regressor(hidden).view(len(ratios), -1, 4)[rows, ratios]
        losses = rpn_loss(logits, deltas, samples["labels"], samples["deltas"], self.config.rpn.smooth_l1_beta)
        return losses | {"rpn_box": losses["rpn_box"] * self.config.rpn.box_weight}


def recall(kind: str, seed: int, weights: Path, data: dict[str, CourseDataset], accelerator: Accelerator) -> dict:
    """AR@100 and AR@1000 of one RPN trained anew: `kind` is "sampled" or "whole maps"."""
    seed_everything(seed)
    model = load_model(weights, "rpn").train()
    model.rpn = RPNHead(model.backbone.out_channels, len(model.config.anchors.ratios))
    learning = {"training.seed": seed, "rpn.trains": "none", "rpn.lr": 1e-3}
    model.config = model.config.replace(**learning, **{"rpn.test.pre_nms": 2000, "rpn.test.post_nms": 1000})
    stage = (WholeMaps if kind == "whole maps" else RPNStage)(model)
    train(Learner(stage).to(accelerator.device), data["train"], accelerator)
    return evaluate_model(model.eval(), data["val"], "rpn")["rpn"]


def train(learner: Learner, dataset, accelerator: Accelerator) -> None:
    config, device = learner.model.config, accelerator.device
    torch.manual_seed(config.training.seed)
    batches = loader(dataset, config.rpn.batch_size, device, shuffle=True)
    learning = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, config.rpn.lr, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: warmup_cosine(s, steps))
    learner.train()
    for batch in (batch for _ in range(EPOCHS) for batch in batches):
        inputs = prepare(*send_to_device(batch, device), config.image, config.training.flip_probability)
        with accelerator.autocast():
            losses = learner(*inputs)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@command_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.batchnorm", description="The RPN's BatchNorm, two ways.")
    parser.add_argument("--data", type=Path, default=paths().data / "synthetic")
    parser.add_argument("--weights", type=Path, default=paths().weights / "demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=paths().figures / "published" / "benchmarks" / "batchnorm.json")
    args = parser.parse_args(argv)
    config = load_model(args.weights, "rpn").config
    data = {split: CourseDataset(args.data, split, config.data) for split in ("train", "val")}
    data["train"].indices = data["train"].indices[:IMAGES]
    accelerator, rows = Accelerator(mixed_precision=precision(config.training.mixed_precision)), []
    for seed in args.seeds:
        for kind in KINDS:
            rows.append({"statistics": kind, "seed": seed} | recall(kind, seed, args.weights, data, accelerator))
            print(rows[-1], flush=True)
    for kind in KINDS:
        mine = [row for row in rows if row["statistics"] == kind]
        print(kind, {k: round(sum(r[k] for r in mine) / len(mine), 3) for k in ("AR@100", "AR@1000")})
    about = {"backbone": backbone_origin(config), "machine": machine()}
    write_json(about | {"epochs": EPOCHS, "images": IMAGES, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
