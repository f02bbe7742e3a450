"""A model's answer: its text, and the objects that it located in the images."""

import dataclasses
from collections.abc import Sequence

from PIL import Image

from mirg_jax.grounding import boxes
from mirg_jax.grounding.grammar import END_OF_TURN, GroundedObject, parse_response
from mirg_jax.inference.pictures import draw_side_by_side


@dataclasses.dataclass(frozen=True)
class GroundedAnswer:
    """A response to a question about images.

    Attributes:
      text: the whole response, including reasoning and special tokens.
      objects: the objects of the answer. Boxes are x1, y1, x2, y2 on a grid of 0–1000 relative to
        their image, origin at the top left; images are numbered from 1, and None if the answer
        names none.
      format_ok: whether the response has the format used in training.
      images: the images that the question is about, as 8-bit RGB.
    """

    text: str
    objects: tuple[GroundedObject, ...]
    format_ok: bool
    images: tuple[Image.Image, ...] = dataclasses.field(repr=False)

    @classmethod
    def parse(cls, text: str, images: Sequence[Image.Image]) -> "GroundedAnswer":
        """Parses a response to a question about the given images."""
        text = text.removesuffix(END_OF_TURN)
        response = parse_response(text, len(images))
        # An answer names an object by its id; the thoughts have its label.
        labels = {(seen.image, seen.number): seen.label for seen in response.mentions}
        objects = tuple(
            dataclasses.replace(obj, label=obj.label or labels.get((obj.image, obj.number), ""))
            for obj in response.objects
        )
        return cls(text, objects, response.format_ok, tuple(images))

    def boxes_in_pixels(self) -> list[tuple[int, tuple[float, float, float, float]]]:
        """Converts the boxes of the answer's objects to pixels.

        Returns:
          For each object, the image's number (from 1; the first image if the answer names none),
          and x1, y1, x2, y2 in that image's pixels.
        """
        found = []
        for obj in self.objects:
            number = obj.image or 1
            image = self.images[number - 1]
            found.append((number, boxes.grid_to_pixels(obj.box, image.width, image.height)))
        return found

    def draw(self) -> Image.Image:
        """Draws the images side by side, with the box and label of each object."""
        return draw_side_by_side(self.images, self.objects)
