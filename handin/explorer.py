"""figures/explorer.html: test images on one page, which needs no kernel, with anchors, proposals, boxes and masks.

    A  anchors of the pyramid    K  proposals before NMS    D  candidates: boxes of a class, before NMS, best first
    G  objects of an image    m  side of a predicted mask, 28    H x W  an image

The page holds what the network says before anything is thrown away: the RPN's K best boxes, what the box head makes of
each of them, and a mask for each candidate. NMS, thresholds, pasting and counting happen in `explorer_rules.js`,
by the same rules, and on the same float32 numbers, as in `lib`. Boxes are in the network's frame, masks are
probabilities in MASK_STEPS steps, pictures are JPEGs.
"""

import argparse
import base64
import dataclasses
import gzip
import html
import io
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.display import HTML, Markdown
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lib.anchors import LEVELS, STRIDES, pyramid_grids
from lib.boxes import MIN_SIZE, Named, Size, clip, decode, iou_matrix
from lib.boxhead import refine
from lib.config import load_config
from lib.data.batches import Examples
from lib.data.reader import CourseDataset
from lib.data.sources import weights_folder
from lib.machine.device import device, keep_memory
from lib.machine.files import written_whole
from lib.machine.folders import paths, root
from lib.maskhead import THRESHOLD
from lib.maskrcnn import MaskRCNN
from lib.notebook import draw
from lib.notebook.colab import in_colab
from lib.preprocess import content_size, preprocess_images, preprocess_targets
from lib.rpn import NEGATIVE_IOU, POSITIVE_IOU
from lib.training.checkpoint import backbone_origin, check_classes, last_trained, load_model

IMAGES = 24  # on the page
MOST_BYTES = 8 * 2**20  # of the page
MOST_CANDIDATES = (600, 300, 150, 75)  # an image; fewer where the page would get too large
JPEG_QUALITY = 88
MASK_STEPS = 64  # of a probability: 256 would make the page a third larger
SCORE, RIGHT_IOU = 0.5, 0.5  # a detection counts from this score on, and is right from this overlap on
NEAR_IOU = 0.1  # a box that overlaps an object less has nothing to do with it
KINDS = ("right", "missed", "nothing there", "wrong class", "badly placed", "duplicate", "bad mask")
OF_CANDIDATES = ("boxes", "scores", "labels", "origins", "masks")
HERE = Path(__file__).parent


def kinds_of(found: Named, target: dict) -> list[str]:
    """Detections (D), best first, with `masks` (D, H, W), of an image -> the kind of each, and "missed" for objects.

    As COCO counts: each in turn takes the free object of its class that it overlaps most, by RIGHT_IOU or more. One
    that gets none is a "duplicate" on a taken object, of a "wrong class", "badly placed", or there is "nothing there".
    A right one whose mask overlaps the object's by less than RIGHT_IOU has a "bad mask".
    """
    overlap, kinds, free = iou_matrix(found["boxes"], target["boxes"]), [], set(range(len(target["boxes"])))
    for n, (row, label) in enumerate(zip(overlap.tolist(), found["labels"].tolist(), strict=True)):
        of_class = {g for g, other in enumerate(target["labels"].tolist()) if other == label}
        best = max(free & of_class, key=row.__getitem__, default=None)
        if best is not None and row[best] >= RIGHT_IOU:
            free.remove(best)
            kinds.append("right" if _mask_iou(found["masks"][n], target["masks"][best]) >= RIGHT_IOU else "bad mask")
        elif any(row[g] >= RIGHT_IOU for g in of_class):
            kinds.append("duplicate")
        else:
            most = max(row, default=0.0)
            wrong = "wrong class" if most >= RIGHT_IOU else "badly placed" if most >= NEAR_IOU else "nothing there"
            kinds.append(wrong)
    return kinds + ["missed"] * len(free)


def _mask_iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def choose(kinds: Sequence[Sequence[str]], count: int = IMAGES) -> list[int]:
    """The kinds in each image -> `count` images in order: of each kind in turn the first that is not chosen yet.

    An image is "right" where nothing else is wrong in it.
    """
    kinds = [[kind for kind in of_image if kind != "right"] or ["right"] for of_image in kinds]
    queues = [[n for n, of_image in enumerate(kinds) if kind in of_image] for kind in KINDS]
    in_turn = (n for turn in itertools.zip_longest(*queues) for n in turn if n is not None)
    return sorted(list(dict.fromkeys(in_turn))[:count])


@torch.no_grad()
def looked_through(model: MaskRCNN, image: Tensor, target: dict) -> dict[str, np.ndarray]:
    """One image (3, H, W) uint8 with its objects -> what the page holds of it.

    `rpn_boxes` (K, 4), `rpn_scores` (K,) are the RPN's best, decoded and clipped, in network frame. Of the D
    candidates, at most MOST_CANDIDATES, there are `boxes` (D, 4), `scores`, `labels`, `origins` (D,), the proposal of
    each, and `masks` (D, m, m) in MASK_STEPS; of the objects `truth_boxes` (G, 4), network frame, `truth_labels` (G,),
    and `truth_masks`, H W bits of each.
    """
    config, size = model.config, (image.shape[1], image.shape[2])
    content = content_size(*size, config.image)
    features = model.features(preprocess_images(image[None].to(next(model.parameters()).device), config.image))
    boxes, scores = best_boxes(model, features, content)
    real = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIZE).all(dim=1).nonzero().flatten()  # the heads see no others
    found = candidates(model, features, boxes[real], content)
    (masks,) = model.segment(features, [found["boxes"]], [found["labels"]])
    (truth,) = preprocess_targets([{"boxes": target["boxes"]}], size, config.image)
    held = {"rpn_boxes": boxes, "rpn_scores": scores, "boxes": found["boxes"], "scores": found["scores"]}
    held |= {"origins": real[found["origins"]].to(torch.uint16), "labels": found["labels"].to(torch.uint16)}
    held |= {"masks": (masks * MASK_STEPS).clamp(0, MASK_STEPS - 1).to(torch.uint8), "truth_boxes": truth["boxes"]}
    held |= {"truth_labels": target["labels"].to(torch.uint16)}
    bits = np.packbits(target["masks"].flatten(1).numpy(), axis=1)
    return {name: value.cpu().numpy() for name, value in held.items()} | {"truth_masks": bits}


def best_boxes(model: MaskRCNN, features: list[Tensor], content: Size) -> tuple[Tensor, Tensor]:
    """An image's maps -> the RPN's K best boxes (K, 4), decoded and clipped, with their scores (K,): §4.6 up to NMS."""
    (logits,), (deltas,) = model.rpn(features)
    top, index = logits.float().topk(min(model.config.rpn.test.pre_nms, len(logits)))
    return clip(decode(deltas[index].float(), model.anchors(features)[index]), *content), top.sigmoid()


def candidates(model: MaskRCNN, features: list[Tensor], proposals: Tensor, content: Size) -> Named:
    """Proposals (R, 4) -> `boxes` (D, 4), `labels`, `scores` and `origins` (D,), the best first: §6.5 up to NMS.

    Each proposal is an image of its own for `refine`, with an NMS that takes nothing away: that is how one knows where
    a box comes from.
    """
    config = model.config.boxhead
    everything = dataclasses.replace(config.test, nms_iou=1.0, pre_nms=len(model.config.classes), post_nms=10**6)
    alone = list(proposals.split(1))
    each = refine(*model.classify(features, [proposals]), alone, content, dataclasses.replace(config, test=everything))
    found = {name: torch.cat([e[name] for e in each]) for name in ("boxes", "labels", "scores")}
    counts = torch.tensor([len(e["scores"]) for e in each], device=proposals.device)
    found["origins"] = torch.arange(len(each), device=proposals.device).repeat_interleave(counts)
    order = found["scores"].argsort(descending=True, stable=True)[: MOST_CANDIDATES[0]]
    return {name: value[order] for name, value in found.items()}


def packed(images: Sequence[dict[str, np.ndarray]], most: int) -> tuple[list[dict], str]:
    """Arrays of each image, of its candidates `most` -> where each lies, (type, first byte, count), in a text.

    The text is gzip in base64, the same each time.
    """
    places: list[dict] = [{} for _ in images]
    with io.BytesIO() as file:
        for name in images[0]:  # like beside like compresses better
            for image, place in zip(images, places, strict=True):
                values = image[name][:most] if name in OF_CANDIDATES else image[name]
                place[name] = f"{values.dtype.name.capitalize()}Array", file.tell(), values.size
                file.write(values.tobytes() + bytes(-values.nbytes % 4))
        return places, base64.b64encode(gzip.compress(file.getvalue(), 9, mtime=0)).decode()


def jpeg(image: Tensor) -> str:
    """An image (3, H, W) uint8 as a JPEG in base64."""
    with io.BytesIO() as file:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
        return base64.b64encode(file.getvalue()).decode()


def numbers_of(model: MaskRCNN, data: Examples, stage: str, size: Size) -> dict[str, Any]:
    """What the page says of the run, and the numbers that its rules need; `size` (H, W) is that of an image."""
    config = model.config
    grids, last = pyramid_grids(config.image.padded_size), config.boxhead.test
    return {
        "data": Path(str(data)).name, "stage": stage, "profile": config.profile, "backbone": backbone_origin(config),
        "classes": list(data.classes), "size": size, "content": content_size(*size, config.image),
        "anchors": {"grids": grids, "strides": STRIDES, "levels": LEVELS, **dataclasses.asdict(config.anchors)},
        "positive": POSITIVE_IOU, "negative": NEGATIVE_IOU, "removes": config.rpn.cross_boundary == "remove",
        "rpn": {**dataclasses.asdict(config.rpn.test), "nms_iou": config.rpn.nms_iou, "min_size": MIN_SIZE},
        "boxhead": dataclasses.asdict(last), "threshold": THRESHOLD, "steps": MASK_STEPS, "score": SCORE,
        "right": RIGHT_IOU, "near": NEAR_IOU, "colours": draw.COLOURS, "class_colours": draw.CLASS_COLOURS,
    }  # fmt: skip


def page(about: dict, held: Sequence[dict[str, np.ndarray]], most: int) -> str:
    """The page with its style, its program and its data, all in one text; nothing in the data can end a script."""
    places, text = packed(held, most)
    images = [{**image, "arrays": place} for image, place in zip(about["images"], places, strict=True)]
    data = json.dumps({**about, "most": most, "images": images, "packed": text}, separators=(",", ":"))
    parts = {"data": data.replace("<", "\\u003c")} | {
        p.name: p.read_text(encoding="utf-8") for p in HERE.glob("explorer*.*")
    }
    return re.sub(r"/\* (data|explorer\w*\.\w+) \*/", lambda place: parts[place[1]], parts["explorer.html"])


def pick(model: MaskRCNN, data: Examples, stage: str, found: Sequence[Named] | None) -> list[tuple[int, list[str]]]:
    """The images of a data set that the page shows, by place, with the kinds of their detections (D) and objects.

    `found` are the model's detections in each image, with whole masks, where they are there already.
    """
    if found is None:
        found = [detected(model, data[n][0], stage) for n in tqdm(range(len(data)), "look through", leave=False)]
    confident = [{name: f[name][f["scores"] >= SCORE] for name in ("boxes", "labels", "masks")} for f in found]
    kinds = [kinds_of(f, data[n][1]) for n, f in enumerate(confident)]
    return [(n, kinds[n]) for n in choose(kinds)]


def detected(model: MaskRCNN, image: Tensor, stage: str) -> Named:
    """What a model trained up to `stage` finds in one image (3, H, W), on the CPU."""
    (found,) = model(image[None].to(next(model.parameters()).device), stage)
    return {name: value.cpu() for name, value in found.items()}


def write_explorer(
    model: MaskRCNN, data: Examples, stage: str, found: Sequence[Named] | None = None, path: Path | None = None
) -> Path:
    """Write the page about a data set, say its test split, and a model trained up to `stage` -> the page's path.

    `found` as in `pick`; `path` is figures/explorer.html by default. ValueError where the page would be too large.
    """
    path, chosen = path or paths().figures / "explorer.html", pick(model.eval(), data, stage, found)
    held = [looked_through(model, *data[n]) for n, _ in tqdm(chosen, "explorer", leave=False)]
    size = (data[0][0].shape[1], data[0][0].shape[2])
    about = {**numbers_of(model, data, stage, size), "images": []}
    about["images"] = [
        {"number": data.indices[n], "kinds": sorted(set(kinds), key=KINDS.index), "jpeg": jpeg(data[n][0])}
        for n, kinds in chosen
    ]
    pages = (page(about, held, most) for most in MOST_CANDIDATES)
    text = next((text for text in pages if len(text.encode()) <= MOST_BYTES), None)
    if text is None:
        raise ValueError(f"the explorer would be larger than {MOST_BYTES:,} bytes: lower rpn.test.pre_nms")
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def shown(path: Path) -> HTML | Markdown:
    """The page as a notebook's output: on Colab the page itself, elsewhere a link, which keeps the notebook small."""
    if in_colab():
        text = html.escape(path.read_text(encoding="utf-8"))
        frame = f'<iframe srcdoc="{text}" title="explorer" style="width: 100%; height: 900px; border: 0"></iframe>'
        return HTML(f"<div>{frame}</div>")
    link = os.path.relpath(path, root() / "notebooks").replace(os.sep, "/")
    return Markdown(f"[{path.name}]({link}), {path.stat().st_size / 1e6:.1f} MB: a page for any browser.")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m handin explorer", description="Write figures/explorer.html.")
    parser.add_argument("--data", type=Path, help="folder of the four course files (default: that of `make run`)")
    parser.add_argument("--weights", type=Path, help="folder of the trained stages (default: that of `make run`)")
    parser.add_argument("--out", type=Path, help="the page (default: figures/explorer.html)")
    args = parser.parse_args(argv)
    source = os.environ.get("MASKRCNN_SOURCE", "synthetic")
    weights = args.weights or weights_folder(source, load_config(os.environ.get("MASKRCNN_PROFILE", "demo")))
    stage = last_trained(weights)
    if stage not in ("maskhead", "joint"):
        what = f"{weights} has no mask head, which the explorer shows"
        raise ValueError(f"{what}: train it with `python -m lib train maskhead --data DIR --weights {weights}`")
    keep_memory()
    model = load_model(weights, stage).to(device())
    data = CourseDataset(args.data or paths().data / source, "test", model.config.data)
    check_classes(weights, model.config, data.classes)
    path = write_explorer(model, data, stage, path=args.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {min(IMAGES, len(data))} of {len(data)} test images")
