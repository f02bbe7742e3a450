"""COCO instances JSON: images, annotations and categories, in any order and of any number."""

import contextlib
import json
import pathlib
import sqlite3
from collections.abc import Iterator
from typing import Any

from mirg_jax.compose.json_stream import Element, elements
from mirg_jax.compose.names import clean
from mirg_jax.compose.photos import Attributes, Labelled, Photo, Sides
from mirg_jax.data.json_rows import four_numbers, quote, text_field, whole_number
from mirg_jax.data.left_out import LeftOut
from mirg_jax.errors import DataError

_ARRAYS = ("images", "annotations", "categories")
# Attributes whose values can stand before a name, as in "red car".
_ADJECTIVES = ("colour", "material", "pattern", "size", "state", "texture")


def read_coco(path: pathlib.Path, left_out: LeftOut) -> Iterator[Photo]:
    """Yields the images of a file with their objects; every object of the categories has a box.

    Objects of a category that an image has as a crowd can't be counted there. In files like LVIS's
    an image says which categories were looked for (`neg_category_ids`,
    `not_exhaustive_category_ids`).

    Args:
      path: the file.
      left_out: counts annotations and images that can't be used.

    Raises:
      DataError: the file can't be read, or has no images or no categories.
    """
    # A database without a name lies on the disk, and is gone when it is closed.
    with contextlib.closing(sqlite3.connect("")) as kept:
        kept.execute("CREATE TABLE image (id INTEGER PRIMARY KEY, number INTEGER, row TEXT)")
        kept.execute("CREATE TABLE annotation (image INTEGER, number INTEGER, row TEXT)")
        categories: dict[int, tuple[str, str]] = {}
        refused: dict[str, str] = {}  # the first of each array
        for element in elements(path, _ARRAYS):
            try:
                _keep(element, kept, categories)
            except DataError as error:
                told = f"{element.key} {element.number}: {error}"
                refused.setdefault(element.key, told)
                left_out.add(f"COCO {element.key}: a field can't be used", f"{path} {told}")
        (count,) = kept.execute("SELECT COUNT(*) FROM image").fetchone()
        if not count or not categories:
            what = "categories" if count else "images"
            why = refused.get(what, "give an instances file")
            raise DataError(f"{path}: has no {what} in the form of COCO; {why}")
        kept.execute("CREATE INDEX of_image ON annotation (image)")
        known = "SELECT id FROM image"
        lost = f"SELECT number, image FROM annotation WHERE image NOT IN ({known})"
        for number, image in kept.execute(lost):
            left_out.add(
                "COCO annotations: the image isn't in the file",
                f"{path} annotations {number}: image_id {image} is none of the images; add it",
            )
        for image, text in kept.execute("SELECT id, row FROM image ORDER BY id"):
            rows = kept.execute("SELECT number, row FROM annotation WHERE image = ?", (image,))
            yield _photo(json.loads(text), rows, categories, path, left_out)


def _keep(element: Element, kept: sqlite3.Connection, categories: dict) -> None:
    """Puts a row aside until all are read. Raises DataError if it can't be used."""
    key, number, row = element
    if not isinstance(row, dict):
        raise DataError(f"is {quote(row)} where an object is needed; correct it")
    if key == "categories":
        try:
            kind = row.get("supercategory")
            name = clean(row.get("name"))
            kind = clean(kind) if kind else ""
        except ValueError as error:
            raise DataError(f"{error}; give the category a name") from None
        given = _whole(row, "id")
        if categories.setdefault(given, (name, kind)) != (name, kind):
            raise DataError(f"another category has the id {given}; make ids unique")
    elif key == "images":
        names = "neg_category_ids", "not_exhaustive_category_ids", "width", "height"
        for name in names[:2]:
            _check_whole(row.get(name), name)
        kept_row = {"file_name": _file_name(row)} | {n: row[n] for n in names if n in row}
        values = _whole(row, "id"), number, json.dumps(kept_row)
        try:
            kept.execute("INSERT INTO image VALUES (?, ?, ?)", values)
        except sqlite3.IntegrityError:
            raise DataError(f"another image has the id {values[0]}; make ids unique") from None
    else:
        names = "bbox", "category_id", "iscrowd", "attributes", "track_id", "caption"
        kept_row = {name: row[name] for name in names if name in row}
        values = _whole(row, "image_id"), number, json.dumps(kept_row)
        kept.execute("INSERT INTO annotation VALUES (?, ?, ?)", values)


def _whole(row: dict[str, Any], name: str) -> int:
    number = whole_number(row.get(name))
    if number is None or abs(number) >= 1 << 63:
        raise DataError(
            f"{name!r} is {quote(row.get(name))} where an integer is needed; correct it"
        )
    return number


def _check_whole(values: Any, name: str) -> None:
    """Raises DataError unless it is a list of integers, or None."""
    if values is not None and not (
        isinstance(values, list) and all(type(each) is int for each in values)
    ):
        raise DataError(
            f"{name!r} is {quote(values)} where a list of integers is needed; correct it"
        )


def _file_name(row: dict[str, Any]) -> str:
    """The image's path: LVIS has it only as the end of its address."""
    if "file_name" not in row and isinstance(row.get("coco_url"), str):
        return "/".join(row["coco_url"].split("/")[-2:])
    return text_field(row, "file_name")


def _photo(
    row: dict[str, Any],
    annotations: sqlite3.Cursor,
    categories: dict[int, tuple[str, str]],
    path: pathlib.Path,
    left_out: LeftOut,
) -> Photo:
    objects, unsure = [], set()
    for row_number, text in annotations:
        annotation = json.loads(text)
        try:
            number = whole_number(annotation.get("category_id"))
            category = None if number is None else categories.get(number)
            if category is None:
                raise DataError("the category isn't in the file; add it to categories")
            if annotation.get("iscrowd"):
                unsure.add(category[0])
                continue
            try:
                box = read_box(annotation.get("bbox"))
            except DataError:
                unsure.add(category[0])  # there is one, and it isn't known where
                raise
            track = annotation.get("track_id")
            objects.append(
                Labelled(
                    label=category[0],
                    box=box,
                    kind=category[1],
                    attributes=read_attributes(annotation.get("attributes")),
                    track="" if track is None else str(track),
                )
            )
        except DataError as error:
            left_out.add(
                "COCO annotations: the box or category can't be used",
                f"{path} annotations {row_number}: {error}",
            )
    names = {number: name for number, (name, _) in categories.items()}
    unsure |= _named(row.get("not_exhaustive_category_ids"), names)
    is_federated = "neg_category_ids" in row
    looked_for = _named(row.get("neg_category_ids"), names)
    if is_federated:
        looked_for |= {each.label for each in objects}
    width, height = whole_number(row.get("width")), whole_number(row.get("height"))
    return Photo(
        path=row["file_name"],
        objects=tuple(objects),
        size=(width, height) if width and height else None,
        complete=not is_federated,
        looked_for=frozenset(looked_for),
        unsure=frozenset(unsure),
    )


def _named(numbers: Any, names: dict[int, str]) -> set[str]:
    return {names[each] for each in numbers or () if each in names}  # checked by `_keep`


def read_box(values: Any) -> Sides:
    """Converts a box of x, y, width, height to its sides.

    Raises:
      DataError: it is something else, or empty.
    """
    x, y, width, height = four_floats(values, "the bbox")
    box = x, y, x + width, y + height
    if not all(abs(each) < 1e6 for each in box) or width <= 0 or height <= 0:  # nor NaN
        raise DataError(f"the bbox {quote(values)} is empty; it is x, y, width, height in pixels")
    return box


def four_floats(values: Any, name: str) -> Sides:
    """Returns four numbers as floats.

    Raises:
      DataError: they are something else, or too large; the message calls them by `name`.
    """
    try:
        x1, y1, x2, y2 = map(float, four_numbers(values, name))
    except OverflowError:
        raise DataError(
            f"{name} {quote(values)} has a number that is too large; correct it"
        ) from None
    return x1, y1, x2, y2


def read_attributes(values: Any) -> Attributes:
    """Reads attributes that can stand before a name: {"color": "red"}; others are not used."""
    if not isinstance(values, dict):
        return ()
    found = {}
    for name, value in values.items():
        name = "colour" if name.lower() == "color" else name.lower()
        with contextlib.suppress(ValueError):
            if name in _ADJECTIVES:
                found[name] = clean(value)
    return tuple(sorted(found.items()))
