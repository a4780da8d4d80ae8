# %% [markdown]
# # 2 · Anchors: thousands of guesses, and which of them are right
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-from-its-parts/maskrcnn-from-its-parts/blob/main/notebooks/02_anchors.ipynb)
#
# **The claim.** Detection becomes a classification of fixed boxes. Laid out over five levels they cover every object somehow, but only a
# handful an image fit well enough to count as right: of 217,413 at the assignment's size, of some ten thousand here. All of the next notebook
# follows from this imbalance.
#
# **Run time:** under a minute on one CPU core. Nothing is trained.
#
# **Inputs → outputs.** `data/` (written if missing) → `figures/02_positives.csv` and `.tex`, and the pictures `figures/02_*`.

# %% [markdown]
# ## Goals, and where this part sits
#
# ```
# image ──► backbone + FPN ──► RPN ──► RoIAlign ──► box head ──► mask head
#             P2 … P6           ▲
#               └──► [ anchors ──► labels ──► encoded boxes ──► minibatch ]      what the RPN is taught
# ```
#
# After this notebook you can
#
# 1. place the anchors of a level by hand, and count those of a pyramid (§4.1);
# 2. compute an overlap on paper, and label anchors by the rules of §4.2, with ties and thresholds;
# 3. encode a box relative to an anchor and decode it again (§4.3);
# 4. say why so few anchors are positive, and what the 1:1 sampling of §4.4 can and cannot do about it.
#
# § numbers are sections of the assignment.

# %% [markdown]
# ## Set-up
#
# The first cell is the same in all six notebooks.

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
# Everything that belongs to the system is imported from `lib/`. `show` prints a piece's source, so that the code you read is the code
# that runs. This notebook follows the sheet as printed, cross-boundary anchors removed; notebook 03 counts what that does to the upper
# levels, and why both profiles keep them.

# %%
import inspect
import math

import numpy as np
import torch
from IPython.display import Markdown, display
from torch.testing import assert_close

from lib import boxes, matching, rpn
from lib.anchors import LEVELS, STRIDES, anchor_levels, level_anchors, pyramid_anchors, pyramid_grids
from lib.config import load_config
from lib.data.batches import collate, prepare
from lib.data.reader import CourseDataset
from lib.matching import IGNORED, NEGATIVE, POSITIVE
from lib.notebook import browser, draw, report
from lib.preprocess import FRAME, IMAGE_MEAN, IMAGE_STD, preprocess_targets

config = config.replace(**{"rpn.cross_boundary": "remove"})  # §4.2 as printed


def show(*pieces):
    """The source of functions, as it stands in lib/."""
    display(Markdown("\n".join(f"```python\n{inspect.getsource(piece)}```\n" for piece in pieces)))


# %% [markdown]
# ## Symbols
#
# | symbol | meaning | here |
# |---|---|---|
# | $S_y \times S_x$ | cells of a level's grid | `pyramid_grids(...)` |
# | stride | pixels of the input a cell covers, 4, 8, 16, 32, 64 on P2 … P6 | `STRIDES` |
# | $s$, $r$ | an anchor's scale $\sqrt{wh}$ and aspect ratio $w/h$ | `config.anchors.scales`, `config.anchors.ratios` |
# | $a$ | anchors a cell, one for each ratio | 3 |
# | $A$ | anchors of the whole pyramid | `anchors`, $(A, 4)$ |
# | $G$ | objects of an image | `gt`, $(G, 4)$ |
# | $p^*$ | label of an anchor: 1 positive, 0 negative, ignored | `POSITIVE`, `NEGATIVE`, `IGNORED` |
# | $\mathbf t = (t_x, t_y, t_w, t_h)$ | a box relative to an anchor | `boxes.encode` |
# | $M$ | anchors in the sampled minibatch | `config.rpn.batch_samples` |
#
# Boxes are `xyxy` in pixels of the network's input frame. *Content* is the image inside the zero padding. In the pictures: orange-red is
# ground truth, light blue positive, yellow negative, grey ignored.

# %% [markdown]
# ## The idea in one picture
#
# Lay a grid over the image. In each cell's centre put three boxes of the same area: one tall, one square, one wide. These are the cell's
# anchors. They know nothing of the image; they are questions: *is there an object about here, about this large, about this shape?*

# %%
train = CourseDataset(DATA, "train", config.data, with_masks=False)
busy = [i for i in range(len(train)) if len(train[i][1]["boxes"])]
images, targets = collate([train[i] for i in busy[:6]])
x, targets, content = prepare(images, targets, config.image)  # the network's frame (§2)
scenes = [draw.denormalise(image, IMAGE_MEAN, IMAGE_STD)[:, : content[0], : content[1]] for image in x]
grids = pyramid_grids(config.image.padded_size)
anchors = pyramid_anchors(grids, config.anchors)

# %% [markdown]
# One cell of P4 (the dot is its centre) and its three anchors in yellow, with the grid of P4 in the background:

# %%
level = 2
(rows, columns), stride = grids[level], STRIDES[level]
cell = (rows // 2 - 1) * columns + columns // 2
first = sum(3 * sy * sx for sy, sx in grids[:level])
fig, ax = plt.subplots(figsize=(7, 5.4), layout="constrained")
draw.image(ax, scenes[0])
ax.vlines(np.arange(0, content[1], stride), 0, content[0], "white", linewidth=0.5)
ax.hlines(np.arange(0, content[0], stride), 0, content[1], "white", linewidth=0.5)
draw.boxes(ax, anchors[first + 3 * cell :][:3], "negative", linewidth=2.5)
draw.boxes(ax, targets[0]["boxes"], "truth", linewidth=2.5)
ax.plot(
    (cell % columns + 0.5) * stride,
    (cell // columns + 0.5) * stride,
    "o",
    color=draw.COLOURS["negative"],
    markeredgecolor="black",
)
draw.legend(ax, ["truth"])
_ = ax.set_title(f"P4: {rows} x {columns} cells of {stride} pixels; the anchors of one cell")


# %% [markdown]
# ## The equation (§4.1)
#
# The assignment defines an anchor by its ratio and its scale:
#
# $$ r = \frac{w}{h}, \qquad s = \sqrt{wh} . $$
#
# Two equations, two unknowns. Multiply and divide: $s^2 r = w^2$ and $s^2 / r = h^2$, so
#
# $$ w = s \sqrt r, \qquad h = \frac{s}{\sqrt r} . $$
#
# The anchor of cell (row $j$, column $i$) is centred on the cell, $\left(\left(i + \tfrac12\right) \cdot \text{stride},\ \left(j + \tfrac12\right) \cdot
# \text{stride}\right)$.

# %% [markdown]
# ### One cell by hand
#
# Stride 16, scale 64, cell in row 1 and column 2. *Predict:* the centre is $(2.5 \cdot 16,\ 1.5 \cdot 16) = (40, 24)$, and with
# $64 \sqrt{0.5} = 45.25$ and $64 / \sqrt{0.5} = 90.51$
#
# | $r$ | $w$ | $h$ | $x_1$ | $y_1$ | $x_2$ | $y_2$ |
# |---|---|---|---|---|---|---|
# | 1:2 | 45.25 | 90.51 | 17.37 | −21.25 | 62.63 | 69.25 |
# | 1:1 | 64 | 64 | 8 | −8 | 72 | 56 |
# | 2:1 | 90.51 | 45.25 | −5.25 | 1.37 | 85.25 | 46.63 |
#
# All three have the area $64^2 = 4096$.

# %%
def anchor(row, column, stride, scale, ratio):
    """One anchor, from the two equations."""
    x, y = (column + 0.5) * stride, (row + 0.5) * stride
    w, h = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


three = torch.tensor([anchor(1, 2, 16, 64, ratio) for ratio in (0.5, 1, 2)])
predicted = torch.tensor([[17.37, -21.25, 62.63, 69.25], [8, -8, 72, 56], [-5.25, 1.37, 85.25, 46.63]])
assert_close(three, predicted, atol=0.01, rtol=0)
assert_close(boxes.area(three), torch.full((3,), 4096.0))


# %% [markdown]
# Negative coordinates are no mistake: these anchors stick out of the image at the top and at the left. §4.2 will have something to say about
# them.

# %% [markdown]
# ### All anchors of a level
#
# Three nested loops: rows, columns, ratios. The order matters as soon as a network predicts one number for each anchor: its output map must
# be read in the same order.

# %%
def level_by_hand(grid, stride, scale, ratios):
    """All anchors of a level, in the order row, column, ratio."""
    rows, columns = grid
    return torch.tensor(
        [anchor(j, i, stride, scale, ratio) for j in range(rows) for i in range(columns) for ratio in ratios]
    )


small = level_by_hand((2, 3), 16, 16, config.anchors.ratios)
assert small.shape == (2 * 3 * 3, 4)

# %% [markdown]
# *Predict* for a grid of 2 rows and 3 columns: cell (row 1, column 0) is the fourth cell, number 3, and owns the anchors 9, 10 and 11. The
# number of an anchor is
#
# $$ a\,(j \cdot S_x + i) + k , \qquad a = 3 . $$

# %%
assert_close(small[9:12], torch.tensor([anchor(1, 0, 16, 16, ratio) for ratio in config.anchors.ratios]))
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
draw.image(ax, torch.full((3, 32, 48), 60, dtype=torch.uint8), margin=4)
ax.vlines((0, 16, 32, 48), 0, 32, "white", linewidth=0.8)
ax.hlines((0, 16, 32), 0, 48, "white", linewidth=0.8)
draw.boxes(ax, small[9:12], "positive", linewidth=2)
for number, (cx, cy) in enumerate(((small[:, :2] + small[:, 2:]) / 2)[::3].tolist()):
    ax.text(cx, cy, f"{3 * number}, {3 * number + 1}, {3 * number + 2}", color="white", ha="center", va="center")
_ = ax.set_title("numbers of the anchors in each cell; drawn: 9, 10, 11")

# %% [markdown]
# **The part.** `lib` writes the same without loops: centres on a mesh, sizes from the ratios, added by broadcasting.

# %%
show(level_anchors, pyramid_anchors)

# %% [markdown]
# Equal to the loops, for the small grid and for every level of the real pyramid:

# %%
assert_close(level_anchors((2, 3), 16, 16, config.anchors.ratios), small)
pyramid = zip(grids, STRIDES, config.anchors.scales, strict=True)
assert_close(torch.cat([level_by_hand(*level, config.anchors.ratios) for level in pyramid]), anchors)

# %% [markdown]
# ### How many are there?
#
# $A = \sum_i a\, S_{y,i}\, S_{x,i}$. *Predict* for the assignment's input of 800 × 1088:
# $3\,(200 \cdot 272 + 100 \cdot 136 + 50 \cdot 68 + 25 \cdot 34 + 13 \cdot 17) = 3 \cdot 72\,471 = 217\,413$.

# %%
course = load_config("course").replace(**{"image.height": 800, "image.width": 1066, "rpn.cross_boundary": "remove"})
course_anchors = pyramid_anchors(pyramid_grids(course.image.padded_size), course.anchors)
assert len(course_anchors) == 3 * (200 * 272 + 100 * 136 + 50 * 68 + 25 * 34 + 13 * 17) == 217_413


# %% [markdown]
# An anchor is *cross-boundary* when it leaves the image content, 800 × 1066, not the padding: nothing can be learnt from zeros. Level by
# level, how many stay inside?

# %%
def anchor_counts(config):
    """One row for each level: its grid, its anchors, and those inside the content."""
    grids = pyramid_grids(config.image.padded_size)
    rows, everything = [], pyramid_anchors(grids, config.anchors)
    for level, (sy, sx), stride, scale in zip(LEVELS, grids, STRIDES, config.anchors.scales, strict=True):
        here, everything = everything[: 3 * sy * sx], everything[3 * sy * sx :]
        kept = int(boxes.inside(here, config.image.height, config.image.width).sum())
        rows.append(
            {
                "profile": config.profile,
                "level": level,
                "grid": f"{sy} x {sx}",
                "stride": stride,
                "scale": f"{scale:.0f}",
            }
        )
        rows[-1] |= {"anchors": len(here), "inside": kept, "share inside": kept / len(here)}
    return rows


rows = anchor_counts(course) + anchor_counts(load_config("demo"))
display(report.markdown(rows))
assert sum(row["inside"] for row in rows[:5]) == 190_911

# %% [markdown]
# P2 has three quarters of all anchors, and on P6, whose anchors are about as large as the image, hardly any stay inside: the few large boxes
# are lost first. Keep that in mind for the large objects.

# %% [markdown]
# ### The five scales on a real image
#
# One square anchor of each level, centred as near to the image's centre as the grid allows.

# %%
fig, ax = plt.subplots(figsize=(7, 5.4), layout="constrained")
draw.image(ax, scenes[0])
chosen = []
for (rows, columns), stride, scale in zip(grids, STRIDES, config.anchors.scales, strict=True):
    chosen.append(anchor(min(rows, content[0] // stride) // 2, columns // 2, stride, scale, 1))
draw.boxes(
    ax, torch.tensor(chosen), "negative", [f"{n}: {s:.0f}" for n, s in zip(LEVELS, config.anchors.scales, strict=True)]
)
draw.boxes(ax, targets[0]["boxes"], "truth", linewidth=2.5)
draw.legend(ax, ["truth"])
_ = ax.set_title("one anchor of each level, with its scale in pixels")


# %% [markdown]
# ## How well does an anchor fit? IoU by hand
#
# $$ \text{IoU}(a, b) = \frac{|a \cap b|}{|a \cup b|} = \frac{|a \cap b|}{|a| + |b| - |a \cap b|} $$
#
# Three boxes: $a = (0, 0, 4, 4)$, $b = (2, 2, 6, 6)$, $c = (5, 0, 7, 2)$. *Predict:* $a$ and $b$ share a $2 \times 2$ square, so their IoU
# is $4 / (16 + 16 - 4) = 1/7$. $b$ and $c$ only touch: 0. $a$ and $c$ are apart: 0, and not the product of two negative numbers.

# %%
def iou_by_hand(p, q):
    """Intersection over union of two boxes."""
    width = max(0, min(p[2], q[2]) - max(p[0], q[0]))
    height = max(0, min(p[3], q[3]) - max(p[1], q[1]))
    area_p, area_q = ((b[2] - b[0]) * (b[3] - b[1]) for b in (p, q))
    return width * height / (area_p + area_q - width * height)


a, b, c = (0, 0, 4, 4), (2, 2, 6, 6), (5, 0, 7, 2)
assert iou_by_hand(a, b) == 1 / 7 and iou_by_hand(b, c) == 0 and iou_by_hand(a, c) == 0

# %% [markdown]
# **The part** does it for all pairs at once, $(A, 4)$ and $(G, 4)$ to $(A, G)$:

# %%
show(boxes.iou_matrix)

# %% [markdown]
# Equal to the prediction, and to the naive version on two hundred anchors and the objects of a real image:

# %%
abc = torch.tensor([a, b, c], dtype=torch.float32)
predicted = torch.tensor([[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 1]])
assert_close(boxes.iou_matrix(abc, abc), predicted)
some = anchors[:: len(anchors) // 200]
by_hand = torch.tensor([[iou_by_hand(p, q) for q in targets[0]["boxes"].tolist()] for p in some.tolist()])
assert_close(boxes.iou_matrix(some, targets[0]["boxes"]), by_hand)

# %% [markdown]
# ### How strict is 0.7?
#
# Three ways to miss, each on its own. A square of side $s$, and
#
# - **shifted** by $d$ along one axis: $\text{IoU} = (s - d)/(s + d)$, above 0.7 only for $d < 0.18\, s$;
# - **scaled** by a factor $q < 1$ about its centre: $\text{IoU} = q^2$, above 0.7 only for $q > 0.84$;
# - **stretched** to the ratio $r < 1$ with the same area: $\text{IoU} = \sqrt r / (2 - \sqrt r)$, above 0.7 only for $r > 0.68$.
#
# But the assignment's scales are a factor of 2 apart, and so are its ratios. Objects fall between them.

# %%
side = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
shifted, scaled = side + torch.tensor([10.0, 0, 10, 0]), torch.tensor([[10.0, 10, 90, 90]])
stretched = torch.tensor(
    [[50 - 25 * math.sqrt(2), 50 - 50 * math.sqrt(2), 50 + 25 * math.sqrt(2), 50 + 50 * math.sqrt(2)]]
)
found = boxes.iou_matrix(torch.cat([shifted, scaled, stretched]), side)[:, 0]
root_half = math.sqrt(0.5)
assert_close(found, torch.tensor([90 / 110, 0.8**2, root_half / (2 - root_half)]))
print(f"shifted by a tenth {found[0]:.3f}, scaled by 0.8 {found[1]:.3f}, ratio 1:2 {found[2]:.3f}")

# %% [markdown]
# The grid adds a shift of up to half a stride along both axes. What is left for an object that has *exactly* the size of an anchor, in the
# worst place? With $u = \text{stride} / (2s)$ the overlap is $(1-u)^2 / (2 - (1-u)^2)$.

# %%
rows = []
for profile in (course, load_config("demo")):
    shares = [(1 - stride / (2 * s)) ** 2 for stride, s in zip(STRIDES, profile.anchors.scales, strict=True)]
    rows.append({"profile": profile.profile} | {n: v / (2 - v) for n, v in zip(LEVELS, shares, strict=True)})
display(report.markdown(rows))
assert abs(rows[0]["P2"] - 0.784) < 1e-3

# %% [markdown]
# In the course profile the grid never costs a perfect object its anchor: 0.784 is above 0.7 on every level. In the demo profile the image is
# smaller and the strides are not, so the grid is coarser compared with the anchors, and on the upper levels an unlucky place is enough to fall
# below 0.7. Expect fewer positive anchors for each object there.

# %% [markdown]
# ## Labels: the rules of §4.2
#
# 1. Cross-boundary anchors are removed (label: ignored).
# 2. An anchor is **positive** if its IoU with any object is above 0.7, **or** if no anchor has a higher IoU with some object. Ties count for
#    all, and an IoU of 0 never counts.
# 3. An anchor is **negative** if it is not positive and its IoU with *every* object is below 0.3.
# 4. The others are **ignored**.
# 5. A positive anchor belongs to the object it has the highest IoU with.

# %% [markdown]
# ### A table by hand
#
# Seven anchors, three objects. Cover the last two columns and *predict* them.
#
# | anchor | object 0 | object 1 | object 2 | label | why |
# |---|---|---|---|---|---|
# | 0 | **0.80** | 0.00 | 0.00 | positive, object 0 | above 0.7 |
# | 1 | 0.70 | 0.10 | 0.00 | ignored | 0.7 is not *above* 0.7 |
# | 2 | 0.00 | **0.45** | 0.00 | positive, object 1 | highest of object 1 |
# | 3 | 0.00 | **0.45** | 0.05 | positive, object 1 | a tie: highest too |
# | 4 | 0.30 | 0.00 | 0.00 | ignored | 0.3 is not *below* 0.3 |
# | 5 | 0.29 | 0.20 | 0.00 | negative | below 0.3 with every object |
# | 6 | 0.75 | 0.00 | **0.50** | positive, object **0** | highest of object 2, yet closer to object 0 |
#
# The last row is the rule's blind spot: object 2 makes anchor 6 positive, and then loses it to object 0. It is left without an anchor.

# %%
iou = torch.tensor(
    [[0.8, 0, 0], [0.7, 0.1, 0], [0, 0.45, 0], [0, 0.45, 0.05], [0.3, 0, 0], [0.29, 0.2, 0], [0.75, 0, 0.5]]
)
predicted_labels = torch.tensor([POSITIVE, IGNORED, POSITIVE, POSITIVE, IGNORED, NEGATIVE, POSITIVE])
predicted_objects = [0, 1, 1, 0]  # of the positive ones: anchors 0, 2, 3 and 6


# %% [markdown]
# The rules, word for word:

# %%
def label_by_hand(iou, positive_iou=0.7, negative_iou=0.3):
    """Rules 2 to 5 for a table of IoUs, one anchor at a time."""
    rows, labels, objects = iou.tolist(), [], []
    best_of_object = [max(column) for column in zip(*rows, strict=True)]
    for row in rows:
        highest = any(value == best > 0 for value, best in zip(row, best_of_object, strict=True))
        if highest or max(row) > positive_iou:
            labels.append(POSITIVE)
        elif all(value < negative_iou for value in row):
            labels.append(NEGATIVE)
        else:
            labels.append(IGNORED)
        objects.append(row.index(max(row)))
    return torch.tensor([labels, objects])


labels, objects = label_by_hand(iou)
assert_close(labels, predicted_labels)
assert objects[labels == POSITIVE].tolist() == predicted_objects

# %% [markdown]
# **The part:**

# %%
show(matching.match_anchors)

# %% [markdown]
# The same table, the same predictions. In `lib` the whole of rule 2 is one line of comparisons with the columns' maxima, `highest`:

# %%
labels, objects = matching.match_anchors(iou, 0.7, 0.3)
assert_close(labels, predicted_labels)
assert objects[labels == POSITIVE].tolist() == predicted_objects

# %% [markdown]
# ### Three boxes on a tiny image
#
# Now with real boxes. The image has 128 × 128 pixels; one level, stride 32, scale 64, so $4 \times 4$ cells and 48 anchors. The objects:
#
# - **A** $= (16, 16, 80, 80)$ is exactly the square anchor of the cell with centre $(48, 48)$;
# - **B** $= (32, 48, 96, 112)$ is as large as an anchor, but lies halfway between two cells;
# - **C** $= (4, 4, 36, 36)$ is small and sits in the corner, where every near anchor sticks out of the image.
#
# *Predict:* A gets one anchor, IoU 1. B gets two, a tie: shifted by 16, $(64 - 16)/(64 + 16) = 0.6$. C's best anchor inside the image
# is A's: it shares $20 \times 20$ pixels with C, $400 / (4096 + 1024 - 400) = 0.085$. It stays with A, so C gets none.

# %%
tiny = level_anchors((4, 4), 32, 64, (0.5, 1, 2))
gt = torch.tensor([[16.0, 16, 80, 80], [32, 48, 96, 112], [4, 4, 36, 36]])
kept = boxes.inside(tiny, 128, 128)
iou = boxes.iou_matrix(tiny[kept], gt)
labels, objects = matching.match_anchors(iou, 0.7, 0.3)

assert_close(iou.amax(0), torch.tensor([1.0, 0.6, 400 / 4720]))
assert objects[labels == POSITIVE].bincount(minlength=3).tolist() == [1, 2, 0]
assert_close(torch.stack([labels, objects]), label_by_hand(iou))
print(
    f"{len(tiny)} anchors, {int(kept.sum())} inside: {(labels == POSITIVE).sum()} positive, {(labels == NEGATIVE).sum()} negative, {(labels == IGNORED).sum()} ignored"
)

# %% [markdown]
# Drawn, with what lies outside the image in white:

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 5.2), layout="constrained")
for ax in axes:
    draw.image(ax, torch.full((3, 128, 128), 60, dtype=torch.uint8), margin=32)
draw.boxes(axes[0], tiny[~kept], "ignored", linewidth=0.6)
draw.boxes(axes[0], tiny[kept], "negative", linewidth=1)
axes[0].set_title(f"{int((~kept).sum())} anchors cross the boundary (grey), {int(kept.sum())} do not (yellow)")
draw.boxes(axes[1], tiny[kept][labels == POSITIVE], "positive", linewidth=5)
draw.boxes(axes[1], gt, "truth", ["A", "B", "C"], linewidth=2)
draw.legend(axes[1], ["truth", "positive"])
axes[1].set_title("A has its anchor, B two halves, C none")
save_figure(fig, "02_three_boxes")
plt.show()

# %% [markdown]
# Left: the anchors with centres in the outer cells all leave the image and are removed. Right: A and its anchor coincide; B is straddled by two;
# C overlaps only a corner of A's.

# %% [markdown]
# ### The part, complete
#
# `rpn_targets` labels the anchors of one image. Where cross-boundary ones are removed, their IoUs are set to 0, so that none is an object's
# best, and their labels to *ignored*. `matched` is the number of each anchor's object; it matters for the positive ones alone.

# %%
show(boxes.inside, rpn.rpn_targets)

# %% [markdown]
# On the tiny image, and with all anchors on six real ones, against the naive rules:

# %%
labels, matched = rpn.rpn_targets(tiny, gt, (128, 128), course.rpn)
assert (labels[~kept] == IGNORED).all() and (labels == POSITIVE).sum() == 3
assert matched[labels == POSITIVE].tolist() == [0, 1, 1]

kept = boxes.inside(anchors, *content)
for target in targets:
    by_hand, objects = label_by_hand(boxes.iou_matrix(anchors[kept], target["boxes"]))
    labels, matched = rpn.rpn_targets(anchors, target["boxes"], content, config.rpn)
    assert (labels[~kept] == IGNORED).all()
    assert_close(labels[kept], by_hand)
    assert_close(matched[labels == POSITIVE], objects[by_hand == POSITIVE])

# %% [markdown]
# ## On real images
#
# This is the check the assignment asks for (its figure 5): positive anchors in blue, ground truth in orange-red. The captions give the level and
# the IoU of each object's best anchor.

# %%
level_of = anchor_levels(grids, 3)  # the number of each anchor's level, 0 for P2
fig, axes = plt.subplots(2, 3, figsize=(11, 6.1), layout="constrained")
for ax, scene, target in zip(axes.flat, scenes, targets, strict=False):
    labels, _ = rpn.rpn_targets(anchors, target["boxes"], content, config.rpn)
    positive = (labels == POSITIVE).nonzero().flatten()
    fit, which = boxes.iou_matrix(anchors[positive], target["boxes"]).max(dim=0)
    captions = [f"{LEVELS[level_of[k]]} {v:.2f}" for k, v in zip(positive[which], fit, strict=True)]
    draw.boxes(draw.image(ax, scene), target["boxes"], "truth", linewidth=2.5)
    draw.boxes(ax, anchors[positive], "positive", linewidth=1.2)
    draw.boxes(ax, anchors[positive[which]], "positive", captions, linewidth=1.2)
    ax.set_title(f"{len(positive)} positive of {len(anchors):,}")
save_figure(fig, "02_positive_anchors")
plt.show()


# %% [markdown]
# Each object has at least one blue box. Some fit well; others are positive only because nothing better exists, rule 2's second half at work. And
# the numbers in the titles are small.
#
# Where several blue boxes share one object, look for ties. Anchors of one size that lie *entirely inside* an object all have the same IoU, the
# anchor's area divided by the object's. If that is the highest there is, all of them are positive.

# %% [markdown]
# ## Targets counted: few anchors are positive
#
# We count them for up to 100 images, level by level, in both profiles: the same scenes at the demo's size and at the assignment's.

# %%
def assign(profile, count=100):
    """Labels (images, A) and the objects' boxes of the first `count` training images with objects, in the network's frame."""
    sizes, settings = profile.image, profile.replace(**{"rpn.cross_boundary": "remove"}).rpn
    everything = pyramid_anchors(pyramid_grids(sizes.padded_size), profile.anchors)
    found = []
    for i in busy[:count]:
        target = {"boxes": torch.from_numpy(train.boxes[train.indices[i]])}
        (target,) = preprocess_targets([target], FRAME, sizes)
        inner = (sizes.height, sizes.width)
        found.append((rpn.rpn_targets(everything, target["boxes"], inner, settings)[0], target["boxes"]))
    return torch.stack([labels for labels, _ in found]), [gt for _, gt in found]


profiles = {"demo": load_config("demo"), "course": course} | {config.profile: config}
assigned = {name: assign(profile) for name, profile in profiles.items()}

# %% [markdown]
# Added up, level by level:

# %%
rows = []
for name, profile in profiles.items():
    labels = assigned[name][0]
    cells = [3 * sy * sx for sy, sx in pyramid_grids(profile.image.padded_size)]
    positive = (labels == POSITIVE).split(cells, dim=1)
    rows.append({"profile": name, "images": len(labels), "anchors": labels.shape[1]})
    rows[-1] |= {level: int(p.sum()) for level, p in zip(LEVELS, positive, strict=True)}
    rows[-1] |= {"median an image": int((labels == POSITIVE).sum(1).median())}
    rows[-1] |= {"negative an image": int((labels == NEGATIVE).sum(1).median())}
report.save_table(rows, "02_positives")
display(report.markdown(rows))

# %% [markdown]
# The columns P2 … P6 are positive anchors in all these images together. On the course's own 3265 images the count at 800 × 1088 is as low: a median
# of 4 positive anchors an image, and none at all on P2, which has three quarters of the anchors.

# %% [markdown]
# The same as bars, and how the count varies from image to image:

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for offset, (row, colour) in zip((-0.2, 0.2), zip(rows, (draw.LINES[0], "black"), strict=True), strict=True):
    axes[0].bar(
        np.arange(5) + offset, [row[level] / row["images"] for level in LEVELS], 0.4, color=colour, label=row["profile"]
    )
    counts = (assigned[row["profile"]][0] == POSITIVE).sum(1).clamp(max=15)
    axes[1].bar(np.arange(16) + offset, counts.bincount(minlength=16), 0.4, color=colour, label=row["profile"])
axes[0].set_xticks(range(5), labels=LEVELS)
axes[0].set(ylabel="positive anchors an image", title="by level")
axes[1].set_xticks(range(0, 16, 3), labels=[*map(str, range(0, 15, 3)), "15 +"])
axes[1].set(xlabel="positive anchors", ylabel="images", title="by image")
axes[0].legend(frameon=False)
save_figure(fig, "02_positives")
plt.show()

# %% [markdown]
# Read it so: the typical image teaches the RPN what an object is with one or a few anchors, and what background is with thousands.
#
# At the assignment's size P2, the most expensive level, learns nothing but background: its scale is 32, and hardly any object is so small. The
# demo profile's scales are closer to its objects, so its positives spread over the levels. They are still no more, because the grid is coarser
# (see *How strict is 0.7?*).

# %% [markdown]
# ## The best IoU an object can get
#
# For every object, the highest IoU over all anchors, and over those that do not cross the boundary.

# %%
inner = boxes.inside(anchors, *content)
gt = torch.cat(assigned[config.profile][1])
iou = boxes.iou_matrix(anchors, gt)
best_of_all, best = iou.amax(0), iou[inner].amax(0)
scale = boxes.area(gt).sqrt()
assert (best <= best_of_all).all()
for name, values in (("all anchors", best_of_all), ("without cross-boundary", best)):
    print(
        f"{name:23} median {values.median():.2f}, above 0.7: {(values > 0.7).float().mean():.0%}, lowest {values.min():.2f}"
    )

# %% [markdown]
# The same against the objects' scale. *Predict:* the best fits lie near the anchors' own scales.

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(3, 2))
axes[0].vlines(scale, best, best_of_all, "lightgrey", linewidth=1, zorder=0)
axes[0].scatter(scale, best_of_all, s=16, facecolors="none", edgecolors="grey", label="over all anchors")
axes[0].scatter(scale, best, s=16, color=draw.LINES[0], label="without cross-boundary anchors")
for s in config.anchors.scales:
    axes[0].axvline(s, color="black", linewidth=0.6, linestyle=":")
axes[0].set(
    xscale="log", xlabel="scale of the object (pixels); dotted: the anchors' scales", ylabel="best IoU", ylim=(0, 1.02)
)
axes[0].set_xlim(0.8 * min(scale.min(), config.anchors.scales[1]), 1.1 * max(scale.max(), config.anchors.scales[-1]))
ticks = [n for n in (20, 50, 100, 200, 500, 1000) if axes[0].get_xlim()[0] < n < axes[0].get_xlim()[1]]
axes[0].set_xticks(ticks, labels=ticks)
axes[0].set_xticks([], minor=True)
axes[0].legend(frameon=False, loc="lower right")
for values, colour, style in ((best_of_all, "grey", "step"), (best, draw.LINES[0], "stepfilled")):
    axes[1].hist(values, np.linspace(0, 1, 26), color=colour, histtype=style, alpha=0.7, linewidth=1.5)
axes[1].set(xlabel="best IoU", ylabel="objects")
for line in (axes[0].axhline, axes[1].axvline):
    line(rpn.POSITIVE_IOU, color=draw.COLOURS["truth"], linewidth=1)
save_figure(fig, "02_best_iou")
plt.show()

# %% [markdown]
# Each point is an object; the orange-red line is the threshold 0.7; a grey segment is what the removal of cross-boundary anchors cost the object.
# Between the anchors' scales (dotted lines) the points sag, as $q^2$ predicted. More than half of the objects lie *below* 0.7, so rule 2's "highest" is not an
# exception but the normal way to a positive label.
#
# Who pays for the removal? Objects near the border, whose best anchors stick out:

# %%
sizes = torch.tensor([content[1], content[0]])
near = ((gt[:, :2] < 0.02 * sizes) | (gt[:, 2:] > 0.98 * sizes)).any(1)
lost = best_of_all - best
for name, group in (("near the border", near), ("elsewhere", ~near)):
    hit = (lost[group] > 0).float().mean()
    print(
        f"{name:16} {int(group.sum()):4} objects: {hit:4.0%} lose their best anchor, IoU lower by {lost[group].mean():.3f} on average"
    )


# %% [markdown]
# ## Encoding: what a positive anchor is taught (§4.3)
#
# A positive anchor must also say where its object really is. Not in pixels, but relative to the anchor, so that the same number means the same
# thing at every place and on every level:
#
# $$ t_x = \frac{x - x_a}{w_a}, \quad t_y = \frac{y - y_a}{h_a}, \quad t_w = \log\frac{w}{w_a}, \quad t_h = \log\frac{h}{h_a} $$

# %% [markdown]
# ### By hand
#
# The anchor has its centre at $(50, 50)$ and is 40 wide, 20 high: $(30, 40, 70, 60)$. Three boxes; *predict* $\mathbf t$:
#
# | box | centre, size | $\mathbf t$ |
# |---|---|---|
# | the anchor itself | $(50, 50)$, $40 \times 20$ | $(0, 0, 0, 0)$ |
# | moved: $(40, 45, 80, 65)$ | $(60, 55)$, $40 \times 20$ | $(0.25, 0.25, 0, 0)$ |
# | twice as wide, half as high: $(10, 45, 90, 55)$ | $(50, 50)$, $80 \times 10$ | $(0, 0, 0.693, -0.693)$ |
#
# A move by a quarter of the anchor is 0.25, whatever its size. Doubling and halving are opposite numbers: that is why there is a logarithm.

# %%
def encode_by_hand(box, anchor):
    """t of one box relative to one anchor."""
    (x, y, w, h), (xa, ya, wa, ha) = (
        ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]) for b in (box, anchor)
    )
    return [(x - xa) / wa, (y - ya) / ha, math.log(w / wa), math.log(h / ha)]


one = (30.0, 40.0, 70.0, 60.0)
three = [one, (40.0, 45.0, 80.0, 65.0), (10.0, 45.0, 90.0, 55.0)]
predicted = torch.tensor([[0, 0, 0, 0], [0.25, 0.25, 0, 0], [0, 0, 0.6931, -0.6931]])
by_hand = torch.tensor([encode_by_hand(box, one) for box in three])
assert_close(by_hand, predicted, atol=1e-4, rtol=0)

# %% [markdown]
# **The part**, and its inverse:

# %%
show(boxes.encode, boxes.decode)

# %% [markdown]
# Equal on the three boxes; and decoding gives the boxes back, here and for the positive anchors of six real images. `decode` cuts $t_w$ and $t_h$
# at $\log(1000/16) = 4.1$ before the exponential: an untrained network may say anything.

# %%
reference = torch.tensor([one]).expand(3, 4)
assert_close(boxes.encode(torch.tensor(three), reference), by_hand)
assert_close(boxes.decode(by_hand, reference), torch.tensor(three))

taught = []
for target in targets:
    labels, matched = rpn.rpn_targets(anchors, target["boxes"], content, config.rpn)
    own, objects = anchors[labels == POSITIVE], target["boxes"][matched[labels == POSITIVE]]
    taught.append(boxes.encode(objects, own))
    assert_close(boxes.decode(taught[-1], own), objects)
assert torch.isfinite(torch.cat(taught)).all()

# %% [markdown]
# In the picture: a positive anchor (blue, dotted, *before*) and the object that it is taught to become (*after*). The arrow is $(t_x w_a, t_y h_a)$,
# the move of the centre.

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3.1), layout="constrained")
for ax, scene, target, t in zip(axes, scenes[-3:], targets[-3:], taught[-3:], strict=False):
    labels, matched = rpn.rpn_targets(anchors, target["boxes"], content, config.rpn)
    k = (labels == POSITIVE).nonzero()[0]
    own, its_object = anchors[k], target["boxes"][matched[k]]
    draw.boxes(draw.image(ax, scene), its_object, "truth", linewidth=2.5)
    draw.boxes(ax, own, "positive", dotted=True, linewidth=2.5)
    (start,), (end,) = ((b[:, :2] + b[:, 2:]) / 2 for b in (own, its_object))
    ax.annotate(
        "",
        end.tolist(),
        start.tolist(),
        arrowprops={"color": "white", "ec": "black", "width": 2, "headwidth": 9, "headlength": 9},
    )
    ax.set_title("t = (" + ", ".join(f"{v:.2f}" for v in t[0]) + ")")
plt.show()

# %% [markdown]
# ### How large are the numbers to be learnt?
#
# All positive anchors of the counted images together. If an anchor overlaps its object by more than 0.7, no $t$ can be large; the tails belong to
# the anchors that are positive only because they were the best there was.

# %%
deltas = []
for labels, objects in zip(*assigned[config.profile], strict=True):
    own = anchors[labels == POSITIVE]
    deltas.append(boxes.encode(objects[boxes.iou_matrix(own, objects).argmax(1)], own))
deltas = torch.cat(deltas)
fig, axes = plt.subplots(1, 4, figsize=(12, 2.6), layout="constrained", sharey=True)
for ax, values, name in zip(axes, deltas.T, ("x", "y", "w", "h"), strict=True):
    draw.histogram(ax, values, np.linspace(-1.2, 1.2, 25), xlabel=f"$t_{name}$")
    ax.set_title(f"standard deviation {values.std():.2f}", fontsize=10)
    ax.label_outer()
plt.show()

# %% [markdown]
# All four are centred on zero and well within ±1: a comfortable target for a small convolution, with the same loss for all four. The widths and
# heights spread more than the moves, because the anchors come in few sizes but in many places.

# %% [markdown]
# ## Sampling (§4.4): as close to 1:1 as possible
#
# A loss over all anchors would be a loss over background. So each step draws $M$ anchors from the whole small batch: up to $M/2$ positive ones,
# and negative ones for the rest.
#
# **By hand.** Ten anchors: two positive, six negative, two ignored. *Predict* for $M = 6$: both positives and four negatives, since three positives
# are wanted and two exist. For $M = 2$: one of each.

# %%
ten = torch.tensor([1, 0, 0, -1, 0, 1, 0, -1, 0, 0])


def sample_by_hand(labels, size, positive_fraction, generator):
    """Shuffle, take positives up to the share, fill up with negatives."""
    order = torch.randperm(len(labels), generator=generator).tolist()
    positive = [i for i in order if labels[i] == POSITIVE][: round(size * positive_fraction)]
    negative = [i for i in order if labels[i] == NEGATIVE][: size - len(positive)]
    return torch.tensor(positive + negative)


for size, expected in ((6, (2, 4)), (2, (1, 1))):
    for chosen in (sample_by_hand(ten, size, 0.5, torch.Generator()), matching.sample(ten, size, 0.5)):
        assert ((ten[chosen] == POSITIVE).sum(), (ten[chosen] == NEGATIVE).sum()) == expected
        assert len(set(chosen.tolist())) == size

# %% [markdown]
# The two draw different anchors, so they agree in what can be predicted: the counts, no ignored anchor, none twice. **The part:**

# %%
show(matching.sample)

# %% [markdown]
# On a real batch of six images:

# %%
labels = torch.stack([rpn.rpn_targets(anchors, target["boxes"], content, config.rpn)[0] for target in targets])
torch.manual_seed(config.training.seed)
chosen = matching.sample(labels.flatten(), config.rpn.batch_samples, rpn.POSITIVE_FRACTION)
picked = labels.flatten()[chosen]
print(
    f"in the batch: {(labels == POSITIVE).sum():,} positive, {(labels == NEGATIVE).sum():,} negative, {(labels == IGNORED).sum():,} ignored"
)
print(
    f"in the minibatch of M = {len(chosen)}: {(picked == POSITIVE).sum()} positive, {(picked == NEGATIVE).sum()} negative"
)
assert len(chosen) == config.rpn.batch_samples and (picked != IGNORED).all()
assert (picked == POSITIVE).sum() == min((labels == POSITIVE).sum(), round(len(chosen) * rpn.POSITIVE_FRACTION))

# %% [markdown]
# 1:1 is the aim, not the result. Every positive anchor of the batch is in, and still they are a minority: sampling lifts their share more
# than a hundredfold, but it cannot invent them.
#
# Three images of the batch and what was drawn from them:

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for n, ax in enumerate(axes[: len(scenes)]):
    own = chosen[chosen // len(anchors) == n] % len(anchors)
    kinds = {kind: own[labels[n][own] == value] for kind, value in (("negative", NEGATIVE), ("positive", POSITIVE))}
    draw.image(ax, scenes[n]).set_title(", ".join(f"{len(k)} {kind}" for kind, k in kinds.items()))
    draw.boxes(ax, anchors[kinds["negative"]], "negative", linewidth=0.7)
    draw.boxes(ax, anchors[kinds["positive"]], "positive", linewidth=2.5)
draw.legend(axes[1], ["negative", "positive"])
save_figure(fig, "02_minibatch")
plt.show()

# %% [markdown]
# Most sampled negatives are small, because most anchors are (P2). They lie on objects too: a small anchor inside a large object overlaps it by far
# less than 0.3.

# %% [markdown]
# ## What the assignment of labels gets right, and what it gets wrong
#
# Right: every label follows from a rule one can check on paper, and (with rare exceptions) every object has an anchor. Wrong, or at least
# questionable, are four things. First the counts:

# %%
counted = {
    "objects": 0,
    "no anchor of their own": 0,
    "positive anchors": 0,
    "positive with IoU up to 0.7": 0,
    "positive with IoU below 0.5": 0,
}
for labels, objects in zip(*assigned[config.profile], strict=True):
    fit, owner = boxes.iou_matrix(anchors[labels == POSITIVE], objects).max(dim=1)
    new = (len(objects), len(objects) - len(owner.unique()), len(fit), (fit <= 0.7).sum(), (fit < 0.5).sum())
    counted = {name: value + int(n) for (name, value), n in zip(counted.items(), new, strict=True)}
for name, value in counted.items():
    print(f"{name:28} {value}")

# %% [markdown]
# - **Weak positives.** Many positive anchors overlap their object by less than 0.7, some by less than 0.5. They are taught "object" with the same
#   weight as a perfect fit, while an anchor of IoU 0.69 next to them may be ignored. A tie of anchors inside an object multiplies them.
# - **Lost anchors.** An object whose best anchor lies closer to another object has none (object C above). It is rare here, with one or two
#   objects an image; in a crowd it is not.
# - **The border.** Objects near the border lose their best anchors in training. In testing boxes that cross it are clipped instead (§4.6), so these
#   anchors then speak about something they were never taught. Notebook 03 shows how much that spoils, and the mend.
# - **The imbalance.** A handful against thousands: the RPN's first lesson is to say *no*.

# %% [markdown]
# ## Checks
#
# Once more, in one place, what the next notebook relies on.

# %%
assert len(anchors) == sum(3 * sy * sx for sy, sx in grids)
assert (level_of.bincount() == torch.tensor([3 * sy * sx for sy, sx in grids])).all()
for target in targets:
    labels, matched = rpn.rpn_targets(anchors, target["boxes"], content, config.rpn)
    iou = boxes.iou_matrix(anchors, target["boxes"])
    assert (labels == POSITIVE).any(), "an image with an object has a positive anchor"
    assert boxes.inside(anchors[labels != IGNORED], *content).all(), "none that is used crosses the boundary"
    assert (iou[labels == NEGATIVE] < rpn.NEGATIVE_IOU).all()
    own = iou.gather(1, matched[:, None])[:, 0]
    assert (own == iou.amax(1))[labels == POSITIVE].all(), "an anchor's object is the one it overlaps most"
empty, _ = rpn.rpn_targets(anchors, torch.zeros(0, 4), content, config.rpn)
assert not (empty == POSITIVE).any(), "an image without objects has only negatives"
print("all checks passed")

# %% [markdown]
# ## Figures exported
#
# | file | shows |
# |---|---|
# | `figures/02_three_boxes` | the rules of §4.2 on a tiny image |
# | `figures/02_positive_anchors` | positive anchors of six images (the assignment's figure 5) |
# | `figures/02_positives` | positive anchors by level and by image; the numbers as `.csv` and `.tex` |
# | `figures/02_best_iou` | the best IoU each object gets, with and without cross-boundary anchors |
# | `figures/02_minibatch` | what the sampling draws |
# | `figures/02_montage` | twelve images with their positive anchors |

# %% [markdown]
# ## Summary
#
# - An anchor is a question with a place, a size and a shape: $w = s\sqrt r$, $h = s/\sqrt r$. The pyramid asks 217,413 of them at the assignment's size,
#   190,911 inside the image.
# - IoU above 0.7 is strict. More than half of the objects reach it with no anchor and get theirs by the "highest" rule.
# - A handful of anchors an image are positive, at the assignment's size none on P2. The minibatch takes all of them and fills up with background.
# - Boxes are taught relative to their anchor, so the numbers are small and mean the same everywhere.

# %% [markdown]
# ## Exercises
#
# 1. Set `anchors.scales` to values between the present ones (`load_config(PROFILE, ["anchors.scales=(20., 40., 80., 140., 220.)"])`). Does the
#    histogram of the best IoU move to the right?
# 2. Lower the positive threshold to 0.5 (`rpn.POSITIVE_IOU = 0.5`) and count again. What do you gain, and what does the regressor now have to learn?
# 3. Write the rule of §4.2 so that object C gets the anchor it made positive. What happens to A?
# 4. Count the positives if cross-boundary anchors are kept (`rpn.cross_boundary=clip`). Which level gains most?
# 5. Why is $t_x$ divided by $w_a$, and not by the stride?

# %% [markdown]
# ## A last look
#
# Twelve images of the training set, ground truth in orange-red, positive anchors in blue.

# %%
fig, axes = plt.subplots(3, 4, figsize=(10, 5.9), layout="constrained")
for ax, i in zip(axes.flat, busy[6:] + busy[:6], strict=False):
    x, targets, content = prepare(*collate([train[i]]), config.image)
    labels, _ = rpn.rpn_targets(anchors, targets[0]["boxes"], content, config.rpn)
    draw.image(ax, draw.denormalise(x[0], IMAGE_MEAN, IMAGE_STD)[:, : content[0], : content[1]])
    draw.boxes(ax, targets[0]["boxes"], "truth", linewidth=2)
    draw.boxes(ax, anchors[labels == POSITIVE], "positive", linewidth=1.2)
save_figure(fig, "02_montage")
plt.show()

# %% [markdown]
# ## Browse
#
# Choose an image, a level and the kinds of anchors. The widget needs a running notebook; without one, the montage above is the picture to look
# at. Try *negative* on P2 (a sample is drawn), then *ignored* on P4: the anchors that are neither right nor wrong.

# %%
browser.browse_anchors(train, config)
