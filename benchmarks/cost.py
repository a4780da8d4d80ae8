"""What each part of inference costs, ours beside torchvision's, and how the whole grows with its input.

`python -m benchmarks.cost`: writes the table and the figure `06_cost`. The models are those of `benchmarks.inference`:
same weights, random but with outputs like a trained model's. Times are medians, in milliseconds.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import maskrcnn_inference, paste_masks_in_image
from torchvision.models.detection.rpn import concat_box_prediction_layers

from benchmarks.inference import models, picture
from benchmarks.timing import arguments, save, seconds, synchronise, table, threads
from lib import boxhead, maskhead
from lib.boxhead import refine, stack_rois
from lib.config import PROFILES, Config
from lib.machine.folders import paths
from lib.maskhead import class_masks, paste_masks
from lib.maskrcnn import MaskRCNN
from lib.notebook import draw
from lib.notebook.figures import save_figure
from lib.notebook.report import save_table
from lib.preprocess import content_size, preprocess_images
from lib.rpn import propose
from lib.scores.results import encode_masks

NAME = "06_cost"
SHARES = {"image size": (0.5, 0.75, 1.0), "proposals": (0.1, 0.5, 1.0), "detections": (0.1, 0.5, 1.0)}
BATCHES = (1, 2, 4)


class Clock:
    """`clock(part)` ends a part: the time since the last call is the part's."""

    def __init__(self):
        self.parts: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, part: str) -> None:
        synchronise()
        now = time.perf_counter()
        self.parts[part], self.last = self.parts.get(part, 0) + 1e3 * (now - self.last), now


def untimed(part: str) -> None:
    """In a clock's place, where only the whole is timed."""


@torch.no_grad()
def run_ours(model: MaskRCNN, images: Tensor, clock: Callable[[str], None]) -> None:
    """Pictures (B, 3, H, W) uint8 to run-length codes, part by part, as `MaskRCNN.forward` goes."""
    config, size = model.config, tuple(images.shape[2:])
    content = content_size(*size, config.image)
    x = preprocess_images(images, config.image)
    clock("preprocessing")
    features = model.features(x)
    clock("backbone")
    outputs = model.rpn(features)
    clock("RPN head")
    boxes = [p["boxes"] for p in propose(*outputs, model.anchors(features), content, config.rpn, False)]
    clock("proposals")
    pooled = model.pool(features, *stack_rois(boxes), boxhead.POOL_SIZE)
    clock("RoIAlign, boxes")
    outputs = model.box_head(pooled)
    clock("box head")
    found = refine(*outputs, boxes, content, config.boxhead)
    clock("detections")
    boxes = [f["boxes"] for f in found]
    pooled = model.pool(features, *stack_rois(boxes), maskhead.POOL_SIZE)
    clock("RoIAlign, masks")
    masks = class_masks(model.mask_head(pooled), torch.cat([f["labels"] for f in found])).sigmoid()
    clock("mask head")
    scale = boxes[0].new_tensor([size[1] / content[1], size[0] / content[0]] * 2)
    for b, m in zip(boxes, masks.split([len(b) for b in boxes]), strict=True):
        encode_masks(paste_masks(m, b * scale, size))
    clock("paste and encode")


@torch.no_grad()
def run_torchvision(model: nn.Module, images: Tensor, clock: Callable[[str], None]) -> None:
    """The same with torchvision's parts, as its `forward` goes."""
    rpn, roi, size = model.rpn, model.roi_heads, tuple(images.shape[2:])
    batch, _ = model.transform([image.float() / 255 for image in images])
    clock("preprocessing")
    maps = model.backbone(batch.tensors)
    features = list(maps.values())
    clock("backbone")
    logits, deltas = rpn.head(features)
    clock("RPN head")
    anchors = rpn.anchor_generator(batch, features)
    counts = [v[0].numel() for v in logits]
    logits, deltas = concat_box_prediction_layers(logits, deltas)
    decoded = rpn.box_coder.decode(deltas, anchors).view(len(images), -1, 4)
    boxes, _ = rpn.filter_proposals(decoded, logits, batch.image_sizes, counts)
    clock("proposals")
    pooled = roi.box_roi_pool(maps, boxes, batch.image_sizes)
    clock("RoIAlign, boxes")
    outputs = roi.box_predictor(roi.box_head(pooled))
    clock("box head")
    boxes, _, labels = roi.postprocess_detections(*outputs, boxes, batch.image_sizes)
    clock("detections")
    pooled = roi.mask_roi_pool(maps, boxes, batch.image_sizes)
    clock("RoIAlign, masks")
    masks = maskrcnn_inference(roi.mask_predictor(roi.mask_head(pooled)), labels)
    clock("mask head")
    content = batch.image_sizes[0]
    scale = boxes[0].new_tensor([size[1] / content[1], size[0] / content[0]] * 2)
    for b, m in zip(boxes, masks, strict=True):
        encode_masks((paste_masks_in_image(m, b * scale, size)[:, 0] >= 0.5).to(torch.uint8).cpu())
    clock("paste and encode")


def by_part(ours: MaskRCNN, peer: nn.Module, images: Tensor, runs: int) -> list[dict]:
    """A row a part, and one for all; both sides in turns, the first turn left out."""
    times = {"ours ms": [], "torchvision ms": []}
    sides = [("ours ms", run_ours, ours), ("torchvision ms", run_torchvision, peer)]
    for turn in range(runs + 1):
        for column, run, model in sides[:: (-1) ** turn]:
            clock = Clock()
            run(model, images, clock)
            times[column].append({**clock.parts, "all": sum(clock.parts.values())})
    rows = []
    for part in times["ours ms"][0]:
        medians = {column: float(np.median([t[part] for t in all_[1:]])) for column, all_ in times.items()}
        rows.append({"cost of": part, "at": "", **medians, "ratio": medians["torchvision ms"] / medians["ours ms"]})
    return rows


def growth(ours: MaskRCNN, peer: nn.Module, image: Tensor, runs: int) -> list[dict]:
    """A row for each size of the image, number of proposals and of detections, and batch; the rest as configured."""
    config, rows = ours.config, []
    cases = [(name, share, 1) for name, shares in SHARES.items() for share in shares]
    for name, share, batch in [*cases, *(("batch", 1.0, batch) for batch in BATCHES)]:
        changed = {
            "image size": {
                "image.height": round(config.image.height * share),
                "image.width": round(config.image.width * share),
            },
            "proposals": {"rpn.test.post_nms": round(config.rpn.test.post_nms * share)},
            "detections": {"boxhead.test.post_nms": max(1, round(config.boxhead.test.post_nms * share))},
        }.get(name, {})
        set_config(ours, peer, config.replace(**changed))
        images = image.expand(batch, *image.shape)
        both = partial(run_ours, ours, images, untimed), partial(run_torchvision, peer, images, untimed)
        pairs = [[seconds(run) for run in both[:: (-1) ** turn]][:: (-1) ** turn] for turn in range(runs + 1)]
        mine, theirs = (float(v) * 1e3 for v in np.median(pairs[1:], axis=0))
        at = batch if name == "batch" else "×".join(map(str, changed.values()))
        rows.append({"cost of": name, "at": str(at), "ours ms": mine, "torchvision ms": theirs, "ratio": theirs / mine})
    set_config(ours, peer, config)
    return rows


def set_config(ours: MaskRCNN, peer: nn.Module, config: Config) -> None:
    """Image size and numbers of proposals and detections, on both sides."""
    ours.config = config
    peer.transform.min_size, peer.transform.max_size = (config.image.height,), config.image.width
    peer.rpn._post_nms_top_n["testing"] = config.rpn.test.post_nms
    peer.roi_heads.detections_per_img = config.boxhead.test.post_nms


def measure(config: Config, runs: int = 3) -> list[dict]:
    """The table: a row for each part, then for each case of `growth`."""
    image = picture()
    ours, peer = models(image, config)
    return by_part(ours, peer, image[None], runs) + growth(ours, peer, image, runs)


def cost_figure(rows: Sequence[dict]) -> Figure:
    """Left the parts of both sides, right how the whole grows with each quantity."""
    fig = Figure(figsize=(11, 4.2), layout="constrained")
    grid = fig.add_gridspec(2, 4)
    parts = [row for row in rows if not row["at"] and row["cost of"] != "all"]
    sides = (("ours ms", "ours", draw.LINES[0]), ("torchvision ms", "torchvision", draw.LINES[1]))
    ax, y = fig.add_subplot(grid[:, :2]), np.arange(len(parts))
    for shift, (column, label, colour) in zip((-0.2, 0.2), sides, strict=True):
        total = sum(row[column] for row in parts)
        bars = ax.barh(
            y + shift, [r[column] for r in parts], 0.4, color=colour, label=f"{label}: {total:,.0f} ms in all"
        )
        ax.bar_label(
            bars,
            [f"{r[column]:,.0f}" if r[column] >= 100 else f"{r[column]:.3g}" for r in parts],
            padding=3,
            fontsize=8,
        )
    ax.set(yticks=y, yticklabels=[r["cost of"] for r in parts], xlabel="milliseconds an image", title="by part")
    ax.invert_yaxis()
    ax.margins(x=0.16)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    for n, name in enumerate(dict.fromkeys(row["cost of"] for row in rows if row["at"])):
        ax, mine = fig.add_subplot(grid[n // 2, 2 + n % 2]), [r for r in rows if r["at"] and r["cost of"] == name]
        for column, _, colour in sides:
            ax.plot([r["at"] for r in mine], [r[column] for r in mine], "o-", color=colour)
        ax.set(title=name, ylim=(0, 1.1 * max(r[c] for r in mine for c, *_ in sides)))
        if n % 2 == 0:
            ax.set_ylabel("ms in all")
    return fig


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments("cost", "The cost of inference by part, beside torchvision's.", 3)
    parser.add_argument("--profile", choices=PROFILES, default="course")
    args = parser.parse_args(argv)
    config = PROFILES[args.profile].replace(**{"backbone.weights": "none"})
    published = paths().figures / "published"
    folder = published if args.out.parent == published / "benchmarks" else args.out.parent
    for count in args.threads[-1:]:
        with threads(count):
            rows = measure(config, args.runs)
    print(table(rows))
    save_table(rows, NAME, folder)
    save_figure(cost_figure(rows), NAME, folder)
    save(rows, args.out, profile=args.profile, threads=args.threads[-1])


if __name__ == "__main__":
    main()
