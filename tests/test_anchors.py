import pytest
import torch
from torch.testing import assert_close

from lib.anchors import STRIDES, anchor_levels, level_anchors, pyramid_anchors, pyramid_grids
from lib.boxes import area, inside
from lib.config import load_config
from lib.data.batches import flip_boxes


def test_a_level_by_hand():
    """Cells of 4 pixels, scale 8: the first centre is (2, 2), half sides 4 sqrt(r) and 4 / sqrt(r)."""
    half = torch.tensor([[2.828427, 5.656854], [4, 4], [5.656854, 2.828427]])  # w / h = 1/2, 1, 2
    centres = torch.tensor([[2.0, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6]])  # row by row
    expected = torch.stack([torch.cat([c - h, c + h]) for c in centres for h in half])
    assert_close(level_anchors((2, 3), 4, 8.0, (0.5, 1.0, 2.0)), expected)


def test_course_pyramid_counts():
    course = load_config("course")
    grids = pyramid_grids(course.image.padded_size)
    assert grids == ((200, 272), (100, 136), (50, 68), (25, 34), (13, 17))
    anchors = pyramid_anchors(grids, course.anchors)
    assert anchors.shape == (217_413, 4) and anchors.dtype == torch.float32
    assert int(inside(anchors, 800, 1066).sum()) == 190_911
    counts = anchor_levels(grids, 3).bincount().tolist()
    assert counts == [3 * rows * columns for rows, columns in grids]


def test_scales_and_ratios_of_every_level():
    course = load_config("course")
    grids = pyramid_grids(course.image.padded_size)
    levels = pyramid_anchors(grids, course.anchors).split([3 * h * w for h, w in grids])
    for anchors, scale in zip(levels, (32, 64, 128, 256, 512), strict=True):
        width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
        assert_close(area(anchors).sqrt(), torch.full((len(anchors),), float(scale)), rtol=1e-4, atol=0)
        assert_close(
            (width / height).view(-1, 3), torch.tensor([0.5, 1, 2]).expand(len(anchors) // 3, 3), rtol=1e-4, atol=0
        )


def test_flip_consistency():
    """On a grid that fills the image, the mirrored anchors are the anchors, columns read backwards."""
    anchors = level_anchors((3, 5), 8, 20.0, (0.5, 1.0, 2.0)).view(3, 5, 3, 4)
    assert_close(flip_boxes(anchors, 40), anchors.flip(1))


@pytest.mark.parametrize("size", [(96, 128), (100, 130), (33, 65)])
def test_grids_are_those_of_a_backbone(size, tiny_model):
    features = tiny_model().backbone(torch.zeros(1, 3, *size)).values()
    assert pyramid_grids(size) == tuple(tuple(f.shape[2:]) for f in features)
    assert STRIDES == (4, 8, 16, 32, 64)
