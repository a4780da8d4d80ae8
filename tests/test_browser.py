"""The browsers without a page: a control changes the pixels that it should, counts are lib's, and nothing grows.

What a reader does in JupyterLab and in classic Notebook is in test_browser_pages.
"""

import asyncio
import re
from collections.abc import Callable

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import TinyBackbone
from PIL import Image
from torch import Tensor

from lib.anchors import anchor_levels, pyramid_anchors, pyramid_grids
from lib.boxes import iou_matrix
from lib.config import load_config
from lib.maskhead import paste_masks
from lib.maskrcnn import COURSE_CLASSES, MaskRCNN
from lib.matching import IGNORED, NEGATIVE, POSITIVE, match_anchors
from lib.notebook import controls
from lib.notebook.browser import AnchorBrowser, MaskBrowser, StageBrowser
from lib.preprocess import preprocess_images, preprocess_targets
from lib.rpn import rpn_targets

CONFIG = load_config(
    "demo",
    "image.height=60 image.width=80 backbone.weights=none backbone.channels=16 anchors.scales=(8,16,24,32,40) "
    "rpn.test.pre_nms=300 rpn.test.post_nms=60 boxhead.hidden=32 maskhead.hidden=16 "
    "roi_align.canonical_size=30".split(),
)
ROWS = 600  # of a picture of 400 x 300, without its legend


def scene(n: int):
    """A dark image with a bright object, which lies elsewhere in each; the second image has two."""
    lefts = [40 + 80 * n, 300][: 1 + (n == 1)]
    masks = torch.zeros(len(lefts), 300, 400, dtype=torch.uint8)
    for mask, left in zip(masks, lefts, strict=True):
        mask[60:160, left : left + 90] = 1
    boxes = torch.tensor([[left, 60.0, left + 90, 160] for left in lefts])
    labels = torch.tensor([n + 1, 1][: len(lefts)])
    image = (40 + 180 * masks.amax(dim=0)).expand(3, -1, -1).contiguous()
    return image, {"boxes": boxes, "labels": labels, "masks": masks, "image_id": n}


class Scenes(list):
    classes = COURSE_CLASSES


SCENES = Scenes(scene(n) for n in range(3))


class Finder(torch.nn.Module):
    """Stands for a trained model: in each image a vehicle and a person, and a vehicle that few would believe in."""

    BOXES = torch.tensor([[44.0, 60, 134, 160], [220, 80, 300, 180], [10, 200, 60, 290]])

    def __init__(self):
        super().__init__()
        self.unused, self.seen = torch.nn.Parameter(torch.zeros(1)), 0

    def forward(self, images, stage, paste):
        assert not self.training and images.dtype == torch.uint8 and not paste
        self.seen += len(images)
        found = {"boxes": self.BOXES, "labels": torch.tensor([1, 2, 1]), "scores": torch.tensor([0.9, 0.7, 0.2])}
        probabilities = torch.linspace(0, 1, 28).expand(3, 28, 28)  # from left to right
        return [found | ({"masks": probabilities} if stage == "maskhead" else {})]


def tiny_model() -> MaskRCNN:
    """An untrained model that finds many boxes, of several classes."""
    torch.manual_seed(0)
    model = MaskRCNN(CONFIG, TinyBackbone()).eval()
    for layer in (model.rpn.objectness, model.box_head.classifier, model.mask_head.layers[-1]):
        torch.nn.init.normal_(layer.weight, std=1.0)
    torch.nn.init.normal_(model.box_head.regressor.weight, std=0.05)
    torch.nn.init.ones_(model.mask_head.layers[-1].bias)
    with torch.no_grad():  # no class is everywhere the most probable, and scores differ
        features = model.features(preprocess_images(SCENES[0][0][None], CONFIG.image))
        logits, _ = model.classify(features, [p["boxes"] for p in model.propose(features, (60, 80))])
        model.box_head.classifier.weight *= 2 / logits.std(dim=0, keepdim=True).T
        logits, _ = model.classify(features, [p["boxes"] for p in model.propose(features, (60, 80))])
        model.box_head.classifier.bias -= logits.mean(dim=0)
    return model


MODEL = tiny_model()


def words(browser) -> str:
    return re.sub("<[^>]*>", "", browser.words.value)


def number(browser, pattern: str) -> int:
    """The number before these words."""
    found = re.search(rf"([\d,]+) {pattern}", words(browser))
    assert found, (pattern, words(browser))
    return int(found[1].replace(",", ""))


def change(browser, act: Callable[[], object]) -> np.ndarray:
    """Which pixels (h, w) of the picture above its legend change."""
    before = np.asarray(browser.drawn)
    sent = browser.picture.value
    act()
    assert browser.status.value == "", browser.status.value
    height = min(len(before), browser.drawn.height) - 60  # legends have up to two lines
    changed = (before[:height] != np.asarray(browser.drawn)[:height]).any(axis=2)
    assert (browser.picture.value != sent) or not changed.any()
    return changed


def change_of(browser, control, value) -> np.ndarray:
    return change(browser, lambda: setattr(control, "value", value))


def at_lines(shape, boxes: Tensor, zoom: float, corner: int = 0, captions=False) -> np.ndarray:
    """Pixels (h, w) near the edges of boxes, or where captions of theirs may be."""
    near = np.zeros(shape, bool)
    for box in (boxes * zoom + corner).round().int().tolist():
        outer, inner = np.zeros(shape, bool), np.zeros(shape, bool)
        x1, y1, x2, y2 = box
        by = 24 if captions else 4
        outer[max(0, y1 - by) : max(0, y2 + by), max(0, x1 - 4) : max(0, max(x2, x1 + 90 * captions) + 4)] = True
        inner[max(0, y1 + by + 4) : max(0, y2 - by - 4), max(0, x1 + 8) : max(0, x2 - 8)] = not captions
        near |= outer & ~inner
    return near


# ---- anchors -----------------------------------------------------------------------------------------------------

GRIDS = pyramid_grids(CONFIG.image.padded_size)
ANCHORS, LEVEL_OF = pyramid_anchors(GRIDS, CONFIG.anchors), anchor_levels(GRIDS, 3)
MARGIN = 5  # of the picture of anchors, pixels of the frame
ANCHOR_ZOOM = 800 / (96 + 2 * MARGIN)


def boxes_of(n: int) -> Tensor:
    (target,) = preprocess_targets([{"boxes": SCENES[n][1]["boxes"]}], (300, 400), CONFIG.image)
    return target["boxes"]


@pytest.mark.parametrize("crossing", ["clip", "remove"])
def test_counts_of_anchors_are_those_of_rpn_targets(crossing):
    config = CONFIG.replace(**{"rpn.cross_boundary": crossing})
    at_edge = {"boxes": torch.tensor([[0.0, 0, 100, 60]]), "labels": torch.tensor([2]), "image_id": 3}
    browser = AnchorBrowser(Scenes([*SCENES, (SCENES[0][0], at_edge)]), config)
    assert ("across the boundary" in browser.kinds) == (crossing == "remove")
    for n in range(4):
        browser.position.value = n
        labels, matched = rpn_targets(ANCHORS, browser.see(n).boxes, (60, 80), config.rpn)
        kinds, objects = browser.assigned(browser.see(n))
        assert (kinds["positive"] == (labels == POSITIVE)).all() and (kinds["negative"] == (labels == NEGATIVE)).all()
        assert (objects == matched)[labels == POSITIVE].all() and sum(k.sum() for k in kinds.values()) == len(ANCHORS)
        assert number(browser, "positive") == (labels == POSITIVE).sum() > 0
        assert number(browser, "negative") == (labels == NEGATIVE).sum()
        assert number(browser, "ignored") + sum(kinds.get("across the boundary", [])) == (labels == IGNORED).sum()
        per_level = [int(re.search(rf"P{k} (\d+)", words(browser))[1]) for k in range(2, 7)]
        assert per_level == LEVEL_OF[labels == POSITIVE].bincount(minlength=5).tolist()


def test_thresholds_relabel():
    browser = AnchorBrowser(SCENES, CONFIG)
    for positive, negative in ((0.4, 0.3), (0.4, 0.1), (0.9, 0.6)):
        browser.negative.value = 0.05
        browser.positive.value, browser.negative.value = positive, negative
        labels, _ = match_anchors(iou_matrix(ANCHORS, boxes_of(0)), positive, negative)
        counts = [number(browser, kind) for kind in ("positive", "negative", "ignored")]
        assert counts == [(labels == kind).sum() for kind in (POSITIVE, NEGATIVE, IGNORED)]
    picture = browser.picture.value
    browser.positive.value, browser.negative.value = 0.3, 0.5
    assert "lower the negative threshold" in browser.status.value and browser.picture.value == picture


def test_a_kind_of_anchors_is_drawn_where_its_anchors_are():
    browser = AnchorBrowser(SCENES, CONFIG)
    zoom, corner = ANCHOR_ZOOM, round(MARGIN * ANCHOR_ZOOM)
    kinds, _ = browser.assigned(browser.see(0))
    for kind in ("negative", "ignored", "positive"):
        anchors, ticked = ANCHORS[kinds[kind]], browser.kinds[kind].value
        changed = change_of(browser, browser.kinds[kind], not ticked)
        near = at_lines(changed.shape, anchors, zoom, corner)
        near |= at_lines(changed.shape, anchors, zoom, corner, captions=True) if kind == "positive" else False
        assert changed.any() and not (changed & ~near).any()
    assert f"(40 of {int(kinds['negative'].sum()):,} drawn)" in words(browser)
    assert not change_of(browser, browser.kinds["negative"], False).all()
    assert "drawn" not in words(browser).split("ignored")[0]


def test_level_ratio_and_object_choose_anchors():
    browser = AnchorBrowser(SCENES, CONFIG)
    browser.position.value, browser.kinds["negative"].value = 1, True
    labels, matched = rpn_targets(ANCHORS, boxes_of(1), (60, 80), CONFIG.rpn)
    ratio_of = torch.arange(len(ANCHORS)) % 3
    for control, value, here in (
        (browser.level, "P3", LEVEL_OF == 1),
        (browser.ratio, 2, ratio_of == 2),
        (browser.object, 1, (matched == 1) & (iou_matrix(ANCHORS, boxes_of(1))[:, 1] > 0)),
    ):
        before = control.value
        assert change_of(browser, control, value).any()
        assert number(browser, "negative") == ((labels == NEGATIVE) & here).sum()
        assert number(browser, "positive") == ((labels == POSITIVE) & here).sum()
        control.value = before
    browser.object.value = 1
    browser.position.value = 0
    assert browser.object.value == -1 and len(browser.object.options) == 2  # this image has one object


def test_the_heat_map_is_the_best_iou_of_each_cell():
    browser = AnchorBrowser(SCENES, CONFIG)
    changed = change_of(browser, browser.heat, True)
    corner, frame = round(MARGIN * ANCHOR_ZOOM), [round(n * ANCHOR_ZOOM) for n in (64, 96)]
    assert changed[corner : corner + 200, corner : corner + frame[1]].mean() > 0.9 and not changed[: corner - 4].any()
    best = iou_matrix(ANCHORS, boxes_of(0)).amax(dim=1)
    maps = browser._maps(best)
    assert [tuple(m.shape) for m in maps] == list(GRIDS)
    assert maps[1][3, 4] == best[LEVEL_OF == 1].reshape(*GRIDS[1], 3)[3, 4].max()
    assert "best IoU of a cell's anchors, 0 to 1" in browser.draw(browser.see(0), 1)[0].legend


def test_objects_that_no_anchor_fits_come_first():
    browser = AnchorBrowser(SCENES, CONFIG)
    worst = [float(iou_matrix(ANCHORS, boxes_of(n)).amax(dim=0).min()) for n in range(3)]
    browser.order.value = "objects that no anchor fits, worst first"
    assert browser.images == sorted(range(3), key=lambda n: worst[n])
    assert f"the 1. of 3 in “{browser.order.value}”" in words(browser)


# ---- stages ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def lib_says(score: float, rpn_nms: float, box_nms: float) -> tuple[Tensor, Tensor]:
    """The proposals and the detections of the first image that score enough, from lib's own forward pass."""
    config = CONFIG.replace(**{"rpn.nms_iou": rpn_nms, "boxhead.test.nms_iou": box_nms})
    model = tiny_model()
    model.config = config
    features = model.features(preprocess_images(SCENES[0][0][None], config.image))
    (proposed,) = model.propose(features, (60, 80))
    (found,) = model.detect(features, [proposed["boxes"]], (60, 80))
    return tuple(result["boxes"][result["scores"] >= score] for result in (proposed, found))


@pytest.mark.parametrize("score, nms", [(0.05, 0.1), (0.05, 0.7), (0.6, 0.5), (0.05, 1.0)])
def test_nms_keeps_what_libs_keeps(score, nms):
    browser = StageBrowser(MODEL, SCENES, "maskhead")
    browser.score.value = score
    assert len(browser.see(0).refined["labels"].unique()) == 3
    for part, slider, which in (("2 proposals", browser.rpn_nms, 0), ("3 refined boxes", browser.box_nms, 1)):
        browser.part.value, slider.value = part, nms
        wanted = lib_says(score, *((nms, 0.5) if which == 0 else (CONFIG.rpn.nms_iou, nms)))[which]
        boxes, kept = browser.chosen(browser.see(0))
        torch.testing.assert_close(boxes["boxes"][kept], wanted, rtol=0, atol=1e-4)
        assert f"keeps {len(wanted)} " in words(browser) and number(browser, "box") == len(boxes["boxes"])
        assert f"suppresses {len(boxes['boxes']) - len(kept)} " in words(browser)
        slider.value = CONFIG.value("rpn.nms_iou" if which == 0 else "boxhead.test.nms_iou")


def test_one_forward_pass_an_image_whatever_moves(monkeypatch):
    seen = []
    monkeypatch.setattr(MODEL, "features", lambda x, own=MODEL.features: seen.append(1) or own(x))
    browser = StageBrowser(MODEL, SCENES, "maskhead")
    for part in browser.part.options:
        browser.part.value = part
        browser.score.value = 0.1 if browser.score.value > 0.1 else 0.3
        browser.rpn_nms.index -= 2
        browser.box_nms.index -= 2
    assert len(seen) == 1
    browser.step(1)
    browser.step(-1)
    assert len(seen) == 2


def test_every_control_of_the_stages_changes_what_it_names():
    browser = StageBrowser(MODEL, SCENES, "maskhead")
    browser.score.value = 0.05
    boxes, kept = browser.chosen(browser.see(0))
    gone = np.setdiff1d(np.arange(len(boxes["boxes"])), kept)
    changed = change_of(browser, browser.suppressed, False)
    assert len(gone) and changed.any()
    assert not (changed & ~at_lines(changed.shape, boxes["boxes"][gone], 10)).any()
    more = boxes["boxes"][kept[:30]][5:]
    changed = change_of(browser, browser.most, 5)
    near = at_lines(changed.shape, more, 10) | at_lines(changed.shape, boxes["boxes"][kept[:30]], 10, captions=True)
    assert changed.any() and not (changed & ~near).any() and "(5 drawn)" in words(browser)
    assert change_of(browser, browser.truth, False).any()
    assert change_of(browser, browser.rpn_nms, 0.1).any()
    assert not browser.rpn_nms.disabled and browser.box_nms.disabled
    for part in ("1 anchors", "3 refined boxes", "4 masks"):
        assert change_of(browser, browser.part, part).any()
    assert not browser.box_nms.disabled and number(browser, "masks? drawn") == 5
    assert change_of(browser, browser.box_nms, 0.1).any() and change_of(browser, browser.score, 0.95).any()


@pytest.mark.parametrize("stage, parts", [("rpn", 2), ("boxhead", 3), ("maskhead", 4), ("joint", 4)])
def test_as_far_as_the_model_is_trained(stage, parts):
    browser = StageBrowser(MODEL, SCENES, stage)
    assert len(browser.part.options) == parts and len(browser.order.options) == (2 if stage == "rpn" else 4)
    for part in browser.part.options:
        browser.part.value = part
        assert browser.status.value == ""


# ---- masks -------------------------------------------------------------------------------------------------------


def test_rows_are_detections_and_missed_objects():
    browser = MaskBrowser(Finder(), SCENES, "maskhead")
    first, second = (text for text, _ in browser.rows.options[1:])
    iou = float(iou_matrix(Finder.BOXES[:1], SCENES[0][1]["boxes"]))
    pasted = paste_masks(torch.linspace(0, 1, 28).expand(1, 28, 28), Finder.BOXES[:1], (300, 400))[0]
    truth = SCENES[0][1]["masks"][0]
    mask_iou = float((pasted & truth).sum() / (pasted | truth).sum())
    assert first == f"1. right: vehicle, score 0.90, box IoU {iou:.2f}, mask IoU {mask_iou:.2f}"
    assert second.startswith("2. nothing there: person, score 0.70, box IoU 0.00")
    assert "1 object, 2 detections with a score of at least 0.50: 1 right, 1 nothing there" in words(browser)
    browser.score.value = 0.95
    assert [text for text, _ in browser.rows.options[1:]] == ["missed: vehicle"]
    assert "1 object, 0 detections with a score of at least 0.95: 1 missed" in words(browser)


def test_every_control_of_the_masks_changes_what_it_names():
    browser = MaskBrowser(Finder(), {"val": SCENES, "test": Scenes(SCENES[1:])}, "maskhead")
    within = {}
    for n, (x1, y1, x2, y2) in enumerate((2 * Finder.BOXES).int().tolist()):
        within[n] = np.zeros((ROWS, 800), bool)
        within[n][max(0, y1 - 26) : y2 + 26, x1 - 6 : max(x2, x1 + 90) + 6] = True
    changed = change_of(browser, browser.score, 0.1)
    assert changed[410:, 20:120].any() and not (changed & ~within[2][: len(changed)]).any()
    changed = change_of(browser, browser.score, 0.8)
    assert changed.any() and not (changed & ~(within[2] | within[1])[: len(changed)]).any()
    browser.score.value = 0.5
    for control, value in ((browser.threshold, 0.9), (browser.opacity, 1.0), (browser.boxes, False)):
        changed = change_of(browser, control, value)
        truth = at_lines(changed.shape, SCENES[0][1]["boxes"], 2)
        assert changed.any() and not (changed & ~(within[0] | within[1])[: len(changed)] & ~truth).any()
    browser.boxes.value = True
    changed = change_of(browser, browser.of, 2)
    assert changed.any() and number(browser, "object") == 0 and number(browser, "detection") == 1
    browser.of.value = -1
    for what in ("prediction", "ground truth", "difference in pixels"):
        assert change_of(browser, browser.what, what).any()
    assert change_of(browser, browser.split, "test").any() and len(browser.images) == 2


def test_a_row_that_is_chosen_is_drawn_alone_and_stays_with_its_image():
    browser = MaskBrowser(Finder(), SCENES, "maskhead")
    changed = change_of(browser, browser.rows, browser.rows.options[1][1])
    assert changed[150:380, 430:620].any()  # the second detection is gone
    assert list(browser.draw(browser.see(0), 1)[0].legend) == ["vehicle", "ground truth"]
    chosen = browser.rows.value
    browser.opacity.value = 0.9
    assert browser.rows.value == chosen
    browser.step(1)
    assert browser.rows.value == ()


def test_the_difference_counts_pixels():
    browser = MaskBrowser(Finder(), SCENES, "maskhead")
    browser.what.value = "difference in pixels"
    found = paste_masks(torch.linspace(0, 1, 28).expand(2, 28, 28), Finder.BOXES[:2], (300, 400)).amax(dim=0).bool()
    truth = SCENES[0][1]["masks"][0].bool()
    hit, false, missed = (int(m.sum()) for m in (found & truth, found & ~truth, truth & ~found))
    assert f"{hit:,} pixels hit, {false:,} pixels false, {missed:,} pixels missed" in words(browser)
    assert f"IoU {hit / (hit + false + missed):.2f}." in words(browser) and min(hit, false, missed) > 0
    browser.rows.value = browser.rows.options[1][1]
    assert number(browser, "pixels false") < false


def test_mistakes_are_found_listed_and_listed_anew():
    model = Finder()
    browser = MaskBrowser(model, SCENES, "maskhead")
    browser.score.value = 0.8
    browser.next_mistake()
    assert browser.index == 1 and "missed" in words(browser)
    browser.order.value = "missed objects"
    assert browser.images == [1, 2] and model.seen == 3  # the second image misses two objects
    browser.order.value = "false detections"
    assert browser.images == [1, 2] or browser.images == [2, 1]
    browser.score.value = 0.5
    assert sorted(browser.images) == [0, 1, 2] and model.seen == 3
    browser.order.value = "right, but the worst masks first"
    assert browser.images == [0] and model.seen == 3
    browser.next_mistake()
    assert "no other image" in browser.status.value and browser.index == 0
    browser.score.value = 0.95
    assert "no image belongs to" in browser.status.value and browser.images == [0]
    browser.order.value = controls.IN_ORDER
    assert browser.images == [0, 1, 2] and browser.index == 0


def test_without_a_mask_head_there_are_boxes():
    browser = MaskBrowser(Finder(), SCENES, "boxhead")
    assert "mask IoU" not in browser.rows.options[1][0] and len(browser.order.options) == 3
    assert browser.status.value == ""
    with pytest.raises(ValueError, match="StageBrowser"):
        MaskBrowser(Finder(), SCENES, "rpn")


# ---- what they share ---------------------------------------------------------------------------------------------


def every_browser() -> list:
    return [
        AnchorBrowser(SCENES, CONFIG),
        StageBrowser(MODEL, SCENES, "maskhead"),
        MaskBrowser(Finder(), {"val": SCENES, "test": SCENES}, "maskhead"),
    ]


def every_widget(widget) -> list:
    return [widget, *(below for child in getattr(widget, "children", ()) for below in every_widget(child))]


def test_images_are_stepped_through_and_played():
    browser = AnchorBrowser(SCENES, CONFIG)
    first = browser.picture.value
    (back,) = [w for w in every_widget(browser) if getattr(w, "description", "") == "◀ back"]
    back.click()
    assert browser.index == 2 and browser.picture.value != first  # round the end
    browser.play.value = 1
    assert browser.index == 1 and words(browser).startswith("Image 1: 2 objects")
    browser.position.value = 0
    assert browser.play.value == 0 and browser.picture.value == first  # equal controls, equal picture
    assert words(browser).startswith("Image 0: 1 object;")


def test_only_what_old_and_new_ipywidgets_share():
    kinds = {type(widget).__name__ for browser in every_browser() for widget in every_widget(browser)[1:]}
    shared = {"VBox", "HBox", "IntSlider", "SelectionSlider", "Dropdown", "Checkbox", "Button", "Image", "HTML", "Play"}
    assert kinds <= shared | {"Select"}


def test_a_fraction_outside_of_the_steps_can_be_where_a_slider_starts():
    chosen = [label for label, _ in controls.slider("IoU", 0.33, 0.3, 0.4, "").options]
    assert chosen == ["0.30", "0.33", "0.35", "0.40"]


def test_sliders_are_wide_and_wait_until_they_are_let_go():
    sliders = [w for browser in every_browser() for w in every_widget(browser) if "Slider" in type(w).__name__]
    assert len(sliders) == 3 + 5 + 4
    for slider in sliders:
        assert not slider.continuous_update and int(slider.layout.width.removesuffix("px")) >= 400
        assert len(slider.description) * 8 < int(slider.style.description_width.removesuffix("px"))


def test_every_control_says_what_it_is_for():
    for browser in every_browser():
        for widget in every_widget(browser):
            if isinstance(widget, widgets.widget_description.DescriptionWidget) and not isinstance(
                widget, (widgets.HTML, widgets.Play)
            ):
                assert widget.description and len(widget.tooltip) > 10
    assert "arrow keys" in browser.children[-1].value and 'role="status"' in browser.words.value


def test_the_picture_is_saved_twice_as_fine_and_its_names_are_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKRCNN_FIGURES", str(tmp_path))
    browser = MaskBrowser(Finder(), SCENES, "maskhead")
    browser.position.value = 1
    shown = np.asarray(browser.drawn).astype(int)
    browser.save()
    for ending in ("pdf", "png"):
        assert f"browser_masks_1.{ending}" in browser.status.value
        assert (tmp_path / f"browser_masks_1.{ending}").stat().st_size > 5000
    with Image.open(tmp_path / "browser_masks_1.png") as saved:
        edge = (saved.width - 2 * shown.shape[1]) // 2
        inner = saved.convert("RGB").crop((edge, edge, saved.width - edge, saved.height - edge))
    assert edge >= 0 and np.abs(np.asarray(inner.resize(shown.shape[1::-1])).astype(int) - shown).mean() < 6
    assert plt.get_fignums() == []


def test_an_error_is_told_in_a_sentence():
    class Damaged(Scenes):
        def __getitem__(self, n):
            if n == 1:
                raise ValueError("images.h5 is damaged at <1>: copy it again\nand more")
            return super().__getitem__(n) if n == 0 else None

    browser = AnchorBrowser(Damaged(SCENES), CONFIG)
    browser.position.value = 1
    assert "images.h5 is damaged at &lt;1&gt;: copy it again</div>" in browser.status.value
    browser.position.value = 2
    assert "TypeError: " in browser.status.value
    browser.position.value = 0
    assert browser.status.value == "" and words(browser).startswith("Image 0")


def test_an_empty_data_set_is_refused():
    for build in (
        lambda e: AnchorBrowser(e, CONFIG),
        lambda e: StageBrowser(MODEL, e),
        lambda e: MaskBrowser(MODEL, e),
    ):
        with pytest.raises(ValueError, match="no images"):
            build(Scenes())


def test_an_image_without_objects_is_drawn():
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    bare = Scenes([(SCENES[0][0], {**nothing, "masks": torch.zeros(0, 300, 400, dtype=torch.uint8), "image_id": 0})])
    browsers = (
        AnchorBrowser(bare, CONFIG),
        StageBrowser(MODEL, bare, "maskhead"),
        MaskBrowser(Finder(), bare, "maskhead"),
    )
    for browser in browsers:
        assert browser.status.value == "" and "0 objects" in words(browser)
    browsers[0].heat.value = True
    browsers[2].what.value = "difference in pixels"
    assert browsers[0].status.value == browsers[2].status.value == ""


def test_nothing_grows(monkeypatch):
    monkeypatch.setattr(controls, "KEPT", 2)
    for browser in every_browser():
        alive = len(widgets.Widget.widgets if hasattr(widgets.Widget, "widgets") else widgets.widget._instances)
        for n in range(6):
            browser.position.value = n % 3
            browser.redraw()
        after = len(widgets.Widget.widgets if hasattr(widgets.Widget, "widgets") else widgets.widget._instances)
        assert after == alive and browser.see.cache_info().currsize == 2 and browser.record.cache_info().currsize == 0
    assert plt.get_fignums() == []


def test_the_next_image_is_looked_at_while_the_kernel_is_idle(monkeypatch):
    monkeypatch.setattr(controls, "IDLE", 0.01)
    model = Finder()

    async def kernel():
        browser = MaskBrowser(model, SCENES, "maskhead")
        assert model.seen == 1
        await asyncio.sleep(0.2)
        assert model.seen == 2 and browser.index == 0
        browser.step(1)
        assert model.seen == 2  # it had been seen
        monkeypatch.setattr(controls, "LONG", -1.0)
        await asyncio.sleep(0.2)
        assert model.seen == 3
        browser.step(-1), browser.redraw()
        assert browser._timer is None  # one that takes long is the last

    asyncio.run(kernel())
