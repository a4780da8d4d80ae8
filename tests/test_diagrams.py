"""The diagrams: their numbers are those of the modules that run, and no text lies over another, or an arrow."""

import io
from functools import cache

import pytest
import torch
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path
from matplotlib.text import Text

from lib.anchors import pyramid_grids
from lib.config import load_config
from lib.notebook import diagrams
from lib.notebook.figures import SCREEN_DPI
from lib.roi_align import roi_align

LIT = ("data", "anchors", "rpn", "boxhead", "maskhead", "eval")
CONFIGS = {name: load_config(name) for name in ("course", "demo")}
CONFIGS["80 classes"] = CONFIGS["course"].replace(classes=tuple(f"class {n}" for n in range(80)))
CONFIGS["odd"] = CONFIGS["demo"].replace(
    **{"classes": ("one",), "image.height": 333, "image.width": 500, "backbone.name": "resnet18"}
    | {"backbone.channels": 32, "anchors.ratios": (1.0, 2.0), "boxhead.hidden": 48, "maskhead.hidden": 24}
)
HEADS = ("pyramid", "rpn_head", "box_head", "mask_head")
FIGURES = [
    ("roi_align", None),
    *(("system", lit) for lit in (*LIT, "all")),
    *((head, name) for head in HEADS for name in CONFIGS),
]


@cache  # no test changes a figure
def figure(name, argument):
    return getattr(diagrams, name)(*[CONFIGS.get(argument, argument)] * (argument is not None))


def texts(fig) -> list[Text]:
    return [text for text in fig.findobj(Text) if text.get_text() and text.get_visible()]


def words(name, argument) -> set[str]:
    return {text.get_text() for text in texts(figure(name, argument))}


@pytest.mark.parametrize(("name", "argument"), FIGURES)
def test_no_text_lies_over_another_or_an_arrow_or_the_edge(name, argument):
    fig = figure(name, argument)
    fig.set_dpi(SCREEN_DPI)  # where whole pixels make letters widest
    fig.draw_without_rendering()
    places = [(text.get_text(), text.get_window_extent()) for text in texts(fig)]
    arrows = [
        Path(line)
        for patch in fig.findobj(FancyArrowPatch)
        for line in patch.get_path().to_polygons(patch.get_transform(), closed_only=False)
    ]
    for number, (text, place) in enumerate(places):
        assert fig.bbox.x0 <= place.x0 and place.x1 <= fig.bbox.x1, text
        assert fig.bbox.y0 <= place.y0 and place.y1 <= fig.bbox.y1, text
        assert not [other for other, p in places[:number] if place.overlaps(p)], text
        assert not [arrow for arrow in arrows if arrow.intersects_bbox(place, filled=False)], text
    assert min(text.get_fontsize() for text in texts(fig)) >= 8


def test_one_part_of_the_system_is_lit_and_no_other_is_known():
    colours = {lit: [patch.get_edgecolor() for patch in figure("system", lit).axes[0].patches] for lit in LIT}
    bright = diagrams.shapes.to_rgb(diagrams.MAP)
    assert {lit: sum(c[:3] == bright for c in edges) for lit, edges in colours.items()} == {
        **{"data": 3, "anchors": 2, "rpn": 1, "boxhead": 2, "maskhead": 2, "eval": 2}
    }
    with pytest.raises(ValueError, match="no part 'joint': choose one of data, anchors, rpn, boxhead, maskhead, eval"):
        diagrams.system("joint")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_pyramid_has_the_sizes_of_its_grids(name):
    config = CONFIGS[name]
    shown, (height, width) = words("pyramid", name), config.image.padded_size
    assert f"3 × {height:,} × {width:,}" in shown
    channels = 256 if config.backbone.name == "maskrcnn_resnet50_fpn" else config.backbone.channels
    trunk = {"maskrcnn_resnet50_fpn": (256, 512, 1024, 2048), "mobilenet_v3_large": (24, 40, 112, 960)}
    widths = trunk.get(config.backbone.name, (64, 128, 256, 512))
    for rows, columns in pyramid_grids(config.image.padded_size):
        assert f"{channels} × {rows} × {columns}" in shown
    for width, (rows, columns) in zip(widths, pyramid_grids(config.image.padded_size), strict=False):
        assert {f"{width:,} × {rows} × {columns}", f"1 × 1 conv, {width:,} → {channels}"} <= shown


@pytest.mark.parametrize(
    ("head", "name", "expected"),
    [
        ("rpn_head", "course", {"256 × Sy × Sx", "a = 3 logits a cell", "4 a = 12 deltas a cell", "256 → 12"}),
        ("rpn_head", "odd", {"32 × Sy × Sx", "a = 2 logits a cell", "4 a = 8 deltas a cell", "32 → 2"}),
        ("box_head", "course", {"256 × 7 × 7", "12,544", "1,024", "C + 1 = 4 logits", "4 C = 12 deltas"}),
        ("box_head", "demo", {"64 × 7 × 7", "3,136", "256", "256 → 256", "256 → 4"}),
        ("box_head", "80 classes", {"1,024 → 81", "C + 1 = 81 logits", "4 C = 320 deltas", "1,024 → 320"}),
        ("box_head", "odd", {"1,568 → 48", "C + 1 = 2 logits", "4 C = 4 deltas"}),
        ("mask_head", "course", {"256 × 14 × 14", "256 × 28 × 28", "3 × 28 × 28", "4 times 3 × 3 conv, ReLU"}),
        ("mask_head", "80 classes", {"80 × 28 × 28", "a mask a class, C = 80", "256 → 80"}),
        ("mask_head", "odd", {"32 × 14 × 14", "24 × 14 × 14", "24 × 28 × 28", "1 × 28 × 28", "2 × 2 deconv"}),
    ],
)
def test_the_heads_have_the_widths_of_their_layers(head, name, expected):
    assert expected <= words(head, name)


def test_the_weights_of_the_four_pixels_are_those_of_roi_align():
    """The gradient of a pooled value is the weight of each pixel in it: here of a box around one point alone."""
    features, half = torch.zeros(1, 1, 6, 8, requires_grad=True), 1e-3
    x, y = 1.0 + 5.4 * 2.5 / 6, 1.1 + 3.9 * 2.5 / 6  # the third of six points a side, of the box (1, 1.1, 6.4, 5)
    around = torch.tensor([[x - half, y - half, x + half, y + half]])
    roi_align(features, around, torch.tensor([0]), size=1).sum().backward()
    weights = features.grad[features.grad > 0]
    assert len(weights) == 4 and {f"{weight:.2f}" for weight in weights} <= words("roi_align", None)


def test_a_diagram_is_drawn_as_the_same_bytes():
    pictures = [io.BytesIO(), io.BytesIO()]
    for picture in pictures:
        diagrams.system("data").savefig(picture, format="png", dpi=SCREEN_DPI)
    assert pictures[0].getvalue() == pictures[1].getvalue()
