import math

import pytest
import torch
from torch.testing import assert_close

from lib.config import PROFILES, STAGES
from lib.data.batches import collate, prepare
from lib.training.stages import STAGE_CLASSES, Learner

LEARNS = {
    "rpn": {"rpn"},
    "boxhead": {"box_head"},
    "maskhead": {"mask_head"},
    "joint": {"backbone", "rpn", "box_head", "mask_head"},
}
PARTS = ("backbone", "rpn", "box_head", "mask_head")


def picture(*objects):
    """An image and target, drawn here so that what can be learnt stays the same.

    It is an ellipse for each (x1, y1, x2, y2, label), in the colour of its class on a dark ground.
    """
    y, x = torch.meshgrid(torch.arange(300) + 0.5, torch.arange(400) + 0.5, indexing="ij")
    image, masks = torch.full((3, 300, 400), 60, dtype=torch.uint8), []
    for x1, y1, x2, y2, label in objects:
        inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1
        image[label - 1, inside] = 200
        masks.append(inside.to(torch.uint8))
    boxes, labels = torch.tensor([o[:4] for o in objects]).float(), torch.tensor([o[4] for o in objects])
    return image, {"boxes": boxes, "labels": labels, "masks": torch.stack(masks)}


@pytest.fixture
def batch():
    return collate([picture((100, 90, 290, 210, 1)), picture((40, 60, 120, 240, 2), (180, 120, 340, 250, 3))])


def learner_of(name: str, model):
    """The stage's learner, and a function from a batch of images to its losses, mirroring nothing."""
    learner = Learner(STAGE_CLASSES[name](model))
    return learner, lambda images, targets: learner(*prepare(images, targets, model.config.image))


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
def test_what_learns_and_what_stays(tiny_model, batch, name, rpn_trains, training_seed):
    model = tiny_model(
        training_seed,
        **{"rpn.trains": rpn_trains, "backbone.batchnorm": "trained"},
    )
    stage, losses = learner_of(name, model)
    learns = LEARNS[name] | ({"backbone"} if name == "rpn" and rpn_trains == "all" else set())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stage.train()
    assert {part for part in PARTS if getattr(model, part).training} == learns
    optimizer = torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], 0.1)
    sum(losses(*batch).values()).backward()
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
    model = tiny_model(**{"backbone.batchnorm": trunk, "rpn.trains": "all"})
    before = running_statistics(model)
    stage, losses = learner_of(name, model)
    stage.train()
    losses(*batch)
    after = running_statistics(model)
    assert {k.partition(".")[0] for k in after if not torch.equal(after[k], before[k])} == moves
    norms = [p for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()]
    assert all(p.requires_grad == (trunk == "trained" and name in ("rpn", "joint")) for p in norms)


@pytest.mark.parametrize("name", STAGES)
def test_images_without_objects_give_finite_losses(tiny_model, name):
    stage, losses = learner_of(name, tiny_model())
    stage.train()
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.long),
        "masks": torch.zeros(0, 300, 400, dtype=torch.uint8),
    }
    losses = losses(torch.randint(0, 256, (2, 3, 300, 400), dtype=torch.uint8), [empty, empty])
    sum(losses.values()).backward()
    zero = {"rpn_box", "box_regression", "mask"} & set(losses)
    assert zero and all(losses[k] == 0 for k in zero) and all(torch.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in stage.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["boxhead", "maskhead", "joint"])
def test_no_proposals_give_a_differentiable_zero(tiny_model, batch, name):
    model = tiny_model()
    oracle_rpn(model, [torch.zeros(0, 4)] * 2)
    stage, losses = learner_of(name, model)
    stage.train()
    losses = losses(*batch)
    sum(losses.values()).backward()
    assert all(v == 0 for k, v in losses.items() if not k.startswith("rpn"))
    assert all(torch.isfinite(p.grad).all() for p in stage.parameters() if p.grad is not None)


def test_samples_are_a_seam(tiny_model, batch, config):
    """What a stage samples carries no graph where everything before the head is frozen, and `loss` needs no more."""
    x, targets, content = prepare(*batch, config.image)
    for name in ("boxhead", "maskhead"):
        model = tiny_model()
        oracle_rpn(model, [near(t["boxes"]) for t in targets])
        stage = STAGE_CLASSES[name](model)
        Learner(stage).train()
        samples = stage.sample(model.features(x), targets, content)
        assert len(samples["labels"]) > 0 and not any(v.requires_grad for v in samples.values())
        model.backbone = model.rpn = None
        assert all(v.requires_grad for v in stage.loss(samples).values())


def settle(model, x: torch.Tensor) -> None:
    """Give the backbone's BatchNorms the statistics of x, as training would.

    With fresh ones deep maps hardly vary, and a head on a frozen backbone has little to learn from.
    """
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.backbone.train()
    with torch.no_grad():
        model.features(x)
    model.eval()


def learn(model, losses_of, batch, steps: int) -> list[dict[str, float]]:
    """Losses of each step on one batch and two minibatches in turn.

    The learning rate ends in zero, and so the last losses are where the training arrived, not a swing around it. The
    backbone learns slowly, as in fine-tuning: a head cannot learn by heart maps that the other heads keep changing.
    """
    rates = {part: 1e-4 if part == "backbone" else 3e-3 for part in PARTS}
    parameters = [{"params": list(getattr(model, part).parameters()), "lr": lr} for part, lr in rates.items()]
    optimizer = torch.optim.Adam(parameters)  # what is frozen has no gradient and stays
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, 3 * (1 - step / steps)))
    history = []
    for step in range(steps):
        torch.manual_seed(step % 2)
        losses = losses_of(*batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        schedule.step()
        history.append({k: v.item() for k, v in losses.items()})
    return history


@pytest.mark.parametrize("name", STAGES)
def test_one_image_is_learnt_by_heart(tiny_model, batch, config, name, training_seed):
    """Every loss falls to almost nothing on a single image, through each stage alone.

    The mask head is twice as wide as elsewhere in the tests: of 16 channels too few survive some of the starts.
    """
    one = batch[0][:1], batch[1][:1]
    everything = {"rpn.trains": "all", "joint.trains": "all", "maskhead.hidden": 32}
    model = tiny_model(training_seed, **everything)
    x, scaled, _ = prepare(*one, config.image)
    settle(model, x)
    oracle_rpn(model, [near(scaled[0]["boxes"])])
    stage, losses = learner_of(name, model)
    stage.train()
    history = learn(model, losses, one, 200)
    first, last = history[0], {k: sum(row[k] for row in history[-10:]) / 10 for k in history[0]}
    to_limit = {k: last[k] / (0.15 * first[k]) for k in first}
    print("share of the limit:", name, training_seed, {k: round(v, 3) for k, v in to_limit.items()})
    assert max(to_limit.values()) < 1, (first, last)


def test_making_a_stage_leaves_the_model_alone(tiny_model):
    model = tiny_model()
    for name in STAGES:
        STAGE_CLASSES[name](model)
    assert all(p.requires_grad for p in model.parameters()) and not model.training


def test_the_joint_stage_is_the_three(tiny_model, batch):
    """Its samples are those of each stage, drawn from the same features, and its losses are theirs on these samples."""
    model = tiny_model()
    x, targets, content = prepare(*batch, model.config.image)
    features, joint = model.features(x), STAGE_CLASSES["joint"](model)
    torch.manual_seed(5)
    samples = joint.sample(features, targets, content)
    torch.manual_seed(5)
    for name in ("rpn", "boxhead"):
        alone = STAGE_CLASSES[name](model).sample(features, targets, content)
        assert_close({k: samples[f"{name}.{k}"] for k in alone}, alone)
    losses = joint.loss(samples)
    assert list(losses) == ["rpn_objectness", "rpn_box", "box_class", "box_regression", "mask"]


def test_weights_of_the_losses(tiny_model, batch):
    weights = {"rpn.box_weight": 2.0, "boxhead.loss_weight": 3.0, "maskhead.loss_weight": 4.0}
    losses = []
    for factors in (dict.fromkeys(weights, 1.0), weights):
        model = tiny_model(**factors)
        x, targets, content = prepare(*batch, model.config.image)
        oracle_rpn(model, [near(t["boxes"]) for t in targets])
        torch.manual_seed(0)
        stage = STAGE_CLASSES["joint"](model)
        losses.append(stage.loss(stage.sample(model.features(x), targets, content)))
    ones, weighted = losses
    assert all(v > 0 for v in ones.values())
    assert_close([float(weighted[k] / ones[k]) for k in ones], [1.0, 2.0, 1.0, 3.0, 4.0])
    assert math.isclose(PROFILES["course"].rpn.box_weight, 1.0)  # §4.5: equal weights
