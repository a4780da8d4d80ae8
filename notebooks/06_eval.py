# %% [markdown]
# # 6 · Evaluation and joint fine-tuning
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-from-its-parts/maskrcnn-from-its-parts/blob/main/notebooks/06_eval.ipynb)
#
# **Trained one by one, the parts work together; trained together once more, they work better or they do not: a score on
# images never seen says which.**
#
# | | |
# |---|---|
# | run time | under a minute and a half on two recent CPU cores, more than half of it fine-tuning, which is done once |
# | inputs | `data/<source>/` and the trained `rpn`, `boxhead`, `maskhead` of `weights/<profile>/` (trained first if missing) |
# | outputs | `weights/<profile>/joint.safetensors`, `figures/metrics.json`, tables and figures `06_*` |

# %% [markdown]
# ## Goals
#
# After this notebook you can
#
# 1. say when a detection is right, and compute the IoU of two masks,
# 2. draw a precision/recall curve from five detections by hand, a duplicate among them,
# 3. compute the course's mAP and COCO's AP from it, and say where they differ,
# 4. explain what joint fine-tuning (§8) changes, and read from a table whether it helped,
# 5. find out *what kind* of errors a detector makes, and on which objects.

# %% [markdown]
# ## Where this part sits
#
# ```text
#          01 data ──> 02 anchors ──> 03 RPN ──> 04 box head ──> 05 mask head ──> [ 06 ]
#
# train ────────────────────────────── learns ───────────────────────────────> fine-tune all parts together (§8)
# val   ────────────────────────────── learning curves, thresholds ──────────> learning curves
# test  ────────────────────────────── never touched ────────────────────────> scores, once before and once after
# ```
#
# Nothing so far has looked at the test split: no weight, no threshold, no number of boxes was chosen on it.

# %% [markdown]
# ## Set-up
#
# The same cell in all six notebooks: it finds the project, the data and the profile.

# %% cellView="form"
# @title Set-up, the same in all six: find the project (on Colab, fetch it), choose data and profile
import os
import shutil
import sys
from pathlib import Path
from zipfile import ZipFile, is_zipfile

# %matplotlib inline
import matplotlib.pyplot as plt

REPOSITORY = "maskrcnn-from-its-parts/maskrcnn-from-its-parts"  # @param {type:"string"}
USE_DRIVE = False  # @param {type:"boolean"}
PROFILE = "demo"  # @param ["demo", "course"]
SOURCE = "synthetic"  # @param ["synthetic", "course", "coco"] {allow-input: true}
if USE_DRIVE and "google.colab" in sys.modules:
    __import__("google.colab.drive").colab.drive.mount("/content/drive")
here, address = Path.cwd(), os.environ.get("MASKRCNN_REPOSITORY", REPOSITORY)
name, part, said = Path(address).name.removesuffix(".git"), here / ".fetched", "it is fetched on Colab alone"
near = [here, *here.parents, *here.glob(f"{name}*"), *Path("/content/drive/MyDrive").glob(f"{name}*")]
root = next((folder for folder in near if (folder / "lib/config.py").exists()), None)
if root is None:  # unpack an uploaded zip, or clone; only what has arrived whole takes the project's name
    shutil.rmtree(part, ignore_errors=True)
    for file in filter(is_zipfile, here.glob("*.zip")):
        "lib/config.py" in " ".join(ZipFile(file).namelist()) and ZipFile(file).extractall(part)
    if "google.colab" in sys.modules and not part.exists():
        address = address if ":" in address or Path(address).exists() else f"https://github.com/{address}"
        said = os.popen(f"GIT_TERMINAL_PROMPT=0 git clone -q --depth 1 '{address}' '{part}' 2>&1").read()
    whole, root = next(part.rglob("lib/config.py"), None), here / name
    if whole is None:
        fix = f"set REPOSITORY to a copy, or bring its zip or folder {name}-main to {here}, or MyDrive with USE_DRIVE"
        error = FileNotFoundError(f"{address} was not fetched ({' '.join(said.split())}): {fix}")
        error._render_traceback_ = lambda: [str(error)]
        raise error
    root.exists() and root.rename(f"{root}.{os.getpid()}")  # half a clone
    whole.parents[1].rename(root)
sys.path.insert(0, str(root))
from lib.notebook import colab
from lib.notebook.figures import save_figure

SOURCE, config, DATA, WEIGHTS = colab.set_up(PROFILE, SOURCE, USE_DRIVE)  # a fourth argument: ["rpn.epochs=2"]

# %% [markdown]
# What this notebook uses, and a helper that shows source text of `lib`.

# %%
import copy
import inspect
import textwrap
import time

import numpy as np
import torch
from IPython.display import Code
from pycocotools import mask as rle
from torch.testing import assert_close

from benchmarks.cost import cost_figure
from lib.boxes import iou_matrix, scale_boxes
from lib.config import STAGES
from lib.data.reader import CourseDataset
from lib.machine.device import device
from lib.machine.files import write_json
from lib.machine.folders import paths
from lib.maskhead import paste_masks
from lib.maskrcnn import COURSE_CLASSES
from lib.notebook import draw, report
from lib.preprocess import preprocess_images
from lib.scores import coco_ap, evaluate
from lib.scores.results import box_results, encode_masks
from lib.training import stages
from lib.training.checkpoint import backbone_origin, load_model
from lib.training.history import read_history
from lib.training.loop import train_until

CLASS_NAMES = config.class_names  # by label; 0 is background


def show(*parts):
    return Code("\n\n".join(inspect.getsource(part) for part in parts), language="python")


# %% [markdown]
# ## Symbols
#
# | symbol | meaning |
# |---|---|
# | $s$ | score of a detection: the box head's probability of its class |
# | $\tau$ | IoU from which on a detection counts as right: 0.5, or 0.50, 0.55, …, 0.95 in turn |
# | TP, FP | detections that are right, that are wrong |
# | precision | TP / (TP + FP): how much of what was said is right |
# | recall | TP / objects: how much of what is there was said |
# | AP | average precision of a class: the area under precision over recall |
# | mAP | mean of AP over the classes |
# | AR@$N$ | average recall of the RPN's $N$ best proposals |

# %% [markdown]
# ## The idea: when is a detection right?
#
# When it overlaps an object of its class by at least $\tau$, and no better detection has taken that object already.
# Overlap is the IoU, of boxes or of masks. For masks it counts pixels:
#
# $$\mathrm{IoU}(A, B) = \frac{|A \cap B|}{|A \cup B|}$$

# %% [markdown]
# ## By hand 1: the IoU of two masks
#
# Two masks of 4 × 4 pixels: a 2 × 2 square, and an L of 4 pixels. Predicted: they share 2 pixels, together they cover 6,
# so the IoU is $\tfrac26$.

# %%
square = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.uint8)
ell = torch.tensor([[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.uint8)
pairs = [(a, b) for ra, rb in zip(square.tolist(), ell.tolist(), strict=True) for a, b in zip(ra, rb, strict=True)]
both, either = sum(a and b for a, b in pairs), sum(a or b for a, b in pairs)
print(f"{both} pixels in both, {either} in either: IoU {both / either:.4f}")
assert (both, either) == (2, 6)

# %% [markdown]
# In a picture: two pixels of $A$ alone, two of $B$ alone, two of both.

# %%
fig, ax = plt.subplots(figsize=(3, 3), layout="constrained")
draw.image(ax, torch.ones(3, 4, 4))
draw.heatmap(ax, square + 2 * ell, vmin=0, vmax=3)
for y in range(4):
    for x in range(4):
        name = {0: "", 1: "A", 2: "B", 3: "both"}[int(square[y, x] + 2 * ell[y, x])]
        ax.text(x + 0.5, y + 0.5, name, ha="center", va="center", color="black" if name == "both" else "white")

# %% [markdown]
# pycocotools, which does the counting in `lib.scores`, stores a mask as run lengths and finds the same.

# %%
codes = encode_masks(torch.stack([square, ell]))
assert_close(rle.iou(codes[:1], codes[1:], [0])[0, 0], both / either)
print("run-length code of the square:", codes[0])

# %% [markdown]
# The code counts pixels column by column: 5 off, 2 on, 2 off, 2 on, 5 off. From the fourth number on, it stores the
# difference to the one two places before: 0 and 3.

# %% [markdown]
# ## By hand 2: five detections
#
# Two images, three people: $A$ and $B$ in the first, $C$ in the second. Five detections of class *person*, best score
# first:
#
# | | score | image | IoU | right at $\tau = 0.5$? | TP | FP | precision | recall |
# |---|---|---|---|---|---|---|---|---|
# | 1 | 0.95 | first | 1.00 with $A$ | yes | 1 | 0 | 1 | 1/3 |
# | 2 | 0.90 | first | 0.82 with $A$ | **no: a duplicate, $A$ is taken** | 1 | 1 | 1/2 | 1/3 |
# | 3 | 0.80 | second | 1.00 with $C$ | yes | 2 | 1 | 2/3 | 2/3 |
# | 4 | 0.60 | second | 0 | no: nothing there | 2 | 2 | 1/2 | 2/3 |
# | 5 | 0.40 | first | 0.67 with $B$ | yes | 3 | 2 | 3/5 | 1 |
#
# Each row is a score threshold: "keep detections of at least this score".

# %%
objects = [(0, [0, 0, 10, 10]), (0, [20, 0, 30, 10]), (1, [0, 0, 10, 10])]  # image and box of A, B, C
detections = [
    (0.95, 0, [0, 0, 10, 10]),
    (0.90, 0, [1, 0, 11, 10]),
    (0.80, 1, [0, 0, 10, 10]),
    (0.60, 1, [50, 50, 60, 60]),
    (0.40, 0, [22, 0, 32, 10]),
]


# %% [markdown]
# The rule with loops: best score first, each takes the object that it overlaps most among those still free.

# %%
def iou(a, b):
    return float(iou_matrix(torch.tensor([a]).float(), torch.tensor([b]).float()))


def naive_right(detections, objects, tau):
    free, right = list(range(len(objects))), []
    for _, image, box in sorted(detections, reverse=True):
        fits = [g for g in free if objects[g][0] == image and iou(box, objects[g][1]) >= tau]
        best = max(fits, key=lambda g: iou(box, objects[g][1]), default=None)
        right.append(best is not None)
        free = [g for g in free if g != best]
    return right


right = naive_right(detections, objects, 0.5)
assert right == [True, False, True, False, True]

# %% [markdown]
# The loops say what the table says. Note what a duplicate is: not a bad box, but a second one.

# %% [markdown]
# Precision and recall after each detection, with a first point at recall 0 and precision 1 (nothing said, nothing wrong):

# %%
hits = np.cumsum(right)
recall = np.concatenate([[0], hits / len(objects)])
precision = np.concatenate([[1], hits / np.arange(1, 6)])
assert_close(precision, np.array([1, 1, 1 / 2, 2 / 3, 1 / 2, 3 / 5]))
assert_close(recall, np.array([0, 1, 1, 2, 2, 3]) / 3)

# %% [markdown]
# Recall can only grow along the list; precision goes up and down.

# %% [markdown]
# ## The course's mAP
#
# The area under the precision/recall curve over score thresholds, averaged over the classes. The curve's points are joined
# by straight lines (trapezoids). Predicted for the five detections:
#
# $$\tfrac13 \cdot 1 + \tfrac13 \cdot \tfrac12\left(\tfrac12 + \tfrac23\right) + \tfrac13 \cdot \tfrac12\left(\tfrac12 +
# \tfrac35\right) = 0.7111$$
#
# **COCO's AP** first takes the duplicate's dent out of the curve: the precision at recall $r$ is the *best* precision at
# any recall $\ge r$. Then it reads that staircase at 101 recalls, 0, 0.01, …, 1: 34 of them see 1, 33 see 2/3, 34 see 3/5.
#
# $$(34 \cdot 1 + 33 \cdot \tfrac23 + 34 \cdot \tfrac35) / 101 = 0.7564$$

# %%
area = np.trapezoid(precision, recall)
envelope = np.maximum.accumulate(precision[::-1])[::-1]
staircase = [envelope[1:][recall[1:] >= r][0] for r in np.linspace(0, 1, 101)]
print(f"course: {area:.4f}   COCO at 0.5: {np.mean(staircase):.4f}")
assert_close(area, 0.7111, atol=1e-4, rtol=0)
assert_close(np.mean(staircase), (34 + 33 * 2 / 3 + 34 * 3 / 5) / 101)

# %% [markdown]
# Both in one picture. Each numbered point is a detection of the table; every false positive drops the blue curve straight
# down. The duplicate (2) costs the course's score an area, COCO's only what lies to its right.

# %%
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
_ = ax.fill_between(recall, precision, color=draw.LINES[0], alpha=0.15)
_ = ax.plot(recall, precision, marker="o", color=draw.LINES[0], label=f"course: area {area:.4f}")
_ = ax.plot(np.linspace(0, 1, 101), staircase, color=draw.LINES[1], label=f"COCO: mean {np.mean(staircase):.4f}")
for n, (r, p) in enumerate(zip(recall[1:], precision[1:], strict=True), start=1):
    _ = ax.annotate(str(n), (r, p), xytext=(-12, -12), textcoords="offset points", fontsize=9)
_ = ax.set(xlabel="recall", ylabel="precision", xlim=(0, 1.03), ylim=(0, 1.08))
_ = ax.legend(frameon=False, loc="lower left")
_ = save_figure(fig, "06_five_detections")

# %% [markdown]
# ### The part: `lib.scores.coco_ap`
#
# pycocotools matches; the two scores are read from its matches.

# %%
show(coco_ap.precision_recall, coco_ap.course_map, coco_ap.average_precision)

# %% [markdown]
# The five detections in COCO's format: objects as annotations, boxes as $(x, y, w, h)$, a person is category 2.

# %%
person = torch.tensor([2])
boxes_of = [(image, torch.tensor([box]).float()) for image, box in objects]
annotations = [box_results(image, box, person, torch.ones(1))[0] for image, box in boxes_of]
annotations = [{**a, "id": n, "area": 100, "iscrowd": 0} for n, a in enumerate(annotations, start=1)]
pictures = [{"id": 0}, {"id": 1}]
content = {"images": pictures, "annotations": annotations, "categories": coco_ap.categories(COURSE_CLASSES)}
truth = coco_ap._coco(content)
found = []
for s, image, box in detections:
    found += box_results(image, torch.tensor([box]).float(), person, torch.tensor([s]))

# %% [markdown]
# Predicted, besides the two numbers above: at $\tau \ge 0.7$ detection 5 (IoU 0.67) no longer counts. Six of the ten
# thresholds therefore give $(34 + 22) / 101 = 0.5545$, the other four 0.7564, and the mean over all is
# $0.4 \cdot 0.7564 + 0.6 \cdot 0.5545 = 0.6352$.

# %%
by_lib = coco_ap.coco_evaluation(truth, found, "bbox")
assert_close(coco_ap.course_map(by_lib), area)
scores = coco_ap.average_precision(by_lib)
assert_close(scores["AP50"], np.mean(staircase))
assert_close(scores["AP"], 0.4 * 76.4 / 101 + 0.6 * 56 / 101)
print({name: round(scores[name], 4) for name in ("AP", "AP50", "AP75")})

# %% [markdown]
# AP75 is below AP50 because of detection 5 alone. One box two pixels off its place, and a third of the objects is gone.

# %% [markdown]
# **AR@N**, the RPN's score, asks for recall alone: how many objects do the $N$ best boxes find, classes ignored, averaged
# over the ten $\tau$? Predicted for the five boxes: 3 of 3 at the four low thresholds, 2 of 3 at the six high ones,
# $0.4 \cdot 1 + 0.6 \cdot \tfrac23 = 0.8$.

# %%
recalls = coco_ap.proposal_recall(truth, found)
assert_close(recalls["AR@100"], 0.8)
print({name: round(value, 4) for name, value in recalls.items()})

# %% [markdown]
# ## The idea of joint fine-tuning
#
# So far every part learnt with all earlier parts frozen (§4 to §7). Frozen parts cannot answer: the backbone never saw these
# images while it learnt, the RPN never heard what the heads made of its proposals. §8 lets all parts learn at once, with the
# sum of all losses:
#
# $$L = \underbrace{L_{cls} + L_{reg}}_{\text{RPN}} + \underbrace{L_{cls} + \lambda L_{reg}}_{\text{box head}} +
# L_{mask}$$
#
# The gradients of all five reach the pyramid. The step is kept small: good parts are to be adapted, not unlearnt.

# %%
show(stages.JointStage)

# %% [markdown]
# It is the three stages on the same features. But the boxes that train the mask head come from the box head's own minibatch: the
# proposals are pooled once, not twice. And the RPN's batch normalisation keeps its stored statistics, as in testing: `Learner`, which
# brings a stage and the backbone together for the training loop, sees to that.

# %% [markdown]
# ### What the joint stage does otherwise
#
# The three stages follow the assignment's sheet, but for which anchors the RPN learns from (notebook 03) and which boxes the mask head does
# (notebook 05). Joint fine-tuning uses more of the freedom that the sheet gives ("feel free to make adjustments"): `config.joint.changes`
# lists what it changes. Any number can be set for this stage alone, as `joint.rpn.box_weight=3`.

# %%
joint_config = config.of_stage("joint")
report.markdown(
    [
        {"number": path, "in the stages": str(config.value(path)), "joint": str(joint_config.value(path))}
        for path, _ in config.joint.changes
    ]
)

# %% [markdown]
# - **Every class above 0.05** instead of the best one: AP also counts what is found with a low score, if it is right.
# - **A smaller weight of the box head's regression.** Five losses now share one network, and times 10 this one would speak for all.
# - **More proposals a minibatch.** The whole network now runs for every image, so a few more proposals of it cost little.
#
# What each stage of the `demo` profile reaches on 1,000 scenes that no other table uses, mean over seeds (`python -m benchmarks.demo`);
# *bar* is what we want it to reach:

# %%
MEASURED = root / "figures" / "published"  # tables that come with the project
rows = report.read_table("06_stages", MEASURED)
report.markdown([row | {k: f"{float(row[k]):.3f}" for k in ("mean", "deviation") if row[k]} for row in rows])

# %% [markdown]
# And on 230 photographs of COCO to train and 74 to score: *course* at the sheet's size, 800 × 1088, beside torchvision's own `MaskRCNN`
# with the same trunk, pyramid, widths, flips and number of images seen, 12 passes, on a GPU (`python -m benchmarks.accuracy course`);
# *photographs* at 300 × 400, 23 passes (`python -m benchmarks.accuracy photographs`). *found*: the share of objects that a detection with
# a score of at least 0.3 overlaps by half; of these, *right class* is the share that it names rightly, *box IoU* and *mask IoU* are how
# well it lies. One seed and so few photographs prove nothing about small differences.

# %%
left_out = ("mask AP75", "box AP, difference", "mask AP, difference", "training, s")
rows = report.read_table("06_accuracy", MEASURED)
report.markdown([{name: value for name, value in row.items() if name not in left_out} for row in rows])

# %% [markdown]
# Missing predecessors are trained first; a finished stage is kept.

# %%
WEIGHTS = train_until("joint", config, DATA, WEIGHTS)

# %% [markdown]
# ## Learning curves, all stages
#
# The joint stage's losses start near where the separate stages ended, but for that of the box head's regression: it has another
# weight now (table above).

# %%
fig, axes = plt.subplots(2, 2, figsize=(13, 7), layout="constrained")
for ax, stage in zip(axes.flat, STAGES, strict=True):
    draw.curves(ax, read_history(WEIGHTS, stage)).set_title(stage, fontsize=10)
    _ = ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    _ = ax.set_ylim(0, 1.05 * ax.dataLim.ymax)
_ = save_figure(fig, "06_learning_curves")


# %% [markdown]
# The sum of each stage's losses, from its first epoch to its last. Where train goes on falling and val does not, the rest
# was learnt by heart.

# %%
def total(row, split):
    return sum(value for name, value in row.items() if name.startswith(split))


for stage in STAGES:
    rows = read_history(WEIGHTS, stage)
    ends = {split: f"{total(rows[0], split):.3f} -> {total(rows[-1], split):.3f}" for split in ("train", "val")}
    print(f"{stage:9} {len(rows):2} epochs   train {ends['train']}   val {ends['val']}")

# %% [markdown]
# ## Scores on the test split
#
# Each model goes through the test split once; the scores and detections below come from what it said then.

# %%
DEVICE = device()
test_set = CourseDataset(DATA, "test", config.data)
truth = coco_ap.ground_truth(test_set)
models = {stage: load_model(WEIGHTS, stage, config).to(DEVICE) for stage in ("maskhead", "joint")}
said = {stage: evaluate.collect_results(model, test_set, stage) for stage, model in models.items()}
print(f"{len(test_set)} images, {len(truth.anns)} objects;", {s: len(r["box"]) for s, r in said.items()}, "detections")

# %% [markdown]
# `lib.scores.evaluate.evaluate_model` goes from a model to its scores. Here the same steps are taken one by one, because we want
# to keep the evaluations for the curves.

# %%
show(evaluate.evaluate_model)


# %% [markdown]
# Step by step: one evaluation for boxes, one for masks, one for proposals.

# %%
def score(truth, results, images):
    kinds = {"box": "bbox", "mask": "segm"}
    evaluations = {name: coco_ap.coco_evaluation(truth, results[name], kind) for name, kind in kinds.items()}
    scores = {"images": images, "rpn": coco_ap.proposal_recall(truth, results["proposals"])}
    scores |= {name: coco_ap.average_precision(e) for name, e in evaluations.items()}
    scores["course"] = {f"{name}_mAP": coco_ap.course_map(e) for name, e in evaluations.items()}
    return scores, evaluations


scored = {stage: score(truth, results, len(test_set)) for stage, results in said.items()}
scores = {stage: s for stage, (s, _) in scored.items()}
evaluations = {stage: e for stage, (_, e) in scored.items()}

# %% [markdown]
# Both ways agree; four images are enough to see it.

# %%
few = copy.copy(test_set)
few.indices = test_set.indices[:4]
theirs = evaluate.evaluate_model(models["joint"], few)
ours, _ = score(coco_ap.ground_truth(few), evaluate.collect_results(models["joint"], few), 4)
assert all(ours[name] == value for name, value in theirs.items())

# %% [markdown]
# So nothing is lost by going step by step, and the model need not look at the images again.

# %% [markdown]
# The file that leaves this notebook: the scores of the fine-tuned system, as `python -m lib evaluate` writes them.

# %%
metrics = {"split": "test", "backbone": backbone_origin(config), **scores["joint"]}
write_json(metrics, paths().figures / "metrics.json")
print({part: sorted(value) if isinstance(value, dict) else value for part, value in metrics.items()})

# %% [markdown]
# ### Before and after
#
# AP is the mean over ten IoU thresholds, AP50 and AP75 those at 0.50 and 0.75; AR is the RPN's recall; the course's mAP is
# the area of the first part of this notebook.

# %%
names = {"maskhead": "stage by stage", "joint": "after joint fine-tuning"}
rows = report.before_after({names[stage]: s for stage, s in scores.items()})
_ = report.save_table(rows, "06_before_after")
report.markdown(rows)

# %% [markdown]
# How to read it: AP50 asks whether objects are found at all, AP75 whether they are well outlined. If AP75 gains more than
# AP50, fine-tuning sharpened what was found already; if AP50 gains as much, it found more.

# %% [markdown]
# The RPN's recall and the course's mAP. With fewer than 1000 proposals an image, AR@1000 is the recall of all of them.

# %%
more = []
for stage, s in scores.items():
    more.append({"stage": names[stage], **s["rpn"], **{f"course {k}": v for k, v in s["course"].items()}})
_ = report.save_table(more, "06_proposals_and_course")
report.markdown(more)

# %% [markdown]
# Each class on its own. With few objects of a class, a handful of images moves its AP by several points.

# %%
per_class = []
for k, name in enumerate(CLASS_NAMES[1:], start=1):
    row = {"class": name, "objects": len(truth.getAnnIds(catIds=[k]))}
    for stage, when in (("maskhead", "before"), ("joint", "after")):
        for kind in ("box", "mask"):
            row |= {f"{kind} {n} {when}": scores[stage][kind]["per_class"][name][n] for n in ("AP", "AP50")}
    per_class.append(row)
_ = report.save_table(per_class, "06_per_class")
report.markdown(per_class)


# %% [markdown]
# The tables in words. Differences below 0.005 count as none.

# %%
def verdict(name, before, after):
    before, after = round(before, 3), round(after, 3)
    word = "gains" if after - before > 0.005 else "loses" if before - after > 0.005 else "stays within"
    return f"{name} {word} {abs(after - before):.3f} ({before:.3f} -> {after:.3f})"


def of(stage, part, name):
    return scores[stage][part][name] or 0.0  # None: nothing to find


for part, name in (("box", "AP"), ("box", "AP50"), ("mask", "AP"), ("mask", "AP50"), ("rpn", "AR@100")):
    print(verdict(f"{part} {name}", of("maskhead", part, name), of("joint", part, name)))

# %% [markdown]
# ## Precision and recall
#
# At IoU 0.5; solid after, dotted before fine-tuning. A curve ends where the detector has said all it had to say: what is
# missing to the right are objects that no detection found.

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
for ax, kind, title in zip(axes, ("box", "mask"), ("boxes", "masks"), strict=True):
    draw.precision_recall(ax, coco_ap.precision_recall(evaluations["joint"][kind]), CLASS_NAMES)
    curves = coco_ap.precision_recall(evaluations["maskhead"][kind])
    for label, (r, p) in enumerate(curves, start=1):
        _ = ax.plot(r, p, ":", color=draw.class_colour(label))
    _ = ax.set_title(f"{title}: course mAP {scores['joint']['course'][f'{kind}_mAP'] or 0:.3f}", fontsize=10)
_ = axes[1].set_ylabel("")
_ = save_figure(fig, "06_precision_recall")


# %% [markdown]
# ## How exact?
#
# AP at each IoU threshold on its own. At 0.5 both mean little more than "found"; how fast a curve falls from there
# says how exact its outlines are.

# %%
def mean_where_defined(values):
    values = values[values > coco_ap.UNDEFINED]
    return float(values.mean()) if values.size else 0.0


fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
for kind, colour in (("box", draw.LINES[0]), ("mask", draw.LINES[1])):
    for stage, style in (("maskhead", ":"), ("joint", "-")):
        e = evaluations[stage][kind]
        at = [mean_where_defined(values[:, :, 0, -1]) for values in e.eval["precision"]]
        _ = ax.plot(e.params.iouThrs, at, style, color=colour, label=f"{kind}, {'after' if style == '-' else 'before'}")
_ = ax.set(xlabel="IoU threshold", ylabel="AP (mean over classes)", ylim=(0, 1))
_ = ax.legend(frameon=False)
_ = save_figure(fig, "06_ap_over_iou")

# %% [markdown]
# At high thresholds the boxes usually keep more than the masks: a box has four numbers to get right, an outline has
# hundreds, and 28 × 28 cells hold only so many of them (notebook 05 measured that ceiling).

# %% [markdown]
# ## By size of the object
#
# COCO's three sizes: *small* below 32² pixels, *medium* below 96², *large* above, counted in the 400 × 300 image.

# %%
edges = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
counts = {name: sum(low <= a["area"] < high for a in truth.anns.values()) for name, (low, high) in edges.items()}
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for shift, kind, colour in ((-0.2, "box", draw.LINES[0]), (0.2, "mask", draw.LINES[1])):
    values = evaluations["joint"][kind].eval["precision"]  # (IoUs, recalls, classes, sizes, limits)
    heights = [mean_where_defined(values[..., n, -1]) for n in (1, 2, 3)]
    bars = ax.bar(np.arange(3) + shift, heights, 0.4, color=colour, label=kind)
    _ = ax.bar_label(bars, [f"{h:.2f}" if c else "" for h, c in zip(heights, counts.values(), strict=True)], fontsize=9)
_ = ax.set_xticks(range(3), [f"{name}\nobjects: {count}" for name, count in counts.items()])
_ = ax.set(ylabel="AP after fine-tuning", ylim=(0, 1.1))
_ = ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
_ = save_figure(fig, "06_ap_by_size")


# %% [markdown]
# A number over few objects is a rough one: the counts stand below the bars. Small objects live on few cells of P2, and a
# shift of two pixels costs them a large part of their IoU.

# %% [markdown]
# ## Detections of the test split
#
# They are put together from what the model said above.

# %%
def detections_of(results, image):
    boxes = [row for row in results["box"] if row["image_id"] == image]
    masks = [rle.decode(row["segmentation"]) for row in results["mask"] if row["image_id"] == image]
    xywh = torch.tensor([row["bbox"] for row in boxes]).view(-1, 4)
    return {
        "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1),
        "labels": torch.tensor([row["category_id"] for row in boxes], dtype=torch.long),
        "scores": torch.tensor([row["score"] for row in boxes]),
        "masks": torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, 300, 400, dtype=torch.uint8),
    }


found = [detections_of(said["joint"], image) for image in test_set.indices]


# %% [markdown]
# ## What it gets right and what it gets wrong
#
# Every detection with a score of at least 0.5 is one of five things, and an object that no right detection took is missed.
# (A simple count: each detection is judged by the object it overlaps most.)

# %%
def kinds_of(found, target):
    taken, kinds = set(), []
    for row, label in zip(iou_matrix(found["boxes"], target["boxes"]), found["labels"], strict=True):
        best = int(row.argmax()) if len(row) else None
        same = best is not None and bool(target["labels"][best] == label)
        if best is not None and row[best] >= 0.5:
            kinds.append("wrong class" if not same else "duplicate" if best in taken else "right")
            taken |= {best} if same else set()
        else:
            kinds.append("badly placed" if (row >= 0.1).any() else "nothing there")
    return kinds + ["missed"] * (len(target["labels"]) - len(taken))


# %% [markdown]
# Counted over the whole test split:

# %%
KINDS = ("right", "duplicate", "wrong class", "badly placed", "nothing there", "missed")
targets = [test_set[n][1] for n in range(len(test_set))]
confident = [{k: v[f["scores"] >= 0.5] for k, v in f.items()} for f in found]
tally = [kind for f, t in zip(confident, targets, strict=True) for kind in kinds_of(f, t)]
errors = [{"kind": kind, "count": tally.count(kind)} for kind in KINDS]
_ = report.save_table(errors, "06_errors")
report.markdown(errors)

# %% [markdown]
# Which error to mend first?

# %%
wrong = {kind: tally.count(kind) for kind in KINDS[1:]}
most = max(wrong, key=wrong.get)
print(f"{tally.count('right')} of {len(truth.anns)} objects are found with a score of at least 0.5.")
if sum(wrong.values()):
    print(f"The most frequent error is {most!r} ({wrong[most]} of {sum(wrong.values())}).")


# %% [markdown]
# ### Best, typical, worst
#
# An image's quality is the mean mask IoU of its objects, where a missed object counts 0. We sort the images by it.

# %%
def quality(found, target):
    values = []
    for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
        overlap = iou_matrix(found["boxes"], box[None])[:, 0] * (found["labels"] == label)
        if len(overlap) and overlap.max() >= 0.5:
            guess = found["masks"][overlap.argmax()]
            values.append(float((guess & mask).sum() / (guess | mask).sum()))
        else:
            values.append(0.0)
    return sum(values) / max(len(values), 1)


qualities = [quality(f, t) for f, t in zip(confident, targets, strict=True)]
order = sorted((n for n in range(len(test_set)) if len(targets[n]["boxes"])), key=lambda n: -qualities[n])

# %% [markdown]
# The picture of the project's README: the first five images of the test split as they come, none picked, and the three
# worst of all. Above the ground truth, dashed; below what was found with a score of at least 0.5, filled in the colour of its
# class, and what became of it.

# %%
SHOWN = [*range(min(5, len(test_set))), *order[-3:]]


def fate(n):
    """The kinds of an image's detections and missed objects, in words."""
    kinds = kinds_of(confident[n], targets[n])
    words = [f"{kinds.count(kind)} {kind}".replace(" ", "\N{NO-BREAK SPACE}") for kind in KINDS if kind in kinds]
    return textwrap.fill(", ".join(words) or "nothing to find", 38)  # the width of a picture


fig, axes = plt.subplots(4, 4, figsize=(14, 11.2), layout="constrained")
for ax in axes.flat:
    ax.axis("off")
for k, n in enumerate(SHOWN):
    above, below = axes[2 * (k // 4) : 2 * (k // 4) + 2, k % 4]
    draw.masks(draw.image(above, test_set[n][0]), targets[n]["masks"], kind="truth", alpha=0.2)
    names = [CLASS_NAMES[label] for label in targets[n]["labels"].tolist()]
    draw.boxes(above, targets[n]["boxes"], "truth").set_title("true: " + ", ".join(names), fontsize=10)
    draw.detections(draw.image(below, test_set[n][0]), confident[n], CLASS_NAMES).set_title(fate(n), fontsize=10)
    above.axis("on"), below.axis("on")
_ = save_figure(fig, "06_detections")

# %% [markdown]
# Look for three things: objects without a box, boxes without an object, and masks that spill over or stop short.

# %% [markdown]
# Four of the best, four from the middle, four of the worst. True outlines dashed in red-orange, detections filled in the
# colour of their class.

# %%
middle = len(order) // 2
rows = {"best": order[:4], "typical": order[max(middle - 2, 0) : middle + 2], "worst": order[-4:][::-1]}
fig, axes = plt.subplots(3, 4, figsize=(14, 8.4), layout="constrained")
for line, (name, chosen) in zip(axes, rows.items(), strict=True):
    for ax, n in zip(line, chosen, strict=False):
        draw.image(ax, test_set[n][0])
        draw.masks(ax, targets[n]["masks"], kind="truth", alpha=0)
        draw.detections(ax, confident[n], CLASS_NAMES)
        ax.set_title(f"{name}: mask IoU {qualities[n]:.2f}", fontsize=9)
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
_ = save_figure(fig, "06_best_typical_worst")

# %% [markdown]
# All images at once. At 0 all objects were missed, the right-hand heap is made of good outlines; in between lie outlines
# that are only fair, and images with one object found and one missed.

# %%
fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
draw.histogram(ax, qualities, bins=np.linspace(0, 1, 21), xlabel="mean mask IoU of an image's objects (missed: 0)")
_ = ax.set_ylabel("images")
_ = save_figure(fig, "06_quality")
nothing = sum(q == 0 for q in qualities)
print(f"median {np.median(qualities):.3f}; in {nothing} of {len(qualities)} images no object was found with its class")

# %% [markdown]
# ## Checks
#
# What must hold whatever was learnt: fewer demands never lower a score, a mean lies between its parts, and what was read
# back from run lengths is what the model says.

# %%
for s in scores.values():
    for kind in ("box", "mask"):
        assert s[kind]["AP50"] >= s[kind]["AP75"] - 1e-9 and s[kind]["AP50"] >= s[kind]["AP"] - 1e-9
        classes = [v["AP"] for v in s[kind]["per_class"].values() if v["AP"] is not None]
        assert min(classes) - 1e-9 <= s[kind]["AP"] <= max(classes) + 1e-9
    assert s["rpn"]["AR@1000"] >= s["rpn"]["AR@100"] - 1e-9

again = models["joint"](test_set[0][0][None].to(DEVICE))[0]
assert len(again["boxes"]) == len(found[0]["boxes"])
print("the scores are consistent, and the detections are those of the model")


# %% [markdown]
# ## Speed, on this machine
#
# How long each part takes on one image, the mean of five runs after one to warm up. These numbers depend on the machine and
# on what else it is doing.

# %%
def timed(part, repeat=5):
    result = part()
    start = time.perf_counter()
    for _ in range(repeat):
        result = part()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return result, (time.perf_counter() - start) / repeat * 1000


# %% [markdown]
# The five parts in order, each on the output of the one before.

# %%
model, picture = models["joint"], test_set[0][0][None].to(DEVICE)
content, ms = (config.image.height, config.image.width), {}
back = (400 / content[1], 300 / content[0])
with torch.no_grad():
    features, ms["features"] = timed(lambda: model.features(preprocess_images(picture, config.image)))
    proposals, ms["RPN"] = timed(lambda: [p["boxes"] for p in model.propose(features, content)])
    refined, ms["box head"] = timed(lambda: model.detect(features, proposals, content)[0])
    masks, ms["mask head"] = timed(lambda: model.segment(features, [refined["boxes"]], [refined["labels"]])[0])
    _, ms["paste"] = timed(lambda: paste_masks(masks, scale_boxes(refined["boxes"], *back), (300, 400), 0.5))
print(f"on this machine ({DEVICE.type}), {len(proposals[0])} proposals, {len(masks)} detections:")
for part, value in ms.items():
    print(f"{part:10} {value:7.1f} ms   {value / sum(ms.values()):5.0%}")

# %% [markdown]
# ### Beside torchvision's, at full size
#
# One 800 × 1066 image through a ResNet-50, 1000 proposals and 100 detections, in milliseconds on two CPU cores, ours and
# torchvision's in turns, with the same weights (`python -m benchmarks.cost`). Left the parts, right how the whole grows.

# %%
cost_rows = report.read_table("06_cost", MEASURED)
cost_rows = [row | {k: float(row[k]) for k in ("ours ms", "torchvision ms", "ratio")} for row in cost_rows]
fig = cost_figure(cost_rows)
_ = save_figure(fig, "06_cost")
fig

# %%
report.markdown(
    [
        {"part": r["cost of"]} | {k: f"{r[k]:.1f}" for k in ("ours ms", "torchvision ms", "ratio")}
        for r in cost_rows
        if not r["at"]
    ]
)

# %% [markdown]
# ## Figures exported

# %%
for path in sorted(paths().figures.glob("06_*")) + [paths().figures / "metrics.json"]:
    print(path.name)

# %% [markdown]
# ## Conclusion
#
# Computed from the numbers above.

# %%
after = scores["joint"]
print(verdict("Joint fine-tuning: mask AP", of("maskhead", "mask", "AP"), of("joint", "mask", "AP")) + ".")
ranked = sorted(CLASS_NAMES[1:], key=lambda name: after["mask"]["per_class"][name]["AP"] or 0)
print(f"Hardest class: {ranked[0]}; easiest: {ranked[-1]} (mask AP).")
gap = of("joint", "box", "AP") - of("joint", "mask", "AP")
print(f"Boxes are {'more' if gap > 0 else 'less'} exact than masks: AP differs by {abs(gap):.3f}.")
limit = of("joint", "rpn", "AR@1000")
print(f"The RPN's proposals reach AR {limit:.3f}: without refinement of the boxes, no AP could lie far above it.")
print(f"Most frequent error at score 0.5: {most}.")

# %% [markdown]
# ## Summary
#
# - A detection is right once; a second one on the same object is an error.
# - The course's mAP is the area under the raw curve at IoU 0.5; COCO's AP smooths the curve and averages over ten IoUs.
# - Joint fine-tuning lets the five losses shape the shared features together; the table above says what that was worth
#   here.
# - An average hides its causes: curves by class, by IoU and by size, a count of the kinds of error, and a look at the
#   worst images say what to mend first.

# %% [markdown]
# ## Exercises
#
# 1. Remove detection 2, the duplicate, from the five. How do the two scores change, and why does the course's change more?
# 2. Give every detection the same score. What happens to the curve, and what does that say about calibration?
# 3. Fine-tune twice as long (`joint.epochs=4` in the `demo` profile). Which of the five val losses rises first?
# 4. Set `boxhead.test.nms_iou` to 0.3 and to 0.7 and count the kinds of error again. Which one trades against which?
# 5. The score ranks detections by class alone. Multiply it by the mean probability of the mask's pixels and evaluate the
#    masks again: does AP75 move?

# %% [markdown]
# ## A montage
#
# Six images of the test split as they come, the ninth to the fourteenth, with the true outlines.

# %%
fig, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
for ax, n in zip(axes.flat, range(8, min(14, len(test_set))), strict=False):
    draw.masks(draw.image(ax, test_set[n][0]), targets[n]["masks"], kind="truth", alpha=0)
    draw.detections(ax, found[n], CLASS_NAMES, threshold=0.5)
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
_ = save_figure(fig, "06_montage")

# %% [markdown]
# ## The browser
#
# Every image of the test split, with its ground truth and its detections at any score threshold. (A saved notebook shows
# the widget only while it runs.)

# %%
from lib.notebook import browser

browser.browse_masks(models["joint"], test_set, stage="joint")
