"""What all six notebooks share: source on show, the followed image, images as the network sees them."""

import numpy as np
import pytest
import torch

from lib.boxes import iou_matrix
from lib.config import load_config
from lib.data.reader import CourseDataset
from lib.data.writer import CourseWriter
from lib.notebook import teach


def test_source_is_shown_as_it_stands_and_in_a_fixed_width_font(monkeypatch):
    shown = []
    monkeypatch.setattr(teach, "display", lambda data, raw: shown.append(data))
    teach.show(iou_matrix, teach.followed)
    (data,) = shown
    assert data["text/plain"].startswith("def iou_matrix(") and "\n\ndef followed(" in data["text/plain"]
    assert "<pre" in data["text/html"] and "style=" in data["text/html"]


@pytest.fixture
def labelled(tmp_path):
    """Write a data set whose images have objects of these labels; all of it is the val split."""

    def write(*labels):
        box, mask = np.array([10.0, 20, 110, 170]), np.zeros((300, 400), np.uint8)
        mask[20:170, 10:110] = 1
        with CourseWriter(tmp_path / "set") as writer:
            for of_image in labels:
                image = np.full((3, 300, 400), 51, np.uint8)
                writer.add(image, of_image, np.array([box] * len(of_image)), np.array([mask] * len(of_image)))
        return CourseDataset(tmp_path / "set")

    return write


@pytest.mark.parametrize(
    "labels, wanted",
    [
        ([[1], [2, 2], [3, 1], [2, 3]], 2),  # the first of two classes
        ([[1], [2, 2], [3, 3]], 1),  # no image of two classes: the first of two objects
        ([[1], [2]], 0),
    ],
)
def test_the_followed_image(labelled, labels, wanted):
    assert teach.followed(labelled(*labels)) == wanted


def test_images_as_the_network_sees_them(labelled):
    config = load_config("demo")  # 300 x 400 becomes 180 x 240
    seen = teach.as_seen(labelled([1], [2, 3]), [1, 0], config)
    assert seen.x.shape == (2, 3, *config.image.padded_size) and seen.content == (180, 240)
    assert [t["labels"].tolist() for t in seen.targets] == [[2, 3], [1]]
    torch.testing.assert_close(seen.targets[1]["boxes"], torch.tensor([[6.0, 12, 66, 102]]))
    assert [p.shape for p in seen.pictures] == [(3, 180, 240)] * 2
    np.testing.assert_allclose(seen.pictures[0], 51 / 255, atol=1e-6)
