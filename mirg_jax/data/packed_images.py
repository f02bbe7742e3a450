"""Images that are cells of Parquet and Arrow files.

Such an image goes by a name, TABLE#row=ROW/COLUMN/…, which stands where others have a path. TABLE
is the file's path, to which the rules of the image root apply as to any image's.
"""

import pathlib
import re
import urllib.parse
from typing import Any, NamedTuple

from mirg_jax.data import tables
from mirg_jax.errors import DataError

_NAME = re.compile(r"(?P<table>.+)#row=(?P<row>\d{1,12})/(?P<steps>[^#]+)", re.DOTALL)


class PackedImage(NamedTuple):
    """Where an image lies.

    Attributes:
      table: path of the file.
      row: the row, from 0.
      steps: the column, and then fields and numbers in the cell.
    """

    table: str
    row: int
    steps: tuple[str, ...]


def parse(path: str) -> PackedImage | None:
    """Returns where an image lies, None if its path is not the name of one in a table."""
    if not (match := _NAME.fullmatch(path)):
        return None
    steps = tuple(map(urllib.parse.unquote, match["steps"].split("/")))
    return PackedImage(match["table"], int(match["row"]), steps)


def without_folder(path: str) -> str:
    """Returns an image's name without the folder of its table; other paths as they are."""
    packed = parse(path)
    return path if packed is None else path.removeprefix(packed.table.rpartition("/")[0])


def read(file: pathlib.Path, image: PackedImage) -> bytes:
    """Returns an image's bytes.

    Args:
      file: the table's file.
      image: where it lies there.

    Raises:
      DataError: if the file can't be read, or has no bytes there.
    """
    table = tables.open_table(file)
    try:
        value = table.cell(image.row, image.steps[0])
        for step in image.steps[1:]:
            value = value[int(step)] if step.isdecimal() else value[step]
        found = value.as_py()
    except (LookupError, TypeError, ValueError):
        found = None
    if not isinstance(found, bytes):
        raise DataError(
            f"image {'/'.join(image.steps)!r} of row {image.row}: {file} has none there; was the "
            "table made anew?"
        )
    return found


def named(value: Any, name: str) -> Any:
    """Returns a cell as JSON has it, with a name in the place of each image's bytes.

    An object `{bytes, path}`, as data sets of Hugging Face have them, is the name alone if it has
    bytes.

    Args:
      value: a scalar of pyarrow, or Python's value.
      name: the cell's name.
    """
    import pyarrow as pa

    if not isinstance(value, pa.Scalar):
        return value
    if not value.is_valid or not tables.holds_bytes(value.type):
        return value.as_py()
    if isinstance(value, pa.StructScalar):
        found = {
            key: named(value[key], f"{name}/{urllib.parse.quote(key, safe='')}") for key in value
        }
        packed = found.get("bytes")
        return packed if packed is not None and found.keys() <= {"bytes", "path"} else found
    if isinstance(value, pa.ListScalar):
        return [named(each, f"{name}/{number}") for number, each in enumerate(value)]
    return name
