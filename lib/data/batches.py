"""What a data set gives -> batches in the network's frame, mirrored or not.

B  images    G  objects of an image    H x W  images as given    Hp x Wp  the network's input
boxes are xyxy in pixels, pixel i covering [i, i + 1); content (height, width) is the image inside the padding
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lib.boxes import Size
from lib.maskrcnn import COURSE_CLASSES
from lib.preprocess import ImageConfig, content_size, preprocess_images, preprocess_targets


def collate(samples: Sequence[tuple[Tensor, dict]]) -> tuple[Tensor, list[dict]]:
    """(image, target) pairs -> images (B, 3, H, W) uint8 and the list of targets."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


class Examples(Dataset):
    """Images with their targets; `indices` are the numbers of the images."""

    indices: Sequence[int]
    classes: tuple[str, ...] = COURSE_CLASSES  # names of the labels from 1
    collate: Callable[..., tuple] = staticmethod(collate)  # several items -> a batch
    workers: int | None = None  # processes that read ahead; None: two on a GPU
    renewed = True  # it draws anew in each epoch, and so must its processes

    def __len__(self) -> int:
        return len(self.indices)


def loader(dataset: Examples, batches: int | list[list[int]], device: torch.device, shuffle=False) -> DataLoader:
    """Batches, of so many items or of those listed, of uint8 images or of stored features.

    On a GPU, processes read ahead into pinned memory.
    """
    gpu = device.type == "cuda"
    workers = (2 if gpu else 0) if dataset.workers is None else dataset.workers
    read = partial(DataLoader, num_workers=workers, pin_memory=gpu, persistent_workers=gpu and not dataset.renewed)
    if isinstance(batches, list):
        return read(dataset, batch_sampler=batches, collate_fn=dataset.collate)
    return read(dataset, batches, shuffle, collate_fn=dataset.collate, drop_last=shuffle)


def prepare(
    images: Tensor, targets: list[dict], config: ImageConfig, flip_probability: float = 0.0
) -> tuple[Tensor, list[dict], Size]:
    """Images (B, 3, H, W) uint8 on the device -> the network's input (B, 3, Hp, Wp), targets in its frame, the content.

    Each image is mirrored with the probability that is given.
    """
    if flip_probability > 0:
        which = torch.rand(len(images), device=images.device) < flip_probability
        images, targets = flip_horizontally(images, targets, which)
    size = (images.shape[-2], images.shape[-1])
    return preprocess_images(images, config), preprocess_targets(targets, size, config), content_size(*size, config)


def flip_horizontally(images: Tensor, targets: list[dict], which: Tensor) -> tuple[Tensor, list[dict]]:
    """Images (B, 3, H, W) and targets -> the same, mirrored where `which` (B,) is true; before any rescaling."""
    flipped = torch.where(which[:, None, None, None], images.flip(-1), images)
    mirrored = flip_targets(targets, images.shape[-1])
    return flipped, [m if flip else t for m, t, flip in zip(mirrored, targets, which.tolist(), strict=True)]


def flip_targets(targets: list[dict], width: int) -> list[dict]:
    """Targets -> those of the mirrored images, whose frame is `width` pixels wide."""
    flipped = [{**target, "boxes": flip_boxes(target["boxes"], width)} for target in targets]
    return [{**t, "masks": t["masks"].flip(-1)} if "masks" in t else t for t in flipped]


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Boxes (G, 4) -> those of the mirrored image: x -> width - x."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)
