"""AP with intervals: the arithmetic beside pycocotools', and on cases with a known answer."""

import numpy as np
import pytest

from benchmarks import bootstrap
from lib.maskrcnn import COURSE_CLASSES
from lib.scores.coco_ap import _coco, average_precision, categories, coco_evaluation


def evaluation(seed: int, images: int = 30, noise: float = 2.0):
    """Detections at random around the objects of random images, some of a wrong class or with nothing under them."""
    rng, annotations, found = np.random.default_rng(seed), [], []
    truth_rng = np.random.default_rng(100)  # the same objects for every seed
    for n in range(images):
        for _ in range(truth_rng.integers(0, 4)):
            box = [*truth_rng.uniform(0, 60, 2), *truth_rng.uniform(15, 40, 2)]
            label = int(truth_rng.integers(1, 3))  # the third class has no object
            about = {"image_id": n, "category_id": label}
            annotations.append(
                {**about, "bbox": box, "id": len(annotations) + 1, "area": box[2] * box[3], "iscrowd": 0}
            )
            for _ in range(rng.integers(0, 3)):
                guess = {**about, "category_id": int(rng.choice([label, label, 3 - label, 3]))}
                found.append({**guess, "bbox": list(box + rng.normal(0, noise, 4)), "score": float(rng.random())})
    content = {"images": [{"id": n, "height": 100, "width": 100} for n in range(images)], "annotations": annotations}
    return coco_evaluation(_coco({**content, "categories": categories(COURSE_CLASSES)}), found, "bbox")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_image_once_is_cocos_ap(seed):
    scored = evaluation(seed)
    ours = bootstrap.weighted_ap(bootstrap.matches(scored), np.ones(30))
    assert ours == pytest.approx(average_precision(scored)["AP"], abs=1e-9) and ours > 0.1


def test_a_weight_repeats_an_image():
    """Weights 2 on all images change nothing but the counts; weight 0 leaves an image and its objects out."""
    classes = bootstrap.matches(evaluation(0))
    once = bootstrap.weighted_ap(classes, np.ones(30))
    assert bootstrap.weighted_ap(classes, np.full(30, 2)) == pytest.approx(once)
    kept = bootstrap.matches(evaluation(0, images=10))
    first_ten = bootstrap.weighted_ap(classes, np.repeat([1, 0], [10, 20]))
    assert first_ten == pytest.approx(bootstrap.weighted_ap(kept, np.ones(10)))


def test_resamples_are_the_same_for_all_and_scatter_about_the_ap():
    scored = evaluation(0)
    aps = bootstrap.resampled_ap(scored)
    assert aps == bootstrap.resampled_ap(evaluation(0)) and len(aps) == bootstrap.RESAMPLES
    ap = average_precision(scored)["AP"]
    assert np.std(aps) > 0.01 and abs(np.mean(aps) - ap) < np.std(aps)


def test_pairs_tell_what_the_scatter_hides():
    """A system better by 0.01 on every resample is better for sure, however much AP varies between resamples."""
    base = np.random.default_rng(0).normal(0.5, 0.05, (3, 500))
    low, high = bootstrap.interval(base, base + 0.01)
    assert low == pytest.approx(0.01) and high == pytest.approx(0.01)
    low, high = bootstrap.interval(base, np.random.default_rng(1).normal(0.5, 0.05, (3, 500)))
    assert low < 0 < high


def test_seeds_that_disagree_widen_the_interval():
    base = np.full((2, 500), 0.5)
    low, high = bootstrap.interval(base, base + [[0.1], [-0.1]])
    assert (low, high) == pytest.approx((-0.1, 0.1))
