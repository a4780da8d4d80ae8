"""Labels for every anchor of an 800 x 1088 image beside torchvision's `box_iou` and `Matcher`.

`python -m benchmarks.assignment`: 217,413 anchors, cross-boundary ones included as torchvision has them, and 1, 5 or 20
objects of all sizes an image, ten images a turn. Labels, ties included, and the positive anchors'
objects are asserted to be identical, also to `lib.matching.match_anchors`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from benchmarks.timing import arguments, compare, save, table, threads
from lib.anchors import pyramid_anchors, pyramid_grids
from lib.assign import assign_anchors
from lib.boxes import iou_matrix
from lib.config import Config
from lib.matching import IGNORED, NEGATIVE, POSITIVE, match_anchors

IMAGES = 10  # labelled in a turn, each with objects of its own


def objects(count: int, seed: int, config: Config) -> Tensor:
    """Boxes (G, 4) of all sizes inside the image; the first two on the anchors' grid, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.tensor([config.image_width, config.image_height])
    share = torch.rand(count, 2, generator=generator) * 0.75 + 0.05
    start = torch.rand(count, 2, generator=generator) * (1 - share) * frame
    boxes = torch.cat([start, start + share * frame], dim=1)
    boxes[:2] = (boxes[:2] / 64).round() * 64 + torch.tensor([0.0, 0, 64, 64])
    return boxes


def torchvision_labels(anchors: Tensor, boxes: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Labels (A,) as ours and the matched objects (A,), negative where there is none."""
    matcher = Matcher(config.rpn_positive_iou, config.rpn_negative_iou, allow_low_quality_matches=True)
    matched = matcher(box_iou(boxes, anchors))
    labels = torch.full_like(matched, POSITIVE)
    labels[matched == Matcher.BELOW_LOW_THRESHOLD] = NEGATIVE
    labels[matched == Matcher.BETWEEN_THRESHOLDS] = IGNORED
    return labels, matched


def check(anchors: Tensor, grids: tuple, boxes: Tensor, config: Config) -> None:
    labels, positive, matched = assign_anchors(grids, boxes, config)
    theirs, their_objects = torchvision_labels(anchors, boxes, config)
    plain, objects = match_anchors(iou_matrix(anchors, boxes), config.rpn_positive_iou, config.rpn_negative_iou)
    assert torch.equal(labels.long(), theirs) and torch.equal(labels.long(), plain)
    assert torch.equal(matched, their_objects[positive]) and torch.equal(matched, objects[positive])


def each(work: Callable[[Tensor], object], images: Sequence[Tensor]) -> None:
    for boxes in images:
        work(boxes)


def main(argv: Sequence[str] | None = None, config: Config | None = None) -> None:
    args = arguments("assignment", "Anchor assignment beside torchvision's Matcher.", 30).parse_args(argv)
    config, rows = config or Config(), []
    grids = pyramid_grids(config.padded_size)
    anchors = pyramid_anchors(grids, config)
    for count in args.threads:
        with threads(count):
            for number in (1, 5, 20):
                images = [objects(number, seed, config) for seed in range(IMAGES)]
                for boxes in images:
                    check(anchors, grids, boxes, config)
                ours = partial(each, partial(assign_anchors, grids, config=config), images)
                peer = partial(each, partial(torchvision_labels, anchors, config=config), images)
                about = {"objects": number, "images": IMAGES, "anchors": len(anchors)}
                rows.append(compare("assignment", ours, peer, args.runs, **about))
    print(table(rows))
    save(rows, args.out)


if __name__ == "__main__":
    main()
