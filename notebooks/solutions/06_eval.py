# %% [markdown]
# # 6 · Evaluation and joint fine-tuning: worked solutions
#
# Each code cell takes the place of the cell of `06_eval` with the same first line.

# %% [markdown]
# ### Exercise 6.1: without the duplicate
#
# Four detections are left: right, right, wrong, right. Precision is 1, 1, 2/3, 3/4 at recall 1/3, 2/3, 2/3, 1. The area is two thirds of 1 and one
# third of the mean of 2/3 and 3/4. COCO's staircase is 1 at the 67 recalls up to 0.66, and 3/4 at the other 34.
#
# The duplicate lowered the precision of everything after it, and both scores feel that. The course's curve also went straight down where it
# stood and climbed back along a slope; COCO's staircase never saw that dent. So the course's score has more to win back.

# %%
# exercise 6.1
course_without = 2 / 3 * 1 + 1 / 3 * (2 / 3 + 3 / 4) / 2
coco_without = (67 * 1 + 34 * 3 / 4) / 101
without_duplicate = course_without, coco_without


# %% [markdown]
# ### Exercise 6.2: can the scores be believed?
#
# A score of 1 belongs to the last interval. AP says nothing about this: it only uses the *order* of the scores. Halve them all and AP is the same, while no score
# can be believed any more. Whoever sets a threshold ("show what is at least 0.5") needs calibration; whoever ranks does not.

# %%
# exercise 6.2
def calibration(scores, right):
    """Scores (D,) in [0, 1], right (D,) bool, both tensors -> ten pairs (number of detections, share that is right)."""
    interval = (10 * scores).long().clamp(max=9)
    counts = torch.bincount(interval, minlength=10).tolist()
    hits = torch.bincount(interval[right], minlength=10).tolist()
    return [(n, h / n if n else None) for n, h in zip(counts, hits, strict=True)]


# %% [markdown]
# ### Exercise 6.3: a score that knows the mask
#
# The mean over the cells that are kept is a measure of doubt: a sharp mask has values near 1 inside, a vague one near 0.5. At a high IoU threshold it should help to
# rank sharp masks first. It only helps as far as the mask head knows when it is wrong; one that is sure of a wrong outline keeps its place. The printed numbers
# say what came of it here.

# %%
# exercise 6.3
def mask_score(scores, masks):
    """Scores (D,), probabilities (D, 28, 28) -> scores (D,)."""
    kept = masks >= THRESHOLD
    return scores * (masks * kept).sum(dim=(1, 2)) / kept.sum(dim=(1, 2)).clamp(min=1)


# %% [markdown]
# ### Exercise 6.4: soft-NMS, an extension
#
# A box that overlaps no better one keeps its score, a near copy loses most of it: at IoU 0.82 a factor of 0.26. Nothing is thrown away: a neighbour whom NMS
# would remove stays, and so do near copies, further down the list. The first gains AP, the second loses some wherever a copy still scores higher than
# something right. Which of the two is more, the printed numbers say; where hardly two objects of a class overlap there is little to
# gain. It helps in crowds.

# %%
# exercise 6.4
def soft_nms(boxes, scores, sigma=0.5):
    """Boxes (D, 4), scores (D,) -> new scores (D,), in the order given."""
    scores, waiting = scores.clone(), torch.ones(len(scores), dtype=torch.bool)
    overlap = iou_matrix(boxes, boxes)
    while waiting.any():
        best = int(scores.masked_fill(~waiting, -1).argmax())
        waiting[best] = False
        scores[waiting] *= (-(overlap[best, waiting] ** 2) / sigma).exp()
    return scores
