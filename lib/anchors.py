"""Anchors: of one level, and of the whole pyramid (§4.1).

    Sy x Sx  a level's grid    a  anchors a cell, one for each aspect ratio    A  anchors of the pyramid
    boxes are xyxy in pixels of the network's input frame, padding included

Anchors are ordered by level, row, column, ratio: the order in which an output map (a, Sy, Sx) is read when its
channels come last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lib.boxes import Size
from lib.machine.numbers import Numbers, number

STRIDES = (4, 8, 16, 32, 64)  # of P2 ... P6: pixels of the input frame a cell
LEVELS = ("P2", "P3", "P4", "P5", "P6")
Maps = Sequence[Tensor]  # of the pyramid, each (B, F, Sy, Sx)


@dataclass(frozen=True)
class AnchorConfig(Numbers):
    scales: tuple[float, ...] = number((32, 64, 128, 256, 512), "sqrt(w h)", "§4.1", above=0, length=5, unit="px")
    ratios: tuple[float, ...] = number((0.5, 1, 2), "w / h, an anchor a cell for each", "§4.1", above=0)


def level_anchors(grid: Size, stride: int, scale: float, ratios: Sequence[float]) -> Tensor:
    """A level's anchors (Sy Sx a, 4): a in every cell, centred on it, with sqrt(w h) = scale and w / h = ratio."""
    y, x = ((torch.arange(n) + 0.5) * stride for n in grid)
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (Sy, Sx, 2)
    ratio = torch.tensor(ratios)
    sizes = scale * torch.stack([ratio.sqrt(), 1 / ratio.sqrt()], dim=-1)  # (a, 2): w, h
    centres, half = centres[:, :, None, :], sizes / 2
    return torch.cat([centres - half, centres + half], dim=-1).reshape(-1, 4)


@lru_cache(maxsize=8)
def pyramid_anchors(grids: tuple[Size, ...], config: AnchorConfig, device: torch.device | str = "cpu") -> Tensor:
    """The pyramid's anchors (A, 4), given its grids (Sy, Sx), P2 first. Computed once a shape."""
    levels = zip(grids, STRIDES, config.scales, strict=True)
    return torch.cat([level_anchors(*level, config.ratios) for level in levels]).to(device)


@lru_cache(maxsize=8)
def anchor_levels(grids: tuple[Size, ...], per_cell: int, device: torch.device | str = "cpu") -> Tensor:
    """The levels (A,) int64 of the pyramid's anchors, 0 for P2, where every cell has `per_cell` of them."""
    counts = torch.tensor([rows * columns * per_cell for rows, columns in grids])
    return torch.arange(len(grids)).repeat_interleave(counts).to(device)


def pyramid_grids(padded_size: Size) -> tuple[Size, ...]:
    """The grids (Sy, Sx) of P2 ... P6 for an input of this (height, width): each the ceiling of size / stride."""
    height, width = padded_size
    return tuple((-(-height // stride), -(-width // stride)) for stride in STRIDES)
