import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision.models import get_model_weights

from lib import backbone as module
from lib.backbone import build_backbone
from lib.config import load_config
from lib.training.stages import backbone_parts

DEMO = load_config("demo").replace(**{"backbone.weights": "none"})


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "resnet18", "maskrcnn_resnet50_fpn"])
def test_maps_of_strides_4_to_64(name):
    backbone = build_backbone(DEMO.replace(**{"backbone.name": name, "backbone.channels": 32}).backbone)
    channels = 256 if name == "maskrcnn_resnet50_fpn" else 32
    with torch.no_grad():
        maps = backbone.eval()(torch.zeros(1, 3, 64, 96))
    shapes = [tuple(f.shape) for f in maps.values()]
    assert shapes == [(1, channels, *s) for s in ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))]
    assert backbone.out_channels == channels


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"backbone.name": "resnet19"}, "backbone 'resnet19' with weights 'none'"),
        ({"backbone.weights": "NOT_A_NAME"}, "backbone 'mobilenet_v3_large' with weights 'NOT_A_NAME'"),
        ({"backbone.name": "vit_b_16"}, "backbone 'vit_b_16'"),
    ],
)
def test_unknown_names_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(DEMO.replace(**changes).backbone)


def test_weights_that_cannot_be_had(monkeypatch):
    def no_network(name, weights):
        raise URLError("no network")

    monkeypatch.setattr(module, "get_model", no_network)
    message = "'mobilenet_v3_large' with weights 'DEFAULT'.*connect to the internet.*backbone.weights=none"
    with pytest.raises(ValueError, match=message):
        build_backbone(DEMO.replace(**{"backbone.weights": "DEFAULT"}).backbone)


@pytest.mark.parametrize("left", [b"", b"<html>no such page</html>", b"PK\x03\x04 half of it"])
def test_a_damaged_file_in_torch_hubs_cache_is_named_with_its_mend(left, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / Path(get_model_weights("mobilenet_v3_large").DEFAULT.url).name
    file.parent.mkdir()
    file.write_bytes(left)
    message = f"mobilenet_v3_large.*delete the damaged file in {re.escape(str(tmp_path))}/checkpoints"
    with pytest.raises(ValueError, match=message) as error:
        build_backbone(DEMO.replace(**{"backbone.weights": "DEFAULT"}).backbone)
    assert "\n" not in str(error.value)


def test_a_trunk_that_does_not_fit_is_not_called_damaged():
    with pytest.raises(ValueError, match="'mnasnet0_5' with weights 'none': mat1 and mat2") as error:
        build_backbone(DEMO.replace(**{"backbone.name": "mnasnet0_5"}).backbone)
    assert "damaged" not in str(error.value)


def test_what_learns():
    backbone = build_backbone(DEMO.backbone)
    blocks = list(backbone.body.children())
    assert backbone_parts(backbone, "none", 0) == []
    assert backbone_parts(backbone, "fpn", 0) == [backbone.fpn]
    assert backbone_parts(backbone, "all", 0) == [backbone.fpn, *blocks]
    assert backbone_parts(backbone, "all", 3) == [backbone.fpn, *blocks[3:]]
    own = nn.Conv2d(3, 8, 1)  # a backbone of the caller's, without a pyramid of torchvision's
    assert backbone_parts(own, "fpn", 0) == [] and backbone_parts(own, "all", 2) == [own]
