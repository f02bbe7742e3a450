"""Reading files of predictions, which have a line of JSON for each answered row."""

import json
import re
from collections.abc import Iterator
from typing import Any

from mirg_jax.data.json_rows import read_rows
from mirg_jax.errors import DataError
from mirg_jax.files import lines, places
from mirg_jax.files.places import Place
from mirg_jax.files.streams import say


def load_predictions(path: str | Place, count: int) -> list[str | None]:
    """Reads a file of predictions, one line of JSON each: `{"index": i, "response": "…"}`.

    Args:
      path: the JSONL file, or a JSON list of the same objects, in any order. Other keys, blank
        lines and a line at the end that was not finished are ignored.
      count: number of rows in the benchmark; an index is from 0 to `count - 1`.

    Returns:
      A response for every row of the benchmark, None where the file has none.

    Raises:
      DataError: if the file is missing or contains no prediction, or a line is malformed, repeats
        an index, or has an index out of range.
    """
    responses: list[str | None] = [None] * count
    for where, entry in _entries(path):
        match entry:
            case {"index": int(index), "response": str(response)} if not isinstance(index, bool):
                pass
            case _:
                raise DataError(f'{where}: expected {{"index": integer, "response": "text"}}')
        if not 0 <= index < count:
            raise DataError(f"{where}: index {index} is not a row of the benchmark, 0..{count - 1}")
        if responses[index] is not None:
            raise DataError(f"{where}: a second response for index {index}; keep one a row")
        responses[index] = response
    if count and all(response is None for response in responses):
        raise DataError(f"{path}: holds no predictions")
    if not _is_list(path) and lines.is_torn(path):
        say(f"{path}: its last line was not finished, and is left out")
    return responses


def _is_list(path: str | Place) -> bool:
    """Returns whether a file holds a JSON list instead of lines.

    Raises:
      DataError: if it can't be read.
    """
    if places.is_url(path):
        return False  # there it is one of ours
    try:
        with open(path, "rb") as file:
            return re.match(rb"(\xef\xbb\xbf)?\s*\[\s*\{", file.read(100)) is not None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _entries(path: str | Place) -> Iterator[tuple[str, Any]]:
    """Yields each entry of a file of responses, after the place where it stands."""
    if _is_list(path):
        for number, entry in enumerate(read_rows(path)):
            yield f"{path} entry {number}", entry
        return
    for line in lines.read(path):
        try:
            if text := line.text.decode("utf-8-sig").strip():
                yield f"{path} line {line.number}", json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {line.number}: not valid JSON ({error})") from error
