"""The explorer: what its page counts in a real browser is what lib computes on the very numbers that the page holds."""

import copy
import gzip
import json
import re
import shutil
from base64 import b64decode
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from handin import explorer
from handin.__main__ import main
from lib.anchors import LEVELS, anchor_levels, pyramid_anchors, pyramid_grids
from lib.boxes import clip, encode, inside, iou_matrix, scale_boxes
from lib.data.reader import CourseDataset
from lib.maskhead import mask_targets, paste_masks
from lib.maskrcnn import MaskRCNN
from lib.matching import IGNORED, NEGATIVE, POSITIVE, match_anchors
from lib.preprocess import content_size, preprocess_images, preprocess_targets
from lib.rpn import rpn_targets
from lib.scores import coco_ap
from lib.scores.results import box_results
from lib.training.checkpoint import save_stage
from tests.conftest import TinyBackbone

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MISSING = [name for name in ("playwright",) if find_spec(name) is None] + ["chromium"] * (CHROMIUM is None)
CLASSES = ('<b>&"', "</script>", "é ü")
SIZE = (300, 400)
JOINT = {"boxhead.test.score_threshold": 0.05}  # every class; without, each proposal's best
STAGES = {"joint": JOINT, "maskhead": {"rpn.cross_boundary": "remove"}}  # the pages: one a rule


class Page:
    """What a page holds, read back from its file; `model` and `data` are those that it was written from."""

    def __init__(self, path, model, data):
        self.path, self.model, self.data, self.config = path, model, data, model.config
        text = re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)[1]
        self.about = json.loads(text)
        held = gzip.decompress(b64decode(self.about["packed"]))
        self.images = [
            {name: torch.from_numpy(self.array(held, *place)) for name, place in image["arrays"].items()}
            for image in self.about["images"]
        ]
        self.content, self.truth = content_size(*SIZE, self.config.image), coco_ap.ground_truth(data)

    @staticmethod
    def array(held, kind, start, count):
        return np.frombuffer(held, kind.removesuffix("Array").lower(), count, start).copy()

    def number(self, n: int) -> int:
        return self.about["images"][n]["number"]

    def boxes(self, n: int, name: str) -> torch.Tensor:
        return self.images[n][name].view(-1, 4)

    def labels(self, n: int, name: str = "labels") -> torch.Tensor:
        return self.images[n][name].long()

    def truth_masks(self, n: int) -> torch.Tensor:
        bits = self.images[n]["truth_masks"].view(len(self.labels(n, "truth_labels")), -1).numpy()
        return torch.from_numpy(np.unpackbits(bits, axis=1)).view(-1, *SIZE)

    def in_picture(self, boxes: torch.Tensor) -> torch.Tensor:
        return clip(scale_boxes(boxes, SIZE[1] / self.content[1], SIZE[0] / self.content[0]), *SIZE)


@pytest.fixture(scope="module")
def pages(scenes, config, tmp_path_factory):
    """A page for each rule, about five scenes with odd names, of a network that is right now and then."""
    folder = tmp_path_factory.mktemp("explorer")
    data = CourseDataset(shutil.copytree(scenes, folder / '<i>&"'))
    data.classes, data.indices = CLASSES, data.indices[:5]
    return {stage: written(folder / f"{stage}.html", config, data, stage) for stage in STAGES}


def written(path, config, data, stage) -> Page:
    few = {"rpn.test.pre_nms": 150, "rpn.test.post_nms": 60}
    model = Knowing(config.replace(classes=CLASSES, **few, **STAGES[stage]), data)
    return Page(explorer.write_explorer(model, data, stage, path=path), model, data)


class Knowing(MaskRCNN):
    """Sees where the objects are, through a noise that depends on the place alone: right and wrong of every kind."""

    def __init__(self, config, data):
        super().__init__(config, TinyBackbone())
        self.seen = {key(preprocess_images(data[n][0][None], config.image)): data[n][1] for n in range(len(data))}
        del self.rpn
        self.rpn = self.scored_anchors
        self.eval()

    def features(self, images):
        target = self.seen[key(images)]
        (scaled,) = preprocess_targets([{"boxes": target["boxes"]}], SIZE, self.config.image)
        self.boxes, self.labels, self.masks = scaled["boxes"], target["labels"], target["masks"]
        return super().features(images)

    def scored_anchors(self, features):
        anchors = self.anchors(features)
        logits = 8 * iou_matrix(anchors, self.boxes).amax(dim=1) + noise(anchors, 1) - 4
        return logits[None], torch.stack([noise(anchors, k) / 4 for k in range(4)], dim=1)[None]

    def classify(self, features, boxes):
        (proposals,) = boxes
        overlap, nearest = iou_matrix(proposals, self.boxes).max(dim=1)
        logits = torch.stack([2 * noise(proposals, k) for k in range(len(CLASSES) + 1)], dim=1)
        logits[:, 0] += 1
        logits[torch.arange(len(proposals)), self.labels[nearest]] += torch.where(nearest == 0, 7 * overlap, 0)
        deltas = 0.7 * encode(self.boxes[nearest], proposals)
        deltas += torch.stack([noise(proposals, k + 5) / 9 for k in range(4)], dim=1)
        return logits, deltas[:, None].expand(-1, len(CLASSES), -1)

    def segment(self, features, boxes, labels):
        nearest = iou_matrix(boxes[0], self.boxes).argmax(dim=1)
        scale = SIZE[1] / self.config.image.width, SIZE[0] / self.config.image.height
        masks = mask_targets(scale_boxes(boxes[0], *scale), nearest, self.masks)
        shift = 0.1 + 0.5 * noise(boxes[0], 9)[:, None, None]  # some masks are all box, some hardly there
        return [(shift + 0.6 * masks + 0.1 * torch.linspace(-1, 1, 28)).clamp(0, 1)]


def key(images) -> float:
    return float(images.double().sum())


def noise(boxes, k: int) -> torch.Tensor:
    """A number from -1 to 1 for each box, the same whichever others come with it."""
    x1, y1, x2, y2 = boxes.double().unbind(1)
    return torch.sin((k + 1) * (12.9 * x1 + 7.8 * y1 + 3.7 * x2 + 4.1 * y2)).float()


# ---- without a browser -------------------------------------------------------------------------------------------


def test_the_page_is_small_and_the_same_each_time(pages, tmp_path):
    page = pages["joint"]
    again = explorer.write_explorer(page.model, page.data, "joint", path=tmp_path / "again.html")
    assert again.read_bytes() == page.path.read_bytes()
    assert len(page.path.read_bytes()) < explorer.MOST_BYTES
    assert len(page.images) == len(page.data) and min(len(image["scores"]) for image in page.images) > 0


def test_a_page_that_would_be_too_large_holds_fewer_candidates(pages, tmp_path, monkeypatch):
    model, data = pages["joint"].model, copy.copy(pages["joint"].data)
    data.indices = data.indices[:1]
    whole = explorer.write_explorer(model, data, "joint", path=tmp_path / "whole.html")
    monkeypatch.setattr(explorer, "MOST_BYTES", whole.stat().st_size - 1)
    monkeypatch.setattr(explorer, "MOST_CANDIDATES", (600, 3))
    small = Page(explorer.write_explorer(model, data, "joint", path=tmp_path / "small.html"), model, data)
    assert small.about["most"] == 3 == len(small.images[0]["scores"]) < len(pages["joint"].images[0]["scores"])
    monkeypatch.setattr(explorer, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="larger than 1,000 bytes"):
        explorer.write_explorer(model, data, "joint", path=tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_kinds_by_hand():
    """Two objects of class 1 and one of class 2; six detections and their verdicts."""
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    masks = torch.zeros(3, 20, 60, dtype=torch.uint8)
    for mask, box in zip(masks, truth.int().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 1
    target = {"boxes": truth, "labels": torch.tensor([1, 1, 2]), "masks": masks}
    found = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 10], [40, 0, 50, 10], [27, 0, 37, 10], [0, 12, 9, 19]])
    said = {"boxes": found, "labels": torch.tensor([1, 1, 1, 1, 1]), "masks": torch.stack([masks[0]] * 5)}
    kinds = ["right", "duplicate", "wrong class", "badly placed", "nothing there", "missed", "missed"]
    assert explorer.kinds_of(said, target) == kinds
    said["masks"][0] = masks[1]
    assert explorer.kinds_of(said, target)[0] == "bad mask"
    nothing = {name: value[:0] for name, value in said.items()}
    assert explorer.kinds_of(nothing, target) == ["missed"] * 3
    assert explorer.kinds_of(said, {name: value[:0] for name, value in target.items()}) == ["nothing there"] * 5


def test_each_kind_is_chosen_in_turn():
    kinds = [["right"]] * 5 + [["right", "missed"], ["nothing there"], ["missed"], [], ["right", "bad mask"]]
    assert explorer.choose(kinds, 4) == [0, 5, 6, 9]
    assert explorer.choose(kinds, 5) == [0, 1, 5, 6, 9]
    assert explorer.choose(kinds, 24) == list(range(10))


@pytest.mark.parametrize("stage", STAGES)
def test_the_candidates_are_what_refine_takes(pages, stage):
    """With NMS and limits as the config has them, the page's candidates leave what the model itself detects."""
    page = pages[stage]
    for n, image in enumerate(page.images):
        kept, found = proposed(page, n), detected(page, n)
        chosen = [d for d, origin in enumerate(page.labels(n, "origins").tolist()) if origin in kept]
        assert len(chosen) >= len(found["scores"]) > 0
        best = chosen[0]
        torch.testing.assert_close(image["scores"][best], found["scores"][0])
        torch.testing.assert_close(page.boxes(n, "boxes")[best], found["boxes"][0], atol=1e-3, rtol=0)


def test_what_is_missing_is_said_in_one_sentence(tmp_path, tiny_model):
    with pytest.raises(SystemExit, match="error: no trained stage in .*: train with"):
        main(["explorer", "--weights", str(tmp_path)])
    save_stage(tiny_model(), tmp_path, "rpn", {})
    with pytest.raises(SystemExit, match="error: .* has no mask head, which the explorer shows: train it with"):
        main(["explorer", "--weights", str(tmp_path)])


def test_a_notebook_shows_a_link_and_colab_the_page(pages, monkeypatch):
    path = pages["joint"].path
    assert path.name in explorer.shown(path).data and len(explorer.shown(path).data) < 1000
    monkeypatch.setattr(explorer, "in_colab", lambda: True)
    assert explorer.shown(path).data.startswith("<div><iframe srcdoc=")


# ---- lib's own numbers, for a state of the page ------------------------------------------------------------------


def features(page, n):
    image = page.data[page.data.indices.index(page.number(n))][0][None]
    return page.model.features(preprocess_images(image, page.config.image))


@torch.no_grad()
def proposed(page, n, **numbers) -> list[int]:
    """The places, among the boxes that the page holds, of those that lib proposes."""
    config, model = page.config, page.model
    model.config = config.replace(**{f"rpn.{name}": value for name, value in numbers.items()})
    try:
        (found,) = model.propose(features(page, n), page.content)
    finally:
        model.config = config
    same = (page.boxes(n, "rpn_boxes")[None] == found["boxes"][:, None]).all(dim=2)
    assert same.any(dim=1).all()
    return same.int().argmax(dim=1).tolist()


@torch.no_grad()
def detected(page, n, proposals=None, **numbers):
    config, model, chosen = page.config, page.model, proposed(page, n) if proposals is None else proposals
    model.config = config.replace(**{f"boxhead.test.{name}": value for name, value in numbers.items()})
    try:
        return model.detect(features(page, n), [page.boxes(n, "rpn_boxes")[chosen]], page.content)[0]
    finally:
        model.config = config


def hits(page, n, found) -> int:
    """Right detections by pycocotools, through lib."""
    truth, number = page.truth, page.number(n)
    rows = box_results(number, page.in_picture(found["boxes"]), found["labels"], found["scores"])
    curves = coco_ap.precision_recall(coco_ap.coco_evaluation(truth, rows, "bbox", sizes=False)) if rows else []
    objects = [len(truth.getAnnIds(catIds=[k])) for k in range(1, len(CLASSES) + 1)]  # of all images: so is the recall
    return round(sum(float(r[-1]) * count for (r, _), count in zip(curves, objects, strict=False) if len(r)))


# ---- in a real browser -------------------------------------------------------------------------------------------

READ = """hash => new Promise((done) => {
  const read = () => ({
    facts: Object.fromEntries([...document.querySelectorAll("#facts dd[data-name]")].map(({ dataset }) =>
      [dataset.name, dataset.value === "" ? null : +dataset.value])),
    rows: [...document.querySelectorAll("#table tbody tr")].map((row) => [...row.cells].map((cell) => cell.innerText)),
    proposals: [...proposals(current())], detections: [...detections(current())], state,
  });
  addEventListener("hashchange", () => requestAnimationFrame(() => setTimeout(() => done(read()))), { once: true });
  location.hash = hash;
})"""


KINDS_THERE = """() => IMAGES.map((image) => {
  const { judged, missed } = verdicts(image);
  return [...judged.map(({ kind }) => kind), ...missed.map(() => "missed")];
})"""


@pytest.fixture(scope="module")
def browser():
    if MISSING:
        pytest.skip(f"needs {', '.join(MISSING)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, pages):
    """A function that opens a page; what goes wrong in it, or what it asks a network for, fails the test."""
    tabs, errors = [], []

    def open_page(stage="joint", hash="", **options):
        tabs.append(browser.new_page(viewport={"width": 1280, "height": 800}, **options))
        tabs[-1].set_default_timeout(60_000)
        tabs[-1].on("pageerror", lambda error: errors.append(str(error)))
        tabs[-1].on("request", lambda r: r.url.startswith(("file:", "data:", "about:")) or errors.append(r.url))
        tabs[-1].goto(pages[stage].path.as_uri() + hash)
        tabs[-1].locator("#facts dd").first.wait_for()
        return tabs[-1]

    yield open_page
    for tab in tabs:
        tab.close()
    assert not errors


ANCHOR_STATES = [
    ({}, None, None, None),
    ({"positive": 0.45, "negative": 0.2}, None, None, None),
    ({"positive": 0.2, "negative": 0.6}, [1, 2], None, None),
    ({"negative": 0.05}, None, [0, 2], None),
    ({"positive": 0.3}, [0, 1, 2, 3], [1], 0),
]


@pytest.mark.parametrize("stage", STAGES)
def test_anchors_are_counted_as_lib_labels_them(pages, opened, stage):
    page, tab = pages[stage], opened(stage)
    config, n, removes = page.config, 1, page.config.rpn.cross_boundary == "remove"
    grids = pyramid_grids(config.image.padded_size)
    anchors, ratios = pyramid_anchors(grids, config.anchors), len(config.anchors.ratios)
    level, ratio = anchor_levels(grids, ratios), torch.arange(len(anchors)) % ratios
    outside = ~inside(anchors, *page.content) & removes
    iou = iou_matrix(page.boxes(n, "truth_boxes"), anchors).mT.masked_fill(outside[:, None], 0)
    for thresholds, levels, shapes, chosen in ANCHOR_STATES:
        words = thresholds | ({"levels": ".".join(str(k + 1) for k in levels)} if levels else {})
        words |= ({"ratios": ".".join(str(k + 1) for k in shapes)} if shapes else {}) | {"kinds": "1.2.3.4"}
        words |= {"object": chosen + 1} if chosen is not None else {}
        seen = tab.evaluate(READ, hash_of(page, n, "anchors", **words))
        labels, matched = match_anchors(iou, thresholds.get("positive", 0.7), thresholds.get("negative", 0.3))
        labels = labels.masked_fill(outside, IGNORED)
        if not thresholds:
            assert (labels == rpn_targets(anchors, page.boxes(n, "truth_boxes"), page.content, config.rpn)[0]).all()
        kinds = [labels == POSITIVE, (labels == IGNORED) & ~outside, labels == NEGATIVE, outside][: 3 + removes]
        right_shape = torch.isin(ratio, torch.tensor(shapes or range(ratios)))
        for k, name in enumerate(LEVELS):
            counts = [int((kind & right_shape & (level == k)).sum()) for kind in kinds]
            assert [int(cell.replace(",", "")) for cell in seen["rows"][k][1:]] == counts, (name, words)
        mine = right_shape & torch.isin(level, torch.tensor(levels or range(5)))
        if chosen is not None:
            mine &= (matched == chosen) & (iou.amax(dim=1) > 0)
        names = ("positive", "ignored", "negative", "outside")
        assert [seen["facts"][f"shown_{name}"] for name in names[: len(kinds)]] == [
            int((k & mine).sum()) for k in kinds
        ]
        highest = float(iou.amax(dim=1)[mine].max())
        assert seen["facts"]["highest"] == pytest.approx(highest, abs=1e-7)


def hash_of(page, n, stage, **words) -> str:
    return "#" + "&".join(
        f"{name}={value}" for name, value in {"image": page.number(n), "stage": stage, **words}.items()
    )


PROPOSAL_STATES = [
    (0, {}),
    (1, {"K": 100, "N": 20, "rpn_nms": 0.5}),
    (1, {"K": 100, "N": 20, "rpn_nms": 0.35}),
    (2, {"N": 5}),
    (3, {"K": 140, "N": 140, "rpn_nms": 0.31}),
]


def test_proposals_survive_as_in_lib(pages, opened):
    page, tab, names = pages["joint"], opened(), {"K": "test.pre_nms", "N": "test.post_nms", "rpn_nms": "nms_iou"}
    for n, numbers in PROPOSAL_STATES:
        seen = tab.evaluate(READ, hash_of(page, n, "rpn", **numbers))
        kept = proposed(page, n, **{names[name]: value for name, value in numbers.items()})
        assert seen["proposals"] == kept and seen["facts"]["kept"] == len(kept)
        best = iou_matrix(page.boxes(n, "truth_boxes"), page.boxes(n, "rpn_boxes")[kept]).amax(dim=1)
        assert seen["facts"]["recall"] == float((best >= 0.5).float().mean())
        steps = torch.arange(0.5, 1, 0.05)
        assert seen["facts"]["average_recall"] == pytest.approx(
            float((best[:, None] >= steps).float().mean()), abs=1e-6
        )
        assert [float(row[1]) for row in seen["rows"]] == pytest.approx(best.tolist(), abs=5.1e-4)


DETECTION_STATES = [
    ("joint", 0, {}, {}),
    ("joint", 1, {"score": 0.3, "nms": 0.3}, {}),
    ("joint", 4, {"score": 0.05, "nms": 0.9}, {"N": 40, "rpn_nms": 0.5}),
    ("maskhead", 2, {"score": 0.4, "nms": 0.7}, {}),
]


@pytest.mark.parametrize("stage, n, numbers, of_rpn", DETECTION_STATES)
def test_detections_survive_as_in_lib_and_are_judged_as_by_coco(pages, opened, stage, n, numbers, of_rpn):
    page, tab = pages[stage], opened(stage)
    seen = tab.evaluate(READ, hash_of(page, n, "boxhead", **numbers, **of_rpn))
    names = {"N": "test.post_nms", "rpn_nms": "nms_iou"}
    kept = proposed(page, n, **{names[name]: value for name, value in of_rpn.items()})
    found = detected(page, n, kept, nms_iou=numbers.get("nms", page.config.boxhead.test.nms_iou))
    found = {name: value[found["scores"] >= numbers.get("score", 0.5)] for name, value in found.items()}
    mine = seen["detections"]
    assert len(mine) == len(found["scores"]) == seen["facts"]["detections"] > 0
    torch.testing.assert_close(page.images[n]["scores"][mine], found["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(page.boxes(n, "boxes")[mine], found["boxes"], atol=1e-3, rtol=0)
    assert page.labels(n)[mine].tolist() == found["labels"].tolist()
    right = hits(page, n, found)
    assert seen["facts"]["right"] == right
    assert seen["facts"]["precision"] == right / len(mine)
    assert seen["facts"]["recall"] == right / len(page.labels(n, "truth_labels"))


def test_masks_are_pasted_as_in_lib(pages, opened):
    page, tab, compared = pages["joint"], opened(), 0
    for n in range(len(page.images)):
        for threshold in (0.5, 0.23):
            seen = tab.evaluate(READ, hash_of(page, n, "maskhead", threshold=threshold, score=0.05))
            chosen = seen["detections"]
            masks = (page.images[n]["masks"].view(-1, 28, 28)[chosen] + 0.5) / explorer.MASK_STEPS
            pasted = paste_masks(masks, page.in_picture(page.boxes(n, "boxes")[chosen]), SIZE, threshold)
            sizes = tab.evaluate(
                "() => detections(current()).map((d) => maskBits(current(), d).reduce((a, b) => a + b, 0))"
            )
            assert sizes == pytest.approx(pasted.flatten(1).sum(dim=1).tolist(), abs=2)
            mine = tab.evaluate(
                "() => verdicts(current()).judged.map(({ object, mask }) => [object, mask && mask.iou])"
            )
            truth = page.truth_masks(n)
            for (object, value), mask in zip(mine, pasted, strict=True):
                if value is not None:
                    assert value == pytest.approx(explorer._mask_iou(mask, truth[object]), abs=1e-3)
                    compared += 1
            values = [value for _, value in mine if value is not None]
            assert seen["facts"]["mask_iou"] == (pytest.approx(np.mean(values)) if values else None)
    assert compared > 5


def test_all_images_together_and_their_kinds(pages, opened):
    from playwright.sync_api import expect

    page, tab = pages["joint"], opened(hash="#stage=maskhead")
    expect(tab.locator("dd[data-name=all_recall]")).not_to_have_text("…")
    right, said, objects = 0, 0, 0
    for n in range(len(page.images)):
        found = detected(page, n)
        found = {name: value[found["scores"] >= 0.5] for name, value in found.items()}
        right, said = right + hits(page, n, found), said + len(found["scores"])
        objects += len(page.labels(n, "truth_labels"))
    assert float(tab.locator("dd[data-name=all_recall]").get_attribute("data-value")) == right / objects
    assert float(tab.locator("dd[data-name=all_precision]").get_attribute("data-value")) == right / said
    assert {"right", "bad mask", "wrong class", "badly placed"} <= {
        k for image in page.about["images"] for k in image["kinds"]
    }
    in_page = [sorted(set(of_image), key=explorer.KINDS.index) for of_image in tab.evaluate(KINDS_THERE)]
    assert in_page == [image["kinds"] for image in page.about["images"]]


def test_names_are_shown_and_never_run(pages, opened):
    tab = opened(hash="#stage=boxhead&score=0.05")
    assert tab.locator("i, aside b").count() == 0 and tab.evaluate("document.scripts.length") == 4
    assert '<i>&"' in tab.locator("#about").inner_text()
    told = tab.locator("#legend").inner_text() + tab.locator("#table").inner_text()
    assert any(name in told for name in CLASSES[:2])


def pixels(tab) -> bytes:
    return tab.locator("canvas").first.screenshot()


def test_controls_keys_and_links_move_the_picture(pages, opened):
    page, tab = pages["joint"], opened(hash=hash_of(pages["joint"], 2, "rpn", N=7))
    assert tab.evaluate("[state.image, state.stage, state.N]") == [page.number(2), "rpn", 7]
    before = pixels(tab)
    slider = tab.get_by_label("N: proposals kept after NMS")
    slider.press("ArrowRight")
    tab.wait_for_timeout(300)
    assert tab.locator("dd[data-name=kept]").inner_text() == "8" and pixels(tab) != before
    assert f"image={page.number(2)}&stage=rpn&N=8" in tab.url
    tab.locator("h1").click()  # away from the slider: keys are the page's again
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("state.image") == page.number(3)
    tab.keyboard.press("5")
    tab.get_by_label("show").select_option("difference")
    tab.wait_for_timeout(100)
    assert "hit" in tab.locator("#legend").inner_text()
    tab.keyboard.press("m")
    tab.keyboard.press("d")
    tab.wait_for_timeout(300)
    assert (
        tab.evaluate("state.object >= 0 || state.detection >= 0") and tab.get_attribute("html", "data-theme") == "dark"
    )
    again = opened(hash=tab.evaluate("location.hash"))
    assert again.evaluate("JSON.stringify(state)") == tab.evaluate("JSON.stringify(state)")


def test_a_tap_chooses_an_object_and_a_nonsense_link_is_as_no_link(pages, opened):
    page, tab = pages["joint"], opened(hash="#image=no&stage=constructor&score=x&N=1e9&object=77&levels=9&view=<b>")
    assert tab.evaluate("[state.image, state.stage, state.score, state.object, state.view]") == [
        page.number(0), "all", 0.5, -1, "prediction",
    ]  # fmt: skip
    assert tab.evaluate("state.N") == len(page.images[0]["rpn_scores"])
    seen = tab.evaluate(READ, hash_of(page, 1, "rpn"))
    x1, y1, x2, y2 = page.boxes(1, "truth_boxes")[0].tolist()
    frame = tab.locator("canvas").bounding_box()
    x, y = (x1 + x2) / 2 / page.content[1] * frame["width"], (y1 + y2) / 2 / page.content[0] * frame["height"]
    tab.locator("canvas").click(position={"x": x, "y": y})
    assert tab.evaluate("state.object") >= 0 > seen["state"]["object"]
    tab.keyboard.press("Escape")
    assert tab.evaluate("state.object") == -1


def test_it_works_inside_another_page_as_in_colab(pages, browser, monkeypatch):
    monkeypatch.setattr(explorer, "in_colab", lambda: True)
    tab = browser.new_page()
    tab.set_content(explorer.shown(pages["joint"].path).data)
    inner = tab.frame_locator("iframe")
    inner.locator("#facts dd").first.wait_for()
    inner.get_by_role("button", name="Boxes", exact=True).click()
    inner.get_by_label("score of at least").press("ArrowRight")
    inner.locator("#score-value", has_text="0.51").wait_for()
    tab.close()
