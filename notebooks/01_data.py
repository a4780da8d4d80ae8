# %% [markdown]
# # 1 · The data: from four files to the network's input
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-from-its-parts/maskrcnn-from-its-parts/blob/main/notebooks/01_data.ipynb)
#
# **The claim.** Four files hold everything the system learns from. Regrouped by their labels and rescaled with care, images, boxes and
# masks still agree to within a pixel or so in the network's frame, and their statistics already tell where the detector will find it hard.
#
# **Run time:** under a minute on one CPU core (a little more the first time, when the built-in scenes are drawn).
#
# **Inputs → outputs.** `data/` (written if missing) → `data/<source>/split.json`, the table `figures/01_statistics.csv` and `.tex`, and
# the pictures `figures/01_*`.

# %% [markdown]
# ## Goals, and where this part sits
#
# ```
# [ four files ──► image, boxes, masks ──► rescaled, normalised, padded ] ──► backbone + FPN ──► RPN ──► heads
# ```
#
# After this notebook you can
#
# 1. say which mask belongs to which image, though the mask file does not say so (§2);
# 2. carry an image, its boxes and its masks from 300 × 400 to the network's frame, and prove that they still fit each other;
# 3. open a data set without trusting it and without holding it in memory;
# 4. read from six histograms what anchors the next notebook needs, and which objects will be hard.
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
# that runs.

# %%
import inspect
import io
import pickle
import tempfile
import textwrap
import tracemalloc

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from torch.testing import assert_close

from lib import preprocess
from lib.anchors import LEVELS, pyramid_grids
from lib.boxes import area
from lib.config import load_config
from lib.data import safe_npy
from lib.data import scene_layout as layout
from lib.data.batches import collate, flip_boxes, flip_horizontally, prepare
from lib.data.reader import FILES, CourseDataset
from lib.data.split import load_split
from lib.maskrcnn import COURSE_CLASSES
from lib.notebook import draw, report
from lib.preprocess import IMAGE_HEIGHT, IMAGE_MEAN, IMAGE_STD, IMAGE_WIDTH, SIZE_DIVISOR
from lib.rpn import POSITIVE_IOU

CLASS_NAMES = config.class_names  # by label; 0 is background


def show(*pieces):
    """The source of functions or methods, as it stands in lib/."""
    sources = [textwrap.dedent(inspect.getsource(piece)) for piece in pieces]
    display(Markdown("\n".join(f"```python\n{source}```\n" for source in sources)))


# %% [markdown]
# ## Symbols
#
# | symbol | meaning | here |
# |---|---|---|
# | $N$ | images in the data set | `len(dataset)` |
# | $M$ | masks in the data set, one an object | rows of the mask file |
# | $G$ | objects in one image | `len(target["boxes"])` |
# | $H \times W$ | the frame of the files | 300 × 400 pixels |
# | $H' \times W'$ | the *content*: the image after rescaling | `config.image.height`, `config.image.width` |
# | $H_p \times W_p$ | the content and its zero padding: what the network sees | `config.image.padded_size` |
# | $s_x, s_y$ | scale factors $W'/W$ and $H'/H$ | |
#
# A box is $(x_1, y_1, x_2, y_2)$ in pixels. Coordinates are continuous: **pixel $i$ covers the interval $[i, i+1)$**, so $x_2 - x_1$ is
# the width and the tight box of a mask is $(x_\min,\ y_\min,\ x_\max + 1,\ y_\max + 1)$.
#
# Labels are numbers from 1: in the course's set 1 vehicle, 2 person, 3 animal; another data set names its own in `classes.json`. 0 stands
# for background and never occurs in the files.

# %% [markdown]
# ## One data point
#
# This is what the four files say about one image: a picture, and for every object a class (the colour), a box and a mask. Everything
# below is about arriving at this picture, and then at the same picture in the network's frame.

# %%
dataset = CourseDataset(DATA)
index = max(range(len(dataset)), key=lambda i: min(len(dataset.labels[i]), 2))  # the first with two objects
picture, target = dataset[index]

fig, axes = plt.subplots(1, 2, figsize=(9, 3.7), layout="constrained")
draw.image(axes[0], picture).set_title(f"image {index} of {len(dataset)}")
draw.masks(draw.image(axes[1], picture), target["masks"], target["labels"])
draw.boxes(axes[1], target["boxes"], target["labels"], [CLASS_NAMES[label] for label in target["labels"]])
_ = axes[1].set_title("with its boxes and masks")

# %% [markdown]
# In the dictionary `target`, $G$ is the first dimension of everything. This is torchvision's detection convention, so torchvision's own
# models read the same data set.

# %%
for name, value in target.items():
    print(f"{name:9}", f"{str(value.dtype):14} {tuple(value.shape)}" if torch.is_tensor(value) else value)

# %% [markdown]
# ## The four files
#
# | file | holds | format |
# |---|---|---|
# | `…_img_comp_zlib.h5` | images $(N, 3, 300, 400)$, uint8 | HDF5, one data set named `data`, compressed |
# | `…_mask_comp_zlib.h5` | masks $(M, 300, 400)$, uint8 | the same |
# | `…_labels_comp_zlib.npy` | $N$ arrays of $G$ labels | a numpy *object array*: each entry is an array of its own length |
# | `…_bboxes_comp_zlib.npy` | $N$ arrays $(G, 4)$ | the same |
#
# Let us open them with nothing but `h5py` and the loader of the last two.

# %%
image_file, mask_file = (h5py.File(DATA / FILES[kind], "r")["data"] for kind in ("images", "masks"))
label_list, box_list = (safe_npy.load_object_array(DATA / FILES[kind]) for kind in ("labels", "boxes"))
print(f"images {image_file.shape} {image_file.dtype}\nmasks  {mask_file.shape} {mask_file.dtype}")
print(f"labels {label_list.shape}, the first three: {[entry.tolist() for entry in label_list[:3]]}")
print(f"boxes  {box_list.shape}, of image 0: {box_list[0].round(1).tolist()}")


# %% [markdown]
# $M > N$: there are more masks than images, and no file says which mask belongs where. The assignment gives the clue: *use the label
# list*.

# %% [markdown]
# ## Which mask belongs to which image?
#
# Masks are stored in the order of the labels. So image $n$ owns as many masks as it has labels, starting after all masks of the images
# before it:
#
# $$ \text{first}(n) = \sum_{k<n} G_k, \qquad \text{masks of image } n = \text{first}(n),\ \dots,\ \text{first}(n) + G_n - 1 $$

# %% [markdown]
# **By hand.** Four images with 1, 2, 0 and 1 objects. *Predict before you run:* image 0 owns mask 0; image 1 owns masks 1 and 2; image 2
# owns none; image 3 owns mask 3.

# %%
def masks_by_counting(labels):
    """The indices of every image's masks, one object at a time."""
    owners, next_mask = [], 0
    for image_labels in labels:
        owners.append([])
        for _ in image_labels:
            owners[-1].append(next_mask)
            next_mask += 1
    return owners


assert masks_by_counting([[3], [2, 2], [], [1]]) == [[0], [1, 2], [], [3]]

# %% [markdown]
# **The part.** `lib` does the same with one cumulative sum when the files are opened (`_first_mask`), and takes a slice of the mask file
# when an image is asked for:

# %%
show(CourseDataset.__getitem__, CourseDataset.target)

# %% [markdown]
# Equal to the naive version? We compare for every image of the set, and the masks themselves for the first twenty.

# %%
owners = masks_by_counting(label_list)
first = np.cumsum([0, *map(len, label_list)])
assert [list(range(a, b)) for a, b in zip(first[:-1], first[1:], strict=True)] == owners
for n in range(min(20, len(dataset))):
    by_hand = np.array([mask_file[m] > 0 for m in owners[n]], np.uint8).reshape(-1, IMAGE_HEIGHT, IMAGE_WIDTH)
    assert_close(dataset[n][1]["masks"], torch.from_numpy(by_hand))
print(f"{len(owners)} images own {sum(map(len, owners))} masks; the mask file holds {len(mask_file)}")

# %% [markdown]
# The picture below is the mask file read in order. The caption is *mask → image*; frames alternate between black and blue from image to
# image. Two neighbours in the same colour belong to one image with two objects.

# %%
strip = [(m, n) for n, masks in enumerate(owners) for m in masks][:12]
fig, axes = plt.subplots(2, 6, figsize=(11, 3.6), layout="constrained")
for ax, (m, n) in zip(axes.flat, strip, strict=False):
    ax.imshow(mask_file[m] > 0, cmap="gray", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[], title=f"mask {m} → image {n}")
    for side in ax.spines.values():
        side.set(edgecolor=("#222222", draw.COLOURS["positive"])[n % 2], linewidth=4)

# %% [markdown]
# A mistake of one in this count would shift *every* later mask to a neighbouring image, without any error message. That is why opening a
# data set checks the four files against each other: shapes, counts, label values, boxes inside the frame, and a sample of masks against
# their boxes.

# %%
show(CourseDataset._verify)

# %% [markdown]
# ## A data file must not be able to run code
#
# An object array is stored as a *pickle*, and a pickle is a small program. Its author may ask Python to call any function while the file
# is being read. Here is a harmless one of 40 bytes, which calls `print`:

# %%
program = b"cbuiltins\nprint\n(S'this file has just run code'\ntR."
_ = pickle.loads(program)  # what np.load(..., allow_pickle=True) does with an object array

# %% [markdown]
# It could as well have called `os.system`. The files you download should not have that power. `lib` uses an unpickler that knows the few
# names a numpy array is made of, and refuses every other:

# %%
show(safe_npy._ArrayUnpickler)

# %% [markdown]
# *Predict:* the same 40 bytes, behind the header of an `.npy` file, now give an error that names the function, and nothing is printed by
# the file.

# %%
header = io.BytesIO()
np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
with tempfile.TemporaryDirectory() as folder:
    bad_file = Path(folder) / "boxes.npy"
    bad_file.write_bytes(header.getvalue() + program)
    try:
        safe_npy.load_object_array(bad_file)
        raise AssertionError("a program came through")
    except ValueError as error:
        print("refused: the file", str(error).split(": ", 1)[1])

# %% [markdown]
# ## Reading lazily
#
# Images are read from disk one at a time, when they are asked for. How much would it take to hold all of them?
#
# $$ N \cdot 3 \cdot 300 \cdot 400 \text{ bytes} = N \cdot 0.36 \text{ MB} $$
#
# *Predict:* the course's 3265 images make $3265 \cdot 0.36 = 1175$ MB. Colab's free machine has 12 GB in all, shared with the network
# and with every worker of the loader.

# %%
megabytes = 3 * IMAGE_HEIGHT * IMAGE_WIDTH / 1e6
print(f"this set: {len(dataset)} x {megabytes:.2f} MB = {len(dataset) * megabytes:.0f} MB uncompressed")
print(f"the course's set: {3265 * megabytes:.0f} MB; HDF5 chunks of this file: {image_file.chunks}")

# %% [markdown]
# A *chunk* is what HDF5 compresses and decompresses as a whole. Where a chunk is one image, reading an image touches nothing else.
#
# We read up to 100 items in a row and ask for the peak of memory in use. *Predict:* room for about one image (0.36 MB) and its masks
# (0.12 MB each, in three forms on the way), however many items we read.

# %%
tracemalloc.start()
for n in range(min(100, len(dataset))):
    dataset[n]
peak = tracemalloc.get_traced_memory()[1] / 1e6
tracemalloc.stop()
room = 2 * (megabytes + 3 * 0.12 * max(map(len, dataset.labels)))
assert peak < room, f"{peak:.1f} MB"
print(f"the peak stays below {room:.1f} MB")

# %% [markdown]
# ## Preprocessing, step by step (§2)
#
# $$ \text{uint8 } [0, 255] \;\xrightarrow{\ \div 255\ }\; [0, 1] \;\xrightarrow{\text{ rescale }}\; H' \times W'
# \;\xrightarrow{\ (x - \mu_c)/\sigma_c\ }\; \approx [-2.1, 2.6] \;\xrightarrow{\text{ pad right, below }}\; H_p \times W_p $$
#
# The course profile uses the assignment's numbers. The demo profile is the same system with smaller images, so that a CPU can train it in
# minutes. Both end at a multiple of 32, because the levels P2 … P5 divide the input by 4, 8, 16 and 32.

# %%
rows = []
for profile in ("course", "demo"):
    sizes = load_config(profile).image
    (height, width), content = sizes.padded_size, (sizes.height, sizes.width)
    rows.append({"profile": profile, "file": f"{IMAGE_HEIGHT} x {IMAGE_WIDTH}", "content": "{} x {}".format(*content)})
    rows[-1] |= {"padded": f"{height} x {width}", "s_x": f"{content[1] / IMAGE_WIDTH:.4f}"}
    rows[-1] |= {"s_y": f"{content[0] / IMAGE_HEIGHT:.4f}"}
    rows[-1] |= {
        name: "{} x {}".format(*grid) for name, grid in zip(LEVELS, pyramid_grids((height, width)), strict=True)
    }
display(report.markdown(rows))

# %% [markdown]
# In the course profile $s_x = 1066/400 = 2.665$ and $s_y = 800/300 = 2.6667$: the exact width would be 1066.67, and a third of a pixel of
# 400 is cut. Boxes must therefore be scaled by **two** factors. The columns P2 … P6 are the grids of the feature maps.

# %% [markdown]
# ### Three boxes by hand
#
# A box goes along by plain multiplication: $x' = s_x x$, $y' = s_y y$. *Predict*, in the course profile:
#
# | box in the file | rescaled |
# |---|---|
# | $(0, 0, 400, 300)$, the whole image | $(0, 0, 1066, 800)$ |
# | $(100, 75, 200, 150)$ | $(266.5, 200, 533, 400)$ |
# | $(200, 150, 400, 300)$, the last quarter | $(533, 400, 1066, 800)$ |

# %%
course = load_config("course").replace(**{"image.height": 800, "image.width": 1066})
three = torch.tensor([[0, 0, 400, 300], [100, 75, 200, 150], [200, 150, 400, 300]], dtype=torch.float32)
predicted = torch.tensor([[0, 0, 1066, 800], [266.5, 200, 533, 400], [533, 400, 1066, 800]])

by_hand = torch.stack(
    [torch.tensor([x1 * 2.665, y1 * 8 / 3, x2 * 2.665, y2 * 8 / 3]) for x1, y1, x2, y2 in three.tolist()]
)
assert_close(by_hand, predicted)
(scaled,) = preprocess.preprocess_targets([{"boxes": three}], (IMAGE_HEIGHT, IMAGE_WIDTH), course.image)
assert_close(scaled["boxes"], predicted)


# %% [markdown]
# ### Why no half pixel is added or taken
#
# It is tempting to think of a box as indices of pixels. Then scaling goes wrong by up to a pixel of the *large* image. In continuous
# coordinates everything follows from one rule: pixel $i$ covers $[i, i+1)$ and has its centre at $i + \tfrac12$. An output pixel with centre
# $i' + \tfrac12$ is read from the place
#
# $$ x = \frac{i' + \tfrac12}{s} - \tfrac12 \qquad\text{(an index, so that 0 is the first pixel's centre).} $$
#
# **By hand.** Double a row of two pixels, $[0, 100]$. The four outputs are read from $x = -0.25,\ 0.25,\ 0.75,\ 1.25$. Between the two
# pixels we interpolate, outside them we repeat the border. *Predict:* $[0, 25, 75, 100]$.

# %%
def resize_row(row, scale):
    """Linear interpolation with half-pixel centres, one output pixel at a time."""
    out = []
    for i in range(round(len(row) * scale)):
        x = min(max((i + 0.5) / scale - 0.5, 0), len(row) - 1)
        left = min(int(x), len(row) - 2)
        out.append(row[left] * (left + 1 - x) + row[left + 1] * (x - left))
    return torch.tensor(out)


assert_close(resize_row([0.0, 100.0], 2), torch.tensor([0.0, 25.0, 75.0, 100.0]))
assert_close(
    F.interpolate(torch.tensor([[[0.0, 100.0]]]), scale_factor=2, mode="linear")[0, 0], resize_row([0.0, 100.0], 2)
)

# %% [markdown]
# The other common rule (`align_corners=True`) would give $[0, 33.3, 66.7, 100]$: its first and last pixels stay where they are, and objects
# drift by up to half a pixel against their boxes.
#
# **In two dimensions.** A small mask covers rows 2 … 4 and columns 3 … 6. Its tight box is $(3, 2, 7, 5)$. *Predict:* doubled, the box is
# $(6, 4, 14, 10)$, and that is again the tight box of the doubled mask.

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

# %% [markdown]
# In the picture the solid box is this one. The dotted box takes the last pixel's *index* as its edge, $(3, 2, 6, 4)$: at the left it misses
# one pixel of the mask on two sides, at the right two.

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
for ax, mask, factor in zip(axes, (small[0], large[0]), (1, 2), strict=True):
    draw.image(ax, (180 + 60 * mask.expand(3, -1, -1)).to(torch.uint8))
    draw.boxes(ax, factor * torch.tensor([[3, 2, 6, 4]]), "predicted", dotted=True, linewidth=3)
    draw.boxes(ax, factor * torch.tensor([[3, 2, 7, 5]]), "truth", linewidth=3)
    ax.set_xticks(range(mask.shape[1] + 1), labels=[])
    ax.set_yticks(range(mask.shape[0] + 1), labels=[])
    ax.tick_params(length=0)
    ax.grid(color="white", linewidth=0.8)
    ax.set_title(f"{mask.shape[0]} x {mask.shape[1]} pixels")
save_figure(fig, "01_half_pixel")
plt.show()


# %% [markdown]
# ### The image, naively and in `lib`
#
# The four steps of §2 for one image, one line each. Rescaling is bilinear. When an image shrinks, as in the demo profile, `antialias`
# averages all pixels that fall into an output pixel instead of looking at two of them.

# %%
def preprocess_by_hand(image, sizes):
    """uint8 (3, 300, 400) -> float (3, Hp, Wp)."""
    x = image / 255
    x = F.interpolate(x[None], (sizes.height, sizes.width), mode="bilinear", antialias=True)[0]
    for channel, (mean, std) in enumerate(zip(IMAGE_MEAN, IMAGE_STD, strict=True)):
        x[channel] = (x[channel] - mean) / std
    padded = torch.zeros(3, *sizes.padded_size)
    padded[:, : sizes.height, : sizes.width] = x
    return padded


# %% [markdown]
# **The part** does this for a whole batch at once, on the device where the images are. The loader only hands over uint8: a quarter of the
# bytes, and nothing to compute for the two CPU cores of a Colab machine.

# %%
show(preprocess.preprocess_images, preprocess.normalised)

# %% [markdown]
# Equal, in both profiles. *Predict* for the normalised values: black becomes $(0 - 0.485)/0.229 = -2.118$ in the red channel, and white
# $(1 - 0.406)/0.225 = 2.640$ in the blue one.

# %%
for sizes in (config.image, course.image):
    assert_close(preprocess.preprocess_images(picture[None], sizes)[0], preprocess_by_hand(picture, sizes))
black_and_white = torch.zeros(2, 3, IMAGE_HEIGHT, IMAGE_WIDTH, dtype=torch.uint8)
black_and_white[1] = 255
values = preprocess.preprocess_images(black_and_white, config.image)[:, :, 0, 0]
assert_close(values[0, 0], torch.tensor(-2.1179), atol=1e-4, rtol=0)
assert_close(values[1, 2], torch.tensor(2.6400), atol=1e-4, rtol=0)

# %% [markdown]
# ### Watching one image go through
#
# The steps are drawn in the course profile's numbers. The strip of padding is at the right end only, 22 columns of zeros: padding right and
# below leaves every coordinate as it is. Zero *after* normalising means the mean colour, a grey; it is not black.

# %%
x = preprocess.preprocess_images(picture[None], course.image)[0]
rescaled = F.interpolate(picture[None] / 255, (course.image.height, course.image.width), mode="bilinear")[0]
fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", width_ratios=(1066, 1066, 1088))
draw.image(axes[0], picture).set_title(f"file: {IMAGE_HEIGHT} x {IMAGE_WIDTH}, 0 … 255")
draw.image(axes[1], rescaled).set_title(f"rescaled: {rescaled.shape[1]} x {rescaled.shape[2]}, 0 … 1")
axes[2].imshow(x.mean(0), cmap="gray", extent=(0, x.shape[2], x.shape[1], 0))
axes[2].axvline(course.image.width, color=draw.COLOURS["truth"], linewidth=1)
axes[2].set(
    xticks=[], yticks=[], title=f"normalised, padded: {x.shape[1]} x {x.shape[2]}, {x.min():.1f} … {x.max():.1f}"
)
plt.show()

# %% [markdown]
# Left to right: the image of the file, the rescaled image, and the mean over the channels of what the network gets. Right of the orange
# line is the padding.

# %% [markdown]
# ### Boxes and masks go along
#
# Masks are rescaled like images. The result is no longer 0 or 1, so a pixel of the new mask is set where at least half of it is covered.

# %%
show(preprocess.preprocess_targets, preprocess._resize_masks)

# %% [markdown]
# ## Six data points in the network's frame
#
# This is the check the assignment asks for (its figure 3), with our numbers: preprocessed images, colours recovered by undoing the
# normalisation, and the rescaled boxes and masks on top. `prepare` is the whole of the preprocessing in one call.

# %%
shown = [i for i, labels in enumerate(dataset.labels) if len(labels)][:6]
images, targets = collate([dataset[i] for i in shown])
x, targets, content = prepare(images, targets, config.image)
print(f"batch {tuple(images.shape)} {images.dtype} -> {tuple(x.shape)} {x.dtype}, content {content}")

# %% [markdown]
# Drawn from what the network would get, not from the file:

# %%
fig, axes = plt.subplots(2, 3, figsize=(11, 7.5 * x.shape[2] / x.shape[3]), layout="constrained")
for ax, image, target in zip(axes.flat, x, targets, strict=False):
    draw.image(ax, draw.denormalise(image, IMAGE_MEAN, IMAGE_STD))
    draw.masks(ax, target["masks"], target["labels"])
    draw.boxes(ax, target["boxes"], target["labels"], [CLASS_NAMES[label] for label in target["labels"]])
save_figure(fig, "01_datapoints")
plt.show()

# %% [markdown]
# Look for three things. Every outline follows its object; every box touches its mask on four sides; and the colour of the frame (of
# the course's classes: blue vehicle, pink person, light cyan animal) fits what you see. The grey strip, where there is one, is the padding.
#
# The eye does not see half a pixel, so we measure it: how far is each side of the rescaled box from the tight box of the rescaled mask?

# %%
errors = torch.cat(
    [
        (tight_box(mask) - box).abs()
        for t in targets
        for mask, box in zip(t["masks"], t["boxes"], strict=True)
        if mask.any()
    ]
)
print(f"{len(errors)} sides: median {errors.median():.2f} pixels, at most {errors.max():.2f}")
if SOURCE == "synthetic":  # here the boxes of the files are tight by construction
    assert errors.median() < 1

# %% [markdown]
# ## Mirrored images
#
# Half of the training images are mirrored, with their boxes and masks: twice the variety for nothing. A mirrored box has its sides
# exchanged:
#
# $$ (x_1, y_1, x_2, y_2) \;\to\; (W - x_2,\ y_1,\ W - x_1,\ y_2) $$
#
# **By hand**, $W = 400$. *Predict:* $(10, 20, 110, 220) \to (290, 20, 390, 220)$; the whole image stays; a box in the middle,
# $(150, 0, 250, 50)$, stays too. Mirrored twice, everything is where it was.

# %%
three = torch.tensor([[10.0, 20, 110, 220], [0, 0, 400, 300], [150, 0, 250, 50]])
predicted = torch.tensor([[290.0, 20, 390, 220], [0, 0, 400, 300], [150, 0, 250, 50]])
by_hand = torch.tensor([[400 - x2, y1, 400 - x1, y2] for x1, y1, x2, y2 in three.tolist()])
assert_close(by_hand, predicted)
assert_close(flip_boxes(three, IMAGE_WIDTH), predicted)
assert_close(flip_boxes(flip_boxes(three, IMAGE_WIDTH), IMAGE_WIDTH), three)

# %% [markdown]
# `lib` flips a batch before rescaling, each image by its own coin:

# %%
show(flip_horizontally)

# %% [markdown]
# One image, as it is and mirrored:

# %%
batch, both = collate([dataset[index]] * 2)
flipped, both = flip_horizontally(batch, both, torch.tensor([False, True]))
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for ax, image, target, title in zip(axes, flipped, both, ("as it is", "mirrored"), strict=True):
    draw.masks(draw.image(ax, image), target["masks"], target["labels"])
    draw.boxes(ax, target["boxes"], target["labels"]).set_title(title)
plt.show()

# %% [markdown]
# A mirrored image must still fit its targets. We test it the strict way: mirroring the mask and then taking its tight box is the same as
# mirroring its tight box.

# %%
for mask in dataset[index][1]["masks"]:
    assert_close(tight_box(mask.flip(-1)), flip_boxes(tight_box(mask), IMAGE_WIDTH))

# %% [markdown]
# ## Train, validation, test
#
# The images are divided once, by a seeded shuffle, and the division is stored beside the files: every notebook, every stage and every later
# session sees the same one. Weights are learnt on *train*, choices made on *val*, and the last notebook's scores come from *test*.

# %%
split = load_split(DATA, len(dataset), config.data)
rows = []
for name, indices in split.items():
    labels = [label for i in indices for label in dataset.labels[i]]
    counts = {c: labels.count(number) for number, c in enumerate(CLASS_NAMES) if number}
    rows.append({"split": name, "images": len(indices), "objects": len(labels)} | counts)
display(report.markdown(rows))

# %% [markdown]
# No image is in two parts, and none is lost. The second opening reads the stored file and gives the same answer.

# %%
everything = [i for indices in split.values() for i in indices]
assert sorted(everything) == list(range(len(dataset)))
assert load_split(DATA, len(dataset), config.data) == split

# %% [markdown]
# ## Statistics: what is in the pictures?
#
# The assignment's proposal asks for statistics of the data and what they mean for the system. We collect one row for each object, then
# look at four of them, side by side with the course's own set (3265 images, 3843 objects).

# %%
labels = torch.from_numpy(np.concatenate(dataset.labels))
all_boxes = torch.from_numpy(np.concatenate(dataset.boxes))
width, height = (all_boxes[:, 2:] - all_boxes[:, :2]).T
share = area(all_boxes) / (IMAGE_WIDTH * IMAGE_HEIGHT)  # of the image that the box covers
assert labels.min() >= 1 and share.max() <= 1
print(f"{len(dataset)} images, {len(labels)} objects; a box covers {share.median():.0%} of its image (median)")

# %% [markdown]
# ### The table
#
# Percentiles of the share of the image that an object's box covers, by class, ours and, where the classes are the same, the course's. If
# the built-in scenes are used, the two should agree: they are drawn to follow the course's figures.

# %%
PERCENTILES = (5, 25, 50, 75, 95)
course_like = config.classes == COURSE_CLASSES


def statistics_row(source, name, objects, of_all, areas):
    """One line of the table; `areas` are the percentiles of the covered share."""
    row = {"set": source, "class": name, "objects": objects, "share": float(of_all)}
    return row | {f"area p{p}": value for p, value in zip(PERCENTILES, areas, strict=True)}


rows = []
for label, name in enumerate(CLASS_NAMES[1:], start=1):
    of_class = share[labels == label]
    areas = np.percentile(of_class, PERCENTILES).tolist() if len(of_class) else [None] * len(PERCENTILES)
    rows.append(statistics_row("this", name, len(of_class), len(of_class) / len(labels), areas))
    if course_like:
        course_share = layout.CLASS_SHARES[label - 1]
        course_areas = (layout.SCALES[label][1:-1] ** 2 / (IMAGE_WIDTH * IMAGE_HEIGHT)).tolist()
        rows.append(statistics_row("course", name, round(3843 * course_share), course_share, course_areas))
report.save_table(rows, "01_statistics")
display(report.markdown(rows))


# %% [markdown]
# ### Objects an image, classes, areas, shapes
#
# Above, the bars are this set and the black lines the course's. Below, each class has a range for this set (in colour) and one for the
# course's (black): the thin line spans the 5th to the 95th percentile, the thick one the 25th to the 75th, the point is the median. Of
# many classes the figures have room for the ten most frequent.

# %%
def bars(ax, x, heights, course, colours):
    """Bars of this set, with a line at the course's height."""
    ax.bar(x, heights, color=colours, alpha=0.8)
    ax.hlines(
        course,
        *np.add.outer([-0.3, 0.3], np.arange(len(course)) + ax.patches[0].get_center()[0]),
        "black",
        label="course",
    )
    if len(course):
        ax.legend(frameon=False)


def ranges(ax, y, percentiles, colour, label=None):
    """5th to 95th percentile thin, 25th to 75th thick, the median a point."""
    low, first, middle, third, high = percentiles
    ax.hlines(y, low, high, colour, linewidth=1.5)
    ax.hlines(y, first, third, colour, linewidth=6)
    ax.plot(middle, y, "o", color="white", markeredgecolor=colour, label=label)


# %% [markdown]
# Four panels: objects an image and class shares above, areas and shapes below.

# %%
shown = draw.most_frequent(labels)
names, colours = [CLASS_NAMES[n] for n in shown], [draw.class_colour(n) for n in shown]
objects_an_image = np.array([len(v) for v in dataset.labels])
numbers = np.arange(1, max(3, objects_an_image.max() + 1))
fig, axes = plt.subplots(2, 2, figsize=(11, 6.4), layout="constrained", height_ratios=(3, 2))
bars(axes[0, 0], numbers, [(objects_an_image == n).mean() for n in numbers], [2687 / 3265, 578 / 3265], draw.LINES[0])
bars(
    axes[0, 1],
    names,
    [(labels == n).float().mean() for n in shown],
    layout.CLASS_SHARES if course_like else [],
    colours,
)
axes[0, 0].set(xticks=numbers, xlabel="objects in the image", ylabel="share of images")
axes[0, 1].set(ylabel="share of objects")
axes[0, 1].tick_params("x", rotation=90 if len(shown) > 5 else 0)
axes[1, 0].set(xscale="log", xlim=(min(0.01, share.quantile(0.04)), 1), xlabel="share of the image that the box covers")
axes[1, 1].set(xscale="log", xlim=(0.2, 5), xlabel="width / height of the box")
for ax, values, course_values, ticks in (
    (
        axes[1, 0],
        share,
        [np.square(v) / (IMAGE_WIDTH * IMAGE_HEIGHT) for v in layout.SCALES],
        (0.01, 0.03, 0.1, 0.3, 1),
    ),
    (axes[1, 1], width / height, layout.ASPECTS, (0.25, 0.5, 1, 2, 4)),
):
    for y, (n, colour) in enumerate(zip(shown, colours, strict=True)):
        ranges(ax, y - 0.15, np.percentile(values[labels == n], PERCENTILES), colour)
        if course_like:
            ranges(ax, y + 0.15, course_values[n][1:-1], "black")
    ax.set_xticks(ticks, labels=ticks)
    ax.set_xticks([], minor=True)
    ax.set(yticks=range(len(shown)), yticklabels=names, ylim=(len(shown) - 0.5, -0.5))
save_figure(fig, "01_statistics")
plt.show()

# %% [markdown]
# In the course's set, and so in the built-in scenes, an image has one object, sometimes two, never a crowd. Half of the objects are animals.
#
# A box typically covers a fifth of its image, but the areas of one class span a factor of twenty to forty. People stand upright (width / height below
# 1), vehicles lie along the ground (above 1), animals are in between.

# %% [markdown]
# ## What this means for the anchors
#
# An anchor is a box of fixed size that an object must resemble. Its size is the *scale* $\sqrt{wh}$ in the network's frame, one scale for
# each level, P2 … P6. So the question is how the objects' scales lie between the anchors' scales.

# %%
profiles = {"demo": load_config("demo"), "course": course} | {config.profile: config}
s_x, s_y = config.image.width / IMAGE_WIDTH, config.image.height / IMAGE_HEIGHT


def object_scales(sizes):
    """The scale of every object in the frame of these sizes."""
    return (width * sizes.width / IMAGE_WIDTH * height * sizes.height / IMAGE_HEIGHT).sqrt()


# %% [markdown]
# The objects' scales, one panel for each profile. The lines are the scales of the anchors.

# %%
fig, axes = plt.subplots(1, len(profiles), figsize=(11, 3.8), layout="constrained", sharey=True)
for ax, (name, profile) in zip(axes, profiles.items(), strict=True):
    sizes, anchor_scales = profile.image, profile.anchors.scales
    scale = object_scales(sizes)
    bins = np.geomspace(0.8 * min(*anchor_scales, scale.min()), 1.1 * sizes.width, 32)
    ax.hist([scale[labels == n] for n in shown], bins, stacked=True, color=colours, label=names)
    for level, anchor_scale in zip(LEVELS, anchor_scales, strict=True):
        ax.axvline(anchor_scale, color="black", linewidth=1)
        ax.annotate(level, (anchor_scale, 1.01), xycoords=("data", "axes fraction"), ha="center", annotation_clip=False)
    ax.set(
        xscale="log",
        xlabel=f"scale of the object in pixels, {name} profile ({sizes.height} x {sizes.width})",
    )
    ax.set_xticks(anchor_scales, labels=[f"{v:.0f}" for v in anchor_scales])
    ax.set_xticks([], minor=True)
axes[0].set_ylabel("objects")
axes[0].legend(loc="upper left", framealpha=1)
save_figure(fig, "01_scales")
plt.show()

# %% [markdown]
# In the course profile most objects lie at the two or three largest scales and hardly any near P2's, although P2 alone has three quarters of all
# anchors. The demo profile's five scales were chosen to lie where its objects are.
#
# We count to which level's anchors each object is nearest (on the logarithmic axis of the figure).

# %%
rows = []
for name, profile in profiles.items():
    distance = (object_scales(profile.image).log()[:, None] - torch.tensor(profile.anchors.scales).log()).abs()
    nearest = distance.argmin(1).bincount(minlength=len(LEVELS)) / len(labels)
    cells = torch.tensor([sy * sx for sy, sx in pyramid_grids(profile.image.padded_size)])
    for what, values in (("objects", nearest), ("anchors", cells / cells.sum())):
        rows.append({"profile": name, "share of": what} | dict(zip(LEVELS, values.tolist(), strict=True)))
        assert abs(values.sum() - 1) < 1e-5
display(report.markdown(rows))


# %% [markdown]
# ### How well can an anchor fit at best?
#
# Suppose an anchor sits exactly at an object's centre. With widths $w, w_a$ and heights $h, h_a$ the overlap (IoU) is then
#
# $$ \frac{\min(w, w_a)\,\min(h, h_a)}{w h + w_a h_a - \min(w, w_a)\,\min(h, h_a)} . $$
#
# **By hand.** A square object of side 2 in a square anchor of side 4: $4 / 16 = 0.25$. An object $4 \times 2$ and a square anchor of side 4:
# $8 / 16 = 0.5$. Both far from the 0.7 that makes an anchor positive (§4.2).

# %%
def shape_overlap(w, h, anchor_w, anchor_h):
    """IoU of two boxes with the same centre."""
    intersection = torch.minimum(w, anchor_w) * torch.minimum(h, anchor_h)
    return intersection / (w * h + anchor_w * anchor_h - intersection)


four = torch.tensor(4.0)
assert shape_overlap(four / 2, four / 2, four, four) == 0.25
assert shape_overlap(four, four / 2, four, four) == 0.5

# %% [markdown]
# The best of this profile's 15 shapes (five scales, three ratios) for each object is a bound: a real anchor sits on a grid, and is never exactly
# centred.

# %%
anchor_scale, ratio = torch.cartesian_prod(torch.tensor(config.anchors.scales), torch.tensor(config.anchors.ratios)).T
best = shape_overlap(
    (width * s_x)[:, None], (height * s_y)[:, None], anchor_scale * ratio.sqrt(), anchor_scale / ratio.sqrt()
).amax(dim=1)
above = best > POSITIVE_IOU
print(f"best shape above IoU {POSITIVE_IOU}: {above.float().mean():.0%} of the objects")
for n in shown:
    print(f"   {CLASS_NAMES[n]:8} {above[labels == n].float().mean():.0%}")

# %% [markdown]
# So even before the grid is considered, part of the objects cannot have an anchor above 0.7. The rule "the anchor with the highest IoU is
# positive too" is for them, and the next notebook shows how often it is needed.

# %% [markdown]
# ## What this means for performance
#
# In the course's set, and in the scenes that are made after it:
#
# | what we measured | what to expect |
# |---|---|
# | one or two objects an image | few positive anchors: the RPN's minibatch is mostly background (02, 03); a miss costs much recall |
# | objects are large (median about a fifth of the image) | at the assignment's scales P2, with most anchors, has almost no objects; P4 … P6 carry the learning |
# | areas span a factor of twenty to forty | one scale would not do: the pyramid is needed |
# | half animals, a quarter vehicles, a quarter people | averages over images favour animals: we report AP for each class (06) |
# | boxes that reach the border | where anchors across the border are removed, such objects lose their best anchors (02) |
# | people are narrow, the ratios are 1:2, 1:1, 2:1 | the narrowest people fit no anchor well |
#
# The last line but one can be counted here. In the course's own set it is 22 % of the boxes.

# %%
margin = 2  # pixels of the file's frame
at_border = (
    (all_boxes[:, :2] <= margin).any(1)
    | (all_boxes[:, 2] >= IMAGE_WIDTH - margin)
    | (all_boxes[:, 3] >= IMAGE_HEIGHT - margin)
)
print(f"{at_border.float().mean():.0%} of the boxes come within {margin} pixels of the border")


# %% [markdown]
# ## What the preprocessing gets right, and what it gets wrong
#
# Right: boxes and masks stay where they belong, as measured above. Wrong: rescaling a mask loses detail. How much? We take masks to the
# network's frame and back, and compare with the original. A model that copied the rescaled masks perfectly would score this IoU.

# %%
def round_trip(masks, sizes):
    """Masks (G, 300, 400) to the network's frame and back: the IoU of each with itself."""
    (there,) = preprocess.preprocess_targets(
        [{"boxes": torch.zeros(0, 4), "masks": masks}], (IMAGE_HEIGHT, IMAGE_WIDTH), sizes
    )
    inner = there["masks"][:, None, : sizes.height, : sizes.width].float()
    back = F.interpolate(inner, (IMAGE_HEIGHT, IMAGE_WIDTH), mode="bilinear", antialias=True)[:, 0] >= 0.5
    return (back & (masks > 0)).sum((1, 2)) / (back | (masks > 0)).sum((1, 2)).clamp(min=1)


some = [dataset[i][1]["masks"] for i in range(min(60, len(dataset)))]
pixels = torch.cat([m.sum((1, 2)) for m in some])
kept = torch.cat([round_trip(m, config.image) for m in some if len(m)])
enlarged = torch.cat([round_trip(m, course.image) for m in some[:10] if len(m)])
print(f"{config.profile} profile: median IoU {kept.median():.3f}, lowest {kept.min():.3f}")
print(f"at 800 x 1066: median IoU {enlarged.median():.3f}, lowest {enlarged.min():.3f}")

# %% [markdown]
# The loss sits on the outline: the smaller the object, the larger its share. The figure shows each mask's IoU against its number of pixels
# in the file.

# %%
fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
ax.scatter(pixels, kept, s=14, color=draw.LINES[0])
ax.set(
    xscale="log",
    xlabel="pixels of the mask in the file",
    ylabel="IoU after the round trip",
    ylim=(min(0.9, kept.min() - 0.02), 1.005),
)
plt.show()

# %% [markdown]
# Three more limits, in words. The built-in scenes are drawn, not photographed: they have the sizes, shapes and class shares of the course's
# set, but a model trained on them has never seen fur or foliage. Masks are binary: a half-covered pixel belongs to nobody or to one object.
# And the boxes of annotated photographs are not always tight, so small objects carry some noise into every IoU.

# %% [markdown]
# ## Checks
#
# Once more, in one place, what the rest of the course relies on.

# %%
padded_size = config.image.padded_size
assert x.shape[-2:] == padded_size and all(n % SIZE_DIVISOR == 0 for n in padded_size)
assert course.image.padded_size == (800, 1088), "§2"
for image, target in zip(x, targets, strict=True):
    assert (image[:, content[0] :] == 0).all() and (image[:, :, content[1] :] == 0).all(), (
        "zero padding, right and below"
    )
    assert target["masks"].shape == (len(target["labels"]), *padded_size) and target["masks"].max() <= 1
    assert (target["boxes"] >= 0).all() and (target["boxes"][:, 2] <= content[1] + 1e-3).all()
assert len(mask_file) == len(labels) == len(all_boxes)
print("all checks passed")

# %% [markdown]
# ## Figures exported
#
# | file | shows |
# |---|---|
# | `figures/01_half_pixel` | a box and a mask keep fitting when enlarged |
# | `figures/01_datapoints` | six data points in the network's frame (the assignment's figure 3) |
# | `figures/01_statistics` | objects an image, classes, areas, shapes, against the course's set; the numbers as `.csv` and `.tex` |
# | `figures/01_scales` | the objects' scales between the anchors' scales |
# | `figures/01_montage` | 24 scenes with their masks |
#
# Each exists as PDF for the report and as PNG.

# %% [markdown]
# ## Summary
#
# - Masks are grouped by counting labels; the files are checked against each other when they are opened.
# - A data file is read without trust (nothing but arrays comes out) and without haste (one image at a time).
# - Preprocessing is four steps. Boxes are multiplied by $(s_x, s_y)$ and nothing else, because pixel $i$ covers $[i, i+1)$ and the padding
#   goes right and below.
# - Few, large objects of very different sizes: good for a pyramid, hard for anchors that must overlap by 0.7.

# %% [markdown]
# ## Exercises
#
# 1. Change `align_corners` to true in `resize_row` (read pixel $i'$ from $i' (n-1)/(n'-1)$). Which of the asserts fails first?
# 2. Pad left and above instead. What has to change in `preprocess_targets`?
# 3. Choose five anchor scales by hand so that more objects have a best shape above 0.7. Why not use twenty?
# 4. Which ratio would you add for people? Test it with `shape_overlap`.
# 5. Write a pickle that imports `os`. What does the loader say?

# %% [markdown]
# ## A last look
#
# Twenty-four data points in the colours of their classes. Scrolling through a data set before
# training on it is never wasted time.

# %%
fig, axes = plt.subplots(4, 6, figsize=(10, 5.3), layout="constrained")
for ax, i in zip(axes.flat, np.linspace(0, len(dataset) - 1, axes.size).astype(int), strict=True):
    picture, target = dataset[i]
    draw.image(ax, picture)
    draw.masks(ax, target["masks"], target["labels"])
    draw.boxes(ax, target["boxes"], target["labels"], linewidth=1)
save_figure(fig, "01_montage")
plt.show()
