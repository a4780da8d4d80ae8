"""torchvision's Mask R-CNN in our parts: part by part on the same inputs, then whole, trained a little."""

import io
import json
import socket
from collections import OrderedDict
from email.message import Message
from urllib.error import URLError
from urllib.response import addinfourl

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import MaskRCNN as TheirMaskRCNN
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from lib.__main__ import main
from lib.backbone import build_backbone
from lib.boxes import area, decode, iou_matrix
from lib.config import load_config
from lib.data.scenes import scene
from lib.maskrcnn import COURSE_CLASSES, MaskRCNN
from lib.preprocess import preprocess_images
from lib.training import torchvision_coco
from lib.training.torchvision_coco import CATEGORIES, CocoMaskRCNN, coco_maskrcnn

CAR, PERSON, DOG, TRUCK, PIZZA = (CATEGORIES.index(name) for name in ("car", "person", "dog", "truck", "pizza"))
STEPS = 32
FRAME = 480, 544  # a stride of P6 is 480 // 8 = 60 there, and 544 // 9 = 60


@pytest.fixture(scope="module")
def theirs():
    """torchvision's model with random weights, nothing in it trivial, for small pictures."""
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=96, max_size=160).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (("weight", 0.3, 0.7), ("bias", -0.1, 0.1), ("running_var", 0.5, 1.5)):
                nn.init.uniform_(getattr(module, values), low, high)
            nn.init.normal_(module.running_mean, std=0.1)
    heads = (model.rpn.head.bbox_pred, model.rpn.head.cls_logits, model.roi_heads.box_predictor.bbox_pred)
    for layer in (*heads, model.roi_heads.box_predictor.cls_score):
        layer.weight.data *= 10
        nn.init.normal_(layer.bias)
    return model


@pytest.fixture(scope="module")
def ours(theirs):
    return CocoMaskRCNN(theirs).eval()


@pytest.fixture(scope="module")
def maps():
    """The same maps for both, of two images of FRAME, P2 first."""
    torch.manual_seed(1)
    grids = [(-(-FRAME[0] // stride), -(-FRAME[1] // stride)) for stride in (4, 8, 16, 32, 64)]
    return OrderedDict((name, torch.randn(2, 256, *grid)) for name, grid in zip("0123p", grids, strict=True))


@pytest.fixture(scope="module")
def boxes():
    """Of each image 40, from slivers of a pixel to nearly all of it, a few across no more than a border."""
    corner = torch.rand(2, 40, 2, generator=torch.manual_seed(2)) * 200
    size = 10 ** (torch.rand(2, 40, 2) * 2.6) * torch.tensor([1.0, 0.9])
    both = torch.cat([corner, corner + size], dim=2).minimum(torch.tensor([FRAME[1], FRAME[0]] * 2))
    both[:, 0] = torch.tensor([3.0, 5, 3.5, 400])
    both[:, 1] = torch.tensor([0.0, 0, FRAME[1], FRAME[0]])
    return list(both)


@torch.no_grad()
def test_features(theirs, ours):
    images = torch.randint(256, (2, 3, 60, 100), dtype=torch.uint8, generator=torch.manual_seed(3))
    prepared, _ = theirs.transform(list(images / 255))
    config = ours.config.image.replaced({"height": 96, "width": 160})
    inputs = preprocess_images(images, config)
    torch.testing.assert_close(inputs, prepared.tensors, atol=1e-5, rtol=0)
    for f, their_f in zip(ours.features(inputs), theirs.backbone(prepared.tensors).values(), strict=True):
        torch.testing.assert_close(f, their_f, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rpn(theirs, ours, maps):
    their_logits, their_deltas = concat_box_prediction_layers(*theirs.rpn.head(list(maps.values())))
    anchors = theirs.rpn.anchor_generator(ImageList(torch.zeros(2, 3, *FRAME), [FRAME] * 2), list(maps.values()))
    their_boxes = theirs.rpn.box_coder.decode(their_deltas, anchors)[:, 0]

    features = list(maps.values())
    logits, deltas = ours.rpn(features)
    torch.testing.assert_close(logits.flatten(), their_logits.flatten(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(deltas.flatten(0, 1), their_deltas, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.anchors(features), anchors[0])
    decoded = decode(deltas, ours.anchors(features)).flatten(0, 1)
    sane = their_deltas[:, 2:].max(dim=1).values < 2  # of the others a float32 has not so many digits
    assert sane.float().mean() > 0.5 and their_logits.std() > 0.5 and their_deltas.std() > 0.5
    torch.testing.assert_close(decoded[sane], their_boxes[sane], atol=0.01, rtol=0)

    their_proposals, _ = theirs.rpn(ImageList(torch.zeros(2, 3, *FRAME), [FRAME] * 2), maps)
    for proposed, their_image in zip(ours.propose(features, FRAME), their_proposals, strict=True):
        assert len(proposed["boxes"]) == len(their_image) == 1000
        close = (proposed["boxes"] - their_image).abs().amax(dim=1) < 0.01
        assert close.float().mean() > 0.98  # rounding decides between boxes that overlap by just 0.7


@torch.no_grad()
def test_box_head(theirs, ours, maps, boxes):
    heads = theirs.roi_heads
    pooled = heads.box_head(heads.box_roi_pool(maps, boxes, [FRAME] * 2))
    their_logits, their_deltas = heads.box_predictor(pooled)
    their_boxes = heads.box_coder.decode(their_deltas, boxes)[:, 1:]  # without those of background

    logits, deltas = ours.classify(list(maps.values()), boxes)
    scores, their_scores = logits.softmax(dim=1), their_logits.softmax(dim=1)
    assert logits.shape == (80, 91) and deltas.shape == (80, 90, 4) and 0.05 < their_scores.max() < 0.99
    torch.testing.assert_close(scores, their_scores, atol=1e-4, rtol=0)
    assert deltas.std() > 0.05
    torch.testing.assert_close(decode(deltas, torch.cat(boxes)[:, None]), their_boxes, atol=0.01, rtol=0)


@torch.no_grad()
def test_mask_head(theirs, ours, maps, boxes):
    heads, labels = theirs.roi_heads, torch.arange(1, 81)
    logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, boxes, [FRAME] * 2)))
    their_masks = logits[torch.arange(80), labels].sigmoid()
    masks = ours.segment(list(maps.values()), boxes, labels.split(40))
    assert their_masks.std() > 0.1
    torch.testing.assert_close(torch.cat(masks), their_masks, atol=1e-4, rtol=0)


def test_detections_in_the_courses_classes(ours, monkeypatch):
    """A car and a truck in one place are one vehicle, a person there stays, pizza goes; the best come first."""
    box, far = [10.0, 10, 50, 50], [60.0, 60, 90, 90]
    found = {
        "boxes": torch.tensor([box, [11.0, 10, 50, 50], box, box, far]),
        "labels": torch.tensor([CAR, TRUCK, PIZZA, PERSON, DOG]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]),
        "masks": torch.arange(5)[:, None, None],
    }
    monkeypatch.setattr(MaskRCNN, "forward", lambda self, images, stage, *_: [dict(found)])
    (got,) = ours(torch.zeros(1, 3, 100, 100))
    assert got["labels"].tolist() == [1, 2, 3] and got["masks"].flatten().tolist() == [0, 3, 4]
    assert got["scores"].tolist() == pytest.approx([0.9, 0.6, 0.5]) and got["boxes"][2].tolist() == far
    assert ours(torch.zeros(1, 3, 100, 100), "rpn")[0].keys() == found.keys() and ours.config.classes == COURSE_CLASSES


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (300, 400), (77, 77), (40, 400), (500, 30), (480, 641)])
def test_the_frame_is_theirs_for_pictures_of_any_shape(theirs, ours, size, monkeypatch):
    monkeypatch.setattr(MaskRCNN, "forward", lambda *_: [])
    ours(torch.zeros(1, 3, *size))
    prepared, _ = theirs.transform([torch.zeros(3, *size)])
    image = ours.config.image
    for n, their_n in zip((image.height, image.width), prepared.image_sizes[0], strict=True):
        assert n == 32 > their_n or abs(n - their_n) <= 1  # theirs is rounded down
    assert image.padded_size == tuple(prepared.tensors.shape[2:])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_pictures_of_odd_shapes(ours, size):
    (found,) = ours(torch.zeros(1, 3, *size, dtype=torch.uint8))
    assert found["masks"].shape[1:] == size and set(found["labels"].tolist()) <= {1, 2, 3}


def no_network(*_, **__):
    assert socket.getdefaulttimeout() == torchvision_coco.TIMEOUT  # nobody waits for ever
    raise URLError("no network")


def wrong_file(*_, **__):
    return addinfourl(io.BytesIO(b"a page that says sign in"), Message(), "")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch hub's folder, empty, and no network; -> where the file of weights lies."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    return tmp_path / "hub" / "checkpoints" / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"


@pytest.mark.parametrize("answer, why", [(no_network, "no network"), (wrong_file, "invalid hash value")])
def test_without_a_network_one_sentence(hub, tmp_path, monkeypatch, answer, why):
    monkeypatch.setattr("torch.hub.urlopen", answer)
    with pytest.raises(FileNotFoundError, match=f"{hub} is missing and cannot be downloaded .*{why}.*: connect"):
        coco_maskrcnn()
    assert not list(hub.parent.glob("*")) and socket.getdefaulttimeout() is None  # nothing half written
    with pytest.raises(SystemExit, match="^error: .* is missing and cannot be downloaded .*[^\n]*$"):
        main(["predict", "a.png", "--weights", "coco", "--out", str(tmp_path / "out")])


def test_a_damaged_file_is_not_read(hub):
    hub.parent.mkdir(parents=True)
    hub.write_bytes(b"half of it")
    with pytest.raises(ValueError, match=f"{hub} is damaged: delete it"):
        coco_maskrcnn()
    assert hub.read_bytes() == b"half of it"


def test_predict_with_the_downloaded_weights(theirs, hub, tmp_path, monkeypatch, capsys):
    """As torchvision's builder reads them, into BatchNorms that do not learn; by the very command."""
    weights = type(torchvision_coco.WEIGHTS)
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **_: theirs.state_dict())
    model = coco_maskrcnn()
    assert (model.short, model.long) == (800, 1333) and not model.training
    for name, value in CocoMaskRCNN(theirs).state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(model.state_dict()[name], value), name

    model.short, model.long = 64, 96
    monkeypatch.setattr("lib.commands.predict.coco_maskrcnn", lambda: model)
    Image.new("RGB", (90, 60), (10, 90, 200)).save(tmp_path / "a.png")
    options = ["--weights", "coco", "--out", str(tmp_path / "out"), "--threshold", "0"]
    with pytest.raises(SystemExit) as end:
        main(["predict", str(tmp_path / "a.png"), *options])
    coco = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert end.value.code == 0 and [c["name"] for c in coco["categories"]] == list(COURSE_CLASSES)
    assert Image.open(tmp_path / "out" / "a_overlay.png").size == (90, 60)


def their_scenes(seed: int, count: int) -> list[tuple[torch.Tensor, dict]]:
    """Scenes of half the size (3, 150, 200) uint8, and targets in torchvision's convention and COCO's categories."""
    categories, found = np.array([0, CAR, PERSON, DOG]), []
    for n in range(count):
        image, labels, boxes, masks = (np.array(part) for part in scene(np.random.default_rng([seed, n])))
        target = {"boxes": np.float32(boxes / 2), "labels": categories[labels], "masks": masks[:, ::2, ::2].copy()}
        target = {name: torch.from_numpy(value) for name, value in target.items()}
        found.append((torch.from_numpy(image[:, ::2, ::2].copy()), target))
    return found


@torch.enable_grad()
def their_trained(seed: int) -> TheirMaskRCNN:
    """torchvision's model on the project's backbone for scenes, its heads trained on a few of them."""
    torch.manual_seed(seed)
    backbone = build_backbone(load_config("demo").backbone).requires_grad_(False)
    generator = AnchorGenerator(tuple((n,) for n in (24, 48, 84, 120, 156)), ((0.5, 1.0, 2.0),) * 5)
    few = {"rpn_pre_nms_top_n_train": 100, "rpn_post_nms_top_n_train": 50, "box_batch_size_per_image": 32}
    model = TheirMaskRCNN(backbone, 91, min_size=180, max_size=240, rpn_anchor_generator=generator, **few)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    data, mask_pool = their_scenes(seed, 16), model.roi_heads.mask_roi_pool
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / STEPS)
        model.roi_heads.mask_roi_pool = mask_pool if step % 4 == 3 else None  # masks take most of the time
        images, targets = zip(*(data[(4 * step + n) % len(data)] for n in range(4)), strict=True)
        model.train().backbone.eval()
        losses = model([image / 255 for image in images], targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def overlaps(theirs: TheirMaskRCNN, ours: CocoMaskRCNN, image: torch.Tensor) -> list[tuple[float, float]]:
    """For each of their detections above .5: the best IoU of a box of ours of its class; pixels masked otherwise.

    These are a share of the box, for a mask that has learnt so little may be empty.
    """
    (found,), (their_found,) = ours(image[None]), theirs([image / 255])
    course, pairs = {CAR: 1, PERSON: 2, DOG: 3}, []
    for n in (their_found["scores"] > 0.5).nonzero().flatten().tolist():
        iou = iou_matrix(their_found["boxes"][n, None], found["boxes"])[0]
        iou = iou.masked_fill(found["labels"] != course[int(their_found["labels"][n])], 0)
        best = int(iou.argmax())
        differ = (found["masks"][best] > 0) != (their_found["masks"][n, 0] >= 0.5)
        pairs.append((float(iou[best]), float(differ.sum() / area(found["boxes"][best]))))
    return pairs


def test_the_same_detections_end_to_end(training_seed):
    """Of theirs above .5, 95 of 100 have one of ours of the class at IoU .9, in pictures of three shapes."""
    theirs = their_trained(training_seed)
    ours, pairs = CocoMaskRCNN(theirs).eval(), []
    for n, (image, _) in enumerate(their_scenes(training_seed, 16)):
        shapes = image, image[:, :, 50:], image[:, :, 40:140]
        pairs += overlaps(theirs, ours, shapes[n % 3].contiguous())
    iou, differ = torch.tensor(pairs).T
    assert len(pairs) >= 12 and (iou > 0.9).float().mean() >= 0.95
    assert differ.median() < 0.1  # theirs are pasted to whole pixels
