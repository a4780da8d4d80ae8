"""Detections as COCO's results: dicts of image, category and score with a box or a run-length code."""

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from lib.boxes import Size


def box_results(image: int, boxes: Tensor, labels: Tensor, scores: Tensor) -> list[dict]:
    """COCO results of boxes (D, 4) xyxy: `bbox` is (x, y, width, height)."""
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
    rows = zip(xywh, labels.tolist(), scores.tolist(), strict=True)
    return [{"image_id": image, "category_id": label, "bbox": box, "score": score} for box, label, score in rows]


def code_results(image: int, codes: list[dict], labels: Tensor, scores: Tensor) -> list[dict]:
    """COCO results of masks given as compressed run-length codes."""
    rows = zip(codes, labels.tolist(), scores.tolist(), strict=True)
    return [{"image_id": image, "category_id": c, "segmentation": code, "score": score} for code, c, score in rows]


def encode_crop(crop: Tensor, corner: tuple[int, int], size: Size) -> dict:
    """A mask's part (h, w) with its upper left corner (x, y) in an image of `size` (H, W) -> the whole mask's code."""
    (h, w), (x, y) = crop.shape, corner
    whole = np.zeros(size, np.uint8, order="F")
    whole[y : y + h, x : x + w] = crop.numpy()
    return rle.encode(whole)


def encode_masks(masks: Tensor) -> list[dict]:
    """Masks (D, H, W) uint8 of 0 and 1 -> compressed run-length codes."""
    return rle.encode(np.asfortranarray(masks.numpy().transpose(1, 2, 0))) if len(masks) else []
