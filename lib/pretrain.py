"""Stage 0, for a trunk without pretrained weights: learn to classify crops of the training images before the RPN's stage.

    N  crops    s  side of a stored crop    labels: 0 background, else the class of the object

A crop costs the trunk a small part of what an image costs, and its class is what objectness alone does not teach.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lib.boxes import iou_matrix
from lib.config import NUM_CLASSES, Config
from lib.data import CourseDataset
from lib.roi_align import roi_align

STORED = 96  # pixels: crops are cut once, with a margin, and kept as uint8; each epoch sees a random part of them
SEEN = 64
MARGIN = 1.3


def pretrain_trunk(trunk: nn.Module, dataset: CourseDataset, config: Config, device: torch.device) -> None:
    """Train the trunk (an nn.Module that returns a dict of maps, the deepest last) in place for `config.trunk_epochs`."""
    crops, labels = cut_crops(dataset, device)
    trunk.to(device, memory_format=torch.channels_last).train()
    channels = list(trunk.eval()(torch.zeros(1, 3, SEEN, SEEN, device=device)).values())[-1].shape[1]
    trunk.train()
    classifier = nn.Linear(channels, NUM_CLASSES + 1).to(device)
    parameters = [*trunk.parameters(), *classifier.parameters()]
    steps = config.trunk_epochs * (len(crops) // config.trunk_batch_size)
    optimizer = torch.optim.AdamW(parameters, config.trunk_lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.trunk_lr, steps, pct_start=0.2)
    for epoch in range(config.trunk_epochs):
        right = 0
        for chosen in torch.randperm(len(crops), device=device).split(config.trunk_batch_size):
            if len(chosen) < config.trunk_batch_size:
                continue
            with torch.autocast(device.type, torch.bfloat16):
                deepest = list(trunk(augmented(crops[chosen], config)).values())[-1]
                logits = classifier(deepest.mean((2, 3)))
            loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            right += (logits.argmax(1) == labels[chosen]).sum()
        print(
            f"trunk {epoch + 1}/{config.trunk_epochs}: {float(right) / len(crops):.3f} of the training crops right",
            flush=True,
        )


def cut_crops(dataset: CourseDataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """One crop of each object and one of background an image: (N, 3, s, s) uint8 and labels (N,)."""
    crops, labels = [], []
    for i in tqdm(range(len(dataset)), "crops", leave=False, unit="img"):
        image, target = dataset[i]
        corners = torch.rand(8, 2, 2) * torch.tensor([image.shape[2], image.shape[1]])
        background = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
        background = background[(iou_matrix(background, target["boxes"]) < 0.2).all(1)][:1]
        boxes = torch.cat([_enlarged(target["boxes"]), background])
        pixels = roi_align(image[None].float(), boxes, torch.zeros(len(boxes), dtype=torch.long), STORED, samples=1)
        crops.append(pixels.round().to(torch.uint8))
        labels.append(F.pad(target["labels"], (0, len(background))))
    return torch.cat(crops).to(device), torch.cat(labels).to(device)


def _enlarged(boxes: Tensor) -> Tensor:
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * MARGIN / 2
    return torch.cat([centre - half, centre + half], dim=1)


def augmented(crops: Tensor, config: Config) -> Tensor:
    """Random parts of the crops, mirrored at random, normalised: (N, 3, s, s) uint8 -> (N, 3, SEEN, SEEN) float."""
    n = len(crops)
    scale = torch.empty(n, 2, device=crops.device).uniform_(0.6, 1.0)
    shift = (torch.rand(n, 2, device=crops.device) * 2 - 1) * (1 - scale)
    mirror = torch.where(torch.rand(n, device=crops.device) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3, device=crops.device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale[:, 0] * mirror, scale[:, 1], shift
    x = F.grid_sample(
        crops.float() / 255, F.affine_grid(theta, [n, 3, SEEN, SEEN], align_corners=False), align_corners=False
    )
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (config.image_mean, config.image_std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)
