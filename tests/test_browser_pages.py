"""The browsers of pictures in real Jupyters (jupyters.py): each control is moved as a reader moves it.

The picture changes where the control adds or takes away, by lib's boxes and masks, and nowhere else; the words beside
it count as lib does.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jupyters import CHROMIUM, Page, Pictures, missing, served, write_notebook
from PIL import Image, ImageFilter
from stand_in import CONFIG, SCENES, StandIn
from torch import Tensor

from lib.anchors import anchor_levels, pyramid_anchors, pyramid_grids
from lib.boxes import iou_matrix
from lib.boxhead import refine
from lib.machine.folders import root
from lib.maskhead import paste_masks
from lib.matching import IGNORED, NEGATIVE, POSITIVE, match_anchors
from lib.notebook.pixels import WIDTH
from lib.preprocess import preprocess_images, preprocess_targets
from lib.rpn import propose

BUILD = f"""
import sys
sys.path[:0] = [{str(root())!r}, {str(root() / "tests")!r}]
import ipywidgets
from stand_in import CONFIG, SCENES, Scenes, StandIn
from lib.notebook.browser import AnchorBrowser, MaskBrowser, StageBrowser
model = StandIn()
print("ipywidgets", ipywidgets.__version__)
"""
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync".split()
)
BROWSERS = (
    "AnchorBrowser(SCENES, CONFIG)",
    "StageBrowser(model, SCENES)",
    'MaskBrowser(model, {"val": SCENES, "test": Scenes(SCENES[1:2])})',
)
VERSION = {"lab": "ipywidgets 8.", "classic": "ipywidgets 7.7."}
NOTHING = torch.zeros(0, 4)
MARGIN = 12  # of the picture of anchors, pixels of the frame
RIM = 15  # of a saved figure, pixels
SEEN, STRAY = 25, 50  # of 255: a change that is one; a change that is no noise of JPEG's, beside one


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
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
            opened.page.get_by_text(VERSION[request.param]).wait_for()
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

    def captions(self, box: np.ndarray) -> np.ndarray:
        """Which pixels (h, w) a caption of the box may take: along its upper and its lower edge, inside and out."""
        x1, y1, x2, y2 = box
        x2 = max(x2, x1 + 120)
        return self.within(np.array([x1, y1, x2, y1]), 45) | self.within(np.array([x1, y2, x2, y2]), 45)

    def move(self, act: Callable, *arguments, boxes: Tensor, says: str = "", words: Tensor = NOTHING) -> None:
        """The outline of each of the boxes changes; beside these nothing does but captions, at them or at `words`."""
        change, near = self.change(act, arguments, says), np.zeros(self.size, bool)
        assert len(boxes)
        for box in self.in_picture(boxes):
            line = self.lines(box, 0)  # of which others may cover a part
            assert not line.any() or (change > SEEN)[line].mean() > 0.02, f"the line of {box} stays"
            near |= self.lines(box, 9)
        for box in self.in_picture(torch.cat([boxes, words])):
            near |= self.captions(box)
        self.nothing_else(change, near)

    def paint(self, act: Callable, *arguments, area: Tensor, says: str = "", within=None, boxes: Tensor = NOTHING):
        """Pixels of the area (h, w) change, most of them; none do outside of `within`, but at outlines of the boxes."""
        change = self.change(act, arguments, says)
        inner = self.shown(area, 4) == 255
        near = self.shown(area if within is None else within, 9) > 0
        for box in self.in_picture(boxes):
            near |= self.lines(box, 9) | self.captions(box)
        assert inner.any() and (change > SEEN)[inner].mean() > 0.8
        self.nothing_else(change, near)

    def nothing_else(self, change: np.ndarray, near: np.ndarray) -> None:
        stray = np.argwhere((change > STRAY) & ~near)
        assert not len(stray), f"{len(stray)} pixels change elsewhere, in {stray.min(axis=0)} to {stray.max(axis=0)}"

    def in_picture(self, boxes: Tensor) -> np.ndarray:
        return (boxes * self.zoom + self.corner).round().numpy()

    def shown(self, area: Tensor, by: int) -> np.ndarray:
        """An area (h, w) of the frame -> the picture (h, w) of it, 255 well within and 0 well outside, blurred."""
        picture = Image.new("L", self.size[::-1])
        size = [round(n * self.zoom) for n in area.shape[::-1]]
        picture.paste(Image.fromarray(area.byte().numpy() * 255).resize(size), (self.corner, self.corner))
        return np.asarray(picture.filter(ImageFilter.BoxBlur(by)))

    def change(self, act: Callable, arguments: tuple, says: str) -> np.ndarray:
        """By how much (h, w) the picture changes when something is done and then this said."""
        before = self.pictures.pixels()
        act(*arguments)
        if says:
            self.pictures.says(says)
        return np.abs(self.pictures.pixels()[: self.size[0]] - before[: self.size[0]]).max(axis=2)


def apart(some: Tensor, others: Tensor) -> Tensor:
    """The boxes (D, 4 or more) that are among the one or the other, but not both -> theirs (D, 4)."""
    kinds = {tuple(b) for b in some.tolist()} ^ {tuple(b) for b in others.tolist()}
    return torch.tensor(sorted(kinds))[:, :4]


# ---- anchors -----------------------------------------------------------------------------------------------------

GRIDS = pyramid_grids(CONFIG.image.padded_size)
ANCHORS, LEVEL = pyramid_anchors(GRIDS, CONFIG.anchors), anchor_levels(GRIDS, 3)
RATIO = torch.arange(len(ANCHORS)) % 3


def truth(n: int) -> Tensor:
    """A scene's boxes in the network's frame."""
    return preprocess_targets([SCENES[n][1]], (300, 400), CONFIG.image)[0]["boxes"]


def anchors(kind: int, positive=0.7, negative=0.3, where: Tensor | bool = True, of: int | None = None) -> Tensor:
    """The first scene's anchors of a kind, those of an object alone, by lib's rule."""
    iou = iou_matrix(ANCHORS, truth(0))
    labels, matched = match_anchors(iou, positive, negative)
    chosen = (labels == kind) & where
    return ANCHORS[chosen if of is None else chosen & (matched == of) & (iou[:, of] > 0)]


def counted(**chosen) -> str:
    """The three counts in words."""
    kinds = {"positive": POSITIVE, "negative": NEGATIVE, "ignored": IGNORED}
    numbers = {name: len(anchors(kind, **chosen)) for name, kind in kinds.items()}
    return ", ".join(f"{n:,} {name}" for name, n in numbers.items())


def test_the_browser_of_anchors(notebook):
    page, folder = notebook
    pictures, six = page.pictures(0), LEVEL == 4
    watched = Watched(pictures, CONFIG.image.padded_size, MARGIN)
    move, positive = partial(watched.move, words=truth(0)), anchors(POSITIVE)
    pictures.says(counted())
    move(pictures.tick, "positive", boxes=positive)
    move(pictures.tick, "positive", boxes=positive)
    left, more = ["ArrowLeft"] * 2, anchors(POSITIVE, 0.6)
    move(pictures.press, "positive: IoU above", *left, boxes=apart(more, positive), says=counted(positive=0.6))
    assert pictures.readout("positive: IoU above") == "0.60"
    tall = anchors(POSITIVE, 0.6, where=RATIO == 0)
    move(
        pictures.choose, "width : height", "0.5", boxes=apart(more, tall), says=counted(positive=0.6, where=RATIO == 0)
    )
    move(pictures.choose, "width : height", "all", boxes=apart(more, tall), says=counted(positive=0.6))
    one = anchors(POSITIVE, 0.6, of=1)
    move(pictures.choose, "object", "1: person", boxes=apart(more, one), says=counted(positive=0.6, of=1))
    move(pictures.choose, "object", "all", boxes=apart(more, one), says=counted(positive=0.6))
    move(pictures.choose, "level", "P6", boxes=more, says=counted(positive=0.6, where=six))
    move(pictures.tick, "negative", boxes=anchors(NEGATIVE, where=six))
    fewer = anchors(NEGATIVE, 0.6, 0.05, where=six), anchors(NEGATIVE, 0.6, where=six)
    says = counted(positive=0.6, negative=0.05, where=six)
    move(pictures.press, "negative: IoU below", "Home", boxes=apart(*fewer), says=says)
    move(pictures.tick, "ignored", boxes=anchors(IGNORED, 0.6, 0.05, where=six))
    move(pictures.tick, "ignored", boxes=anchors(IGNORED, 0.6, 0.05, where=six))
    move(pictures.tick, "negative", boxes=fewer[0])
    frame = torch.ones(CONFIG.image.padded_size)
    watched.paint(pictures.tick, "heat map of the best IoU", area=frame)
    watched.paint(pictures.tick, "heat map of the best IoU", area=frame)
    order(pictures, "objects that no anchor fits, worst first", 3)
    look_through(pictures)
    save(pictures, folder, "anchors")


def look_through(pictures: Pictures) -> None:
    """The ways from an image to the next; at the end the first is shown again."""
    pictures.press("image", "ArrowRight")
    pictures.says("Image 1")
    pictures.click("next ▶")
    pictures.says("Image 2")
    assert pictures.readout("image") == "2"
    pictures.click("◀ back")
    pictures.says("Image 1")
    play, *_, stop, _ = pictures.box.locator(".widget-play button").all()
    pictures.redrawn(play.click)
    pictures.says("Image 2")
    pictures.redrawn(stop.click)
    pictures.says("Image 0")


def order(pictures: Pictures, words: str, count: int) -> None:
    """Only so many images belong there; then it is all again, from the first."""
    pictures.choose("go through", words)
    pictures.says(f"1. of {count} in “{words}”")
    pictures.control("go through").locator("select").select_option(label="all images, in order")
    pictures.says(re.compile(r"Image \d:"))
    if pictures.readout("image") != "0":
        pictures.press("image", "Home")


def save(pictures: Pictures, folder: Path, name: str) -> None:
    """The files are there, hold what is shown, and are named; a screenshot is left beside them."""
    pictures.button("Save figure").click()
    for ending in ("pdf", "png"):
        pictures.says(f"browser_{name}_0.{ending}")
        assert (folder / "figures" / f"browser_{name}_0.{ending}").stat().st_size > 1000
    shown = pictures.pixels()
    with Image.open(folder / "figures" / f"browser_{name}_0.png") as saved:
        inside = saved.convert("RGB").crop((RIM, RIM, saved.width - RIM, saved.height - RIM))
        again = np.asarray(inside.resize(shown.shape[1::-1])).astype(int)
    assert np.abs(again - shown).mean() < 8, np.abs(again - shown).mean()
    pictures.box.screenshot(path=folder / f"{name}.png")


# ---- stages ------------------------------------------------------------------------------------------------------

MODEL = StandIn().eval()
FEATURES = MODEL.features(preprocess_images(SCENES[0][0][None], CONFIG.image))
MOST = 5  # boxes drawn of each kind


@torch.no_grad()
def boxes_of(part: int, score: float, threshold: float) -> tuple[Tensor, Tensor, str]:
    """The first scene's proposals (2) or refined boxes (3): what NMS keeps, what it takes away, and both counts."""
    content, outcome = (CONFIG.image.height, CONFIG.image.width), []
    for iou in (threshold, 1.0):
        of_rpn = iou if part == 2 else CONFIG.rpn.nms_iou
        config = CONFIG.replace(**{"rpn.nms_iou": of_rpn, "boxhead.test.nms_iou": iou})
        (found,) = propose(*MODEL.rpn(FEATURES), MODEL.anchors(FEATURES), content, config.rpn, training=False)
        if part == 3:
            (found,) = refine(*MODEL.classify(FEATURES, [found["boxes"]]), [found["boxes"]], content, config.boxhead)
        outcome.append(found["boxes"][found["scores"] >= score])
    kept, every = outcome
    gone = every[~(every[:, None] == kept).all(dim=2).any(dim=1)]
    return (
        kept,
        gone,
        f"{len(every)} boxes with a score of at least {score:.2f}; NMS at {threshold:.2f} keeps {len(kept)}",
    )


def drawn(*chosen) -> Tensor:
    """The boxes that are drawn: kept ones, with a fifth number 0, and suppressed ones, with 1."""
    kept, gone, _ = boxes_of(*chosen)
    return torch.cat([F.pad(some[:MOST], (0, 1), value=kind) for kind, some in enumerate((kept, gone))])


def test_the_browser_of_stages(notebook):
    page, folder = notebook
    pictures = page.pictures(1)
    watched, objects = Watched(pictures, (CONFIG.image.height, CONFIG.image.width)), truth(0)
    pictures.says(boxes_of(2, 0.3, 0.7)[2])
    kept, gone, _ = boxes_of(2, 0.3, 0.7)
    more = torch.cat([kept[MOST:30], gone[MOST:30]])
    move = partial(watched.move, words=torch.cat([objects, drawn(2, 0.3, 0.7)[:, :4]]))
    move(pictures.press, "boxes drawn, at most", "Home", boxes=more, says=f"keeps {len(kept)} ({MOST} drawn)")
    move(pictures.tick, "suppressed boxes", boxes=gone[:MOST])
    move(pictures.tick, "suppressed boxes", boxes=gone[:MOST])
    move(pictures.tick, "ground truth", boxes=objects)
    move(pictures.tick, "ground truth", boxes=objects)
    few, says = drawn(2, 0.3, 0.05), boxes_of(2, 0.3, 0.05)[2]
    move(pictures.press, "NMS of proposals: IoU", "Home", boxes=apart(few, drawn(2, 0.3, 0.7)), says=says)
    best, says = drawn(2, 0.95, 0.05), "1 box with a score of at least 0.95"
    move(pictures.press, "score at least", "End", boxes=apart(few, best), says=says)
    pictures.press("score at least", "Home")
    logits, first = MODEL.rpn(FEATURES)[0][0], drawn(2, 0.05, 0.05)
    enough = int((logits.sigmoid() >= 0.05).sum())
    top, says = ANCHORS[logits.topk(MOST).indices], f"{enough} boxes with a score of at least 0.05 ({MOST} drawn)"
    move(pictures.choose, "stage", "1 anchors", boxes=torch.cat([top, first[:, :4]]), says=says)
    refined, says = drawn(3, 0.05, 0.5), boxes_of(3, 0.05, 0.5)[2]
    move(pictures.choose, "stage", "3 refined boxes", boxes=torch.cat([top, refined[:, :4]]), says=says)
    every, says = drawn(3, 0.05, 1.0), boxes_of(3, 0.05, 1.0)[2]
    move(pictures.press, "NMS of boxes: IoU", "End", boxes=apart(every, refined), says=says)
    few, says = drawn(3, 0.05, 0.05), boxes_of(3, 0.05, 0.05)[2]
    move(pictures.press, "NMS of boxes: IoU", "Home", boxes=apart(every, few), says=says)
    masks = MODEL(SCENES[0][0][None])[0]["masks"].amax(dim=0)[::2, ::2]
    watched.paint(pictures.choose, "stage", "4 masks", area=masks, says="2 masks")
    order(pictures, "objects that no proposal finds", 1)
    look_through(pictures)
    save(pictures, folder, "stages")


# ---- masks -------------------------------------------------------------------------------------------------------


def test_the_browser_of_masks(notebook):
    page, folder = notebook
    pictures, (found,) = page.pictures(2), MODEL(SCENES[0][0][None], paste=False)
    watched, objects, names = Watched(pictures, (300, 400)), SCENES[0][1]["boxes"], ("vehicle", "person")
    there, boxes = SCENES[0][1]["masks"].bool(), torch.cat([SCENES[0][1]["boxes"], found["boxes"]])
    wide, narrow = (paste_masks(found["masks"], found["boxes"], (300, 400), t).bool() for t in (0.5, 0.95))
    any_ = (there | wide).any(dim=0)
    paint = partial(watched.paint, within=any_, boxes=boxes)
    pictures.says("2 objects, 2 detections with a score of at least 0.50: 2 right")
    watched.paint(pictures.press, "opacity of masks", "End", area=wide.any(dim=0))
    watched.paint(pictures.press, "mask threshold", "End", area=wide.any(dim=0) & ~narrow.any(dim=0))
    assert (pictures.readout("opacity of masks"), pictures.readout("mask threshold")) == ("1.00", "0.95")
    paint(pictures.choose, "show", "ground truth", area=there.any(dim=0))
    paint(pictures.choose, "show", "prediction", area=there.any(dim=0))
    hit = narrow.any(dim=0) & there.any(dim=0)
    sizes = {"hit": hit, "false": narrow.any(dim=0) & ~hit, "missed": there.any(dim=0) & ~hit}
    says = ", ".join(f"{int(which.sum()):,} pixels {name}" for name, which in sizes.items())
    paint(pictures.choose, "show", "difference in pixels", area=hit, says=says)
    watched.move(pictures.tick, "boxes", boxes=boxes)
    watched.move(pictures.tick, "boxes", boxes=boxes)
    vehicle, person = hit & narrow
    paint(pictures.choose, "class", "person", area=vehicle, says="1 object, 1 detection")
    paint(pictures.choose, "class", "all", area=vehicle, says="2 objects, 2 detections")
    says = "1 detection with a score of at least 0.95: 1 right, 1 missed"
    paint(pictures.press, "score at least", "End", area=person, says=says)
    paint(pictures.press, "score at least", "Home", area=person, says="0.05: 2 right")
    ious = iou_matrix(found["boxes"], objects).diagonal().tolist()
    mask_ious = [float((a & b).sum() / (a | b).sum()) for a, b in zip(narrow, there, strict=True)]
    about = zip(names, found["scores"].tolist(), ious, mask_ious, strict=True)
    rows = [f"right: {n}, score {s:.2f}, box IoU {iou:.2f}, mask IoU {m:.2f}" for n, s, iou, m in about]
    paint(pictures.choose, "highlight", f"1. {rows[0]}", area=person)
    paint(pictures.choose, "highlight", f"2. {rows[1]}", area=vehicle)
    paint(pictures.choose, "highlight", "nothing: all are drawn", area=vehicle)
    pictures.click("next mistake")
    pictures.says("1 object, 2 detections with a score of at least 0.05: 1 right, 1 nothing there")
    pictures.click("next mistake")
    pictures.says("2 objects, 1 detection with a score of at least 0.05: 1 right, 1 missed")
    pictures.choose("split", "test")
    pictures.says("1 object, 2 detections")
    pictures.choose("split", "val")
    order(pictures, "missed objects", 1)
    look_through(pictures)
    save(pictures, folder, "masks")
