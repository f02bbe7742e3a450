"""Image files → patches as in Qwen's image processors, but as uint8 and with one frame.

Normalisation, and the second frame of the temporal patch, are left to the device, so that 588 bytes
per patch of 14×14 pixels are transferred instead of 1176 floats.
"""

import functools
import io
import logging
import math
import os
import pathlib
from dataclasses import dataclass, field

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from mirg_jax.data import packed_images, stored_images
from mirg_jax.errors import DataError, UserError
from mirg_jax.files import places
from mirg_jax.files.stand_ins import find_stand_in

PATCH = 14  # pixels along the side of a patch; 16 for Qwen3-VL
MERGE = 2
MAX_ASPECT_RATIO = 200

# Limit on a file's pixels before resizing: more than any photo in the data sets, 200 MB decoded.
MAX_FILE_PIXELS = 64_000_000
# Pillow's other formats are rare, and some run external programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
# By EXIF orientation: how an image as stored becomes upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Folders that the paths in the published files begin with.
_DATASET_FOLDERS = ("MGrounding-630k", "MIG-Bench")


@dataclass(frozen=True)
class ImagePatches:
    """An image split into patches.

    Attributes:
      patches: one frame of 3×14×14 pixels each (channel, row, column), in 2×2 merge-block order;
        of 3×16×16 for Qwen3-VL.
      grid: rows and columns of patches, both even.
    """

    patches: UInt8[np.ndarray, "patches bytes"]
    grid: tuple[int, int]


@dataclass(frozen=True)
class ImageRoot:
    """A data set's folder of images, and how its images are read.

    Attributes:
      path: the folder, or the URL of one in a store.
      follow_links: whether links below it may lead to files elsewhere.
      apply_exif: whether images are turned as their EXIF orientation says; by default they are read
        as stored, since that is what the boxes of published data sets are relative to.
      cache: folder on a disk that keeps what is fetched from a store; "": none.
      rotated: paths of the images met so far that have such an orientation.
    """

    path: places.Place
    follow_links: bool = False
    apply_exif: bool = False
    cache: str = ""
    rotated: set[str] = field(default_factory=set, compare=False)

    @staticmethod
    def of(root: "str | pathlib.Path | ImageRoot") -> "ImageRoot":
        """Returns `root` itself, or a folder with the default way of reading, always the same."""
        return root if isinstance(root, ImageRoot) else _by_default(str(root))

    def met(self, path: str) -> None:
        """Counts an image with an EXIF orientation, and warns of the first."""
        if not self.rotated:
            how = "turned upright" if self.apply_exif else "read as stored"
            logging.warning(
                "image %r has an EXIF orientation and is %s, as all such images are: set "
                "apply_exif if boxes are relative to the upright image",
                path,
                how,
            )
        self.rotated.add(path)


Root = str | pathlib.Path | ImageRoot


@functools.cache
def _by_default(folder: str) -> ImageRoot:
    return ImageRoot(places.of(folder, "image root"))


def resolve_image(root: Root, path: str) -> pathlib.Path:
    """Resolves an image path of a data set; the file need not exist.

    Paths in the published files begin with the data set's folder; `root` may be that folder or its
    parent. A path may be absolute, and links may be followed, as long as the file lies below the
    root. Where the root is in a snapshot of the Hugging Face cache, whose files are links, it may
    also lie in that repository's store.

    Args:
      root: the image root.
      path: a path in the data.

    Raises:
      ConfigError: if the root is a URL, whose files are no paths.
      DataError: if the path is invalid or leads out of the root, or names an image in a table.
    """
    places.check_local(ImageRoot.of(root).path, "image root")
    if packed_images.parse(path):
        raise DataError(
            f"image {path!r}: lies in a table, and files are needed here; save the images as files"
        )
    root, relative = ImageRoot.of(root), pathlib.PurePosixPath(path)
    folder = root.path
    found = folder / relative  # an absolute path stands for itself
    try:
        if relative.parts[:1] and relative.parts[0] in _DATASET_FOLDERS and not found.exists():
            found = folder.joinpath(*relative.parts[1:])
        file, real = found.resolve(), folder.resolve()
        if places.is_special(file):
            raise DataError(f"image {path!r}: is a device or a pipe, no file; correct the row")
        if file.is_relative_to(real):
            return found
        named_inside = any(_is_named_in(found, each) for each in (folder, real))
        if named_inside and (root.follow_links or _is_in_store(file, real)):
            return found
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a null byte
        raise DataError(f"image {path!r}: not a usable path ({error}); correct the row") from None
    if named_inside:
        raise DataError(
            f"image {path!r}: a link leads out of the image root; copy the file into "
            f"{str(folder)!r}, or set follow_links to allow such links"
        )
    raise DataError(
        f"image {path!r}: the path leaves the image root; make it relative to {str(folder)!r}"
    )


def _is_named_in(file: pathlib.Path, folder: pathlib.Path) -> bool:
    """Returns whether a path begins with a folder's, links aside."""
    return pathlib.Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder))


def _is_in_store(file: pathlib.Path, folder: pathlib.Path) -> bool:
    """Returns whether a file lies in the store of the snapshot that a folder is in.

    The Hugging Face cache has REPOSITORY/snapshots/REVISION/…, with links into REPOSITORY/blobs.
    """
    for each in (folder, *folder.parents):
        blobs = each.parent.parent / "blobs"
        if each.parent.name == "snapshots" and blobs.is_dir() and not blobs.is_symlink():
            return file.is_relative_to(blobs.resolve())
    return False


def find_image(root: ImageRoot, path: str) -> tuple[str, pathlib.Path | io.BytesIO]:
    """Returns an image's name for messages, and what Pillow can open: its file, or its content.

    Raises:
      DataError: if the path is invalid or leads out of the root.
      FileNotFoundError: if it is not in the store.
      UserError: if the store can't be read; that is no fault of the row, which is not left out.
    """
    if not places.is_url(root.path):
        if packed := packed_images.parse(path):
            file = _table_of(root, path, packed.table)
            return path, io.BytesIO(packed_images.read(file, packed))
        file = resolve_image(root, path)
        return str(file), file
    found = stored_images.candidates(epath.Path(root.path), path, _DATASET_FOLDERS)
    try:
        url, data = stored_images.fetch(found, root.cache)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"image {str(found[0])!r}: the store can't be read ({error.strerror}); fix that and "
            "run again to go on"
        ) from None
    return url, io.BytesIO(data)


def _table_of(root: ImageRoot, path: str, table: str) -> pathlib.Path:
    """Returns the file of the table that an image lies in."""
    try:
        return resolve_image(root, table)
    except DataError:
        raise DataError(
            f"image {path!r}: its table doesn't lie below the image root {str(root.path)!r}; give "
            "its folder as the image root"
        ) from None


def _length(content: pathlib.Path | io.BytesIO) -> int:
    """Returns the number of bytes of what `find_image` returns."""
    if isinstance(content, pathlib.Path):
        return os.path.getsize(content)
    return len(content.getbuffer())


def _beginning(content: pathlib.Path | io.BytesIO) -> bytes:
    """Returns the first bytes of what `find_image` returns."""
    if isinstance(content, pathlib.Path):
        with open(content, "rb") as file:
            return file.read(512)
    return content.getvalue()[:512]


def exif_orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation by which an image is still to be turned; 1 for none."""
    try:
        # Pillow itself turns TIFFs.
        found = 1 if image.format == "TIFF" else image.getexif().get(0x0112)
    except Exception:  # damaged metadata don't make an image unreadable
        return 1
    return found if found in _UPRIGHT else 1


def image_size(root: Root, path: str) -> tuple[int, int]:
    """Reads the width and height of an image as `load_image` has it, without decoding it.

    Raises:
      DataError: if the file is missing, not an image, or too narrow.
    """
    root = ImageRoot.of(root)
    file = path
    try:
        file, content = find_image(root, path)
        with Image.open(content, formats=_FORMATS) as image:
            size = image.size
            if root.apply_exif and exif_orientation(image) >= 5:
                size = size[::-1]
        if max(size) > MAX_ASPECT_RATIO * min(size):
            raise ValueError(f"it is narrower than 1:{MAX_ASPECT_RATIO}")
        return size
    except UserError:
        raise
    except Exception as error:  # as in `load_image`
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"image {file!r}: can't read its size ({what}); check the image root and the path"
        ) from None


def load_image(root: Root, path: str) -> Image.Image:
    """Reads an image as 8-bit RGB.

    Transparent images are composited on white, and 16-bit grey is scaled to 8 bits. The EXIF
    orientation is applied only if the root says so; images that have one are counted there.

    Args:
      root: the image root.
      path: path of the image relative to it.

    Raises:
      DataError: if the file is missing, not an image, damaged, too large or too narrow.
    """
    root = ImageRoot.of(root)
    file = path

    def unusable(what: str, remedy: str) -> DataError:
        return DataError(f"image {file!r}: {what}; {remedy}")

    again = "get the file again or remove the row"
    try:
        file, content = find_image(root, path)
        if _length(content) == 0:
            raise unusable("the file is empty", again)
        with Image.open(content, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_FILE_PIXELS:
                raise unusable(
                    f"{width}x{height} pixels are more than {MAX_FILE_PIXELS}", "make it smaller"
                )
            if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
                raise unusable(
                    f"{width}x{height} is narrower than 1:{MAX_ASPECT_RATIO}", "crop it or pad it"
                )
            rgb, orientation = to_rgb(image), exif_orientation(image)
            if orientation == 1:
                return rgb
            root.met(path)
            return rgb.transpose(_UPRIGHT[orientation]) if root.apply_exif else rgb
    except UserError:
        raise
    except FileNotFoundError:
        raise unusable("no such file", "check the image root and the path") from None
    except Image.DecompressionBombError:
        raise unusable(f"it has more than {MAX_FILE_PIXELS} pixels", "make it smaller") from None
    except Image.UnidentifiedImageError:
        if stand_in := find_stand_in(_beginning(content)):
            raise unusable(f"is {stand_in[0]} and no image", stand_in[1]) from None
        what = f"not an image of a known format ({', '.join(_FORMATS)})"
        raise unusable(what, f"convert it, or {again}") from None
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


def smart_resize(
    height: int, width: int, min_pixels: int, max_pixels: int, patch: int = PATCH
) -> tuple[int, int]:
    """Returns the height and width that Qwen's models resize an image to.

    Sides are multiples of two patches, the aspect ratio is kept as closely as that allows, and the
    number of pixels is within the limits where possible.

    Raises:
      ValueError: if the aspect ratio is over 200.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"{width}x{height} is narrower than 1:{MAX_ASPECT_RATIO}")
    unit = patch * MERGE
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


def patchify(
    image: Image.Image, min_pixels: int, max_pixels: int, patch: int = PATCH
) -> ImagePatches:
    """Resizes an RGB image (bicubic) and splits it into patches of uint8 pixels.

    The four patches that the model merges into one visual token are adjacent in the result.

    Args:
      image: an RGB image.
      min_pixels: lower limit on the pixels after resizing.
      max_pixels: upper limit on the pixels after resizing.
      patch: pixels along the side of a patch.
    """
    height, width = smart_resize(image.height, image.width, min_pixels, max_pixels, patch)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    rows, columns = height // patch, width // patch
    blocks = pixels.reshape(rows // MERGE, MERGE, patch, columns // MERGE, MERGE, patch, 3)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, -1)
    return ImagePatches(patches, (rows, columns))
