"""Diagrams of the system and of its parts, drawn by code for the notebooks and the report.

    F  channels    Sy x Sx  a level's grid    a  anchors a cell    R  RoIs    C  classes    D  boxes of the mask head

Every number is read off the modules that run, built on torch's "meta" device, where tensors have shapes and take no
memory. The figures are not pyplot's: end a cell with one, and save it with save_figure.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

from lib import boxhead, maskhead
from lib.anchors import LEVELS, STRIDES
from lib.config import Config
from lib.maskrcnn import MaskRCNN
from lib.notebook import shapes
from lib.notebook.shapes import LAYER, MAP, RESULT, arrow, box, canvas, heading, panel, sheets, text, two_lines
from lib.roi_align import SAMPLES
from lib.roi_align import roi_align as pooled_cells

_BOX = 1.04, 0.56  # of a part of the system
_SMALL, _LARGE = (f"{module.POOL_SIZE} × {module.POOL_SIZE}" for module in (boxhead, maskhead))
_SYSTEM = {  # each part of the system: the name that lights it up, its centre, what is written in it
    "image": ("data", (0.57, 2.5), "image", "a picture"),
    "input": ("data", (2.56, 2.5), "preprocess", "rescale, pad"),
    "backbone": ("anchors", (4.72, 2.5), "backbone", f"FPN: {LEVELS[0]} … {LEVELS[-1]}"),
    "anchors": ("anchors", (2.56, 1.5), "anchors", "in every cell"),
    "RPN": ("rpn", (4.72, 1.5), "RPN", "object? where?"),
    "box align": ("boxhead", (6.63, 1.5), "RoIAlign", f"{_SMALL} cells"),
    "box head": ("boxhead", (6.63, 0.5), "box head", "class and box"),
    "mask align": ("maskhead", (8.6, 1.5), "RoIAlign", f"{_LARGE} cells"),
    "mask head": ("maskhead", (8.6, 0.5), "mask head", "a mask a class"),
    "detections": ("eval", (10.43, 0.5), "detections", "class, box, mask"),
    "scores": ("eval", (10.43, 1.5), "evaluation", "AP and recall"),
    "truth": ("data", (10.43, 2.5), "ground truth", "G objects"),
}
_FLOW = (  # from one part to another: what goes there, and which side of these words is at the arrow
    ("image", "input", "B × 3 × H × W", "center"),
    ("input", "backbone", "B × 3 × Hp × Wp", "center"),
    ("backbone", "RPN", "B × F × Sy × Sx", "left"),
    ("backbone", "box align", f"{LEVELS[0]} … {LEVELS[-2]}", "right"),
    ("backbone", "mask align", f"{LEVELS[0]} … {LEVELS[-2]}", "right"),
    ("anchors", "RPN", "A boxes", "center"),
    ("RPN", "box align", "N proposals", "center"),
    ("box align", "box head", f"R × F × {_SMALL}", "right"),
    ("box head", "mask align", "D boxes,\nclasses", "left"),
    ("mask align", "mask head", f"D × F × {_LARGE}", "left"),
    ("mask head", "detections", "D × m × m", "center"),
    ("detections", "scores", "", "center"),
    ("truth", "scores", "", "center"),
)
_LETTERS = (  # those on the arrows
    "B: images; H × W: an image as given; Hp × Wp: the network's input; F: channels of a map; "
    "Sy × Sx: cells of a level's grid; A: anchors of the pyramid; N: proposals of an image; R: regions of interest; "
    "D: detections of an image; m: cells along a mask's side"
)


def system(lit: str) -> Figure:
    """The whole system in testing (§1), with one part in colour, or all.

    `lit` is "data", "anchors", "rpn", "boxhead", "maskhead", "eval" or "all"; ValueError for any other.
    """
    lights = {part: lit in (name, "all") for part, (name, *_) in _SYSTEM.items()}
    if not any(lights.values()):
        names = dict.fromkeys(name for name, *_ in _SYSTEM.values())
        raise ValueError(f"the diagram has no part {lit!r}: choose one of {', '.join(names)}")
    fig, ax = canvas(11, 3)
    for source, target, words, side in sorted(_FLOW, key=lambda flow: lights[flow[0]] or lights[flow[1]]):
        bright = lights[source] or lights[target]  # these come last, on top
        shapes.connect(ax, _SYSTEM[source][1], _SYSTEM[target][1], _BOX, words, side, bright)
    for part, (_, centre, name, meaning) in _SYSTEM.items():
        box(ax, centre, _BOX, MAP if lights[part] else None, name, meaning)
    for number, entry in enumerate(_LETTERS.split("; ")):
        (letter, meaning), x, y = entry.split(": "), 0.05 + 2 * (number // 5), 0.9 - 0.18 * (number % 5)
        text(ax, (x, y), letter, shapes.MUTED, "left", weight="bold")
        text(ax, (x + 0.66, y), meaning, shapes.MUTED, "left")
    return fig


def pyramid(config: Config) -> Figure:
    """The backbone (§3): the trunk's maps bottom-up, the pyramid top-down, with the sizes of the config's input."""
    model = _modules(config)
    backbone: Any = model.backbone
    image = torch.empty(1, 3, *config.image.padded_size, device="meta")
    trunk, maps = list(backbone.body(image).values()), model.features(image)
    (fig, ax), (left, middle, right) = canvas(10.2, 4.75), (1.2, 5.0, 8.7)
    box(ax, (left, 0.35), (2.2, 0.46), MAP, "input", _shape(image))
    radii = [0.13] * (len(trunk) - 1) + [0.04]  # of the circles for the sums; the coarsest level has nothing to add
    for level, p in enumerate(maps):
        y, size = 1.05 + 0.7 * level, (2.0 - 0.2 * level, 0.46)
        box(ax, (right, y), size, MAP, f"{LEVELS[level]}, stride {STRIDES[level]}", _shape(p))
        if level == len(trunk):  # P6
            arrow(ax, (right, y - 0.47), (right, y - 0.23))
            text(ax, (right + 0.08, y - 0.35), "every second cell", ha="left")
            continue
        box(ax, (left, y), size, LAYER, f"C{LEVELS[level][1:]}, stride {STRIDES[level]}", _shape(trunk[level]))
        arrow(ax, (left, y - 0.47), (left, y - 0.23))
        lateral, output = backbone.fpn.inner_blocks[level][0], backbone.fpn.layer_blocks[level][0]
        radius = radii[level]
        arrow(ax, (left + size[0] / 2, y), (middle - radius, y))
        text(ax, (3.55, y + 0.11), f"{_kernel(lateral)}, {_widths(lateral)}")
        arrow(ax, (middle + radius, y), (right - size[0] / 2, y))
        text(ax, (6.4, y + 0.11), f"{_kernel(output)}, {_widths(output)}")
        ax.add_patch(Circle((middle, y), radius, facecolor="white", edgecolor=shapes.INK))
        if level < len(trunk) - 1:
            text(ax, (middle, y), "+", size=11)
            arrow(ax, (middle, y + 0.7 - radii[level + 1]), (middle, y + radius))
            text(ax, (middle + 0.08, y + 0.35), "doubled", ha="left")
    two_lines(ax, (left, 4.47), "bottom-up", config.backbone.name)
    two_lines(ax, (middle, 4.47), "top-down", "the coarser map is doubled and added")
    two_lines(ax, (right, 4.47), "pyramid", f"F = {backbone.out_channels} channels on each level")
    return fig


def rpn_head(config: Config) -> Figure:
    """The RPN's head (§4.3), one for all levels: what it makes of a cell."""
    head, y = _modules(config).rpn, 1.2
    fig, ax = canvas(9.5, 2.6)
    frame = FancyBboxPatch((1.95, 0.2), 5.03, 2, "round,pad=0,rounding_size=0.1", fc="none", ec=shapes.PALE, ls="--")
    ax.add_patch(frame)
    heading(ax, (0.75, 2.38), f"each of {LEVELS[0]} … {LEVELS[-1]}")
    heading(ax, (4.5, 2.38), "one head for all levels")
    sheets(ax, (0.75, y), 0.8, f"{head.conv.in_channels} × Sy × Sx")
    arrow(ax, (1.35, y), (2.2, y))
    box(ax, (2.8, y), (1.2, 0.56), LAYER, _kernel(head.conv), "BatchNorm, ReLU")
    arrow(ax, (3.4, y), (3.75, y))
    sheets(ax, (4.35, y), 0.8, f"{head.conv.out_channels} × Sy × Sx")
    logits, deltas = head.objectness, head.regressor
    names = f"a = {logits.out_channels} logits a cell", f"4 a = {deltas.out_channels} deltas a cell"
    shapes.output(
        ax, 4.93, y, y + 0.5, _kernel(logits), _widths(logits), names[0], "is there an object at this anchor?"
    )
    shapes.output(ax, 4.93, y, y - 0.5, _kernel(deltas), _widths(deltas), names[1], "tx, ty, tw, th to its object")
    return fig


def roi_align() -> Figure:
    """RoIAlign (§5.1) on a small map: a box, its cells and their points, the pixels that one mixes, and the result.

    The map, the box and P = 3 are an example; S and the result are those of `lib.roi_align`.
    """
    (x1, y1, x2, y2), cells = (1.0, 1.1, 6.4, 5.0), 3
    rows, columns = np.mgrid[:6, :8] + 0.5
    values = 0.15 + 0.75 * np.exp(-((columns - 4.6) ** 2 + 1.5 * (rows - 2.2) ** 2) / 7)
    x, y = (a + (b - a) * (np.arange(cells * SAMPLES) + 0.5) / (cells * SAMPLES) for a, b in ((x1, x2), (y1, y2)))
    fig, ax = canvas(10.2, 3.5)
    whole = panel(ax, (0.15, 0.5), 3.6, values, "a box on a map", f"{cells} × {cells} cells of {SAMPLES**2} points")
    whole.vlines(np.linspace(x1, x2, cells + 1), y1, y2, color=shapes.INK, linewidth=1.5)
    whole.hlines(np.linspace(y1, y2, cells + 1), x1, x2, color=shapes.INK, linewidth=1.5)
    whole.plot(*(p.ravel() for p in np.meshgrid(x, y)), "o", color="white", markeredgecolor=shapes.INK, markersize=5)
    middle = (x1 + (x2 - x1) / cells, y1 + (y2 - y1) / cells), (x2 - x1) / cells, (y2 - y1) / cells
    whole.add_patch(Rectangle(*middle, facecolor="none", edgecolor=shapes.INK, linewidth=3))
    point = x[2], y[2]  # the first of the cell in the middle
    whole.plot(*point, "o", color=shapes.POINT, markeredgecolor=shapes.INK, markersize=7)
    left, top = (int(p - 0.5) for p in point)  # the first of the pixels around it
    whole.add_patch(Rectangle((left, top), 2, 2, facecolor="none", edgecolor=shapes.POINT, linewidth=2, zorder=3))
    four = panel(ax, (4.75, 0.85), 2, values[top : top + 2, left : left + 2], "one point", "four pixels, weighted")
    dx, dy = point[0] - left - 0.5, point[1] - top - 0.5
    for i, j in np.ndindex(2, 2):
        weight = (dy if i else 1 - dy) * (dx if j else 1 - dx)
        four.plot([j + 0.5, dx + 0.5], [i + 0.5, dy + 0.5], ":", color=shapes.INK)
        text(four, (j + 0.5, i + 0.5 + (0.2 if i else -0.2)), f"{weight:.2f}", size=9)
    four.plot(dx + 0.5, dy + 0.5, "o", color=shapes.POINT, markeredgecolor=shapes.INK, markersize=9)
    one, image = torch.tensor([[x1, y1, x2, y2]]), torch.zeros(1, dtype=torch.int64)
    pooled = pooled_cells(torch.from_numpy(values).float()[None, None], one, image, cells)[0, 0].numpy()
    result = panel(ax, (7.9, 0.85), 2, pooled, f"P × P = {cells} × {cells}", f"each the mean of {SAMPLES**2} points")
    for i, j in np.ndindex(cells, cells):
        text(result, (j + 0.5, i + 0.5), f"{pooled[i, j]:.2f}", size=9)
    result.add_patch(Rectangle((1, 1), 1, 1, facecolor="none", edgecolor=shapes.INK, linewidth=3, zorder=3))
    for start, end in ((3.95, 4.55), (7.0, 7.65)):
        arrow(ax, (start, 1.85), (end, 1.85))
    return fig


def box_head(config: Config) -> Figure:
    """The box head (§6.2) with the config's widths: from a region's features to its class and its box."""
    head: Any = _modules(config).box_head
    first, second, y, side = head.mlp[0], head.mlp[2], 1.35, boxhead.POOL_SIZE
    fig, ax = canvas(11.4, 2.7)
    heading(ax, (0.75, 2.45), "each of R regions")
    sheets(ax, (0.75, y), 0.8, f"{first.in_features // side**2} × {_SMALL}")
    arrow(ax, (1.35, y), (2.1, y))
    text(ax, (1.7, y + 0.11), "flatten")
    widths = first.in_features, first.out_features, second.out_features
    for x, height, width in zip((2.25, 4.45, 6.65), (2, 1.2, 1.2), widths, strict=True):
        box(ax, (x, y), (0.24, height), MAP)
        text(ax, (x, y - height / 2 - 0.15), f"{width:,}", size=9)
    for x, layer in ((3.35, first), (5.55, second)):
        arrow(ax, (x - 0.95, y), (x - 0.6, y))
        arrow(ax, (x + 0.6, y), (x + 0.95, y))
        box(ax, (x, y), (1.2, 0.56), LAYER, "linear, ReLU", _widths(layer))
    logits, deltas = head.classifier, head.regressor
    names = f"C + 1 = {logits.out_features} logits", f"4 C = {deltas.out_features} deltas"
    shapes.output(ax, 6.8, y, y + 0.6, "linear", _widths(logits), names[0], "of the classes and background")
    shapes.output(ax, 6.8, y, y - 0.6, "linear", _widths(deltas), names[1], "tx, ty, tw, th for each class")
    return fig


def mask_head(config: Config) -> Figure:
    """The mask head (§7.2): from a box's features to a mask for each class, of which its own is kept (§7.5)."""
    head: Any = _modules(config).mask_head
    *convs, deconv, last = (layer for layer in head.layers if hasattr(layer, "kernel_size"))
    pooled = torch.empty(1, convs[0].in_channels, maskhead.POOL_SIZE, maskhead.POOL_SIZE, device="meta")
    masks, y = head(pooled), 1.2
    classes, side = masks.shape[1:3]
    fig, ax = canvas(11, 2.4)
    heading(ax, (0.65, 2.15), "each of D boxes")
    sheets(ax, (0.65, y), 0.5, _shape(pooled))
    text(ax, (2.0, y + 0.62), f"{len(convs)} times {_kernel(convs[0])}, ReLU")
    for number in range(len(convs)):
        box(ax, (1.55 + 0.3 * number, y), (0.16, 0.9), LAYER)
    sheets(ax, (3.37, y), 0.5, f"{convs[-1].out_channels} × {_LARGE}")
    box(ax, (4.6, y), (1.1, 0.56), LAYER, _kernel(deconv, "deconv"), f"stride {deconv.stride[0]}, ReLU")
    sheets(ax, (6.1, y), 0.9, f"{deconv.out_channels} × {side} × {side}")
    box(ax, (7.5, y), (1.0, 0.56), LAYER, _kernel(last), _widths(last))
    heading(ax, (8.93, 2.15), f"a mask a class, C = {classes}")
    sheets(ax, (8.93, y), 0.9, _shape(masks), RESULT, min(classes, 4))
    for start, end in ((1.05, 1.45), (2.57, 2.97), (3.75, 4.05), (5.15, 5.5), (6.7, 7.0), (8.0, 8.33), (9.53, 9.93)):
        arrow(ax, (start, y), (end, y))
    v, u = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    colours = ListedColormap([shapes.PAPER, RESULT])
    ax.imshow(u**2 + (0.7 * v) ** 2 < 0.1, colours, extent=(10, 10.9, y - 0.45, y + 0.45), interpolation="nearest")
    heading(ax, (10.45, 2.15), "its own class")
    text(ax, (10.45, y - 0.6), f"{side} × {side}", size=9)
    return fig


def _modules(config: Config) -> MaskRCNN:
    """The config's system without its weights, on no device: for its shapes."""
    with torch.device("meta"):
        return MaskRCNN(replace(config, backbone=replace(config.backbone, weights="none"))).eval()


def _shape(x: torch.Tensor) -> str:
    return " × ".join(f"{n:,}" for n in x.shape[1:])


def _kernel(layer: Any, name: str = "conv") -> str:
    return f"{layer.kernel_size[0]} × {layer.kernel_size[1]} {name}"


def _widths(layer: Any) -> str:
    return f"{layer.weight.shape[1]:,} → {layer.weight.shape[0]:,}"
