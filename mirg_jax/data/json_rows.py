"""Text files, JSON rows and their fields; whatever is wrong with one is said in a line."""

import gzip
import json
import posixpath
import re
import urllib.parse
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from mirg_jax.data import file_kinds, near_forms
from mirg_jax.errors import DataError
from mirg_jax.files import places
from mirg_jax.files.places import Place
from mirg_jax.grounding.boxes import GRID

# Where an object that stands for an image has its path, and where the image itself.
_PATHS, _CONTENTS = ("path", "url", "image", "image_url"), ("bytes", "base64", "source")
IMAGE_FIELDS = (*_PATHS, *_CONTENTS)
_LONGEST_PATH = 4096  # of Linux
_GZIP = b"\x1f\x8b"
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")


def read_rows(path: str | Place) -> list[Any]:
    """The rows of a file: a JSON list, or JSON lines; what it is called doesn't matter.

    Raises:
      DataError: the file is missing, empty, cut or holds something else.
    """
    text = _read_text(path)
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
        kind = "null" if rows is None else kind_of(rows)
        raise DataError(f"{path}: holds {kind} where a list of rows is needed; give one")
    if not rows:
        raise DataError(f"{path}: the list of rows is empty; get or make the file again")
    return rows


def _read_text(path: str | Place) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, and of one packed by gzip."""
    try:
        data = places.read_bytes(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{path}: gzip data that can't be unpacked ({error}); the file may be cut, get or "
                "make it again"
            ) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _check_kind(path, data)
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _check_kind(path: str | Place, data: bytes) -> None:
    """Raises DataError if the content of a file is of another kind than JSON."""
    if kind := file_kinds.looks_like(data):
        what, remedy = kind
        raise DataError(
            f"{path}: looks like {what}, where a JSON list or JSON lines are needed; {remedy}"
        ) from None


def _decode(path: str | Place, text: str, at: int) -> tuple[Any, int]:
    """One JSON value of a text from `at` on, and where it ends."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        _check_kind(path, text[:4096].encode())
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
    """The paths in the field "images", or in "image", which may be one; see `image_path`.

    An empty list is as good as an absent field.

    Raises:
      DataError: it holds anything else, or the two name different images.
    """
    single = row.get("image")
    singles = single if isinstance(single, list) else [single]
    if row.get("images") in (None, []) and isinstance(single, str | list | dict):
        row = {"images": singles}
    if row.get("images") is None and (problem := near_forms.missing_images(row)):
        raise DataError(problem)
    images = tuple(map(image_path, list_field(row, "images")))
    if isinstance(row.get("image"), str | list | dict):
        known = set(map(posixpath.normpath, images))
        others = [
            each for each in map(image_path, singles) if posixpath.normpath(each) not in known
        ]
        if others:
            raise DataError(
                f"'image' has {quote(others[0])}, which is not in 'images'; remove one of the two"
            )
    return images


def image_path(value: Any) -> str:
    """The path of an image, given as such, as a file's address, or as an object with either.

    Raises:
      DataError: it is anything else, such as a web address or the image itself.
    """
    for _ in range(2):  # {image_url: {url: path}}
        if isinstance(value, dict):
            given = without_nulls(value)
            if held := [name for name in _CONTENTS if name in given]:
                raise DataError(
                    f"an image is given in {held[0]!r} where a path is needed; save it as a file"
                )
            value = next((given[name] for name in _PATHS if name in given), None)
    if not isinstance(value, str) or not value:
        raise DataError("'images' holds something that is not a path")
    if value.startswith(("http://", "https://")):
        raise DataError(
            f"image {quote(value)} is a web address; download it, and give the file's path"
        )
    if value.startswith("file://"):
        value = urllib.parse.unquote(urllib.parse.urlsplit(value).path)
    check_path(value)
    return value


def without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are not null."""
    return {name: value for name, value in row.items() if value is not None}


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


def four_numbers(values: Any, name: str) -> tuple[Any, Any, Any, Any]:
    """Four numbers of any size; a truth value is none.

    Raises:
      DataError: they are something else; the message calls them by `name`.
    """
    kinds = (int, float)
    if not isinstance(values, list) or [type(value) in kinds for value in values] != [True] * 4:
        raise DataError(f"{name} {quote(values)} is not a list of four numbers")
    x1, y1, x2, y2 = values
    return x1, y1, x2, y2


def whole_number(value: Any) -> int | None:
    """An integer, also where it is written as 2.0; None for anything else."""
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value)
    return None


def on_grid(value: float, top: float = GRID) -> float:
    """A coordinate that is over the edge of 0..top by rounding is the edge, 2.0 is 2.

    Rounding is less than half a step of the grid of boxes; other values stay.
    """
    step = top / GRID
    if -step / 2 < value < 0:
        return 0
    if top < value < top + step / 2:
        return top
    whole = whole_number(value)
    return value if whole is None else whole


def refuse_fractions(box: Sequence[float], name: str) -> None:
    """Checks that a box of the grid is not written in fractions of the image.

    Args:
      box: its numbers; those with a decimal point are floats, also (0.0, 0.0, 1.0, 1.0).
      name: what the message calls the box.

    Raises:
      DataError: if it has decimals and none over 1.
    """
    if any(type(value) is float for value in box) and max(box) <= 1:
        raise DataError(
            f"{name} is in fractions of the image; write four integers on the grid of 0..{GRID}"
        )


def quote(value: Any) -> str:
    """A value as Python writes it, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return "missing" if value is None else names.get(type(value), "a number")
