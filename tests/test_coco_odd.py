"""coco: sets as exporting tools write them, and as strangers do; what is left out is said."""

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from test_coco import Coco, labels_of, rectangle, rle

from lib.__main__ import main
from lib.data.segmentations import checked, decode

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools with numpy 2
SQUARE = rectangle(10, 10, 30, 40)


@pytest.fixture
def coco(tmp_path):
    return Coco(tmp_path)


@pytest.fixture
def two(coco):
    """Two images, the first with a dog and a chair, the second with a person."""
    first, second = coco.image(80, 60), coco.image(80, 60)
    for image, name in ((first, "dog"), (first, "chair"), (second, "person")):
        coco.object(image, name, SQUARE)
    return coco


def table(out):
    """The rows of the table at the end: what -> images and objects."""
    lines = [line.rsplit(None, 2) for line in out.splitlines() if line.startswith(("read", "left out", "written"))]
    return {name: (int(images), int(objects)) for name, images, objects in lines}


NESTINGS = {  # of one rectangle from (10, 10) to (30, 40), in an image of 80 x 60
    "as it should be": SQUARE,
    "pairs": [[[10, 10], [30, 10], [30, 40], [10, 40]]],
    "one polygon of pairs": [[10, 10], [30, 10], [30, 40], [10, 40]],
    "one list too many": [SQUARE],
    "two lists too many": [[SQUARE]],
    "a box": [[10, 10, 20, 30]],
    "two polygons, one a point": [*SQUARE, [5, 5]],
    "two halves": [[10, 10, 30, 10, 30, 25, 10, 25], [10, 25, 30, 25, 30, 40, 10, 40]],
}


@pytest.mark.parametrize("segmentation", NESTINGS.values(), ids=NESTINGS.keys())
def test_polygons_of_every_nesting(segmentation):
    mask = decode(checked(segmentation, 60, 80, [10, 10, 20, 30]), 60, 80)
    expected = np.zeros((60, 80), np.uint8)
    expected[10:40, 10:30] = 1
    np.testing.assert_array_equal(mask, expected)


def test_many_points_take_no_long():
    points = [[n % 7, n % 5] for n in range(200_000)]
    assert len(checked([points], 60, 80)[0]) == 400_000


def test_four_numbers_are_a_box_only_where_they_can_be_nothing_else():
    assert decode(checked([[40, 10, 20, 20]], 60, 80), 60, 80).sum() == 400  # no corners: 20 < 40
    assert checked([[5, 5, 9, 9]], 60, 80) == []  # two points, corners, or a box
    assert decode(checked([[5, 5, 9, 9]], 60, 80, [5, 5, 9, 9]), 60, 80).sum() == 81


BAD = {
    "a flat list of numbers": SQUARE[0],
    "something else than coordinates": [[10, 10, "30", 40, 10, 40]],
    "something else": [[None]],
    "neither polygons nor": "abc",
    "it is empty": None,
    "odd number": [[1, 1, 5, 1, 5]],
    "no polygon of the image": [[1, 1, 1e9, 1, 1e9, 5]],
    "outline is longer": [[0, 0, 79, 59] * 200_000],
    "its size is": {"size": [10**9, 4], "counts": [4 * 10**9]},
    "its counts are neither": {"size": [60, 80]},
    "counts are neither": {"size": [60, 80], "counts": [True, 4799]},
    "counts are no run lengths": {"size": [60, 80], "counts": "PPPPPPPPPPPP0"},
    "are no run lengths": {"size": [60, 80], "counts": "0P"},  # read on beyond its end by pycocotools
    "no run lengths": {"size": [60, 80], "counts": "é"},
    "do not fill": {"size": [60, 80], "counts": "oooooo1"},
    "run lengths do not fill": {"size": [60, 80], "counts": [4800, 1]},
}


@pytest.mark.parametrize("message, segmentation", BAD.items())
def test_what_is_no_segmentation(message, segmentation):
    with pytest.raises(ValueError, match=message):
        decode(checked(segmentation, 60, 80), 60, 80)


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_read_as_pycocotools_writes_them(seed):
    rng = np.random.default_rng(seed)
    mask = (rng.random((60, 80)) < rng.choice([0, 0.001, 0.5, 0.999, 1])).astype(np.uint8)
    from pycocotools import mask as tools

    code = {"size": [60, 80], "counts": tools.encode(np.asfortranarray(mask))["counts"].decode()}
    np.testing.assert_array_equal(decode(checked(code, 60, 80), 60, 80), mask)


def test_names_of_categories_in_another_writing(two):
    for category, name in zip(two.json["categories"], ("PERSON ", "  Dog", "car", "Chair"), strict=True):
        category["name"] = name
    assert labels_of(two.convert()) == [[3], [2]]


def test_the_courses_own_names_and_predictions_convert_back(coco):
    image = coco.image(80, 60)
    names = ("vehicle", "person", "animal")
    coco.json["categories"] = [{"id": n, "name": name} for n, name in enumerate(names, start=1)]
    for n in (3, 1, 2):
        row = {"id": n, "image_id": image, "category_id": n, "score": 0.9, "bbox": [10, 10, 20, 30], "area": 600}
        coco.json["annotations"].append({**row, "iscrowd": 0, "segmentation": rle(10, 10, 30, 40, 80, 60, True)})
    coco.json["images"][0] |= {"file_name": str(coco.folder / "100.png"), "overlay": "100_overlay.png"}
    data = coco.convert()
    assert labels_of(data) == [[3, 1, 2]] and data.boxes[0][0].tolist() == [50, 50, 150, 200]


CLASSES = {
    "dog=pet,chair=seat,person=pet": (("pet", "seat"), [[1, 2], [1]]),
    "chair,dog": (("chair", "dog"), [[2, 1]]),
    "all": (("dog", "chair", "person", "car"), [[1, 2], [3]]),  # by their ids: 3, 5, 7, 11
}


@pytest.mark.parametrize("option", CLASSES)
@pytest.mark.parametrize("as_file", [False, True])
def test_classes_of_ones_own(two, option, as_file):
    classes, labels = CLASSES[option]
    if as_file and option != "all":
        pairs = (part.partition("=") for part in option.split(","))
        (two.folder / "m.json").write_text(json.dumps({name: kind or name for name, _, kind in pairs}))
        option = str(two.folder / "m.json")
    data = two.convert("--classes", option)
    assert data.classes == classes and labels_of(data) == labels


@pytest.mark.parametrize(
    "option, message",
    [
        ("dgo", "no category 'dgo'; it has dog, chair, person, car"),
        ("dog=", "name 1 is ''"),
        ("", "no category ''"),
    ],
)
def test_classes_that_are_none(two, option, message):
    assert message in two.error("--classes", option)


def test_the_table_accounts_for_all_that_was_read(two, capsys):
    image = two.image(80, 60)
    two.object(image, "dog", SQUARE, iscrowd=1)
    two.object(two.image(80, 60), "dog", [[1, 1, 5, 5]])
    two.image(80, 60)
    assert len(two.convert()) == 2
    out = capsys.readouterr().out
    assert table(out) == {
        "read": (5, 5),
        "left out: of a category not asked for": (0, 1),
        "left out: a crowd region": (0, 1),
        "left out: without an area in the frame": (0, 1),
        "left out: without an object": (3, 0),
        "written": (2, 2),
    }
    assert "not asked for: chair (1)" in out


@pytest.mark.parametrize("options", ["--max-objects 1", "--limit 1", "--min-size 60", "--max-objects 1 --limit 1"])
def test_the_table_adds_up(two, options, capsys):
    two.object(101, "car", rectangle(10, 10, 70, 60))
    two.object(100, "car", rectangle(10, 10, 70, 60))
    two.object(two.image(80, 60), "car", rectangle(10, 10, 70, 60))
    data = two.convert(*options.split())
    rows = table(capsys.readouterr().out)
    read, written = rows.pop("read"), rows["written"]
    assert written == (len(data), sum(map(len, data.labels))) and read == (3, 6)
    assert tuple(map(sum, zip(*rows.values(), strict=True))) == read


def test_strict_makes_any_loss_an_error(two):
    assert "--strict nothing may be left out; 1 object(s) of a category not asked for" in two.error("--strict")
    assert len(two.convert("--strict", "--classes", "all")) == 2
    two.object(100, "dog", [[1, 1, 5, 5]])
    with pytest.raises(SystemExit, match="without an area in the frame"):
        two.convert("--strict", "--classes", "all", out="again")
    assert not (two.folder / "again").exists() or not list((two.folder / "again").iterdir())


def test_images_without_objects_are_kept_on_wish(two):
    two.image(80, 60)
    two.object(two.image(80, 60), "dog", SQUARE, iscrowd=1)  # a dog is in it, so it is not without
    data = two.convert("--keep-empty")
    assert labels_of(data) == [[3], [2], []] and data[2][1]["masks"].shape == (0, 300, 400)


@pytest.fixture
def broken(two):
    """The two good images, and more in which something cannot be used."""
    names = {name: two.image(80, 60) for name in ("missing", "cut", "size", "seg", "id", "wide")}
    for image in names.values():
        two.object(image, "dog", SQUARE)
    (two.folder / f"{names['missing']}.png").unlink()
    cut = two.folder / f"{names['cut']}.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:9000])
    records = two.json["images"]
    records[4]["width"], records[7]["width"], records[6]["id"] = 81, 10**9, [106]
    two.json["annotations"][6]["segmentation"] = []
    two.json["annotations"][7]["image_id"] = 106
    return two


def test_all_that_cannot_be_used_is_named_before_the_work(broken, capsys):
    message = broken.error()
    for part in ("102.png is missing", "image 104 (104.png): it has 80 x 60 pixels, in the JSON 81 x 60",
                 "annotation 906 of image 105 (105.png) has no usable segmentation (it is empty)",
                 "its id is neither a number nor a text", "annotation 907 has the unknown image_id 106",
                 "image 107 (107.png) is declared with 1000000000 x 60 pixels"):  # fmt: skip
        assert part in message
    assert "convert: " not in capsys.readouterr().err and "7 unusable" in message


def test_a_picture_that_breaks_off_is_named(broken):
    broken.json["images"] = [broken.json["images"][n] for n in (0, 1, 3)]
    broken.json["annotations"] = [a for a in broken.json["annotations"] if a["image_id"] in (100, 101, 103)]
    assert "1 unusable: image 103 (103.png): " in (message := broken.error()) and "truncated" in message


def test_going_on_without_what_cannot_be_used(broken, capsys):
    assert labels_of(broken.convert("--skip-broken")) == [[3], [2]]
    out = capsys.readouterr().out
    assert out.count("unusable: ") == 7 and table(out)["written"] == (2, 2)
    rows = table(out)
    read = rows.pop("read")
    assert tuple(map(sum, zip(*rows.values(), strict=True))) == read == (8, 9)


def test_ids_as_text_and_numbers(two):
    records, annotations = two.json["images"], two.json["annotations"]
    records[0]["id"], records[1]["id"] = "100", 101.0
    two.json["categories"][0]["id"] = "7"
    assert (annotations[0]["image_id"], annotations[2]["category_id"]) == (100, 7)
    assert labels_of(two.convert()) == [[3], [2]]


def test_equal_ids_of_images_are_named(two):
    two.json["images"][1]["id"] = 100
    two.json["annotations"][2]["image_id"] = "100"
    assert "image 100 (101.png) has the id of image 100 (100.png): give each image" in two.error()
    with pytest.raises(SystemExit, match="no image is left"):
        two.convert("--skip-broken")  # whose objects these are cannot be known
    two.json["images"][1] = dict(two.json["images"][0])  # the same image, listed twice
    assert labels_of(two.convert()) == [[3, 2]]


NAMES = ["sub\\100.png", "./sub/100.png", "sub/../sub/100.png", "sub%5C100.png", "sub%2F100.png"]
SAME = ["./100.png", "x/../100.png", "link.png"]
NAMES += ["C:\\export\\100.png", "/data/export/100.png", "images/100.png", "%3100.png", "images%5C100.png"]


@pytest.mark.parametrize("name", NAMES)
def test_names_as_exporting_tools_write_them(two, name):
    (two.folder / "sub").mkdir()
    if "sub" in name:
        (two.folder / "100.png").rename(two.folder / "sub" / "100.png")
    two.json["images"][0]["file_name"] = name
    assert len(two.convert()) == 2


@pytest.mark.parametrize("names", [("a/100.png", "b/100.png"), ("a/100.png", "100.png")])
def test_a_file_is_not_taken_for_two(two, names):
    for record, name in zip(two.json["images"], names, strict=True):
        record["file_name"] = name
    assert f"image 101 ({names[1]}): " in (message := two.error()) and "a/100.png already: is --images" in message


def test_a_file_that_is_named_twice(two):
    (two.folder / "link.png").symlink_to(two.folder / "100.png")
    two.json["images"] += [{**two.json["images"][0], "id": n, "file_name": name} for n, name in enumerate(SAME)]
    assert len(two.convert("--keep-empty")) == 5


@pytest.mark.parametrize("how", ["parent", "absolute", "link", "linked folder", "encoded"])
def test_nothing_outside_the_folder_is_read(tmp_path, how):
    (tmp_path / "images").mkdir()
    coco = Coco(tmp_path / "images")
    coco.object(coco.image(80, 60), "dog", SQUARE)
    secret = tmp_path / "secret" / "s.png"
    secret.parent.mkdir()
    Image.new("RGB", (80, 60), (250, 1, 2)).save(secret)
    (coco.folder / "100.png").unlink()
    names = {"parent": "../secret/s.png", "absolute": str(secret), "link": "100.png", "linked folder": "l/s.png"}
    coco.json["images"][0]["file_name"] = names.get(how, "..%2Fsecret%2Fs.png")
    if "link" in how:
        (coco.folder / ("100.png" if how == "link" else "l")).symlink_to(secret if how == "link" else secret.parent)
    message = coco.error()
    assert f"image 100 ({coco.json['images'][0]['file_name']}): it leads out of" in message


@pytest.mark.parametrize(
    "kind, field, value",
    [
        *(("images", "id", value) for value in ([1], {}, None, True, 1.5, "", float("nan"))),
        *(("images", "file_name", value) for value in (5, None, "", "a\0b", ["a"], "x" * 300)),
        *(("images", "width", value) for value in (0, -5, 1.5, "a", None, [80], 60_000, 10**30)),
        *(("images", "height", value) for value in (0, -5, 1.5, "a", None, [80], 60_000, 10**30)),
        *(("annotations", "image_id", value) for value in ([100], {}, None, 1.5)),
        *(("annotations", "category_id", value) for value in ([3], None, 1.5)),
        *(("categories", "id", value) for value in ([1], None, 3)),
        *(("categories", "name", value) for value in (None, [1], 1.5)),
    ],
)  # fmt: skip
def test_fields_of_another_kind_are_named(two, kind, field, value):
    two.json[kind][0][field] = value
    tracemalloc.start()
    try:
        message = two.error()
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert message.startswith("error: ") and "instances.json" in message


@pytest.mark.parametrize("kind", ["images", "annotations", "categories"])
@pytest.mark.parametrize("item", [None, 5, "text", [], {}])
def test_items_of_another_kind_are_named(two, kind, item):
    two.json[kind].append(item)
    assert f"of '{kind}' has no '" in two.error()


def test_a_name_that_is_a_number(two):
    two.json["categories"][0]["name"] = 5
    assert two.convert("--classes", "all").classes == ("dog", "chair", "5", "car")


def test_a_small_picture_that_declares_a_huge_size(two):
    two.json["images"][0] |= {"width": 9_000, "height": 11_000}
    two.json["annotations"][0]["segmentation"] = rectangle(0, 0, 9_000, 11_000)
    tracemalloc.start()
    try:
        assert "has 80 x 60 pixels, in the JSON 9000 x 11000" in two.error()
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("declared, white_at_the_top", [((60, 80), True), ((80, 60), False)])
def test_a_turned_photograph_goes_with_its_annotations(coco, declared, white_at_the_top):
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, :40] = 255  # on the left as stored, at the top when shown
    exif = Image.Exif()
    exif[0x0112] = 6
    coco.image(80, 60)
    Image.fromarray(pixels).save(coco.folder / "100.png", exif=exif)
    width, height = declared
    coco.json["images"][0] |= {"width": width, "height": height}
    coco.object(100, "dog", rectangle(0, 0, *((width, 40) if white_at_the_top else (40, height))))
    picture, target = coco.convert()[0]
    assert ((picture[0] > 127) == target["masks"][0].bool()).all()


@pytest.mark.parametrize(
    "change, advice",
    [
        (["--min-size", "399"], "smaller than --min-size: lower --min-size"),
        (["--classes", "car"], "of a category not asked for: choose categories with --classes"),
        (["--max-objects", "1", "--classes", "dog,chair"], "with more than --max-objects: raise"),
    ],
)
def test_advice_fits_the_cause_where_nothing_is_left(two, change, advice):
    message = two.error(*change)
    assert "no image is left" in message and advice in message


def test_a_folder_that_is_none(two, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(two.json))
    with pytest.raises(SystemExit, match=r"image 100 \(100.png\): .*100.png is missing: is --images its folder"):
        main(
            [
                "coco",
                "--images",
                str(tmp_path / "none"),
                "--annotations",
                str(tmp_path / "a.json"),
                "--out",
                str(tmp_path / "o"),
            ]
        )
    assert not (tmp_path / "o").exists()
