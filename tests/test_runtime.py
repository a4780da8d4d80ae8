"""Folders, seeds, figures that are the same twice, and errors in one line."""

import io
import os
import platform
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from lib.machine.device import precision, seed_everything
from lib.machine.errors import command_errors
from lib.machine.folders import FOLDERS, paths, root
from lib.notebook.colab import set_up, use_drive
from lib.notebook.figures import palette_png, save_figure

DRAW = """
import sys, matplotlib; matplotlib.use("Agg")
import matplotlib.pyplot as plt
from lib.notebook.figures import save_figure
fig, ax = plt.subplots(); ax.plot([0, 1], [1, 0], "o-", label="AP\\u2085\\u2080")
ax.imshow([[0, 1]]); ax.legend(); ax.set_title("IoU > 0.5"); save_figure(fig, "curve", sys.argv[1])
"""


def test_root_holds_lib():
    assert (root() / "lib" / "config.py").is_file()


def test_paths_default_to_the_root_and_follow_the_environment(monkeypatch, tmp_path):
    for variable in FOLDERS.values():
        monkeypatch.delenv(variable, raising=False)
    assert paths().weights == root() / "weights"
    monkeypatch.setenv("MASKRCNN_DATA", str(tmp_path))
    assert paths().data == tmp_path
    assert paths().figures == root() / "figures"


def test_drive_is_left_alone_outside_colab(monkeypatch):
    monkeypatch.delenv("MASKRCNN_DATA", raising=False)
    use_drive(True)
    assert "MASKRCNN_DATA" not in os.environ


def test_on_colab_drive_takes_the_folders(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "google.colab", type(sys)("google.colab"))
    for variable in FOLDERS.values():
        monkeypatch.setenv(variable, "")  # so that monkeypatch restores it
        monkeypatch.delenv(variable)
    use_drive(False, tmp_path)
    assert paths().weights == root() / "weights"
    use_drive(True, tmp_path)
    assert paths().weights == tmp_path / "weights" and (tmp_path / "weights").is_dir()


def test_set_up_follows_the_environment_and_takes_numbers(monkeypatch, tmp_path, scenes):
    monkeypatch.setenv("MASKRCNN_DATA", str(scenes.parent))
    monkeypatch.setenv("MASKRCNN_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("MASKRCNN_SOURCE", scenes.name)
    source, config, data, weights = set_up("demo", "synthetic", False, ["rpn.epochs=2", "data.val_fraction=0.3"])
    assert (source, config.rpn.epochs, data, weights) == (scenes.name, 2, scenes, tmp_path / f"demo-{scenes.name}")


def test_a_mistake_in_the_set_up_is_one_sentence_for_ipython(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKRCNN_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        set_up("demo", "course", False)
    (said,) = caught.value._render_traceback_()
    assert said == f"error: {caught.value}" and "course" in said and "\n" not in said


def test_same_seed_same_numbers():
    seed_everything(7)
    first = (np.random.rand(), torch.rand(3))
    seed_everything(7)
    assert np.random.rand() == first[0]
    torch.testing.assert_close(torch.rand(3), first[1])


def test_figures_are_byte_identical_between_runs(tmp_path):
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", DRAW, str(tmp_path / hash_seed)]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        environment.pop("SOURCE_DATE_EPOCH", None)
        subprocess.run(command, check=True, cwd=root(), env=environment)
    for name in ("curve.pdf", "curve.png"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_a_failed_save_leaves_the_earlier_figure(tmp_path):
    fig, ax = plt.subplots()
    written = save_figure(fig, "plot", tmp_path)
    assert [path.name for path in written] == ["plot.pdf", "plot.png"]
    before = written[0].read_bytes()
    ax.set_title("$\\nothing{$")  # mathtext cannot draw this
    with pytest.raises(ValueError):
        save_figure(fig, "plot", tmp_path)
    assert written[0].read_bytes() == before


@pytest.mark.parametrize("error", [ValueError("labels.npy:\nwrong length"), FileNotFoundError("no such file")])
def test_a_users_mistake_is_one_line_and_status_1(error):
    with pytest.raises(SystemExit) as caught, command_errors():
        raise error
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)


def test_a_programming_error_keeps_its_traceback():
    with pytest.raises(RuntimeError), command_errors():
        raise RuntimeError("a bug")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library manages its memory its own way")
def test_memory_is_kept_where_wanted():
    """Page faults of 20 tensors of 64 MB: a process that keeps its memory soon has the pages."""
    program = """if True:
        import resource, torch
        from lib.machine.device import keep_memory
        for wanted in (False, True):
            keep_memory(wanted)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                torch.ones(2**24).add_(1)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """  # a process of its own: this one's heap has holes that other tests left
    run = subprocess.run([sys.executable, "-c", program], cwd=root(), capture_output=True, text=True)
    given_back, kept = map(int, run.stdout.split())
    assert kept < given_back / 2


@pytest.mark.parametrize("has_bf16, expected", [(True, "bf16"), (False, "no")])
def test_precision_on_a_cpu_follows_its_instructions(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    assert precision() == expected
    assert precision("fp16") == "fp16"


def test_a_small_area_keeps_its_colour():
    """A pink spot of 8 x 8 pixels in a meadow of many greens: 256 colours are not all given to the grass."""
    rng = np.random.default_rng(0)
    picture = np.stack(
        [rng.integers(20, 90, (200, 300)), rng.integers(70, 160, (200, 300)), rng.integers(20, 90, (200, 300))], 2
    )
    picture[90:98, 140:148] = 204, 121, 167
    picture[:30] = 255  # the paper, with something almost as white beside it
    picture[30:40] = 252
    file = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(file, "PNG")
    smaller = palette_png(file.getvalue())
    shown = np.asarray(Image.open(io.BytesIO(smaller)).convert("RGB")).astype(int)
    assert np.abs(shown - picture).max() < 40 and np.abs(shown - picture)[90:98, 140:148].max() < 10
    assert (shown[:30] == 255).all() and (shown[30:40] == 252).all()
    assert len(smaller) < len(file.getvalue()) / 2
