# %% [markdown]
# # 2 · Backbone and anchors: thousands of guesses, and which of them are right
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-from-its-parts/maskrcnn-from-its-parts/blob/main/notebooks/02_anchors.ipynb)
#
# **The claim.** Detection becomes the classification of fixed boxes. At the assignment's size there are 217,413 of them, laid over the five
# maps of a feature pyramid, and only a handful an image count as right.
#
# **Run time:** a minute on one CPU core. Nothing is trained.
#
# **Inputs → outputs.** `data/` (written if missing), the backbone's weights → the pictures `figures/02_*`, the table `02_positives`.
#
# § numbers are sections of the course's assignment sheet, which is not in the repository; every rule used is explained here.

# %% [markdown]
# ## Set-up
#
# The second folded cell makes two configs, `config` of this run's profile (`demo` or `course`) and `sheet` with the assignment's numbers. Both
# remove anchors that cross the image's boundary, as the sheet says. `show` prints the source of the part that runs.

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
import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from torch.testing import assert_close

from lib import backbone as trunks
from lib import boxes, matching, rpn
from lib.anchors import LEVELS, STRIDES, anchor_levels, level_anchors, pyramid_anchors, pyramid_grids
from lib.config import Config
from lib.data.reader import CourseDataset
from lib.data.scene_layout import AT_BORDER
from lib.machine.folders import paths
from lib.maskrcnn import MaskRCNN
from lib.matching import IGNORED, NEGATIVE, POSITIVE
from lib.notebook import browser, diagrams, draw, report
from lib.notebook.teach import as_seen, followed, show
from lib.preprocess import FRAME, content_size, preprocess_targets

remove = {"rpn.cross_boundary": "remove"}  # §4.2 as printed
config, sheet = config.replace(**remove), Config().replace(**remove)

# %% [markdown]
# ## Where this part sits
#
# Backbone and anchors are lit in the diagram: what the RPN of notebook 03 looks at, and what it is asked. After this notebook you can
#
# 1. name the maps C2 … C5 and P2 … P6, give their shapes, and say what the pyramid adds (§3);
# 2. place the anchors of a level by hand, and count those of a pyramid (§4.1);
# 3. label anchors by the rules of §4.2, and encode a box relative to one (§4.3);
# 4. say why so few anchors are positive, and what sampling (§4.4) can do about it.

# %%
diagrams.system("anchors")

# %% [markdown]
# ## The image we follow
#
# The same in all six notebooks.

# %%
val, train = (CourseDataset(DATA, split, config.data) for split in ("val", "train"))
one = as_seen(val, [followed(val)], config)
picture, gt, content = one.pictures[0], one.targets[0]["boxes"], one.content
names = [config.class_names[n] for n in one.targets[0]["labels"]]

fig, ax = plt.subplots(figsize=(6, 4.7), layout="constrained")
draw.boxes(draw.image(ax, picture), gt, "truth", names, linewidth=2.5)
draw.legend(ax, {"truth": "object"})
plt.show()
sizes = "; ".join(f"{n}, {w:.0f} × {h:.0f} pixels" for n, (w, h) in zip(names, gt[:, 2:] - gt[:, :2], strict=True))
padded = " × ".join(map(str, one.x.shape[2:]))
display(
    Markdown(
        f"Rescaled to {content[0]} × {content[1]} pixels, and padded with zeros to {padded}. Its objects: {sizes}."
    )
)

# %% [markdown]
# ## Symbols
#
# - $F$: a map's channels; $S_y \times S_x$: its cells, rows by columns, both counted from 0. A cell is *stride* pixels of the input wide and high.
# - $s = \sqrt{wh}$, $r = w/h$: an anchor's scale and aspect ratio.
# - $a$, $A$: anchors of a cell (3) and of the whole pyramid; $G$: objects of an image.
# - $\mathbf t = (t_x, t_y, t_w, t_h)$: a box relative to an anchor.
# - $M$: anchors of a minibatch, `config.rpn.batch_samples` (demo 256, course 512).
#
# Boxes are `xyxy` in pixels of the network's frame. *Content* is the image inside the zero padding.

# %% [markdown]
# ## The backbone (§3): one image, five maps
#
# A network for classification, the *trunk*, halves its grid again and again. Its last map at stride $2^k$ is called $C_k$. The deep ones
# know what they see but hardly where; the early ones know where, but see little more than edges. A
# [feature pyramid network](https://arxiv.org/abs/1612.03144) (FPN) gives each grid both: it carries the deep maps back down.

# %%
pyramid_diagram = diagrams.pyramid(config)
save_figure(pyramid_diagram, "02_pyramid")
pyramid_diagram

# %% [markdown]
# In letters, from the coarsest map down, with $T_5 = \text{conv}_{1 \times 1}(C_5)$:
#
# $$ T_k = \text{conv}_{1 \times 1}(C_k) + \text{double}(T_{k+1}), \qquad P_k = \text{conv}_{3 \times 3}(T_k) . $$
#
# The $1 \times 1$ convolution gives all maps $F$ channels, so that they can be added, and one RPN can read them all. *Double* repeats each row
# and column (nearest neighbour); the $3 \times 3$ convolution smooths the blocks that this leaves. $P_6$ is every second cell of $P_5$: a coarse
# grid for the largest anchors, without new layers.

# %% [markdown]
# **Predict.** The sheet's input has 800 × 1088 pixels; its trunk, a ResNet-50, has maps of 256, 512, 1024 and 2048 channels; $F = 256$.
# What shapes (channels, rows, columns) do $C_4$, $P_4$ and $P_6$ have? Mind that $P_5$ has an odd number of rows.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
c4, p4, p6 = (1024, 50, 68), (256, 50, 68), (256, 13, 17)
### END SOLUTION

# %%
with torch.device("meta"):  # shapes without memory, and without weights
    sheet_backbone = trunks.build_backbone(replace(sheet.backbone, weights="none")).eval()
    empty = torch.empty(1, 3, *sheet.image.padded_size)
sheet_trunk, sheet_maps = (list(part(empty).values()) for part in (sheet_backbone.body, sheet_backbone))
assert [tuple(f.shape[1:]) for f in (sheet_trunk[2], sheet_maps[2], sheet_maps[4])] == [c4, p4, p6]

# %% [markdown]
# 25 rows become 13, because the first row counts and then every second one. Now the backbone of this run, on our image:

# %%
backbone = trunks.build_backbone(config.backbone).eval().requires_grad_(False)


@torch.no_grad()
def all_maps(x):
    """C2 ... C5 and P2 ... P6 of images (B, 3, Hp, Wp)."""
    found = [*backbone.body(x).values(), *backbone(x).values()]
    return dict(zip(("C2", "C3", "C4", "C5", *LEVELS), found, strict=True))


maps = all_maps(one.x)
sheet_all = dict(zip(maps, [*sheet_trunk, *sheet_maps], strict=True))
each = {"this run": maps, "sheet": sheet_all}
rows = [{"": name} | {who: " × ".join(map(str, f[name].shape[1:])) for who, f in each.items()} for name in maps]
display(report.markdown(rows))


# %% [markdown]
# ### FPN written down
#
# `lib` finds the trunk's last block of each stride (source below); torchvision's module does the rest. `fpn_by_hand` is the equation with
# that module's layers:

# %%
def fpn_by_hand(trunk_maps, fpn):
    """C2 ... C5 -> P2 ... P6: lateral, top-down, smooth, every second cell."""
    pyramid, merged = [], None
    for c, lateral, smooth in reversed([*zip(trunk_maps, fpn.inner_blocks, fpn.layer_blocks, strict=True)]):
        own = lateral(c)
        merged = own if merged is None else own + F.interpolate(merged, size=own.shape[-2:])  # nearest cell
        pyramid.insert(0, smooth(merged))
    return [*pyramid, pyramid[-1][..., ::2, ::2]]


show(trunks._trunk_with_fpn)
by_hand = fpn_by_hand([maps[name] for name in ("C2", "C3", "C4", "C5")], backbone.fpn)
assert_close(by_hand, [maps[name] for name in LEVELS])

# %% [markdown]
# ### What a cell knows
#
# A cell of a map is a vector. Take the one in the middle of the last object listed above (white dot), and colour each cell by the cosine of
# the angle between its vector and that one, the map's mean vector taken off. Red cells resemble the marked one.

# %% cellView="form"
# @title What this cell draws: which cells of each map are similar to one
mask = one.targets[0]["masks"][-1].bool()
at = mask.nonzero().float()
row, column = (
    at[(at - at.mean(0)).norm(dim=1).argmin()].int().tolist()
)  # of the object's pixels that nearest its middle
fig, axes = plt.subplots(2, 5, figsize=(11.5, 4.2), layout="constrained")
share, blindly = {}, {}
for ax, name in zip([*axes[0, :4], *axes[1]], maps, strict=True):
    f = maps[name][0] - maps[name][0].mean((1, 2), keepdim=True)
    stride = STRIDES[int(name[1]) - 2]
    rows, columns = (side // stride for side in content)  # without the padding
    like = F.cosine_similarity(f, f[:, row // stride, column // stride, None, None], dim=0)
    shown = ax.imshow(like, cmap="RdBu_r", vmin=-1, vmax=1, extent=(0, one.x.shape[3], one.x.shape[2], 0))
    ax.plot(column, row, "o", color="white", markeredgecolor="black")
    ax.set(title=f"{name}, stride {stride}", xticks=[], yticks=[], xlim=(0, content[1]), ylim=(content[0], 0))
    cells = F.adaptive_avg_pool2d(mask[None].float(), like.shape)[0, :rows, :columns].flatten() > 0.5
    nearest = like[:rows, :columns].flatten().topk(max(1, int(cells.sum()))).indices
    share[name], blindly[name] = cells[nearest].float().mean(), cells.float().mean()
draw.image(axes[0, 4], picture).plot(column, row, "o", color="white", markeredgecolor="black")
fig.colorbar(shown, ax=axes, shrink=0.7, label="cosine of the angle")
save_figure(fig, "02_features")
plt.show()
tail = "the object holds together better on $P_2$" if share["P2"] > share["C2"] else "so, on this image, does $P_2$"
display(
    Markdown(
        f"Take as many of the most similar cells as the {names[-1]} covers. On $C_2$, {share['C2']:.0%} of them lie on "
        f"it, on $P_2$, with the same grid, {share['P2']:.0%}; of cells drawn blindly, {blindly['P2']:.0%}. $C_2$ sees "
        f"edges, textures and colours; {tail}. One image shows it; the next cells measure it."
    )
)

# %% [markdown]
# **Predict.** A linear classifier, fitted to the cells of twelve training images, shall say from a single vector whether its
# cell lies on an object. Which of $C_2$, $C_4$ and $P_2$ does it find hardest to read? On up to 1,000 cells each of twelve validation images: of all pairs
# of one cell on an object and one on the background, the share where the object's gets the higher score (guessing: 0.5).

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
hardest = "C2"
### END SOLUTION

# %%
def vectors(dataset, n):
    """For each map of an image up to about 1,000 vectors, and whether their cells lie on an object."""
    seen, found = as_seen(dataset, [n], config), {}
    on, maps = seen.targets[0]["masks"].amax(0, keepdim=True).float(), all_maps(seen.x)
    maps["P2, cut off"] = backbone.fpn.layer_blocks[0](backbone.fpn.inner_blocks[0](maps["C2"]))  # no top-down path
    for name, f in maps.items():
        y = F.adaptive_avg_pool2d(on, f.shape[-2:]) > 0.5
        rows, columns = (side * f.shape[-1] // seen.x.shape[-1] for side in seen.content)  # without the padding
        x, y = (cells[:, :rows, :columns].flatten(1).T for cells in (f[0], y))
        step = math.ceil(len(x) / 1000)
        found[name] = F.pad(x, (0, 1), value=1.0)[::step].double(), y[::step, 0]  # the 1 is for the bias
    return found


busy = [n for n in range(len(train)) if len(train.boxes[train.indices[n]])]
learn = [vectors(train, n) for n in busy[:12]]
test = [vectors(val, n) for n in range(len(val)) if len(val.boxes[val.indices[n]])][:12]


def separation(name):
    """Least squares on the training images' cells; the share of pairs of test cells in the right order."""
    sets = ([image[name] for image in part] for part in (learn, test))
    (x, y), (u, v) = ([torch.cat(column) for column in zip(*pairs, strict=True)] for pairs in sets)
    weights = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(x.shape[1]), x.T @ y.double())
    score = u @ weights
    return float((score[v][:, None] > score[~v]).double().mean())


separated = {name: separation(name) for name in ("C2", "C3", "C4", "P2, cut off", "P2", "P3", "P4")}
assert separated["P2, cut off"] < separated["P2"]
assert min(("C2", "C4", "P2"), key=separated.get) == hardest
display(report.markdown([{"map": "pairs in the right order"} | separated]))
text = (
    f"$P_2$ has the grid of $C_2$, yet orders {separated['P2']:.0%} of the pairs rightly, against {separated['C2']:.0%}"
)
cut = f"With its own two layers but nothing from above (*cut off*) it reaches {separated['P2, cut off']:.0%}"
display(
    Markdown(f"{text}. {cut}: the rest comes down the pyramid. (Those layers were trained with the sum, not without.)")
)

# %% [markdown]
# ### How much of the network is this, and why is it frozen?
#
# **Predict.** How many parameters has the sheet's pyramid: four $1 \times 1$ convolutions from 256, 512, 1024 and 2048 channels to 256,
# four $3 \times 3$ from 256 to 256, all with biases?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
pyramid_parameters = (256 + 512 + 1024 + 2048) * 256 + 4 * 256 + 4 * (3 * 3 * 256 * 256 + 256)
### END SOLUTION

# %%
with torch.device("meta"):
    systems = {config.profile: MaskRCNN(config, backbone), "sheet": MaskRCNN(sheet, sheet_backbone)}
parts = {
    "trunk": "backbone.body",
    "pyramid": "backbone.fpn",
    "RPN": "rpn",
    "box head": "box_head",
    "mask head": "mask_head",
}
rows = [
    {"": who} | {part: sum(p.numel() for p in model.get_submodule(path).parameters()) for part, path in parts.items()}
    for who, model in systems.items()
]
assert rows[1]["pyramid"] == pyramid_parameters == 3_344_384
display(report.markdown(rows))
held = [f"{(row['trunk'] + row['pyramid']) / sum(row[part] for part in parts):.0%} ({row['']})" for row in rows]
display(Markdown(f"Of all parameters, {' and '.join(held)} are in trunk and pyramid; the three heads share the rest."))

# %% [markdown]
# Trunk and pyramid come trained for detection: the sheet's on COCO's photographs, the demo's on other scenes. While the three heads learn, one
# after the other, both stay as they are. BatchNorm too: in training mode it would use each batch's statistics and update
# the stored ones, and the same weights would give other maps. Heads that begin at random would send large, useless gradients into
# them; a stage that changed the maps would spoil what earlier ones have learnt to read; and maps that stay can be stored. Joint fine-tuning
# (§8, notebook 06) lets all learn, once the heads know their task.

# %% [markdown]
# ## Anchors: the idea in two pictures
#
# In the centre of each cell of every level stand three boxes of one area: tall, square, wide. These *anchors* of
# [Faster R-CNN](https://arxiv.org/abs/1506.01497) know nothing of the image. They are questions: *is there an object about here, about this large,
# about this shape?*

# %% cellView="form"
# @title What this cell draws: the anchors of one cell of P4, and one square anchor of each level
grids = pyramid_grids(config.image.padded_size)
anchors = pyramid_anchors(grids, config.anchors)
level_of = anchor_levels(grids, 3)  # the number of each anchor's level, 0 for P2
fig, axes = plt.subplots(1, 2, figsize=(11.5, 4.7), layout="constrained")
stride = STRIDES[2]
cell = row // stride * grids[2][1] + column // stride
three = anchors[level_of == 2][3 * cell :][:3]
draw.image(axes[0], picture, margin=10)
axes[0].vlines(np.arange(0, content[1], stride), 0, content[0], "white", linewidth=0.5)
axes[0].hlines(np.arange(0, content[0], stride), 0, content[1], "white", linewidth=0.5)
axes[0].plot(*((three[0, :2] + three[0, 2:]) / 2).tolist(), "o", color="#F0E442", markeredgecolor="black")
draw.boxes(axes[0], three, "negative", linewidth=2.5)
axes[0].set_title(f"the three anchors of one cell of P4 (dot: its centre; cells of {stride} pixels)", fontsize=10)

middle = torch.tensor([content[1], content[0]]) / 2
centres = (anchors[:, :2] + anchors[:, 2:]) / 2
off = (centres - middle).norm(dim=1)
nearest = [int(torch.where(level_of == n, off, torch.inf).argmin()) + 1 for n in range(5)]  # the square of the cell
captions = [f"{n}: {s:g}" for n, s in zip(LEVELS, config.anchors.scales, strict=True)]
draw.boxes(draw.image(axes[1], picture, margin=10), anchors[nearest], "negative", captions, linewidth=2)
axes[1].set_title("the square anchor nearest the middle, with its scale", fontsize=10)
for ax in axes:
    draw.legend(draw.boxes(ax, gt, "truth", linewidth=2.5), {"truth": "object", "negative": "anchor"})
plt.show()
scale = float(boxes.area(gt[-1]).sqrt())
level = min(range(5), key=lambda n: abs(math.log(config.anchors.scales[n] / scale)))
display(
    Markdown(
        f"The {names[-1]} has a scale of {scale:.0f} pixels. The three anchors on the left have one of "
        f"{config.anchors.scales[2]:g}; nearest are those of {LEVELS[level]}, with {config.anchors.scales[level]:g}. "
        "The finer a grid, the smaller its anchors: small objects need more places to be hit. Of P4's "
        f"{grids[2][0]} × {grids[2][1]} cells those of the padding are not drawn."
    )
)


# %% [markdown]
# ## The equation (§4.1)
#
# The assignment defines an anchor by ratio and scale, $r = w/h$ and $s = \sqrt{wh}$. Multiply and divide: $s^2 r = w^2$ and
# $s^2 / r = h^2$, so
#
# $$ w = s \sqrt r, \qquad h = s / \sqrt r . $$
#
# The anchors of the cell in row $j$ and column $i$ are centred on the cell, at $\left(\left(i + \tfrac12\right) \text{stride},\ \left(j +
# \tfrac12\right) \text{stride}\right)$.

# %% [markdown]
# ### One cell by hand
#
# Stride 16, scale 64, row 1, column 2: the centre is $(2.5 \cdot 16,\ 1.5 \cdot 16) = (40, 24)$. At $r = 1/2$, $w = 64 \sqrt{0.5} =
# 45.25$ and $h = 64 / \sqrt{0.5} = 90.51$, so the box is $(17.37, -21.25, 62.63, 69.25)$.

# %%
def anchor(row, column, stride, scale, ratio):
    """One anchor, from the two equations."""
    x, y = (column + 0.5) * stride, (row + 0.5) * stride
    w, h = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


three = torch.tensor([anchor(1, 2, 16, 64, ratio) for ratio in (0.5, 1, 2)])
table = torch.tensor([[17.37, -21.25, 62.63, 69.25], [8, -8, 72, 56], [-5.25, 1.37, 85.25, 46.63]])
assert_close(three, table, atol=0.01, rtol=0)
assert_close(boxes.area(three), torch.full((3,), 64.0**2))


# %% [markdown]
# The negative coordinates are no mistake: these anchors stick out of the image. An anchor is *cross-boundary* when it leaves the content,
# if only into the padding.

# %% [markdown]
# ### All anchors of a level
#
# Three loops: rows, columns, ratios. The anchor of row $j$, column $i$ and ratio $k$ has the number $a\,(j \cdot S_x + i) + k$. The RPN's
# outputs must be read in the same order: they are bare numbers, and only their position says which anchor they speak of.

# %%
def level_by_hand(grid, stride, scale, ratios):
    """All anchors of a level, in the order row, column, ratio."""
    rows, columns = grid
    return torch.tensor(
        [anchor(j, i, stride, scale, ratio) for j in range(rows) for i in range(columns) for ratio in ratios]
    )


ratios = config.anchors.ratios
small = level_by_hand((2, 3), 16, 16, ratios)
assert_close(small[9:12], torch.tensor([anchor(1, 0, 16, 16, ratio) for ratio in ratios]))  # 3 (1 * 3 + 0) + k

# %% [markdown]
# **The part** has no loops: centres on a mesh, sizes from the ratios, added by broadcasting. Equal on every level of the real pyramid.

# %%
show(level_anchors, pyramid_anchors)
assert_close(level_anchors((2, 3), 16, 16, ratios), small)
pyramid = zip(grids, STRIDES, config.anchors.scales, strict=True)
by_hand = torch.cat([level_by_hand(*level, ratios) for level in pyramid])
assert_close(by_hand, pyramid_anchors(grids, config.anchors))

# %% [markdown]
# **Predict.** There are $A = \sum_k a\, S_{y,k}\, S_{x,k}$ anchors. What share of them lies on P2? (Within 0.01; no grid needed.)

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
share_on_p2 = 1 / (1 + 1 / 4 + 1 / 16 + 1 / 64 + 1 / 256)
### END SOLUTION

# %%
def anchor_counts(config):
    """For each level its grid, its anchors, and those inside the content."""
    grids = pyramid_grids(config.image.padded_size)
    for name, grid, stride, scale in zip(LEVELS, grids, STRIDES, config.anchors.scales, strict=True):
        own = level_anchors(grid, stride, scale, config.anchors.ratios)
        kept = int(boxes.inside(own, *content_size(*FRAME, config.image)).sum())
        size = {"stride": stride, "grid": "{} × {}".format(*grid), "scale": f"{scale:g}"}
        yield {"level": name, **size, "anchors": len(own), "inside": kept, "crossing": f"{1 - kept / len(own):.0%}"}


of_sheet, here = list(anchor_counts(sheet)), list(anchor_counts(config))
assert sum(row["anchors"] for row in of_sheet) == 217_413 and sum(row["inside"] for row in of_sheet) == 190_911
assert abs(of_sheet[0]["anchors"] / 217_413 - share_on_p2) < 0.01
every = [{"": who} | row for who, rows in (("sheet", of_sheet), (config.profile, here)) for row in rows]
display(report.markdown(every))
frames = ["{} × {}".format(*content_size(*FRAME, c.image)) for c in (sheet, config)]
text = f"Large anchors cross first. The content has {frames[0]} pixels on the sheet, {frames[1]} in this run"
if config.anchors.scales != sheet.anchors.scales:
    text += ": objects are so much smaller here, and the scales follow them"
series = "Each level has a quarter of the cells of the one before: P2 has $1 / (1 + 1/4 + 1/16 + \\ldots) = 3/4$ of all"
display(Markdown(f"{series}. {text}."))


# %% [markdown]
# ## How well does an anchor fit?
#
# $$ \text{IoU}(p, q) = \frac{|p \cap q|}{|p \cup q|} = \frac{|p \cap q|}{|p| + |q| - |p \cap q|} $$
#
# **By hand.** $p = (0, 0, 4, 4)$ and $q = (2, 2, 6, 6)$ share a $2 \times 2$ square: $4 / (16 + 16 - 4) = 1/7$. $v = (6, 5, 8, 7)$ only
# touches $q$: 0. $p$ and $v$ are apart, their overlap would be $-2$ wide and $-1$ high: 0 too, not the product 2.

# %%
def iou_by_hand(p, q):
    """Intersection over union of two boxes."""
    width = max(0, min(p[2], q[2]) - max(p[0], q[0]))
    height = max(0, min(p[3], q[3]) - max(p[1], q[1]))
    area_p, area_q = ((b[2] - b[0]) * (b[3] - b[1]) for b in (p, q))
    return width * height / (area_p + area_q - width * height)


p, q, v = (0, 0, 4, 4), (2, 2, 6, 6), (6, 5, 8, 7)
assert iou_by_hand(p, q) == 1 / 7 and iou_by_hand(q, v) == 0 and iou_by_hand(p, v) == 0

# %% [markdown]
# **The part** does it for all pairs at once, $(A, 4)$ and $(G, 4)$ to $(A, G)$:

# %%
show(boxes.iou_matrix)
pqv = torch.tensor([p, q, v], dtype=torch.float32)
assert_close(boxes.iou_matrix(pqv, pqv), torch.tensor([[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 1]]))
some = anchors[:: len(anchors) // 200]
by_hand = torch.tensor([[iou_by_hand(p, q) for q in gt.tolist()] for p in some.tolist()])
assert_close(boxes.iou_matrix(some, gt), by_hand)

# %% [markdown]
# ### How strict is 0.7?
#
# §4.2 will call an anchor right when its IoU with an object is above 0.7. Take a square of side $s$, and miss it in one way at a time:
#
# - **shifted** by $d$ along one axis: $\text{IoU} = (s - d)/(s + d)$, above 0.7 only for $d < 0.18\, s$;
# - **stretched** to the ratio $r < 1$, same area: $\text{IoU} = \sqrt r / (2 - \sqrt r)$, above 0.7 only for $r > 0.68$.
#
# **Predict** the third: an object has an anchor's place and shape, but its scale lies where it is worst, between two of the sheet's scales,
# which are a factor of 2 apart. What is its best IoU?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
worst = (1 / math.sqrt(2)) ** 2
### END SOLUTION

# %%
def square(side, ratio=1.0):
    """A box around (0, 0)."""
    half = side / 2 * math.sqrt(ratio), side / 2 / math.sqrt(ratio)
    return torch.tensor([[-half[0], -half[1], *half]])


sides = torch.linspace(128, 256, 500)  # of objects, between the anchors of P4 and P5
fits = [boxes.iou_matrix(torch.cat([square(128), square(256)]), square(side)).max() for side in sides.tolist()]
assert abs(float(min(fits)) - worst) < 0.01
assert_close(boxes.iou_matrix(square(1, 0.5), square(1)).item(), math.sqrt(0.5) / (2 - math.sqrt(0.5)))

# %% [markdown]
# Scaled by $q < 1$, $\text{IoU} = q^2$; at worst $q = 1/\sqrt 2$, so one half. So an object can sit perfectly and still be far from any anchor:
# hence §4.2's second way to be positive.

# %% [markdown]
# ## Labels: the rules of §4.2
#
# 1. Cross-boundary anchors are removed (label: ignored).
# 2. An anchor is **positive** if its IoU with any object is above 0.7, **or** if no anchor has a higher IoU with some object. Ties count for
#    all; an IoU of 0 never counts, so an object that no anchor overlaps has none.
# 3. It is **negative** if it is not positive and its IoU with *every* object is below 0.3.
# 4. The others are **ignored**: neither right enough nor wrong enough to teach.
# 5. A positive anchor belongs to the object it has the highest IoU with.

# %% [markdown]
# **Predict** the labels of seven anchors from their IoU with three objects:
#
# | anchor | object 0 | object 1 | object 2 |
# |---|---|---|---|
# | 0 | 0.80 | 0.00 | 0.00 |
# | 1 | 0.70 | 0.10 | 0.00 |
# | 2 | 0.00 | 0.45 | 0.00 |
# | 3 | 0.00 | 0.45 | 0.05 |
# | 4 | 0.30 | 0.00 | 0.00 |
# | 5 | 0.29 | 0.20 | 0.00 |
# | 6 | 0.75 | 0.00 | 0.50 |

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
seven = [POSITIVE, IGNORED, POSITIVE, POSITIVE, IGNORED, NEGATIVE, POSITIVE]
objects_of_positives = [0, 1, 1, 0]  # of anchors 0, 2, 3 and 6
### END SOLUTION

# %%
table = torch.tensor(
    [[0.8, 0, 0], [0.7, 0.1, 0], [0, 0.45, 0], [0, 0.45, 0.05], [0.3, 0, 0], [0.29, 0.2, 0], [0.75, 0, 0.5]]
)
labels, objects = matching.match_anchors(table, 0.7, 0.3)
assert labels.tolist() == seven and objects[labels == POSITIVE].tolist() == objects_of_positives


# %% [markdown]
# 0.7 is not *above* 0.7, and 0.3 not *below* 0.3: 1 and 4 are ignored. 2 and 3 tie for object 1. Anchor 6 is the rules' blind spot:
# the best that object 2 has, it belongs to object 0 (rule 5), and object 2 is left without.

# %% [markdown]
# The rules one anchor at a time; and **the part**, where the second half of rule 2, ties included, is one comparison with the columns' maxima:

# %%
def label_by_hand(iou, positive_iou=0.7, negative_iou=0.3):
    """Rules 2 to 5 for a table of IoUs: labels, and each anchor's object."""
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


assert_close(label_by_hand(table), torch.stack([labels, objects]))
show(matching.match_anchors)

# %% [markdown]
# ### Three boxes on a tiny image
#
# The image has 128 × 128 pixels; one level of stride 32 and scale 64, so 4 × 4 cells and 48 anchors. The objects:
#
# - **A** $= (16, 16, 80, 80)$ is exactly the square anchor of the cell with centre $(48, 48)$;
# - **B** $= (32, 48, 96, 112)$ is as large, but lies halfway between two cells;
# - **C** $= (4, 4, 36, 36)$ is small and in the corner, where every near anchor sticks out of the image.
#
# **Predict** how many positive anchors each of them gets in the end.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
anchors_of_abc = [1, 2, 0]
### END SOLUTION

# %%
tiny = level_anchors((4, 4), 32, 64, (0.5, 1, 2))
abc = torch.tensor([[16.0, 16, 80, 80], [32, 48, 96, 112], [4, 4, 36, 36]])
inside = boxes.inside(tiny, 128, 128)
iou = boxes.iou_matrix(tiny[inside], abc)
labels, objects = label_by_hand(iou)
assert objects[labels == POSITIVE].bincount(minlength=3).tolist() == anchors_of_abc
assert_close(iou.amax(0), torch.tensor([1.0, (64 - 16) / (64 + 16), 400 / (4096 + 1024 - 400)]))

# %% cellView="form"
# @title What this cell draws: the anchors of the tiny image, and those that become positive
fig, axes = plt.subplots(1, 2, figsize=(10, 5.2), layout="constrained")
for ax in axes:
    draw.image(ax, torch.full((3, 128, 128), 95, dtype=torch.uint8), margin=32).set_facecolor("black")
draw.boxes(axes[0], tiny[~inside], "ignored", linewidth=1)
draw.boxes(axes[0], tiny[inside], "negative", linewidth=1.5)
draw.legend(
    axes[0], {"ignored": f"crosses the boundary: {int((~inside).sum())}", "negative": f"inside: {int(inside.sum())}"}
)
axes[0].set_title("all 48 anchors (black: outside the image)", fontsize=10)
fits = [f"{v:.1f} {'ABC'[g]}" for v, g in zip(iou.amax(1), objects, strict=True)]
for k, width in zip((labels == POSITIVE).nonzero(), (6, 6, 3), strict=False):  # of two on one line both are seen
    draw.boxes(axes[1], tiny[inside][k], "positive", [fits[k]], linewidth=width)
draw.boxes(axes[1], abc, "truth", ["A", "B", "C"], linewidth=2)
draw.legend(axes[1], {"truth": "object", "positive": "positive anchor, its IoU and object"})
axes[1].set_title("A has one, B two (one drawn thinner), C none", fontsize=10)
save_figure(fig, "02_three_boxes")
plt.show()

# %% [markdown]
# A and its anchor coincide, IoU 1. B lies between two, a tie at 0.6. C's best anchor inside the image is A's, at 0.085; it stays with A.

# %% [markdown]
# ### The part, complete
#
# `rpn_targets` labels an image's anchors. The IoUs of removed ones become 0, so that none is an object's best. `matched`
# is each anchor's object.

# %%
show(boxes.inside, rpn.rpn_targets)
labels, matched = rpn.rpn_targets(tiny, abc, (128, 128), config.rpn)
assert (labels[~inside] == IGNORED).all() and matched[labels == POSITIVE].tolist() == [0, 1, 1]

# %% [markdown]
# ## On real images
#
# The assignment's own check (its figure 5), on the image we follow and on five training images; the labels equal those of `label_by_hand`.
# Captions give each object's best anchor, its level and IoU.

# %%
few = as_seen(train, busy[:5], config)
pictures, targets = [*one.pictures, *few.pictures], [*one.targets, *few.targets]
targeted = [rpn.rpn_targets(anchors, target["boxes"], content, config.rpn) for target in targets]
inner = boxes.inside(anchors, *content)
for (labels, matched), target in zip(targeted, targets, strict=True):
    by_hand, objects = label_by_hand(boxes.iou_matrix(anchors[inner], target["boxes"]))
    assert_close(labels[inner], by_hand)
    assert_close(matched[labels == POSITIVE], objects[by_hand == POSITIVE])

# %% cellView="form"
# @title What this cell draws: the positive anchors of six images
fig, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
for ax, scene, target, (labels, _) in zip(axes.flat, pictures, targets, targeted, strict=False):
    positive = (labels == POSITIVE).nonzero().flatten()
    fit, which = boxes.iou_matrix(anchors[positive], target["boxes"]).max(dim=0)
    best = zip(target["labels"], positive[which], fit, strict=True)
    captions = [f"{config.class_names[n]}: {LEVELS[level_of[k]]} {v:.2f}" for n, k, v in best]
    draw.boxes(draw.image(ax, scene), target["boxes"], "truth", linewidth=2.5)
    draw.boxes(ax, anchors[positive], "positive", linewidth=1.2)
    draw.boxes(ax, anchors[positive[which]], "positive", captions, linewidth=1.2)
    plt.setp(ax.texts, fontsize=10)
    ax.set_title(f"{len(positive)} positive of {len(anchors):,}", fontsize=11)
draw.legend(axes[1, 1], {"truth": "object", "positive": "positive anchor"})
save_figure(fig, "02_positive_anchors")
plt.show()
every = boxes.iou_matrix(anchors, gt)
best_of = [
    f"{kept:.2f} with the {n} ({f'a removed one {best:.2f}' if best > kept else 'no removed one is better'})"
    for n, best, kept in zip(names, every.amax(0), every[inner].amax(0), strict=True)
]
most = max(int((labels == POSITIVE).sum()) for labels, _ in targeted)
assert most < 0.01 * len(anchors)
display(
    Markdown(
        f"In the image we follow, the best anchor inside the content has an IoU of {' and of '.join(best_of)}. "
        f"On none of these images are more than {most} of {len(anchors):,} anchors positive."
    )
)


# %% [markdown]
# Why remove anchors at all? Beyond the boundary there are no pixels to answer from; Faster R-CNN reports that training did not converge with
# them. The price: objects whose best anchor sticks out. The demo and course runs nevertheless keep them; notebook 03 says why.

# %% [markdown]
# Several anchors on one object are often ties: those of one size that lie *entirely inside* it all have the same IoU, their area divided by
# the object's.

# %% [markdown]
# ## Few anchors are positive
#
# Counted for up to 100 training images, at this run's size and at the assignment's.

# %%
def assign(profile):
    """Labels (images, A) and the objects' boxes, in the profile's frame."""
    sizes = profile.image
    everything = pyramid_anchors(pyramid_grids(sizes.padded_size), profile.anchors)
    given = [{"boxes": torch.from_numpy(train.boxes[train.indices[n]])} for n in busy[:100]]
    objects = [target["boxes"] for target in preprocess_targets(given, FRAME, sizes)]
    labelled = [rpn.rpn_targets(everything, gt, content_size(*FRAME, sizes), profile.rpn)[0] for gt in objects]
    return torch.stack(labelled), objects


profiles = {config.profile: config, "sheet": sheet}
assigned = {name: assign(profile) for name, profile in profiles.items()}

# %% [markdown]
# P2 … P6 are positive anchors in all these images together; *positive* and *negative* are medians over the images.

# %%
rows = []
for name, (labels, _) in assigned.items():
    cells = [3 * sy * sx for sy, sx in pyramid_grids(profiles[name].image.padded_size)]
    rows.append({"profile": name, "images": len(labels), "anchors": labels.shape[1]})
    positive = (labels == POSITIVE).split(cells, dim=1)
    rows[-1] |= {level: int(p.sum()) for level, p in zip(LEVELS, positive, strict=True)}
    rows[-1] |= {n: int((labels == k).sum(1).median()) for n, k in (("positive", POSITIVE), ("negative", NEGATIVE))}
report.save_table(rows, "02_positives")
display(report.markdown(rows))

# %% cellView="form"
# @title What this cell draws: positive anchors by level and by image
fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for offset, row, colour in zip((-0.2, 0.2), rows, (draw.LINES[0], "black"), strict=True):
    height, width = profiles[row["profile"]].image.padded_size
    words = {"color": colour, "label": f"{row['profile']}, {height} × {width}"}
    bars = axes[0].bar(np.arange(5) + offset, [row[level] / row["images"] for level in LEVELS], 0.4, **words)
    axes[0].bar_label(bars, [row[level] for level in LEVELS], fontsize=8)
    counts = (assigned[row["profile"]][0] == POSITIVE).sum(1).clamp(max=15)
    axes[1].bar(np.arange(16) + offset, counts.bincount(minlength=16), 0.4, **words)
axes[0].set_xticks(range(5), labels=LEVELS)
axes[0].margins(y=0.1)
axes[0].set(ylabel="positive anchors an image", title="by level (numbers: all images)")
axes[1].set_xticks(range(0, 16, 3), labels=[*map(str, range(0, 15, 3)), "15 +"])
axes[1].set(xlabel="positive anchors", ylabel="images", title="by image")
axes[0].legend(frameon=False)
axes[1].legend(frameon=False)
save_figure(fig, "02_positives")
plt.show()
mine, printed = rows
positives = sum(printed[level] for level in LEVELS)
spread = [sum(row[level] > 0 for level in LEVELS) for row in rows]
smallest = boxes.area(torch.cat(assigned["sheet"][1])).min().sqrt()
display(
    Markdown(
        f"The median of positive anchors an image is {mine['positive']}, of negative ones {mine['negative']:,}. At the sheet's "
        f"size P2 has {printed['P2'] or 'none'} of the {positives} positives: its scale is {sheet.anchors.scales[0]:g} "
        f"pixels, that of the smallest object {smallest:.0f}. Positives come from {spread[1]} levels there, from "
        f"{spread[0]} with this run's scales."
    )
)

# %% [markdown]
# ## The best IoU an object can get
#
# For every object of these images, the highest IoU over all anchors, and over those that stay inside.

# %%
truth = torch.cat(assigned[config.profile][1])
iou = boxes.iou_matrix(anchors, truth)
best_of_all, best, size = iou.amax(0), iou[inner].amax(0), boxes.area(truth).sqrt()
frame = torch.tensor([content[1], content[0]])
edge = AT_BORDER * frame / torch.tensor(FRAME[::-1])  # 2 pixels of the file
near = ((truth[:, :2] <= edge) | (truth[:, 2:] >= frame - edge)).any(1)

# %% cellView="form"
# @title What this cell draws: each object's best IoU against its scale, and how often each value occurs
fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(3, 2))
axes[0].vlines(size, best, best_of_all, "#BBBBBB", linewidth=2, zorder=0, label="lost by the removal")
axes[0].scatter(size, best_of_all, s=16, facecolors="none", edgecolors="grey", label="over all anchors")
axes[0].scatter(size, best, s=16, color=draw.LINES[0], label="over those inside")
axes[0].vlines(config.anchors.scales, 0, 1.02, "black", ":", label="the anchors' scales", linewidth=0.8)
axes[0].set(xscale="log", xlabel="scale of the object (pixels)", ylabel="best IoU", ylim=(0, 1.02))
axes[0].set_xlim(0.8 * min(size.min(), config.anchors.scales[1]), 1.1 * max(size.max(), config.anchors.scales[-1]))
ticks = [n for n in (20, 50, 100, 200, 500, 1000) if axes[0].get_xlim()[0] < n < axes[0].get_xlim()[1]]
axes[0].set_xticks(ticks, labels=ticks)
axes[0].set_xticks([], minor=True)
axes[1].hist(best_of_all, np.linspace(0, 1, 26), color="grey", histtype="step", linewidth=1.5, label="over all anchors")
axes[1].hist(best, np.linspace(0, 1, 26), color=draw.LINES[0], alpha=0.7, label="over those inside")
axes[1].set(xlabel="best IoU", ylabel="objects")
for line in (axes[0].axhline, axes[1].axvline):
    line(rpn.POSITIVE_IOU, color="black", linewidth=1, linestyle="--", label="threshold 0.7")
axes[0].legend(framealpha=1, edgecolor="white", loc="lower right", fontsize=8)
axes[1].legend(frameon=False, loc="upper left", fontsize=8)
save_figure(fig, "02_best_iou")
plt.show()
assert (best <= best_of_all).all()
lost = [
    f"{int(((best < best_of_all) & group).sum())} of {int(group.sum())} {where}"
    for where, group in ((f"within {AT_BORDER} pixels of the border", near), ("elsewhere", ~near))
]
low = int((best <= rpn.POSITIVE_IOU).sum())
below = low / len(best)
word = "the normal way" if below > 0.5 else "a frequent way" if below > 0.2 else "an exceptional way"
display(
    Markdown(
        f"Each point is an object. {low} of {len(best)} ({below:.0%}) have no anchor above 0.7 that stays inside, so "
        f"rule 2's *highest* is "
        f"{word} to a positive label. The removal costs some objects their best anchor: {', '.join(lost)}."
    )
)


# %% [markdown]
# ## Encoding: what a positive anchor is taught (§4.3)
#
# A positive anchor must also say where its object really is (a negative one has none). It says so relative to itself, so that
# a number means the same at every place and on every level:
#
# $$ t_x = \frac{x - x_a}{w_a}, \quad t_y = \frac{y - y_a}{h_a}, \quad t_w = \log\frac{w}{w_a}, \quad t_h = \log\frac{h}{h_a} $$

# %% [markdown]
# **By hand.** The anchor $(30, 40, 70, 60)$ has its centre at $(50, 50)$, is 40 wide and 20 high. It is $(0, 0, 0, 0)$ itself; moved by $(10, 5)$
# it is $(0.25, 0.25, 0, 0)$; twice as wide and half as high, $(0, 0, 0.693, -0.693)$. Doubling and halving are opposite numbers: hence the
# logarithm.

# %%
def encode_by_hand(box, anchor):
    """t of one box relative to one anchor."""
    (x, y, w, h), (xa, ya, wa, ha) = (
        ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]) for b in (box, anchor)
    )
    return [(x - xa) / wa, (y - ya) / ha, math.log(w / wa), math.log(h / ha)]


reference = (30.0, 40.0, 70.0, 60.0)
three = [reference, (40.0, 45.0, 80.0, 65.0), (10.0, 45.0, 90.0, 55.0)]
by_hand = torch.tensor([encode_by_hand(box, reference) for box in three])
assert_close(by_hand, torch.tensor([[0, 0, 0, 0], [0.25, 0.25, 0, 0], [0, 0, 0.693, -0.693]]), atol=1e-3, rtol=0)

# %% [markdown]
# **The part**, and its inverse: decoding gives the boxes back, here and for every positive anchor of the six images.

# %%
show(boxes.encode, boxes.decode)
same = torch.tensor([reference]).expand(3, 4)
assert_close(boxes.encode(torch.tensor(three), same), by_hand)
assert_close(boxes.decode(by_hand, same), torch.tensor(three))
for (labels, matched), target in zip(targeted, targets, strict=True):
    own, objects = anchors[labels == POSITIVE], target["boxes"][matched[labels == POSITIVE]]
    assert_close(boxes.decode(boxes.encode(objects, own), own), objects)

# %% [markdown]
# Before: an object's best positive anchor; after: the object it is taught to become. The line between the dots, from blue to red, is
# $(t_x w_a, t_y h_a)$, the move of the centre; $y$ points down.

# %% cellView="form"
# @title What this cell draws: positive anchors, their objects and t
fig, axes = plt.subplots(1, 3, figsize=(11.5, 3.5), layout="constrained")
pairs = []  # (image, anchor, object), those of the image we follow first
for n, ((labels, matched), target) in enumerate(zip(targeted, targets, strict=True)):
    positive = (labels == POSITIVE).nonzero().flatten()
    for g in matched[positive].unique():
        own = positive[matched[positive] == g]
        fit = boxes.iou_matrix(anchors[own], target["boxes"][g][None])[:, 0]
        pairs.append((n, anchors[own[fit.argmax()]], target["boxes"][g]))
for ax, (n, own, its_object) in zip(axes, pairs, strict=False):
    draw.boxes(draw.image(ax, pictures[n], margin=12), its_object, "truth", linewidth=2.5)
    draw.boxes(ax, own, "positive", dotted=True, linewidth=2.5)
    x, y = torch.stack([own[:2] + own[2:], its_object[:2] + its_object[2:]], dim=1) / 2  # of both centres
    ax.plot(x, y, color="white", linewidth=2)
    ax.scatter(x, y, 30, [draw.COLOURS["positive"], draw.COLOURS["truth"]], edgecolors="black", zorder=3)
    ax.set_title("t = (" + ", ".join(f"{v:.2f}" for v in boxes.encode(its_object, own)) + ")", fontsize=10)
    draw.legend(ax, {"positive": "before: anchor", "truth": "after: object"}).get_legend().get_lines()[0].set_linestyle(
        ":"
    )
plt.show()

# %% [markdown]
# ### How large are the numbers to be learnt?
#
# For all positive anchors of the counted images. Those that are only the best there was have further to go:

# %% cellView="form"
# @title What this cell draws: the four numbers of all positive anchors
deltas, fits = [], []
grow = shrink = 0
for labels, objects in zip(*assigned[config.profile], strict=True):
    own = anchors[labels == POSITIVE]
    fit, which = boxes.iou_matrix(own, objects).max(dim=1)
    deltas.append(boxes.encode(objects[which], own))
    fits.append(fit)
    smaller, larger = own - objects[which], objects[which] - own
    grow += int(((smaller[:, :2] >= 0) & (smaller[:, 2:] <= 0)).all(1).sum())  # the anchor lies in its object
    shrink += int(((larger[:, :2] >= 0) & (larger[:, 2:] <= 0)).all(1).sum())
deltas, fits = torch.cat(deltas), torch.cat(fits)
weak = fits <= rpn.POSITIVE_IOU
fig, axes = plt.subplots(1, 4, figsize=(12, 2.9), layout="constrained", sharey=True)
edge = max(0.6, float(deltas.abs().max()))
for ax, values, name in zip(axes, deltas.T, ("x", "y", "w", "h"), strict=True):
    draw.histogram(ax, values, np.linspace(-edge, edge, 25), xlabel=f"$t_{name}$", label="all")
    draw.histogram(ax, values[~weak], np.linspace(-edge, edge, 25), draw.LINES[4], f"$t_{name}$", "IoU above 0.7")
    ax.set_title(f"mean {values.mean():+.2f}, deviation {values.std():.2f}", fontsize=10)
    ax.label_outer()
axes[0].legend(frameon=False, fontsize=8)
plt.show()
farthest = [float(deltas[group].abs().max()) if group.any() else 0.0 for group in (~weak, weak)]
assert farthest[0] < math.log(1 / rpn.POSITIVE_IOU), "of two boxes with that IoU, no side is 1 / 0.7 times the other's"
w, h = deltas[:, 2:].mean(0)
sizes, moves = deltas[:, 2:].std(0).mean(), deltas[:, :2].std(0).mean()
display(
    Markdown(
        f"{(deltas.abs() < 0.5).float().mean():.1%} of them lie within ±0.5: comfortable numbers for a small "
        f"convolution. The largest is {farthest[0]:.2f} for the {int((~weak).sum())} anchors above 0.7 (it cannot pass "
        f"$\\log(1/0.7) = 0.36$), {farthest[1]:.2f} for the {int(weak.sum())} others. The sizes spread "
        f"{'more' if sizes > moves else 'no more'} than the moves ({sizes:.2f} against {moves:.2f}): anchors come in "
        f"few sizes but in many places. {grow} anchors lie inside their object and can only be told "
        f"to grow, {shrink} contain it and can only shrink; the means of $t_w$ and $t_h$ are {w:+.2f} and {h:+.2f}."
    )
)

# %% [markdown]
# ## Sampling (§4.4): as close to 1:1 as possible
#
# A loss over all anchors would be a loss over background. So each step draws $M$ anchors from its small batch of images: up to $M/2$ positive
# ones, negative ones for the rest.

# %% [markdown]
# **By hand.** Of ten anchors two are positive, six negative, two ignored. For $M = 6$ three positives are wanted, two exist: two and four. For
# $M = 2$: one of each. **The part:**

# %%
show(matching.sample)
ten = torch.tensor([1, 0, 0, -1, 0, 1, 0, -1, 0, 0])
for size, expected in ((6, (2, 4)), (2, (1, 1))):
    chosen = matching.sample(ten, size, 0.5)
    assert ((ten[chosen] == POSITIVE).sum(), (ten[chosen] == NEGATIVE).sum()) == expected
    assert len(set(chosen.tolist())) == size, "none twice"

# %% [markdown]
# Now the batch of our six images:

# %%
labels = torch.stack([labels for labels, _ in targeted])
torch.manual_seed(config.training.seed)
chosen = matching.sample(labels.flatten(), config.rpn.batch_samples, rpn.POSITIVE_FRACTION)
before, after = (
    {n: int((some == kind).sum()) for n, kind in (("positive", POSITIVE), ("negative", NEGATIVE), ("ignored", IGNORED))}
    for some in (labels, labels.flatten()[chosen])
)
assert after["positive"] == min(before["positive"], len(chosen) // 2) and not after["ignored"]
display(report.markdown([{"": "in the batch"} | before, {"": "in the minibatch"} | after]))

# %% cellView="form"
# @title What this cell draws: what the sampling drew from three images
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for n, ax in enumerate(axes[: len(pictures)]):
    own = chosen[chosen // len(anchors) == n] % len(anchors)
    kinds = {kind: own[labels[n][own] == value] for kind, value in (("negative", NEGATIVE), ("positive", POSITIVE))}
    draw.image(ax, pictures[n]).set_title(", ".join(f"{len(k)} {kind}" for kind, k in kinds.items()), fontsize=10)
    draw.boxes(ax, anchors[kinds["negative"]], "negative", linewidth=0.7)
    draw.boxes(ax, anchors[kinds["positive"]], "positive", linewidth=2.5)
draw.legend(axes[1], ["negative", "positive"])
save_figure(fig, "02_minibatch")
plt.show()
shares = [counts["positive"] / (counts["positive"] + counts["negative"]) for counts in (before, after)]
drawn = chosen[labels.flatten()[chosen] == NEGATIVE] % len(anchors)
display(
    Markdown(
        f"1:1 is the aim. Before, there were {before['negative'] / before['positive']:,.0f} negatives for each "
        f"positive; now there are {after['negative'] / after['positive']:.0f}. {after['positive']} of "
        f"{before['positive']} positives are in, {shares[1]:.0%} of the minibatch: of all positives and "
        f"negatives they were {shares[0]:.2%}. "
        f"Sampling lifts their share {shares[1] / shares[0]:.0f}-fold, but cannot invent them. "
        f"{(level_of[drawn] == 0).float().mean():.0%} of the negatives are of P2, hence the small boxes. They may lie "
        "on an object: a small anchor in a large object overlaps it by far less than 0.3."
    )
)

# %% [markdown]
# ## What the assignment of labels gets right, and what wrong
#
# Right: every label follows from a rule that can be checked on paper. Questionable:
#
# - **Weak positives.** Anchors that are only the best there was count as much as a perfect fit, while one of IoU 0.69 beside them may be
#   ignored.
# - **Lost anchors.** Like object 2 of the seven anchors' table: a danger in a crowd.
# - **The border.** Removed anchors are never taught, yet in testing they propose all the same (§4.6). Notebook 03 measures the harm.

# %%
have = []  # how many positive anchors each object has
for labels, objects in zip(*assigned[config.profile], strict=True):
    owner = boxes.iou_matrix(anchors[labels == POSITIVE], objects).argmax(dim=1)
    have.append(owner.bincount(minlength=len(objects)))
have = torch.cat(have)
total = {"objects": len(have), "without an anchor": int((have == 0).sum()), "with one": int((have == 1).sum())}
total |= {
    "positive anchors": len(fits),
    "of IoU up to 0.7": int(weak.sum()),
    "of IoU below 0.5": int((fits < 0.5).sum()),
}
assert total["without an anchor"] < 0.1 * total["objects"] and have.sum() == len(fits)
display(report.markdown([total]))
scales = boxes.area(truth).sqrt()
low, high = scales.quantile(torch.tensor([1 / 3, 2 / 3]))
groups = {"the smallest third": scales < low, "the largest third": scales > high}
groups |= {"those at the border": near, "those elsewhere": ~near}
few = {name: float((have[group] <= 1).float().mean()) for name, group in groups.items() if group.any()}
text = ", ".join(f"{share:.0%} of {name}" for name, share in few.items())
if few["the largest third"] > few["the smallest third"]:
    text += ". Large objects get few: their anchors stand on coarse grids, and most of them were removed"
display(
    Markdown(
        f"{total['without an anchor']} of {len(have)} objects are lost. {int(weak.sum())} of {len(fits)} positive "
        f"anchors are weak (IoU up to 0.7); {total['of IoU below 0.5']} do not even reach 0.5. Objects with one anchor "
        f"at most: {text}."
    )
)

# %% [markdown]
# ## Figures exported

# %% cellView="form"
# @title What this cell does: draws the montage, and lists what was saved
montage = Figure(figsize=(10, 6.2), layout="constrained")
axes = montage.subplots(3, 4)
for ax, n in zip(axes.flat, [*busy[5:], *busy[:5]], strict=False):
    seen = as_seen(train, [n], config)
    labels, _ = rpn.rpn_targets(anchors, seen.targets[0]["boxes"], content, config.rpn)
    draw.boxes(draw.image(ax, seen.pictures[0]), seen.targets[0]["boxes"], "truth", linewidth=2)
    draw.boxes(ax, anchors[labels == POSITIVE], "positive", linewidth=1.2)
for ax in axes.flat[len(busy) :]:
    ax.set_axis_off()
draw.legend(axes[2, 1], {"truth": "object", "positive": "positive anchor"})
save_figure(montage, "02_montage")
meanings = {
    "02_pyramid": "trunk and pyramid, with the shapes of this run",
    "02_features": "cells similar to one of an object, on every map",
    "02_three_boxes": "the rules of §4.2 on a tiny image",
    "02_positive_anchors": "positive anchors of six images (the assignment's figure 5)",
    "02_positives": "positive anchors by level and by image; the numbers as .csv and .tex",
    "02_best_iou": "the best IoU each object gets, with and without cross-boundary anchors",
    "02_minibatch": "what the sampling draws",
    "02_montage": "twelve images with their positive anchors",
}
assert all((paths().figures / f"{name}.{ending}").exists() for name in meanings for ending in ("pdf", "png"))
display(report.markdown([{"file": f"figures/{name}", "shows": text} for name, text in meanings.items()]))


# %% [markdown]
# ## Summary
#
# - Five maps, strides 4 to 64, $F$ channels each: the pyramid brings to a fine grid what only deep maps know, and stays frozen while the heads learn.
# - An anchor is a question with a place, a size and a shape. The sheet asks 217,413, of which 190,911 lie inside the image.
# - IoU above 0.7 is strict. Where no anchor reaches it, rule 2's "highest" helps.
# - A minibatch takes the few positives, and fills up with background.
# - Boxes are taught relative to their anchor, so the numbers are small.

# %% [markdown]
# ## Exercises
#
# Each has a stub and a check. Solutions: `notebooks/solutions/02_anchors.py`.

# %% [markdown]
# ### Exercise 2.1: a lower threshold
#
# Write `positives_at`: label the images counted in `assign` (their objects are `assigned[config.profile][1]`) by `match_anchors` on
# `anchors[inner]`, with another positive threshold. What do you gain, and what must the regressor learn now?

# %%
# exercise 2.1
def positives_at(threshold):
    """(number of positive anchors, standard deviation of their t_w) over the counted images."""
    return None


# %%
# check 2.1
if positives_at(0.7) is None:
    print("exercise 2.1: not done yet")
else:
    found = {threshold: positives_at(threshold) for threshold in (0.7, 0.5)}
    assert found[0.7][0] == total["positive anchors"] < found[0.5][0]
    assert abs(found[0.7][1] - deltas[:, 2].std()) < 1e-3
    print(
        {threshold: f"{count} positive, deviation of tw {spread:.2f}" for threshold, (count, spread) in found.items()}
    )


# %% [markdown]
# ### Exercise 2.2: an object keeps its best anchor
#
# Change rule 5 in `label_by_hand` or after `match_anchors`: an anchor that is some object's best belongs to *that* object (of several, to the one
# it overlaps most). What becomes of anchor 6 in the table, and of C?

# %%
# exercise 2.2
def match_keeping(iou, positive_iou, negative_iou):
    """IoU (A, G) -> labels (A,) and objects (A,), as `match_anchors` but for the changed rule."""
    return None


# %%
# check 2.2
if match_keeping(table, 0.7, 0.3) is None:
    print("exercise 2.2: not done yet")
else:
    labels, objects = match_keeping(table, 0.7, 0.3)
    assert labels.tolist() == seven and objects[labels == POSITIVE].tolist() == [0, 1, 1, 2]
    labels, objects = match_keeping(boxes.iou_matrix(tiny[inside], abc), 0.7, 0.3)
    have = objects[labels == POSITIVE].bincount(minlength=3).tolist()
    assert have == [1, 2, 0], "an anchor that is best for several goes to the one it overlaps most"
    print(f"exercise 2.2: done; A, B, C have {have} anchors")


# %% [markdown]
# ### Exercise 2.3: keep the cross-boundary anchors
#
# With `rpn.cross_boundary` `"clip"` no anchor is removed. Write `gained`: how many more (or fewer) positive anchors each level gets. Call
# `assign` with another config. Why can a level lose?

# %%
# exercise 2.3
def gained():
    """Five numbers, of P2 ... P6: positives with all anchors less those with the anchors inside."""
    return None


# %%
# check 2.3
if gained() is None:
    print("exercise 2.3: not done yet")
else:
    everything = torch.zeros(5, dtype=torch.int64)
    for labels, objects in zip(*assigned[config.profile], strict=True):
        with_all = matching.match_anchors(boxes.iou_matrix(anchors, objects), 0.7, 0.3)[0]
        for now, sign in ((with_all, 1), (labels, -1)):
            everything += sign * level_of[now == POSITIVE].bincount(minlength=5)
    assert [int(n) for n in gained()] == everything.tolist()
    print("exercise 2.3: done;", dict(zip(LEVELS, everything.tolist(), strict=True)))


# %% [markdown]
# ### Exercise 2.4: anchors from the data
#
# An extension. Find five scales and three ratios in the training objects `truth`: k-means on the logarithms of $\sqrt{wh}$ and of $w/h$
# (why logarithms?). The check compares shapes alone, all boxes around one centre, by their mean best IoU.

# %%
# exercise 2.4
def anchors_from_data(objects):
    """Boxes (G, 4) -> an AnchorConfig whose scales and ratios fit them."""
    return None


# %%
# check 2.4
def mean_fit(shapes):
    """The mean over the objects of the best IoU with an anchor of any scale and ratio on the same centre."""
    sizes = truth[:, 2:] - truth[:, :2]
    own = torch.cat([square(s, r) for s in shapes.scales for r in shapes.ratios])
    return float(boxes.iou_matrix(torch.cat([-sizes / 2, sizes / 2], dim=1), own).amax(1).mean())


if anchors_from_data(truth) is None:
    print("exercise 2.4: not done yet")
else:
    mine = anchors_from_data(truth)
    assert len(mine.scales) == 5 and len(mine.ratios) == 3 and mean_fit(mine) > mean_fit(config.anchors)
    print(f"exercise 2.4: done; mean best IoU {mean_fit(mine):.3f} for {mean_fit(config.anchors):.3f}")

# %% [markdown]
# ## References
#
# - He et al. 2017: [Mask R-CNN](https://arxiv.org/abs/1703.06870).
# - Ren et al. 2015: [Faster R-CNN](https://arxiv.org/abs/1506.01497): anchors, labels, sampling.
# - Lin et al. 2017: [Feature pyramid networks](https://arxiv.org/abs/1612.03144).
# - Trunks: He et al. 2016, [ResNet](https://arxiv.org/abs/1512.03385); Howard et al. 2019, [MobileNetV3](https://arxiv.org/abs/1905.02244).

# %% [markdown]
# ## Appendix
#
# ### What the grid alone costs
#
# The grid shifts an anchor by up to half a stride along both axes. An object that has *exactly* the size of a square anchor, in the worst place,
# is left with an IoU of $(1-u)^2 / (2 - (1-u)^2)$ where $u = \text{stride} / (2s)$. On the sheet's levels that never falls below 0.7; with
# smaller anchors on the same strides it can.

# %%
rows = []
for name, profile in profiles.items():
    common = [(1 - stride / (2 * s)) ** 2 for stride, s in zip(STRIDES, profile.anchors.scales, strict=True)]
    rows.append({"profile": name} | {n: v / (2 - v) for n, v in zip(LEVELS, common, strict=True)})
display(report.markdown(rows))
assert min(list(rows[1].values())[1:]) > 0.7

# %% [markdown]
# ### Odd cases
#
# What the next notebook relies on. `decode` cuts $t_w$ and $t_h$ at $\log(1000/16)$ before the exponential: an untrained network may say
# anything. An image without objects has no positives.

# %%
assert len(anchors) == len(level_of) == sum(3 * sy * sx for sy, sx in grids)
for (labels, matched), target in zip(targeted, targets, strict=True):
    iou = boxes.iou_matrix(anchors, target["boxes"])
    assert (labels == POSITIVE).any() and boxes.inside(anchors[labels != IGNORED], *content).all()
    assert (iou[labels == NEGATIVE] < rpn.NEGATIVE_IOU).all()
    assert (iou.gather(1, matched[:, None])[:, 0] == iou.amax(1))[labels == POSITIVE].all()
empty, _ = rpn.rpn_targets(anchors, torch.zeros(0, 4), content, config.rpn)
assert not (empty == POSITIVE).any()
assert boxes.decode(torch.full((1, 4), 1000.0), anchors[:1]).isfinite().all()

# %% [markdown]
# ## A last look
#
# Twelve images of the training set.

# %%
montage

# %% [markdown]
# ## The browser
#
# Every training image (on GitHub a picture of the first). Pull *positive: IoU above* down: more anchors pass; up: objects keep their best. Choose an
# *object* for its anchors alone; tick *heat map of the best IoU*: where do good ones stand?

# %%
browser.AnchorBrowser(train, config)
