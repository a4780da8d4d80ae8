import json

import numpy as np
import pytest
import torch

from lib.__main__ import main
from lib.config import STAGES
from lib.data.reader import CourseDataset
from lib.data.writer import CourseWriter
from lib.scores import coco_ap
from lib.scores.coco_ap import (
    average_precision,
    coco_evaluation,
    course_map,
    ground_truth,
    precision_recall,
    proposal_recall,
)
from lib.scores.evaluate import evaluate_model
from lib.scores.results import box_results, code_results, encode_masks
from lib.training.checkpoint import save_stage

PERFECT = {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}
ELSEWHERE = torch.tensor([[350.0, 250, 399, 299]])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three images with one object of each class, 100 x 100 pixels."""
    folder = tmp_path_factory.mktemp("three")
    with CourseWriter(folder) as writer:
        for i in range(3):
            mask = np.zeros((1, 300, 400), np.uint8)
            mask[0, 50:150, 60 + i : 160 + i] = 1
            writer.add(np.zeros((3, 300, 400), np.uint8), [i + 1], np.array([[60 + i, 50, 160 + i, 150]]), mask)
    return CourseDataset(folder)


def found(dataset, image: int, score: float, shift: float = 0, label: int | None = None) -> list[dict]:
    """A detection of the image's object, shifted to the right by `shift` pixels: IoU (100 - shift) / (100 + shift)."""
    target = dataset[image][1]
    boxes = target["boxes"] + shift * torch.tensor([1, 0, 1, 0])
    labels = target["labels"] if label is None else torch.tensor([label])
    return box_results(image, boxes, labels, torch.tensor([score]))


def rounded(scores):
    """The nested scores to twelve digits: pycocotools adds an epsilon to its denominators."""
    if isinstance(scores, dict):
        return {k: rounded(v) for k, v in scores.items()}
    return round(scores, 12) if isinstance(scores, float) else scores


def scores(dataset, results: list[dict]) -> tuple[dict, float]:
    evaluation = coco_evaluation(ground_truth(dataset), results, "bbox")
    return rounded(average_precision(evaluation)), course_map(evaluation)


def test_perfect_detections_score_1(dataset):
    names = ("vehicle", "person", "animal")
    for kind in ("bbox", "segm"):
        results = []
        for image, target in ((i, dataset[i][1]) for i in range(3)):
            make = box_results if kind == "bbox" else code_results
            what = target["boxes"] if kind == "bbox" else encode_masks(target["masks"])
            results += make(image, what, target["labels"], torch.tensor([0.5]))
        evaluation = coco_evaluation(ground_truth(dataset), results, kind)
        per_class = {name: {"AP": 1.0, "AP50": 1.0} for name in names}
        assert rounded(average_precision(evaluation)) == {**PERFECT, "per_class": per_class}
        assert course_map(evaluation) == 1


def test_nothing_found_scores_0(dataset):
    ap, course = scores(dataset, [])
    assert ap["AP"] == ap["AP50"] == course == 0 and ap["per_class"]["person"] == {"AP": 0, "AP50": 0}
    assert proposal_recall(ground_truth(dataset), []) == {"AR@100": 0, "AR@1000": 0}


def test_iou_thresholds_by_hand(dataset):
    """Shifted by 20: IoU 80/120 = 0.667, right at .50 .55 .60 .65 of the ten thresholds, so AP 0.4."""
    ap, course = scores(dataset, [row for i in range(3) for row in found(dataset, i, 0.9, 20)])
    assert ap["AP"] == pytest.approx(0.4) and ap["AP50"] == 1 and ap["AP75"] == 0 and course == 1


@pytest.mark.parametrize(
    "extra, area",
    [
        # precision over recall of class 1 goes (recall 0, precision 1) and then, by falling score:
        ([(0.8, 0, 1)], 1),  # right (1, 1), duplicate (1, 1/2): it comes too late to cost area
        ([(0.95, 60, 1)], 0.25),  # wrong (0, 0), right (1, 1/2): the trapezoid from 0 to 1/2
        ([(0.95, 60, 1), (0.94, 60, 1)], 1 / 6),  # wrong (0, 0) twice, right (1, 1/3)
        ([(0.95, 60, 2)], 1),  # a wrong detection of another class
    ],
)
def test_the_courses_map_by_hand(dataset, extra, area):
    rows = found(dataset, 0, 0.9)
    for score, shift, label in extra:
        rows += found(dataset, 0, score, shift, label)
    ap, _ = scores(dataset, rows)
    evaluation = coco_evaluation(ground_truth(dataset), rows, "bbox")
    recall, precision = precision_recall(evaluation)[0]
    assert np.trapezoid(precision, recall) == pytest.approx(area)
    assert course_map(evaluation) == pytest.approx(area / 3)  # the other two classes are never found


def test_a_duplicate_is_wrong_and_lowers_the_courses_map(tmp_path):
    """Two objects of a class: right (1/2, 1), duplicate (1/2, 1/2), right (1, 2/3): 1/2 + (1/2 + 2/3) / 4 = 19/24."""
    with CourseWriter(tmp_path) as writer:
        mask = np.zeros((1, 300, 400), np.uint8)
        mask[0, 50:150, 60:160] = 1
        for _ in range(2):
            writer.add(np.zeros((3, 300, 400), np.uint8), [2], np.array([[60, 50, 160, 150]]), mask)
    dataset = CourseDataset(tmp_path)
    right = found(dataset, 0, 0.9) + found(dataset, 1, 0.7)
    assert scores(dataset, right)[1] == 1  # and the classes without objects do not count
    duplicated = right + found(dataset, 0, 0.8, 10)
    assert scores(dataset, duplicated)[1] == pytest.approx(19 / 24)
    assert scores(dataset, duplicated)[0]["per_class"]["animal"] == {"AP": None, "AP50": None}


def test_proposal_recall_by_hand(dataset):
    """Perfect proposals at rank 1, at rank 101 (not among the best 100), and none for the third image."""
    rows = found(dataset, 0, 0.9, label=1) + found(dataset, 1, 0.1, label=1)
    for score in np.linspace(0.2, 0.8, 100):
        rows += box_results(1, ELSEWHERE, torch.ones(1, dtype=torch.long), torch.tensor([score]))
    recall = proposal_recall(ground_truth(dataset), rows)
    assert recall == {"AR@100": pytest.approx(1 / 3), "AR@1000": pytest.approx(2 / 3)}
    perfect = [row for i in range(3) for row in found(dataset, i, 0.5, label=1)]
    assert proposal_recall(ground_truth(dataset), perfect) == {"AR@100": 1, "AR@1000": 1}  # whatever the class


class Seer(torch.nn.Module):
    """A stand-in for the model that knows the data set: what it says is the truth, or nothing."""

    def __init__(self, dataset, config, sees: bool):
        super().__init__()
        self.dataset, self.config, self.sees, self.next = dataset, config, sees, 0
        self.parameter = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images, stage):
        found = []
        for _ in images:
            target = {k: v[: len(v) * self.sees] for k, v in self.dataset[self.next][1].items() if k != "image_id"}
            ones, self.next = torch.ones(len(target["boxes"])), self.next + 1
            whole = {**target, "scores": ones} if stage != "rpn" else {}
            if stage == "boxhead":
                whole.pop("masks")
            found.append({**whole, "proposals": target["boxes"], "proposal_scores": ones})
        return found


@pytest.mark.parametrize("sees, score", [(True, 1.0), (False, 0.0)])
def test_layout_and_values_of_the_scores(scenes, config, sees, score):
    dataset = CourseDataset(scenes)
    part = {"AP": score, "AP50": score, "AP75": score}
    part["per_class"] = {name: {"AP": score, "AP50": score} for name in ("vehicle", "person", "animal")}
    course = {"box_mAP": score, "mask_mAP": score}
    rpn = {"AR@100": score, "AR@1000": score}
    got = rounded(evaluate_model(Seer(dataset, config, sees), dataset))
    assert got == {"images": 12, "rpn": rpn, "box": part, "mask": part, "course": course}
    for stage, keys in (("rpn", set()), ("boxhead", {"box", "course"}), ("maskhead", {"box", "mask", "course"})):
        assert set(evaluate_model(Seer(dataset, config, sees), dataset, stage)) == {"images", "rpn"} | keys


def test_the_command_writes_metrics(scenes, tmp_path, tiny_model, monkeypatch, capsys):
    model = tiny_model(**{"rpn.test.post_nms": 20, "boxhead.test.post_nms": 5})
    for stage in STAGES:
        save_stage(model, tmp_path, stage, {})
    monkeypatch.setattr("lib.maskrcnn.build_backbone", lambda config: tiny_model().backbone)
    arguments = ["--data", str(scenes), "--weights", str(tmp_path), "--out", str(tmp_path / "new" / "metrics.json")]
    main(["evaluate", *arguments, "--split", "val"])
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert set(metrics) == {"split", "backbone", "images", "box", "mask", "rpn", "course"}
    assert metrics["split"] == "val" and metrics["images"] == 3
    for part in ("box", "mask"):
        assert list(metrics[part]) == ["AP", "AP50", "AP75", "per_class"]
        assert list(metrics[part]["per_class"]) == ["vehicle", "person", "animal"]
    assert list(metrics["rpn"]) == ["AR@100", "AR@1000"] and list(metrics["course"]) == ["box_mAP", "mask_mAP"]
    assert json.loads(capsys.readouterr().out) == metrics


def test_the_command_says_what_is_missing(scenes, tmp_path):
    with pytest.raises(SystemExit, match="error: no trained stage in"):
        main(["evaluate", "--data", str(scenes), "--weights", str(tmp_path)])


def test_without_sizes_the_scores_are_the_same(scenes):
    truth = coco_ap.ground_truth(CourseDataset(scenes))
    rows = [{**a, "score": 1 / a["id"]} for a in truth.dataset["annotations"] if a["id"] % 3]
    for kind in ("bbox", "segm"):
        both = [coco_ap.coco_evaluation(truth, rows, kind, sizes=sizes) for sizes in (True, False)]
        first, second = (coco_ap.average_precision(e) | {"course": coco_ap.course_map(e)} for e in both)
        assert first == second and 0 < first["AP"] < 1
