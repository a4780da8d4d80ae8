"""Detections drawn on a picture's own pixels, in the classes' colours.

D  detections    m  cells along a side of a predicted mask    H x W  the picture    h x w  a crop of it
boxes are xyxy in pixels of the picture; pixel i covers [i, i + 1)
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from lib.boxes import Size
from lib.maskhead import paste_masks
from lib.notebook.draw import class_colour

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom; both ends are in it
_TINT = 115  # of 255: how much of its colour a mask gives to its pixels


def paste_crop(mask: Tensor, box: Tensor, size: Size) -> tuple[Tensor, tuple[int, int]]:
    """Probabilities (m, m) in a box (4,) -> the mask around the box alone (h, w) uint8, its corner (x, y)."""
    limits = box.new_tensor([size[1], size[0]])
    corner = torch.minimum(box[:2].floor().clamp(min=0), limits - 1)
    width, height = (torch.minimum(box[2:].ceil(), limits) - corner).clamp(min=1).int().tolist()
    x, y = corner.int().tolist()
    return paste_masks(mask[None], (box - corner.repeat(2))[None], (height, width))[0], (x, y)


def tint(picture: Image.Image, crop: np.ndarray, corner: tuple[int, int], label: int) -> None:
    """Tint a mask and its edge; its `crop` (h, w) uint8 of 0 and 1 has its upper left at `corner` (x, y)."""
    within = np.pad(crop, 1)
    within = within[:-2, 1:-1] & within[2:, 1:-1] & within[1:-1, :-2] & within[1:-1, 2:]
    strength = np.where(within, np.uint8(_TINT), np.uint8(255)) * crop
    picture.paste(class_colour(label), corner, Image.fromarray(strength))


def outline(picture: Image.Image, boxes: np.ndarray, labels: Sequence[int], captions: Sequence[str]) -> None:
    """Boxes (D, 4) with captions that keep inside the picture and, where there is room, clear of one another."""
    shorter, canvas = min(picture.size), ImageDraw.Draw(picture)
    font, width = ImageFont.load_default(max(10, shorter // 40)), max(1, shorter // 250)
    for box, label in zip(boxes, labels, strict=True):
        x1, y1, x2, y2 = np.round(box).astype(int).tolist()
        canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=class_colour(label), width=width)
    taken: list[Rectangle] = []
    for box, label, caption in zip(boxes, labels, captions, strict=True):
        _, _, right, bottom = canvas.textbbox((0, 0), caption, font)
        taken.append(place(box, (int(right) + 4, int(bottom) + 4), picture.size, taken))
        write(canvas, taken[-1], caption, class_colour(label), font)


def write(canvas: ImageDraw.ImageDraw, where: Rectangle, caption: str, colour: str, font) -> None:
    """A caption on a ground of this colour, in black or white."""
    dark = np.dot(ImageColor.getrgb(colour), (0.3, 0.59, 0.11)) < 128
    canvas.rectangle(where, fill=colour)
    canvas.text((where[0] + 2, where[1] + 1), caption, fill="white" if dark else "black", font=font)


def place(box: np.ndarray, size: tuple[int, int], frame: tuple[int, int], taken: Sequence[Rectangle]) -> Rectangle:
    """Where a caption of this size (width, height) goes: above the box, in its top, below, or the nearest free line."""
    h, (left, top, bottom) = size[1], (int(box[0]), int(box[1]), int(box[3]))
    lines = sorted(range(0, max(0, frame[1] - h) + 1, h), key=lambda y: abs(y - top))
    places = within([(left, y) for y in (top - h, top, bottom, *lines)], size, frame)
    return first_free(places, taken) or places[0]


def within(corners: Sequence[tuple[int, int]], size: tuple[int, int], frame: tuple[int, int]) -> list[Rectangle]:
    """Rectangles of a size (width, height), moved sideways into the frame, without those above or below it."""
    (w, h), lowest = size, max(0, frame[1] - size[1])
    moved = [(max(0, min(x, frame[0] - w)), y) for x, y in corners if 0 <= y <= lowest]
    return [(x, y, x + w - 1, y + h - 1) for x, y in moved]


def first_free(places: Sequence[Rectangle], taken: Sequence[Rectangle]) -> Rectangle | None:
    """The first place that covers none that is taken."""
    here, others = np.array(places, int).reshape(-1, 1, 4), np.array(taken, int).reshape(-1, 4)
    apart = (here[..., :2] > others[:, 2:]) | (others[:, :2] > here[..., 2:])  # to one side, or above or below
    free = np.flatnonzero(np.all(np.any(apart, axis=2), axis=1))
    return places[free[0]] if len(free) else None
