"""predict: pictures of every mode and size in, overlays of the same size and COCO JSON out."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from lib.__main__ import main
from lib.commands import predict
from lib.config import Config, load_config
from lib.maskhead import paste_masks
from lib.maskrcnn import COURSE_CLASSES, MaskRCNN
from lib.notebook.overlay import paste_crop
from lib.scores.results import encode_crop
from lib.training.checkpoint import save_stage

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with numpy 2
SMALL = ["image.height=60", "image.width=80", "backbone.weights=none", "backbone.channels=8"]
SMALL += ["boxhead.hidden=8", "maskhead.hidden=8"]


class Stub(torch.nn.Module):
    """Finds the middle of a picture twice: a person at 0.9, an animal at 0.2."""

    def __init__(self):
        super().__init__()
        self.weight, self.config = torch.nn.Parameter(torch.zeros(1)), Config()

    def forward(self, images, stage, threshold, paste):
        assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[:2] == (1, 3)
        h, w = images.shape[2:]
        boxes = torch.tensor([[w // 4, h // 4, w // 2, h // 2]] * 2).float()
        found = {"boxes": boxes, "labels": torch.tensor([2, 3]), "scores": torch.tensor([0.9, 0.2])}
        found |= {"masks": torch.ones(2, 28, 28)} if stage == "joint" else {}
        return [{k: v[found["scores"] >= threshold] for k, v in found.items()}]


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(predict, "load_model", lambda weights, stage: Stub())
    monkeypatch.setattr(predict, "last_trained", lambda weights: "joint")


def run(out, *pictures, options=()):
    with pytest.raises(SystemExit) as end:
        main(["predict", *map(str, pictures), "--weights", str(out / "weights"), "--out", str(out), *options])
    return end.value.code, json.loads((out / "predictions.json").read_text())


def picture(path, width, height, mode="RGB"):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (width, height), (102, 102, 102)).convert(mode).save(path)
    return path


@pytest.mark.parametrize("mode, ending", [("L", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("1", "png")])
def test_every_mode_becomes_rgb(tmp_path, mode, ending):
    pixels = predict.read_picture(picture(tmp_path / f"a.{ending}", 30, 20, mode))
    assert pixels.shape == (3, 20, 30) and pixels.dtype == np.uint8
    assert mode == "1" or abs(pixels.astype(int) - 102).max() <= 3


def test_transparent_is_white_and_16_bits_become_8(tmp_path):
    Image.new("RGBA", (4, 3), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (predict.read_picture(tmp_path / "a.png") == 255).all()
    Image.fromarray(np.full((3, 4), 102 * 257, np.uint16)).save(tmp_path / "b.png")
    assert (predict.read_picture(tmp_path / "b.png") == 102).all()


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = 255  # white on the left ...
    exif = Image.Exif()
    exif[0x0112] = 6  # ... which "turn clockwise to show" puts at the top
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = predict.read_picture(tmp_path / "a.png")
    assert upright.shape == (3, 30, 20) and (upright[:, :15] == 255).all() and (upright[:, 15:] == 0).all()


@pytest.mark.parametrize("width, height", [(1, 1), (37, 23), (401, 299), (1203, 57)])
def test_an_overlay_has_the_pictures_pixels(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width), np.uint8)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=int), "scores": torch.zeros(0)}
    image, rows = predict.annotate(pixels, nothing, COURSE_CLASSES)
    np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), pixels)
    assert rows == []


def test_a_mask_and_its_box_are_drawn_on_their_own_pixels():
    """A vehicle in pixels 10 to 19 of 40 and 5 to 14 of 30, its mask the left half of its box; its caption is above."""
    mask = torch.zeros(1, 28, 28)
    mask[..., :14] = 1
    found = {"boxes": torch.tensor([[10.0, 15, 20, 25]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    image, (row,) = predict.annotate(np.zeros((3, 30, 40), np.uint8), {**found, "masks": mask}, ("", ""))
    decoded = rle.decode(row["segmentation"])
    assert decoded[15:25, 10:15].all() and decoded.sum() == 50 and row["bbox"] == [10, 15, 10, 10]
    painted = np.asarray(image).any(axis=2)
    assert painted[15:25, 10:15].all() and painted[15, 10:20].all() and painted[15:25, 19].all()
    assert not painted[16:24, 15:19].any() and not painted[25:].any() and not painted[:, :10].any()


def test_masks_of_crops_are_those_of_the_whole_picture():
    torch.manual_seed(0)
    boxes = torch.tensor([[0.0, 0, 60, 40], [10.5, 3.5, 30.5, 20], [59.3, 39.2, 60, 40], [-0.0, 5, 0.02, 5.02]])
    masks = torch.rand(4, 28, 28)
    for mask, box, whole in zip(masks, boxes, paste_masks(masks, boxes, (40, 60)), strict=True):
        np.testing.assert_array_equal(rle.decode(encode_crop(*paste_crop(mask, box, (40, 60)), (40, 60))), whole)


def test_coco_json(stub, tmp_path):
    code, coco = run(tmp_path, picture(tmp_path / "a.png", 40, 20), picture(tmp_path / "b.png", 80, 60))
    assert code == 0 and [c["name"] for c in coco["categories"]] == list(COURSE_CLASSES)
    assert [(i["id"], i["width"], i["height"]) for i in coco["images"]] == [(0, 40, 20), (1, 80, 60)]
    assert coco["images"][1]["file_name"] == str(tmp_path / "b.png")
    first, second = coco["annotations"]
    assert (first["id"], first["image_id"], second["id"], second["image_id"]) == (1, 0, 2, 1)
    assert first["bbox"] == [10, 5, 10, 5] and first["area"] == 50 and first["category_id"] == 2
    assert first["score"] == pytest.approx(0.9)
    mask = rle.decode(first["segmentation"])
    assert mask.shape == (20, 40) and mask[5:10, 10:20].all() and mask.sum() == 50
    assert Image.open(tmp_path / "b_overlay.png").size == (80, 60)


def test_threshold(stub, tmp_path):
    _, coco = run(tmp_path, picture(tmp_path / "a.png", 40, 20), options=["--threshold", "0.1"])
    assert [a["category_id"] for a in coco["annotations"]] == [2, 3]


def test_an_unreadable_picture_leaves_the_others(stub, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_text("no picture")
    code, coco = run(tmp_path, tmp_path / "bad.jpg", tmp_path / "none.png", picture(tmp_path / "c.png", 40, 20))
    assert code == 1 and [i["file_name"] for i in coco["images"]] == [str(tmp_path / "c.png")]
    said = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(said) == 2 and "bad.jpg is not a readable picture" in said[0] and "none.png" in said[1]


def test_equal_names_and_the_pictures_themselves_are_kept(stub, tmp_path):
    names = ("a.png", "x/a.jpg", "a_overlay.png")
    pictures = [picture(tmp_path / name, 40 + n, 20) for n, name in enumerate(names)]
    _, coco = run(tmp_path, *pictures)
    assert [i["overlay"] for i in coco["images"]] == ["a_overlay1.png", "a_overlay2.png", "a_overlay_overlay.png"]
    assert [Image.open(tmp_path / i["overlay"]).width for i in coco["images"]] == [40, 41, 42]
    assert (predict.read_picture(tmp_path / "a_overlay.png") == 102).all()


def test_a_name_as_long_as_a_file_system_takes(stub, tmp_path):
    code, coco = run(tmp_path / "out", picture(tmp_path / ("ä" * 125 + ".png"), 40, 20))
    assert code == 0 and (tmp_path / "out" / coco["images"][0]["overlay"]).is_file()


def test_the_furthest_trained_stage_is_used(tmp_path, capsys):
    weights, image = tmp_path / "weights", picture(tmp_path / "a.png", 40, 30)
    arguments = [str(image), "--weights", str(weights), "--out", str(tmp_path), "--threshold", "0"]
    with pytest.raises(SystemExit, match="no trained stage in"):
        main(["predict", *arguments])
    model = MaskRCNN(load_config("demo", SMALL))
    save_stage(model, weights, "rpn", {})
    with pytest.raises(SystemExit, match="has no box head"):
        main(["predict", *arguments])
    model.box_head.classifier.bias.data[0] = -5  # nothing is background
    save_stage(model, weights, "boxhead", {})
    code, coco = run(tmp_path, image, options=["--threshold", "0"])
    assert code == 0 and "no mask head: boxes only" in capsys.readouterr().out
    assert coco["annotations"] and not any("segmentation" in a for a in coco["annotations"])
    save_stage(model, weights, "maskhead", {})
    code, coco = run(tmp_path, image, options=["--threshold", "0"])
    assert code == 0 and all("segmentation" in a for a in coco["annotations"])
