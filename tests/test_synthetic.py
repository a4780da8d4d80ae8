"""The scenes: reproducible, labelled exactly, and distributed like the course's own set.

This compares 10,000 scenes with the course's set, row by row:

    PYTHONPATH=. python tests/test_synthetic.py 10000
"""

import sys

import numpy as np
import pytest

from lib.__main__ import main
from lib.config import PRETRAINING_SEEDS
from lib.data import scene_shapes as shapes
from lib.data.masks import tight_box
from lib.data.reader import FILES, CourseDataset
from lib.data.scene_layout import CLASS_SHARES, STATISTICS, TWO_OBJECTS, box_iou
from lib.data.scenes import MIN_SIDE, layout, place_object, scene, visible_masks, write_scenes
from lib.maskrcnn import COURSE_CLASSES


def scenes(seed: int, count: int) -> list:
    return [scene(np.random.default_rng([seed, i])) for i in range(count)]


def contents(folder) -> dict[str, bytes]:
    return {kind: (folder / name).read_bytes() for kind, name in FILES.items()}


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_scenes(tmp_path / name, 6, seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[kind] != c[kind] for kind in ("images", "masks", "boxes"))


def test_an_image_depends_on_the_seed_and_its_index_alone(tmp_path):
    write_scenes(tmp_path, 3, seed=5)
    stored = CourseDataset(tmp_path)
    for (image, target), (pixels, labels, boxes, masks) in zip(stored, scenes(5, 8), strict=False):
        np.testing.assert_array_equal(image, pixels)
        np.testing.assert_array_equal(target["labels"], labels)
        np.testing.assert_array_equal(target["boxes"], boxes)
        np.testing.assert_array_equal(target["masks"], masks)


def test_every_object_is_visible_and_its_box_tight():
    for image, labels, boxes, masks in scenes(1, 60):
        assert image.shape == (3, 300, 400) and image.dtype == np.uint8 and image.std() > 5
        assert len(labels) == len(boxes) == len(masks) in (1, 2) and set(labels) <= {1, 2, 3}
        assert masks.max() == 1 and masks.sum(axis=0).max() == 1  # a pixel shows one object
        for box, mask in zip(boxes, masks, strict=True):
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE


def test_a_tight_box_covers_whole_pixels():
    mask = np.zeros((300, 400), np.uint8)
    mask[10:12, 20] = 1
    assert tight_box(mask).tolist() == [20, 10, 21, 12]


def test_what_is_painted_later_hides_what_is_behind():
    sprite = place_object(1, np.array([100.0, 100, 220, 180]), np.random.default_rng(0))
    hidden, shown = visible_masks([sprite, sprite], [])
    assert not hidden.any() and shown.any()
    assert not visible_masks([sprite], [sprite]).any()


def measured(count: int, seed: int) -> dict[str, tuple[float, float, float]]:
    """Of `count` scenes, by name: the scenes' figure, the course's, and the standard error of the scenes'."""
    drawn = [layout(np.random.default_rng([seed, i])) for i in range(count)]
    labels, boxes = np.concatenate([d[0] for d in drawn]), np.concatenate([d[4] for d in drawn]).astype(float)
    (w, h), rows = (boxes[:, 2:] - boxes[:, :2]).T, {}
    for name, values in (("scale", np.sqrt(w * h)), ("aspect", w / h)):
        for label, of_class in (("all", labels > 0), *((c, labels == n) for n, c in enumerate(COURSE_CLASSES, 1))):
            for q, wanted in zip((0.05, 0.5, 0.95), STATISTICS[f"{name}-{label}"][[1, 3, 5]], strict=True):
                rows[f"{name} {label} {q}"] = quantile_row(values[of_class], q, wanted)
    at_border = ((boxes[:, :2] <= 2) | (boxes[:, 2:] >= (398, 298))).any(axis=1)
    for n, name in enumerate(("all", *COURSE_CLASSES)):
        of_class = at_border[labels == n] if n else at_border
        rows[f"at the border {name}"] = mean_row(of_class, STATISTICS[f"border-{name}"].mean())
    pairs = [(d[0], d[4].astype(float)) for d in drawn if len(d[0]) == 2]
    same, iou = np.array([a == b for (a, b), _ in pairs]), np.array([float(box_iou(*two)) for _, two in pairs])
    of_same = STATISTICS["two"][[0, 3, 5]].sum() / STATISTICS["two"].sum()
    rows["two of a class"] = mean_row(same, of_same)
    for name, values in (("overlap", iou > 0), ("mean-iou", iou)):
        rows[f"{name} all"] = mean_row(values, STATISTICS[name] @ (of_same, 1 - of_same))
        rows[f"{name} same"] = mean_row(values[same], STATISTICS[name][0])
        rows[f"{name} different"] = mean_row(values[~same], STATISTICS[name][1])
    rows["two objects"] = mean_row(np.array([len(d[0]) == 2 for d in drawn]), TWO_OBJECTS)
    for n, share in enumerate(CLASS_SHARES, start=1):
        rows[f"share of {COURSE_CLASSES[n - 1]}"] = mean_row(labels == n, share)
    return rows


def mean_row(values: np.ndarray, wanted: float) -> tuple[float, float, float]:
    return values.mean(), float(wanted), values.std() / np.sqrt(len(values))


def quantile_row(values: np.ndarray, q: float, wanted: float) -> tuple[float, float, float]:
    """The standard error is a sixth of the range that the quantile's rank spans at three of its own."""
    ranks = np.clip(q + np.array([-3, 3]) * np.sqrt(q * (1 - q) / len(values)), 0, 1)
    return np.quantile(values, q), float(wanted), float(np.diff(np.quantile(values, ranks))[0] / 6)


def test_scenes_are_distributed_like_the_course():
    """Each figure within 10 %, or four standard errors of so few scenes: of 39, one in ten sets is off by three."""
    rows = measured(1200, seed=8)
    wrong = {name: row for name, row in rows.items() if abs(row[0] - row[1]) > max(0.1 * row[1], 4 * row[2])}
    assert len(rows) == 39 and not wrong


def test_existing_files_are_kept(tmp_path):
    main(["scenes", "--out", str(tmp_path), "--images", "1", "--seed", "1"])
    before = contents(tmp_path)
    with pytest.raises(SystemExit, match="exists already: choose another folder"):
        main(["scenes", "--out", str(tmp_path), "--images", "1", "--seed", "2"])
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "images, seed, words", [(0, 0, "ask for"), (1, -1, "ask for"), (1, PRETRAINING_SEEDS[0], "has seen")]
)
def test_impossible_requests_are_refused(tmp_path, images, seed, words):
    with pytest.raises(ValueError, match=words):
        write_scenes(tmp_path, images, seed)


def test_no_pretraining_scene_is_in_a_data_set():
    seen = {s[0].tobytes() for seed in PRETRAINING_SEEDS[:3] for s in scenes(seed, 20)}
    assert len(seen) == 60 and not seen & {s[0].tobytes() for seed in (0, 1000) for s in scenes(seed, 30)}


def test_the_figures_file_is_understood():
    """A figure with the roles of another exchanged, a wheel, a blob, the figures of a kind, a colour by name."""
    assert [part.role for part, _ in shapes._polygons("vehicle: car from the rear")].count("tail") == 2
    assert shapes.FIGURES["vehicle: saloon"][-2] == f"hub oval 3.5 0.38 {0.6 * 0.38}"
    assert shapes.FIGURES["cloud"] == [line.replace("leaf", "cloud") for line in shapes.FIGURES["thing: bush"]]
    (left, optional), *_ = shapes._polygons("trunk: belted")
    assert left.role == "shirt" and not optional and len(left.points) == 32  # 8 corners cut twice
    assert len(shapes.named("vehicle")) == 12 and shapes.PALETTE["metal"] == shapes.PALETTE["neutral"]


def test_every_figure_can_be_drawn():
    tables = {"palette", "poses", "species", "backgrounds"}
    for name in shapes.FIGURES.keys() - tables:
        for part, _ in shapes._polygons(name):
            assert part.role in shapes.PALETTE and np.isfinite(part.points).all() and len(part.points) > 2, name


def print_comparison(count: int, seed: int = 10) -> None:
    """Each row of `measured`: the course's figure, the scenes', by how much it is off, that in standard errors."""
    for name, (mean, wanted, error) in measured(count, seed).items():
        print(f"{name:22} {wanted:8.3f} {mean:8.3f} {mean / wanted - 1:+7.1%} {(mean - wanted) / error:+6.1f}")


if __name__ == "__main__":
    print_comparison(int(sys.argv[1]))
