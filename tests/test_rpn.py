import math

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import nms

from lib.anchors import pyramid_anchors, pyramid_grids
from lib.boxes import area, clip, decode, encode, inside, iou_matrix
from lib.config import PROFILES
from lib.data.reader import CourseDataset
from lib.matching import IGNORED, NEGATIVE, POSITIVE
from lib.preprocess import FRAME, preprocess_targets
from lib.rpn import (
    RPNHead,
    draw_anchors,
    gather_patches,
    propose,
    rpn_loss,
    rpn_targets,
    sample_anchors,
    sample_rpn,
)

PRINTED = {"rpn.cross_boundary": "remove", "rpn.negatives": "uniform"}
CONTENT, PADDED = (96, 126), (96, 128)
GRIDS = pyramid_grids(PADDED)


@pytest.fixture
def anchors(config):
    return pyramid_anchors(GRIDS, config.anchors)


@pytest.fixture
def printed(config):
    """As the assignment prints it: no anchor or box that crosses the boundary, negatives drawn from all alike."""
    return config.replace(**PRINTED)


def pyramid(images: int = 2, channels: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, channels, *grid, generator=generator).requires_grad_() for grid in GRIDS]


def lively_head(channels: int = 8) -> RPNHead:
    torch.manual_seed(0)
    head = RPNHead(channels, 3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    head.norm.running_mean.normal_()
    head.norm.running_var.uniform_(0.5, 2)
    return head.eval()


def test_head_shapes_and_order():
    """In eval mode, weights zero but for the biases: every cell says the same, slot by slot."""
    head = RPNHead(8, 3).eval()
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    head.objectness.bias.data = torch.tensor([0.0, 1, 2])
    head.regressor.bias.data = torch.arange(12.0)
    logits, deltas = head(pyramid())
    cells = sum(h * w for h, w in GRIDS)
    assert_close(logits, torch.tensor([0.0, 1, 2]).repeat(cells).expand(2, -1))
    assert_close(deltas, torch.arange(12.0).view(3, 4).repeat(cells, 1).expand(2, -1, -1))


def test_patches_give_the_dense_prediction_everywhere(anchors):
    """All anchors of all levels, borders included, and the gradients to the features and the weights."""
    head, dense_maps, patch_maps = lively_head(), pyramid(), pyramid()
    dense = head(dense_maps)
    image, anchor = (v.flatten() for v in torch.meshgrid(torch.arange(2), torch.arange(len(anchors)), indexing="ij"))
    sparse = head.at_patches(gather_patches(patch_maps, image, anchor, 3), anchor % 3)
    weights = torch.randn(len(image), generator=torch.Generator().manual_seed(1))
    gradients = []
    for (logits, deltas), maps in ((dense, dense_maps), (sparse, patch_maps)):
        head.zero_grad()
        ((logits.flatten() + deltas.reshape(-1, 4).sum(1)) * weights).sum().backward()
        gradients.append([v.grad.clone() for v in (*maps, *head.parameters())])
    assert_close(sparse[0], dense[0].flatten(), atol=1e-4, rtol=1e-4)
    assert_close(sparse[1], dense[1].flatten(0, 1), atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_patches_are_cut_from_the_padded_maps(layout):
    """The pairs in their own order, whatever their levels, and the very values of the maps; none gives none."""
    maps = [f.detach().contiguous(memory_format=layout) for f in pyramid()]
    cells, first = [h * w for h, w in GRIDS], 0
    image, anchor, expected = [], [], []
    for f, count in zip(maps, cells, strict=True):
        windows = torch.nn.functional.unfold(f, 3, padding=1).view(2, 8, 3, 3, count)
        for cell in (count - 1, 0, count // 2):
            image.append(cell % 2)
            anchor.append(3 * (first + cell) + 1)
            expected.append(windows[cell % 2, ..., cell])
        first += count
    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(0))
    patches = gather_patches(maps, torch.tensor(image)[order], torch.tensor(anchor)[order], 3)
    assert torch.equal(patches, torch.stack(expected)[order])
    assert gather_patches(maps, order[:0], order[:0], 3).shape == (0, 8, 3, 3)


def naive_targets(anchors: torch.Tensor, boxes: torch.Tensor) -> list[int]:
    """§4.2 in two loops over the anchors inside the image."""
    iou = iou_matrix(anchors, boxes)
    valid = [a for a, box in enumerate(anchors.tolist()) if min(box) >= 0 and box[2] <= 126 and box[3] <= 96]
    labels = [IGNORED] * len(anchors)
    for a in valid:
        best = any(iou[a, g] > 0 and iou[a, g] == iou[valid, g].max() for g in range(len(boxes)))
        if best or (iou[a] > 0.7).any():
            labels[a] = POSITIVE
        elif (iou[a] < 0.3).all():
            labels[a] = NEGATIVE
    return labels


OBJECTS = torch.tensor([[8.0, 8, 40, 40], [50, 20, 120, 90], [0, 0, 126, 96], [100, 70, 126, 96]])


@pytest.mark.parametrize("boxes", [OBJECTS, OBJECTS[:1], OBJECTS[2:], OBJECTS[:0]])
def test_targets_are_the_naive_ones(anchors, printed, boxes):
    labels, matched = rpn_targets(anchors, boxes, CONTENT, printed.rpn)
    assert labels.tolist() == naive_targets(anchors, boxes)
    assert (labels[~inside(anchors, *CONTENT)] == IGNORED).all()
    positive = labels == POSITIVE
    if len(boxes):
        assert positive.any() and torch.equal(matched[positive], iou_matrix(anchors[positive], boxes).argmax(dim=1))


def test_sampling_is_over_the_whole_batch(anchors, config):
    """The first image has no objects: all positives come from the second, and still M anchors are drawn."""
    targets = [{"boxes": OBJECTS[:0]}, {"boxes": OBJECTS}]
    features = pyramid()
    samples = sample_rpn(features, anchors, targets, CONTENT, config.rpn)
    count = int((rpn_targets(anchors, OBJECTS, CONTENT, config.rpn)[0] == POSITIVE).sum())
    positive = samples["labels"] == POSITIVE
    assert 0 < count < 32 and positive.sum() == count and len(positive) == 64
    assert set(samples["labels"].tolist()) == {POSITIVE, NEGATIVE}
    assert samples["patches"].shape == (64, 8, 3, 3) and (samples["deltas"][~positive] == 0).all()
    logits, deltas = lively_head().at_patches(samples["patches"], samples["ratios"])
    sum(rpn_loss(logits, deltas, samples["labels"], samples["deltas"]).values()).backward()
    assert features[0].grad is not None and torch.isfinite(features[0].grad).all()


def test_losses_by_hand():
    """Three anchors: one positive, off by (0.5, 2, 0, -1); logits 0, 0 and log 3 (probability 3/4)."""
    logits, labels = torch.tensor([0.0, 0.0, math.log(3)]), torch.tensor([1, 0, 0])
    deltas = torch.tensor([[0.5, 2, 0, -1], [9, 9, 9, 9], [9, 9, 9, 9]]).float()
    losses = rpn_loss(logits, deltas, labels, torch.zeros(3, 4))
    assert_close(losses["rpn_objectness"], torch.tensor((math.log(2) + math.log(2) + math.log(4)) / 3))
    assert_close(losses["rpn_box"], torch.tensor((0.125 + 1.5 + 0 + 0.5) / 3))  # smooth L1, over all three anchors


@pytest.mark.parametrize("count", [0, 3])
def test_no_positives_give_a_differentiable_zero(count):
    logits, deltas = torch.zeros(count, requires_grad=True), torch.ones(count, 4, requires_grad=True)
    losses = rpn_loss(logits, deltas, torch.zeros(count, dtype=torch.long), torch.zeros(count, 4))
    sum(losses.values()).backward()
    assert losses["rpn_box"] == 0 and (count > 0 or losses["rpn_objectness"] == 0)
    assert deltas.grad.abs().sum() == 0 and torch.isfinite(logits.grad).all()


def test_a_batch_without_anchors_to_sample(anchors, printed):
    """No anchor fits into a content of 2 x 2 pixels: the loss is still a zero that back-propagates."""
    features = pyramid()
    samples = sample_rpn(features, anchors, [{"boxes": OBJECTS}] * 2, (2, 2), printed.rpn)
    head = lively_head().train()
    losses = rpn_loss(*head.at_patches(samples["patches"], samples["ratios"]), samples["labels"], samples["deltas"])
    sum(losses.values()).backward()
    assert [v.item() for v in losses.values()] == [0, 0] and torch.isfinite(head.norm.running_mean).all()
    assert all((p.grad == 0).all() for p in head.parameters())


def naive_nms(boxes: torch.Tensor, scores: torch.Tensor, iou: float) -> list[int]:
    overlap, kept = iou_matrix(boxes, boxes), []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap[i, j] <= iou for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("training", [True, False])
def test_proposals_step_by_step(anchors, printed, training):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, len(anchors), generator=generator)
    deltas = torch.randn(2, len(anchors), 4, generator=generator) * 0.3
    k, n = 300, 40
    limits = {f"rpn.{b}.{a}_nms": v for a, v in (("pre", k), ("post", n)) for b in ("train", "test")}
    proposals = propose(logits, deltas, anchors, CONTENT, printed.replace(**limits).rpn, training)
    for image, found in enumerate(proposals):
        boxes, scores = decode(deltas[image], anchors), logits[image]
        if training:
            keep = inside(boxes, *CONTENT)
            boxes, scores = boxes[keep], scores[keep]
        top = scores.argsort(descending=True)[:k]
        boxes, scores = clip(boxes[top], *CONTENT), scores[top]
        boxes, scores = boxes[area(boxes) > 1], scores[area(boxes) > 1]
        kept = naive_nms(boxes, scores, printed.rpn.nms_iou)
        assert kept == nms(boxes, scores, printed.rpn.nms_iou).tolist() and len(kept) > n
        assert_close(found["boxes"], boxes[kept[:n]])
        assert_close(found["scores"], scores[kept[:n]].sigmoid())


@pytest.mark.parametrize("crossing", ["remove", "clip"])
def test_few_or_no_proposals(anchors, config, crossing):
    """All boxes far outside: removed in training, and where they are clipped none has an area."""
    config = config.replace(**{"rpn.cross_boundary": crossing})
    deltas = encode(torch.tensor([[500.0, 500, 510, 510]]).expand(len(anchors), 4), anchors)[None]
    for training in (True, False):
        found = propose(torch.zeros(1, len(anchors)), deltas, anchors, CONTENT, config.rpn, training)
        assert found[0]["boxes"].shape == (0, 4) and found[0]["scores"].shape == (0,)


def test_crossing_anchors_may_take_part(anchors, printed):
    """An object that fills the left border: only anchors that leave the image overlap it well."""
    boxes = torch.tensor([[0.0, 10, 8, 90]])
    removed, _ = rpn_targets(anchors, boxes, CONTENT, printed.rpn)
    kept, matched = rpn_targets(anchors, boxes, CONTENT, printed.replace(**{"rpn.cross_boundary": "clip"}).rpn)
    crossing = ~inside(anchors, *CONTENT)
    assert (removed[crossing] == IGNORED).all() and (kept[crossing] != IGNORED).any()
    best = iou_matrix(anchors, boxes)[:, 0].argmax()
    assert crossing[best] and kept[best] == POSITIVE and matched[best] == 0


def test_crossing_proposals_are_clipped_where_training_asks_for_it(anchors, config):
    logits, deltas = torch.linspace(1, 0, len(anchors))[None], torch.zeros(1, len(anchors), 4)
    clip_config = config.replace(**{"rpn.cross_boundary": "clip", "rpn.test.pre_nms": 100, "rpn.test.post_nms": 50})
    trained = propose(logits, deltas, anchors, CONTENT, clip_config.rpn, training=True)[0]
    tested = propose(logits, deltas, anchors, CONTENT, clip_config.rpn, training=False)[0]
    assert_close(trained["boxes"], tested["boxes"])
    assert (trained["boxes"] == 0).any()  # the first anchors lie across the top left corner


@pytest.mark.parametrize("crossing", ["remove", "clip"])
def test_each_drawn_anchor_leads_to_its_own_images_object(anchors, config, crossing):
    """Three images, the middle one without objects: decoding a positive's deltas gives an object of its image."""
    rpn = config.replace(**{"rpn.cross_boundary": crossing}).rpn
    boxes = [torch.tensor([[0.0, 10, 40, 90], [50, 20, 70, 44]]), torch.zeros(0, 4), torch.tensor([[9.0, 9, 25, 25]])]
    drawn = draw_anchors(GRIDS, anchors, [{"boxes": b} for b in boxes], CONTENT, rpn)
    labels, matched = zip(*(rpn_targets(anchors, b, CONTENT, rpn) for b in boxes), strict=True)
    assert torch.equal(drawn["labels"], torch.stack(labels)[drawn["images"], drawn["anchors"]])
    positive = drawn["labels"] == POSITIVE
    assert set(drawn["images"][positive].tolist()) == {0, 2} and (drawn["deltas"][~positive] == 0).all()
    images, index = drawn["images"][positive], drawn["anchors"][positive]
    expected = torch.stack([boxes[i][matched[i][a]] for i, a in zip(images.tolist(), index.tolist(), strict=True)])
    assert_close(decode(drawn["deltas"][positive], anchors[index]), expected)


def test_negatives_come_from_all_levels_alike(config):
    """Two images without objects: 13, 13, 13, 13 and 12 of 64; P5 and P6 of one image have 36 and 12 anchors."""
    counts = [3 * h * w for h, w in GRIDS]
    levels = torch.arange(5).repeat_interleave(torch.tensor(counts)).repeat(2)
    labels = torch.zeros(2, sum(counts), dtype=torch.long)
    drawn = sample_anchors(labels, GRIDS, config.rpn)
    assert counts[3:] == [36, 12] and levels[drawn].bincount().tolist() == [13, 13, 13, 13, 12]
    uniform = [sample_anchors(labels, GRIDS, config.replace(**{"rpn.negatives": "uniform"}).rpn) for _ in range(8)]
    assert levels[torch.cat(uniform)].bincount(minlength=5)[0] > 0.65 * 8 * 64  # three quarters of all anchors


def mean_negatives(config, targets: list[dict]) -> torch.Tensor:
    """Negatives on P2 ... P6 (5,) in a minibatch, the mean over eight batches of images with these objects."""
    grids, content = pyramid_grids(config.image.padded_size), (config.image.height, config.image.width)
    anchors = pyramid_anchors(grids, config.anchors)
    level = torch.arange(5).repeat_interleave(torch.tensor([h * w for h, w in grids])).repeat_interleave(3)
    torch.manual_seed(0)
    counts = []
    for start in range(0, 8 * config.rpn.batch_size, config.rpn.batch_size):
        batch = [targets[i % len(targets)] for i in range(start, start + config.rpn.batch_size)]
        drawn = draw_anchors(grids, anchors, batch, content, config.rpn)
        counts.append(level[drawn["anchors"][drawn["labels"] == NEGATIVE]].bincount(minlength=5))
    return torch.stack(counts).float().mean(dim=0)


@pytest.mark.parametrize("profile", PROFILES)
def test_large_anchors_learn_what_is_no_object(scenes, profile):
    """Drawn as printed, hardly one negative of P6 takes part; as the profiles have it, no level is left out."""
    config, data = PROFILES[profile], CourseDataset(scenes, with_masks=False)
    targets = preprocess_targets([data.target(i) for i in range(len(data))], FRAME, config.image)
    balanced = mean_negatives(config, targets)
    as_printed = mean_negatives(config.replace(**PRINTED), targets)
    assert (balanced[3:] >= 8).all(), balanced
    assert as_printed[4] < 0.5, as_printed
