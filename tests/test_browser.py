"""The browsers: every control redraws, an image is predicted once, nothing stays open; one test runs a real browser."""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import ipywidgets as widgets
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from lib.config import load_config
from lib.machine.folders import root
from lib.maskrcnn import COURSE_CLASSES, MaskRCNN
from lib.notebook import browser
from lib.notebook.execute import METADATA

CONFIG = load_config(
    "demo",
    "image.height=60 image.width=80 backbone.weights=none backbone.channels=8 anchors.scales=(8,16,24,32,40)".split(),
)


def scene(n: int):
    """A dark image with one bright object, which lies elsewhere in each."""
    left = 40 + 80 * n
    masks = torch.zeros(1, 300, 400, dtype=torch.uint8)
    masks[0, 60:160, left : left + 90] = 1
    image = 40 + 180 * masks.expand(3, -1, -1)
    boxes = torch.tensor([[left, 60.0, left + 90, 160]])
    return image, {"boxes": boxes, "labels": torch.tensor([n + 1]), "masks": masks, "image_id": n}


class Scenes(list):
    classes = COURSE_CLASSES


SCENES = Scenes(scene(n) for n in range(3))


class Finder(torch.nn.Module):
    """Stands for a trained model: finds one person with score 0.7, and counts the images it is shown."""

    def __init__(self):
        super().__init__()
        self.unused, self.seen = torch.nn.Parameter(torch.zeros(1)), 0

    def forward(self, images, stage):
        assert not self.training and images.dtype == torch.uint8
        self.seen += len(images)
        boxes, masks = SCENES[0][1]["boxes"] + 20, SCENES[0][1]["masks"]
        found = {"boxes": boxes, "labels": torch.tensor([2]), "scores": torch.tensor([0.7]), "masks": masks}
        return [{name: value for name, value in found.items() if name != "masks" or stage == "maskhead"}]


def parts(box: widgets.VBox) -> tuple[dict[str, widgets.Widget], widgets.Image, widgets.HTML]:
    """The controls by description, the picture, the status line."""
    first, second, picture, status = box.children
    return {control.description: control for control in (*first.children, *second.children)}, picture, status


def assert_every_change_redraws(box: widgets.VBox, changes: list[tuple[str, object]]):
    controls, picture, status = parts(box)
    for name, value in changes:
        before = picture.value
        controls[name].value = value
        assert picture.value != before and status.value == "", (name, status.value)
        assert Image.open(io.BytesIO(picture.value)).format == "PNG"
    assert plt.get_fignums() == []


def test_every_control_of_the_anchors_redraws():
    changes = [("image", 2), ("ignored", True), ("negative", True), ("positive", False), ("level", "P4"), ("image", 0)]
    assert_every_change_redraws(browser.browse_anchors(SCENES, CONFIG), changes)


def test_every_control_of_the_masks_redraws_and_an_image_is_predicted_once():
    model = Finder()
    changes = [("score", 0.6), ("image", 1), ("masks", False), ("ground truth", False), ("boxes", False), ("image", 0)]
    assert_every_change_redraws(browser.browse_masks(model.train(), SCENES), changes)
    assert model.seen == 2


def test_equal_controls_give_the_equal_picture():
    controls, picture, _ = parts(browser.browse_anchors(SCENES, CONFIG))
    first = picture.value
    controls["▶"].click()
    assert controls["image"].value == 1 and picture.value != first
    controls["◀"].click()
    assert controls["image"].value == 0 and picture.value == first
    controls["◀"].click()
    assert controls["image"].value == 2  # round the end


def test_sliders_wait_until_they_are_let_go():
    boxes = browser.browse_anchors(SCENES, CONFIG), browser.browse_masks(Finder(), SCENES)
    sliders = [c for box in boxes for c in parts(box)[0].values() if "Slider" in type(c).__name__]
    assert len(sliders) == 3 and not any(slider.continuous_update for slider in sliders)


def test_only_widgets_that_old_and_new_ipywidgets_share():
    def kinds(widget):
        return {type(widget).__name__}.union(*map(kinds, getattr(widget, "children", ())))

    found = kinds(browser.browse_anchors(SCENES, CONFIG)) | kinds(browser.browse_masks(Finder(), SCENES))
    assert found <= {"VBox", "HBox", "IntSlider", "FloatSlider", "Dropdown", "Checkbox", "Button", "Image", "HTML"}


def test_an_error_while_drawing_is_told_below_the_picture():
    controls, _, status = parts(browser.browse_anchors([SCENES[0], None], CONFIG))
    controls["image"].value = 1
    assert status.value.startswith("TypeError: ")
    controls["image"].value = 0
    assert status.value == ""


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="no images"):
        browser.browse_anchors([], CONFIG)


def title(fig: Figure) -> str:
    return fig.axes[0].get_title()


@pytest.mark.parametrize("crossing, kinds", [("clip", 3), ("remove", 4)])
def test_the_counts_of_the_anchors_add_up(crossing, kinds):
    config, numbers = CONFIG.replace(**{"rpn.cross_boundary": crossing}), {}
    assert title(browser.anchors_figure(SCENES, config, 0)).startswith("image 0, level all: ")
    for level in ("all", "P2", "P3", "P4", "P5", "P6"):
        line = title(browser.anchors_figure(SCENES, config, 0, level)).splitlines()[0]
        numbers[level] = np.array([int(part.split()[0].replace(",", "")) for part in line.split(": ")[1].split(", ")])
    assert len(numbers["all"]) == kinds
    assert numbers["P2"].sum() == 3 * 16 * 24 and numbers["P6"].sum() == 3 * 1 * 2  # the padded input is 64 x 96
    assert (sum(numbers[level] for level in numbers if level != "all") == numbers["all"]).all()
    assert numbers["all"][2] > 0  # positive


def test_the_threshold_hides_detections():
    found = browser.predict(Finder(), SCENES[0][0], "maskhead")
    shown, hidden = (browser.masks_figure(SCENES, 0, found, threshold=t) for t in (0.7, 0.71))
    assert "1 detections" in title(shown) and "0 detections" in title(hidden)
    assert [text.get_text() for text in shown.axes[0].texts] == ["vehicle", "person 0.70"]
    assert [text.get_text() for text in hidden.axes[0].texts] == ["vehicle"]


@pytest.mark.parametrize("stage", ["boxhead", "maskhead"])
def test_the_model_itself_can_be_browsed(stage):
    found = browser.predict(MaskRCNN(CONFIG), SCENES[0][0], stage)
    fig = browser.masks_figure(SCENES, 0, found, threshold=0.05)
    assert "1 objects" in title(fig) and plt.get_fignums() == []


# ---- through a real browser --------------------------------------------------------------------------------------

CELL = """
import sys; sys.path.insert(0, {root!r})
import torch
from lib.notebook import browser
from lib.config import load_config
target = {{"boxes": torch.tensor([[20.0, 20, 120, 120]]), "labels": torch.tensor([1]), "image_id": 0}}
scenes = []
for channel in range(3):  # a red, a green and a blue image
    image = torch.zeros(3, 300, 400, dtype=torch.uint8)
    image[channel] = 200
    scenes.append((image, target))
browser.browse_anchors(scenes, load_config("demo", ["image.height=60", "image.width=80"]))
"""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MISSING = [name for name in ("jupyterlab", "playwright") if find_spec(name) is None] + ["chromium"] * (CHROMIUM is None)
PIXEL = """image => {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return Array.from(context.getImageData(image.naturalWidth / 2, image.naturalHeight / 2, 1, 1).data.slice(0, 3));
}"""


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that serves one notebook, with its state in a folder of its own."""
    cell = nbformat.v4.new_code_cell(CELL.format(root=str(root())))
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata=METADATA)
    nbformat.write(notebook, tmp_path / "browse.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", "--IdentityProvider.token=", "--LabApp.news_url=None", f"--port={port}"]
    folders = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = os.environ | folders | {"IPYTHONDIR": str(tmp_path / "ipython"), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "wb") as log:
        command = [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={tmp_path}"]
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/api", server)
        yield f"http://127.0.0.1:{port}/lab/tree/browse.ipynb"
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()  # its kernel ends with it
            server.wait()


def wait_for(address: str, server: subprocess.Popen, seconds: float = 60):
    for _ in range(int(seconds / 0.5)):
        assert server.poll() is None, "JupyterLab did not start"
        try:
            return urllib.request.urlopen(address, timeout=5)
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(address)


@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
def test_the_slider_moves_the_picture_in_a_real_browser(lab, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(150_000)
        try:
            look_through(page, lab)
        finally:
            page.screenshot(path=tmp_path / "screen.png")
            chromium.close()


def look_through(page, address: str):
    """Run the notebook's cell, then move the slider by keyboard, press a button, tick a box: the picture follows."""
    from playwright.sync_api import expect

    page.goto(address)
    page.get_by_text("| Idle").wait_for()  # a cell that is run before its kernel is there is dropped
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    picture = page.locator("img.widget-image")
    picture.wait_for()

    def brightest() -> int:
        page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.element_handle())
        return int(np.argmax(picture.evaluate(PIXEL)))

    def acting_shows(channel: int, act):
        source = picture.get_attribute("src")
        act()
        expect(picture).not_to_have_attribute("src", source, timeout=30_000)
        assert brightest() == channel

    assert brightest() == 0
    acting_shows(1, lambda: page.locator(".widget-slider .noUi-handle").press("ArrowRight"))
    expect(page.locator(".widget-slider .widget-readout")).to_have_text("1")
    acting_shows(2, lambda: page.get_by_role("button", name="▶").click())
    acting_shows(2, lambda: page.locator(".widget-checkbox input").nth(2).check())
