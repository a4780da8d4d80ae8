"""Anchors: of one level, and of the whole pyramid (§4.1).

    Sy x Sx  a level's grid of cells    K  aspect ratios, anchors a cell    A  anchors of the pyramid
    boxes are xyxy in pixels of the network's input frame, padding included

Anchors are ordered by level, row, column, ratio: the order in which an output map (K, Sy, Sx) is read when its
channels come last.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lib.config import Config

STRIDES = (4, 8, 16, 32, 64)  # of P2 ... P6: pixels of the input frame a cell
LEVELS = ("P2", "P3", "P4", "P5", "P6")


def level_anchors(grid: tuple[int, int], stride: int, scale: float, ratios: Sequence[float]) -> Tensor:
    """One level's anchors (Sy Sx K, 4): K in every cell, centred on it, with sqrt(w h) = scale and w / h = ratio."""
    y, x = ((torch.arange(n) + 0.5) * stride for n in grid)
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (Sy, Sx, 2)
    ratio = torch.tensor(ratios)
    sizes = scale * torch.stack([ratio.sqrt(), 1 / ratio.sqrt()], dim=-1)  # (K, 2): w, h
    centres, half = centres[:, :, None, :], sizes / 2
    return torch.cat([centres - half, centres + half], dim=-1).reshape(-1, 4)


@lru_cache(maxsize=8)
def pyramid_anchors(grids: tuple[tuple[int, int], ...], config: Config, device: torch.device | str = "cpu") -> Tensor:
    """All anchors (A, 4) of the pyramid with these grids (Sy, Sx), P2 first. Computed once a shape."""
    anchors = [
        level_anchors(grid, stride, scale, config.anchor_ratios)
        for grid, stride, scale in zip(grids, STRIDES, config.anchor_scales, strict=True)
    ]
    return torch.cat(anchors).to(device)


def pyramid_grids(padded_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """The grids (Sy, Sx) of P2 ... P6 for an input of this (height, width): each the ceiling of size / stride."""
    return tuple(tuple(-(-n // stride) for n in padded_size) for stride in STRIDES)
