r"""The run's numbers as LaTeX macros: a number's name is a path, `\run{06_errors/missed/count}` in report/*.tex.

Paths are those of the config (`rpn.lr`, and `joint/rpn.batch_samples` in the joint stage), or TABLE/ROW/COLUMN of a
table, or begin with what the numbers are of, such as `data`, `curve`, `metrics` and `change`. Words that depend on
numbers are made in `words`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib import boxhead, maskhead, rpn
from lib.anchors import LEVELS, STRIDES, pyramid_anchors, pyramid_grids
from lib.boxes import inside
from lib.config import STAGES, Config
from lib.data.reader import CourseDataset
from lib.data.split import load_split
from lib.machine.overrides import flat
from lib.notebook.report import LATEX, NO_VALUE
from lib.preprocess import FRAME, IMAGE_HEIGHT, IMAGE_MEAN, IMAGE_STD, IMAGE_WIDTH, content_size
from lib.training.history import read_history
from lib.training.run import CLIP_NORM, WEIGHT_DECAY
from lib.training.schedule import WARMUP

Numbers = dict[str, str]
PARTS = {"rpn": "RPN", "boxhead": "box head", "maskhead": "mask head", "joint": "joint stage"}
NAMED = 6  # of many classes, the number from which on they are counted instead
LATIN = {chr(n) for n in range(0xC0, 0x180)} - set("ĦħĸĿŀŉŦŧſ")
KNOWN = LATIN | set("·×±–—’“”…°²³§½")  # beside ASCII, the letters that pdfLaTeX's fonts have


def typeset(text: str) -> str:
    """LaTeX with the letters that pdfLaTeX lacks by their number, [U+732B], and a minus where a hyphen is none.

    What begins a row of a table must not be taken for an option of the row's end before it.
    """
    known = (c if c.isascii() or c in KNOWN else f"[U+{ord(c):04X}]" for c in text.replace("−", "-"))
    signed = re.sub(r"(?<![\w}])-(?=\d)", r"\\textminus{}", "".join(known))
    return re.sub(r"(?m)^([\[*])", r"{\1}", signed)


def latex(text: object) -> str:
    """Text as LaTeX shows it, its special characters escaped."""
    return typeset(str(text).translate(LATEX))


def key(text: str) -> str:
    """A part of a path, without what TeX would take for something else."""
    return " ".join(re.sub(r"[^\w@.,:='+/ -]", "", text, flags=re.ASCII).split())


def plain(value: Any) -> str:
    """A number without an exponent, three digits that count: 0.00005, 0.706, 12,276."""
    if isinstance(value, float) and not value.is_integer():
        return np.format_float_positional(value, precision=3, fractional=False, trim="-")
    return f"{int(value):,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else latex(value)


def cell(text: str) -> str:
    """What a csv has in full as its table shows it: a score with three digits."""
    if re.fullmatch(r"-?\d+", text):
        return f"{int(text):,}"
    return f"{float(text):.3f}" if re.fullmatch(r"-?\d+\.\d+(e-\d+)?", text) else text or NO_VALUE


def settings(configs: Mapping[str, Config]) -> Numbers:
    """The config that each stage was trained with, by path, and constants of the parts that no config holds."""
    last, joint = configs["joint"], configs["joint"].of_stage("joint")
    found = {f"joint/{path}": plain(joint.value(path)) for path in joint.paths() if path.partition(".")[0] != "joint"}
    for path in last.paths().keys() - {"joint.changes"}:
        owner = path.partition(".")[0]
        value = configs.get(owner, last).value(path)
        found[path] = ", ".join(map(plain, value)) if isinstance(value, tuple) else plain(value)
    found |= {"name/profile": last.profile, "weight decay": plain(WEIGHT_DECAY), "clip norm": plain(CLIP_NORM)}
    found |= {"warm-up": f"{WARMUP:.0%}".translate(LATEX), "box pool": plain(boxhead.POOL_SIZE)}
    found |= {"mask pool": plain(maskhead.POOL_SIZE), "mask side": plain(2 * maskhead.POOL_SIZE)}
    found |= {"mask threshold": plain(maskhead.THRESHOLD), "mask positive": plain(boxhead.MASK_POSITIVE_IOU)}
    found |= {"rpn positive": plain(rpn.POSITIVE_IOU), "rpn negative": plain(rpn.NEGATIVE_IOU)}
    found |= {"mean": ", ".join(map(plain, IMAGE_MEAN)), "deviation": ", ".join(map(plain, IMAGE_STD))}
    return found | _anchors(last)


def _anchors(config: Config) -> Numbers:
    size, grids = config.image.padded_size, pyramid_grids(config.image.padded_size)
    anchors = pyramid_anchors(grids, config.anchors)
    ratios, cells = config.anchors.ratios, [sy * sx for sy, sx in grids]
    found = {"image/padded height": plain(size[0]), "image/padded width": plain(size[1])}
    found |= {"anchors/total": plain(len(anchors)), "anchors/a cell": plain(len(ratios))}
    within = inside(anchors, *content_size(*FRAME, config.image)).float().mean()
    found |= {"anchors/inside": percent(float(within)), "anchors/finest": percent(cells[0] / sum(cells))}
    return found | {"pyramid/first": LEVELS[0], "pyramid/last": LEVELS[-1], "pyramid/strides": plain(STRIDES[-1])}


def percent(share: float) -> str:
    return f"{share:.0%}".translate(LATEX)


def data_numbers(dataset: CourseDataset, config: Config) -> Numbers:
    """What is in the pictures, and near which level's anchors objects are."""
    labels, boxes = np.concatenate(dataset.labels), np.concatenate(dataset.boxes)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    share, counts = width * height / (IMAGE_WIDTH * IMAGE_HEIGHT), np.array([len(v) for v in dataset.labels])
    of_class = np.bincount(labels, minlength=len(dataset.classes) + 1)[1:]
    split = load_split(dataset.folder, len(counts), config.data)
    found = {f"data/{name}": plain(len(indices)) for name, indices in split.items()}
    found |= {
        "data/images": plain(len(counts)),
        "data/objects": plain(len(labels)),
        "data/most": plain(int(counts.max())),
    }
    found |= {"data/classes": plain(len(of_class)), "data/names": named(dataset.classes)}
    found |= {"data/single": percent(float((counts == 1).mean())), "data/an image": plain(float(counts.mean()))}
    for word, n in (("frequent", int(of_class.argmax())), ("rare", int(of_class.argmin()))):
        found |= {f"data/{word}": latex(dataset.classes[n]), f"data/{word} share": percent(of_class[n] / len(labels))}
    low, median, high = np.percentile(share, (5, 50, 95))
    found |= {"data/share low": percent(low), "data/share median": percent(median), "data/share high": percent(high)}
    scale = np.sqrt(share * math.prod(content_size(*FRAME, config.image)))
    nearest = np.abs(np.log(scale[:, None] / np.array(config.anchors.scales))).argmin(1)
    levels = np.bincount(nearest, minlength=len(LEVELS)) / len(labels)
    found |= {f"data/{level}": percent(value) for level, value in zip(LEVELS, levels, strict=True)}
    return found | {"data/top level": LEVELS[levels.argmax()], "data/top share": percent(levels.max())}


def named(classes: Sequence[str]) -> str:
    """Class names as part of a sentence; of many, their number and the first three."""
    names = [latex(name) for name in classes]
    if len(names) > NAMED:
        return f"{len(names)} classes, such as {', '.join(names[:3])}"
    return in_words(names)


def in_words(names: Sequence[str]) -> str:
    """Names in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def histories(weights: Path) -> dict[str, list[dict]]:
    """The history of every stage that has one."""
    found = {}
    for stage in STAGES:
        try:
            found[stage] = read_history(weights, stage)
        except (OSError, ValueError):
            continue
    return {stage: rows for stage, rows in found.items() if rows}


def curve_numbers(history: Sequence[Mapping[str, float]], stage: str) -> Numbers:
    """A stage's losses: at the first epoch, at the last, and the epoch in which validation's was least."""
    first, last = history[0], history[-1]
    found = {f"curve/{stage}/epochs": plain(len(history))}
    if "seconds" in last:
        found[f"curve/{stage}/minutes"] = f"{sum(row['seconds'] for row in history) / 60:.1f}"
    for name in (column for column in last if column.startswith(("train_", "val_"))):
        split, _, loss = name.partition("_")
        path, least = f"curve/{stage}/{key(loss.replace('_', ' '))}", min(history, key=lambda row: row[name])
        found |= {f"{path}/{split} first": plain(first[name]), f"{path}/{split}": plain(last[name])}
        found |= {f"{path}/{split} best": plain(least[name]), f"{path}/{split} best epoch": plain(least["epoch"])}
    return found


def table_numbers(name: str, rows: Sequence[Mapping[str, str]]) -> Numbers:
    """Every cell, by its column and by the first columns of its row, as many as tell the rows apart."""
    prefixes = ([" ".join([*row.values()][:k]) for row in rows] for k in range(1, len(rows[0]) + 1))
    labels = next((found for found in prefixes if len(set(found)) == len(rows)), [str(n) for n in range(len(rows))])
    pairs = list(zip(labels, rows, strict=True))
    return {f"{name}/{key(label)}/{key(c)}": latex(cell(v or "")) for label, row in pairs for c, v in row.items()}


def metric_numbers(metrics: Mapping[str, Any]) -> Numbers:
    """`figures/metrics.json`, by path: metrics/box/AP50."""
    values = {path.replace(".", "/"): value for path, value in flat(metrics).items()}
    return {
        f"metrics/{key(path)}": f"{v:.3f}" if isinstance(v, float) else plain(NO_VALUE if v is None else v)
        for path, v in values.items()
    }
