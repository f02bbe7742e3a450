"""YOLO data sets: a text file of classes and boxes beside each image, in fractions of its sides."""

import os
import pathlib
from collections.abc import Iterator

import yaml

from mirg_jax.compose.names import clean
from mirg_jax.compose.photos import Labelled, Photo, scaled
from mirg_jax.data.images import image_size
from mirg_jax.data.left_out import LeftOut
from mirg_jax.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_NAME_FILES = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names")


def read_yolo(path: pathlib.Path, left_out: LeftOut) -> Iterator[Photo]:
    """Yields the images of a data set with their objects; every object of the classes has a box.

    Images lie in a folder "images" and their labels likewise below "labels" beside it, or both in
    one folder. An image without a file of labels has no objects, as YOLO takes it. Outlines count
    by the box around them. Paths are absolute.

    Args:
      path: the data set's folder, with the names of the classes in data.yaml or classes.txt; or
        the YAML file itself.
      left_out: counts lines and images that can't be used.

    Raises:
      DataError: the folder or the names are missing, or there are no labels.
    """
    folder, names = _names(path)
    seen = 0
    for image, labels in _pairs(folder):
        seen += labels.exists()
        try:
            size = image_size(folder, str(image))
            text = labels.read_text("utf-8") if labels.exists() else ""
        except (DataError, OSError, UnicodeDecodeError) as error:
            what = "YOLO: the image or its labels can't be read"
            left_out.add(what, f"{labels}: {error}; get the files again")
            continue
        objects, unsure = [], set()
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                if line.strip():
                    objects.append(_object(line, names, size))
            except ValueError as error:
                left_out.add("YOLO: a line can't be used", f"{labels} line {number}: {error}")
                unsure |= _classes(line, names)
        yield Photo(str(image), tuple(objects), size, complete=True, unsure=frozenset(unsure))
    if not seen:
        raise DataError(
            f"{folder}: no image has a file of labels; YOLO has images/…/NAME.jpg and "
            "labels/…/NAME.txt, or both in one folder"
        )


def _names(path: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
    """Returns the data set's folder and the names of its classes."""
    files = [path] if path.is_file() else [path / name for name in _NAME_FILES]
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        raise DataError(f"{path}: has no {' or '.join(_NAME_FILES)}; give the classes' names there")
    try:
        text = file.read_text("utf-8")
        if file.suffix in (".yaml", ".yml"):
            found = yaml.safe_load(text)
            found = found.get("names") if isinstance(found, dict) else None
            found = [found[key] for key in sorted(found)] if isinstance(found, dict) else found
        else:
            found = [line for line in text.splitlines() if line.strip()]
        names = [clean(each) for each in found or ()]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, TypeError) as error:
        what = " ".join(str(error).split())
        raise DataError(
            f"{file}: the names of classes can't be read ({what}); correct it"
        ) from None
    if not names:
        raise DataError(f"{file}: names no classes; add names, a list")
    return file.parent.absolute(), names


def _pairs(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Yields each image, and where its labels are if it has any."""
    for base, folders, files in os.walk(folder):
        folders.sort()
        base = pathlib.Path(base)
        parts = list(base.parts)
        if "images" in parts:
            last = len(parts) - 1 - parts[::-1].index("images")
            parts[last] = "labels"
        for name in sorted(files):
            if name.lower().endswith(IMAGE_ENDINGS):
                yield base / name, pathlib.Path(*parts, name).with_suffix(".txt")


def _classes(line: str, names: list[str]) -> set[str]:
    """Returns which classes a line that can't be used may be of: there is one more, somewhere."""
    number = line.split()[0]
    known = number.isdecimal() and int(number) < len(names)
    return {names[int(number)]} if known else set(names)


def _object(line: str, names: list[str], size: tuple[int, int]) -> Labelled:
    """Reads a line: class, centre, width and height; or class and the corners of an outline.

    Raises:
      ValueError: it is something else.
    """
    number, *values = line.split()
    if not number.isdecimal() or int(number) >= len(names):
        raise ValueError(f"class {number!r} is none of the {len(names)} names; correct the names")
    numbers = [float(each) for each in values]
    if len(numbers) in (4, 5):  # the fifth: a detector's confidence
        x, y, width, height = numbers[:4]
        box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    elif len(numbers) >= 6 and len(numbers) % 2 == 0:
        box = min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
    else:
        raise ValueError(f"{len(numbers)} numbers behind the class, where a box has four")
    near = all(-0.01 <= each <= 1.01 for each in box)
    if not near or box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError("the box is empty or not in fractions of the image; divide by its sides")
    return Labelled(names[int(number)], scaled(box, (1, 1), size))
