"""What a model answered: its text, and the objects it found in the images."""

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
      text: the whole response, thoughts and special tokens included.
      objects: those of its answer. Boxes are x1, y1, x2, y2 on the grid 0–1000 relative to their
        image, origin top left; images count from 1, None where the answer names none.
      format_ok: whether the response has the form that it was trained for.
      images: that were asked about, as 8-bit RGB.
    """

    text: str
    objects: tuple[GroundedObject, ...]
    format_ok: bool
    images: tuple[Image.Image, ...] = dataclasses.field(repr=False)

    @classmethod
    def parse(cls, text: str, images: Sequence[Image.Image]) -> "GroundedAnswer":
        text = text.removesuffix(END_OF_TURN)
        response = parse_response(text, len(images))
        return cls(text, tuple(response.objects), response.format_ok, tuple(images))

    def boxes_in_pixels(self) -> list[tuple[int, tuple[float, float, float, float]]]:
        """Image, from 1, and x1, y1, x2, y2 in pixels of it, for each object of the answer.

        An object that names no image is taken to be in the first.
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
