"""What must hold for any input: random boxes, labels and masks against the invariants of the assignment.

B  images    A  anchors    G  objects    boxes are xyxy in pixels of an image of HEIGHT x WIDTH
Half of all coordinates are whole quarters of a pixel, so that edges meet, boxes coincide and overlaps are equal.
"""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.testing import assert_close

from lib.anchors import AnchorConfig, pyramid_anchors, pyramid_grids
from lib.boxes import MAX_LOG_SCALE, clip, decode, encode, inside, iou_matrix
from lib.boxhead import BoxHeadConfig, DetectionLimits, box_loss, refine, refine_for_training, sample_proposals
from lib.data import segmentations
from lib.data.batches import flip_boxes, flip_horizontally
from lib.data.masks import tight_box
from lib.maskhead import mask_loss, mask_targets, paste_masks
from lib.matching import IGNORED, NEGATIVE, POSITIVE, match_anchors, match_proposals, sample
from lib.notebook.overlay import paste_crop
from lib.roi_align import roi_align
from lib.rpn import ProposalLimits, RPNConfig, draw_anchors, propose, rpn_loss
from lib.scores.results import encode_crop, encode_masks, rle

EXAMPLES = int(os.environ.get("MASKRCNN_EXAMPLES", 25))  # of each property; `make soak` tries more
settings.register_profile("project", max_examples=EXAMPLES, deadline=None, derandomize=True)  # the same every time
settings.load_profile("project")
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools' own

SIZE = HEIGHT, WIDTH = 48, 64
FRAME = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
CLASSES = 3
GRIDS = pyramid_grids((64, 64))
ANCHORS = pyramid_anchors(GRIDS, AnchorConfig(scales=(8, 16, 24, 32, 48)))
SEEDS = st.integers(0, 2**31)
SHARES = st.sampled_from([0.3, 0.5, 0.7])


def lengths(low: float, high: float) -> st.SearchStrategy[float]:
    quarters = st.integers(int(4 * low), int(4 * high)).map(lambda n: n / 4)
    return quarters | st.floats(low, high, width=32)


def boxes(least: int, most: int, beyond: float = 0) -> st.SearchStrategy[Tensor]:
    """Boxes (n, 4) with sides of a quarter of a pixel or more, that reach at most so far `beyond` the image."""
    box = st.tuples(
        *(lengths(-beyond, side + beyond - 0.25) for side in (WIDTH, HEIGHT)),
        *(lengths(0.25, side + 2 * beyond) for side in (WIDTH, HEIGHT)),
    )

    def tensor(rows: list) -> Tensor:
        corner, extent = torch.tensor(rows).view(-1, 4).split(2, dim=1)
        return torch.cat([corner, torch.minimum(corner + extent, FRAME[:2] + beyond)], dim=1)

    return st.lists(box, min_size=least, max_size=most).map(tensor)


def noise(seed: int, *shape: int) -> Tensor:
    """Numbers in [0, 1]; a quarter of them one of the two ends."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (values * 1.25 - 0.125).clamp(0, 1)


def crowd(boxes: Tensor, seed: int) -> Tensor:
    """Boxes (n, 4), and three more around each (4 n, 4), whose edges lie up to 3/8 of its side away.

    All are in whole steps of 1/32 pixel: float32 then decodes them without rounding.
    """
    more = boxes.repeat(3, 1)
    sides = (more[:, 2:] - more[:, :2]).repeat(1, 2) * noise(seed + 1, len(more), 1)  # a few do not move at all
    return (torch.cat([boxes, more + (noise(seed, len(more), 4) - 0.5) * sides * 0.75]) * 32).round() / 32


def targets(least: int = 0) -> st.SearchStrategy[dict]:
    """An image's objects: `boxes` (G, 4) and `labels` (G,)."""
    return boxes(least, 3).flatmap(
        lambda b: st.lists(st.integers(1, CLASSES), min_size=len(b), max_size=len(b)).map(
            lambda labels: {"boxes": b, "labels": torch.tensor(labels, dtype=torch.long)}
        )
    )


@given(boxes(1, 8, beyond=100), boxes(1, 8, beyond=100))
def test_an_encoded_box_comes_back(some, references):
    count = min(len(some), len(references))
    some, references = some[:count], references[:count]
    deltas = encode(some, references)
    assert deltas.isfinite().all()
    possible = (deltas[:, 2:] <= MAX_LOG_SCALE).all(dim=1)  # a box more than 62.5 times as wide is cut
    assert_close(decode(deltas, references)[possible], some[possible], atol=1e-3, rtol=1e-4)


@given(boxes(1, 8, beyond=20), st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4))
def test_any_prediction_is_a_box(references, deltas):
    decoded = decode(torch.tensor(deltas).expand(len(references), 4), references)
    assert decoded.isfinite().all() and (decoded[:, 2:] >= decoded[:, :2]).all()
    clipped = clip(decoded, *SIZE)
    assert inside(clipped, *SIZE).all() and (clipped[:, 2:] >= clipped[:, :2]).all()
    assert torch.equal(clip(clipped, *SIZE), clipped)
    within = inside(decoded, *SIZE)
    assert torch.equal(clipped[within], decoded[within])


@given(boxes(1, 8, beyond=20), boxes(0, 8, beyond=20))
def test_an_overlap_is_a_share(some, others):
    iou = iou_matrix(some, others)
    assert torch.equal(iou, iou_matrix(others, some).mT)
    assert ((iou >= 0) & (iou <= 1)).all()
    assert_close(iou_matrix(some, some).diag(), torch.ones(len(some)))
    apart = (some[:, None, :2] >= others[None, :, 2:]).any(-1) | (others[None, :, :2] >= some[:, None, 2:]).any(-1)
    assert torch.equal(iou == 0, apart)


@given(boxes(1, 8), targets(), st.none() | SEEDS)
def test_labels_say_what_overlaps(anchors, target, seed):
    """§4.2 and §6.1; with anchors close to the objects, and without."""
    if seed is not None:
        anchors = torch.cat([anchors, crowd(target["boxes"], seed)])
    iou = iou_matrix(anchors, target["boxes"])
    labels, matched = match_anchors(iou, 0.7, 0.3)
    best = torch.cat([iou, torch.zeros(len(iou), 1)], dim=1).max(dim=1).values
    for g in (iou > 0).any(dim=0).nonzero():  # every object that an anchor overlaps has its best as a positive
        assert (labels[iou[:, g].flatten().argmax()] == POSITIVE).all()
    positive = labels == POSITIVE
    assert positive[best > 0.7].all() and (best[positive] > 0).all()
    assert (best[labels == NEGATIVE] < 0.3).all() and (best[labels == IGNORED] >= 0.3).all()
    assert torch.equal(iou[positive, matched[positive]], best[positive])

    classes, matched = match_proposals(iou, target["labels"], 0.4)
    assert torch.equal(classes > 0, best > 0.4)
    of = matched[classes > 0]
    assert torch.equal(classes[classes > 0], target["labels"][of])
    assert torch.equal(iou[classes > 0, of], best[classes > 0])


@given(
    st.lists(st.tuples(*[st.integers(0, 9)] * 2, st.integers(0, 5) | st.integers(50, 200)), min_size=1, max_size=4),
    st.integers(1, 2),
    st.integers(2, 30),
    st.sampled_from([0.5, 0.75]),
    st.booleans(),
    SEEDS,
)
def test_a_minibatch(counts, images, size, fraction, balanced, seed):
    """§4.4 and §6.3: of M samples a share are positive, or as many as there are, and negatives fill the rest."""
    torch.manual_seed(seed)
    one = torch.cat([torch.tensor([2, IGNORED, NEGATIVE]).repeat_interleave(torch.tensor(n)) for n in counts])
    order = torch.randperm(len(one))
    labels = one[order].repeat(images)
    group = torch.arange(len(counts)).repeat_interleave(torch.tensor([sum(n) for n in counts]))[order]
    drawn = sample(labels, size, fraction, group if balanced else None)
    chosen = labels[drawn]
    positives, negatives = (chosen > 0).sum().item(), (chosen == NEGATIVE).sum().item()
    assert len(drawn.unique()) == len(drawn) == positives + negatives <= size
    assert (chosen[:positives] > 0).all()
    assert positives <= size * fraction + 0.5  # the nearest whole number
    assert positives == (labels > 0).sum() or positives >= size * fraction - 0.5
    assert negatives == min((labels == NEGATIVE).sum().item(), size - positives)
    if balanced:  # a group that gives less than another has no more
        there = images * torch.tensor([n for _, _, n in counts])
        taken = torch.bincount(group.repeat(images)[drawn[positives:]], minlength=len(counts))
        assert ((taken == there) | (taken >= taken.max() - 1)).all()


@given(
    st.lists(targets(), min_size=1, max_size=3),
    st.integers(2, 64),
    st.sampled_from(["clip", "remove"]),
    st.sampled_from(["uniform", "balanced"]),
    SEEDS,
)
def test_what_the_rpn_learns_from(images, size, cross_boundary, negatives, seed):
    torch.manual_seed(seed)
    config = RPNConfig(batch_samples=size, cross_boundary=cross_boundary, negatives=negatives)
    drawn = draw_anchors(GRIDS, ANCHORS, images, SIZE, config)
    pairs = set(zip(drawn["images"].tolist(), drawn["anchors"].tolist(), strict=True))
    assert len(pairs) == len(drawn["labels"]) == size  # of a thousand anchors, most are negative
    assert drawn["deltas"].isfinite().all()
    assert cross_boundary == "clip" or inside(ANCHORS[drawn["anchors"]], *SIZE).all()
    for n, target in enumerate(images):
        anchors, labels, deltas = (drawn[k][drawn["images"] == n] for k in ("anchors", "labels", "deltas"))
        iou = iou_matrix(ANCHORS[anchors], target["boxes"])
        assert (iou[labels == NEGATIVE] < 0.3).all() and (deltas[labels == NEGATIVE] == 0).all()
        for box in decode(deltas, ANCHORS[anchors])[labels == POSITIVE]:  # each aims at an object of its own image
            assert (box - target["boxes"]).abs().amax(dim=1).min() < 1e-2


@given(st.lists(st.tuples(boxes(0, 8), targets()), min_size=1, max_size=3), st.integers(2, 16), st.booleans(), SEEDS)
def test_what_the_box_head_learns_from(pairs, size, adds_truth, seed):
    torch.manual_seed(seed)
    images = [target for _, target in pairs]
    proposals = [{"boxes": torch.cat([some, crowd(target["boxes"], seed)])} for some, target in pairs]
    config = BoxHeadConfig(batch_samples=size, adds_truth=adds_truth)
    drawn = sample_proposals(proposals, images, config)
    assert len(drawn["labels"]) <= size and all(v.isfinite().all() for v in drawn.values())
    assert not adds_truth or (drawn["labels"] > 0).any() == any(len(t["boxes"]) for t in images)
    for image, roi, label, deltas in zip(*(drawn[k] for k in ("images", "rois", "labels", "deltas")), strict=True):
        target = images[image]
        own = torch.cat([proposals[image]["boxes"], target["boxes"]]) if adds_truth else proposals[image]["boxes"]
        assert (roi == own).all(dim=1).any()
        iou = iou_matrix(roi[None], target["boxes"])[0]
        of_class = (iou > config.positive_iou) & (target["labels"] == label)
        aims = (decode(deltas, roi) - target["boxes"]).abs().amax(dim=1) < 1e-2
        assert (of_class & aims).any() if label > 0 else (iou <= config.positive_iou).all() and (deltas == 0).all()


def check_suppression(candidates: Tensor, their: Tensor, survivors: Tensor, scores: Tensor, limit: float) -> None:
    """Of candidates with `their` scores no two survive that overlap more; each overlaps one as good that does."""
    assert (scores.diff() <= 0).all() and (survivors[:, None] == candidates).all(dim=2).any(dim=1).all()
    assert (iou_matrix(survivors, survivors).fill_diagonal_(0) <= limit + 1e-3).all()
    as_good = scores >= their[:, None] - 1e-6
    assert ((iou_matrix(candidates, survivors) > limit - 1e-3) & as_good).any(dim=1).all()


@given(boxes(2, 8, beyond=10), SEEDS, st.sampled_from([0, 5]), SHARES, st.booleans())
def test_proposals_that_survive(some, seed, step, limit, training):
    """§4.6."""
    anchors = crowd(some, seed)
    logits = noise(seed, 1, len(anchors)) * 4 - step * (torch.arange(len(anchors)) % len(some))  # the best lie together
    found = []
    for most in (1000, 1, 2, 3, 4):
        limits = ProposalLimits(post_nms=most)
        config = RPNConfig(nms_iou=limit, train=limits, test=limits, cross_boundary="remove")
        found += propose(logits, torch.zeros(1, len(anchors), 4), anchors, SIZE, config, training)
    everything, *cut = found
    for n, first in enumerate(cut, start=1):
        assert torch.equal(everything["boxes"][:n], first["boxes"]), "N cuts the list and changes nothing else"
    clipped = clip(anchors, *SIZE)
    there = inside(anchors, *SIZE) if training else (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
    check_suppression(clipped[there], logits[0, there].sigmoid(), *everything.values(), limit)


@given(boxes(1, 6), SEEDS, SHARES, st.sampled_from([0.0, 0.1]), st.integers(1, 8))
def test_detections_that_survive(proposals, seed, limit, threshold, few):
    """§6.5: each class by itself; with a threshold every class above it, else the best, if that is not background."""
    proposals = clip(crowd(proposals, seed), *SIZE)
    logits = noise(seed, len(proposals), CLASSES + 1) * 6
    found = []
    for cut in ({}, {"post_nms": few}, {"pre_nms": few}):
        limits = DetectionLimits(nms_iou=limit, score_threshold=threshold, **cut)
        outputs = logits, torch.zeros(len(proposals), CLASSES, 4)
        found += refine(*outputs, [proposals], SIZE, BoxHeadConfig(test=limits))
    everything, first, of_few = found
    assert torch.equal(everything["scores"][:1], of_few["scores"][:1]), "K' keeps the best"
    assert all(torch.equal(everything[name][:few], first[name]) for name in first)
    assert (everything["scores"].diff() <= 0).all() and (everything["scores"] > threshold).all()
    shares = logits.softmax(dim=1)
    best = shares.argmax(dim=1)
    for label in range(1, CLASSES + 1):
        of = everything["labels"] == label
        there = shares[:, label] > threshold if threshold else (best == label) & (shares[:, label] > shares[:, 0])
        survivors, scores = everything["boxes"][of], everything["scores"][of]
        check_suppression(proposals[there], shares[there, label], survivors, scores, limit)
        assert of.any() == there.any()


@given(boxes(0, 8, beyond=20), targets(), SEEDS, st.sampled_from(["clip", "remove"]))
def test_what_the_mask_head_learns_from(proposals, target, seed, cross_boundary):
    """§6.5: boxes inside the image, each overlapping the object that gives it its class and its mask."""
    proposals = torch.cat([proposals, crowd(target["boxes"], seed)])
    outputs = noise(seed, len(proposals), CLASSES + 1) * 6, torch.zeros(len(proposals), CLASSES, 4)
    config = BoxHeadConfig(cross_boundary=cross_boundary)
    (chosen,) = refine_for_training(*outputs, [proposals], [target], SIZE, config)
    assert inside(chosen["boxes"], *SIZE).all()
    iou = iou_matrix(chosen["boxes"], target["boxes"])
    assert (iou[torch.arange(len(iou)), chosen["matched"]] > 0.5).all()
    assert torch.equal(chosen["labels"], target["labels"][chosen["matched"]])
    within = proposals[inside(proposals, *SIZE)]
    assert len(iou) or not (iou_matrix(within, target["boxes"]) > 0.501).any()


@given(boxes(1, 8, beyond=100), st.integers(1, 7), st.sampled_from([1.0, 0.25]), SEEDS)
def test_roi_align_is_a_mean(rois, size, scale, seed):
    """§5.1: of a constant the constant; linear in the map; never beyond its values, and zero far outside it."""
    images = torch.zeros(len(rois), dtype=torch.long)
    maps = noise(seed, 2, 1, 3, int(HEIGHT * scale), int(WIDTH * scale))
    one, other = (roi_align(m, rois, images, size, scale) for m in maps)
    assert_close(roi_align(maps[0] + 2 * maps[1], rois, images, size, scale), one + 2 * other)
    assert ((one >= 0) & (one <= 1 + 1e-5)).all()
    constant = roi_align(torch.ones_like(maps[0]), rois, images, size, scale)
    assert_close(constant[inside(rois, *SIZE)], torch.ones_like(constant[inside(rois, *SIZE)]))
    far = (rois[:, 2:] < -1 / scale).any(dim=1) | (rois[:, :2] > FRAME[:2] + 1 / scale).any(dim=1)
    assert (constant[far] == 0).all()
    vast = roi_align(maps[0], rois * 1e6, images, size, scale)
    assert vast.isfinite().all()


@given(boxes(1, 8), st.integers(1, 7), st.tuples(*[st.integers(-3, 3)] * 3))
def test_roi_align_of_a_plane_is_its_value_at_the_cells_centres(rois, size, plane):
    rois = rois.maximum(torch.tensor(0.5)).minimum(FRAME - 0.5)  # between the centres of the outermost pixels
    x, y = torch.arange(WIDTH) + 0.5, torch.arange(HEIGHT)[:, None] + 0.5
    a, b, c = plane
    pooled = roi_align((a * x + b * y + c)[None, None], rois, torch.zeros(len(rois), dtype=torch.long), size)[:, 0]
    steps = (torch.arange(size) + 0.5) / size
    columns, rows = (rois[:, k, None] + (rois[:, k + 2] - rois[:, k])[:, None] * steps for k in (0, 1))
    assert_close(pooled, a * columns[:, None, :] + b * rows[:, :, None] + c, atol=1e-3, rtol=1e-4)


@given(boxes(1, 4, beyond=20), boxes(1, 4), SEEDS, st.sampled_from([2, 7, 28]))
def test_a_pasted_mask_lies_in_its_box(any_boxes, within, seed, m):
    """§7.5: no pixel whose centre is outside; and pasted in a crop of the picture it is the same mask."""
    masks = noise(seed, len(any_boxes), m, m)
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    for pasted, (x1, y1, x2, y2) in zip(paste_masks(masks, any_boxes, SIZE).bool(), any_boxes, strict=True):
        assert ((x >= x1 - 1e-3) & (x <= x2 + 1e-3) & (y >= y1 - 1e-3) & (y <= y2 + 1e-3))[pasted].all()
    within = torch.cat([within, FRAME[2:].repeat(2)[None]])  # and a box of nothing in the corner
    for mask, box in zip(noise(seed, len(within), m, m), within, strict=True):
        crop, (left, top) = paste_crop(mask, box, SIZE)
        assert top + crop.shape[0] <= HEIGHT and left + crop.shape[1] <= WIDTH
        whole = torch.zeros(SIZE, dtype=torch.uint8)
        whole[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        fewer, more = (paste_masks(mask[None], box[None], SIZE, 0.5 + hair)[0] for hair in (1e-5, -1e-5))
        assert (whole >= fewer).all() and (whole <= more).all()  # the two may round differently
        assert np.array_equal(rle.decode(encode_crop(crop, (left, top), SIZE)), whole.numpy())


@given(st.integers(0, WIDTH - 8), st.integers(0, HEIGHT - 8), st.integers(3, 24), st.integers(3, 24), SEEDS)
def test_an_object_cut_out_and_pasted_back(x1, y1, width, height, seed):
    """§7.3 and §7.5: a rectangle's edges are where they were, give or take half a cell; its corners may be round."""
    x2, y2 = min(x1 + width, WIDTH), min(y1 + height, HEIGHT)
    mask = torch.zeros(1, *SIZE, dtype=torch.uint8)
    mask[0, y1:y2, x1:x2] = 1
    around = crowd(torch.tensor([[x1, y1, x2, y2]]).float(), seed)
    cut = mask_targets(around, torch.zeros(len(around), dtype=torch.long), mask)
    assert ((cut == 0) | (cut == 1)).all()
    x, y = torch.arange(WIDTH) + 0.5, torch.arange(HEIGHT)[:, None] + 0.5
    for pasted, box in zip(paste_masks(cut, around, SIZE), around, strict=True):
        cell_x, cell_y = (box[2:] - box[:2]) / cut.shape[-1] + 1e-3
        in_x, in_y = torch.minimum(x - x1, x2 - x), torch.minimum(y - y1, y2 - y)  # how far inside the object
        in_box = (torch.minimum(x - box[0], box[2] - x) > cell_x) & (torch.minimum(y - box[1], box[3] - y) > cell_y)
        deep_x, deep_y = in_x > 1.5 * cell_x + 1, in_y > 1.5 * cell_y + 1
        assert pasted[in_box & (in_x > cell_x / 2) & deep_x.any() & deep_y].all()
        assert pasted[in_box & (in_y > cell_y / 2) & deep_y.any() & deep_x].all()
        assert not pasted[(in_x < -cell_x / 2) | (in_y < -cell_y / 2)].any()


@given(arrays(np.uint8, st.tuples(*[st.integers(0, 3)] + [st.integers(1, 40)] * 2), elements=st.integers(0, 1)))
def test_a_run_length_code_is_its_mask(masks):
    """Written as COCO's results, and read as COCO's annotations: compressed, and as the lengths of the runs."""
    height, width = masks.shape[1:]
    for code, mask in zip(encode_masks(torch.from_numpy(masks)), masks, strict=True):
        assert np.array_equal(rle.decode(code), mask)
        bits = np.concatenate([[0], mask.T.ravel()])  # column by column; the first run is of zeros
        ends = np.concatenate([np.flatnonzero(np.diff(bits)), [mask.size]])
        for counts in (code["counts"].decode("ascii"), np.diff(ends, prepend=0).tolist()):
            checked = segmentations.checked({"size": [height, width], "counts": counts}, height, width)
            assert np.array_equal(segmentations.decode(checked, height, width), mask)


@given(boxes(1, 4, beyond=20), SEEDS, st.lists(st.booleans(), min_size=2, max_size=2))
def test_mirrored_twice_is_as_before(some, seed, which):
    pictures = noise(seed, 2, 3, *SIZE)
    masks = torch.zeros(len(some), *SIZE, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, clip(some, *SIZE).int().tolist(), strict=True):
        mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    masks = masks[masks.flatten(1).sum(dim=1) > 0]
    tight = [torch.from_numpy(tight_box(mask.numpy())) for mask in masks]
    before = [{"boxes": torch.stack(tight), "masks": masks}] * 2 if tight else [{"boxes": some[:0]}] * 2
    mirrored, targets = once = flip_horizontally(pictures, before, torch.tensor(which))
    for flipped, picture, new, old in zip(which, mirrored, targets, pictures, strict=True):
        assert torch.equal(picture, old.flip(-1) if flipped else old)
        for box, mask in zip(new["boxes"], new.get("masks", ()), strict=True):
            assert tight_box(mask.numpy()).tolist() == box.tolist()
    again, targets = flip_horizontally(*once, torch.tensor(which))
    assert torch.equal(again, pictures)
    assert all(torch.equal(new[k], old[k]) for new, old in zip(targets, before, strict=True) for k in old)

    quarters, first = (some * 4).round() / 4, torch.zeros(len(some), dtype=torch.long)
    pooled = roi_align(pictures[:1], quarters, first, 4)
    assert_close(roi_align(pictures[:1].flip(-1), flip_boxes(quarters, WIDTH), first, 4).flip(-1), pooled)


@given(st.lists(st.integers(0, CLASSES), max_size=6), st.floats(0, 1e4), SEEDS, st.sampled_from([0.01, 1.0]))
def test_losses_are_finite_and_differentiable(labels, scale, seed, beta):
    """§4.4, §6.3, §7.4: also for no samples at all, and for nothing but background."""
    labels = torch.tensor(labels, dtype=torch.long)
    count, objects = len(labels), labels[labels > 0]
    sizes = [(count,), (count, 4), (count, CLASSES + 1), (count, CLASSES, 4), (len(objects), CLASSES, 4, 4)]
    outputs = [((noise(seed + n, *size) - 0.5) * scale).requires_grad_() for n, size in enumerate(sizes)]
    aims = (noise(seed + 9, count, 4) - 0.5) * scale
    losses = rpn_loss(*outputs[:2], labels.clamp(max=1), aims, beta) | box_loss(*outputs[2:4], labels, aims, beta)
    losses |= mask_loss(outputs[4], objects, noise(seed, len(objects), 4, 4).round())
    assert all(value.isfinite() and value >= 0 for value in losses.values())
    assert len(objects) or losses["rpn_box"] == losses["box_regression"] == losses["mask"] == 0
    sum(losses.values()).backward()
    assert all(output.grad is not None and output.grad.isfinite().all() for output in outputs)
    assert (outputs[1].grad[labels == 0] == 0).all() and (outputs[3].grad[labels == 0] == 0).all()
