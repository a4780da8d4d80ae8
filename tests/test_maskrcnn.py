import pytest
import torch
from torch.testing import assert_close

from lib.anchors import pyramid_grids
from lib.preprocess import ImageConfig, content_size
from lib.roi_align import roi_align

PICTURE = torch.randint(0, 256, (1, 3, 300, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def eager(model):
    """An untrained model that finds something: random heads that prefer objects."""
    torch.manual_seed(1)
    for layer in (model.rpn.objectness, model.box_head.classifier, model.mask_head.layers[-1]):
        torch.nn.init.normal_(layer.weight, std=1.0)
    model.box_head.classifier.bias.data = torch.tensor([-5.0, 0, 0, 0])
    return model


@pytest.mark.parametrize("size", [(300, 400), (301, 333), (57, 201), (480, 240)])
def test_detections_are_in_the_pictures_own_frame(tiny_model, size):
    pictures = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    results = eager(tiny_model(**{"boxhead.test.post_nms": 8}))(pictures)
    assert len(results) == 2
    for found in results:
        count = len(found["boxes"])
        assert 0 < count == len(found["labels"]) == len(found["scores"])
        assert found["masks"].shape == (count, *size) and found["masks"].dtype == torch.uint8
        assert set(found["labels"].tolist()) <= {1, 2, 3} and set(found["masks"].unique().tolist()) == {0, 1}
        for boxes in (found["boxes"], found["proposals"]):
            assert (boxes >= 0).all() and (boxes <= torch.tensor([size[1], size[0]] * 2)).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (found["scores"].diff() <= 0).all() and (found["proposal_scores"].diff() <= 0).all()
        ys, xs = found["masks"][0].nonzero().unbind(1)
        if len(xs):
            x1, y1, x2, y2 = found["boxes"][0].tolist()
            assert x1 - 1 <= xs.min() and xs.max() <= x2 and y1 - 1 <= ys.min() and ys.max() <= y2


@pytest.mark.parametrize(
    "stage, keys", [("rpn", set()), ("boxhead", {"boxes", "labels", "scores"}), ("maskhead", None), ("joint", None)]
)
def test_up_to_a_stage(tiny_model, stage, keys):
    keys = {"boxes", "labels", "scores", "masks"} if keys is None else keys
    assert set(eager(tiny_model())(PICTURE, stage)[0]) == keys | {"proposals", "proposal_scores"}


def test_a_threshold_keeps_the_best_detections(tiny_model):
    """Those that score at least as much, the same as without one; the proposals stay."""
    model = eager(tiny_model(**{"boxhead.test.post_nms": 20}))
    every = model(PICTURE)[0]
    threshold = every["scores"].median().item()
    count = int((every["scores"] >= threshold).sum())
    best = model(PICTURE, threshold=threshold)[0]
    assert 0 < count < len(every["scores"]) and torch.equal(best["proposals"], every["proposals"])
    for name in ("boxes", "labels", "scores"):
        assert torch.equal(best[name], every[name][:count])
    assert (best["masks"] != every["masks"][:count]).float().mean() < 1e-3  # another batch rounds otherwise


def test_a_model_that_finds_nothing(tiny_model):
    model = tiny_model()
    model.box_head.classifier.bias.data = torch.tensor([50.0, 0, 0, 0])
    found = model(PICTURE)[0]
    assert found["boxes"].shape == (0, 4) and found["masks"].shape == (0, 300, 400) and len(found["labels"]) == 0


def test_an_image_alone_or_in_a_batch(tiny_model):
    model = eager(tiny_model())
    pictures = torch.cat([PICTURE, PICTURE.flip(-1)])
    for alone, together in zip((model(PICTURE)[0], model(pictures[1:])[0]), model(pictures), strict=True):
        assert_close(alone["proposals"], together["proposals"], atol=1e-2, rtol=1e-3)
        assert_close(alone["boxes"], together["boxes"], atol=1e-2, rtol=1e-3)


def test_pooling_uses_the_level_of_each_box(tiny_model):
    """canonical size 56: boxes of 28, 56 and 112 pixels belong to P3, P4 and P5; smaller ones to P2."""
    model = tiny_model()
    features = model.features(torch.randn(1, 3, 96, 128))
    rois = torch.tensor([[5.0, 5, 15, 15], [3, 3, 31, 31], [10, 10, 66, 66], [0, 0, 112, 112]])
    images = torch.zeros(4, dtype=torch.long)
    pooled = model.pool(features, rois, images, 7)
    for i, stride in enumerate((4, 8, 16, 32)):
        expected = roi_align(features[i], rois[i : i + 1], images[:1], 7, 1 / stride)
        assert_close(pooled[i : i + 1], expected)


def test_anchors_match_the_outputs(tiny_model):
    model = tiny_model()
    features = model.features(torch.zeros(1, 3, 96, 128))
    logits, deltas = model.rpn(features)
    count = 3 * sum(h * w for h, w in pyramid_grids((96, 128)))
    assert len(model.anchors(features)) == logits.shape[1] == deltas.shape[1] == count


def test_segment_picks_the_boxes_own_class(tiny_model):
    """A mask head that says +5 for class 2 and -5 for the others."""
    model = tiny_model()
    torch.nn.init.zeros_(model.mask_head.layers[-1].weight)
    model.mask_head.layers[-1].bias.data = torch.tensor([-5.0, 5, -5])
    boxes = [torch.tensor([[5.0, 5, 50, 50], [9, 9, 40, 40]]), torch.tensor([[3.0, 3, 90, 90]])]
    masks = model.segment(model.features(torch.zeros(2, 3, 96, 128)), boxes, [torch.tensor([2, 1]), torch.tensor([2])])
    assert [m.shape for m in masks] == [(2, 28, 28), (1, 28, 28)]
    low, high = torch.tensor([-5.0, 5]).sigmoid()
    assert_close(torch.cat(masks).mean(dim=(1, 2)), torch.stack([high, low, high]))


def test_content_of_the_dataset_frame(config):
    assert content_size(300, 400, ImageConfig()) == (800, 1066) and ImageConfig().padded_size == (800, 1088)
    assert content_size(300, 400, config.image) == (94, 126) and config.image.padded_size == (96, 128)
    square = ImageConfig(512, 512)  # the aspect ratio is kept, of the course's images as of any others
    assert content_size(300, 400, square) == content_size(600, 800, square) == (384, 512)
