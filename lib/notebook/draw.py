"""Axes-level drawing in one grammar of colours and lines.

    D  boxes or masks    H x W  the image    Sy x Sx  a map's grid    E  epochs
    boxes are xyxy in pixels of the image they are drawn on; pixel i covers [i, i + 1), so boxes and masks line up

Truth (dashed), positive, negative, ignored and predicted have a colour each; before is dotted, after solid.
Every function takes the axes first, draws tensors (of any device) or arrays, and returns the axes.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox, IdentityTransform

# Okabe and Ito's colours, distinct for colour-blind readers
COLOURS = dict(truth="#D55E00", positive="#56B4E9", negative="#F0E442", ignored="#BBBBBB", predicted="#009E73")
CLASS_COLOURS = ("#0072B2", "#CC79A7", "#44EEFF", "#7B3294", "#8C510A", "#01665E", "#F7A8B8", "#333333")  # in turns
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # of curves
_STYLES: dict[str, tuple[str, Any]] = {kind: (colour, "-") for kind, colour in COLOURS.items()}
_STYLES |= {"after": ("black", "-"), "before": ("black", ":")}
_STYLES["truth"] = (COLOURS["truth"], "--")  # told apart from every class by its line too
_PAD = 1.5  # points between a caption's letters and its edge


def image(ax: Axes, image, margin: float = 0) -> Axes:
    """An image (3, H, W), uint8 or float in [0, 1]; a `margin` in pixels shows boxes that cross its boundary."""
    pixels = _array(image).transpose(1, 2, 0)
    height, width = pixels.shape[:2]
    ax.imshow(pixels if pixels.dtype == np.uint8 else pixels.clip(0, 1), extent=(0, width, height, 0))
    ax.set(xlim=(-margin, width + margin), ylim=(height + margin, -margin), xticks=[], yticks=[])
    return ax


def denormalise(x, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """A normalised image (3, H, W) as the network sees it -> float in [0, 1] (§2)."""
    shift, scale = (np.asarray(v, np.float32)[:, None, None] for v in (mean, std))
    return (_array(x) * scale + shift).clip(0, 1)


def boxes(ax: Axes, boxes, kind="truth", captions: Sequence[str] | None = None, dotted=False, linewidth=1.6) -> Axes:
    """Boxes (D, 4), cut off at the axes. `kind` is a name in COLOURS, or D labels for the colours of the classes."""
    boxes = _array(boxes).reshape(-1, 4)
    colours, style = _colours(kind, len(boxes)), ":" if dotted else _style(kind)
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    outlines = PolyCollection(corners, facecolors="none", edgecolors=colours, linewidths=linewidth, linestyles=style)
    outlines.set(joinstyle="miter", path_effects=[withStroke(linewidth=linewidth + 1, foreground="black", alpha=0.5)])
    ax.add_collection(outlines, autolim=False)
    for box, colour, caption in zip(boxes, colours, captions or (), strict=False):
        ax.add_artist(_Caption(box, caption, colour))
    return ax


class _Caption(Text):
    """A box's caption, placed when drawn: the first place inside the axes that covers no earlier caption.

    Tried in turn: above the box, inside its top, below it, inside its bottom, then the nearest free line.
    """

    def __init__(self, box: np.ndarray, text: str, colour):
        dark = np.dot(to_rgb(colour), (0.3, 0.59, 0.11)) < 0.5
        edge = {"facecolor": colour, "edgecolor": "none", "pad": _PAD}
        super().__init__(0, 0, text, fontsize=8, color="white" if dark else "black", va="bottom", bbox=edge)
        self.box, self.place = box, Bbox.null()
        self.set_in_layout(False)

    def draw(self, renderer) -> None:
        self.set_transform(IdentityTransform())
        axes: Any = self.axes
        frame, pad, text = axes.bbox, renderer.points_to_pixels(_PAD), self.get_window_extent(renderer)
        earlier = itertools.takewhile(lambda other: other is not self, axes.texts)
        width, height = text.width + 2 * pad, text.height + 2 * pad
        (left, top), (_, bottom) = axes.transData.transform(self.box.reshape(2, 2))
        left = max(frame.x0, min(left, frame.x1 - width))
        lines = sorted(np.arange(frame.y1 - height, frame.y0, -height), key=lambda y: abs(y - top))
        starts = [y for y in (top, top - height, bottom - height, bottom, *lines) if frame.y0 <= y <= frame.y1 - height]
        places = [Bbox.from_bounds(left, y, width, height) for y in starts or [top]]
        taken = [t.place.padded(-0.5) for t in earlier if isinstance(t, _Caption)]
        self.place = next((p for p in places if not p.count_overlaps(taken)), places[0])
        self.set_position((self.place.x0 + pad, self.place.y0 + pad))
        super().draw(renderer)


def masks(ax: Axes, masks, labels=None, kind: str = "predicted", alpha: float = 0.45) -> Axes:
    """Masks (D, H, W) as tinted areas with an outline, the first on top; `labels` (D,) choose colours of classes."""
    masks = _array(masks).astype(bool)
    colours = _colours(kind if labels is None else labels, len(masks))
    _, height, width = masks.shape
    overlay = np.zeros((height, width, 4))
    for mask, colour in reversed(list(zip(masks, colours, strict=True))):
        overlay[mask] = (*to_rgb(colour), alpha)
        edges = _edges(mask)
        if labels is None and _style(kind) == "--":
            edges = edges[(edges[:, 0] @ (1, 2)) // 6 % 2 == 0]  # six pixels of dash, six of gap, in any direction
        ax.add_collection(LineCollection(list(edges), colors=colour, linewidths=1.2), autolim=False)
    return ax.imshow(overlay, extent=(0, width, height, 0)).axes


def _edges(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) -> the pixel edges (., 2, 2), pairs of (x, y), between its inside and its outside."""
    y, x = np.nonzero(np.diff(np.pad(mask, ((1, 1), (0, 0))), axis=0))
    v, u = np.nonzero(np.diff(np.pad(mask, ((0, 0), (1, 1))), axis=1))
    return np.stack([np.r_[x, u], np.r_[y, v], np.r_[x + 1, u], np.r_[y, v + 1]], axis=1).reshape(-1, 2, 2)


def detections(ax: Axes, result: dict, class_names: Sequence[str], threshold: float = 0.5) -> Axes:
    """A result of MaskRCNN in the classes' colours: boxes, masks where it has them, captions such as "person 0.93"."""
    keep = _array(result["scores"]) >= threshold
    found = {k: _array(result[k])[keep] for k in ("boxes", "labels", "scores", "masks") if k in result}
    if "masks" in found:
        masks(ax, found["masks"], found["labels"])
    captions = [f"{class_names[n]} {s:.2f}" for n, s in zip(found["labels"], found["scores"], strict=True)]
    return boxes(ax, found["boxes"], found["labels"], captions)


def curves(ax: Axes, history: Sequence[dict], names: Sequence[str] | None = None) -> Axes:
    """The losses `names` (default: all) over the E epochs of a stage's history: train dotted and hollow, val solid."""
    names = names or [key.removeprefix("train_") for key in history[0] if key.startswith("train_")]
    for name, colour in zip(names, LINES * len(names), strict=False):
        for split, style, face in (("train", ":", "white"), ("val", "-", colour)):
            rows = [row for row in history if f"{split}_{name}" in row]
            x, y = ([row[key] for row in rows] for key in ("epoch", f"{split}_{name}"))
            label = f"{name.replace('_', ' ')}, {split}"
            ax.plot(x, y, style, color=colour, marker="o", markersize=4, markerfacecolor=face, label=label)
    ax.locator_params("x", integer=True, min_n_ticks=1)
    ax.set(xlabel="epoch", ylabel="loss")
    return ax.legend(frameon=False, fontsize=8).axes


def precision_recall(ax: Axes, curves: Sequence[tuple], class_names: Sequence[str]) -> Axes:
    """Precision over recall of each class, as `coco_ap.precision_recall` gives; `class_names[0]` is background."""
    for label, (recall, precision) in enumerate(curves, start=1):
        if len(recall):
            ax.plot(recall, precision, color=class_colour(label), label=class_names[label])
    ax.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    if 0 < len(ax.lines) <= len(CLASS_COLOURS):
        ax.legend(frameon=False)
    return ax


def histogram(ax: Axes, values, bins=30, colour: str = LINES[0], xlabel: str = "", label: str | None = None) -> Axes:
    """How often each value occurs; a further call on the same axes covers what it lies over."""
    ax.hist(_array(values).ravel(), bins, color=colour, label=label)
    ax.set(xlabel=xlabel, ylabel="count")
    return ax


def heatmap(ax: Axes, map, size: tuple[int, int] | None = None, alpha: float = 1.0) -> Axes:
    """A map (Sy, Sx) in [0, 1] stretched over a frame of `size` (H, W), so that it can lie on the image (`alpha`)."""
    height, width = size or map.shape
    ax.imshow(_array(map), extent=(0, width, height, 0), alpha=alpha, vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    return ax


def legend(ax: Axes, kinds: Sequence[str] | Mapping[Any, str]) -> Axes:
    """The grammar's legend, below the axes: names in COLOURS, "before" and "after".

    A mapping gives other words, and to the labels of classes their names: {"truth": "object", 2: "person"}.
    """
    styles: list[tuple[str, Any]] = [
        _STYLES[kind] if isinstance(kind, str) else (class_colour(kind), "-") for kind in kinds
    ]
    handles = [Line2D([], [], color=c, linestyle=s, linewidth=2) for c, s in styles]
    words = kinds if isinstance(kinds, Mapping) else {kind: kind for kind in kinds} | {"truth": "ground truth"}
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01), "ncols": 4}
    names = [words[kind] for kind in kinds]
    return ax.legend(handles, names, **place, columnspacing=1, handlelength=1.5, fontsize=8, frameon=False).axes


def class_colour(label: int) -> str:
    """The colour of a class: the eight take turns."""
    return CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]


def most_frequent(labels, most: int = 10) -> list[int]:
    """Of the classes that occur among labels, those that a figure has room for: the most frequent, in order."""
    counts = np.bincount(_array(labels).astype(int))
    counts[:1] = 0  # background
    return sorted(np.argsort(-counts, kind="stable")[: min(most, np.count_nonzero(counts))].tolist())


def _style(kind) -> str:
    return _STYLES[kind][1] if isinstance(kind, str) else "-"


def _colours(kind, count: int) -> list[str]:
    return [COLOURS[kind]] * count if isinstance(kind, str) else [class_colour(int(label)) for label in kind]


def _array(values) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
