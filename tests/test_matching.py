import pytest
import torch

from lib.matching import IGNORED, NEGATIVE, POSITIVE, match_anchors, match_proposals, sample

P, N, I = POSITIVE, NEGATIVE, IGNORED  # noqa: E741


def naive_labels(iou: torch.Tensor, high: float, low: float) -> list[int]:
    """§4.2 word by word."""
    labels = []
    for a in range(iou.shape[0]):
        is_best = any(iou[a, g] > 0 and iou[a, g] == max(iou[:, g]) for g in range(iou.shape[1]))
        if is_best or any(v > high for v in iou[a]):
            labels.append(P)
        else:
            labels.append(N if all(v < low for v in iou[a]) else I)
    return labels


@pytest.mark.parametrize(
    "iou, labels",
    [
        ([[0.8], [0.5], [0.2]], [P, I, N]),
        ([[0.8], [0.71], [0.7]], [P, P, I]),  # several positives for an object; 0.7 itself is not above 0.7
        ([[0.9], [0.3], [0.29]], [P, I, N]),  # 0.3 itself is not below 0.3
        ([[0.2], [0.1]], [P, N]),  # nothing above 0.7: the object's highest IoU
        ([[0.2], [0.2], [0.1]], [P, P, N]),  # ... ties included
        ([[0.0], [0.0]], [N, N]),  # ... and only above 0
        ([[0.8, 0.1], [0.1, 0.25], [0.1, 0.2]], [P, P, N]),  # a positive below the low threshold
        ([[0.75, 0.72], [0.0, 0.0]], [P, N]),  # one anchor is the best of two objects
    ],
)
def test_anchor_labels_by_hand(iou, labels):
    got, matched = match_anchors(torch.tensor(iou), 0.7, 0.3)
    assert got.tolist() == labels == naive_labels(torch.tensor(iou), torch.tensor(0.7), torch.tensor(0.3))
    assert matched.tolist() == torch.tensor(iou).argmax(dim=1).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_anchor_labels_are_the_naive_ones(seed):
    generator = torch.Generator().manual_seed(seed)
    iou = torch.randint(0, 11, (60, 4), generator=generator) / 10 * (torch.rand(60, 1, generator=generator) < 0.5)
    got, matched = match_anchors(iou, 0.75, 0.25)
    assert got.tolist() == naive_labels(iou, 0.75, 0.25) and {P, N, I} <= set(got.tolist())
    assert (iou[torch.arange(60), matched] == iou.max(dim=1).values).all()


def test_no_objects_and_no_anchors():
    labels, matched = match_anchors(torch.zeros(3, 0), 0.7, 0.3)
    assert labels.tolist() == [N, N, N] and len(matched) == 3
    assert [len(v) for v in match_anchors(torch.zeros(0, 2), 0.7, 0.3)] == [0, 0]
    labels, matched = match_proposals(torch.zeros(3, 0), torch.zeros(0, dtype=torch.long), 0.4)
    assert labels.tolist() == [0, 0, 0] and len(matched) == 3
    assert [len(v) for v in match_proposals(torch.zeros(0, 2), torch.tensor([1, 2]), 0.4)] == [0, 0]


def test_proposal_classes_by_hand():
    iou = torch.tensor([[0.5, 0.45], [0.41, 0.6], [0.4, 0.1], [0.0, 0.41], [0.39, 0.2]])
    labels, matched = match_proposals(iou, torch.tensor([3, 1]), 0.4)
    assert labels.tolist() == [3, 1, 0, 1, 0]  # 0.4 itself is not above 0.4
    assert matched[labels > 0].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "positives, negatives, size, fraction, drawn",
    [
        (100, 1000, 64, 0.5, (32, 32)),  # M / 2 each
        (5, 1000, 64, 0.5, (5, 59)),  # too few positives: filled up with negatives
        (0, 1000, 64, 0.5, (0, 64)),
        (100, 1000, 64, 0.75, (48, 16)),  # 3 : 1
        (100, 10, 64, 0.75, (48, 10)),  # too few of both: as many as there are
        (3, 2, 64, 0.5, (3, 2)),
        (0, 0, 64, 0.5, (0, 0)),
    ],
)
def test_sampling_counts(positives, negatives, size, fraction, drawn):
    labels = torch.tensor([2] * positives + [N] * negatives + [I] * 500)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    chosen = sample(labels, size, fraction)
    assert len(set(chosen.tolist())) == len(chosen) == sum(drawn)
    assert ((labels[chosen] > 0).sum(), (labels[chosen] == N).sum()) == drawn  # so none is IGNORED


def test_sampling_is_random_and_seeded():
    labels = torch.zeros(1000, dtype=torch.long)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sample(labels, 10, 0.5).tolist())
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    "negatives, positives, size, drawn",  # of the groups 0, 1 and 2: how many there are, and how many come
    [
        ((50, 50, 50), 0, 12, (4, 4, 4)),  # even shares
        ((50, 50, 50), 9, 12, (2, 2, 2)),  # ... beside half of the size in positives
        ((500, 50, 5), 0, 30, (13, 12, 5)),  # one has too few: it gives what it has, and the others fill up
        ((50, 2, 1), 0, 12, (9, 2, 1)),
        ((50, 0, 50), 0, 13, (7, 0, 6)),  # one has none; the odd one comes from the first
        ((3, 2, 1), 0, 12, (3, 2, 1)),  # fewer than asked: all
        ((0, 0, 0), 0, 12, (0, 0, 0)),
        ((0, 0, 0), 3, 12, (0, 0, 0)),
    ],
)
def test_groups_take_turns(negatives, positives, size, drawn):
    labels = torch.tensor([N] * sum(negatives) + [P] * positives + [I] * 40)
    groups = torch.arange(3).repeat_interleave(torch.tensor(negatives))
    groups = torch.cat([groups, torch.arange(positives + 40) % 3])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    labels, groups = labels[order], groups[order]
    chosen = sample(labels, size, 0.5, groups)
    assert len(chosen.unique()) == len(chosen) and (labels[chosen] != I).all()
    assert (labels[chosen] == P).sum() == min(positives, size // 2)
    assert tuple(groups[chosen][labels[chosen] == N].bincount(minlength=3).tolist()) == drawn


def test_groups_are_drawn_at_random_and_seeded():
    labels, groups, draws = torch.zeros(1000, dtype=torch.long), torch.arange(1000) // 500, []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sample(labels, 10, 0.5, groups).tolist())
    assert draws[0] == draws[1] != draws[2]
    seen = torch.cat([sample(labels, 100, 0.5, groups) for _ in range(100)]).unique()
    assert len(seen) > 990  # every negative may come


def test_few_of_a_great_many_are_drawn_fairly():
    """Without a shuffle of them all: each is drawn as often as any other, none twice, in an order of no meaning."""
    torch.manual_seed(0)
    labels = torch.zeros(2000, dtype=torch.long)
    draws = torch.stack([sample(labels, 50, 0.5) for _ in range(2000)])
    assert all(len(row.unique()) == 50 for row in draws[:100])
    times = draws.flatten().bincount(minlength=2000).float()  # 50 expected, with a deviation of 7
    assert times.min() > 15 and times.max() < 90 and abs(times.std() - 50**0.5) < 0.7
    assert abs(draws[:, 0].float().mean() - 999.5) < 60  # the first drawn is not the smallest
