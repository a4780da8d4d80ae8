# %% [markdown]
# # 3 · The region proposal network: solutions
#
# Each code cell takes the place of the stub of the same name in `notebooks/03_rpn.py`.

# %% [markdown]
# ### Exercise 3.1: a stricter NMS
#
# `propose` takes the threshold from the config it is given, so nothing is trained: `config.replace` makes a config with another one. Testing mode,
# hence clipped boxes and at most $N$ of them. A stricter threshold leaves fewer boxes. What it takes away first is the choice between
# neighbours: the most probable box of an object stays, a better fitting one beside it goes. So the recall at low IoU hardly changes and the
# AR, which counts tight boxes too, falls.

# %%
# exercise 3.1
def with_nms(nms_iou):
    """(boxes an image, AR) on the validation images, with the config's K and N."""
    how = config.replace(**{"rpn.nms_iou": nms_iou}).rpn
    counts, best = [], []
    for z, t, batch in over_val(model.rpn):
        for p, target in zip(rpn.propose(z, t, anchors, content, how, training=False), batch, strict=True):
            counts.append(len(p["boxes"]))
            best.append(coverage(p["boxes"], target["boxes"])[:, -1])
    return sum(counts) / len(counts), average_recall(torch.cat(best))


# %% [markdown]
# ### Exercise 3.2: PyTorch's own means
#
# The mean of the cross entropy is over the $M$ anchors already: its factor is 1. The mean of smooth L1 is over four numbers of each positive,
# $4 \cdot \text{positives}$ of them, and the sheet divides by $M$: the factor is $4 \cdot \text{positives} / M$. It changes from batch
# to batch, which is why `lib` takes sums.

# %%
# exercise 3.2
def factors(positives, M):
    """(for the objectness, for the boxes) where a minibatch of M anchors has so many positives."""
    return 1, 4 * positives / M


# %% [markdown]
# ### Exercise 3.3: focal loss in place of sampling
#
# $-\log p_t$ is the cross entropy, so $p_t$ is its negative exponential: no case for positives and negatives. Ignored anchors are left out
# first. With $\gamma = 2$ an anchor that is right with 0.99 weighs a ten-thousandth of its cross entropy, so thousands of easy negatives
# together weigh no more than a few hard ones; that is what sampling did by leaving most of them out.

# %%
# exercise 3.3
def focal_loss(logits, labels, gamma=2.0):
    """Logits and labels (POSITIVE, NEGATIVE, IGNORED) of any number of anchors -> a scalar."""
    logits, positive = logits[labels != IGNORED], labels[labels != IGNORED] == POSITIVE
    entropy = softplus(torch.where(positive, -logits, logits))
    weight = (1 - torch.exp(-entropy)) ** gamma
    return (weight * entropy).sum() / positive.sum().clamp(min=1)


# %% [markdown]
# ### Exercise 3.4: the best of each level
#
# `topk` within each level, its positions turned back into indices of the pyramid. With the config's $K$ the upper levels, which have few anchors, then always
# send all of them or nearly so; with the best of all they send what their scores earn.

# %%
# exercise 3.4
def best_of_each_level(scores, k):
    """Scores (A,) of one image -> indices of the k best of every level, or of all where a level has fewer."""
    levels = [(level_of == n).nonzero().flatten() for n in range(5)]
    return torch.cat([level[scores[level].topk(min(k, len(level))).indices] for level in levels])
