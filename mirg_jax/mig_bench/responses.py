"""Reading files of predictions, which have a line of JSON for each answered row."""

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from mirg_jax.data.json_rows import read_rows, read_text
from mirg_jax.errors import DataError
from mirg_jax.files import lines
from mirg_jax.files.streams import say


def load_predictions(path: str | pathlib.Path, count: int) -> list[str | None]:
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
    return responses


def _entries(path: str | pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Yields each entry of a file of responses, after the place where it stands."""
    text = read_text(path)
    if re.match(r"\s*\[\s*\{", text):
        for number, entry in enumerate(read_rows(path)):
            yield f"{path} entry {number}", entry
        return
    whole = lines.whole(text)
    if whole != text:
        say(f"{path}: its last line was not finished, and is left out")
    for number, line in enumerate(whole.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path} line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number}: not valid JSON ({error})") from error
