"""Procedural pictures: coloured shapes on a slightly varied background, drawn with NumPy.

A picture has 56×56 pixels, which are four visual tokens of Qwen2-VL. Box coordinates are multiples
of `STEP`, for each of which the small tokenizer has a token. Shapes touch all four sides of their
box.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mirg_jax.grounding.boxes import GRID, Box

SIDE = 56  # pixels
STEP = 20  # grid units (of 1000), slightly more than a pixel

COLOURS = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.10, 0.60, 0.20),
    "blue": (0.15, 0.25, 0.85),
    "yellow": (0.95, 0.80, 0.10),
    "purple": (0.55, 0.15, 0.65),
    "black": (0.10, 0.10, 0.10),
}


def _cross(u, v):
    bar = np.maximum(u - 1, v - 1 / 3)
    return np.minimum(bar, np.maximum(v - 1, u - 1 / 3))


# Signed distance to the outline (negative inside) in half sides of the box, as a function of |u|
# and |v| in 0..1 and of v in -1 (top)..1.
_OUTLINES = {
    "circle": lambda u, v, _: np.hypot(u, v) - 1,
    "square": lambda u, v, _: np.maximum(u, v) - 1,
    "triangle": lambda u, v, signed: np.maximum(signed - 1, 0.894 * (u - (signed + 1) / 2)),
    "cross": lambda u, v, _: _cross(u, v),
    "ring": lambda u, v, _: np.abs(np.hypot(u, v) - 0.75) - 0.25,
}
SHAPES = tuple(_OUTLINES)


@dataclasses.dataclass(frozen=True)
class Thing:
    """A coloured shape and its box."""

    colour: str
    shape: str
    box: Box

    @property
    def name(self) -> str:
        """Colour and shape as text."""
        return f"{self.colour} {self.shape}"

    @property
    def look(self) -> tuple[str, str]:
        """Colour and shape."""
        return self.colour, self.shape


Look = tuple[str, str]  # colour and shape
LOOKS: tuple[Look, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)


def choose_looks(rng: np.random.Generator, count: int, barred: Sequence[Look] = ()) -> list[Look]:
    """Chooses `count` different looks at random, none of them in `barred`."""
    allowed = [look for look in LOOKS if look not in barred]
    return [allowed[i] for i in rng.choice(len(allowed), count, replace=False)]


def left_to_right(things: Sequence[Thing]) -> tuple[Thing, ...]:
    """Sorts objects from left to right, the order in which they are numbered."""
    return tuple(sorted(things, key=lambda thing: thing.box[0] + thing.box[2]))


def place(
    rng: np.random.Generator, looks: Sequence[Look], sides: tuple[int, int] = (260, 460)
) -> tuple[Thing, ...]:
    """Places objects at random so that they don't touch and their left-to-right order is clear.

    Args:
      rng: random number generator.
      looks: colours and shapes of the objects.
      sides: smallest and largest side of a box in grid units.
    """
    while True:
        things = []
        for look in looks:
            side = STEP * int(rng.integers(sides[0] // STEP, sides[1] // STEP + 1))
            x, y = (STEP * int(i) for i in rng.integers(0, (GRID - side) // STEP + 1, size=2))
            things.append(Thing(*look, (x, y, x + side, y + side)))
        if all_apart(things):
            return left_to_right(things)


def all_apart(things: Sequence[Thing]) -> bool:
    """Returns whether no two objects touch and their left-to-right order is clear."""

    def apart(a: Box, b: Box) -> bool:
        gap = max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])
        return gap >= STEP and abs(a[0] + a[2] - b[0] - b[2]) >= 240

    return all(apart(a.box, b.box) for i, a in enumerate(things) for b in things[:i])


@dataclasses.dataclass(frozen=True)
class Ground:
    """Background of a picture: a light colour, slightly brighter towards one side."""

    colour: tuple[float, float, float]
    slope: tuple[float, float]

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Ground":
        """Creates a random background."""
        grey = rng.uniform(0.75, 0.92)
        colour = grey + rng.uniform(-0.06, 0.06, size=3)
        return cls(tuple(colour), tuple(rng.uniform(-0.06, 0.06, size=2)))


def draw(
    rng: np.random.Generator, things: Sequence[Thing], ground: Ground, *, noise: float = 0.02
) -> UInt8[np.ndarray, "56 56 3"]:
    """Draws objects on a background, with antialiased edges, slightly varied colours and noise."""
    centres = (np.arange(SIDE) + 0.5) / SIDE * GRID
    slope = (centres[:, None] * ground.slope[0] + centres * ground.slope[1]) / GRID
    image = np.asarray(ground.colour) + slope[..., None]
    for thing in things:
        x1, y1, x2, y2 = thing.box
        half = (x2 - x1) / 2
        spans = ((y1, y2), (x1, x2))
        near = [slice(int(a * SIDE // GRID), int(b * SIDE // GRID) + 1) for a, b in spans]
        v, u = np.meshgrid(
            (centres[near[0]] - (y1 + y2) / 2) / half,
            (centres[near[1]] - (x1 + x2) / 2) / half,
            indexing="ij",
        )
        pixels = _OUTLINES[thing.shape](np.abs(u), np.abs(v), v) * half * SIDE / GRID
        cover = np.clip(0.5 - pixels, 0, 1)[..., None]
        colour = np.asarray(COLOURS[thing.colour]) + rng.uniform(-0.06, 0.06, size=3)
        image[*near] += (colour - image[*near]) * cover
    image += noise * rng.standard_normal(image.shape)
    return (255 * np.clip(image, 0, 1)).round().astype(np.uint8)


def snap(values: Float[np.ndarray, " 4"]) -> Box:
    """Rounds a box's coordinates to multiples of `STEP`, clipped to the picture."""
    snapped = np.clip(np.round(np.asarray(values) / STEP) * STEP, 0, GRID)
    return tuple(int(value) for value in snapped)


def push_out(rng: np.random.Generator, box: Box, error: float) -> Box:
    """Simulates an imperfect annotator, whose boxes are too large.

    Args:
      rng: random number generator.
      box: the exact box.
      error: how far each side is moved outwards at most, as a fraction of the box's side.
    """
    x1, y1, x2, y2 = box
    left, top, right, bottom = rng.uniform(0, error, size=4)
    width, height = x2 - x1, y2 - y1
    return snap([x1 - left * width, y1 - top * height, x2 + right * width, y2 + bottom * height])


def close_up(
    rng: np.random.Generator,
    image: UInt8[np.ndarray, "56 56 3"],
    things: Sequence[Thing],
    number: int,
) -> tuple[UInt8[np.ndarray, "56 56 3"], Thing] | None:
    """Crops a random square around one object, without the other objects, and enlarges it.

    Args:
      rng: random number generator.
      image: the picture.
      things: its objects.
      number: index of the object.

    Returns:
      The close-up and the object with its new box, or None if other objects are too close.
    """
    box = np.asarray(things[number].box)
    side = int(np.ceil((box[2] - box[0]) / GRID * SIDE * rng.uniform(1.2, 1.6)))
    side = min(side, SIDE)
    low = np.maximum(np.ceil(box[2:] / GRID * SIDE - side), 0).astype(int)
    high = np.minimum(np.floor(box[:2] / GRID * SIDE), SIDE - side).astype(int)
    for _ in range(4):
        x, y = (int(rng.integers(a, max(a, b) + 1)) for a, b in zip(low, high, strict=True))
        cut = np.array([x, y, x + side, y + side]) * GRID / SIDE
        others = [np.asarray(t.box) for i, t in enumerate(things) if i != number]
        if all((o[:2] >= cut[2:]).any() or (o[2:] <= cut[:2]).any() for o in others):
            inside = (box - np.tile(cut[:2], 2)) / (side * GRID / SIDE) * GRID
            thing = dataclasses.replace(things[number], box=snap(inside))
            picture = Image.fromarray(image[y : y + side, x : x + side])
            return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)), thing
    return None
