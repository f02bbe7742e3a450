"""YOLO data sets: a text file of classes and boxes beside each image, in fractions of its sides."""

import os
import pathlib
from collections.abc import Iterator

import yaml

from mirg_jax.compose.names import clean
from mirg_jax.compose.photos import Labelled, Photo, scaled
from mirg_jax.data.images import image_size
from mirg_jax.data.json_rows import quote
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
    for image, labels in _pairs(folder, left_out):
        seen += labels.exists()
        try:
            size = image_size(folder, str(image))
            text = labels.read_text("utf-8-sig") if labels.exists() else ""
        except DataError as error:
            left_out.add("YOLO: an image can't be read", str(error))
            continue
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            left_out.add("YOLO: labels can't be read", f"{labels}: {reason}; get the file again")
            continue
        objects, unsure = [], set()
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                if line.strip():
                    objects.append(_object(line, names, size))
            except ValueError as error:
                left_out.add(
                    "YOLO: a line can't be used", f"{labels} line {number}: {error}; correct it"
                )
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
        text = file.read_text("utf-8-sig")
        if file.suffix in (".yaml", ".yml"):
            found = yaml.safe_load(text)
            found = found.get("names") if isinstance(found, dict) else None
            found = _in_order(found) if isinstance(found, dict) else found
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


def _in_order(names: dict) -> list:
    """Returns the names of classes by their numbers.

    Raises:
      ValueError: the numbers aren't 0, 1, 2 and so on.
    """
    if any(type(each) is not int for each in names) or sorted(names) != [*range(len(names))]:
        raise ValueError(f"their numbers aren't 0 to {len(names) - 1}")
    return [names[number] for number in range(len(names))]


def walk(folder: pathlib.Path, left_out: LeftOut) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """Yields each folder in a folder, and the names of its files, in order.

    Args:
      folder: where to begin.
      left_out: counts folders that can't be read.
    """

    def count(error: OSError) -> None:
        told = f"{error.filename}: cannot be read ({error.strerror}); change its permissions"
        left_out.add("a folder can't be read", told)

    for base, folders, files in os.walk(folder, onerror=count):
        folders.sort()
        yield pathlib.Path(base), sorted(files)


def _pairs(folder: pathlib.Path, left_out: LeftOut) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Yields each image, and where its labels are if it has any."""
    for base, files in walk(folder, left_out):
        parts = list(base.parts)
        if "images" in parts:
            last = len(parts) - 1 - parts[::-1].index("images")
            parts[last] = "labels"
        for name in files:
            if name.lower().endswith(IMAGE_ENDINGS):
                yield base / name, pathlib.Path(*parts, name).with_suffix(".txt")


def _classes(line: str, names: list[str]) -> set[str]:
    """Returns which classes a line that can't be used may be of: there is one more, somewhere."""
    number = _class(line.split()[0], names)
    return set(names) if number is None else {names[number]}


def _class(text: str, names: list[str]) -> int | None:
    """Returns the number of a class that has a name; None for anything else."""
    is_number = text.isdecimal() and len(text) < 10
    return int(text) if is_number and int(text) < len(names) else None


def _object(line: str, names: list[str], size: tuple[int, int]) -> Labelled:
    """Reads a line: class, centre, width and height; or class and the corners of an outline.

    Raises:
      ValueError: it is something else.
    """
    first, *values = line.split()
    number = _class(first, names)
    if number is None:
        raise ValueError(f"class {quote(first)} is none of the {len(names)} names")
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
        raise ValueError("the box is empty or not in fractions of the image's sides")
    return Labelled(names[number], scaled(box, (1, 1), size))
