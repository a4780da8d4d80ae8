import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lib.config import DataConfig
from lib.data.batches import collate, flip_horizontally, prepare
from lib.data.reader import FILES, CourseDataset
from lib.data.safe_npy import load_object_array
from lib.data.writer import CourseWriter
from lib.machine.folders import root
from lib.preprocess import ImageConfig, content_size, preprocess_images, preprocess_targets

GENUINE = root().parent / "shared" / "data" / "course"
BOXES = ([40, 30, 140, 130], [200, 100, 260, 290], [0, 0, 400, 300])  # of scene 0, 0 and 2; scene 1 is empty
LABELS = ([1, 3], [], [2])
COURSE = ImageConfig()  # 800 x 1066


def filled(box) -> np.ndarray:
    mask = np.zeros((300, 400), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


def write(folder: Path, labels=LABELS, boxes=BOXES, order=(0, 1, 2)) -> Path:
    """Three images of 2, 0 and 1 objects; mask `order` says whose mask stands where."""
    masks = np.stack([filled(BOXES[i]) for i in order])
    image = np.random.default_rng(0).integers(0, 256, (3, 300, 400), dtype=np.uint8)
    with CourseWriter(folder) as writer:
        for i, part in enumerate((slice(0, 2), slice(2, 2), slice(2, 3))):
            writer.add(np.roll(image, i), labels[i], np.array(boxes[part]), masks[part])
    return folder


def test_what_is_written_is_read(tmp_path):
    dataset = CourseDataset(write(tmp_path))
    assert len(dataset) == 3
    for i, part in enumerate((BOXES[:2], (), BOXES[2:])):
        image, target = dataset[i]
        assert image.dtype == torch.uint8 and image.shape == (3, 300, 400) and target["image_id"] == i
        assert target["labels"].dtype == torch.int64 and target["labels"].tolist() == LABELS[i]
        assert target["boxes"].dtype == torch.float32 and target["boxes"].tolist() == [*map(list, part)]
        assert target["masks"].dtype == torch.uint8 and target["masks"].shape == (len(part), 300, 400)
        for mask, box in zip(target["masks"], part, strict=True):
            assert (mask.numpy() == filled(box)).all()
    assert "masks" not in CourseDataset(tmp_path, with_masks=False)[0][1]
    alone = CourseDataset(tmp_path, "train", DataConfig(val_fraction=0.5, test_fraction=0))
    assert [alone.target(k)["image_id"] for k in range(len(alone))] == alone.indices


def test_files_are_opened_lazily_and_do_not_travel(tmp_path):
    dataset = CourseDataset(write(tmp_path))
    clone = pickle.loads(pickle.dumps(dataset))
    assert not clone._handles and torch.equal(clone[2][0], dataset[2][0])
    assert isinstance(dataset._file("images"), h5py.Dataset)  # a handle, no array


def test_a_failed_writer_leaves_the_old_files(tmp_path):
    before = {name: (write(tmp_path) / name).read_bytes() for name in FILES.values()}
    with pytest.raises(RuntimeError), CourseWriter(tmp_path) as writer:
        writer.add(np.zeros((3, 300, 400), np.uint8), [1], np.array([[0, 0, 5, 5]]), np.ones((1, 300, 400)))
        raise RuntimeError("the camera broke")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", FILES)
def test_missing_file(tmp_path, kind):
    (write(tmp_path) / FILES[kind]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{FILES[kind]} is missing.*{tmp_path}.*python -m lib scenes"):
        CourseDataset(tmp_path)


FOUR = ([1, 4], [], [2])
OUTSIDE = ([40, 30, 401, 130], *BOXES[1:])
TURNED = ([140, 30, 40, 130], *BOXES[1:])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": FOUR}, r"labels.*image 0 has labels \[1, 4\]; they go from 1 to 3"),
        ({"labels": ([1, 0], [], [2])}, "image 0 has labels"),
        ({"labels": ([1], [], [2, 2])}, "image 0 has 2 boxes but 1 labels"),
        ({"labels": ([1, 3], [], [])}, r"mask.*\(3, 300, 400\).*\(2, 300, 400\).*same set"),
        ({"boxes": OUTSIDE}, "bboxes.*image 0 has boxes.*inside 400 x 300"),
        ({"boxes": TURNED}, "image 0 has boxes.*x1 < x2"),
        ({"boxes": ([float("nan"), 30, 140, 130], *BOXES[1:])}, "image 0 has boxes"),
        ({"order": (1, 0, 2)}, "mask 0 does not lie in its box.*image 0.*in the order of the labels"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        CourseDataset(write(tmp_path, **changes))


@pytest.mark.parametrize("one, other", [("images", "masks"), ("labels", "boxes"), ("images", "labels")])
def test_swapped_files(tmp_path, one, other):
    a, b = (write(tmp_path) / FILES[kind] for kind in (one, other))
    a.rename(tmp_path / "spare")
    b.rename(a)
    (tmp_path / "spare").rename(b)
    with pytest.raises(ValueError, match="hw3_mycocodata"):
        CourseDataset(tmp_path)


@pytest.mark.skipif(not GENUINE.is_dir(), reason="the course's label and box files are not here")
def test_the_genuine_labels_and_boxes():
    labels, boxes = (load_object_array(GENUINE / FILES[kind]) for kind in ("labels", "boxes"))
    assert len(labels) == len(boxes) == 3265
    assert np.bincount(np.concatenate(list(labels)).astype(int)).tolist() == [0, 990, 882, 1971]
    assert [sum(len(v) == n for v in labels) for n in (1, 2)] == [2687, 578]
    flat = np.concatenate([np.asarray(v).reshape(-1, 4) for v in boxes])
    assert flat.shape == (3843, 4) and (flat >= 0).all() and (flat <= [400, 300, 400, 300]).all()
    assert [len(v) for v in labels] == [len(np.asarray(v).reshape(-1, 4)) for v in boxes]


def test_split_is_stored_disjoint_and_the_same_again(tmp_path):
    with CourseWriter(tmp_path) as writer:
        for _ in range(20):
            writer.add(np.zeros((3, 300, 400), np.uint8), [], np.zeros((0, 4)), np.zeros((0, 300, 400), np.uint8))
    config = DataConfig(val_fraction=0.2, test_fraction=0.1)
    split = {name: CourseDataset(tmp_path, name, config).indices for name in ("train", "val", "test")}
    assert sorted(sum(split.values(), [])) == list(range(20)) and [*map(len, split.values())] == [14, 4, 2]
    other = DataConfig(seed=9, val_fraction=0.5)  # what is stored counts
    assert {name: CourseDataset(tmp_path, name, other).indices for name in split} == split
    (tmp_path / "split.json").unlink()
    assert CourseDataset(tmp_path, "val", DataConfig(seed=9, val_fraction=0.2)).indices != split["val"]
    (tmp_path / "split.json").write_text('{"train": [0], "val": [], "test": []}')
    with pytest.raises(ValueError, match="split.json does not divide the 20 images"):
        CourseDataset(tmp_path, "train", config)


def test_preprocessing_is_section_2(tmp_path):
    images, targets = collate([CourseDataset(write(tmp_path))[i] for i in range(3)])
    x, new, content = prepare(images, targets, COURSE)
    assert x.shape == (3, 3, 800, 1088) and content == (800, 1066)
    assert (x[..., 1066:] == 0).all() and (x[..., :1066] != 0).float().mean() > 0.99
    for target, old in zip(new, targets, strict=True):
        assert_close(target["boxes"], old["boxes"] * torch.tensor([1066 / 400, 800 / 300] * 2))
        assert target["masks"].shape == (len(old["boxes"]), 800, 1088)
        for mask, box in zip(target["masks"], target["boxes"], strict=True):
            ys, xs = mask.nonzero().unbind(1)
            tight = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert (tight - box).abs().max() < 1 and mask[..., 1066:].sum() == 0


def test_a_grey_image_is_normalised_by_hand():
    x = preprocess_images(torch.full((1, 3, 300, 400), 51, dtype=torch.uint8), COURSE)  # 51 / 255 = 0.2
    by_hand = [(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert_close(x[0, :, [0, 400, 799], [0, 500, 1065]], torch.tensor(by_hand)[:, None].expand(3, 3))


@pytest.mark.parametrize(
    "size, content",
    [((300, 400), (800, 1066)), ((600, 800), (800, 1066)), ((500, 100), (800, 160)), ((10, 1000), (11, 1066))],
)
def test_content_keeps_the_aspect_ratio_and_fits(size, content):
    got = content_size(*size, COURSE)
    assert abs(got[0] - content[0]) <= 1 and abs(got[1] - content[1]) <= 1 and got[0] <= 800 and got[1] <= 1066


def test_flip_mirrors_images_boxes_and_masks_together(tmp_path):
    images, targets = collate([CourseDataset(write(tmp_path))[i] for i in range(3)])
    flipped, new = flip_horizontally(images, targets, torch.tensor([True, True, False]))
    assert torch.equal(flipped[0], images[0].flip(-1)) and torch.equal(flipped[2], images[2])
    assert new[0]["boxes"].tolist() == [[260, 30, 360, 130], [140, 100, 200, 290]]  # 400 - 140, 400 - 40, ...
    for mask, box in zip(new[0]["masks"], new[0]["boxes"].int().tolist(), strict=True):
        assert (mask.numpy() == filled(box)).all()
    again, back = flip_horizontally(flipped, new, torch.tensor([True, True, False]))
    assert torch.equal(again, images)
    assert all(torch.equal(b["boxes"], t["boxes"]) for b, t in zip(back, targets, strict=True))
    assert torch.equal(targets[0]["boxes"], torch.tensor(BOXES[:2]).float())  # the originals are left alone


def test_targets_without_masks_or_objects():
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    assert "masks" not in preprocess_targets([target], (300, 400), COURSE)[0]
    new = preprocess_targets([{**target, "masks": torch.zeros(0, 300, 400)}], (300, 400), COURSE)[0]
    assert new["masks"].shape == (0, 800, 1088) and new["boxes"].shape == (0, 4)
