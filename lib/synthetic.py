"""Made-up scenes in the four-course-file format, so that everything runs before any photograph is there.

    python -m lib.synthetic --out data/synthetic --images 1500 --seed 0

A scene is a background, a few things without a label, one or two vehicles, people or animals, and now and then
something in front of them. `lib.synthetic_shapes` has the figures; here they are posed, painted, laid out and written.

    G  objects in a scene    H x W  300 x 400, the frame of all boxes and masks, in its pixels
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from tqdm import tqdm

from lib import synthetic_shapes as shapes
from lib.boxes import mask_to_box
from lib.data import FILES, IMAGE_HEIGHT, IMAGE_WIDTH, CourseWriter
from lib.runtime import command_errors
from lib.synthetic_shapes import FIGURES, Part, pick

Rng = np.random.Generator
SIZE, FRAME_AREA = (IMAGE_WIDTH, IMAGE_HEIGHT), IMAGE_WIDTH * IMAGE_HEIGHT

# The course's own set: class shares, the share of images with two objects, and by label the percentiles of the boxes'
# areas (as shares of the image) and aspect ratios (width / height).
CLASS_SHARES = np.array([990, 882, 1971]) / 3843
TWO_OBJECTS = 578 / 3265
PERCENTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
AREAS, ASPECTS = ([(), *(np.array(row.split()[1:], float) for row in FIGURES[name])] for name in ("areas", "aspects"))
OBJECTS = {1: shapes.VEHICLES, 2: [shapes.person], 3: shapes.ANIMALS}

MIN_VISIBLE = 0.42  # the share of an object's pixels that the border and what stands in front must leave
MIN_SIDE = 14  # of an object's box
SUPERSAMPLING = 2
SHADOW = Image.radial_gradient("L").point(lambda distance: max(0, 150 - distance))


class Sprite(NamedTuple):
    """A painted figure, RGBA, and where its upper left corner lies in the frame."""

    pixels: Image.Image
    x: int
    y: int

    @property
    def foot(self) -> int:  # the y of its lower edge
        return self.y + self.pixels.height


def posed(figure: str | Callable, rng: Rng) -> tuple[list[Part], np.ndarray]:
    """A figure's parts, mirrored or not, bent and turned a little, y down, from (0, 0) on; their (w, h)."""
    parts = figure(rng) if callable(figure) else shapes.drawn(figure, rng)
    points = np.concatenate([part.points for part in parts]) * (pick(rng, (-1, 1)), 1)
    waves = rng.uniform(0, 2 * np.pi, 2) + 2 * np.pi * points / np.ptp(points, axis=0)
    points = points + 0.03 * np.ptp(points, axis=0) * np.sin(waves)  # too little to fold anything over
    points = shapes.rotated(points, rng.normal(0, 4)) * (1, -1)
    points -= points.min(axis=0)
    ends = np.cumsum([len(part.points) for part in parts])[:-1]
    moved = [part._replace(points=p) for part, p in zip(parts, np.split(points, ends), strict=True)]
    return moved, points.max(axis=0)


def paint(parts: list[Part], extent: np.ndarray, size: Sequence[float], rng: Rng) -> Image.Image:
    """Posed parts, stretched from `extent` to `size` (w, h) pixels, coloured, shaded, with smooth edges."""
    w, h = (max(2, round(float(side))) for side in size)
    canvas = Image.new("RGBA", (w * SUPERSAMPLING, h * SUPERSAMPLING))
    draw, scale = ImageDraw.Draw(canvas), (np.array(canvas.size) - 1) / extent
    colours = {role: colour(role, rng) for role in dict.fromkeys(part.role for part in parts)}
    for part in parts:
        rgb = np.clip(colours[part.role] * part.shade, 0, 255).astype(int)
        draw.polygon((part.points * scale).ravel().tolist(), fill=(*rgb.tolist(), 255))
    return _shaded(canvas.reduce(SUPERSAMPLING), rng)


def colour(role: str, rng: Rng) -> np.ndarray:
    """An RGB colour (3,) that a role may take, with a little variation."""
    base = np.array(ImageColor.getrgb(pick(rng, shapes.PALETTE[role])))
    return base * rng.uniform(0.8, 1.15) + rng.normal(0, 8, 3)


def _shaded(sprite: Image.Image, rng: Rng) -> Image.Image:
    """The sprite lit from above and from one side, with a texture."""
    light = np.array([[1.0, 1.0], [0.75, 0.75]]) + rng.uniform(0, 0.3) * np.array(pick(rng, ([0, 1], [1, 0])))
    gain = _resized(light, sprite.size) + rng.uniform(0.03, 0.12) * noise(sprite.size, rng.uniform(3, 12), rng)
    pixels = np.array(sprite)
    pixels[..., :3] = np.clip(pixels[..., :3] * gain[..., None], 0, 255)
    return Image.fromarray(pixels)


def noise(size: tuple[int, int], grain: float, rng: Rng) -> np.ndarray:
    """A smooth random field (h, w) in [-1, 1] whose spots measure about `grain` pixels; `size` is (w, h)."""
    return _resized(rng.uniform(-1, 1, (int(size[1] / grain) + 2, int(size[0] / grain) + 2)), size)


def _resized(field: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(field.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def background(rng: Rng, horizon: float) -> Image.Image:
    """A landscape or a room: textured areas one below the other, the last from about y = `horizon` down."""
    roughness, *roles = pick(rng, FIGURES["backgrounds"]).split()
    pixels = _surface(roles[0], IMAGE_HEIGHT, rng)
    for k, role in enumerate(roles[1:], start=2):
        top = horizon * k / len(roles) + float(roughness) * noise((IMAGE_WIDTH, 1), rng.uniform(20, 150), rng)
        first = max(0, int(top.min()))
        below = np.arange(first, IMAGE_HEIGHT)[:, None] >= top
        pixels[first:] = np.where(below[..., None], _surface(role, IMAGE_HEIGHT - first, rng), pixels[first:])
    return Image.fromarray(pixels)


def _surface(role: str, height: int, rng: Rng) -> np.ndarray:
    """One area, as wide as the frame: (height, W, 3) uint8."""
    size = (IMAGE_WIDTH, height)
    gain = 0.95 + rng.uniform(0.02, 0.18) * noise(size, rng.uniform(2, 10), rng) + 0.12 * noise(size, 60, rng)
    gain += np.linspace(0.15, -0.15, height, dtype=np.float32)[:, None] * rng.uniform(-1, 1)
    if role in ("wall", "stone", "wood") and rng.random() < 0.6:  # the joints of bricks, tiles or boards
        w, h = rng.uniform(25, 90), rng.uniform(12, 45)
        x, y = np.arange(IMAGE_WIDTH)[None], np.arange(height)[:, None]
        joints = ((x + (y // h % 2) * w / 2) % w < 2) | (y % h < 2)
        gain *= np.where(joints, rng.uniform(0.7, 0.9), 1).astype(np.float32)
    base = colour(role, rng)
    muted = base + rng.uniform(0.1, 0.6) * (base.mean() - base)
    return np.clip(muted.astype(np.float32) * gain[..., None], 0, 255).astype(np.uint8)


def quantile(table: Sequence[float], rng: Rng) -> float:
    """A value whose distribution has the `PERCENTILES` of the table, log-linear between them."""
    return float(np.exp(np.interp(rng.uniform(), PERCENTILES, np.log(table))))


def place_object(label: int, rng: Rng) -> Sprite:
    """An object of the class with a box like the course's; the border cuts off what is too long for it."""
    area = quantile(AREAS[label], rng) * FRAME_AREA
    aspect = np.clip(quantile(ASPECTS[label], rng), area / IMAGE_HEIGHT**2, IMAGE_WIDTH**2 / area)
    target = np.sqrt((area * aspect, area / aspect))
    candidates = [posed(pick(rng, OBJECTS[label]), rng) for _ in range(3)]
    parts, extent = min(candidates, key=lambda posed: abs(np.log(posed[1][0] / posed[1][1] / aspect)))
    stretch = np.exp(0.5 * np.clip(np.log(aspect * extent[1] / extent[0]), -0.3, 0.3))
    natural = extent * (stretch, 1 / stretch)
    fit = target / natural
    size = natural * min(fit.max(), 1.7 * fit.min())  # covers the target as far as little enough is cut off
    x, y = (_start(*lengths, rng) for lengths in zip(size, target, SIZE, strict=True))
    if size[1] > target[1] + 1:
        y = IMAGE_HEIGHT - target[1]  # it is cut at its feet, not at its head
    return Sprite(paint(parts, extent, size, rng), round(x), round(y))


def _start(side: float, target: float, frame: int, rng: Rng) -> float:
    """Where an object of length `side` starts along an axis so that `target` of it, or all, is inside."""
    if side > target + 1:
        return float(pick(rng, (frame - target, target - side)))
    beyond = 0.15 * side if rng.random() < 0.12 else 0.0
    return rng.uniform(-beyond, max(frame - side, 0) + beyond)


def place_unlabelled(figures: Sequence, area: float, x: float, foot: float, rng: Rng) -> Sprite:
    """One of `figures`, of an area in pixels; the middle of its lower edge at (x, foot)."""
    parts, extent = posed(pick(rng, figures), rng)
    w, h = size = extent * np.sqrt(area / extent.prod())
    return Sprite(paint(parts, extent, size, rng), round(x - w / 2), round(foot - h))


def place_behind(figures: Sequence, rng: Rng, top: float, bottom: float) -> Sprite:
    """Something without a label, of any size, its lower edge between two y."""
    area = np.exp(rng.uniform(np.log(0.005), np.log(0.12))) * FRAME_AREA
    return place_unlabelled(figures, area, rng.uniform(0, IMAGE_WIDTH), rng.uniform(top, bottom), rng)


def scene(rng: Rng) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One scene: image (3, H, W) uint8, labels (G,), tight boxes (G, 4), masks (G, H, W) of the visible pixels."""
    labels, objects, front, masks = _foreground(rng)
    horizon = min(rng.uniform(-0.1, 0.75) * IMAGE_HEIGHT, *(sprite.foot - 10 for sprite in objects))
    canvas = background(rng, horizon)
    clouds = [place_behind(["cloud"], rng, 0, horizon) for _ in range(rng.integers(0, 3) if horizon > 60 else 0)]
    ground = max(horizon, 40), 1.2 * IMAGE_HEIGHT
    behind = [place_behind(shapes.DISTRACTORS, rng, *ground) for _ in range(rng.integers(0, 3))]
    for n, sprite in enumerate((*clouds, *sorted(behind, key=lambda sprite: sprite.foot), *objects, *front)):
        w, h = sprite.pixels.width, max(4, sprite.pixels.height // 7)
        if n >= len(clouds):
            canvas.paste((0, 0, 0), (sprite.x, sprite.foot - h // 2), SHADOW.resize((w, h)))
        canvas.paste(sprite.pixels, (sprite.x, sprite.y), sprite.pixels)
    grain = rng.integers(-6, 7, (IMAGE_HEIGHT, IMAGE_WIDTH, 1), dtype=np.int16)
    image = np.clip(np.asarray(canvas) * np.float32(rng.uniform(0.75, 1.08)) + grain, 0, 255).astype(np.uint8)
    boxes = np.stack([mask_to_box(mask) for mask in masks])
    return np.ascontiguousarray(image.transpose(2, 0, 1)), labels, boxes, masks


def _foreground(rng: Rng) -> tuple[np.ndarray, list[Sprite], list[Sprite], np.ndarray]:
    """Labels, objects from the back, what stands before them, masks; drawn anew until all can be seen."""
    labels = 1 + rng.choice(len(CLASS_SHARES), 2 if rng.random() < TWO_OBJECTS else 1, p=CLASS_SHARES)
    while True:
        objects = [place_object(int(label), rng) for label in labels]
        front = []
        if rng.random() < 0.15:
            hidden = pick(rng, objects)
            w, h = hidden.pixels.size
            x, foot = hidden.x + rng.uniform(0.1, 0.9) * w, hidden.y + rng.uniform(0.6, 1.3) * h
            front = [place_unlabelled(shapes.OCCLUDERS, rng.uniform(0.1, 0.3) * w * h, x, foot, rng)]
        masks = visible_masks(objects, front)
        if all(_can_be_seen(mask, sprite) for mask, sprite in zip(masks, objects, strict=True)):
            return labels, objects, front, masks


def visible_masks(objects: list[Sprite], front: list[Sprite]) -> np.ndarray:
    """(G, H, W) uint8: 1 where an object covers at least half of a pixel and nothing after it does."""
    owner = Image.new("L", SIZE)
    for number, sprite in enumerate((*objects, *front), start=1):
        owner.paste(number, (sprite.x, sprite.y), _solid(sprite))
    return (np.asarray(owner) == np.arange(1, len(objects) + 1)[:, None, None]).astype(np.uint8)


def _solid(sprite: Sprite) -> Image.Image:
    return sprite.pixels.getchannel("A").point(lambda alpha: 255 * (alpha >= 128))


def _can_be_seen(mask: np.ndarray, sprite: Sprite) -> bool:
    enough = mask.sum() >= max(1, MIN_VISIBLE * np.count_nonzero(_solid(sprite)))
    return enough and np.ptp(np.nonzero(mask), axis=1).min() + 1 >= MIN_SIDE


def write_scenes(out: str | Path, images: int, seed: int) -> None:
    """Write scenes as the course files of `out`; image i depends on `seed` and i alone. ValueError where some exist."""
    if images < 1 or seed < 0:
        raise ValueError(f"{images} images of seed {seed}: ask for 1 image or more and a seed of 0 or more")
    if taken := [path for name in FILES.values() if (path := Path(out) / name).exists()]:
        raise ValueError(f"{taken[0]} exists already: choose another folder, or move its four files away")
    with CourseWriter(out) as writer:
        for i in tqdm(range(images), f"scenes of seed {seed}"):
            writer.add(*scene(np.random.default_rng([seed, i])))


@command_errors()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m lib.synthetic", description="Write scenes as course files.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the four files")
    parser.add_argument("--images", type=int, default=1500, help="how many scenes (default 1500)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default 0)")
    write_scenes(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
