"""Bytes flipped and files cut off, in every kind of file that data come in: read as they were, or one sentence."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_coco import Coco, rectangle, rle

from lib.__main__ import main
from lib.config import DataConfig
from lib.data.check import Checked
from lib.data.objects import FILES
from lib.data.pictures import read_picture
from lib.data.reader import CourseDataset
from lib.data.writer import CourseWriter

DAMAGES = int(os.environ.get("MASKRCNN_DAMAGES", 12))  # of each kind of file; `make soak` does more
pytestmark = pytest.mark.filterwarnings("ignore")


def damaged(content: bytes, seed: int) -> bytes:
    """A file's bytes: one to four of them changed, or cut off somewhere, or a piece of it gone."""
    rng = np.random.default_rng(seed)
    new = bytearray(content)
    at, size = int(rng.integers(len(new))), int(rng.integers(1, 100))
    if seed % 4 == 0:
        return bytes(new[:at])
    if seed % 4 == 1:
        return bytes(new[:at] + new[at + size :])
    for place in rng.integers(len(new), size=rng.integers(1, 5)):
        new[place] ^= 1 << rng.integers(8)
    return bytes(new)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four images with four objects of two classes of its own, split; small files, so that damage meets their heads."""
    folder = tmp_path_factory.mktemp("data")
    with CourseWriter(folder, ("cat", "dog")) as writer:
        for n, count in enumerate((2, 0, 1, 1)):
            masks = np.zeros((count, 300, 400), np.uint8)
            masks[:, 30:130, 40:140] = 1
            boxes = np.tile([40, 30, 140, 130], (count, 1))
            writer.add(np.full((3, 300, 400), n, np.uint8), [1, 2][:count], boxes, masks)
    CourseDataset(folder, "val", DataConfig(val_fraction=0.25, test_fraction=0.25))
    return folder


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    coco = Coco(tmp_path_factory.mktemp("coco"))
    for segmentation in (
        rectangle(10, 10, 30, 40),
        rle(10, 10, 30, 40, 80, 60, True),
        rle(10, 10, 30, 40, 80, 60, False),
    ):
        coco.object(coco.image(80, 60), "dog", segmentation)
    return coco


@pytest.mark.parametrize("name", [*FILES.values(), "split.json", "classes.json"])
def test_a_damaged_data_set(data, tmp_path, name, capsys, monkeypatch):
    monkeypatch.setenv("MASKRCNN_WEIGHTS", str(tmp_path / "weights"))
    folder = tmp_path / "data"
    folder.mkdir()
    for path in data.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for seed in range(DAMAGES):
        (folder / name).write_bytes(damaged((data / name).read_bytes(), seed))
        try:
            opened = CourseDataset(folder, "train")
            for i in range(len(opened)):
                image, target = opened[i]
                assert image.shape == (3, 300, 400) and target["masks"].shape == (len(target["boxes"]), 300, 400)
        except (ValueError, OSError) as error:
            assert str(folder) in str(error) and any(n in str(error) for n in (name, *FILES.values())), (seed, error)
        assert all(name in p.text or "hw3_" in p.text for p in Checked(folder).problems), seed


@pytest.mark.parametrize("name", ["instances.json", "100.png"])
def test_a_damaged_coco_set(coco, tmp_path, name, capsys):
    (coco.folder / "instances.json").write_text(json.dumps(coco.json))
    folder = tmp_path / "coco"
    folder.mkdir()
    for path in coco.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    paths = ["--images", folder, "--annotations", folder / "instances.json", "--classes", "all"]
    for seed in range(DAMAGES):
        (folder / name).write_bytes(damaged((coco.folder / name).read_bytes(), seed))
        out = tmp_path / f"{seed}"
        try:
            main(["coco", *map(str, paths), "--out", str(out)])
            CourseDataset(out)
        except SystemExit as end:
            assert str(end).startswith("error: ") and "instances.json" in str(end), seed
            assert not list(out.glob("*")), seed


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "gif", "webp", "bmp", "ppm", "jp2"])
def test_a_damaged_picture(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    ramp = np.add.outer(np.arange(24), np.arange(32))[..., None] * [1, 2, 3]
    Image.fromarray(ramp.astype(np.uint8)).save(path)
    content = Path(path).read_bytes()
    for seed in range(DAMAGES):
        path.write_bytes(damaged(content, seed))
        try:
            pixels = read_picture(path)
            assert pixels.dtype == np.uint8 and pixels.shape[0] == 3, seed
        except ValueError as error:
            assert path.name in str(error), seed
