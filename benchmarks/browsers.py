"""What the browsers cost: to draw anew after a control has moved, to show an image first, and in memory, by 500 moves.

`python -m benchmarks.browsers`: at the demo's size and at the course's 800 x 1088, on built-in scenes. The models are
those of `benchmarks.inference`: random, with outputs like a trained model's, proposals as many as the config allows and
100 detections, which is asserted. Times are CPU time of the process, in ms, from a control's new value to the picture
that is sent; the page's own time and the journey there are not in them. Memory is what the process holds in MB.
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
        ("positive threshold", turns(browser.positive, 0.5, 0.6)),
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

    proposals, boxes = turns(browser.rpn_nms, 0.5, 0.6), turns(browser.box_nms, 0.4, 0.6)
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


def milliseconds(work: Callable[[int], object], n: int) -> float:
    start = time.process_time()
    work(n)
    return 1e3 * (time.process_time() - start)


def memory() -> float:
    """What the process holds, in MB; 0 where the system does not say it as Linux does."""
    gc.collect()
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 1e6
    except OSError:
        return 0.0


def measure(size: str, browser: Browser, moves: Sequence[Move], runs: int, many: int) -> list[dict]:
    """A row for images seen first, one for each move, and one for `many` moves in turn, with what they leave in memory.

    Of these every 25th is to the next image.
    """
    first = [milliseconds(browser.step, 1) for _ in range(min(runs, len(browser.images) - 1))]
    rows = [_row(browser, size, "an image seen first", first)]
    for what, move in moves:
        move(-1)
        rows.append(_row(browser, size, what, [milliseconds(move, n) for n in range(runs)]))
    before, in_turn = memory(), [lambda _: browser.step(1), *(moves[n % len(moves)][1] for n in range(24))]
    times = [milliseconds(in_turn[n % 25], n) for n in range(many)]
    last = _row(browser, size, f"{many} moves", times, memory() - before)
    del last["times_ms"]
    return [*rows, last]


def _row(browser: Browser, size: str, what: str, times: Sequence[float], grown: float | str = "") -> dict:
    assert not browser.status.value, browser.status.value
    about = {"browser": browser.name, "size": size, "what": what}
    middle, most = float(np.median(times)), float(np.max(times))
    return about | {"median ms": middle, "most ms": most, "grown MB": grown, "times_ms": list(times)}


def main(argv: Sequence[str] | None = None, profiles: dict[str, Config] = PROFILES) -> None:
    parser = arguments("browsers", "What the browsers' pictures cost.", 15)
    parser.add_argument("--moves", type=int, default=MOVES, help="moves after which the memory is looked at again")
    args = parser.parse_args(argv)
    dataset, rows = scenes(IMAGES), []
    with threads(args.threads[0]):
        for config in profiles.values():
            config = config.replace(**{"backbone.weights": "none"}, **MANY)
            model, _ = models(dataset[0][0], config)
            size = "{} x {}".format(*config.image.padded_size)
            built = anchors(dataset, config), stages(dataset, model), masks(dataset, model)
            for browser, moves in built:
                rows += measure(size, browser, moves, args.runs, args.moves)
                print(table(rows[-len(moves) - 2 :]), flush=True)
    save(rows, args.out, threads=args.threads[0])


if __name__ == "__main__":
    main()
