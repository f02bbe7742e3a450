"""The project's own rows, in any of their formats, as photos with the objects that they name."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator

from mirg_jax.compose.names import alike, clean, split_colour
from mirg_jax.compose.photos import Labelled, Photo, Sides, overlap
from mirg_jax.data.examples import Example, read_examples
from mirg_jax.data.images import ImageRoot, image_size
from mirg_jax.data.left_out import LeftOut
from mirg_jax.errors import DataError
from mirg_jax.grounding.boxes import Box, grid_to_pixels
from mirg_jax.grounding.grammar import OBJECT_END, OBJECT_START, parse_response

# Tasks whose images are photos, not copies, crops or views of others.
_OF_PHOTOS = ("common_object", "group_grounding", "reasoning", "unknown")
_MOST_WORDS = 3  # of a class; what is longer is a description
_NAMED = re.compile(f"{re.escape(OBJECT_START)}([^<]*){re.escape(OBJECT_END)}")


def read_rows(path: pathlib.Path, root: ImageRoot, left_out: LeftOut) -> Iterator[Photo]:
    """Yields the photos of rows, with the objects of targets, and of thoughts where there are any.

    Of a region's row only the source image is one. Colours that labels begin with are attributes.

    Args:
      path: the file.
      root: folder that the rows' image paths are relative to.
      left_out: counts rows and images that can't be used.

    Raises:
      DataError: the file can't be read, or has no photos.
    """
    examples, rejected = read_examples(path)
    for each in rejected:
        left_out.add("rows: a row can't be used", f"{each.source}: {each.reason}")
    used = 0
    for example in examples:
        for photo in _photos(example, root, left_out):
            used += 1
            yield photo
    if not used:
        raise DataError(
            f"{path}: no row has photos of its own; those of {', '.join(_OF_PHOTOS)} and region do"
        )


def _photos(example: Example, root: ImageRoot, left_out: LeftOut) -> Iterator[Photo]:
    if example.task == "region":
        images = example.images[:1]
    elif example.task in _OF_PHOTOS:
        images = example.images
    else:
        left_out.add(
            "rows: the images are copies, crops or views of others",
            f"{example.source}: of a {example.task} row; give the photos that it was made of",
        )
        return
    boxes: dict[int, list[tuple[str, Box]]] = {}
    for target in example.targets:
        label = target.label or _described(example)
        boxes.setdefault(target.image or 0, []).append((label, target.box))
    if example.response is not None:
        response = parse_response(example.response, len(example.images))
        for found in response.mentions:
            boxes.setdefault(found.image or 0, []).append((found.label, found.box))
    for number, image in enumerate(images, start=1):
        try:
            size = image_size(root, image)
        except DataError as error:
            left_out.add("rows: an image can't be read", f"{example.source}: {error}")
            continue
        objects: list[Labelled] = []
        for label, box in boxes.get(number, ()):
            _add(objects, _labelled(label, grid_to_pixels(box, *size)))
        yield Photo(image, tuple(objects), size)


def _labelled(label: str, box: Sides) -> Labelled:
    """Returns an object by its label, which may be a description."""
    try:
        words = clean(label)
    except ValueError:
        return Labelled("", box)
    name, attributes = split_colour(words)
    if len(name.split()) > _MOST_WORDS:
        return Labelled("", box, phrases=(words,))
    return Labelled(name, box, attributes=attributes)


def _add(objects: list[Labelled], new: Labelled) -> None:
    """Adds an object, unless it is there: thoughts repeat the target, with a box less exact."""
    for place, old in enumerate(objects):
        if overlap(old.box, new.box) > 0.5 and (
            not old.label or not new.label or alike(old.label, new.label)
        ):
            if not old.label:
                objects[place] = dataclasses.replace(new, box=old.box, phrases=old.phrases)
            return
    objects.append(new)


def _described(example: Example) -> str:
    """Returns the name or description of what a question asks for; "" if it has none."""
    found = _NAMED.findall(example.question) if example.task == "group_grounding" else []
    return found[0] if len(found) == 1 else ""
