# %% [markdown]
# # 6 · Evaluation and joint fine-tuning: how good is it?
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-from-its-parts/maskrcnn-from-its-parts/blob/main/notebooks/06_eval.ipynb)
#
# **The claim.** Average precision turns thousands of boxes and masks into one number that can be checked by hand. It says what training all
# parts together adds, and, taken apart, which errors are left.
#
# **Run time** (demo profile, two recent CPU cores): four to five minutes, three of them to fine-tune, which is done once. What is missing of
# notebooks 3 to 5 is trained first.
#
# **Inputs → outputs.** `data/`, `rpn`, `boxhead` and `maskhead` of `weights/<profile>/` → `weights/<profile>/joint.safetensors`,
# `figures/metrics.json`, figures and tables `figures/06_*`.
#
# §7.5, §8 and so on are sections of the course's assignment sheet. It is not in the repository; what it asks for is said here.

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
# The whole system, with this notebook's part in colour:

# %%
import contextlib
import copy
import io
import re
import textwrap
import time

import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib import cbook
from pycocotools import mask as rle
from torch.testing import assert_close

from benchmarks.cost import cost_figure
from lib.boxes import iou_matrix, scale_boxes
from lib.config import STAGES
from lib.data.pictures import read_picture
from lib.data.reader import CourseDataset
from lib.machine.device import device
from lib.machine.files import write_json
from lib.machine.folders import paths
from lib.maskhead import THRESHOLD, paste_masks
from lib.maskrcnn import COURSE_CLASSES
from lib.notebook import diagrams, draw, report
from lib.notebook.teach import followed, show
from lib.preprocess import content_size, preprocess_images
from lib.scores import coco_ap, evaluate
from lib.scores.results import box_results, encode_masks
from lib.training import stages
from lib.training.checkpoint import backbone_origin, load_model
from lib.training.history import read_history
from lib.training.loop import train_until

CLASS_NAMES = config.class_names  # by label; 0 is background
diagrams.system("eval")

# %% [markdown]
# ## Goals
#
# After this notebook you can
#
# 1. say when a detection is right, and compute the IoU of two masks;
# 2. draw a precision/recall curve by hand, and read the course's mAP and COCO's AP from it;
# 3. say what joint fine-tuning (§8) changes, and tell its gain from what merely came along with it;
# 4. find out what kinds of errors a detector makes, and on which objects.
#
# | split | notebooks 3 to 5 | here |
# |---|---|---|
# | train | each part learns alone | all parts learn together |
# | val | learning curves, examples, measures | learning curves, examples |
# | test | not used | scores, before and after |
#
# No weight, threshold or number of epochs was chosen on the test split: the project's authors chose them on other scenes, of another seed.
# Whoever tries twenty settings and reports the best score of them on the same images reports partly luck.

# %% [markdown]
# ## The image we follow
#
# All six notebooks follow one validation image from file to mask. Here it arrives: the trained parts, stage by stage, give proposals, then
# boxes with a class and a score, then masks.

# %%
WEIGHTS = train_until("maskhead", config, DATA, WEIGHTS)
DEVICE, val = device(), CourseDataset(DATA, "val", config.data)
models = {"maskhead": load_model(WEIGHTS, "maskhead", config).to(DEVICE)}


def detections(model, image, **options):
    """What the model finds in one image (3, H, W) uint8, on the CPU."""
    (found,) = model(image[None].to(DEVICE), **options)
    return {name: value.cpu() for name, value in found.items()}


def mask_iou(a, b):
    """Masks (H, W) of 0 and 1."""
    return float((a & b).sum() / (a | b).sum())


picture, target = val[followed(val)]
said_of_it = detections(models["maskhead"], picture)

# %% [markdown]
# In pictures of images ground truth is dashed orange-red, and what is found has its class's colour; proposals are green.

# %% cellView="form"
# @title What this cell draws: the image we follow, from file to mask
fig, axes = plt.subplots(1, 3, figsize=(12, 3.4))
for ax in axes:
    draw.boxes(draw.image(ax, picture), target["boxes"], "truth", linewidth=2)
draw.masks(axes[0], target["masks"], kind="truth", alpha=0)
draw.boxes(axes[1], said_of_it["proposals"][:10], "predicted")
draw.detections(axes[2], said_of_it, CLASS_NAMES)
titles = (
    "the file: objects, their boxes and masks",
    "the RPN's ten best proposals",
    "found with a score of at least 0.5",
)
for ax, title in zip(axes, titles, strict=True):
    ax.set_title(title, fontsize=10)
draw.legend(axes[1], {"truth": "object", "predicted": "proposal"})
fig.tight_layout()
_ = save_figure(fig, "06_followed")
plt.show()


def best_for(found, target, n):
    """Score, box IoU and mask IoU of the detection of the right class that lies best on object n; zeros for none."""
    same = (found["labels"] == target["labels"][n]).nonzero().flatten()
    if not len(same):
        return 0.0, 0.0, 0.0
    overlap = iou_matrix(found["boxes"][same], target["boxes"][n : n + 1])[:, 0]
    best = same[overlap.argmax()]
    return float(found["scores"][best]), float(overlap.max()), mask_iou(found["masks"][best], target["masks"][n])


which = [CLASS_NAMES[label] for label in target["labels"].tolist()]
on_each = [best_for(said_of_it, target, n) for n in range(len(which))]
Markdown(
    "Best on each object: "
    + "; ".join(
        f"the {name} with score {score:.2f}, box IoU {box:.2f}, mask IoU {mask:.2f}"
        for name, (score, box, mask) in zip(which, on_each, strict=True)
    )
    + "."
)

# %% [markdown]
# Is that good? One image does not say, and looking at hundreds gives an impression, not a number. The rest of this notebook makes the number.
#
# ## Symbols
#
# | symbol | meaning |
# |---|---|
# | $G$, $D$, $N$ | objects, detections and proposals of an image |
# | $s$ | score of a detection: the box head's probability of its class |
# | $\tau$ | the IoU from which on a detection counts as right: 0.5, or 0.50, 0.55, …, 0.95 in turn |
# | TP, FP | detections that are right, that are wrong |
# | precision $p$ | TP / (TP + FP): how much of what was said is right |
# | recall $r$ | TP / objects: how much of what is there was said |
# | AP, mAP | average precision of a class, and its mean over the classes |
# | AR@$n$ | average recall of the RPN's $n$ best proposals |

# %% [markdown]
# ## The idea: when is a detection right?
#
# When its class is right, it overlaps an object by $\tau$ or more, and no better detection has taken that object already. Overlap is the
# IoU, of boxes or, for masks, of pixels:
#
# $$\mathrm{IoU}(A, B) = \frac{|A \cap B|}{|A \cup B|}$$

# %% cellView="form"
# @title What this cell draws: two masks of 4 × 4 pixels
square = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.uint8)
ell = torch.tensor([[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.uint8)
fig, axes = plt.subplots(1, 2, figsize=(5, 2.6), layout="constrained")
for ax, mask, name, colour in zip(axes, (square, ell), "AB", (0.35, 0.7), strict=True):
    draw.heatmap(draw.image(ax, torch.ones(3, 4, 4)), colour * mask).set_title(f"mask {name}", fontsize=10)
    ax.vlines(range(5), 0, 4, color="white", linewidth=0.5)
    ax.hlines(range(5), 0, 4, color="white", linewidth=0.5)

# %% [markdown]
# **Predict.** What is the IoU of these two masks?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
iou_by_hand = 2 / 6
### END SOLUTION

# %% [markdown]
# Counted pixel by pixel, by our function, and by pycocotools, which does the counting in `lib.scores`:

# %%
pairs = [(a, b) for row in zip(square.tolist(), ell.tolist(), strict=True) for a, b in zip(*row, strict=True)]
both, either = sum(a and b for a, b in pairs), sum(a or b for a, b in pairs)
assert_close(iou_by_hand, both / either)
assert_close(mask_iou(square, ell), iou_by_hand)
codes = encode_masks(torch.stack([square, ell]))
assert_close(rle.iou(codes[:1], codes[1:], [0])[0, 0], iou_by_hand)
print(f"{both} pixels in both, {either} in either: IoU {both / either:.3f}")

# %% [markdown]
# ## By hand: five detections
#
# Two images, three people $A$, $B$ and $C$, five detections of class *person*. Dashed are the objects, with a score the detections:

# %% cellView="form"
# @title What this cell draws: three objects and five detections
objects = [(0, [0, 0, 10, 10]), (0, [20, 0, 30, 10]), (1, [0, 0, 10, 10])]  # image and box of A, B, C
listed = [  # score, image and box, best first
    (0.95, 0, [0, 0, 10, 10]),
    (0.90, 0, [1, 0, 11, 10]),
    (0.80, 1, [0, 0, 10, 10]),
    (0.60, 1, [20, 0, 30, 10]),
    (0.40, 0, [22, 0, 32, 10]),
]


def iou(a, b):
    return float(iou_matrix(torch.tensor([a]).float(), torch.tensor([b]).float()))


fig, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
for image, ax in enumerate(axes):
    draw.image(ax, torch.ones(3, 14, 34), margin=1)
    for name, (where, box) in zip("ABC", objects, strict=True):
        if where == image:
            draw.boxes(ax, [box], "truth", linewidth=3)
            ax.text(box[0] + 5, 8, name, fontsize=12, ha="center")
    for n, (score, where, box) in enumerate(listed, start=1):
        if where == image:
            draw.boxes(ax, [box], "predicted")
            ax.text(box[0] + 0.5 + (n == 1), 2 + 2.4 * (n == 2), f"{n}: {score:.2f}", fontsize=9)
    ax.set_title(f"{('first', 'second')[image]} image", fontsize=10)
draw.legend(axes[0], {"truth": "object", "predicted": "number: score of a detection"})
plt.show()
report.markdown(
    [
        {
            "detection": n,
            "IoU with": " · ".join(f"{'ABC'[g]} {iou(box, o[1]):.2f}" for g, o in same if iou(box, o[1])) or "none",
        }
        for n, (_, image, box) in enumerate(listed, start=1)
        for same in [[(g, o) for g, o in enumerate(objects) if o[0] == image]]
    ]
)

# %% [markdown]
# **Predict.** Which of the five are right at $\tau = 0.5$?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
right = [True, False, True, False, True]
### END SOLUTION

# %% [markdown]
# The rule in loops: best score first, each takes the object that it overlaps most among those still free.

# %%
def naive_right(listed, objects, tau):
    free, right = list(range(len(objects))), []
    for _, image, box in sorted(listed, reverse=True):
        fits = [g for g in free if objects[g][0] == image and iou(box, objects[g][1]) >= tau]
        best = max(fits, key=lambda g: iou(box, objects[g][1]), default=None)
        right.append(best is not None)
        free = [g for g in free if g != best]
    return right


assert right == naive_right(listed, objects, 0.5)

# %% [markdown]
# Detection 2 is wrong although its IoU is 0.82: $A$ is taken. A duplicate is not a bad box but a second one.

# %% [markdown]
# Each row of the next table is a score threshold: keep this detection and all better ones. What are precision and recall then?

# %%
hits, said = np.cumsum(right), np.arange(1, len(right) + 1)
recall = np.concatenate([[0], hits / len(objects)])  # a first point: nothing said, nothing wrong
precision = np.concatenate([[1], hits / said])
columns = zip(said.tolist(), right, hits.tolist(), precision[1:].tolist(), recall[1:].tolist(), strict=True)
report.markdown(
    [
        {"detections": n, "the last is": "right" if r else "wrong", "TP": tp, "FP": n - tp, "precision": p, "recall": q}
        for n, r, tp, p, q in columns
    ]
)

# %% [markdown]
# Recall can only grow from row to row; precision goes up and down.
#
# ### Two ways to make one number of it
#
# $$\mathrm{AP} = \int_0^1 p(r)\, dr$$
#
# **The course's mAP** joins the points by straight lines and takes the area (trapezoids), at $\tau = 0.5$; then the mean over classes.
#
# **[COCO](https://arxiv.org/abs/1405.0312)'s AP** first fills the dents: the precision at $r$ is the *best* one at any recall
# $\ge r$, because whoever may choose the threshold would choose that one. It reads this staircase at 101 recalls, 0, 0.01, …, 1, and takes the mean,
# then the mean over ten $\tau$ (so that a better outline is worth something) and over classes (so that a rare class counts as much as a frequent one).

# %% cellView="form"
# @title What this cell draws: the curve and the staircase
envelope = np.maximum.accumulate(precision[::-1])[::-1]
staircase = [envelope[1:][recall[1:] >= r][0] for r in np.linspace(0, 1, 101)]
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
_ = ax.fill_between(recall, precision, color=draw.LINES[0], alpha=0.15)
_ = ax.plot(recall, precision, marker="o", color=draw.LINES[0], label="the course: area below the curve")
_ = ax.plot(np.linspace(0, 1, 101), staircase, color=draw.LINES[1], label="COCO: mean of the staircase")
for n, (r, p) in enumerate(zip(recall[1:], precision[1:], strict=True), start=1):
    _ = ax.annotate(str(n), (r, p), xytext=(-12, -12), textcoords="offset points", fontsize=9)
_ = ax.set(xlabel="recall", ylabel="precision", xlim=(0, 1.03), ylim=(0, 1.08))
_ = ax.legend(frameon=False, loc="lower left")
_ = save_figure(fig, "06_five_detections")

# %% [markdown]
# Each numbered point is a detection; every wrong one drops the blue curve straight down.
#
# **Predict.** The area, and the mean of the staircase? (34 of the 101 recalls see the first step, 33 the second, 34 the third.)

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
course_by_hand = 1 / 3 * 1 + 1 / 3 * (1 / 2 + 2 / 3) / 2 + 1 / 3 * (1 / 2 + 3 / 5) / 2
coco_by_hand = (34 * 1 + 33 * 2 / 3 + 34 * 3 / 5) / 101
### END SOLUTION

# %% [markdown]
# A wrong detection before a right one makes a dent: the course's area loses it, COCO's staircase fills it up to the best precision that follows.

# %%
area = np.trapezoid(precision, recall)
assert_close(area, course_by_hand)
assert_close(np.mean(staircase), coco_by_hand)
print(f"course: {area:.4f}   COCO at IoU 0.5: {np.mean(staircase):.4f}")

# %% [markdown]
# ### The part: `lib.scores.coco_ap`
#
# pycocotools, COCO's own program, finds the matches; both scores are read from them.

# %%
show(coco_ap.precision_recall, coco_ap.course_map, coco_ap.average_precision)

# %% cellView="form"
# @title What this cell makes: the five detections in COCO's format
PERSON = torch.tensor([2])  # its category; boxes there are (x, y, w, h)
annotations = [box_results(where, torch.tensor([box]).float(), PERSON, torch.ones(1))[0] for where, box in objects]
annotations = [{**a, "id": n, "area": 100, "iscrowd": 0} for n, a in enumerate(annotations, start=1)]
three_people = coco_ap._coco(
    {
        "images": [{"id": 0}, {"id": 1}],
        "annotations": annotations,
        "categories": coco_ap.categories(COURSE_CLASSES),
    }
)


def results_of(listed):
    """Detections (score, image, box) as COCO's results."""
    rows = [box_results(where, torch.tensor([box]).float(), PERSON, torch.tensor([s])) for s, where, box in listed]
    return [row for (row,) in rows]


# %% [markdown]
# **Predict.** What is AP75, where $\tau = 0.75$? And AP, the mean over 0.50, 0.55, …, 0.95? Detection 5 has an IoU of 0.67, so it is right at
# four of the ten.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
ap75_by_hand = (34 * 1 + 33 * 2 / 3 + 34 * 0) / 101  # the last object is never found
ap_by_hand = 0.4 * coco_by_hand + 0.6 * ap75_by_hand
### END SOLUTION

# %% [markdown]
# Both scores by `lib`:

# %%
by_lib = coco_ap.coco_evaluation(three_people, results_of(listed), "bbox")
five = coco_ap.average_precision(by_lib)
assert_close(coco_ap.course_map(by_lib), area)
assert_close(five["AP50"], coco_by_hand)
assert_close((five["AP75"], five["AP"]), (ap75_by_hand, ap_by_hand))
print({name: round(five[name], 4) for name in ("AP", "AP50", "AP75")})

# %% [markdown]
# One box two pixels off its place, and a third of the objects is gone.
#
# **Predict.** Ten more detections with score 0.01 in an empty part of the first image, all wrong: what are the course's mAP and AP50 now?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
course_with_ten_more, ap50_with_ten_more = course_by_hand, coco_by_hand
### END SOLUTION

# %% [markdown]
# By `lib` again:

# %%
junk = [(0.01, 0, [12 + n / 2, 11, 13 + n / 2, 12]) for n in range(10)]
with_junk = coco_ap.coco_evaluation(three_people, results_of(listed + junk), "bbox")
assert_close(coco_ap.course_map(with_junk), course_with_ten_more)
assert_close(coco_ap.average_precision(with_junk)["AP50"], ap50_with_ten_more)
print(f"course: {coco_ap.course_map(with_junk):.4f}   AP50: {coco_ap.average_precision(with_junk)['AP50']:.4f}")

# %% [markdown]
# Nothing changes: at the end of the list recall grows no more, so the fall has no width. **What scores lower than everything right costs
# nothing**; what is right, even at a score of 0.06, gains. Remember it for the rule of inference below, and when you show
# detections to people: they do pay for wrong ones, so figures here stop at a score of 0.5.
#
# **AR@$n$**, the RPN's score, is recall alone: how many objects do the $n$ best boxes find, classes ignored, averaged over the ten
# $\tau$? Of the five boxes: $0.4 \cdot 1 + 0.6 \cdot \tfrac23 = 0.8$.

# %%
assert_close(coco_ap.proposal_recall(three_people, results_of(listed))["AR@100"], 0.8)

# %% [markdown]
# ## Joint fine-tuning
#
# So far every part learnt with the earlier ones frozen (§4 to §7). Frozen parts cannot answer: the RPN never heard what the heads made of
# its proposals, and the backbone never saw these images while it learnt. §8 lets all learn at once, from the sum of the losses:
#
# $$L = \underbrace{L_{cls} + L_{reg}}_{\text{RPN}} + \underbrace{L_{cls} + \lambda L_{reg}}_{\text{box head}} + L_{mask}$$
#
# $L_{cls}$ is the cross-entropy of object or class, $L_{reg}$ the smooth L1 loss of the box, $\lambda$ its weight (`boxhead.loss_weight`).

# %%
show(stages.JointStage)

# %% [markdown]
# It is the three stages of notebooks 3 to 5 on the same features, so all five gradients meet in the pyramid. The box head's own minibatch,
# refined, trains the mask head: proposals are pooled once, not twice. Which boxes are chosen is not differentiated: no gradient
# goes through coordinates or NMS.

# %%
joint_config, own = config.of_stage("joint"), copy.deepcopy(models["maskhead"])
own.config = joint_config
learner = stages.Learner(stages.JointStage(own))  # from here on `own` knows what learns
parts = {
    "trunk": "backbone.body.",
    "pyramid": "backbone.fpn.",
    "RPN": "rpn.",
    "box head": "box_head.",
    "mask head": "mask_head.",
}
rates = {"RPN": config.rpn.lr, "box head": config.boxhead.lr, "mask head": config.maskhead.lr}
rows = []
for part, prefix in parts.items():
    mine = [p for name, p in own.named_parameters() if name.startswith(prefix)]
    learning = sum(p.numel() for p in mine if p.requires_grad)
    rows.append({"part": part, "parameters": sum(p.numel() for p in mine), "learn jointly": learning})
    rows[-1] |= {"own stage's rate": f"{rates[part]:g}" if part in rates else "frozen", "joint": f"{config.joint.lr:g}"}
display(report.markdown(rows))
total, factor = sum(row["learn jointly"] for row in rows), min(rates.values()) / config.joint.lr
size = f"{factor:.3g} times smaller than" if factor > 1 else "no smaller than"
Markdown(
    f"{total / 1e6:.1f} million parameters learn, for {config.joint.epochs} epoch{'s' * (config.joint.epochs != 1)}, "
    f"with a learning rate {size} the least of the stages'. What they "
    "learnt is to be adapted, not unlearnt. For the same reason BatchNorm stays as it is in the trunk (its parameters "
    "are what does not learn there, with the first blocks where the config freezes them), and its stored statistics in "
    "the RPN. The training loop is that of notebook 3."
)

# %% [markdown]
# ### What the joint stage does otherwise
#
# The sheet leaves freedom ("feel free to make adjustments"). `config.joint.changes` lists what the joint stage, and the system after it,
# does otherwise:

# %%
WHY = {
    "boxhead.test.score_threshold": "at 0 a box says its best class only, above 0 every class that reaches it: more "
    "detections, and the end of the list can only gain",
    "boxhead.loss_weight": "five losses share one network; with the stages' weight this one would speak for all",
    "boxhead.batch_samples": "the network runs for each image anyway: a few more samples of it cost little",
    "boxhead.adds_truth": "each object's own box is among the proposals, so that none goes unlearnt",
    "boxhead.positive_iou": "as in Faster R-CNN: what overlaps its object by less is background",
    "boxhead.positive_fraction": "as in Faster R-CNN: one of an object to three of background",
    "boxhead.smooth_l1_beta": "with 1 the loss is quadratic until a box is off by its whole size: errors of a tenth "
    "hardly count",
    "rpn.nms_iou": "an object keeps more near copies of its box, and the best of them counts",
    "rpn.batch_samples": "the network runs for each image anyway: a few more samples of it cost little",
    "boxhead.test.pre_nms": "with every class in the list, more boxes have to enter NMS",
}
report.markdown(
    [
        {
            "number": p,
            "stages": str(config.value(p)),
            "joint": str(joint_config.value(p)),
            "why": WHY.get(p, "set by you"),
        }
        for p, _ in config.joint.changes
    ]
)

# %% [markdown]
# What has `.test.` in its name is a rule of *inference*, and so is `rpn.nms_iou` once the network is trained: a gain from it is not joint training's.
# So a third model is scored below: the parts trained stage by stage, under this rule.

# %%
WEIGHTS = train_until("joint", config, DATA, WEIGHTS)
models |= {"rule": own, "joint": load_model(WEIGHTS, "joint", config).to(DEVICE)}
weights = {"boxhead": config.boxhead.loss_weight, "joint": joint_config.boxhead.loss_weight}
histories = {
    stage: [
        {key: value / weights[stage] if "box_regression" in key else value for key, value in row.items()}
        for row in read_history(WEIGHTS, stage)
    ]
    for stage in STAGES
}

# %% [markdown]
# ### Learning curves of all stages
#
# Dotted and hollow: training images. Solid: validation images. The axis is logarithmic, since the losses differ several hundredfold. The
# box regression is shown without its weight.

# %% cellView="form"
# @title What this cell draws: each loss over the epochs
fig, axes = plt.subplots(2, 2, figsize=(12, 6.4), layout="constrained")
first, end = histories["joint"][0], histories["joint"][-1]
NAMES = [name.removeprefix("train_") for name in end if name.startswith("train_")]
for ax, (stage, history) in zip(axes.flat, histories.items(), strict=True):
    draw.curves(ax, history, NAMES).set_title(stage, fontsize=10)  # all five names: a colour means one loss throughout
    _ = ax.set_yscale("log")
    here = [line for line in ax.lines if len(line.get_xdata())]
    _ = ax.legend(handles=here, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
_ = save_figure(fig, "06_learning_curves")
plt.show()

last = {name: value for stage in STAGES[:-1] for name, value in histories[stage][-1].items()}
rows = []
for name in NAMES:
    values = (last[f"val_{name}"], first[f"val_{name}"], end[f"val_{name}"], end[f"train_{name}"])
    heads = "own stage, end", "joint, epoch 1", "joint, end", "joint, end, train"
    rows.append({"val loss": name.replace("_", " ")} | dict(zip(heads, (f"{v:.4f}" for v in values), strict=True)))
display(report.markdown(rows))
apart = [
    n.replace("_", " ")
    for n in NAMES
    if round(end[f"train_{n}"], 4) < round(first[f"train_{n}"], 4)
    and round(end[f"val_{n}"], 4) > round(first[f"val_{n}"], 4)
]
learnt = (
    f"there is less of **{', '.join(apart)}** on the training images and more on the others. By the loss that is overfitting. "
    "AP can rise all the same: it asks whether scores are in the right order and pixels on the right side of the "
    "threshold, the loss also how sure the wrong ones were"
)
OTHERWISE = {"boxhead.batch_samples", "boxhead.positive_fraction", "boxhead.smooth_l1_beta"}
other = OTHERWISE & dict(config.joint.changes).keys()
Markdown(
    f"(The weight left out is {weights['boxhead']:g} in the box head's stage and {weights['joint']:g} here."
    + " The box head's two do not compare across stages, for minibatch or β are others here, nor does the mask's, whose "
    "boxes come from that minibatch."
    * bool(other)
    + ") From the joint stage's first epoch to its last, "
    + (f"{learnt}." if apart else "no loss falls on the training images while it rises on the others.")
)

# %% [markdown]
# ### Our image again
#
# Before and after, the same threshold:

# %% cellView="form"
# @title What this cell draws: the image we follow, before and after
after_of_it = detections(models["joint"], picture)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.8))
for ax, found, title in zip(
    axes, (said_of_it, after_of_it), ("stage by stage", "after joint fine-tuning"), strict=True
):
    draw.boxes(draw.image(ax, picture), target["boxes"], "truth", linewidth=2)
    draw.masks(ax, target["masks"], kind="truth", alpha=0)
    draw.detections(ax, found, CLASS_NAMES).set_title(title, fontsize=10)
    draw.legend(ax, ["truth"])
fig.tight_layout()
plt.show()
now_on_each = [best_for(after_of_it, target, n) for n in range(len(which))]
moves = [
    f"the {name}'s {what} IoU {'rises' if after > before else 'falls'} from {before:.2f} to {after:.2f}"
    for name, old, new in zip(which, on_each, now_on_each, strict=True)
    for what, before, after in zip(("box", "mask"), old[1:], new[1:], strict=True)
    if round(before, 2) != round(after, 2)
]
Markdown(
    f"On this image {', '.join(moves) or 'hardly anything moves'}."
    + " One image does not say which way joint training moves things on average; the test split does."
)

# %% [markdown]
# ## Scores on the test split
#
# Each model goes through the test split once; all scores and pictures below come from what it said then.

# %%
test_set = CourseDataset(DATA, "test", config.data)
truth = coco_ap.ground_truth(test_set)
results = {stage: evaluate.collect_results(model, test_set) for stage, model in models.items()}
targets = [test_set[n][1] for n in range(len(test_set))]
print(
    f"{len(test_set)} images, {len(truth.anns)} objects;", {s: len(r["box"]) for s, r in results.items()}, "detections"
)


# %% [markdown]
# Three evaluations a model: boxes, masks, proposals. (`lib.scores.evaluate.evaluate_model` does the same in one call.)

# %%
def score(truth, results, images):
    kinds = {"box": "bbox", "mask": "segm"}
    evaluations = {name: coco_ap.coco_evaluation(truth, results[name], kind) for name, kind in kinds.items()}
    scores = {"images": images, "rpn": coco_ap.proposal_recall(truth, results["proposals"])}
    scores |= {name: coco_ap.average_precision(e) for name, e in evaluations.items()}
    scores["course"] = {f"{name}_mAP": coco_ap.course_map(e) for name, e in evaluations.items()}
    return scores, evaluations


scores, evaluations = {}, {}
for stage, of_stage in results.items():
    scores[stage], evaluations[stage] = score(truth, of_stage, len(test_set))


def of(stage, part, name):
    return scores[stage][part][name] or 0.0  # None: nothing to find


metrics = {"split": "test", "backbone": backbone_origin(config), **scores["joint"]}
_ = write_json(metrics, paths().figures / "metrics.json")

# %% [markdown]
# ### Before and after, in this run
#
# AP50 asks whether objects are found at all, AP75 whether they are outlined well.

# %%
MEASURED = root / "figures" / "published"  # tables that come with the project
names = {
    "maskhead": "stage by stage",
    "rule": "... with the joint stage's inference",
    "joint": "after joint fine-tuning",
}
rows = report.before_after({names[stage]: s for stage, s in scores.items()})
_ = report.save_table(rows, "06_before_after")
display(report.markdown(rows))
more = [
    {"stage": names[stage], **s["rpn"], **{f"course {k}": v for k, v in s["course"].items()}}
    for stage, s in scores.items()
]
_ = report.save_table(more, "06_proposals_and_course")
display(report.markdown(more))


def moved(part, name, before="maskhead", after="joint"):
    """By how much a score differs, both rounded as in the tables."""
    return round(of(after, part, name), 3) - round(of(before, part, name), 3)


# %% [markdown]
# The second table has the RPN's recall and the course's mAP at IoU 0.5. In words:

# %%
def verdict(part, name):
    move = moved(part, name)
    return f"{part} {name} {'gains' if move > 0 else 'loses' if move < 0 else 'keeps'} {abs(move):.3f}"


of_joint = [r for r in report.read_table("06_stages", MEASURED) if r["after"] == "joint"]
spread = {r["figure"]: round(float(r["deviation"]), 3) for r in of_joint}


def against_noise(kind):
    """Whether AP moves by more than another seed alone moves it, in words."""
    noise, move = spread[f"{kind} AP"], round(moved(kind, "AP"), 3)
    if abs(move) <= noise:
        return f"{kind} AP moves no more than another seed moves it ({noise:.3f}): **no evidence of a gain**"
    went = "gains" if move > 0 else "loses"
    return f"{kind} AP {went} more than another seed moves it ({abs(move):.3f} against {noise:.3f})"


with_rule = [f"{k} {n} by {moved(k, n, 'rule'):+.3f}" for k in ("box", "mask") for n in ("AP", "AP50")]
all_rule = all(moved(k, "AP50", "rule") <= 0 < moved(k, "AP50", after="rule") for k in ("box", "mask"))
Markdown(
    "\n".join(
        [
            f"* {'; '.join(verdict('box', n) for n in ('AP', 'AP50', 'AP75'))}. "
            f"{'; '.join(verdict('mask', n) for n in ('AP', 'AP50', 'AP75'))}.",
            f"* The rule of inference alone moves box AP by {moved('box', 'AP', after='rule'):+.3f} and mask AP by "
            f"{moved('mask', 'AP', after='rule'):+.3f}. With the same rule, joint training moves {', '.join(with_rule)}"
            + (": the whole gain in AP50 comes from the rule." if all_rule else "."),
            f"* Beside the standard deviation over three seeds (scored on 1,000 scenes, in the appendix): "
            f"{against_noise('box')}; {against_noise('mask')}. Seeds are only part of the noise: "
            f"{len(test_set)} other images would move both.",
            f"* The RPN gives an image at most {config.rpn.test.post_nms} proposals; AR@1000 takes what there is.",
        ]
    )
)

# %% [markdown]
# ### A fair comparison
#
# Does the gain come from joint training? The heads have also seen the images more often, the losses and minibatches have other numbers, and so has
# inference. So `python -m benchmarks.joint` takes these apart, with three seeds, and scores 1,000 other scenes, on which the
# joint stage's losses, minibatch and NMS were found (with one of the seeds), so that it comes off a little too well;
# "longer" is by the joint stage's epochs. In brackets the 95 % interval of the difference to the first row, paired by image and seed, and last
# that to the heads alone, trained for as many epochs with the same numbers (the joint stage's from their first epoch on, but for its
# NMS of proposals, which they have in scoring only).

# %% cellView="form"
# @title What this cell shows: the table, and its fair pairs in words
joint_rows = report.read_table("06_joint", MEASURED) if (MEASURED / "06_joint.csv").is_file() else []
joint_rows and display(report.markdown(joint_rows))
PAIRS = {"the joint stage's": "joint", "the stages'": "... with the stages' numbers throughout"}  # whose numbers: row


def fair_pair(row, kind):
    """All parts jointly beside the heads alone, as one phrase."""
    mean, low, high = (float(n) for n in re.findall(r"[+-][\d.]+", row[f"{kind} AP, to the heads alone"]))
    return f"{kind} AP {mean:+.3f}, " + (
        "not to be told from 0" if low <= 0 <= high else "a gain" if mean > 0 else "a loss"
    )


row_of = {row[""]: row for row in joint_rows}
fair = {
    whose: "; ".join(fair_pair(row_of[name], kind) for kind in ("box", "mask"))
    for whose, name in PAIRS.items()
    if name in row_of
}
said = "; and ".join(f"with {whose} numbers {pair}" for whose, pair in fair.items())
said = f"Joint training against the heads alone: {said}."
if fair and "a gain" not in fair["the joint stage's"]:
    said += " So what the stage gains on these scenes comes from its numbers and not from training jointly: their "
    said += "backbone has seen many pictures of just this kind, and has little left to learn."
unsettled = "Whether longer training alone would gain as much is not settled here: the table `06_joint` is missing."
Markdown(said if fair else unsettled)

# %% [markdown]
# ### Each class

# %%
per_class = [
    {"class": name, "objects": len(truth.getAnnIds(catIds=[k])), "": when}
    | {f"{kind} {n}": scores[stage][kind]["per_class"][name][n] for kind in ("box", "mask") for n in ("AP", "AP50")}
    for k, name in enumerate(CLASS_NAMES[1:], start=1)
    for stage, when in (("maskhead", "before"), ("joint", "after"))
]
_ = report.save_table(per_class, "06_per_class")
display(report.markdown(per_class))
present = [row for row in per_class if row[""] == "after" and row["objects"]]
hardest, easiest = (pick(present, key=lambda row: row["mask AP"] or 0) for pick in (min, max))
few = [f"{row['class']} ({row['objects']})" for row in present if row["objects"] < 30]


def rim(mask):
    """The share of a mask's pixels (H, W) that touch its outline."""
    outside = torch.nn.functional.max_pool2d(1 - mask.float()[None], 3, 1, 1)[0]
    return float((outside * mask).sum() / mask.sum())


rims = {row["class"]: [] for row in present}
for t in targets:
    for label, mask in zip(t["labels"].tolist(), t["masks"], strict=True):
        rims[CLASS_NAMES[label]].append(rim(mask))
rims = {name: np.mean(values) for name, values in rims.items()}
Markdown(
    f"By mask AP the hardest class is **{hardest['class']}** ({hardest['mask AP']:.3f}), the easiest "
    f"{easiest['class']} ({easiest['mask AP']:.3f}); {hardest['class']}'s mask AP50 is {hardest['mask AP50']:.3f}, so "
    + (
        "most are found, and it is the outline that fails."
        if hardest["mask AP50"] > 0.75
        else "many are not found at all."
    )
    + f" On average {rims[hardest['class']]:.0%} of the pixels of {hardest['class']} objects touch the outline, and "
    f"{rims[easiest['class']]:.0%} of those of {easiest['class']} objects"
    + (": thin parts leave more to get wrong." if rims[hardest["class"]] > rims[easiest["class"]] else ".")
    + (f" Fewer than 30 objects, so not to be trusted: {', '.join(few[:5])}." if few else "")
)

# %% [markdown]
# ## Precision and recall
#
# At IoU 0.5. A curve ends where the detector has said all it had to say: what is missing to the right are objects that no detection found.

# %% cellView="form"
# @title What this cell draws: a curve a class, before and after
fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
for ax, kind, title in zip(axes, ("box", "mask"), ("boxes", "masks"), strict=True):
    draw.precision_recall(ax, coco_ap.precision_recall(evaluations["joint"][kind]), CLASS_NAMES)
    for label, (r, p) in enumerate(coco_ap.precision_recall(evaluations["maskhead"][kind]), start=1):
        _ = ax.plot(r, p, ":", color=draw.class_colour(label))
    _ = ax.set_title(f"{title}: course's mAP after {scores['joint']['course'][f'{kind}_mAP'] or 0:.3f}", fontsize=10)
lines = [
    plt.Line2D([], [], color="black", linestyle=style, label=label)
    for style, label in (("-", "after"), (":", "before"))
]
_ = axes[1].legend(handles=lines, frameon=False, loc="lower left")
_ = axes[1].set_ylabel("")
_ = save_figure(fig, "06_precision_recall")
plt.show()

ends = {
    CLASS_NAMES[k]: r[-1] for k, (r, _) in enumerate(coco_ap.precision_recall(evaluations["joint"]["box"]), 1) if len(r)
}
least = min(ends, key=ends.get)
Markdown(
    f"After fine-tuning the boxes' curves end between recall {min(ends.values()):.3f} ({least}) and "
    f"{max(ends.values()):.3f}."
)


# %% [markdown]
# ## How exact?
#
# At $\tau = 0.5$ AP means little more than "found"; how fast it falls from there says how exact boxes and outlines are.

# %% cellView="form"
# @title What this cell draws: AP at each IoU threshold
def mean_where_defined(values):
    values = values[values > coco_ap.UNDEFINED]
    return float(values.mean()) if values.size else 0.0


at = {}
fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
for kind, colour in (("box", draw.LINES[0]), ("mask", draw.LINES[1])):
    for stage, style, when in (("maskhead", ":", "before"), ("joint", "-", "after")):
        e = evaluations[stage][kind]
        at[kind] = [mean_where_defined(values[:, :, 0, -1]) for values in e.eval["precision"]]
        _ = ax.plot(e.params.iouThrs, at[kind], style, color=colour, label=f"{kind}, {when}")
_ = ax.set(xlabel="IoU threshold", ylabel="AP (mean over classes)", ylim=(0, 1.02))
_ = ax.legend(frameon=False)
_ = save_figure(fig, "06_ap_over_iou")
plt.show()

falls = {kind: values[0] - values[6] for kind, values in at.items()}  # 0.50 and 0.80
more, less = sorted(falls, key=falls.get, reverse=True)
Markdown(
    f"From 0.50 to 0.80 AP falls from {at['box'][0]:.2f} to {at['box'][6]:.2f} for boxes and from {at['mask'][0]:.2f} "
    f"to {at['mask'][6]:.2f} for masks (after): **the {more} AP falls more than the {less} AP**. "
    + ("A box has four numbers to get right, an outline hundreds, on a grid of 28 × 28." if more == "mask" else "")
)

# %% [markdown]
# **Predict.** One box is 20 × 20 pixels, another 200 × 200; both are found exactly, but 2 pixels too far to the right. At how many of the ten
# $\tau$ does each count as right?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
small_counts, large_counts = 7, 10  # IoU 18/22 = 0.82: 0.50 to 0.80; IoU 198/202 = 0.98: all
### END SOLUTION

# %% [markdown]
# The same two pixels, a tenth of one side and a hundredth of the other:

# %%
shifted = {side: iou([0, 0, side, side], [2, 0, side + 2, side]) for side in (20, 200)}
thresholds = evaluations["joint"]["box"].params.iouThrs
assert [int((thresholds <= value).sum()) for value in shifted.values()] == [small_counts, large_counts]
print({f"{side} px": f"IoU {value:.3f}" for side, value in shifted.items()})

# %% [markdown]
# ### By size of the object
#
# COCO's three sizes: *small* below 32² pixels, *medium* below 96², *large* above, counted in the 400 × 300 image.

# %% cellView="form"
# @title What this cell draws: AP for small, medium and large objects
edges = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
counts = {name: sum(low <= a["area"] < high for a in truth.anns.values()) for name, (low, high) in edges.items()}
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for shift, kind, colour in ((-0.2, "box", draw.LINES[0]), (0.2, "mask", draw.LINES[1])):
    values = evaluations["joint"][kind].eval["precision"]  # (IoUs, recalls, classes, sizes, limits)
    heights = [mean_where_defined(values[..., n, -1]) for n in (1, 2, 3)]
    bars = ax.bar(np.arange(3) + shift, heights, 0.4, color=colour, label=kind)
    _ = ax.bar_label(bars, [f"{h:.2f}" if c else "" for h, c in zip(heights, counts.values(), strict=True)], fontsize=9)
_ = ax.set_xticks(range(3), [f"{name}\n{count} objects" for name, count in counts.items()])
_ = ax.set(ylabel="AP after fine-tuning", ylim=(0, 1.1))
_ = ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
_ = save_figure(fig, "06_ap_by_size")
plt.show()

enough = {name: h for name, h, c in zip(counts, heights, counts.values(), strict=True) if c >= 30}  # of masks
too_few = [f"{count} {name} objects" for name, count in counts.items() if 0 < count < 30]
alike = enough and max(enough.values()) - min(enough.values()) < 0.03
Markdown(
    f"Mask AP: {', '.join(f'{name} {h:.2f}' for name, h in enough.items()) or 'no size has 30 objects'}"
    + (", which is alike. " if alike and len(enough) > 1 else ". ")
    + (f"{' and '.join(too_few)} are too few to say." if too_few else "")
)


# %% [markdown]
# ## What it gets right and what it gets wrong
#
# A number says how much is wrong, not what. Each detection that scores at least 0.5 is one of five kinds, judged by the object that it overlaps
# most; an object that no right detection took is missed. So one failure can count twice: a box badly placed, and its object missed. (A simple
# form of [TIDE](https://arxiv.org/abs/2008.08115).)

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


def extra(found, target, kind):
    """How many of this kind lie on an object that a right detection took."""
    kinds = kinds_of(found, target)[: len(found["scores"])]
    nearest = iou_matrix(found["boxes"], target["boxes"]).argmax(1).tolist() if len(target["boxes"]) else kinds
    taken = {n for n, k in zip(nearest, kinds, strict=True) if k == "right"}
    return sum(k == kind and n in taken for n, k in zip(nearest, kinds, strict=True))


LOOK = {
    "right": "",
    "duplicate": "NMS: its threshold, or boxes of one object too far apart",
    "wrong class": "the box head's classifier; NMS, which compares boxes of one class only",
    "badly placed": "NMS, if the object has a right box too; else the regressor (IoU 0.1 to 0.5)",
    "nothing there": "the classifier's background",
    "missed": "the RPN's proposals, or a score below 0.5",
}


# %% [markdown]
# The detections, put together again from the results, and counted over the whole test split:

# %%
def found_in(results, image):
    """An image's detections from COCO's results."""
    rows = [row for row in results["box"] if row["image_id"] == image]
    masks = [rle.decode(row["segmentation"]) for row in results["mask"] if row["image_id"] == image]
    xywh = torch.tensor([row["bbox"] for row in rows]).view(-1, 4)
    return {
        "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1),
        "labels": torch.tensor([row["category_id"] for row in rows], dtype=torch.long),
        "scores": torch.tensor([row["score"] for row in rows]),
        "masks": torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, 300, 400, dtype=torch.uint8),
    }


KINDS = tuple(LOOK)
found = [found_in(results["joint"], image) for image in test_set.indices]
confident = [{k: v[f["scores"] >= 0.5] for k, v in f.items()} for f in found]
tally = [kind for f, t in zip(confident, targets, strict=True) for kind in kinds_of(f, t)]
errors = [{"kind": kind, "count": tally.count(kind)} for kind in KINDS]
_ = report.save_table(errors, "06_errors")
display(report.markdown([row | {"whose work": LOOK[row["kind"]]} for row in errors]))
wrong = {kind: tally.count(kind) for kind in KINDS[1:]}
most = max(wrong, key=wrong.get)


pairs = list(zip(confident, targets, strict=True))
second = {kind: sum(extra(f, t, kind) for f, t in pairs) for kind in ("badly placed", "wrong class")}
said_wrong = sum(wrong.values()) - wrong["missed"]
said = tally.count("right") + said_wrong
assert tally.count("right") + wrong["missed"] == len(truth.anns)
Markdown(
    f"{tally.count('right')} of {len(truth.anns)} objects are found; {said_wrong} of {said} detections are wrong "
    f"(precision {tally.count('right') / max(said, 1):.2f}). "
    + f"The most frequent error is **{most}**: {wrong[most]} of {sum(wrong.values())}. "
    * (wrong[most] > 0)
    + f"{second['badly placed']} of the {wrong['badly placed']} badly placed boxes and {second['wrong class']} of the "
    f"{wrong['wrong class']} of a wrong class are extra boxes, on an object that a right detection has found. "
    + "NMS lets such boxes pass: they overlap the better box too little, or are of another class."
    * (sum(second.values()) > 0)
)


# %% [markdown]
# ### Look at them
#
# The picture of the project's README: the first five images of the test split as they come, none picked, then the three worst. An image's quality
# is the mean mask IoU of its objects, where a missed one counts 0.

# %%
def quality(found, target):
    values = []
    for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
        overlap = iou_matrix(found["boxes"], box[None])[:, 0] * (found["labels"] == label)
        is_found = len(overlap) and overlap.max() >= 0.5
        values.append(mask_iou(found["masks"][overlap.argmax()], mask) if is_found else 0.0)
    return sum(values) / max(len(values), 1)


qualities = [quality(f, t) for f, t in zip(confident, targets, strict=True)]
order = sorted((n for n in range(len(test_set)) if len(targets[n]["boxes"])), key=lambda n: -qualities[n])


# %% [markdown]
# In each pair above the objects, below what is found, and what became of it:

# %% cellView="form"
# @title What this cell draws: five images as they come and the three worst
def fate(n):
    """The kinds of an image's detections and missed objects, in words."""
    kinds = kinds_of(confident[n], targets[n])
    words = [f"{kinds.count(kind)} {kind}".replace(" ", "\N{NO-BREAK SPACE}") for kind in KINDS if kind in kinds]
    return textwrap.fill(", ".join(words) or "nothing to find", 38)  # the width of a picture


fig, axes = plt.subplots(4, 4, figsize=(12, 10), layout="constrained")
for ax in axes.flat:
    ax.axis("off")
for k, n in enumerate([*range(min(5, len(test_set))), *order[-3:]]):
    above, below = axes[2 * (k // 4) : 2 * (k // 4) + 2, k % 4]
    draw.masks(draw.image(above, test_set[n][0]), targets[n]["masks"], kind="truth", alpha=0.2)
    which = [CLASS_NAMES[label] for label in targets[n]["labels"].tolist()]
    draw.boxes(above, targets[n]["boxes"], "truth").set_title("true: " + ", ".join(which), fontsize=10)
    draw.detections(draw.image(below, test_set[n][0]), confident[n], CLASS_NAMES).set_title(fate(n), fontsize=10)
    above.axis("on"), below.axis("on")
_ = fig.supxlabel(
    "above the objects, dashed; below what is found with its class and score, and what became of it", fontsize=10
)
_ = save_figure(fig, "06_detections")

# %% [markdown]
# Four of the best, four from the middle, and the four that come before the three worst above. (*Right* judges box and
# class; the mask can still be poor.)

# %% cellView="form"
# @title What this cell draws: the best, the typical and the bad
middle = len(order) // 2
rows = {"best": order[:4], "typical": order[max(middle - 2, 0) : middle + 2], "bad": order[-7:-3][::-1]}
fig, axes = plt.subplots(3, 4, figsize=(12, 8.4), layout="constrained")
for line, (name, chosen) in zip(axes, rows.items(), strict=True):
    for ax, n in zip(line, chosen, strict=False):
        draw.image(ax, test_set[n][0])
        draw.masks(ax, targets[n]["masks"], kind="truth", alpha=0)
        draw.detections(ax, confident[n], CLASS_NAMES)
        ax.set_title(f"{name}: mask IoU {qualities[n]:.2f}\n{fate(n)}", fontsize=10)
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
draw.legend(axes[2, 0], {"truth": "object (what is found has its class's colour)"})
_ = save_figure(fig, "06_best_typical_worst")
plt.show()

ends = [torch.tensor(t["masks"].shape[:0:-1]) - 0.5 for t in targets]  # width and height
at_edge = [
    bool((t["boxes"][:, :2] < 0.5).any() or (t["boxes"][:, 2:] > end).any())
    for t, end in zip(targets, ends, strict=True)
]
chosen = [[q for q, edge in zip(qualities, at_edge, strict=True) if edge == side] for side in (True, False)]
means = [f"{np.mean(values):.3f}" if values else "unknown" for values in chosen]
fates = [kind for n in order[-7:] for kind in kinds_of(confident[n], targets[n]) if kind != "right"]
Markdown(
    "The last row and the three worst above have between them "
    f"{', '.join(f'{fates.count(k)} {k}' for k in KINDS if k in fates) or 'only right detections'}. "
    f"Over all images the median quality is {np.median(qualities):.3f}; in {sum(q == 0 for q in qualities)} of "
    f"{len(qualities)} no object was found with its class. The mean is {means[0]} where the image's edge cuts an "
    f"object off ({sum(at_edge)} images) and {means[1]} elsewhere."
)

# %% [markdown]
# ## The same parts on a photograph
#
# Our network has seen nothing but drawn scenes. But its parts are those of Mask R-CNN, and torchvision offers
# weights for a whole one with ResNet-50, trained on COCO's 118,000 photographs of 80 categories. `lib.training.torchvision_coco` renames them and puts
# them into *our* parts; only vehicles, people and animals are kept of what they find. Upload a picture (Colab: the folder icon at the
# left) and write its name here; without one it is a portrait of Grace Hopper by the US Navy, which matplotlib ships as sample data. The weights
# are a download of 170 MB.

# %%
from lib.training.torchvision_coco import coco_maskrcnn

PHOTO = ""  # @param {type:"string"}
photo = read_picture(Path(PHOTO or cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
on_photo = {"our scenes' network": models["joint"]}
try:
    with contextlib.redirect_stdout(io.StringIO()):  # torch hub names the file; its bar stays
        on_photo["COCO's weights in our parts"] = coco_maskrcnn().to(DEVICE)
except FileNotFoundError:
    print("COCO's weights are left out: they are not on this machine, and without a network they cannot be fetched.")
except ValueError as error:
    print(f"COCO's weights are left out: {error}.")
if len(on_photo) < 2:
    on_photo = {}  # nothing to compare: what the scenes' network says of a photograph is an accident

# %% [markdown]
# With COCO's weights, each network's boxes and masks in this picture; without them nothing:

# %% cellView="form"
# @title What this cell draws: what each network finds with a score of at least 0.5
from lib.commands.predict import annotate, predict

in_photo = {name: predict(model, photo, "joint", 0.5) for name, model in on_photo.items()}
if in_photo:
    fig, axes = plt.subplots(1, len(in_photo), figsize=(5 * len(in_photo), 5.6), layout="constrained")
    for ax, (name, seen) in zip(axes, in_photo.items(), strict=True):
        overlay, _ = annotate(photo, seen, on_photo[name].config.class_names)
        draw.image(ax, np.asarray(overlay).transpose(2, 0, 1)).set_title(name, fontsize=10)
    plt.show()


def listing(name):
    names = [on_photo[name].config.class_names[n] for n in in_photo[name]["labels"].tolist()]
    return f"{name}: " + (", ".join(f"{names.count(k)} × {k}" for k in dict.fromkeys(names)) or "nothing")


said_of_photo = (
    f"{'; '.join(listing(name) for name in in_photo)}. Whatever the scenes' network says of a photograph is an "
    "accident: it can only know what its training images show."
)
Markdown(said_of_photo) if in_photo else None

# %% [markdown]
# ## Summary
#
# - A detection is right once; a second one on the same object is an error.
# - The course's mAP is the area under the raw curve at IoU 0.5; COCO's AP fills the dents and averages over ten IoUs. Wrong detections
#   at the end of the list cost neither.
# - Joint fine-tuning lets five losses shape the shared features. What it is worth shows only beside a row trained as long
#   and scored by the same rule.
# - An average hides its causes: classes, IoU thresholds, sizes, kinds of error and the worst images say what to mend first.

# %%
trial = f"both with the joint stage's numbers, three seeds: {fair[next(iter(PAIRS))]}" if fair else ""
Markdown(
    f"**Conclusion of this run.** After the joint stage box AP is {of('joint', 'box', 'AP'):.3f} and mask AP "
    f"{of('joint', 'mask', 'AP'):.3f}: {against_noise('box')}; {against_noise('mask')}. "
    + (f"Joint training against as many epochs of the heads alone, {trial}. " if fair else f"{unsettled} ")
    + f"To mend first: {hardest['class']} masks"
    + (f", and what is {most}, {wrong[most]} times ({LOOK[most]})." if sum(wrong.values()) else ".")
)

# %% [markdown]
# ## Exercises
#
# Write over the cell that begins with `# exercise`; the one after it checks. Exercises 3 and 4 ask what helps, so they
# score images of the val split, at most 100:

# %%
some = copy.copy(val)
some.indices = val.indices[:100]
some_truth, some_results = coco_ap.ground_truth(some), evaluate.collect_results(models["joint"], some)


def ap_of(rows, kind):
    """AP and AP75 of COCO's results on these images."""
    scored = coco_ap.average_precision(coco_ap.coco_evaluation(some_truth, rows, kind))
    return f"AP {scored['AP'] or 0:.3f}, AP75 {scored['AP75'] or 0:.3f}"


# %% [markdown]
# ### Exercise 6.1: without the duplicate
#
# Remove detection 2 from the five. By hand: what are the course's mAP and AP50 then, and why does the course's change more?

# %%
# exercise 6.1
without_duplicate = None  # (the course's mAP, AP50)

# %%
# check 6.1
if without_duplicate is None:
    print("exercise 6.1: not done yet")
else:
    four = coco_ap.coco_evaluation(three_people, results_of(listed[:1] + listed[2:]), "bbox")
    assert_close(without_duplicate, (float(coco_ap.course_map(four)), coco_ap.average_precision(four)["AP50"]))
    print(
        "from", (round(course_by_hand, 4), round(coco_by_hand, 4)), "to", tuple(round(v, 4) for v in without_duplicate)
    )


# %% [markdown]
# ### Exercise 6.2: can the scores be believed?
#
# Of detections with a score near 0.8, are 80 % right? Write `calibration`: for each of the ten intervals [0, 0.1), …, [0.9, 1], the number of
# detections in it and the share of these that is right (`None` where there are none). What does AP say about this?

# %%
# exercise 6.2
def calibration(scores, right):
    """Scores (D,) in [0, 1], right (D,) bool, both tensors -> ten pairs (number of detections, share that is right)."""
    return None


# %%
# check 6.2
answer = calibration(torch.tensor([0.05, 0.95, 0.97, 1.0, 0.55]), torch.tensor([False, True, False, True, True]))
if answer is None:
    print("exercise 6.2: not done yet")
else:
    assert [n for n, _ in answer] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    assert answer[1][1] is None and abs(answer[9][1] - 2 / 3) < 1e-6 and answer[0][1] == 0
    kinds = [k == "right" for f, t in zip(found, targets, strict=True) for k in kinds_of(f, t)[: len(f["scores"])]]
    for n, (count, share) in enumerate(calibration(torch.cat([f["scores"] for f in found]), torch.tensor(kinds))):
        print(f"{n / 10:.1f} to {(n + 1) / 10:.1f}: {count:4} detections", f"{share:.0%} right" if count else "")


# %% [markdown]
# ### Exercise 6.3: a score that knows the mask
#
# The score is the box head's; it knows nothing of the outline. Write `mask_score`: the score times the mean probability of the cells that the mask
# keeps (those of at least `THRESHOLD`; 0 where there are none). Does the masks' AP75 move? (The learnt form of this is
# [Mask Scoring R-CNN](https://arxiv.org/abs/1903.00241).)

# %%
# exercise 6.3
def mask_score(scores, masks):
    """Scores (D,), probabilities (D, 28, 28) -> scores (D,)."""
    return None


# %%
# check 6.3
example = torch.full((2, 28, 28), 0.1)
example[0, :14] = 0.8
answer = mask_score(torch.tensor([0.5, 0.9]), example)
if answer is None:
    print("exercise 6.3: not done yet")
else:
    assert_close(answer, torch.tensor([0.4, 0.0]))
    plain, rescored = [], []
    for n, image in enumerate(some.indices):
        seen = detections(models["joint"], some[n][0], paste=False)
        mine = [
            {key: row[key] for key in ("image_id", "category_id", "segmentation", "score")}
            for row in some_results["mask"]
            if row["image_id"] == image
        ]
        plain += mine
        new = mask_score(seen["scores"], seen["masks"]).tolist()
        rescored += [{**row, "score": s} for row, s in zip(mine, new, strict=True)]
    print("masks:", ap_of(plain, "segm"), "; rescored:", ap_of(rescored, "segm"))


# %% [markdown]
# ### Exercise 6.4: soft-NMS, an extension
#
# NMS throws a box away because a better one is near: of two people who embrace, one is lost. [Soft-NMS](https://arxiv.org/abs/1704.04503)
# lowers its score instead. Best box first, each takes its turn once, and multiplies the score of every box that has not had its turn by
# $e^{-\mathrm{IoU}^2 / \sigma}$. Write it for boxes of one class. Does it help here, and where would it?

# %%
# exercise 6.4
def soft_nms(boxes, scores, sigma=0.5):
    """Boxes (D, 4), scores (D,) -> new scores (D,), in the order given."""
    return None


# %%
# check 6.4
three = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10]])
answer = soft_nms(three, torch.tensor([0.95, 0.9, 0.8]))
if answer is None:
    print("exercise 6.4: not done yet")
else:
    assert_close(answer, torch.tensor([0.95, 0.9 * float(np.exp(-((9 / 11) ** 2) / 0.5)), 0.8]))
    without_nms, soft, hard = copy.copy(models["joint"]), [], []
    without_nms.config = models["joint"].config.replace(**{"boxhead.test.nms_iou": 1.0})
    for n, image in enumerate(some.indices):
        hard += [row for row in some_results["box"] if row["image_id"] == image]
        seen = detections(without_nms, some[n][0], paste=False)
        for label in seen["labels"].unique():
            mine = seen["labels"] == label
            new = soft_nms(seen["boxes"][mine], seen["scores"][mine])
            soft += box_results(image, seen["boxes"][mine], seen["labels"][mine], new)
    print("boxes, NMS:", ap_of(hard, "bbox"), "; soft-NMS:", ap_of(soft, "bbox"))

# %% [markdown]
# ## References
#
# - Lin et al., [Microsoft COCO: Common Objects in Context](https://arxiv.org/abs/1405.0312), 2014; its
#   [metrics](https://cocodataset.org/#detection-eval)
# - He et al., [Mask R-CNN](https://arxiv.org/abs/1703.06870), 2017
# - Ren et al., [Faster R-CNN](https://arxiv.org/abs/1506.01497), 2015: training stage by stage, and jointly
# - Lin et al., [Feature Pyramid Networks](https://arxiv.org/abs/1612.03144), 2017
# - Hosang et al., [What makes for effective detection proposals?](https://arxiv.org/abs/1502.05082), 2015: average recall
# - Bolya et al., [TIDE](https://arxiv.org/abs/2008.08115), 2020: kinds of errors
# - Bodla et al., [Soft-NMS](https://arxiv.org/abs/1704.04503), 2017; Huang et al.,
#   [Mask Scoring R-CNN](https://arxiv.org/abs/1903.00241), 2019

# %% [markdown]
# ## Appendix
#
# ### Run-length codes
#
# pycocotools stores a mask as run lengths, column by column. For the square above: 5 off, 2 on, 2 off, 2 on, 5 off. From the fourth number on, it writes
# the difference to the one two places before: 0 and 3.

# %%
print(codes[0])
assert codes[0]["counts"] == b"52203"

# %% [markdown]
# ### Checks
#
# What must hold whatever was learnt: a looser threshold never lowers a score, a mean lies between its parts, `evaluate_model` says the same as the steps
# above, and of one image the results hold as many detections as the model gives.

# %%
for s in scores.values():
    for kind in ("box", "mask"):
        assert s[kind]["AP50"] >= s[kind]["AP75"] - 1e-9 and s[kind]["AP50"] >= s[kind]["AP"] - 1e-9
        classes = [v["AP"] for v in s[kind]["per_class"].values() if v["AP"] is not None]
        assert min(classes) - 1e-9 <= s[kind]["AP"] <= max(classes) + 1e-9
    assert s["rpn"]["AR@1000"] >= s["rpn"]["AR@100"] - 1e-9
four = copy.copy(test_set)
four.indices = test_set.indices[:4]
ours, _ = score(coco_ap.ground_truth(four), evaluate.collect_results(models["joint"], four), 4)
assert all(ours[name] == value for name, value in evaluate.evaluate_model(models["joint"], four).items())
assert len(detections(models["joint"], test_set[0][0])["boxes"]) == len(found[0]["boxes"])

# %% [markdown]
# ### BatchNorm in joint training
#
# In training mode BatchNorm normalises by the batch at hand, in testing by stored statistics. Were the RPN's in training mode here, the heads would learn
# from other proposals than those they get in testing; so it keeps the statistics that its own stage stored; its convolutions, and the scale and shift of its
# BatchNorm, go on learning. The trunk's statistics were stored over far more images than these and stay as well. (`lib.training.stages.Learner` sees to both.)

# %% [markdown]
# ### What other seeds and photographs give
#
# What each stage of the `demo` profile reaches on 1,000 other scenes, over several seeds (`python -m benchmarks.demo`).
# *bar* is what the project's authors set out to reach. *AR at N*: with all proposals. *objectness gap*: mean objectness of positive anchors less that
# of negative ones, at the level where it is least.

# %%
rows = report.read_table("06_stages", MEASURED)
report.markdown([row | {k: f"{float(row[k]):.3f}" for k in ("mean", "deviation") if row[k]} for row in rows])

# %% [markdown]
# And trained on 230 photographs of COCO, scored on 74: *course* at the sheet's 800 × 1066 pixels, beside torchvision's own `MaskRCNN` with the
# same trunk (MobileNetV2), widths and images seen (`python -m benchmarks.accuracy course`), on a GPU; *photographs* at 300 × 400, with narrower heads
# and more epochs. *found*: objects that a detection with a score of at least 0.3 overlaps by half; *right class*, *box IoU* and *mask IoU* are of
# these; *false an image*: such detections that overlap no object by half. With so few photographs, small differences prove nothing. README has
# the same comparison on scenes. The recipe of *photographs* was chosen on the very photographs that it is scored on.

# %%
left_out = ("mask AP75", "AP75", "box AP, difference", "mask AP, difference", "training, s", "AR@1000", "AR@100")
rows = [row for row in report.read_table("06_accuracy", MEASURED) if row["setting"] != "scenes"]
display(report.markdown([{name: value for name, value in row.items() if name not in left_out} for row in rows]))
course = {row["model"]: float(row["box AP"]) for row in rows if row["setting"] == "course"}
Markdown(
    f"In *course* ours reaches box AP {course['ours']:.3f}, torchvision's {course['torchvision']:.3f}. Both are far below what scenes give: "
    "230 photographs are few to learn from, and real objects vary more than drawn."
)


# %% [markdown]
# ### Time by part, on this machine
#
# Each part on the image we follow, given what the part before it made. The first run warms up and is left out. Least and most show what else the
# machine was doing: on an idle one they lie close together; on a busy one the least is nearest to the part's own time.

# %%
def timed(part, repeat=15):
    """What the part gives, and the milliseconds of each run after the first."""
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        result = part()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return result, times[1:]


content, ms = content_size(*picture.shape[1:], config.image), {}
back = (picture.shape[2] / content[1], picture.shape[1] / content[0])
model, size = models["joint"], tuple(picture.shape[1:])
with torch.no_grad():
    x, ms["preprocessing"] = timed(lambda: preprocess_images(picture[None].to(DEVICE), config.image))
    features, ms["backbone"] = timed(lambda: model.features(x))
    proposals, ms["RPN"] = timed(lambda: [p["boxes"] for p in model.propose(features, content)])
    refined, ms["box head"] = timed(lambda: model.detect(features, proposals, content)[0])
    masks, ms["mask head"] = timed(lambda: model.segment(features, [refined["boxes"]], [refined["labels"]])[0])
    _, ms["paste"] = timed(lambda: paste_masks(masks, scale_boxes(refined["boxes"], *back), size, THRESHOLD))
    _, whole = timed(lambda: model(picture[None].to(DEVICE)))

# %% [markdown]
# In milliseconds:

# %%
middles = {part: float(np.median(values)) for part, values in ms.items()}
rows = [
    {"part": part, "median": f"{np.median(v):.1f}", "least": f"{min(v):.1f}", "most": f"{max(v):.1f}"}
    for part, v in {**ms, "the whole, in one call": whole}.items()
]
display(report.markdown(rows))
close = abs(sum(middles.values()) / np.median(whole) - 1) < 0.2
slowest = max(middles, key=middles.get)
Markdown(
    f"Milliseconds on {DEVICE.type}, {torch.get_num_threads()} thread(s), {len(proposals[0])} proposals, "
    f"{len(masks)} detections. "
    f"The {slowest} takes most, {middles[slowest] / sum(middles.values()):.0%} of the sum of the medians. The sum is "
    f"{sum(middles.values()):.0f} ms, the whole call's median {np.median(whole):.0f} ms: "
    + (
        "they agree."
        if close
        else "apart by more than a fifth, so other programs ran here. Read which part takes most, not the last digit."
    )
)

# %% [markdown]
# ### Time beside torchvision's, at full size
#
# One 800 × 1066 image through a ResNet-50, up to 1000 proposals and 100 detections: medians on two CPU cores of another day, ours and torchvision's in
# turns, with the same weights (`python -m benchmarks.cost`). Left the parts, each ended by a clock; right, in runs of their own without these clocks, how
# the whole grows with one quantity while the others stay at 800 × 1066, 1000, 100 and 1. So the same setting has several times, and their spread is
# what two such runs differ by. *all* is the median of the sums, the legend has the sum of the medians. *ratio*: torchvision's time over ours.
#
# RoIAlign differs most: torchvision's runs on one core, ours is one `embedding_bag` a level (notebook 4), which uses all.

# %%
cost_rows = report.read_table("06_cost", MEASURED)
cost_rows = [row | {k: float(row[k]) for k in ("ours ms", "torchvision ms", "ratio")} for row in cost_rows]
fig = cost_figure(cost_rows)
for ax, unit in zip(fig.axes[1:], ("pixels", "boxes an image", "boxes an image", "images at once"), strict=True):
    _ = ax.set_xlabel(unit, fontsize=9)
_ = save_figure(fig, "06_cost")
display(fig)
numbers = ("ours ms", "torchvision ms", "ratio")
report.markdown([{"part": r["cost of"]} | {k: f"{r[k]:.1f}" for k in numbers} for r in cost_rows if not r["at"]])

# %% [markdown]
# ## A montage
#
# Six images of the test split as they come, from the ninth on.

# %% cellView="form"
# @title What this cell draws: six images and what is found in them
fig, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
for ax, n in zip(axes.flat, range(8, min(14, len(test_set))), strict=False):
    draw.masks(draw.image(ax, test_set[n][0]), targets[n]["masks"], kind="truth", alpha=0)
    draw.detections(ax, found[n], CLASS_NAMES, threshold=0.5)
    draw.legend(ax, {"truth": "object (what is found has its class's colour)"})
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
_ = save_figure(fig, "06_montage")
plt.show()
print("exported:", ", ".join(sorted(path.name for path in paths().figures.glob("06_*"))), "and metrics.json")

# %% [markdown]
# ## The explorer
#
# A page for any web browser, which needs neither Python nor a network: up to 24 test images, chosen to show what goes right and every kind of mistake that
# was made. It holds what the network said of them before NMS: the RPN's $K$ best boxes, and what the box head gives at least its lowest score. NMS,
# thresholds and pasting run in the page, by the rules of these notebooks, and precision and recall follow each slider. A run writes the file, so GitHub has
# none; open yours from `figures/`. (JupyterLab's own viewer asks to *Trust HTML* first; on Colab the page stands below as well, and the file can be downloaded
# by the folder icon at the left.)

# %%
from handin import explorer

explorer.shown(explorer.write_explorer(models["joint"], test_set, "joint", found))

# %% [markdown]
# ## The browser
#
# Every image of the three splits (on GitHub a picture of the first). Set *go through* to *missed objects* or *false detections* (it looks at all images, then lists those), or
# press *next mistake*; a row of *highlight* is drawn alone. Then choose *train* as the *split*: are there fewer mistakes in what the model has learnt from?

# %%
from lib.notebook import browser

splits = {split: CourseDataset(DATA, split, config.data) for split in ("test", "val", "train")}
browser.MaskBrowser(models["joint"], splits, stage="joint")
