# %% [markdown]
# # 1 · The data: from four files to the network's input
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-from-its-parts/maskrcnn-from-its-parts/blob/main/notebooks/01_data.ipynb)
#
# **The claim.** Four files hold all that [Mask R-CNN](https://arxiv.org/abs/1703.06870) learns from here. Grouped by their labels and rescaled with care, images, boxes and masks
# still agree in the network's frame to about half a pixel, and their sizes already tell where detection will be hard.
#
# **Run time:** about half a minute on one CPU core (a minute the first time, when a program draws the *built-in scenes*, which stand in for the course's files).
#
# **Inputs → outputs:** `data/<source>/` (written if missing) → `data/<source>/split.json`, tables and pictures `figures/01_*`.
#
# § numbers are sections of the course's assignment sheet; what they ask is said where it is used.

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
# All parts of the system are imported from `lib/`. `show` prints a part's source, so that the code you read is the code that runs.
# A *profile* is a set of sizes and settings: **course** is the sheet's, **demo** the same system with smaller images, which a CPU can train in minutes.

# %% cellView="form"
# @title Imports: the parts from lib/, and what draws
import io
import pickle
import tempfile
import tracemalloc

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from matplotlib.lines import Line2D
from torch.testing import assert_close

from lib import preprocess
from lib.anchors import LEVELS, pyramid_grids
from lib.boxes import area
from lib.config import load_config
from lib.data import objects, safe_npy
from lib.data import scene_layout as layout
from lib.data.batches import collate, flip_boxes, flip_horizontally, flip_targets
from lib.data.reader import FILES, CourseDataset, Pixels
from lib.data.split import load_split
from lib.machine.folders import paths
from lib.maskrcnn import COURSE_CLASSES
from lib.notebook import diagrams, draw, report
from lib.notebook.teach import as_seen, followed, show
from lib.preprocess import IMAGE_HEIGHT, IMAGE_MEAN, IMAGE_STD, IMAGE_WIDTH, SIZE_DIVISOR
from lib.rpn import POSITIVE_IOU

CLASS_NAMES = config.class_names  # by label; 0 is background

# %% [markdown]
# ## Where this part sits
#
# The blue boxes are this notebook's: what comes in, what the network gets, and what it is compared with in the end.

# %%
diagrams.system("data")

# %% [markdown]
# ## Goals
#
# After this notebook you can
#
# 1. say which mask belongs to which image, though the mask file does not say so;
# 2. carry an image, its boxes and its masks into the network's frame, and prove that they still fit each other;
# 3. read from the objects' sizes which anchors the next notebook needs, and which objects will be hard.

# %% [markdown]
# ## The image we follow
#
# One image of the *val* split, on which nothing is trained, goes through all six notebooks. Left its picture; right what the files say: for each object a class (the
# colour), a box and a mask. A trained network has to find the right side from the left.

# %% cellView="form"
# @title Draw the followed image, with and without its boxes and masks
dataset = CourseDataset(DATA)  # all images
val = CourseDataset(DATA, "val", config.data)
n = val.indices[followed(val)]  # its number in the files
picture, target = dataset[n]
names = [CLASS_NAMES[label] for label in target["labels"]]

fig, axes = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
draw.image(axes[0], picture).set_title(f"image {n} of {len(dataset)}")
draw.masks(draw.image(axes[1], picture), target["masks"], target["labels"])
draw.boxes(axes[1], target["boxes"], target["labels"], names).set_title("with its boxes and masks")
plt.show()
lines = [
    f"* the {name}: its box is {box[2] - box[0]:.0f} pixels wide and {box[3] - box[1]:.0f} high; "
    f"its mask fills {mask.sum() / area(box):.0%} of the box"
    for name, box, mask in zip(names, target["boxes"], target["masks"], strict=True)
]
drawn = ", drawn by a program after the sizes and classes in the course's photographs," * (SOURCE == "synthetic")
display(Markdown("\n".join([f"Image {n}{drawn} shows", *lines])))

# %% [markdown]
# A box contains much that is not its object: that is why we want masks. And where one object hides
# another, the hidden part is not in the mask of the one behind, which may fall into pieces; boxes overlap freely.
#
# In code an example is a pair: the picture and a dictionary, in torchvision's convention for detection, so that torchvision's own models read the same data set.

# %%
print(f"picture   {picture.dtype}    {tuple(picture.shape)}")
for key, value in target.items():
    print(f"{key:9}", f"{str(value.dtype):14} {tuple(value.shape)}" if torch.is_tensor(value) else value)
print("labels mean", ", ".join(f"{label} {name}" for label, name in enumerate(CLASS_NAMES) if label))

# %% [markdown]
# ## Symbols
#
# | symbol | meaning |
# |---|---|
# | $I$, $J$ | images and objects of the whole data set |
# | $G$ | objects of one image |
# | $H \times W$ | an image as given, here 300 × 400 pixels |
# | $H' \times W'$ | the *content*: the image once it is rescaled |
# | $H_p \times W_p$ | the network's input: the content and its padding |
# | $s_x,\ s_y$ | the scale factors $W'/W$ and $H'/H$ |
#
# ($S_y \times S_x$ in the diagram counts the cells of a grid; it is no scale.)
#
# A box is $(x_1, y_1, x_2, y_2)$ in pixels, of the file at first, later of the network's input. **Pixel $i$ covers the interval $[i, i+1)$**: coordinates are lengths on a ruler, not indices. So the
# width is $x_2 - x_1$, and the tight box of a mask is $(x_\min,\ y_\min,\ x_\max + 1,\ y_\max + 1)$.
#
# Labels count from 1; 0 is background and never occurs in the files.

# %% [markdown]
# ## A look at the whole
#
# Twenty-four images, evenly spread:

# %% cellView="form"
# @title Draw 24 images with their boxes and masks, in the colours of their classes
present = draw.most_frequent(np.concatenate(dataset.labels))


def class_legend(fig, *others):
    """A key of the classes' colours, and of what else is given, below a figure."""
    handles = [Line2D([], [], color=draw.class_colour(c), linewidth=4, label=CLASS_NAMES[c]) for c in present]
    fig.legend(handles=[*handles, *others], loc="outside lower center", ncols=5, fontsize=9, frameon=False)


fig, axes = plt.subplots(4, 6, figsize=(11, 6.2), layout="constrained")
for ax, i in zip(axes.flat, np.linspace(0, len(dataset) - 1, axes.size).astype(int), strict=True):
    image, objects_of_it = dataset[i]
    draw.masks(draw.image(ax, image), objects_of_it["masks"], objects_of_it["labels"])
    draw.boxes(ax, objects_of_it["boxes"], objects_of_it["labels"], linewidth=1)
class_legend(fig)
save_figure(fig, "01_montage")
plt.show()

# %% [markdown]
# ## The four files
#
# | file | holds | format |
# |---|---|---|
# | `…_img_comp_zlib.h5` | images $(I, 3, 300, 400)$, uint8 | HDF5, one data set named `data`, compressed |
# | `…_mask_comp_zlib.h5` | masks $(J, 300, 400)$, uint8 | the same |
# | `…_labels_comp_zlib.npy` | $I$ arrays of $G$ labels | a numpy *object array*: each entry has its own length |
# | `…_bboxes_comp_zlib.npy` | $I$ arrays $(G, 4)$ | the same |
#
# We open them with nothing but `h5py` and a loader for the last two (the Appendix says why not `np.load`).

# %%
image_file, mask_file = (h5py.File(DATA / FILES[kind], "r")["data"] for kind in ("images", "masks"))
label_list, box_list = (safe_npy.load_object_array(DATA / FILES[kind]) for kind in ("labels", "boxes"))
print(f"images {image_file.shape} {image_file.dtype}\nmasks  {mask_file.shape} {mask_file.dtype}")
print(f"labels {label_list.shape}, the first three: {[entry.tolist() for entry in label_list[:3]]}")
print(f"boxes  {box_list.shape}, of image {n}: {box_list[n].round(1).tolist()}")

# %% [markdown]
# There are more masks than images, and no file says which mask belongs where. The sheet (§2) gives the clue: *use the label list*.

# %% [markdown]
# ## Which mask belongs to which image?
#
# Masks are stored in the order of the labels. So image $n$ owns as many masks as it has labels, after all masks of the images before it:
#
# $$ \text{first}(n) = \sum_{k<n} G_k, \qquad \text{masks of image } n:\ \text{first}(n),\ \dots,\ \text{first}(n) + G_n - 1 $$
#
# **Predict, then see.** (Our answers stand below the questions: decide first.) Four images have the labels `[3]`, `[2, 2]`, `[]` and `[1, 3]`. Which masks belong to the last one? Give the list of their
# numbers in the mask file, which count from 0.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
masks_of_the_last = [3, 4]
### END SOLUTION

# %%
first = Pixels(DATA, counts=[1, 2, 0, 2]).first_mask  # of the four images, and the end
assert masks_of_the_last == list(range(first[3], first[4])), "how many labels come before those of the last image?"
print("first(n):", first.tolist())


# %% [markdown]
# **By hand**, one object at a time:

# %%
def masks_by_counting(labels):
    """The numbers of every image's masks."""
    owners, next_mask = [], 0
    for of_image in labels:
        owners.append([])
        for _ in of_image:
            owners[-1].append(next_mask)
            next_mask += 1
    return owners


assert masks_by_counting([[3], [2, 2], [], [1, 3]]) == [[0], [1, 2], [], [3, 4]]

# %% [markdown]
# **The part.** `lib` computes all sums once, when the files are opened (`first_mask`, a cumulative sum), and takes a slice of the mask file
# when an image is asked for:

# %%
show(Pixels.masks, CourseDataset.__getitem__, CourseDataset.target)

# %% [markdown]
# Equal to the naive version? The numbers for every image, the masks themselves for some.

# %%
owners, first = masks_by_counting(label_list), dataset.pixels.first_mask
assert [list(range(a, b)) for a, b in zip(first[:-1], first[1:], strict=True)] == owners
for i in [*range(min(20, len(dataset))), n]:
    by_hand = np.array([mask_file[m] > 0 for m in owners[i]], np.uint8).reshape(-1, IMAGE_HEIGHT, IMAGE_WIDTH)
    assert_close(dataset[i][1]["masks"], torch.from_numpy(by_hand))
assert len(mask_file) == sum(map(len, owners))

# %% [markdown]
# ### What a mistake of one looks like
#
# Suppose $\text{first}$ is one too large. Then *every* object has its neighbour's mask (the last none), and nothing crashes. The strip
# shows the mask file in order (white: the mask; bold: our image's); below it is our image as it should be, and with masks shifted by one.

# %% cellView="form"
# @title Draw the mask file around our image, and the image with masks shifted by one
owner = [i for i, masks in enumerate(owners) for _ in masks]
start = int(np.clip(first[n] - 2, 0, max(0, len(owner) - 6)))
strip = range(start, min(start + 6, len(owner)))
fig = plt.figure(figsize=(11, 5.2), layout="constrained")
top, bottom = fig.subfigures(2, 1, height_ratios=(1, 1.9))
for ax, m in zip(top.subplots(1, 6), strip, strict=False):
    ax.imshow(mask_file[m] > 0, cmap="gray", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"mask {m} → image {owner[m]}", fontsize=10, weight="bold" if owner[m] == n else "normal")
shifted = dataset.pixels.open("masks")[first[n] + 1 : first[n + 1] + 1] > 0
ok, off = bottom.subplots(1, 2)
draw.masks(draw.image(ok, picture), target["masks"], target["labels"])
draw.masks(draw.image(off, picture), shifted, target["labels"][: len(shifted)])
for ax, title in ((ok, f"image {n}: masks from {first[n]} on"), (off, f"one too far: masks from {first[n] + 1} on")):
    draw.boxes(ax, target["boxes"], target["labels"], names).set_title(title)
plt.show()

# %% [markdown]
# Can software notice? `lib` compares masks with their boxes when it opens a data set: more than half of a mask outside its box is a mistake.
#
# **Predict, then see.** Shift all masks by one, as above. What share of the objects still passes this test *by chance*, in percent? Think of how large the objects are, and where
# they lie. (Within 20 counts as right.)

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
percent_that_pass = 35
### END SOLUTION

# %%
some = min(200, len(mask_file) - 1)
boxes_in_order = np.concatenate(dataset.boxes)[:some]
caught = objects.mask_problems(mask_file[1 : some + 1] > 0, boxes_in_order, n=0)
astray = sum(problem.kind == objects.ASTRAY for problem in caught)
passed = 100 * (1 - astray / some)
of_ours = len(shifted) - sum(p.kind == objects.ASTRAY for p in objects.mask_problems(shifted, dataset.boxes[n], n))
as_they_are = objects.mask_problems(mask_file[:some] > 0, boxes_in_order, n=0)
assert not any(problem.kind == objects.ASTRAY for problem in as_they_are), "unshifted, all pass"
if SOURCE == "synthetic":  # the answer depends on the data
    assert abs(percent_that_pass - passed) <= 20, f"{passed:.0f} % pass"
display(
    Markdown(
        f"**{passed:.0f} %** of {some} objects pass although each has another's mask: objects are large and lie near "
        f"the middle. Of our image's {len(shifted)} shifted masks above {of_ours} would pass. An image proves little, "
        "but in a whole data set a shift breaks so many that it cannot hide."
    )
)

# %% [markdown]
# ## Preprocessing, step by step (§2)
#
# $$ \text{uint8 } [0, 255] \;\xrightarrow{\ \div 255\ }\; [0, 1] \;\xrightarrow{\text{ rescale }}\; H' \times W'
# \;\xrightarrow{\ (x - \mu_c)/\sigma_c\ }\; \approx [-2.1, 2.6] \;\xrightarrow{\text{ pad right, below }}\; H_p \times W_p $$
#
# Networks learn best from numbers around zero, and a pretrained backbone expects those of its own training: mean and deviation of each
# channel are ImageNet's, $\mu = (0.485, 0.456, 0.406)$, $\sigma = (0.229, 0.224, 0.225)$. In a larger image a small object has more pixels. And padding makes the grids fit: the
# [feature pyramid](https://arxiv.org/abs/1612.03144) has maps, its *levels* P2 … P5, whose cells are 4, 8, 16 and 32 pixels wide, so both sides must be multiples of 32.
#
# The sheet, and so the course profile, rescales to 800 × 1066.
#
# **Predict, then see.** How many columns of padding does the course profile add on the right of a content 1066 wide?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
columns_of_padding = 22
### END SOLUTION

# %%
course = load_config("course").replace(**{"image.height": 800, "image.width": 1066})
assert columns_of_padding == course.image.padded_size[1] - course.image.width, "the next multiple of 32 is the width"
assert course.image.padded_size == (800, 1088), "§2"
print(f"1066 + {course.image.padded_size[1] - course.image.width} = 1088 = {1088 // SIZE_DIVISOR} × {SIZE_DIVISOR}")
assert (IMAGE_MEAN, IMAGE_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# %% [markdown]
# In the table, P2 … P6 are the levels' grids, in cells.

# %% cellView="form"
# @title Table: both profiles' frames, scale factors and grids
rows = []
for name, sizes in (("course", course.image), ("demo", load_config("demo").image)):
    row = {"profile": name, "content": f"{sizes.height} × {sizes.width}"}
    row |= {"input": "{} × {}".format(*sizes.padded_size)}
    row |= {"s_x": f"{sizes.width / IMAGE_WIDTH:.4f}", "s_y": f"{sizes.height / IMAGE_HEIGHT:.4f}"}
    grids = zip(LEVELS, pyramid_grids(sizes.padded_size), strict=True)
    rows.append(row | {level: "{} × {}".format(*grid) for level, grid in grids})
display(report.markdown(rows))
exact = IMAGE_WIDTH * 800 / IMAGE_HEIGHT
display(
    Markdown(
        f"To keep 4:3 exactly, 800 rows would need {exact:.2f} columns. At 1066 the image is squeezed by "
        f"{exact - 1066:.2f} pixels, which is {(exact - 1066) * IMAGE_HEIGHT / 800:.2f} pixels of the file. Nothing is "
        f"cut; but boxes need **two** factors: with $s_y$ for both, a right edge would be {exact - 1066:.2f} pixels "
        "off. P6 has half as many rows and columns as P5, rounded up."
    )
)

# %% [markdown]
# ### Three boxes by hand
#
# A box goes along by plain multiplication: $x' = s_x x$, $y' = s_y y$. In the course profile $s_x = 1066/400 = 2.665$ and $s_y = 8/3$:
#
# | box in the file | rescaled |
# |---|---|
# | $(0, 0, 400, 300)$, the whole image | $(0, 0, 1066, 800)$ |
# | $(100, 75, 200, 150)$ | $(266.5, 200, 533, 400)$ |
# | $(200, 150, 400, 300)$, the last quarter | $(533, 400, 1066, 800)$ |

# %%
three = torch.tensor([[0, 0, 400, 300], [100, 75, 200, 150], [200, 150, 400, 300]], dtype=torch.float32)
expected = torch.tensor([[0, 0, 1066, 800], [266.5, 200, 533, 400], [533, 400, 1066, 800]])
naive = [[x1 * 2.665, y1 * 8 / 3, x2 * 2.665, y2 * 8 / 3] for x1, y1, x2, y2 in three.tolist()]
(scaled,) = preprocess.preprocess_targets([{"boxes": three}], (IMAGE_HEIGHT, IMAGE_WIDTH), course.image)
assert_close(torch.tensor(naive), expected)
assert_close(scaled["boxes"], expected)

# %% [markdown]
# ### Why boxes need no half pixel, and resampling does
#
# If boxes are lengths on a ruler, pixels must be treated alike. Pixel $i$ has its centre at $i + \tfrac12$. An output pixel with centre
# $i' + \tfrac12$ is therefore read from the place
#
# $$ x = \frac{i' + \tfrac12}{s} - \tfrac12 \qquad\text{(an index, so that 0 is the first pixel's centre).} $$
#
# Between two centres we interpolate; outside the first and the last we repeat the border.
#
# **Predict, then see.** Double a row of two pixels, `[0, 100]`. What are the four outputs?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
doubled = [0.0, 25.0, 75.0, 100.0]  # read from x = -0.25, 0.25, 0.75, 1.25
### END SOLUTION

# %%
def resize_row(row, scale):
    """Linear interpolation with half-pixel centres, one output pixel at a time."""
    out = []
    for i in range(round(len(row) * scale)):
        x = min(max((i + 0.5) / scale - 0.5, 0), len(row) - 1)
        left = min(int(x), len(row) - 2)
        out.append(row[left] * (left + 1 - x) + row[left + 1] * (x - left))
    return torch.tensor(out)


two = torch.tensor([[[0.0, 100.0]]])
assert_close(F.interpolate(two, scale_factor=2, mode="linear")[0, 0], resize_row([0.0, 100.0], 2))
assert_close(torch.tensor(doubled, dtype=torch.float32), resize_row([0.0, 100.0], 2))
print("[0, 100] doubled:", resize_row([0.0, 100.0], 2).tolist())

# %% [markdown]
# The other common rule (`align_corners=True`) gives `[0, 33.3, 66.7, 100]`: the first pixel becomes the first and the last the last, so that the picture is stretched
# a little more than its boxes. Exercise 1.2 asks by how much.
#
# **In two dimensions.** A small mask covers rows 2 … 4 and columns 3 … 6, so its tight box is $(3, 2, 7, 5)$. Doubled, the box is $(6, 4, 14, 10)$,
# and that is again the tight box of the doubled mask:

# %%
small = torch.zeros(1, 8, 10, dtype=torch.uint8)
small[0, 2:5, 3:7] = 1
large = (F.interpolate(small[None].float(), scale_factor=2, mode="bilinear")[0] >= 0.5).to(torch.uint8)


def tight_box(mask):
    """(x min, y min, x max + 1, y max + 1) of a mask (H, W)."""
    y, x = mask.nonzero(as_tuple=True)
    return torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1], dtype=torch.float32)


assert tight_box(small[0]).tolist() == [3, 2, 7, 5]
assert_close(tight_box(large[0]), 2 * tight_box(small[0]))

# %% cellView="form"
# @title Draw the small mask and the doubled one, with the right box and the box of indices
by_edge, by_index = torch.tensor([[3.0, 2, 7, 5]]), torch.tensor([[3.0, 2, 6, 4]])
fig, axes = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
for ax, mask, factor in zip(axes, (small[0], large[0]), (1, 2), strict=True):
    draw.image(ax, (180 + 60 * mask.expand(3, -1, -1)).to(torch.uint8))
    for axis, count in zip((ax.xaxis, ax.yaxis), mask.T.shape, strict=True):
        axis.set_ticks(range(count + 1), [k if k % factor == 0 else "" for k in range(count + 1)], fontsize=8)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.grid(color="#999999", linewidth=0.8)
    draw.boxes(ax, factor * by_index, "predicted", linewidth=3)
    draw.boxes(ax, factor * by_edge, "truth", linewidth=3)
    ax.set_title(f"{mask.shape[0]} × {mask.shape[1]} pixels, the mask in white")
    draw.legend(ax, {"truth": "box by edges, x max + 1", "predicted": "box by indices, x max"})
save_figure(fig, "01_half_pixel")
plt.show()
missed = [int(mask.sum() - area(f * by_index)[0]) for mask, f in ((small, 1), (large, 2))]
assert missed[0] > 0 and area(2 * by_edge)[0] == large.sum()
display(
    Markdown(
        "The box by edges contains the mask exactly, before and after. The box that takes the last pixel's *index* as "
        f"its edge misses {missed[0]} of {small.sum()} pixels; doubled, {missed[1]} of {large.sum()}: one column and "
        "one row of the small mask, two of the large one. An error of one pixel grows with the image."
    )
)


# %% [markdown]
# ### The image, naively and in `lib`
#
# The four steps for one image, one line each. Rescaling is bilinear; when an image shrinks, as in the demo profile, `antialias`
# takes a weighted mean over a window two output pixels wide, where plain interpolation looks at two pixels in each direction and skips the rest.

# %%
def preprocess_by_hand(image, sizes):
    """uint8 (3, 300, 400) -> float (3, Hp, Wp)."""
    x = image / 255
    height, width = preprocess.content_size(*image.shape[1:], sizes)
    x = F.interpolate(x[None], (height, width), mode="bilinear", antialias=True)[0]
    for channel, (mean, std) in enumerate(zip(IMAGE_MEAN, IMAGE_STD, strict=True)):
        x[channel] = (x[channel] - mean) / std
    padded = torch.zeros(3, *sizes.padded_size)
    padded[:, :height, :width] = x
    return padded


# %% [markdown]
# **The part** does this for a batch, on the device where the images are: what travels to a GPU is uint8, a quarter of the bytes. (It divides after rescaling. Both are linear, so
# the order does not matter.) It equals ours, at both sizes:

# %%
show(preprocess.preprocess_images, preprocess.normalised)
for sizes in (config.image, course.image):
    assert_close(preprocess.preprocess_images(picture[None], sizes)[0], preprocess_by_hand(picture, sizes))

# %% [markdown]
# **Predict, then see.** Padding is zero *after* normalising. Which value from 0 to 255 would a pixel of the file need in its red channel
# ($\mu = 0.485$, $\sigma = 0.229$) to look the same to the network? A whole number.

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
red_of_padding = 124  # 0.485 * 255 = 123.7: normalising takes the mean to zero
### END SOLUTION

# %%
greys = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)  # a small image for each
red = preprocess.preprocess_images(greys, preprocess.ImageConfig(32, 32))[:, 0, 0, 0]
assert red_of_padding == red.abs().argmin(), "which input does the formula take to zero?"
assert_close(red[[0, 255]], torch.tensor([-2.1179, 2.2489]), atol=1e-4, rtol=0)  # (0 - .485) / .229, (1 - .485) / .229
print(f"red 0 -> {red[0]:.3f}, 124 -> {red[124]:.3f}, 255 -> {red[255]:.3f}")

# %% [markdown]
# So the padding is not black but ImageNet's mean colour: neutral, where black would be the lowest value there is.

# %% [markdown]
# ### Our image goes through
#
# Above, the image in the file, after rescaling, and after normalising and padding; below, how often each value occurs.

# %% cellView="form"
# @title Draw our image after each step, with a histogram of its values
seen = as_seen(dataset, [n], config)
x, inside = seen.x[0], seen.x[0][:, : seen.content[0], : seen.content[1]]
scaled = F.interpolate(picture[None] / 255, inside.shape[1:], mode="bilinear", antialias=True)[0]
steps = {"file": picture, "rescaled": scaled, "normalised and padded": x}
fig, axes = plt.subplots(2, 3, figsize=(11, 4.9), layout="constrained", height_ratios=(2, 1))
draw.image(axes[0, 0], picture)
draw.image(axes[0, 1], scaled)
axes[0, 2].imshow(x.mean(0), cmap="gray", extent=(0, x.shape[2], x.shape[1], 0))
draw.boxes(axes[0, 2], [[0, 0, inside.shape[2], inside.shape[1]]], "positive")
draw.legend(axes[0, 2].set(xticks=[], yticks=[]) and axes[0, 2], {"positive": "the content; outside it, padding"})
for ax, below, (name, values) in zip(*axes, steps.items(), strict=True):
    ax.set_title(f"{name}: {values.shape[1]} × {values.shape[2]}")
    for channel, colour in enumerate(("#D62728", "#2CA02C", "#1F77B4")):
        below.hist(values[channel].ravel(), 40, histtype="step", color=colour, label=("red", "green", "blue")[channel])
    below.set(yticks=[], xlabel=f"from {values.min():.3g} to {values.max():.3g}", ylabel="pixels")
axes[1, 0].legend(fontsize=8, frameon=False)
plt.show()
assert (x[:, inside.shape[1] :] == 0).all() and (x[:, :, inside.shape[2] :] == 0).all()
share_padded = 1 - inside[0].numel() / x[0].numel()
display(
    Markdown(
        "The histograms keep their shape, their axis changes: from 0 … 255 to 0 … 1, then to both sides of zero (the "
        f"mean of this image is {inside.mean():+.2f}, its deviation {inside.std():.2f}; over ImageNet they are about 0 "
        f"and 1). In the {config.profile} profile {share_padded:.0%} of the input is padding, the spike at zero on the "
        "right. Because it lies at the right and below, no coordinate moves: **boxes are scaled and never shifted**. "
        "(The right picture is the mean of the three channels, in grey.)"
    )
)

# %% [markdown]
# ### Boxes and masks go along
#
# Masks are rescaled like images. The result is no longer 0 or 1, so a pixel of the new mask is set where the interpolated value is at least ½.

# %%
show(preprocess.preprocess_targets, preprocess._resize_masks)

# %% [markdown]
# Our image and five others as the network gets them, the check that the sheet asks for. (The normalisation is undone.)

# %% cellView="form"
# @title Draw six data points in the network's frame
six = [n, *(i for i, of_image in enumerate(dataset.labels) if len(of_image) and i != n)][:6]
seen = as_seen(dataset, six, config)
shape = seen.x.shape[-2:]
fig, axes = plt.subplots(2, 3, figsize=(11, 7.6 * shape[0] / shape[1]), layout="constrained")
for ax, image, of_image in zip(axes.flat, seen.x, seen.targets, strict=False):
    draw.image(ax, draw.denormalise(image, IMAGE_MEAN, IMAGE_STD))
    draw.masks(ax, of_image["masks"], of_image["labels"])
    draw.boxes(ax, of_image["boxes"], of_image["labels"], [CLASS_NAMES[label] for label in of_image["labels"]])
padding = "the plain strips (ImageNet's mean colour) are padding"
fig.suptitle(f"image {n} and five others, {shape[0]} × {shape[1]}; {padding}", fontsize=10)
save_figure(fig, "01_datapoints")
plt.show()

# %% [markdown]
# Check three things: every outline follows its object; every box touches its mask on four sides; the colour of the frame fits what you
# see. The eye does not see half a pixel, so we also measure how far each side of a rescaled box is from the tight box of its rescaled mask.

# %%
mask_boxes = [pair for t in seen.targets for pair in zip(t["masks"], t["boxes"], strict=True) if pair[0].any()]
errors = torch.cat([(tight_box(mask) - box).abs() for mask, box in mask_boxes])
if SOURCE == "synthetic":  # here the boxes of the files are tight
    assert errors.median(0).values.max() < 0.5  # of each of the four by itself: boxes of indices miss on two alone
display(
    Markdown(
        f"Of {len(errors)} sides half are at most {errors.median():.2f} pixels away, the worst {errors.max():.2f}. "
        "That is what exact code gives: a mask must round to whole pixels where a box need not (half a pixel), "
        "and its thinnest tips may vanish."
    )
)

# %% [markdown]
# ## Mirrored images
#
# Half of the training images are mirrored, boxes and masks included: a person who looks left is as good an example as one who looks right. (Upside down they are not: no
# picture that we will be asked about looks like that.) A mirrored box has its sides exchanged:
#
# $$ (x_1, y_1, x_2, y_2) \;\to\; (W - x_2,\ y_1,\ W - x_1,\ y_2) $$
#
# **Predict, then see.** $W = 400$. Where does the box $(10, 20, 110, 220)$ go? And why would $(W - x_1, y_1, W - x_2, y_2)$ be wrong?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
mirrored_box = [290, 20, 390, 220]  # the other order has x1 > x2: a box of negative width
### END SOLUTION

# %%
three = torch.tensor([[10.0, 20, 110, 220], [0, 0, 400, 300], [150, 0, 250, 50]])
naive = [[400 - x2, y1, 400 - x1, y2] for x1, y1, x2, y2 in three.tolist()]
assert_close(flip_boxes(three, IMAGE_WIDTH), torch.tensor(naive))
assert list(mirrored_box) == naive[0], "its width stays 100"
x1, y1, x2, y2 = three[0].tolist()
print(f"mirrored: {naive[0]}; with x1 and x2 not exchanged {[400 - x1, y1, 400 - x2, y2]}: {x1 - x2:.0f} pixels wide")
assert naive[1:] == three[1:].tolist(), "the whole image, and a box in the middle, stay"
assert_close(flip_boxes(flip_boxes(three, IMAGE_WIDTH), IMAGE_WIDTH), three)

# %% [markdown]
# `lib` mirrors a batch *before* rescaling, each image by its own coin. (Afterwards the padding would come to lie at the left, and boxes would have to be shifted.)

# %%
show(flip_horizontally, flip_targets, flip_boxes)

# %% [markdown]
# Our image must still fit its targets. A strict test: a mirrored mask's tight box is the mask's tight box, mirrored.

# %% cellView="form"
# @title Draw our image as it is and mirrored, and test it
batch, both = collate([dataset[n]] * 2)
flipped, both = flip_horizontally(batch, both, torch.tensor([False, True]))
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for ax, image, of_image, title in zip(axes, flipped, both, ("as it is", "mirrored"), strict=True):
    draw.masks(draw.image(ax, image), of_image["masks"], of_image["labels"])
    draw.boxes(ax, of_image["boxes"], of_image["labels"], names).set_title(title)
plt.show()
assert torch.equal(flipped[1], picture.flip(-1)) and torch.equal(both[1]["masks"], target["masks"].flip(-1))
assert_close(both[1]["boxes"], flip_boxes(target["boxes"], IMAGE_WIDTH))
for mask, mirrored in zip(target["masks"], both[1]["masks"], strict=True):
    if mask.any():
        assert_close(tight_box(mirrored), flip_boxes(tight_box(mask), IMAGE_WIDTH))

# %% [markdown]
# ## Train, validation, test
#
# The images are divided once, by a seeded shuffle, and the division is stored beside the files. Weights are learnt on *train*, choices made on *val*, and the last notebook's
# scores come from *test*. Stored, so that it stays even if seed, shares or code change: else stage two could train on what stage one was judged by.

# %%
split = load_split(DATA, len(dataset), config.data)
assert sorted(i for indices in split.values() for i in indices) == list(range(len(dataset))), "each image once"
rows = []
for name, indices in split.items():
    found = np.bincount(np.concatenate([dataset.labels[i] for i in indices]), minlength=len(CLASS_NAMES))
    row = {"split": name, "images": len(indices), "objects": int(found.sum())}
    rows.append(row | {CLASS_NAMES[c]: int(found[c]) for c in present})
display(report.markdown(rows))
planned = f"{config.data.val_fraction:.0%} for val and {config.data.test_fraction:.0%} for test"
print(f"a new draw would take the seed {config.data.seed}, {planned}")

# %% [markdown]
# ## What is in the pictures?
#
# The course's project proposal (§9.1) asks for statistics of the data and what they mean for the system. The table has a row for each class of this set, and below it one of the
# course's own set, which the built-in scenes are drawn to resemble. Columns 5 % … 95 % are percentiles of the *share (0 to 1) of the image that a box covers*.

# %% cellView="form"
# @title Table: the share of the image that a box covers, by class, this set's and the course's
labels, all_boxes = (torch.from_numpy(np.concatenate(v)) for v in (dataset.labels, dataset.boxes))
width, height = (all_boxes[:, 2:] - all_boxes[:, :2]).T
share = area(all_boxes) / (IMAGE_WIDTH * IMAGE_HEIGHT)  # of the image that the box covers
assert len(labels) == len(all_boxes) == len(mask_file) and labels.min() >= 1 and share.max() <= 1
PERCENTILES = (5, 25, 50, 75, 95)
course_like = config.classes == COURSE_CLASSES
course_objects = int(layout.STATISTICS["one"].sum() + 2 * layout.STATISTICS["two"].sum())


def statistics_row(source, name, count, of_all, areas):
    """One line of the table; `areas` are the percentiles of the covered share."""
    row = {"set": source, "class": name, "objects": count, "of all": f"{of_all:.0%}"}
    return row | {f"{p} %": float(value) for p, value in zip(PERCENTILES, areas, strict=True)}


rows = []
for c in present:
    areas = np.percentile(share[labels == c], PERCENTILES)
    rows.append(statistics_row("this", CLASS_NAMES[c], int((labels == c).sum()), (labels == c).float().mean(), areas))
    if course_like:
        of_all, areas = layout.CLASS_SHARES[c - 1], layout.SCALES[c][1:-1] ** 2 / (IMAGE_WIDTH * IMAGE_HEIGHT)
        rows.append(statistics_row("course", CLASS_NAMES[c], round(course_objects * of_all), of_all, areas))
report.save_table(rows, "01_statistics")
display(report.markdown(rows))
spans = {CLASS_NAMES[c]: np.divide(*np.percentile(share[labels == c], (95, 5))) for c in present}
top_row = rows[0]
display(
    Markdown(
        f"First row: a twentieth of the objects ({top_row['class']}) have a box that covers less than "
        f"{top_row['5 %']:.1%} of the image, half less than {top_row['50 %']:.1%}."
    )
)


# %% [markdown]
# The same as a picture: shares become bars, percentiles ranges.

# %% cellView="form"
# @title Two ways to draw: shares as bars, percentiles as ranges
def bars(ax, amounts, course, colours):
    """Shares as bars with their counts, and a black line at the course's share."""
    drawn = ax.bar(range(len(amounts)), amounts / amounts.sum(), color=colours, alpha=0.8)
    ax.bar_label(drawn, [f"{v:,}" for v in amounts], label_type="center")
    for k, value in enumerate(course):
        ax.hlines(value, k - 0.45, k + 0.45, "black", linewidth=2)


def ranges(ax, y, percentiles, ink):
    """5th to 95th percentile thin, 25th to 75th thick, the median a point."""
    low, first_quarter, half, third_quarter, high = percentiles
    ax.hlines([y, y], [low, first_quarter], [high, third_quarter], ink, linewidth=[1.5, 6])
    ax.plot(half, y, "o", color="white", markeredgecolor=ink)


def log_axis(ax, ticks, words):
    ax.set(xscale="log", xlabel=words)
    ax.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)


def percentile_key(fig):
    styles = {"5 to 95 %": (1.5, ""), "25 to 75 %": (6, ""), "median": (0, "o")}
    key = [Line2D([], [], color="gray", linewidth=w, marker=m, mfc="white", label=v) for v, (w, m) in styles.items()]
    key.append(Line2D([], [], color="black", linewidth=2, label="the course's set"))
    fig.legend(handles=key, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def posture(ratio):
    return "higher than wide" if ratio < 0.87 else "wider than high" if ratio > 1.15 else "about square"


# %% [markdown]
# Above, bars are this set with its counts; below, each class has a range in its colour. Black is the course's set.

# %% cellView="form"
# @title Draw objects an image, classes, areas and shapes
counts, shown_names = np.array([len(v) for v in dataset.labels]), [CLASS_NAMES[c] for c in present]
numbers, colours = np.arange(1, max(3, counts.max() + 1)), [draw.class_colour(c) for c in present]
fig, axes = plt.subplots(2, 2, figsize=(11, 6.8), layout="constrained", height_ratios=(3, 2))
one_or_two = [1 - layout.TWO_OBJECTS, layout.TWO_OBJECTS]
bars(axes[0, 0], np.array([(counts == k).sum() for k in numbers]), one_or_two, "#888888")
of_class = np.array([int((labels == c).sum()) for c in present])
bars(axes[0, 1], of_class, layout.CLASS_SHARES if course_like else [], colours)
axes[0, 0].set(ylabel="share of images", xlabel="objects in the image")
axes[0, 0].set_xticks(range(len(numbers)), numbers)
axes[0, 1].set_ylabel("share of objects")
axes[0, 1].set_xticks(range(len(present)), shown_names, rotation=90 if len(present) > 5 else 0)
course_areas = [v**2 / (IMAGE_WIDTH * IMAGE_HEIGHT) for v in layout.SCALES]
for ax, values, course_values in ((axes[1, 0], share, course_areas), (axes[1, 1], width / height, layout.ASPECTS)):
    for y, c in enumerate(present):
        ranges(ax, y - 0.17, np.percentile(values[labels == c], PERCENTILES), draw.class_colour(c))
        if course_like:
            ranges(ax, y + 0.17, course_values[c][1:-1], "black")
    ax.set(yticks=range(len(present)), yticklabels=shown_names, ylim=(len(present) - 0.5, -0.5))
log_axis(axes[1, 0], (0.01, 0.03, 0.1, 0.3, 1), "share of the image that the box covers")
log_axis(axes[1, 1], (0.25, 0.5, 1, 2, 4), "width / height of the box")
percentile_key(fig)
save_figure(fig, "01_statistics")
plt.show()
halves = {CLASS_NAMES[c]: float((width / height)[labels == c].median()) for c in present}
display(
    Markdown(
        f"{(counts == 1).mean():.0%} of the images have one object, at most there are {counts.max()}. A box typically "
        f"(median) covers {share.median():.0%} of its image. Shapes (median width / height): "
        + ", ".join(f"{name} {ratio:.2f}, {posture(ratio)}" for name, ratio in halves.items())
        + "."
    )
)

# %% [markdown]
# ## What this means for the anchors
#
# An anchor ([Faster R-CNN](https://arxiv.org/abs/1506.01497)) is a box of fixed size that an object must resemble to be found; each level P2 … P6 has anchors of one *scale* $\sqrt{wh}$ in the network's frame (§4.1).
#
# **Predict, then see.** In the course profile (800 × 1066) the scales are 32, 64, 128, 256 and 512. An object's box covers a fifth of the image. Which level's anchors is it
# nearest to, by ratio of scales?

# %% cellView="form"
# @title Your answer (write over ours)
### BEGIN SOLUTION
level_of_a_fifth = "P6"  # sqrt(800 * 1066 / 5) = 413; 512 is 1.24 times that, 256 is 1.61 times less
### END SOLUTION

# %%
def nearest_level(scale, profile):
    """The number of the level, 0 for P2, whose anchors' scale is nearest on a logarithmic axis."""
    return (scale.log()[:, None] - torch.tensor(profile.anchors.scales).log()).abs().argmin(1)


a_fifth = torch.tensor([800 * 1066 / 5]).sqrt()
assert level_of_a_fifth == LEVELS[nearest_level(a_fifth, course)], f"its scale is {a_fifth.item():.0f}"
print(f"√(800 × 1066 / 5) = {a_fifth.item():.0f}: {LEVELS[nearest_level(a_fifth, course)]}")


# %% [markdown]
# Now all objects of this set, in both profiles.

# %% cellView="form"
# @title Draw the objects' scales between the anchors' scales
def object_scales(sizes):
    """The scale of every object in the frame of these sizes."""
    return (width * sizes.width / IMAGE_WIDTH * height * sizes.height / IMAGE_HEIGHT).sqrt()


profiles = {"demo": load_config("demo"), "course": course} | {config.profile: config}
fig, axes = plt.subplots(1, len(profiles), figsize=(11, 3.9), layout="constrained", sharey=True)
for ax, (name, profile) in zip(axes, profiles.items(), strict=True):
    sizes, scales = profile.image, profile.anchors.scales
    scale = object_scales(sizes)
    bins = np.geomspace(0.8 * min(*scales, scale.min()), 1.1 * sizes.width, 32)
    ax.hist([scale[labels == c] for c in present], bins, stacked=True, color=colours)
    for level, of_anchor in zip(LEVELS, scales, strict=True):
        ax.axvline(of_anchor, color="black", linewidth=1)
        ax.annotate(level, (of_anchor, 1.01), xycoords=("data", "axes fraction"), ha="center", annotation_clip=False)
    log_axis(ax, scales, f"scale of the object in pixels, {name} profile ({sizes.height} × {sizes.width})")
axes[0].set_ylabel("objects")
class_legend(fig, Line2D([], [], color="black", linewidth=1, label="scale of a level's anchors"))
save_figure(fig, "01_scales")
plt.show()

# %% [markdown]
# Counted, and compared with the number of anchors that each level has:

# %% cellView="form"
# @title Table: which level's anchors objects are nearest to, and how many anchors each level has
rows, shares = [], {}
for name, profile in profiles.items():
    nearest = nearest_level(object_scales(profile.image), profile).bincount(minlength=len(LEVELS)) / len(labels)
    cells = torch.tensor([sy * sx for sy, sx in pyramid_grids(profile.image.padded_size)])
    shares[name] = nearest, cells / cells.sum()
    for what, values in zip(("objects", "anchors"), shares[name], strict=True):
        rows.append({"profile": name, "share of": what} | {k: f"{v:.1%}" for k, v in zip(LEVELS, values, strict=True)})
display(report.markdown(rows))
nearest, of_anchors = shares["course"]
if SOURCE == "synthetic":  # the words below are of objects as large as the course's
    assert nearest[0] < of_anchors[0] and nearest.min() <= shares["demo"][0].min()
top, course_scales = max(course.anchors.scales), object_scales(course.image)
too_large, largest_object = (course_scales > top).float().mean(), course_scales.max().item()
bound = (
    f"There {too_large:.0%} of the objects exceed the largest scale, {top:g}. The largest object has "
    f"{largest_object:.0f}: its IoU with an anchor is at most ({top:g} / {largest_object:.0f})² = "
    f"{(top / largest_object) ** 2:.2f}. "
) * bool(too_large)
display(
    Markdown(
        f"In the course profile {nearest[2:].sum():.0%} of the objects are nearest to P4 … P6 and {nearest[0]:.1%} to "
        f"P2, while P2 has {of_anchors[0]:.0%} of all anchors (a level has four times the cells of the next). "
        f"{bound}The demo's scales, {', '.join(f'{v:g}' for v in profiles['demo'].anchors.scales)}, were chosen to lie "
        f"where the course's objects are: its emptiest level has {shares['demo'][0].min():.1%} of the objects here."
    )
)


# %% [markdown]
# ### How well can an anchor fit at best?
#
# Suppose an anchor sits exactly at an object's centre. With widths $w, w_a$ and heights $h, h_a$ the overlap (IoU, intersection over union) is
#
# $$ \frac{\min(w, w_a)\,\min(h, h_a)}{w h + w_a h_a - \min(w, w_a)\,\min(h, h_a)} . $$
#
# **By hand.** A square object of side 2 in a square anchor of side 4: $4 / 16 = 0.25$. An object $4 \times 2$ in the same anchor:
# $8 / 16 = 0.5$. Both are far from the 0.7 that makes an anchor *positive*, counted as an object's (§4.2).

# %%
def shape_overlap(w, h, anchor_w, anchor_h):
    """IoU of two boxes with the same centre."""
    intersection = torch.minimum(w, anchor_w) * torch.minimum(h, anchor_h)
    return intersection / (w * h + anchor_w * anchor_h - intersection)


four = torch.tensor(4.0)
assert shape_overlap(four / 2, four / 2, four, four) == 0.25
assert shape_overlap(four, four / 2, four, four) == 0.5


# %% [markdown]
# The best of a profile's 15 shapes (five scales; width / height 1:2, 1:1, 2:1) for each object is an upper bound: a real anchor sits on a grid, and is rarely centred.

# %%
def best_overlap(profile, ratios=None):
    """For every object the overlap of the shape that fits it best."""
    sizes, scales = profile.image, torch.tensor(profile.anchors.scales, dtype=torch.float32)
    ratio = torch.tensor(ratios or profile.anchors.ratios, dtype=torch.float32)
    scale, ratio = torch.cartesian_prod(scales, ratio).T
    w, h = width * sizes.width / IMAGE_WIDTH, height * sizes.height / IMAGE_HEIGHT
    return shape_overlap(w[:, None], h[:, None], scale * ratio.sqrt(), scale / ratio.sqrt()).amax(1)


rows = []
for name, profile in profiles.items():
    above = (best_overlap(profile) > POSITIVE_IOU).float()
    row = {"profile": name, "all": f"{above.mean():.0%}"}
    rows.append(row | {CLASS_NAMES[c]: f"{above[labels == c].mean():.0%}" for c in present})
display(report.markdown(rows))

# %% [markdown]
# The table gives the share of objects whose best shape is above 0.7. For all others no anchor can ever be: for them §4.2 has a second rule, by which the anchor with the *highest*
# IoU is positive too. The next notebook shows how often it is needed.

# %% [markdown]
# ## What it means for performance

# %% cellView="form"
# @title What was measured, and what to expect
at_edge = (all_boxes[:, :2] <= layout.AT_BORDER).any(1)
at_edge |= (all_boxes[:, 2] >= IMAGE_WIDTH - layout.AT_BORDER) | (all_boxes[:, 3] >= IMAGE_HEIGHT - layout.AT_BORDER)
largest = CLASS_NAMES[present[of_class.argmax()]]
worst = min(present, key=lambda c: (best_overlap(config) > POSITIVE_IOU)[labels == c].float().mean())
expected = {
    f"{counts.mean():.2f} objects an image": "few positive anchors: almost all that the RPN, which scores "
    "anchors, sees is background, so it learns from a sample with more positives (02, 03)",
    f"{nearest[2:].sum():.0%} of the objects at P4 … P6 of the course profile": "there these levels "
    "carry the learning (02)",
    f"from the 5 % to the 95 % column areas grow by up to {max(spans.values()):.0f} times in a class": "one scale "
    "would not do: the pyramid is needed",
    f"{at_edge.float().mean():.0%} of the boxes come within {layout.AT_BORDER} pixels of the border": "the sheet "
    "removes anchors that cross it, often the best that these objects have (02)",
}
if len(present) > 1:
    expected[f"of the classes {largest} is the most frequent, {of_class.max() / len(labels):.0%} of the objects"] = (
        "a mean over objects would favour it: we report AP, the score of detection, for each class (06)"
    )
    expected[f"in the {config.profile} profile no class fits the anchors' shapes as badly as {CLASS_NAMES[worst]}"] = (
        "its objects depend most on the rule of the highest IoU, and on the regressor, which moves anchors (03)"
    )
display(report.markdown([{"measured here": k, "what to expect": v} for k, v in expected.items()]))
hard = "objects that are small, of a shape far from the anchors', or cut off by the border"
display(Markdown(f"So we expect these to be **hard**: {hard}. Notebook 06 scores each size by itself."))


# %% [markdown]
# ## What the preprocessing gets right, and what it gets wrong
#
# Right: boxes and masks stay where they belong. Wrong: a mask loses detail when it shrinks. How much? We take masks to the
# network's frame and back, and compare: a model that copied the rescaled masks perfectly would score this IoU.

# %%
def round_trip(masks, sizes):
    """Masks (G, 300, 400) to the network's frame and back: the IoU of each with itself."""
    batch = [{"boxes": torch.zeros(0, 4), "masks": masks}]
    (there,) = preprocess.preprocess_targets(batch, (IMAGE_HEIGHT, IMAGE_WIDTH), sizes)
    height, width = preprocess.content_size(IMAGE_HEIGHT, IMAGE_WIDTH, sizes)
    inner = there["masks"][:, None, :height, :width].float()
    back = F.interpolate(inner, (IMAGE_HEIGHT, IMAGE_WIDTH), mode="bilinear", antialias=True)[:, 0] >= 0.5
    return (back & (masks > 0)).sum((1, 2)) / (back | (masks > 0)).sum((1, 2)).clamp(min=1)


chosen = [i for i in range(min(80, len(dataset))) if len(dataset.labels[i])]
some = [dataset[i][1]["masks"] for i in [n, *chosen]]
pixels = torch.cat([masks.sum((1, 2)) for masks in some])
kept = torch.cat([round_trip(masks, config.image) for masks in some])
few = some[:10]
enlarged = torch.cat([round_trip(masks, course.image) for masks in few])

# %% [markdown]
# Each point is a mask; those of our image have a ring.

# %% cellView="form"
# @title Draw what a mask keeps on its way there and back, against its size
classes_of = np.concatenate([dataset.labels[i] for i in [n, *chosen]])
fig, ax = plt.subplots(figsize=(9, 3.8), layout="constrained")
ax.scatter(pixels, kept, s=18, color=[draw.class_colour(c) for c in classes_of])
followed_ones = len(target["labels"])
ax.scatter(pixels[:followed_ones], kept[:followed_ones], s=90, facecolor="none", edgecolor="black", label="our image's")
ax.set(xscale="log", xlabel="pixels of the mask in the file", ylabel="IoU after the round trip")
ax.legend(frameon=False, fontsize=9, loc="lower right")
class_legend(fig)
plt.show()
smaller = pixels < pixels.median()
assert kept[smaller].median() <= kept[~smaller].median() and enlarged.median() >= kept.median()
display(
    Markdown(
        f"{config.profile} profile, {len(some)} images: the smaller half of the masks has the median IoU "
        f"{kept[smaller].median():.3f}, the larger {kept[~smaller].median():.3f}; the worst is {kept.min():.3f}. The "
        f"loss sits on the outline, and a small mask has much outline for its area. At 800 × 1066 masks are "
        f"enlarged: median {enlarged.median():.3f} (of {len(few)} of the images)."
    )
)

# %% [markdown]
# Two more limits. Who learns from the built-in scenes has never seen fur or foliage. And the boxes of annotated photographs are not always tight: for
# small objects that is noise in every IoU.

# %% [markdown]
# ## Figures exported

# %%
for name in ("01_montage", "01_half_pixel", "01_datapoints", "01_statistics", "01_scales"):
    print(f"figures/{name}", *sorted(path.suffix for path in paths().figures.glob(f"{name}.*")))


# %% [markdown]
# ## Summary
#
# - Masks are grouped by counting labels. A mistake of one would shift all later masks, so the files are checked against each other.
# - Preprocessing is four steps. Boxes are multiplied by $(s_x, s_y)$ and nothing else, because pixel $i$ covers $[i, i+1)$ and the padding moves nothing.
# - Few, large objects of very different sizes: good for a pyramid, hard for anchors that must overlap by 0.7.
#
# **What happened to our image:** it was read with its objects, rescaled, normalised and padded. The network's input is ready; 02 lays anchors over it.

# %% [markdown]
# ## Exercises
#
# Each has a cell to change and a check below it. Worked solutions: `notebooks/solutions/01_data`.

# %% [markdown]
# ### Exercise 1.1: padding at the left and above
#
# Write `moved_padding`: it takes an input as `prepare` (`lib/data/batches.py`) makes it, with the padding at the right and below, and the boxes in it, and returns both with the padding at the left and above.
# What does every later part have to know then that it need not know now?

# %%
# exercise 1.1
def moved_padding(x, boxes, sizes):
    """Input (3, Hp, Wp), boxes (G, 4), the ImageConfig -> the same with the content in the lower right corner."""
    return None


# %%
# check 1.1
moved = moved_padding(seen.x[0], seen.targets[0]["boxes"], config.image)
if moved is None:
    print("exercise 1.1: not done yet")
else:
    (h, w), (hp, wp) = (config.image.height, config.image.width), config.image.padded_size
    assert moved[0].shape == seen.x[0].shape
    assert_close(moved[0][:, hp - h :, wp - w :], seen.x[0][:, :h, :w])
    assert (moved[0][:, : hp - h] == 0).all() and (moved[0][:, :, : wp - w] == 0).all()
    assert_close(moved[1], seen.targets[0]["boxes"] + torch.tensor([wp - w, hp - h, wp - w, hp - h]))
    print(f"exercise 1.1: done; boxes move by {wp - w} to the right and {hp - h} down")


# %% [markdown]
# ### Exercise 1.2: the drift of `align_corners=True`
#
# By that rule the pixel with index $i$ of $n$ goes to the index $i\,(n'-1)/(n-1)$, where $n' = \text{round}(s\,n)$. Boxes are multiplied by $s$. Write `drift`: for each pixel the
# distance, in output pixels, between where its centre goes and where a box's coordinate at that centre goes. Where is it largest?

# %%
# exercise 1.2
def drift(n, scale):
    """The distances (n,) of a row of n pixels."""
    return None


# %%
# check 1.2
distances = drift(2, 2.0)
if distances is None:
    print("exercise 1.2: not done yet")
else:
    assert_close(distances, torch.tensor([0.5, 0.5]))  # centres 0.5, 1.5 -> 0.5, 3.5 by that rule; 1, 3 by the box's
    assert_close(drift(5, 1.0), torch.zeros(5))
    large = drift(300, 800 / 300)
    assert large.argmax() in (0, 299) and abs(large.max() - (800 / 300 - 1) / 2) < 1e-3
    print(f"exercise 1.2: done; from 300 to 800 rows masks drift up to {large.max():.2f} pixels from their boxes")

# %% [markdown]
# ### Exercise 1.3: a fourth ratio
#
# Which ratio (width / height) would you add to 1:2, 1:1, 2:1, so that as many objects as possible have a best shape above 0.7? Use `best_overlap(config, ratios)`. Yours must do at
# least as well as the best of 1:4, 1:3, 3:1 and 4:1. What does a fourth ratio cost?

# %%
# exercise 1.3
fourth_ratio = None


# %%
# check 1.3
def share_above(fourth):
    """The share of objects whose best shape is above 0.7."""
    return (best_overlap(config, (*config.anchors.ratios, fourth)) > POSITIVE_IOU).float().mean().item()


if fourth_ratio is None:
    print("exercise 1.3: not done yet")
else:
    assert share_above(fourth_ratio) >= max(map(share_above, (1 / 4, 1 / 3, 3, 4)))
    print(f"exercise 1.3: done; {share_above(1):.1%} without, {share_above(fourth_ratio):.1%} with {fourth_ratio:.2f}")


# %% [markdown]
# ### Exercise 1.4: an augmentation of your own, random crops
#
# Mirroring doubles the variety. Crops give more: objects come larger, and cut off at borders. Write `cropped`: cut the window
# out, enlarge it back to 300 × 400 (bilinearly; masks as in `_resize_masks`), keep the objects of which at least a quarter of the pixels is in the window, and give them the tight
# boxes of their new masks.

# %%
# exercise 1.4
def cropped(image, target, window):
    """Image (3, 300, 400) uint8, its target, a window (x1, y1, x2, y2) in whole pixels -> the same of the crop."""
    return None


# %% [markdown]
# The check draws your crop. To train with crops, draw a window for each image in `prepare`, beside the mirror.

# %%
# check 1.4
window = (100, 75, 340, 255)
result = cropped(picture, target, window)
if result is None:
    print("exercise 1.4: not done yet")
else:
    whole, same = cropped(picture, target, (0, 0, IMAGE_WIDTH, IMAGE_HEIGHT))
    assert torch.equal(whole, picture) and torch.equal(same["masks"], target["masks"]), "the whole image stays"
    image, crop = result
    inside = target["masks"][:, window[1] : window[3], window[0] : window[2]].sum((1, 2))
    large_enough = inside >= target["masks"].sum((1, 2)) / 4
    assert image.shape == picture.shape and image.dtype == torch.uint8
    part = picture[None, :, window[1] : window[3], window[0] : window[2]].float()
    enlarged = F.interpolate(part, picture.shape[1:], mode="bilinear")[0]
    assert_close(image.float(), enlarged, atol=1, rtol=0, msg="the image is not the window's pixels, enlarged")
    assert crop["labels"].tolist() == target["labels"][large_enough].tolist()
    by = picture[0].numel() / part[0, 0].numel()
    for mask, box, pixels in zip(crop["masks"], crop["boxes"], inside[large_enough], strict=True):
        assert mask.shape == (IMAGE_HEIGHT, IMAGE_WIDTH) and mask.max() == 1
        assert abs(mask.sum() / pixels / by - 1) < 0.1, "a mask grows as the window does"
        assert_close(tight_box(mask), box)
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    draw.image(axes[0], picture)
    draw.boxes(axes[0], [window], "positive", ["the window"])
    draw.masks(draw.image(axes[1], image), crop["masks"], crop["labels"])
    draw.boxes(axes[1], crop["boxes"], crop["labels"], [CLASS_NAMES[label] for label in crop["labels"]])
    plt.show()
    print(f"exercise 1.4: done; objects kept: {len(crop['labels'])} of {len(target['labels'])}")

# %% [markdown]
# ## References
#
# - He, Gkioxari, Dollár, Girshick: [Mask R-CNN](https://arxiv.org/abs/1703.06870), 2017. It rescales the shorter side to 800; mirroring is Fast R-CNN's.
# - Lin and others: [Feature Pyramid Networks](https://arxiv.org/abs/1612.03144), 2016. Why levels divide by 4 … 32.
# - Lin and others: [Microsoft COCO](https://arxiv.org/abs/1405.0312), 2014. Where photographs with masks come from.
# - Ren, He, Girshick, Sun: [Faster R-CNN](https://arxiv.org/abs/1506.01497), 2015. Anchors.

# %% [markdown]
# ## Appendix
#
# What makes reading data safe and quick. Nothing of it is needed to understand Mask R-CNN.

# %% [markdown]
# ### A data file must not be able to run code
#
# An object array is stored as a *pickle*, and a pickle is a small program. Its author may ask Python to call any function while the file
# is being read. Here is a harmless one:

# %%
program = b"cbuiltins\nprint\n(S'this file has just run code'\ntR."
_ = pickle.loads(program)  # what np.load(..., allow_pickle=True) does with an object array
print(f"{len(program)} bytes were enough")

# %% [markdown]
# It could as well have deleted your files. `lib` therefore goes through the instructions first and admits only those that numbers need; and its unpickler knows the few
# names that a numpy array is made of, and refuses every other:

# %%
show(safe_npy._ArrayUnpickler)


# %% [markdown]
# Behind the header of an `.npy` file, both our program and a pickle that only *names* `print` are refused, and nothing is printed by them.

# %%
def refusal(code):
    """What the loader says to an object array of one entry with this pickle."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "boxes.npy").write_bytes(header.getvalue() + code)
        try:
            safe_npy.load_object_array(file)
        except ValueError as error:
            return str(error).split("arrays: ")[1].split(";")[0]


print("the program:  it", refusal(program))
print("a mere name:  it", refusal(pickle.dumps(print)))
assert "instruction" in refusal(program) and "print" in refusal(pickle.dumps(print))

# %% [markdown]
# ### Reading lazily
#
# Images are read from disk one at a time, when they are asked for. All at once they would take

# %%
megabytes = 3 * IMAGE_HEIGHT * IMAGE_WIDTH / 1e6
course_images = int(layout.STATISTICS["one"].sum() + layout.STATISTICS["two"].sum())
print(f"this set: {len(dataset)} × {megabytes:.2f} MB = {len(dataset) * megabytes:.0f} MB")
print(f"the course's: {course_images} × {megabytes:.2f} MB = {course_images * megabytes:.0f} MB, in each process")

# %% [markdown]
# What Python holds at its peak (HDF5's own memory apart) while many are read, one after the other, does not grow with their number: one image, its masks, and copies of them on their way.

# %%
tracemalloc.start()
for i in range(min(100, len(dataset))):
    dataset[i]
peak = tracemalloc.get_traced_memory()[1] / 1e6
tracemalloc.stop()
room = 2 * (megabytes + 3 * 0.12 * max(map(len, dataset.labels)))
assert peak < room, f"{peak:.1f} MB"
print(f"the peak: {peak:.2f} MB; chunks of the image file: {image_file.chunks}")

# %% [markdown]
# A *chunk* is what HDF5 compresses as a whole. Where a chunk is one image, reading an image touches nothing else. The chunks that h5py chooses by itself hold a
# little of some two hundred images; such a file is copied once, in chunks of one image.

# %% [markdown]
# ### Files that do not belong together
#
# Opening a data set checks the four files against each other: shapes, counts, label values, boxes inside the frame, masks in their boxes. A mistake is an error that names
# the file and, where it lies in one image, the image. Two things are only reported, and reading goes on: a box that ends at most a pixel outside is cut off, and some masks may be empty.

# %%
show(CourseDataset._verify, CourseDataset._verify_masks, CourseDataset._report, objects.mask_problems)

# %% [markdown]
# An image without objects is a legal entry, not an error: it has boxes $(0, 4)$ and masks $(0, 300, 400)$, and goes through the same code.

# %%
nothing = {"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, IMAGE_HEIGHT, IMAGE_WIDTH, dtype=torch.uint8)}
(none,) = preprocess.preprocess_targets([nothing], (IMAGE_HEIGHT, IMAGE_WIDTH), config.image)
assert none["boxes"].shape == (0, 4) and none["masks"].shape == (0, *config.image.padded_size)
assert all(side % SIZE_DIVISOR == 0 for side in config.image.padded_size)
