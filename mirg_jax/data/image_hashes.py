"""Hashes that tell images from others by their content."""

import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Iterable, Sequence

from PIL import ExifTags, Image

from mirg_jax.data.images import ImageRoot, Root, find_image
from mirg_jax.errors import DataError
from mirg_jax.files import hashes

_PARTS = 16  # of an image's file, each of which is sampled
_KEPT = 2**16  # hashes, some 20 MB: a file is read once, though rows share images


class ImageHashes:
    """Tells images from others by their files' content, wherever they lie.

    A hash has two halves, `SAMPLES.CONTENT`, as that of a model has. The first is made from samples
    of each file, as earlier versions recorded it (`hashes.agrees`). The second is of all bytes: in
    a file without compression a small change may lie between the samples. Hashing a photo takes a
    few percent of the time of decoding it. Dates don't count, nor do paths.
    """

    def __init__(self, root: Root):
        """
        Args:
          root: the image root. Where it applies EXIF orientations, an image that is turned differs
            from the same as stored.
        """
        self._root = ImageRoot.of(root)
        self._of_image = functools.lru_cache(_KEPT)(self._hash)

    def of(self, paths: Sequence[str]) -> str | None:
        """Returns a hash of some images in their order; None if one of them can't be read."""
        try:
            each_of = [self._of_image(path) for path in paths]
        except (OSError, DataError):
            return None
        halves = (" ".join(each[half] for each in each_of) for half in (0, 1))
        return ".".join(hashlib.sha256(half.encode()).hexdigest()[:32] for half in halves)

    def of_rows(self, rows: Iterable[Sequence[str]]) -> str | None:
        """Returns a hash of all images of some rows, each once, as `of` does."""
        return self.of(list(dict.fromkeys(path for images in rows for path in images)))

    def differ(self, paths: Sequence[str], recorded: str) -> bool:
        """Returns whether images are others than those that a hash was recorded of.

        Those of which one can't be read any more are not compared.
        """
        now = self.of(paths)
        return now is not None and not hashes.agrees(recorded, now)

    def _hash(self, path: str) -> tuple[str, str]:
        (_, content), samples = find_image(self._root, path), hashlib.sha256()
        if self._root.apply_exif and _is_turned(content):
            samples.update(b"turned\n")
        with content.open("rb") if isinstance(content, pathlib.Path) else content as file:
            size = file.seek(0, os.SEEK_END)
            ends = [size * part // _PARTS for part in range(_PARTS + 1)]
            hashes.add_samples(samples, file, "", list(zip(ends, ends[1:], strict=False)))
            file.seek(0)
            return samples.hexdigest(), hashlib.file_digest(file, "sha256").hexdigest()


def _is_turned(file: pathlib.Path | io.BytesIO) -> bool:
    """Returns whether an image has an EXIF orientation other than upright."""
    try:
        with Image.open(file) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # Pillow raises many types; whoever loads the image says what is wrong
        return False
