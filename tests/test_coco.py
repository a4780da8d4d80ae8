"""coco: masks, boxes and classes of a hand-made COCO set, what is left out, and what bad input says."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_tools

from lib.__main__ import main
from lib.data.coco_json import CATEGORIES
from lib.data.coco_json import COURSE_LABELS as LABELS
from lib.data.masks import tight_box
from lib.data.reader import CourseDataset

MINI = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco_mini"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with numpy 2
CATEGORY_IDS = {"person": 7, "dog": 3, "car": 11, "chair": 5}  # not COCO's own numbers: names decide


def rectangle(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def rle(x0, y0, x1, y1, width, height, compressed):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    if compressed:
        return {"size": [height, width], "counts": rle_tools.encode(mask)["counts"].decode()}
    changes = np.flatnonzero(np.diff(mask.ravel("F"))) + 1  # column by column
    return {"size": [height, width], "counts": np.diff([0, *changes, mask.size]).tolist()}


class Coco:
    """A COCO set of a few images in a folder, changed at will before it is saved."""

    def __init__(self, folder):
        self.folder = folder
        categories = [{"id": i, "name": name} for name, i in CATEGORY_IDS.items()]
        self.json = {"images": [], "annotations": [], "categories": categories}

    def image(self, width, height, mode="RGB", colour=(200, 100, 50)):
        image_id = 100 + len(self.json["images"])
        name = f"{image_id}.{'jpg' if mode == 'CMYK' else 'png'}"  # PNG knows no CMYK
        Image.new("RGB", (width, height), colour).convert(mode).save(self.folder / name)
        self.json["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        return image_id

    def object(self, image_id, category, segmentation, iscrowd=0):
        item = {"id": 900 + len(self.json["annotations"]), "image_id": image_id, "segmentation": segmentation}
        self.json["annotations"].append({**item, "category_id": CATEGORY_IDS[category], "iscrowd": iscrowd})

    def convert(self, *options, out="out", split=None, text=None):
        annotations = self.folder / "instances.json"
        annotations.write_text(json.dumps(self.json) if text is None else text)
        paths = ["--images", self.folder, "--annotations", annotations, "--out", self.folder / out]
        main(["coco", *map(str, paths), *options])
        return CourseDataset(self.folder / out, split)

    def error(self, *options, text=None):
        with pytest.raises(SystemExit) as error:
            self.convert(*options, text=text)
        assert not list(self.folder.glob("out/*"))  # nothing is left behind
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def coco(tmp_path):
    return Coco(tmp_path)


@pytest.fixture
def three(coco):
    """Images with 1, 2 and 3 dogs, which measure 80 x 60, 40 x 30 and 8 x 6 pixels in the frame."""
    for count in (1, 2, 3):
        image = coco.image(800, 600)
        for n, (width, height) in enumerate(((160, 120), (80, 60), (16, 12))[:count]):
            coco.object(image, "dog", rectangle(200 * n, 100, 200 * n + width, 100 + height))
    return coco


def labels_of(dataset):
    return [labels.tolist() for labels in dataset.labels]


def test_classes_by_name():
    assert [len(names) for names in CATEGORIES.values()] == [8, 1, 10]
    assert (LABELS["truck"], LABELS["person"], LABELS["giraffe"]) == (1, 2, 3)


def test_every_kind_of_segmentation(coco):
    """800 x 600 halves both axes: a rectangle with even corners becomes one with half of them."""
    image = coco.image(800, 600)
    coco.object(image, "dog", rectangle(10, 20, 50, 60) + rectangle(70, 20, 90, 40))
    coco.object(image, "chair", rectangle(0, 0, 400, 300))
    coco.object(image, "person", rle(100, 200, 300, 400, 800, 600, compressed=True))
    coco.object(image, "car", rle(100, 200, 300, 400, 800, 600, compressed=False), iscrowd=1)
    coco.object(image, "car", rle(300, 200, 302, 300, 800, 600, compressed=False))
    coco.object(coco.image(400, 300), "chair", rectangle(0, 0, 400, 300))
    dataset = coco.convert()
    assert labels_of(dataset) == [[3, 2, 1]]
    image, target = dataset[0]
    assert target["boxes"].tolist() == [[5, 10, 45, 30], [50, 100, 150, 200], [150, 100, 151, 150]]
    expected = np.zeros((3, 300, 400), np.uint8)
    expected[0, 10:30, 5:25] = expected[0, 10:20, 35:45] = 1
    expected[1, 100:200, 50:150] = expected[2, 100:150, 150] = 1
    np.testing.assert_array_equal(target["masks"], expected)
    assert (image == image.new_tensor([200, 100, 50])[:, None, None]).all()


def test_image_and_mask_agree(coco):
    """A black photograph with a white rectangle that is its mask: the two stay one picture when resized."""
    image = coco.image(640, 427)
    pixels = np.zeros((427, 640, 3), np.uint8)
    pixels[101:333, 57:444] = 255
    Image.fromarray(pixels).save(coco.folder / "100.png")
    coco.object(image, "car", rle(57, 101, 444, 333, 640, 427, compressed=True))
    picture, target = coco.convert()[0]
    assert ((picture[0] >= 128) == target["masks"][0].bool()).all()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK"])
def test_modes_become_rgb(coco, mode):
    coco.object(coco.image(40, 30, mode, (102, 102, 102)), "dog", rectangle(0, 0, 40, 30))
    picture, target = coco.convert()[0]
    assert (picture.int() - 102).abs().max() <= 3
    assert target["boxes"].tolist() == [[0, 0, 400, 300]]  # enlarged ten times


def test_what_has_no_pixel_is_left_out(coco):
    image = coco.image(4000, 3000)
    coco.object(image, "dog", rle(0, 0, 2, 2, 4000, 3000, compressed=True))  # 4 % of a pixel of the frame
    coco.object(image, "dog", [[10, 10, 20, 20]])  # a line
    coco.object(image, "car", rectangle(10, 10, 30, 30))
    assert labels_of(coco.convert()) == [[1]]


OPTIONS = {  # sqrt(w h) of the dogs is 69.3, 34.6 and 6.9 in the frame; images with more than --max-objects go whole
    "--max-objects 2": [[3], [3, 3]],
    "--min-size 34 --max-objects 2": [[3], [3, 3], [3, 3]],  # with the third dog goes the reason to drop its image
    "--min-size 35": [[3], [3], [3]],
}


@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_left_out(three, options):
    assert labels_of(three.convert(*options.split())) == OPTIONS[options]


def test_limit_counts_the_images_kept(three):
    three.json["images"].reverse()
    assert labels_of(three.convert("--limit", "1", "--max-objects", "2")) == [[3, 3]]


def test_split(three):
    assert len(three.convert("--split", "val", split="val")) == 3
    assert len(CourseDataset(three.folder / "out", "train", may_be_empty=True)) == 0
    with pytest.raises(ValueError, match="split.json has no images in its train split, it is empty: delete"):
        CourseDataset(three.folder / "out", "train")


def test_a_set_on_disk_is_not_overwritten(three, capsys):
    three.convert()
    assert "Wrote 3 images with 6 objects" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="exists: choose another --out"):
        three.convert()
    assert len(CourseDataset(three.folder / "out")) == 3


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_unknown_ids(three, key):
    three.json["annotations"][1][key] = 55
    assert f"annotation 901 has the unknown {key} 55" in three.error()


def test_json_that_is_none_or_of_another_kind(three):
    assert "instances.json is not valid JSON" in three.error(text='{"images": [')
    with pytest.raises(SystemExit, match="none.json is missing"):
        main(["coco", "--images", "x", "--annotations", "none.json", "--out", str(three.folder / "out")])
    del three.json["images"][1]["file_name"]
    assert "item 1 of 'images' has no 'file_name'" in three.error()
    three.json.pop("categories")
    three.json.update(images=[], annotations=[])
    assert "has no list 'categories'" in three.error()
    three.json["categories"] = [{"id": 1, "name": "chair"}]
    assert "none of the categories vehicle, bicycle, car," in three.error()


def test_images_that_do_not_fit_the_json(three):
    photograph = three.folder / "102.png"
    Image.new("RGB", (600, 800)).save(photograph)
    assert "image 102 (102.png): it has 600 x 800 pixels, in the JSON 800 x 600" in three.error()
    photograph.write_bytes(b"no picture")
    assert "102.png is not a readable picture" in three.error()
    photograph.write_bytes((three.folder / "101.png").read_bytes()[:300])
    assert "102.png is not a readable picture" in three.error()
    photograph.unlink()
    assert "102.png is missing" in three.error()


BAD_SEGMENTATIONS = {
    "empty": [],
    "odd number of coordinates": [[1, 1, 5, 1, 5]],
    "far outside": [[1, 1, 1e9, 1, 1e9, 5]],
    "NaN": [[1, 1, float("nan"), 1, 5, 5]],
    "size of another image": {"size": [800, 600], "counts": [480000]},
    "too few runs": {"size": [600, 800], "counts": [0, 17, 3]},
    "garbage": {"size": [600, 800], "counts": "hello world"},
}


@pytest.mark.parametrize("segmentation", BAD_SEGMENTATIONS.values(), ids=BAD_SEGMENTATIONS.keys())
def test_bad_segmentations(three, segmentation):
    three.json["annotations"][4]["segmentation"] = segmentation
    message = three.error()
    assert "annotation 904 of image 102 (102.png) has no usable segmentation" in message


def test_options_that_leave_nothing(three):
    assert "no image is left" in three.error("--min-size", "500")
    assert "must be at least 1" in three.error("--limit", "0")
    assert "must be at least 1" in three.error("--max-objects", "0")


@pytest.mark.skipif(not MINI.is_dir(), reason="needs the photographs of coco_mini")
def test_real_photographs(tmp_path):
    paths = ["--images", str(MINI / "images"), "--annotations", str(MINI / "instances_val.json")]
    main(["coco", *paths, "--out", str(tmp_path), "--split", "val"])
    dataset = CourseDataset(tmp_path, "val")
    assert (len(dataset), sum(map(len, dataset.labels))) == (74, 356)
    for _, target in (dataset[i] for i in range(0, 74, 20)):
        assert [tight_box(mask).tolist() for mask in target["masks"].numpy()] == target["boxes"].tolist()
