"""check: every problem at once, and a copy without them."""

import json

import h5py
import numpy as np
import pytest

from lib.__main__ import main
from lib.data.objects import FILES
from lib.data.reader import CourseDataset
from lib.data.writer import CourseWriter

BOX = [40, 30, 140, 130]
CORNER = [300, 200, 400, 300]


def mask_of(box):
    mask = np.zeros((300, 400), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


ODD = {  # an image's labels, boxes, boxes of its masks, and what is wrong with it
    "good": ([1], [BOX], [BOX], None),
    "hair": ([2], [[300, 200, 400.4, 300]], [CORNER], "a hair outside"),
    "outside": ([1, 2], [[-5, 30, 140, 130], CORNER], [BOX, CORNER], "is not inside 400 x 300"),
    "no area": ([1], [[40, 30, 40, 130]], [BOX], "where x1 < x2, y1 < y2 must hold"),
    "not finite": ([3], [[np.nan, 30, 140, 130]], [BOX], "is not finite"),
    "empty mask": ([1], [BOX], [[0, 0, 0, 0]], "an empty mask"),
    "swapped": ([1], [CORNER], [BOX], "does not lie in its box"),
    "also swapped": ([1], [BOX], [CORNER], "does not lie in its box"),
    "fraction": ([1.7], [BOX], [BOX], "has the label 1.7; labels are whole numbers from 1 to 3"),
    "class 4": ([4], [BOX], [BOX], "has the label 4;"),
    "unequal": ([1], [BOX, BOX], [BOX], "has 2 boxes but 1 labels"),
    "no object": ([], [], [], None),
}


@pytest.fixture
def odd(tmp_path):
    with CourseWriter(tmp_path / "odd") as writer:
        for n, (labels, boxes, masks, _) in enumerate(ODD.values()):
            image = np.full((3, 300, 400), n, np.uint8)
            writer.add(image, [], np.zeros((0, 4)), np.array([mask_of(b) for b in masks]).reshape(-1, 300, 400))
            writer.labels[-1], writer.boxes[-1] = np.array(labels, float), np.array(boxes, float).reshape(-1, 4)
    (tmp_path / "odd" / "split.json").write_text(json.dumps({"train": list(range(11)), "val": [11], "test": []}))
    return tmp_path / "odd"


def check(folder, *options):
    with pytest.raises(SystemExit) as end:
        main(["check", str(folder), *map(str, options)])
    return end.value.code


def test_every_problem_is_listed(odd, capsys):
    assert check(odd) == 1
    lines = capsys.readouterr().out.splitlines()
    for n, (_, _, _, problem) in enumerate(ODD.values()):
        named = [line for line in lines if f"image {n} has" in line]
        assert len(named) == (problem is not None) and all(problem in line for line in named)
    assert f"{odd}: 10 problem(s)" in lines
    assert "      2 masks outside their boxes" in lines and "      2 labels that are no class" in lines
    assert "remark: the test split has no images" in lines


def test_a_sound_set_has_none(scenes, capsys):
    assert check(scenes) == 0
    assert "0 problem(s)" in capsys.readouterr().out


def test_a_class_without_objects_is_a_remark(tmp_path, capsys):
    with CourseWriter(tmp_path, ("cat", "dog")) as writer:
        writer.add(np.zeros((3, 300, 400), np.uint8), [1], np.array([BOX]), mask_of(BOX)[None])
    assert check(tmp_path) == 0 and "remark: no object is of the class dog" in capsys.readouterr().out


def test_a_cleaned_copy_opens_and_has_lost_no_sound_image(odd, tmp_path, capsys):
    assert check(odd, "--repair", tmp_path / "clean") == 0
    assert "Wrote 6 of 12 images" in capsys.readouterr().out
    data = CourseDataset(tmp_path / "clean")
    assert [int(data[i][0][0, 0, 0]) for i in range(6)] == [0, 1, 2, 3, 4, 11]
    assert [b.tolist() for b in data.boxes] == [[BOX], [CORNER], [BOX, CORNER], [BOX], [BOX], []]
    assert [label.tolist() for label in data.labels] == [[1], [2], [1, 2], [1], [3], []]
    assert json.loads((tmp_path / "clean" / "split.json").read_text()) == {
        "train": [0, 1, 2, 3, 4],
        "val": [5],
        "test": [],
    }
    assert check(tmp_path / "clean") == 0
    with pytest.raises(SystemExit, match="exists: choose another --repair"):
        main(["check", str(odd), "--repair", str(tmp_path / "clean")])


def test_opening_names_the_problems_too(odd):
    with pytest.raises(ValueError) as error:
        CourseDataset(odd)
    for n in (2, 3, 4, 8, 9, 10, 1):  # what the labels and boxes tell
        assert f"image {n} has" in str(error.value)


@pytest.mark.parametrize("kinds", [["labels"], ["images", "boxes"], list(FILES)])
def test_all_missing_files_are_named(odd, tmp_path, capsys, kinds):
    for kind in kinds:
        (odd / FILES[kind]).unlink()
    assert check(odd) == 1
    out = capsys.readouterr().out
    assert [kind for kind in FILES if f"{FILES[kind]} is missing" in out] == kinds
    with pytest.raises(SystemExit, match="cannot be repaired: first bring the four files"):
        main(["check", str(odd), "--repair", str(tmp_path / "clean")])


def test_files_that_cannot_be_read_are_named_together(odd, capsys):
    (odd / FILES["labels"]).write_bytes(b"\x93NUMPY")
    (odd / FILES["masks"]).write_bytes(b"")
    (odd / "classes.json").write_text("{")
    (odd / "split.json").write_text("[")
    assert check(odd) == 1
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in (FILES["labels"], FILES["masks"], "classes.json")) and "3 files" in out


def test_a_damaged_image_is_one_problem_and_left_out(scenes, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    for name in FILES.values():
        (tmp_path / "a" / name).write_bytes((scenes / name).read_bytes())
    with h5py.File(tmp_path / "a" / FILES["images"]) as file:
        chunk = file["data"].id.get_chunk_info(5)
    with open(tmp_path / "a" / FILES["images"], "r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        file.write(bytes(100))
    with pytest.raises(ValueError, match=f"{FILES['images']} is damaged at 5"):
        CourseDataset(tmp_path / "a")[5]
    assert check(tmp_path / "a") == 1
    out = capsys.readouterr().out
    assert "image 5 cannot be read" in out and "1 problem(s)" in out
    assert check(tmp_path / "a", "--repair", tmp_path / "b") == 0
    assert len(CourseDataset(tmp_path / "b")) == 11
