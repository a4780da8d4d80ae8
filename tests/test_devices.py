"""Training and inference with all tensors on another device: none is made on the CPU beside them by mistake.

And how often the program waits for that device; what a GPU computes in, and who reads ahead of it.
"""

import warnings

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import send_to_device
from elsewhere import ELSEWHERE, Device, Elsewhere

from lib.config import STAGES
from lib.data.batches import collate, prepare
from lib.data.reader import CourseDataset
from lib.machine.device import autocast
from lib.scores.evaluate import evaluate_model
from lib.training.run import Run
from lib.training.stages import STAGE_CLASSES, Learner

WAITS = {"rpn": 16, "boxhead": 12, "maskhead": 14, "joint": 33}  # of a step's forward pass, four images


def inside(values: dict) -> dict:
    return {k: v.inner if isinstance(v, Elsewhere) else v for k, v in values.items()}


def test_what_lies_elsewhere_mixes_with_nothing_here():
    with Device() as device:
        x = torch.arange(3.0, device=ELSEWHERE)
        for mixed in (
            lambda: x + torch.ones(3),
            lambda: x[torch.tensor([0, 1])],
            lambda: torch.cat([x, torch.ones(1)]),
        ):
            with pytest.raises(RuntimeError, match="mixes tensors of the two devices"):
                mixed()
        assert (x * torch.tensor(2.0)).tolist() == [0, 2, 4]
        assert x[x > 1].shape == (1,)
        assert device.waits.total() == 2  # the numbers that came here, and how many they are that are above 1


@pytest.fixture
def batch(scenes):
    data = CourseDataset(scenes)
    return collate([data[i] for i in range(4)])


def step(model, name: str, images, targets) -> dict:
    """The losses of a training step, and the gradients that they leave."""
    learner = Learner(STAGE_CLASSES[name](model)).train()
    torch.manual_seed(0)
    losses = learner(*prepare(images, targets, model.config.image))
    sum(losses.values()).backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in losses.items()} | gradients


PRINTED = {"rpn.cross_boundary": "remove", "rpn.negatives": "uniform", "boxhead.cross_boundary": "remove"}


@pytest.mark.parametrize("changes", [{}, PRINTED, {"boxhead.adds_truth": True}], ids=["demo", "as printed", "truth"])
@pytest.mark.parametrize("name", STAGES)
def test_a_step_of_training_stays_on_the_device(tiny_model, batch, name, changes):
    """Labels, samples and losses are made there, with the numbers of the CPU; and it is seldom waited for."""
    expected = step(tiny_model(**changes), name, *batch)
    with Device() as device:
        model = tiny_model(**changes).to(ELSEWHERE)
        images, targets = send_to_device(batch, ELSEWHERE)
        model.anchors(model.features(images.float()[..., :96, :128]))  # kept from the first step on
        device.waits.clear()
        got = step(model, name, images, targets)
    assert all(isinstance(v, Elsewhere) for v in got.values())
    torch.testing.assert_close(inside(got), expected)
    if not changes:
        assert device.waits.total() == WAITS[name], device.waits


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_inference_stays_on_the_device(tiny_model, batch, stage, threshold):
    limits = {"rpn.test.post_nms": 20, "boxhead.test.post_nms": 5}
    expected = tiny_model(**limits)(batch[0], stage, threshold)
    with Device():
        got = tiny_model(**limits).to(ELSEWHERE)(batch[0].to(ELSEWHERE), stage, threshold)
    for one, other in zip(got, expected, strict=True):
        assert all(isinstance(v, Elsewhere) for v in one.values())
        torch.testing.assert_close(inside(one), other)


@pytest.mark.parametrize(
    "device, wanted, asked",
    [("cuda", "fp16", (torch.float16, True)), ("cuda", "no", (None, False)), ("cpu", "bf16", (torch.bfloat16, True))],
)
def test_each_kind_of_precision_has_its_context(monkeypatch, device, wanted, asked):
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype, enabled: (dtype, enabled))
    assert autocast(torch.device(device), wanted) == asked


def test_processes_that_read_ahead_leave_the_scores(tiny_model, scenes):
    model, data = tiny_model(**{"rpn.test.post_nms": 20, "boxhead.test.post_nms": 5}), CourseDataset(scenes)
    alone = evaluate_model(model, data)
    data.workers = 2
    assert evaluate_model(model, data) == alone and alone["images"] == 12


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_step_that_fp16_skips_changes_nothing_and_warns_of_nothing(tiny_model, scenes, config, tmp_path):
    """Its gradients overflow: the scale is halved. No scheduler counts the steps, so none counts this one."""
    train, val = (CourseDataset(scenes, split, config.data, with_masks=False) for split in ("train", "val"))
    loud = config.replace(**{"rpn.box_weight": 1e6})
    run = Run("rpn", loud, train, val, tmp_path, lambda: tiny_model(**{"rpn.box_weight": 1e6}))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)  # a loss of a thousand is beyond float32
    run.accelerator.unscale_gradients = lambda optimizer=None: scaler.unscale_(run.optimizer)
    run.accelerator.scaler, run.wrapped = scaler, AcceleratedOptimizer(run.optimizer, scaler=scaler)
    before = run.model.rpn.conv.weight.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.learner.train()
        run._step(0, *collate([train[0], train[1]]))
    assert torch.equal(run.model.rpn.conv.weight, before) and scaler.get_scale() == 2.0**119
