"""Drawing of boxes on images."""

import io
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageColor, ImageDraw, ImageFont

from mirg_jax.data.images import load_image
from mirg_jax.errors import ConfigError
from mirg_jax.grounding import boxes
from mirg_jax.grounding.grammar import GroundedObject

COLOURS = ("red", "lime", "deepskyblue", "orange", "magenta", "yellow")
SMALL = 224  # pixels; images whose longest side is shorter are enlarged
_GAP = 8


class Drawing(NamedTuple):
    """A box to draw on an image."""

    box: boxes.Box  # on the grid 0..1000
    colour: str  # a colour name that PIL knows
    caption: str = ""


def check_picture(path: pathlib.Path) -> None:
    """Checks that a picture can be written under a file's name.

    Raises:
      ConfigError: if the name's ending names no format that pictures can be written in.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), kind or "none")
    except (KeyError, OSError, ValueError):
        raise ConfigError(
            f"{path}: its ending names no picture format; end it in .png, .jpg or .webp"
        ) from None


def save_picture(picture: Image.Image, path: pathlib.Path) -> None:
    """Writes a picture in the format that the file's name says, and makes its folder.

    Raises:
      ConfigError: if it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from None


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarges a small image by an integer factor, so that boxes don't hide it."""
    factor = SMALL // max(image.size)
    if factor <= 1:
        return image
    size = (factor * image.width, factor * image.height)
    return image.resize(size, Image.Resampling.NEAREST)


def draw_objects(
    paths: Sequence[str | pathlib.Path],
    objects: Sequence[GroundedObject],
    colours: Sequence[str] = COLOURS,
) -> Image.Image:
    """Reads images and draws them side by side, with the box and label of each object.

    Args:
      paths: image files; objects refer to them by number, from 1.
      objects: the objects; one without an image number is drawn on the first image.
      colours: colours of the objects, used cyclically.

    Raises:
      DataError: if an image can't be read.
    """
    files = [pathlib.Path(path).resolve() for path in paths]
    images = [load_image(path.parent, path.name) for path in files]
    return draw_side_by_side(images, objects, colours)


def draw_side_by_side(
    images: Sequence[Image.Image],
    objects: Sequence[GroundedObject],
    colours: Sequence[str] = COLOURS,
) -> Image.Image:
    """Draws images in memory side by side, with boxes; see `draw_objects`."""
    drawings: list[list[Drawing]] = [[] for _ in images]
    for i, obj in enumerate(objects):
        caption = obj.label or f"object {i + 1}"
        drawing = Drawing(obj.box, colours[i % len(colours)], caption)
        drawings[(obj.image or 1) - 1].append(drawing)
    pictures = [
        draw_boxes(enlarge(image), marks) for image, marks in zip(images, drawings, strict=True)
    ]
    width = sum(picture.width + _GAP for picture in pictures) - _GAP
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + _GAP
    return sheet


def draw_boxes(
    image: Image.Image, drawings: Sequence[Drawing], *, scale: float | None = None
) -> Image.Image:
    """Draws boxes with captions on a copy of an image.

    Captions have a background in the box's colour. The font is Pillow's built-in one, which has
    only the letters of English.

    Args:
      scale: of lines and letters, 1 for 3 and 20 pixels; by default it follows the image's size.
    """
    canvas = image.convert("RGB")  # always a copy
    draw = ImageDraw.Draw(canvas)
    if scale is None:
        scale = min(max(max(canvas.size) / 1000, 0.5), 4)
    line, margin = max(2, round(3 * scale)), max(2, round(4 * scale))
    font = ImageFont.load_default(size=max(12, round(20 * scale)))
    assert isinstance(font, ImageFont.FreeTypeFont)  # as it is whenever a size is given
    for drawing in drawings:
        x1, y1, x2, y2 = boxes.grid_to_pixels(drawing.box, canvas.width, canvas.height)
        left, right = sorted((x1, x2))
        upper, lower = sorted((y1, y2))
        draw.rectangle((left, upper, right, lower), outline=drawing.colour, width=line)
        if drawing.caption:
            _draw_caption(draw, drawing, (left, upper), font, margin)
    return canvas


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    drawing: Drawing,
    corner: tuple[float, float],
    font: ImageFont.FreeTypeFont,
    margin: int,
) -> None:
    """Draws the caption above the box's upper left corner, or where it fits into the image."""
    width, height = draw.im.size
    text = " ".join(drawing.caption.split())
    while len(text) > 3 and draw.textlength(text, font) + 2 * margin > width:
        text = text.removesuffix("...")[:-1] + "..."
    ascent, descent = font.getmetrics()
    plate_width = draw.textlength(text, font) + 2 * margin
    plate_height = ascent + descent + margin
    left = max(0, min(corner[0], width - plate_width))
    upper = corner[1] - plate_height
    if upper < 0:
        upper = max(0, min(corner[1], height - plate_height))
    draw.rectangle((left, upper, left + plate_width, upper + plate_height), fill=drawing.colour)
    red, green, blue, *_ = ImageColor.getrgb(drawing.colour)
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
    draw.text((left + margin, upper + margin / 2), text, fill=ink, font=font)
