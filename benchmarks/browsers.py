"""What the browsers cost: drawing anew after a control has moved, an image that is seen first, and what 500 moves leave.

`python -m benchmarks.browsers`: at the demo's size and at the course's 800 x 1088, on built-in scenes. The models are
those of `benchmarks.inference`: random, with outputs like a trained model's, proposals as many as the config allows and
100 detections, which is asserted. Times are CPU time of the process, in milliseconds, from a control's new value to the
picture that is sent; the page's own time and the journey there are not in them. Memory is what the process holds, in MB.
"""

import gc
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks.inference import models
from benchmarks.timing import arguments, save, table, threads
from lib.config import PROFILES, Config
from lib.data.scenes import scene
from lib.maskrcnn import COURSE_CLASSES, MaskRCNN
from lib.notebook.browser import AnchorBrowser, MaskBrowser, StageBrowser
from lib.notebook.controls import KEPT, Browser

IMAGES, MOVES, DETECTIONS = 2 * KEPT, 500, 100
MANY = {"rpn.test.pre_nms": 4000, "rpn.test.post_nms": 1000}  # so that 100 detections are left
Move = tuple[str, Callable[[int], None]]  # what is moved, and its n-th move


class Scenes(list):
    """(image, target) pairs."""

    classes = COURSE_CLASSES


def scenes(count: int) -> Scenes:
    made = Scenes()
    for n in range(count):
        image, labels, boxes, masks = map(torch.from_numpy, scene(np.random.default_rng(n)))
        target = {"boxes": boxes.float(), "labels": labels.long(), "masks": masks, "image_id": n}
        made.append((image, target))
    return made


def turns(control, *values) -> Callable[[int], None]:
    """A move: the control takes these values in turn."""

    def move(n: int) -> None:
        control.value = values[n % len(values)]

    return move


def anchors(dataset: Scenes, config: Config) -> tuple[Browser, list[Move]]:
    browser = AnchorBrowser(dataset, config)
    for tick in browser.kinds.values():
        tick.value = True
    moves = [
        ("positive threshold", turns(browser.positive, 0.5, 0.6, 0.7)),
        ("level", turns(browser.level, "P3", "all")),
    ]
    return browser, [*moves, ("heat map", turns(browser.heat, True, False))]


def stages(dataset: Scenes, model: MaskRCNN) -> tuple[Browser, list[Move]]:
    browser = StageBrowser(model, dataset, "maskhead")
    browser.score.value, browser.most.value = 0.05, 100

    def at(part: str, move: Callable[[int], None]) -> Callable[[int], None]:
        def moved(n: int) -> None:
            browser.busy = True  # the stage alone draws nothing
            browser.part.value = part
            browser.busy = False
            move(n)

        return moved

    proposals, boxes = turns(browser.rpn_nms, 0.5, 0.6, 0.7), turns(browser.box_nms, 0.4, 0.6, 0.5)
    return browser, [
        ("NMS of proposals", at("2 proposals", proposals)),
        ("NMS of boxes", at("3 refined boxes", boxes)),
        ("NMS, with masks", at("4 masks", boxes)),
    ]


def masks(dataset: Scenes, model: MaskRCNN) -> tuple[Browser, list[Move]]:
    browser = MaskBrowser(model, dataset, "maskhead")
    browser.score.value = 0.05
    assert len(browser.see(0).labels) == DETECTIONS
    moves = [("score", turns(browser.score, 0.1, 0.05)), ("mask threshold", turns(browser.threshold, 0.4, 0.5))]
    return browser, [*moves, ("difference", turns(browser.what, *browser.what.options[::-3]))]


def milliseconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def memory() -> float:
    """What the process holds, in MB; 0 where the system does not say it as Linux does."""
    gc.collect()
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 1e6
    except OSError:
        return 0.0


def measure(name: str, size: str, browser: Browser, moves: Sequence[Move], runs: int, growing: int) -> list[dict]:
    """A row for each move, one for images seen first, one for what `growing` moves through all images leave."""
    about = {"browser": name, "size": size}
    first = [milliseconds(lambda: browser.step(1)) for _ in range(min(runs, len(browser.images) - 1))]
    rows = [about | _summary("an image seen first", first)]
    for what, move in moves:
        move(-1)
        rows.append(about | _summary(what, [milliseconds(lambda n=n: move(n)) for n in range(runs)]))
        assert not browser.status.value, browser.status.value
    for n in range(growing // 5):  # by then every image has been seen, and the allocator has what it needs
        _one_of(browser, moves, n)
    before = memory()
    for n in range(growing):
        _one_of(browser, moves, n)
    return [*rows, about | {"what": f"growth in {growing} moves, MB", "median": memory() - before, "most": before}]


def _one_of(browser: Browser, moves: Sequence[Move], n: int) -> None:
    """Every fifth move is to the next image."""
    if n % 5:
        moves[n % len(moves)][1](n)
    else:
        browser.step(1)


def _summary(what: str, times: Sequence[float]) -> dict:
    return {"what": what, "median": float(np.median(times)), "most": float(np.max(times)), "times_ms": list(times)}


def main(argv: Sequence[str] | None = None, profiles: dict[str, Config] = PROFILES) -> None:
    parser = arguments("browsers", "What the browsers' pictures cost.", 15)
    parser.add_argument("--moves", type=int, default=MOVES, help="moves after which the memory is looked at again")
    args = parser.parse_args(argv)
    dataset, rows = scenes(IMAGES), []
    with threads(args.threads[0]):
        for name, config in profiles.items():
            config = config.replace(**{"backbone.weights": "none"}, **MANY)
            model, _ = models(dataset[0][0], config)
            size = "{} x {}".format(*config.image.padded_size)
            built = {
                "anchors": anchors(dataset, config),
                "stages": stages(dataset, model),
                "masks": masks(dataset, model),
            }
            for kind, (browser, moves) in built.items():
                growing = args.moves if kind == "anchors" or name == "demo" else args.moves // 10
                rows += measure(kind, size, browser, moves, args.runs, growing)
                print(table(rows[-len(moves) - 2 :]), flush=True)
    save(rows, args.out, threads=args.threads[0], median="ms of CPU time, or MB")


if __name__ == "__main__":
    main()
