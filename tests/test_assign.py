import pytest
import torch

from lib.anchors import pyramid_anchors, pyramid_grids
from lib.assign import assign_anchors
from lib.boxes import inside, iou_matrix
from lib.config import Config
from lib.matching import IGNORED, POSITIVE, match_anchors

CONFIG = Config(anchor_scales=(8.0, 16.0, 32.0, 64.0, 128.0))
SIZE, CONTENT = (128, 160), (120, 150)
GRIDS = pyramid_grids(SIZE)


def objects(count: int, seed: int) -> torch.Tensor:
    """Boxes of all sizes, small integers, so that there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 100, (count, 2), generator=generator)
    size = torch.randint(1, 50, (count, 2), generator=generator)
    return torch.cat([start, (start + size).minimum(torch.tensor([150, 120]))], dim=1).float()


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("content", [None, CONTENT])
def test_labels_and_objects_of_the_plain_version(count, seed, content):
    gt, anchors = objects(count, seed), pyramid_anchors(GRIDS, CONFIG)
    valid = torch.arange(len(anchors)) if content is None else inside(anchors, *content).nonzero().flatten()
    labels, matched = torch.full((len(anchors),), IGNORED), torch.zeros(len(anchors), dtype=torch.long)
    labels[valid], matched[valid] = match_anchors(iou_matrix(anchors[valid], gt), 0.7, 0.3)
    fast, positive, of = assign_anchors(GRIDS, gt, CONFIG, content)
    assert torch.equal(fast.long(), labels)
    assert torch.equal(positive, (labels == POSITIVE).nonzero().flatten())
    assert torch.equal(of, matched[positive]) and (len(positive) > 0) == (count > 0)


def test_an_object_outside_the_image():
    labels, positive, _ = assign_anchors(GRIDS, torch.tensor([[900.0, 900, 950, 950], [-90, -90, -50, -50]]), CONFIG)
    assert len(positive) == 0 and (labels == 0).all()
