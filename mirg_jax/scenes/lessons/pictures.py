"""Single pictures with dense labels, for pretraining the vision tower."""

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

PATCHES = (SIDE // PATCH) ** 2  # per picture, which is resized for larger patches


class Seen(NamedTuple):
    """Dense labels of pictures with at most two objects each."""

    covers: Bool[np.ndarray, "*B P 2"]  # whether the object overlaps the patch
    colour: Int[np.ndarray, "*B 2"]  # index into `COLOURS`
    shape: Int[np.ndarray, "*B 2"]  # index into `SHAPES`
    bins: Int[np.ndarray, "*B 2 4"]  # box coordinates in units of `STEP`


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture as patches, with its objects and labels."""

    patches: ImagePatches
    things: tuple[Thing, ...]
    seen: Seen


POSITIONS = patch_positions((SIDE // PATCH, SIDE // PATCH))  # (row, column) of each patch


def see(things: tuple[Thing, ...]) -> Seen:
    """Returns the dense labels of a picture with the given objects."""
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


def draw_picture(rng: np.random.Generator, patch: int = PATCH) -> Picture:
    """Draws a random picture of one or two objects, sometimes a close-up of one.

    Args:
      rng: random number generator.
      patch: pixels along the side of a patch, as the model has it.
    """
    if rng.random() < 0.35:
        things = place(rng, choose_looks(rng, 1), sides=(260, 600))
    else:
        things = place(rng, choose_looks(rng, 2))
    image = draw(rng, things, Ground.random(rng))
    if rng.random() < 0.15 and (cut := close_up(rng, image, things, 0)):
        image, thing = cut
        things = (thing,)
    pixels = PATCHES * patch**2
    patches = patchify(Image.fromarray(image), pixels, pixels, patch)
    return Picture(patches, things, see(things))
