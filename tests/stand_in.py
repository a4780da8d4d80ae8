"""Three made-up scenes and a model that finds a part of what is in them, without any training: what browsers are shown.

A kernel imports this beside the test that drives it, so that both have the same boxes.

    boxes are xyxy, in pixels of 400 x 300
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from lib.anchors import LEVELS, STRIDES, Maps, pyramid_anchors
from lib.boxes import encode, iou_matrix
from lib.config import load_config
from lib.maskrcnn import COURSE_CLASSES, MaskRCNN

CONFIG = load_config("demo", "image.height=150 image.width=200 backbone.weights=none".split())
ZOOM = 0.5  # from a scene to the network's frame
OBJECTS = [  # of each scene: label and box
    [(1, (40, 120, 160, 220)), (2, (260, 60, 310, 220))],
    [(3, (90, 70, 300, 200))],
    [(2, (180, 40, 240, 230)), (1, (20, 20, 120, 90))],
]
SEEN = [  # what the model takes for one: a box too far right, an animal that is not there, a person that is missed
    [(1, (48, 124, 164, 224)), (2, (270, 60, 320, 220))],
    [(3, (90, 70, 300, 200)), (3, (20, 210, 110, 290))],
    [(1, (20, 20, 120, 90))],
]


def scene(n: int) -> tuple[Tensor, dict]:
    """A dark picture, of another hue each, with ellipses for its objects."""
    image = torch.full((3, 300, 400), 50, dtype=torch.uint8)
    image[n] += 30
    labels, boxes = zip(*OBJECTS[n], strict=True)
    masks = torch.stack([ellipse(box) for box in boxes])
    image[:, masks.amax(dim=0) > 0] = 90
    target = {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels), "masks": masks, "image_id": n}
    return image, target


def ellipse(box: tuple[int, int, int, int]) -> Tensor:
    (x1, y1, x2, y2), x, y = box, torch.arange(400) + 0.5, torch.arange(300)[:, None] + 0.5
    return (((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1).to(torch.uint8)


class Scenes(list):
    classes = COURSE_CLASSES


SCENES = Scenes(scene(n) for n in range(3))


class Which(nn.Module):
    """A backbone whose maps say which scene it is, by its hue, and nothing else."""

    out_channels = 16

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        (n,), (height, width) = x.mean(dim=(2, 3)).argmax(dim=1).tolist(), x.shape[2:]
        sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
        return OrderedDict((name, x.new_full((1, 16, *size), n)) for name, size in zip(LEVELS, sizes, strict=True))


class Guess(nn.Module):
    """In place of the RPN: an anchor scores by its IoU with what is seen, and stays where it is."""

    def forward(self, features: Maps) -> tuple[Tensor, Tensor]:
        anchors = pyramid_anchors(tuple((f.shape[2], f.shape[3]) for f in features), CONFIG.anchors)
        _, boxes = seen(features)
        return 12 * (iou_matrix(anchors, boxes).amax(dim=1) - 0.45)[None], torch.zeros(1, len(anchors), 4)


class StandIn(MaskRCNN):
    """Its stages answer from SEEN, one image at a time."""

    def __init__(self):
        super().__init__(CONFIG, Which())
        self.rpn = Guess()

    def classify(self, features, boxes):
        """A proposal is of the class of what it overlaps most, and half-way there."""
        labels, objects = seen(features)
        overlap, which = iou_matrix(boxes[0], objects).max(dim=1)
        logits, deltas = torch.zeros(len(which), 4), torch.zeros(len(which), 3, 4)
        rows = torch.arange(len(which))
        logits[rows, labels[which]] = 14 * (overlap - 0.4)
        deltas[rows, labels[which] - 1] = encode(objects[which], boxes[0]) / 2
        return logits, deltas

    def segment(self, features, boxes, labels):
        """An ellipse in each box, less and less probable outwards."""
        along = (torch.arange(28) + 0.5) / 14 - 1
        probabilities = (8 - 8 * (along**2 + along[:, None] ** 2)).sigmoid()
        return [probabilities.expand(len(b), 28, 28) for b in boxes]


def seen(features: Maps) -> tuple[Tensor, Tensor]:
    """Labels and boxes (network frame) that the model takes for objects."""
    labels, boxes = zip(*SEEN[int(features[0][0, 0, 0, 0])], strict=True)
    return torch.tensor(labels), torch.tensor(boxes) * ZOOM
