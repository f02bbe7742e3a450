"""Image files → patches as in Qwen2-VL's image processor, but as uint8 and with one frame.

Normalisation, and the second frame of the temporal patch, are left to the device, so that 588 bytes
per patch are transferred instead of 1176 floats.
"""

import math
import os
import pathlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mirg_jax.errors import DataError

PATCH = 14
MERGE = 2
PATCH_BYTES = 3 * PATCH * PATCH
MAX_ASPECT_RATIO = 200

# Limit on a file's pixels before resizing: more than any photo in the data sets, 200 MB decoded.
MAX_FILE_PIXELS = 64_000_000
# Pillow's other formats are rare, and some run external programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Folders that the paths in the published files begin with.
_DATASET_FOLDERS = ("MGrounding-630k", "MIG-Bench")


@dataclass(frozen=True)
class ImagePatches:
    """An image split into patches.

    Attributes:
      patches: one frame of 3×14×14 pixels each (channel, row, column), in 2×2 merge-block order.
      grid: rows and columns of patches, both even.
    """

    patches: UInt8[np.ndarray, "patches 588"]
    grid: tuple[int, int]


def resolve_image(root: str | pathlib.Path, path: str) -> pathlib.Path:
    """Resolves an image path of a data set; the file need not exist.

    Paths in the published files begin with the data set's folder; `root` may be that folder or its
    parent.

    Args:
      root: the image root.
      path: a path in the data.

    Raises:
      DataError: if the path is invalid or leads out of the root.
    """
    root, relative = pathlib.Path(root), pathlib.PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(
            f"image {path!r}: the path leaves the image root; make it relative to {str(root)!r}"
        )
    found = root / relative
    try:
        if relative.parts[:1] and relative.parts[0] in _DATASET_FOLDERS and not found.exists():
            found = root.joinpath(*relative.parts[1:])
        inside = found.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a null byte
        raise DataError(f"image {path!r}: not a usable path ({error}); correct the row") from None
    if not inside:
        raise DataError(
            f"image {path!r}: a link leads out of the image root; copy the file into {str(root)!r}"
        )
    return found


def image_size(root: str | pathlib.Path, path: str) -> tuple[int, int]:
    """Reads the width and height of an image as stored, without decoding it.

    Raises:
      DataError: if the file is missing, not an image, or too narrow.
    """
    file = resolve_image(root, path)
    try:
        with Image.open(file, formats=_FORMATS) as image:
            size = image.size
        if max(size) > MAX_ASPECT_RATIO * min(size):
            raise ValueError(f"it is narrower than 1:{MAX_ASPECT_RATIO}")
        return size
    except Exception as error:  # as in `load_image`
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"image {str(file)!r}: can't read its size ({what}); check the image root and the row"
        ) from None


def load_image(root: str | pathlib.Path, path: str) -> Image.Image:
    """Reads an image as 8-bit RGB.

    Transparent images are composited on white, and 16-bit grey is scaled to 8 bits. The EXIF
    orientation is not applied, since boxes are relative to the image as stored.

    Args:
      root: the image root.
      path: path of the image relative to it.

    Raises:
      DataError: if the file is missing, not an image, damaged, too large or too narrow.
    """
    file = resolve_image(root, path)

    def unusable(what: str, remedy: str) -> DataError:
        return DataError(f"image {str(file)!r}: {what}; {remedy}")

    again = "get the file again or remove the row"
    try:
        if os.path.getsize(file) == 0:
            raise unusable("the file is empty", again)
        with Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_FILE_PIXELS:
                raise unusable(
                    f"{width}x{height} pixels are more than {MAX_FILE_PIXELS}", "make it smaller"
                )
            if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
                raise unusable(
                    f"{width}x{height} is narrower than 1:{MAX_ASPECT_RATIO}", "crop it or pad it"
                )
            return to_rgb(image)
    except DataError:
        raise
    except FileNotFoundError:
        raise unusable("no such file", "check the image root and the row") from None
    except Image.DecompressionBombError:
        raise unusable(f"it has more than {MAX_FILE_PIXELS} pixels", "make it smaller") from None
    except Image.UnidentifiedImageError:
        raise unusable("not an image of a known format", again) from None
    except Exception as error:  # Pillow's decoders raise many exception types on damaged files
        what = " ".join(str(error).split()) or type(error).__name__
        raise unusable(f"cannot be read ({what})", again) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to 8-bit RGB; see `load_image`.

    Raises:
      ValueError: if pixels are 32-bit floats.
    """
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        grey = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode == "RGB":
        image.load()  # `convert` would make a copy, which takes as long as decoding a JPEG
        return image
    return image.convert("RGB")


def shrink(image: Image.Image, max_pixels: int) -> Image.Image:
    """Shrinks an image to at most `max_pixels` pixels; returns smaller images unchanged."""
    if (pixels := image.width * image.height) <= max_pixels:
        return image
    by = math.sqrt(max_pixels / pixels)
    size = [max(1, math.floor(side * by)) for side in image.size]
    return image.resize(size, reducing_gap=2.0)


def smart_resize(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Returns the height and width that Qwen2-VL resizes an image to.

    Sides are multiples of 28, the aspect ratio is kept as closely as that allows, and the number of
    pixels is within the limits where possible.

    Raises:
      ValueError: if the aspect ratio is over 200.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"{width}x{height} is narrower than 1:{MAX_ASPECT_RATIO}")
    unit = PATCH * MERGE
    rows, columns = round(height / unit), round(width / unit)
    if rows * columns * unit**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / unit))
        columns = max(1, math.floor(width / shrink / unit))
    elif rows * columns * unit**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / unit)
        columns = math.ceil(width * grow / unit)
    return rows * unit, columns * unit


def patchify(image: Image.Image, min_pixels: int, max_pixels: int) -> ImagePatches:
    """Resizes an RGB image (bicubic) and splits it into patches of uint8 pixels.

    The four patches that the model merges into one visual token are adjacent in the result.

    Args:
      image: an RGB image.
      min_pixels: lower limit on the pixels after resizing.
      max_pixels: upper limit on the pixels after resizing.
    """
    height, width = smart_resize(image.height, image.width, min_pixels, max_pixels)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    rows, columns = height // PATCH, width // PATCH
    blocks = pixels.reshape(rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, PATCH_BYTES)
    return ImagePatches(patches, (rows, columns))
