"""Image files → patches, as Qwen2-VL's image processor makes them, on the host and in uint8.

The device duplicates the frame (the temporal patch has two) and normalises: a patch travels as 588
bytes instead of 1176 floats.
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

# Pixels of a file, before resizing. More than any photo of a data set, and 200 MB when decoded.
MAX_FILE_PIXELS = 64_000_000
# Pillow's other formats are rare and some run external programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# The folders that the paths in the published files begin with.
_DATASET_FOLDERS = ("MGrounding-630k", "MIG-Bench")


@dataclass(frozen=True)
class ImagePatches:
    """An image cut into patches.

    Attributes:
      patches: one frame of 3×14×14 pixels each (channel, row, column), in 2×2 merge-block order.
      grid: rows and columns of patches, both even.
    """

    patches: UInt8[np.ndarray, "patches 588"]
    grid: tuple[int, int]


def resolve_image(root: str | pathlib.Path, path: str) -> pathlib.Path:
    """The file that a data set's path means; it need not exist.

    Paths of the published files begin with the data set's folder: `root` may be that folder or the
    one above it.

    Raises:
      DataError: the path leaves the root.
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
        raise DataError(f"image {path!r}: not a usable path ({error}); mend the row") from None
    if not inside:
        raise DataError(
            f"image {path!r}: a link leads out of the image root; copy the file into {str(root)!r}"
        )
    return found


def image_size(root: str | pathlib.Path, path: str) -> tuple[int, int]:
    """Width and height of an image as stored; its pixels are not read.

    Raises:
      DataError: the file is missing, not an image or too narrow.
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
            f"image {str(file)!r}: no size to be had ({what}); check the image root and the row"
        ) from None


def load_image(root: str | pathlib.Path, path: str) -> Image.Image:
    """Reads an image as 8-bit RGB; transparency is laid on white, 16-bit grey scaled to 8.

    The EXIF orientation is not applied: boxes are relative to the image as stored.

    Raises:
      DataError: the file is missing, not an image, damaged, too large or too narrow.
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
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        what = " ".join(str(error).split()) or type(error).__name__
        raise unusable(f"cannot be read ({what})", again) from None


def to_rgb(image: Image.Image) -> Image.Image:
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
        image.load()  # `convert` would copy it, which takes as long as decoding a JPEG
        return image
    return image.convert("RGB")


def shrink(image: Image.Image, max_pixels: int) -> Image.Image:
    """The image, smaller if it has more pixels."""
    if (pixels := image.width * image.height) <= max_pixels:
        return image
    by = math.sqrt(max_pixels / pixels)
    size = [max(1, math.floor(side * by)) for side in image.size]
    return image.resize(size, reducing_gap=2.0)


def smart_resize(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Qwen2-VL's size for an image: sides are multiples of 28, the shape is kept as nearly as that
    allows, and the pixels lie between the limits where possible.

    Raises ValueError for an aspect ratio over 200.
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
    """Resizes an RGB image (bicubic) and cuts it into patches; pixels stay 0..255.

    The four patches that the model merges into one visual token are neighbours in the result.
    """
    height, width = smart_resize(image.height, image.width, min_pixels, max_pixels)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    rows, columns = height // PATCH, width // PATCH
    blocks = pixels.reshape(rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, PATCH_BYTES)
    return ImagePatches(patches, (rows, columns))
