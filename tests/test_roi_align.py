import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import roi_align as oracle

from lib.roi_align import pool, pyramid_level, roi_align

ZERO = torch.zeros(1, dtype=torch.long)


def ramp(height: int = 8, width: int = 8) -> torch.Tensor:
    """f(x, y) = x + 10 y at the pixel centres (0, 0), (1, 0), ... : bilinear interpolation gives it back exactly."""
    return (torch.arange(width) + 10 * torch.arange(height)[:, None]).float()[None, None]


@pytest.mark.parametrize(
    "roi, value",
    [
        # one cell: the mean of four samples at 1/4 and 3/4, minus 0.5 to pixel centres, so f(centre - 0.5)
        ((2, 2, 4, 4), 2.5 + 10 * 2.5),
        ((1, 3, 2, 4), 1 + 10 * 3),
        ((0.5, 0.5, 3.5, 6.5), 1.5 + 10 * 3),
        # samples at x = 0.25 and 0.75 less 0.5: -0.25 continues as 0, 0.25 stays; so x = 0.125, and y likewise
        ((0, 0, 1, 1), 0.125 + 10 * 0.125),
        # samples at x = 7.25 and 7.75 less 0.5: 6.75, and 7.25 which continues as 7
        ((7, 2, 8, 4), 6.875 + 10 * 2.5),
        ((20, 20, 30, 30), 0.0),  # wholly outside
    ],
)
def test_one_cell_by_hand(roi, value):
    pooled = roi_align(ramp(), torch.tensor([roi]).float(), ZERO, 1)
    assert_close(pooled, torch.tensor(value).float().view(1, 1, 1, 1))


def test_cells_by_hand():
    """A 4 x 4 RoI at (2, 2) in 2 x 2 cells: centres 3 and 5, less 0.5."""
    expected = torch.tensor([[2.5 + 25, 4.5 + 25], [2.5 + 45, 4.5 + 45]])
    assert_close(roi_align(ramp(), torch.tensor([[2.0, 2, 6, 6]]), ZERO, 2)[0, 0], expected)


ROIS = torch.tensor(
    [
        [4.0, 4, 40, 40],
        [0, 0, 64, 48],  # the whole map
        [-30, -20, 20, 30],  # over the upper left border
        [50, 40, 90, 70],  # over the lower right border
        [200, 200, 260, 240],  # outside
        [-90, -90, -40, -40],
        [60, 10, 64, 30],  # on the border
        [10.3, 7.9, 10.3, 7.9],  # empty
        [13.37, 11.1, 15.2, 40.4],
        [-2, -2, 2, 2],  # samples exactly one pixel outside, at -1 after the scale
    ]
)


@pytest.mark.parametrize("size, samples, scale", [(7, 2, 0.25), (14, 2, 1.0), (2, 3, 0.125), (1, 1, 0.5)])
def test_values_and_gradients_are_torchvisions(size, samples, scale):
    generator = torch.Generator().manual_seed(0)
    height, width = int(48 * scale), int(64 * scale)
    ours = torch.randn(2, 5, height, width, generator=generator).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    rois = torch.cat([ROIS, torch.rand(30, 4, generator=generator) * 40 + torch.tensor([0, 0, 30, 30])])
    images = torch.arange(len(rois)) % 2
    got = roi_align(ours, rois, images, size, scale, samples)
    expected = oracle(theirs, torch.cat([images[:, None], rois], 1), size, scale, samples, aligned=True)
    assert_close(got, expected, atol=1e-4, rtol=1e-4)
    weight = torch.randn(got.shape, generator=generator)
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_no_rois_give_a_differentiable_nothing():
    features = torch.ones(2, 5, 8, 8, requires_grad=True)
    pooled = roi_align(features, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 7)
    assert pooled.shape == (0, 5, 7, 7)
    pooled.sum().backward()
    assert_close(features.grad, torch.zeros_like(features))


def test_mirrored_features_and_rois_pool_mirrored():
    features = torch.randn(1, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    roi = torch.tensor([[2.2, 1.1, 9.7, 8.3]])
    flipped = torch.tensor([[16 - 9.7, 1.1, 16 - 2.2, 8.3]])
    assert_close(
        roi_align(features.flip(-1), flipped, ZERO, 7).flip(-1), roi_align(features, roi, ZERO, 7), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    "width, height, level",
    [
        (224, 224, 4),
        (223, 223, 3),
        (112, 112, 3),  # 4 + log2(1 / 2)
        (111, 111, 2),
        (448, 448, 5),
        (447, 447, 4),
        (112, 448, 4),  # the same area as 224 x 224
        (10, 10, 2),  # limited below ...
        (2000, 2000, 5),  # ... and above
        (0, 10, 2),
    ],
)
def test_levels_by_hand(width, height, level):
    assert pyramid_level(torch.tensor([[3.0, 5.0, 3.0 + width, 5.0 + height]])).tolist() == [level]


def test_pyramid_pooling_is_torchvisions():
    generator = torch.Generator().manual_seed(2)
    maps = [torch.randn(2, 4, 256 // s, 320 // s, generator=generator) for s in (4, 8, 16, 32)]
    start = torch.rand(40, 2, generator=generator) * 100
    rois = torch.cat([start, start + 8 + torch.rand(40, 2, generator=generator) ** 3 * 200], dim=1)
    levels = pyramid_level(rois, canonical_size=56.0)
    assert set(levels.tolist()) == {2, 3, 4, 5}
    images = torch.arange(40) % 2
    ours = pool(maps, [1 / s for s in (4, 8, 16, 32)], rois, images, levels - 2, 7)
    per_image = [(images == i).nonzero().flatten() for i in (0, 1)]
    for boxes in per_image:  # level by level, since torchvision pools with aligned=False there
        for k in (2, 3, 4, 5):
            chosen = boxes[levels[boxes] == k]
            batch = torch.cat([images[chosen, None], rois[chosen]], dim=1)
            expected = oracle(maps[k - 2], batch, 7, 1 / 2**k, 2, aligned=True)
            assert_close(ours[chosen], expected, atol=1e-4, rtol=1e-4)


def test_levels_are_torchvisions():
    rois = torch.rand(500, 4, generator=torch.Generator().manual_seed(3)) * 300 + torch.tensor([0, 0, 300, 300])
    mapper = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    maps = {str(i): torch.zeros(1, 1, 1024 // s, 1024 // s) for i, s in enumerate((4, 8, 16, 32))}
    mapper(maps, [rois], [(1024, 1024)])
    assert_close(pyramid_level(rois) - 2, mapper.map_levels([rois]))
