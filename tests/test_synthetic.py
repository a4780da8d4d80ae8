"""The scenes: reproducible, labelled exactly, and distributed like the course's own set."""

import numpy as np
import pytest

from lib import synthetic
from lib import synthetic_shapes as shapes
from lib.boxes import mask_to_box
from lib.data import FILES, CourseDataset
from lib.synthetic import place_object, scene, visible_masks, write_scenes


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
            assert min(box[2] - box[0], box[3] - box[1]) >= synthetic.MIN_SIDE


def test_a_tight_box_covers_whole_pixels():
    mask = np.zeros((300, 400), np.uint8)
    mask[10:12, 20] = 1
    assert mask_to_box(mask).tolist() == [20, 10, 21, 12]
    assert mask_to_box(np.zeros_like(mask)) is None


def test_what_is_painted_later_hides_what_is_behind():
    sprite = place_object(1, np.random.default_rng(0))
    hidden, shown = visible_masks([sprite, sprite], [])
    assert not hidden.any() and shown.any()
    assert not visible_masks([sprite], [sprite]).any()


@pytest.mark.parametrize("label", [1, 2, 3])
def test_sizes_and_shapes_follow_the_course(label):
    rng = np.random.default_rng(label)
    for table in (synthetic.AREAS[label], synthetic.ASPECTS[label]):
        drawn = np.quantile([synthetic.quantile(table, rng) for _ in range(4000)], synthetic.PERCENTILES[1:-1])
        np.testing.assert_allclose(drawn, table[1:-1], rtol=0.1)
    boxes = np.stack([mask_to_box(visible_masks([place_object(label, rng)], [])[0]) for _ in range(150)])
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    assert np.median(w * h / 120_000) == pytest.approx(synthetic.AREAS[label][2], rel=0.3)
    assert np.median(w / h) == pytest.approx(synthetic.ASPECTS[label][2], rel=0.25)


def test_class_shares_and_objects_an_image():
    drawn = [labels for _, labels, _, _ in scenes(2, 150)]
    shares = np.bincount(np.concatenate(drawn), minlength=4)[1:] / sum(map(len, drawn))
    np.testing.assert_allclose(shares, synthetic.CLASS_SHARES, atol=0.1)
    assert np.mean([len(labels) == 2 for labels in drawn]) == pytest.approx(synthetic.TWO_OBJECTS, abs=0.1)


def test_existing_files_are_kept(tmp_path):
    synthetic.main(["--out", str(tmp_path), "--images", "1", "--seed", "1"])
    before = contents(tmp_path)
    with pytest.raises(SystemExit, match="exists already: choose another folder"):
        synthetic.main(["--out", str(tmp_path), "--images", "1", "--seed", "2"])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("images, seed", [(0, 0), (1, -1)])
def test_impossible_requests_are_refused(tmp_path, images, seed):
    with pytest.raises(ValueError, match="ask for"):
        write_scenes(tmp_path, images, seed)


def test_the_figures_file_is_understood():
    """A figure with the roles of another exchanged, a wheel, a blob, the figures of a kind, a colour by name."""
    assert [part.role for part, _ in shapes._polygons("vehicle: car from the rear")].count("tail") == 2
    assert shapes.FIGURES["vehicle: saloon"][-2] == f"hub oval 3.5 0.38 {0.6 * 0.38}"
    assert shapes.FIGURES["cloud"] == [line.replace("leaf", "cloud") for line in shapes.FIGURES["thing: bush"]]
    (left, optional), *_ = shapes._polygons("trunk: belted")
    assert left.role == "shirt" and not optional and len(left.points) == 32  # 8 corners cut twice
    assert len(shapes.named("vehicle")) == 12 and shapes.PALETTE["metal"] == shapes.PALETTE["neutral"]


def test_every_figure_can_be_drawn():
    tables = {"palette", "poses", "species", "backgrounds", "areas", "aspects"}
    for name in shapes.FIGURES.keys() - tables:
        for part, _ in shapes._polygons(name):
            assert part.role in shapes.PALETTE and np.isfinite(part.points).all() and len(part.points) > 2, name
