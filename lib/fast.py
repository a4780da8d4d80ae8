"""The same model, faster: a copy for inference with BatchNorm folded away and cheaper 3 x 3 convolutions.

    B  images    C  channels in    K  channels out    T  tiles of 4 x 4 outputs

Folding: behind a convolution, a BatchNorm in eval mode is a scale and a shift of its output, so it can move into the
convolution's weight and bias. Winograd: F(4 x 4, 3 x 3) of Lavin and Gray 2016 makes a 4 x 4 tile of outputs from a
6 x 6 tile of inputs with 36 multiplications in place of 144, after a linear map of the input tile, and before one of
the output tile. All three steps are matrix products here. The plain version of either is the model itself.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lib.maskrcnn import MaskRCNN

_MIN_CHANNELS = 128  # with fewer, moving tiles costs more than the multiplications saved
_TILES = 64  # tiles at a time: small enough for the processor's cache
_INPUT = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
_INPUT += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
_WEIGHT = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]  # / 24
_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
_BIAS_ROW = 7  # of the 36: the one that goes into each of the 16 outputs once


@torch.no_grad()
def for_inference(model: MaskRCNN) -> MaskRCNN:
    """A copy of the model in eval mode that gives the same detections in less time; the model itself stays as it is.

    On a CPU the 3 x 3 convolutions with many channels become `Winograd`, in float32 equal to about 1e-5.
    """
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    where = next(model.parameters()).device
    fast.backbone = fold_batchnorm(fast.backbone, torch.randn(1, 3, 64, 64, device=where))
    fast.rpn = fold_batchnorm(fast.rpn, [torch.randn(1, fast.backbone.out_channels, 4, 4, device=where)])
    for layer in (*fast.box_head.modules(), *fast.mask_head.modules()):
        if isinstance(layer, nn.ReLU):
            layer.inplace = True
    if where.type == "cpu":
        for parent in list(fast.modules()):
            for name, layer in parent.named_children():
                if (faster := _faster(layer)) is not None:
                    setattr(parent, name, faster)
    return fast.to(memory_format=torch.channels_last)


@torch.no_grad()
def fold_batchnorm(module: nn.Module, example) -> nn.Module:
    """A copy in which each BatchNorm behind a convolution has moved into it; `example` is an input.

    What is behind what shows in a forward pass, so that any backbone will do; where the folded copy does not give the
    same output (a convolution with a second reader, say), the module itself comes back.
    """
    folded, made_by, outputs, pairs = copy.deepcopy(module), {}, [], {}

    def remember(layer, inputs, output):
        if isinstance(layer, nn.Conv2d):
            made_by[id(output)] = layer
            outputs.append(output)  # alive, so that its id stays its own
        elif isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d) and id(inputs[0]) in made_by:
            if layer.weight is not None and layer.running_var is not None:
                pairs[layer] = made_by[id(inputs[0])]

    hooks = [layer.register_forward_hook(remember) for layer in folded.modules()]
    folded(example)
    for hook in hooks:
        hook.remove()
    for parent in list(folded.modules()):
        for name, norm in list(parent.named_children()):
            if norm in pairs:
                _fold(pairs[norm], norm)
                setattr(parent, name, nn.Identity())
    with torch.backends.cudnn.flags(enabled=False):  # it rounds to TF32: two roundings would differ too much
        same = zip(_tensors(folded(example)), _tensors(module(example)), strict=True)
    return folded if all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item()) for a, b in same) else module


def _tensors(output) -> list[Tensor]:
    return list(output.values() if isinstance(output, dict) else output)


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    """BatchNorm: y = (x - mean) / sqrt(var + eps) weight + bias, for x = conv(...)."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = (0 if conv.bias is None else conv.bias) - norm.running_mean
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
    conv.bias = nn.Parameter(norm.bias + bias * scale, requires_grad=False)


def _faster(layer: nn.Module) -> nn.Module | None:
    """What takes the layer's place on a CPU, if anything."""
    plain = {"dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
    if type(layer) is not nn.Conv2d or any(getattr(layer, name) != value for name, value in plain.items()):
        return None
    if (layer.kernel_size, layer.padding) == ((1, 1), (0, 0)):
        return Pointwise(layer)
    wide = min(layer.in_channels, layer.out_channels) >= _MIN_CHANNELS
    three = (layer.kernel_size, layer.padding, layer.stride) == ((3, 3), (1, 1), (1, 1))
    return Winograd(layer) if three and wide else None


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution without padding: with channels last, the matrix product that it is, without copies."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__(conv.in_channels, conv.out_channels, 1, conv.stride)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride[0], :: self.stride[1]].permute(0, 2, 3, 1)
        return F.linear(x.contiguous(), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Winograd(nn.Module):
    """A 3 x 3 convolution with stride 1 and padding 1, for inference: (B, C, H, W) -> (B, K, H, W), channels last."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        weight = torch.tensor(_WEIGHT).double() / 24
        weight = torch.kron(weight, weight) @ conv.weight.double().flatten(2).permute(2, 1, 0).flatten(1)
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        constants = {"input": _INPUT, "output": _OUTPUT}
        constants = {name: torch.kron(m, m) for name, m in ((k, torch.tensor(v).float()) for k, v in constants.items())}
        constants |= {"weight": weight.view(36, conv.in_channels, conv.out_channels).float(), "bias": bias}
        for name, value in constants.items():  # input (36, 36), output (16, 36), weight (36, C, K), bias (K,)
            self.register_buffer(name, value.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        count, _, height, width = x.shape
        rows, columns = -(-height // 4), -(-width // 4)
        padded = x.new_empty(count, 4 * rows + 2, 4 * columns + 2, x.shape[1])
        padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
        padded[:, 0] = padded[:, :, 0] = padded[:, height + 1 :] = padded[:, :, width + 1 :] = 0
        tiles = padded.unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3)  # (6, 6, B, rows, columns, C)
        out = x.new_empty(count, rows, 4, columns, 4, self.weight.shape[2])
        images, lines = max(1, _TILES // (rows * columns)), max(1, _TILES // columns)
        for b in range(0, count, images):
            for y in range(0, rows, lines):
                part = out[b : b + images, y : y + lines].permute(2, 4, 0, 1, 3, 5)  # (4, 4, B, rows, columns, K)
                part.copy_(self._outputs(tiles[:, :, b : b + images, y : y + lines]).view(part.shape))
        return out.view(count, 4 * rows, 4 * columns, out.shape[-1])[:, :height, :width].permute(0, 3, 1, 2)

    def _outputs(self, tiles: Tensor) -> Tensor:
        """(6, 6, ..., C) -> (16, T K)."""
        mapped = (self.input @ tiles.reshape(36, -1)).view(36, -1, tiles.shape[-1])
        product = torch.bmm(mapped, self.weight)
        product[_BIAS_ROW] += self.bias
        return self.output @ product.flatten(1)
