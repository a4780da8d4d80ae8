# %% [markdown]
# # Solutions of 01_data
#
# Each cell stands in the place of the notebook's cell with the same first line.

# %% [markdown]
# ### Exercise 1.1: padding at the left and above
#
# `torch.roll` moves the content by the amount of padding; what leaves at one end, all of it zeros, comes in at the other. Boxes move by the same amount.
#
# With the padding at the right and below, "the image" is simply everything up to $(H', W')$, and boxes of the file are multiplied and nothing else. At
# the left and above, whoever clips boxes, drops boxes that cross the border, or takes predictions back to the file would need the offset as well, and a
# place that forgets it is wrong by a few pixels without any error message.

# %%
# exercise 1.1
def moved_padding(x, boxes, sizes):
    """Input (3, Hp, Wp), boxes (G, 4), the ImageConfig -> the same with the content in the lower right corner."""
    down, right = sizes.padded_size[0] - sizes.height, sizes.padded_size[1] - sizes.width
    return x.roll((down, right), dims=(1, 2)), boxes + torch.tensor([right, down, right, down])


# %% [markdown]
# ### Exercise 1.2: the drift of `align_corners=True`
#
# Pixel $i$ has the centre $i + \tfrac12$. By the rule it goes to the index $i(n'-1)/(n-1)$, whose centre is half a pixel further. A box's coordinate at the
# old centre goes to $s\,(i + \tfrac12)$. At $i = 0$ the two are $\tfrac12$ and $\tfrac s2$: a distance of $(s-1)/2$. At the other end it is the same with the other sign,
# in the middle zero. So masks are stretched outwards against their boxes, most at the borders.

# %%
# exercise 1.2
def drift(n, scale):
    """The distances (n,) of a row of n pixels."""
    i = torch.arange(n, dtype=torch.float32)
    of_pixel = i * (round(scale * n) - 1) / (n - 1) + 0.5
    of_box = scale * (i + 0.5)
    return (of_pixel - of_box).abs()


# %% [markdown]
# ### Exercise 1.3: a fourth ratio
#
# Between 1:2 and 2:1 little is to be gained: two boxes of one scale whose ratios differ by a factor of $f$ have the IoU $1 / (2\sqrt f - 1)$, which is above 0.7
# up to $f = 1.47$; and no ratio between 1:2 and 2:1 is further than $\sqrt 2 = 1.41$ from one of the three. The objects that fit none are narrower or longer. Which of the two are more
# depends on the data, so we try thirty ratios on both sides, beside the four of the check.
#
# The price: 20 anchors where there were 15, so a third more in every cell of every level to score, to sort and to suppress, nearly all of them background.

# %%
# exercise 1.3
tried = [1 / 4, 1 / 3, 3, 4, *np.geomspace(1 / 6, 6, 30).tolist()]
fourth_ratio = max(tried, key=lambda r: (best_overlap(config, (*config.anchors.ratios, r)) > POSITIVE_IOU).sum().item())


# %% [markdown]
# ### Exercise 1.4: an augmentation of your own, random crops
#
# Cutting is slicing: pixel $i$ covers $[i, i+1)$, so the window $(x_1, y_1, x_2, y_2)$ in whole pixels is exactly `[y1:y2, x1:x2]`. Boxes are not cut but taken anew from
# the masks: what is left of an object is often smaller than its box cut at the window, for instance when an arm that reached far to the side is gone. An object of which little is
# left is not kept: a network that must find a person by a shoe learns to see persons everywhere. (It stays in the picture, as background; that is the price.)

# %%
# exercise 1.4
def cropped(image, target, window):
    """Image (3, 300, 400) uint8, its target, a window (x1, y1, x2, y2) in whole pixels -> the same of the crop."""
    x1, y1, x2, y2 = window
    size = image.shape[1:]
    part = target["masks"][:, y1:y2, x1:x2]
    keep = part.sum((1, 2)) >= target["masks"].sum((1, 2)) / 4
    enlarged = F.interpolate(image[None, :, y1:y2, x1:x2].float(), size, mode="bilinear")[0]
    masks = part.new_zeros((0, *size))
    if keep.any():
        masks = (F.interpolate(part[keep, None].float(), size, mode="bilinear")[:, 0] >= 0.5).to(torch.uint8)
    boxes = torch.stack([tight_box(mask) for mask in masks]) if len(masks) else torch.zeros(0, 4)
    kept = {"boxes": boxes, "labels": target["labels"][keep], "masks": masks, "image_id": target["image_id"]}
    return enlarged.round().to(torch.uint8), kept
