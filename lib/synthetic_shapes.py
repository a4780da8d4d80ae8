"""The figures of the synthetic scenes: polygons with a colour role, in a frame of their own.

Most figures are a text, `role shape numbers; role shape numbers; ...`, drawn in that order. The shapes are

    rect x0 y0 x1 y1     oval x y rx [ry]     poly x y x y ...     blob x y x y ... (a poly, its corners cut)
    limb r0 r1 x y x y ... (a chain of round-ended segments whose radius goes from r0 to r1)

`role*0.8` is darker, `role|` is drawn twice, mirrored at x = 0, and `?role` is left out half of the time.
People and quadrupeds have joints, so they are functions. A frame has x to the right and y UP, in about
metres, and is fitted to a box by whoever draws it. `PALETTE` says which colours a role may take.

    k  corners of a polygon; angles are degrees
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

Rng = np.random.Generator
NEUTRAL = "#f2f2ee #c4c6c8 #7c8084 #35383c #191a1d "
VIVID = "#b8252b #d9792b #e0bb3a #4d8c3f #2c7f86 #2b56a5 #6a4594 #c65b8a #7a4a2a "
EARTH = "#8a5a32 #5e4030 #c79a62 #e6d9c3 #3a3230 #8d8881 #c96f2e #efece6 #a89878 "
PALETTE = {
    **dict.fromkeys(("paint", "trim", "shirt", "print", "sign"), VIVID + NEUTRAL), "metal": NEUTRAL,
    **dict.fromkeys(("fur", "mark"), EARTH), "feather": EARTH + VIVID, "stone": EARTH + NEUTRAL,
    "wall": VIVID + EARTH + NEUTRAL, "trousers": VIVID + 2 * NEUTRAL, "shoe": NEUTRAL + "#8a5a32 #5e4030",
    "tyre": "#1c1c1e #2a2826", "hub": "#b9bcc0 #77797d #e3e3e0", "lamp": "#fff3c0 #f4f6f8",
    "tail": "#b3201c #d94a2a", "plate": "#f4f2e4 #e6c94b", "line": "#2a2a2c #3b3630",
    "glass": "#27343f #4d6a80 #9cb9c8 #1b2228", "skin": "#f0c9a8 #dba67e #b97c53 #8a5636 #5b3724 #3f261a",
    "hair": "#1d1714 #4a2f1d #8a5a2b #c9a45a #9b9b9b #7b2f1c", "muzzle": "#e6d9c3 #c79a62 #5e4030 #efece6",
    "hoof": "#2b2523 #5b4a3d", "nose": "#1d1818 #c98088 #3a2c2a", "eye": "#141212 #2a1d12",
    "iris": "#d8b23a #86a84a #7ba7c4", "beak": "#e09a2b #4a4540 #d8c25a", "horn": "#e4dcc6 #8c7d66",
    "leaf": "#3f6b2c #5c8a3a #2f5136 #8c8a35 #a8682b", "wood": "#6b4a30 #8f6b45 #4a382b #8d8881",
    "roof": "#8f3b2a #54483f #5a6570 #b0653a", "cloud": "#f4f6f8 #cfd6dc #b9c3cc",
    "sky": "#8fb8d8 #b8d3e6 #d9c7b8 #5f87ad #a9b4bf",
}  # fmt: skip


class Part(NamedTuple):
    """One polygon: its colour role, its corners (k, 2), and its brightness relative to the role's colour."""

    role: str
    points: np.ndarray
    shade: float = 1.0


# -------------------------------------------------------------------------------- pieces

_TURN = np.linspace(0, 360, 25)[:-1]
_HALF_TURN = np.linspace(-90, 90, 7)


def direction(degrees: float | np.ndarray) -> np.ndarray:
    """Unit vectors (..., 2), counter-clockwise from the x axis."""
    radians = np.radians(degrees)
    return np.array([np.cos(radians), np.sin(radians)]).T


def rotated(points: np.ndarray, degrees: float) -> np.ndarray:
    """Points (k, 2) turned counter-clockwise about the origin."""
    return points @ np.stack([direction(degrees), direction(degrees + 90)])


def oval(x: float, y: float, rx: float, ry: float | None = None) -> np.ndarray:
    """Corners (24, 2) of an ellipse; a circle where `ry` is left out."""
    return direction(_TURN) * (rx, rx if ry is None else ry) + (x, y)


def blob(points: np.ndarray) -> np.ndarray:
    """A closed polygon (k, 2) with its corners cut twice (Chaikin): (4 k, 2)."""
    for _ in range(2):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.8 * points + 0.2 * following, 0.2 * points + 0.8 * following], 1).reshape(-1, 2)
    return points


def limb(joints: Sequence, start: float, end: float) -> list[np.ndarray]:
    """The round-ended segments of a chain of joints, the radius going from `start` to `end`."""
    radii, segments = np.linspace(start, end, len(joints)), []
    for a, b, ra, rb in zip(joints[:-1], joints[1:], radii[:-1], radii[1:], strict=True):
        arc = direction(np.degrees(np.arctan2(b[1] - a[1], b[0] - a[0])) + _HALF_TURN)
        segments.append(np.concatenate([b + rb * arc, a - ra * arc]))
    return segments


def chain(start: Sequence[float], *bones: tuple[float, float]) -> list[np.ndarray]:
    """The joints of a chain of bones (length, angle from straight down, positive towards +x)."""
    joints = [np.asarray(start, float)]
    for length, angle in bones:
        joints.append(joints[-1] + length * direction(angle - 90))
    return joints


def pick(rng: Rng, options: Sequence):
    """One of `options`, all equally likely."""
    return options[int(rng.integers(len(options)))]


@cache
def _read(text: str) -> list[tuple[Part, bool]]:
    """The parts that a text describes, each with whether it may be left out."""
    parts = []
    for clause in text.split(";"):
        name, shape, *numbers = clause.split()
        role, _, shade = name.strip("?|").partition("*")
        values = np.array(numbers, float)
        if shape == "limb":
            polygons = limb(values[2:].reshape(-1, 2), *values[:2])
        elif shape == "rect":
            polygons = [values[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)]
        elif shape == "oval":
            polygons = [oval(*values)]
        else:
            polygons = [{"poly": np.asarray, "blob": blob}[shape](values.reshape(-1, 2))]
        twins = [points * (-1, 1) for points in polygons] if "|" in name else []
        parts += [(Part(role, points, float(shade or 1)), name[0] == "?") for points in polygons + twins]
    return parts


def drawn(text: str, rng: Rng, scale=(1.0, 1.0), shift=(0.0, 0.0)) -> list[Part]:
    """The parts of a figure's text, scaled, then shifted."""
    kept = [part for part, optional in _read(text) if not optional or rng.random() < 0.5]
    return [part._replace(points=part.points * scale + shift) for part in kept]


def parts_of(figure: str | Callable[[Rng], list[Part]], rng: Rng) -> list[Part]:
    """The parts of a figure, in the order in which they are drawn."""
    return drawn(figure, rng) if isinstance(figure, str) else figure(rng)


# -------------------------------------------------------------------------------- vehicles


def _wheels(r: float, *xs: float) -> str:
    wheel = "tyre oval {0} {1} {1}; hub oval {0} {1} {2}; tyre oval {0} {1} {3}"
    return "; ".join(wheel.format(x, r, 0.6 * r, 0.2 * r) for x in xs)


VEHICLES_FROM_THE_SIDE = [
    # saloon, hatchback, off-roader, pick-up, van
    f"""paint blob .05 .3 0 .75 .15 1 .75 1.04 1.3 1.45 2.6 1.48 3.2 1.04 4.2 .9 4.4 .6 4.35 .3; glass poly
    .95 1 1.4 1.36 2.5 1.38 3 1; paint*.7 rect .05 .3 4.3 .48; paint rect 1.9 .6 2.05 1.4; line rect 1.5 .85
    1.75 .9; lamp oval 4.2 .7 .16 .08; tail rect .02 .68 .16 .88; {_wheels(.38, .9, 3.5)}""",
    f"""paint blob .05 .3 0 .8 .15 1.1 .45 1.5 1 1.58 2.1 1.54 2.8 1.05 3.5 .92 3.7 .6 3.65 .3; glass poly .5
    1.05 .7 1.42 2.02 1.42 2.55 1.05; paint*.7 rect .05 .3 3.6 .46; paint rect 1.4 .6 1.53 1.45; line rect
    1.05 .88 1.3 .93; lamp oval 3.5 .72 .15 .09; tail rect .02 .75 .15 .98; {_wheels(.38, .75, 2.95)}""",
    f"""paint blob .05 .4 0 1.2 .25 1.8 2.4 1.82 3 1.22 3.9 1.1 4.1 .8 4.05 .4; glass poly .32 1.2 .45 1.66
    2.32 1.67 2.75 1.2; ?line rect .5 1.82 2.1 1.9; paint rect 1.35 .6 1.5 1.7; line rect 1 1 1.25 1.06; lamp
    oval 3.9 .85 .15 .1; tail rect .02 .9 .14 1.15; line rect 0 .4 4.08 .55; {_wheels(.46, .85, 3.25)}""",
    f"""paint blob .05 .4 0 1.1 1.5 1.1 1.65 1.65 2.6 1.68 3.2 1.15 4.3 1.02 4.5 .7 4.45 .4; glass poly 1.72
    1.12 1.85 1.55 2.52 1.56 2.92 1.12; line rect .1 1.06 1.5 1.12; paint rect 2.2 .6 2.3 1.6; line rect 1.8
    .9 2 .95; lamp oval 4.3 .8 .15 .1; tail rect .02 .8 .14 1.05; {_wheels(.45, .9, 3.6)}""",
    f"""paint blob .05 .3 0 2 .15 2.12 2.8 2.12 3.4 1.35 4 1.15 4.1 .7 4.05 .3; glass poly 2.15 1.3 2.15 1.88
    2.68 1.88 3.15 1.3; ?glass rect .3 1.3 .95 1.85; ?glass rect 1.1 1.3 1.9 1.85; ?trim rect .03 .75 3.9
    .95; line rect 2 .4 2.05 2; lamp oval 3.9 .75 .14 .11; tail rect .02 .8 .12 1.2;
    {_wheels(.42, .8, 3.2)}""",
    # bus, lorry, tractor
    f"""paint blob 0 .3 0 2.9 7 2.9 7 .3; trim rect .03 .75 6.97 1; glass rect .25 1.5 1.1 2.5; glass rect
    1.3 1.5 2.2 2.5; glass rect 2.4 1.5 3.3 2.5; glass rect 3.5 1.5 4.4 2.5; glass rect 4.6 1.5 5.5 2.5;
    glass rect 5.8 1.2 6.9 2.5; line rect 5.62 .4 5.68 2.5; lamp oval 6.85 .6 .1 .12;
    {_wheels(.48, 1.3, 5.3)}""",
    f"""line rect .1 .45 5.8 .75; trim rect 0 .75 4.2 2.9; ?print rect .8 1.3 3.4 2.3; trim*.8 rect 1 .8 1.05
    2.85; trim*.8 rect 2.1 .8 2.15 2.85; trim*.8 rect 3.2 .8 3.25 2.85; paint blob 4.4 .35 4.4 2.6 5.6 2.6
    5.9 1.4 5.9 .35; glass poly 4.7 1.45 4.7 2.3 5.5 2.3 5.75 1.45; lamp oval 5.8 .7 .1 .14;
    {_wheels(.48, .7, 1.75, 4.95)}""",
    f"""line rect 2.2 1.2 2.32 2.1; paint blob 1.1 .6 1.1 1.45 2.9 1.35 3 .6; paint rect .3 1 1.5 2.4; glass
    rect .45 1.45 1.38 2.2; trim rect .2 2.35 1.6 2.5; line rect 2 .8 2.8 1.1; {_wheels(.8, .75)};
    {_wheels(.45, 2.6)}""",
]  # fmt: skip
CAR_FRONT = """tyre| rect .45 0 .8 .5; paint blob -.7 .8 -.48 1.5 .48 1.5 .7 .8; glass poly -.58 .9 -.4 1.4
    .4 1.4 .58 .9; paint*.93 blob -.88 .22 -.9 .82 -.7 .97 .7 .97 .9 .82 .88 .22; line blob -.4 .45 -.45 .7
    .45 .7 .4 .45; paint*.65 rect -.88 .22 .88 .36; plate rect -.22 .25 .22 .37; lamp| oval .64 .68 .16 .1;
    paint*.8| oval .98 .98 .13 .09"""
BUS_FRONT = """tyre| rect .65 0 .98 .6; line| rect 1.18 1.6 1.45 2.1; line| rect 1 2.05 1.4 2.15; paint blob
    -1.15 .3 -1.15 3 1.15 3 1.15 .3; glass blob -1 1.35 -.95 2.5 .95 2.5 1 1.35; line rect -.65 2.62 .65
    2.85; line rect -.5 .6 .5 1.1; plate rect -.25 .42 .25 .56; lamp| oval .82 .75 .17 .13; ?line rect -.02
    1.4 .02 2.45; ?trim rect -1.13 1.15 1.13 1.25"""
BUS_CORNER = """tyre rect .1 -.05 .38 .5; tyre rect 1.08 .02 1.33 .5; paint*.8 poly 0 .25 0 2.8 -2.2 2.45
    -2.2 .5; paint poly 0 .25 0 2.8 1.5 2.65 1.5 .34; trim*.8 poly 0 .8 0 1.05 -2.2 1.15 -2.2 .95; glass poly
    -.1 2.44 -.55 2.38 -.55 1.48 -.1 1.5; glass poly -.65 2.37 -1.1 2.31 -1.1 1.47 -.65 1.48; glass poly -1.2
    2.29 -1.6 2.24 -1.6 1.45 -1.2 1.46; glass poly -1.7 2.23 -2.1 2.18 -2.1 1.44 -1.7 1.45; glass poly .12
    2.5 1.38 2.4 1.4 1.3 .1 1.28; line poly .45 .7 1.05 .73 1.05 1.05 .45 1.03; plate rect .6 .42 .95 .56;
    lamp oval .22 .75 .13 .12; lamp oval 1.28 .8 .12 .11; tyre oval -.5 .35 .22 .38; hub oval -.5 .35 .13
    .23; tyre oval -1.75 .5 .17 .32; hub oval -1.75 .5 .1 .19"""
CAR_REAR = CAR_FRONT.replace("lamp", "tail")
VEHICLES = [*VEHICLES_FROM_THE_SIDE, CAR_FRONT, CAR_REAR, BUS_FRONT, BUS_CORNER, BUS_CORNER]

# -------------------------------------------------------------------------------- people

# Angles from straight down: upper arm and forearm left, right; thigh and shin left, right; the trunk's lean.
POSES = [
    ((-12, -6), (12, 6), (-5, -3), (5, 3), 0),  # standing
    ((-30, -8), (28, 50), (-24, -38), (24, 10), 3),  # walking
    ((-145, -170), (145, 170), (-8, -5), (8, 5), 0),  # arms raised
    ((-14, -8), (125, 178), (-6, -4), (8, 4), 0),  # waving
    ((-98, -95), (98, 95), (-30, -28), (30, 28), 0),  # arms and legs apart
    ((-48, 40), (48, -40), (-9, -6), (9, 6), 0),  # hands on the hips
    ((-60, 15), (45, 120), (-35, -95), (55, 5), 14),  # running
    ((20, 70), (25, 80), (80, 4), (90, -6), -4),  # sitting
    ((65, 80), (70, 85), (60, -15), (65, -10), 22),  # riding
    ((35, 75), (40, 85), (100, -40), (108, -45), 14),  # crouching
]
SHIRT = "shirt blob -.17 .82 -.18 1 -.21 1.4 -.08 1.5 .08 1.5 .21 1.4 .18 1 .17 .82; "
TRUNKS = [
    SHIRT + "line rect -.16 .9 .16 .94; ?print oval 0 1.25 .07",
    SHIRT + "line rect -.006 .88 .006 1.45; print| poly .05 1.46 .01 1.3 .1 1.42",
    SHIRT + "print rect -.15 .98 .15 1.03; print rect -.16 1.12 .16 1.18; print rect -.17 1.27 .17 1.34",
    SHIRT + "trousers poly -.15 1.02 .15 1.02 .3 .52 -.3 .52; ?line rect -.15 1 .15 1.04",
]
FACE = """skin*.85 rect -.055 1.36 .055 1.52; skin oval 0 1.61 .105 .135; eye| oval .042 1.62 .015 .013;
    nose*1.2 oval 0 1.545 .035 .01; skin*.85 poly -.012 1.57 .014 1.57 0 1.62; hair blob -.12 1.6 -.11 1.78
    .11 1.78 .12 1.6 .06 1.7 -.07 1.7"""
HEADS = [
    FACE, FACE, "hair blob -.13 1.4 -.15 1.72 .15 1.72 .13 1.4; " + FACE,
    FACE + "; print blob -.13 1.67 -.11 1.84 .11 1.84 .13 1.67; print*.8 rect -.17 1.66 .17 1.69",
    "skin*.85 rect -.055 1.36 .055 1.52; hair oval 0 1.62 .112 .14; ?hair oval 0 1.45 .06 .14",
]  # fmt: skip


def person(rng: Rng) -> list[Part]:
    """A person in one of `POSES`; one in eight lies down."""
    *limbs, lean = pick(rng, POSES)
    arms, legs = np.split(np.array(limbs) + rng.normal(0, 6, (4, 2)), 2)
    sleeve, hem = pick(rng, ("shirt", "skin")), pick(rng, ("trousers", "trousers", "skin"))
    girth, parts = rng.uniform(0.85, 1.3), []
    for side, shade, (thigh, shin) in zip((-1, 1), (0.82, 1), legs, strict=True):
        hip, knee, foot = chain((side * 0.085 * girth, 0.9), (0.42, thigh), (0.42, shin))
        parts += _limb(hem, [knee, foot], 0.065 * girth, 0.05, shade)
        parts += _limb("trousers", [hip, knee], 0.1 * girth, 0.072 * girth, shade)
        parts.append(Part("shoe", oval(foot[0] + 0.05 * np.sign(shin + 0.1), foot[1] - 0.02, 0.11, 0.05)))
    trunk = drawn(pick(rng, TRUNKS), rng, (girth, 1)) + drawn(pick(rng, HEADS), rng)
    parts += [part._replace(points=rotated(part.points - (0, 0.9), -lean) + (0, 0.9)) for part in trunk]
    for side, (upper, fore) in zip((-1, 1), arms, strict=True):
        shoulder = rotated(np.array([side * 0.17 * girth, 0.48]), -lean) + (0, 0.9)
        _, elbow, hand = chain(shoulder, (0.28, upper), (0.27, fore))
        parts += _limb(sleeve, [elbow, hand], 0.05, 0.04, 0.95)
        parts += _limb("shirt", [shoulder, elbow], 0.068 * girth, 0.055, 0.9)
        parts.append(Part("skin", oval(*hand, 0.052)))
    turn = rng.uniform(75, 100) if rng.random() < 0.12 else 0.0
    return [part._replace(points=rotated(part.points, turn)) for part in parts]


def _limb(role: str, joints: Sequence, start: float, end: float, shade: float = 1.0) -> list[Part]:
    return [Part(role, points, shade) for points in limb(joints, start, end)]


PEOPLE = [person]

# -------------------------------------------------------------------------------- animals


class Species(NamedTuple):
    """A quadruped from the side, in lengths of its trunk; `lift` of the neck is above the horizontal."""

    rump: float
    chest: float
    leg: float
    foot: float
    neck: float
    lift: float
    head: float
    snout: float
    tail: tuple[float, float, float]  # length, radius, angle from straight down
    coat: str
    ears: str  # drawn around the head, whose radius is 1


POINTED = "fur*.7 poly 0 .6 .3 1.7 .6 .7; fur*.9 poly -.5 .6 -.25 1.8 .2 .8"
HANGING = "mark*.8 oval -.5 -.1 .3 .65"
SPECIES = [
    Species(.17, .21, .42, .045, .26, 55, .16, .17, (.4, .04, -130), "", HANGING),  # dog
    Species(.16, .2, .4, .04, .24, 50, .15, .2, (.38, .07, -70), "belly", POINTED),  # fox
    Species(.15, .15, .32, .045, .14, 50, .16, .05, (.55, .035, -150), "stripes", POINTED),  # cat
    Species(.24, .25, .62, .045, .5, 55, .14, .28, (.5, .07, -12), "mane", POINTED),  # horse
    Species(.24, .25, .6, .045, .45, 55, .14, .26, (.42, .04, -12), "stripes", POINTED),  # zebra
    Species(.3, .3, .3, .045, .2, 25, .15, .13, (.12, .07, -50), "wool", HANGING),  # sheep
    Species(.28, .31, .42, .055, .22, 20, .17, .2, (.45, .03, -6), "spots",
            HANGING + "; horn limb .2 .1 -.1 .7 .5 1.2 .3 1.7"),  # cow
    Species(.25, .24, .24, .05, .1, 5, .2, .16, (.12, .03, -120), "", HANGING),  # pig
    Species(.38, .42, .42, .11, .12, 20, .27, .02, (.35, .03, -8), "plain", """fur limb .4 .2 .8 0 1.2 -1.3
    1.1 -2.6; horn limb .12 .05 .7 -.4 1.5 -.7; fur*.8 oval -.6 -.05 .75 1.1"""),  # elephant
    Species(.2, .24, .75, .04, .85, 65, .12, .2, (.35, .03, -10), "spots", POINTED),  # giraffe
    Species(.3, .3, .3, .09, .16, 15, .21, .13, (.06, .05, -60), "plain", "fur*.8 oval -.35 .85 .35"),  # bear
]  # fmt: skip


def quadruped(rng: Rng) -> list[Part]:
    """A four-legged animal from the side, facing right: standing, walking, grazing or lying."""
    s = pick(rng, SPECIES)
    lying, leg = rng.random() < 0.2, s.leg * rng.uniform(0.85, 1.15)
    grazing = rng.random() < 0.25 and s.neck > 0.15 and not lying
    height = max(s.rump, s.chest) + (0.05 if lying else leg)
    hip, chest = np.array([0.0, height]), np.array([0.9, height + rng.uniform(-0.03, 0.05)])
    lift = -rng.uniform(35, 55) if grazing else s.lift + rng.uniform(-12, 12)
    neck = chain(chest + (0.02, 0.35 * s.chest), (s.neck + 0.1, 90 + lift))
    mane = [joint + 0.7 * s.head * direction(lift + 90) for joint in neck]
    length, radius, angle = s.tail
    tail = chain(hip + (-0.85 * s.rump, 0.4 * s.rump), (0.5 * length, angle), (0.5 * length, 0.8 * angle))
    return [
        *_limb("fur", tail, radius, 0.8 * radius, 0.8),
        *_legs(rng, s, hip, chest, leg, lying, 0.1, 0.68),
        *(_limb("mark", mane, 0.09, 0.07) if s.coat == "mane" else ()),
        *_limb("fur", neck, 0.75 * s.chest, 0.75 * s.head, 0.95),
        *_limb("fur", [hip, chest], s.rump, s.chest),
        *_coat(rng, s, hip, chest),
        *_legs(rng, s, hip, chest, leg, lying, 0.0, 0.94),
        *_profile(rng, s, neck[-1], grazing),
    ]


def _legs(rng, s: Species, hip, chest, leg: float, lying: bool, offset: float, shade: float) -> list[Part]:
    parts, half = [], 0.5 * (leg + 0.65 * max(s.rump, s.chest))
    for x, radius in ((hip[0] - 0.3 * s.rump, s.rump), (chest[0] + 0.2 * s.chest, s.chest)):
        swing = rng.uniform(-22, 22)
        bones = ((0.25, 75), (0.35, 88)) if lying else ((half, swing), (half, swing * rng.uniform(-0.8, 0.6)))
        joints = chain((x + offset, hip[1] - 0.35 * radius), *bones)
        parts += _limb("fur", joints, 1.8 * s.foot, s.foot, shade)
        hoof = oval(*(joints[-1] + (0.3 * s.foot, 0)), 1.3 * s.foot, 0.8 * s.foot)
        parts.append(Part("hoof", hoof, shade))
    return parts


def _coat(rng: Rng, s: Species, hip: np.ndarray, chest: np.ndarray) -> list[Part]:
    coat, parts = s.coat or pick(rng, ("", "", "spots", "belly", "stripes")), []
    for t in np.linspace(-0.05, 1.05, 9) + rng.uniform(-0.03, 0.03, 9):
        x, y = hip + t * (chest - hip)
        r, spot = s.rump + t * (s.chest - s.rump), rng.uniform(0.15, 0.4)
        parts += {
            "stripes": [Part("mark", oval(x, y, 0.025, 0.85 * r))],
            "spots": [Part("mark", oval(x, y + rng.uniform(-0.5, 0.5) * r, spot * r, 0.8 * spot * r))],
            "wool": [Part("fur", oval(x, y + v * r, 0.32 * r), 1 + 0.1 * v) for v in (-0.8, -0.2, 0.3, 0.9)],
            "belly": [Part("muzzle", oval(x, y - 0.55 * r, 0.09, 0.35 * r))],
        }.get(coat, [])
    return parts


def _profile(rng: Rng, s: Species, centre: np.ndarray, grazing: bool) -> list[Part]:
    """The head: ears, snout with its nose, eye."""
    ahead = direction(-rng.uniform(45, 75) if grazing else -rng.uniform(5, 35))
    tip, role = centre + (s.snout + 0.4 * s.head) * ahead, "mark" if s.coat == "wool" else "fur"
    eye = centre + s.head * (0.3 * ahead + 0.3 * np.array([-ahead[1], ahead[0]]))
    return [
        Part(role, oval(*centre, s.head)),
        *_limb(role, [centre + 0.3 * s.head * ahead, tip], 0.75 * s.head, 0.5 * s.head),
        Part("nose", oval(*(tip + 0.35 * s.head * ahead), 0.22 * s.head)),
        *drawn(s.ears, rng, (s.head, s.head), centre),
        Part("eye", oval(*eye, 0.13 * s.head)),
    ]


# A head of radius 1/2 from the front, a body below it, and birds.
FRONT_HEADS = [ears + """fur oval 0 0 .53 .48; ?mark| oval .14 .33 .035 .11; ?mark oval 0 .33 .035 .11; iris|
    oval .19 .08 .095 .085; eye| oval .19 .08 .05 .08; muzzle| oval .09 -.2 .14 .12; nose oval 0 -.11 .09
    .06; line| limb .012 .012 0 -.27 .11 -.23; """ + rest for ears, rest in (
    ("fur*.9| poly .1 .4 .42 .85 .5 .1; nose| poly .22 .42 .4 .7 .44 .25; ",
     "line| limb .008 .006 .2 -.2 .46 -.17; line| limb .008 .006 .2 -.2 .46 -.25"),
    ("", "mark*.85| blob .25 .42 .55 .3 .68 -.3 .45 -.35"),
    ("fur*.85| oval .38 .38 .2; ", "muzzle*.95| oval .38 .38 .09"),
)]  # fmt: skip
FRONT_BODIES = [
    "fur*.8 blob -.3 .9 -.6 .2 .6 .2 .3 .9; muzzle oval 0 .45 .2 .2",
    """fur*.75 limb .08 .06 .35 .1 .75 .12 .85 .45; fur*.88 blob -.6 0 -.55 .4 -.3 1.3 .3 1.3 .55 .4 .6 0;
    muzzle oval 0 .75 .22 .3; fur*.98| limb .13 .1 .2 .6 .2 .08; fur*.95| oval .48 .07 .2 .09; fur*1.1| oval
    .22 .07 .16 .09""",
]  # fmt: skip
BIRD = """feather*.75 poly -.35 .72 -.95 .65 -.9 .4 -.3 .45; beak poly .5 1.15 .95 1.02 .5 .95; feather limb
    .2 .13 .25 .65 .42 1.05; feather blob -.5 .5 -.3 .85 .3 .95 .55 .65 .3 .33 -.2 .3; muzzle oval .15 .5 .28
    .15; feather oval .42 1.05 .16; eye oval .47 1.09 .035; """
BIRD_LEGS = "beak limb .025 .02 -.06 .4 -.1 .02 .05 0; beak limb .025 .02 .1 .4 .14 .02 .29 0; "
BIRD_WINGS = [
    "mark*.85 blob .2 .68 -.1 .82 -.7 .6 -.2 .42",
    "mark*.85 blob .2 .7 .1 1.5 -.5 1.75 -.35 1.2 -.3 .7",
]


def sitting(rng: Rng) -> list[Part]:
    """A cat, a dog or a bear from the front: its head over its chest, or over all of it sitting."""
    k = int(rng.integers(2))
    return drawn(FRONT_BODIES[k], rng) + drawn(pick(rng, FRONT_HEADS), rng, shift=(0.0, (1.0, 1.5)[k]))


def bird(rng: Rng) -> list[Part]:
    """A bird from the side: standing, swimming or with its wing up."""
    return drawn(pick(rng, (BIRD_LEGS, "")) + BIRD + pick(rng, BIRD_WINGS), rng)


ANIMALS = [quadruped, quadruped, quadruped, sitting, sitting, bird]

# -------------------------------------------------------------------------------- without a label

BUSH = """leaf oval -.8 .35 .35; leaf*.85 oval -.4 .5 .4; leaf*1.1 oval 0 .35 .36; leaf*.9 oval .4 .55 .36;
    leaf oval .8 .4 .4"""
CLOUD = BUSH.replace("leaf", "cloud")
CRATE = """paint rect 0 0 1.6 1; paint*1.15 poly 0 1 .3 1.3 1.9 1.3 1.6 1; paint*.7 poly 1.6 0 1.9 .3 1.9 1.3
    1.6 1; paint*.8 rect .2 .05 .26 .95; paint*.8 rect .75 .05 .81 .95; paint*.8 rect 1.3 .05 1.36 .95;
    ?print rect .4 .3 1.2 .7"""
ROCK = """stone blob -1 0 -.9 .5 -.3 .8 .4 .65 1 .3 .9 0; stone*1.15 blob -.7 .4 -.25 .7 .3 .5 0 .25;
    ?stone*.85 poly .3 .1 .8 .3 .8 .05"""
SIGN = "metal rect -.05 0 .05 1.3; sign rect -.5 1.15 .5 1.75; print rect -.4 1.25 .4 1.65"
POLE = """metal rect -.05 0 .05 2.6; metal*.8 rect -.12 0 .12 .2; ?metal rect -.05 2.5 .5 2.6; ?lamp oval .4
    2.45 .15 .08"""
VASE = "wall blob -.3 0 -.5 .6 -.2 1.1 -.2 1.5 .2 1.5 .2 1.1 .5 .6 .3 0; trim rect -.3 .45 .3 .62"
DISTRACTORS = [
    BUSH, CRATE, ROCK, SIGN, POLE, VASE, """metal rect -.05 0 .05 1.3; sign oval 0 1.5 .42; print oval 0 1.5
    .3""",
    "metal rect -.05 0 .05 1.3; sign poly -.5 1.15 .5 1.15 0 1.95; print poly -.3 1.25 .3 1.25 0 1.75",
    """wood limb .12 .08 0 0 0 1.2; leaf oval -.5 1.3 .45; leaf*.85 oval .5 1.35 .45; leaf*1.1 oval -.25 1.8
    .5; leaf oval .3 1.9 .45; leaf*.9 oval 0 1.4 .45""",
    """wood rect -.12 0 .12 .8; leaf*.85 poly -.8 .6 .8 .6 0 1.6; leaf poly -.65 1.1 .65 1.1 0 2; leaf*1.1
    poly -.45 1.6 .45 1.6 0 2.5""",
    """wall rect 0 0 2 1.5; roof poly -.15 1.5 2.15 1.5 1 2.2; wood rect .25 0 .6 .7; glass rect .9 .5 1.25
    1; glass rect 1.45 .5 1.8 1; ?roof*.8 rect 1.4 1.7 1.65 2.3""",
    """wall rect 0 0 1.4 2.4; roof rect -.1 2.4 1.5 2.6; glass rect .2 .4 .5 .8; glass rect .85 .4 1.15 .8;
    glass rect .2 1.1 .5 1.5; glass rect .85 1.1 1.15 1.5; glass rect .2 1.8 .5 2.2; glass rect .85 1.8 1.15
    2.2""",
    "sign oval 0 0 1; ?print oval 0 0 .5 .98; ?sign oval 0 0 .25 .98; sign*1.3 oval -.35 .4 .18",
    """wood*.7 rect .25 .12 .35 .8; wood*.7 rect 1.3 .12 1.4 .8; wood rect .08 0 .18 .8; wood rect 1.12 0
    1.22 .8; wall rect 0 .8 1.5 .93; ?wall*.85 rect 0 .9 .1 1.6""",
]  # fmt: skip
OCCLUDERS = [BUSH, CRATE, ROCK, SIGN, POLE, VASE]
