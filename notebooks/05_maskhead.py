# %% [markdown]
# # 5 · The mask head: which pixels?
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-from-its-parts/maskrcnn-from-its-parts/blob/main/notebooks/05_maskhead.ipynb)
#
# **The claim.** Six layers turn the features in a box into 28 × 28 probabilities for each class. Those of the box's own class, read at the
# centres of pixels, outline the object in the image.
#
# **Run time** (demo profile, two recent CPU cores): two minutes, one of them to train. What is missing of notebooks 3 and 4 is trained first.
#
# **Inputs → outputs.** `data/`, `rpn` and `boxhead` of `weights/<profile>/` → `weights/<profile>/maskhead.safetensors`, its learning curve, and
# `figures/05_*`.
#
# §7.2 and so on are sections of the course's assignment sheet. It is not in the repository; what it asks for is said here.

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
# ## Where this part sits
#
# The box head says *what* is *where*. The mask head trusts it and answers one question: *which pixels* of the box are the object's?
# After this notebook you can
#
# 1. follow a box through the six layers and count their parameters;
# 2. say which boxes train the mask head, and make the target of each;
# 3. say how good a mask of 28 × 28 cells can be;
# 4. work out the loss and its gradient, and say why classes do not compete;
# 5. paste a mask into the image with two matrix products;
# 6. tell the errors of the box, of the grid and of the head apart.

# %% cellView="form"
# @title Imports, two drawing helpers, and the whole system with this notebook's part lit
import copy
import functools
import math

import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from torch.testing import assert_close

from lib import boxhead, maskhead
from lib.boxes import clip, iou_matrix
from lib.data.reader import CourseDataset
from lib.machine.device import device
from lib.machine.folders import paths
from lib.notebook import diagrams, draw, report
from lib.notebook.teach import as_seen, followed, show
from lib.roi_align import roi_align
from lib.scores.evaluate import evaluate_model
from lib.training import stages
from lib.training.checkpoint import load_model
from lib.training.history import read_history
from lib.training.loop import train_until


def crop(ax, box):
    """Show the box alone, stretched to a square as RoIAlign stretches it."""
    ax.set(xlim=box[[0, 2]].tolist(), ylim=box[[3, 1]].tolist(), aspect="auto", box_aspect=1)


def grid(ax, values, title, shift=(0.5, 0.5)):
    """Numbers between 0 and 1 in their cells, as far to the right and down."""
    draw.heatmap(ax, values).set_title(title, fontsize=10)
    for (y, x), value in zip(torch.cartesian_prod(*map(torch.arange, values.shape)), values.flatten(), strict=True):
        colour = "black" if value > 0.6 else "white"
        ax.text(x + shift[0], y + shift[1], f"{float(value):.4g}", ha="center", va="center", color=colour)


CLASS_NAMES = config.class_names  # by label; 0 is background
diagrams.system("maskhead")

# %% [markdown]
# ## The image we follow
#
# All six notebooks follow one validation image from file to mask. Notebook 4 hands it over with boxes, classes and scores:

# %%
WEIGHTS = train_until("boxhead", config, DATA, WEIGHTS)
DEVICE = device()
model = load_model(WEIGHTS, "boxhead", config).to(DEVICE)
train, val = (CourseDataset(DATA, split, config.data) for split in ("train", "val"))
i = followed(val)
picture, truth = val[i]
given = model(picture[None].to(DEVICE), "boxhead")[0]

# %% cellView="form"
# @title What this cell draws: the boxes we are given, and for each object what the mask head must answer
objects = len(truth["boxes"])
asked = (roi_align(truth["masks"][:, None].float(), truth["boxes"], torch.arange(objects), 28)[:, 0] >= 0.5).float()
fig, axes = plt.subplots(1, 5, figsize=(12, 2.8), layout="constrained", width_ratios=(4, 2.4, 2.4, 2.4, 2.4))
draw.masks(draw.image(axes[0], picture), truth["masks"], kind="truth", alpha=0)
draw.detections(axes[0], given, CLASS_NAMES).set_title("given: boxes, classes, scores", fontsize=10)
for ax in axes[1 + 2 * objects :]:
    ax.axis("off")
for g, (left, right) in enumerate(zip(axes[1::2], axes[2::2], strict=True)):
    if g < objects:
        name = CLASS_NAMES[truth["labels"][g]]
        crop(draw.masks(draw.image(left, picture), truth["masks"][g][None], kind="truth", alpha=0), truth["boxes"][g])
        left.set_title(f"the {name}'s box", fontsize=10)
        draw.heatmap(right, asked[g]).set_title("asked: 28 × 28 (yellow: 1)", fontsize=10)
draw.legend(axes[0], {"truth": "outline of an object"})
_ = save_figure(fig, "05_followed")
plt.show()

width, height = (truth["boxes"][:, 2:] - truth["boxes"][:, :2]).mT
near = iou_matrix(truth["boxes"], given["boxes"].cpu()).amax(dim=1).tolist() if len(given["boxes"]) else []
near = " and ".join(f"{v:.2f}" for v in near)
Markdown(
    "Each true box is stretched to a square, "
    + " and ".join(
        f"the {CLASS_NAMES[n]}'s {w:.0f} × {h:.0f} pixels to cells of {w / 28:.1f} × {h / 28:.1f}"
        for n, w, h in zip(truth["labels"], width.tolist(), height.tolist(), strict=True)
    )
    + ". "
    + (f"The boxes we are given are near these, with an IoU of {near}. " if near else "")
    + "Where a second object reaches into a box, its pixels are background there."
)

# %% [markdown]
# ## Symbols
#
# | symbol | meaning |
# |---|---|
# | $D$ | boxes that train the mask head, or detections |
# | $K'$, $N'$ | an image's boxes before and after NMS (§6.5) |
# | $C$, $F$ | classes of objects; channels of a feature map |
# | $X$, $b$, $T$ | the feature map of a box's level; the box; an object's true mask, 0 or 1 at each pixel |
# | $P$, $m$ | cells along a side of a pooled region, 14, and of a mask, 28 |
# | $z_{cij}$, $\hat y_{cij}$ | logit of class $c$ at cell $(i, j)$, and its probability $\sigma(z_{cij})$ |
# | $y_{ij}$ | target, 0 or 1; $[\,\cdot\,]$ is 1 where what it holds is true, else 0 |
#
# Boxes are `xyxy` in pixels; pixel $i$ covers $[i, i + 1)$, so its centre is at $i + \frac12$.

# %% [markdown]
# ## The idea
#
# The box head *flattens* its 7 × 7 cells to one vector, and its output has no places left: a class is one answer for the whole box. A mask is an answer
# for every place. So the head of [Mask R-CNN](https://arxiv.org/abs/1703.06870) is convolutional from end to end: a grid goes in and a grid
# comes out, and cell $(i, j)$ of both shows the same place of the box $b$.
#
# With $f$ for the six layers,
#
# $$\hat y = \sigma\big(f(\mathrm{RoIAlign}_{14}(X, b))\big) \in [0, 1]^{C \times 28 \times 28}$$
#
# Of the $C$ masks only one is read: in training that of the object's class; in testing, where nobody knows it, that of the class which the box head has chosen.

# %%
fig = diagrams.mask_head(config)
_ = save_figure(fig, "05_mask_head")
fig

# %% [markdown]
# Pooled to 14 × 14, not 7 × 7: a class can be told from a coarse view, an outline cannot. Not at once to 28 × 28: the 3 × 3 convolutions would cost four times as
# much. What 28 cells are good for is measured below.

# %% [markdown]
# ## The network (§7.2)
#
# A convolution also uses the same few weights at every cell. **Predict**: how many numbers (weights and biases) does the first 3 × 3 convolution learn? And
# how many *weights* would a single fully connected layer have, from the pooled features straight to the $C$ masks?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
channels, hidden, classes = config.backbone.channels, config.maskhead.hidden, len(config.classes)
first_convolution = 3 * 3 * channels * hidden + hidden
fully_connected = (14 * 14 * channels) * (28 * 28 * classes)
### END SOLUTION

# %% [markdown]
# The check counts those of the head that `lib` builds, layer by layer:

# %%
torch.manual_seed(0)
head = maskhead.MaskHead(config.backbone.channels, config.maskhead.hidden, len(config.classes))
x, rows = torch.randn(5, config.backbone.channels, 14, 14), []  # D = 5 boxes
for layer in head.layers:
    x = layer(x)
    count, shape = sum(p.numel() for p in layer.parameters()), " × ".join(map(str, x.shape))
    if count:
        rows.append({"layer": type(layer).__name__, "kernel": layer.kernel_size[0], "out": shape, "learns": count})
total = sum(row["learns"] for row in rows)
assert rows[0]["learns"] == first_convolution and x.shape == (5, len(config.classes), 28, 28)
assert fully_connected == math.prod(torch.zeros(5, config.backbone.channels, 14, 14).shape[1:]) * x[0].numel()
display(report.markdown(rows))
Markdown(
    f"In all {total:,}, and {sum(row['learns'] for row in rows[:4]) / total:.0%} of them in the four 3 × 3 "
    f"convolutions. A fully connected layer alone would have {fully_connected / total:,.0f} times as many."
)

# %% [markdown]
# What does a cell of the mask know of its surroundings? Each 3 × 3 convolution looks one cell further to both sides, so four of them see $1 + 4 \cdot 2 = 9$ columns
# of the 14. With all weights positive, whatever has a say in the mask's cell (14, 14) has a gradient:

# %%
positive = copy.deepcopy(head)
for p in positive.parameters():
    p.data.abs_()
pooled = torch.ones(1, config.backbone.channels, 14, 14, requires_grad=True)
positive(pooled)[0, 0, 14, 14].backward()
say = pooled.grad[0].abs().sum(dim=(0, 1)) > 0
print("".join("■" if s else "□" for s in say.tolist()))
assert int(say.sum()) == 9

# %% [markdown]
# Nine of the 14 columns and rows: a leg can be told from a post by what it hangs on.

# %% [markdown]
# ### Deconvolution by hand
#
# The only new layer. With a 2 × 2 kernel and stride 2 it is easily said: each cell of the input becomes a 2 × 2 block of the output, the kernel times
# the cell's value.
#
# $$\begin{pmatrix}1 & 2\\ 3 & 4\end{pmatrix} \text{ with the kernel } \begin{pmatrix}1 & 0\\ 0 & 10\end{pmatrix} \text{ gives }
# \begin{pmatrix}1 & 0 & 2 & 0\\ 0 & 10 & 0 & 20\\ 3 & 0 & 4 & 0\\ 0 & 30 & 0 & 40\end{pmatrix}$$

# %%
values, kernel = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 0], [0, 10]])
doubled = F.conv_transpose2d(values[None, None], kernel[None, None], stride=2)[0, 0]
print(doubled)
assert_close(doubled, torch.kron(values, kernel))


def naive_deconvolution(x, weight, bias):
    """x (F, 14, 14), weight (F, F', 2, 2), bias (F',) -> (F', 28, 28)."""
    out = torch.zeros(weight.shape[1], 28, 28)
    for dy in (0, 1):
        for dx in (0, 1):  # this corner of every block
            out[:, dy::2, dx::2] = torch.einsum("fyx,fo->oyx", x, weight[:, :, dy, dx]) + bias[:, None, None]
    return out


# %% [markdown]
# ### The part: `lib.maskhead.MaskHead`
#
# The last layer starts with tiny weights, so that every cell of every mask starts undecided, at $\sigma(0) = \frac12$.

# %%
show(maskhead.MaskHead)
deconvolution, x = head.layers[8], torch.randn(config.maskhead.hidden, 14, 14)
with torch.no_grad():
    assert_close(
        deconvolution(x[None])[0], naive_deconvolution(x, deconvolution.weight, deconvolution.bias), atol=1e-4, rtol=0
    )

# %% [markdown]
# ## The boxes that train it (§6.5)
#
# In testing the mask head gets detections. To *learn* it needs boxes whose object is known. Why not the objects' own? Because detections are never
# so tight: whoever has practised on perfect boxes is lost in others. So §6.5 takes the boxes that the box head makes of the proposals, and
#
# 1. removes those that cross the image's edge (both profiles cut them at the edge instead: large objects often touch it, and would have no box left);
# 2. keeps those with an IoU above 0.5 with an object: of the others the object fills too little;
# 3. keeps the $K'$ best by score, so that NMS is quick;
# 4. applies NMS, each predicted class by itself, so that one object is not taught fifty times in one step;
# 5. keeps the $N'$ best.

# %% cellView="form"
# @title What this cell draws: one person, four boxes
person = torch.tensor([[20.0, 20, 60, 60]])
four = torch.tensor([[20.0, 20, 60, 60], [22, 20, 62, 60], [20, 20, 60, 60], [40, 20, 80, 60]])
names = ["a: person 0.90", "b: person 0.80", "c: animal 0.70", "d: person 0.85"]
fig, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
for ax, box, name in zip(axes, four, names, strict=True):
    draw.boxes(draw.image(ax, torch.ones(3, 80, 100)), box[None], "predicted", linewidth=3)
    draw.boxes(ax, person, "truth").set_title(f"{name}, {box.int().tolist()}", fontsize=9)
_ = draw.legend(axes[0], {"truth": "person", "predicted": "box"})

# %% [markdown]
# $b$ is two pixels to the right of $a$; $c$ is $a$'s box, called another class; half of $d$ is on the person. **Predict** which survive (NMS at an IoU of 0.5),
# and which class's mask $c$ then trains.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
survivors, c_trains = "ac", "person"
### END SOLUTION

# %% [markdown]
# The rule with loops:

# %%
def naive_choice(boxes, labels, scores, objects, nms_iou=0.5):
    """The rules 2 and 4; no box here crosses the edge, and there are fewer than K' and N'."""
    kept = []
    for n in sorted(range(len(boxes)), key=lambda n: -scores[n]):
        rivals = [k for k in kept if labels[k] == labels[n] and iou_matrix(boxes[[n]], boxes[[k]]) > nms_iou]
        if iou_matrix(boxes[[n]], objects).max() > 0.5 and not rivals:
            kept.append(n)
    return kept


overlap = iou_matrix(four, person)[:, 0]
print("IoU with the person:", [round(v, 3) for v in overlap.tolist()])
assert_close(overlap, torch.tensor([1, 38 / 42, 1, 1 / 3]))  # b: 38 · 40 / (3200 - 1520), d: 20 · 40 / (3200 - 800)
kept = naive_choice(four, [2, 2, 3, 2], [0.9, 0.8, 0.7, 0.85], person)
assert "".join("abcd"[n] for n in kept) == survivors

# %% [markdown]
# $b$ falls to $a$, $d$ overlaps too little, and $c$ meets no rival of its class. It trains the *person's* mask: rule 2 has matched it with the person,
# and what is in a box does not depend on what the box head calls it.

# %% [markdown]
# ### The part: `lib.boxhead.refine_for_training`

# %%
show(boxhead.refine_for_training)
probabilities = torch.tensor([[0.05, 0, 0.9, 0.05], [0.1, 0, 0.8, 0.1], [0.1, 0, 0.2, 0.7], [0.05, 0, 0.85, 0.1]])
one = {"boxes": person, "labels": torch.tensor([2])}
chosen = boxhead.refine_for_training(  # deltas of zero leave a box where it is; softmax undoes the logarithm
    probabilities.log(), torch.zeros(4, 3, 4), [four], [one], (80, 100), config.boxhead
)[0]
assert_close(chosen["boxes"], four[kept])
assert {("vehicle", "person", "animal")[n - 1] for n in chosen["labels"]} == {c_trains}


# %% [markdown]
# ### On the image we follow
#
# The frozen parts (backbone with its pyramid, RPN, box head) in the order in which the stage runs them, for that image and a few more:

# %%
@torch.no_grad()
def boxes_that_train(dataset, indices):
    """These images, what the frozen parts make of them, and in each the boxes that train the mask head."""
    s = as_seen(dataset, indices, config)
    s.targets = [{key: t[key].to(DEVICE) for key in ("boxes", "labels", "masks")} for t in s.targets]
    s.features = model.features(s.x.to(DEVICE))
    s.proposals = [p["boxes"] for p in model.propose(s.features, s.content, training=True)]
    s.outputs = model.classify(s.features, s.proposals)
    s.chosen = boxhead.refine_for_training(*s.outputs, s.proposals, s.targets, s.content, config.boxhead)
    return s


seen = boxes_that_train(val, [i, *(n for n in range(len(val)) if n != i)][:8])

# %% cellView="form"
# @title What this cell draws: proposals, and the boxes that train the mask head
ours, goal = seen.chosen[0], seen.targets[0]
fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
draw.boxes(draw.image(axes[0], seen.pictures[0]), seen.proposals[0], "predicted", linewidth=0.6)
draw.masks(draw.image(axes[1], seen.pictures[0]), goal["masks"], kind="truth", alpha=0.2)
draw.boxes(axes[1], ours["boxes"], "positive", [CLASS_NAMES[n] for n in ours["labels"]], linewidth=2.2)
axes[0].set_title(f"{len(seen.proposals[0])} proposals of the RPN", fontsize=10)
axes[1].set_title(f"{len(ours['boxes'])} boxes that train the mask head", fontsize=10)
draw.legend(axes[0], {"predicted": "proposal"})
draw.legend(axes[1], {"truth": "object", "positive": "box that trains, and its object's class"})
_ = save_figure(fig, "05_training_boxes")
plt.show()

tight = iou_matrix(ours["boxes"], goal["boxes"]).amax(dim=1).tolist()
Markdown(
    f"Left over: {len(tight)}, with an IoU of {', '.join(f'{v:.2f}' for v in tight) or 'nothing'} with their objects. "
    + ("None is perfect, and none need be: those of testing will not be either." if max(tight, default=0) < 1 else "")
)

# %% [markdown]
# ## The target (§7.3)
#
# The target is the part of the object's mask $T$ inside the box, on $m \times m$ cells. Cutting along whole pixels would shift the outline by up to
# half a pixel; so RoIAlign (notebook 4) reads the mask as it reads the features: 2 × 2 points a cell, each bilinear, then their mean.
#
# $$y_{ij} = \big[\,\mathrm{RoIAlign}_m(T, b)_{ij} \ge \tfrac12\,\big]$$

# %% [markdown]
# A mask of 4 × 4 pixels, the box around all of it, $m = 2$: the 16 points fall on the centres of pixels, so that a cell's mean is the share of its pixels that are
# on.

# %% cellView="form"
# @title What this cell draws: the mask with its sampling points, the means, the target
small = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0]], dtype=torch.uint8)
shares = small.view(2, 2, 2, 2).float().mean(dim=(1, 3))
points = torch.arange(4) + 0.5


def draw_target(box, means, shift):
    """The mask, the box and its sampling points; the means of the cells; the target."""
    fig, axes = plt.subplots(1, 3, figsize=(8.5, 2.9), layout="constrained")
    grid(axes[0], small, "mask, box and points", shift)
    draw.boxes(axes[0], torch.tensor([box]), "predicted", linewidth=3)
    x, y = (box[k] + (box[k + 2] - box[k]) * points / 4 for k in (0, 1))
    axes[0].scatter(*torch.meshgrid(x, y, indexing="xy"), s=18, color="white", edgecolor="black", zorder=3)
    grid(axes[1], means, "mean of a cell's four points")
    grid(axes[2], (means >= 0.5).float(), "target: at least one half")


draw_target([0.0, 0, 4, 4], shares, (0.8, 0.8))

# %% [markdown]
# Now the box $(0.5, 0, 2.5, 2)$: cells of one pixel, half a pixel out of step. Its lower right cell has its points at $x = 1.75$ and $2.25$, between
# the centres of two columns: rows 1 and 2 read 1 there, row 0 reads $\frac12$ on average. At $y = 1.25$ a quarter of row 0 is mixed in, $0.875$; at $y = 1.75$
# nothing, $1$. Mean: $0.9375$. **Predict** the target, 2 × 2.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
shifted_target = [[0, 1], [0, 1]]  # the means are 0.0625, 0.5625, 0.4375 and 0.9375
### END SOLUTION

# %% [markdown]
# RoIAlign with loops, the check, and what the means are:

# %%
def naive_read(mask, y, x):
    y, x = (min(max(v - 0.5, 0), n - 1) for v, n in ((y, len(mask)), (x, len(mask[0]))))  # from edges to centres
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, len(mask) - 1), min(x0 + 1, len(mask[0]) - 1)
    top = mask[y0][x0] * (x0 + 1 - x) + mask[y0][x1] * (x - x0)
    bottom = mask[y1][x0] * (x0 + 1 - x) + mask[y1][x1] * (x - x0)
    return top * (y0 + 1 - y) + bottom * (y - y0)


def naive_cells(mask, box, m):
    x1, y1, x2, y2 = box
    ys = [y1 + (y2 - y1) * (k + 0.5) / (2 * m) for k in range(2 * m)]  # two rows of points a cell
    xs = [x1 + (x2 - x1) * (k + 0.5) / (2 * m) for k in range(2 * m)]
    return torch.tensor([[naive_read(mask, y, x) for x in xs] for y in ys]).view(m, 2, m, 2).mean(dim=(1, 3))


assert_close(naive_cells(small.tolist(), (0, 0, 4, 4), 2), shares)
shifted = naive_cells(small.tolist(), (0.5, 0, 2.5, 2), 2)
assert (shifted >= 0.5).int().tolist() == shifted_target
draw_target([0.5, 0, 2.5, 2], shifted, (0.25, 0.5))

# %% [markdown]
# The lower left cell is half on, yet stays 0: its points also feel the row above.

# %% [markdown]
# ### The part: `lib.maskhead.mask_targets`
#
# The "feature map" is now the stack of masks, one channel each, and `matched` says which mask belongs to which box.

# %%
show(maskhead.mask_targets)
first = torch.zeros(1, dtype=torch.long)
for corners in ((0, 0, 4, 4), (0.5, 0, 2.5, 2), (1, 0.3, 3.7, 4)):
    by_hand = (naive_cells(small.tolist(), corners, 2) >= 0.5).float()
    assert_close(maskhead.mask_targets(torch.tensor([corners]).float(), first, small[None], 2)[0], by_hand)
means = naive_cells(truth["masks"][0].tolist(), truth["boxes"][0].tolist(), 28)
sure = (means - 0.5).abs() > 1e-4  # at one half itself, the last digit decides
real = maskhead.mask_targets(truth["boxes"], torch.arange(objects), truth["masks"])
assert_close(real[0][sure], (means[sure] >= 0.5).float())
assert_close(real, asked)  # those of the first picture

# %% cellView="form"
# @title What this cell draws: boxes that train, the image we follow first, with their targets
places = [(n, k) for n, one in enumerate(seen.chosen) for k in range(len(one["boxes"]))]  # image and place of each box
fig, axes = plt.subplots(2, 6, figsize=(12, 4.2), layout="constrained")
for column, (n, k) in zip(axes.T, places, strict=False):
    box, matched = (seen.chosen[n][key][k].cpu() for key in ("boxes", "matched"))
    mask = seen.targets[n]["masks"].cpu()[matched][None]
    y = maskhead.mask_targets(box[None], first, mask)[0]
    steps, view = (torch.arange(28) + 0.5) / 28, draw.image(column[0], seen.pictures[n])
    view.contour(*(box[e] + steps * (box[e + 2] - box[e]) for e in (0, 1)), y, [0.5], colors="white", linewidths=3)
    draw.masks(view, mask, kind="truth", alpha=0.2)
    crop(column[0], box)
    column[0].set_title(CLASS_NAMES[seen.chosen[n]["labels"][k]], fontsize=10)
    draw.heatmap(column[1], y)
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
draw.legend(axes[1, 0], {"truth": "outline of the object"})
fig.suptitle(
    "above: the box, the object, and in white the outline of its target; below: the target (yellow: 1)", fontsize=10
)
_ = save_figure(fig, "05_targets")

# %% [markdown]
# Both outlines coincide up to a cell's size. Where a box cuts an object, so is its target cut: a mask cannot reach out of its box.

# %% [markdown]
# The sheet aims at about 100 boxes an image, so that each step has much to learn from. What is left of the proposals, on images of the train split?

# %% cellView="form"
# @title What this cell draws: boxes after each rule, and how full their targets are
left, share, counted = torch.zeros(4), {n: [] for n in range(1, len(CLASS_NAMES))}, min(48, len(train))
for start in range(0, counted, 8):
    s = boxes_that_train(train, range(start, min(start + 8, counted)))
    made = boxhead._best_class(*s.outputs, s.proposals)  # a box for each proposal, of its best class
    for (boxes, *_), target, kept in zip(made, s.targets, s.chosen, strict=True):
        boxes = clip(boxes, *s.content)
        on_object = (iou_matrix(boxes, target["boxes"]) > boxhead.MASK_POSITIVE_IOU).any(dim=1).sum()
        left += torch.tensor([len(boxes), int(on_object), len(kept["boxes"]), len(target["boxes"])])
        y = maskhead.mask_targets(kept["boxes"], kept["matched"], target["masks"])
        for label, area in zip(kept["labels"].tolist(), y.mean(dim=(1, 2)).tolist(), strict=True):
            share[label].append(area)

steps = ["proposals", "on an object", "after NMS: these train"]
fig, axes = plt.subplots(1, 2, figsize=(11, 2.8), layout="constrained")
bars = axes[0].barh(steps[::-1], (left[:3] / counted).flip(0).tolist(), color=draw.COLOURS["positive"])
axes[0].bar_label(bars, fmt="%.1f", padding=3)
axes[0].set(xlabel="boxes an image (mean)", xlim=(0, 1.2 * float(left[0]) / counted + 1))
for n in draw.most_frequent([n for n, areas in share.items() for _ in areas]):
    style = {"histtype": "step", "linewidth": 2, "color": draw.class_colour(n)}
    axes[1].hist(share[n], bins=10, range=(0, 1), label=f"{CLASS_NAMES[n]}: {len(share[n])} boxes", **style)
axes[1].set(xlabel="share of the target that is 1", ylabel="boxes")
axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
_ = save_figure(fig, "05_targets_counted")
plt.show()

_, on_object, final, real = (left / counted).tolist()
limits = config.boxhead.train
areas = [area for of_class in share.values() for area in of_class]
fullest = max((n for n in share if share[n]), key=lambda n: sum(share[n]) / len(share[n]), default=0)
mean = f"{sum(areas) / max(len(areas), 1):.0%}"
Markdown(
    f"{on_object:.1f} boxes an image lie on an object{', most of them near copies' if final < on_object / 2 else ''}; "
    f"with K′ = {limits.pre_nms} and N′ = {limits.post_nms} NMS leaves {final:.1f} an image, "
    f"{final / max(real, 1e-6):.1f} an object.{' About 100 would take far more objects.' if final < 50 else ''} "
    f"Each box teaches 784 cells. On average {mean} of a target is 1"
    + (f", most for the class {CLASS_NAMES[fullest]}: its objects fill their boxes best." if fullest else ".")
)

# %% [markdown]
# ## Pasting (§7.5)
#
# The way back: each pixel's probability is read bilinearly from the mask. Along one axis, a box from $x_1$ to $x_2$ holds $m$ cells. The centre of pixel $p$
# lies, in cells from the centre of cell 0, at
#
# $$q_p = \frac{p + \frac12 - x_1}{x_2 - x_1}\, m - \frac12, \qquad \text{and cell } k \text{ weighs } \; w_{pk} = \max(0,\; 1 - |q_p - k|).$$
#
# A cell's weight at a pixel is its weight along $y$ times that along $x$. So all pixels at once are two matrix products, $V \hat Y W^\top$, with $V = (w_{pk})$
# of the rows and $W$ of the columns.

# %% [markdown]
# A 2 × 2 mask into a 4 × 4 image, the box around all of it: $q = -0.25,\ 0.25,\ 0.75,\ 1.25$. **Predict** $V$, 4 × 2. And what is left, in the corner pixel, of a mask
# that is 1 everywhere?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
V = torch.tensor([[0.75, 0], [0.75, 0.25], [0.25, 0.75], [0, 0.75]])
corner_pixel = 0.75**2  # the first row's weights add up to 0.75, as if zeros lay around the mask
### END SOLUTION

# %% [markdown]
# With loops, a pixel and a cell at a time, against $V \hat Y V^\top$:

# %%
def naive_paste(mask, box, height, width):
    (x1, y1, x2, y2), m, out = box, len(mask), torch.zeros(height, width)
    for i in range(height):
        for j in range(width):
            y, x = (i + 0.5 - y1) / (y2 - y1) * m - 0.5, (j + 0.5 - x1) / (x2 - x1) * m - 0.5
            for k in range(m):
                for n in range(m):
                    out[i, j] += max(0, 1 - abs(y - k)) * max(0, 1 - abs(x - n)) * mask[k][n]
    return out


Y = torch.tensor([[1.0, 0], [1, 1]])
assert_close(naive_paste(Y, (0, 0, 4, 4), 4, 4), V @ Y @ V.T)
assert_close(float((V @ torch.ones(2, 2) @ V.T)[0, 0]), corner_pixel)
fig, axes = plt.subplots(1, 3, figsize=(8.5, 2.9), layout="constrained")
grid(axes[0], Y, "mask (2 × 2)")
grid(axes[1], V @ Y @ V.T, "$V\\,\\hat Y\\,V^{\\top}$ (4 × 4)")
grid(axes[2], (V @ Y @ V.T >= 0.5).float(), "at least 0.5")

# %% [markdown]
# ### The part: `lib.maskhead.paste_masks`
#
# All masks at once, as two batched products. Outside its box the weights add up to less than one half, so at a threshold of 0.5 nothing need be cut off.
# Inside, they fall from 1, half a cell from the box's edge, to one half at it: there a sure mask loses its corners, an unsure one a strip.

# %%
show(maskhead.paste_masks, maskhead._interpolation)
assert_close(maskhead._interpolation(torch.zeros(1), torch.full((1,), 4.0), 4, 2)[0], V)
for corners in ((0.0, 0, 4, 4), (1.3, 0.2, 7.9, 5.5), (-2, 1, 6, 9)):  # the last crosses the edge
    by_lib = maskhead.paste_masks(Y[None], torch.tensor([corners]), (6, 8), 0.5)[0]
    assert_close(by_lib.bool(), naive_paste(Y, corners, 6, 8) >= 0.5)

# %% [markdown]
# ## How good can it get?
#
# The best answer to the loss is the target itself. Pasted back into the image it is not quite the mask: its IoU with the true mask we call the **ceiling** of the
# 0/1 target. (No bound for a network: graded probabilities can place an outline *inside* a cell.) **Predict**: of two objects of the same shape, one large and one
# small, whose outline is further off, in pixels?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
further_off = "large"  # or "small"
### END SOLUTION

# %% [markdown]
# For objects of the train split, with 14, 28 and 56 cells; and with 28 if the means are not rounded to 0 and 1. How far an outline is off: wrong pixels for each
# pixel of the true outline.

# %%
SIDES, sizes, unrounded = (14, 28, 56), [], []
ceilings, offs = {m: [] for m in SIDES}, {m: [] for m in SIDES}
for n in range(min(80, len(train))):
    _, t = train[n]
    true, corners = t["masks"].bool(), t["boxes"]
    sizes += (corners[:, 2:] - corners[:, :2]).prod(dim=1).sqrt().tolist()
    around = torch.tensor([max(len(draw._edges(mask.numpy())), 1) for mask in true])
    for m in SIDES:
        ideal = maskhead.mask_targets(corners, torch.arange(len(corners)), t["masks"], m)
        back = maskhead.paste_masks(ideal, corners, true.shape[1:]).bool()
        ceilings[m] += ((back & true).sum((1, 2)) / (back | true).sum((1, 2)).clamp(min=1)).tolist()
        offs[m] += ((back ^ true).sum((1, 2)) / around).tolist()
    means = roi_align(t["masks"][:, None].float(), corners, torch.arange(len(corners)), 28)[:, 0]
    back = maskhead.paste_masks(means, corners, true.shape[1:]).bool()
    unrounded += ((back & true).sum((1, 2)) / (back | true).sum((1, 2)).clamp(min=1)).tolist()
sizes, off = torch.tensor(sizes), torch.tensor(offs[28])
large = sizes >= sizes.median()
assert (off[large].mean() > off[~large].mean()) == (further_off == "large")

# %% cellView="form"
# @title What this cell draws: the ceiling, and how far the outline is off, by size
order = sizes.argsort()
thirds = [part for part in order.tensor_split(3) if len(part)]
names = [f"{sizes[part].min():.0f} to {sizes[part].max():.0f} px\n{len(part)} objects" for part in thirds]
fig, axes = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
for number, m in enumerate(SIDES):
    for ax, values in zip(axes, (torch.tensor(ceilings[m]), torch.tensor(offs[m])), strict=True):
        heights = [float(values[part].mean()) for part in thirds]
        place = [k + 0.27 * (number - 1) for k in range(len(thirds))]
        bars = ax.bar(place, heights, 0.25, color=draw.LINES[2 * number], label=f"{m} × {m} cells")
        ax.bar_label(bars, fmt="%.2f", fontsize=8)
for ax, title in zip(axes, ("ceiling: IoU of the pasted target", "outline off by, in pixels"), strict=True):
    ax.set_xticks(range(len(thirds)), names)
    ax.set_title(title, fontsize=10)
    ax.margins(y=0.15)
    ax.set_xlabel("side of a square as large as the object's box")
axes[1].legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
_ = save_figure(fig, "05_ceiling")
plt.show()

ceiling = {m: float(torch.tensor(ceilings[m]).mean()) for m in SIDES}
near, far = (float(torch.tensor(offs[28])[part].mean()) for part in (thirds[0], thirds[-1]))
low, high = (float(torch.tensor(ceilings[28])[part].mean()) for part in (thirds[0], thirds[-1]))
graded = float(torch.tensor(unrounded).mean())
assert ceiling[14] < ceiling[28] < ceiling[56] and ceiling[28] < graded
little = "differ little" if abs(high - low) < 0.03 else "differ"
Markdown(
    f"With 28 × 28 cells the ceiling is **{ceiling[28]:.3f}**. In pixels the largest third is off by {far:.2f}, the "
    f"smallest by {near:.2f}: a cell is a share of its box. IoU, too, is relative to the object, so in that they "
    f"{little}: {high:.3f} and {low:.3f}. 28 × 28 is too coarse for what is large, but the eye sees it, and measures "
    f"of the outline, more than IoU. Twice the cells would raise the ceiling to {ceiling[56]:.3f}, for four times "
    f"the numbers; half as many leave {ceiling[14]:.3f}. But the 28 × 28 means, pasted before they are rounded to 0 and "
    f"1, reach {graded:.3f}: {(graded - ceiling[28]) / (1 - ceiling[28]):.0%} of what the target loses is the rounding's."
)

# %% [markdown]
# ## The loss (§7.3, §7.4)
#
# Binary cross entropy at each cell, on the mask of the true class $c$ alone, averaged over cells and boxes:
#
# $$L = -\frac{1}{D\,m^2} \sum_{d,i,j} \big[ y_{dij} \log \hat y_{dcij} + (1 - y_{dij}) \log (1 - \hat y_{dcij}) \big], \qquad
# \frac{\partial L}{\partial z_{dcij}} = \frac{\hat y_{dcij} - y_{dij}}{D\,m^2}$$

# %% [markdown]
# A person, $m = 2$: target $\begin{pmatrix}1 & 0\\ 0 & 1\end{pmatrix}$, predicted $\begin{pmatrix}0.9 & 0.2\\ 0.1 & 0.6\end{pmatrix}$. The masks for
# vehicle and animal in the same box are as wrong as can be. **Predict** the loss, and the gradient of a logit of the animal's mask.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
loss_by_hand = -(math.log(0.9) + math.log(0.8) + math.log(0.9) + math.log(0.6)) / 4
gradient_of_the_animal = 0.0
### END SOLUTION

# %% [markdown]
# The sum of the formula term by term, then `lib.maskhead.mask_loss`. That one works on logits, so as never to take the logarithm of a rounded 0.

# %%
show(maskhead.mask_loss, maskhead.class_masks)


def naive_loss(probability, labels, targets):
    terms = []
    for masks, label, target in zip(probability, labels, targets, strict=True):
        for p, y in zip(masks[label - 1].flatten(), target.flatten(), strict=True):
            terms.append(-(p.log() if y == 1 else (1 - p).log()))
    return sum(terms) / len(terms)


toy_target = torch.tensor([[[1.0, 0], [0, 1]]])  # (D, m, m), D = 1
toy = torch.tensor([[[[0.01, 0.99], [0.99, 0.01]], [[0.9, 0.2], [0.1, 0.6]], [[0.01, 0.99], [0.99, 0.01]]]])
logits, toy_label = toy.logit().requires_grad_(), torch.tensor([2])  # (D, C, m, m); a person
loss = maskhead.mask_loss(logits, toy_label, toy_target)["mask"]
loss.backward()
print(f"loss {loss.item():.4f}; gradients of vehicle, person, animal:\n{logits.grad[0]}")
assert_close(loss, naive_loss(toy, toy_label, toy_target))
assert math.isclose(loss.item(), loss_by_hand, abs_tol=1e-5)
assert_close(logits.grad[0, 1], (toy[0, 1] - toy_target[0]) / 4)
assert (logits.grad[0, [0, 2]] == gradient_of_the_animal).all()

# %% [markdown]
# ### Why a sigmoid for each class?
#
# With a softmax over classes at each cell, as in semantic segmentation, the masks would compete. The same target, before anything is learnt:

# %%
competing = torch.zeros(1, 3, 2, 2, requires_grad=True)  # nothing is known yet
on, off = competing.softmax(dim=1)[0, 1], 1 - competing.softmax(dim=1)[0, 1]
(-(toy_target[0] * on.log() + (1 - toy_target[0]) * off.log()).mean()).backward()
print(f"softmax: gradients of vehicle, person, animal\n{competing.grad[0]}")
assert (competing.grad[0, [0, 2]] != 0).all()

# %% [markdown]
# Now the person's cells also pull at the vehicle's and the animal's logits: the mask head would have to decide, cell by cell, what the box head has already decided for the
# whole box. In the paper's comparison the softmax costs 5.5 points of mask AP.

# %% [markdown]
# ## Train, or load what was trained
#
# **Predict** the loss before the first step, when every cell is undecided.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
first_loss = math.log(2)
### END SOLUTION

# %% [markdown]
# The stage is what you have seen: frozen parts, boxes, targets, pooled features; then the head and its loss.

# %%
show(stages.MaskHeadStage, stages.mask_samples)
torch.manual_seed(0)
samples = stages.mask_samples(model, seen.features, seen.chosen, seen.targets)
fresh = maskhead.MaskHead(config.backbone.channels, config.maskhead.hidden, len(config.classes)).to(DEVICE)
if len(samples["labels"]):
    measured = float(maskhead.mask_loss(fresh(samples["pooled"]), samples["labels"], samples["masks"])["mask"].detach())
    print(f"predicted {first_loss:.3f}, measured {measured:.3f} on {len(samples['labels'])} boxes")
    assert abs(measured - first_loss) < 0.05
everything, learning = (sum(p.numel() for p in module.parameters()) for module in (model, model.mask_head))
print(f"{learning:,} of the system's {everything:,} parameters learn; AdamW keeps {2 * learning:,} numbers for them")

# %% [markdown]
# The loop is the one that notebook 3 takes apart ([AdamW](https://arxiv.org/abs/1711.05101), warm-up, half a cosine). What is trained already is kept.

# %%
WEIGHTS = train_until("maskhead", config, DATA, WEIGHTS)
model = load_model(WEIGHTS, "maskhead", config).to(DEVICE)
history = read_history(WEIGHTS, "maskhead")

# %% cellView="form"
# @title What this cell draws: the learning curve
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
draw.curves(ax, history)
ax.axhline(math.log(2), color="grey", linewidth=1, label="ln 2: undecided")
ax.set(ylim=(0, 0.75))
ax.legend(frameon=False, fontsize=9)
_ = save_figure(fig, "05_learning_curve")
plt.show()

last = history[-1]
gap = last["val_mask"] - last["train_mask"] if "val_mask" in last else 0.0
assert last["train_mask"] < 1.05 * math.log(2)
Markdown(
    f"After epoch {len(history)} the loss is {last['train_mask']:.3f} on the train split"
    + (f" and {last['val_mask']:.3f} on val. " if "val_mask" in last else ". ")
    + ("Val lags behind: some of it is learnt by heart. " if gap > 0.02 else "No sign that it is learnt by heart. ")
    + "It cannot fall to zero: on which side of one half a cell at the outline falls, 14 × 14 features do not tell."
)

# %% [markdown]
# ## What it learnt
#
# In the boxes chosen as in training there is a target to compare with. Validation images, the one we follow first; none was trained on.

# %%
with torch.no_grad():
    every_class = model.mask_head(samples["pooled"]).sigmoid()  # (D, C, 28, 28)
predicted, wanted = maskhead.class_masks(every_class, samples["labels"]).cpu(), samples["masks"].cpu()
wrong = (predicted >= 0.5) != (wanted > 0.5)
spread = F.max_pool2d(wanted[:, None], 3, 1, 1) + F.max_pool2d(1 - wanted[:, None], 3, 1, 1)
outline = spread[:, 0] == 2  # cells with a neighbour on the other side

# %% cellView="form"
# @title What this cell draws: image, target, probability and wrong cells of seven boxes
ours = [d for d, (n, _) in enumerate(places) if n == 0]
columns = [*ours, *(d for d, (n, k) in enumerate(places) if n and k == 0)][:7]
fig, axes = plt.subplots(4, 7, figsize=(12, 7), layout="constrained", squeeze=False)
for column, d in zip(axes.T, columns, strict=False):
    n, k = places[d]
    draw.image(column[0], seen.pictures[n]).set_title(CLASS_NAMES[samples["labels"][d]], fontsize=10)
    crop(column[0], seen.chosen[n]["boxes"][k].cpu())
    for ax, values in zip(column[1:], (wanted[d], predicted[d], wrong[d].float()), strict=True):
        draw.heatmap(ax, values)
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
for ax, name in zip(axes[:, 0], ("image", "target", "probability", "wrong cells"), strict=True):
    ax.set_ylabel(name)
if places:
    fig.colorbar(axes[1, 0].images[0], ax=axes, shrink=0.5, label="0: background, or right;  1: object, or wrong")
_ = save_figure(fig, "05_probabilities")
plt.show()

at_seam = float((wrong & outline).sum() / wrong.sum().clamp(min=1))
seam, inside = (float(wrong[cells].float().mean()) if cells.any() else 0.0 for cells in (outline, ~outline))
right = float((~wrong).float().mean()) if len(wrong) else 0.0
doubt = ((predicted > 0.2) & (predicted < 0.8)).float().mean() if len(predicted) else 0.0
Markdown(
    f"Of the cells of all {len(places)} boxes, {right:.0%} are on the right side of one half. "
    f"Of the wrong ones {at_seam:.0%} lie at the target's outline, in cells on either side of it that touch the other "
    + ("side: most errors are a seam, a question of where exactly. " if at_seam > 0.5 else "side. ")
    + f"Of these cells {seam:.0%} are wrong, elsewhere {inside:.0%}. "
    + f"{doubt:.0%} of the cells are in doubt, between 0.2 and 0.8. In the last row a thin seam is a question of "
    "resolution, a filled patch one of understanding."
)

# %% [markdown]
# ### One box, a mask for each class
#
# All $C$ masks exist in each box; the one in bold is read.

# %% cellView="form"
# @title What this cell draws: the masks of three classes in boxes of these classes
three = draw.most_frequent(samples["labels"], 3)
fig, axes = plt.subplots(3, 4, figsize=(8, 6), layout="constrained", squeeze=False)
for row, label in zip(axes, three, strict=False):
    d = samples["labels"].tolist().index(label)
    n, k = places[d]
    crop(draw.image(row[0], seen.pictures[n]), seen.chosen[n]["boxes"][k].cpu())
    row[0].set_title(f"box: {CLASS_NAMES[label]}", fontsize=10)
    for other, ax in zip(three, row[1:], strict=False):
        weight = "bold" if other == label else "normal"
        draw.heatmap(ax, every_class[d, other - 1]).set_title(f"as {CLASS_NAMES[other]}", fontsize=10, weight=weight)
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
if three:
    fig.colorbar(axes[0, 1].images[0], ax=axes, shrink=0.6, label="probability")
_ = save_figure(fig, "05_three_masks")
plt.show()


def cell_iou(masks, targets):
    """Masks and targets (D, m, m) -> the IoU of each pair, in cells."""
    masks, targets = masks >= 0.5, targets >= 0.5
    return (masks & targets).sum((1, 2)) / (masks | targets).sum((1, 2)).clamp(min=1)


pairs = [(d, c) for d, n in enumerate(samples["labels"].tolist()) for c in three if c != n]
others, repeated = [every_class[d, c - 1].cpu() for d, c in pairs], [wanted[d] for d, _ in pairs]
own = float(cell_iou(predicted, wanted).mean()) if len(predicted) else 0.0
other = float(cell_iou(torch.stack(others), torch.stack(repeated)).mean()) if others else 0.0
Markdown(
    f"The mask that is read has a mean IoU of {own:.2f} with the target"
    + (f", those of other classes {other:.2f}. " if others else "; there is no other class here. ")
    + "Nothing in the loss has asked the others for anything in this box; but all classes share every layer except the "
    + (
        "last, so that they often follow the outline too; where another object reaches into the box, they may mark that one."
        if other > 0.5
        else "last."
    )
)

# %% [markdown]
# ## From box to mask, on the image we follow
#
# In testing the head runs on detections alone, in their refined boxes: a handful an image, not hundreds of proposals. Each mask is pasted by itself; nothing keeps two of
# them from claiming the same pixel.

# %% cellView="form"
# @title What this cell draws: the two best detections, from 28 × 28 probabilities to pixels
result = model(picture[None].to(DEVICE), "maskhead", paste=False)[0]
result = {name: value.cpu() for name, value in result.items()}
height, width = picture.shape[1:]
top = result["masks"][:2]
fig, axes = plt.subplots(2, 4, figsize=(12, 5), layout="constrained", squeeze=False)
for row, mask, box, label, score in zip(axes, top, result["boxes"], result["labels"], result["scores"], strict=False):
    draw.heatmap(row[0], mask).set_title(f"{CLASS_NAMES[label]} {score:.2f}: 28 × 28", fontsize=10)
    vertical, horizontal = ((box[k].reshape(1), box[k + 2].reshape(1)) for k in (1, 0))
    rows_, columns_ = maskhead._interpolation(*vertical, height, 28), maskhead._interpolation(*horizontal, width, 28)
    draw.heatmap(row[1], (rows_ @ mask @ columns_.mT)[0]).set_title("pasted: probability of a pixel", fontsize=10)
    pixels = maskhead.paste_masks(mask[None], box[None], (height, width))
    draw.masks(draw.image(row[2], picture), pixels, [int(label)]).set_title("at least one half", fontsize=10)
    draw.masks(draw.image(row[3], picture), pixels, [int(label)], alpha=0.15)
    draw.masks(row[3], truth["masks"], kind="truth", alpha=0).set_title("with the true outlines, enlarged", fontsize=10)
    row[3].set(xlim=(max(box[0] - 8, 0), min(box[2] + 8, width)), ylim=(min(box[3] + 8, height), max(box[1] - 8, 0)))
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
if len(top):
    fig.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.5, label="probability")
draw.legend(axes[-1, 3] if len(top) > 1 else axes[0, 3], {"truth": "outline of an object"})
_ = save_figure(fig, "05_pasted")
plt.show()

lines, goal = [], truth["masks"].bool()
ys, xs = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
for mask, box, label in zip(top, result["boxes"], result["labels"], strict=False):
    pixels = maskhead.paste_masks(mask[None], box[None], (height, width))[0].bool()
    ious = (pixels & goal).sum((1, 2)) / (pixels | goal).sum((1, 2)).clamp(min=1)
    aside = (pixels & goal[torch.arange(len(goal)) != ious.argmax()].any(dim=0)).sum() / pixels.sum().clamp(min=1)
    in_box = (xs > box[0]) & (xs < box[2]) & (ys > box[1]) & (ys < box[3])
    cut = (goal[ious.argmax()] & ~in_box).sum() / goal[ious.argmax()].sum()
    lines.append(
        f"The {CLASS_NAMES[label]}'s mask has an IoU of {ious.max():.2f} with its object. {cut:.0%} of the object lies "
        f"outside the box and is lost; {aside:.0%} of the mask lies on another object."
    )
Markdown(" ".join(lines) or "Nothing was found here.")

# %% [markdown]
# ## The threshold
#
# "E.g. 0.5", says §7.5: there the head holds object and background for equally likely. To see what it does we take each object of the val split with its best detection: of its class, and with a box IoU of at least one half.

# %%
found, objects = [], 0
for n in range(len(val)):
    scene, t = val[n]
    objects += len(t["boxes"])
    r = {name: v.cpu() for name, v in model(scene[None].to(DEVICE), "maskhead", paste=False)[0].items()}
    overlap = iou_matrix(t["boxes"], r["boxes"]) * (t["labels"][:, None] == r["labels"])
    for g, row in enumerate(overlap if len(r["boxes"]) else []):
        if row.max() >= 0.5:
            d = int(row.argmax())
            found.append({"image": n, "object": g, "target": t, "box": r["boxes"][d], "mask": r["masks"][d]})
nothing = {"box": torch.tensor([0.0, 0, 1, 1]), "mask": torch.zeros(28, 28)}
boxes, small_masks = (torch.stack([f[key] for f in found or [nothing]]) for key in ("box", "mask"))
true = torch.stack([f["target"]["masks"][f["object"]].bool() for f in found] or [torch.zeros(height, width).bool()])

# %% [markdown]
# **Predict**: lower the threshold from 0.5 to 0.1. Does a mask then miss more or fewer of its object's pixels? And has it more or fewer surplus pixels?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
missed, surplus = "fewer", "more"
### END SOLUTION

# %% cellView="form"
# @title What this cell draws: IoU, and pixels missed and surplus, at nine thresholds
thresholds, curve = [k / 10 for k in range(1, 10)], {"IoU": [], "missed": [], "surplus": []}
size = true.sum((1, 2)).clamp(min=1)
for threshold in thresholds:
    pasted = maskhead.paste_masks(small_masks, boxes, (height, width), threshold).bool()
    curve["IoU"].append(float(((pasted & true).sum((1, 2)) / (pasted | true).sum((1, 2)).clamp(min=1)).mean()))
    curve["missed"].append(float(((true & ~pasted).sum((1, 2)) / size).mean()))
    curve["surplus"].append(float(((pasted & ~true).sum((1, 2)) / size).mean()))
fig, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
for (name, values), colour in zip(
    curve.items(), (draw.COLOURS["predicted"], draw.LINES[0], draw.LINES[4]), strict=True
):
    ax.plot(thresholds, values, marker="o", color=colour, label="mean mask IoU" if name == "IoU" else f"{name} pixels")
ax.axvline(maskhead.THRESHOLD, color="black", linewidth=0.8, label="our threshold")
ax.set(xlabel="threshold", ylabel="IoU, or share of the object", ylim=(0, 1))
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
_ = save_figure(fig, "05_threshold")
rows = [{"threshold": t} | {name: values[n] for name, values in curve.items()} for n, t in enumerate(thresholds)]
_ = report.save_table(rows, "05_threshold")
plt.show()

assert curve["missed"] == sorted(curve["missed"]) and curve["surplus"] == sorted(curve["surplus"], reverse=True)
assert (missed, surplus) == ("fewer", "more")
best, ours = max(curve["IoU"]), curve["IoU"][thresholds.index(maskhead.THRESHOLD)]
Markdown(
    f"{len(found)} of {objects} objects were found; no mask head can mend a missed one. At {maskhead.THRESHOLD} the "
    f"mean mask IoU is **{ours:.3f}**, with {curve['missed'][4]:.0%} of an object missed and "
    f"{curve['surplus'][4]:.0%} surplus; at 0.3 it is {curve['IoU'][2]:.3f}, at 0.7 {curve['IoU'][6]:.3f}. "
    + (
        "No other threshold gains 0.01: near one half, what it wins on one side it loses on the other. Below, a mask "
        "can also spill out of its box."
        if best - ours < 0.01
        else f"The best threshold, {thresholds[curve['IoU'].index(best)]}, would gain {best - ours:.3f}."
    )
    if found
    else f"None of {objects} objects was found; no mask head can mend a missed one."
)


# %% [markdown]
# ## What it gets right and what wrong
#
# A mask is off because its *box* is, because the *grid* of zeros and ones is coarse, or because the *head* errs. For the objects found, take these steps one by one: the target
# of the true box, pasted; the target of the detected box, pasted; the predicted mask.

# %% cellView="form"
# @title What this cell draws: where the IoU is lost
def pasted_iou(masks, corners):
    """Masks (D, m, m) in boxes (D, 4) -> the pasted masks and their IoU with the true ones."""
    pasted = maskhead.paste_masks(masks, corners, (height, width)).bool()
    return pasted, (pasted & true).sum((1, 2)) / (pasted | true).sum((1, 2)).clamp(min=1)


own_boxes = torch.stack([f["target"]["boxes"][f["object"]] for f in found or [{"target": truth, "object": 0}]])
every = torch.arange(len(true))
_, grid_alone = pasted_iou(maskhead.mask_targets(own_boxes, every, true), own_boxes)
_, with_box = pasted_iou(maskhead.mask_targets(boxes, every, true), boxes)
pasted, ious = pasted_iou(small_masks, boxes)
ladder = [1.0, *(float(v.mean()) for v in (grid_alone, with_box, ious))]
steps = ["true mask", "28 × 28 zeros and ones", "in the detected box", "predicted"]
fig, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
bars = ax.barh(steps[::-1], ladder[::-1], color=[draw.COLOURS["predicted"], *["#BBBBBB"] * 3])
ax.bar_label(bars, fmt="%.3f", padding=3)
ax.set(xlim=(0, 1.12), xlabel=f"mean mask IoU of the {len(found)} objects found")
_ = save_figure(fig, "05_losses_of_iou")
rows = [{"step": step, "mean IoU": iou} for step, iou in zip(steps, ladder, strict=True)]
_ = report.save_table(rows, "05_losses_of_iou")
plt.show()

lost = {name: a - b for name, a, b in zip(("grid", "box", "head"), ladder, ladder[1:], strict=False)}
Markdown(
    f"The grid costs {lost['grid']:.3f}, the box {lost['box']:.3f}, the head itself {lost['head']:.3f}. "
    f"There is more to win in the {'head' if lost['head'] > lost['grid'] else 'grid'} than in the "
    f"{'grid' if lost['head'] > lost['grid'] else 'head'}; and part of the grid's share is the rounding, which graded "
    f"probabilities can win back. {objects - len(found) or 'No'} objects were left out for want of a box."
    if found
    else "No object was found, so there is nothing to take apart."
)

# %% [markdown]
# Two suspects for a low IoU. **Thin parts**: legs and poles, narrower than a cell of the *features*. **Others in the box**: the head must
# guess whose pixels are whose. Thin is the share of an object's pixels within four pixels of its outline.

# %%
outside = F.pad(1 - true[:, None].float(), (4, 4, 4, 4), value=1)  # beyond the image's edge is outside too
core = 1 - F.max_pool2d(outside, 9, stride=1)[:, 0]
thin = 1 - core.sum((1, 2)) / true.sum((1, 2)).clamp(min=1)
owners = [(f["target"], f["object"]) for f in found]
crowded = [bool((iou_matrix(t["boxes"][[g]], t["boxes"]) > 0).sum() > 1) for t, g in owners]
crowded, labels = torch.tensor(crowded, dtype=torch.bool), torch.tensor([int(t["labels"][g]) for t, g in owners])
ious, thin, grid_alone, with_box = (values[: len(found)] for values in (ious, thin, grid_alone, with_box))

# %% cellView="form"
# @title What this cell draws: mask IoU against thinness, and with others in the box
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharey=True)
for k in draw.most_frequent(labels):
    mine = labels == k
    name = f"{CLASS_NAMES[k]}: {int(mine.sum())} objects"
    axes[0].scatter(thin[mine], ious[mine], s=18, color=draw.class_colour(k), label=name)
groups = {"alone in its box": ious[~crowded], "box overlaps another's": ious[crowded]}
groups = {name: values for name, values in groups.items() if len(values)}
for place, (values, word) in enumerate(zip(groups.values(), (True, False), strict=False)):
    style = {"s": 14, "color": "#555555", "label": "an object" if word else None}
    axes[1].scatter(place + torch.linspace(-0.2, 0.2, len(values)), values, **style)
    axes[1].hlines(values.mean(), place - 0.3, place + 0.3, color="black", label="mean" if word else None)
axes[1].set_xticks(range(len(groups)), [f"{name}\n{len(values)} objects" for name, values in groups.items()])
axes[1].set_xlim(-0.5, 1.5)
axes[0].set(xlabel="share of the object within 4 pixels of its outline", ylabel="mask IoU", ylim=(0, 1))
for ax in axes[: 2 if len(found) else 0]:
    ax.legend(frameon=False, loc="lower left", fontsize=9)
_ = save_figure(fig, "05_thin_and_occluded")
plt.show()

line = "Too few objects were found to say anything."
if min(len(v) for v in (groups.values() or [[]])) > 1 and len(groups) == 2 and thin.std() > 0 and ious.std() > 0:
    r, (a, b) = float(torch.corrcoef(torch.stack([thin, ious]))[0, 1]), groups.values()
    by_head = float(torch.corrcoef(torch.stack([thin, with_box - ious]))[0, 1])
    chance, gap = 2 * float((a.var() / len(a) + b.var() / len(b)).sqrt()), float(a.mean() - b.mean())
    word = "the thinner, the worse" if r < -0.2 else "hardly any connection" if r < 0.2 else "the thinner, the better"
    line = (
        f"Thinness and IoU have a correlation of {r:+.2f}: {word}; thinness and what the head alone loses, {by_head:+.2f}. "
        f"Alone {float(a.mean()):.3f}, overlapping "
        f"{float(b.mean()):.3f}: the difference is {'more' if abs(gap) > chance else 'no more'} than chance gives in "
        f"so few objects (±{chance:.3f})."
    )
Markdown(line)

# %% [markdown]
# By class, and the extremes:

# %% cellView="form"
# @title What this cell draws: the best and the worst of the objects found
rows = [
    {"class": CLASS_NAMES[k], "found": int(mine.sum())}
    | {name: float(v[mine].mean()) for name, v in (("mask IoU", ious), ("ceiling", grid_alone), ("thin", thin))}
    for k in draw.most_frequent(labels)
    for mine in [labels == k]
]
display(report.markdown(rows or [{"class": "none", "found": 0}]))
order = ious.argsort(descending=True).tolist()
ends = min(6, len(order) // 2)
fig, axes = plt.subplots(2, 6, figsize=(12, 4.6), layout="constrained", squeeze=False)
for ax, n in [*zip(axes[0], order[:ends], strict=False), *zip(axes[1], order[::-1][:ends], strict=False)]:
    f = found[n]
    draw.masks(draw.image(ax, val[f["image"]][0]), pasted[[n]], [int(labels[n])], alpha=0.2)
    draw.masks(ax, true[[n]], kind="truth", alpha=0)
    x1, y1, x2, y2 = own_boxes[n].tolist()
    ax.set(xlim=(max(x1 - 12, 0), min(x2 + 12, width)), ylim=(min(y2 + 12, height), max(y1 - 12, 0)))
    ax.set_title(f"{CLASS_NAMES[labels[n]]}, IoU {float(ious[n]):.2f}", fontsize=10)
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
for ax, name in zip(axes[:, 0], ("best", "worst"), strict=True):
    ax.set_ylabel(name)
draw.legend(axes[1, 0], {"truth": "true outline"})
fig.suptitle("tinted, with an outline in the colour of its class: the predicted mask", fontsize=10)
_ = save_figure(fig, "05_best_and_worst")
plt.show()

bad = order[::-1][:ends]
by_box = sum(float(grid_alone[n] - with_box[n]) > float(with_box[n] - ious[n]) for n in bad)
shared = int(crowded[bad].sum()) if bad else 0
worst = min(rows, key=lambda row: row["mask IoU"]) if len(rows) > 1 else {}
extremes = (("thin", max, "is the thinnest"), ("ceiling", min, "has the lowest ceiling"))
traits = [words for name, pick, words in extremes if worst and worst[name] == pick(row[name] for row in rows)]
Markdown(
    f"Of the {len(bad)} worst, {by_box or 'none'} lost more by the box than by the head; the boxes of {shared or 'none'} "
    f"overlap another object's, as do those of {int(crowded.sum())} of all {len(found)}. "
    + (f"The worst class is {worst['class']}, of which {worst['found']} were found" if worst else "")
    + (f"; it {' and '.join(traits)}. " if traits else ". " if worst else "")
    + "In the table, thin is the mean share of pixels near the outline."
)


# %% [markdown]
# ## Summary
#
# - Boxes that overlap an object by more than one half, cut at the edge and thinned by NMS, train the mask head with the *matched object's* class.
# - A target is the mask under RoIAlign with 28 × 28 cells: the box is not rounded, so nothing shifts; each cell's mean then becomes 0 or 1.
# - Four convolutions, a deconvolution, a 1 × 1 convolution; the loss sees the true class's mask alone.
# - Pasting is $V \hat Y W^\top$: two products for all masks at once.
# - That target sets itself a ceiling, which graded probabilities can pass: about the same IoU for all, but in pixels the outlines of large objects are furthest off.
#
# Notebook 6 measures the whole system and trains all its parts together.

# %% [markdown]
# ## Exercises
#
# Write over the cell that begins with `# exercise`; the one after it checks. Some checks train a fresh head for 60 steps on the boxes of 32 training images and measure it on
# those of `seen`:

# %%
@functools.cache
def batches():
    """Training images in batches of eight: what `boxes_that_train` gives."""
    return [boxes_that_train(train, [(8 * n + k) % len(train) for k in range(8)]) for n in range(4)]


def briefly_trained(head, loss_of, samples_of, steps=60):
    """The head after so many steps on the samples of these batches; `loss_of(logits, sample)` is what it lowers."""
    given = [samples_of(s) for s in batches()]
    optimiser = torch.optim.AdamW(head.to(DEVICE).parameters(), lr=2e-3)
    for sample in (given * steps)[:steps]:
        loss = loss_of(head(sample["pooled"]), sample)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return head


def stage_samples(s):
    return stages.mask_samples(model, s.features, s.chosen, s.targets)


def cross_entropy(logits, sample):
    return maskhead.mask_loss(logits, sample["labels"], sample["masks"])["mask"]


@torch.no_grad()
def mean_iou(head, labels):
    """A head's mean IoU, in cells, on the boxes of `seen`, whose mask it has at `labels`."""
    return float(cell_iou(maskhead.class_masks(head(samples["pooled"]), labels).sigmoid(), samples["masks"]).mean())


def fresh_head(classes):
    torch.manual_seed(0)
    return maskhead.MaskHead(config.backbone.channels, config.maskhead.hidden, classes)


# %% [markdown]
# ### Exercise 5.1: the smallest hole
#
# An object fills a box of 280 × 280 pixels, but for a square hole. From what side length, in pixels, does the hole show in the target's 28 × 28 cells, if its corner lies in the
# corner of a cell? And if its centre lies in the centre of a cell (the side then even)? Set both numbers.

# %%
# exercise 5.1
smallest_in_corner, smallest_in_centre = None, None


# %%
# check 5.1
def shows(side, start):
    """Whether a hole from this pixel on, in both directions, leaves a 0 in the target."""
    solid = torch.ones(1, 280, 280, dtype=torch.uint8)
    solid[0, start : start + side, start : start + side] = 0
    return bool((maskhead.mask_targets(torch.tensor([[0.0, 0, 280, 280]]), first, solid) == 0).any())


if smallest_in_corner is None or smallest_in_centre is None:
    print("exercise 5.1: not done yet")
else:
    assert smallest_in_corner == next(side for side in range(1, 20) if shows(side, 100))
    assert smallest_in_centre == next(side for side in range(2, 20, 2) if shows(side, 105 - side // 2))
    print(f"a cell is 10 pixels wide; a hole shows from {smallest_in_centre} or {smallest_in_corner} pixels on")


# %% [markdown]
# ### Exercise 5.2: a loss like the IoU
#
# Cross entropy counts cells, so that a thin object's few cells weigh little beside its background. The Dice loss of a mask does not:
# $1 - \dfrac{2 \sum \hat y y + 1}{\sum \hat y + \sum y + 1}$, averaged over the $D$ masks. Write `dice_loss` with the arguments of `maskhead.mask_loss`.

# %%
# exercise 5.2
def dice_loss(logits, labels, targets):
    """Logits (D, C, m, m), labels (D,) from 1 to C, targets (D, m, m) -> the Dice loss, a scalar."""
    return None


# %%
# check 5.2
example = toy.logit().requires_grad_()
loss = dice_loss(example, toy_label, toy_target)
if loss is None:
    print("exercise 5.2: not done yet")
else:
    loss.backward()
    assert_close(loss.detach(), torch.tensor(1 - 4 / 4.8))  # 2 (0.9 + 0.6) + 1 over 1.8 + 2 + 1
    assert (example.grad[0, [0, 2]] == 0).all() and (example.grad[0, 1] != 0).all()
    losses = {"cross entropy": cross_entropy, "Dice": lambda z, s: dice_loss(z, s["labels"], s["masks"])}
    for name, of in losses.items():
        briefly = briefly_trained(fresh_head(len(config.classes)), of, stage_samples)
        print(f"{name}: mean IoU after 60 steps {mean_iou(briefly, samples['labels']):.3f}")


# %% [markdown]
# ### Exercise 5.3: one mask for all classes (an extension)
#
# Need there be $C$ masks? Make a head with a single one, and the labels with which `lib`'s loss then works. The paper found it nearly as good (29.7 against 30.3 mask AP).

# %%
# exercise 5.3
def class_agnostic(labels):
    """Labels (D,) from 1 to C -> (a fresh mask head for one mask, the labels (D,) that its loss needs)."""
    return None


# %%
# check 5.3
answer = class_agnostic(samples["labels"])
if answer is None:
    print("exercise 5.3: not done yet")
else:
    agnostic, ones = answer
    assert agnostic.to(DEVICE)(samples["pooled"]).shape[1:] == (1, 28, 28) and ones.shape == samples["labels"].shape
    of = lambda z, s: maskhead.mask_loss(z, class_agnostic(s["labels"])[1], s["masks"])["mask"]  # noqa: E731
    specific = briefly_trained(fresh_head(len(config.classes)), cross_entropy, stage_samples)
    print(f"a mask for each class: mean IoU {mean_iou(specific, samples['labels']):.3f}")
    print(f"one for all classes:   mean IoU {mean_iou(briefly_trained(agnostic, of, stage_samples), ones):.3f}")


# %% [markdown]
# ### Exercise 5.4: a bigger mask (an extension)
#
# The head is convolutional, so it takes features of any size. Write `samples_at`, which pools at `size` and makes targets of twice that. The check runs the trained head
# at 28 as it is, then trains a copy on for 30 steps.

# %%
# exercise 5.4
def samples_at(s, size):
    """What `boxes_that_train` gave -> {"pooled": (D, F, size, size), "labels": (D,), "masks": (D, 2 size, 2 size)}."""
    return None


# %%
# check 5.4
@torch.no_grad()
def image_iou(head, s, size):
    """Mean IoU with the true masks, after pasting, in the network's frame."""
    made, ious = samples_at(s, size), []
    masks = maskhead.class_masks(head(made["pooled"]), made["labels"]).sigmoid()
    for one, t, part in zip(s.chosen, s.targets, masks.split([len(c["boxes"]) for c in s.chosen]), strict=True):
        back = maskhead.paste_masks(part, one["boxes"], t["masks"].shape[1:]).bool()
        goal = t["masks"][one["matched"]].bool()
        ious += ((back & goal).sum((1, 2)) / (back | goal).sum((1, 2)).clamp(min=1)).tolist()
    return sum(ious) / max(len(ious), 1)


if samples_at(seen, 14) is None:
    print("exercise 5.4: not done yet")
else:
    for name, value in samples_at(seen, 14).items():
        assert_close(value, samples[name])
    at_28 = functools.partial(samples_at, size=28)
    assert at_28(seen)["masks"].shape[1:] == (56, 56)
    further = briefly_trained(copy.deepcopy(model.mask_head), cross_entropy, at_28, steps=30)
    for name, trained, size in (
        ("as trained", model.mask_head, 14),
        ("as trained", model.mask_head, 28),
        ("30 steps on", further, 28),
    ):
        print(f"{2 * size} × {2 * size}, {name}: mean IoU in the image {image_iou(trained, seen, size):.3f}")

# %% [markdown]
# ## References
#
# - K. He, G. Gkioxari, P. Dollár, R. Girshick: [Mask R-CNN](https://arxiv.org/abs/1703.06870), 2017 (its ablations are quoted here)
# - T.-Y. Lin and others: [Feature Pyramid Networks](https://arxiv.org/abs/1612.03144), 2017
# - I. Loshchilov, F. Hutter: [AdamW](https://arxiv.org/abs/1711.05101), 2019
# - F. Milletari, N. Navab, S.-A. Ahmadi: [V-Net](https://arxiv.org/abs/1606.04797), 2016 (the Dice loss)
# - A. Kirillov, Y. Wu, K. He, R. Girshick: [PointRend](https://arxiv.org/abs/1912.08193), 2020 (finer masks where 28 × 28 are too coarse)

# %% [markdown]
# ## Appendix
#
# ### Exact to the half pixel
#
# A test that an error of half a pixel cannot pass: a rectangle 28 pixels wide, so that a cell is a pixel, of which the left half is on. Of 28 columns the first 14 must be 1; a box further right by the half
# must see nothing; and what is mirrored must give the mirrored target.

# %%
half = torch.zeros(1, 80, 120, dtype=torch.uint8)
half[0, 10:38, 20:34] = 1
window = torch.tensor([[20.0, 10, 48, 38]])
columns = maskhead.mask_targets(window, first, half)[0].mean(dim=0)
assert columns.tolist() == [1.0] * 14 + [0.0] * 14
assert maskhead.mask_targets(window + torch.tensor([14.0, 0, 14, 0]), first, half).sum() == 0
mirrored = torch.tensor([[120 - 48.0, 10, 120 - 20, 38]])
assert_close(maskhead.mask_targets(mirrored, first, half.flip(-1))[0].mean(dim=0), columns.flip(0))
print("14 columns on, 14 off; nothing after the move; mirrored when mirrored")

# %% [markdown]
# ### A second witness for pasting
#
# PyTorch's `grid_sample` reads bilinearly too, with zeros around the mask. It works on one grid a mask and gathers four cells for every pixel; the matrix form uses that rows and
# columns separate. To bound memory on large pictures, `paste_masks` takes the masks in chunks.

# %%
ys, xs = (torch.arange(6) + 0.5 - 0.2) / 5.3 * 2 - 1, (torch.arange(8) + 0.5 - 1.3) / 6.6 * 2 - 1  # in [-1, 1]
where = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)[None]
witness = F.grid_sample(Y[None, None], where, padding_mode="zeros", align_corners=False)[0, 0]
assert_close(witness, naive_paste(Y, (1.3, 0.2, 7.9, 5.5), 6, 8), atol=1e-5, rtol=0)

# %% [markdown]
# ### Odd cases
#
# Without a box the loss is a zero that still back-propagates, so that an unlucky batch does not stop the training. Without a mask nothing is pasted. The module's own output is
# made of the parts shown above, and masks stay in their boxes, up to the pixel that an edge cuts.

# %%
none = torch.zeros(0, 3, 28, 28, requires_grad=True)
empty = maskhead.mask_loss(none, torch.zeros(0, dtype=torch.long), torch.zeros(0, 28, 28))["mask"]
empty.backward()
assert empty.item() == 0
assert maskhead.paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (300, 400)).shape == (0, 300, 400)
assert maskhead.mask_targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), half).shape == (0, 28, 28)
whole = {name: value.cpu() for name, value in model(picture[None].to(DEVICE), "maskhead")[0].items()}
assert_close(whole["masks"], maskhead.paste_masks(result["masks"], result["boxes"], (height, width)))
for pixels, (x1, y1, x2, y2) in zip(whole["masks"].bool(), whole["boxes"].tolist(), strict=True):
    y, x = pixels.nonzero(as_tuple=True)
    assert ((x + 1 > x1) & (x < x2) & (y + 1 > y1) & (y < y2)).all()
print("no box, no loss; module = parts; masks stay in their boxes")

# %% [markdown]
# ## Montage
#
# Six validation images with all detections of a score of at least one half, and what this notebook leaves for the report.

# %% cellView="form"
# @title What this cell draws: six images with their masks
shown, astray = 0, []
fig, axes = plt.subplots(2, 3, figsize=(12, 6.6), layout="constrained")
for ax, n in zip(axes.flat, [i, *(n for n in range(len(val)) if n != i)], strict=False):
    scene, t = val[n]
    draw.masks(draw.image(ax, scene), t["masks"], kind="truth", alpha=0)
    r = {name: v.cpu() for name, v in model(scene[None].to(DEVICE), "maskhead")[0].items()}
    draw.detections(ax, r, CLASS_NAMES)
    for box, label, score in zip(r["boxes"], r["labels"], r["scores"], strict=True):
        if score >= 0.5:
            shown += 1
            if not (iou_matrix(box[None], t["boxes"]) >= 0.5).any():
                astray.append(f"{CLASS_NAMES[label]} {score:.2f}")
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
draw.legend(axes[1, 0], {"truth": "outline of an object"})
_ = save_figure(fig, "05_montage")
plt.show()
scores = evaluate_model(model, val, "maskhead")
box_ap, mask_ap = (scores[kind]["AP"] or 0.0 for kind in ("box", "mask"))
display(
    Markdown(
        f"Of {shown} detections, {len(astray) or 'none'} fit no object (a box IoU under one half with each)"
        + (f": {', '.join(astray)}. The mask head gives them a mask all the same. " if astray else ". ")
        + f"On all {len(val)} images of the val split the AP, the measure of notebook 6, is {box_ap:.3f} for boxes and "
        f"{mask_ap:.3f} for masks."
    )
)
print("exported:", ", ".join(sorted(file.name for file in paths().figures.glob("05_*"))))

# %% [markdown]
# ## The browser
#
# Every validation image (on GitHub a picture of the first). Set *show* to *difference in pixels* and pull *mask threshold* down: missed pixels become hits,
# and false ones appear; pull it up for the opposite. A row of *highlight* is drawn alone; *next mistake* leads to what went wrong.

# %%
from lib.notebook import browser

browser.MaskBrowser(model, val, stage="maskhead")
