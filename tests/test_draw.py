"""Drawing: everything lines up to the half pixel, captions stay inside the axes, the axes come back."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lib.notebook import draw

SCALE = 20  # screen pixels to a pixel of the tiny image
MASK = torch.zeros(1, 6, 8)
MASK[0, 1:4, 2:6] = 1
TIGHT = [[2, 1, 6, 4]]  # the box of that mask
HISTORY = [{"epoch": e, "train_a": 3 / e, "val_a": 4 / e, "train_b_c": 1.0} for e in (1.0, 2.0, 3.0)]


def canvas(height=6, width=8, scale=SCALE):
    """Axes filling a canvas with scale x scale screen pixels to an image pixel, and a function that rasterises them."""
    fig = Figure(figsize=(width, height), dpi=scale)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.axis("off")

    def raster() -> np.ndarray:
        agg = FigureCanvasAgg(fig)
        agg.draw()
        return np.asarray(agg.buffer_rgba())[..., :3].astype(int)

    return ax, raster


def extent(lit: np.ndarray) -> list[int]:
    """Where the lit screen pixels lie: left, top, right, bottom."""
    y, x = np.nonzero(lit)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def paint_image(ax):
    draw.image(ax, MASK.expand(3, -1, -1))


def paint_mask(ax):
    draw.masks(draw.image(ax, torch.zeros(3, 6, 8)), MASK, alpha=1)


def paint_box(ax):
    draw.boxes(draw.image(ax, torch.zeros(3, 6, 8)), TIGHT, linewidth=4)


def paint_heatmap(ax):
    draw.heatmap(ax, MASK[0], (6, 8))
    ax.images[-1].set_cmap("gray")


@pytest.mark.parametrize("paint", [paint_image, paint_mask, paint_box, paint_heatmap])
def test_image_mask_box_and_map_line_up(paint):
    ax, raster = canvas()
    paint(ax)
    np.testing.assert_allclose(extent(raster().sum(2) > 100), np.array(TIGHT[0]) * SCALE, atol=1)


def test_a_map_is_stretched_over_the_images_frame():
    ax, raster = canvas()
    draw.heatmap(ax, torch.tensor([[0.0, 1.0]]), (6, 8))
    ax.images[-1].set_cmap("gray")
    assert extent(raster().sum(2) > 100) == [4 * SCALE, 0, 8 * SCALE, 6 * SCALE]


def test_the_outline_follows_the_pixels_of_the_mask():
    edges = draw._edges(np.array([[1, 0], [1, 1]], dtype=bool))
    assert {tuple(map(tuple, edge)) for edge in edges.tolist()} == {
        ((0, 0), (1, 0)),  # above the first pixel
        ((1, 1), (2, 1)),  # above the third
        ((0, 2), (1, 2)),
        ((1, 2), (2, 2)),
        ((0, 0), (0, 1)),
        ((0, 1), (0, 2)),
        ((1, 0), (1, 1)),
        ((2, 1), (2, 2)),
    }


def test_denormalise_undoes_the_preprocessing():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    image = torch.rand(3, 4, 5)
    x = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    np.testing.assert_allclose(draw.denormalise(x, mean, std), image, atol=1e-6)
    assert draw.denormalise(x + 9, mean, std).max() == 1


def test_boxes_do_not_leave_the_axes_unless_there_is_a_margin():
    ax, raster = canvas()
    draw.boxes(draw.image(ax, torch.zeros(3, 6, 8)), [[-2, -2, 9, 9]])
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 8), (6, 0)) and raster().sum() == 0
    ax, raster = canvas(12, 14)
    draw.boxes(draw.image(ax, torch.zeros(3, 6, 8), margin=3), [[-2, -2, 9, 9]])
    np.testing.assert_allclose(extent(raster().min(2) < 150), np.array([1, 1, 12, 12]) * SCALE, atol=2)


CORNERS = [
    [0, 0, 50, 40],
    [350, 0, 400, 40],
    [0, 260, 50, 300],
    [350, 260, 400, 300],
    [0, 0, 400, 300],
    [390, 100, 400, 300],
]


@pytest.mark.parametrize("dpi", [40, 80, 150])
@pytest.mark.parametrize("boxes", [CORNERS, [[390, 5, 400, 20]] * 6, [[0, 290, 9, 300]] * 6, [[-50, -50, 500, 350]]])
def test_captions_lie_inside_the_axes_and_apart(boxes, dpi):
    fig = Figure(figsize=(8, 6), dpi=dpi, layout="constrained")
    ax = draw.image(fig.add_subplot(), torch.zeros(3, 300, 400))
    draw.boxes(ax, boxes, captions=["vehicle 0.87"] * len(boxes))
    for _ in range(2):  # the second time as the first
        FigureCanvasAgg(fig).draw()
        frame, places = ax.bbox.padded(0.5), [text.place for text in ax.texts]
        assert len(places) == len(boxes)
        for number, place in enumerate(places):
            assert frame.x0 <= place.x0 and place.x1 <= frame.x1 and frame.y0 <= place.y0 and place.y1 <= frame.y1
            assert not place.padded(-1).count_overlaps([p.padded(-1) for p in places[:number]])


def test_a_caption_stands_above_its_box_where_there_is_room():
    ax, raster = canvas(3, 4, 100)
    draw.boxes(draw.image(ax, torch.zeros(3, 300, 400)), [[100, 100, 200, 200], [300, 0, 380, 90]], captions=["a", "b"])
    raster()
    above, inside = (text.place for text in ax.texts)
    assert (above.x0, above.y0) == pytest.approx((100, 200))  # screen y points up
    assert (inside.x0, inside.y1) == pytest.approx((300, 300))


def test_detections_keep_the_score_and_name_the_class():
    result = {
        "boxes": torch.tensor([[1.0, 1, 4, 4], [2, 2, 6, 5]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.934, 0.4]),
        "masks": MASK.expand(2, -1, -1).to(torch.uint8),
    }
    ax, _ = canvas()
    draw.detections(draw.image(ax, torch.zeros(3, 6, 8)), result, ("background", "vehicle", "person", "animal"))
    assert [text.get_text() for text in ax.texts] == ["person 0.93"]
    assert ax.texts[0].get_bbox_patch().get_facecolor()[:3] == draw.to_rgb(draw.class_colour(2))


def test_curves_are_dotted_for_train_and_solid_for_val():
    ax, _ = canvas()
    draw.curves(ax, HISTORY)
    assert [(line.get_label(), line.get_linestyle()) for line in ax.lines][:2] == [("a, train", ":"), ("a, val", "-")]
    assert ax.lines[1].get_xydata().tolist() == [[1, 4], [2, 2], [3, 4 / 3]]
    assert len(draw.curves(canvas()[0], HISTORY, ["b_c"]).lines) == 2


def test_legend_names_the_grammar():
    ax, _ = canvas()
    draw.legend(ax, ("truth", "predicted", "before", "after"))
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["ground truth", "predicted", "before", "after"]
    assert [handle.get_linestyle() for handle in ax.get_legend().get_lines()] == ["--", "-", ":", "-"]
    draw.legend(ax, {"truth": "object", "negative": "background proposal", 2: "person"})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["object", "background proposal", "person"]
    assert ax.get_legend().get_lines()[2].get_color() == draw.class_colour(2)


PR = [(np.array([0, 1]), np.array([1, 0.5])), (np.zeros(0), np.zeros(0)), (np.array([0, 0.5]), np.array([1, 1]))]
NAMES = ("background", "vehicle", "person", "animal")


@pytest.mark.parametrize(
    "call",
    [
        lambda ax: draw.image(ax, torch.zeros(3, 6, 8, dtype=torch.uint8)),
        lambda ax: draw.boxes(ax, torch.zeros(0, 4), [], []),
        lambda ax: draw.masks(ax, torch.zeros(0, 6, 8)),
        lambda ax: draw.masks(ax, torch.zeros(1, 6, 8), [3]),
        lambda ax: draw.precision_recall(ax, PR, NAMES),
        lambda ax: draw.precision_recall(ax, PR[1:2] * 3, NAMES),
        lambda ax: draw.histogram(ax, torch.rand(9), xlabel="score"),
        lambda ax: draw.curves(ax, HISTORY),
        lambda ax: draw.legend(ax, ["truth"]),
    ],
)
def test_every_function_returns_its_axes(call):
    ax, raster = canvas()
    assert call(ax) is ax
    raster()
