"""The bookkeeping of the accuracy benchmarks; the trainings themselves take minutes and are nobody's test."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from torchvision.models.detection.rpn import RegionProposalNetwork

from benchmarks import ablation, accuracy
from lib.backbone import build_backbone
from lib.boxes import clip, decode
from lib.maskrcnn import COURSE_CLASSES
from lib.scores.coco_ap import _coco, categories


def code(x1: int, x2: int) -> dict:
    """A mask 10 pixels high from column x1 to x2, in a frame of 20 x 40."""
    mask = np.zeros((20, 40), np.uint8, order="F")
    mask[5:15, x1:x2] = 1
    return rle.encode(mask)


def row(image: int, label: int, x1: int, x2: int, score: float) -> tuple[dict, dict]:
    about = {"image_id": image, "category_id": label, "score": score}
    return {**about, "bbox": [x1, 5, x2 - x1, 10]}, {**about, "segmentation": code(x1, x2)}


def test_what_became_of_each_object():
    """Two objects 10 wide, one of them found.

    The first is found 8 wide (IoU 0.8) under a wrong name, the second only with a low score; one detection is beside
    everything, and so is one on the second image, which holds no object.
    """
    objects = [row(0, 1, 0, 10, 1.0), row(0, 2, 20, 30, 1.0)]
    annotations = [b | m | {"id": k, "area": 100.0, "iscrowd": 0} for k, (b, m) in enumerate(objects, 1)]
    images = [{"id": n, "height": 20, "width": 40} for n in (0, 1)]
    truth = _coco({"images": images, "annotations": annotations, "categories": categories(COURSE_CLASSES)})
    found = [row(0, 3, 0, 8, 0.9), row(0, 2, 20, 30, 0.1), row(0, 2, 32, 40, 0.5), row(1, 1, 0, 10, 0.4)]
    boxes, masks = zip(*found, strict=True)
    fates = accuracy.object_fates(truth, list(boxes), list(masks))
    expected = {"found": 0.5, "right class": 0.0, "box IoU": 0.8, "mask IoU": 0.8, "false an image": 1.0}
    assert fates == pytest.approx(expected)


def a_run(model: str, seed: int, ap: float, gpu: str | None = None) -> dict:
    kind = {"AP": ap, "AP50": ap, "AP75": ap, "resampled": [ap] * 500}
    objects = {"found": 1.0, "right class": 1.0, "box IoU": 1.0, "mask IoU": 1.0, "false an image": 0.0}
    scores = {"box": kind, "mask": kind, "rpn": {"AR@100": ap, "AR@1000": ap}, "objects": objects}
    about = {"setting": "scenes", "model": model, "seed": seed, "machine": {"gpu": gpu}}
    return about | {"scores": scores, "wall_s": 60.0, "cpu_s": 90.0}


def test_one_row_a_model_with_mean_and_deviation():
    ours, peer = accuracy.table([a_run("ours", 0, 0.2), a_run("ours", 1, 0.4), a_run("torchvision", 0, 0.1, "H200")])
    assert (ours["seeds"], ours["box AP"], ours["training, s"]) == (2, "0.300 ± 0.141", "90 of CPU")
    assert (peer["model"], peer["mask AP"], peer["training, s"]) == ("torchvision", "0.100", "60")


@pytest.mark.parametrize("numbers", [[], ["joint.changes=()"]])
def test_a_finished_run_is_kept_and_another_config_refused(tmp_path, numbers):
    config = accuracy.SETTINGS["scenes"].override(numbers)
    path = tmp_path / "accuracy_scenes_ours_0.json"
    path.write_text(json.dumps({**a_run("ours", 0, 0.2), "config": config.to_json()}))
    arguments = (path, "scenes", "ours")
    assert accuracy.kept_run(*arguments, config, (tmp_path, tmp_path))["seed"] == 0
    with pytest.raises(ValueError, match="another config"):
        accuracy.kept_run(*arguments, config.replace(**{"training.seed": 1}), (tmp_path, tmp_path))
    assert len(accuracy.finished_runs(tmp_path, "accuracy")) == 1


def test_a_run_whose_config_has_a_field_that_is_no_more_is_another(tmp_path):
    config, path = accuracy.SETTINGS["scenes"], tmp_path / "accuracy_scenes_ours_0.json"
    old = json.dumps({**json.loads(config.to_json()), "trunk_epochs": 20})
    path.write_text(json.dumps({**a_run("ours", 0, 0.2), "config": old}))
    with pytest.raises(ValueError, match="another config: move it away"):
        accuracy.kept_run(path, "scenes", "ours", config, (tmp_path, tmp_path))


def changed(config, other) -> dict:
    """The numbers of `config`, as a stage after it has them, that the other one has otherwise."""
    paths = [path for path, field in config.paths().items() if field.metadata]
    return {path: config.value(path) for path in paths if config.value(path) != other.value(path)}


@pytest.mark.parametrize("setting", accuracy.SETTINGS)
def test_each_row_of_the_ablation_changes_one_thing(setting):
    """All changes of the joint stage, and all printed numbers, are each left out in one row."""
    rows = ablation.rows_of(setting)
    recipe, same = rows.pop("all changes")
    assert recipe == same
    left_out, printed = {}, {}
    for name, (trained, scored) in rows.items():
        assert trained == (recipe if name == ablation.ONLY_SCORING else scored)
        if name.startswith("joint without "):
            assert not changed(scored, recipe)  # before the joint stage nothing is
            of_row = changed(scored.of_stage("joint"), recipe.of_stage("joint"))
            assert of_row and not of_row.keys() & left_out.keys()
            left_out |= of_row
        else:
            printed |= changed(scored, recipe)
    assert left_out == {path: recipe.value(path) for path, _ in recipe.joint.changes}
    sheet = {"rpn.cross_boundary": "remove", "boxhead.cross_boundary": "remove", "rpn.negatives": "uniform"}
    assert printed == sheet | ({} if setting == "scenes" else {"boxhead.train.nms_iou": 0.5})
    assert sum(trained != recipe for trained, _ in rows.values()) <= 5  # and the recipe itself
    assert len({ablation.slug(name) for name in rows}) == len(rows)


def test_a_difference_stands_beside_the_row_with_its_interval(tmp_path):
    runs = [a_run("ours", seed, ap) | {"row": "all changes"} for seed, ap in enumerate((0.2, 0.4))]
    runs += [a_run("without", 1, 0.5) | {"row": "without"}]
    for run in runs:
        for kind in ("box", "mask"):
            ap = run["scores"][kind]["AP"]
            run["scores"][kind] = {**run["scores"][kind], "resampled": [ap - 0.1, ap + 0.1] * 250}
    recipe, without = accuracy.table(runs, "row")
    assert recipe["box AP, difference"] == "" and without["mask AP, difference"] == "+0.100 (+0.100 to +0.100)"


def test_a_row_of_scoring_alone_is_scored_with_its_own_config(monkeypatch, tmp_path, tiny_model):
    """The recipe is trained, and the row's threshold is what detections are cut with."""
    recipe, scored = ablation.rows_of("scenes")[ablation.ONLY_SCORING]
    used = {}
    monkeypatch.setattr(accuracy, "train_ours", lambda config, *_: used.update(trained=config) or tiny_model())
    monkeypatch.setattr(accuracy, "CourseDataset", lambda *_, **__: [])
    monkeypatch.setattr(accuracy, "collect_results", lambda model, _: used.update(threshold=model.config))
    monkeypatch.setattr(accuracy, "scores", lambda *_: {})
    monkeypatch.setattr(accuracy, "recall_level_by_level", lambda *_: {})
    row = accuracy.run("scenes", "ours", scored, tmp_path, tmp_path, trained=recipe)
    assert used["trained"] == recipe and used["threshold"].boxhead.test.score_threshold == 0
    assert accuracy.Config.from_json(row["config"]) == scored


@torch.no_grad()
def test_proposals_level_by_level_are_what_torchvision_keeps(tiny_model):
    """On the same outputs: K cuts three levels, NMS at 0.3 leaves less than N."""
    model = tiny_model().eval()
    model.config = model.config.replace(**{"rpn.nms_iou": 0.3, "rpn.test.pre_nms": 100, "rpn.test.post_nms": 300})
    features, content = model.features(torch.randn(2, 3, 96, 128)), (96, 126)
    logits, deltas = model.rpn(features)
    boxes = clip(decode(deltas, model.anchors(features)), *content)
    sizes = [3 * f.shape[2] * f.shape[3] for f in features]
    limits = {"training": 0, "testing": 100}, {"training": 0, "testing": 300}
    peer = RegionProposalNetwork(nn.Identity(), nn.Identity(), 0.7, 0.3, 256, 0.5, *limits, nms_thresh=0.3).eval()
    expected, scores = peer.filter_proposals(boxes, logits.flatten(), [content] * 2, sizes)
    mine = accuracy.propose_level_by_level(model, features, content)
    assert_close([p["boxes"] for p in mine], expected)
    assert_close([p["scores"] for p in mine], scores)
    assert all(100 < len(p["boxes"]) < 300 for p in mine)


def test_torchvision_gets_the_same_trunk_weights_widths_and_anchors(tmp_path):
    config = accuracy.SETTINGS["scenes"].replace(**{"backbone.weights": str(tmp_path / "backbone.safetensors")})
    backbone = build_backbone(config.replace(**{"backbone.weights": "none"}).backbone)
    save_file(backbone.state_dict(), config.backbone.weights)
    model = accuracy.torchvision_model(config)
    assert all(torch.equal(v, model.backbone.state_dict()[k]) for k, v in backbone.state_dict().items())
    assert model.backbone.out_channels == config.backbone.channels and model.transform.min_size == (180,)
    assert model.roi_heads.box_head.fc6.out_features == config.boxhead.hidden
    assert model.rpn.anchor_generator.sizes == tuple((s,) for s in config.anchors.scales)
    assert model.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 4
    assert all(p.requires_grad for p in model.parameters() if isinstance(p, torch.nn.Parameter))
