"""Training steps, stage by stage, beside torchvision's own modules, on the same features, objects and boxes.

    python -m benchmarks.stages

A step is what follows the frozen backbone for a minibatch: labels, sampling, pooling, head, losses and their backward
pass, without the optimiser. Both have the same weights, number of samples and boxes. float32, and bf16 (autocast) in
rows of their own.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.testing import assert_close
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss, maskrcnn_loss, project_masks_on_boxes
from torchvision.models.detection.rpn import concat_box_prediction_layers

from benchmarks.inference import BOX_WEIGHTS, models, picture
from benchmarks.timing import arguments, compare, save, table, threads
from lib import boxhead, maskhead
from lib.anchors import STRIDES
from lib.boxhead import sample_proposals, stack_rois
from lib.config import Config, load_config
from lib.machine.errors import command_errors
from lib.maskhead import class_masks, mask_targets
from lib.roi_align import pool, pyramid_level
from lib.training.stages import BoxHeadStage, Learner, MaskHeadStage, RPNStage, mask_samples

BATCH = 2
PRECISIONS = ("float32", "bf16")
PROPOSALS = 1000  # an image, for the box head to sample from
SAME = (
    "rpn.batch_samples=512",  # torchvision's 256 an image
    "boxhead.batch_samples=1024",  # its 512 an image
    "boxhead.positive_fraction=0.25",
    "boxhead.positive_iou=0.5",
    "rpn.cross_boundary=clip",  # it keeps the anchors that cross the boundary
    "rpn.negatives=uniform",  # it draws from all levels as from one
    "rpn.smooth_l1_beta=0.1111111111111111",
    "boxhead.train.post_nms=100",  # boxes an image that train the mask head, for both; fewer with --set
)


class Work:
    """Feature maps, objects with masks, proposals around the objects and elsewhere, and the two models."""

    def __init__(self, config: Config):
        generator = torch.Generator().manual_seed(0)
        self.config, (self.height, self.width) = config, config.image.padded_size
        self.ours, self.peer = models(picture(), config)
        self.peer.to(memory_format=torch.channels_last)  # faster for it too
        image = torch.zeros(BATCH, 3, self.height, self.width).to(memory_format=torch.channels_last)
        with torch.no_grad():
            maps = self.ours.features(image)
        self.features = [torch.randn(f.shape, generator=generator).to(memory_format=torch.channels_last) for f in maps]
        self.use(torch.float32)
        size = torch.tensor([self.width, self.height] * 2)
        centre = torch.tensor([[0.3, 0.4], [0.7, 0.5], [0.5, 0.7]])
        boxes = torch.cat([centre - 0.2, centre + 0.2], dim=1) * size
        self.targets = [self._target(boxes * shrink) for shrink in (1.0, 0.9)]
        self.proposals = [around(t["boxes"], self.config.image.padded_size, PROPOSALS, generator) for t in self.targets]
        self.images = ImageList(image, [(self.height, self.width)] * BATCH)

    def _target(self, boxes: Tensor) -> dict:
        y, x = torch.arange(self.height)[:, None] + 0.5, torch.arange(self.width) + 0.5
        x1, y1, x2, y2 = (v[:, None, None] for v in boxes.unbind(1))
        masks = ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2 <= 0.25
        return {"boxes": boxes, "labels": torch.tensor([1, 2, 3]), "masks": masks.to(torch.uint8)}

    def use(self, dtype: torch.dtype) -> None:
        """The maps as both take them, and as torchvision's RoIAlign reads them fastest."""
        self.features = [f.to(dtype) for f in self.features]
        self.maps = {str(level): f.contiguous() for level, f in enumerate(self.features[:4])}


def around(objects: Tensor, size: tuple[int, int], count: int, generator: torch.Generator | None = None) -> Tensor:
    """Boxes (count, 4): half of them around the objects, most of these with a large overlap, the others anywhere."""
    near = objects[torch.arange(count // 2) % len(objects)]
    extent = (near[:, 2:] - near[:, :2]).repeat(1, 2)
    near = near + 0.08 * extent * torch.randn(near.shape, generator=generator)
    corners = torch.rand(count - len(near), 2, 2, generator=generator) * torch.tensor(size[::-1])
    boxes = torch.cat([near, torch.cat([corners.amin(1), corners.amax(1) + 16], dim=1)])
    boxes[:, :2] = boxes[:, :2].minimum(torch.tensor(size[::-1]) - 16)
    return boxes.clamp(min=0).minimum(torch.tensor(size[::-1]).repeat(2))


def backward(losses: dict[str, Tensor]) -> None:
    sum(losses.values()).backward()


# ------------------------------------------------------------------------------------------------- steps of torchvision


def peer_rpn(peer: TorchvisionMaskRCNN, images: ImageList, maps: list, targets: list[dict]) -> dict[str, Tensor]:
    """`RegionProposalNetwork.forward` in training without its proposals."""
    rpn = peer.rpn
    outputs, anchors = rpn.head(maps), rpn.anchor_generator(images, maps)
    logits, deltas = concat_box_prediction_layers(*outputs)
    labels, boxes = rpn.assign_targets_to_anchors(anchors, targets)
    objectness, box = rpn.compute_loss(logits, deltas, labels, rpn.box_coder.encode(boxes, anchors))
    return {"objectness": objectness, "box": box}


def peer_box(peer: TorchvisionMaskRCNN, images: ImageList, maps: dict, targets: list, proposals: list) -> dict:
    """`RoIHeads.forward` in training as far as the box head."""
    heads = peer.roi_heads
    rois, _, labels, deltas = heads.select_training_samples(list(proposals), targets)
    logits, regression = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, rois, images.image_sizes)))
    return dict(zip(("class", "box"), fastrcnn_loss(logits, regression, labels, deltas), strict=True))


def peer_mask(peer: TorchvisionMaskRCNN, images: ImageList, maps: dict, targets: list, rois: list, matched: list):
    """`RoIHeads.forward` in training from the mask head's boxes on."""
    heads = peer.roi_heads
    logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, rois, images.image_sizes)))
    masks, labels = ([t[k] for t in targets] for k in ("masks", "labels"))
    return {"mask": maskrcnn_loss(logits, rois, masks, labels, matched)}


# ------------------------------------------------------------------------------------------------------- steps in turns


def rpn_steps(work: Work) -> Iterator[tuple[str, Callable, Callable]]:
    stage, content = RPNStage(work.ours), (work.height, work.width)
    learner = Learner(stage)
    check_rpn(learner, work)

    def ours():
        backward(stage.loss(stage.sample(work.features, work.targets, content)))

    def peer_with_proposals():
        backward(work.peer.rpn(work.images, dict(enumerate(work.features)), work.targets)[1])

    def peer():
        backward(peer_rpn(work.peer, work.images, work.features, work.targets))

    yield "RPN", ours, peer
    yield "RPN, peer with the proposals that it makes in training", ours, peer_with_proposals


def check_rpn(learner: Learner, work: Work) -> None:
    """At the anchors that ours samples, torchvision's dense head predicts the same."""
    with torch.no_grad():
        learner.eval()
        samples = learner.stage.sample(work.features, work.targets, (work.height, work.width))
        logits, deltas = learner.model.rpn.at_patches(samples["patches"], samples["ratios"])
        dense = concat_box_prediction_layers(*work.peer.rpn.head(work.features))
        which = samples["images"] * (len(dense[0]) // BATCH) + samples["anchors"]
        assert_close(logits, dense[0].flatten()[which], atol=1e-3, rtol=1e-3)
        assert_close(deltas, dense[1][which], atol=1e-3, rtol=1e-3)
        learner.train()


def box_steps(work: Work) -> Iterator[tuple[str, Callable, Callable]]:
    stage = BoxHeadStage(work.ours)
    Learner(stage).train()
    proposals = [{"boxes": p} for p in work.proposals]
    with torch.no_grad():  # the same pooled features, classes and boxes
        pooled = pooled_as_by_peer(work, work.proposals, boxhead.POOL_SIZE)
        theirs = work.peer.roi_heads.box_roi_pool(work.maps, work.proposals, work.images.image_sizes)
        assert_close(pooled, theirs, atol=1e-3, rtol=1e-3)
        logits, deltas = work.ours.box_head(pooled)
        their_logits, their_deltas = work.peer.roi_heads.box_predictor(work.peer.roi_heads.box_head(theirs))
        assert_close(logits, their_logits, atol=1e-3, rtol=1e-3)
        assert_close(deltas * torch.tensor(BOX_WEIGHTS), their_deltas.view(-1, 4, 4)[:, 1:], atol=1e-3, rtol=1e-3)

    def ours():
        chosen = sample_proposals(proposals, work.targets, work.config.boxhead)
        pooled = work.ours.pool(work.features, chosen["rois"], chosen["images"], boxhead.POOL_SIZE)
        backward(stage.loss({"pooled": pooled, "labels": chosen["labels"], "deltas": chosen["deltas"]}))

    def peer():
        backward(peer_box(work.peer, work.images, work.maps, work.targets, work.proposals))

    yield "box head", ours, peer


def pooled_as_by_peer(work: Work, boxes: Sequence[Tensor], size: int) -> Tensor:
    """Our RoIAlign half a cell further to the right and below.

    torchvision's `MultiScaleRoIAlign` leaves out the half pixel of its own `roi_align(aligned=True)`, which ours
    follows.
    """
    rois, images = stack_rois(boxes)
    levels = pyramid_level(rois, work.config.roi_align.canonical_size)
    shifted, scales = rois + 2.0 ** (levels[:, None] - 1), [1 / stride for stride in STRIDES[:4]]
    return pool(work.features[:4], scales, shifted, images, levels - 2, size)


def mask_steps(work: Work) -> Iterator[tuple[str, Callable, Callable]]:
    stage = MaskHeadStage(work.ours)
    Learner(stage).train()
    rois = [p[: work.config.boxhead.train.post_nms] for p in work.proposals]
    matched = [torch.arange(len(r)) % len(t["labels"]) for r, t in zip(rois, work.targets, strict=True)]
    pairs = zip(rois, matched, work.targets, strict=True)
    chosen = [{"boxes": r, "matched": m, "labels": t["labels"][m]} for r, m, t in pairs]
    with torch.no_grad():  # the same masks and the same targets
        labels = torch.cat([c["labels"] for c in chosen])
        pooled = pooled_as_by_peer(work, rois, maskhead.POOL_SIZE)
        logits = class_masks(work.ours.mask_head(pooled), labels)
        heads = work.peer.roi_heads
        theirs = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(work.maps, rois, work.images.image_sizes)))
        assert_close(logits, theirs[torch.arange(len(theirs)), labels], atol=1e-3, rtol=1e-3)
        for t, c in zip(work.targets, chosen, strict=True):  # again half a pixel off; and theirs takes more samples
            own = mask_targets(c["boxes"] + 0.5, c["matched"], t["masks"], logits.shape[-1])
            projected = project_masks_on_boxes(t["masks"], c["boxes"], c["matched"], logits.shape[-1])
            assert ((projected >= 0.5) == (own > 0)).float().mean() > 0.99

    def ours():
        backward(stage.loss(mask_samples(work.ours, work.features, chosen, work.targets)))

    def peer():
        backward(peer_mask(work.peer, work.images, work.maps, work.targets, rois, matched))

    yield "mask head", ours, peer


def steps(config: Config, runs: int, precisions: Sequence[str]) -> Iterator[dict]:
    """A row for each step and precision. Gradients add up: clearing them belongs to the optimiser."""
    for precision in precisions:
        for pairs in (rpn_steps, box_steps, mask_steps):
            work = Work(config)
            work.peer.train()
            for name, ours, peer in pairs(work):
                work.use(torch.float32 if precision == "float32" else torch.bfloat16)
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    yield compare(name, ours, peer, runs, warmup=1, precision=precision)


@command_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments("stages", "Training steps beside torchvision's modules.", runs=9)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="set numbers of the config")
    args = parser.parse_args(argv)
    config, rows = load_config("course", [*SAME, *args.set]), []
    for count in args.threads:
        with threads(count):
            for measurement in steps(config, args.runs, args.precision):
                rows.append(measurement)
                print(table(rows[-1:]), flush=True)
                save(rows, args.out)  # a run of many minutes may be stopped
    print("\n" + table(rows))
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
