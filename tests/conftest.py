"""Shared by all tests: one thread (the tests are small), a screenless matplotlib, a few scenes, a tiny system."""

import gc
import os
import sys
import threading
import traceback
from collections import OrderedDict
from pathlib import Path

import matplotlib
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from tqdm import tqdm

from lib.config import STAGES, Config, load_config
from lib.data.scenes import write_scenes
from lib.data.split import load_split
from lib.maskrcnn import MaskRCNN

matplotlib.use("Agg")
torch.set_num_threads(1)

LONG = {f"test_{name}.py" for name in ("classes", "student", "notebooks", "run", "run_stopped", "browser_pages")}


def pytest_addoption(parser):
    parser.addoption("--training-seeds", type=int, default=1, help="run each test that trains from so many seeds")
    parser.addoption("--kills", type=int, default=20, help="kill a training at so many moments")


def pytest_generate_tests(metafunc):
    seeds = metafunc.config.getoption("--training-seeds")
    if "training_seed" in metafunc.fixturenames and seeds > 1:
        metafunc.parametrize("training_seed", range(seeds), scope="session")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """A test trains if it asks for a seed to train from. Long files come first, so that two processes end together."""
    for item in items:
        if "training_seed" in getattr(item, "fixturenames", ()):
            item.add_marker("trains")
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def training_seed() -> int:
    """What a training starts from: one seed, or with --training-seeds several in turn."""
    return 0


@pytest.fixture(autouse=True)
def close_figures():
    """No test leaves a figure open for the next."""
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


class TinyBackbone(nn.Module):
    """Five strided convolutions: the pyramid's shapes without its cost."""

    out_channels = 16

    def __init__(self):
        super().__init__()
        strides = (4, 2, 2, 2, 2)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3 if i == 0 else 16, 16, 2 * s - 1, s, s - 1), nn.BatchNorm2d(16), nn.ReLU())
            for i, s in enumerate(strides)
        )

    def forward(self, x):
        maps = OrderedDict()
        for i, level in enumerate(self.levels):
            maps[str(i)] = x = level(x)
        return maps


def tiny_backbone(config=None) -> TinyBackbone:
    """The same one each time, in place of `build_backbone`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyBackbone()


@pytest.fixture(scope="module")
def on_the_tiny_backbone():
    """Every model of the module is built on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lib.maskrcnn.build_backbone", tiny_backbone)
        yield


@pytest.fixture
def fresh_accelerator():
    """accelerate as in a new process: it keeps one precision, and its processes, for all of a process's life."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module", autouse=True)
def own_accelerator():
    """Each file's tests, and its fixtures, start as in a new process, whatever file the same process took up before."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def config() -> Config:
    """The demo system, smaller still: 96 x 126 images inside 96 x 128."""
    sizes = {
        "image.height": 96,
        "image.width": 126,
        "anchors.scales": (8, 16, 32, 64, 96),
        "roi_align.canonical_size": 56,
    }
    samples = {"rpn.batch_samples": 64, "boxhead.batch_samples": 32, "rpn.train.pre_nms": 100, "rpn.train.post_nms": 50}
    widths = {"backbone.channels": 16, "boxhead.hidden": 32, "maskhead.hidden": 16, "backbone.weights": "none"}
    training = {"training.mixed_precision": "no", "training.store_features": False}
    training |= {f"{stage}.batch_size": 2 for stage in STAGES}
    fractions = {"data.val_fraction": 0.25, "data.test_fraction": 0.25}
    return load_config("demo").replace(**sizes, **samples, **widths, **training, **fractions)


def forked(work, *arguments, said: Path, environment: dict[str, str] | None = None, **options) -> int:
    """Start `work` in a forked process, which pays for no imports -> its number; what it prints is added to `said`."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        sys.stdout = sys.stderr = open(said, "a", buffering=1)
        os.environ |= environment or {}
        gc.freeze()  # what others left behind need not be looked through
        tqdm.set_lock(threading.RLock())  # its own is shared with forks: one that is killed would keep it for ever
        AcceleratorState._reset_state(reset_partial_state=True)
        work(*arguments, **options)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """Wait for a process -> its exit status, or the signal that killed it as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def tiny_model(config):
    """A function from a seed and config overrides to an untrained model on the tiny backbone, the same each time."""

    def build(start: int = 0, **overrides) -> MaskRCNN:
        torch.manual_seed(start)
        return MaskRCNN(config.replace(**overrides), TinyBackbone()).eval()

    return build


@pytest.fixture(scope="session")
def scenes(tmp_path_factory, config) -> Path:
    """A folder with the four files of twelve scenes and their split."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 12, seed=3)
    load_split(folder, 12, config.data)  # here, not by the first test that wants one, whatever its config
    return folder
