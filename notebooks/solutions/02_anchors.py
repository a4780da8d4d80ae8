# %% [markdown]
# # 2 · Backbone and anchors: solutions
#
# Each code cell takes the place of the stub of the same name in `notebooks/02_anchors.py`.

# %% [markdown]
# ### Exercise 2.1: a lower threshold
#
# The anchors are those inside the content, so nothing has to be masked. Several times as many anchors are positive, and fewer objects live from
# their single best one. But an anchor of IoU 0.5 is far from its object: the $t$ to be learnt spread more, so the regressor has to move
# boxes further, and what is called "object" is less like one.

# %%
# exercise 2.1
def positives_at(threshold):
    """(number of positive anchors, standard deviation of their t_w) over the counted images."""
    widths = []
    for objects in assigned[config.profile][1]:
        labels, matched = matching.match_anchors(boxes.iou_matrix(anchors[inner], objects), threshold, 0.3)
        positive = labels == POSITIVE
        widths.append(boxes.encode(objects[matched[positive]], anchors[inner][positive])[:, 2])
    widths = torch.cat(widths)
    return len(widths), float(widths.std())


# %% [markdown]
# ### Exercise 2.2: an object keeps its best anchor
#
# The labels stay: an object's best anchor was positive before. Only the owner changes. In the rows where an anchor is the best of some object, hide
# the other objects, and take the highest that is left. Anchor 6 now belongs to object 2. C still has none: its best anchor is also A's, and overlaps A
# more. To give it to C would leave A without its perfect anchor.

# %%
# exercise 2.2
def match_keeping(iou, positive_iou, negative_iou):
    """IoU (A, G) -> labels (A,) and objects (A,), as `match_anchors` but for the changed rule."""
    labels, matched = matching.match_anchors(iou, positive_iou, negative_iou)
    is_best = (iou == iou.amax(dim=0)) & (iou > 0)
    value, owner = iou.masked_fill(~is_best, 0).max(dim=1)
    return labels, torch.where(value > 0, owner, matched)


# %% [markdown]
# ### Exercise 2.3: keep the cross-boundary anchors
#
# `assign` reads `rpn.cross_boundary` from the config. Levels with large anchors have most to gain, for most of theirs were removed. A level can lose: an
# anchor that was an object's best only because a better one was gone is no longer the highest.

# %%
# exercise 2.3
def gained():
    """Five numbers, of P2 ... P6: positives with all anchors less those with the anchors inside."""
    labels, _ = assign(config.replace(**{"rpn.cross_boundary": "clip"}))
    kept, removed = (
        level_of.expand_as(of_all)[of_all == POSITIVE].bincount(minlength=5)
        for of_all in (labels, assigned[config.profile][0])
    )
    return (kept - removed).tolist()


# %% [markdown]
# ### Exercise 2.4: anchors from the data
#
# IoU depends on quotients: a box twice as large fits as badly as one half as large. On a logarithmic scale both are equally far away, so k-means there
# minimises about what matters. In one dimension the quantiles are a good beginning. The check leaves out what the grid costs:
# a scale that fits the shapes on a level with too coarse a grid may still miss the objects.

# %%
# exercise 2.4
from lib.anchors import AnchorConfig


def k_means(values, k):
    """The k means (k,) of values (N,), in ascending order."""
    means = values.quantile((torch.arange(k) + 0.5) / k)
    for _ in range(50):
        nearest = (values[:, None] - means).abs().argmin(dim=1)
        means = torch.stack([values[nearest == n].mean() if (nearest == n).any() else means[n] for n in range(k)])
    return means.sort().values


def anchors_from_data(objects):
    """Boxes (G, 4) -> an AnchorConfig whose scales and ratios fit them."""
    w, h = (objects[:, 2:] - objects[:, :2]).unbind(1)
    scales, ratios = k_means((w * h).sqrt().log(), 5).exp(), k_means((w / h).log(), 3).exp()
    return AnchorConfig(tuple(scales.tolist()), tuple(ratios.tolist()))
