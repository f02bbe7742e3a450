"""Referring expressions as JSON: a row an object, with descriptions that fit it alone in its image.

The fields are those of RefCOCO and of what is made from it: the image in `file_name`, `image`,
`img_name` or `image_path`; `bbox` as x, y, width, height, or `box` with the sides x1, y1, x2, y2;
descriptions in `sentences` (texts, or objects with `sent` or `raw`), `expression`, `caption`,
`phrase` or `sent`; the class in `category`, `category_name` or `label`.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from mirg_jax.compose.coco import four_floats, read_attributes, read_box
from mirg_jax.compose.json_stream import elements
from mirg_jax.compose.names import clean
from mirg_jax.compose.photos import Labelled, Photo
from mirg_jax.data.json_rows import image_path, quote, whole_number
from mirg_jax.data.left_out import LeftOut
from mirg_jax.errors import DataError

_IMAGES = ("file_name", "image", "img_name", "image_path")
_PHRASES = ("sentences", "expression", "caption", "phrase", "sent")
_LABELS = ("category", "category_name", "label")


def read_refs(path: pathlib.Path, left_out: LeftOut) -> Iterator[Photo]:
    """Yields a photo a row, with one object; nothing is known of what else is in it.

    Args:
      path: a JSON list or JSON lines.
      left_out: counts rows that can't be used.

    Raises:
      DataError: the file can't be read, or no row can be used.
    """
    used, first = 0, ""
    for _, number, row in elements(path):
        try:
            yield _photo(row)
            used += 1
        except DataError as error:
            first = first or str(error)
            left_out.add("expressions: a row can't be used", f"{path} row {number}: {error}")
    if not used:
        told = f"the first: {first}" if first else "it has none, get or make it again"
        raise DataError(f"{path}: no row can be used; {told}")


def _photo(row: Any) -> Photo:
    if not isinstance(row, dict):
        raise DataError(f"the row is {quote(row)} where an object is needed; correct it")
    found = _first(row, _IMAGES)
    if found is None:
        raise DataError(f"no image is named; give its path in {_IMAGES[0]!r}")
    image = image_path(found)
    if "bbox" in row:
        box = read_box(row["bbox"])
    else:
        x1, y1, x2, y2 = box = four_floats(row.get("box"), "'bbox' or 'box'")
        if not (x1 < x2 and y1 < y2 and 1 < max(box) and max(map(abs, box)) < 1e6):
            raise DataError(
                f"the box {quote(row['box'])} is empty or no sides in pixels; it is x1, y1, x2, y2"
            )
    found = _first(row, _PHRASES)
    phrases = set()
    for each in found if isinstance(found, list) else [found]:
        if isinstance(each, dict):
            each = each.get("sent", each.get("raw"))
        try:
            phrases.add(clean(each).rstrip(" ."))
        except ValueError:
            continue
    try:
        label = clean(_first(row, _LABELS))
    except ValueError:
        label = ""
    if not phrases and not label:
        raise DataError(f"neither a description nor a class is there; add one, as {_PHRASES[0]!r}")
    size = whole_number(row.get("width")), whole_number(row.get("height"))
    thing = Labelled(
        label,
        box,
        attributes=read_attributes(row.get("attributes")),
        phrases=tuple(sorted(phrases - {""})),
    )
    return Photo(image, (thing,), size=size if all(size) else None)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Returns the first of some fields that is there."""
    return next((row[name] for name in names if row.get(name) is not None), None)
