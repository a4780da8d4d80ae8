# %% [markdown]
# # 5 · The mask head: worked solutions
#
# Each code cell takes the place of the cell of `05_maskhead` with the same first line.

# %% [markdown]
# ### Exercise 5.1: the smallest hole
#
# A cell is 10 pixels wide, and its points lie 2.5 and 7.5 pixels from its edge: each reads the one pixel whose centre it is. A cell turns 0 when more than two of its four points
# fall into the hole, which for a square means all four. From the cell's corner that takes 8 pixels, so as to reach the point at 7.5. Around the cell's centre 6 pixels do,
# from 2 to 8. What decides is where the points lie, not how much of the cell is covered: 36 % is enough in one place, 49 % is not in the other.

# %%
# exercise 5.1
smallest_in_corner, smallest_in_centre = 8, 6


# %% [markdown]
# ### Exercise 5.2: a loss like the IoU
#
# The sums run over a mask's cells, so that every box weighs the same however full it is, and the 1 in both places keeps an empty target from dividing by zero. After 60 steps
# Dice lies well behind cross entropy. One reason is in its gradient: it has the factor $\hat y (1 - \hat y)$ of the sigmoid, so that a cell that is sure and wrong hardly moves. Cross
# entropy's is $\hat y - y$, largest just there. Dice is for objects that fill little of their boxes, and mostly used in a sum with cross entropy.

# %%
# exercise 5.2
def dice_loss(logits, labels, targets):
    """Logits (D, C, m, m), labels (D,) from 1 to C, targets (D, m, m) -> the Dice loss, a scalar."""
    p = maskhead.class_masks(logits, labels).sigmoid()
    both, sizes = (p * targets).sum((1, 2)), p.sum((1, 2)) + targets.sum((1, 2))
    return (1 - (2 * both + 1) / (sizes + 1)).mean()


# %% [markdown]
# ### Exercise 5.3: one mask for all classes
#
# A head with one mask, and the label 1 for every box: nothing else changes. On the built-in scenes it does as well, as in the paper: that one mask learns from all boxes, not from
# a class's share of them. What it gives up is the question "which parts are the *person's*?" where two classes meet in a box.

# %%
# exercise 5.3
def class_agnostic(labels):
    """Labels (D,) from 1 to C -> (a fresh mask head for one mask, the labels (D,) that its loss needs)."""
    return fresh_head(1), torch.ones_like(labels)


# %% [markdown]
# ### Exercise 5.4: a bigger mask
#
# `mask_samples` with two numbers changed. Pooled at 28, a cell of features covers half as much of the object as the head has learnt from, and its kernels look half as far: as it is,
# the head does no better. Nor do thirty steps on 32 images bring it further. The grid is not what holds this head back, as "where the IoU is lost" has shown, and the
# features are no finer than before. With a better head, and large objects, it would be worth training on all images.

# %%
# exercise 5.4
def samples_at(s, size):
    """What `boxes_that_train` gave -> {"pooled": (D, F, size, size), "labels": (D,), "masks": (D, 2 size, 2 size)}."""
    rois, images = boxhead.stack_rois([one["boxes"] for one in s.chosen])
    pairs = zip(s.chosen, s.targets, strict=True)
    masks = [maskhead.mask_targets(one["boxes"], one["matched"], t["masks"], 2 * size) for one, t in pairs]
    labels = torch.cat([one["labels"] for one in s.chosen])
    with torch.no_grad():
        return {"pooled": model.pool(s.features, rois, images, size), "labels": labels, "masks": torch.cat(masks)}
