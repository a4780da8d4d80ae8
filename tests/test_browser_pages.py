"""The browsers of pictures in real Jupyters (jupyters.py): each control is moved as a reader moves it. The picture changes
where the control adds or takes away, by lib's boxes and masks, and nowhere else; the words beside it count as lib does.
"""

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from jupyters import CHROMIUM, Page, Pictures, missing, served, write_notebook
from PIL import Image, ImageFilter
from stand_in import CONFIG, SCENES, StandIn
from torch import Tensor
from torchvision.ops import batched_nms, nms

from lib.anchors import LEVELS, anchor_levels, pyramid_anchors, pyramid_grids
from lib.boxes import iou_matrix
from lib.machine.folders import root
from lib.maskhead import paste_masks
from lib.matching import IGNORED, NEGATIVE, POSITIVE, match_anchors
from lib.notebook.anchor_browser import AnchorBrowser
from lib.notebook.pixels import WIDTH
from lib.preprocess import preprocess_targets

BUILD = f"""
import sys
sys.path[:0] = [{str(root())!r}, {str(root() / "tests")!r}]
import ipywidgets
from stand_in import CONFIG, SCENES, Scenes, StandIn
from lib.notebook.browser import AnchorBrowser, MaskBrowser, StageBrowser
model = StandIn()
print("ipywidgets", ipywidgets.__version__)
"""
BROWSERS = (
    "AnchorBrowser(SCENES, CONFIG)",
    "StageBrowser(model, SCENES)",
    'MaskBrowser(model, {"val": SCENES, "test": Scenes(SCENES[2:])})',
)
VERSION = {"lab": "ipywidgets 8.", "classic": "ipywidgets 7.7."}
NOTHING = torch.zeros(0, 4)
MARGIN = 12  # of the picture of anchors, pixels of the frame
SEEN = 25  # of 255: a difference that is none of JPEG's


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["lab", "classic"])
def notebook(request, tmp_path_factory):
    """A notebook with the three browsers, all cells run, and the folder that it lies in."""
    if lacking := missing(request.param):
        pytest.skip(f"needs {', '.join(lacking)}")
    chromium, folder = request.getfixturevalue("chromium"), tmp_path_factory.mktemp(request.param)
    write_notebook(folder / "browse.ipynb", BUILD, *BROWSERS)
    with served(request.param, folder) as address:
        page = chromium.new_page(viewport={"width": 1300, "height": 4000})
        try:
            opened = Page(request.param, page, address, "browse.ipynb")
            opened.run_all()
            yield opened, folder
        finally:
            page.screenshot(path=folder / "notebook.png")
            page.close()


class Watched:
    """A browser's picture, in which boxes and masks of a frame (height, width) are looked for."""

    def __init__(self, pictures: Pictures, frame: tuple[int, int], margin: int = 0):
        self.pictures, self.zoom = pictures, WIDTH / (frame[1] + 2 * margin)
        self.corner = round(margin * self.zoom)
        self.size = round(frame[0] * self.zoom) + 2 * self.corner, WIDTH  # the legend lies below
        self.y, self.x = np.ogrid[: self.size[0], :WIDTH]

    def within(self, box: np.ndarray, by: int) -> np.ndarray:
        """Which pixels (h, w) lie in a box of the picture that is made larger on all sides."""
        x1, y1, x2, y2 = box + np.array([-by, -by, by, by])
        return (self.x >= x1) & (self.x < x2) & (self.y >= y1) & (self.y < y2)

    def lines(self, box: np.ndarray, by: int) -> np.ndarray:
        """Which pixels (h, w) lie in the lines along a box's edges, two pixels wide, or so many more on both sides."""
        return self.within(box, by) & ~self.within(box, -2 - by)

    def move(self, act: Callable, *arguments, boxes: Tensor, says: str = "", words: Tensor = NOTHING) -> None:
        """The outline of each of the boxes changes; beside these nothing does but captions, at them or at `words`."""
        shown, captioned = ((b * self.zoom + self.corner).round().numpy() for b in (boxes, torch.cat([boxes, words])))
        changed, near = self.changed(act, arguments, says), np.zeros(self.size, bool)
        assert len(boxes)
        for box in shown:
            line = self.lines(box, 0)
            assert not line.any() or changed[line].mean() > 0.1, box
            near |= self.lines(box, 9)
        for x1, y1, _, y2 in captioned:
            near |= self.within(np.array([x1, y1 - 60, x1 + 120, y2 + 60]), 9)
        assert not changed[~near].any(), np.argwhere(changed & ~near)

    def paint(self, act: Callable, *arguments, area: Tensor, says: str = "", boxes: Tensor = NOTHING) -> None:
        """Pixels of the area (h, w) change, most of them; others do not, but at the outlines of the boxes."""
        grid = Image.fromarray(area.byte().numpy()).resize(self.size[::-1], Image.Resampling.NEAREST)
        inner, outer = (np.asarray(grid.filter(kind(9))) > 0 for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
        changed, near = self.changed(act, arguments, says), np.array(outer)
        for box in (boxes * self.zoom + self.corner).round().numpy():
            near |= self.lines(box, 9) | self.within(np.array([box[0], box[1] - 60, box[0] + 120, box[3] + 60]), 9)
        assert inner.any() and changed[inner].mean() > 0.8
        assert not changed[~near].any(), np.argwhere(changed & ~near)

    def changed(self, act: Callable, arguments: tuple, says: str) -> np.ndarray:
        before = self.pictures.pixels()
        act(*arguments)
        if says:
            self.pictures.says(says)
        return (np.abs(self.pictures.pixels()[: self.size[0]] - before[: self.size[0]]) > SEEN).any(axis=2)


def apart(some: Tensor, others: Tensor) -> Tensor:
    """The boxes that are among the one or the other, but not both."""
    kinds = {tuple(b) for b in some.tolist()} ^ {tuple(b) for b in others.tolist()}
    return torch.tensor(sorted(kinds)).reshape(-1, 4)


# ---- anchors -----------------------------------------------------------------------------------------------------

GRIDS = pyramid_grids(CONFIG.image.padded_size)
ANCHORS, LEVEL = pyramid_anchors(GRIDS, CONFIG.anchors), anchor_levels(GRIDS, 3)


def truth(n: int) -> Tensor:
    """A scene's boxes in the network's frame."""
    return preprocess_targets([SCENES[n][1]], (300, 400), CONFIG.image)[0]["boxes"]


def anchors(kind: int, positive=0.7, negative=0.3, where: Tensor | bool = True, of: int | None = None) -> Tensor:
    """The first scene's anchors of a kind, those of an object alone, by lib's rule."""
    iou = iou_matrix(ANCHORS, truth(0))
    labels, matched = match_anchors(iou, positive, negative)
    chosen = (labels == kind) & where
    return ANCHORS[chosen if of is None else chosen & (matched == of) & (iou[:, of] > 0)]


def test_the_browser_of_anchors(notebook):
    page, folder = notebook
    pictures = page.pictures(0)
    watched = Watched(pictures, CONFIG.image.padded_size, MARGIN)
    kinds = [anchors(kind) for kind in (POSITIVE, NEGATIVE, IGNORED)]
    move, words = partial(watched.move, words=truth(0)), "{:,} positive, {:,} negative, {:,} ignored"
    pictures.says(words.format(*map(len, kinds)))
    move(pictures.tick, "positive", boxes=kinds[0])
    move(pictures.tick, "positive", boxes=kinds[0])
    more = anchors(POSITIVE, 0.6)
    says = words.format(len(more), len(kinds[1]), len(ANCHORS) - len(more) - len(kinds[1]))
    move(pictures.press, "positive: IoU above", *["ArrowLeft"] * 2, boxes=apart(more, kinds[0]), says=says)
    assert pictures.readout("positive: IoU above") == "0.60"
