"""A trained model on a user's own pictures: an overlay of each, and one COCO-format JSON of all.

python -m lib predict photo.jpg more/*.png --weights weights/demo --out predictions
python -m lib predict photo.jpg --weights coco --out predictions  # torchvision's weights, learnt from COCO

H x W  a picture's own size, any, its EXIF orientation applied    D  detections
boxes and masks are in pixels of the picture
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from lib.data.pictures import read_picture
from lib.machine.device import device, keep_memory
from lib.machine.files import write_json, written_whole
from lib.maskrcnn import MaskRCNN
from lib.notebook import overlay
from lib.scores.coco_ap import categories
from lib.scores.results import box_results, encode_crop
from lib.training.checkpoint import last_trained, load_model
from lib.training.torchvision_coco import COCO, coco_maskrcnn


def predict(model: MaskRCNN, picture: np.ndarray, stage: str, threshold: float) -> dict[str, torch.Tensor]:
    """The detections in a picture (3, H, W) that score at least `threshold`: boxes (D, 4), labels, scores, masks.

    The masks are probabilities (D, 28, 28): whole ones of a large picture would not fit into memory.
    """
    images = torch.from_numpy(picture)[None].to(next(model.parameters()).device)
    (found,) = model(images, stage, threshold, paste=False)
    return {k: found[k].cpu() for k in ("boxes", "labels", "scores", "masks") if k in found}


def annotate(picture: np.ndarray, found: dict, names: Sequence[str]) -> tuple[Image.Image, list[dict]]:
    """The picture (3, H, W) with its detections drawn on it, and COCO's results of these, the best first."""
    image, size = Image.fromarray(picture.transpose(1, 2, 0)), (picture.shape[1], picture.shape[2])
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    rows = box_results(0, found["boxes"], found["labels"], found["scores"])
    for n in reversed(range(len(rows) if "masks" in found else 0)):  # the best comes last, on top
        crop, corner = overlay.paste_crop(found["masks"][n], found["boxes"][n], size)
        overlay.tint(image, crop.numpy(), corner, labels[n])
        rows[n]["segmentation"] = encode_crop(crop, corner, size)
    captions = [f"{names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    overlay.outline(image, found["boxes"].numpy(), labels, captions)
    return image, rows


def overlay_paths(pictures: list[Path], out: Path) -> list[Path]:
    """NAME_overlay.png for each picture, numbered where a name comes twice; never one of the pictures themselves.

    Of a long name the first fifty letters: file systems take 255 bytes.
    """
    taken = [picture.resolve() for picture in pictures]
    for picture in pictures:
        names = (out.resolve() / f"{picture.stem[:50]}_overlay{n or ''}.png" for n in itertools.count())
        taken.append(next(path for path in names if path not in taken))
    return taken[len(pictures) :]


def coco_annotations(image: int, results: list[dict], first: int) -> list[dict]:
    """COCO annotations of an image, numbered from `first`: `bbox` (x, y, width, height), `score`, `segmentation`."""
    rows = [{**row, "id": first + n, "image_id": image, "iscrowd": 0} for n, row in enumerate(results)]
    for row in rows:
        if code := row.get("segmentation"):
            row |= {"area": int(rle.area(code)), "segmentation": {**code, "counts": code["counts"].decode()}}
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lib predict", description="Find objects in your own pictures.")
    parser.add_argument("pictures", type=Path, nargs="+", metavar="IMAGE")
    where = f"folder of the trained stages, or {COCO}: what torchvision trained on COCO's photographs (170 MB)"
    parser.add_argument("--weights", required=True, metavar="DIR", help=where)
    parser.add_argument("--out", type=Path, required=True, help="folder for the overlays and predictions.json")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of a detection, 0 to 1 (default 0.5)")
    args = parser.parse_args(argv)
    stage = "joint" if args.weights == COCO else last_trained(args.weights)
    if stage == "rpn":
        raise ValueError(f"{args.weights} has no box head: `lib train all --data DIR --weights {args.weights}` adds it")
    if stage == "boxhead":
        print(f"{args.weights} has no mask head: boxes only")
    keep_memory()
    model = (coco_maskrcnn() if args.weights == COCO else load_model(args.weights, stage)).to(device())
    coco: dict = {"images": [], "categories": categories(model.config.classes), "annotations": []}
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = zip(tqdm(args.pictures, "predict", unit="picture"), overlay_paths(args.pictures, args.out), strict=True)
    for n, (path, place) in enumerate(pictures):
        try:
            picture = read_picture(path)
            image, results = annotate(picture, predict(model, picture, stage, args.threshold), model.config.class_names)
            with written_whole(place) as part:
                image.save(part, "png", compress_level=1)  # a fifth of the time
        except (ValueError, OSError, MemoryError) as error:  # one picture never costs the others
            said = str(error) if str(path) in str(error) else f"{path}: {error or 'too little memory'}"
            tqdm.write(f"error: {said}", sys.stderr)
            continue
        size = {"height": picture.shape[1], "width": picture.shape[2]}
        coco["images"].append({"id": n, "file_name": str(path), **size, "overlay": place.name})
        coco["annotations"] += coco_annotations(n, results, len(coco["annotations"]) + 1)
    write_json(coco, args.out / "predictions.json")
    print(f"{len(coco['annotations'])} objects in {len(coco['images'])} pictures: {args.out}")
    sys.exit(len(coco["images"]) < len(args.pictures))
