"""Text files and the fields of JSON rows; whatever is wrong with one is said in a line."""

import pathlib
from typing import Any

from mirg_jax.errors import DataError

_LONGEST_PATH = 4096  # of Linux


def read_text(path: str | pathlib.Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
      DataError: the file can't be read or is not UTF-8.
    """
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


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
    """The paths in the field "images". Raises DataError if it holds anything else."""
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
