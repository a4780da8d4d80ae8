"""What the diagrams are drawn of: boxes, maps, arrows and texts on axes that count in inches.

Blue are maps, orange the layers that learn, green what comes out. A text's `at` is the middle of its height, and of
its width or the side of it that `ha` names; sizes of letters are in points.
"""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path

from lib.notebook.draw import LINES

Point = tuple[float, float]

MAP, LAYER, RESULT, POINT = LINES[0], LINES[4], LINES[2], LINES[1]
INK, MUTED, PALE, PAPER = "#222222", "#6E6E6E", "#B5B5B5", "#F5F5F5"  # the last three for what stands back
LARGE, SMALL = 9, 8


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure, and axes that cover it and count in inches from its lower left corner."""
    fig = Figure(figsize=(width, height))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return fig, ax


def text(ax: Axes, at: Point, words: str, colour: str = INK, ha: str = "center", size=SMALL, weight="normal") -> None:
    """A small text."""
    style: dict[str, Any] = {"ha": ha, "va": "center_baseline", "fontsize": size, "fontweight": weight}
    ax.text(*at, words, color=colour, linespacing=1.25, **style)


def heading(ax: Axes, at: Point, words: str, colour: str = INK, ha: str = "center") -> None:
    """A larger text, in bold letters."""
    text(ax, at, words, colour, ha, LARGE, "bold")


def two_lines(ax: Axes, at: Point, name: str, meaning: str, colours=(INK, INK), ha: str = "center") -> None:
    """A name, and below it what it is."""
    heading(ax, (at[0], at[1] + 0.1), name, colours[0], ha)
    text(ax, (at[0], at[1] - 0.1), meaning, colours[1], ha)


def box(ax: Axes, centre: Point, size: Point, colour: str | None, name: str = "", meaning: str = "") -> None:
    """A rounded box with a name and what it is; pale without a colour."""
    corner = centre[0] - size[0] / 2, centre[1] - size[1] / 2
    face, edge, ink = (tint(colour), colour, INK) if colour else (PAPER, PALE, MUTED)
    shape = "round,pad=0,rounding_size=0.07"
    ax.add_patch(FancyBboxPatch(corner, *size, shape, linewidth=1.2, facecolor=face, edgecolor=edge))
    two_lines(ax, centre, name, meaning, (ink, ink))


def sheets(ax: Axes, centre: Point, side: float, shape: str, colour: str = MAP, count: int = 4) -> None:
    """A map of several channels as `count` sheets behind one another, with its shape below."""
    x, y = (v - side / 2 - 0.03 * (count - 1) for v in centre)
    for behind in reversed(range(count)):
        corner = x + 0.06 * behind, y + 0.06 * behind
        ax.add_patch(Rectangle(corner, side, side, facecolor=tint(colour), edgecolor=colour))
    text(ax, (centre[0], y - 0.15), shape, size=LARGE)


def arrow(ax: Axes, *points: Point, colour: str = INK) -> None:
    """An arrow along two points or more."""
    line: Any = Path(points)
    ax.add_patch(FancyArrowPatch(path=line, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1.1))


def tint(colour: str) -> tuple[float, ...]:
    """The colour, mixed with white."""
    return tuple(1 - 0.22 * (1 - c) for c in to_rgb(colour))
