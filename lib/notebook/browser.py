"""Browsers: look through a data set's anchors or detections with a slider. The only module that knows ipywidgets.

    G  objects    A  anchors of the pyramid    D  detections of an image
    anchors are shown in the network's input frame, detections in the frame of the data set; both in pixels

A browser draws one figure into one picture, redrawn when a control is let go. The figure is a function of its own, for
a static montage: it is not one of pyplot's, so a cell ends with it, displays it or saves it with save_figure.
"""

import html
import io
from collections.abc import Callable
from functools import cache

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lib.anchors import LEVELS, anchor_levels, pyramid_anchors, pyramid_grids
from lib.boxes import Named, inside, iou_matrix
from lib.config import Config
from lib.data.batches import Examples, prepare
from lib.maskrcnn import MaskRCNN
from lib.matching import IGNORED, NEGATIVE, POSITIVE
from lib.notebook import draw
from lib.notebook.figures import SCREEN_DPI
from lib.preprocess import IMAGE_MEAN, IMAGE_STD
from lib.rpn import rpn_targets

ALL_LEVELS = "all"
FIGURE_SIZE = (8, 6.6)  # inches
SHOWN = 40  # ignored and negative anchors drawn: a sample, evenly spaced in the order of the anchors


def browse_anchors(dataset: Examples, config: Config) -> widgets.VBox:
    """Every image's anchors and their labels (§4.2), by level and by kind: the last expression of a cell."""
    controls = {"level": widgets.Dropdown(options=(ALL_LEVELS, *LEVELS), description="level")}
    controls |= {kind: _checkbox(kind, kind == "positive") for kind in ("positive", "ignored", "negative")}
    return _browser(len(dataset), controls, lambda **values: anchors_figure(dataset, config, **values))


def browse_masks(model: MaskRCNN, dataset: Examples, stage: str = "maskhead") -> widgets.VBox:
    """Every image's detections over its ground truth; the model, trained up to `stage`, sees each image once."""
    found = cache(lambda index: predict(model, dataset[index][0], stage))
    scores = {"value": 0.5, "min": 0.05, "max": 0.95, "step": 0.05}
    controls = {"threshold": widgets.FloatSlider(**scores, description="score", continuous_update=False)}
    shown = {"truth": "ground truth", "boxes": "boxes", "masks": "masks"}
    controls |= {name: _checkbox(what, True) for name, what in shown.items()}
    return _browser(len(dataset), controls, lambda index, **v: masks_figure(dataset, index, found(index), **v))


def anchors_figure(
    dataset: Examples, config: Config, index: int, level=ALL_LEVELS, positive=True, ignored=False, negative=False
) -> Figure:
    """Image `index` in the network's frame with its ground truth, a level's anchors by kind, and their counts."""
    image, target = dataset[index]
    x, (target,), content = prepare(image[None], [{"boxes": target["boxes"]}], config.image)
    grids = pyramid_grids(config.image.padded_size)
    anchors, level_of = pyramid_anchors(grids, config.anchors), anchor_levels(grids, len(config.anchors.ratios))
    labels, _ = rpn_targets(anchors, target["boxes"], content, config.rpn)
    here = level_of >= 0 if level == ALL_LEVELS else level_of == LEVELS.index(level)
    removed = ~inside(anchors, *content) & (config.rpn.cross_boundary == "remove")
    kinds = {"negative": labels == NEGATIVE, "ignored": (labels == IGNORED) & ~removed, "positive": labels == POSITIVE}
    figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
    ax = draw.image(figure.add_subplot(), draw.denormalise(x[0], IMAGE_MEAN, IMAGE_STD))
    for kind in ["negative"] * negative + ["ignored"] * ignored:
        draw.boxes(ax, _some(anchors[kinds[kind] & here]), kind, linewidth=0.8)
    draw.boxes(ax, target["boxes"], "truth", linewidth=2.4)
    chosen = kinds["positive"] & here
    if positive and chosen.any():
        iou = iou_matrix(anchors[chosen], target["boxes"]).amax(dim=1)
        captions = [f"{LEVELS[n]} {v:.2f}" for n, v in zip(level_of[chosen], iou, strict=True)]
        draw.boxes(ax, anchors[chosen], "positive", captions, linewidth=1.2)
    counted = kinds | ({"across the boundary": removed} if removed.any() else {})
    counts = [f"{(mask & here).sum():,} {kind}" for kind, mask in counted.items()]
    each = [f"{name} {(kinds['positive'] & (level_of == n)).sum()}" for n, name in enumerate(LEVELS)]
    lines = f"image {index}, level {level}: {', '.join(counts)}", f"positive by level: {' · '.join(each)}"
    ax.set_title("\n".join(lines), fontsize=9)
    draw.legend(ax, ("truth", "positive", "ignored", "negative"))
    return figure


def masks_figure(
    dataset: Examples, index: int, result: Named, threshold=0.5, truth=True, boxes=True, masks=True
) -> Figure:
    """Image `index`, its ground truth, and its detections (D), a `result` of `predict`, of at least this score."""
    (image, target), names = dataset[index], ("background", *dataset.classes)
    found = {k: result[k][result["scores"] >= threshold] for k in ("boxes", "labels", "scores", "masks") if k in result}
    figure = Figure(figsize=FIGURE_SIZE, layout="constrained")
    ax = draw.image(figure.add_subplot(), image)
    if truth and masks and "masks" in target:
        draw.masks(ax, target["masks"], kind="truth", alpha=0)
    if truth and boxes:
        draw.boxes(ax, target["boxes"], "truth", [names[n] for n in target["labels"]])
    if masks and "masks" in found:
        draw.masks(ax, found["masks"], found["labels"])
    if boxes:
        draw.detections(ax, {k: v for k, v in found.items() if k != "masks"}, names, threshold)
    counts = f"{len(target['boxes'])} objects, {len(found['boxes'])} detections with score ≥ {threshold:.2f}"
    ax.set_title(f"image {index}: {counts}", fontsize=9)
    draw.legend(ax, ["truth"])
    return figure


def predict(model: MaskRCNN, image: Tensor, stage: str) -> Named:
    """One image (3, H, W) uint8 -> its detections, on the CPU."""
    (result,) = model.eval()(image[None].to(next(model.parameters()).device), stage)
    return {name: value.cpu() for name, value in result.items()}


def _some(boxes: Tensor) -> Tensor:
    return boxes[torch.linspace(0, len(boxes) - 1, min(SHOWN, len(boxes))).long()]


def _checkbox(description: str, value: bool = False) -> widgets.Checkbox:
    return widgets.Checkbox(value=value, description=description, indent=False, layout={"width": "auto"})


def _browser(count: int, controls: dict[str, widgets.Widget], figure: Callable[..., Figure]) -> widgets.VBox:
    """Controls above one picture: `figure(index=..., **values of the controls)`, drawn anew when one changes."""
    if not count:
        raise ValueError("this data set has no images: choose another split, or write the data again")
    index = widgets.IntSlider(max=count - 1, description="image", continuous_update=False)
    steps = [widgets.Button(description=text, layout={"width": "40px"}) for text in "◀▶"]
    picture = widgets.Image(format="png", layout={"max_width": "100%", "align_self": "flex-start"})
    status = widgets.HTML()

    def redraw(_=None) -> None:
        status.value = "drawing …"
        try:
            with io.BytesIO() as file:
                values = {name: control.value for name, control in controls.items()}
                figure(index=index.value, **values).savefig(file, dpi=SCREEN_DPI)
                picture.value = file.getvalue()
            status.value = ""
        except Exception as error:  # a widget's callback has no other place to report to
            status.value = f"{type(error).__name__}: {html.escape(str(error))}"

    for button, step in zip(steps, (-1, 1), strict=True):
        button.on_click(lambda _, step=step: setattr(index, "value", (index.value + step) % count))
    for control in (index, *controls.values()):
        control.observe(redraw, "value")
    redraw()
    return widgets.VBox([widgets.HBox([index, *steps]), widgets.HBox(list(controls.values())), picture, status])
