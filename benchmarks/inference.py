"""Inference beside torchvision's `MaskRCNN` with ResNet-50-FPN and the same weights: one picture in, codes out.

`python -m benchmarks.inference`: a picture of 300 x 400 goes in, the network sees 800 x 1088, and COCO's run-length
codes of the masks at 300 x 400 come out; float32. The weights are random, scaled so that the outputs are like a
trained model's: the RPN's boxes overlap little enough for 1000 to be left over on either side, and half of the
proposals are objects, of which both sides keep the best 100. Both counts are asserted. torchvision takes the best 1000
anchors of each level into its NMS, ours the best 4000 of all; torchvision's thresholds are its own.

Then each part alone, on the inputs that torchvision's part has, after an assertion that both give the same: RoIAlign as
the paper has it, where torchvision's model reads half a pixel off, and all but the proposals after NMS.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import FrozenBatchNorm2d, roi_align

from benchmarks.accuracy import torchvision_model
from benchmarks.timing import arguments, compare, save, table, threads
from lib import boxhead, maskhead
from lib.boxes import clip, decode
from lib.boxhead import stack_rois
from lib.config import Config
from lib.data.scenes import scene
from lib.machine.device import keep_memory
from lib.maskhead import class_masks, paste_masks
from lib.maskrcnn import COURSE_CLASSES, MaskRCNN
from lib.rpn import propose
from lib.scores.results import encode_masks

CONFIG = Config().replace(**{"backbone.weights": "none"})
SAME_PIXELS = 0.999  # of pasted masks; torchvision rounds the boxes to whole pixels first, ours does not
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # torchvision's box head learns deltas times these


def picture(seed: int = 0) -> Tensor:
    """A scene (3, 300, 400) uint8."""
    return torch.from_numpy(scene(np.random.default_rng(seed))[0].copy())


@torch.no_grad()
def models(image: Tensor, config: Config) -> tuple[MaskRCNN, TorchvisionMaskRCNN]:
    """Ours and torchvision's, on the CPU in eval mode, with the same weights."""
    torch.manual_seed(0)
    if config.backbone.name == "maskrcnn_resnet50_fpn":
        backbone = _resnet_fpn_extractor(resnet50(weights=None, norm_layer=FrozenBatchNorm2d), 3)
        sizes = {"min_size": config.image.height, "max_size": config.image.width}
        peer = TorchvisionMaskRCNN(backbone, len(COURSE_CLASSES) + 1, **sizes)
    else:
        peer = torchvision_model(config).cpu()
    peer.eval()
    peer.rpn._post_nms_top_n["testing"] = config.rpn.test.post_nms
    peer.roi_heads.detections_per_img = config.boxhead.test.post_nms
    calibrate(peer, image)
    ours = MaskRCNN(config, copy.deepcopy(peer.backbone)).eval()
    copy_heads(peer, ours)
    return ours, peer


def copy_heads(peer: TorchvisionMaskRCNN, ours: MaskRCNN) -> None:
    """Our heads get torchvision's weights; what only one of the two has is made to change nothing."""
    conv, head, roi = peer.rpn.head.conv[0][0], peer.rpn.head, peer.roi_heads
    norm = ours.rpn.norm
    nn.init.constant_(norm.weight, (1 + norm.eps) ** 0.5)  # with mean 0 and variance 1: the identity
    regressor = copy.deepcopy(roi.box_predictor.bbox_pred)
    for name in ("weight", "bias"):  # no deltas of the background; our deltas carry no weights
        values = getattr(regressor, name).data.unflatten(0, (-1, 4))[1:]
        scale = torch.tensor(BOX_WEIGHTS).view(4, *[1] * (values.dim() - 2))
        setattr(regressor, name, nn.Parameter((values / scale).flatten(0, 1)))
    last = copy.deepcopy(roi.mask_predictor.mask_fcn_logits)
    last.weight, last.bias = nn.Parameter(last.weight[1:]), nn.Parameter(last.bias[1:])
    layers = [m for m in roi.mask_head.modules() if isinstance(m, nn.Conv2d)]
    pairs = [(ours.rpn.conv, conv), (ours.rpn.objectness, head.cls_logits), (ours.rpn.regressor, head.bbox_pred)]
    fc6 = copy.deepcopy(roi.box_head.fc6)  # it reads the cells of one channel after the other, ours channels of cells
    fc6.weight = nn.Parameter(fc6.weight.unflatten(1, (ours.backbone.out_channels, -1)).transpose(1, 2).flatten(1))
    pairs += [(ours.box_head.mlp[0], fc6), (ours.box_head.mlp[2], roi.box_head.fc7)]
    pairs += [(ours.box_head.classifier, roi.box_predictor.cls_score), (ours.box_head.regressor, regressor)]
    pairs += zip(ours.mask_head.layers[:8:2], layers, strict=True)
    pairs += [(ours.mask_head.layers[8], roi.mask_predictor.conv5_mask), (ours.mask_head.layers[10], last)]
    for mine, theirs in pairs:
        mine.load_state_dict(theirs.state_dict())


def calibrate(peer: TorchvisionMaskRCNN, image: Tensor) -> None:
    """Give random weights outputs like a trained model's.

    Those are activations of size 1 through the trunk, proposals of all sizes, scores that differ, boxes that move a
    little, and masks with both values.
    """

    def standardise(norm, inputs):
        norm.running_var, norm.running_mean = torch.var_mean(inputs[0], (0, 2, 3))

    hooks = [
        m.register_forward_pre_hook(standardise)
        for m in peer.backbone.modules()
        if isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d)
    ]
    images, _ = peer.transform([image.float() / 255])
    features = peer.backbone(images.tensors)
    for hook in hooks:
        hook.remove()
    for level, (block, target) in enumerate(zip(peer.backbone.fpn.layer_blocks, (0.3, 0.6, 1.2, 2.4), strict=True)):
        scale(block[0], features[str(level)], target)
    features = peer.backbone(images.tensors)
    logits, deltas = peer.rpn.head(list(features.values()))
    scale(peer.rpn.head.cls_logits, torch.cat([v.flatten() for v in logits]), 1.5)
    scale(peer.rpn.head.bbox_pred, torch.cat([v.flatten() for v in deltas]), 0.15)
    boxes, _ = peer.rpn(images, features)
    roi = peer.roi_heads
    pooled = roi.box_roi_pool(features, boxes, images.image_sizes)
    logits, deltas = roi.box_predictor(roi.box_head(pooled))
    scale(roi.box_predictor.cls_score, logits - logits.mean(0), 3.0)
    scale(roi.box_predictor.bbox_pred, deltas, 1.0)
    logits, _ = roi.box_predictor(roi.box_head(pooled))
    lead = logits[:, 1:].max(1).values - logits[:, 0]
    roi.box_predictor.cls_score.bias[0] += lead.quantile(0.5)  # half of the proposals are objects
    pooled = roi.mask_roi_pool(features, [boxes[0][:100]], images.image_sizes)
    masks = roi.mask_predictor(roi.mask_head(pooled))
    scale(roi.mask_predictor.mask_fcn_logits, masks, 3.0)
    masks = roi.mask_predictor(roi.mask_head(pooled))
    roi.mask_predictor.mask_fcn_logits.bias -= masks.flatten().sort().values[int(0.3 * masks.numel())]  # 70 % object


def scale(layer: nn.Module, output: Tensor, target: float) -> None:
    """Make the layer's output `target` as large, measured by its standard deviation."""
    for parameter in layer.parameters():
        parameter *= target / output.std()


# ------------------------------------------------------------------------------------------------------- end to end


def run_ours(model: MaskRCNN, image: Tensor) -> list[dict]:
    """A picture (3, H, W) uint8 -> the run-length codes of its masks."""
    return encode_masks(model(image[None])[0]["masks"])


def run_torchvision(model: TorchvisionMaskRCNN, image: Tensor) -> list[dict]:
    return encode_masks((model([image.float() / 255])[0]["masks"][:, 0] >= 0.5).to(torch.uint8))


def check_counts(ours: MaskRCNN, peer: TorchvisionMaskRCNN, image: Tensor) -> None:
    """Both sides have as many proposals and detections as the config asks for."""
    counts, config = [], ours.config
    hook = peer.rpn.register_forward_hook(lambda module, inputs, outputs: counts.append(len(outputs[0][0])))
    counts.append(len(run_torchvision(peer, image)))
    hook.remove()
    found = ours(image[None])[0]
    counts += [len(found["proposals"]), len(found["boxes"])]
    assert counts == [config.rpn.test.post_nms, config.boxhead.test.post_nms] * 2, counts


@torch.no_grad()
def end_to_end(image: Tensor, config: Config, runs: int) -> list[dict]:
    """Ours against torchvision as it is, without and with the allocator as our commands set it, and with it on both."""
    model, peer = models(image, config)
    check_counts(model, peer, image)
    steps = {
        "the model as it is": (False, False),
        "with keep_memory, as commands have it": (True, False),
        "keep_memory on both sides": (True, True),
    }
    rows, ours = [], partial(run_ours, model, image)
    for name, (ours_keeps, peer_keeps) in steps.items():
        theirs = partial(run_torchvision, peer, image)
        before = (partial(settle, ours, ours_keeps), partial(settle, theirs, peer_keeps))
        keep_memory(ours_keeps)
        rows.append(compare(name, ours, theirs, runs, 1, before if ours_keeps != peer_keeps else (None, None)))
    keep_memory(False)
    return rows


def settle(work: Callable, keep: bool) -> None:
    """Set the allocator and run once: until then its state is the other side's."""
    keep_memory(keep)
    work()


# ------------------------------------------------------------------------------------------------------------ parts


@torch.no_grad()
def parts(image: Tensor, config: Config, runs: int) -> list[dict]:
    """Each part on the same inputs as torchvision's, asserted to agree but for the proposals and the half pixel."""
    ours, peer = models(image, config)
    roi, size = peer.roi_heads, tuple(image.shape[1:])
    images, _ = peer.transform([image.float() / 255])
    content, x = images.image_sizes[0], images.tensors
    maps = peer.backbone(x)
    features = list(maps.values())
    anchors = peer.rpn.anchor_generator(images, features)
    proposals, _ = peer.rpn(images, maps)
    counts = [3 * f.shape[2] * f.shape[3] for f in features]
    pooled = aligned(features, proposals[0], roi.box_roi_pool, boxhead.POOL_SIZE)
    logits, deltas = roi.box_predictor(roi.box_head(pooled))
    (boxes,), _, (labels,) = roi.postprocess_detections(logits, deltas, proposals, [content])
    rows, best = torch.arange(len(logits)), logits[:, 1:].max(1).indices
    mask_pooled = aligned(features, boxes, roi.mask_roi_pool, maskhead.POOL_SIZE)
    coarse = torch.randn(len(boxes), 1, 5, 5, generator=torch.Generator().manual_seed(0)) * 4 + 2
    masks = F.interpolate(coarse, (28, 28), mode="bicubic")[:, 0].sigmoid()  # to paste: outlines as a trained model's
    small = boxes * torch.tensor([size[1] / content[1], size[0] / content[0]] * 2)
    rpn_outputs = concat_box_prediction_layers(*peer.rpn.head(features))
    our_outputs = [v.view(1, -1, *v.shape[1:]) for v in (rpn_outputs[0][:, 0], rpn_outputs[1])]

    def their_proposals():
        decoded = peer.rpn.box_coder.decode(rpn_outputs[1], anchors).view(1, -1, 4)
        return peer.rpn.filter_proposals(decoded, rpn_outputs[0], [content], counts)[0]

    def our_boxes(pooled):
        return clip(decode(ours.box_head(pooled)[1][rows, best], proposals[0]), *content)

    def their_boxes(pooled):
        deltas = roi.box_predictor(roi.box_head(pooled))[1]
        return clip(roi.box_coder.decode(deltas, proposals)[rows, best + 1], *content)

    def their_masks():
        return roi.mask_predictor(roi.mask_head(mask_pooled)).sigmoid()[torch.arange(len(labels)), labels]

    def their_codes():
        return encode_masks((paste_masks_in_image(masks[:, None], small, size)[:, 0] >= 0.5).to(torch.uint8))

    channels_last = [v.contiguous(memory_format=torch.channels_last) for v in (x, pooled, mask_pooled)]
    last_maps = [f.contiguous(memory_format=torch.channels_last) for f in features]
    agreement = {
        "features": relative(ours.features(channels_last[0]), features),
        "RPN outputs": relative([v.squeeze(0) for v in ours.rpn(last_maps)], [rpn_outputs[0][:, 0], rpn_outputs[1]]),
        "pooled": relative([ours.pool(last_maps, *stack_rois(proposals), boxhead.POOL_SIZE)], [pooled]),
        "decoded anchors, px": worst(
            decode(rpn_outputs[1], anchors[0]), peer.rpn.box_coder.decode(rpn_outputs[1], anchors)[:, 0]
        ),
        "boxes, px": worst(our_boxes(channels_last[1]), their_boxes(pooled)),
        "mask probabilities": worst(class_masks(ours.mask_head(channels_last[2]), labels).sigmoid(), their_masks()),
        "mask pixels": same_pixels(encode_masks(paste_masks(masks, small, size)), their_codes()),
    }
    print("agreement:", {name: float(f"{value:.6g}") for name, value in agreement.items()})
    assert max(agreement["decoded anchors, px"], agreement["boxes, px"]) < 0.01
    assert max(agreement[name] for name in ("features", "RPN outputs", "pooled", "mask probabilities")) < 1e-3
    assert agreement["mask pixels"] >= SAME_PIXELS, agreement
    pairs = {
        "backbone": (lambda: ours.features(channels_last[0]), lambda: peer.backbone(x)),
        "RPN head": (lambda: ours.rpn(last_maps), lambda: concat_box_prediction_layers(*peer.rpn.head(features))),
        "proposals": (lambda: propose(*our_outputs, anchors[0], content, config.rpn, False), their_proposals),
        "RoIAlign, boxes": (
            lambda: ours.pool(last_maps, *stack_rois(proposals), boxhead.POOL_SIZE),
            lambda: roi.box_roi_pool(maps, proposals, [content]),
        ),
        "box head": (lambda: our_boxes(channels_last[1]), lambda: their_boxes(pooled)),
        "RoIAlign, masks": (
            lambda: ours.pool(last_maps, *stack_rois([boxes]), maskhead.POOL_SIZE),
            lambda: roi.mask_roi_pool(maps, [boxes], [content]),
        ),
        "mask head": (lambda: class_masks(ours.mask_head(channels_last[2]), labels).sigmoid(), their_masks),
        "paste and encode": (lambda: encode_masks(paste_masks(masks, small, size)), their_codes),
    }
    return [{**compare(name, *pair, runs), "agreement": agreement} for name, pair in pairs.items()]


def aligned(features: Sequence[Tensor], boxes: Tensor, pooler: nn.Module, size: int) -> Tensor:
    """torchvision's RoIAlign at the levels of its pooler, but aligned to half pixels as in the paper and in ours."""
    levels, out = pooler.map_levels([boxes]), boxes.new_zeros(len(boxes), features[0].shape[1], size, size)
    for level, (feature, scale) in enumerate(zip(features, pooler.scales, strict=False)):
        out[levels == level] = roi_align(feature, [boxes[levels == level]], size, scale, 2, aligned=True)
    return out


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def relative(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest value."""
    return max(worst(a, b) / float(b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def same_pixels(ours: list[dict], theirs: list[dict]) -> float:
    """The share of pixels with the same value, all masks together."""
    return float((rle.decode(ours) == rle.decode(theirs)).mean())


def main(argv: Sequence[str] | None = None, config: Config = CONFIG) -> None:
    args = arguments("inference", "Inference beside torchvision's MaskRCNN.", 7).parse_args(argv)
    rows = []
    for count in args.threads:
        with threads(count):
            for measure in (end_to_end, parts):
                new = measure(picture(), config, args.runs)
                print(table([{k: v for k, v in row.items() if k != "agreement"} for row in new]), flush=True)
                rows += new
    save(rows, args.out)


if __name__ == "__main__":
    main()
