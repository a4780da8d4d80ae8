"""Stage 0, for a trunk without pretrained weights: it learns to classify crops of the training images.

    N  crops    s  side of a stored crop    labels: 0 background, else the class of the object

A crop costs the trunk a small part of what an image costs, and its class is what objectness alone does not teach.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from lib.boxes import iou_matrix
from lib.config import NUM_CLASSES, Config
from lib.data import normalised
from lib.roi_align import roi_align

STORED = 96  # pixels: crops are cut once, with a margin, and kept as uint8; each epoch sees a random part of them
SEEN = 64
MARGIN = 1.3


def pretrain_trunk(trunk: nn.Module, train: Dataset, val: Dataset, config: Config, accelerator: Accelerator) -> None:
    """Train the trunk (images -> a dict of maps, the deepest last) in place for `config.trunk_epochs` epochs."""
    device, size = accelerator.device, config.trunk_batch_size
    crops, labels = cut_crops(train, device)
    network = CropClassifier(trunk).to(device, memory_format=torch.channels_last).train()
    epochs, batches = config.trunk_epochs, -(-len(crops) // size)
    optimizer = torch.optim.AdamW(network.parameters(), config.trunk_lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.trunk_lr, epochs * batches, pct_start=0.2)
    accelerator.print(f"trunk: {epochs} epochs of {len(crops)} crops in batches of {size}: {epochs * batches} steps")
    shuffled = torch.cat([torch.randperm(len(crops), device=device) for _ in range(epochs)])
    for chosen in tqdm(
        shuffled.split(size)[: epochs * batches], "trunk", leave=False, disable=not accelerator.is_main_process
    ):
        with torch.autocast(device.type, torch.bfloat16, enabled=accelerator.mixed_precision == "bf16"):
            logits = network(augmented(crops[chosen], config))
        loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if len(val):
        accelerator.print(
            f"trunk: {accuracy(network.eval(), val, config, device):.3f} of the val split's crops are classified right"
        )


class CropClassifier(nn.Module):
    """The trunk, its deepest map averaged over the crop, and one linear layer to K + 1 logits."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk
        with torch.no_grad():
            channels = list(trunk.eval()(torch.zeros(2, 3, SEEN, SEEN)).values())[-1].shape[1]
        self.classifier = nn.Linear(channels, NUM_CLASSES + 1)

    def forward(self, crops: Tensor) -> Tensor:
        """(N, 3, s, s) normalised -> (N, K + 1)."""
        return self.classifier(list(self.trunk(crops).values())[-1].mean((2, 3)))


@torch.no_grad()
def accuracy(network: CropClassifier, dataset: Dataset, config: Config, device: torch.device) -> float:
    """The share of a data set's crops, seen whole, that the network puts in the right class."""
    crops, labels = cut_crops(dataset, device)
    seen = F.interpolate(crops.float() / 255, (SEEN, SEEN), mode="bilinear", antialias=True)
    right = [
        network(x).argmax(1) == y for x, y in zip(normalised(seen, config).split(256), labels.split(256), strict=True)
    ]
    return float(torch.cat(right).float().mean())


def cut_crops(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
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
    grid = F.affine_grid(theta, [n, 3, SEEN, SEEN], align_corners=False)
    return normalised(F.grid_sample(crops.float() / 255, grid, align_corners=False), config)
