import math

import pytest
import torch
from torch.testing import assert_close

from lib.boxes import clip, decode, encode, inside, iou_matrix
from lib.boxhead import BoxHead, box_loss, box_targets, refine, refine_for_training, sample_proposals, stack_rois

CONTENT = (96, 126)
OBJECTS = torch.tensor([[10.0, 10, 50, 50], [60, 20, 120, 80]])
LABELS = torch.tensor([3, 1])


def test_network_is_section_6_2():
    head = BoxHead(256, 1024, 3)
    shapes = [tuple(p.shape) for name, p in head.named_parameters() if name.endswith("weight")]
    assert shapes == [(1024, 256 * 49), (1024, 1024), (4, 1024), (12, 1024)]
    logits, deltas = BoxHead(4, 8, 3)(torch.zeros(5, 4, 7, 7))
    assert logits.shape == (5, 4) and deltas.shape == (5, 3, 4)


def test_targets_by_hand(config):
    """Shifted by d, a 40 x 40 box overlaps its object by (40 - d) / (40 + d)."""
    shifts = torch.tensor([0.0, 17, 18, 100])  # IoU 1, 23/57 = 0.404, 22/58 = 0.379, 0
    proposals = OBJECTS[0] + shifts[:, None] * torch.tensor([1, 0, 1, 0])
    labels, boxes = box_targets(proposals, OBJECTS[:1], LABELS[:1], config.boxhead)
    assert labels.tolist() == [3, 3, 0, 0]
    assert_close(boxes, torch.cat([OBJECTS[:1], OBJECTS[:1], proposals[2:]]))
    assert box_targets(proposals, OBJECTS[:0], LABELS[:0], config.boxhead)[0].tolist() == [0] * 4


def some_proposals(count: int, seed: int = 0) -> torch.Tensor:
    """Half of them around the objects, half anywhere in the image."""
    generator = torch.Generator().manual_seed(seed)
    near = OBJECTS.repeat(count // 4, 1) + torch.randn(count // 2, 4, generator=generator) * 3
    start = torch.rand(count - len(near), 2, generator=generator) * 60
    return torch.cat([near, torch.cat([start, start + 5 + 25 * torch.rand(len(start), 2, generator=generator)], 1)])


def test_minibatch_over_all_images(config):
    """The first image has no object: three quarters objects, all of the second image; the rest from both."""
    proposals = [{"boxes": some_proposals(200, 1)}, {"boxes": some_proposals(200, 2)}]
    targets = [{"boxes": OBJECTS[:0], "labels": LABELS[:0]}, {"boxes": OBJECTS, "labels": LABELS}]
    drawn = sample_proposals(proposals, targets, config.boxhead)
    positive = drawn["labels"] > 0
    assert len(positive) == 32 and positive.sum() == 24
    assert (drawn["images"][positive] == 1).all() and set(drawn["images"].tolist()) == {0, 1}
    for roi, image in zip(drawn["rois"], drawn["images"], strict=True):
        assert (proposals[image]["boxes"] == roi).all(dim=1).any()
    objects = OBJECTS[(drawn["labels"][positive] == 1).long()]
    assert_close(decode(drawn["deltas"], drawn["rois"])[positive], objects, atol=1e-3, rtol=1e-4)
    assert (drawn["deltas"][~positive] == 0).all()


def test_stack_rois():
    rois, images = stack_rois([OBJECTS, OBJECTS[:0], OBJECTS[:1]])
    assert images.tolist() == [0, 0, 2] and torch.equal(rois, torch.cat([OBJECTS, OBJECTS[:1]]))


def test_losses_by_hand():
    """Two proposals: one of class 2, off by (0.5, 0, 3, 0) in its own deltas and by far more in the others'."""
    logits = torch.zeros(2, 4)
    logits[1, 0] = math.log(5)  # softmax of background: 5 / 8
    deltas = torch.full((2, 3, 4), 99.0)
    deltas[0, 1] = torch.tensor([0.5, 0, 3, 0])
    losses = box_loss(logits, deltas, torch.tensor([2, 0]), torch.zeros(2, 4))
    assert_close(losses["box_class"], torch.tensor((math.log(4) + math.log(8 / 5)) / 2))
    assert_close(losses["box_regression"], torch.tensor((0.125 + 2.5) / 2))


@pytest.mark.parametrize("count", [0, 3])
def test_no_objects_give_a_differentiable_zero(count):
    head = BoxHead(4, 8, 3)
    losses = box_loss(*head(torch.ones(count, 4, 7, 7)), torch.zeros(count, dtype=torch.long), torch.zeros(count, 4))
    sum(losses.values()).backward()
    assert losses["box_regression"] == 0 and (losses["box_class"] > 0) == (count > 0)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    assert head.regressor.weight.grad.abs().sum() == 0


def head_outputs(seed: int = 0, count: int = 120) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2 * count, 4, generator=generator) * 2
    deltas = torch.randn(2 * count, 3, 4, generator=generator) * 0.1
    return logits, deltas, [some_proposals(count, 7), some_proposals(count, 8)]


def naive_nms_by_class(boxes, labels, scores, iou: float) -> list[int]:
    overlap, kept = iou_matrix(boxes, boxes), []
    for i in scores.argsort(descending=True).tolist():
        if all(labels[i] != labels[j] or overlap[i, j] <= iou for j in kept):
            kept.append(i)
    return kept


def test_detections_step_by_step(config):
    config = config.replace(**{"boxhead.test.pre_nms": 60, "boxhead.test.post_nms": 15})
    logits, deltas, proposals = head_outputs()
    for image, found in enumerate(refine(logits, deltas, proposals, CONTENT, config.boxhead)):
        rows = slice(120 * image, 120 * image + 120)
        scores, labels = logits[rows].softmax(1)[:, 1:].max(dim=1)
        boxes = clip(decode(deltas[rows][range(120), labels], proposals[image]), *CONTENT)
        keep = (logits[rows].argmax(dim=1) > 0) & ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all(dim=1)
        top = keep.nonzero().flatten()[scores[keep].argsort(descending=True)[:60]]
        kept = top[naive_nms_by_class(boxes[top], labels[top], scores[top], config.boxhead.test.nms_iou)][:15]
        assert len(kept) == 15 and len(set(found["labels"].tolist())) > 1
        assert_close(found["boxes"], boxes[kept])
        assert_close(found["scores"], scores[kept])
        assert found["labels"].tolist() == (labels[kept] + 1).tolist()


def test_nms_is_for_each_class_alone(config):
    """Three equal boxes, two of class 1 and one of class 2; a fourth is background."""
    logits = torch.tensor([[0.0, 3, 0, 0], [0, 2, 0, 0], [0, 0, 2.5, 0], [9, 0, 0, 0]])
    found = refine(logits, torch.zeros(4, 3, 4), [OBJECTS[:1].repeat(4, 1)], CONTENT, config.boxhead)[0]
    assert found["labels"].tolist() == [1, 2]
    e = math.e
    assert_close(found["scores"], torch.tensor([e**3 / (e**3 + 3), e**2.5 / (e**2.5 + 3)]))


def test_training_has_an_nms_threshold_of_its_own(config):
    """Three boxes on one object, with IoU 0.8 between neighbours and 0.6 between the outer two."""
    boxes = torch.tensor([[10.0, 10, 20, 20], [10, 10, 20, 18], [10, 10, 20, 16]])
    logits, targets = (
        torch.tensor([[0.0, 3, 0, 0], [0, 2, 0, 0], [0, 1, 0, 0]]),
        {"boxes": boxes[:1], "labels": LABELS[:1]},
    )
    for iou, kept in ((0.5, [10]), (0.7, [10, 6]), (0.9, [10, 8, 6])):
        limit = config.replace(**{"boxhead.train.nms_iou": iou}).boxhead
        chosen = refine_for_training(logits, torch.zeros(3, 3, 4), [boxes], [targets], CONTENT, limit)[0]["boxes"]
        assert (chosen[:, 3] - chosen[:, 1]).tolist() == kept
        assert len(refine(logits, torch.zeros(3, 3, 4), [boxes], CONTENT, limit)[0]["boxes"]) == 1


def test_boxes_that_train_the_mask_head(config):
    logits, deltas, proposals = head_outputs(1)
    targets = [{"boxes": OBJECTS, "labels": LABELS}, {"boxes": OBJECTS[:0], "labels": LABELS[:0]}]
    first, second = refine_for_training(logits, deltas, proposals, targets, CONTENT, config.boxhead)
    assert len(second["boxes"]) == 0 and 0 < len(first["boxes"]) <= config.boxhead.train.post_nms
    iou = iou_matrix(first["boxes"], OBJECTS)
    assert inside(first["boxes"], *CONTENT).all() and (iou.max(dim=1).values > 0.5).all()
    assert torch.equal(first["matched"], iou.argmax(dim=1)) and torch.equal(first["labels"], LABELS[first["matched"]])


@pytest.mark.parametrize("shift, survives", [(0.0, True), (13.0, True), (14.0, False), (-11.0, False)])
def test_training_boxes_by_hand(config, shift, survives):
    """A 40 x 40 box shifted by 13 has IoU 27/53 = 0.509, by 14 26/54 = 0.481; by -11 it leaves the image."""
    box = OBJECTS[:1] + shift * torch.tensor([1, 0, 1, 0])
    target, printed = (
        {"boxes": OBJECTS[:1], "labels": LABELS[:1]},
        config.replace(**{"boxhead.cross_boundary": "remove"}).boxhead,
    )
    logits = torch.tensor([[9.0, 1, 0, 0]])  # background at its most probable: kept all the same
    chosen = refine_for_training(logits, torch.zeros(1, 3, 4), [box], [target], CONTENT, printed)[0]
    assert chosen["labels"].tolist() == [3] * survives


def test_no_proposals(config):
    empty = [torch.zeros(0, 4)] * 2
    target = {"boxes": OBJECTS, "labels": LABELS}
    outputs = BoxHead(4, 8, 3)(torch.zeros(0, 4, 7, 7))
    assert [len(d["boxes"]) for d in refine(*outputs, empty, CONTENT, config.boxhead)] == [0, 0]
    assert [len(d["boxes"]) for d in refine_for_training(*outputs, empty, [target] * 2, CONTENT, config.boxhead)] == [
        0,
        0,
    ]
    assert len(sample_proposals([{"boxes": e} for e in empty], [target] * 2, config.boxhead)["rois"]) == 0


def test_perfect_deltas_give_the_objects(config):
    proposals = OBJECTS + torch.tensor([3.0, -2, 1, 4])
    deltas = encode(OBJECTS, proposals)[:, None].expand(2, 3, 4)
    logits = torch.nn.functional.one_hot(LABELS, 4) * 9.0
    found = refine(logits, deltas, [proposals], CONTENT, config.boxhead)[0]
    order = found["labels"].argsort(descending=True)
    assert_close(found["boxes"][order], OBJECTS, atol=1e-4, rtol=1e-4)


def test_every_class_above_a_threshold(config):
    """Two proposals: classes 2 and 3 of the first and class 1 of the second pass; background does not decide."""
    logits = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.6, 0.4, 0.0, 0.0]]).clamp(min=1e-4).log()
    logits[0, 3] = math.log(0.2)
    deltas = torch.zeros(2, 3, 4)
    deltas[0, 1, 0] = 0.25  # class 2 of the first: moved by a quarter of its width
    found = refine(
        logits, deltas, [OBJECTS], CONTENT, config.replace(**{"boxhead.test.score_threshold": 0.15}).boxhead
    )[0]
    assert found["labels"].tolist() == [1, 2, 3]
    expected = torch.stack([OBJECTS[1], OBJECTS[0] + torch.tensor([10.0, 0, 10, 0]), OBJECTS[0]])
    assert_close(found["boxes"], expected, atol=1e-4, rtol=1e-5)
    assert [len(d["boxes"]) for d in refine(logits, deltas, [OBJECTS[:1], OBJECTS[1:]], CONTENT, config.boxhead)] == [
        0,
        0,
    ]


def test_true_boxes_join_the_proposals(config):
    target = {"boxes": OBJECTS, "labels": LABELS}
    far = [{"boxes": torch.tensor([[0.0, 80, 9, 95]])}]
    assert sample_proposals(far, [target], config.boxhead)["labels"].tolist() == [0]
    drawn = sample_proposals(far, [target], config.replace(**{"boxhead.adds_truth": True}).boxhead)
    assert sorted(drawn["labels"].tolist()) == [0, 1, 3] and (drawn["deltas"] == 0).all()


def test_beta_is_where_the_box_loss_turns_linear():
    """d = 0.5 with beta 0.1: 0.5 - 0.05; d = 0.05: 0.5 x 0.05^2 / 0.1; over two proposals."""
    deltas = torch.zeros(2, 3, 4)
    deltas[0, 0, :2] = torch.tensor([0.5, 0.05])
    losses = box_loss(torch.zeros(2, 4), deltas, torch.tensor([1, 0]), torch.zeros(2, 4), beta=0.1)
    assert_close(losses["box_regression"], torch.tensor((0.45 + 0.0125) / 2))


def test_boxes_that_train_the_mask_head_may_be_clipped(config):
    """A 40 x 40 box at the border, shifted out by 11: clipped, it keeps 29 / 40 of its object."""
    border = torch.tensor([[0.0, 10, 40, 50]])
    out = (torch.tensor([[9.0, 1, 0, 0]]), torch.zeros(1, 3, 4), [border - torch.tensor([11.0, 0, 11, 0])])
    target = {"boxes": border, "labels": LABELS[:1]}
    removed = refine_for_training(
        *out, [target], CONTENT, config.replace(**{"boxhead.cross_boundary": "remove"}).boxhead
    )[0]
    assert len(removed["boxes"]) == 0
    clipped = refine_for_training(
        *out, [target], CONTENT, config.replace(**{"boxhead.cross_boundary": "clip"}).boxhead
    )[0]
    assert_close(clipped["boxes"], torch.tensor([[0.0, 10, 29, 50]]))


def test_a_box_is_clipped_before_it_is_compared_with_the_objects(config):
    """IoU 54 x 90 / (120 x 90) = 0.45 before, 54 x 90 / (100 x 90) = 0.54 after, with an object at the image's edge."""
    box, target = torch.tensor([[-20.0, 0, 100, 90]]), {"boxes": torch.tensor([[0.0, 0, 54, 90]]), "labels": LABELS[:1]}
    clipping = config.replace(**{"boxhead.cross_boundary": "clip"}).boxhead
    logits = torch.tensor([[9.0, 1, 0, 0]])
    assert len(refine_for_training(logits, torch.zeros(1, 3, 4), [box], [target], CONTENT, clipping)[0]["boxes"]) == 1
