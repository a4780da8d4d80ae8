# %% [markdown]
# # 4 · RoIAlign and the box head: worked solutions
#
# Each code cell takes the place of the cell of `04_boxhead` with the same first line.

# %% [markdown]
# ### Exercise 4.1: RoIPool
#
# A pixel of level $k$ is $2^k$ image pixels wide, so the corners of pixels are its multiples. The head was trained on features that lie where the
# box lies; pooled from whole pixels, it sees a region that is shifted and stretched by up to half a pixel of the map a side, and moves
# the box by as much too far or too little. Small boxes suffer most, which span few pixels of the map. (A head trained on such features gets used to
# them on average, but not to the shift, which differs from box to box and which it is not told.)

# %%
# exercise 4.1
def to_whole_pixels(rois, levels):
    """Boxes (R, 4), image pixels, and levels (R,) 2 ... 5 -> boxes whose corners are corners of their map's pixels."""
    cell = 2.0 ** levels[:, None]
    return (rois / cell).round() * cell


# %% [markdown]
# ### Exercise 4.2: a stricter threshold
#
# A proposal is an object's if its best IoU is above the threshold. Lost are the loosest ones, between 0.4 and 0.5: those from which the
# regressor learns its largest moves. They become background, so the head also learns to reject them; it cannot mend
# later what it was taught to throw away.

# %%
# exercise 4.2
def objects_above(threshold):
    """The number of proposals in `given`, over all images of `seen`, that are an object's at this threshold."""
    pairs = zip(given, seen.targets, strict=True)
    return sum(int((boxes.iou_matrix(g, t["boxes"]) > threshold).any(dim=1).sum()) for g, t in pairs)


# %% [markdown]
# ### Exercise 4.3: three to one, or one to three?
#
# The classifier learns how frequent background is along with what it looks like. Where three of four examples were objects, it says
# "object" when in doubt: fewer objects are missed, and more background is taken for one. With one to three it is the other way round. At test
# time background is far more frequent than in either. Which mistake costs more depends on what is done next: NMS
# and a score threshold can still drop a false detection; a missed object is gone.

# %%
# exercise 4.3
like_fast_rcnn = config.replace(**{"boxhead.positive_fraction": 0.25})


# %% [markdown]
# ### Exercise 4.4: judge boxes by their overlap
#
# Intersection and union as in `boxes.iou_matrix`, but pair by pair, and the box around both from the outer corners. Where the boxes do not
# meet, the intersection is 0 and has no gradient, but the box around both still shrinks as they come nearer.
#
# The check prints what forty steps give. On the built-in scenes, behind the RPNs of two seeds, GIoU stayed behind smooth L1 with a weight of 1, and less so at the weight
# of 10 that smooth L1 has: compare losses at weights that suit each (§6.4).

# %%
# exercise 4.4
def giou_loss(predicted, aimed_at):
    """Boxes (M, 4) and the boxes (M, 4) that they aim at -> 1 - GIoU of each pair (M,)."""
    inner = torch.minimum(predicted, aimed_at)[:, 2:] - torch.maximum(predicted, aimed_at)[:, :2]
    outer = torch.maximum(predicted, aimed_at)[:, 2:] - torch.minimum(predicted, aimed_at)[:, :2]
    intersection, around = inner.clamp(min=0).prod(dim=1), outer.prod(dim=1)
    union = boxes.area(predicted) + boxes.area(aimed_at) - intersection
    return 1 - intersection / union + (around - union) / around
