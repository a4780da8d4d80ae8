# %% [markdown]
# # 5 · The mask head
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-from-its-parts/maskrcnn-from-its-parts/blob/main/notebooks/05_maskhead.ipynb)
#
# **From a 14 × 14 window of features, six layers draw the outline of the object in a box: 28 × 28 probabilities, pasted
# back into the image.**
#
# | | |
# |---|---|
# | run time | about a minute on two recent CPU cores, most of it training, which is done once |
# | inputs | `data/<source>/` and the trained `rpn` and `boxhead` of `weights/<profile>/` (trained first if missing) |
# | outputs | `weights/<profile>/maskhead.safetensors`, `maskhead_history.csv`, figures `05_*` |

# %% [markdown]
# ## Goals
#
# After this notebook you can
#
# 1. say which boxes train the mask head and why they are not the detections of testing (§6.5),
# 2. compute a 28 × 28 mask target from a box and a ground-truth mask, exact to the half pixel (§7.3),
# 3. follow a tensor through the six layers and count their parameters (§7.2),
# 4. compute the loss and its gradient by hand, and say which of the three masks it touches (§7.3, §7.4),
# 5. paste a predicted mask back into the image with two matrix products (§7.5),
# 6. say where the mask head goes wrong, and how much of that is its resolution.

# %% [markdown]
# ## Where this part sits
#
# ```text
# image ──> backbone + FPN ──> P2 … P5 ──────────────────┬───────────────────┐
#                    │                                   │                   │
#                    └──> RPN ──> hundreds of proposals ─┴──> box head ──────┴──> [ MASK HEAD ] ──> paste
#                         (03)                                (04): boxes,         28 × 28 for      H × W
#                                                             classes, scores      each box         masks
# ```
#
# The mask head comes last: it trusts the box head for *where* and *what*, and answers only *which pixels*.

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
# What this notebook uses, and two small helpers: one shows source text of `lib`, the other writes numbers into a grid.

# %%
import inspect

import torch
import torch.nn.functional as F
from IPython.display import Code
from torch.testing import assert_close

from lib import boxhead, maskhead
from lib.boxes import clip, inside, iou_matrix, scale_boxes
from lib.boxhead import MASK_POSITIVE_IOU
from lib.data.batches import collate, prepare
from lib.data.reader import CourseDataset
from lib.machine.device import device
from lib.machine.folders import paths
from lib.maskhead import THRESHOLD
from lib.notebook import draw
from lib.preprocess import IMAGE_MEAN, IMAGE_STD
from lib.training import stages
from lib.training.checkpoint import load_model
from lib.training.history import read_history
from lib.training.loop import train_until

CLASS_NAMES = config.class_names  # by label; 0 is background


def show(*parts):
    return Code("\n\n".join(inspect.getsource(part) for part in parts), language="python")


def grid(ax, values, title, shift=0.5):
    draw.heatmap(ax, values, vmin=0, vmax=1)
    for y, row in enumerate(values.tolist()):
        for x, value in enumerate(row):
            colour = "black" if value > 0.6 else "white"
            ax.text(x + shift, y + shift, f"{value:.4g}", ha="center", va="center", color=colour)
    ax.set_title(title, fontsize=10)


# %% [markdown]
# ## Symbols
#
# | symbol | meaning |
# |---|---|
# | $D$ | boxes that reach the mask head, over all images of the batch |
# | $K'$, $N'$ | boxes of an image before and after NMS |
# | $C$ | classes of objects, in the course's set 3: vehicle, person, animal |
# | $F$ | channels of the feature pyramid: 256 in `course`, 64 in `demo` |
# | $m$ | side of a predicted mask, 28 |
# | $G$, $H \times W$ | objects of an image, and the size of the frame their masks are given in |
# | $z_{cij}$ | logit of class $c$ at cell $(i, j)$; $\hat y = \sigma(z)$ is its probability |
# | $y_{ij}$ | target, 0 or 1 |
#
# Boxes are `xyxy` in pixels; pixel $i$ covers the interval $[i, i + 1)$, so its centre is at $i + \tfrac12$.

# %% [markdown]
# ## The idea
#
# The box head *flattens* its 7 × 7 window: a vector has no left and right, and a class needs none. A mask does. So the
# mask head is convolutional from end to end: a window of features goes in, a window of probabilities comes out, and
# cell $(i, j)$ of the output lies where cell $(i, j)$ of the input lay.
#
# $$\hat y = \sigma\big(f(\mathrm{RoIAlign}_{14}(P_k, b))\big)_{c} \in [0, 1]^{28 \times 28}$$
#
# $f$ gives one mask for *every* class; the class $c$ that the box head chose says which one is read. The classes do not
# compete for a pixel (a sigmoid each, no softmax): naming is the box head's work, and the mask head is free of it.

# %% [markdown]
# The picture to keep in mind: an object, the part of its mask inside a box, and the same part on 28 × 28 cells. The last
# is what the network must answer.

# %%
train_set = CourseDataset(DATA, "train", config.data)
val_set = CourseDataset(DATA, "val", config.data)
scenes = [scene for scene in (train_set[n] for n in range(min(10, len(train_set)))) if len(scene[1]["boxes"])]
picture, target = max(scenes, key=lambda scene: scene[1]["masks"][0].sum())  # a large object shows more
box, mask = target["boxes"][:1], target["masks"]
cells = maskhead.mask_targets(box, torch.zeros(1, dtype=torch.long), mask, 28)[0]

fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", width_ratios=(4, 3, 3))
draw.boxes(draw.masks(draw.image(axes[0], picture), mask[:1], kind="truth"), box, captions=["box"])
draw.image(axes[1], mask[:1].expand(3, -1, -1) * 255)
axes[1].set(xlim=box[0, [0, 2]].tolist(), ylim=box[0, [3, 1]].tolist())
draw.heatmap(axes[2], cells)
for ax, title in zip(axes, ("an object and its box", "its mask, cut to the box", "the target: 28 × 28"), strict=True):
    ax.set_title(title, fontsize=10)

# %% [markdown]
# ## By hand 1: the boxes that train it
#
# In testing the mask head sees the detections. To *learn*, it needs boxes of which one knows the object, even when the
# box head is still unsure. So §6.5 has a rule of its own for training. Of all boxes that the box head makes out of the
# proposals
#
# 1. remove those that cross the image's boundary (as printed; with `boxhead.cross_boundary` at `clip`, which both profiles have, they are
#    cut at the edge instead, as in testing),
# 2. keep those with $\mathrm{IoU} > 0.5$ with some object,
# 3. keep the $K'$ best by score,
# 4. NMS, for each predicted class on its own,
# 5. keep the $N'$ best.

# %% [markdown]
# Six boxes on a 100 × 100 image with two objects. Before you read on, say which survive.
#
# | box | coordinates | predicted | score | |
# |---|---|---|---|---|
# | a | (20, 20, 60, 60) | person | 0.90 | the first object's own box |
# | b | (22, 20, 62, 60) | person | 0.80 | two pixels to the right of a |
# | c | (20, 20, 60, 60) | animal | 0.70 | the same place, another class |
# | d | (−2, 0, 28, 30) | vehicle | 0.95 | IoU 0.875 with the second object |
# | e | (40, 20, 80, 60) | person | 0.85 | half of it on the first object |
# | f | (1, 1, 30, 30) | vehicle | 0.60 | IoU 0.934 with the second object |

# %%
objects = torch.tensor([[20.0, 20, 60, 60], [0, 0, 30, 30]])  # a person and a vehicle
candidates = torch.tensor(
    [[20.0, 20, 60, 60], [22, 20, 62, 60], [20, 20, 60, 60], [-2, 0, 28, 30], [40, 20, 80, 60], [1, 1, 30, 30]]
)
probabilities = torch.tensor(  # background, vehicle, person, animal
    [[0.04, 0.03, 0.90, 0.03], [0.10, 0.05, 0.80, 0.05], [0.10, 0.10, 0.10, 0.70]]
    + [[0.03, 0.95, 0.01, 0.01], [0.05, 0.05, 0.85, 0.05], [0.20, 0.60, 0.10, 0.10]]
)
predicted = [2, 2, 3, 1, 2, 1]

# %% [markdown]
# The overlaps first. Predicted: $a$ and $c$ have IoU 1 with the person; $b$ has $38 \cdot 40 / (2 \cdot 1600 - 1520) =
# 0.905$; $e$ has $20 \cdot 40 / (3200 - 800) = 1/3$, not enough; $d$ has $28 \cdot 30 / (1800 - 840) = 0.875$ with the
# vehicle and $f$ has $29^2 / 900 = 0.934$.

# %%
overlap = iou_matrix(candidates, objects)
print(overlap.round(decimals=3))
assert_close(overlap.max(dim=1).values, torch.tensor([1, 38 / 42, 1, 0.875, 1 / 3, 29**2 / 900]))


# %% [markdown]
# Rows are the boxes $a$ to $f$, columns the two objects.

# %% [markdown]
# The rule with loops, one line for each of its steps.

# %%
def naive_choice(boxes, classes, scores, objects, height, width, k, n):
    good = [i for i, b in enumerate(boxes) if 0 <= b[0] and 0 <= b[1] and b[2] <= width and b[3] <= height]  # 1
    good = [i for i in good if iou_matrix(boxes[i : i + 1], objects).max() > 0.5]  # 2
    good = sorted(good, key=lambda i: -scores[i])[:k]  # 3
    kept = []
    for i in good:  # 4: against every better box of the same class
        rivals = [j for j in kept if classes[j] == classes[i]]
        if all(iou_matrix(boxes[i : i + 1], boxes[j : j + 1]) <= config.boxhead.train.nms_iou for j in rivals):
            kept.append(i)
    return kept[:n]  # 5


# %% [markdown]
# Predicted: $d$ crosses the boundary, $e$ overlaps too little, $b$ falls to $a$. But $c$ stays: NMS compares boxes of one
# predicted class only. What is left is $a, c, f$.

# %%
scores = probabilities.max(dim=1).values
kept = naive_choice(candidates, predicted, scores, objects, 100, 100, k=200, n=100)
print("kept:", ["abcdef"[i] for i in kept])
assert kept == [0, 2, 5]

# %% [markdown]
# Drawn: objects thick, removed boxes dotted. ($a$ and $c$ lie on top of each other.)

# %%
fig, ax = plt.subplots(figsize=(4.2, 4.6), layout="constrained")
draw.image(ax, torch.ones(3, 100, 100), margin=12)
dropped = [i for i in range(6) if i not in kept]
draw.boxes(ax, objects, "truth", linewidth=5)
draw.boxes(ax, candidates[dropped], "ignored", ["abcdef"[i] for i in dropped], dotted=True)
draw.boxes(ax, candidates[kept], "positive", ["abcdef"[i] for i in kept])
draw.legend(ax, ["truth", "positive", "ignored"])
_ = ax.set_title("kept: a, c, f", fontsize=10)

# %% [markdown]
# ### The part: `lib.boxhead.refine_for_training`
#
# The same steps on tensors. It also hands on `labels`, the class of the *matched object*, and `matched`, its index. Box
# $c$ was called an animal; it still trains the person's mask, because the object in it is a person.

# %%
show(boxhead.refine_for_training, boxhead._top)

# %% [markdown]
# Deltas of zero leave a proposal where it is, and the logarithm of a probability is a logit that softmax turns back into
# it. So the six boxes can be fed to the real function, set as the sheet prints it.

# %%
chosen = boxhead.refine_for_training(
    probabilities.log(),
    torch.zeros(6, 3, 4),
    [candidates],
    [{"boxes": objects, "labels": torch.tensor([2, 1])}],
    (100, 100),
    config.replace(**{"boxhead.cross_boundary": "remove"}).boxhead,
)[0]
assert_close(chosen["boxes"], candidates[kept])
assert chosen["labels"].tolist() == [2, 2, 1] and chosen["matched"].tolist() == [0, 0, 1]
print("labels of the boxes a, c, f:", [("vehicle", "person", "animal")[n - 1] for n in chosen["labels"]])

# %% [markdown]
# ## By hand 2: a mask target
#
# The target is the part of the ground-truth mask inside the box, brought to $m \times m$ cells (§7.3). Cutting along
# whole pixels would shift the outline by up to half a pixel, which in a small box is a whole cell. So the cut is made
# with RoIAlign, the same that pools the features: cell $(i, j)$ of the target and cell $(i, j)$ of the features then
# show exactly the same place.
#
# Each cell holds $2 \times 2$ sampling points; each point reads the mask bilinearly; the cell is 1 where the mean of the
# four is at least $\tfrac12$.

# %% [markdown]
# A 4 × 4 mask, the box around all of it, and $m = 2$. Each cell covers 2 × 2 pixels, and its four points fall on the
# four pixel centres: a cell's value is simply the share of its pixels that are on.
#
# Predicted: top left $\tfrac14$, top right 1, bottom left $\tfrac24$, bottom right $\tfrac14$. "At least half" makes that
# 0, 1, 1, 0.

# %%
small = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0]], dtype=torch.uint8)
shares = small.view(2, 2, 2, 2).float().mean(dim=(1, 3))
assert_close(shares, torch.tensor([[0.25, 1], [0.5, 0.25]]))

fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
grid(axes[0], small, "mask (4 × 4) and sampling points", shift=0.75)
grid(axes[1], shares, "mean of the four points")
grid(axes[2], (shares >= 0.5).float(), "target (2 × 2)")
points = torch.arange(4) + 0.5
_ = axes[0].scatter(*torch.meshgrid(points, points, indexing="xy"), s=16, color="red")


# %% [markdown]
# Now for any box, with loops: a bilinear reading of one point, then a mean of four points for each cell.

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
    read = torch.tensor([[naive_read(mask, y, x) for x in xs] for y in ys])
    return read.view(m, 2, m, 2).mean(dim=(1, 3))


# %% [markdown]
# The example again, and one whose box cuts through pixels: $(0.5, 0, 2.5, 2)$ has cells of one pixel, half a pixel out of
# step in $x$. Take its lower right cell, $x$ from 1.5 to 2.5 and $y$ from 1 to 2. Its points lie at $x = 1.75, 2.25$ and
# $y = 1.25, 1.75$. Halfway between the centres of two columns, the mean of a row is the mean of the two pixels: row 0
# gives $\tfrac12$, rows 1 and 2 give 1. At $y = 1.25$ the reading is a quarter of row 0 and three quarters of row 1,
# 0.875; at $y = 1.75$ it is 1. The cell: 0.9375.
#
# Predicted in the same way for all four: $\begin{pmatrix}0.0625 & 0.5625\\ 0.4375 & 0.9375\end{pmatrix}$. The lower left
# cell shows what bilinear reading does: half of it is on, but its points also feel the row above, and it stays below
# one half.

# %%
assert_close(naive_cells(small.tolist(), (0, 0, 4, 4), 2), shares)
shifted = naive_cells(small.tolist(), (0.5, 0, 2.5, 2), 2)
assert_close(shifted, torch.tensor([[0.0625, 0.5625], [0.4375, 0.9375]]))

fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
draw.heatmap(axes[0], small).set_title("mask, box and sampling points", fontsize=10)
draw.boxes(axes[0], torch.tensor([[0.5, 0, 2.5, 2]]), "truth", linewidth=3)
_ = axes[0].scatter(*torch.meshgrid(points / 2 + 0.5, points / 2, indexing="xy"), s=16, color="red")
grid(axes[1], shifted, "mean of the four points")
grid(axes[2], (shifted >= 0.5).float(), "target (2 × 2)")

# %% [markdown]
# ### The part: `lib.maskhead.mask_targets`
#
# RoIAlign itself was built in the notebook of the box head. Here the "feature map" is the stack of masks, one channel
# each, and `matched` says which mask belongs to which box.

# %%
show(maskhead.mask_targets)

# %% [markdown]
# Equal to the loops: on the example, on boxes that cut through pixels, and on the object of the first picture.

# %%
first = torch.zeros(1, dtype=torch.long)
for corners in ((0, 0, 4, 4), (0.5, 0, 2.5, 2), (1, 0.3, 3.7, 4)):
    by_hand = (naive_cells(small.tolist(), corners, 2) >= 0.5).float()
    assert_close(maskhead.mask_targets(torch.tensor([corners]).float(), first, small[None], 2)[0], by_hand)

values = naive_cells(mask[0].tolist(), box[0].tolist(), 28)
sure = (values - 0.5).abs() > 1e-4  # at one half itself, the last digit decides
assert_close(cells[sure], (values[sure] >= 0.5).float())
print("equal on the 4 × 4 example, on boxes that cut through pixels, and on a real object")

# %% [markdown]
# **Exact to the half pixel?** A test that an off-by-half error cannot pass: a rectangle whose left half alone is on, 56
# pixels wide. Of the 28 columns, the first 14 must be 1. Move the box by 28 pixels and the on half fills columns −14 … −1
# of the window: nothing is left. Mirror mask and box, and the target must be mirrored.

# %%
half = torch.zeros(1, 80, 120, dtype=torch.uint8)
half[0, 10:66, 20:48] = 1
window = torch.tensor([[20.0, 10, 76, 66]])
columns = maskhead.mask_targets(window, first, half, 28)[0].mean(dim=0)
assert columns.tolist() == [1.0] * 14 + [0.0] * 14
assert maskhead.mask_targets(window + torch.tensor([28.0, 0, 28, 0]), first, half, 28).sum() == 0

mirrored = torch.tensor([[120 - 76.0, 10, 120 - 20, 66]])
assert_close(maskhead.mask_targets(mirrored, first, half.flip(-1), 28)[0].mean(dim=0), columns.flip(0))
print("14 columns on, 14 off; nothing after the move; mirrored when mirrored")

# %% [markdown]
# ## By hand 3: the network
#
# §7.2: four 3 × 3 convolutions with ReLU, a deconvolution that doubles the side, with ReLU, and a 1 × 1 convolution to
# $C$ masks. Four 3 × 3 convolutions in a row let each cell look four cells far to every side: 9 of the 14 columns.
#
# The only new piece is the **deconvolution**. With a 2 × 2 kernel and stride 2 it is easily said: every cell of the input
# becomes a 2 × 2 block of the output, the kernel times the cell's value.

# %% [markdown]
# Predicted for one channel: the input $\begin{pmatrix}1 & 2\\ 3 & 4\end{pmatrix}$ and the kernel
# $\begin{pmatrix}1 & 0\\ 0 & 10\end{pmatrix}$ give
# $\begin{pmatrix}1 & 0 & 2 & 0\\ 0 & 10 & 0 & 20\\ 3 & 0 & 4 & 0\\ 0 & 30 & 0 & 40\end{pmatrix}$,
# the Kronecker product of the two.

# %%
values, kernel = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 0], [0, 10]])
doubled = F.conv_transpose2d(values[None, None], kernel[None, None], stride=2)[0, 0]
print(doubled)
assert_close(doubled, torch.kron(values, kernel))

# %% [markdown]
# ### The part: `lib.maskhead.MaskHead`

# %%
show(maskhead.MaskHead)

# %% [markdown]
# Layer by layer, with the size of what comes out and the parameters counted by hand. A convolution with a $k \times k$
# kernel from $a$ to $b$ channels has $k^2 a b$ weights and $b$ biases; so has the deconvolution.

# %%
channels = config.backbone.channels  # F
head = maskhead.MaskHead(channels, config.maskhead.hidden, len(config.classes))
x, total = torch.zeros(5, channels, 14, 14), 0  # D = 5 boxes
for layer in head.layers:
    x = layer(x)
    count = sum(p.numel() for p in layer.parameters())
    if count:
        a, b, k = layer.in_channels, layer.out_channels, layer.kernel_size[0]
        assert count == k * k * a * b + b
        total += count
        print(f"{type(layer).__name__:16} {k} x {k}  {a:4} -> {b:4} channels {count:9,} parameters  {tuple(x.shape)}")
print(f"{'in all':43} {total:9,} parameters")
assert x.shape == (5, len(config.classes), 28, 28)

# %% [markdown]
# The 1 × 1 convolution starts with tiny weights, so that every pixel of every mask starts at $\sigma(0) = \tfrac12$:
# undecided, with a loss of $\ln 2 = 0.693$. This number will come back in the learning curve.

# %%
undecided = head(torch.randn(5, channels, 14, 14)).sigmoid()
print(f"probabilities of a fresh head: {undecided.min():.3f} to {undecided.max():.3f}")

# %% [markdown]
# The random input does not matter: whatever comes in, tiny weights turn it into logits near 0.

# %% [markdown]
# ## By hand 4: the loss
#
# Binary cross entropy at every cell, on the mask of the true class $c$ alone, averaged over the cells and the $D$ masks
# (§7.3, §7.4):
#
# $$L_{mask} = -\frac{1}{D\,m^2} \sum_{d,i,j} y_{ij} \log \hat y_{cij} + (1 - y_{ij}) \log (1 - \hat y_{cij}),
# \qquad \frac{\partial L}{\partial z_{cij}} = \frac{\hat y_{cij} - y_{ij}}{D\,m^2}$$

# %%
p = torch.linspace(0.01, 0.99, 99)
fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
_ = ax.plot(p, -p.log(), label="target 1: $-\\log\\hat y$", color=draw.LINES[0])
_ = ax.plot(p, -(1 - p).log(), label="target 0: $-\\log(1 - \\hat y)$", color=draw.LINES[1])
_ = ax.axhline(torch.tensor(2.0).log(), color="grey", linestyle=":", label="ln 2: undecided")
_ = ax.set(xlabel="predicted probability $\\hat y$", ylabel="loss of the cell", ylim=(0, 4))
_ = ax.legend(frameon=False)

# %% [markdown]
# A 2 × 2 mask of a person with three predicted masks. Those of vehicle and animal are as wrong as can be; the loss must
# not see them. Predicted:
#
# $$-\tfrac14(\ln 0.9 + \ln 0.8 + \ln 0.9 + \ln 0.6) = \tfrac14(0.1054 + 0.2231 + 0.1054 + 0.5108) = 0.2362$$

# %%
truth = torch.tensor([[[1.0, 0], [0, 1]]])  # (D, m, m) with D = 1
probability = torch.tensor([[[[0.01, 0.99], [0.99, 0.01]], [[0.9, 0.2], [0.1, 0.6]], [[0.01, 0.99], [0.99, 0.01]]]])
logits = probability.logit().requires_grad_()  # (D, C, m, m)
label = torch.tensor([2])  # a person


# %% [markdown]
# The sum of the formula, term by term:

# %%
def naive_loss(probability, labels, targets):
    terms = []
    for masks, label, target in zip(probability, labels, targets, strict=True):
        for p, y in zip(masks[label - 1].flatten(), target.flatten(), strict=True):
            terms.append(-(p.log() if y == 1 else (1 - p).log()))
    return sum(terms) / len(terms)


by_hand = naive_loss(probability, label, truth)
print(f"loss: {by_hand:.4f}")
assert_close(by_hand, torch.tensor(0.2362), atol=1e-4, rtol=0)

# %% [markdown]
# ### The part: `lib.maskhead.mask_loss`
#
# It works on logits: `binary_cross_entropy_with_logits` never takes the logarithm of a rounded 0.

# %%
show(maskhead.mask_loss, maskhead.class_masks)

# %% [markdown]
# Predicted: the same loss, and for the person's logits the gradient $(\hat y - y) / 4$:
# $\begin{pmatrix}-0.1 & 0.2\\ 0.1 & -0.4\end{pmatrix} / 4$.

# %%
loss = maskhead.mask_loss(logits, label, truth)["mask"]
assert_close(loss, by_hand)
loss.backward()
print("gradient of the person's logits:\n", logits.grad[0, 1])
assert_close(logits.grad[0, 1], (probability[0, 1] - truth[0]) / 4)
assert (logits.grad[0, [0, 2]] == 0).all()

# %% [markdown]
# The gradient is prediction minus target, divided by four cells; vehicle and animal get exactly zero. This is what "the
# classes do not compete" means. And with no box at all the loss is a zero that still back-propagates, so an unlucky
# batch does not stop the training:

# %%
nothing = torch.zeros(0, 3, 28, 28, requires_grad=True)
empty = maskhead.mask_loss(nothing, torch.zeros(0, dtype=torch.long), torch.zeros(0, 28, 28))["mask"]
empty.backward()
assert empty.item() == 0

# %% [markdown]
# ## By hand 5: pasting
#
# §7.5: back in the image, a pixel's probability is read bilinearly from the mask. Along one axis, a box from $a$ to $b$
# holds $m$ cells; the centre of pixel $i$ lies, counted in cells from the centre of cell 0, at
#
# $$q_i = \frac{i + \frac12 - a}{b - a}\, m - \frac12, \qquad \text{and cell } k \text{ weighs } \; w_{ik} =
# \max(0,\; 1 - |q_i - k|).$$
#
# Bilinear means: the weight of a cell is its weight along $y$ times its weight along $x$. So all pixels at once are two
# matrix products, $V\, \hat Y\, W^\top$, with $V = (w_{ik})$ of the rows, $W$ of the columns, and $\hat Y$ the mask.

# %% [markdown]
# A 2 × 2 mask into a 4 × 4 image, the box around all of it. Predicted: $q = -0.25,\ 0.25,\ 0.75,\ 1.25$ and so
#
# $$V = W = \begin{pmatrix}0.75 & 0\\ 0.75 & 0.25\\ 0.25 & 0.75\\ 0 & 0.75\end{pmatrix},\quad
# \hat Y = \begin{pmatrix}1 & 0\\ 1 & 1\end{pmatrix},\quad
# V \hat Y W^\top = \begin{pmatrix}.5625 & .5625 & .1875 & 0\\ .75 & .8125 & .4375 & .1875\\
# .75 & .9375 & .8125 & .5625\\ .5625 & .75 & .75 & .5625\end{pmatrix}$$

# %%
Y = torch.tensor([[1.0, 0], [1, 1]])
V = torch.tensor([[0.75, 0], [0.75, 0.25], [0.25, 0.75], [0, 0.75]])
pasted = V @ Y @ V.T
assert_close(pasted[0], torch.tensor([0.5625, 0.5625, 0.1875, 0]))
assert_close(pasted[2], torch.tensor([0.75, 0.9375, 0.8125, 0.5625]))

fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
grid(axes[0], Y, "mask (2 × 2)")
grid(axes[1], pasted, "$V\\,\\hat Y\\,W^{\\top}$ (4 × 4)")
grid(axes[2], (pasted >= 0.5).float(), "at least 0.5")


# %% [markdown]
# The first row of $V$ sums to 0.75 only: towards the edge of its box a mask fades, as if zeros lay around it. Even in a
# corner a full mask keeps $0.75^2 = 0.5625$ here, just above the threshold.
#
# With loops, one pixel and one cell at a time:

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


assert_close(naive_paste(Y, (0, 0, 4, 4), 4, 4), pasted)

# %% [markdown]
# The two matrix products and the four loops agree to the last digit that floats have.

# %% [markdown]
# ### The part: `lib.maskhead.paste_masks`
#
# All masks at once, two batched products. Outside its box a mask's weights sum to less than one half, and to zero from half
# a cell on: at a threshold of 0.5 nothing need be cut out.

# %%
show(maskhead.paste_masks, maskhead._interpolation)

# %% [markdown]
# The weights of the example, and the pasted masks of three boxes. The last crosses the boundary of the image.

# %%
assert_close(maskhead._interpolation(torch.zeros(1), torch.full((1,), 4.0), 4, 2)[0], V)
for corners in ((0.0, 0, 4, 4), (1.3, 0.2, 7.9, 5.5), (-2, 1, 6, 9)):
    by_hand = naive_paste(Y, corners, 6, 8) >= 0.5
    by_lib = maskhead.paste_masks(Y[None], torch.tensor([corners]), (6, 8), 0.5)[0]
    assert_close(by_lib.bool(), by_hand)

# %% [markdown]
# A second witness: PyTorch's own `grid_sample`, which reads bilinearly with zeros around the mask.

# %%
ys, xs = (torch.arange(6) + 0.5 - 0.2) / 5.3 * 2 - 1, (torch.arange(8) + 0.5 - 1.3) / 6.6 * 2 - 1  # in [-1, 1]
where = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)[None]
witness = F.grid_sample(Y[None, None], where, padding_mode="zeros", align_corners=False)[0, 0]
assert_close(witness, naive_paste(Y, (1.3, 0.2, 7.9, 5.5), 6, 8), atol=1e-5, rtol=0)

# %% [markdown]
# Why not simply use it? It works on one grid a mask and reads four cells for every pixel of the image; the matrix form
# uses that rows and columns separate.

# %% [markdown]
# ## On a real image
#
# The box head must be there first; if it is not, it is trained now. Then a batch of training images goes through the
# frozen parts, in the mode of training.

# %%
WEIGHTS = train_until("boxhead", config, DATA, WEIGHTS)
DEVICE = device()
model = load_model(WEIGHTS, "boxhead", config).to(DEVICE)


# %% [markdown]
# Two helpers. The first brings images and targets into the network's frame; the second calls the parts in the order in
# which the stage calls them.

# %%
def batch(dataset, indices):
    images, targets = collate([dataset[i] for i in indices])
    targets = [{key: t[key].to(DEVICE) for key in ("boxes", "labels", "masks")} for t in targets]
    return prepare(images.to(DEVICE), targets, config.image)


@torch.no_grad()
def boxes_in_training(images, targets, content):
    features = model.features(images)
    proposals = [p["boxes"] for p in model.propose(features, content, training=True)]
    outputs = model.classify(features, proposals)
    chosen = boxhead.refine_for_training(*outputs, proposals, targets, content, config.boxhead)
    return features, proposals, outputs, chosen


# %% [markdown]
# Left an image's proposals; right, of the boxes that the box head makes of them, those that are left to train on.

# %%
images, targets, content = batch(train_set, range(min(8, len(train_set))))
features, proposals, outputs, chosen = boxes_in_training(images, targets, content)
shown = max(range(len(chosen)), key=lambda i: (len(targets[i]["boxes"]), len(chosen[i]["boxes"])))
scene = draw.denormalise(images[shown], IMAGE_MEAN, IMAGE_STD)

fig, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
draw.boxes(draw.image(axes[0], scene), proposals[shown], "ignored", linewidth=0.6)
draw.masks(draw.image(axes[1], scene), targets[shown]["masks"], kind="truth")
draw.boxes(axes[1], chosen[shown]["boxes"], "positive")
axes[0].set_title(f"{len(proposals[shown])} proposals of the RPN", fontsize=10)
axes[1].set_title(f"{len(chosen[shown]['boxes'])} boxes that train the mask head", fontsize=10)
_ = save_figure(fig, "05_training_boxes")


# %% [markdown]
# On the right, note what is *not* demanded of these boxes: they need not be tight. A mask head that met perfect boxes only
# would be lost with the imperfect ones of testing.

# %% [markdown]
# ## Targets, counted and drawn
#
# The sheet aims at about 100 boxes an image. How many are there really? We count what each step of the rule leaves, over
# a few batches.

# %%
def funnel(proposals, outputs, chosen, targets, content):
    left = torch.zeros(4)
    groups = boxhead._best_class(*outputs, proposals)
    for (boxes, *_), target, final in zip(groups, targets, chosen, strict=True):
        boxes = clip(boxes, *content) if config.boxhead.cross_boundary == "clip" else boxes
        within = inside(boxes, *content)
        on_object = within & (iou_matrix(boxes, target["boxes"]) > MASK_POSITIVE_IOU).any(dim=1)
        left += torch.tensor([len(boxes), within.sum(), on_object.sum(), len(final["boxes"])])
    return left


# %% [markdown]
# Along the way we keep, for every box, which share of its target is on.

# %%
counts, per_image, share = torch.zeros(4), [], {n: [] for n in range(1, len(CLASS_NAMES))}
seen = min(48, len(train_set))
for start in range(0, seen, 8):
    x, t, content = batch(train_set, range(start, min(start + 8, seen)))
    _, p, o, c = boxes_in_training(x, t, content)
    counts += funnel(p, o, c, t, content)
    per_image += [len(one["boxes"]) for one in c]
    for one, target in zip(c, t, strict=True):
        y = maskhead.mask_targets(one["boxes"], one["matched"], target["masks"], 28)
        for label, area in zip(one["labels"].tolist(), y.mean(dim=(1, 2)).tolist(), strict=True):
            share[label].append(area)

# %% [markdown]
# Left: boxes an image after each step. Right: how full the targets are, by class. A box that fits a car is mostly car;
# one that fits a giraffe is mostly background.

# %%
border = "cut at the image's edge" if config.boxhead.cross_boundary == "clip" else "inside the image"
steps = ["proposals", border, "overlap an object", "after NMS: train the head"]
fig, axes = plt.subplots(1, 2, figsize=(11, 3), layout="constrained")
bars = axes[0].barh(steps[::-1], (counts / seen).flip(0).tolist(), color=draw.COLOURS["positive"])
_ = axes[0].bar_label(bars, fmt="%.1f", padding=3)
_ = axes[0].set(xlabel="boxes an image (mean)", xlim=(0, 1.2 * float(counts[0]) / seen + 1))
for n in draw.most_frequent([n for n, areas in share.items() for _ in areas]):
    label, colour = f"{CLASS_NAMES[n]}: {len(share[n])} boxes", draw.class_colour(n)
    _ = axes[1].hist(share[n], bins=20, range=(0, 1), histtype="step", linewidth=2, color=colour, label=label)
_ = axes[1].set(xlabel="share of the target that is on", ylabel="boxes")
_ = axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
_ = save_figure(fig, "05_targets_counted")

# %% [markdown]
# NMS decides the number. Boxes of one object overlap each other, and with a threshold of 0.5 hardly more than the best of them stays:
# with one or two objects an image, far from the 100 that the sheet aims at. A threshold of 0.9 would remove near copies alone, so that
# a mask is learnt in several slightly different frames. We tried that: it made no difference that could be told from noise (README).
# Each box teaches 784 pixels.

# %%
print(f"{seen} images: {sum(per_image)} boxes, {sum(per_image) / seen:.1f} an image (most: {max(per_image)}), ", end="")
print(f"{sum(n == 0 for n in per_image)} images without any; {784 * sum(per_image):,} pixels with a target")


# %% [markdown]
# The targets beside the pixels they came from. Top: the image, cut to the box, with the true outline (filled) and the
# outline of the 28 × 28 target (line). Both must coincide up to the size of a cell; a shift by half a pixel would show.

# %%
def picture_of(ax, image):
    return draw.image(ax, draw.denormalise(image, IMAGE_MEAN, IMAGE_STD))


def crop(ax, box):
    ax.set(xlim=box[[0, 2]].tolist(), ylim=box[[3, 1]].tolist(), aspect="auto", box_aspect=1)


def centres(box, m=28):
    steps = (torch.arange(m) + 0.5) / m
    return box[0] + steps * (box[2] - box[0]), box[1] + steps * (box[3] - box[1])


examples = [(i, n) for i, one in enumerate(chosen) for n in range(min(2, len(one["boxes"])))][:6]

# %% [markdown]
# Each box is drawn as a square, as the network sees it: RoIAlign stretches wide and tall boxes alike to 28 × 28.

# %%
fig, axes = plt.subplots(2, 6, figsize=(12, 4.3), layout="constrained", squeeze=False)
for column, (i, n) in zip(axes.T, examples, strict=False):
    box, matched, label = (chosen[i][key][n].cpu() for key in ("boxes", "matched", "labels"))
    y = maskhead.mask_targets(box[None], matched[None], targets[i]["masks"].cpu(), 28)[0]
    draw.masks(picture_of(column[0], images[i]), targets[i]["masks"][matched][None], kind="truth", alpha=0.3)
    _ = column[0].contour(*centres(box), y, [0.5], colors="white", linewidths=1.5)
    crop(column[0], box)
    column[0].set_title(CLASS_NAMES[label], fontsize=10)
    draw.heatmap(column[1], y)
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
_ = save_figure(fig, "05_targets")

# %% [markdown]
# Where a box cuts an object, the target is cut too: the mask head is never asked about pixels outside its box, and cannot
# repair a box that is too small.

# %% [markdown]
# **How good could it get?** A mask of 28 × 28 cells cannot hold every detail. Take the perfect answer, the target of each
# object's own box, and paste it back: its IoU with the true mask is the ceiling for any network here.

# %%
ceilings = []
for n in range(len(val_set)):
    _, t = val_set[n]
    ideal = maskhead.mask_targets(t["boxes"], torch.arange(len(t["boxes"])), t["masks"], 28)
    back, true = (m.flatten(1).bool() for m in (maskhead.paste_masks(ideal, t["boxes"], (300, 400), 0.5), t["masks"]))
    ceilings += ((back & true).sum(1) / (back | true).sum(1)).tolist()
ceiling = sum(ceilings) / len(ceilings)
print(f"{len(ceilings)} objects of the val split, their targets pasted back:")
print(f"mask IoU {ceiling:.3f} on average, {min(ceilings):.3f} at worst")

# %% [markdown]
# ## Train, or load what was trained
#
# The stage holds no more than the two halves seen above. `sample` runs the frozen parts; `of_boxes`, which joint fine-tuning calls too,
# chooses the boxes, makes their targets and pools their features; `loss` runs the head on them.

# %%
show(stages.MaskHeadStage, stages.mask_samples)

# %% [markdown]
# Finished stages are kept, missing ones trained: on two recent CPU cores the mask head takes less than a minute the first
# time and no time the second.

# %%
WEIGHTS = train_until("maskhead", config, DATA, WEIGHTS)
model = load_model(WEIGHTS, "maskhead", config).to(DEVICE)

# %% [markdown]
# The loss of every epoch, on the boxes of the train split and on those of the val split.

# %%
history = read_history(WEIGHTS, "maskhead")
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
draw.curves(ax, history)
_ = ax.axhline(torch.tensor(2.0).log(), color="grey", linewidth=1, label="ln 2: undecided")
_ = ax.legend(frameon=False, fontsize=8)
_ = save_figure(fig, "05_learning_curve")

# %% [markdown]
# What the curve says, in numbers:

# %%
last = history[-1]
gap = last["val_mask"] - last["train_mask"]
print(f"after {len(history)} epochs: train {last['train_mask']:.3f}, val {last['val_mask']:.3f} (undecided: 0.693)")
verdict = "some of it was learnt by heart" if gap > 0.02 else "no sign of overfitting"
print(f"val minus train: {gap:+.3f}, {verdict}")

# %% [markdown]
# ## What was learnt: probabilities beside their targets
#
# Images of the val split, never trained on, with boxes chosen as in training, so that each has a target. From top to
# bottom: the image cut to the box, the target, the probabilities, and the cells on the wrong side of one half.

# %%
images, targets, content = batch(val_set, range(min(8, len(val_set))))
features, _, _, chosen = boxes_in_training(images, targets, content)
with torch.no_grad():
    samples = stages.mask_samples(model, features, chosen, targets)
    every_class = model.mask_head(samples["pooled"]).sigmoid()  # (D, C, 28, 28)
predicted = maskhead.class_masks(every_class, samples["labels"]).cpu()
owner = [(i, n) for i, one in enumerate(chosen) for n in range(len(one["boxes"]))]  # image and place of each of the D
examples = [d for d, (_, n) in enumerate(owner) if n == 0][:7]

# %% [markdown]
# One column a box: the first box of each image.

# %%
fig, axes = plt.subplots(4, 7, figsize=(12, 7), layout="constrained", squeeze=False)
for column, d in zip(axes.T, examples, strict=False):
    i, n = owner[d]
    y = samples["masks"][d].cpu()
    picture_of(column[0], images[i]).set_title(CLASS_NAMES[chosen[i]["labels"][n]], fontsize=10)
    crop(column[0], chosen[i]["boxes"][n].cpu())
    for ax, values in zip(column[1:], (y, predicted[d], ((predicted[d] >= 0.5) != y).float()), strict=True):
        draw.heatmap(ax, values)
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
for ax, name in zip(axes[:, 0], ("image", "target", "probability", "wrong cells"), strict=True):
    _ = ax.set_ylabel(name)
_ = save_figure(fig, "05_probabilities")

# %% [markdown]
# The last row tells the kind of error: a thin seam along the outline is a question of resolution, a filled patch one of
# understanding.

# %% [markdown]
# How sure is it? A cell between 0.2 and 0.8 is in doubt; doubt should lie along the outline.

# %%
if owner:
    right = ((predicted >= 0.5) == samples["masks"].cpu().bool()).float().mean()
    middle = ((predicted > 0.2) & (predicted < 0.8)).float().mean()
    print(f"{len(owner)} boxes: {right:.1%} of the cells on the right side of one half")
    print(f"{middle:.1%} of the cells between 0.2 and 0.8")

# %% [markdown]
# **One head, an answer for each class.** Every box gets a mask for every class. Only the mask of the class that the box holds was
# trained on such boxes, and only that one is read.

# %%
three = draw.most_frequent(samples["labels"], 3)
fig, axes = plt.subplots(3, 4, figsize=(8, 6), layout="constrained", squeeze=False)
by_class = [next(d for d in range(len(owner)) if samples["labels"][d] == k) for k in three]
for row, d in zip(axes, by_class, strict=False):
    i, n = owner[d]
    label = int(samples["labels"][d])
    picture_of(row[0], images[i]).set_title(CLASS_NAMES[label], fontsize=10)
    crop(row[0], chosen[i]["boxes"][n].cpu())
    for k, ax in zip(three, row[1:], strict=False):
        weight = "bold" if k == label else "normal"
        draw.heatmap(ax, every_class[d, k - 1]).set_title(f"as {CLASS_NAMES[k]}", fontsize=10, weight=weight)
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
_ = save_figure(fig, "05_three_masks")


# %% [markdown]
# Compare the mask in bold with the others. Nothing in the loss ever asked the others to be empty, or to be anything,
# in this box; so they need not be.

# %% [markdown]
# ## The threshold
#
# Now the mode of testing: detections of the box head, masks read for the *predicted* class, pasted into the original
# image. §7.5 leaves the threshold to us ("e.g. 0.5"). We find every object of the val split by its best detection of the
# right class with a box IoU of at least 0.5, and paste the masks with nine thresholds.

# %%
@torch.no_grad()
def detect(dataset, indices):
    images, targets, content = batch(dataset, indices)
    features = model.features(images)
    proposals = [p["boxes"] for p in model.propose(features, content)]
    found = model.detect(features, proposals, content)
    masks = model.segment(features, [f["boxes"] for f in found], [f["labels"] for f in found])
    back = (400 / content[1], 300 / content[0])  # to the original frame
    return [
        {"boxes": scale_boxes(f["boxes"], *back).cpu(), "labels": f["labels"].cpu(), "masks": m.cpu()}
        for f, m in zip(found, masks, strict=True)
    ]


# %% [markdown]
# For each object, the detection of its class that overlaps it most, if that is at least one half:

# %%
def best_match(found, box, label):
    if not len(found["boxes"]):
        return None
    overlap = iou_matrix(found["boxes"], box[None])[:, 0] * (found["labels"] == label)
    return int(overlap.argmax()) if overlap.max() >= 0.5 else None


pairs, objects_in_val, step = [], 0, config.evaluation.batch_size
for start in range(0, len(val_set), step):
    indices = range(start, min(start + step, len(val_set)))
    for index, found in zip(indices, detect(val_set, indices), strict=True):
        _, t = val_set[index]
        objects_in_val += len(t["boxes"])
        for g, (box, label) in enumerate(zip(t["boxes"], t["labels"], strict=True)):
            d = best_match(found, box, label)
            if d is not None:
                one = {"box": found["boxes"][d], "mask": found["masks"][d]}
                pairs.append({"index": index, "object": g, "target": t, **one})

# %% [markdown]
# `pairs` holds each object that was found, with its box and its 28 × 28 probabilities. The IoU of two masks is what it is
# for boxes: pixels in both over pixels in either.

# %%
true_masks = torch.stack([p["target"]["masks"][p["object"]] for p in pairs] or [torch.zeros(300, 400)]).bool()
boxes = torch.stack([p["box"] for p in pairs] or [torch.tensor([0.0, 0, 1, 1])])
small_masks = torch.stack([p["mask"] for p in pairs] or [torch.zeros(28, 28)])


def mask_ious(threshold):
    pasted = maskhead.paste_masks(small_masks, boxes, (300, 400), threshold).bool()
    return (pasted & true_masks).sum((1, 2)) / (pasted | true_masks).sum((1, 2)).clamp(min=1), pasted


# %% [markdown]
# One point a threshold; the dotted line is the ceiling from above.

# %%
thresholds = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
means = [float(mask_ious(t)[0].mean()) for t in thresholds]
best = thresholds[max(range(9), key=means.__getitem__)]

fig, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
_ = ax.plot(thresholds, means, marker="o", color=draw.COLOURS["predicted"], label="mask head")
_ = ax.axhline(ceiling, color="grey", linestyle=":", label="28 × 28, perfect answer")
_ = ax.axvline(THRESHOLD, color="black", linewidth=0.8, label="our threshold")
_ = ax.set(xlabel="threshold", ylabel="mean mask IoU (val)", ylim=(0, 1))
_ = ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
_ = save_figure(fig, "05_threshold")

# %% [markdown]
# In words:

# %%
at_ours, _ = mask_ious(THRESHOLD)
print(f"{len(pairs)} of {objects_in_val} objects of the val split were found; the mask head can mend no missed one.")
if pairs:
    gain = max(means) - float(at_ours.mean())
    print(f"mean mask IoU {float(at_ours.mean()):.3f} at {THRESHOLD}, best {max(means):.3f} at {best}")
    print("Our threshold is as good as any." if gain < 0.01 else f"The best threshold would bring {gain:.3f}.")

# %% [markdown]
# The threshold trades missing pixels for surplus ones. A flat top means that few pixels are in doubt: most probabilities
# are near 0 or near 1.

# %% [markdown]
# ## What it gets right and what it gets wrong
#
# Two suspects. **Thin parts**: legs, tails and poles are narrower than a cell of the 28 × 28 grid, or than the 14 × 14
# window of features before it. **Occlusion**: where another object lies in the same box, the head must guess whose pixels
# are whose. We measure both, for the objects that were found.

# %% [markdown]
# Thinness: the share of an object's pixels closer than five pixels to its outline (those that a 9 × 9 erosion takes
# away). Occlusion: whether its box overlaps another object's.

# %%
ious, pasted = mask_ious(THRESHOLD)
outside = F.pad(1 - true_masks[:, None].float(), (4, 4, 4, 4), value=1)  # beyond the image's border is outside too
core = 1 - F.max_pool2d(outside, 9, stride=1)[:, 0]
thin = 1 - core.sum((1, 2)) / true_masks.sum((1, 2)).clamp(min=1)
owners = [(p["target"], p["object"]) for p in pairs]
shared = [bool((iou_matrix(t["boxes"][g : g + 1], t["boxes"]) > 0).sum() > 1) for t, g in owners]
shared, labels = torch.tensor(shared, dtype=torch.bool), torch.tensor([int(t["labels"][g]) for t, g in owners])

# %% [markdown]
# Each dot is an object; the black lines are means.

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharey=True)
for k in draw.most_frequent(labels):
    _ = axes[0].scatter(thin[labels == k], ious[labels == k], s=18, color=draw.class_colour(k), label=CLASS_NAMES[k])
groups = {"alone": ious[~shared], "overlaps another": ious[shared]} if pairs else {}
groups = {name: values for name, values in groups.items() if len(values)}
for place, values in enumerate(groups.values()):
    jitter = torch.linspace(-0.2, 0.2, len(values))
    _ = axes[1].scatter(place + jitter, values, s=14, color=draw.LINES[0])
    _ = axes[1].hlines(values.mean(), place - 0.3, place + 0.3, color="black")
_ = axes[1].set_xticks(range(len(groups)), [f"{name}\n{len(values)} objects" for name, values in groups.items()])
_ = axes[1].set_xlim(-0.5, 1.5)
_ = axes[0].set(xlabel="share of the object within 5 pixels of its outline", ylabel="mask IoU", ylim=(0, 1))
if pairs:
    _ = axes[0].legend(frameon=False, loc="lower left")
_ = save_figure(fig, "05_thin_and_occluded")

# %% [markdown]
# The same in numbers. A correlation near −1 would mean: the thinner, the worse.

# %%
if len(pairs) > 2:
    print(f"correlation of mask IoU with thinness: {float(torch.corrcoef(torch.stack([thin, ious]))[0, 1]):+.2f}")
for name, values in groups.items():
    print(f"{name:15} {len(values):4} objects, mean mask IoU {float(values.mean()):.3f}")
for k in sorted(set(labels.tolist())):
    values = ious[labels == k]
    print(f"{CLASS_NAMES[k]:15} {len(values):4} objects, mean mask IoU {float(values.mean()):.3f}")

# %% [markdown]
# The extremes, in pictures: the best and the worst of the objects found. Predicted pixels are filled, the true outline is
# a line.

# %%
order = ious.argsort(descending=True).tolist()[: len(pairs)]
ends = min(6, len(order) // 2)
fig, axes = plt.subplots(2, 6, figsize=(12, 4.4), layout="constrained", squeeze=False)
for ax, n in [*zip(axes[0], order[:ends], strict=False), *zip(axes[1], order[::-1][:ends], strict=False)]:
    p, picture = pairs[n], val_set[pairs[n]["index"]][0]
    draw.masks(draw.image(ax, picture), pasted[n : n + 1], kind="predicted")
    draw.masks(ax, true_masks[n : n + 1], kind="truth", alpha=0)
    x1, y1, x2, y2 = p["target"]["boxes"][p["object"]].tolist()
    _ = ax.set(xlim=(max(x1 - 12, 0), min(x2 + 12, 400)), ylim=(min(y2 + 12, 300), max(y1 - 12, 0)))
    ax.set_title(f"IoU {float(ious[n]):.2f}", fontsize=10)
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
for ax, name in zip(axes[:, 0], ("best", "worst"), strict=True):
    _ = ax.set_ylabel(name)
_ = save_figure(fig, "05_best_and_worst")

# %% [markdown]
# Look at the worst ones and ask of each: was the box wrong, was the object hidden, or was the shape too fine? Only the
# last is for a larger $m$ to mend.

# %% [markdown]
# ## Checks
#
# What must hold whatever was learnt: the module's own output is made of the parts shown above, the empty cases stay
# empty, and masks stay inside their boxes (up to the pixel that the box's edge cuts).

# %%
picture, _ = val_set[0]
with torch.no_grad():
    result = {key: value.cpu() for key, value in model(picture[None].to(DEVICE), "maskhead")[0].items()}
parts = detect(val_set, [0])[0]
assert_close(result["boxes"], parts["boxes"])
assert_close(result["masks"], maskhead.paste_masks(parts["masks"], parts["boxes"], (300, 400), THRESHOLD))

assert maskhead.paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (300, 400), 0.5).shape == (0, 300, 400)
assert maskhead.mask_targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), mask, 28).shape == (0, 28, 28)
for pixels, (x1, y1, x2, y2) in zip(result["masks"].bool(), result["boxes"].tolist(), strict=True):
    ys, xs = pixels.nonzero(as_tuple=True)
    assert ((xs + 1 > x1) & (xs < x2) & (ys + 1 > y1) & (ys < y2)).all()
print("module = parts; empty stays empty; masks stay inside their boxes")

# %% [markdown]
# ## Figures exported

# %%
for path in sorted(paths().figures.glob("05_*.p*")):
    print(path.name)

# %% [markdown]
# ## Summary
#
# - Boxes that overlap an object by more than one half, cut at the image's edge, train the mask head; NMS and $N'$ leave a handful
#   of them an image.
# - A target is the ground-truth mask under RoIAlign with 28 × 28 cells: no rounding, no shift.
# - Four convolutions, one deconvolution, one 1 × 1 convolution; a loss that sees the true class's mask alone.
# - Pasting is $V \hat Y W^\top$: two products, exact, for all masks at once.
# - The 28 × 28 grid itself sets a ceiling; the distance from it is what more training, finer features or a better box can
#   still gain.

# %% [markdown]
# ## Exercises
#
# 1. Raise `POOL_SIZE` in `lib/maskhead.py` to 28, which makes $m = 56$. What happens to the ceiling, and what to the time of a step?
# 2. Compute by hand the pasted value of a corner pixel for $m = 28$ in a box of 28 × 28 pixels. Why is it 1 and not
#    0.5625?
# 3. Train again with `MASK_POSITIVE_IOU` in `lib/boxhead.py` at 0.7. Fewer boxes, closer to those of testing: does the val loss say which is better?
# 4. Replace the binary cross entropy by a Dice loss. On which objects would you expect a difference?
# 5. An object with a hole (a wheel, a handle): does the mask show it? Find the smallest hole that 28 × 28 cells can hold
#    in a box 200 pixels wide.

# %% [markdown]
# ## A montage
#
# Six images of the val split with the detections scored 0.5 or better. (The masks are now those of the mask head before
# joint fine-tuning; notebook 06 goes on from here.)

# %%
fig, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
for ax, index in zip(axes.flat, range(min(6, len(val_set))), strict=False):
    picture, _ = val_set[index]
    found = model(picture[None].to(DEVICE), "maskhead")[0]
    draw.detections(draw.image(ax, picture), found, CLASS_NAMES)
for ax in axes.flat:
    ax.axis("on" if ax.has_data() else "off")
_ = save_figure(fig, "05_montage")

# %% [markdown]
# ## The browser
#
# Turn the pages yourself: any image of the val split, its detections and their masks. (A saved notebook shows the widget
# only while it runs.)

# %%
from lib.notebook import browser

browser.browse_masks(model, val_set)
