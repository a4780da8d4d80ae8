"""What a data set gives -> batches in the network's frame, mirrored or not.

B  images    G  objects of an image    H x W  the frame of the images as given    Hp x Wp  the network's input
boxes are xyxy in pixels, pixel i covering [i, i + 1); content (height, width) is the image inside the padding
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.boxes import Size
from lib.preprocess import ImageConfig, content_size, preprocess_images, preprocess_targets


def collate(samples: Sequence[tuple[Tensor, dict]]) -> tuple[Tensor, list[dict]]:
    """(image, target) pairs -> images (B, 3, H, W) uint8 and the list of targets."""
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


def prepare(
    images: Tensor, targets: list[dict], config: ImageConfig, flip_probability: float = 0.0
) -> tuple[Tensor, list[dict], Size]:
    """A collated batch on the device -> the network's input (B, 3, Hp, Wp), the targets in its frame, the content.

    Each image is mirrored with the probability that is given.
    """
    if flip_probability > 0:
        which = torch.rand(len(images), device=images.device) < flip_probability
        images, targets = flip_horizontally(images, targets, which)
    size = (images.shape[-2], images.shape[-1])
    return preprocess_images(images, config), preprocess_targets(targets, size, config), content_size(*size, config)


def flip_horizontally(images: Tensor, targets: list[dict], which: Tensor) -> tuple[Tensor, list[dict]]:
    """Mirror the images (B, 3, H, W) where `which` (B,) is true, with their boxes and masks; before any rescaling."""
    flipped = torch.where(which[:, None, None, None], images.flip(-1), images)
    mirrored = flip_targets(targets, images.shape[-1])
    return flipped, [m if flip else t for m, t, flip in zip(mirrored, targets, which.tolist(), strict=True)]


def flip_targets(targets: list[dict], width: int) -> list[dict]:
    """The targets of the mirrored images, whose frame is `width` pixels wide."""
    flipped = [{**target, "boxes": flip_boxes(target["boxes"], width)} for target in targets]
    return [{**t, "masks": t["masks"].flip(-1)} if "masks" in t else t for t in flipped]


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Boxes (N, 4) of the mirrored image: x -> width - x."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)
