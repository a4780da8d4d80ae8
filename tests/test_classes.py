"""classes.json: written, read, and what a malformed one says."""

import json

import pytest

from lib.data.classes import COURSE_CLASSES, read_classes, write_classes


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
