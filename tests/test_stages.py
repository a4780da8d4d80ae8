import math

import pytest
import torch
from torch.testing import assert_close

from lib.config import PROFILES, STAGES
from lib.data import CourseDataset, collate, prepare
from lib.stages import STAGE_CLASSES, weighted

LEARNS = {
    "rpn": {"rpn"},
    "boxhead": {"box_head"},
    "maskhead": {"mask_head"},
    "joint": {"backbone", "rpn", "box_head", "mask_head"},
}
PARTS = ("backbone", "rpn", "box_head", "mask_head")


@pytest.fixture
def batch(scenes):
    dataset = CourseDataset(scenes)
    return collate([dataset[11], dataset[7]])  # their objects lie well inside


def oracle_rpn(model, targets_per_image):
    """Make the RPN propose the objects themselves, so that the heads have something to learn from at once."""
    boxes = iter(lambda: [{"boxes": b, "scores": torch.ones(len(b))} for b in targets_per_image], None)
    model.propose = lambda features, content, training=False: next(boxes)


def near(boxes: torch.Tensor, count: int = 6) -> torch.Tensor:
    """Boxes around the given ones, well inside the image."""
    noise = torch.randn(count, len(boxes), 4, generator=torch.Generator().manual_seed(0)) * 2
    limit = torch.tensor([124.0, 94, 124, 94])
    return (boxes + noise).flatten(0, 1).clamp(min=2).minimum(limit)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("rpn_trains", ["none", "all"])
def test_what_learns_and_what_stays(tiny_model, batch, name, rpn_trains):
    model = tiny_model(rpn_trains=rpn_trains, trunk_batchnorm="trained", flip_probability=0.0)
    stage = STAGE_CLASSES[name](model)
    learns = LEARNS[name] | ({"backbone"} if name == "rpn" and rpn_trains == "all" else set())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stage.train()
    assert {part for part in PARTS if getattr(model, part).training} == learns
    optimizer = torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], 0.1)
    sum(stage(*batch).values()).backward()
    optimizer.step()
    changed = {k.partition(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed <= learns and changed - {"mask_head"} == learns - {"mask_head"}
    assert all((p.grad is None) == (n.partition(".")[0] not in learns) for n, p in model.named_parameters())
    stage.eval()
    assert not any(module.training for module in model.modules())


def running_statistics(model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k}


@pytest.mark.parametrize(
    "name, trunk, moves",
    [
        ("rpn", "trained", {"rpn", "backbone"}),
        ("rpn", "frozen", {"rpn"}),
        ("boxhead", "trained", set()),
        ("maskhead", "trained", set()),
        ("joint", "trained", {"backbone"}),  # the RPN's stay: proposals need them as in inference
        ("joint", "frozen", set()),
    ],
)
def test_batchnorm_statistics_move_only_where_they_learn(tiny_model, batch, name, trunk, moves):
    model = tiny_model(trunk_batchnorm=trunk, rpn_trains="all")
    before = running_statistics(model)
    stage = STAGE_CLASSES[name](model).train()
    stage(*batch)
    after = running_statistics(model)
    assert {k.partition(".")[0] for k in after if not torch.equal(after[k], before[k])} == moves
    norms = [p for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()]
    assert all(p.requires_grad == (trunk == "trained" and name in ("rpn", "joint")) for p in norms)


@pytest.mark.parametrize("name", STAGES)
def test_images_without_objects_give_finite_losses(tiny_model, name):
    stage = STAGE_CLASSES[name](tiny_model()).train()
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.long),
        "masks": torch.zeros(0, 300, 400, dtype=torch.uint8),
    }
    losses = stage(torch.randint(0, 256, (2, 3, 300, 400), dtype=torch.uint8), [empty, empty])
    sum(losses.values()).backward()
    zero = {"rpn_box", "box_regression", "mask"} & set(losses)
    assert zero and all(losses[k] == 0 for k in zero) and all(torch.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in stage.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["boxhead", "maskhead", "joint"])
def test_no_proposals_give_a_differentiable_zero(tiny_model, batch, name):
    model = tiny_model()
    oracle_rpn(model, [torch.zeros(0, 4)] * 2)
    stage = STAGE_CLASSES[name](model).train()
    losses = stage(*batch)
    sum(losses.values()).backward()
    assert all(v == 0 for k, v in losses.items() if not k.startswith("rpn"))
    assert all(torch.isfinite(p.grad).all() for p in stage.parameters() if p.grad is not None)


def test_samples_are_a_seam(tiny_model, batch, config):
    """What a stage samples carries no graph where everything before the head is frozen, and `loss` needs no more."""
    x, targets, content = prepare(*batch, config)
    for name in ("boxhead", "maskhead"):
        model = tiny_model()
        oracle_rpn(model, [near(t["boxes"]) for t in targets])
        stage = STAGE_CLASSES[name](model).train()
        samples = stage.sample(model.features(x), targets, content)
        assert len(samples["labels"]) > 0 and not any(v.requires_grad for v in samples.values())
        model.backbone = model.rpn = None
        assert all(v.requires_grad for v in stage.loss(samples).values())


@pytest.mark.parametrize("name", STAGES)
def test_one_image_is_learnt_by_heart(tiny_model, batch, config, name):
    """Every loss falls to almost nothing on a single image, through each stage alone."""
    images, targets = batch[0][:1], batch[1][:1]
    model = tiny_model(flip_probability=0.0, rpn_trains="all", rpn_batch_samples=64, joint_trains="all")
    _, scaled, _ = prepare(images, targets, config)
    oracle_rpn(model, [near(scaled[0]["boxes"])])
    stage = STAGE_CLASSES[name](model).train()
    optimizer = torch.optim.Adam([p for p in stage.parameters() if p.requires_grad], 5e-3)
    history = []
    for step in range(100):
        torch.manual_seed(step % 2)
        losses = stage(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({k: v.item() for k, v in losses.items()})
    print(name, history[0], history[-1])
    assert all(history[0][k] > 0 for k in history[0])
    for k, v in history[-1].items():
        assert v < 0.15 * max(history[0][k], 0.5), (k, history[0], history[-1])


def test_weights_of_the_losses(config):
    ones = {k: torch.ones(()) for k in ("rpn_objectness", "rpn_box", "box_class", "box_regression", "mask")}
    got = weighted(ones, config.replace(rpn_box_weight=2.0, box_loss_weight=3.0, mask_loss_weight=4.0))
    assert_close(list(got.values()), [torch.tensor(v) for v in (1.0, 2.0, 1.0, 3.0, 4.0)])
    assert math.isclose(PROFILES["course"].rpn_box_weight, 1.0)  # §4.5: equal weights
