import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torchvision.ops import FrozenBatchNorm2d

from lib.backbone import build_backbone
from lib.fast import Pointwise, Winograd, fold_batchnorm, for_inference


def shake(module: nn.Module) -> nn.Module:
    """BatchNorms with statistics and scales of their own."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            for name, low in (("running_mean", -1), ("running_var", 0.5), ("weight", 0.5), ("bias", -1)):
                getattr(norm, name).data.uniform_(low, 1.5)
    return module.eval()


@torch.no_grad()
def test_the_fast_model_gives_the_same(tiny_model):
    model = shake(tiny_model())
    before = copy.deepcopy(model.state_dict())
    fast, x = for_inference(model.train()), torch.randn(2, 3, 96, 128)
    assert model.training and not fast.training
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    model.eval()
    for a, b in zip(fast.features(x), features := model.features(x), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)
    for a, b in zip(fast.rpn(features), model.rpn(features), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)
    boxes = [torch.tensor([[5.0, 5, 50, 50], [9, 9, 40, 40]]), torch.tensor([[3.0, 3, 90, 90]])]
    for a, b in zip(fast.classify(features, boxes), model.classify(features, boxes), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@torch.no_grad()
def test_any_backbone(name, config):
    backbone = shake(build_backbone(config.replace(backbone=name, fpn_channels=128)))
    folded, x = fold_batchnorm(backbone, torch.randn(1, 3, 64, 64)), torch.randn(1, 3, 64, 96)
    assert not any(isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d) for m in folded.modules())
    for a, b in zip(folded(x).values(), backbone(x).values(), strict=True):
        assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


class TwoReaders(nn.Module):
    """The convolution's output goes elsewhere too: its BatchNorm cannot move."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return [x, self.norm(x)]


def test_what_cannot_be_folded_stays():
    module = shake(TwoReaders())
    assert fold_batchnorm(module, torch.randn(1, 3, 8, 8)) is module


@pytest.mark.parametrize("without", ["affine", "track_running_stats"])
def test_a_batchnorm_without_weights_or_statistics_stays(without):
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, **{without: False}), nn.Flatten(0, 1)).eval()
    assert isinstance(fold_batchnorm(module, torch.randn(1, 3, 8, 8))[1], nn.BatchNorm2d)


@pytest.mark.parametrize("size", [(8, 12), (14, 14), (5, 3), (1, 1), (33, 70)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_winograd_is_the_convolution(size, bias):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(6, 5, 3, padding=1, bias=bias), torch.randn(9, 6, *size)
    assert_close(Winograd(conv)(x), conv(x), rtol=1e-4, atol=1e-4)
    assert Winograd(conv)(x[:0]).shape == (0, 5, *size)


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_pointwise_is_the_convolution(stride):
    conv, x = nn.Conv2d(6, 5, 1, stride), torch.randn(2, 6, 7, 9)
    assert_close(Pointwise(conv)(x), F.conv2d(x, conv.weight, conv.bias, stride))
