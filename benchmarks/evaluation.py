"""From raw outputs to COCO's AP, beside torchvision's pasting, pycocotools' encoding and its whole evaluation.

`python -m benchmarks.evaluation`: 200 scenes with 100 detections each: objects found well and badly, twice, with the
wrong label, and not there at all. Raw outputs are a picture's boxes (D, 4), labels, scores and masks (D, 28, 28). AP,
AP50 and AP75 of boxes and masks are asserted to be the same to the last digit, given the same masks; the share of
pixels on which the two ways of pasting agree is printed.
"""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks.timing import arguments, compare, save, table, threads
from lib.data import IMAGE_HEIGHT, IMAGE_WIDTH
from lib.evaluate import (
    CATEGORIES,
    _coco,
    average_precision,
    box_results,
    coco_evaluation,
    code_results,
    encode_masks,
    encode_pasted,
)
from lib.maskhead import mask_targets, paste_masks
from lib.synthetic import scene

SIZE = (IMAGE_HEIGHT, IMAGE_WIDTH)


def outputs(images: int, detections: int, seed: int = 0) -> tuple[COCO, list[dict]]:
    """The truth, and for each image what a model might say about it."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    annotations, found = [], []
    for image in range(images):
        _, labels, boxes, masks = (torch.from_numpy(np.array(v)) for v in scene(rng))
        labels, masks = labels.long(), masks.to(torch.uint8)
        rows = code_results(image, encode_masks(masks), labels, torch.ones(len(labels)))
        for box, row in zip(box_results(image, boxes, labels, torch.ones(len(labels))), rows, strict=True):
            area = float(rle.area(row["segmentation"]))
            annotations.append({**row, **box, "id": len(annotations) + 1, "area": area, "iscrowd": 0})
        found.append(said(boxes, labels, masks, detections, generator))
    pictures = [{"id": n, "height": SIZE[0], "width": SIZE[1]} for n in range(images)]
    return _coco({"images": pictures, "annotations": annotations, "categories": CATEGORIES}), found


def said(boxes: Tensor, labels: Tensor, masks: Tensor, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Detections around the objects of one image: moved boxes, some wrong labels, soft masks, best moved least."""
    which = torch.randint(len(boxes), (count,), generator=generator)
    move = torch.linspace(0.02, 0.6, count)[:, None] * torch.randn(count, 4, generator=generator)
    size = (boxes[which, 2:] - boxes[which, :2]).repeat(1, 2)
    moved = boxes[which] + move * size
    moved = torch.cat([torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:]) + 2], 1)
    moved = moved.clamp(min=0).minimum(torch.tensor([SIZE[1], SIZE[0]] * 2))
    moved[:, :2] = moved[:, :2].minimum(moved[:, 2:] - 1)
    wrong = torch.rand(count, generator=generator) < 0.15
    small = mask_targets(moved, which, masks, 28)
    soft = torch.nn.functional.avg_pool2d(small[:, None], 3, 1, 1, count_include_pad=False)[:, 0] * 0.98 + 0.01
    return {
        "boxes": moved,
        "labels": torch.where(wrong, labels[which] % len(CATEGORIES) + 1, labels[which]),
        "scores": (1 - torch.linspace(0, 0.95, count) + 0.1 * torch.rand(count, generator=generator)).clamp(max=1),
        "masks": soft,
    }


def ours(truth: COCO, found: list[dict]) -> dict:
    boxes, masks = [], []
    for image, f in enumerate(found):
        boxes += box_results(image, f["boxes"], f["labels"], f["scores"])
        codes = encode_pasted(f["masks"], f["boxes"], SIZE, 0.5)
        masks += code_results(image, codes, f["labels"], f["scores"])
    kinds = (("box", boxes, "bbox"), ("mask", masks, "segm"))
    return {name: average_precision(coco_evaluation(truth, rows, kind, sizes=False)) for name, rows, kind in kinds}


def straightforward(truth: COCO, found: list[dict], paste=None) -> dict:
    """torchvision's pasting unless `paste` says otherwise; everything else as pycocotools' own example has it."""
    boxes, masks = [], []
    for image, f in enumerate(found):
        whole = (paste or torchvision_paste)(f["masks"], f["boxes"])
        for box, label, score, mask in zip(f["boxes"], f["labels"], f["scores"], whole, strict=True):
            x1, y1, x2, y2 = box.tolist()
            row = {"image_id": image, "category_id": int(label), "score": float(score)}
            boxes.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1]})
            masks.append({**row, "segmentation": rle.encode(np.asfortranarray(mask.numpy()))})
    scores = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for name, rows, kind in (("box", boxes, "bbox"), ("mask", masks, "segm")):
            evaluation = COCOeval(truth, truth.loadRes(rows), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            scores[name] = dict(zip(("AP", "AP50", "AP75"), evaluation.stats[:3].tolist(), strict=True))
    return scores


def torchvision_paste(masks: Tensor, boxes: Tensor) -> Tensor:
    return (paste_masks_in_image(masks[:, None], boxes, SIZE)[:, 0] >= 0.5).to(torch.uint8)


def check(truth: COCO, found: list[dict]) -> dict:
    """AP of both ways; asserted equal where both have the same masks, and close where torchvision pastes."""
    mine, same_masks = ours(truth, found), straightforward(truth, found, lambda m, b: paste_masks(m, b, SIZE, 0.5))
    theirs, few = straightforward(truth, found), found[:20]
    for name, score in same_masks.items():
        assert all(abs(mine[name][key] - value) < 1e-12 for key, value in score.items()), (name, mine[name], score)
        assert all(abs(mine[name][key] - value) < 0.02 for key, value in theirs[name].items())
    pairs = [(paste_masks(f["masks"], f["boxes"], SIZE, 0.5), torchvision_paste(f["masks"], f["boxes"])) for f in few]
    pixels = float(np.mean([(a == b).float().mean() for a, b in pairs]))
    scores = {name: {"ours": {k: mine[name][k] for k in theirs[name]}, "peer": theirs[name]} for name in theirs}
    return {"scores": scores, "mask pixels": pixels}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments("evaluation", "COCO's AP from raw outputs, beside the straightforward way.", 5)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    args = parser.parse_args(argv)
    truth, found = outputs(args.images, args.detections)
    agreement, rows = check(truth, found), []
    print("agreement:", agreement)
    for count in args.threads:
        with threads(count):
            about = {"images": args.images, "detections": args.detections}
            rows.append(
                compare(
                    "evaluation",
                    lambda: ours(truth, found),
                    lambda: straightforward(truth, found),
                    args.runs,
                    1,
                    **about,
                )
            )
    print(table(rows))
    save(rows, args.out, agreement=agreement)


if __name__ == "__main__":
    main()
