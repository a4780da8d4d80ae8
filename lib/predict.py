"""A trained model on a user's own pictures: an overlay of each, and one COCO-format JSON of all.

    python -m lib.predict photo.jpg more/*.png --weights weights/demo --out predictions

H x W  a picture's own size, any; EXIF orientation applied. Boxes and masks are in its pixels.    D  detections
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from pycocotools import mask as rle
from tqdm import tqdm

from lib import draw
from lib.checkpoint import last_trained, load_model
from lib.config import CLASS_NAMES
from lib.evaluate import CATEGORIES, box_results, encode_masks, write_metrics
from lib.maskrcnn import MaskRCNN
from lib.runtime import command_errors, device

RESULTS = "predictions.json"


def read_picture(path: Path) -> np.ndarray:
    """A picture of any mode as (3, H, W) uint8 RGB, upright, white where it is transparent; ValueError without one."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # 16 bits a pixel
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return np.asarray(picture.convert("RGB")).transpose(2, 0, 1).copy()
    except Exception as error:  # Pillow's readers raise almost anything on a damaged file
        raise ValueError(f"{path} is not a readable picture ({error}): give a JPEG, PNG or the like") from None


def predict(model: MaskRCNN, picture: np.ndarray, stage: str, threshold: float) -> dict[str, torch.Tensor]:
    """The detections in a picture (3, H, W) that score at least `threshold`: boxes (D, 4), labels, scores, masks."""
    where = next(model.parameters()).device
    found = model(torch.from_numpy(picture)[None].to(where), stage)[0]
    keep = found["scores"] >= threshold
    return {k: found[k][keep].cpu() for k in ("boxes", "labels", "scores", "masks") if k in found}


def save_overlay(picture: np.ndarray, found: dict, path: Path) -> None:
    """The picture (3, H, W) with its detections drawn on it, as a PNG of the same H x W."""
    height, width = picture.shape[1:]
    dpi = 2 ** max(7, round(math.log2(max(height, width) / 5)))  # captions grow along; / and * by it lose nothing
    figure = Figure((width / dpi, height / dpi), dpi)
    draw.detections(draw.image(figure.add_axes((0, 0, 1, 1)), picture), found, CLASS_NAMES, 0)
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png")
    partial.replace(path)


def overlay_paths(pictures: Sequence[Path], out: Path) -> list[Path]:
    """NAME_overlay.png for each picture, numbered where a name comes twice; never one of the pictures themselves."""
    taken, paths = {str(picture.resolve()).casefold() for picture in pictures}, []
    for picture in pictures:
        path, n = out.resolve() / f"{picture.stem}_overlay.png", 1
        while str(path).casefold() in taken:
            path, n = path.with_name(f"{picture.stem}_overlay_{n + 1}.png"), n + 1
        taken.add(str(path).casefold())
        paths.append(path)
    return paths


def coco_annotations(image: int, found: dict, first: int) -> list[dict]:
    """COCO annotations, numbered from `first`: `bbox` (x, y, width, height), `score`, and `segmentation` as RLE."""
    rows = box_results(image, found["boxes"], found["labels"], found["scores"])
    rows = [{"id": first + n, "iscrowd": 0, **row} for n, row in enumerate(rows)]
    for row, code in zip(rows, encode_masks(found["masks"]) if "masks" in found else (), strict=False):
        row |= {"area": int(rle.area(code)), "segmentation": {**code, "counts": code["counts"].decode()}}
    return rows


@command_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.predict", description="Find objects in your own pictures.")
    parser.add_argument("pictures", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the trained stages")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for the overlays and {RESULTS}")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of a detection (default 0.5)")
    args = parser.parse_args(argv)
    stage = last_trained(args.weights)
    if stage == "rpn":
        raise ValueError(f"{args.weights} has no box head yet: `python -m lib.train all --weights {args.weights}`")
    if stage == "boxhead":
        print(f"{args.weights} has no mask head yet: boxes only")
    model, images, annotations = load_model(args.weights, stage).to(device()), [], []
    args.out.mkdir(parents=True, exist_ok=True)
    for n, path in enumerate(tqdm(overlay_paths(args.pictures, args.out), "predict", unit="picture")):
        try:
            picture = read_picture(args.pictures[n])
        except ValueError as error:
            tqdm.write(f"error: {' '.join(str(error).split())}", sys.stderr)
            continue
        found = predict(model, picture, stage, args.threshold)
        save_overlay(picture, found, path)
        size = {"height": picture.shape[1], "width": picture.shape[2]}
        images.append({"id": n, "file_name": str(args.pictures[n]), **size, "overlay": path.name})
        annotations += coco_annotations(n, found, len(annotations) + 1)
    if images:
        write_metrics({"images": images, "categories": CATEGORIES, "annotations": annotations}, args.out / RESULTS)
        print(f"{len(annotations)} objects in {len(images)} pictures: {args.out}")
    sys.exit(len(images) < len(args.pictures))


if __name__ == "__main__":
    main()
