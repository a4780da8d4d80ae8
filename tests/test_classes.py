"""classes.json: written, read, and what a malformed one says."""

import json

import numpy as np
import pytest
from PIL import Image

from lib.__main__ import main
from lib.data.classes import COURSE_CLASSES, read_classes, write_classes
from lib.data.scenes import scene, write_scenes
from lib.data.writer import CourseWriter


def test_names_are_kept_and_those_of_the_course_need_no_file(tmp_path):
    assert read_classes(tmp_path) == COURSE_CLASSES == ("vehicle", "person", "animal")
    write_classes(tmp_path, ("Käse", "a b", "cat"))
    assert read_classes(tmp_path) == ("Käse", "a b", "cat")
    write_classes(tmp_path, list(COURSE_CLASSES))
    assert read_classes(tmp_path) == COURSE_CLASSES and not list(tmp_path.iterdir())


MALFORMED = {
    "no JSON": ("[", "not valid JSON"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "bytes": (b"\xff\xfe\xff", "not valid JSON"),
    "mapping": ('{"cat": 1}', "must be a list of 1 to 1000 names"),
    "no name": ("[]", "must be a list"),
    "too many": (json.dumps([str(n) for n in range(1001)]), "must be a list"),
    "number": ("[1]", "name 1 is 1: give printable text"),
    "blank": ('["cat", " "]', "name 2 is ' '"),
    "control": ('["c\\u0000t"]', "name 1 is"),
    "line": ('["c\\nt"]', "name 1 is"),
    "long": (json.dumps(["x" * 101]), "name 1 is"),
    "markup": (
        '["cat", "<script>"]',
        "name 2 is '<script>': give printable text of 1 to 100 letters without any of <>",
    ),
    "twice": ('["cat", "dog", "cat"]', "has the name 'cat' twice"),
}


@pytest.mark.parametrize("text, message", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_file_is_named(tmp_path, text, message):
    (tmp_path / "classes.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"classes.json.*{message}"):
        read_classes(tmp_path)


TINY = (
    "image.height=96 image.width=128 backbone.weights=none backbone.channels=16 boxhead.hidden=32 maskhead.hidden=16 "
    "rpn.batch_samples=64 boxhead.batch_samples=32 rpn.train.post_nms=50 rpn.test.post_nms=50 data.val_fraction=0.25 "
    "data.test_fraction=0.25 training.store_features=False rpn.batch_size=2 boxhead.batch_size=2 "
    "maskhead.batch_size=2 joint.batch_size=2 rpn.epochs=1 boxhead.epochs=1 maskhead.epochs=1 joint.epochs=1"
)


def test_every_command_follows_the_classes_of_the_data(tmp_path, monkeypatch, capsys):
    """Trained, scored and predicted with two classes; weights of these refuse data of three."""
    monkeypatch.setenv("MASKRCNN_SET", TINY)
    with CourseWriter(tmp_path / "pets", ["cat", "dog"]) as writer:
        for n in range(8):
            image, labels, boxes, masks = scene(np.random.default_rng([1, n]))
            writer.add(image, labels % 2 + 1, boxes, masks)
    weights, metrics = ["--weights", str(tmp_path / "weights")], tmp_path / "metrics.json"
    main(["train", "all", "--data", str(tmp_path / "pets"), *weights])
    main(["evaluate", "--data", str(tmp_path / "pets"), *weights, "--out", str(metrics)])
    assert list(json.loads(metrics.read_text())["mask"]["per_class"]) == ["cat", "dog"]
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "a.png"), *weights, "--out", str(tmp_path / "found")])
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    write_scenes(tmp_path / "three", 8, 0)
    for command in (["evaluate", "--out", str(metrics)], ["train", "joint"]):
        with pytest.raises(SystemExit, match="cat.*dog.*vehicle.*person.*animal"):
            main([*command, "--data", str(tmp_path / "three"), *weights])
