"""What became of detections and objects, by hand and against the rules of notebook 06."""

import pytest
import torch

from lib.boxes import iou_matrix
from lib.notebook.outcomes import judged, mask_ious, reached

OBJECTS, LABELS = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]), torch.tensor([1, 2])


def found(*rows) -> dict:
    """Rows of box, label and score."""
    boxes, labels, scores = zip(*rows, strict=True)
    return {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}


def test_every_kind_by_hand():
    outcome = judged(
        found(
            ((0.0, 0, 10, 10), 1, 0.9),
            ((0.0, 0, 10, 9), 1, 0.8),
            ((20.0, 0, 30, 9), 1, 0.7),
            ((20.0, 0, 30, 4), 2, 0.6),
            ((0.0, 50, 10, 60), 1, 0.5),
        ),
        OBJECTS,
        LABELS,
    )
    assert outcome.kinds == ["right", "duplicate", "wrong class", "badly placed", "nothing there"]
    assert outcome.objects == [0, 0, 1, 1, None] and outcome.overlaps == pytest.approx([1, 0.9, 0.9, 0.4, 0])
    assert outcome.missed == [1] and outcome.false == 4
    assert outcome.above(0.85).kinds == ["right"] and outcome.above(0.95).missed == [0, 1]


def of_notebook_06(found: dict) -> list[str]:
    taken, kinds = set(), []
    for row, label in zip(iou_matrix(found["boxes"], OBJECTS), found["labels"], strict=True):
        best = int(row.argmax())
        same = bool(LABELS[best] == label)
        if row[best] >= 0.5:
            kinds.append("wrong class" if not same else "duplicate" if best in taken else "right")
            taken |= {best} if same else set()
        else:
            kinds.append("badly placed" if (row >= 0.1).any() else "nothing there")
    return kinds


def test_kinds_are_those_of_notebook_06_at_every_score():
    torch.manual_seed(0)
    corners = torch.rand(300, 2) * torch.tensor([30.0, 6])
    boxes = torch.cat([corners, corners + 4 + torch.rand(300, 2) * 8], dim=1)
    many = {"boxes": boxes, "labels": torch.randint(1, 3, (300,)), "scores": torch.rand(300).sort(descending=True)[0]}
    outcome = judged(many, OBJECTS, LABELS)
    assert outcome.kinds == of_notebook_06(many) and len(set(outcome.kinds)) == 5
    for score in (0.3, 0.9, 0.99):
        above = {name: value[many["scores"] >= score] for name, value in many.items()}
        assert outcome.above(score) == judged(above, OBJECTS, LABELS)


def test_without_objects_or_detections():
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
    assert judged(nothing, OBJECTS, LABELS).missed == [0, 1] and reached(nothing["boxes"], OBJECTS) == 0
    outcome = judged(found(((0.0, 0, 10, 10), 1, 0.9)), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert outcome.kinds == ["nothing there"] and outcome.objects == [None] and outcome.missed == []
    assert reached(torch.ones(3, 4), torch.zeros(0, 4)) == 0


def test_reached_counts_objects():
    boxes = torch.tensor([[0.0, 0, 10, 6], [0, 0, 10, 10], [20, 0, 30, 4]])
    assert reached(boxes, OBJECTS) == 1


def test_mask_ious_by_hand():
    truth = torch.zeros(2, 4, 4, dtype=torch.uint8)
    truth[0, :2] = truth[1, 2:] = 1
    masks = torch.zeros(3, 4, 4, dtype=torch.uint8)
    masks[0, 0], masks[1, 2:] = 1, 1
    assert mask_ious(masks, [0, 1, None], truth) == [0.5, 1.0, 0.0]
    assert mask_ious(masks[2:], [0], truth) == [0.0]
