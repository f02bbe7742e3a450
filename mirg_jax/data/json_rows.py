"""Text files, JSON rows and their fields; whatever is wrong with one is said in a line."""

import json
import re
from typing import Any

from mirg_jax.errors import DataError
from mirg_jax.files import places
from mirg_jax.files.places import Place

_LONGEST_PATH = 4096  # of Linux
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")


def read_text(path: str | Place) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
      DataError: the file can't be read or is not UTF-8.
    """
    try:
        return places.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def read_rows(path: str | Place) -> list[Any]:
    """The rows of a file: a JSON list, or JSON lines; what it is called doesn't matter.

    Raises:
      DataError: the file is missing, empty, cut or holds something else.
    """
    text = read_text(path)
    values, at = [], _SPACE.match(text).end()
    while at < len(text):
        value, at = _decode(path, text, at)
        values.append(value)
        at = _SPACE.match(text, at).end()
    if not values:
        raise DataError(f"{path}: the file is empty; get or make it again")
    if len(values) > 1 or isinstance(values[0], dict):
        return values
    (rows,) = values
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds {kind_of(rows)} where a list of rows is needed")
    if not rows:
        raise DataError(f"{path}: the list of rows is empty; get or make the file again")
    return rows


def _decode(path: str | Place, text: str, at: int) -> tuple[Any, int]:
    """One JSON value of a text from `at` on, and where it ends."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            "the file may be cut, get or make it again"
        ) from None
    except (ValueError, RecursionError) as error:  # numbers too long, nesting too deep
        line = text.count("\n", 0, at) + 1
        raise DataError(f"{path}: not usable JSON from line {line} on ({error})") from None


def text_field(row: dict[str, Any], name: str) -> str:
    """A field that holds text. Raises DataError if it doesn't."""
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"{name!r} is {kind_of(value)} where text is needed")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f"{name!r} holds half a surrogate pair, which is no text") from None
    return value


def list_field(row: dict[str, Any], name: str) -> list[Any]:
    """A field that holds a list with something in it. Raises DataError if it doesn't."""
    value = row.get(name)
    if not isinstance(value, list):
        raise DataError(f"{name!r} is {kind_of(value)} where a list is needed")
    if not value:
        raise DataError(f"{name!r} is empty")
    return value


def images_field(row: dict[str, Any]) -> tuple[str, ...]:
    """The paths in the field "images", or in "image", which may be one.

    Raises:
      DataError: it holds anything else.
    """
    if row.get("images") is None and isinstance(row.get("image"), str | list):
        single = row["image"]
        row = {"images": [single] if isinstance(single, str) else single}
    images = list_field(row, "images")
    if not all(isinstance(image, str) and image for image in images):
        raise DataError("'images' holds something that is not a path")
    for image in images:
        check_path(image)
    return tuple(images)


def check_path(image: str) -> None:
    """Checks that a text can be the path of an image, and is not the image itself.

    Raises:
      DataError: if it can't.
    """
    if image.startswith("data:") or len(image) > _LONGEST_PATH:
        raise DataError(
            f"an image is given in base64 ({quote(image[:40])}, {len(image)} characters) where a "
            "path is needed; save it as a file"
        )


def four_numbers(values: Any, name: str, *, whole: bool = False) -> tuple[Any, Any, Any, Any]:
    """Four numbers, `whole` ones if need be, of any size; a truth value is none.

    Raises:
      DataError: they are something else; the message calls them by `name`.
    """
    kinds = (int,) if whole else (int, float)
    if not isinstance(values, list) or [type(value) in kinds for value in values] != [True] * 4:
        what = "integers" if whole else "numbers"
        raise DataError(f"{name} {quote(values)} is not a list of four {what}")
    x1, y1, x2, y2 = values
    return x1, y1, x2, y2


def quote(value: Any) -> str:
    """A value as Python writes it, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return "missing" if value is None else names.get(type(value), "a number")
