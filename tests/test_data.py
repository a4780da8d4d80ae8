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
    assert not clone.pixels._files and torch.equal(clone[2][0], dataset[2][0])
    assert isinstance(dataset.pixels.open("images"), h5py.Dataset)  # a handle, no array


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
OUTSIDE = ([40, 30, 402, 130], *BOXES[1:])
TURNED = ([140, 30, 40, 130], *BOXES[1:])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": FOUR}, "labels.*image 0 has the label 4; labels are whole numbers from 1 to 3"),
        ({"labels": ([1, 0], [], [2])}, "image 0 has the label 0"),
        ({"labels": ([1], [], [2, 2])}, "image 0 has 2 boxes but 1 labels"),
        ({"labels": ([1, 3], [], [])}, r"mask.*\(3, 300, 400\).*\(2, 300, 400\).*same set"),
        ({"boxes": OUTSIDE}, "bboxes.*image 0 has the box.*not inside 400 x 300"),
        ({"boxes": TURNED}, "image 0 has the box.*x1 < x2"),
        ({"boxes": ([float("nan"), 30, 140, 130], *BOXES[1:])}, "image 0 has the box.*not finite"),
        ({"order": (1, 0, 2)}, "image 0 has a mask that does not lie in its box.*in the order of the labels"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        CourseDataset(write(tmp_path, **changes))


def resave(path: Path, values: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = values


@pytest.mark.parametrize("kind", [lambda m: m * np.uint8(255), lambda m: m.astype(bool), lambda m: m.astype(np.int16)])
def test_a_mask_is_what_is_not_zero(tmp_path, kind):
    path = write(tmp_path) / FILES["masks"]
    with h5py.File(path) as file:
        masks = file["data"][:]
    resave(path, kind(masks))
    assert (CourseDataset(tmp_path)[0][1]["masks"].numpy() == masks[:2]).all()


@pytest.mark.parametrize(
    "kind, values", [("masks", np.zeros((3, 300, 400))), ("images", np.zeros((3, 300, 400, 3), np.uint8))]
)
def test_arrays_of_another_kind_say_what_is_wanted(tmp_path, kind, values):
    resave(write(tmp_path) / FILES[kind], values)
    with pytest.raises(ValueError, match=f"{FILES[kind]} holds {values.dtype}.*by the labels it is uint8"):
        CourseDataset(tmp_path)


def test_empty_masks_are_said_and_where_all_are_refused(tmp_path, capfd):
    path = write(tmp_path) / FILES["masks"]
    with h5py.File(path, "r+") as file:
        file["data"][1] = 0
    assert len(CourseDataset(tmp_path)) == 3
    assert "1 of 3 masks: " in (said := capfd.readouterr().err) and "image 0 has an empty mask for its box" in said
    with h5py.File(path, "r+") as file:
        file["data"][:] = 0
    with pytest.raises(ValueError, match="image 0 has an empty mask.*image 2 has an empty mask"):
        CourseDataset(tmp_path)


def test_boxes_of_two_images_among_many_that_are_swapped(tmp_path):
    corners = np.array([[40 * (n % 10), 40 * (n // 10), 40 * (n % 10) + 30, 40 * (n // 10) + 30] for n in range(60)])
    boxes = corners.copy()
    boxes[[23, 42]] = boxes[[42, 23]]
    with CourseWriter(tmp_path) as writer:
        for corner, box in zip(corners, boxes, strict=True):
            writer.add(np.zeros((3, 300, 400), np.uint8), [1], box[None], filled(corner)[None])
    with pytest.raises(ValueError, match="image 23 has a mask that does not lie.*image 42 has a mask") as error:
        CourseDataset(tmp_path)
    assert str(error.value).count("has a mask") == 2


def test_boxes_a_hair_outside_are_cut_off_and_said(tmp_path, capfd):
    data = CourseDataset(write(tmp_path, boxes=([39.5, 30, 140, 130], [200, 100, 260, 290], [-0.4, 0, 400.6, 300])))
    assert data.boxes[0][0].tolist() == [39.5, 30, 140, 130] and data.boxes[2].tolist() == [[0, 0, 400, 300]]
    assert (
        "1 of 3 boxes: " in (said := capfd.readouterr().err) and "image 2 has the box [-0.4, 0.0, 400.6, 300.0]" in said
    )


def test_all_problems_are_named_up_to_ten(tmp_path):
    with CourseWriter(tmp_path) as writer:
        for _ in range(14):
            writer.add(
                np.zeros((3, 300, 400), np.uint8), [1], np.array([[5, 5, 5, 9]]), np.ones((1, 300, 400), np.uint8)
            )
    with pytest.raises(
        ValueError, match="image 0 has .*image 9 has .*; and 4 more. `python -m lib check .*` lists all"
    ):
        CourseDataset(tmp_path)


@pytest.mark.parametrize("value", [1.7, float("nan"), -1, 1e300])
def test_labels_that_are_no_whole_numbers(tmp_path, value):
    with pytest.raises(ValueError, match=r"image 0 has the label .*; labels are whole numbers from 1 to 3"):
        folder = write(tmp_path)
        column = np.empty(3, object)
        column[:] = [np.array([1, value]), np.array([]), np.array([2.0])]
        np.save(folder / FILES["labels"], column, allow_pickle=True)
        CourseDataset(folder)


def test_classes_of_ones_own(tmp_path):
    with CourseWriter(tmp_path, ["cat", "dog", "bird", "fish"]) as writer:
        writer.add(np.zeros((3, 300, 400), np.uint8), [4], np.array([BOXES[0]]), filled(BOXES[0])[None])
    assert CourseDataset(tmp_path).classes == ("cat", "dog", "bird", "fish")
    (tmp_path / "classes.json").write_text('["cat", "dog", "bird"]')
    with pytest.raises(ValueError, match="the label 4; labels are whole numbers from 1 to 3"):
        CourseDataset(tmp_path)
    write(tmp_path)
    assert CourseDataset(tmp_path).classes == ("vehicle", "person", "animal")


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


BROKEN_SPLITS = ["[]", "5", "null", '{"train": 5}', '{"train": [[0]], "val": [1, 2]}', '{"train": [0, 1, 1.0]}']
BROKEN_SPLITS += ['{"train": [true, 0, 2]}', '{"train": ["0", 1, 2]}', '{"train": {"0": 1}}', '{"val": null}']


@pytest.mark.parametrize("text", BROKEN_SPLITS)
def test_a_broken_split_is_named(tmp_path, text):
    (write(tmp_path) / "split.json").write_text(text)
    with pytest.raises(ValueError, match="split.json does not divide the 3 images.*delete it"):
        CourseDataset(tmp_path, "train")


def test_a_split_without_one_of_the_names(tmp_path):
    (write(tmp_path) / "split.json").write_text('{"train": [2, 0, 1]}')
    assert CourseDataset(tmp_path, "train").indices == [2, 0, 1]
    with pytest.raises(ValueError, match="has no images in its val split"):
        CourseDataset(tmp_path, "val")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xff", b"", b"[" * 100_000])
def test_a_split_that_is_no_json_is_named(tmp_path, content):
    (write(tmp_path) / "split.json").write_bytes(content)
    with pytest.raises(ValueError, match="split.json is not valid JSON"):
        CourseDataset(tmp_path, "train")


def test_of_few_images_each_split_has_one(tmp_path):
    assert [len(CourseDataset(write(tmp_path), name)) for name in ("train", "val", "test")] == [1, 1, 1]
    (tmp_path / "split.json").unlink()
    assert len(CourseDataset(tmp_path, "train", DataConfig(val_fraction=0, test_fraction=0))) == 3


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
