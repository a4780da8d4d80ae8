# %% [markdown]
# # 3 · The region proposal network: where could an object be?
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-from-its-parts/maskrcnn-from-its-parts/blob/main/notebooks/03_rpn.ipynb)
#
# **The claim.** One small network, slid over every level of the pyramid, turns thousands of anchors into a few hundred boxes
# that cover almost every object, without knowing yet what the objects are.
#
# **Run time** (demo profile, two recent CPU cores): two to three minutes, two trainings included.
#
# **Inputs → outputs.** `data/` (written if missing) → `weights/<profile>/rpn.safetensors`, its learning curves, and `figures/03_*`.
#
# § numbers are sections of the course's assignment sheet, which is not part of the repository; every rule used here is explained here.

# %% [markdown]
# ## Set-up
#
# Two folded cells. All parts of the model come from `lib/`; `show` prints a part's source, so the code beside the explanation is the code that
# runs.

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

# %% cellView="form"
# @title Imports
import inspect
import math

import torch
from IPython.display import Markdown, display
from torch.nn.functional import conv2d, pad, smooth_l1_loss, softplus
from torchvision.ops import nms

from lib import boxes, matching, rpn
from lib.anchors import LEVELS, STRIDES, anchor_levels, pyramid_anchors, pyramid_grids
from lib.data.batches import loader, prepare
from lib.data.reader import CourseDataset
from lib.machine.device import device, precision
from lib.machine.folders import paths
from lib.maskrcnn import MaskRCNN
from lib.matching import IGNORED, NEGATIVE, POSITIVE, sample
from lib.notebook import diagrams, draw, report
from lib.notebook.teach import as_seen, followed, show
from lib.training.checkpoint import load_model
from lib.training.history import read_history
from lib.training.loop import train_until
from lib.training.run import CLIP_NORM, WEIGHT_DECAY, Run
from lib.training.schedule import WARMUP, warmup_cosine
from lib.training.stages import Learner, RPNStage

# %% [markdown]
# ## Where this part sits

# %%
diagrams.system("rpn")

# %% [markdown]
# After this notebook you can
#
# 1. say what each output of the head means, and decode a box by hand (§4.3);
# 2. compute both losses of three anchors on paper (§4.4, §4.5);
# 3. read a training loop and say what each of its lines is for;
# 4. say what goes wrong when the sheet's rules meet a pyramid, and measure it by level (§4.2);
# 5. write non-maximum suppression, and choose $K$ and $N$ from a curve (§4.6).

# %% [markdown]
# ## The image we follow
#
# All six notebooks follow one validation image. Here it comes with its objects and leaves with *proposals*: boxes that may hold
# something, best first. It heads a small batch of validation images.

# %%
val = CourseDataset(DATA, "val", config.data, with_masks=False)
order = [followed(val), *(n for n in range(len(val)) if n != followed(val))][:8]
seen = as_seen(val, order, config)  # the network's frame (§2); image 0 is the one we follow
x, targets, content = seen.x, seen.targets, seen.content
grids = pyramid_grids(config.image.padded_size)
anchors, level_of = pyramid_anchors(grids, config.anchors), anchor_levels(grids, 3)
print(f"{len(x)} images; {len(anchors):,} anchors on each")

# %% [markdown]
# ## Symbols
#
# | symbol | meaning | here |
# |---|---|---|
# | $B$, $F$ | images of a batch, channels of a map | `x`, $(B, 3, H_p, W_p)$; `config.backbone.channels` |
# | $S_y \times S_x$ | cells of a level | `grids` |
# | $a$, $A$ | anchors of a cell, of the pyramid | 3; `anchors`, $(A, 4)$ |
# | $p$, $p^*$ | predicted, true objectness | `logits` before the sigmoid; `labels` |
# | $\mathbf t$, $\mathbf t^*$ | predicted, true box relative to its anchor | `deltas` |
# | $G$ | objects of an image | `targets[0]["boxes"]`, $(G, 4)$ |
# | $M$ | anchors of a minibatch | `config.rpn.batch_samples` |
# | $K$, $N$ | proposals before and after NMS | `pre_nms`, `post_nms` |
#
# Boxes are `xyxy`, in pixels of the network's input. *Content* is the image without its zero padding.

# %% [markdown]
# ## The idea
#
# The head reads the 3 × 3 cells around one cell of one level and says, for each of the cell's three anchors: *is there an object in
# roughly this box?* (one number) and *how should the box move and stretch?* (four numbers). Then it slides on, over all cells of all
# levels, with the same weights: one detector for all sizes learns from the examples of every level and needs a fifth of the parameters.
#
# The nine cells are not nine patches of the image: the backbone computed each of them from far more. The right picture shows which pixels
# they depend on.

# %% cellView="form"
# @title What this cell draws: one cell's anchors, and the pixels its window depends on
model = MaskRCNN(config).eval().requires_grad_(False)  # its backbone is trained, its heads are not yet
level, stride = 2, STRIDES[2]  # P4
middle = (targets[0]["boxes"][0, :2] + targets[0]["boxes"][0, 2:]) / 2
column, row = (int(v) for v in (middle / stride).clamp(min=1))
pixels = x[:1].clone().requires_grad_()
nine = model.features(pixels)[level][0, :, row - 1 : row + 2, column - 1 : column + 2]
nine.square().sum().backward()
pull = pixels.grad[0].abs().sum(0)[: content[0], : content[1]]
first = 3 * (
    sum(sy * sx for sy, sx in grids[:level]) + row * grids[level][1] + column
)  # order: level, row, column, ratio
cells = torch.tensor([(u, v, u + 1, v + 1) for v in range(row - 1, row + 2) for u in range(column - 1, column + 2)])
fig, axes = plt.subplots(1, 2, figsize=(10, 4.1))
draw.image(axes[0], seen.pictures[0])
draw.boxes(axes[0], targets[0]["boxes"], "truth")
draw.boxes(axes[0], anchors[first : first + 3], "positive", linewidth=2)
draw.legend(axes[0], {"truth": "object", "positive": "the cell's three anchors", "ignored": "3 × 3 cells"})
axes[0].set_title(f"one cell of {LEVELS[level]}", fontsize=10)
draw.heatmap(axes[1], pull / pull.quantile(0.995))
axes[1].set_title("pixels that the nine cells depend on (bright: much)", fontsize=10)
for ax in axes:
    draw.boxes(ax, stride * cells.float(), "ignored", linewidth=0.8)
fig.tight_layout()
plt.show()
window = pull[stride * (row - 1) : stride * (row + 2), stride * (column - 1) : stride * (column + 2)]
Markdown(
    f"The nine cells lie over {3 * stride} × {3 * stride} pixels, {window.numel() / pull.numel():.0%} of the image; "
    f"{window.sum() / pull.sum():.0%} of the gradient falls there, the rest outside. So a 3 × 3 window can speak about "
    f"an anchor {config.anchors.scales[level]:g} pixels in size."
)

# %% [markdown]
# ## The equations
#
# With $f$ the 3 × 3 window, the head computes (§4.3)
#
# $$h = \mathrm{ReLU}\big(\mathrm{BN}(W_{3\times3} * f + b)\big),\qquad p_k = \sigma(w_k \cdot h + c_k),\qquad \mathbf t_k = V_k\, h + d_k$$
#
# for the cell's anchors $k = 1, 2, 3$, and $\mathbf t$ is relative to the anchor (subscript $a$), so that the same four numbers mean the same *relative* correction on every
# level:
#
# $$t_x = \frac{x - x_a}{w_a},\quad t_y = \frac{y - y_a}{h_a},\quad t_w = \log\frac{w}{w_a},\quad t_h = \log\frac{h}{h_a}$$

# %% [markdown]
# ## By hand: three boxes and one anchor
#
# The anchor is 20 wide and 10 high, its centre at (20, 15). **Predict** $\mathbf t$ of
#
# 1. the anchor itself;
# 2. the anchor moved by 4 to the right and 5 down;
# 3. a box with the same centre, twice as wide.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
my_t = [[0, 0, 0, 0], [0.2, 0.5, 0, 0], [0, 0, math.log(2), 0]]
### END SOLUTION

# %% [markdown]
# The naive version, against your numbers:

# %%
def naive_encode(box, reference):
    (x1, y1, x2, y2), (ax1, ay1, ax2, ay2) = box, reference
    w, h, wa, ha = x2 - x1, y2 - y1, ax2 - ax1, ay2 - ay1
    tx, ty = ((x1 + x2) / 2 - (ax1 + ax2) / 2) / wa, ((y1 + y2) / 2 - (ay1 + ay2) / 2) / ha
    return [tx, ty, math.log(w / wa), math.log(h / ha)]


anchor = (10.0, 10.0, 30.0, 20.0)
three = [(10.0, 10.0, 30.0, 20.0), (14.0, 15.0, 34.0, 25.0), (0.0, 10.0, 40.0, 20.0)]
by_hand = torch.tensor([naive_encode(box, anchor) for box in three])
torch.testing.assert_close(torch.tensor(my_t, dtype=torch.float), by_hand)

# %% [markdown]
# As a picture: dotted is before, solid is after.

# %% cellView="form"
# @title What this cell draws: the three boxes and their anchor
fig, axes = plt.subplots(1, 3, figsize=(10, 2.5))
for ax, box, t in zip(axes, three, by_hand.tolist(), strict=True):
    ax.set(xlim=(-4, 44), ylim=(28, 7), aspect="equal", xticks=[], yticks=[])
    ax.set_title("t = (" + ", ".join(f"{v + 0:.2g}" for v in t) + ")", fontsize=10)
    draw.boxes(ax, torch.tensor([box]), "predicted", linewidth=2.4)
    draw.boxes(ax, torch.tensor([anchor]), "positive", dotted=True, linewidth=2)
draw.legend(axes[1], {"positive": "anchor", "predicted": "box"}).get_legend().get_lines()[0].set_linestyle(":")
fig.tight_layout()

# %% [markdown]
# A move of 4 is a fifth of the width, one of 5 half the height; twice the width is $\log 2 = 0.69$. `lib` does this for all anchors at
# once, and `decode` goes back. It cuts $t_w, t_h$ before the exponential: an untrained regressor may say anything, and $e^{100}$ is no width.

# %%
show(boxes.encode, boxes.decode)
reference = torch.tensor([anchor] * 3)
torch.testing.assert_close(boxes.encode(torch.tensor(three), reference), by_hand)
torch.testing.assert_close(boxes.decode(by_hand, reference), torch.tensor(three))  # and back again

# %% [markdown]
# ## The head
#
# There is no sigmoid inside: the losses work on logits, exact where a probability rounds to 0 or 1. `at_patches` is the same head at single
# anchors, which is all that training needs (appendix).

# %%
display(diagrams.rpn_head(config))
show(rpn.RPNHead)

# %% [markdown]
# **Predict** how many numbers the head learns, for `channels` $= F$ and $a = 3$. Every convolution has a bias; BatchNorm learns a scale and a
# shift for each channel.

# %% cellView="form"
# @title Your answer (write over ours)
channels, a = config.backbone.channels, 3
### BEGIN SOLUTION
my_count = (9 * channels**2 + channels) + 2 * channels + a * (channels + 1) + 4 * a * (channels + 1)
### END SOLUTION

# %%
assert my_count == sum(p.numel() for p in model.rpn.parameters())
share = 9 * channels**2 / my_count
Markdown(
    f"{my_count:,} numbers, {share:.0%} of them in the 3 × 3 convolution, once for all five levels; the backbone below "
    f"has {sum(p.numel() for p in model.backbone.parameters()) / 1e6:.1f} million."
)

# %% [markdown]
# **A head you can compute in your head.** One channel; a 3 × 3 map of ones; a convolution that adds up its nine inputs; three anchors that
# read the sum times 1, 0 and −1. **Predict** the three logits of the top left cell and of the middle one. Outside the map there are zeros.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
my_corner, my_middle = [4.0, 0.0, -4.0], [9.0, 0.0, -9.0]
### END SOLUTION

# %%
tiny = rpn.RPNHead(channels=1, anchors_per_cell=3).eval()  # eval: BatchNorm's stored mean 0 and variance 1 do nothing
with torch.no_grad():
    tiny.conv.weight.fill_(1.0), tiny.conv.bias.zero_()
    tiny.objectness.weight.copy_(torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1, 1))
    logits, deltas = tiny([torch.ones(1, 1, 3, 3)])
torch.testing.assert_close(logits[0, [0, 1, 2, 12, 13, 14]], torch.tensor(my_corner + my_middle), atol=1e-3, rtol=0)
print(tuple(logits.shape), tuple(deltas.shape))

# %% [markdown]
# A corner sees four ones, the middle nine. The middle cell's logits stand at 12, 13, 14: the outputs come by row, column, anchor, as the
# anchors do. Were that order broken, training would still run, and learn nothing.

# %% [markdown]
# ## Targets, counted and drawn
#
# The labels of §4.2 come from the notebook before: an anchor is positive above IoU 0.7 with an object, or as an object's best; negative
# below 0.3 with all; ignored between. Here they are by level, for the batch:

# %%
labels_of = torch.stack([rpn.rpn_targets(anchors, t["boxes"], content, config.rpn)[0] for t in targets])
rows = [
    {"level": name, "cells": sy * sx}
    | {
        kind: int((labels_of[:, level_of == n] == v).sum())
        for kind, v in (("positive", POSITIVE), ("negative", NEGATIVE), ("ignored", IGNORED))
    }
    for n, (name, (sy, sx)) in enumerate(zip(LEVELS, grids, strict=True))
]
report.markdown(rows)

# %% [markdown]
# A handful of positives among all these negatives: trained on all of them, a head that always says "nothing" would look excellent. So
# §4.4 samples $M$ anchors *over the whole batch of images*: positives first, up to half of $M$, then negatives. The config draws these evenly
# from the levels; why, below.
#
# **Predict** the share of positives in a minibatch of this batch, from the table.

# %% cellView="form"
# @title Your answer (write over ours)
M, positives = config.rpn.batch_samples, sum(row["positive"] for row in rows)
### BEGIN SOLUTION
my_share = min(positives, M / 2) / M
### END SOLUTION

# %%
torch.manual_seed(0)
drawn = rpn.sample_anchors(labels_of, grids, config.rpn)  # indices into the B × A anchors
kinds, image_of, index = labels_of.flatten()[drawn], drawn // len(anchors), drawn % len(anchors)
assert math.isclose((kinds == POSITIVE).float().mean(), my_share, abs_tol=1e-6)
print(f"M = {M}: {int((kinds == POSITIVE).sum())} positives, {my_share:.1%}")

# %% [markdown]
# The sample, drawn for the image we follow and for another:

# %% cellView="form"
# @title What this cell draws: the sampled anchors of two images
fig, axes = plt.subplots(1, 2, figsize=(11, 4.4))
for n, ax in enumerate(axes):
    draw.image(ax, seen.pictures[n])
    for kind, value, width in (("negative", NEGATIVE, 0.9), ("positive", POSITIVE, 1.8)):
        draw.boxes(ax, anchors[index[(image_of == n) & (kinds == value)]], kind, linewidth=width)
    draw.boxes(ax, targets[n]["boxes"], "truth", linewidth=2)
    here = kinds[image_of == n]
    ax.set_title(f"{int((here == POSITIVE).sum())} positives, {int((here == NEGATIVE).sum())} negatives", fontsize=10)
    draw.legend(ax, {"truth": "object", "positive": "positive anchor", "negative": "negative anchor"})
fig.tight_layout()
_ = save_figure(fig, "03_samples")
plt.show()
overlap = boxes.iou_matrix(anchors, targets[0]["boxes"])
best = overlap[labels_of[0] == POSITIVE].amax(1)
centres = anchors[index[(image_of == 0) & (kinds == NEGATIVE)]].unflatten(1, (2, 2)).mean(1)  # (., 2): x, y
upper, lower = targets[0]["boxes"][:, None, :2], targets[0]["boxes"][:, None, 2:]
on_objects = int(((centres > upper) & (centres < lower)).all(-1).any(0).sum())
Markdown(
    f"In the image we follow the positives overlap their object by an IoU of {best.min():.2f} to {best.max():.2f}, as "
    "tightly as the anchors' places and shapes allow. The negatives are of every size and lie all over the image: of "
    f"{len(centres)} sampled there {on_objects} have their centre on an object. An anchor on a wheel is not the car."
)

# %% [markdown]
# **Why does the regressor learn from positives only?** A negative has no object to go to. We could send it to the nearest one; these are the
# $\mathbf t^*$ that it would have to learn:

# %%
moves = torch.zeros(len(kinds))
for n, t in enumerate(targets):
    its_anchors = anchors[index[image_of == n]]
    nearest = boxes.iou_matrix(its_anchors, t["boxes"]).argmax(1)
    moves[image_of == n] = boxes.encode(t["boxes"][nearest], its_anchors).abs().amax(1)
far, near = (moves[kinds == v].quantile(0.5) for v in (NEGATIVE, POSITIVE))
assert far > 3 * near
few, many = (int((kinds == v).sum()) for v in (POSITIVE, NEGATIVE))
Markdown(
    f"The largest of the four, in absolute value, is {near:.2f} for a positive of the minibatch, {far:.1f} for a "
    f"negative (medians). Fitting {many} such far moves would drown the {few} small ones, for boxes that are thrown away "
    "anyway, because their objectness is low."
)

# %% [markdown]
# ## The losses
#
# Binary cross entropy for the objectness, smooth L1 of the four differences for the boxes of positives. Both are sums **divided by the
# same $M$** (§4.4, §4.5), so that what one positive weighs does not hang on how many were drawn:
#
# $$L_{cls} = \frac1M\sum_i \mathrm{BCE}(p_i, p_i^*)\qquad
# L_{reg} = \frac1M\sum_i p_i^*\sum_{j=1}^4 \mathrm{smooth}_{L1}(t_{ij}-t^*_{ij})\qquad
# \mathrm{smooth}_{L1}(d)=\begin{cases}0.5\,d^2&|d|\le1\\|d|-0.5&\text{else}\end{cases}$$

# %% cellView="form"
# @title What this cell draws: the two losses
d = torch.linspace(-3, 3, 121)
fig, axes = plt.subplots(1, 2, figsize=(10, 2.8))
axes[0].plot(d, smooth_l1_loss(d, 0 * d, reduction="none"), color=draw.LINES[2], label="smooth L1")
axes[0].plot(d, d**2 / 2, ":", color="grey", label="0.5 d²")
axes[0].set(ylim=(0, 3), xlabel="difference d", title="far away, the slope stays 1")
axes[1].plot(d, softplus(-d), color=draw.LINES[0], label="positive: −log p")
axes[1].plot(d, softplus(d), "--", color=draw.LINES[4], label="negative: −log(1 − p)")
axes[1].set(xlabel="logit", title="confident and wrong is expensive")
for ax in axes:
    ax.legend()
fig.tight_layout()

# %% [markdown]
# Beyond a difference of 1 smooth L1 grows in a straight line, so no single far-off box rules the gradient.
#
# Three anchors: $p = ¾, ½, ¼$; two positives, then a negative. The first is off by 0.5 in $t_x$, the second by 2 in $t_x$ and −1 in $t_w$;
# the third's deltas are absurd. **Predict** both losses, divided by $M = 3$. ($-\log ¾ = 0.2877$, $-\log ½ = 0.6931$.)

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
my_objectness = (0.2877 + 0.6931 + 0.2877) / 3
my_box = (0.5 * 0.5**2 + (2 - 0.5) + 0.5) / 3
### END SOLUTION

# %% [markdown]
# Your numbers, the naive loop and `lib`'s:

# %%
logits = torch.tensor([math.log(3), 0.0, -math.log(3)])  # log(p / (1 - p))
labels = torch.tensor([POSITIVE, POSITIVE, NEGATIVE])
deltas = torch.tensor([[0.5, 0, 0, 0], [2.0, 0, -1.0, 0], [99.0, -99.0, 99.0, -99.0]])
truth = torch.zeros(3, 4)


def naive_losses(logits, deltas, labels, truth):
    objectness = box = 0.0
    for z, t, label, t_star in zip(logits.tolist(), deltas.tolist(), labels.tolist(), truth.tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        objectness -= math.log(p) if label == POSITIVE else math.log(1 - p)
        for d in (abs(a - b) for a, b in zip(t, t_star, strict=True)):
            box += (label == POSITIVE) * (0.5 * d * d if d <= 1 else d - 0.5)
    return torch.tensor([objectness, box]) / len(labels)


by_hand = naive_losses(logits, deltas, labels, truth)
torch.testing.assert_close(torch.tensor([my_objectness, my_box]), by_hand, atol=1e-4, rtol=0)
losses = rpn.rpn_loss(logits, deltas, labels, truth)
torch.testing.assert_close(torch.stack(list(losses.values())), by_hand)
print({name: round(float(loss), 4) for name, loss in losses.items()})

# %% [markdown]
# In the part, `positive` picks the rows that the regressor answers for; `count` is $M$ under both sums. With no positives the box loss is a sum
# over nothing: zero, and its gradient flows.

# %%
show(rpn.rpn_loss)

# %% [markdown]
# ## The sheet as printed, counted by level
#
# Two rules of the sheet meet here. **Crossing anchors are removed** (§4.2). [Faster R-CNN](https://arxiv.org/abs/1506.01497), which has one
# level, did so because an anchor half outside the image makes large errors that no learning removes; it reports that training
# does not converge with them. [FPN](https://arxiv.org/abs/1612.03144) kept them. **Negatives are drawn uniformly** (§4.4), and three quarters
# of all anchors lie on P2.
#
# **Predict:** how many negatives does P6 get in a minibatch drawn so: (a) about a fifth of $M$, (b) a handful, (c) less than one?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
my_letter = "c"
### END SOLUTION

# %%
printed = config.replace(**{"rpn.cross_boundary": "remove", "rpn.negatives": "uniform"})


def by_level(settings, draws=20):
    """The mean number of positives and negatives of each level (2, 5) in a minibatch of the batch of images."""
    labels = torch.stack([rpn.rpn_targets(anchors, t["boxes"], content, settings)[0] for t in targets])
    counts = torch.zeros(2, 5)
    for _ in range(draws):
        chosen = rpn.sample_anchors(labels, grids, settings)
        for row, kind in enumerate((POSITIVE, NEGATIVE)):
            of_kind = chosen[labels.flatten()[chosen] == kind]
            counts[row] += level_of[of_kind % len(anchors)].bincount(minlength=5) / draws
    return counts


counts = {"as printed": by_level(printed.rpn), "mended": by_level(config.rpn)}
assert my_letter == ("c" if counts["as printed"][1, 4] < 1 else "b" if counts["as printed"][1, 4] < M / 20 else "a")
rows = [
    {"level": name, "anchors": int((level_of == n).sum()), "crossing": f"{share:.0%}"}
    | {
        f"{what}, {how}": f"{c[r, n]:.1f}"
        for how, c in counts.items()
        for r, what in enumerate(("positives", "negatives"))
    }
    for n, name in enumerate(LEVELS)
    for share in [(~boxes.inside(anchors[level_of == n], *content)).float().mean()]
]
report.markdown(rows)

# %% [markdown]
# As printed, P5 and P6 see positives and hardly ever a negative, an example of "no"; crossing anchors, which compete at test time like all
# others, teach nothing. *Always yes* is a perfect answer there, unless the "no" learnt on P2 to P4 carries over: the head is one for all
# levels, so it does as far as objects look alike on all of them.
#
# The mend takes that gamble away, and both profiles have it: crossing anchors stay in training (`rpn.cross_boundary=clip`), and negatives are
# drawn in turn from the five levels (`rpn.negatives=balanced`). We train both ways and look.

# %%
show(matching.sample, matching._in_turn)

# %% [markdown]
# ## The training loop
#
# All four stages (RPN, box head, mask head, all jointly) train in one loop. Without its machinery it has eight lines. Here they run on the batch above, for a head that is then
# thrown away; the backbone's maps are computed once, because it is frozen. The objectness begins at $\log 2 = 0.69$: an untrained head says ½
# to everything.

# %%
STEPS = 30
with torch.no_grad():
    maps = model.features(x)
torch.manual_seed(0)
learner = Learner(RPNStage(model), features=lambda maps: maps).train()  # the RPN learns, all else is frozen
learning = [p for p in learner.parameters() if p.requires_grad]
optimiser = torch.optim.AdamW(learning, weight_decay=WEIGHT_DECAY)
history = []
for step in range(STEPS):
    optimiser.param_groups[0]["lr"] = config.rpn.lr * warmup_cosine(step, STEPS)
    losses = learner(maps, targets, content)  # draw M anchors, evaluate the head there, both losses
    sum(losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(learning, CLIP_NORM)
    optimiser.step()
    optimiser.zero_grad()
    history.append({name: float(loss.detach()) for name, loss in losses.items()})
assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"rpn"}
assert abs(history[0]["rpn_objectness"] - math.log(2)) < 0.1 and history[-1]["rpn_objectness"] < 0.5
print(" -> ".join(f"step {n + 1}: " + ", ".join(f"{k} {v:.3f}" for k, v in history[n].items()) for n in (0, STEPS - 1)))

# %% [markdown]
# And `lib`'s step, which adds three things: a seed of its own (so a stopped training goes on to the same weights), mixed precision through
# `accelerate`, and an error instead of learning where a loss is not finite (in `_losses`). `self.wrapped` is the optimiser in `accelerate`'s
# hands, `self.place` how far the training has come, `_rate` the learning rate there. **What is frozen** is decided by `Learner`:
# parameters outside the stage get no gradient, and only the learning modules are in training mode, so that the backbone's BatchNorms keep their
# statistics.

# %%
show(Run._step, warmup_cosine, Learner.__init__, Learner.train)
print(next(line.strip() for line in inspect.getsource(Run.__init__).splitlines() if "AdamW" in line))

# %% [markdown]
# **Predict.** Two weights; in the first step the gradient of one is 1000, of the other 0.001. The learning rate is 0.01, no decay. How far does
# AdamW move each?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
my_moves = [0.01, 0.01]
### END SOLUTION

# %%
weights = torch.nn.Parameter(torch.ones(2))
weights.grad = torch.tensor([1000.0, 0.001])
toy_optimiser = torch.optim.AdamW([weights], lr=0.01, weight_decay=0)
toy_optimiser.step()
torch.testing.assert_close(1 - weights.detach(), torch.tensor(my_moves), atol=1e-5, rtol=0)
kept = sum(v.numel() for state in optimiser.state.values() for v in state.values() if v.ndim)
assert kept == 2 * sum(p.numel() for p in learning)  # a mean and a mean square for each number that learns

# %% [markdown]
# Both by the learning rate: Adam divides each gradient's running mean by the root of its running mean square, so the size of a loss does not
# set the step. That costs memory: two further numbers for each that learns, with its gradient four in place of one. One huge gradient would rule both means for many steps: that is why it
# is cut. And it explains the **warm-up**: the first steps would be as long as any, on the word of a single batch each. The cosine lets the steps shrink to nothing,
# so the weights settle.

# %% cellView="form"
# @title What this cell draws: the learning rate over the stage
train_images = len(CourseDataset(DATA, "train", config.data, with_masks=False))
steps = config.rpn.epochs * (train_images // config.rpn.batch_size)
fig, ax = plt.subplots(figsize=(6, 2.2))
ax.plot([config.rpn.lr * warmup_cosine(n, steps) for n in range(steps)], color=draw.LINES[0])
ax.set(
    xlabel=f"step, of {steps:,}", ylabel="learning rate", title=f"{config.rpn.epochs} passes over {train_images} images"
)
fig.tight_layout()
plt.show()
frozen = sum(p.numel() for p in model.backbone.parameters())
report.markdown(
    [
        {"what": what, "here": here, "why": why}
        for what, here, why in (
            (
                "optimiser",
                f"AdamW, weight decay {WEIGHT_DECAY:g}",
                "a step's length is the learning rate's, not the loss's",
            ),
            (
                "learning rate",
                f"{config.rpn.lr:g}; {round(steps * WARMUP)} steps of warm-up ({WARMUP:.0%}), then half a cosine",
                "short steps while nothing is known, and at the end",
            ),
            ("batch", f"{config.rpn.batch_size} images, M = {M} anchors", "a few positives in every step"),
            ("mirrored", f"{config.training.flip_probability:.0%} of the images", "an object may face either way"),
            ("gradient", f"norm cut at {CLIP_NORM:g}", "one odd batch must not rule the running means"),
            ("precision", precision(config.training.mixed_precision), "bf16 where the machine multiplies faster in it"),
            (
                "frozen",
                f"{frozen / 1e6:.1f} M of the backbone",
                "trained already (§3); its maps are computed once, as given and mirrored; notebook 06 trains on",
            ),
            ("learns", f"{sum(p.numel() for p in learning):,} of the RPN", "the part of this notebook"),
        )
    ]
)

# %% [markdown]
# ## Train, or load what was trained
#
# One call each. An RPN in `weights/` that was trained with these very numbers is kept. One trained with other numbers is not overwritten: the
# new one goes into a folder beside it. In the `course` profile the frozen backbone is torchvision's, trained on COCO; in the `demo` profile
# `python -m lib pretrain` trained it on scenes of seeds that no data set here may use. A second RPN is trained exactly as the sheet prints it,
# for the comparison; nothing later uses it.

# %%
WEIGHTS = train_until("rpn", config, DATA, WEIGHTS)
model = load_model(WEIGHTS, "rpn", config).to(device())
as_printed = load_model(train_until("rpn", printed, DATA, WEIGHTS / "as_printed"), "rpn", printed).to(device())

# %% [markdown]
# The learning curves, on a logarithmic axis: dotted the training images, solid the validation images.

# %%
fig = report.learning_curves_figure(WEIGHTS, "rpn")
for ax in fig.axes:
    ax.set_yscale("log")
    ax.autoscale(axis="y")
_ = save_figure(fig, "03_learning_curves")
display(fig)
history = read_history(WEIGHTS, "rpn")
last, course = history[-1], []
for name in ("objectness", "box"):
    lowest = min(history, key=lambda row: row[f"val_rpn_{name}"])
    rise = last[f"val_rpn_{name}"] / lowest[f"val_rpn_{name}"] - 1
    how = "still falling" if lowest is last else "since then flat" if rise < 0.1 else f"since then up by {rise:.0%}"
    course.append(f"the {name}'s is lowest after epoch {lowest['epoch']:.0f}, {how}")
ratios = {name: last[f"val_rpn_{name}"] / max(last[f"train_rpn_{name}"], 1e-9) for name in ("objectness", "box")}
Markdown(
    f"After epoch {last['epoch']:.0f} the validation loss is {ratios['objectness']:.1f} times the training loss for "
    f"the objectness and {ratios['box']:.1f} times for the boxes"
    + (
        ": part of what it learnt it knows by heart. "
        if max(ratios.values()) > 1.5 and last["epoch"] > 3
        else ": no sign that it learns by heart. "
    )
    + f"Of the validation losses, {'; '.join(course)}. The first training value is the mean of a pass that began with "
    f"nothing learnt.\n\nThe objectness costs {last['val_rpn_objectness']:.4f}, the boxes {last['val_rpn_box']:.4f}: "
    "equal weights (§4.5) do not make equal losses, for all $M$ anchors pay the one and the positives alone the other. "
    "Another weight (`rpn.box_weight`) would change less than it seems: Adam cancels a factor in the layers that "
    "one loss alone teaches; only the shared 3 × 3 convolution would listen more to the heavier loss."
)

# %% [markdown]
# ## What it learnt, level by level
#
# First the image we follow: the sigmoid of each cell's best anchor, on all five levels, of both RPNs.

# %% cellView="form"
# @title What this cell draws: objectness by level, as printed and mended
with torch.no_grad():
    maps = model.features(x.to(device()))
    (logits, deltas), (printed_logits, printed_deltas) = ([v.cpu() for v in m.rpn(maps)] for m in (model, as_printed))


def objectness(logits, image):
    """The objectness of each cell's best anchor, on each level; cells of the padding alone are left out."""
    by_level = logits[image].sigmoid().split([3 * sy * sx for sy, sx in grids])
    drawn = [[-(-side // stride) for side in content] for stride in STRIDES]
    return [p.view(*grid, 3).amax(-1)[:y, :x] for p, grid, (y, x) in zip(by_level, grids, drawn, strict=True)]


fig, axes = plt.subplots(2, 6, figsize=(12, 3.4), layout="constrained")
for line, (name, z) in zip(axes, (("as printed", printed_logits), ("mended", logits)), strict=True):
    draw.image(line[0], seen.pictures[0])
    draw.boxes(line[0], targets[0]["boxes"], "truth", linewidth=1.5)
    line[0].set_ylabel(name, fontsize=10)
    for n, (ax, level) in enumerate(zip(line[1:], objectness(z, 0), strict=True)):
        draw.heatmap(ax, level, size=[cells * STRIDES[n] for cells in level.shape])
        ax.set(xlim=(0, content[1]), ylim=(content[0], 0))  # the rest of the padding is cut off
        ax.set_title(f"{LEVELS[n]}, anchors of {config.anchors.scales[n]:g} px", fontsize=9)
draw.legend(axes[1, 0], {"truth": "object"})
fig.colorbar(axes[0, 1].images[0], ax=axes, shrink=0.8, label="objectness of a cell's best anchor")
_ = save_figure(fig, "03_objectness")
plt.show()
own = " and ".join(LEVELS[n] for n in level_of[labels_of[0] == POSITIVE].unique())
lit = [[int((v > 0.5).sum()) for v in objectness(z, 0)] for z in (printed_logits, logits)]
nearest = [float(overlap[level_of == n].max()) for n in range(5)]
closest, too_far = ", ".join(f"{v:.2f}" for v in nearest), [LEVELS[n] for n in range(5) if nearest[n] < 0.3]
change = sum(lit[1]) - sum(lit[0])
Markdown(
    f"The positive anchors lie on {own}. From P2 to P6 the best anchor's IoU with an object is {closest}. Between 0.3 "
    "and 0.7 an anchor is ignored: nothing teaches it a no, and it may light up as brightly as a positive one. "
    + bool(too_far)
    * f"On {' and '.join(too_far)} all anchors are negatives: what lights up there is a false alarm. "
    f"Cells above ½, from P2 to P6: as printed {lit[0]}, mended {lit[1]}; the "
    f"mend {'puts some out' if change < 0 else 'puts none out' if change == 0 else 'lights more'}. "
    "A cell of P2 is 4 pixels wide, one of P6 64: hence the coarse blocks on the right."
)


# %% [markdown]
# Now all validation images. `over_val` gives each batch's outputs; the table and the recall below come from it.

# %%
@torch.no_grad()
def over_val(head):
    """The validation images, batch by batch: logits, deltas and the images' targets."""
    for images, batch in loader(val, config.evaluation.batch_size, device()):
        images, batch, _ = prepare(images.to(device()), batch, config.image)
        z, t = head(model.features(images))
        yield z.float().cpu(), t.float().cpu(), [{"boxes": target["boxes"].cpu()} for target in batch]


def levels(head):
    """Mean objectness of each level's positives and of its negatives, its negatives above ½, and all: (4, 5)."""
    totals, counts = torch.zeros(3, 5), torch.zeros(2, 5)
    for z, _, batch in over_val(head):
        for p, target in zip(z.sigmoid(), batch, strict=True):
            labels = rpn.rpn_targets(anchors, target["boxes"], content, config.rpn)[0]
            for r, v in enumerate((POSITIVE, NEGATIVE)):
                totals[r] += level_of[labels == v].bincount(p[labels == v].double(), 5)
                counts[r] += level_of[labels == v].bincount(minlength=5)
            totals[2] += level_of[(labels == NEGATIVE) & (p > 0.5)].bincount(minlength=5)
    return torch.cat([totals[:2] / counts, totals[2:], counts[1:]])


# %% [markdown]
# *yes* is the mean objectness of the positive anchors, *no* of the negative ones; *false alarms* are negatives above ½.

# %%
found_by = {"as printed": levels(as_printed.rpn), "mended": levels(model.rpn)}
rows = [
    {"level": name}
    | {
        f"{kind}, {how}": None if v[r, n].isnan() else float(v[r, n])
        for how, v in found_by.items()
        for r, kind in enumerate(("yes", "no"))
    }
    | {f"false alarms, {how}": int(v[2, n]) for how, v in found_by.items()}
    | {"negatives": int(found_by["mended"][3, n])}
    for n, name in enumerate(LEVELS)
]
report.save_table(rows, "03_levels")
display(report.markdown(rows))
no = {how: float((v[1, 3:] * v[3, 3:]).nansum() / v[3, 3:].sum()) for how, v in found_by.items()}
alarms = {how: v[2].int() for how, v in found_by.items()}
if no["mended"] > 0.1:
    effect = "neither has been trained for long enough to say no."
elif no["as printed"] < no["mended"]:
    effect = "here the mend shows no effect."
else:
    effect = "the upper levels, which hardly ever saw a no, say yes more often to what is not there. " + (
        "But they say it seldom: the no of the lower levels carries over, probably because behind this backbone "
        "objects look much alike on all levels."
        if no["as printed"] < 0.2
        else "They say it nearly everywhere: the no of the lower levels does not carry over."
    )
fewer = alarms["as printed"] - alarms["mended"]
for sign, what in (
    (1, "fall most"),
    (-1, "rise most, for it gets fewer of the negatives" if fewer.argmin() == 0 else "rise most"),
):
    if (n := int((sign * fewer).argmax())) >= 0 and sign * fewer[n] > 0:
        effect += f" On {LEVELS[n]} the false alarms {what}: {alarms['as printed'][n]} to {alarms['mended'][n]}."
Markdown(
    f"On P5 and P6 a negative gets on average {no['as printed']:.4f} as printed and {no['mended']:.4f} mended, with "
    f"{alarms['as printed'][3:].sum()} and {alarms['mended'][3:].sum()} false alarms among "
    f"{int(found_by['mended'][3, 3:].sum()):,} negatives of {len(val)} images: {effect}"
)

# %% [markdown]
# ## From maps to proposals (§4.6)
#
# decode → clip to the image → the $K$ best → drop what clipping left too thin → NMS → the $N$ best. The sheet clips in testing, where
# a box thrown away may be a lost object; in training it removes what crosses the boundary, for there is enough else to learn from.
# `rpn.cross_boundary=clip` clips there too, so that the heads train on what they will be given later.
#
# **Non-maximum suppression:** an object lights up many anchors, so take the best box, drop what overlaps it by more than 0.7,
# repeat with what is left. Three boxes, each 10 × 10, scores 0.9, 0.8, 0.7; the second is the first moved by 1, the third the first
# moved by 3. **Predict** which stay at 0.7, and which at 0.5.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
stay_at_07, stay_at_05 = [0, 2], [0]  # the IoUs with the first are 9/11 = 0.82 and 7/13 = 0.54
### END SOLUTION

# %%
def naive_nms(candidates, scores, threshold):
    """Indices of the boxes that stay, best first."""
    left, kept = scores.argsort(descending=True, stable=True).tolist(), []
    overlap = boxes.iou_matrix(candidates, candidates)
    while left:
        best, *left = left
        kept.append(best)
        left = [i for i in left if overlap[best, i] <= threshold]
    return torch.tensor(kept, dtype=torch.long)


candidates, scores = torch.tensor([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [3.0, 0, 13, 10]]), torch.tensor([0.9, 0.8, 0.7])
for threshold, mine in ((0.7, stay_at_07), (0.5, stay_at_05)):
    assert mine == naive_nms(candidates, scores, threshold).tolist() == nms(candidates, scores, threshold).tolist()

# %% [markdown]
# `lib` uses torchvision's `nms`. Two hints for reading `propose`: `topk` comes before `decode`, because decoding all anchors to keep a few
# is a waste; a box to be removed gets the score $-\infty$, so that all images of a batch keep the same shape.

# %%
show(boxes.clip, rpn.propose)


# %% [markdown]
# The naive version decodes everything, in the sheet's order, and counts what each step leaves of the image we follow. Same boxes.

# %%
def naive_propose(logits, deltas, training, settings):
    """§4.6, step by step, for one image: boxes, scores and the count after each step."""
    limits = settings.train if training else settings.test
    decoded = boxes.decode(deltas, anchors)
    removes = training and settings.cross_boundary == "remove"
    admitted = boxes.inside(decoded, *content) if removes else torch.ones(len(anchors), dtype=torch.bool)
    decoded = boxes.clip(decoded, *content)
    top = logits.masked_fill(~admitted, -torch.inf).topk(min(limits.pre_nms, len(anchors))).indices
    top = top[admitted[top]]
    counts = {"anchors": len(anchors), "admitted": int(admitted.sum()), "top K": len(top)}
    top = top[(decoded[top, 2:] - decoded[top, :2] >= boxes.MIN_SIZE).all(1)]
    kept = top[naive_nms(decoded[top], logits[top], settings.nms_iou)]
    counts |= {"not too thin": len(top), "after NMS": len(kept)}
    kept = kept[: limits.post_nms]
    return decoded[kept], logits[kept].sigmoid(), counts | {"top N": len(kept)}


steps, modes = [], (("training, as printed: removed", True, printed.rpn), ("training: clipped", True, config.rpn))
for name, training, how in (*modes, ("testing: clipped", False, config.rpn)):
    ours = rpn.propose(logits[:1], deltas[:1], anchors, content, how, training)[0]
    by_hand, by_hand_scores, counts = naive_propose(logits[0], deltas[0], training, how)
    torch.testing.assert_close(ours["boxes"], by_hand)
    torch.testing.assert_close(ours["scores"], by_hand_scores)
    steps.append({"mode": name} | counts)
display(report.markdown(steps))
thin = steps[2]["top K"] - steps[2]["not too thin"]
K, N = config.rpn.test.pre_nms, config.rpn.test.post_nms
Markdown(
    f"Clipping leaves {thin} of the $K$ without width or height: boxes wholly in the padding beyond the image. Removing "
    "throws such boxes away before the $K$ are chosen. "
    + "The last two rows are equal. "
    * (config.rpn.train == config.rpn.test)
    + f"Training has $K$ = {config.rpn.train.pre_nms:,} and $N$ = {config.rpn.train.post_nms:,}, testing {K:,} and "
    f"{N:,}."
)

# %% [markdown]
# Before and after, drawn: the regressor's work on two objects, then what NMS does.

# %% cellView="form"
# @title What this cell draws: anchors decoded, and NMS, on the image we follow
decoded = boxes.clip(boxes.decode(deltas[0], anchors), *content)
with_objects = boxes.iou_matrix(targets[0]["boxes"], decoded)
whose = with_objects.argmax(0)  # each decoded box's object
best = torch.stack([(logits[0] + 1e3 * ((o > 0.5) & (whose == g))).argmax() for g, o in enumerate(with_objects)])
top = logits[0].topk(30).indices
kept = top[nms(decoded[top], logits[0, top], config.rpn.nms_iou)]
truth, none = targets[0]["boxes"], decoded[:0]
parts = [
    (f"object {g + 1}: its most probable anchor", anchors[b][None], decoded[b][None], truth[g : g + 1])
    for g, b in enumerate(best[:2])
]
parts += [("the 30 most probable boxes", none, decoded[top], truth)]
parts += [(f"the {len(kept)} that NMS leaves", none, decoded[kept], truth)]
fig, axes = plt.subplots(1, len(parts), figsize=(12, 3.2), layout="constrained")
for ax, (title, before, after, objects) in zip(axes, parts, strict=True):
    draw.image(ax, seen.pictures[0], margin=12)
    draw.boxes(ax, after, "predicted", linewidth=1.4)
    draw.boxes(ax, before, "positive", dotted=True, linewidth=2.2)
    draw.boxes(ax, objects, "truth", linewidth=2)
    ax.set_title(title, fontsize=10)
draw.legend(axes[0], {"truth": "object", "positive": "anchor", "predicted": "decoded box"})
axes[0].get_legend().get_lines()[1].set_linestyle(":")
_ = save_figure(fig, "03_nms")
plt.show()
moved = boxes.iou_matrix(targets[0]["boxes"], anchors[best]).diagonal(), with_objects[:, best].diagonal()
Markdown(
    f"Decoding takes the anchors from a mean IoU of {moved[0].mean():.2f} with their objects to {moved[1].mean():.2f}"
    + ("" if moved[1].mean() > moved[0].mean() else ": this RPN has hardly been trained")
    + f". Of the 30 boxes NMS leaves {len(kept)}: those that overlap by less than {config.rpn.nms_iou:g}, so "
    "neighbours still crowd around an object. The box head will sort them out."
)

# %% [markdown]
# ## Does the mend matter? Measure the recall
#
# What counts is which objects the best proposals cover. For each object: its highest IoU with one of the first $n$
# proposals, for several $n$. *Recall* is the share of objects at or above a threshold, *AR* (average recall) its mean over the thresholds 0.50,
# 0.55, … 0.95.

# %%
NS = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000]
THRESHOLDS = torch.arange(0.5, 1, 0.05)


def coverage(proposals, objects):
    """Each object's highest IoU with the first n proposals, for each n of NS: (G, 11)."""
    overlap = pad(boxes.iou_matrix(objects, proposals), (0, NS[-1]))  # a proposal that is not there covers nothing
    return overlap.cummax(1).values[:, [n - 1 for n in NS]]


def average_recall(best):
    """The share of objects at or above a threshold, averaged over IoU 0.50, 0.55, … 0.95: COCO's AR."""
    return float((best[:, None] >= THRESHOLDS).float().mean())


toy = torch.tensor([[0.0, 0, 10, 6], [50.0, 50, 60, 60], [0.0, 0, 10, 10]])  # the object met at 0.6, at 0, at 1
torch.testing.assert_close(coverage(toy, toy[2:])[0, :3], torch.tensor([0.6, 0.6, 1.0]))


# %% [markdown]
# With `propose` itself, and $N$ set out of the way:

# %%
def proposed(head, K=config.rpn.test.pre_nms, removed=False):
    """Each validation image's proposals after NMS of the K best, all of them, and its objects."""
    limits = {f"rpn.{mode}.{n}_nms": K for mode in ("train", "test") for n in ("pre", "post")}
    how = config.replace(**limits, **{"rpn.cross_boundary": "remove"}).rpn  # removed in training mode only
    for z, t, batch in over_val(head):
        for p, target in zip(rpn.propose(z, t, anchors, content, how, training=removed), batch, strict=True):
            yield p["boxes"], target["boxes"]


pairs = {"as printed": list(proposed(as_printed.rpn)), "mended": list(proposed(model.rpn))}
covered = {how: torch.cat([coverage(*pair) for pair in p]) for how, p in pairs.items()}
report.markdown(
    [
        {"RPN": how} | {f"AR, first {n}": average_recall(c[:, NS.index(n)]) for n in (1, 10, 100)}
        for how, c in covered.items()
    ]
)

# %% [markdown]
# The same in pictures, left the image we follow. Look for boxes on no object, and objects without a tight box.

# %% cellView="form"
# @title What this cell draws: the ten best proposals of each RPN
fig, axes = plt.subplots(2, 4, figsize=(12, 5), layout="constrained")
outputs = (("as printed", printed_logits, printed_deltas), ("mended", logits, deltas))
for ax in axes[:, len(x) :].flat:
    ax.axis("off")
astray, drawn_boxes = {}, {}
for line, (name, z, t) in zip(axes, outputs, strict=True):
    proposals = [p["boxes"][:10] for p in rpn.propose(z, t, anchors, content, config.rpn, training=False)[:4]]
    for ax, picture, target, ten in zip(line, seen.pictures, targets, proposals, strict=False):
        draw.image(ax, picture)
        draw.boxes(ax, ten, "predicted", linewidth=1.0)
        draw.boxes(ax, target["boxes"], "truth", linewidth=2)
    line[0].set_ylabel(name, fontsize=10)
    nearest = [pad(boxes.iou_matrix(p, t["boxes"]), (0, 1)).amax(1) for p, t in zip(proposals, targets, strict=False)]
    astray[name], drawn_boxes[name] = int((torch.cat(nearest) < 0.1).sum()), sum(map(len, proposals))
draw.legend(axes[1, 0], {"truth": "object", "predicted": "the ten best proposals"})
_ = save_figure(fig, "03_as_printed")
plt.show()
ten = {how: average_recall(c[:, NS.index(10)]) for how, c in covered.items()}
difference = ten["mended"] - ten["as printed"]
Markdown(
    f"{astray['as printed']} of the {drawn_boxes['as printed']} boxes above and {astray['mended']} of the "
    f"{drawn_boxes['mended']} below have an IoU below 0.1 with every object: something else drew them, or a small part of one. "
    + ("Otherwise the rows look much alike. " if abs(difference) < 0.05 else "The rows differ. ")
    + f"The first ten proposals reach an AR of {ten['as printed']:.3f} as printed, {ten['mended']:.3f} mended, on "
    f"{len(covered['mended'])} objects: a difference of {difference:+.3f}, which may be chance. README's table over "
    "three seeds and 1,000 scenes finds no sure difference in the finished model's average precision (AP, notebook "
    "06) either. The mend stays because it removes a gamble on the backbone, not because this backbone lost it."
)

# %% [markdown]
# ## Choosing K and N: measure the recall
#
# An object without a proposal is lost for good. So we measure recall against $N$ for several $K$, where crossing boxes are clipped, and
# where they are removed as the sheet prints for training.

# %% cellView="form"
# @title What this cell draws: recall against N, and what NMS leaves of K boxes
KS = [max(1, K // 4), K, 4 * K]
every = {(k, removed): list(proposed(model.rpn, k, removed)) for k in KS for removed in (False, True)}
covered = {key: torch.cat([coverage(*pair) for pair in pairs]) for key, pairs in every.items()}
left = {key: sum(len(p) for p, _ in pairs) / len(pairs) for key, pairs in every.items()}
curve = [average_recall(column) for column in covered[KS[-1], False].T]
enough = next(n for n, ar in zip(NS, curve, strict=True) if ar >= 0.99 * curve[-1])  # 99 % of the most generous AR
enough_K = next((k for k in KS if left[k, False] >= enough), KS[-1])
at_N = NS.index(max(n for n in NS if n <= N))

shown = [n for n in NS if n <= max(N, *(left[K, removed] for removed in (False, True)))]  # more are not there
fig, axes = plt.subplots(1, 2, figsize=(12, 3.6))
for threshold, colour in zip((0.5, 0.7, 0.8, 0.9), [draw.LINES[c] for c in (0, 2, 3, 4)], strict=True):
    for removed, style in ((False, "-"), (True, "--")):  # broad and thin: both are seen where they agree
        share = (covered[K, removed] >= threshold).float().mean(0)
        wide = {"lw": 1.3} if removed else {"lw": 4, "alpha": 0.4, "label": f"IoU ≥ {threshold}"}
        axes[0].plot(shown, share[: len(shown)], style, color=colour, **wide)
axes[0].plot([], [], "--", color="grey", label="crossing boxes removed")
axes[0].axvline(N, color="grey", linestyle=":", linewidth=1, label=f"N of the config, {N}")
axes[0].set(xscale="log", ylim=(0, 1.05), xlabel="proposals N", ylabel="recall", title=f"objects found, K = {K}")
axes[0].xaxis.set_major_formatter("{x:g}")
for removed, style, colour, name in ((False, "o-", draw.LINES[0], "clipped"), (True, "s--", draw.LINES[4], "removed")):
    axes[1].plot(KS, [left[k, removed] for k in KS], style, color=colour, label=name, markerfacecolor="none")
axes[1].set(xlabel="boxes before NMS, K", ylabel="boxes an image", title="left after NMS", ylim=(0, None))
for ax in axes:
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
fig.tight_layout()
_ = save_figure(fig, "03_recall")
plt.show()
at = {t: (covered[K, False] >= t).float().mean(0)[[NS.index(1), at_N]].tolist() for t in (0.5, 0.9)}
ahead = ((covered[K, True] >= 0.8).sum(0) - (covered[K, False] >= 0.8).sum(0))[: len(shown)].max()
queue = f"At 0.8 removing is ahead by up to {ahead} of {len(covered[K, True])} objects: crossing boxes left the queue. "
Markdown(
    f"At IoU 0.5 the best proposal alone finds {at[0.5][0]:.0%} of the objects, {NS[at_N]} find {at[0.5][1]:.0%}; at "
    f"0.9 it is {at[0.9][0]:.0%} and {at[0.9][1]:.0%}"
    + (": more proposals add hardly any as tight as that. " if at[0.9][1] - at[0.9][0] < 0.05 else ". ")
    + f"{queue * bool(ahead > 0)}Right: NMS leaves {left[K, False] / K:.0%} of {K}, or {left[K, True] / K:.0%} "
    "where crossing boxes are removed."
)

# %% [markdown]
# **A rule, instead of an impression:** the smallest $N$ that keeps 99 % of the most generous setting's AR. $K$ then only has to leave so many
# after NMS: a smaller $K$ takes nothing away from the front of the queue, it ends it sooner.

# %%
objects = torch.cat([truth for _, truth in every[K, False]])
inner = (objects[:, :2] > 1).all(1) & (objects[:, 2] < content[1] - 1) & (objects[:, 3] < content[0] - 1)
rows = []
for name, k, n, removed in (
    ("most generous", KS[-1], NS[-1], False),
    ("the rule", enough_K, enough, False),
    (f"config ({config.profile}), clipped", K, NS[at_N], False),
    (f"config ({config.profile}), removed", K, NS[at_N], True),
):
    best = covered[k, removed][:, NS.index(n)]
    row = {"setting": name, "K": k, "N": n, "AR": average_recall(best)}
    row |= {f"recall at {t}": float((best >= t).float().mean()) for t in (0.5, 0.7)}
    for where, group in (("border", ~inner), ("inside", inner)):
        row[f"IoU, {where}"] = float(best[group].mean()) if group.any() else None
    rows.append(row | {"after NMS": round(left[k, removed])})
report.save_table(rows, "03_recall")
display(report.markdown(rows))
clipped, removed = rows[2], rows[3]
found = {how: int((covered[K, how][:, at_N] >= 0.7).sum()) for how in (False, True)}
falls = {w: (removed[f"IoU, {w}"] or 0) - (clipped[f"IoU, {w}"] or 0) for w in ("border", "inside")}
closest = torch.stack(
    [p[:N][boxes.iou_matrix(o[None], p[:N])[0].argmax()] for p, truth in every[K, False] for o in truth]
)
at_edge = (closest[:, :2] == 0).any(1) | (closest[:, 2] == content[1]) | (closest[:, 3] == content[0])
text = (
    f"- Of the three $K$ tried the smallest that is enough is **{enough_K}**; **N = {enough}**. "
    f"The `{config.profile}` profile's K = {K} and N = {N} reach "
    f"{clipped['AR'] / curve[-1]:.1%} of the best AR.\n"
    "- Removing crossing boxes, as the sheet prints for training, changes the objects found at 0.7 from "
    f"{found[False]} to {found[True]} of {len(objects)}{', which may be chance' * (abs(found[True] - found[False]) < 5)}"
)
if inner.any() and (~inner).any():
    text += (
        f", the mean IoU of the objects at the border with their best box by {falls['border']:+.3f}, of those inside "
        f"by {falls['inside']:+.3f}. Of {int((~inner).sum())} objects at the border {int(at_edge[~inner].sum())} have "
        f"a best box that reached across it and was clipped, of {int(inner.sum())} inside {int(at_edge[inner].sum())}: "
        "removing throws just these boxes away"
    )
Markdown(f"{text}.")

# %% [markdown]
# §4.6 asks for about 1000 proposals in training: the `course` profile's $N$. The `demo` profile's images have a twentieth of the pixels,
# and each proposal costs the box head time. The config's $N$ need not be the rule's: the box head learns from several boxes of each object.

# %% [markdown]
# ## What it gets right, and what wrong
#
# The image we follow and others not shown above, with their ten best proposals:

# %% cellView="form"
# @title What this cell draws: a montage
fig, axes = plt.subplots(2, 4, figsize=(12, 5), layout="constrained")
shown = [order[0], *(n for n in range(len(val)) if n not in order), *order[1:]][:8]
for ax in axes.flat[len(shown) :]:
    ax.axis("off")
for ax, n, picture in zip(axes.flat, shown, as_seen(val, shown, config).pictures, strict=False):
    proposals, truth = every[K, False][n]
    draw.image(ax, picture)
    draw.boxes(ax, proposals[:10], "predicted", linewidth=1.0)
    draw.boxes(ax, truth, "truth", linewidth=2)
draw.legend(axes[1, 0] if len(shown) > 4 else axes[0, 0], {"truth": "object", "predicted": "ten best proposals"})
_ = save_figure(fig, "03_montage")
plt.show()
tens = [(every[K, False][n][0][:10], every[K, False][n][1]) for n in shown]
tight = torch.cat([pad(boxes.iou_matrix(t, p), (0, 1)).amax(1) for p, t in tens]) >= 0.7
nearest = torch.cat([pad(boxes.iou_matrix(p, t), (0, 1)).amax(1) for p, t in tens])
Markdown(
    f"Right: {int(tight.sum())} of the {len(tight)} objects have among the ten a box at IoU 0.7 or more. Wrong: "
    f"{int((nearest < 0.5).sum())} of the {len(nearest)} boxes overlap no object by half: they hold a part of one, too "
    f"much around it, or ({int((nearest < 0.1).sum())} of them) hardly any of one. The box head must say no."
)

# %% [markdown]
# Which objects are covered worst? By thirds of size (square root of the area), by whether they touch the image's border or overlap another
# object's box, and by class. The last column: mean IoU less that of all others, ± two standard errors:

# %%
best = covered[K, False][:, at_N]
size = boxes.area(objects).sqrt()
low, high = size.quantile(torch.tensor([1 / 3, 2 / 3])).tolist()
beside = torch.cat([boxes.iou_matrix(truth, truth).fill_diagonal_(0).amax(1) > 0 for _, truth in every[K, False]])
labels = torch.cat([val.target(n)["labels"] for n in range(len(val))])
groups = {
    f"small (below {low:.0f} px)": size < low,
    "medium": (size >= low) & (size <= high),
    f"large (above {high:.0f} px)": size > high,
    "at the border": ~inner,
    "inside": inner,
    "overlap another": beside,
} | {val.classes[c - 1]: labels == c for c in draw.most_frequent(labels, 4)}


def against_the_rest(group):
    """The difference in mean IoU from all other objects, and two standard errors of it."""
    parts = best[group], best[~group]
    if min(map(len, parts)) < 2:
        return None
    return float(parts[0].mean() - parts[1].mean()), 2 * math.sqrt(sum(float(v.var()) / len(v) for v in parts))


gaps = {name: gap for name, g in groups.items() if (gap := against_the_rest(g))}
rows = [
    {"objects": name, "count": int(g.sum()), "mean IoU": float(best[g].mean()) if g.any() else None}
    | {f"recall at {t}": float((best[g] >= t).float().mean()) if g.any() else None for t in (0.5, 0.7, 0.8)}
    | {"against the rest": "{:+.3f} ± {:.3f}".format(*gaps[name]) if name in gaps else report.NO_VALUE}
    for name, g in groups.items()
]
report.save_table(rows, "03_recall_by_group")
report.markdown(rows)

# %% [markdown]
# The four worst, each with its best proposal. Look for a reason: an object in front or behind, a thin part that reaches far out, a shape far
# from 1:2, 1:1 and 2:1.

# %% cellView="form"
# @title What this cell draws: the four objects covered worst
owner = torch.cat([torch.full((len(truth),), n) for n, (_, truth) in enumerate(every[K, False])])
worst = best.argsort()[:4].tolist()
fig, axes = plt.subplots(1, 4, figsize=(12, 2.9), layout="constrained")
for ax in axes[len(worst) :]:
    ax.axis("off")
for ax, o in zip(axes, worst, strict=False):
    n = int(owner[o])
    draw.image(ax, as_seen(val, [n], config).pictures[0], margin=8)
    candidates = every[K, False][n][0][:N]
    if len(candidates):
        draw.boxes(ax, candidates[boxes.iou_matrix(objects[o : o + 1], candidates)[0].argmax()][None], "predicted")
    draw.boxes(ax, objects[o : o + 1], "truth")
    ax.set_title(f"IoU {best[o]:.2f}, {size[o]:.0f} px, {'inside' if inner[o] else 'at the border'}", fontsize=10)
draw.legend(axes[0], {"truth": "object", "predicted": "its best proposal"})
_ = save_figure(fig, "03_worst")
plt.show()
print("exported:", ", ".join(sorted(file.name for file in paths().figures.glob("03_*"))))
sure = [f"*{name}* ({d:+.3f})" for name, (d, error) in gaps.items() if abs(d) > error]
edge = [f"{int((best[g] >= 0.8).sum())} of {int(g.sum())} {name}" for name, g in list(groups.items())[3:5]]
Markdown(
    f"{int((best >= 0.5).sum())} of {len(best)} objects have a proposal at IoU 0.5. The mean IoU of an object with its "
    f"best proposal is **{best.mean():.2f}**: the box head starts from there. "
    f"Of the {len(gaps)} groups these differ from the rest by more than two standard errors, as one in twenty would by chance: "
    f"{', '.join(sure) or 'none'}. A box at IoU 0.8 is there for {' and '.join(edge)}. Of these {len(worst)}, "
    f"{int(beside[worst].sum())} overlap another object's box, of all objects {beside.float().mean():.0%}."
)


# %% [markdown]
# ## Summary
#
# - One small head reads 3 × 3 cells and says one and four numbers for each of three anchors, on all levels.
# - Both losses are sums over $M$ sampled anchors divided by the same $M$; only positives teach the boxes.
# - The loop: sample, loss, backward, cut, step, at a learning rate that warms up and fades; all but the part at hand is frozen.
# - Crossing anchors removed and negatives drawn uniformly leave the upper levels without a "no"; behind this project's backbone that harms little.
# - Post-processing: decode, clip, top $K$, NMS, top $N$; a recall curve says how many are enough.

# %% [markdown]
# ## Exercises
#
# Each has a stub to write over and a check. Solutions: `notebooks/solutions/03_rpn.py`.

# %% [markdown]
# ### Exercise 3.1: a stricter NMS
#
# Change the threshold. Write a function that proposes with another `rpn.nms_iou` (take `proposed` as a model; no training) and
# returns the mean number of boxes an image, at most $N$, and the AR of them. What falls first, and why?

# %%
# exercise 3.1
def with_nms(nms_iou):
    """(boxes an image, AR) on the validation images, with the config's K and N."""
    return None


# %%
# check 3.1
if with_nms(0.5) is None:
    print("exercise 3.1: not done yet")
else:
    results = {t: with_nms(t) for t in (0.3, 0.5, config.rpn.nms_iou)}
    assert math.isclose(
        results[config.rpn.nms_iou][1],
        average_recall(torch.cat([coverage(p[:N], t) for p, t in every[K, False]])[:, -1]),
        abs_tol=1e-4,
    )
    assert results[0.3][0] < results[config.rpn.nms_iou][0], "a stricter threshold leaves fewer boxes"
    print({t: f"{count:.0f} boxes, AR {ar:.3f}" for t, (count, ar) in results.items()})


# %% [markdown]
# ### Exercise 3.2: PyTorch's own means
#
# `reduction="mean"` divides each loss by another count. §4.5 asks for the factors that undo this: by what do you multiply PyTorch's mean
# of the cross entropy, and that of smooth L1 over the positives' deltas, to get `rpn_loss`? Use the cell with three anchors to try it.

# %%
# exercise 3.2
def factors(positives, M):
    """(for the objectness, for the boxes) where a minibatch of M anchors has so many positives."""
    return None


# %%
# check 3.2
if factors(2, 3) is None:
    print("exercise 3.2: not done yet")
else:
    difference = torch.randn(5, 4)
    for count, factor in ((16, factors(5, 16)), (5, factors(5, 5))):
        labels = torch.tensor([POSITIVE] * 5 + [NEGATIVE] * (count - 5))
        padded = pad(difference, (0, 0, 0, count - 5))
        ours = rpn.rpn_loss(torch.zeros(count), padded, labels, torch.zeros_like(padded))
        torch.testing.assert_close(smooth_l1_loss(difference, 0 * difference) * factor[1], ours["rpn_box"])
        assert math.isclose(math.log(2) * factor[0], ours["rpn_objectness"], abs_tol=1e-5)
    print("exercise 3.2: done")


# %% [markdown]
# ### Exercise 3.3: focal loss in place of sampling
#
# [Focal loss](https://arxiv.org/abs/1708.02002) learns from *all* labelled anchors and weighs each one's cross entropy by
# $(1 - p_t)^\gamma$, where $p_t$ is the probability given to the right answer: an easy "no" weighs next to nothing. The sum is divided by the
# number of positives (at least 1). The check trains a fresh head with it, instead of the sampling in the cell "The training loop".

# %%
# exercise 3.3
def focal_loss(logits, labels, gamma=2.0):
    """Logits and labels (POSITIVE, NEGATIVE, IGNORED) of any number of anchors -> a scalar."""
    return None


# %%
# check 3.3
z, answer = torch.tensor([math.log(3), 0.0, -math.log(3), 5.0]), torch.tensor([POSITIVE, POSITIVE, NEGATIVE, IGNORED])
if focal_loss(z, answer) is None:
    print("exercise 3.3: not done yet")
else:
    torch.testing.assert_close(focal_loss(z, answer, gamma=0), torch.tensor(1.2685 / 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        focal_loss(z, answer), torch.tensor((0.2877 / 16 + 0.6931 / 4 + 0.2877 / 16) / 2), atol=1e-4, rtol=0
    )
    torch.manual_seed(0)
    head, fixed = rpn.RPNHead(channels, 3).eval(), [m.float().cpu() for m in maps]  # eval: BatchNorm as it is
    torch.nn.init.constant_(head.objectness.bias, -math.log(99))  # as in the paper: at first all say 0.01
    optimiser = torch.optim.AdamW(head.parameters(), 2e-3)
    for _ in range(STEPS):
        loss = focal_loss(head(fixed)[0], labels_of)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    p = head(fixed)[0].detach().sigmoid()
    yes, no = p[labels_of == POSITIVE].mean(), p[labels_of == NEGATIVE].mean()
    assert yes > 5 * no, (yes, no)
    print(f"after {STEPS} steps: positives {yes:.3f}, negatives {no:.3f}; nothing sampled")


# %% [markdown]
# ### Exercise 3.4: the best of each level
#
# FPN's and torchvision's RPN take the $K$ best of *each level*, the sheet's the $K$ best of all. Write the former; the check uses the cells'
# `logits` and `level_of`. Which levels gain?

# %%
# exercise 3.4
def best_of_each_level(scores, k):
    """Scores (A,) of one image -> indices of the k best of every level, or of all where a level has fewer."""
    return None


# %%
# check 3.4
chosen = best_of_each_level(logits[0], 60)
if chosen is None:
    print("exercise 3.4: not done yet")
else:
    assert len(set(chosen.tolist())) == len(chosen) == sum(min(60, 3 * sy * sx) for sy, sx in grids)
    for n in range(5):
        mine, rest = (
            logits[0][level_of == n].topk(min(60, int((level_of == n).sum()))).values.min(),
            chosen[level_of[chosen] == n],
        )
        assert logits[0, rest].min() == mine, f"not the best of {LEVELS[n]}"
    shares = (level_of[i].bincount(minlength=5) / len(i) for i in (logits[0].topk(len(chosen)).indices, chosen))
    print(
        *(f"{name}: {' '.join(f'{v:.0%}' for v in s)}" for name, s in zip(("of all", "of each"), shares, strict=True)),
        sep="\n",
    )

# %% [markdown]
# ## References
#
# - Ren, He, Girshick, Sun: [Faster R-CNN](https://arxiv.org/abs/1506.01497), 2015. The RPN, its losses and its sampling.
# - Lin et al.: [Feature Pyramid Networks](https://arxiv.org/abs/1612.03144), 2017. An RPN on every level.
# - Lin et al.: [Focal Loss](https://arxiv.org/abs/1708.02002), 2017.
# - Loshchilov, Hutter: [AdamW](https://arxiv.org/abs/1711.05101), 2019.
# - Goyal et al.: [warm-up](https://arxiv.org/abs/1706.02677), 2017.
# - Ioffe, Szegedy: [BatchNorm](https://arxiv.org/abs/1502.03167), 2015.

# %% [markdown]
# ## Appendix
#
# How training is made fast, and checks of odd cases. Nothing later needs it.

# %% [markdown]
# ### Windows in place of maps
#
# The loss looks at $M$ anchors only, so in training the head is computed *only there*: the 3 × 3 neighbourhoods of the sampled anchors, from
# whichever level, are gathered and convolved in one go. A step then costs $M$ windows instead of all cells.

# %%
show(rpn.gather_patches, rpn._patches)

# %% [markdown]
# With stored statistics (eval mode) windows and maps must agree to the last digit that float32 carries:

# %%
head = rpn.RPNHead(channels=8, anchors_per_cell=3).eval()
with torch.no_grad():
    random_maps = [torch.randn(len(x), 8, *grid) for grid in grids]
    dense_logits, dense_deltas = head(random_maps)
    windows = rpn.gather_patches(random_maps, image_of, index, 3)
    at_windows = head.at_patches(windows, index % 3)
torch.testing.assert_close(at_windows[0], dense_logits[image_of, index])
torch.testing.assert_close(at_windows[1], dense_deltas[image_of, index])
print(f"{len(index)} windows {tuple(windows.shape)} give what the maps give")

# %% [markdown]
# ### Whose statistics BatchNorm learns
#
# The head is one for all levels, so its BatchNorm is too. Over whole maps its statistics would be mostly P2, mostly empty background; over the
# windows they are those of the sampled positions of all levels together, which is what the loss is about. Inference applies the stored ones
# everywhere.

# %%
cells = torch.tensor([sy * sx for sy, sx in grids])
sampled = level_of[index].bincount(minlength=5)
report.markdown(
    [
        {
            "level": name,
            "share of all cells": f"{n / cells.sum():.1%}",
            "share of the sample": f"{s / sampled.sum():.1%}",
        }
        for name, n, s in zip(LEVELS, cells, sampled, strict=True)
    ]
)

# %% [markdown]
# Do they serve inference, where the head sees whole maps? Three RPNs each, 240 scenes, 6 epochs (`python -m benchmarks.batchnorm`): with
# statistics over the sampled positions AR@100 was 0.519 on average (0.513 to 0.529), with statistics over whole maps 0.479 (0.474 to 0.481).

# %% [markdown]
# By hand, on six windows:

# %%
torch.manual_seed(0)
head = rpn.RPNHead(channels=4, anchors_per_cell=3).train()
hidden = conv2d(torch.randn(6, 4, 3, 3), head.conv.weight, head.conv.bias)[:, :, 0, 0]  # M = 6 windows: (6, 4)
by_hand = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + head.norm.eps).sqrt()
torch.testing.assert_close(head.norm(hidden[:, :, None, None])[:, :, 0, 0], by_hand)
torch.testing.assert_close(head.norm.running_mean, 0.1 * hidden.mean(0))  # momentum 0.1, starting at 0

# %% [markdown]
# ### Is every negative as likely as every other?
#
# `lib` shuffles only where there are few; of many thousand it draws numbers until enough of them differ. Ten of 100, two thousand times:
# each should come 200 times, give or take $\sqrt{2000 \cdot 0.1 \cdot 0.9} = 13$.

# %%
show(matching._choose)
times = torch.cat([sample(torch.full((100,), NEGATIVE), 10, 0.5) for _ in range(2000)]).bincount(minlength=100).float()
print(f"mean {times.mean():.0f}, standard deviation {times.std():.0f}")
assert times.mean() == 200 and 9 < times.std() < 18

# %% [markdown]
# ### Odd cases
#
# An image without objects gives a loss of the negatives alone, finite, and its gradient flows.

# %%
empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
head = rpn.RPNHead(channels, 3)
batch = rpn.sample_rpn([m[:1].float().cpu() for m in maps], anchors, [empty], content, config.rpn)
losses = rpn.rpn_loss(*head.at_patches(batch["patches"], batch["ratios"]), batch["labels"], batch["deltas"])
assert float(losses["rpn_box"].detach()) == 0 and losses["rpn_objectness"].isfinite()
sum(losses.values()).backward()
assert head.conv.weight.grad.isfinite().all()

# %% [markdown]
# Proposals lie inside the content, best first, never more than $N$, in both modes. `decode` undoes `encode`.

# %%
for training, limit in ((True, config.rpn.train.post_nms), (False, config.rpn.test.post_nms)):
    for p in rpn.propose(logits, deltas, anchors, content, config.rpn, training):
        assert len(p["boxes"]) <= limit and boxes.inside(p["boxes"], *content).all()
        assert (p["scores"].diff() <= 0).all() and (p["scores"] >= 0).all() and (p["scores"] <= 1).all()
corner = torch.rand(100, 2) * 100
random_boxes = torch.cat([corner, corner + 1 + torch.rand(100, 2) * 50], dim=1)
again = boxes.decode(boxes.encode(random_boxes, random_boxes.flip(0)), random_boxes.flip(0))
torch.testing.assert_close(again, random_boxes, atol=1e-3, rtol=1e-4)
print("all checks hold")

# %% [markdown]
# ## The browser
#
# Every validation image (on GitHub a picture of the first). Pull *NMS of proposals: IoU* to 1: nothing is suppressed. Pull it down: more and
# more boxes turn dotted, suppressed by better ones. Under *stage*, *1 anchors* is where they came from.

# %%
from lib.notebook import browser

browser.StageBrowser(model, val, stage="rpn")
