"""An example before its images are written, and what several tasks have in common."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import TypeVar

import numpy as np

from mirg_jax.compose import edits, views
from mirg_jax.compose.edits import Corners, Pixels
from mirg_jax.compose.index import ANY
from mirg_jax.compose.library import Library, NotPossible
from mirg_jax.compose.photos import Attributes, Labelled, Photo, Sides, scaled, to_fractions
from mirg_jax.grounding.boxes import Box, fraction_to_grid, is_valid

TRIES = 24  # photos that are looked at for one place of an example

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Draft:
    """An example.

    Attributes:
      question: the question, without marks of images.
      images: whole photos as they are, or the pixels of pictures that were made.
      image: the image of the answer, from 1.
      box: the answer's box, on the grid.
      label: the answer's name; "" if it has none.
      photos: paths of all photos that it was made from.
    """

    question: str
    images: tuple[Photo | Pixels, ...]
    image: int
    box: Box
    label: str
    photos: tuple[str, ...]


def grid_box(box: Sides | Corners, size: tuple[int, int]) -> Box:
    """Converts a box in pixels of an image to the grid.

    Raises:
      NotPossible: if nothing is left of it there.
    """
    found = fraction_to_grid(to_fractions(box, size))
    if not is_valid(found):
        raise NotPossible("the box is too small for the grid")
    return found


def pick(rng: np.random.Generator, things: Sequence[_T]) -> _T:
    """Returns one of some things, at random.

    Raises:
      NotPossible: there are none.
    """
    if not things:
        raise NotPossible("the photo has no object that can be asked for")
    return things[int(rng.integers(len(things)))]


def check_apart(one: Photo, other: Photo) -> None:
    """Raises NotPossible if two photos were drawn from one group."""
    if one.group == other.group:
        raise NotPossible("the same photo was drawn twice")


def in_pixels(library: Library, photo: Photo, thing: Labelled) -> tuple[Pixels, Sides]:
    """Returns a photo's pixels, as large as images that are made may be, and an object's box."""
    pixels = library.pixels(photo)
    return pixels, scaled(thing.box, photo.pixels, edits.size_of(pixels))


def close_up(
    rng: np.random.Generator, library: Library, photo: Photo, thing: Labelled, *, changed: bool
) -> Pixels:
    """Returns a picture of an object with little around it.

    Args:
      rng: random number generator.
      library: where the photo is from.
      photo: the photo.
      thing: the object.
      changed: whether it is in another size and light, perhaps mirrored.

    Raises:
      NotPossible: if next to nothing is to be seen.
    """
    pixels, box = in_pixels(library, photo, thing)
    rim = rng.uniform(0.0, 0.08)
    width, height = rim * (box[2] - box[0]), rim * (box[3] - box[1])
    around = (box[0] - width, box[1] - height, box[2] + width, box[3] + height)
    cut = edits.crop(pixels, edits.whole_pixels(around, edits.size_of(pixels)))
    if edits.is_plain(cut):
        raise NotPossible("a close view shows next to nothing")
    if not changed:
        return cut
    view = views.shown(
        (0, 0, *edits.size_of(cut)), rng.uniform(0.75, 1.5), mirrored=bool(rng.random() < 0.3)
    )
    return other_light(rng, view.show(cut))


def other_light(rng: np.random.Generator, pixels: Pixels) -> Pixels:
    """Returns a picture in slightly other light."""
    tint = rng.uniform(0.96, 1.04, size=3)
    return edits.light(
        pixels, rng.uniform(0.85, 1.15), rng.uniform(0.85, 1.1), tuple(map(float, tint))
    )


def only_one(photo: Photo, label: str, attributes: Attributes = ()) -> Labelled:
    """Returns the one object of a photo that a label and attributes mean.

    Raises:
      NotPossible: if there isn't exactly one, as far as the labels tell.
    """
    count = photo.count(label, attributes)
    if count is None:
        raise NotPossible("the labels don't tell whether there is another such object")
    found = [each for each in photo.usable() if each.fits(label, attributes)]
    if count != 1 or len(found) != 1:
        raise NotPossible("several objects fit")
    return found[0]


def without(
    rng: np.random.Generator,
    library: Library,
    count: int,
    label: str,
    attributes: Attributes = (),
    *,
    kind: str = "",
    groups: Collection[str] = (),
) -> list[Photo]:
    """Draws photos that show nothing that a label and attributes may mean.

    Half of them show something that looks alike where there is such a photo: the same class with
    another attribute, or another class of the same kind.

    Args:
      rng: random number generator.
      library: where photos are drawn.
      count: how many.
      label: the label.
      attributes: the attributes.
      kind: the wider class.
      groups: groups of photos that may not be drawn.

    Raises:
      NotPossible: if there are too few, as far as the labels tell.
    """
    near = [f"label:{label}"] if attributes else []
    near += [f"kind:{kind}"] if kind else []
    near = [name for name in near if library.count(name)]
    found: list[Photo] = []
    taken = set(groups)
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        name = near[int(rng.integers(len(near)))] if near and rng.random() < 0.5 else "photo"
        photo = library.draw(rng, name, ANY)
        if photo.group not in taken and photo.count(label, attributes) == 0:
            taken.add(photo.group)
            found.append(photo)
    if len(found) < count:
        raise NotPossible("too few photos are known to be without such an object")
    return found


def put_among(
    rng: np.random.Generator, one: Photo | Pixels, others: Sequence[Photo | Pixels]
) -> tuple[tuple[Photo | Pixels, ...], int]:
    """Puts an image at a random place among others; returns all, and its number from 1."""
    place = int(rng.integers(len(others) + 1))
    return (*others[:place], one, *others[place:]), place + 1
