"""Images and targets -> the network's input frame (§2): rescale, normalise, pad; on the images' own device.

B  images    G  objects of an image    H x W  images as given    Hp x Wp  the network's input
boxes are xyxy in pixels, pixel i covering [i, i + 1); content (height, width) is the image inside the padding
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.boxes import Size, scale_boxes
from lib.machine.numbers import Numbers, number

FRAME = IMAGE_HEIGHT, IMAGE_WIDTH = 300, 400  # of the course's files
SIZE_DIVISOR = 32  # the input is zero padded right and below to a multiple of this: 800 x 1066 -> 800 x 1088
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]


@dataclass(frozen=True)
class ImageConfig(Numbers):
    height: int = number(800, "height of an image once it is rescaled", "§2", low=32, unit="px")
    width: int = number(1066, "width of an image once it is rescaled", "§2", low=32, unit="px")

    @property
    def padded_size(self) -> Size:
        """(height, width) of the network's input."""
        height, width = (-(-n // SIZE_DIVISOR) * SIZE_DIVISOR for n in (self.height, self.width))
        return height, width


def content_size(height: int, width: int, config: ImageConfig) -> Size:
    """Size of an image -> its size rescaled to fit the config's, aspect ratio kept: 300 x 400 -> 800 x 1066."""
    scale = min(config.height / height, config.width / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def preprocess_images(images: Tensor, config: ImageConfig) -> Tensor:
    """Images (B, 3, H, W) uint8 of one size -> (B, 3, Hp, Wp) float, rescaled, normalised and zero padded (§2)."""
    height, width = content_size(images.shape[-2], images.shape[-1], config)
    x = F.interpolate(images.float(), (height, width), mode="bilinear", antialias=True) / 255
    padded_height, padded_width = config.padded_size
    return F.pad(normalised(x), (0, padded_width - width, 0, padded_height - height))


def normalised(x: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> each channel less its mean, over its deviation; channels last in memory."""
    mean, std = torch.tensor([IMAGE_MEAN, IMAGE_STD])[..., None, None].to(x.device, non_blocking=True)
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def preprocess_targets(targets: list[dict], size: Size, config: ImageConfig) -> list[dict]:
    """Targets of images of `size` (H, W) -> boxes and masks in the network's frame, padding included (§2)."""
    height, width = content_size(*size, config)
    scaled = []
    for target in targets:
        new = {**target, "boxes": scale_boxes(target["boxes"], width / size[1], height / size[0])}
        if "masks" in target:
            new["masks"] = _resize_masks(target["masks"], (height, width), config.padded_size)
        scaled.append(new)
    return scaled


def _resize_masks(masks: Tensor, content: Size, padded: Size) -> Tensor:
    """Masks (G, H, W) uint8 -> (G, Hp, Wp) uint8: bilinear, 1 where at least half is covered, zero padding."""
    if len(masks) == 0:
        return masks.new_zeros((0, *padded))
    resized = F.interpolate(masks[:, None].float(), content, mode="bilinear", antialias=True)[:, 0] >= 0.5
    return F.pad(resized, (0, padded[1] - content[1], 0, padded[0] - content[0])).to(torch.uint8)
