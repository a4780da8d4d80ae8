"""Training stage by stage beside torchvision's own modules, on the same features, objects and boxes.

    python -m benchmarks.stages

A step is what follows the frozen backbone for a minibatch: labels, sampling, pooling, head, losses and their backward
pass, without the optimiser. A stage is ten epochs from pictures on, everything before the head frozen, with AdamW:
ours computes what the stage samples from once and reads it from the cache, torchvision's way runs the backbone in every
epoch. Both have the same weights, number of samples and boxes. float32, and bf16 (autocast) in rows of their own.
"""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss, maskrcnn_loss, project_masks_on_boxes
from torchvision.models.detection.rpn import concat_box_prediction_layers
from tqdm import tqdm

from benchmarks.inference import BOX_WEIGHTS, models, picture
from benchmarks.timing import arguments, compare, row, save, seconds, table, threads
from lib.anchors import STRIDES
from lib.boxhead import proposal_candidates, stack_rois
from lib.cache import SampleCache, sample_caches, stored, write_part
from lib.config import Config, load_config
from lib.data import CourseDataset, collate, flip_horizontally
from lib.maskhead import class_masks, mask_targets
from lib.maskrcnn import MaskRCNN
from lib.matching import take
from lib.roi_align import pool, pyramid_level
from lib.runtime import command_errors
from lib.stages import STAGE_CLASSES, BoxHeadStage, MaskHeadStage, RPNStage, Stage, mask_candidates
from lib.synthetic import write_scenes
from lib.train import loader

BATCH = 2
PRECISIONS = ("float32", "bf16")
NAMES = ("rpn", "boxhead", "maskhead")
PROPOSE = MaskRCNN.propose
PROPOSALS = 1000  # an image, for the box head to sample from
SAME = (
    "rpn_batch_samples=512",  # torchvision's 256 an image
    "box_batch_samples=1024",  # its 512 an image
    "box_positive_fraction=0.25",
    "box_positive_iou=0.5",
    "cross_boundary=clip",  # it keeps the anchors that cross the boundary
    "smooth_l1_beta=0.1111111111111111",
    "box_post_nms_train=100",  # boxes an image that train the mask head, for both; fewer with --set
    "box_nms_iou_train=1.0",  # ... so that NMS leaves so many
    *(f"{stage}_batch_size={BATCH}" for stage in ("rpn", "boxhead", "maskhead")),
)


class Work:
    """Feature maps, objects with masks, proposals around the objects and elsewhere, and the two models."""

    def __init__(self, config: Config):
        generator = torch.Generator().manual_seed(0)
        self.config, (self.height, self.width) = config, config.padded_size
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
        self.proposals = [around(t["boxes"], self.config.padded_size, PROPOSALS, generator) for t in self.targets]
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
    stage, content = RPNStage(work.ours).train(), (work.height, work.width)
    check_rpn(stage, work)

    def ours():
        backward(stage.loss(stage.sample(work.features, work.targets, content)))

    def peer_with_proposals():
        backward(work.peer.rpn(work.images, dict(enumerate(work.features)), work.targets)[1])

    def peer():
        backward(peer_rpn(work.peer, work.images, work.features, work.targets))

    yield "RPN", ours, peer
    yield "RPN, peer with the proposals that it makes in training", ours, peer_with_proposals
    with cached(stage, work, stage.candidates(work.features, work.targets, content)) as from_cache:
        yield "RPN, ours from the cache", from_cache, peer


def check_rpn(stage: Stage, work: Work) -> None:
    """At the anchors that ours samples, torchvision's dense head predicts the same."""
    with torch.no_grad():
        stage.eval()
        rows = stage.candidates(work.features, work.targets, (work.height, work.width))
        chosen = take(rows, stage.draw(rows["labels"]))
        samples = stage.gather(work.features, chosen)
        logits, deltas = stage.model.rpn.at_patches(samples["patches"], samples["slots"])
        dense = concat_box_prediction_layers(*work.peer.rpn.head(work.features))
        which = chosen["images"] * (len(rows["labels"]) // BATCH) + chosen["anchors"]
        assert_close(logits, dense[0].flatten()[which], atol=1e-3, rtol=1e-3)
        assert_close(deltas, dense[1][which], atol=1e-3, rtol=1e-3)
        stage.train()


@contextmanager
def cached(stage: Stage, work: Work, rows: dict[str, Tensor]) -> Iterator[Callable]:
    """The step of a stage that reads the features of its minibatch from a cache of these candidates."""
    kept = [(rows["images"] == i).nonzero().flatten() for i in range(BATCH)]
    kept = [r[stage.keep(rows["labels"][r], BATCH)] for r in kept]
    with tempfile.TemporaryDirectory() as folder:
        with torch.no_grad():
            samples = stage.gather(work.features, take(rows, torch.cat(kept)))
        columns = {name: stored(name, column) for name, column in samples.items()}
        write_part(Path(folder) / "0", iter([(columns, [len(r) for r in kept])]), tqdm(disable=True))
        cache = SampleCache(Path(folder), stage, variants=1)
        yield lambda: backward(stage(*cache.collate(range(BATCH))))


def box_steps(work: Work) -> Iterator[tuple[str, Callable, Callable]]:
    stage = BoxHeadStage(work.ours).train()
    proposals = [{"boxes": p} for p in work.proposals]
    with torch.no_grad():  # the same pooled features, classes and boxes
        pooled = pooled_as_by_peer(work, work.proposals, work.config.box_pool_size)
        theirs = work.peer.roi_heads.box_roi_pool(work.maps, work.proposals, work.images.image_sizes)
        assert_close(pooled, theirs, atol=1e-3, rtol=1e-3)
        logits, deltas = work.ours.box_head(pooled)
        their_logits, their_deltas = work.peer.roi_heads.box_predictor(work.peer.roi_heads.box_head(theirs))
        assert_close(logits, their_logits, atol=1e-3, rtol=1e-3)
        assert_close(deltas * torch.tensor(BOX_WEIGHTS), their_deltas.view(-1, 4, 4)[:, 1:], atol=1e-3, rtol=1e-3)

    def ours():
        rows = proposal_candidates(proposals, work.targets, work.config)
        backward(stage.loss(stage.gather(work.features, take(rows, stage.draw(rows["labels"])))))

    def peer():
        backward(peer_box(work.peer, work.images, work.maps, work.targets, work.proposals))

    yield "box head", ours, peer
    with cached(stage, work, proposal_candidates(proposals, work.targets, work.config)) as from_cache:
        yield "box head, ours from the cache", from_cache, peer


def pooled_as_by_peer(work: Work, boxes: Sequence[Tensor], size: int) -> Tensor:
    """Our RoIAlign half a cell further to the right and below: torchvision's `MultiScaleRoIAlign` leaves out the half
    pixel of its own `roi_align(aligned=True)`, which ours follows.
    """
    rois, images = stack_rois(boxes)
    levels = pyramid_level(rois, work.config.canonical_level, work.config.canonical_size)
    shifted, scales = rois + 2.0 ** (levels[:, None] - 1), [1 / stride for stride in STRIDES[:4]]
    return pool(work.features[:4], scales, shifted, images, levels - 2, size, work.config.roi_samples)


def mask_steps(work: Work) -> Iterator[tuple[str, Callable, Callable]]:
    stage = MaskHeadStage(work.ours).train()
    rois = [p[: work.config.box_post_nms_train] for p in work.proposals]
    matched = [torch.arange(len(r)) % len(t["labels"]) for r, t in zip(rois, work.targets, strict=True)]
    pairs = zip(rois, matched, work.targets, strict=True)
    chosen = [{"boxes": r, "matched": m, "labels": t["labels"][m]} for r, m, t in pairs]
    with torch.no_grad():  # the same masks and the same targets
        labels = torch.cat([c["labels"] for c in chosen])
        pooled = pooled_as_by_peer(work, rois, work.config.mask_pool_size)
        logits = class_masks(work.ours.mask_head(pooled), labels)
        heads = work.peer.roi_heads
        theirs = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(work.maps, rois, work.images.image_sizes)))
        assert_close(logits, theirs[torch.arange(len(theirs)), labels], atol=1e-3, rtol=1e-3)
        for t, c in zip(work.targets, chosen, strict=True):  # again half a pixel off; and theirs takes more samples
            own = mask_targets(c["boxes"] + 0.5, c["matched"], t["masks"], logits.shape[-1])
            projected = project_masks_on_boxes(t["masks"], c["boxes"], c["matched"], logits.shape[-1])
            assert ((projected >= 0.5) == (own > 0)).float().mean() > 0.99

    def ours():
        backward(stage.loss(stage.gather(work.features, mask_candidates(chosen, work.targets, work.config))))

    def peer():
        backward(peer_mask(work.peer, work.images, work.maps, work.targets, rois, matched))

    yield "mask head", ours, peer
    with cached(stage, work, mask_candidates(chosen, work.targets, work.config)) as from_cache:
        yield "mask head, ours from the cache", from_cache, peer


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


# --------------------------------------------------------------------------------------------------------- whole stages


@contextmanager
def photographs(count: int, config: Config) -> Iterator[dict[str, CourseDataset]]:
    """So many scenes to train on, and none to validate."""
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(folder, count, seed=0)
        (Path(folder) / "split.json").write_text(json.dumps({"train": list(range(count)), "val": [], "test": []}))
        yield {split: CourseDataset(folder, split, config) for split in ("train", "val")}


class Stages:
    """The two ways to train the three stages for some epochs; each call of `ours` and `peer` is one whole training.

    Weights that nobody has trained propose hardly an object, and a head without objects has little to do: both RPNs run
    as always, but what goes on to the heads are boxes around the objects, equally many on both sides.
    """

    def __init__(self, config: Config, data: dict[str, CourseDataset], epochs: int, precision: str):
        self.config, self.data, self.epochs = config, data, epochs
        self.precision, self.targets = precision, []
        self.model, self.peer_model = models(picture(), config)
        self.peer_model.train().to(memory_format=torch.channels_last)
        for parameter in self.peer_model.backbone.parameters():
            parameter.requires_grad_(False)
        forward = self.peer_model.rpn.forward
        self.peer_model.rpn.forward = lambda *a: (self.around_objects(), forward(*a)[1])

    def propose(self, model: MaskRCNN, *inputs, **options) -> list[dict]:
        PROPOSE(model, *inputs, **options)
        return [{"boxes": b} for b in self.around_objects()]

    def around_objects(self) -> list[Tensor]:
        return [around(t["boxes"], self.config.padded_size, PROPOSALS) for t in self.targets]

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

    def optimizer(self, *parts: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for part in parts for p in part.parameters()], 1e-5, fused=True)

    def ours(self, name: str) -> dict[str, float]:
        """Seconds of computing the cache and of all epochs."""
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, mixed_precision="no" if self.precision == "float32" else "bf16")
        stage = STAGE_CLASSES[name](self.model).train()
        optimizer, candidates, made = self.optimizer(*stage.learning_modules()), stage.candidates, {}

        def remembering(features, targets, content):
            self.targets = targets
            return candidates(features, targets, content)

        def build():
            made.update(sample_caches(stage, self.data, Path(folder), accelerator, epochs=9))

        def train():
            batches = loader(made["train"], BATCH, accelerator.device, shuffle=True)
            for _ in range(self.epochs):
                for (samples,) in batches:
                    with self.autocast():
                        self.step(stage(samples), optimizer)

        stage.candidates = remembering
        own = patch.object(MaskRCNN, "propose", lambda *inputs, **options: self.propose(*inputs, **options))
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(None), own:
            return {"cache": seconds(build), "epochs": seconds(train)}

    def step(self, losses: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        backward(losses)
        optimizer.step()
        optimizer.zero_grad()

    def peer(self, name: str) -> float:
        """Seconds of one epoch of torchvision's way."""
        model, heads = self.peer_model, self.peer_model.roi_heads
        parts = {
            "rpn": (model.rpn.head,),
            "boxhead": (heads.box_head, heads.box_predictor),
            "maskhead": (heads.mask_head, heads.mask_predictor),
        }
        optimizer = self.optimizer(*parts[name])
        model.rpn.train(name == "rpn")
        positives = self.config.box_post_nms_train / heads.fg_bg_sampler.batch_size_per_image
        heads.fg_bg_sampler.positive_fraction = positives if name == "maskhead" else self.config.box_positive_fraction

        def epoch():
            for images, targets in DataLoader(self.data["train"], BATCH, shuffle=True, collate_fn=collate):
                with self.autocast():
                    self.step(self.peer_losses(name, images, targets), optimizer)

        return seconds(epoch)

    def peer_losses(self, name: str, images: Tensor, targets: list[dict]) -> dict[str, Tensor]:
        model = self.peer_model
        images, targets = flip_horizontally(images, targets, torch.rand(len(images)) < self.config.flip_probability)
        with torch.no_grad():
            images, self.targets = model.transform(list(images.float() / 255), targets)
            maps = model.backbone(images.tensors)
        if name == "rpn":
            return peer_rpn(model, images, list(maps.values()), self.targets)
        with torch.no_grad():
            proposals, _ = model.rpn(images, maps)
        if name == "boxhead":
            return peer_box(model, images, maps, self.targets, proposals)
        rois, matched, labels, _ = model.roi_heads.select_training_samples(list(proposals), self.targets)
        positive = [label > 0 for label in labels]
        rois, matched = ([v[p] for v, p in zip(column, positive, strict=True)] for column in (rois, matched))
        return peer_mask(model, images, maps, self.targets, rois, matched)


def stages(
    config: Config, count: int, epochs: int, runs: int, names: Sequence[str], precisions: Sequence[str]
) -> Iterator[dict]:
    """A row for each stage, with and without mirrored images, and precision; times are milliseconds an image, all
    epochs and the cache together. torchvision's epochs are all alike: one is measured and counted as often. So
    much work needs no warm-up.
    """
    for precision, flip in itertools.product(precisions, (0.0, 0.5)):
        config = config.replace(flip_probability=flip)
        with photographs(count, config) as data:
            both = Stages(config, data, epochs, precision)
            for name in names:
                ours, peer = [], []
                for run in range(runs):
                    for side in ("ours", "peer") if run % 2 else ("peer", "ours"):
                        (ours if side == "ours" else peer).append(getattr(both, side)(name))
                per_image = 1e3 / count
                about = {f"{part} ms": median(r[part] for r in ours) * per_image for part in ours[0]}
                about |= {"precision": precision, "mirrored": flip > 0, "epochs": epochs, "images": count}
                totals = [sum(r.values()) * per_image for r in ours], [p * epochs * per_image for p in peer]
                yield row(f"{name} stage, an image", *totals, **about)


@command_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments("stages", "Training steps and whole stages beside torchvision's modules.", runs=9)
    parser.add_argument("--images", type=int, default=4, help="images that whole stages are measured on (default 4)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of a whole stage (default 10)")
    parser.add_argument("--stage-runs", type=int, default=2, help="timed runs of each whole stage (default 2)")
    parser.add_argument("--only", choices=("steps", "stages"), help="one of the two tables")
    parser.add_argument("--stage", nargs="+", choices=NAMES, default=NAMES, help="which whole stages")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="override fields of the config")
    args = parser.parse_args(argv)
    config, rows, whole = load_config("course", [*SAME, *args.set]), [], []
    for count in args.threads:
        of_steps = steps(config, args.runs, args.precision)
        of_stages = stages(config, args.images, args.epochs, args.stage_runs, args.stage, args.precision)
        with threads(count):
            for found, measured in ((rows, of_steps), (whole, of_stages)):
                for measurement in measured if args.only in (None, measured.__name__) else ():
                    found.append(measurement)
                    print(table(found[-1:]), flush=True)
                    save(rows + whole, args.out)  # a run of many minutes may be stopped
    for found in (rows, whole):
        if found:
            print("\n" + table(found))
    if whole:
        print(
            f"\n100 images, extrapolated from the {args.images} measured, minutes of ours and of torchvision's way "
            "(an image costs the same however many there are):"
        )
        for r in whole:
            minutes = (r[f"{side} ms"] * 100 / 60e3 for side in ("ours", "peer"))
            print(r["what"], r["precision"], "mirrored" * r["mirrored"], *(f"{m:.1f} min" for m in minutes))
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
