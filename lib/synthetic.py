"""Made-up scenes in the four-course-file format, so that everything runs before any photograph is there.

A scene is a background, a few things without a label, one or two vehicles, people or animals, and now and
then something in front of them. The figures come from `lib.synthetic_shapes`; here they are posed, painted,
laid out and written. Sizes, aspect ratios, class shares and objects an image follow the course's own set.

    G  objects in a scene    H x W  300 x 400, the frame of all boxes and masks, in its pixels

    python -m lib.synthetic --out data/synthetic --images 900 --seed 0
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from tqdm import tqdm

from lib import synthetic_shapes as shapes
from lib.data import FILES, IMAGE_HEIGHT, IMAGE_WIDTH, CourseWriter
from lib.runtime import command_errors
from lib.synthetic_shapes import Part, pick

Rng = np.random.Generator
SIZE = (IMAGE_WIDTH, IMAGE_HEIGHT)
FRAME_AREA = IMAGE_WIDTH * IMAGE_HEIGHT

# The course's own set: class shares, the share of images with two objects, and by label the percentiles of
# the boxes' areas (as shares of the image) and aspect ratios (width / height).
FIGURES = {1: shapes.VEHICLES, 2: shapes.PEOPLE, 3: shapes.ANIMALS}
CLASS_SHARES = np.array([990, 882, 1971]) / 3843
TWO_OBJECTS = 578 / 3265
PERCENTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
AREAS = {
    1: (0.023, 0.100, 0.252, 0.509, 0.815),
    2: (0.022, 0.059, 0.120, 0.241, 0.496),
    3: (0.030, 0.093, 0.208, 0.383, 0.688),
}
ASPECTS = {
    1: (0.53, 0.94, 1.36, 1.73, 2.96),
    2: (0.32, 0.44, 0.62, 0.86, 1.65),
    3: (0.50, 0.76, 1.08, 1.48, 2.21),
}

MIN_VISIBLE = 0.42  # the share of an object's pixels that the border and what stands in front must leave
MIN_SIDE = 14  # of an object's box
SUPERSAMPLING = 2
SHADOW = Image.radial_gradient("L").point(lambda distance: max(0, 150 - distance))
MB_PER_IMAGE, SECONDS_PER_IMAGE = 0.25, 0.025  # compressed, on one ordinary CPU core

# Colour roles of a background's areas from the top down, and how uneven the borders between them are.
BACKGROUNDS = [
    (("cloud", "leaf"), 4), (("sky", "leaf", "leaf"), 20), (("sky", "stone", "leaf"), 25),
    (("sky", "wall", "stone"), 0), (("sky", "leaf", "metal"), 6), (("wall", "wood"), 0),
    (("wall", "stone"), 0), (("metal", "stone"), 10), (("leaf", "leaf"), 30),
]  # fmt: skip


class Sprite(NamedTuple):
    """A painted figure, RGBA, and where its upper left corner lies in the frame."""

    pixels: Image.Image
    x: int
    y: int

    @property
    def foot(self) -> int:
        """The y of its lower edge."""
        return self.y + self.pixels.height


# -------------------------------------------------------------------------- a figure -> a sprite


def posed(figure, rng: Rng) -> tuple[list[Part], np.ndarray]:
    """A figure's parts, mirrored or not, bent and turned a little, y down, from (0, 0) on; their (w, h)."""
    parts = shapes.parts_of(figure, rng)
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
    base = np.array(ImageColor.getrgb(pick(rng, shapes.PALETTE[role].split())))
    return base * rng.uniform(0.8, 1.15) + rng.normal(0, 8, 3)


def _shaded(sprite: Image.Image, rng: Rng) -> Image.Image:
    """The sprite lit from above and from one side, with a texture."""
    light = np.array([[1.0, 1.0], [0.75, 0.75]]) + rng.uniform(0, 0.3) * np.array(pick(rng, ([0, 1], [1, 0])))
    texture = rng.uniform(0.03, 0.12) * noise(sprite.size, rng.uniform(3, 12), rng)
    pixels = np.array(sprite)
    gain = (_resized(light, sprite.size) + texture)[..., None]
    pixels[..., :3] = np.clip(pixels[..., :3] * gain, 0, 255)
    return Image.fromarray(pixels)


def noise(size: tuple[int, int], grain: float, rng: Rng) -> np.ndarray:
    """A smooth random field (h, w) in [-1, 1] whose spots measure about `grain` pixels; `size` is (w, h)."""
    return _resized(rng.uniform(-1, 1, (int(size[1] / grain) + 2, int(size[0] / grain) + 2)), size)


def _resized(field: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(field.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


# -------------------------------------------------------------------------- the background


def background(rng: Rng, horizon: float) -> Image.Image:
    """A landscape or a room: textured areas one below the other, the last from about y = `horizon` down."""
    roles, roughness = pick(rng, BACKGROUNDS)
    pixels = _surface(roles[0], IMAGE_HEIGHT, rng)
    for k, role in enumerate(roles[1:], start=2):
        top = horizon * k / len(roles) + roughness * noise((IMAGE_WIDTH, 1), rng.uniform(20, 150), rng)
        first = max(0, int(top.min()))
        below = np.arange(first, IMAGE_HEIGHT)[:, None] >= top
        pixels[first:] = np.where(below[..., None], _surface(role, IMAGE_HEIGHT - first, rng), pixels[first:])
    return Image.fromarray(pixels)


def _surface(role: str, height: int, rng: Rng) -> np.ndarray:
    """One area, as wide as the frame: (height, W, 3) uint8."""
    size = (IMAGE_WIDTH, height)
    gain = 0.95 + rng.uniform(0.02, 0.18) * noise(size, rng.uniform(2, 10), rng) + 0.12 * noise(size, 60, rng)
    gain += np.linspace(0.15, -0.15, height, dtype=np.float32)[:, None] * rng.uniform(-1, 1)
    if role in ("wall", "stone", "wood") and rng.random() < 0.6:
        gain *= _bricks(height, rng)
    base = colour(role, rng)
    muted = base + rng.uniform(0.1, 0.6) * (base.mean() - base)
    return np.clip(muted.astype(np.float32) * gain[..., None], 0, 255).astype(np.uint8)


def _bricks(height: int, rng: Rng) -> np.ndarray:
    """The joints of bricks, tiles or boards as a gain (height, W)."""
    w, h = rng.uniform(25, 90), rng.uniform(12, 45)
    x, y = np.arange(IMAGE_WIDTH)[None], np.arange(height)[:, None]
    joint = ((x + (y // h % 2) * w / 2) % w < 2) | (y % h < 2)
    return np.where(joint, rng.uniform(0.7, 0.9), 1).astype(np.float32)


# -------------------------------------------------------------------------- the layout


def quantile(table: Sequence[float], rng: Rng) -> float:
    """A value whose distribution has the `PERCENTILES` of the table, log-linear between them."""
    return float(np.exp(np.interp(rng.uniform(), PERCENTILES, np.log(table))))


def place_object(label: int, rng: Rng) -> Sprite:
    """An object of the class with a box like the course's; the border cuts off what is too long for it."""
    area = quantile(AREAS[label], rng) * FRAME_AREA
    aspect = np.clip(quantile(ASPECTS[label], rng), area / IMAGE_HEIGHT**2, IMAGE_WIDTH**2 / area)
    target = np.sqrt((area * aspect, area / aspect))
    candidates = [posed(pick(rng, FIGURES[label]), rng) for _ in range(3)]
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


def place_behind(figures: list, rng: Rng, top: float, bottom: float) -> Sprite:
    """Something without a label, of any size, its lower edge between two y."""
    area = np.exp(rng.uniform(np.log(0.01), np.log(0.3))) * FRAME_AREA
    return _place_unlabelled(figures, area, rng.uniform(0, IMAGE_WIDTH), rng.uniform(top, bottom), rng)


def place_in_front(target: Sprite, rng: Rng) -> Sprite:
    """Something without a label that hides a part of `target`."""
    w, h = target.pixels.size
    x, foot = target.x + rng.uniform(0.1, 0.9) * w, target.y + rng.uniform(0.6, 1.3) * h
    return _place_unlabelled(shapes.OCCLUDERS, rng.uniform(0.1, 0.3) * w * h, x, foot, rng)


def _place_unlabelled(figures: list, area: float, x: float, foot: float, rng: Rng) -> Sprite:
    parts, extent = posed(pick(rng, figures), rng)
    w, h = size = extent * np.sqrt(area / extent.prod())
    return Sprite(paint(parts, extent, size, rng), round(x - w / 2), round(foot - h))


# -------------------------------------------------------------------------- the scene


def scene(rng: Rng) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One scene: image (3, H, W) uint8, labels (G,) int64, boxes (G, 4) float32, masks (G, H, W) uint8.

    The masks are the visible pixels, the boxes fit them tightly (xyxy, pixel i covering [i, i + 1)).
    """
    labels, objects, front, masks = _foreground(rng)
    horizon = min(rng.uniform(-0.1, 0.75) * IMAGE_HEIGHT, *(sprite.foot - 10 for sprite in objects))
    canvas = background(rng, horizon)
    for _ in range(rng.integers(0, 3) if horizon > 60 else 0):
        _paste(canvas, place_behind([shapes.CLOUD], rng, 0, horizon))
    ground = (max(horizon, 40), 1.2 * IMAGE_HEIGHT)
    behind = [place_behind(shapes.DISTRACTORS, rng, *ground) for _ in range(rng.integers(0, 5))]
    for sprite in (*sorted(behind, key=lambda sprite: sprite.foot), *objects, *front):
        _cast_shadow(canvas, sprite)
        _paste(canvas, sprite)
    grain = rng.integers(-6, 7, (IMAGE_HEIGHT, IMAGE_WIDTH, 1), dtype=np.int16)
    image = np.clip(np.asarray(canvas) * np.float32(rng.uniform(0.75, 1.08)) + grain, 0, 255).astype(np.uint8)
    boxes = np.stack([tight_box(mask) for mask in masks])
    return np.ascontiguousarray(image.transpose(2, 0, 1)), labels, boxes, masks


def _foreground(rng: Rng) -> tuple[np.ndarray, list[Sprite], list[Sprite], np.ndarray]:
    """Labels, objects from the back, what stands before them, masks; drawn anew until all can be seen."""
    labels = 1 + rng.choice(len(CLASS_SHARES), 2 if rng.random() < TWO_OBJECTS else 1, p=CLASS_SHARES)
    while True:
        objects = [place_object(int(label), rng) for label in labels]
        front = [place_in_front(pick(rng, objects), rng)] if rng.random() < 0.15 else []
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
    if mask.sum() < max(1, MIN_VISIBLE * np.count_nonzero(_solid(sprite))):
        return False
    x0, y0, x1, y1 = tight_box(mask)
    return min(x1 - x0, y1 - y0) >= MIN_SIDE


def tight_box(mask: np.ndarray) -> np.ndarray:
    """The xyxy box (4,) float32 around a mask (H, W) that is not empty."""
    xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32)


def _paste(canvas: Image.Image, sprite: Sprite) -> None:
    canvas.paste(sprite.pixels, (sprite.x, sprite.y), sprite.pixels)


def _cast_shadow(canvas: Image.Image, sprite: Sprite) -> None:
    """Darken the ground at the foot of a sprite that is about to be pasted."""
    w, h = sprite.pixels.width, max(4, sprite.pixels.height // 7)
    canvas.paste((0, 0, 0), (sprite.x, sprite.foot - h // 2), SHADOW.resize((w, h)))


# -------------------------------------------------------------------------- the four files


def write_scenes(folder: str | Path, images: int, seed: int, overwrite: bool = False) -> None:
    """Write `images` scenes as the four course files; image i depends on `seed` and i alone.

    Raises ValueError when `folder` holds one of the files and `overwrite` is false; it is then left as it is.
    """
    folder = Path(folder)
    if images < 1 or seed < 0:
        raise ValueError(f"{images} images of seed {seed}: ask for 1 image or more and a seed of 0 or more")
    for name in FILES.values():
        if (folder / name).exists() and not overwrite:
            raise ValueError(f"{folder / name} exists already: choose another folder, or add --overwrite")
    megabytes, seconds = 1 + round(MB_PER_IMAGE * images), 1 + round(SECONDS_PER_IMAGE * images)
    print(f"Writing {images} made-up scenes (seed {seed}) to {folder}: about {megabytes} MB, {seconds} s.")
    with CourseWriter(folder) as writer:
        for i in tqdm(range(images), unit=" scenes"):
            writer.add(*scene(np.random.default_rng([seed, i])))


@command_errors()
def main(argv: list[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser("python -m lib.synthetic", description="Write scenes as course files.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the four files")
    parser.add_argument("--images", type=int, default=900, help="how many scenes (default 900)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    args = parser.parse_args(argv)
    write_scenes(args.out, args.images, args.seed, args.overwrite)


if __name__ == "__main__":
    main()
