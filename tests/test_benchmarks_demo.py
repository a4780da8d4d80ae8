"""What the table of the demo's stages is made of."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from benchmarks import demo, precision
from benchmarks.demo import BARS, mask_ceiling, objectness_gaps, proposal_recalls, table
from lib.anchors import LEVELS
from lib.data.batches import collate, prepare
from lib.data.reader import CourseDataset
from lib.maskhead import mask_targets
from lib.matching import NEGATIVE, POSITIVE
from lib.rpn import rpn_targets


def test_means_deviations_and_bars():
    records = [{"scores": dict.fromkeys(BARS, value)} for value in (0.4, 0.6)]
    rows = table(records)
    assert [row["bar"] for row in rows] == [bar for _, bar in BARS.values()]
    assert rows[-1]["figure"] == "person's mask AP"
    assert all(row["mean"] == pytest.approx(0.5) and row["seeds"] == 2 for row in rows)
    assert rows[0]["deviation"] == pytest.approx(0.2 / 2**0.5) and table(records[:1])[0]["deviation"] is None


def test_objectness_gaps_are_those_of_the_targets(tiny_model, scenes, config):
    """Positives less negatives, level by level, anchor by anchor."""
    model, data = tiny_model(), CourseDataset(scenes)
    with torch.no_grad():
        model.rpn.objectness.weight.normal_(std=0.5)
    data.indices = data.indices[:3]
    x, targets, content = prepare(*collate([data[i] for i in range(3)]), config.image)
    with torch.no_grad():
        features = model.features(x)
        p = model.rpn(features)[0].sigmoid()
    anchors = model.anchors(features)
    labels = torch.stack([rpn_targets(anchors, t["boxes"], content, config.rpn)[0] for t in targets])
    level = torch.arange(5).repeat_interleave(torch.tensor([3 * f.shape[2] * f.shape[3] for f in features]))
    level, gaps = level.expand_as(labels), objectness_gaps(model, data)
    for k, name in enumerate(LEVELS):
        positive, negative = (p[(labels == kind) & (level == k)] for kind in (POSITIVE, NEGATIVE))
        assert (name in gaps) == bool(len(positive) and len(negative))
        if name in gaps:
            assert_close(gaps[name], float(positive.mean() - negative.mean()), rtol=1e-4, atol=1e-6)
    assert gaps


def test_recalls_and_the_ceiling_of_small_masks(tiny_model, scenes, monkeypatch):
    data = CourseDataset(scenes)
    recalls = proposal_recalls(tiny_model(), data)
    assert 0 <= recalls["AR@100"] <= recalls["AR at N"] <= 1
    assert 0.85 < mask_ceiling(data) < 1
    monkeypatch.setattr("benchmarks.demo.mask_targets", partial(mask_targets, size=6))
    assert 0 < mask_ceiling(data) < 0.9


def test_half_precision_of_the_backbone_alone(tiny_model, scenes):
    model = tiny_model()
    model.backbone.levels[0][0].weight.data[0] = 1 + 2**-20
    half = precision.rounded(model)
    assert (half.backbone.levels[0][0].weight[0] == 1).all() and (model.backbone.levels[0][0].weight[0] != 1).all()
    assert all(torch.equal(v, half.state_dict()[k]) for k, v in model.state_dict().items() if "backbone" not in k)


def test_both_ways_are_scored(tiny_model, scenes):
    data = CourseDataset(scenes)
    data.indices = data.indices[:2]
    scores = precision.differences(tiny_model(), data)
    assert list(scores) == ["as trained", "half"] and all(set(v) == {"box", "mask"} for v in scores.values())


def test_a_kept_run_with_another_config_is_refused(tmp_path, monkeypatch):
    made = {"scores": dict.fromkeys(BARS, 0.5), "seed": 0}
    monkeypatch.setattr(demo, "run_seed", lambda *_: dict(made))
    for name, value in (
        ("ensure_data", tmp_path),
        ("scored_scenes", tmp_path),
        ("CourseDataset", []),
        ("mask_ceiling", 1),
    ):
        monkeypatch.setattr(demo, name, lambda *_, value=value: value)
    monkeypatch.setenv("MASKRCNN_FIGURES", str(tmp_path))
    out = ["--out", str(tmp_path), "--seeds", "0"]
    demo.main(out)
    demo.main(out)
    with pytest.raises(SystemExit, match="demo_.*_0.json is a run with another config"):
        demo.main([*out, "--set", "rpn.epochs=3"])
