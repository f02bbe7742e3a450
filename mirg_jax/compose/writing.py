"""From drafts to files: images beside one another in one folder, and rows in pieces."""

import dataclasses
import hashlib
import json
import os
import pathlib
import posixpath
import shutil
from typing import Any

import numpy as np
from PIL import Image

from mirg_jax.compose.drafts import Draft
from mirg_jax.compose.library import Library
from mirg_jax.compose.photos import Photo
from mirg_jax.data.examples import Example, Target
from mirg_jax.data.images import ImageRoot, resolve_image
from mirg_jax.files import outputs

PHOTOS, MADE = "photos", "made"  # folders of images


def write_images(
    draft: Draft, name: str, library: Library, root: ImageRoot, folder: pathlib.Path
) -> tuple[str, ...]:
    """Writes a draft's images; those of one example are all written in the same way.

    Photos as they are become further names of the same files, or copies on another disk. Where any
    image is made, all are: decoded, of at most as many pixels, and written as PNG by the same
    settings, so that nothing but their pixels tells them apart.

    Args:
      draft: the draft.
      name: the example's id.
      library: where photos' pixels are from.
      root: folder that photos' paths are relative to.
      folder: folder that paths of the result are relative to.

    Returns:
      The paths.
    """
    if not _is_made(draft):
        return tuple(_link(each.path, root, folder) for each in draft.images)
    paths = []
    for number, each in enumerate(draft.images, start=1):
        pixels = library.pixels(each) if isinstance(each, Photo) else each
        path = f"{MADE}/{name}_{number}.png"
        write_png(folder / path, pixels)
        paths.append(path)
    return tuple(paths)


def _is_made(draft: Draft) -> bool:
    """Returns whether a draft's images are written, and not further names of photos."""
    return not all(isinstance(each, Photo) for each in draft.images)


def check_readable(draft: Draft, library: Library) -> None:
    """Decodes the photos that `write_images` will write.

    Raises:
      DataError: one can't be read.
    """
    if _is_made(draft):
        for each in draft.images:
            if isinstance(each, Photo):
                library.pixels(each)


def write_png(path: pathlib.Path, pixels: np.ndarray) -> None:
    """Writes a PNG file, which is there when it is complete."""
    with outputs.whole(path) as part:
        Image.fromarray(pixels).save(part, "PNG", compress_level=1)


def _link(path: str, root: ImageRoot, folder: pathlib.Path) -> str:
    """Gives a photo a name below the folder; returns it."""
    name = posixpath.join(PHOTOS, path)
    target = folder / name
    if not target.exists():
        file = os.path.realpath(resolve_image(root, path))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError:  # another disk, or a file system without links
            with outputs.whole(target) as part:
                shutil.copyfile(file, part)
    return name


def to_example(
    draft: Draft, name: str, task: str, images: tuple[str, ...], direct: bool | None
) -> Example:
    """Returns the example of a draft whose images were written."""
    target = Target(draft.box, draft.image, draft.label)
    return Example(name, task, images, draft.question, (target,), direct=direct)


def to_row(example: Example, photos: tuple[str, ...]) -> dict[str, Any]:
    """Returns a row in the project's own format, and the photos that it was made from."""
    row = dataclasses.asdict(example)
    del row["source"]
    if example.direct is None:
        del row["direct"]
    return row | {"photos": photos}


def of_row(row: dict[str, Any]) -> Example:
    """Returns the example of a row that `to_row` has made."""
    targets = tuple(
        Target(tuple(each["box"]), each["image"], each["label"]) for each in row["targets"]
    )
    return Example(
        row["id"],
        row["task"],
        tuple(row["images"]),
        row["question"],
        targets,
        direct=row.get("direct"),
    )


def write_piece(path: pathlib.Path, rows: list[dict[str, Any]], left_out: dict[str, Any]) -> None:
    """Writes some rows, and what was left out beside them; the file is there when it is whole."""
    lines = [*rows, {"left_out": left_out}]
    outputs.replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_piece(path: pathlib.Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns what `write_piece` has written."""
    with open(path, encoding="utf-8") as file:
        *rows, last = map(json.loads, file)
    return rows, last["left_out"]


def key_of(row: dict[str, Any]) -> bytes:
    """Returns what tells a row from others: its question, answer and photos."""
    told = [row["question"], row["targets"], row["photos"]]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).digest()
