"""The figures of the synthetic scenes: polygons with a colour role, in a frame of their own.

    k  corners of a polygon    angles are degrees; a frame has x to the right and y UP, in about metres

Most come from `scene_figures.txt`, which says how they are written; people and quadrupeds have joints: functions.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

Rng = np.random.Generator
Vector = Sequence[float] | np.ndarray  # (x, y), or (w, h)


class Part(NamedTuple):
    """One polygon: its colour role, its corners (k, 2), and its brightness relative to the role's colour."""

    role: str
    points: np.ndarray
    shade: float = 1.0


def direction(degrees: float | np.ndarray) -> np.ndarray:
    """Angles (...) -> unit vectors (..., 2), counter-clockwise from the x axis."""
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]).T


CIRCLE = direction(np.arange(0, 360, 15))
HALF_CIRCLE = direction(np.arange(-90, 91, 30))


def rotated(points: np.ndarray, degrees: float) -> np.ndarray:
    """Points (k, 2) turned counter-clockwise about the origin."""
    return points @ np.stack([direction(degrees), direction(degrees + 90)])


def oval(centre: Vector, rx: float, ry: float | None = None) -> np.ndarray:
    """Corners (24, 2) of an ellipse; a circle where `ry` is left out."""
    return CIRCLE * (rx, rx if ry is None else ry) + centre


def blob(points: np.ndarray) -> np.ndarray:
    """A closed polygon (k, 2) with its corners cut twice (Chaikin): (4 k, 2)."""
    for _ in range(2):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.8 * points + 0.2 * following, 0.2 * points + 0.8 * following], 1).reshape(-1, 2)
    return points


def limb(role: str, joints: Sequence, start: float, end: float, shade: float = 1.0) -> list[Part]:
    """The round-ended segments of a chain of joints, the radius going from `start` to `end`."""
    parts = []
    for (a, ra), (b, rb) in pairwise(zip(joints, np.linspace(start, end, len(joints)), strict=True)):
        along = (b - a) / max(1e-9, math.dist(a, b))
        arc = HALF_CIRCLE @ [along, (-along[1], along[0])]
        parts.append(Part(role, np.concatenate([b + rb * arc, a - ra * arc]), shade))
    return parts


def chain(start: Vector, *bones: tuple[float, float]) -> list[np.ndarray]:
    """The joints of a chain of bones (length, angle from straight down, positive towards +x)."""
    steps = (length * direction(angle - 90) for length, angle in bones)
    return list(accumulate(steps, initial=np.asarray(start, float)))


def pick(rng: Rng, options: Sequence):
    """One of `options`, all equally likely."""
    return options[int(rng.integers(len(options)))]


def _read_figures() -> dict[str, list[str]]:
    """The parts of each figure of the file by its name, one line a part."""
    figures: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("scene_figures.txt").read_text(encoding="utf-8").splitlines():
        first, _, rest = line.strip().partition(" ")
        if line and line[0] not in "# ":
            parts = figures[line] = []
        elif first == "with":
            name, _, roles = rest.partition(", ")
            role, _, other = roles.partition(" as ")
            parts += [part.replace(role, other) for part in figures[name]]
        elif first == "wheels":
            r, *xs = map(float, rest.split())
            rings = (("tyre", r), ("hub", 0.6 * r), ("tyre", 0.2 * r))
            parts += [f"{role} oval {x} {r} {radius}" for x in xs for role, radius in rings]
        elif first not in ("", "#"):
            parts.append(line)
    return figures


SHAPES: dict[str, Callable] = {  # numbers of a line -> polygons
    "rect": lambda v: [v[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)],
    "oval": lambda v: [oval(v[:2], *v[2:])],
    "poly": lambda v: [v.reshape(-1, 2)],
    "blob": lambda v: [blob(v.reshape(-1, 2))],
    "limb": lambda v: [part.points for part in limb("", v[2:].reshape(-1, 2), *v[:2])],
}
FIGURES = _read_figures()
PALETTE: dict[str, list[str]] = {}  # the colours that a role may take
for _role, *_colours in map(str.split, FIGURES["palette"]):
    PALETTE[_role] = [colour for word in _colours for colour in PALETTE.get(word, [word])]


def named(kind: str) -> list[str]:
    """The names of the figures of a kind, in the file's order."""
    return [name for name in FIGURES if name.startswith(f"{kind}: ")]


@cache
def _polygons(figure: str) -> list[tuple[Part, bool]]:
    """The parts of a figure of the file, each with whether it may be left out."""
    parts = []
    for name, shape, *numbers in map(str.split, FIGURES[figure]):
        role, _, shade = name.strip("?|").partition("*")
        polygons = SHAPES[shape](np.array(numbers, float))
        polygons += [points * (-1, 1) for points in polygons] if "|" in name else []
        parts += [(Part(role, points, float(shade or 1)), name[0] == "?") for points in polygons]
    return parts


def drawn(figure: str, rng: Rng, scale: Vector = (1, 1), shift: Vector = (0, 0)) -> list[Part]:
    """The parts of a figure of the file, in the order in which they are drawn; scaled, then shifted."""
    kept = [part for part, optional in _polygons(figure) if not optional or rng.random() < 0.5]
    return [part._replace(points=part.points * scale + shift) for part in kept]


def person(rng: Rng) -> list[Part]:
    """A person in one of the file's poses; one in eight lies down."""
    *limbs, lean = map(float, pick(rng, FIGURES["poses"]).split()[1:])
    arms, legs = np.split(np.reshape(limbs, (4, 2)) + rng.normal(0, 6, (4, 2)), 2)
    sleeve, hem = pick(rng, ("shirt", "skin")), pick(rng, ("trousers", "trousers", "skin"))
    girth, parts = rng.uniform(0.85, 1.3), []
    for side, shade, (thigh, shin) in zip((-1, 1), (0.82, 1), legs, strict=True):
        hip, knee, foot = chain((side * 0.085 * girth, 0.9), (0.42, thigh), (0.42, shin))
        parts += limb(hem, [knee, foot], 0.065 * girth, 0.05, shade)
        parts += limb("trousers", [hip, knee], 0.1 * girth, 0.072 * girth, shade)
        parts.append(Part("shoe", oval(foot + (0.05 * np.sign(shin + 0.1), -0.02), 0.11, 0.05)))
    trunk = drawn(pick(rng, named("trunk")), rng, (girth, 1)) + drawn(pick(rng, HEADS), rng)
    parts += [part._replace(points=rotated(part.points - (0, 0.9), -lean) + (0, 0.9)) for part in trunk]
    for side, (upper, fore) in zip((-1, 1), arms, strict=True):
        shoulder = rotated(np.array([side * 0.17 * girth, 0.48]), -lean) + (0, 0.9)
        _, elbow, hand = chain(shoulder, (0.28, upper), (0.27, fore))
        parts += limb(sleeve, [elbow, hand], 0.05, 0.04, 0.95)
        parts += limb("shirt", [shoulder, elbow], 0.068 * girth, 0.055, 0.9)
        parts.append(Part("skin", oval(hand, 0.052)))
    turn = rng.uniform(75, 100) if rng.random() < 0.12 else 0.0
    return [part._replace(points=rotated(part.points, turn)) for part in parts]


def quadruped(rng: Rng) -> list[Part]:
    """A four-legged animal from the side, facing right: standing, walking, grazing or lying."""
    fields, *rows = FIGURES["species"]
    values = zip(fields.split(), pick(rng, rows).split(), strict=True)
    s = SimpleNamespace(**{k: v if k in ("name", "coat", "ears") else float(v) for k, v in values})
    lying, leg = rng.random() < 0.2, s.leg * rng.uniform(0.85, 1.15)
    grazing = rng.random() < 0.25 and s.neck > 0.15 and not lying
    height = max(s.rump, s.chest) + (0.05 if lying else leg)
    hip, chest = np.array([0.0, height]), np.array([0.9, height + rng.uniform(-0.03, 0.05)])
    lift = -rng.uniform(35, 55) if grazing else s.lift + rng.uniform(-12, 12)
    neck = chain(chest + (0.02, 0.35 * s.chest), (s.neck + 0.1, 90 + lift))
    mane = [joint + 0.7 * s.head * direction(lift + 90) for joint in neck]
    half, root = 0.5 * s.tail, hip + (-0.85 * s.rump, 0.4 * s.rump)
    tail = chain(root, (half, s.tail_angle), (half, 0.8 * s.tail_angle))
    return [
        *limb("fur", tail, s.tail_radius, 0.8 * s.tail_radius, 0.8),
        *_legs(rng, s, hip, chest, leg, lying, 0.1, 0.68),
        *(limb("mark", mane, 0.09, 0.07) if s.coat == "mane" else ()),
        *limb("fur", neck, 0.75 * s.chest, 0.75 * s.head, 0.95),
        *limb("fur", [hip, chest], s.rump, s.chest),
        *_coat(rng, s, hip, chest),
        *_legs(rng, s, hip, chest, leg, lying, 0.0, 0.94),
        *_profile(rng, s, neck[-1], grazing),
    ]


def _legs(rng, s, hip, chest, leg: float, lying: bool, offset: float, shade: float) -> list[Part]:
    parts, half = [], 0.5 * (leg + 0.65 * max(s.rump, s.chest))
    for x, radius in ((hip[0] - 0.3 * s.rump, s.rump), (chest[0] + 0.2 * s.chest, s.chest)):
        swing = rng.uniform(-22, 22)
        bones = ((0.25, 75), (0.35, 88)) if lying else ((half, swing), (half, swing * rng.uniform(-0.8, 0.6)))
        joints = chain((x + offset, hip[1] - 0.35 * radius), *bones)
        parts += limb("fur", joints, 1.8 * s.foot, s.foot, shade)
        parts.append(Part("hoof", oval(joints[-1] + (0.3 * s.foot, 0), 1.3 * s.foot, 0.8 * s.foot), shade))
    return parts


def _coat(rng: Rng, s, hip: np.ndarray, chest: np.ndarray) -> list[Part]:
    coat, parts = pick(rng, ("", "", "spots", "belly", "stripes")) if s.coat == "any" else s.coat, []
    for t in np.linspace(-0.05, 1.05, 9) + rng.uniform(-0.03, 0.03, 9):
        x, y = hip + t * (chest - hip)
        r, spot = s.rump + t * (s.chest - s.rump), rng.uniform(0.15, 0.4)
        parts += {
            "stripes": [Part("mark", oval((x, y), 0.025, 0.85 * r))],
            "spots": [Part("mark", oval((x, y + rng.uniform(-0.5, 0.5) * r), spot * r, 0.8 * spot * r))],
            "wool": [Part("fur", oval((x, y + v * r), 0.32 * r), 1 + 0.1 * v) for v in (-0.8, -0.2, 0.3, 0.9)],
            "belly": [Part("muzzle", oval((x, y - 0.55 * r), 0.09, 0.35 * r))],
        }.get(coat, [])
    return parts


def _profile(rng: Rng, s, centre: np.ndarray, grazing: bool) -> list[Part]:
    """The head: ears, snout with its nose, eye."""
    ahead = direction(-rng.uniform(45, 75) if grazing else -rng.uniform(5, 35))
    tip, role = centre + (s.snout + 0.4 * s.head) * ahead, "mark" if s.coat == "wool" else "fur"
    eye = centre + s.head * (0.3 * ahead + 0.3 * np.array([-ahead[1], ahead[0]]))
    return [
        Part(role, oval(centre, s.head)),
        *limb(role, [centre + 0.3 * s.head * ahead, tip], 0.75 * s.head, 0.5 * s.head),
        Part("nose", oval(tip + 0.35 * s.head * ahead, 0.22 * s.head)),
        *drawn(f"ears: {s.ears}", rng, (s.head, s.head), centre),
        Part("eye", oval(eye, 0.13 * s.head)),
    ]


def sitting(rng: Rng) -> list[Part]:
    """A cat, a dog or a bear from the front: its head over its chest, or over all of it sitting."""
    k = int(rng.integers(2))
    return drawn(named("front body")[k], rng) + drawn(pick(rng, named("front head")), rng, shift=(0, (1, 1.5)[k]))


def bird(rng: Rng) -> list[Part]:
    """A bird from the side: standing, swimming or with its wing up."""
    names = [*pick(rng, (["bird: legs"], [])), "bird", pick(rng, named("wing"))]
    return [part for name in names for part in drawn(name, rng)]


def posed(figure: str | Callable, rng: Rng) -> tuple[list[Part], np.ndarray]:
    """A figure's parts, mirrored or not, bent and turned a little, y down, from (0, 0) on; their (w, h)."""
    parts = figure(rng) if callable(figure) else drawn(figure, rng)
    points = np.concatenate([part.points for part in parts]) * (pick(rng, (-1, 1)), 1)
    extent = np.ptp(points, axis=0)
    waves = rng.uniform(0, 2 * np.pi, 2) + 2 * np.pi * points / extent
    points = rotated(points + 0.03 * extent * np.sin(waves), rng.normal(0, 4)) * (1, -1)  # too little to fold over
    points -= points.min(axis=0)
    polygons = np.split(points, np.cumsum([len(part.points) for part in parts])[:-1])
    return [p._replace(points=moved) for p, moved in zip(parts, polygons, strict=True)], points.max(axis=0)


HEADS = ["head: short hair", *named("head")]  # short hair is twice as common as each other head
VEHICLES = [*named("vehicle"), "vehicle: bus from a corner"]
ANIMALS = [quadruped, quadruped, quadruped, sitting, sitting, bird]
DISTRACTORS = named("thing")
OCCLUDERS = DISTRACTORS[:6]
