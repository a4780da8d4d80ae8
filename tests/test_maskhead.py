import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torchvision.models.detection.roi_heads import paste_masks_in_image

from lib.maskhead import MaskHead, class_masks, mask_loss, mask_targets, paste_masks


def test_network_is_section_7_2():
    layers = [layer for layer in MaskHead(256, 256, 3).layers if not isinstance(layer, nn.ReLU)]
    shapes = [(type(layer).__name__, layer.in_channels, layer.out_channels, layer.kernel_size[0]) for layer in layers]
    assert shapes == [("Conv2d", 256, 256, 3)] * 4 + [("ConvTranspose2d", 256, 256, 2), ("Conv2d", 256, 3, 1)]
    assert MaskHead(4, 8, 3)(torch.zeros(5, 4, 14, 14)).shape == (5, 3, 28, 28)


def test_targets_by_hand():
    """An object that fills the left half of a 32 x 32 box, and boxes cut from it; the other object is elsewhere."""
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 10:42, 10:26] = 1
    masks[1, 50:, 50:] = 1
    boxes = torch.tensor([[10.0, 10, 42, 42], [10, 10, 26, 42], [26, 10, 42, 42], [2, 10, 34, 42]])
    targets = mask_targets(boxes, torch.zeros(4, dtype=torch.long), masks, 8)
    half = torch.zeros(8, 8)
    half[:, :4] = 1  # cells of 4 pixels
    shifted = torch.zeros(8, 8)
    shifted[:, 2:6] = 1
    assert_close(targets, torch.stack([half, torch.ones(8, 8), torch.zeros(8, 8), shifted]))
    assert mask_targets(boxes[:1], torch.ones(1, dtype=torch.long), masks, 8).sum() == 0


def test_targets_flip_with_their_boxes_and_may_cross_the_border():
    masks = torch.zeros(1, 40, 40, dtype=torch.uint8)
    masks[0, 5:30, 3:13] = 1
    box, flipped = torch.tensor([[-8.0, 3, 20, 31]]), torch.tensor([[20.0, 3, 48, 31]])
    first = torch.zeros(1, dtype=torch.long)
    target = mask_targets(box, first, masks, 28)
    assert_close(mask_targets(flipped, first, masks.flip(-1), 28), target.flip(-1))
    by_hand = torch.zeros(28, 28)
    by_hand[2:27, 11:21] = 1  # one cell a pixel
    assert_close(target[0], by_hand)


def test_loss_by_hand():
    """Two masks of 2 x 2; only the true class counts. Logits 0 cost log 2, log 3 costs log(4/3) on the object."""
    logits = torch.full((2, 3, 2, 2), 50.0)
    logits[0, 2], logits[1, 0] = 0, math.log(3)
    targets = torch.stack([torch.ones(2, 2), torch.tensor([[1.0, 1], [1, 0]])])
    loss = mask_loss(logits, torch.tensor([3, 1]), targets)["mask"]
    assert_close(loss, torch.tensor((4 * math.log(2) + 3 * math.log(4 / 3) + math.log(4)) / 8))


def test_no_masks_give_a_differentiable_zero():
    head = MaskHead(4, 8, 3)
    loss = mask_loss(head(torch.zeros(0, 4, 14, 14)), torch.zeros(0, dtype=torch.long), torch.zeros(0, 28, 28))["mask"]
    loss.backward()
    assert loss == 0 and all((p.grad == 0).all() for p in head.parameters())
    assert mask_targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, 9, 9), 28).shape == (
        0,
        28,
        28,
    )


def test_class_masks():
    logits = torch.arange(6.0).view(2, 3, 1, 1)
    assert class_masks(logits, torch.tensor([3, 1])).flatten().tolist() == [2, 3]


def blobs(count: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed)) * 4
    return F.interpolate(coarse, (28, 28), mode="bicubic")[:, 0].sigmoid()


def test_pasting_a_full_mask_fills_its_box():
    boxes = torch.tensor([[3.0, 5, 31, 9], [0, 0, 40, 30], [39, 29, 40, 30]])
    pasted = paste_masks(torch.ones(3, 28, 28), boxes, (30, 40), 0.5)
    by_hand = torch.zeros(3, 30, 40, dtype=torch.uint8)
    by_hand[0, 5:9, 3:31], by_hand[1], by_hand[2, 29, 39] = 1, 1, 1
    assert torch.equal(pasted, by_hand)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_pasting_is_interpolate_on_boxes_of_whole_cells(k):
    """A cell of k x k pixels: bilinear interpolation of the mask with a border of zeros."""
    masks = blobs(4)
    boxes = torch.tensor([[7.0, 3, 7 + 28 * k, 3 + 28 * k]]).expand(4, 4)
    expected = F.interpolate(F.pad(masks, (1, 1, 1, 1))[:, None], scale_factor=k, mode="bilinear")[:, 0] >= 0.5
    pasted = paste_masks(masks, boxes, (100, 120), 0.5)
    inner = slice(k, k + 28 * k)
    assert torch.equal(pasted[:, 3 : 3 + 28 * k, 7 : 7 + 28 * k].bool(), expected[:, inner, inner])
    assert pasted.sum() == expected[:, inner, inner].sum()


def test_pasting_agrees_with_torchvision():
    generator = torch.Generator().manual_seed(1)
    start = torch.rand(20, 2, generator=generator) * torch.tensor([200, 150])
    boxes = torch.cat([start, start + 40 + torch.rand(20, 2, generator=generator) * torch.tensor([150, 100])], dim=1)
    masks = blobs(20, 2)
    theirs = paste_masks_in_image(masks[:, None], boxes, (300, 400))[:, 0] >= 0.5
    ours = paste_masks(masks, boxes, (300, 400), 0.5).bool()
    for a, b in zip(ours, theirs, strict=True):
        assert (a == b).float().mean() >= 0.99
        assert (a & b).sum() / (a | b).sum() > 0.85


@pytest.mark.parametrize("box", [[5.0, 5, 5, 5], [60, 60, 70, 70], [-20, -20, -5, -5]])
def test_pasting_what_is_empty_or_outside(box):
    assert paste_masks(torch.ones(1, 28, 28), torch.tensor([box]), (30, 40), 0.5).sum() == 0
    assert paste_masks(torch.ones(0, 28, 28), torch.zeros(0, 4), (30, 40), 0.5).shape == (0, 30, 40)


def test_pasting_in_chunks_changes_nothing(monkeypatch):
    boxes, masks = torch.tensor([[3.0, 3, 33, 23]]).repeat(5, 1), blobs(5)
    whole = paste_masks(masks, boxes, (30, 40), 0.5)
    monkeypatch.setattr("lib.maskhead._PASTE_CHUNK", 2 * 30 * 40)
    assert torch.equal(paste_masks(masks, boxes, (30, 40), 0.5), whole)
