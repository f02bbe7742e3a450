"""Single pictures with all that there is to see in them, for the vision tower's own lesson."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from mirg_jax.data.batching import patch_positions
from mirg_jax.data.images import PATCH, ImagePatches, patchify
from mirg_jax.scenes.drawing import (
    COLOURS,
    GRID,
    SHAPES,
    SIDE,
    STEP,
    Ground,
    Thing,
    choose_looks,
    close_up,
    draw,
    place,
)

PATCHES = (SIDE // PATCH) ** 2  # of a picture


class Seen(NamedTuple):
    """What there is to see in pictures, of two things each at most."""

    covers: Bool[np.ndarray, "*B P 2"]  # whether the thing reaches into the patch
    colour: Int[np.ndarray, "*B 2"]
    shape: Int[np.ndarray, "*B 2"]
    bins: Int[np.ndarray, "*B 2 4"]  # the box's coordinates in steps


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture as the model reads it."""

    patches: ImagePatches
    things: tuple[Thing, ...]
    seen: Seen


POSITIONS = patch_positions((SIDE // PATCH, SIDE // PATCH))  # (row, column) of each patch


def see(things: tuple[Thing, ...]) -> Seen:
    """The dense labels of a picture of these things."""
    seen = Seen(
        np.zeros((PATCHES, 2), bool), *np.zeros((2, 2), np.int32), np.zeros((2, 4), np.int32)
    )
    for m, thing in enumerate(things):
        x1, y1, x2, y2 = (c * SIDE / GRID for c in thing.box)
        top, left = PATCH * POSITIONS.T
        inside = (x1 < left + PATCH) & (x2 > left) & (y1 < top + PATCH) & (y2 > top)
        seen.covers[:, m] = inside
        seen.colour[m] = list(COLOURS).index(thing.colour)
        seen.shape[m] = SHAPES.index(thing.shape)
        seen.bins[m] = np.array(thing.box) // STEP
    return seen


def draw_picture(rng: np.random.Generator) -> Picture:
    """One or two things; sometimes a close-up of one."""
    if rng.random() < 0.35:
        things = place(rng, choose_looks(rng, 1), sides=(260, 600))
    else:
        things = place(rng, choose_looks(rng, 2))
    image = draw(rng, things, Ground.random(rng))
    if rng.random() < 0.15 and (cut := close_up(rng, image, things, 0)):
        image, thing = cut
        things = (thing,)
    return Picture(patchify(Image.fromarray(image), SIDE**2, SIDE**2), things, see(things))
