"""Files of rows: JSON, and tables in Parquet and Arrow, each of one file or of several.

A table is a file, a pattern such as `data/train-*.parquet`, or a folder: one that the package
`datasets` has saved, or that holds the files of one split, as on Hugging Face's hub.
"""

import glob
import pathlib
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

from mirg_jax.data import json_rows, packed_images, tables
from mirg_jax.errors import DataError
from mirg_jax.files import hashes, places
from mirg_jax.files.places import Place

_ENDINGS = (".parquet", ".arrow")
_PART = re.compile(r"[-_.]?\d+(-of-\d+)?(-[0-9a-f]{8,})?$")


def read_rows(path: str | Place) -> list[Any]:
    """Returns the rows of a file, whatever it is called.

    In tables, the bytes of images are replaced by their names (`packed_images`).

    Raises:
      DataError: if the file is missing, empty, cut or holds something else.
    """
    place = places.of(path)
    if not _is_table(place):
        return json_rows.read_rows(place)
    rows = [row for file in _files_of(place) for row in _rows_of(file.absolute())]
    if not rows:
        raise DataError(f"{place}: the table is empty; get or make it again")
    return rows


def hash_rows(path: str | Place) -> str:
    """Returns a hash of the content of a file of rows, or of all files of a table.

    Raises:
      DataError: if it can't be read.
    """
    place = places.of(path)
    files = _files_of(place) if _is_table(place) else [place]
    if len(files) == 1:
        return hashes.hash_file(files[0])
    return hashes.hash_files((file.name, file) for file in files)


def _rows_of(file: pathlib.Path) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(tables.open_table(file).rows()):
        yield {
            column: packed_images.named(
                value, f"{file}#row={number}/{urllib.parse.quote(column, safe='')}"
            )
            for column, value in row.items()
        }


def _is_table(place: Place) -> bool:
    """Returns whether a path names a table.

    Raises:
      DataError: if it names one in a store.
    """
    if not isinstance(place, pathlib.Path):
        if place.suffix in _ENDINGS:
            raise DataError(f"{place}: tables are read from disks alone; copy it to one")
        return False
    return place.is_dir() or _is_pattern(place) or tables.is_table_file(place)


def _is_pattern(path: pathlib.Path) -> bool:
    return "*" in str(path) and not path.exists()


def _files_of(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a table, in their order.

    Raises:
      DataError: if there are none, or those of several splits.
    """
    if _is_pattern(path):
        found = sorted(map(pathlib.Path, glob.glob(str(path))))
        if not found:
            raise DataError(f"{path}: no file is named so; check the path")
        return found
    if not path.is_dir():
        return [path]
    if (state := path / "state.json").exists():
        return _saved_files(path, places.read_object(state) or {})
    splits = (places.read_object(path / "dataset_dict.json") or {}).get("splits")
    if isinstance(splits, list) and splits:
        names = ", ".join(str(path / str(name)) for name in splits)
        raise DataError(f"{path}: holds several data sets; give one of {names}")
    return _files_of_split(path)


def _saved_files(path: pathlib.Path, state: dict[str, Any]) -> list[pathlib.Path]:
    """Returns the files of a folder that `datasets` has saved, from its state.json."""
    listed = state.get("_data_files")
    names = [each.get("filename") for each in listed or [] if isinstance(each, dict)]
    if not names or not all(isinstance(name, str) and "/" not in name for name in names):
        raise DataError(f"{path / 'state.json'}: lists no files; save the data set again")
    return [path / name for name in names]


def _files_of_split(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the Parquet or Arrow files in a folder, or in its "data"."""
    found = []
    for folder in (path, path / "data"):
        for ending in _ENDINGS:
            found = found or sorted(folder.glob(f"*{ending}"))
    if not found:
        raise DataError(
            f"{path}: cannot be read (it is a folder without Parquet or Arrow files); check the "
            "path, or give a file"
        )
    splits = dict.fromkeys(_PART.sub("", file.stem) for file in found)
    if len(splits) > 1:
        folder, ending = found[0].parent, found[0].suffix
        names = ", ".join(f"'{folder / split}*{ending}'" for split in splits)
        raise DataError(f"{path}: holds several tables; give one of {names}")
    return found
