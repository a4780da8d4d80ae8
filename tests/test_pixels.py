"""Pictures as the browsers draw them: lines and hatchings tell kinds apart, captions keep clear, the legend is true."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lib.notebook.pixels import AREAS, STYLES, WIDTH, Canvas, encoded

GREY = torch.full((3, 30, 40), 100, dtype=torch.uint8)
BOX = torch.tensor([[10.0, 10, 20, 20]])  # in a picture of 40 x 30, shown 20 times as large: 200 to 400
ROWS = 600


def canvas(**options) -> Canvas:
    return Canvas(GREY, (30, 40), **options)


def pixels(drawn: Canvas) -> np.ndarray:
    return np.asarray(drawn.finished())


def test_nothing_drawn_is_the_picture_without_a_legend():
    assert pixels(canvas()).shape == (ROWS, WIDTH, 3) and (pixels(canvas()) == 100).all()


def test_a_box_is_drawn_inwards_from_its_edge_with_a_dark_rim():
    drawn = canvas()
    drawn.boxes(BOX, "positive")
    across = (pixels(drawn)[300] != 100).any(axis=1).nonzero()[0]
    assert across.tolist() == [199, 200, 201, 202, 397, 398, 399, 400]
    assert pixels(drawn)[300, 200].tolist() == [0x56, 0xB4, 0xE9] and pixels(drawn)[300, 199].max() < 40


def test_lines_tell_kinds_apart_without_colour():
    """Along the upper edge and across the left one: no two kinds of a browser have the same pattern."""
    patterns = {}
    for kind in ("ground truth", "positive", "negative", "ignored", "across the boundary"):
        drawn = canvas()
        drawn.boxes(BOX, kind)
        changed = (pixels(drawn) != 100).any(axis=2)
        patterns[kind] = changed[200, 210:390].tobytes(), pixels(drawn)[300, 200:204].std(axis=1).astype(int).tobytes()
    assert len({pattern[0] for pattern in patterns.values()}) == 4  # solid and double are both unbroken ...
    assert len(set(patterns.values())) == 5  # ... but two lines are not one


def test_a_box_beyond_the_picture_is_cut_off_where_it_ends():
    drawn = canvas(margin=5)
    drawn.boxes(torch.tensor([[-20.0, 10, 20, 50]]), "positive")
    changed = (pixels(drawn) != pixels(canvas(margin=5))[:1, :1]).any(axis=2)
    assert changed[240, :200].all() and not changed[241:245, 4].all()
    zoom = WIDTH / 50
    edge = round(25 * zoom) - 1  # the right edge, from the box's top to the picture's lower end
    assert (pixels(drawn)[300 : round(40 * zoom), edge] == [0x56, 0xB4, 0xE9]).all()


def test_what_is_drawn_first_is_on_top():
    drawn = canvas()
    drawn.boxes(BOX, "positive")
    drawn.boxes(BOX, "proposal")
    assert pixels(drawn)[300, 200].tolist() == [0x56, 0xB4, 0xE9]


def test_padding_and_margin_can_be_seen():
    drawn = pixels(canvas(frame=(32, 44), margin=4))
    corner, padding = drawn[0, 0], drawn[100, WIDTH - round(5 * WIDTH / 52)]
    assert corner.tolist() != padding.tolist() and drawn[100, 100].tolist() == [100] * 3


def test_captions_keep_clear_of_one_another_and_within_the_picture():
    drawn, corners = canvas(), torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) * 25
    drawn.boxes(torch.cat([corners, corners + 8], dim=1)[:20], "positive", ["P3 0.75"] * 20)
    drawn.boxes(torch.cat([corners, corners + 8], dim=1)[20:], "ignored", ["P4 0.35"] * 40)
    drawn.finished()
    places = np.array(drawn.captioned)
    assert 10 < len(places) <= 40 and places.min() >= 0 and (places[:, 2:] < [WIDTH, ROWS]).all()
    for n, (x1, y1, x2, y2) in enumerate(places):
        others = np.delete(places, n, axis=0)
        apart = (others[:, 0] > x2) | (others[:, 2] < x1) | (others[:, 1] > y2) | (others[:, 3] < y1)
        assert apart.all() and x2 - x1 > 40 and y2 - y1 >= 12


def test_the_legend_holds_what_was_drawn_and_nothing_else():
    drawn = canvas()
    drawn.boxes(torch.zeros(0, 4), "negative")
    drawn.boxes(BOX, "positive")
    drawn.boxes(BOX, "detection", labels=torch.tensor([2]), names=("background", "vehicle", "person"))
    drawn.areas({"hit": np.ones((30, 40), bool), "missed": np.zeros((30, 40), bool)}, 0.5)
    assert list(drawn.legend) == ["positive", "person", "hit pixels"]
    picture = pixels(drawn)
    assert picture.shape[0] > ROWS and (picture[ROWS, 0] == 255).all()
    for kind in STYLES:
        drawn.boxes(BOX, kind)
    assert pixels(drawn).shape[0] > picture.shape[0]  # it needs a second line


def test_masks_lie_in_their_pixels_with_the_first_on_top():
    masks = np.zeros((2, 30, 40), np.uint8)
    masks[0, 10:20, 10:20] = masks[1, 10:20, 15:25] = 1
    drawn = canvas()
    drawn.masks(masks, ["#ff0000", "#0000ff"], ["one", "other"], 0.5)
    picture = pixels(drawn)[:ROWS]
    changed = (picture != 100).any(axis=2)
    assert changed[200:400, 200:500].all() and changed.sum() == 200 * 300
    assert picture[300, 350, 0] > 100 > picture[300, 350, 2] and picture[300, 450, 2] > 100 > picture[300, 450, 0]
    assert picture[205, 300].tolist() == [255, 0, 0]  # the edge
    assert list(drawn.legend) == ["one", "other"]


def test_an_outline_alone_leaves_the_inside():
    masks = np.zeros((1, 30, 40), np.uint8)
    masks[0, 10:20, 10:20] = 1
    drawn = canvas()
    drawn.masks(masks, ["#ff0000"], ["ground truth"], 0.0, dashed=True)
    changed = (pixels(drawn)[:ROWS] != 100).any(axis=2)
    assert not changed[220:380, 220:380].any() and 0 < changed[200:220, 200:400].mean() < 1


@pytest.mark.parametrize("opacity", [0.2, 1.0])
def test_hatchings_tell_areas_apart_without_colour(opacity):
    patterns = set()
    for name in AREAS:
        drawn = canvas()
        drawn.areas({name: np.ones((30, 40), bool)}, opacity)
        strong = np.abs(pixels(drawn)[:ROWS].astype(int) - 100).max(axis=2)
        patterns.add((strong > strong.max() / 2)[:24, :24].tobytes())
    assert len(patterns) == 3


def test_a_heat_map_shows_the_highest_of_several_maps():
    low, high = torch.zeros(1, 1), torch.tensor([[0.0, 1.0]])
    drawn = canvas()
    drawn.heat([low, high], "IoU")
    left, right = pixels(drawn)[300, 100].astype(int), pixels(drawn)[300, 700].astype(int)
    assert right[1] > left[1] + 50 and list(drawn.legend) == ["IoU"]


def test_everything_is_twice_as_fine_where_asked():
    for detail in (1, 2):
        drawn = canvas(detail=detail)
        drawn.boxes(BOX, "ground truth", ["animal"])
        width = (pixels(drawn)[300 * detail, 190 * detail : 300 * detail] != 100).any(axis=1).sum()
        assert pixels(drawn).shape[1] == WIDTH * detail and width in (0, 5 * detail)


def test_what_is_sent_is_a_jpeg_close_to_the_picture():
    drawn = canvas()
    drawn.boxes(BOX, "positive", ["P3 0.75"])
    sent = Image.open(io.BytesIO(encoded(drawn.finished())))
    assert sent.format == "JPEG"
    assert np.abs(np.asarray(sent).astype(int) - pixels(drawn)).mean() < 1
