"""Sentences and choices that depend on a run's numbers, so that the report cannot say what its numbers do not.

A table's rows are dicts of text, as `lib.notebook.report.read_table` gives them; a history's are numbers.
"""

from collections.abc import Callable, Mapping, Sequence

from handin.numbers import PARTS, Numbers, cell, in_words, key, latex, percent, plain
from lib.config import Config

BY_HEART = 1.2  # times the training loss: from there on the validation loss says that images are known by heart
ENOUGH = 0.02  # the least difference of scores that calls for a suggestion
GOOD = 0.995  # recall from which on nearly every object has a proposal
DATA = {
    "synthetic": "scenes that a program of the kit draws",
    "course": "the photographs of the course",
    "coco": "photographs of COCO",
}
CAUTION = {"synthetic": ", so that no score here says how the system does on photographs"}
KIT_BACKBONE = "scenes_backbone.safetensors"
History = Sequence[Mapping[str, float]]
Rows = Sequence[Mapping[str, str]]


def origin_words(source: str, config: Config) -> Numbers:
    """What the pictures are and what that means for the scores, and what the backbone was before any stage learnt."""
    found = {"data/what": DATA.get(source, f"the data set {latex(source)}"), "data/caution": CAUTION.get(source, "")}
    name, weights, file = latex(config.backbone.name), latex(config.backbone.weights), config.backbone.file
    what = f"torchvision's {name} (weights {weights}) under a new pyramid"
    if file:
        what = f"a {name} trunk with a pyramid of {config.backbone.channels} channels, from {weights}"
        pretrained = ", which the kit's authors pretrained for detection on drawn scenes of other seeds"
        what += pretrained * (file.name == KIT_BACKBONE)
    elif config.backbone.name == "maskrcnn_resnet50_fpn":
        what = f"the ResNet-50 with FPN of torchvision's {name}, trained on COCO (weights {weights})"
    return found | {"backbone/what": what}


def validation(history: History) -> dict[str, tuple[float, float, bool]]:
    """Of each loss with a validation value three things, by its name.

    How many times the training loss it is at the end, by what share it fell in the last epoch, and whether it was
    never lower.
    """
    last, before = history[-1], history[-2:][0]
    found = {}
    for name in (column.removeprefix("val_") for column in last if column.startswith("val_")):
        value = last[f"val_{name}"]
        least = len(history) > 1 and value <= min(row[f"val_{name}"] for row in history)
        found[name] = value / max(last[f"train_{name}"], 1e-9), 1 - value / max(before[f"val_{name}"], 1e-9), least
    return found


def curve_words(stage: str, history: History) -> Numbers:
    """What a stage's learning curves say, in three sentences."""
    losses, last = validation(history), history[-1]
    if not losses:
        return {f"curve/{stage}/said": "There is no validation split to compare with."}
    names = {loss: loss.replace("_", " ").replace("rpn", "RPN") for loss in losses}
    ends = [f"{names[k]} {plain(last[f'train_{k}'])} and {plain(last[f'val_{k}'])}" for k in losses]
    falling = [names[loss] for loss, (_, _, least) in losses.items() if least]
    widest = max(losses, key=lambda loss: losses[loss][0])
    gap = losses[widest][0]
    said = f"After epoch {len(history)} the losses on training and on validation images are: {'; '.join(ends)}. "
    lowest = f"the loss of {in_words(falling)} is" if falling else "no loss is"
    said += f"On validation images {lowest} lowest after the last epoch. "
    said += f"The widest gap is that of {names[widest]}, {gap:.1f} times the training loss: "
    said += "part of what was learnt is known by heart." if gap > BY_HEART else "no sign of learning by heart."
    return {f"curve/{stage}/said": said}


def departures(config: Config) -> str:
    """Where the numbers that decide what an RPN is taught leave the sheet (§4.2, §4.4, §4.6)."""
    said = []
    if config.rpn.cross_boundary == "clip":
        said.append(
            "anchors that cross the border are kept in training, and boxes that do are cut off at it, where the sheet "
            "removes both"
        )
    if config.rpn.negatives == "balanced":
        said.append("negative anchors are drawn level by level, where the sheet draws them uniformly")
    return "; ".join(said) or "none, anchors that cross the border are removed and negatives drawn uniformly"


def moved(before: float, after: float) -> str:
    """How a score went from one to another, as far as three digits show it."""
    old, new = round(before, 3), round(after, 3)
    if old == new:
        return f"stays at {new:.3f}"
    return f"{'rises' if new > old else 'falls'} from {old:.3f} to {new:.3f}"


def change_words(rows: Rows) -> Numbers:
    """From the first row of the table to the last, and from the one with the last one's rule of inference."""
    found = Numbers()
    for column in (c for c in rows[0] if "AP" in c):
        before, rule, after = (float(row[column] or 0) for row in (rows[0], rows[-2], rows[-1]))
        found |= {f"change/{column}": moved(before, after), f"change/{column}, rule": moved(before, rule)}
        found |= {f"change/{column}, trained": moved(rule, after)}
    went = {"boxes": found["change/box AP"], "masks": found["change/mask AP"]}
    up, down = (in_words([what for what, way in went.items() if way.startswith(word)]) for word in ("rises", "falls"))
    verdicts = [f"{word} the AP of {what}" for word, what in (("raised", up), ("lowered", down)) if what]
    return found | {"change/verdict": in_words(verdicts) or "changed neither AP"}


def is_after(row: Mapping[str, str]) -> bool:
    """Whether a row of the table by class is of after the fine-tuning: its third column says so."""
    return [*row.values()][2] == "after"


def class_words(rows: Rows) -> Numbers:
    """The classes with the least and the greatest mask AP after fine-tuning; the third column says before or after."""
    after = [row for row in rows if is_after(row) and row["mask AP"]] or rows[-1:]
    found = Numbers()
    for word, choose in (("hardest", min), ("easiest", max)):
        row = choose(after, key=lambda row: float(row["mask AP"] or 0))
        found[f"class/{word}"] = latex(row["class"])
        found |= row_words(f"class/{word}", row)
    hard, easy = (f"{found[f'class/{w}']} ({found[f'class/{w}/mask AP']})" for w in ("hardest", "easiest"))
    several = f"masks are hardest for {hard} and easiest for {easy}"
    return found | {"class/said": several if hard != easy else f"the mask AP of the one class is that of {hard}"}


def error_words(rows: Rows) -> Numbers:
    """How many detections are right, how many are not, and of which kind most."""
    counts = {row["kind"]: int(row["count"]) for row in rows}
    right, missed = counts.pop("right"), counts["missed"]
    wrong = sum(counts.values())
    most = max(counts, key=lambda kind: counts[kind])
    said = f"the most frequent kind is \\emph{{{most}}}, {counts[most]} of {wrong}" if wrong else "there are none"
    found = {"errors/said": said, "errors/wrong": plain(wrong), "errors/objects": plain(right + missed)}
    found |= {
        "errors/detections": plain(right + wrong - missed),
        "errors/found": percent(right / max(right + missed, 1)),
    }
    return found | {"errors/precise": percent(right / max(right + wrong - missed, 1))}


def recall_words(rows: Rows) -> Numbers:
    """What the config's own K and N, the third row, leave without a proposal; in the fourth, without crossing boxes."""
    found = float(rows[2]["recall at 0.5"])
    why = (
        "so that what is missed is most likely lost after the RPN"
        if found >= GOOD
        else "so that some of what is missed may never have been proposed"
    )
    said = {"recall/found": percent(found), "recall/why": why}
    return said | row_words("recall", rows[2]) | row_words("recall/removed", rows[3])


def ladder_words(rows: Rows) -> Numbers:
    """What grid, box and head cost of the masks' IoU, one after the other, and what is left."""
    ious = [float(row["mean IoU"]) for row in rows]
    costs = zip(("grid", "box", "head"), ious, ious[1:], strict=False)
    return {f"cost/{name}": f"{a - b:.3f}" for name, a, b in costs} | {"cost/left": f"{ious[-1]:.3f}"}


def threshold_words(rows: Rows) -> Numbers:
    """The mask threshold of one half, in the middle row, and the best one; what is missed and surplus in percent."""
    found = Numbers()
    for word, row in (("half", rows[len(rows) // 2]), ("best", max(rows, key=lambda row: float(row["IoU"])))):
        shares = {name: percent(float(row[name])) for name in ("missed", "surplus")}
        found |= {f"threshold/{word}/{name}": value for name, value in shares.items()}
        found |= {f"threshold/{word}/threshold": row["threshold"], f"threshold/{word}/IoU": cell(row["IoU"])}
    return found


def row_words(name: str, row: Mapping[str, str]) -> Numbers:
    """The cells of a row whose own name hangs on the run, under another name."""
    return {f"{name}/{key(column)}": latex(cell(text)) for column, text in row.items()}


def outcome_words(rows: Rows) -> Numbers:
    """The objects of all classes, by what became of them."""
    names = ("objects", "found", "misnamed", "missed")
    return {f"outcomes/{name}": plain(sum(int(row[name]) for row in rows)) for name in names}


def level_words(rows: Rows) -> Numbers:
    """The false alarms of all levels, with the sheet's sampling and with ours (§4.2, §4.4)."""
    ways = "as printed", "mended"
    printed, mended = (sum(int(row[f"false alarms, {way}"]) for row in rows) for way in ways)
    more = "fewer" if mended < printed else "more" if mended > printed else "as many"
    return {"levels/as printed": plain(printed), "levels/mended": plain(mended), "levels/more": more}


def suggestions(histories: Mapping[str, History], tables: Mapping[str, Rows]) -> Numbers:
    """Which of the report's suggestions the run calls for, the most urgent first, in three groups.

    By errors: their counts. By scores: how much AP is at stake. By curves: the share of the training loss by which
    validation's exceeds it, or of itself by which it fell in the last epoch.
    """
    groups = {
        "errors": {r["kind"]: float(r["count"]) for r in tables.get("06_errors", ()) if r["kind"] != "right"},
        "scores": _at_stake(tables.get("06_before_after"), tables.get("06_per_class")),
    }
    said = {stage: validation(history) for stage, history in histories.items() if history}
    gaps = {stage: max((gap for gap, _, _ in losses.values()), default=0.0) for stage, losses in said.items()}
    falls = {s: max((fall for _, fall, least in losses.values() if least), default=0.0) for s, losses in said.items()}
    longer, by_heart = ([s for s in found if found[s] > limit] for found, limit in ((falls, 0), (gaps, BY_HEART)))
    groups["curves"] = {
        "longer": max(falls.values(), default=0),
        "data": max([gaps[s] - 1 for s in by_heart], default=0),
    }
    chosen = {name: sorted((k for k in g if g[k] > 0), key=g.__getitem__, reverse=True) for name, g in groups.items()}
    found = {f"suggestions/{name}": ",".join(kinds) for name, kinds in chosen.items()}
    found |= {
        "curves/falling": in_words([PARTS[s] for s in longer]),
        "curves/by heart": in_words([PARTS[s] for s in by_heart]),
    }
    return found | {"curves/gap": f"{max(gaps.values(), default=0):.1f}"}


def _at_stake(stages: Rows | None, classes: Rows | None) -> dict[str, float]:
    """The AP that each suggestion of the second group could win; nothing below ENOUGH (0.0005 for joint training)."""
    found = {}
    if stages:
        first, last = ({k: float(v or 0) for k, v in row.items() if k != "stage"} for row in (stages[0], stages[-1]))
        found = {
            "masks": last["box AP"] - last["mask AP"],
            "joint": max(first[f"{k} AP"] - last[f"{k} AP"] for k in ("box", "mask")),
        }
    after = [float(row["mask AP"]) for row in classes or () if is_after(row) and row["mask AP"]]
    found |= {"class": sum(after) / len(after) - min(after)} if after else {}
    return {name: value for name, value in found.items() if value >= (ENOUGH if name != "joint" else 0.0005)}


WORDS: dict[str, Callable[[Rows], Numbers]] = {  # by the table that they are made from
    "02_positives": lambda rows: row_words("positives", rows[0]),
    "03_levels": level_words,
    "03_recall": recall_words,
    "04_magnitudes": lambda rows: row_words("magnitudes", rows[-1]),
    "04_outcomes": outcome_words,
    "04_refinement": lambda rows: row_words("refinement/far", rows[0]) | row_words("refinement/near", rows[-1]),
    "05_losses_of_iou": ladder_words,
    "05_threshold": threshold_words,
    "06_before_after": change_words,
    "06_errors": error_words,
    "06_per_class": class_words,
}
