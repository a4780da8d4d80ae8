# %% [markdown]
# # 4 · RoIAlign and the box head: what is it, and where exactly?
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-from-its-parts/maskrcnn-from-its-parts/blob/main/notebooks/04_boxhead.ipynb)
#
# **The claim.** Cut every proposal, whatever its size, to the same 7 × 7 cells of features without rounding a single coordinate, and a
# small fully connected network can name what is inside and move the box the rest of the way.
#
# **Run time** (demo profile, two recent CPU cores): a minute, half of it to train. If notebook 3's RPN is missing, it is trained first.
#
# **Inputs → outputs.** `data/`, `weights/<profile>/rpn.safetensors` → `weights/<profile>/boxhead.safetensors`, its learning curves,
# and `figures/04_*`.
#
# §5.1, §6.3 and so on are sections of the course's assignment sheet. It is not in the repository; what it asks for is said here.

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
# The [RPN](https://arxiv.org/abs/1506.01497) says that *something* is *about here*. This notebook says what it is, and where exactly. After it you can
#
# 1. read a map between its pixels, and correct a worked example;
# 2. pool a box of any size, from the right level, to 7 × 7 cells;
# 3. say where the box head's parameters sit, and why each class has a box;
# 4. label proposals, work out both losses on paper and balance them;
# 5. follow a box from proposal to detection, and say what goes wrong.

# %% cellView="form"
# @title Imports, and the whole system with this notebook's part lit
import functools
import math

import torch
import torch.nn.functional as F
import torchvision
from IPython.display import Markdown, display
from torchvision.ops import batched_nms

from lib import boxes, boxhead, matching, roi_align
from lib.anchors import LEVELS, STRIDES
from lib.boxhead import MASK_POSITIVE_IOU, POOL_SIZE
from lib.data.batches import loader, prepare
from lib.data.reader import CourseDataset
from lib.machine.device import device
from lib.machine.folders import paths
from lib.notebook import diagrams, draw, report
from lib.notebook.teach import as_seen, followed, show
from lib.training.checkpoint import load_model
from lib.training.history import read_history
from lib.training.loop import train_until
from lib.training.stages import BoxHeadStage

CLASS_NAMES = config.class_names  # by label; 0 is background


def key(labels):
    """A legend's entries for the classes among these labels."""
    return {n: CLASS_NAMES[n] for n in sorted(set(labels.tolist())) if n}


diagrams.system("boxhead")

# %% [markdown]
# ## The image we follow
#
# All six notebooks follow one validation image from file to mask. Notebook 3 hands it over with the RPN's proposals.

# %%
WEIGHTS = train_until("rpn", config, DATA, WEIGHTS)
model = load_model(WEIGHTS, "rpn", config)
val = CourseDataset(DATA, "val", config.data, with_masks=False)
i = followed(val)
seen = as_seen(val, [i, *(n for n in range(len(val)) if n != i)][:8], config)  # that image first, and a few more
target, content = seen.targets[0], seen.content  # content: (height, width) of the pictures, without the padding
with torch.no_grad():
    features = model.features(seen.x)
    given = [p["boxes"] for p in model.propose(features, content)]  # of each image, best first

# %% [markdown]
# Ground truth is dashed orange-red in all figures. A proposal is green until it has a class, then in its class's colour:

# %% cellView="form"
# @title What this cell draws: the image we follow, its objects and its proposals
overlap = boxes.iou_matrix(given[0], target["boxes"])  # (proposals, objects)
best, ours = overlap.max(dim=0)
fig, axes = plt.subplots(1, 3, figsize=(12, 3.4))
draw.boxes(axes[1], given[0], "predicted", linewidth=0.6)
draw.boxes(axes[2], given[0][ours], "predicted", linewidth=1.8)
titles = "the objects", f"all {len(given[0])} proposals", "the best proposal of each object"
for ax, title in zip(axes, titles, strict=True):
    draw.image(ax, seen.pictures[0])
    draw.boxes(ax, target["boxes"], "truth", linewidth=2)
    ax.set_title(title, fontsize=10)
draw.legend(axes[0], {"truth": "object", "predicted": "proposal"})
fig.tight_layout()
_ = save_figure(fig, "04_followed")
plt.show()

NAMES = [CLASS_NAMES[n] for n in target["labels"].tolist()]  # of the followed image's objects
near = int((overlap > config.boxhead.positive_iou).any(dim=1).sum())
Markdown(
    f"Of {len(given[0])} proposals, {near} overlap an object by an IoU above {config.boxhead.positive_iou:g}. "
    + "".join(f"The best one of the {name} reaches {float(v):.2f}. " for name, v in zip(NAMES, best, strict=True))
    + "None of them knows what it shows, and the best are still off."
)

# %% [markdown]
# ## Symbols
#
# | symbol | meaning | in the code |
# |---|---|---|
# | $R$ | regions of interest: the proposals of all images | `rois` |
# | $F$ | channels of a feature map | `config.backbone.channels` |
# | $P$ | cells along a side of a pooled region, 7 | `POOL_SIZE` |
# | $S$ | sampling points along a side of a cell, 2 | `roi_align.SAMPLES` |
# | $k$ | level of the pyramid, 2 … 5 | `pyramid_level` |
# | $C$ | classes of objects; 0 is background | `config.classes` |
# | $M$ | proposals of a minibatch | `batch_samples` |
# | $p$, $p^*$ | predicted probabilities, true class | `logits`, `labels` |
# | $\mathbf t^{(c)}$, $\mathbf t^*$ | deltas, the move from a proposal to a box: predicted for class $c$, and true | `deltas` |
# | $K'$, $N'$ | boxes before and after NMS | `pre_nms`, `post_nms` |

# %% [markdown]
# ## RoIAlign: why not simply round?
#
# A linear layer wants the same number of inputs from every proposal, large or small. So each is cut to $P × P$ cells of features ($P = 7$
# comes from VGG, whose first linear layer took 7 × 7). Its corners are real numbers; a map has whole pixels. [Fast R-CNN](https://arxiv.org/abs/1504.08083)'s RoIPool rounds the corners,
# then the borders of the cells inside, and takes each cell's maximum. [Mask R-CNN](https://arxiv.org/abs/1703.06870)'s RoIAlign rounds nothing, reads the map *between* its pixels and takes means (§5.1).

# %% [markdown]
# **Predict.** A pixel of level P$k$ is $2^k$ image pixels wide. How far can rounding move a corner sideways, at most, on P2, P3, P4, P5?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
worst_shift = [2, 4, 8, 16]  # half a pixel of the map
### END SOLUTION

# %% [markdown]
# The check, and what rounding would do to our proposals, each on its own level (which one that is, comes below):

# %%
rois, image_of = boxhead.stack_rois(given)
levels = roi_align.pyramid_level(rois, config.roi_align.canonical_size)
cell = 2.0 ** levels[:, None]
rounded = (rois / cell).round() * cell
shift, left_over = (rounded - rois).abs().amax(dim=1), boxes.iou_matrix(rois, rounded).diagonal()
assert worst_shift == [stride / 2 for stride in STRIDES[:4]]
assert (shift <= torch.tensor(worst_shift)[levels - 2] + 1e-3).all()
on_level = {k: levels == k for k in sorted(set(levels.tolist()))}
most = [f"{float(shift[at].max()):.1f} on P{k} (of {int(at.sum()):,})" for k, at in on_level.items()]
Markdown(
    f"The most pixels that rounding would move a corner of our {len(rois):,} proposals: {', '.join(most)}. They would "
    f"overlap their own places by a mean IoU of {float(left_over.mean()):.2f}: the head would look beside the box it "
    "is asked about."
)


# %% [markdown]
# ### Between the pixels: bilinear interpolation
#
# A map's pixel $j$ covers $[j, j+1)$; its value belongs to its centre. Along one axis, a value in between is a mixture of the two
# neighbours, each weighted by how near it is. Along two axes, it is a mixture of four:
#
# $$f(x,y)=\frac{1}{(x_2-x_1)(y_2-y_1)}\begin{bmatrix}x_2-x & x-x_1\end{bmatrix}
# \begin{bmatrix}f(x_1,y_1) & f(x_1,y_2)\\f(x_2,y_1) & f(x_2,y_2)\end{bmatrix}
# \begin{bmatrix}y_2-y\\y-y_1\end{bmatrix}$$

# %%
def naive_bilinear(values, x, y):
    """Value at (x, y), from (x1, y1), of four pixels one apart: [[f(x1,y1), f(x1,y2)], [f(x2,y1), f(x2,y2)]]."""
    (f11, f12), (f21, f22) = values
    return (1 - x) * (f11 * (1 - y) + f12 * y) + x * (f21 * (1 - y) + f22 * y)


# %% [markdown]
# **Predict**, for the four values of the sheet's figure 7, $\begin{bmatrix}0.32 & 0.16\\0.64 & 0.12\end{bmatrix}$: the value half
# way from the first to the second along $y$; in the very middle; and ¾ of the way along both axes.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
half_way, middle, three_quarters = 0.24, 0.31, 0.2375
### END SOLUTION

# %% [markdown]
# The check is RoIAlign itself: with one cell and one sampling point, a tiny box *is* one bilinear value.

# %%
figure7 = torch.tensor([[0.32, 0.16], [0.64, 0.12]])  # rows are x, as in the equation
feature = figure7.T[None, None]  # (1, 1, 2, 2): rows are y, as in every image
first = torch.zeros(1, dtype=torch.long)
for x, y, value in [(0, 0.5, half_way), (0.5, 0.5, middle), (0.75, 0.75, three_quarters)]:
    around = torch.tensor([[x, y, x, y]]) + 0.5 + torch.tensor([[-1, -1, 1, 1]]) * 1e-3  # the first centre is (½, ½)
    assert math.isclose(naive_bilinear(figure7.tolist(), x, y), value, abs_tol=1e-6)
    assert math.isclose(float(roi_align.roi_align(feature, around, first, size=1, samples=1)), value, abs_tol=1e-5)

# %% [markdown]
# ### A worked example that does not work out
#
# The sheet prints $f(S1) = 0.21778 = \begin{bmatrix} 9.25 & 7.5 \end{bmatrix}
# \begin{bmatrix} 0.32 & 0.16 \\ 0.64 & 0.12 \end{bmatrix} \begin{bmatrix} 3.25 & 16.75 \end{bmatrix}$. Let us do the sum:

# %%
printed = float(torch.tensor([9.25, 7.5]) @ figure7 @ torch.tensor([3.25, 16.75]))
pair = torch.tensor([0.25, 0.75])
all_orders = [float(a @ figure7 @ b) for a in (pair, pair.flip(0)) for b in (pair, pair.flip(0))]
assert not figure7.min() <= printed <= figure7.max() and math.isclose(all_orders[0], three_quarters, abs_tol=1e-6)
assert min(abs(value - 0.21778) for value in all_orders) > 0.005
Markdown(
    f"It gives **{printed:.3f}**. No weighted mean of numbers between 0.12 and 0.64 can be that: weights are not "
    "negative, and each pair must add up to 1. Behind the points stand 0.25 and 0.5, then 0.25 and 0.75: read as "
    "distances, the second pair adds up, and the first does if 7.5 was meant to be 7.75. With 0.25 and 0.75 in both, "
    f"the value is the one you predicted, **{three_quarters}**. Other orders of these weights give "
    f"{', '.join(f'{value:.4f}' for value in all_orders[1:])}; none gives 0.21778."
)

# %% [markdown]
# ### Cells and points
#
# Cut the box into $P × P$ cells (here $P = 3$) and put $S × S$ regular points into each: with $S = 2$ at ¼ and ¾ of its width and height (left).
# Read the map at every point (middle: the orange one, with the weights of the four pixels in the orange frame), and take the mean over each cell (right; that point's cell has a thick frame).
# How many points, and where in the cell, hardly matters, the paper found, as long as nothing is rounded.

# %%
fig = diagrams.roi_align()
_ = save_figure(fig, "04_roi_align")
fig

# %% [markdown]
# **By hand.** On a map of 4 × 4 pixels with $f=\text{column}+10·\text{row}$ lies a box from (1, 1) to (3, 3), cut into 2 × 2 cells.
# On such a slope interpolation is exact, so the mean over a cell is the value at its centre. **Predict** the upper left cell; and by how
# much all four change when the box moves 0.3 to the right and 0.4 up.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
upper_left = 11  # the cell from 1 to 2 has its centre on that of pixel (1, 1)
change = 0.3 - 10 * 0.4
### END SOLUTION

# %% [markdown]
# The naive version, point by point, on the map and box above:

# %%
def naive_roi_align(feature, roi, size, samples):
    """One channel (H, W), one box in its pixels -> (P, P), point by point; the edge pixels continue to the border."""
    (height, width), (x1, y1, x2, y2) = feature.shape, roi
    pooled = torch.zeros(size, size)
    for i in range(size * samples):
        for j in range(size * samples):
            y = min(max(y1 + (i + 0.5) * (y2 - y1) / (size * samples) - 0.5, 0), height - 1)  # from pixel centres
            x = min(max(x1 + (j + 0.5) * (x2 - x1) / (size * samples) - 0.5, 0), width - 1)
            r, c = min(int(y), height - 2), min(int(x), width - 2)
            values = feature[r : r + 2, c : c + 2].T.tolist()  # [[f(x1,y1), f(x1,y2)], [f(x2,y1), f(x2,y2)]]
            pooled[i // samples, j // samples] += naive_bilinear(values, x - c, y - r) / samples**2
    return pooled


slope = torch.arange(4.0) + 10 * torch.arange(4.0)[:, None]  # (4, 4), rows are y
by_hand = naive_roi_align(slope, (1, 1, 3, 3), size=2, samples=2)
moved = naive_roi_align(slope, (1.3, 0.6, 3.3, 2.6), size=2, samples=2)
assert math.isclose(by_hand[0, 0], upper_left)
torch.testing.assert_close(by_hand, torch.tensor([[11.0, 12.0], [21.0, 22.0]]))
torch.testing.assert_close(moved, by_hand + change)

# %% [markdown]
# ### The part
#
# `lib` does the same for all channels, boxes and images of a level at once. `_sample_points` cuts, `_bilinear` gives each coordinate two
# pixels and their weights; a cell's points read 4 columns by 4 rows (a pixel may be read twice), so a pooled value is **one weighted sum of 16 readings**. The last
# call adds them up (how: the appendix). The coordinates are fixed numbers: `rpn.propose` runs without gradient, so
# none flows through a box's place into the RPN.

# %%
show(roi_align.roi_align, roi_align._sample_points, roi_align._bilinear)

# %% [markdown]
# On random numbers, with a box off the grid and one across the border, where the edge's value continues for a pixel: by hand, `lib` and
# [torchvision](https://docs.pytorch.org/vision/stable/generated/torchvision.ops.roi_align.html) agree.

# %%
torch.manual_seed(0)
random_map = torch.randn(4, 4)
two = torch.tensor([[0.7, 0.9, 3.1, 3.3], [-0.4, 1.2, 2.2, 4.3]])
pooled = roi_align.roi_align(random_map[None, None], two, torch.zeros(2, dtype=torch.long), size=2)
theirs = torchvision.ops.roi_align(random_map[None, None], [two], 2, sampling_ratio=2, aligned=True)
by_hand = torch.stack([naive_roi_align(random_map, roi, 2, 2) for roi in two.tolist()])[:, None]
torch.testing.assert_close(pooled, by_hand)
torch.testing.assert_close(pooled, theirs)
learning = model.propose([f.clone().requires_grad_() for f in features], content)[0]
assert not learning["boxes"].requires_grad  # fixed numbers, even where the features learn

# %% [markdown]
# ## From which level? (§5.2)
#
# Pooled from P2, a box of 448 pixels would have cells 16 of the map's pixels wide, and four points a cell would skip most of them; a box of 32
# on P5 would have to fill its 49 cells from about one pixel. So [FPN](https://arxiv.org/abs/1612.03144) lets the size choose. A box as large as ImageNet's pictures, 224 pixels,
# belongs to P4, one half as large to the next finer level. (P6, every second pixel of P5, is for anchors alone.)
#
# $$k=\Big\lfloor4+\log_2\frac{\sqrt{wh}}{224}\Big\rfloor,\quad\text{limited to }2\dots5$$
#
# **Predict** $k$ for $w × h$ of 40 × 40, 112 × 112, 223.9 × 223.9, 224 × 224, 448 × 112 and 1000 × 800.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
predicted_levels = [2, 3, 3, 4, 4, 5]
### END SOLUTION

# %% [markdown]
# 40 would be level 1, and is limited to 2. 224 itself is P4, 223.9 is rounded down to P3; what counts is the area, so 448 × 112 goes with 224 × 224.

# %%
sizes = [(40, 40), (112, 112), (223.9, 223.9), (224, 224), (448, 112), (1000, 800)]
naive_levels = [min(5, max(2, math.floor(4 + math.log2(math.sqrt(w * h) / 224)))) for w, h in sizes]
of_sizes = torch.tensor([(10.0, 20.0, 10 + w, 20 + h) for w, h in sizes])
assert predicted_levels == naive_levels == roi_align.pyramid_level(of_sizes).tolist()
torch.testing.assert_close(features[4], features[3][:, :, ::2, ::2])  # P6 and P5
show(roi_align.pyramid_level)

# %% [markdown]
# So a level's boxes span, in its pixels, from one size to twice that; only the limits let smaller ones into P2 and
# larger ones into P5. Is it so for our proposals? (A profile with smaller images has a smaller 224.)

# %%
rows, least = [], config.roi_align.canonical_size / 16  # of a box on P4, in the map's pixels
for k, mine in on_level.items():
    spans = boxes.area(rois[mine]).sqrt() / STRIDES[k - 2]
    assert k == 2 or spans.min() >= least - 1e-3
    assert k == 5 or spans.max() <= 2 * least + 1e-3
    row = {"level": LEVELS[k - 2], "stride": STRIDES[k - 2], "proposals": int(mine.sum())}
    row |= {"least size": float(spans.min()), "mean size": float(spans.mean()), "largest size": float(spans.max())}
    rows.append(row | {"IoU if rounded": float(left_over[mine].mean())})
display(report.markdown(rows))
means = [row["mean size"] for row in rows]
Markdown(
    f"Sizes are in the map's pixels. 224 is {config.roi_align.canonical_size:g} here, so a level's boxes should span "
    f"{least:.1f} to {2 * least:.1f} of them; smaller ones can be on P2 alone, and larger ones on P5. Over these "
    f"levels the stride grows by a factor of {rows[-1]['stride'] // rows[0]['stride']}, and the mean size lies between "
    f"{min(means):.1f} and {max(means):.1f}."
)

# %% [markdown]
# What the box head gets to see: a proposal on the followed image, its cells, and the three pooled channels that vary most within it, each coloured on a
# scale of its own.

# %% cellView="form"
# @title What this cell draws: a proposal, its 7 x 7 cells and three pooled channels
with torch.no_grad():
    pooled = model.pool(features, rois, image_of, POOL_SIZE)
chosen = int(ours[-1])  # the best proposal of the followed image's last object
x1, y1, x2, y2 = given[0][chosen].tolist()
channels = pooled[chosen].std(dim=(1, 2)).topk(3).indices.tolist()
fig, axes = plt.subplots(1, 4, figsize=(12, 3))
for ax, channel in zip(axes, [None, *channels], strict=True):
    draw.image(ax, seen.pictures[0])
    if channel is None:
        for step in range(1, POOL_SIZE):
            a, b = x1 + (x2 - x1) * step / POOL_SIZE, y1 + (y2 - y1) * step / POOL_SIZE
            ax.plot([a, a], [y1, y2], [x1, x2], [b, b], color=draw.COLOURS["predicted"], linewidth=0.7)
    else:
        ax.imshow(pooled[chosen, channel].numpy(), extent=(x1, x2, y2, y1), alpha=0.8)
    draw.boxes(ax, given[0][chosen][None], "predicted", linewidth=2)
    ax.set(xlim=(0, content[1]), ylim=(content[0], 0))
    ax.set_title(
        f"7 × 7 cells of {LEVELS[levels[chosen] - 2]}" if channel is None else f"channel {channel}", fontsize=10
    )
draw.legend(axes[0], {"predicted": "proposal, and its cells"})
axes[1].set_xlabel("yellow: the channel's highest, dark violet: its lowest", fontsize=8)
fig.tight_layout()
_ = save_figure(fig, "04_pooled")
plt.show()

peaks = [divmod(int(pooled[chosen, channel].argmax()), POOL_SIZE) for channel in channels]
Markdown(
    f"This is the best proposal of the {NAMES[-1]}: "
    + "; ".join(
        f"channel {c} is highest in row {r + 1}, column {k + 1}" for c, (r, k) in zip(channels, peaks, strict=True)
    )
    + (". Each answers to another place: " if len(set(peaks)) == len(peaks) else ". ")
    + "the cells keep not only what is in the box but where in it, and only so can the head tell which way to move it. "
    + f"All {pooled.shape[1]} channels together, {pooled[chosen].numel():,} numbers, are what the head knows of it."
)

# %% [markdown]
# ## The box head (§6.2)
#
# The pooled region is flattened; two linear layers with ReLU follow, then two read-outs side by side: $C + 1$ class logits and $4C$
# deltas, four numbers a class that move the box (defined with the targets below). **Predict**, for the sheet ($F = 256$, $P = 7$, two layers of 1024, $C = 3$): how many numbers go in, and what share of all
# parameters the first layer holds.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
inputs, share = 256 * 7 * 7, 0.92
### END SOLUTION

# %% [markdown]
# $F P^2$ numbers go in, and each of the 1024 neurons behind has a weight for every one of them:

# %%
with torch.device("meta"):  # shapes only
    of_sheet = boxhead.BoxHead(channels=256, hidden=1024, classes=3)
total = sum(p.numel() for p in of_sheet.parameters())
rows = []
for (name, sheet), ours_too in zip(of_sheet.named_parameters(), model.box_head.parameters(), strict=True):
    if sheet.dim() == 2:  # the weights; a bias has one number for each output
        shapes = [f"{v.shape[1]:,} → {v.shape[0]:,}" for v in (sheet, ours_too)]
        rows.append({"layer": name.removesuffix(".weight"), "sheet": shapes[0], "its weights": sheet.numel()})
        rows[-1] |= {"share": f"{sheet.numel() / total:.2%}", "this profile": shapes[1]}
first_layer = of_sheet.mlp[0]
assert inputs == first_layer.in_features == 12_544 and abs(share - first_layer.weight.numel() / total) < 0.01
display(report.markdown(rows))
here = sum(p.numel() for p in model.box_head.parameters())
Markdown(
    f"In all {total / 1e6:.1f} million parameters on the sheet, {here / 1e6:.2f} million in this profile. Training "
    "holds four numbers for each: itself, its gradient, and two running means of the optimiser "
    f"([AdamW](https://arxiv.org/abs/1711.05101)). That is {16 * total / 1e6:.0f} MB for the sheet's head in float32, "
    "half of it the optimiser's."
)

# %% [markdown]
# The head of this profile, drawn, and its code:

# %%
show(boxhead.BoxHead)
diagrams.box_head(config)

# %% [markdown]
# **Why a box for each class?** A proposal over a person in front of a vehicle has two right answers. One box for all classes would settle
# between them; one for each class never has to. The classifier then says whose is kept.
#
# There is no softmax here: the loss works on logits, and `refine` (below) turns them into probabilities.

# %% [markdown]
# ## Targets (§6.1)
#
# A proposal is of the class of the object that it overlaps most **if that IoU is above 0.4**, otherwise background. One object, a person
# (class 2), 10 × 10. **Predict** the class of three proposals: its own box, its upper half, its upper 40 %.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
predicted_classes = [2, 2, 0]
### END SOLUTION

# %% [markdown]
# Their IoU is 1, 0.5 and exactly 0.4, which is not *above* 0.4. (A proposal of background is given itself as its aim; no loss reads that.)

# %%
gt, gt_label = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([2])
three = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 5], [0.0, 0, 10, 4]])
labels, aims = boxhead.box_targets(three, gt, gt_label, boxhead.BoxHeadConfig(positive_iou=0.4))
assert labels.tolist() == predicted_classes
torch.testing.assert_close(aims, torch.stack([gt[0], gt[0], three[2]]))
show(boxhead.box_targets, matching.match_proposals)

# %% [markdown]
# ### The regressor's target, and a slip of the pen
#
# $$t_x^*=\frac{x^*-x_p}{w_p},\quad t_y^*=\frac{y^*-y_p}{h_p},\quad t_w^*=\log\frac{w^*}{w_p},\quad t_h^*=\log\frac{h^*}{h_p}$$
#
# These four are the deltas, relative to the **p**roposal; $x, y$ is a box's centre, $w, h$ its size. In one line the sheet has $h_a$, the anchor's height, under $t_y$: a slip. The upper half
# of our object, 5 high, must move its centre by 2.5 and double its height: $t_y^* = 2.5 / 5$, $t_h^*=\log2$.

# %%
t_star = boxes.encode(aims, three)[1]
torch.testing.assert_close(t_star, torch.tensor([0.0, 0.5, 0.0, math.log(2)]))
slip = torch.tensor([0.0, 2.5 / 8, 0.0, math.log(2)])  # with an anchor 8 high
print("decoded:", boxes.decode(t_star, three[1]).tolist(), " with the slip:", boxes.decode(slip, three[1]).tolist())

# %% [markdown]
# ### Three to one
#
# The proposals of objects alone teach the regressor. So §6.3 draws $M$ proposals, three of objects to one of background, as far as there are so many.
# **Predict**: $M$ is 256, and the batch has 100 proposals of objects and 1,500 of background. How many of each are drawn?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
objects_drawn, background_drawn = 100, 156
### END SOLUTION

# %% [markdown]
# 192 objects are wanted, 100 are there, and background fills the rest: the size is kept, the ratio where it can be.

# %%
drawn = matching.sample(torch.tensor([2] * 100 + [0] * 1500), size=256, positive_fraction=0.75)
assert (objects_drawn, background_drawn) == (int((drawn < 100).sum()), int((drawn >= 100).sum()))
show(boxhead.sample_proposals)

# %% [markdown]
# Counted on our images, with proposals as in training (by `rpn.train`; `given` is by `rpn.test`):

# %%
with torch.no_grad():
    for_training = model.propose(features, content, training=True)
torch.manual_seed(0)
minibatch = boxhead.sample_proposals(for_training, seen.targets, config.boxhead)
pairs = zip(for_training, seen.targets, strict=True)
all_labels = torch.cat([boxhead.box_targets(p["boxes"], t["boxes"], t["labels"], config.boxhead)[0] for p, t in pairs])
rows = []
for name, values in (("all proposals", all_labels), ("minibatch", minibatch["labels"])):
    positive = int((values > 0).sum())
    row = {"": name, "objects": positive, "background": len(values) - positive}
    rows.append(row | {"share of objects": positive / max(1, len(values))})
wanted = round(config.boxhead.batch_samples * config.boxhead.positive_fraction)
assert rows[1]["objects"] == min(wanted, rows[0]["objects"])
report.markdown(rows)

# %% [markdown]
# On the image we follow, a few of each class's proposals, from the one that overlaps its object best to the one that does least; and the background
# that was drawn:

# %% cellView="form"
# @title What this cell draws: the followed image's proposals of objects, and those of background in the minibatch
proposed = for_training[0]["boxes"]
labels, _ = boxhead.box_targets(proposed, target["boxes"], target["labels"], config.boxhead)
background = minibatch["rois"][(minibatch["images"] == 0) & (minibatch["labels"] == 0)]
iou = boxes.iou_matrix(proposed, target["boxes"])
best = iou.max(dim=1).values
panels = []  # what a panel draws: boxes, their kind, the kind's name, the title
for n in draw.most_frequent(target["labels"], 2):
    mine = (labels == n).nonzero().flatten()
    mine = mine[best[mine].argsort(descending=True)]
    few = mine[torch.linspace(0, len(mine) - 1, min(6, len(mine))).round().long()]
    title = f"{len(few)} of {len(mine)} proposals of class {CLASS_NAMES[n]}"
    panels.append((proposed[few], [n] * len(few), {n: CLASS_NAMES[n]}, title))
panels.append((background, "negative", {"negative": "background"}, f"{len(background)} drawn of background"))
fig, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.5))
for ax, (drawn, kind, name, title) in zip(axes, panels, strict=True):
    draw.image(ax, seen.pictures[0], margin=4)
    draw.boxes(ax, target["boxes"], "truth", linewidth=2)
    draw.boxes(ax, drawn, kind, linewidth=1.4)
    ax.set_title(title, fontsize=10)
    draw.legend(ax, {"truth": "object"} | name)
fig.tight_layout()
_ = save_figure(fig, "04_samples")
plt.show()

over = iou > config.boxhead.positive_iou
counts = {CLASS_NAMES[n]: int((labels == n).sum()) for n in target["labels"].unique().tolist()}
iou = boxes.iou_matrix(background, target["boxes"])
shared = iou / (1 + iou) * (boxes.area(background)[:, None] + boxes.area(target["boxes"]))  # pixels of both
pieces = (shared / boxes.area(background)[:, None] > 0.5).any(dim=1)
alike = int((boxes.iou_matrix(background, background).triu(1) > 0.8).sum())
Markdown(
    f"Of {int((labels > 0).sum())} proposals of objects "
    + " and ".join(f"{count} are of class {name}" for name, count in counts.items())
    + f"; {int((over.sum(dim=1) > 1).sum())} lie over several objects and go to the one they overlap most. Of the "
    f"{len(background)} of background on the right, {int(pieces.sum())} lie by more than half inside an object"
    + (": these teach the head to tell a piece from a whole." if pieces.any() else ".")
    + (" (Boxes of nearly the same place look like one.)" if alike else "")
)

# %% [markdown]
# ## The losses (§6.3)
#
# $$L_{cls}=-\frac1M\sum_i\log p_i^{(p_i^*)}\qquad
# L_{reg}=\frac1M\sum_i\sum_{c=1}^{C}\mathbb 1(p_i^*=c)\sum_{j=1}^4\mathrm{smooth}_{L1}\big(t_{ij}^{(c)}-t_{ij}^*\big)$$
#
# The box of the **true** class alone is judged, as in [Fast R-CNN](https://arxiv.org/abs/1504.08083). Background has no box to aim at, and deltas of 0 as its target
# would teach the regressor to leave boxes where they are, on features that look much like an object's. Both sums are divided by the same $M$.
#
# **By hand**, on three proposals:
#
# 1. person (2), logits (0, 0, log 5, 0): $p = 5/8$, loss 0.4700; its person box is off by 0.2: $0.5 · 0.04 = 0.02$
# 2. background (0), logits (log 3, 0, 0, 0): $p = ½$, loss 0.6931; no box
# 3. vehicle (1), all logits 0: $p = ¼$, loss 1.3863; its vehicle box is off by 3: $3 - 0.5 = 2.5$
#
# The means over $M = 3$ are 0.8498 and 0.84.

# %%
labels = torch.tensor([2, 0, 1])
logits = torch.tensor([[0, 0, math.log(5), 0], [math.log(3), 0, 0, 0], [0, 0, 0, 0]])
deltas = torch.full((3, 3, 4), 77.0)  # absurd boxes wherever nobody should look
deltas[0, 2 - 1] = torch.tensor([0.2, 0, 0, 0])
deltas[2, 1 - 1] = torch.tensor([0, -3.0, 0, 0])
truth = torch.zeros(3, 4)


def naive_losses(logits, deltas, labels, truth):
    classification = regression = 0.0
    for z, t, label, t_star in zip(logits.tolist(), deltas.tolist(), labels.tolist(), truth.tolist(), strict=True):
        classification -= math.log(math.exp(z[label]) / sum(map(math.exp, z)))
        if label > 0:
            distances = [abs(a - b) for a, b in zip(t[label - 1], t_star, strict=True)]
            regression += sum(0.5 * d * d if d <= 1 else d - 0.5 for d in distances)
    return torch.tensor([classification, regression]) / len(labels)


by_hand = naive_losses(logits, deltas, labels, truth)
torch.testing.assert_close(by_hand, torch.tensor([0.8498, 0.8400]), atol=1e-4, rtol=0)
torch.testing.assert_close(torch.stack(list(boxhead.box_loss(logits, deltas, labels, truth).values())), by_hand)
show(boxhead.box_loss)

# %% [markdown]
# ## Train, or load what was trained
#
# Backbone and RPN stay frozen; the box head alone learns, in notebook 3's loop, from the backbone's maps that the RPN's stage has stored.
#
# **Predict** the classifier's loss before the first step, when the head knows nothing of the $C + 1$ classes.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
first_loss = math.log(len(config.classes) + 1)
### END SOLUTION

# %% [markdown]
# Not yet knowing anything, it gives every class about the probability $1 / (C + 1)$, whose loss is $\log(C+1)$.

# %%
torch.manual_seed(0)
untrained = boxhead.BoxHead(features[0].shape[1], config.boxhead.hidden, len(config.classes))
with torch.no_grad():
    z, _ = untrained(model.pool(features, minibatch["rois"], minibatch["images"], POOL_SIZE))
measured = float(F.cross_entropy(z, minibatch["labels"]))
print(f"predicted {first_loss:.2f}, measured {measured:.2f}")
assert abs(measured - first_loss) < 0.3

# %% [markdown]
# Now the training, or what an earlier one left on disk. The losses as they enter the sum, the regression times its weight: in training the mean over an
# epoch, while the head changes; on val at the epoch's end.

# %%
WEIGHTS = train_until("boxhead", config, DATA, WEIGHTS)
model = load_model(WEIGHTS, "boxhead", config)
history = read_history(WEIGHTS, "boxhead")
fig = report.learning_curves_figure(WEIGHTS, "boxhead")
_ = save_figure(fig, "04_learning_curves")
display(fig)

last, names = history[-1], ("box_class", "box_regression")
gaps = {name: last[f"val_{name}"] / last[f"train_{name}"] for name in names if f"val_{name}" in last}
apart = [
    f"the {name.replace('_', ' ')} loss is {gap:.1f} times as high on val as in training" for name, gap in gaps.items()
]
by_heart = max(gaps.values(), default=0) > 1.2
Markdown(
    f"After epoch {len(history)}, {' and '.join(apart or ['there is no val split to compare with'])}. "
    + (
        "More than 1.2 times, say, is a gap: the head has begun to know its training images by heart."
        if by_heart
        else "Up to 1.2 times, say, is no gap: it does not know its training images by heart yet."
    )
)

# %% [markdown]
# ### Two magnitudes, and the weight between them (§6.4)
#
# A good proposal's deltas are small, and smooth L1 *squares* small numbers; cross entropy does not. So the sheet asks for a weight that lets both losses be heard:
# `boxhead.loss_weight`. How far apart are they with the weight divided out again? (Trained *without* it, the head would be another.)

# %%
weight, rows = config.boxhead.loss_weight, []
for row in {row["epoch"]: row for row in (history[0], history[-1])}.values():
    split = "val" if "val_box_class" in row else "train"
    classification, regression = row[f"{split}_box_class"], row[f"{split}_box_regression"] / weight
    ratio = classification / max(regression, 1e-9)
    row = {"epoch": int(row["epoch"]), "losses of": split, "class": classification, "regression": regression}
    rows.append(row | {"class / regression": ratio})
report.save_table(rows, "04_magnitudes")
display(report.markdown(rows))
heard = (
    "of the same order: both are heard"
    if 1 / 3 < weight / ratio < 3
    else "far from that: one of the two is hardly heard"
)
Markdown(
    f"For this head, equal magnitudes need a weight of {ratio:.1f} after the last epoch. The config has {weight:g}, "
    f"{heard}."
)

# %% [markdown]
# ## What it gets right
#
# First all of validation through the head, once. For every proposal we keep its true class, its predicted class, and, where there is an
# object, its IoU with that object before and after the regressor moved it (by the deltas of its true class, so that the classifier's
# mistakes stay out of it).

# %%
table = {name: [] for name in ("truth", "predicted", "before", "after")}
detections, objects = [], []
model.to(device())
for batch, batch_targets in loader(val, config.evaluation.batch_size, device()):
    x, batch_targets, _ = prepare(batch.to(device()), batch_targets, config.image)
    with torch.no_grad():
        maps = model.features(x)
        proposed = [p["boxes"] for p in model.propose(maps, content)]
        logits, deltas = (v.cpu() for v in model.classify(maps, proposed))
    proposed = [p.cpu() for p in proposed]
    pairs = zip(proposed, batch_targets, strict=True)
    truth, aims = zip(*(boxhead.box_targets(p, t["boxes"], t["labels"], config.boxhead) for p, t in pairs), strict=True)
    truth, aims, stacked = torch.cat(truth), torch.cat(aims), torch.cat(proposed)
    at = truth.nonzero().flatten()  # the proposals of objects
    refined = boxes.clip(boxes.decode(deltas[at, truth[at] - 1], stacked[at]), *content)
    table["truth"].append(truth)
    table["predicted"].append(logits.argmax(dim=1))
    table["before"].append(boxes.iou_matrix(stacked[at], aims[at]).diagonal())
    table["after"].append(boxes.iou_matrix(refined, aims[at]).diagonal())
    detections += boxhead.refine(logits, deltas, proposed, content, config.boxhead)
    objects += batch_targets
model.cpu()
table = {name: torch.cat(parts) for name, parts in table.items()}
print(f"{len(objects)} images, {len(table['truth'])} proposals, {len(table['before'])} of them on an object")

# %% [markdown]
# ### On the image we follow
#
# Its proposals through the head:

# %%
with torch.no_grad():
    logits, deltas = model.classify(features, given)
counts = [len(g) for g in given]
outputs = list(zip(logits.split(counts), deltas.split(counts), given, strict=True))  # of each image
z, t, proposed = outputs[0]
scores, classes = z.softmax(dim=1)[:, 1:].max(dim=1)
surest = scores.topk(min(12, len(scores))).indices
moved = boxes.clip(boxes.decode(t[surest, classes[surest]], proposed[surest]), *content)
between = int(overlap.min(dim=1).values.argmax())  # whose least overlap is greatest: it lies over all
present = target["labels"].unique()
a_class = boxes.clip(boxes.decode(t[between, present - 1], proposed[between].expand(len(present), 4)), *content)
kept = boxhead.refine(logits, deltas, given, content, config.boxhead)


def mean_overlap(some):
    """The mean IoU of two different ones of these boxes."""
    return (boxes.iou_matrix(some, some).sum() - len(some)) / (len(some) * (len(some) - 1))


bundles = []
for n in sorted(set(classes[surest].tolist())):
    mine = classes[surest] == n
    if mine.sum() > 1:
        was, now = (float(mean_overlap(v[mine])) for v in (proposed[surest], moved))
        bundles.append(f"{CLASS_NAMES[n + 1]} {was:.2f} as proposals, {now:.2f} moved")
own = boxes.iou_matrix(a_class, target["boxes"])
lines = []
for row, label in enumerate(present.tolist()):
    same = (target["labels"] == label).nonzero().flatten()
    n = int(same[own[row, same].argmax()])
    name, was, now = CLASS_NAMES[label], float(overlap[between, n]), float(own[row, n])
    lines.append(f"its box as {name} overlaps the {name} by {now:.2f} (the proposal itself by {was:.2f})")

# %% [markdown]
# Left, the surest proposals are dotted, what became of them solid: do a class's dotted boxes end in one solid bundle? Middle: does each class's box find its own object?

# %% cellView="form"
# @title What this cell draws: on the followed image, boxes before and after, a box for each class, and the detections
fig, axes = plt.subplots(1, 3, figsize=(12, 3.5))
for ax in axes:
    draw.image(ax, seen.pictures[0])
    draw.boxes(ax, target["boxes"], "truth", linewidth=2.2)
draw.boxes(axes[0], proposed[surest], classes[surest] + 1, dotted=True, linewidth=1)
draw.boxes(axes[0], moved, classes[surest] + 1, linewidth=1.2)
draw.boxes(axes[1], proposed[between][None], "predicted", linewidth=2)
draw.boxes(axes[1], a_class, present, linewidth=1.8)
draw.detections(axes[2], kept[0], CLASS_NAMES)
as_class = " and as ".join(CLASS_NAMES[n] for n in present.tolist()[:2])
titles = f"{len(surest)} proposals (dotted), moved (solid)", f"one proposal, its boxes as {as_class}", "the detections"
for ax, title in zip(axes, titles, strict=True):
    ax.set_title(title, fontsize=10)
draw.legend(axes[0], {"truth": "object"} | key(classes[surest] + 1))
draw.legend(axes[1], {"truth": "object", "predicted": "the proposal"} | key(present))
draw.legend(axes[2], {"truth": "object"} | key(kept[0]["labels"][kept[0]["scores"] >= 0.5]))
fig.tight_layout()
_ = save_figure(fig, "04_refined")
plt.show()

p, sure = z[between].softmax(dim=0), int((kept[0]["scores"] >= 0.5).sum())
called = int(p.argmax())
own_class = int(boxhead.box_targets(proposed, target["boxes"], target["labels"], config.boxhead)[0][between])
verdict = (
    "which is its class by §6.1 too"
    if called == own_class
    else f"but by §6.1 its class is {CLASS_NAMES[own_class]}: the matrix below counts it as a mistake"
)
Markdown(
    (f"On the left, the mean IoU of two boxes of a class is: {', '.join(bundles)}. " if bundles else "")
    + f"The proposal in the middle: {', and '.join(lines)}. Its most probable class, {CLASS_NAMES[called]} "
    f"({float(p.max()):.2f}), decides {'which box is' if called else 'that no box is'} kept; {verdict}. "
    f"On the right, {sure} detections with a score of at least ½ are left for "
    f"{len(NAMES)} object{'s'[: len(NAMES) > 1]}."
)

# %% [markdown]
# ### Does the regressor bring boxes closer?
#
# On the right, a proposal above the line was brought closer, one below it was moved away:

# %% cellView="form"
# @title What this cell draws: the IoU of proposals with their objects, before and after
before, after = table["before"], table["after"]
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
bins, green = torch.linspace(0, 1, 41).numpy(), draw.COLOURS["predicted"]
for values, colour, label in ((before, green, f"before: {len(before)} proposals"), (after, "black", "after: moved")):
    left.hist(values.numpy(), bins, histtype="step", color=colour, linewidth=1.5, label=label)
left.set(xlabel="IoU with the object", ylabel="count")
right.scatter(before, after, s=5, alpha=0.4, color="black", edgecolors="none", label="a proposal of an object")
right.plot([0, 1], [0, 1], color=green, linewidth=1.5, label="not moved; above: better")
right.set(xlim=(0.3, 1), ylim=(0, 1.02), xlabel="IoU before", ylabel="IoU after")
for ax, place in ((left, "upper left"), (right, "lower right")):
    ax.legend(frameon=False, fontsize=8, loc=place)
fig.tight_layout()
_ = save_figure(fig, "04_iou")
plt.show()

rows, gains = [], []
for low, high in ((0.4, 0.5), (0.5, 0.6), (0.6, 0.7), (0.7, 1.0)):
    mine = (before > low) & (before <= high)
    if mine.any():
        means, closer = [float(v[mine].mean()) for v in (before, after)], float((after > before)[mine].float().mean())
        gains.append(means[1] - means[0])
        row = {"IoU before": f"{low} to {high}", "proposals": int(mine.sum()), "mean before": means[0]}
        rows.append(row | {"mean after": means[1], "came closer": f"{closer:.0%}"})
trend = "the further off a proposal was, the more it gained" if gains == sorted(gains, reverse=True) else "row by row"
if rows:
    report.save_table(rows, "04_refinement")
    display(report.markdown(rows))
    share_closer, worse = float((after > before).float().mean()), after < before
    said = (
        f"{share_closer:.0%} of the boxes came closer to their object, {float(worse.float().mean()):.1%} moved away. "
    )
    said += f"The mean IoU goes from {float(before.mean()):.3f} to {float(after.mean()):.3f}; {trend}: "
    said += ", ".join(f"{gain:+.2f}" for gain in gains)
    said += f". {int((worse & (before > 0.7)).sum())} of the {int(worse.sum())} moved away had been above 0.7 already."
    display(Markdown(said))

# %% [markdown]
# ### Which class is taken for which?
#
# A row is a true class by §6.1 (background: IoU up to 0.4), a column what the head says. Mistakes lie off the diagonal:

# %% cellView="form"
# @title What this cell draws: the classes of the validation proposals, true and predicted
confusion = torch.zeros(len(CLASS_NAMES), len(CLASS_NAMES), dtype=torch.long)
confusion.index_put_((table["truth"], table["predicted"]), torch.tensor(1), accumulate=True)
shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
shown = [0, *draw.most_frequent(table["truth"])]  # of many classes, the ten most frequent
fig, ax = plt.subplots(figsize=(2 + 0.9 * len(shown), 1.2 + 0.9 * len(shown)))
ax.imshow(shares[shown][:, shown], cmap="Greens", vmin=0, vmax=1)
for y, r in enumerate(shown):
    for x, c in enumerate(shown):
        colour = "white" if shares[r, c] > 0.6 else "black"
        ax.text(x, y - 0.08, f"{shares[r, c]:.0%}", ha="center", va="center", color=colour, fontsize=12)
        ax.text(x, y + 0.24, f"{confusion[r, c]}", ha="center", va="center", color=colour, fontsize=8)
ticks, names = range(len(shown)), [CLASS_NAMES[n] for n in shown]
ax.set(xticks=ticks, yticks=ticks, xticklabels=names, yticklabels=names)
ax.set(xlabel="predicted", ylabel="true", title="share of the row, and count")
fig.tight_layout()
_ = save_figure(fig, "04_confusion")
plt.show()

right, mistakes = confusion.diagonal().sum(), confusion.clone().fill_diagonal_(0)
(wrong, said), worst = divmod(int(mistakes.argmax()), len(confusion)), int(mistakes.max())
is_object, called = (float((table[column] > 0).float().mean()) for column in ("truth", "predicted"))
too_many = called > is_object and float((minibatch["labels"] > 0).float().mean()) > 0.5
why = " It learnt from minibatches in which most were: exercise 4.3." if too_many else ""
Markdown(
    f"{float(right / len(table['truth'])):.0%} of {len(table['truth']):,} proposals are named rightly; "
    f"{1 - is_object:.0%} would be if all were called background. "
    f"The most frequent mistake: {CLASS_NAMES[wrong]} taken for {CLASS_NAMES[said]}, {worst} times. "
    f"The head calls {called:.0%} of the proposals objects, and {is_object:.0%} are.{why}"
)

# %% [markdown]
# ## From boxes to detections (§6.5)
#
# **In testing:** clip; drop boxes whose most probable class is background; keep the $K'$ best; NMS (notebook 3) *within each class*; keep the $N'$ best.
# **While the mask head learns:** clip what crosses the border, or drop it (`boxhead.cross_boundary`); keep boxes with IoU above 0.5 with an object; then again the $K'$
# best, NMS, the $N'$ best, handed on with the *object's* class. A second NMS is needed: the regressor has moved many proposals onto the same object. The score is the class's probability.
#
# Within each class, so that a person's box does not delete the vehicle's behind it. **Predict** which of three boxes at the
# very same place stay: person 0.9, animal 0.8, person 0.7.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
stay = [0, 1]
### END SOLUTION

# %% [markdown]
# The second person repeats the first and goes; the animal may be another object, and stays.

# %%
same_place = torch.tensor([[0.0, 0, 10, 10]] * 3)
assert batched_nms(same_place, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([2, 3, 2]), 0.5).tolist() == stay
show(boxhead.refine, boxhead._best_class, boxhead._top)


# %% [markdown]
# Naively, one proposal and one step at a time:

# %%
def naive_detections(logits, deltas, given, target=None):
    """§6.5 for one image, in testing, or in training when a target is given -> (score, label, box) kept, and counts."""
    limits, found = config.boxhead.test if target is None else config.boxhead.train, []
    for z, t, proposal in zip(logits, deltas, given, strict=True):
        p = z.softmax(dim=0)
        label = 1 + int(p[1:].argmax())
        box = boxes.decode(t[label - 1], proposal)
        if target is None:
            box, keep = boxes.clip(box, *content), p[label] > p[0]
            keep = keep and (box[2:] - box[:2]).min() >= boxes.MIN_SIZE
        else:
            box = boxes.clip(box, *content) if config.boxhead.cross_boundary == "clip" else box
            covers = boxes.iou_matrix(box[None], target["boxes"])[0] > MASK_POSITIVE_IOU
            keep = boxes.inside(box, *content) and bool(covers.any())
        if keep:
            found.append((float(p[label]), label, box))
    best, kept = sorted(found, key=lambda f: -f[0])[: limits.pre_nms], []
    for score, label, box in best:
        rivals = [b for _, other, b in kept if other == label]
        if not rivals or boxes.iou_matrix(box[None], torch.stack(rivals)).max() <= limits.nms_iou:
            kept.append((score, label, box))
    counts = {"proposals": len(given), "admitted": len(found), "top K'": len(best), "after NMS": len(kept)}
    return kept[: limits.post_nms], counts | {"top N'": len(kept[: limits.post_nms])}


# %%
for_masks = boxhead.refine_for_training(logits, deltas, given, seen.targets, content, config.boxhead)
rows = []
kept = boxhead.refine(logits, deltas, given, content, config.boxhead)
for name, of_lib, goal in (("testing", kept[0], None), ("training", for_masks[0], target)):
    found, counts = naive_detections(*outputs[0], goal)
    by_hand = torch.stack([box for _, _, box in found]) if found else torch.zeros(0, 4)
    torch.testing.assert_close(of_lib["boxes"], by_hand, atol=1e-3, rtol=1e-4)
    rows.append({"mode": name} | counts)
display(report.markdown(rows))
limits = [
    f"{name}, $K'$ = {v.pre_nms}, $N'$ = {v.post_nms} and NMS above an IoU of {v.nms_iou:g}"
    for name, v in (("testing", config.boxhead.test), ("training", config.boxhead.train))
]
across = {"clip": "clipped", "remove": "dropped"}[config.boxhead.cross_boundary]
per_image = sum(len(c["boxes"]) for c in for_masks) / len(for_masks)
Markdown(
    f"In {'; in '.join(limits)}; what crosses the border in training is {across}. On the image we follow, the head "
    f"calls {rows[0]['admitted']} of {rows[0]['proposals']} proposals objects ({near} are, by §6.1), and NMS "
    f"leaves {rows[0]['after NMS']}. The mask head would learn from {per_image:.1f} boxes an image. §6.5 aims "
    "at about 100 of 1000 proposals; this profile keeps at most "
    f"$N'$ = {config.boxhead.train.post_nms} of {config.rpn.test.post_nms}."
)


# %% [markdown]
# ## What it gets wrong
#
# Each object is found (a detection of its class with score ≥ ½ and IoU ≥ ½), misnamed (such a detection of another class) or missed. And
# some detections answer to no object, or to one already found.

# %%
def verdicts(found, target):
    """For each object its verdict; the detections too many; and of all the sure ones the best IoU with an object."""
    sure = found["scores"] >= 0.5
    iou = boxes.iou_matrix(target["boxes"], found["boxes"][sure])
    right = (iou >= 0.5) & (target["labels"][:, None] == found["labels"][sure])
    pairs = zip(right.any(dim=1).tolist(), (iou >= 0.5).any(dim=1).tolist(), strict=True)
    names = ["found" if named else "misnamed" if hit else "missed" for named, hit in pairs]
    nearest = iou.max(dim=0).values if len(iou) else torch.zeros(int(sure.sum()))
    return names, int(sure.sum()) - names.count("found"), nearest


# two objects: one found twice, the other taken for a vehicle; so 3 - 1 = 2 detections are too many
toy = {"boxes": torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 60, 60]]), "labels": torch.tensor([2, 3])}
guess = {"boxes": toy["boxes"][[0, 0, 1]], "labels": torch.tensor([2, 2, 1]), "scores": torch.tensor([0.9, 0.8, 0.7])}
assert verdicts(guess, toy)[:2] == (["found", "misnamed"], 2)

# %% [markdown]
# All of validation, class by class:

# %%
outcomes = [verdicts(d, t) for d, t in zip(detections, objects, strict=True)]
said = [v for names, *_ in outcomes for v in names]
labels = torch.cat([t["labels"] for t in objects]).tolist()
rows = []
for label in draw.most_frequent(labels):
    mine = [v for v, n in zip(said, labels, strict=True) if n == label]
    rows.append(
        {"class": CLASS_NAMES[label], "objects": len(mine)}
        | {v: mine.count(v) for v in ("found", "misnamed", "missed")}
    )
report.save_table(rows, "04_outcomes")
display(report.markdown(rows))
extra, nearest = sum(e for _, e, _ in outcomes), torch.cat([iou for *_, iou in outcomes])
nowhere, in_part = int((nearest < 0.1).sum()), int(((nearest >= 0.1) & (nearest < 0.5)).sum())
Markdown(
    f"{said.count('found')} of {len(said)} objects are found, and {extra} of the {len(nearest)} sure detections are "
    f"too many: {in_part} lie on a part of an object, or loosely over it (IoU 0.1 to 0.5), {nowhere} beside all "
    f"objects (IoU below 0.1: stricter than the matrix's background), "
    f"{extra - in_part - nowhere} repeat or rename an object."
)

# %% [markdown]
# The images where most went wrong, with all detections of at least ½:

# %% cellView="form"
# @title What this cell draws: the images with the most mistakes
trouble = [sum(v != "found" for v in names) + more for names, more, _ in outcomes]
worst = sorted(range(len(trouble)), key=lambda n: -trouble[n])[:4]
pictures = as_seen(val, worst, config).pictures
fig, axes = plt.subplots(2, 2, figsize=(11, 8.6))
for ax in axes.flat:
    ax.axis("off")
for n, picture, ax in zip(worst, pictures, axes.flat, strict=False):
    draw.image(ax, picture)
    draw.boxes(ax, objects[n]["boxes"], "truth", linewidth=2.2)
    draw.detections(ax, detections[n], CLASS_NAMES)
    ax.set_title(f"objects: {len(objects[n]['labels'])}, mistakes: {trouble[n]}", fontsize=9)
drawn = torch.cat([detections[n]["labels"][detections[n]["scores"] >= 0.5] for n in worst])
for ax in axes[1]:
    draw.legend(ax, {"truth": "object"} | key(drawn))
fig.tight_layout()
_ = save_figure(fig, "04_mistakes")
plt.show()

nearest_here, more_here = torch.cat([outcomes[n][2] for n in worst]), sum(outcomes[n][1] for n in worst)
parts, beside = int(((nearest_here >= 0.1) & (nearest_here < 0.5)).sum()), int((nearest_here < 0.1).sum())
kinds = {"pieces of an object, or loose boxes around it": parts, "detections beside all objects": beside}
kinds |= {"objects that got two boxes or two names": more_here - parts - beside}
kinds |= {"objects that nothing was found for": sum(outcomes[n][0].count("missed") for n in worst)}
seen_here = "; ".join(kind for kind, count in kinds.items() if count)
Markdown(
    f"{trouble.count(0)} of {len(trouble)} validation images have no mistake at all; these {len(worst)} hold "
    f"{sum(trouble[n] for n in worst)} of all {sum(trouble)} mistakes. "
    + (f"Look for: {seen_here}." if seen_here else "")
)

# %% [markdown]
# ## Summary
#
# - RoIAlign reads the map between its pixels and rounds nothing; a pooled value is one weighted sum of 16 readings.
# - A box's size chooses its level, so that boxes span as many of their map's pixels, within a factor of two, but for the limits at P2 and P5.
# - Nearly all parameters of the head sit in its first layer. Each class has its own box; the predicted class says whose is kept.
# - A proposal is an object's above IoU 0.4; three of them to one of background are drawn, and only the true class's box is judged.
# - Cross entropy and smooth L1 live on different scales; a weight brings them together.
# - NMS runs within each class; a proposal whose most probable class is background is dropped.
#
# And the claim, in this run's numbers:

# %% cellView="form"
# @title What this cell says: the claim in this run's numbers
moved_to = f"from {float(before.mean()):.2f} to {float(after.mean()):.2f}" if len(before) else "nowhere: there are none"
Markdown(
    f"**Naming**: {float(right / len(table['truth'])):.0%} of the {len(table['truth']):,} proposals of validation, "
    f"against {1 - is_object:.0%} by calling all of them background. **Moving**: objects' proposals go {moved_to} in "
    f"mean IoU. **Both**: {said.count('found')} of {len(said)} objects are found, with {extra} detections too many; "
    "those are what is left to mend."
)

# %% [markdown]
# ## Exercises
#
# Write over the cell that begins with `# exercise`; the next one checks. The checks score a box head, the trained one or a fresh one after 40
# steps, on the images of `seen`:

# %%
goals = [
    boxhead.box_targets(g, t["boxes"], t["labels"], config.boxhead) for g, t in zip(given, seen.targets, strict=True)
]
truth, aims = (torch.cat(column) for column in zip(*goals, strict=True))  # of the proposals `rois`
at = truth.nonzero().flatten()


def scored(head, pooled_from=rois):
    """The mean IoU of the objects' proposals after the regressor, and the class that each proposal is called."""
    with torch.no_grad():
        z, t = head(model.pool(features, pooled_from, image_of, POOL_SIZE))
    moved = boxes.clip(boxes.decode(t[at, truth[at] - 1], rois[at]), *content)
    return float(boxes.iou_matrix(moved, aims[at]).diagonal().mean()), z.argmax(dim=1)


@functools.cache
def training_maps():
    """The backbone's maps of six batches of 8 training images, and their targets."""
    train = CourseDataset(DATA, "train", config.data, with_masks=False)
    batches = [as_seen(train, [(8 * n + j) % len(train) for j in range(8)], config) for n in range(6)]
    with torch.no_grad():
        return [(model.features(batch.x), batch.targets) for batch in batches]


def briefly_trained(of, box_loss, steps=40):
    """A fresh head after so many steps on minibatches drawn under the config `of`, its boxes judged by `box_loss`."""
    torch.manual_seed(0)
    stage = BoxHeadStage(model)
    stage.config = of
    samples = [stage.sample(maps, targets, content) for maps, targets in training_maps()]
    head = boxhead.BoxHead(features[0].shape[1], config.boxhead.hidden, len(config.classes))
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for sample in (samples * steps)[:steps]:
        z, t = head(sample["pooled"])
        loss = F.cross_entropy(z, sample["labels"]) + box_loss(t, sample)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return head


# %% [markdown]
# ### Exercise 4.1: RoIPool
#
# The first half of RoIPool: round the corners to whole pixels of the map. Write `to_whole_pixels`. How far does the mean IoU fall when the trained head pools from such
# boxes?

# %%
# exercise 4.1
def to_whole_pixels(rois, levels):
    """Boxes (R, 4), image pixels, and levels (R,) 2 ... 5 -> boxes whose corners are corners of their map's pixels."""
    return None


# %%
# check 4.1
answer = to_whole_pixels(torch.tensor([[3.0, 5, 17, 40], [3.0, 5, 17, 41]]), torch.tensor([2, 4]))
if answer is None:
    print("exercise 4.1: not done yet")
else:
    assert answer.tolist() == [[4, 4, 16, 40], [0, 0, 16, 48]]
    for name, pooled_from in (("RoIAlign", rois), ("whole pixels", to_whole_pixels(rois, levels))):
        print(f"{name}: mean IoU after the regressor {scored(model.box_head, pooled_from)[0]:.3f}")


# %% [markdown]
# ### Exercise 4.2: a stricter threshold
#
# An earlier homework had 0.5 in place of 0.4 (`boxhead.positive_iou`). Write `objects_above`: how many proposals in `given` are an object's then?
# Which are lost, and what would the regressor no longer learn?

# %%
# exercise 4.2
def objects_above(threshold):
    """The number of proposals in `given`, over all images of `seen`, that are an object's at this threshold."""
    return None


# %%
# check 4.2
if objects_above(0.4) is None:
    print("exercise 4.2: not done yet")
else:
    most = [boxes.iou_matrix(g, t["boxes"]).max(dim=1).values for g, t in zip(given, seen.targets, strict=True)]
    for threshold in (0.4, 0.5, 0.7):
        assert objects_above(threshold) == int((torch.cat(most) > threshold).sum())
        print(f"above {threshold}: {objects_above(threshold)} proposals")

# %% [markdown]
# ### Exercise 4.3: three to one, or one to three?
#
# Fast R-CNN draws one proposal of an object to *three* of background, the sheet the other way round. Make the config that draws as Fast R-CNN
# does. Predict first: which head takes more background for objects, and which misses more objects?

# %%
# exercise 4.3
like_fast_rcnn = None


# %%
# check 4.3
def smooth_l1(deltas, sample):
    """The loss of the boxes as the sheet has it, weighted."""
    losses = boxhead.box_loss(torch.zeros(len(deltas), len(CLASS_NAMES)), deltas, sample["labels"], sample["deltas"])
    return config.boxhead.loss_weight * losses["box_regression"]


if like_fast_rcnn is None:
    print("exercise 4.3: not done yet")
else:
    assert like_fast_rcnn == config.replace(**{"boxhead.positive_fraction": 0.25})
    for name, of in (("three to one", config), ("one to three", like_fast_rcnn)):
        _, called = scored(briefly_trained(of, smooth_l1))
        false, missed = int(((called > 0) & (truth == 0)).sum()), int((called[at] == 0).sum())
        print(
            f"{name}: {false} of {len(truth) - len(at)} background called objects, {missed} of {len(at)} objects missed"
        )


# %% [markdown]
# ### Exercise 4.4: judge boxes by their overlap (an extension)
#
# Smooth L1 judges four numbers one by one, but what counts is IoU. Where boxes do not meet, IoU has no gradient.
# [GIoU](https://arxiv.org/abs/1902.09630) has: with $E$ the smallest box around both boxes and $U$ their union,
# $\mathrm{GIoU}=\mathrm{IoU}-(|E|-|U|)/|E|$. Write the loss that takes `smooth_l1`'s place.

# %%
# exercise 4.4
def giou_loss(predicted, aimed_at):
    """Boxes (M, 4) and the boxes (M, 4) that they aim at -> 1 - GIoU of each pair (M,)."""
    return None


# %%
# check 4.4
def by_giou(deltas, sample):
    """The loss of the true class's boxes by GIoU, over all M proposals of the sample."""
    positive = sample["labels"].nonzero().flatten()
    predicted = boxes.decode(deltas[positive, sample["labels"][positive] - 1], sample["rois"][positive])
    return giou_loss(predicted, boxes.decode(sample["deltas"][positive], sample["rois"][positive])).sum() / len(deltas)


a = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 10]], requires_grad=True)
b = torch.tensor([[0.0, 0, 10, 5], [20.0, 0, 30, 10]])  # half of it; and one that does not meet it
if giou_loss(a, b) is None:
    print("exercise 4.4: not done yet")
else:
    torch.testing.assert_close(giou_loss(a, b), torch.tensor([1 - 0.5, 1 + 1 / 3]))
    assert torch.autograd.grad(giou_loss(a, b).sum(), a)[0][1].any(), "a gradient where the boxes do not meet"
    losses = {"smooth L1": smooth_l1, "GIoU": by_giou, "GIoU, weight 10": lambda t, sample: 10 * by_giou(t, sample)}
    for name, loss in losses.items():
        print(f"{name}: mean IoU after the regressor {scored(briefly_trained(config, loss))[0]:.3f}")

# %% [markdown]
# ## References
#
# - R. Girshick: [Fast R-CNN](https://arxiv.org/abs/1504.08083), 2015
# - S. Ren, K. He, R. Girshick, J. Sun: [Faster R-CNN](https://arxiv.org/abs/1506.01497), 2015
# - T.-Y. Lin and others: [Feature Pyramid Networks](https://arxiv.org/abs/1612.03144), 2017
# - K. He, G. Gkioxari, P. Dollár, R. Girshick: [Mask R-CNN](https://arxiv.org/abs/1703.06870), 2017
# - I. Loshchilov, F. Hutter: [AdamW](https://arxiv.org/abs/1711.05101), 2019
# - H. Rezatofighi and others: [Generalized Intersection over Union](https://arxiv.org/abs/1902.09630), 2019

# %% [markdown]
# ## Montage
#
# The image we follow and others, with all detections of at least ½.

# %% cellView="form"
# @title What this cell draws: detections on eight validation images
fig, axes = plt.subplots(2, 4, figsize=(12, 5.2))
for ax in axes.flat[len(kept) :]:
    ax.axis("off")
for ax, picture, goal, found in zip(axes.flat, seen.pictures, seen.targets, kept, strict=False):
    draw.image(ax, picture)
    draw.boxes(ax, goal["boxes"], "truth", linewidth=2.2)
    draw.detections(ax, found, CLASS_NAMES)
drawn = torch.cat([found["labels"][found["scores"] >= 0.5] for found in kept])
draw.legend(axes[1, 0], {"truth": "object"})
draw.legend(axes[1, 1], key(drawn))
fig.tight_layout()
_ = save_figure(fig, "04_montage")
plt.show()
print("exported:", ", ".join(sorted(file.name for file in paths().figures.glob("04_*"))))

# %% [markdown]
# ## Appendix
#
# For those who change the code: how the 16 readings are added up, the head by hand, odd cases, and another way to make detections.

# %% [markdown]
# ### One weighted sum of 16 readings
#
# Write the map as a table with one row a pixel and $F$ numbers in each row; a pooled cell is then "read these 16 rows, multiply by these 16
# weights, add". Deep learning libraries have a fast operation of just this form, made for sums of word vectors: `embedding_bag`. For the
# upper left cell of the first of the `two` boxes on the `random_map`, with `lib`'s helpers: 4 columns with their weights, 4 rows with theirs.

# %%
x, x_weight = roi_align._bilinear(roi_align._sample_points(two[:1, 0] - 0.5, two[:1, 2] - 0.5, 2, 2), 4)
y, y_weight = roi_align._bilinear(roi_align._sample_points(two[:1, 1] - 0.5, two[:1, 3] - 0.5, 2, 2), 4)
columns, column_weights = x[0, :2].flatten(), x_weight[0, :2].flatten()  # the first cell's two points
lines, line_weights = y[0, :2].flatten(), y_weight[0, :2].flatten()
print("columns", columns.tolist(), "weights", [round(w, 2) for w in column_weights.tolist()])
print("rows   ", lines.tolist(), "weights", [round(w, 2) for w in line_weights.tolist()])

# %% [markdown]
# A number that stands twice is a pixel that both points read. 4 rows by 4 columns are 16 readings; their weights add up to 1, as those of a mean must.

# %%
places = (4 * lines[:, None] + columns).flatten()  # pixel (row, column) is row 4 · row + column of the table
weights = (line_weights[:, None] * column_weights / 4).flatten()
assert len(places) == 16 and math.isclose(float(weights.sum()), 1, abs_tol=1e-6)
pixels = random_map.reshape(16, 1)
as_sum = (pixels[places] * weights[:, None]).sum(dim=0)
as_bag = F.embedding_bag(places[None], pixels, per_sample_weights=weights[None], mode="sum")[0]
torch.testing.assert_close(as_sum, roi_align.roi_align(random_map[None, None], two[:1], first, size=2)[0, :, 0, 0])
torch.testing.assert_close(as_bag, as_sum)
print(f"{len(places)} readings of {len(places.unique())} different pixels")

# %% [markdown]
# `roi_align` does this for all cells of all boxes of all images in one call: the images' tables lie one below the other, and each box's
# rows start at its own image. For a pyramid, `pool` calls it once a level, with the boxes of that level. On a random pyramid, with boxes of two
# images, values and gradients are torchvision's:

# %%
show(roi_align.pool)
pyramid = [torch.randn(2, 8, 64 // 2**k, 80 // 2**k, requires_grad=True) for k in range(4)]
corner = torch.rand(50, 2) * torch.tensor([200.0, 150.0])
some = torch.cat([corner, corner + 8 + torch.rand(50, 2) * 90], dim=1)
of_image, of_level = torch.randint(2, (50,)), torch.randint(4, (50,))
pooled = roi_align.pool(pyramid, [1 / s for s in STRIDES[:4]], some, of_image, of_level, 7)
theirs = torch.zeros_like(pooled)
for k, (feature, stride) in enumerate(zip(pyramid, STRIDES, strict=False)):
    mine = of_level == k
    numbered = torch.cat([of_image[mine, None].float(), some[mine]], dim=1)
    theirs[mine] = torchvision.ops.roi_align(feature, numbered, 7, 1 / stride, 2, aligned=True)
torch.testing.assert_close(pooled, theirs, atol=1e-4, rtol=1e-4)
gradients = [torch.autograd.grad(values.square().sum(), pyramid) for values in (pooled, theirs)]
for mine, torchvisions in zip(*gradients, strict=True):
    torch.testing.assert_close(mine, torchvisions, atol=1e-3, rtol=1e-3)
print(f"{len(some)} boxes on 4 levels: values and gradients as torchvision's")

# %% [markdown]
# ### The head by hand
#
# Matrix products and maxima. The order of §6.2.3, $[t_x^{(1)},t_y^{(1)},t_w^{(1)},t_h^{(1)},t_x^{(2)},\dots]$, becomes a row of 4
# for each class.

# %%
torch.manual_seed(0)
small, region = boxhead.BoxHead(channels=2, hidden=16, classes=3), torch.randn(3, 2, 7, 7)
w1, b1, w2, b2, wc, bc, wr, br = [p.detach() for p in small.parameters()]
hidden = (region.permute(0, 2, 3, 1).reshape(3, 98) @ w1.T + b1).clamp(min=0)
hidden = (hidden @ w2.T + b2).clamp(min=0)
with torch.no_grad():
    z, t = small(region)
torch.testing.assert_close(z, hidden @ wc.T + bc)
torch.testing.assert_close(t[:, 1], (hidden @ wr.T + br)[:, 4:8])  # class 2

# %% [markdown]
# ### Odd cases
#
# Without any object, the losses are finite and the gradient flows. Whatever its level, a box pooled from a constant map gives that constant.
# Detections lie inside the content (the picture without its padding), best first, never more than $N'$, never background.

# %%
nobody = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
nothing = boxhead.sample_proposals([{"boxes": given[0]}], [nobody], config.boxhead)
z, t = model.box_head(model.pool(features, nothing["rois"], nothing["images"], POOL_SIZE))
losses = boxhead.box_loss(z, t, nothing["labels"], nothing["deltas"])
assert float(losses["box_regression"].detach()) == 0 and losses["box_class"].isfinite()
sum(losses.values()).backward()
model.zero_grad()
constant = model.pool([torch.full_like(f, 3.0) for f in features], rois, image_of, POOL_SIZE)
torch.testing.assert_close(constant, torch.full_like(constant, 3.0))
for found in kept:
    assert len(found["boxes"]) <= config.boxhead.test.post_nms and boxes.inside(found["boxes"], *content).all()
    assert (found["scores"].diff() <= 0).all() and ((found["labels"] >= 1) & (found["labels"] < len(CLASS_NAMES))).all()

# %% [markdown]
# ### Every class above a threshold
#
# With `boxhead.test.score_threshold` above 0, which joint training (notebook 6) sets, a proposal becomes a box of every class whose probability is above it,
# not of the best class alone: as in Fast R-CNN, and good for AP (average precision, notebook 6), which counts a right second guess.

# %%
show(boxhead._every_class)
several = config.replace(**{"boxhead.test.score_threshold": 0.05}).boxhead
more = boxhead.refine(logits, deltas, given, content, several)
few, many = (sum(len(d["boxes"]) for d in found) for found in (kept, more))
print(f"detections: {few} of the best class, {many} of every class above 0.05")

# %% [markdown]
# ## The browser
#
# Every validation image (on GitHub a picture of the first). Pull *NMS of boxes: IoU*: a box is dotted where a better one of its class overlaps it more.
# Raise *score at least*: how many mistakes go before the first right box? Under *stage*: the proposals they come from.

# %%
from lib.notebook import browser

stages = browser.StageBrowser(model, val, stage="boxhead")
stages.part.value = stages.part.options[-1]  # begin with the refined boxes
stages
