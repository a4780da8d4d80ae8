"""What the diagrams are drawn of: boxes, maps, arrows and texts on axes that count in inches.

Blue are maps, orange the layers that learn, green what comes out. A text stands at the middle of its height, and of
its width or at the side of it that `ha` names. Sizes of letters are in points.
"""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path

from lib.notebook.draw import LINES, heatmap

Point = tuple[float, float]

MAP, LAYER, RESULT, POINT = LINES[0], LINES[4], LINES[2], LINES[1]
INK, MUTED, PALE, PAPER = "#222222", "#6E6E6E", "#B5B5B5", "#F5F5F5"  # the last three for what stands back


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure, and axes that cover it and count in inches from its lower left corner."""
    fig = Figure(figsize=(width, height))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return fig, ax


def text(ax: Axes, at: Point, words: str, colour: str = INK, ha: str = "center", size=8, weight="normal") -> None:
    """A text of one line or more."""
    style: dict[str, Any] = {"ha": ha, "va": "center_baseline", "fontsize": size, "fontweight": weight}
    ax.text(*at, words, color=colour, linespacing=1.25, **style)


def heading(ax: Axes, at: Point, words: str, colour: str = INK) -> None:
    """A text in larger, bold letters."""
    text(ax, at, words, colour, size=9, weight="bold")


def two_lines(ax: Axes, at: Point, name: str, meaning: str, colour: str = INK) -> None:
    """A name, and below it what it is."""
    heading(ax, (at[0], at[1] + 0.1), name, colour)
    text(ax, (at[0], at[1] - 0.1), meaning, colour)


def box(ax: Axes, centre: Point, size: Point, colour: str | None, name: str = "", meaning: str = "") -> None:
    """A rounded box with a name and what it is; pale without a colour."""
    corner = centre[0] - size[0] / 2, centre[1] - size[1] / 2
    face, edge, ink = (tint(colour), colour, INK) if colour else (PAPER, PALE, MUTED)
    shape = "round,pad=0,rounding_size=0.07"
    ax.add_patch(FancyBboxPatch(corner, *size, shape, linewidth=1.2, facecolor=face, edgecolor=edge))
    two_lines(ax, centre, name, meaning, ink)


def sheets(ax: Axes, centre: Point, side: float, shape: str, colour: str = MAP, count: int = 4) -> None:
    """A map of several channels as `count` sheets behind one another, with its shape below."""
    x, y = (v - side / 2 - 0.03 * (count - 1) for v in centre)
    for behind in reversed(range(count)):
        corner = x + 0.06 * behind, y + 0.06 * behind
        ax.add_patch(Rectangle(corner, side, side, facecolor=tint(colour), edgecolor=colour))
    text(ax, (centre[0], y - 0.15), shape, size=9)


def panel(ax: Axes, corner: Point, width: float, values: np.ndarray, title: str, below: str) -> Axes:
    """A map (Sy, Sx) as pixels; a title at the top of the figure, a text at its foot."""
    rows, columns = values.shape
    height, top = width * rows / columns, ax.get_ylim()[1]
    inset = ax.inset_axes((*corner, width, height), transform=ax.transData)
    heatmap(inset, values, alpha=0.7).images[-1].set_cmap("Blues")
    inset.vlines(range(columns), 0, rows, color="white", linewidth=0.8)
    inset.hlines(range(rows), 0, columns, color="white", linewidth=0.8)
    heading(ax, (corner[0] + width / 2, top - 0.15), title)
    text(ax, (corner[0] + width / 2, 0.3), below, size=9)
    return inset


def arrow(ax: Axes, *points: Point, colour: str = INK) -> None:
    """An arrow along two points or more."""
    line: Any = Path(points)
    ax.add_patch(FancyArrowPatch(path=line, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1.1))


def connect(ax: Axes, source: Point, target: Point, size: Point, words: str, ha: str, bright: bool) -> None:
    """An arrow between two boxes of one size, straight or round a corner; its words have it on the side `ha`."""
    (x, y), (u, v), aside = source, target, {"left": 0.08, "center": 0.0, "right": -0.08}[ha]
    start, end, down = x + size[0] / 2, u - size[0] / 2, math.copysign(size[1] / 2, v - y)
    middle = (start + end) / 2
    if y == v:
        points, at = [(start, y), (end, v)], (middle, y + 0.13)
    elif x == u:
        points, at = [(x, y + down), (u, v - down)], (x + aside, (y + v) / 2)
    elif v < y:
        points, at = [(start, y), (u, y), (u, v - down)], (u + aside, y + 0.13)
    else:
        points, at = [(start, y), (middle, y), (middle, v), (end, v)], (middle + aside, (y + v) / 2)
    arrow(ax, *points, colour=INK if bright else PALE)
    text(ax, at, words, INK if bright else MUTED, ha)


def output(ax: Axes, x: float, y: float, v: float, layer: str, widths: str, name: str, meaning: str) -> None:
    """A head's last layer at the height v, with what it gives; an arrow leads there from (x, y)."""
    arrow(ax, (x, y), (x + 0.3, y), (x + 0.3, v), (x + 0.65, v))
    box(ax, (x + 1.25, v), (1.2, 0.56), LAYER, layer, widths)
    arrow(ax, (x + 1.85, v), (x + 2.35, v))
    box(ax, (x + 3.4, v), (2.1, 0.56), RESULT, name, meaning)


def tint(colour: str) -> tuple[float, ...]:
    """The colour, mixed with white."""
    return tuple(1 - 0.22 * (1 - c) for c in to_rgb(colour))
