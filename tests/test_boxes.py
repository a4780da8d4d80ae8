import math

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import box_iou

from lib.boxes import MAX_LOG_SCALE, area, clip, decode, encode, inside, iou_matrix, scale_boxes
from lib.data.batches import flip_boxes


def random_boxes(count: int, seed: int = 0, size: float = 100) -> torch.Tensor:
    start, extent = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(seed)) * size
    return torch.cat([start, start + extent + 1], dim=1)


@pytest.mark.parametrize(
    "a, b, iou",
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),  # 1 / (4 + 4 - 1)
        ((0, 0, 4, 2), (2, 0, 6, 2), 1 / 3),  # 4 / (8 + 8 - 4)
        ((0, 0, 4, 4), (1, 1, 3, 3), 1 / 4),  # 4 / 16: nested
        ((0, 0, 2, 2), (2, 0, 4, 2), 0),  # edges touch
        ((0, 0, 2, 2), (5, 5, 6, 6), 0),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0),  # empty boxes: no NaN
    ],
)
def test_iou_by_hand(a, b, iou):
    a, b = torch.tensor([a]).float(), torch.tensor([b]).float()
    assert_close(iou_matrix(a, b), torch.tensor([[iou]]).float())


def test_iou_is_torchvisions():
    a, b = random_boxes(50, 1), random_boxes(30, 2)
    assert_close(iou_matrix(a, b), box_iou(a, b))
    assert iou_matrix(a, b[:0]).shape == (50, 0) and iou_matrix(a[:0], b).shape == (0, 30)


ENCODED = [
    # reference 10 x 20 with centre (5, 10)
    ((0, 0, 10, 20), (0, 0, 10, 20), (0, 0, 0, 0)),
    ((5, 0, 15, 20), (0, 0, 10, 20), (0.5, 0, 0, 0)),  # half a width to the right: 5 / 10
    ((0, -5, 10, 15), (0, 0, 10, 20), (0, -0.25, 0, 0)),  # 5 up: -5 / 20
    ((-5, 0, 15, 20), (0, 0, 10, 20), (0, 0, math.log(2), 0)),  # twice as wide about the same centre
    ((0, 5, 10, 15), (0, 0, 10, 20), (0, 0, 0, -math.log(2))),  # half as high
    ((2, 4, 6, 10), (0, 0, 8, 4), (0, 5 / 4, math.log(4 / 8), math.log(6 / 4))),  # centre (4, 7) against (4, 2)
]


@pytest.mark.parametrize("box, reference, deltas", ENCODED)
def test_encode_and_decode_by_hand(box, reference, deltas):
    box, reference, deltas = (torch.tensor([v]).float() for v in (box, reference, deltas))
    assert_close(encode(box, reference), deltas)
    assert_close(decode(deltas, reference), box)


def test_decode_undoes_encode():
    boxes, reference = random_boxes(200, 3), random_boxes(200, 4)
    assert_close(decode(encode(boxes, reference), reference), boxes, atol=1e-3, rtol=1e-4)


def test_encoding_ignores_shift_and_scale_and_mirrors_with_a_flip():
    boxes, reference = random_boxes(50, 5), random_boxes(50, 6)
    deltas = encode(boxes, reference)
    assert_close(encode(boxes + 7, reference + 7), deltas, atol=1e-4, rtol=1e-4)
    assert_close(encode(3 * boxes, 3 * reference), deltas)
    mirrored = encode(flip_boxes(boxes, 400), flip_boxes(reference, 400))
    assert_close(mirrored, deltas * torch.tensor([-1, 1, 1, 1]), atol=1e-4, rtol=1e-4)


def test_decode_never_overflows():
    box = decode(torch.tensor([[0.0, 0, 1e6, 1e6]]), torch.tensor([[0.0, 0, 16, 16]]))
    assert_close(box[0, 2] - box[0, 0], torch.tensor(1000.0))  # 16 exp(log(1000 / 16))
    assert_close(math.exp(MAX_LOG_SCALE), 62.5)


@pytest.mark.parametrize(
    "box, is_inside, clipped",
    [
        ((0, 0, 40, 30), True, (0, 0, 40, 30)),  # on the border is inside
        ((-0.1, 0, 40, 30), False, (0, 0, 40, 30)),
        ((0, -1, 5, 5), False, (0, 0, 5, 5)),
        ((1, 1, 40.1, 5), False, (1, 1, 40, 5)),
        ((1, 1, 5, 31), False, (1, 1, 5, 30)),
        ((50, 2, 60, 4), False, (40, 2, 40, 4)),  # clipped to nothing
    ],
)
def test_inside_and_clip(box, is_inside, clipped):
    box = torch.tensor([box]).float()
    assert inside(box, 30, 40).tolist() == [is_inside]
    assert_close(clip(box, 30, 40), torch.tensor([clipped]).float())


def test_scale_flip_and_area():
    box = torch.tensor([[10.0, 20, 30, 50]])
    assert scale_boxes(box, 2, 0.5).tolist() == [[20, 10, 60, 25]]
    assert flip_boxes(box, 100).tolist() == [[70, 20, 90, 50]]
    assert area(box).tolist() == [600]
    assert flip_boxes(flip_boxes(box, 100), 100).tolist() == box.tolist()
