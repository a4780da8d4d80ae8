"""Made-up scenes in the four-course-file format, so that everything runs before any photograph is there.

    python -m lib scenes --out data/synthetic --images 1000 --seed 0

    G  objects of a scene    H x W  300 x 400, the image; boxes and masks are in its pixels

A scene is a background, a few things without a label, one or two vehicles, people or animals, and now and then
something in front of them. `scene_shapes` has the figures, `scene_layout` the boxes; here they are placed and painted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw
from tqdm import tqdm

from lib.config import PRETRAINING_SEEDS
from lib.data import scene_shapes as shapes
from lib.data.masks import tight_box
from lib.data.reader import FILES
from lib.data.scene_layout import AT_BORDER, SIZE, box_iou, draw_boxes, draw_labels
from lib.data.scene_shapes import FIGURES, Part, Rng, Vector, pick, posed
from lib.data.writer import CourseWriter
from lib.preprocess import IMAGE_HEIGHT, IMAGE_WIDTH

OBJECTS: dict[int, list] = {1: shapes.VEHICLES, 2: [shapes.person], 3: shapes.ANIMALS}
MIN_VISIBLE = 0.42  # the share of an object's pixels in the image that what stands in front must leave
MIN_FIT = 0.75  # the least IoU of an object's visible box with the box that was drawn for it
MIN_SIDE = 14  # of an object's box
SUPERSAMPLING = 2
SOLID = [0] * 128 + [255] * 128
SHADOW = Image.radial_gradient("L").point(lambda distance: max(0, 150 - distance))


class Figure(NamedTuple):
    """A figure in its place: parts in frame pixels, and the silhouette of what is in the frame, from (x, y) on."""

    parts: list[Part]
    alpha: Image.Image
    x: int
    y: int

    @property
    def solid(self) -> Image.Image:  # the silhouette without soft edges
        return self.alpha.point(SOLID)

    @property
    def bounds(self) -> np.ndarray:  # (x0, y0, x1, y1), beyond the frame too
        points = np.concatenate([part.points for part in self.parts])
        return np.concatenate([points.min(axis=0), points.max(axis=0)])


def place(parts: list[Part], start: Vector, scale: Vector) -> Figure:
    """Posed parts, scaled by (x, y), moved to `start`; their silhouette has smooth edges."""
    parts = [part._replace(points=part.points * scale + start) for part in parts]
    points = np.concatenate([part.points for part in parts])
    x, y = (int(v) for v in np.clip(np.floor(points.min(axis=0)), 0, SIZE))
    w, h = (max(0, int(v)) for v in np.clip(np.ceil(points.max(axis=0)), 0, SIZE) - (x, y))
    return Figure(parts, _drawn("L", parts, (x, y, w, h), [255] * len(parts)), x, y)


def _drawn(mode: str, parts: list[Part], window: Sequence[int], fills: Sequence) -> Image.Image:
    """The parts within `window` (x, y, w, h) of the frame, each in its fill."""
    x, y, w, h = window
    canvas = Image.new(mode, (w * SUPERSAMPLING, h * SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for part, fill in zip(parts, fills, strict=True):
        draw.polygon(((part.points - (x, y)) * SUPERSAMPLING - 0.5).ravel().tolist(), fill=fill)
    return canvas.reduce(SUPERSAMPLING) if w * h else canvas


def paint(figure: Figure, rng: Rng) -> Image.Image:
    """The figure coloured, lit from above and from one side, with a texture: RGBA, as large as its silhouette."""
    colours = {role: colour(role, rng) for role in dict.fromkeys(part.role for part in figure.parts)}
    fills = [(*np.clip(colours[part.role] * part.shade, 0, 255).astype(int).tolist(), 255) for part in figure.parts]
    size = figure.alpha.size
    pixels = _drawn("RGBA", figure.parts, (figure.x, figure.y, *size), fills).convert("RGB")
    light = np.array([[1.0, 1.0], [0.75, 0.75]]) + rng.uniform(0, 0.3) * np.array(pick(rng, ([0, 1], [1, 0])))
    return _lit(pixels, _resized(light, size) + noise(size, rng.uniform(3, 12), rng, rng.uniform(0.03, 0.12)))


def _lit(image: Image.Image, gain: np.ndarray) -> Image.Image:
    """An RGB image times a gain (h, w) between 0 and 1.5."""
    factor = Image.fromarray((gain * np.float32(255 / 1.5)).astype(np.uint8))
    product = ImageChops.multiply(image, Image.merge("RGB", [factor] * 3))
    return ImageChops.add(product, product, scale=2 / 1.5)


def colour(role: str, rng: Rng) -> np.ndarray:
    """An RGB colour (3,) that a role may take, with a little variation."""
    base = np.array(ImageColor.getrgb(pick(rng, shapes.PALETTE[role])))
    return base * rng.uniform(0.8, 1.15) + rng.normal(0, 8, 3)


def noise(size: tuple[int, int], grain: float, rng: Rng, height: float = 1.0) -> np.ndarray:
    """A smooth random field (h, w) in [-height, height], its spots about `grain` pixels wide; `size` is (w, h)."""
    return _resized(rng.uniform(-height, height, (int(size[1] / grain) + 2, int(size[0] / grain) + 2)), size)


def _resized(field: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(field.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def background(rng: Rng, horizon: float) -> Image.Image:
    """A landscape or a room: textured areas one below the other, the last from about y = `horizon` down."""
    roughness, *roles = pick(rng, FIGURES["backgrounds"]).split()
    canvas = _surface(roles[0], IMAGE_HEIGHT, rng)
    for k, role in enumerate(roles[1:], start=2):
        top = horizon * k / len(roles) + noise((IMAGE_WIDTH, 1), rng.uniform(20, 150), rng, float(roughness))
        first = max(0, int(top.min()))
        if first < IMAGE_HEIGHT:
            below = np.arange(first, IMAGE_HEIGHT)[:, None] >= top
            canvas.paste(_surface(role, IMAGE_HEIGHT - first, rng), (0, first), Image.fromarray(below))
    return canvas


def _surface(role: str, height: int, rng: Rng) -> Image.Image:
    """One area, as wide as the frame."""
    size = (IMAGE_WIDTH, height)
    fine = noise(size, rng.uniform(2, 10), rng, rng.uniform(0.02, 0.18))
    coarse = rng.uniform(0.83, 1.07, (height // 60 + 2, 8))
    coarse += rng.uniform(-1, 1) * np.linspace(0.15, -0.15, len(coarse))[:, None]  # lighter or darker towards the top
    gain = fine + _resized(coarse, size)
    if role in ("wall", "stone", "wood") and rng.random() < 0.6:  # the joints of bricks, tiles or boards
        w, h = rng.uniform(25, 90), rng.uniform(12, 45)
        x, y = np.arange(IMAGE_WIDTH)[None], np.arange(height)[:, None]
        joints = ((x + (y // h % 2) * w / 2) % w < 2) | (y % h < 2)
        gain[joints] *= rng.uniform(0.7, 0.9)
    base = colour(role, rng)
    muted = base + rng.uniform(0.1, 0.6) * (base.mean() - base)
    return _lit(Image.new("RGB", size, tuple(np.clip(muted, 0, 255).astype(int).tolist())), gain)


def place_object(label: int, box: np.ndarray, rng: Rng) -> Figure:
    """An object of the class that fills the box (4,); where the box is at the border, the border cuts it off."""
    cut = np.concatenate([box[:2] <= AT_BORDER, box[2:] >= np.subtract(SIZE, AT_BORDER)])
    aspect, best = np.divide(*(box[2:] - box[:2])), np.inf
    for _ in range(8):
        parts, extent = posed(pick(rng, OBJECTS[label]), rng)
        window = _uncut(parts, extent, cut, rng)
        stretch = abs(np.log(aspect / np.divide(*(window[2:] - window[:2]))))
        if stretch < best:
            best, chosen, kept = stretch, parts, window
        if best < 0.25:
            break
    scale = (box[2:] - box[:2]) / (kept[2:] - kept[:2])
    return place(chosen, box[:2] - kept[:2] * scale, scale)


def _uncut(parts: list[Part], extent: np.ndarray, cut: np.ndarray, rng: Rng) -> np.ndarray:
    """The box (4,) of what is left of posed parts, cut off at random at the sides where `cut` (4,) is true."""
    if not cut.any():
        return np.concatenate([(0, 0), extent])
    depth = 48 * cut * rng.uniform(0, 0.45, 4) / (1 + np.roll(cut, 2))
    x0, y0, x1, y1 = np.round(np.concatenate([depth[:2], 48 - depth[2:]])).astype(int)
    seen = np.asarray(place(parts, (0, 0), 48 / extent).alpha)[y0:y1, x0:x1] > 127
    return (tight_box(seen) + (x0, y0, x0, y0)) * np.tile(extent / 48, 2)


def place_unlabelled(figures: Sequence, area: float, x: float, foot: float, rng: Rng) -> Figure:
    """One of `figures`, of an area in pixels; the middle of its lower edge at (x, foot)."""
    parts, extent = posed(pick(rng, figures), rng)
    scale = np.sqrt(area / extent.prod())
    return place(parts, (x, foot) - scale * extent * (0.5, 1), (scale, scale))


def place_behind(figures: Sequence, rng: Rng, top: float, bottom: float) -> Figure:
    """Something without a label, of any size up to 30 % of the image, its lower edge between two y."""
    area = np.exp(rng.uniform(np.log(0.005), np.log(0.3))) * (IMAGE_WIDTH * IMAGE_HEIGHT)
    return place_unlabelled(figures, area, rng.uniform(0, IMAGE_WIDTH), rng.uniform(top, bottom), rng)


def place_front(hidden: Figure, rng: Rng) -> Figure:
    """Something without a label that stands before part of a figure."""
    w, h = hidden.alpha.size
    x, foot = hidden.x + rng.uniform(0.1, 0.9) * w, hidden.y + rng.uniform(0.6, 1.3) * h
    return place_unlabelled(shapes.OCCLUDERS, rng.uniform(0.1, 0.3) * w * h, x, foot, rng)


def layout(rng: Rng) -> tuple[np.ndarray, list[Figure], list[Figure], np.ndarray, np.ndarray]:
    """Labels (G,), objects from the back, what stands before them, masks (G, H, W), tight boxes (G, 4), unpainted."""
    labels = draw_labels(rng)
    in_front = rng.random() < 0.15
    while True:
        targets = draw_boxes(labels, rng)
        order = np.argsort(-(targets[:, 2:] - targets[:, :2]).prod(axis=1))  # the smaller one is before the larger one
        labels, targets = labels[order], targets[order]
        for _ in range(4):
            objects = [place_object(int(label), box, rng) for label, box in zip(labels, targets, strict=True)]
            front = [place_front(pick(rng, objects), rng)] if in_front else []
            masks = visible_masks(objects, front)
            if all(map(_can_be_seen, masks, objects, targets)):
                return labels, objects, front, masks, np.stack([tight_box(mask) for mask in masks])


def visible_masks(objects: list[Figure], front: list[Figure]) -> np.ndarray:
    """(G, H, W) uint8: 1 where an object covers at least half of a pixel and nothing after it does."""
    owner = Image.new("L", SIZE)
    for number, figure in enumerate((*objects, *front), start=1):
        owner.paste(number, (figure.x, figure.y), figure.solid)
    return (np.asarray(owner) == np.arange(1, len(objects) + 1)[:, None, None]).astype(np.uint8)


def _can_be_seen(mask: np.ndarray, figure: Figure, target: np.ndarray) -> bool:
    """Whether enough of the object is visible, and its box is about the one that was drawn for it."""
    if np.count_nonzero(mask) < max(1, MIN_VISIBLE * np.count_nonzero(np.asarray(figure.solid))):
        return False
    box = tight_box(mask)
    return bool(box_iou(box, target) >= MIN_FIT and (box[2:] - box[:2]).min() >= MIN_SIDE)


def scene(rng: Rng) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One scene: image (3, H, W) uint8, labels (G,), tight boxes (G, 4), masks (G, H, W) of the visible pixels."""
    labels, objects, front, masks, boxes = layout(rng)
    horizon = min(rng.uniform(-0.1, 0.75) * IMAGE_HEIGHT, *(figure.bounds[3] - 10 for figure in objects))
    canvas = background(rng, horizon)
    clouds = [place_behind(["cloud"], rng, 0, horizon) for _ in range(rng.integers(0, 3) if horizon > 60 else 0)]
    ground = max(horizon, 40), 1.2 * IMAGE_HEIGHT
    behind = [place_behind(shapes.DISTRACTORS, rng, *ground) for _ in range(rng.integers(0, 5))]
    for n, figure in enumerate((*clouds, *sorted(behind, key=lambda figure: figure.bounds[3]), *objects, *front)):
        if n >= len(clouds):
            _cast_shadow(canvas, figure.bounds)
        if min(figure.alpha.size):
            canvas.paste(paint(figure, rng), (figure.x, figure.y), figure.alpha)
    canvas = canvas.point([min(255, int(v)) for v in np.arange(256) * rng.uniform(0.75, 1.08)] * 3)
    grain = Image.fromarray(rng.integers(0, 13, (IMAGE_HEIGHT, IMAGE_WIDTH), dtype=np.uint8))
    image = ImageChops.add(canvas, Image.merge("RGB", [grain] * 3), offset=-6)
    return np.stack([np.asarray(channel) for channel in image.split()]), labels, boxes, masks


def _cast_shadow(canvas: Image.Image, bounds: np.ndarray) -> None:
    x, y, right, foot = bounds.astype(int).tolist()
    h = max(4, (foot - y) // 7)
    canvas.paste((0, 0, 0), (x, foot - h // 2), SHADOW.resize((max(1, right - x), h)))


def write_scenes(out: str | Path, images: int, seed: int) -> None:
    """Write scenes as the course files of `out`; image i depends on `seed` and i alone. ValueError where some exist."""
    if images < 1 or seed < 0:
        raise ValueError(f"{images} images of seed {seed}: ask for 1 image or more and a seed of 0 or more")
    if seed in PRETRAINING_SEEDS:
        seen = f"the demo's backbone has seen the scenes of seed {seed}"
        raise ValueError(f"{seen}: take one below {PRETRAINING_SEEDS[0]}")
    if taken := [path for name in FILES.values() if (path := Path(out) / name).exists()]:
        raise ValueError(f"{taken[0]} exists already: choose another folder, or move its four files away")
    with CourseWriter(out) as writer:
        for i in tqdm(range(images), f"scenes of seed {seed}"):
            writer.add(*scene(np.random.default_rng([seed, i])))
